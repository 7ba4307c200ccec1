"""A run as tidy tables: one row per observation, the unit of every column beside it.

    run = testbed.load_run("runs/laptop-...")
    run.phases.query("phase == 'uplink'")[["measured_s", "predicted_s"]]
    run.phases.attrs["units"]["measured_s"]        # "s"

Units are those of the column names; ``"1"`` marks numbers without a unit, ``"-"`` names and words.
Made from the run directory alone.  A record that lacks what a table holds gives an empty table with
the same columns, so that older runs, and runs that failed early, are read by the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from radio.units import NS_PER_S, linear_to_db, watt_to_dbm
from testbed.frame_columns import (
    AIRTIME,
    CANDIDATES,
    CLIENT_EVALUATIONS,
    CUT_MOVES,
    DECISIONS,
    ESTIMATES,
    EVALUATIONS,
    LINKS,
    LOSSES,
    PHASES,
    PLANS,
    RADIO_EVENTS,
    RECEPTIONS,
    REMARKS,
    ROUNDS,
    SPANS,
    TRANSMISSIONS,
    TRUTH,
    Columns,
)
from testbed.latency.names import ROUND_PHASES, STREAMS
from testbed.record import Run, read_run
from testbed.runs import config_of

BESIDE_ROUND = ("cut-move", "join")  # time spent before a round; not part of its latency
# What is worth a reader's attention without being a measurement.
REMARK_KINDS = ("left-out", "lost", "left", "joined-late", "rejected", "node-failure")


class LoadedRun:
    """One run, finished or not, as tables that are made when first asked for.

    Attributes
    ----------
    run
        What the directory says, unchanged.
    config
        ``config.yaml`` as mappings and lists; empty when it is missing or damaged, so that a run is
        readable without it.
    clients, server
        Names of the boards, in the lab's order, and of the server.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = config_of(run)
        lab = _mapping(self.config.get("lab"))
        self.server, self.clients = _members(run, lab)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind, in order."""
        return self._by_kind.get(kind, [])

    @cached_property
    def _by_kind(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for event in self.run.events:
            found.setdefault(event["kind"], []).append(event)
        return found

    def _by_round(self, kind: str) -> dict[int, dict[str, Any]]:
        """The last event of a kind in each round."""
        return {event["round"]: event for event in self.of_kind(kind)}

    @cached_property
    def subchannel_bandwidth_hz(self) -> float:
        """Bandwidth of one subchannel [Hz], pilots included; NaN without a configuration."""
        section = _mapping(_mapping(self.config.get("experiment")).get("numerology"))
        try:
            spacing_hz = float(section["sample_rate_hz"]) / float(section["fft_size"])
            return spacing_hz * float(section["subcarriers_per_subchannel"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return float("nan")

    # ---------------------------------------------------------------------- rounds and their parts
    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row per finished round; ``latency_s`` is the round itself, ``total_s`` with moves and joins."""
        plans, predictions = self._by_round("plan"), self._by_round("prediction")
        rows = []
        for index, event in self._by_round("round").items():
            plan, prediction = plans.get(index, {}), predictions.get(index, {})
            predicted = _mapping(prediction.get("round_s"))
            latency_ns = event.get("latency_ns", 0)
            move_ns, join_ns = self._beside_ns(event, "cut-move"), self._beside_ns(event, "join")
            clients = tuple(event.get("clients") or ())
            rows.append(
                {
                    "round": index,
                    "start_s": _seconds(event.get("start_ns")),
                    "at_s": _seconds(event["at_ns"]),
                    "latency_s": _seconds(latency_ns),
                    "cut_move_s": _seconds(move_ns),
                    "join_s": _seconds(join_ns),
                    "total_s": _seconds(latency_ns + move_ns + join_ns),
                    "predicted_s": predicted.get("mean"),
                    "low_s": predicted.get("low"),
                    "high_s": predicted.get("high"),
                    "persistence_s": _mapping(prediction.get("persistence")).get("round_s"),
                    # Older plans call the formula's value a prediction, which it is not of the whole round.
                    "formula_latency_s": plan.get("formula_latency_s", plan.get("predicted_latency_s")),
                    "lower_bound_s": plan.get("lower_bound_s"),
                    "gap": plan.get("gap"),
                    "loss": event.get("loss"),
                    "cut_layer": event.get("cut_layer", 0),
                    "num_clients": len(clients),
                    "clients": clients,
                    "policy": event.get("policy") or plan.get("policy"),
                    "method": plan.get("method"),
                    "model": prediction.get("model"),
                    "subchannels_moved": plan.get("subchannels_moved"),
                    "total_power_dbm": self._power_dbm(plan.get("psd_w_per_hz") or ()),
                    "words": tuple(event.get("words") or ()),
                }
            )
        return _frame(ROUNDS, rows)

    def _beside_ns(self, event: Mapping[str, Any], what: str) -> int:
        """Time before a round; older records tell it only in the event of the move itself."""
        spent_ns = event.get(f"{what.replace('-', '_')}_ns")
        if spent_ns is None:
            spent_ns = sum(
                other.get("latency_ns", 0) for other in self.of_kind(what) if other["round"] == event["round"]
            )
        return int(spent_ns)

    def _power_dbm(self, psd_w_per_hz: Sequence[float]) -> float:
        total_w = float(np.sum(psd_w_per_hz)) * self.subchannel_bandwidth_hz
        return float(watt_to_dbm(total_w)) if total_w > 0 else float("nan")

    @cached_property
    def phases(self) -> pd.DataFrame:
        """One row per round and phase, in the order of time.

        The phases of :data:`ROUND_PHASES` add up to ``latency_s`` of :attr:`rounds`; those of
        :data:`BESIDE_ROUND` stand beside it and have a row only in rounds that had them.
        """
        measured = {}
        for index, event in self._by_round("round").items():
            values = dict(_mapping(event.get("phases")))
            for name in BESIDE_ROUND:
                spent_ns = self._beside_ns(event, name)
                if spent_ns:
                    values[name] = _seconds(spent_ns)
            measured[index] = values
        predicted = {}
        for index, event in self._by_round("prediction").items():
            values = dict(_mapping(event.get("phases")))
            if event.get("cut_move_s"):
                values["cut-move"] = event["cut_move_s"]
            predicted[index] = values
        return self._compared(PHASES, "phase", (*ROUND_PHASES, *BESIDE_ROUND), measured, predicted, "phases")

    @cached_property
    def airtime(self) -> pd.DataFrame:
        """One row per round and stream: airtime summed over the transmitters."""
        return self._compared(
            AIRTIME,
            "stream",
            STREAMS,
            {index: event.get("airtime_s") for index, event in self._by_round("round").items()},
            {index: event.get("airtime_s") for index, event in self._by_round("prediction").items()},
            "airtime_s",
        )

    def _compared(
        self,
        columns: Columns,
        what: str,
        order: Sequence[str],
        measured: Mapping[int, Any],
        predicted: Mapping[int, Any],
        persistence_key: str,
    ) -> pd.DataFrame:
        predictions = self._by_round("prediction")
        rows = []
        for index in sorted({*measured, *predicted}):
            found = _mapping(measured.get(index))
            said = _mapping(predicted.get(index))
            persistence = _mapping(predictions.get(index, {}).get("persistence"))
            before = _mapping(persistence.get(persistence_key))
            names = [name for name in order if name in found or name in said]
            names += [name for name in {**found, **said} if name not in order]
            for name in names:
                interval = _mapping(said.get(name))
                rows.append(
                    {
                        "round": index,
                        what: name,
                        "measured_s": found.get(name),
                        "predicted_s": interval.get("mean"),
                        "low_s": interval.get("low"),
                        "high_s": interval.get("high"),
                        "persistence_s": before.get(name),
                    }
                )
        return _frame(columns, rows)

    # ------------------------------------------------------------------------------ what was done
    @cached_property
    def spans(self) -> pd.DataFrame:
        """One row per span of a node's processor, transmitter or receiver."""
        return _frame(
            SPANS,
            [
                {
                    **event,
                    "start_s": _seconds(event["start_ns"]),
                    "end_s": _seconds(event["end_ns"]),
                    "duration_s": _seconds(event["end_ns"] - event["start_ns"]),
                    "attributes": event.get("attributes", {}),
                }
                for event in self.of_kind("span")
            ],
        )

    @cached_property
    def transmissions(self) -> pd.DataFrame:
        """One row per stream that a transmitter sent in a round."""
        return _frame(
            TRANSMISSIONS,
            [
                {
                    **event,
                    "at_s": _seconds(event["at_ns"]),
                    "airtime_s": _seconds(event.get("airtime_ns")),
                    "receivers": tuple(event.get("receivers", ())),
                    "subchannels": tuple(event.get("subchannels", ())),
                    "mcs_index": tuple(event.get("mcs_index", ())),
                }
                for event in self.of_kind("transmission")
            ],
        )

    @cached_property
    def receptions(self) -> pd.DataFrame:
        """One row per stream that a receiver took in; the mean SNR is over the subchannels used [dB]."""
        rows = []
        for event in self.of_kind("reception"):
            snr_db = event.get("mean_snr_db")
            by_subchannel = tuple(snr_db) if isinstance(snr_db, list) else (snr_db,)
            used_db = [value for value in by_subchannel if value is not None]
            rows.append(
                {
                    **event,
                    "at_s": _seconds(event["at_ns"]),
                    "complete_s": _seconds(event.get("complete_ns")),
                    "mean_snr_db": float(np.mean(used_db)) if used_db else None,
                    "subchannel_snr_db": by_subchannel,
                }
            )
        return _frame(RECEPTIONS, rows)

    @cached_property
    def radio_events(self) -> pd.DataFrame:
        """One row per event that a radio told of: late, underflow, overflow, gap, lost, clipped ..."""
        return _frame(RADIO_EVENTS, _at(self.of_kind("radio-event")))

    # -------------------------------------------------------------------- links, plans, estimates
    @cached_property
    def links(self) -> pd.DataFrame:
        """One row per sounding of a link and subchannel."""
        events = self.of_kind("link")
        gains = [event.get("channel_gain") or [] for event in events]
        noise = np.array([event.get("noise_w_per_hz") or np.nan for event in events], float)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain_db = linear_to_db(np.array([value for row in gains for value in row], float))
            noise_db = linear_to_db(noise)
        noise_db = _repeated(noise_db, gains)
        columns = _long(events, gains, ("transmitter", "receiver", "cfo_hz", "delay_samples", "detected"))
        columns |= {
            "channel_gain_db": gain_db,
            "noise_dbm_per_hz": noise_db + 30.0,
            "snr_per_psd_db": gain_db - noise_db,
        }
        return _table(LINKS, columns)

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """One row per link, subchannel and round: what the allocator was given."""
        events = self.of_kind("estimate")
        values = [event.get("snr_per_psd_db") or [] for event in events]
        keys = ("transmitter", "receiver", "deviation_db", "age_rounds", "outer_loop_db", "bias_db", "bler")
        columns = _long(events, values, keys)
        columns["snr_per_psd_db"] = [value for row in values for value in row]
        return _table(ESTIMATES, columns)

    @cached_property
    def plans(self) -> pd.DataFrame:
        """One row per round and subchannel; no client and no PSD where it was left unused."""
        events = list(self._by_round("plan").values())
        owners = [event.get("assignment") or [] for event in events]
        psd_w_per_hz = [event.get("psd_w_per_hz") or [0.0] * len(event["assignment"]) for event in events]
        columns = _long(events, owners, ("cut_layer",))
        columns["client"] = [name for row in owners for name in row]
        psd = np.array([value for row in psd_w_per_hz for value in row], float)
        columns["psd_dbm_per_hz"] = watt_to_dbm(np.where(psd > 0, psd, np.nan))
        return _table(PLANS, columns)

    @cached_property
    def decisions(self) -> pd.DataFrame:
        """One row per round: what the plan said of itself."""
        rows = []
        for event in self._by_round("plan").values():
            if "binding" in event or event.get("why"):
                notes = tuple(event.get("notes") or ())
                rows.append({**_mapping(event.get("binding")), **event, "notes": notes})
        return _frame(DECISIONS, rows)

    @cached_property
    def candidates(self) -> pd.DataFrame:
        """One row per plan that was weighed in a round."""
        return _frame(
            CANDIDATES,
            [
                {**candidate, "round": index}
                for index, event in self._by_round("plan").items()
                for candidate in event.get("candidates") or ()
            ],
        )

    @cached_property
    def truth(self) -> pd.DataFrame:
        """One row per round and board: what the scenario did to it, which the loop was not told.

        Of emulated runs with a scenario; empty for others.
        """
        from pydantic import ValidationError

        from testbed.config.schema import Lab
        from testbed.scenario import resolve_scenario

        section = _mapping(self.config.get("lab"))
        num_rounds = _mapping(self.config.get("experiment")).get("rounds")
        rows: list[dict[str, Any]] = []
        if section.get("scenario") and isinstance(num_rounds, int):
            try:
                lab = Lab.model_validate(section)
            except ValidationError:  # a configuration of another version
                return _frame(TRUTH, rows)
            boards = resolve_scenario(lab.scenario, lab, num_rounds).boards
            last = max([num_rounds - 1, *self.rounds["round"]])
            for index in range(last + 1):
                for name, truth in boards.items():
                    end_round = last + 1 if truth.end_round is None else truth.end_round
                    rows.append(
                        {
                            "round": index,
                            "board": name,
                            "attenuation_db": _held(truth.attenuation_db, index, 0.0),
                            "slowdown": _held(truth.slowdown_by_round, index, 1.0),
                            "present": truth.first_round <= index < end_round,
                            "redrawn": index in truth.redraw_rounds,
                        }
                    )
        return _frame(TRUTH, rows)

    # ----------------------------------------------------------------------------------- learning
    @cached_property
    def losses(self) -> pd.DataFrame:
        """One row per client and round: its training loss."""
        return _frame(LOSSES, _at(self.of_kind("loss")))

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """One row per evaluation; the accuracy is the mean over the clients' composite models."""
        return _frame(EVALUATIONS, _at(self.of_kind("evaluation")))

    @cached_property
    def client_evaluations(self) -> pd.DataFrame:
        """One row per evaluation and client."""
        return _frame(
            CLIENT_EVALUATIONS,
            [
                {**event, "at_s": _seconds(event["at_ns"]), "client": name, "accuracy": accuracy}
                for event in self.of_kind("evaluation")
                for name, accuracy in _mapping(event.get("by_client")).items()
            ],
        )

    @cached_property
    def cut_moves(self) -> pd.DataFrame:
        """One row per move of the cut; the losses are of the validation split, off the clock."""
        return _frame(
            CUT_MOVES,
            [
                {
                    "round": event["round"],
                    "start_s": _seconds(event.get("start_ns")),
                    "at_s": _seconds(event["at_ns"]),
                    "latency_s": _seconds(event.get("latency_ns")),
                    "from_cut": event.get("from"),
                    "to_cut": event.get("to"),
                    "loss_before": event.get("validation_loss_before"),
                    "loss_after": event.get("validation_loss_after"),
                }
                for event in self.of_kind("cut-move")
            ],
        )

    @cached_property
    def remarks(self) -> pd.DataFrame:
        """One row per thing that a reader should know of: who left, what was not believed, what failed."""
        rows = []
        for event in self.run.events:
            if event["kind"] in REMARK_KINDS:
                words = event.get("words") or event.get("reason")
                if not words and "donor" in event:
                    words = f"took over the submodel of {event['donor']}"
                what = ", ".join(
                    str(event[key])
                    for key in ("what", "subject")
                    if event.get(key) and str(event[key]) not in str(words)
                )
                rows.append(_remark(event, event["kind"], f"{what}: {words}" if what else words))
            elif event["kind"] == "round":
                rows.extend(_remark(event, "round", words) for words in event.get("words") or ())
        return _frame(REMARKS, rows)


