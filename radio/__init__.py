"""The air: bytes to IQ samples and back.

Owns clocks, units, events, numerology, modulation, coding, synchronisation, channel
estimation, the link with its retransmissions, the channel emulator ("air"), the drivers and
the sample plane that moves IQ between processes.  It never imports torch, knows no model and
sends no control message.  This file imports nothing, so that importing a type pulls in no modem.
"""
