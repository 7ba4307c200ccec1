"""The run record: a directory that explains the run, written as it happens.

``config.yaml``
    The resolved configuration; loads again.
``run.json``
    Start document: versions, seed, lab, radio, clock, compute-time model, host.
``events.jsonl``
    Experiment facts only, ordered by experiment time, node and sequence, written at round barriers.
``operations.jsonl``
    What the machine did: wall stamps, process ids, memory, timeouts, solver times.
``stop.json``
    Why the run ended, in words, and its summary.  Absent while it runs, or if it was killed.

Everything else is derived from these.  A torn last line is legal.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from testbed.errors import StorageError

RUN_FORMAT = "run/1"
EVENT_FORMAT = "event/1"
STOP_FORMAT = "stop/1"

_encoder = msgspec.json.Encoder(order="deterministic")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True)
class Event:
    """One experiment fact."""

    at_ns: int
    node: str
    kind: str
    round_index: int
    values: Mapping[str, Any] = field(default_factory=dict)


class RunWriter:
    """Writes one run directory.

    Raises
    ------
    StorageError
        The directory exists already with a run in it, or cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sequence = 0
        self._pending: list[tuple[int, str, int, bytes]] = []
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any((directory / name).exists() for name in ("run.json", "events.jsonl", "operations.jsonl")):
                raise StorageError(f"{directory} already holds a run; choose another --out")
            # Unbuffered: what could not be written must not come back with a later write.
            self._events = (directory / "events.jsonl").open("xb", buffering=0)
            self._operations = (directory / "operations.jsonl").open("xb", buffering=0)
        except OSError as exc:
            raise StorageError(f"the run directory {directory} cannot be written: {exc}") from exc

    def start(self, document: Mapping[str, Any], resolved_config: str) -> None:
        """Write ``run.json`` and ``config.yaml``."""
        self._write("config.yaml", resolved_config.encode())
        self._write("run.json", _pretty({"format": RUN_FORMAT, "events_format": EVENT_FORMAT, **document}))

    def add(self, event: Event) -> None:
        """Note an experiment fact; it reaches the disk at the next barrier."""
        self._sequence += 1
        body = {
            "at_ns": event.at_ns,
            "node": event.node,
            "seq": self._sequence,
            "kind": event.kind,
            "round": event.round_index,
            **event.values,
        }
        self._pending.append((event.at_ns, event.node, self._sequence, _encoder.encode(body)))

    def barrier(self) -> None:
        """Put what was noted on disk, in order of experiment time, node and sequence."""
        self._pending.sort(key=lambda entry: entry[:3])
        _append(self._events, b"".join(line + b"\n" for *_, line in self._pending), durable=True)
        self._pending.clear()

    def operation(self, kind: str, **values: Any) -> None:
        """Note what the machine did, with a wall stamp."""
        line = _encoder.encode({"wall_s": round(time.time(), 3), "kind": kind, **values})
        _append(self._operations, line + b"\n")

    def stop(self, document: Mapping[str, Any]) -> None:
        """Write ``stop.json`` and close, whatever of it fails."""
        try:
            self.barrier()
        finally:
            try:
                self._write("stop.json", _pretty({"format": STOP_FORMAT, **document}))
            finally:
                self.close()

    def close(self) -> None:
        """Close the files; what is pending is lost, as after a kill."""
        self._events.close()
        self._operations.close()

    def _write(self, name: str, data: bytes) -> None:
        """Replace a file as a whole, so that it is never seen half written."""
        temporary = self.directory / f".{name}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.directory / name)
        except OSError as exc:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise StorageError(f"{self.directory / name} cannot be written: {exc}") from exc


def _append(file: FileIO, data: bytes, durable: bool = False) -> None:
    """Add whole lines to a log, or none of them.

    Raises
    ------
    StorageError
        The disk is full or gone; what had gone into the file is taken out again.
    """
    try:
        end = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) or 0 :]
            if durable:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
    except (OSError, ValueError) as exc:
        raise StorageError(f"{file.name} cannot be written: {exc}") from exc


def _pretty(document: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(_encoder.encode(document), indent=2) + b"\n"


@dataclass(frozen=True)
class Run:
    """A run as it lies on disk, finished or not.

    Attributes
    ----------
    stop
        ``None`` when the run still goes on or its process was killed.
    torn_lines
        Lines of either log that were cut short and left out.
    """

    directory: Path
    start: dict[str, Any]
    events: list[dict[str, Any]]
    operations: list[dict[str, Any]]
    stop: dict[str, Any] | None
    torn_lines: int

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind, in order."""
        return [event for event in self.events if event["kind"] == kind]


def read_run(directory: Path | str) -> Run:
    """Read a run directory, that of a killed process included.

    Raises
    ------
    StorageError
        There is no run there, or a file is damaged before its last line.
    """
    path = Path(directory)
    start = _read_document(path / "run.json", RUN_FORMAT)
    if start is None:
        raise StorageError(f"{path} holds no run: run.json is missing")
    if start.get("events_format") != EVENT_FORMAT:
        raise StorageError(
            f"the events of {path} are {start.get('events_format')!r}; this version reads {EVENT_FORMAT}"
        )
    events, torn_events = _read_lines(path / "events.jsonl")
    operations, torn_operations = _read_lines(path / "operations.jsonl")
    stop = _read_document(path / "stop.json", STOP_FORMAT)
    return Run(path, start, events, operations, stop, torn_events + torn_operations)


def _read_document(path: Path, expected: str) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict)
    except FileNotFoundError:
        return None
    except (OSError, *_UNREADABLE) as exc:
        raise StorageError(f"{path} cannot be read: {exc}") from exc
    if document.get("format") != expected:
        raise StorageError(f"{path} is {document.get('format')!r}; this version reads {expected}")
    return document


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc}") from exc
    lines = data.split(b"\n")
    last = lines.pop()  # empty after a complete line
    decoded = []
    for number, line in enumerate(lines, 1):
        try:
            decoded.append(msgspec.json.decode(line, type=dict))
        except _UNREADABLE as exc:
            raise StorageError(f"{path}:{number} is damaged: {exc}") from exc
    return decoded, int(bool(last))
