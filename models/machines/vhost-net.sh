# virtio-net with the back end in the host kernel (vhost-net), and a virtio-blk disk (if=virtio).
kvm -vnc 0.0.0.0:1 -m 2048 --daemonize \
  -drive format=raw,file=/kvm/storage/vm_disks/ubnutu1604.img,if=virtio \
  -device virtio-balloon-pci \
  -netdev tap,id=net0,vhost=on -device virtio-net-pci,netdev=net0
