# Full emulation again, of another NIC (RTL8139), joined to its tap by -netdev, without a hub.
kvm -vnc 0.0.0.0:1 -m 2048 --daemonize \
  -drive format=raw,file=/kvm/storage/vm_disks/ubnutu1604.img \
  -netdev tap,id=net0 -device rtl8139,netdev=net0
