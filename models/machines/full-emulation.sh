# Full emulation: QEMU's default NIC (e1000) behind the hub of -net, an IDE disk, a virtio balloon.
kvm -vnc 0.0.0.0:1 -m 2048 /kvm/storage/vm_disks/ubnutu1604.img \
  -net nic -net tap,script=/etc/qemu-ifup \
  -device virtio-balloon-pci --daemonize
