"""A run as a trace that Perfetto and ``chrome://tracing`` open: every span of every node.

The file is JSON in the Trace Event Format [1]_: a process per node, a thread per resource, times in
microseconds of experiment time.  Spans of one thread nest or follow each other; where a radio serves
several clients at once, further threads of the same resource take what overlaps.

.. [1] "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from testbed.frames import LoadedRun

THREAD_NAMES = {"processor": "compute", "transmitter": "TX", "receiver": "RX"}
LANES_PER_RESOURCE = 100  # room between the thread numbers of two resources
NOTES_THREAD = 0


def write_trace(loaded: LoadedRun, path: Path) -> Path:
    """Write the trace of a run, replaced as a whole; return its path.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(msgspec.json.encode(trace(loaded)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def trace(loaded: LoadedRun) -> dict[str, Any]:
    """The trace as a document: ``traceEvents``, and the run's start document as ``otherData``."""
    events = _Events(loaded)
    events.add_spans()
    events.add_instants()
    events.add_counters()
    return {
        "traceEvents": [*events.metadata(), *sorted(events.found, key=lambda event: event["ts"])],
        "displayTimeUnit": "ms",
        "otherData": {
            key: str(value) for key, value in loaded.run.start.items() if not isinstance(value, Mapping)
        },
    }


class _Events:
    def __init__(self, loaded: LoadedRun) -> None:
        self._loaded = loaded
        names = ["controller", loaded.server, *loaded.clients]
        names += sorted({event["node"] for event in loaded.run.events} - set(names))
        self._processes = {name: index + 1 for index, name in enumerate(names)}
        resources = {event["resource"] for event in loaded.of_kind("span")}
        order = [*THREAD_NAMES, *sorted(resources - set(THREAD_NAMES))]
        self._resources = {name: index for index, name in enumerate(order)}
        self._threads: dict[tuple[str, int], str] = {}
        self.found: list[dict[str, Any]] = []

    def add_spans(self) -> None:
        """Complete events; each goes to the first thread of its resource where it fits."""
        open_until: dict[tuple[str, int], list[int]] = {}
        spans = sorted(self._loaded.of_kind("span"), key=lambda span: (span["start_ns"], -span["end_ns"]))
        for span in spans:
            node, resource = span["node"], span["resource"]
            first = LANES_PER_RESOURCE * self._resources[resource] + 1
            lane = 0
            while not _fits(open_until.setdefault((node, first + lane), []), span):
                lane += 1
            name = THREAD_NAMES.get(resource, resource)
            self._threads[node, first + lane] = f"{name} {lane + 1}" if lane else name
            self.found.append(
                {
                    "name": span["phase"],
                    "cat": resource,
                    "ph": "X",
                    "ts": _microseconds(span["start_ns"]),
                    "dur": _microseconds(span["end_ns"] - span["start_ns"]),
                    "pid": self._processes[node],
                    "tid": first + lane,
                    "args": {"round": span["round"], **span.get("attributes", {})},
                }
            )

    def add_instants(self) -> None:
        """Radio events, plans, moves of the cut, and whoever came and went."""
        loaded = self._loaded
        for event in loaded.of_kind("radio-event"):
            values = _picked(event, "round", "count", "detail")
            self._instant(event, event["radio_event"], "radio", "t", values)
        for event in loaded.of_kind("plan"):
            values = _picked(
                event, "round", "policy", "method", "cut_layer", "formula_latency_s", "binding", "why"
            )
            self._instant(event, f"plan {event['round']}", "plan", "t", values)
        for event in loaded.of_kind("cut-move"):
            name = f"cut {event.get('from')} to {event.get('to')}"
            values = _picked(event, "round", "latency_ns", "validation_loss_before", "validation_loss_after")
            self._instant(event, name, "cut-move", "g", values)
        for row in loaded.remarks[loaded.remarks["kind"] != "round"].to_dict("records"):
            event = {"node": row["node"], "at_ns": round(row["at_s"] * 1e9)}
            self._instant(event, row["kind"], "remark", "p", {"round": row["round"], "words": row["words"]})

    def add_counters(self) -> None:
        """Accuracy and loss, and the latency of each round as measured and predicted."""
        for event in self._loaded.of_kind("evaluation"):
            values = _numbers(event, ("accuracy", "worst_client_accuracy"))
            self._counter(event, f"{event['split']} accuracy", values)
        predictions = {event["round"]: event for event in self._loaded.of_kind("prediction")}
        for event in self._loaded.of_kind("round"):
            latency_ms = {"measured": event["latency_ns"] / 1e6}
            predicted = predictions.get(event["round"], {}).get("round_s") or {}
            if _numbers(predicted, ("mean",)):
                latency_ms["predicted"] = 1e3 * predicted["mean"]
            self._counter(event, "round latency [ms]", latency_ms)
            self._counter(event, "training loss", _numbers(event, ("loss",)))

    def metadata(self) -> Iterable[dict[str, Any]]:
        """Names of processes and threads, and the order in which they are shown."""
        for node, process in self._processes.items():
            yield _metadata(process, 0, "process_name", {"name": node})
            yield _metadata(process, 0, "process_sort_index", {"sort_index": process})
        for (node, thread), name in sorted(self._threads.items()):
            process = self._processes[node]
            yield _metadata(process, thread, "thread_name", {"name": name})
            yield _metadata(process, thread, "thread_sort_index", {"sort_index": thread})

    def _instant(
        self, event: Mapping[str, Any], name: str, category: str, scope: str, values: dict[str, Any]
    ) -> None:
        self._threads.setdefault((event["node"], NOTES_THREAD), "events")
        self.found.append(
            {
                "name": str(name),
                "cat": category,
                "ph": "i",
                "s": scope,
                "ts": _microseconds(event["at_ns"]),
                "pid": self._processes[event["node"]],
                "tid": NOTES_THREAD,
                "args": values,
            }
        )

    def _counter(self, event: Mapping[str, Any], name: str, values: dict[str, float]) -> None:
        if values:
            self.found.append(
                {
                    "name": name,
                    "ph": "C",
                    "ts": _microseconds(event["at_ns"]),
                    "pid": self._processes["controller"],
                    "args": values,
                }
            )


def _fits(open_until: list[int], span: Mapping[str, Any]) -> bool:
    """Put the span on a thread's stack if it follows all open spans or lies inside the innermost."""
    while open_until and open_until[-1] <= span["start_ns"]:
        open_until.pop()
    if open_until and span["end_ns"] > open_until[-1]:
        return False
    open_until.append(span["end_ns"])
    return True


def _metadata(process: int, thread: int, name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "ts": 0, "pid": process, "tid": thread, "args": values}


def _picked(event: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: event[key] for key in keys if event.get(key) is not None}


def _numbers(event: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    """Values that a counter can show: finite numbers."""
    found = {key: event.get(key) for key in keys}
    return {
        key: float(value)
        for key, value in found.items()
        if isinstance(value, float | int) and math.isfinite(value)
    }


def _microseconds(duration_ns: int) -> float:
    return duration_ns / 1000
