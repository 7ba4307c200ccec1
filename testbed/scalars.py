"""A run as TensorBoard scalars, for whoever compares runs there.

An extra: ``pip install 'epsl-testbed[tensorboard]'``.  TensorBoard's own writer is used, so that
nothing of a learning framework is imported.  The step is the round; the wall time of each point is
the run's start plus experiment time, so that the axis *relative* shows experiment time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from testbed.errors import StorageError, UsageError
from testbed.frames import LoadedRun

HOW_TO_INSTALL = "pip install 'epsl-testbed[tensorboard]', or pip install tensorboard"


class Scalar(NamedTuple):
    """One point of one curve."""

    tag: str
    step: int
    at_s: float
    value: float


def scalars(loaded: LoadedRun) -> Iterator[Scalar]:
    """All points that a run has; units are in the tags."""
    ends_s = dict(zip(loaded.rounds["round"], loaded.rounds["at_s"], strict=True))
    for row in loaded.evaluations.to_dict("records"):
        for key in ("accuracy", "worst_client_accuracy", "loss"):
            yield from _point(f"{row['split']}/{key}", row["round"], row["at_s"], row[key])
    for row in loaded.losses.to_dict("records"):
        yield from _point(f"training_loss/{row['client']}", row["round"], row["at_s"], row["loss"])
    for row in loaded.rounds.to_dict("records"):
        for tag, key in (
            ("training_loss/mean", "loss"),
            ("round/latency_s", "latency_s"),
            ("round/predicted_s", "predicted_s"),
            ("round/cut_layer", "cut_layer"),
            ("round/total_power_dbm", "total_power_dbm"),
        ):
            yield from _point(tag, row["round"], row["at_s"], row[key])
    for what, frame in (("phase", loaded.phases), ("airtime", loaded.airtime)):
        name = "phase" if what == "phase" else "stream"
        for row in frame.to_dict("records"):
            at_s = ends_s.get(row["round"], math.nan)
            for key in ("measured_s", "predicted_s"):
                yield from _point(f"{what}_{row[name]}/{key}", row["round"], at_s, row[key])
    sent = loaded.transmissions.groupby(["round", "transmitter"])["blocks_retransmitted"].sum()
    for (index, transmitter), value in sent.items():
        at_s = ends_s.get(index, math.nan)
        yield from _point(f"blocks_retransmitted/{transmitter}", index, at_s, value)


def write_scalars(loaded: LoadedRun, directory: Path) -> Path:
    """Write an event file into a folder of its own; return the folder.

    An event file that is there already is replaced: TensorBoard would show both.

    Raises
    ------
    UsageError
        TensorBoard is not installed.
    StorageError
        The folder cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as exc:
        raise UsageError(
            f"writing TensorBoard scalars needs the package tensorboard, which is not installed ({exc}); "
            f"{HOW_TO_INSTALL}"
        ) from exc
    started_s = float(loaded.run.start.get("started_wall_s") or 0.0)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        writer = EventFileWriter(str(directory))
        try:
            for point in scalars(loaded):
                summary = Summary(value=[Summary.Value(tag=point.tag, simple_value=point.value)])
                writer.add_event(Event(wall_time=started_s + point.at_s, step=point.step, summary=summary))
        finally:
            writer.close()
    except OSError as exc:
        raise StorageError(f"TensorBoard scalars cannot be written to {directory}: {exc}") from exc
    return directory


def _point(tag: str, step: Any, at_s: Any, value: Any) -> Iterator[Scalar]:
    if value is not None and math.isfinite(value) and math.isfinite(at_s):
        yield Scalar(tag, int(step), float(at_s), float(value))
