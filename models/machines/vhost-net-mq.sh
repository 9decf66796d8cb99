# vhost-net with a queue pair for each of four vCPUs; a worker polls for 50 us before it sleeps.
kvm -vnc 0.0.0.0:1 -m 2048 -cpu host -smp 4 --daemonize \
  -drive format=raw,file=/kvm/storage/vm_disks/ubnutu1604.img,if=virtio \
  -netdev tap,id=net0,vhost=on,queues=4,poll-us=50 \
  -device virtio-net-pci,netdev=net0,mq=on,vectors=10
