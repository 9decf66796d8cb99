"""The host: KVM, the QEMU main loop, vhost workers, the tap, the wire, and what each step costs."""
