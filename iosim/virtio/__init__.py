"""What the virtio specification says of devices: feature bits and the formats of requests."""
