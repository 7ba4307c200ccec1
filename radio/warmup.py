"""One explicit step that compiles every kernel of the radio, so that no measurement does.

A cold start costs many seconds of compilation.  This module imports each module that owns kernels
(importing registers its warm-up) and runs them all; later processes load from the cache on disk.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from radio import jit

KERNEL_MODULES = (
    "radio.coding.crc",
    "radio.coding.transport_block",
    "radio.modulation",
)


def warm_up(progress: Callable[[str], None] | None = None) -> None:
    """Import every kernel module and run what it registered; `progress` gets each module's name."""
    for name in KERNEL_MODULES:
        importlib.import_module(name)
    jit.warm_up(progress)
