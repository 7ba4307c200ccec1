"""Two promises about every test: it leaves nothing behind, and it says why it did not run.

What a machine may lack (GNU Radio, libiio, a radio) is asked for by a marker; a test so marked is
skipped with the reason.  ``TESTBED_REQUIRE=gnuradio,libiio`` says that this machine has them: then
such a skip is a failure.
"""

from __future__ import annotations

import ctypes.util
import functools
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

# ------------------------------------------------------------------------- what a machine may lack


@functools.cache
def find_gnuradio_python() -> str | None:
    """An interpreter that can import GNU Radio, which Debian installs for its own Python only."""
    for python in (os.environ.get("TESTBED_GNURADIO_PYTHON"), sys.executable, "/usr/bin/python3"):
        if not python:
            continue
        try:
            tried = subprocess.run([python, "-c", "import gnuradio.gr"], capture_output=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if tried.returncode == 0:
            return python
    return None


def _gnuradio() -> str | None:
    if find_gnuradio_python() is None:
        return "no interpreter can import gnuradio; TESTBED_GNURADIO_PYTHON can name one"
    return None


def _libiio() -> str | None:
    return None if ctypes.util.find_library("iio") else "the libiio library is not installed"


def _hardware() -> str | None:
    if not os.environ.get("TESTBED_HARDWARE_URI"):
        return "no radio on the bench; TESTBED_HARDWARE_URI can name one"
    return None


# Each says what is missing, or None.
REQUIREMENTS: dict[str, Callable[[], str | None]] = {
    "gnuradio": _gnuradio,
    "libiio": _libiio,
    "hardware": _hardware,
}


def _required() -> set[str]:
    return {name.strip() for name in os.environ.get("TESTBED_REQUIRE", "").split(",") if name.strip()}


def pytest_configure(config: pytest.Config) -> None:
    if unknown := _required() - set(REQUIREMENTS):
        raise pytest.UsageError(f"TESTBED_REQUIRE names {sorted(unknown)}; known: {sorted(REQUIREMENTS)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, missing in REQUIREMENTS.items():
        if item.get_closest_marker(name) is not None and (reason := missing()) is not None:
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Make a failure of a skip, whoever asked for it, where the machine must have all it takes."""
    report = yield
    needed = sorted(name for name in _required() if item.get_closest_marker(name) is not None)
    if report.skipped and needed and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"TESTBED_REQUIRE asks for {', '.join(needed)}, but: {reason}"
    return report


@pytest.fixture(scope="session")
def gnuradio_python() -> str:
    """The interpreter to run flowgraphs with, for tests marked ``gnuradio``."""
    python = find_gnuradio_python()
    assert python is not None, "mark the test with gnuradio"
    return python


# --------------------------------------------------------------------------- nothing left behind
SETTLE_S = 3.0  # what was told to stop may take this long, in wall time, to be gone
SHARED_MEMORY = Path("/dev/shm")


def _is_helper(process: psutil.Process) -> bool:
    """True for the two processes that multiprocessing keeps until the interpreter ends.

    Only our direct children count: whatever the forkserver forked shows its command line too.
    """
    command = " ".join(process.cmdline())
    helper = (
        "multiprocessing.forkserver import main" in command or "multiprocessing.resource_tracker" in command
    )
    return helper and process.ppid() == os.getpid()


def _processes() -> dict[object, str]:
    found: dict[object, str] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if not _is_helper(process):
                command = " ".join(process.cmdline())[:120] or process.name()
                key = process.pid, process.create_time()
                found[key] = f"process {process.pid} ({process.status()}): {command}"
        except psutil.NoSuchProcess:
            continue
    return found


def _threads() -> dict[object, str]:
    return {
        thread.ident: f"thread {thread.name} ({'daemon' if thread.daemon else 'not daemon'})"
        for thread in threading.enumerate()
        # pyzmq starts this one with the first message that is sent without a copy, and stops it
        # only when the interpreter ends.
        if type(thread).__name__ != "GarbageCollectorThread"
        # The watchdog of pytest-timeout over the test that is running.
        and not thread.name.startswith("pytest_timeout ")
    }


def _listeners() -> dict[object, str]:
    return {
        tuple(connection.laddr): f"listening socket {connection.laddr.ip}:{connection.laddr.port}"
        for connection in psutil.Process().net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def _shared_memory() -> dict[object, str]:
    if not SHARED_MEMORY.is_dir():
        return {}
    return {entry.name: f"shared memory {entry.path}" for entry in os.scandir(SHARED_MEMORY)}


def _used_elsewhere(name: str) -> bool:
    """True if a process that is not below this one has the shared memory mapped: it is that one's."""
    ours = {os.getpid(), *(process.pid for process in psutil.Process().children(recursive=True))}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if int(maps.parent.name) not in ours and f"{SHARED_MEMORY / name}\n" in maps.read_text():
                return True
        except (OSError, ValueError):
            continue
    return False


_blamed: set[object] = set()  # what one test was failed for is not held against the next


def _leftovers(before: dict[object, str]) -> dict[object, str]:
    multiprocessing.active_children()  # reaps those that have ended
    now = {**_processes(), **_threads(), **_listeners(), **_shared_memory()}
    return {key: text for key, text in now.items() if key not in before and key not in _blamed}


def _watch() -> Iterator[None]:
    before = {**_processes(), **_threads(), **_listeners(), **_shared_memory()}
    yield
    tick, deadline = threading.Event(), time.monotonic() + SETTLE_S
    while (left := _leftovers(before)) and time.monotonic() < deadline:
        tick.wait(0.02)
    left = {key: text for key, text in left.items() if not (isinstance(key, str) and _used_elsewhere(key))}
    if not left:
        return
    _blamed.update(left)
    for key in left:
        if isinstance(key, tuple) and isinstance(key[0], int):  # or every later test would fail with it
            try:
                psutil.Process(key[0]).kill()
            except psutil.NoSuchProcess:
                continue
    pytest.fail("left behind: " + "; ".join(sorted(left.values())), pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_left_behind_at_the_end() -> Iterator[None]:
    """Fails if a fixture that outlives a test leaves something behind."""
    yield from _watch()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(_nothing_is_left_behind_at_the_end: None) -> Iterator[None]:
    """Fails a test that leaves a process, thread, listening socket or shared memory behind."""
    yield from _watch()
