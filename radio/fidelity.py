"""How closely the emulated air imitates a radio.

``iq``
    Every sample of every burst is made, carried through its channel, converted and demodulated.
``blocks``
    Pilots, and with them all that a receiver estimates, are drawn; whether a transport block is
    decoded is drawn from the decoder's measured error rates.  For long runs and sweeps.

Whatever lies above the modem (link, acknowledgements, link adaptation, timing) is the same code.
"""

from __future__ import annotations

from enum import Enum


class Fidelity(str, Enum):
    """See this module's text."""

    IQ = "iq"
    BLOCKS = "blocks"
