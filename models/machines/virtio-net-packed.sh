# virtio-net with the back end in QEMU, packed rings, and suppression by flags in place of the event index.
kvm -vnc 0.0.0.0:1 -m 2048 --daemonize \
  -drive format=raw,file=/kvm/storage/vm_disks/ubnutu1604.img,if=virtio \
  -netdev tap,id=net0 -device virtio-net-pci,netdev=net0,packed=on,event_idx=off
