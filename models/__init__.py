"""The I/O paths, one file each; installed as the package iosim.models."""
