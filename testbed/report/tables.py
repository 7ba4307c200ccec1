"""The report's tables: rows of text that the page sets, numbers already rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from testbed.frames import LoadedRun
from testbed.report.style import finite

MAX_ROWS = 400
REJECTED = "rejected"
NONE = "–"


@dataclass(frozen=True)
class Table:
    """What a table of the page says.

    Attributes
    ----------
    heads
        Column heads with units.
    rows
        Text by row.
    numeric
        Columns whose text is set to the right.
    left_out
        Rows beyond those shown.
    """

    heads: list[str]
    rows: list[list[str]]
    numeric: set[int] = field(default_factory=set)
    left_out: int = 0

    @property
    def long(self) -> bool:
        """True if the page should let it scroll."""
        return len(self.rows) > 18


def skill_rows(skills: pd.DataFrame) -> Table | None:
    """How well each quantity was predicted."""
    if skills.empty:
        return None
    heads = [
        "what",
        "rounds",
        "mean measured [ms]",
        "median |error| [%]",
        "MAPE [%]",
        "bias [%]",
        "inside the 90 % interval [%]",
        "MAPE of persistence [%]",
        "skill",
    ]
    rows = [
        [
            str(row["what"]),
            str(row["num_rounds"]),
            _number(1e3 * row["mean_measured_s"], "{:.2f}"),
            _number(row["median_error_percent"], "{:.1f}"),
            _number(row["mape_percent"], "{:.1f}"),
            _number(row["bias_percent"], "{:+.1f}"),
            _number(row["coverage_percent"], "{:.0f}"),
            _number(row["persistence_mape_percent"], "{:.1f}"),
            _number(row["skill"], "{:+.2f}"),
        ]
        for row in skills.to_dict("records")
    ]
    return Table(heads, rows, set(range(1, len(heads))))


def link_rows(loaded: LoadedRun) -> Table | None:
    """Health of each link, by stream."""
    received, sent = loaded.receptions, loaded.transmissions
    if received.empty:
        return None
    heads = [
        "stream",
        "link",
        "blocks received",
        "BLER [%]",
        "blocks sent again",
        "goodput [Mbit/s]",
        "mean SNR [dB]",
        "EVM [%]",
        "incomplete",
    ]
    order = {name: index for index, name in enumerate(("uplink", "broadcast", "unicast"))}
    rows = []
    grouped = received.groupby(["stream", "transmitter", "receiver"], sort=True)
    for (stream, transmitter, receiver), group in sorted(
        grouped, key=lambda item: (order.get(item[0][0], 9), item[0])
    ):
        own = sent[
            (sent["stream"] == stream)
            & (sent["transmitter"] == transmitter)
            & sent["receivers"].map(lambda names, wanted=receiver: wanted in names).astype(bool)
        ]
        total = int(group["blocks_ok"].sum() + group["blocks_failed"].sum())
        failed = int(group["blocks_failed"].sum())
        # One broadcast serves all: blocks that any of its receivers missed were sent again to all.
        shared = " (to all)" if any(len(names) > 1 for names in own["receivers"]) else ""
        rows.append(
            [
                stream,
                f"{transmitter} → {receiver}",
                str(total),
                _number(100 * failed / total if total else None, "{:.2f}"),
                f"{int(own['blocks_retransmitted'].sum())}{shared}" if len(own) else NONE,
                _number(1e-6 * own["goodput_bps"].mean(), "{:.2f}"),
                _number(group["mean_snr_db"].mean(), "{:.1f}"),
                _number(100 * group["evm"].mean(), "{:.1f}"),
                str(int((group["failure"].fillna("") != "").sum() or group["complete_s"].isna().sum())),
            ]
        )
    return Table(heads, rows, set(range(2, len(heads))))


def radio_event_rows(loaded: LoadedRun) -> Table | None:
    """How often each radio told of each kind of event."""
    events = loaded.radio_events
    if events.empty:
        return None
    kinds = sorted(events["radio_event"].unique())
    told = events.groupby(["node", "radio_event"])["count"].agg(["size", "sum"])
    rows = []
    for node in _in_order(loaded, events["node"].unique()):
        cells = []
        for kind in kinds:
            if (node, kind) in told.index:
                size, total = (int(value) for value in told.loc[(node, kind)])
                cells.append(f"{size} ({total})" if total != size else str(size))
            else:
                cells.append("0")
        rows.append([node, *cells])
    return Table(["node", *kinds], rows, set(range(1, len(kinds) + 1)))


def decision_rows(loaded: LoadedRun) -> Table | None:
    """What each plan said of itself."""
    decisions = loaded.decisions
    if decisions.empty:
        return None
    weighed: dict[int, list[str]] = {}
    for row in loaded.candidates.to_dict("records"):
        predicted = _number(1e3 * row["predicted_s"], "{:.1f} ms")
        weighed.setdefault(row["round"], []).append(f"{row['name']}, cut {row['cut_layer']}: {predicted}")
    latencies = loaded.rounds.set_index("round")["formula_latency_s"]
    heads = [
        "round",
        "cut",
        "uplink waits for",
        "downlink waits for",
        "longest phase",
        "power limit that binds",
        "next best cut",
        "weighed, with predicted latency",
        "why",
    ]
    rows = []
    for row in decisions.head(MAX_ROWS).to_dict("records"):
        rows.append(
            [
                str(row["round"]),
                str(row["cut_layer"]),
                _waits(row["uplink_client"], row["uplink_slack_s"]),
                _waits(row["downlink_client"], row["downlink_slack_s"]),
                _text(row["phase"]),
                _text(row["power"]),
                _runner_up(row, latencies.get(row["round"])),
                "; ".join(weighed.get(row["round"], [])) or NONE,
                "; ".join([_text(row["why"]), *row["notes"]]),
            ]
        )
    return Table(heads, rows, {0, 1}, max(0, len(decisions) - MAX_ROWS))


def decision_words(loaded: LoadedRun) -> list[str]:
    """The same plans counted: what bound most often."""
    decisions = loaded.decisions
    said = []
    for column, words in (
        ("phase", "Longest phase"),
        ("uplink_client", "The uplink waited for"),
        ("downlink_client", "The downlink waited for"),
        ("power", "Binding power limit"),
    ):
        counts = decisions[column].dropna().value_counts()
        counts = counts[counts.index != ""]
        if len(counts):
            parts = [f"{name} in {count} of {len(decisions)} rounds" for name, count in counts.items()]
            said.append(f"{words}: {', '.join(parts)}.")
    return said


def cut_move_rows(loaded: LoadedRun) -> Table | None:
    """Every move of the cut, with what it cost and did to the loss."""
    moves = loaded.cut_moves
    if moves.empty:
        return None
    tiles = loaded.phases[loaded.phases["phase"] == "cut-move"].set_index("round")["predicted_s"]
    rows = [
        [
            str(row["round"]),
            f"{row['from_cut']} → {row['to_cut']} ({'deeper' if row['to_cut'] > row['from_cut'] else 'shallower'})",
            _number(row["at_s"], "{:.3f}"),
            _number(1e3 * row["latency_s"], "{:.1f}"),
            _number(
                1e3 * value if (value := finite(tiles.get(row["round"]))) is not None else None, "{:.1f}"
            ),
            _number(row["loss_before"], "{:.4f}"),
            _number(row["loss_after"], "{:.4f}"),
        ]
        for row in moves.to_dict("records")
    ]
    heads = [
        "before round",
        "cut layer",
        "at [s]",
        "took [ms]",
        "predicted [ms]",
        "validation loss before [nat]",
        "after [nat]",
    ]
    return Table(heads, rows[:MAX_ROWS], {0, 2, 3, 4, 5, 6}, max(0, len(rows) - MAX_ROWS))


def remark_rows(loaded: LoadedRun) -> Table | None:
    """Who came, who went, and what failed."""
    return _remark_table(loaded.remarks[loaded.remarks["kind"] != REJECTED])


def rejection_rows(loaded: LoadedRun) -> Table | None:
    """Measurements that were not believed, or did not come."""
    return _remark_table(loaded.remarks[loaded.remarks["kind"] == REJECTED])


def rejection_words(loaded: LoadedRun) -> str:
    """How many measurements were not believed, by node."""
    rejected = loaded.remarks[loaded.remarks["kind"] == REJECTED]
    counts = rejected["node"].value_counts()
    parts = [f"{counts[node]} of {node}" for node in _in_order(loaded, counts.index)]
    return f"{len(rejected)} in {rejected['round'].nunique()} rounds: {', '.join(parts)}."


def _remark_table(remarks: pd.DataFrame) -> Table | None:
    if remarks.empty:
        return None
    rows = [
        [
            NONE if row["round"] < 0 else str(row["round"]),
            _number(row["at_s"], "{:.3f}"),
            str(row["node"]),
            str(row["kind"]),
            _text(row["words"]),
        ]
        for row in remarks.head(MAX_ROWS).to_dict("records")
    ]
    return Table(
        ["round", "at [s]", "node", "what", "in words"], rows, {0, 1}, max(0, len(remarks) - MAX_ROWS)
    )


def fact_rows(loaded: LoadedRun) -> Table:
    """What the start document says, for whoever wants to repeat the run."""
    start = loaded.run.start
    host = start.get("host")
    known = {
        "run": start.get("run"),
        "experiment": start.get("experiment"),
        "lab": start.get("lab"),
        "environment": start.get("environment"),
        "seed": start.get("seed"),
        "reading of the algorithm": start.get("reading"),
        "processes": start.get("transport"),
        "configuration hash": start.get("config_hash"),
        "host": ", ".join(f"{key} {value}" for key, value in host.items())
        if isinstance(host, Mapping)
        else None,
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(_versions(loaded).items())),
        "experiment time": _unit((loaded.run.stop or {}).get("experiment_s"), "s"),
        "wall time": _unit((loaded.run.stop or {}).get("wall_s"), "s"),
    }
    return Table(["", ""], [[key, str(value)] for key, value in known.items() if value not in (None, "")])


def _versions(loaded: LoadedRun) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in loaded.run.operations:
        if entry.get("kind") == "joined":
            found |= entry.get("versions") or {}
    return found


def _in_order(loaded: LoadedRun, names: Any) -> list[str]:
    order = {name: index for index, name in enumerate([loaded.server, *loaded.clients])}
    return sorted((str(name) for name in names), key=lambda name: (order.get(name, len(order)), name))


def _number(value: Any, pattern: str) -> str:
    number = finite(value)
    return NONE if number is None else pattern.format(number)


def _unit(value: Any, unit: str) -> str | None:
    number = finite(value)
    return None if number is None else f"{number:.1f} {unit}"


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) and value else NONE


def _waits(client: Any, slack_s: Any) -> str:
    if not isinstance(client, str) or not client:
        return NONE
    slack = finite(slack_s)
    return client if slack is None else f"{client} (next {1e3 * slack:.1f} ms earlier)"


def _runner_up(row: Mapping[str, Any], latency_s: Any) -> str:
    cut = finite(row["runner_up_cut"])
    if cut is None:
        return NONE
    cost_s, own_s = finite(row["runner_up_latency_s"]), finite(latency_s)
    words = f"cut {int(cut)}"
    if cost_s is not None:
        words += f": {'at least ' if row['runner_up_is_bound'] else ''}{1e3 * cost_s:.1f} ms"
        if own_s:
            words += f" ({100 * (cost_s / own_s - 1):+.0f} %)"
    return words


__all__ = [
    "Table",
    "cut_move_rows",
    "decision_rows",
    "decision_words",
    "fact_rows",
    "link_rows",
    "radio_event_rows",
    "remark_rows",
    "skill_rows",
]
