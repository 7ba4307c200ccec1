"""One round, node by node: compute, transmitter and receiver lanes, and the tiles of its latency.

The picture is drawn in the page, from numbers per round, so that a slider can go through the rounds
without a copy of the picture for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from testbed.frames import LoadedRun
from testbed.report import style

MAX_ROUNDS = 240
BAR_HEIGHT = 0.82
RESOURCES = {"processor": "compute", "transmitter": "TX", "receiver": "RX"}
MEASURED_TILES, PREDICTED_TILES = "measured tiles", "predicted tiles"
NODE_GAP = 0.45  # between the lanes of two nodes, in lanes
MS = 1e3


@dataclass(frozen=True)
class RoundChart:
    """What the page needs to draw any of the rounds.

    Attributes
    ----------
    lanes
        Label and height on the axis [lane], from the top.
    looks
        Per phase: name, colour, pattern.
    rounds
        Per round: its words, and bars ``[phase index, height, start ms, duration ms, thickness]``
        since the decision.
    first_shown
        The round of median latency in the later half.
    left_out
        Rounds that were not taken in, because there are so many.
    """

    lanes: list[tuple[str, float]]
    looks: list[tuple[str, str, str]]
    rounds: dict[int, dict[str, Any]]
    first_shown: int
    left_out: int
    has_tiles: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "lanes": self.lanes,
            "looks": self.looks,
            "rounds": {str(index): entry for index, entry in self.rounds.items()},
            "firstShown": self.first_shown,
        }


def round_chart(loaded: LoadedRun) -> RoundChart | None:
    """The rounds that have spans; ``None`` if none has."""
    spans = loaded.spans[loaded.spans["round"] >= 0]
    if spans.empty:
        return None
    chosen, num_all = _chosen_rounds(loaded, spans)
    spans = spans[spans["round"].isin(chosen)].copy()
    spans["shown_phase"] = spans["phase"].where(~spans["phase"].str.startswith("sounding"), "sounding")
    tiles = loaded.phases[loaded.phases["round"].isin(chosen) & (loaded.phases["phase"] != "join")]
    has_tiles = bool((tiles[["measured_s", "predicted_s"]] > 0).any(axis=None))
    lanes = _lanes(loaded, spans, has_tiles)
    heights = dict(lanes)
    phases = [name for name in style.PHASE_LOOKS if name in {*spans["shown_phase"], *tiles["phase"]}]
    phases += sorted(set(spans["shown_phase"]) - set(phases))
    numbers = {name: index for index, name in enumerate(phases)}
    origins = _origins(loaded, spans)
    by_round = {int(index): rows for index, rows in spans.groupby("round")}
    tiles_by_round = {int(index): rows for index, rows in tiles.groupby("round")}
    rounds = {}
    for index in chosen:
        origin_s, first_control_s = origins[index]
        bars = _span_bars(by_round[index], origin_s, heights, numbers)
        if index in tiles_by_round:
            bars += _tile_bars(tiles_by_round[index], first_control_s, heights, numbers)
        rounds[index] = {"words": _words(loaded, index), "bars": bars}
    looks = [(name, *style.PHASE_LOOKS.get(name, style.OTHER_LOOK)) for name in phases]
    return RoundChart(lanes, looks, rounds, _typical(loaded.rounds, chosen), num_all - len(chosen), has_tiles)


def _chosen_rounds(loaded: LoadedRun, spans: pd.DataFrame) -> tuple[list[int], int]:
    """All rounds; of very many, evenly spread ones and those in which something happened."""
    indices = sorted(int(index) for index in spans["round"].unique())
    if len(indices) <= MAX_ROUNDS:
        return indices, len(indices)
    special = {*loaded.cut_moves["round"], *loaded.remarks["round"]}
    special |= set(loaded.rounds.nlargest(10, "latency_s")["round"])
    kept = {int(index) for index in special if index in set(indices)}
    kept = set(sorted(kept)[: MAX_ROUNDS // 2])
    spread = np.linspace(0, len(indices) - 1, MAX_ROUNDS - len(kept)).round().astype(int)
    return sorted(kept | {indices[place] for place in spread}), len(indices)


def _typical(rounds: pd.DataFrame, chosen: Sequence[int]) -> int:
    known = rounds[rounds["round"].isin(chosen)]
    if known.empty:
        return chosen[-1]
    later = known.iloc[len(known) // 2 :].sort_values("latency_s", kind="stable")
    return int(later["round"].iloc[len(later) // 2])


def _lanes(loaded: LoadedRun, spans: pd.DataFrame, has_tiles: bool) -> list[tuple[str, float]]:
    """Labels and heights from the top; only lanes that something happened on."""
    busy = set(zip(spans["node"], spans["resource"], strict=True))
    order = [loaded.server, *loaded.clients]
    order += sorted(set(spans["node"]) - set(order))
    lanes: list[tuple[str, float]] = []
    height = 0.0
    if has_tiles:
        lanes = [(MEASURED_TILES, 0.0), (PREDICTED_TILES, 1.0)]
        height = 2.0 + NODE_GAP
    for node in order:
        resources = [name for name in RESOURCES if (node, name) in busy]
        resources += sorted({name for other, name in busy if other == node and name not in RESOURCES})
        for resource in resources:
            lanes.append((_lane_label(node, resource), height))
            height += 1.0
        if resources:
            height += NODE_GAP
    return lanes


def _lane_label(node: str, resource: str) -> str:
    return f"{node} {RESOURCES.get(resource, resource)}"


def _origins(loaded: LoadedRun, spans: pd.DataFrame) -> dict[int, tuple[float, float]]:
    """Per round: instant of the decision [s], and how long its grant took to arrive [s]."""
    first = {int(index): float(value) for index, value in spans.groupby("round")["start_s"].min().items()}
    starts = dict.fromkeys(first, 0.0)
    decided = {
        int(row.round): row.start_s for row in loaded.rounds.itertuples() if row.start_s == row.start_s
    }
    for event in loaded.of_kind("plan"):
        decided.setdefault(event["round"], event["at_ns"] / 1e9)
        if "start_ns" in event:
            starts[event["round"]] = max(0.0, (event["start_ns"] - event["at_ns"]) / 1e9)
    return {index: (decided.get(index, first[index]), starts[index]) for index in first}


def _span_bars(
    spans: pd.DataFrame, origin_s: float, heights: dict[str, float], numbers: dict[str, int]
) -> list[list[float]]:
    """Bars of one round; spans that overlap on one lane share its height."""
    bars: list[list[float]] = []
    for (node, resource), lane in spans.groupby(["node", "resource"], sort=False):
        rows = sorted(
            (row.start_s, row.end_s, numbers[row.shown_phase]) for row in lane.itertuples(index=False)
        )
        for group in _overlapping(rows):
            thickness = BAR_HEIGHT / len(group)
            for place, (start_s, end_s, phase) in enumerate(group):
                offset = (place - (len(group) - 1) / 2) * thickness
                bars.append(
                    _bar(
                        phase,
                        heights[_lane_label(node, resource)] + offset,
                        start_s - origin_s,
                        end_s - start_s,
                        thickness,
                    )
                )
    return bars


def _overlapping(rows: list[tuple[float, float, int]]) -> list[list[tuple[float, float, int]]]:
    """Spans in order of start, those that overlap together."""
    groups: list[list[tuple[float, float, int]]] = []
    end_s = -np.inf
    for row in rows:
        if row[0] < end_s:
            groups[-1].append(row)
        else:
            groups.append([row])
        end_s = max(end_s, row[1])
    return groups


def _tile_bars(
    tiles: pd.DataFrame, first_control_s: float, heights: dict[str, float], numbers: dict[str, int]
) -> list[list[float]]:
    """The latency as tiles, end to end; control latency lies at both ends, a cut move before them."""
    bars: list[list[float]] = []
    for column, lane in (("measured_s", MEASURED_TILES), ("predicted_s", PREDICTED_TILES)):
        values = {
            phase: float(value)
            for phase, value in zip(tiles["phase"], tiles[column], strict=True)
            if value == value and value > 0
        }
        height = heights[lane]
        before_s = values.pop("cut-move", None)
        if before_s is not None:
            bars.append(_bar(numbers["cut-move"], height, -before_s, before_s, BAR_HEIGHT))
        control_s = values.pop("control", 0.0)
        start_s = min(first_control_s, control_s)
        position_s = 0.0
        sequence = [("control", start_s), *values.items(), ("control", control_s - start_s)]
        for phase, duration_s in sequence:
            if duration_s > 0:
                bars.append(_bar(numbers[phase], height, position_s, duration_s, BAR_HEIGHT))
            position_s += duration_s
    return bars


def _bar(phase: int, height: float, start_s: float, duration_s: float, thickness: float) -> list[float]:
    return [
        phase,
        round(height, 3),
        round(MS * start_s, 3),
        round(MS * duration_s, 3),
        round(thickness, 3),
    ]


def _words(loaded: LoadedRun, index: int) -> str:
    rows = loaded.rounds[loaded.rounds["round"] == index]
    if rows.empty:
        return "not finished"
    row = rows.iloc[0]
    said = f"{MS * row['latency_s']:.1f} ms measured"
    if row["predicted_s"] == row["predicted_s"]:
        said += (
            f", {MS * row['predicted_s']:.1f} ms predicted "
            f"({MS * row['low_s']:.1f} to {MS * row['high_s']:.1f} with 90 %)"
        )
    return f"{said}; cut layer {row['cut_layer']}"
