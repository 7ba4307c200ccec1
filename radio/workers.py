"""Threads that share the work of one call, and tell what CPU time they took.

Kernels and FFTs release the interpreter's lock, so parts of a window are processed on all cores.
Parts are fixed before they are handed out and each writes rows of its own: results do not depend on
the number of threads.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

Part = TypeVar("Part")


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A fixed number of threads, the calling one among them.

    Parameters
    ----------
    num_threads
        At least 1; by default one for each core that this process may use.

    Raises
    ------
    ValueError
        For less than one thread.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = num_cores() if num_threads is None else num_threads
        if self.num_threads < 1:
            raise ValueError(f"{self.num_threads} threads asked for; at least 1 is needed")
        self._pool = (
            ThreadPoolExecutor(self.num_threads - 1, thread_name_prefix="modem")
            if self.num_threads > 1
            else None
        )
        self._cpu_ns = 0

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, work: Callable[[Part], None], parts: Iterable[Part]) -> None:
        """Call ``work`` with every part; the first failure is raised when all have ended."""
        todo = deque(parts)
        if self._pool is None or len(todo) < 2:
            while todo:
                work(todo.popleft())
            return
        others = [self._pool.submit(_timed, work, todo) for _ in range(min(self.num_threads, len(todo)) - 1)]
        try:
            _until_empty(work, todo)
        finally:
            todo.clear()  # after a failure nobody needs to go on
            failures = [future.exception() for future in others]
        for failure, future in zip(failures, others, strict=True):
            if failure is not None:
                raise failure
            self._cpu_ns += future.result()

    def take_cpu_ns(self) -> int:
        """CPU time of the other threads since the last call [ns]; the caller's own is not in it."""
        spent, self._cpu_ns = self._cpu_ns, 0
        return spent

    def ranges(self, count: int, at_least: int = 1) -> list[tuple[int, int]]:
        """``0..count`` cut into (first, end) ranges of nearly equal length, one per thread at most."""
        num_parts = max(1, min(self.num_threads, count // max(1, at_least)))
        edges = [count * part // num_parts for part in range(num_parts + 1)]
        return [(first, end) for first, end in pairwise(edges) if end > first]


def _until_empty(work: Callable[[Part], None], todo: deque[Part]) -> None:
    """Work on what is left; whoever is free takes the next part."""
    while True:
        try:
            part = todo.popleft()
        except IndexError:
            return
        work(part)


def _timed(work: Callable[[Part], None], todo: deque[Part]) -> int:
    started = time.thread_time_ns()
    _until_empty(work, todo)
    return time.thread_time_ns() - started


ALONE = Workers(1)  # no threads but the caller's