def load_run(path: Path | str) -> LoadedRun:
    """The run in a directory as tables; a killed or failed one, and one without a round, too.

    Raises
    ------
    StorageError
        There is no run there, or a file is damaged before its last line.
    """
    return LoadedRun(read_run(path))


# ------------------------------------------------------------------------------------ building blocks
def _frame(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A table from rows; what a row lacks is missing, what has no column is left out."""
    return _table(columns, {name: [row.get(name) for row in rows] for name in columns})


def _table(columns: Columns, values: Mapping[str, Iterable[Any]]) -> pd.DataFrame:
    made = {}
    for name, (_, dtype) in columns.items():
        column = values[name]
        if dtype in ("int64", "bool"):
            column = [value if value is not None else 0 for value in column]
        made[name] = pd.Series(column, dtype=dtype)
    frame = pd.DataFrame(made, columns=list(columns))
    frame.attrs["units"] = {name: unit for name, (unit, _) in columns.items()}
    return frame


def _long(
    events: Sequence[Mapping[str, Any]], vectors: Sequence[Sequence[Any]], keys: Sequence[str]
) -> dict[str, Any]:
    """The columns that all subchannels of an event share, and the subchannel's index."""
    columns: dict[str, Any] = {
        "round": _repeated([event["round"] for event in events], vectors),
        "at_s": _repeated([event["at_ns"] / NS_PER_S for event in events], vectors),
        "subchannel": np.concatenate([np.arange(len(row)) for row in vectors] or [np.arange(0)]),
    }
    for key in keys:
        columns[key] = _repeated(np.array([event.get(key) for event in events], object), vectors)
    return columns


def _repeated(values: Any, vectors: Sequence[Sequence[Any]]) -> Any:
    return np.repeat(np.asarray(values), [len(row) for row in vectors])


def _at(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**event, "at_s": _seconds(event["at_ns"])} for event in events]


def _remark(event: Mapping[str, Any], kind: str, words: str | None) -> dict[str, Any]:
    return {**event, "at_s": _seconds(event["at_ns"]), "kind": kind, "words": words or ""}


def _seconds(duration_ns: float | None) -> float | None:
    return None if duration_ns is None else duration_ns / NS_PER_S


def _held(values: Sequence[float], index: int, otherwise: float) -> float:
    """The value of a round; beyond the end the last one."""
    return values[min(index, len(values) - 1)] if values else otherwise


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _members(run: Run, lab: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The server's name and the boards', from the lab, or from who did what."""
    boards = [board["name"] for board in lab.get("boards") or () if isinstance(board, Mapping)]
    server = _mapping(lab.get("server")).get("name")
    seen = dict.fromkeys(event["node"] for event in run.events if event["kind"] in ("joined", "span"))
    if server is None:
        served = [event["node"] for event in run.events if str(event.get("phase")).startswith("server-")]
        server = served[0] if served else "server"
    return server, tuple(boards or sorted(name for name in seen if name != server))
