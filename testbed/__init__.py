"""The experiment: configuration, allocator, latency prediction, closed loop, run record, CLI.

No signal processing, no tensors, no device access in this room.
"""
