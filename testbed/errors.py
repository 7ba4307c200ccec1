"""Everything the testbed can fail with, and the exit code each failure ends the command with.

Lower rooms never import this module: what ``radio``, ``nodes`` and ``calibration`` raise is their
own, and :func:`exit_code` files it under the room it came from.  The tree::

    TestbedError
    ├── RunInterrupted        1   Ctrl-C: the run was closed early, in order
    ├── UsageError            2   the command line makes no sense
    ├── ConfigError          10   experiment.yaml, lab.yaml, --set or environment
    ├── LabError             20   the lab is not what lab.yaml says
    │   └── PreflightError   21   a check before the first transmission failed
    ├── RadioError           30   a radio failed and did not come back
    ├── NodeError            40   a node died, hung or answered nonsense
    │   └── TransportError   41   messages do not get through
    ├── CalibrationError     50   a routine failed, or its result is stale
    ├── VerdictFailed        60   the run ended, and its verdict is "failed"
    ├── StorageError         70   the run directory cannot be written or read
    └── BugError             90   the testbed broke a promise it makes to itself
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """What a ``testbed`` command returns to the shell; ``help`` says what to do about it."""

    help: str

    def __new__(cls, value: int, help_text: str) -> ExitCode:
        member = int.__new__(cls, value)
        member._value_ = value
        member.help = help_text
        return member

    OK = 0, "finished"
    INTERRUPTED = 1, "interrupted by the user; the run directory says how far it got"
    USAGE = 2, "the command line could not be understood; try --help"
    CONFIG = 10, "the configuration is wrong; every reason was listed and nothing was started"
    LAB = 20, "the lab is not as lab.yaml describes it: check boards, radios and cables"
    PREFLIGHT = 21, "a check before the first transmission failed; nothing was radiated"
    RADIO = 30, "a radio failed and could not be reopened"
    NODE = 40, "a board's agent, the server or the air stopped or could not be started"
    TRANSPORT = 41, "messages between nodes did not get through: address, firewall or keys"
    CALIBRATION = 50, "a calibration failed or is stale; repeat it"
    VERDICT_FAILED = 60, "the run ended, but a measured value is outside its declared range"
    STORAGE = 70, "the run directory could not be written or read: space, permissions or a damaged file"
    BUG = 90, "a fault of the testbed itself; please report it with the run directory"


class TestbedError(Exception):
    """Base of every failure the testbed explains in words.

    The message says what was being done, to which thing, what happened and what to try.
    """

    __test__: ClassVar[bool] = False  # pytest collects classes called Test* otherwise
    exit_code: ClassVar[ExitCode] = ExitCode.BUG


class RunInterrupted(TestbedError):  # noqa: N818 - nothing went wrong
    """The user asked for the end; what was measured until then is on disk."""

    exit_code = ExitCode.INTERRUPTED


class UsageError(TestbedError):
    """Options that contradict each other or name things that do not exist."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class ConfigProblem:
    """One thing wrong with the configuration, and where it was said.

    ``file`` is the file as the user named it; for a value that came from elsewhere it names that
    source (``--set learning.phi=2``, ``environment variable TESTBED__ROUNDS``) and ``line`` and
    ``column`` are None.  Both count from 1.  ``path`` is the key, as in ``boards[2].max_power_dbm``.
    """

    file: str
    line: int | None
    column: int | None
    path: str
    message: str
    suggestion: str | None = None

    @property
    def where(self) -> str:
        """The place, as editors and terminals make it clickable: ``file:line:column``."""
        if self.line is None:
            return self.file
        return f"{self.file}:{self.line}:{self.column}"

    def __str__(self) -> str:
        hint = f" ({self.suggestion})" if self.suggestion else ""
        key = f" {self.path}:" if self.path else ""
        separator = ":" if self.line is None or not key else ""
        return f"{self.where}{separator}{key} {self.message}{hint}"


class ConfigError(TestbedError):
    """The configuration can't be used; ``problems`` holds every reason, in order of place."""

    exit_code = ExitCode.CONFIG

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        head = (
            "the configuration has 1 problem:" if count == 1 else f"the configuration has {count} problems:"
        )
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


class LabError(TestbedError):
    """A board, radio or cable is not what ``lab.yaml`` says."""

    exit_code = ExitCode.LAB


class PreflightError(LabError):
    """A check before the first transmission failed; nothing was radiated."""

    exit_code = ExitCode.PREFLIGHT


class RadioError(TestbedError):
    """A radio failed and did not come back."""

    exit_code = ExitCode.RADIO


class NodeError(TestbedError):
    """A node could not be started, died, hung or broke the protocol."""

    exit_code = ExitCode.NODE


class TransportError(NodeError):
    """Nodes live, but their messages don't get through."""

    exit_code = ExitCode.TRANSPORT


class CalibrationError(TestbedError):
    """A calibration routine failed, or its result is stale or belongs to another device."""

    exit_code = ExitCode.CALIBRATION


class VerdictFailed(TestbedError):  # noqa: N818 - a verdict about the run, not about the program
    """The run ended properly, and a measured value lies outside its declared range."""

    exit_code = ExitCode.VERDICT_FAILED


class StorageError(TestbedError):
    """The run directory can't be written or read."""

    exit_code = ExitCode.STORAGE


class BugError(TestbedError):
    """The testbed broke a promise it makes to itself."""

    exit_code = ExitCode.BUG


_ROOM_CODES = {
    "radio": ExitCode.RADIO,
    "nodes": ExitCode.NODE,
    "calibration": ExitCode.CALIBRATION,
}
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG}


def exit_code(exc: BaseException) -> ExitCode:
    """The exit code that ``exc`` ends a command with.

    An exception class of a lower room counts as that room's failure; anything nobody foresaw is a
    bug, except a full or read-only disk, which the whole program can meet anywhere.
    """
    if isinstance(exc, TestbedError):
        return exc.exit_code
    if isinstance(exc, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    for cls in type(exc).__mro__:
        room = cls.__module__.partition(".")[0]
        if room in _ROOM_CODES:
            return _ROOM_CODES[room]
    if isinstance(exc, OSError) and exc.errno in _STORAGE_ERRNOS:
        return ExitCode.STORAGE
    return ExitCode.BUG
