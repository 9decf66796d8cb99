"""Virtqueues over guest memory: driver side, device side, event suppression. Knows no time and no devices."""
