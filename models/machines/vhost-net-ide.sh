# virtio-net with vhost-net, and a disk that is IDE because its -drive says no if=virtio.
kvm -vnc 0.0.0.0:1 -m 2048 --daemonize \
  -drive format=raw,file=/kvm/storage/vm_disks/ubnutu1604.img \
  -device virtio-balloon-pci \
  -netdev tap,id=net0,vhost=on -device virtio-net-pci,netdev=net0
