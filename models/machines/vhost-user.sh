# virtio-net served by a process that polls (DPDK, Open vSwitch) behind a socket; two queue pairs, shared memory.
kvm -vnc 0.0.0.0:1 -m 2048 -cpu host -smp 2 --daemonize \
  -object memory-backend-memfd,id=mem0,size=2048M,share=on -machine memory-backend=mem0 \
  -drive format=raw,file=/kvm/storage/vm_disks/ubnutu1604.img,if=virtio \
  -chardev socket,id=char0,path=/var/run/openvswitch/vhost-user0 \
  -netdev vhost-user,id=net0,chardev=char0,queues=2 \
  -device virtio-net-pci,netdev=net0,mq=on,rx_queue_size=1024
