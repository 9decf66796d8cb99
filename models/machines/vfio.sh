# A NIC of the host passed through to the guest (VFIO), which drives it with a queue pair for each of four vCPUs.
kvm -vnc 0.0.0.0:1 -m 2048 -cpu host -smp 4 --daemonize \
  -drive format=raw,file=/kvm/storage/vm_disks/ubnutu1604.img,if=virtio \
  -nic none -device vfio-pci,host=01:00.0
