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

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from testbed.errors import StorageError

RUN_FORMAT = "run/1"
EVENT_FORMAT = "event/1"
STOP_FORMAT = "stop/1"

_encoder = msgspec.json.Encoder(order="deterministic")


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
            if (directory / "run.json").exists():
                raise StorageError(f"{directory} already holds a run; choose another --out")
            self._events = (directory / "events.jsonl").open("xb")
            self._operations = (directory / "operations.jsonl").open("xb")
        except OSError as exc:
            raise StorageError(f"the run directory {directory} cannot be written: {exc}") from exc

    def start(self, document: Mapping[str, Any], resolved_config: str) -> None:
        """Write ``run.json`` and ``config.yaml``."""
        self._write("config.yaml", resolved_config.encode())
        self._write("run.json", _pretty({"format": RUN_FORMAT, **document}))

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
        try:
            for *_, line in self._pending:
                self._events.write(line + b"\n")
            self._pending.clear()
            self._events.flush()
            os.fsync(self._events.fileno())
        except OSError as exc:
            raise StorageError(f"{self.directory / 'events.jsonl'} cannot be written: {exc}") from exc

    def operation(self, kind: str, **values: Any) -> None:
        """Note what the machine did, with a wall stamp."""
        line = _encoder.encode({"wall_s": round(time.time(), 3), "kind": kind, **values})
        try:
            self._operations.write(line + b"\n")
            self._operations.flush()
        except (OSError, ValueError) as exc:
            raise StorageError(f"{self.directory / 'operations.jsonl'} cannot be written: {exc}") from exc

    def stop(self, document: Mapping[str, Any]) -> None:
        """Write ``stop.json`` and close."""
        self.barrier()
        self._write("stop.json", _pretty({"format": STOP_FORMAT, **document}))
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
            raise StorageError(f"{self.directory / name} cannot be written: {exc}") from exc


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
    try:
        start = msgspec.json.decode((path / "run.json").read_bytes(), type=dict)
    except FileNotFoundError:
        raise StorageError(f"{path} holds no run: run.json is missing") from None
    except (OSError, msgspec.DecodeError) as exc:
        raise StorageError(f"{path / 'run.json'} cannot be read: {exc}") from exc
    if start.get("format") != RUN_FORMAT:
        raise StorageError(f"{path / 'run.json'} is {start.get('format')!r}; this version reads {RUN_FORMAT}")
    events, torn_events = _read_lines(path / "events.jsonl")
    operations, torn_operations = _read_lines(path / "operations.jsonl")
    stop_path = path / "stop.json"
    stop = msgspec.json.decode(stop_path.read_bytes(), type=dict) if stop_path.exists() else None
    return Run(path, start, events, operations, stop, torn_events + torn_operations)


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
        except msgspec.DecodeError as exc:
            raise StorageError(f"{path}:{number} is damaged: {exc}") from exc
    return decoded, int(bool(last))
