"""Workloads: what is asked of a path, the client at the other end of the wire, the application in the guest."""
