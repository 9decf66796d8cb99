"""The same rings over memory shared with another process: vhost-user, front end and back end. Knows no simulated time.

Vocabulary of the protocol (QEMU's docs/interop/vhost-user.rst): the *front end* is where the driver's side of
the queues is (usually QEMU, for its guest), the *back end* is the device.
"""
