# virtio-net with the back end in QEMU, joined to its tap by the hub of -net; an IDE disk.
kvm -vnc 0.0.0.0:1 -m 2048 --daemonize \
  -drive format=raw,file=/kvm/storage/vm_disks/ubnutu1604.img \
  -device virtio-balloon-pci \
  -net nic,model=virtio -net tap
