"""The channel emulator: what the emulated radios of a lab share.

``core`` merges what the ports say and computes what they hear, ``process`` serves it to radios in other
processes.  A signal goes through its port's ``front_end`` (with the ``oscillator`` of both directions), a
``channel`` (whose profile may be one of ``tdl``) by its ``sample_clock``, and meets ``noise`` and
``interference`` at the receiver, whose front end it passes before the converter.  ``fractional`` and
``interpolation`` are delays that are no whole samples.
"""
