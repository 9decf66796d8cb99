"""A device for somebody's QEMU over vhost-user, its rings shown live: what `iosim serve` does."""
