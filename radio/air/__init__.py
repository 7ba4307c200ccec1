"""The channel emulator: what the emulated radios of a lab share.

``core`` merges what the ports say and computes what they hear, ``channel`` is one directed link,
``process`` serves the core to radios in other processes.
"""
