"""Radios behind one interface; see :mod:`radio.drivers.base`."""
