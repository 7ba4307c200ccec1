"""The experiment: configuration, allocator, latency prediction, closed loop, run record, CLI.

No signal processing, no tensors, no device access in this room.  ``testbed.load_run(path)`` gives a
run as tables; what it needs is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.frames import load_run

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from testbed import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
