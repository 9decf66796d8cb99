"""QEMU command lines: what a line builds, and which I/O path it asks for."""
