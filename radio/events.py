"""What a radio tells its observer: counted facts, never exceptions.

An observer is any callable that takes a :class:`RadioEvent`.  The radio does not know who records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class RadioEventKind(str, Enum):
    LATE = "late"  # a burst was to start before now
    UNDERFLOW = "underflow"  # the transmitter ran out of samples
    OVERFLOW = "overflow"  # received samples were dropped
    GAP = "gap"  # received samples are not contiguous
    LOST = "lost"  # the device is gone
    RECOVERED = "recovered"  # the device is back
    CLIPPED = "clipped"  # samples beyond full scale


@dataclass(frozen=True)
class RadioEvent:
    kind: RadioEventKind
    port: str
    sample_index: int
    count: int = 1
    detail: str = ""


Observer = Callable[[RadioEvent], None]


def ignore(event: RadioEvent) -> None:
    """An observer for callers that count nothing."""
