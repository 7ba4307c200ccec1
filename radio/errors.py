"""Exceptions of the radio room.

::

    RadioError                     anything below
    ├── RadioConfigurationError    a setting the device cannot take or did not take
    ├── RadioTimeoutError          nothing happened within a wall-clock timeout
    ├── RadioLostError             the device or its process is gone
    ├── LateBurstError             a burst lies before samples that were already computed
    ├── LateRoundError             a round would begin before samples that were already computed
    ├── GapError                   samples were asked for that are no longer kept
    └── PlaneError                 the sample plane was used against its rules

Corrupted bursts and failed blocks are counted events, never exceptions.
"""


class RadioError(Exception):
    """Base of every error raised by :mod:`radio`."""


class RadioConfigurationError(RadioError):
    """A setting is impossible for this device, or the device did not take it."""


class RadioTimeoutError(RadioError):
    """A wall-clock timeout ran out; the message says what was being waited for."""


class RadioLostError(RadioError):
    """The device, its process or its connection is gone."""


class LateBurstError(RadioError):
    """A burst lies before samples that a receiver has already been given."""


class LateRoundError(RadioError):
    """A round would begin before samples that a receiver has already been given."""


class GapError(RadioError):
    """A receiver asked for samples that the air no longer keeps."""


class PlaneError(RadioError):
    """The sample plane was used against its rules (bounds, order, capacity)."""
