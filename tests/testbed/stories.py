"""Run records for tests of what is made from records: plausible values, seeded, written in no time.

:func:`write_record` writes a small record as older versions did.  :func:`enrich` turns any record
that has spans into one with everything a newer record says: phases, predictions, reasons, estimates.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from testbed.frames import ROUND_PHASES, STREAMS
from testbed.record import Event, Run, RunWriter, read_run

CLIENTS = ("board-1", "board-2", "board-3")
SERVER = "server"
NUM_SUBCHANNELS = 6
CONTROL_NS = 1_000_000
MS = 1_000_000
# Phase: (nanoseconds of a typical round, processor or radio).
_DURATIONS_NS = {
    "sounding": 4 * MS,
    "server-forward": 3 * MS,
    "server-backward": 5 * MS,
    "broadcast": 15 * MS,
}


def config(clients: Sequence[str] = CLIENTS, **allocator: Any) -> dict[str, Any]:
    """As much of a resolved configuration as a report reads."""
    return {
        "format": "resolved/1",
        "experiment": {
            "name": "story",
            "learning": {"scheme": "epsl", "phi": 0.5},
            "numerology": {
                "sample_rate_hz": 5e6,
                "fft_size": 256,
                "num_subchannels": NUM_SUBCHANNELS,
                "subcarriers_per_subchannel": 36,
            },
            "allocator": {"name": "balanced", **allocator},
        },
        "lab": {
            "name": "story",
            "total_power_dbm": 22.0,
            "server": {"name": SERVER},
            "boards": [{"name": name, "max_power_dbm": 18.0} for name in clients],
        },
    }


def write_record(
    directory: Path,
    *,
    num_rounds: int = 6,
    clients: Sequence[str] = CLIENTS,
    seed: int = 1,
    stop: Mapping[str, Any] | None = None,
    killed: bool = False,
    start: Mapping[str, Any] | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Path:
    """Write a record without predictions; ``num_rounds`` may be 0, and ``killed`` leaves no last words."""
    writer = RunWriter(directory)
    document = {
        "run": "story-1",
        "experiment": "story",
        "lab": "story",
        "seed": seed,
        "config_hash": "0" * 64,
        "radio": "emulated",
        "environment": "emulated",
        "clock": "virtual",
        "slow_motion": 1.0,
        "compute": "modelled",
        "transport": "memory",
        "reading": "layerwise",
        "scenario": "reconstructed, check against the paper",
        "started_wall_s": 1.7e9,
        "host": {"machine": "x86_64", "cores": 2, "python": "3.11.7", "system": "Linux"},
        "pid": 1,
        **(start or {}),
    }
    writer.start(document, yaml.safe_dump(dict(configuration or config(clients))))
    writer.operation("joined", node=clients[0], versions={"numpy": "2.4.6", "python": "3.11.7"})
    for name in (*clients, SERVER):
        writer.add(Event(0, name, "joined", -1, {"num_samples": 100}))
    maker = _Maker(writer, clients, np.random.default_rng(seed))
    for index in range(num_rounds):
        maker.round(index)
        writer.barrier()
    if killed:
        writer.barrier()
        writer.close()
        return directory
    words = f"all {num_rounds} rounds were run" if num_rounds else "nothing arrived over the air"
    if num_rounds:
        maker.evaluation(num_rounds - 1, "test")
    writer.stop(
        {
            "reason": "finished" if num_rounds else "failed",
            "words": words,
            "exit_code": 0 if num_rounds else 30,
            "rounds": num_rounds,
            "test_accuracy": maker.accuracy if num_rounds else None,
            "mean_round_latency_s": float(np.mean(maker.latencies_s)) if num_rounds else None,
            "experiment_s": maker.now_ns / 1e9,
            "wall_s": 1.5,
            **(stop or {}),
        }
    )
    return directory


class _Maker:
    """Writes rounds; keeps the instant and what grows from round to round."""

    def __init__(self, writer: RunWriter, clients: Sequence[str], rng: np.random.Generator) -> None:
        self._writer, self._clients, self._rng = writer, tuple(clients), rng
        self.now_ns = 10 * MS
        self.latencies_s: list[float] = []
        self.accuracy = 0.1

    def _add(self, at_ns: int, node: str, kind: str, index: int, **values: Any) -> None:
        self._writer.add(Event(at_ns, node, kind, index, values))

    def _span(self, index: int, node: str, phase: str, resource: str, start_ns: int, end_ns: int) -> int:
        self._add(
            start_ns,
            node,
            "span",
            index,
            phase=phase,
            resource=resource,
            start_ns=start_ns,
            end_ns=end_ns,
            attributes={"flops": 1e6} if resource == "processor" else {},
        )
        return end_ns

    def _spread(self, typical_ns: float) -> int:
        return round(typical_ns * self._rng.uniform(0.8, 1.3))

    def round(self, index: int) -> None:
        rng, clients = self._rng, self._clients
        decided_ns = self.now_ns
        start_ns = decided_ns + CONTROL_NS
        owners = [clients[int(k)] if k < len(clients) else None for k in rng.integers(0, len(clients) + 1, 6)]
        self._add(
            decided_ns,
            "controller",
            "plan",
            index,
            method="balanced",
            cut_layer=1 + (index // 4) % 2,
            assignment=owners,
            psd_w_per_hz=[float(value) for value in rng.uniform(1e-9, 5e-9, NUM_SUBCHANNELS)],
            predicted_latency_s=0.05,
            start_ns=start_ns,
        )
        heard_ns = self._span(
            index, SERVER, "sounding-uplink", "receiver", start_ns, start_ns + _DURATIONS_NS["sounding"]
        )
        permit_ns = heard_ns + MS // 2
        up_ns = {}
        for name in clients:
            forward_ns = self._span(
                index, name, "client-forward", "processor", start_ns, start_ns + self._spread(6 * MS)
            )
            begin_ns = max(forward_ns, permit_ns)
            up_ns[name] = self._span(
                index, name, "uplink", "transmitter", begin_ns, begin_ns + self._spread(40 * MS)
            )
        last_ns = max(up_ns.values())
        self._span(index, SERVER, "uplink", "receiver", permit_ns, last_ns)
        forward_ns = self._span(
            index,
            SERVER,
            "server-forward",
            "processor",
            last_ns,
            last_ns + self._spread(_DURATIONS_NS["server-forward"]),
        )
        backward_ns = self._span(
            index,
            SERVER,
            "server-backward",
            "processor",
            forward_ns,
            forward_ns + self._spread(_DURATIONS_NS["server-backward"]),
        )
        broadcast_ns = self._span(
            index,
            SERVER,
            "broadcast",
            "transmitter",
            backward_ns,
            backward_ns + self._spread(_DURATIONS_NS["broadcast"]),
        )
        down_ns, end_ns = {}, broadcast_ns
        for name in clients:
            down_ns[name] = broadcast_ns + self._spread(20 * MS)
            self._span(index, name, "broadcast", "receiver", backward_ns, broadcast_ns)
            self._span(index, name, "unicast", "receiver", broadcast_ns, down_ns[name])
            self._span(index, SERVER, "unicast", "transmitter", broadcast_ns, down_ns[name])
            end_ns = max(
                end_ns,
                self._span(
                    index,
                    name,
                    "client-backward",
                    "processor",
                    down_ns[name],
                    down_ns[name] + self._spread(7 * MS),
                ),
            )
        self._streams(index, end_ns, up_ns, down_ns, broadcast_ns)
        self._links(index, end_ns)
        loss = 2.3 * float(np.exp(-index / 15)) + 0.02 * float(rng.uniform())
        for name in clients:
            self._add(end_ns, SERVER, "loss", index, client=name, loss=loss)
        self.now_ns = end_ns + CONTROL_NS
        self.accuracy = 1 - 0.9 * float(np.exp(-(index + 1) / 20))
        self._add(
            self.now_ns,
            "controller",
            "round",
            index,
            start_ns=decided_ns,
            latency_ns=self.now_ns - decided_ns,
            loss=loss,
            cut_layer=1 + (index // 4) % 2,
            clients=list(clients),
            words=[],
        )
        self.latencies_s.append((self.now_ns - decided_ns) / 1e9)
        if index % 3 == 2:
            self.evaluation(index, "validation")

    def _streams(
        self,
        index: int,
        end_ns: int,
        up_ns: Mapping[str, int],
        down_ns: Mapping[str, int],
        broadcast_ns: int,
    ) -> None:
        clients = self._clients
        sent = [("uplink", name, (SERVER,), name, up_ns[name]) for name in clients]
        sent += [("unicast", SERVER, (name,), SERVER, down_ns[name]) for name in clients]
        sent += [("broadcast", SERVER, clients, SERVER, broadcast_ns)]
        for stream, transmitter, receivers, node, complete_ns in sent:
            failed = int(self._rng.integers(0, 8))
            self._add(
                end_ns,
                node,
                "transmission",
                index,
                stream=stream,
                transmitter=transmitter,
                receivers=list(receivers),
                subchannels=[0, 1],
                mcs_index=[9, 12],
                payload_bytes=8000,
                blocks_sent=60 + failed,
                blocks_failed=failed,
                blocks_retransmitted=failed,
                airtime_ns=12 * MS,
                frames=3,
                complete=True,
                goodput_bps=5e6,
            )
            for receiver in receivers:
                self._add(
                    end_ns,
                    receiver,
                    "reception",
                    index,
                    stream=stream,
                    transmitter=transmitter,
                    receiver=receiver,
                    received_bytes=8000,
                    blocks_ok=60,
                    blocks_failed=failed,
                    blocks_refused=0,
                    mean_snr_db=[None, round(float(self._rng.uniform(8, 24)), 2)],
                    evm=float(self._rng.uniform(0.04, 0.3)),
                    complete_ns=complete_ns,
                    failure="",
                )
        if index % 2:
            self._add(
                end_ns, clients[0], "radio-event", index, radio_event="clipped", count=3, detail="receiver"
            )

    def _links(self, index: int, end_ns: int) -> None:
        for number, name in enumerate(self._clients):
            for transmitter, receiver in ((name, SERVER), (SERVER, name)):
                gain_db = (
                    -100.0
                    - 4 * number
                    + 4 * np.sin(np.arange(NUM_SUBCHANNELS) + 0.3 * index)
                    + self._rng.normal(0, 0.5, NUM_SUBCHANNELS)
                )
                self._add(
                    end_ns,
                    receiver,
                    "link",
                    index,
                    transmitter=transmitter,
                    receiver=receiver,
                    detected=True,
                    channel_gain=[float(value) for value in 10 ** (gain_db / 10)],
                    noise_w_per_hz=2e-20,
                    cfo_hz=100.0,
                    delay_samples=3.0,
                )

    def evaluation(self, index: int, split: str) -> None:
        self._add(
            self.now_ns,
            "controller",
            "evaluation",
            index,
            split=split,
            accuracy=self.accuracy,
            worst_client_accuracy=self.accuracy - 0.02,
            loss=1 - self.accuracy,
            by_client=dict.fromkeys(self._clients, self.accuracy),
            num_samples=180,
        )


# ------------------------------------------------------------------------------------- newer records
def enrich(source: Path, target: Path, seed: int = 1) -> Path:
    """Copy a record and give it what newer ones have; what it has already stays."""
    run = read_run(source)
    target.mkdir(parents=True)
    for name in ("config.yaml", "run.json", "operations.jsonl", "stop.json"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    start = json.loads((target / "run.json").read_text())
    start.setdefault("policy", "balanced")
    (target / "run.json").write_text(json.dumps(start))
    events = _Enrichment(run, np.random.default_rng(seed)).events()
    with (target / "events.jsonl").open("w", encoding="utf-8") as log:
        for event in events:
            log.write(json.dumps(event) + "\n")
    return target


class _Enrichment:
    def __init__(self, run: Run, rng: np.random.Generator) -> None:
        self._run, self._rng = run, rng
        self._plans = {event["round"]: event for event in run.of_kind("plan")}
        self._rounds = {event["round"]: event for event in run.of_kind("round")}
        self._before: dict[str, Any] | None = None
        self._moved_from: int | None = None

    def events(self) -> list[dict[str, Any]]:
        told = [event for event in self._run.events if event["kind"] not in ("plan", "round")]
        for index, plan in sorted(self._plans.items()):
            event = self._rounds.get(index)
            told += self._told(index, dict(plan), None if event is None else dict(event))
        told.sort(key=lambda event: (event["at_ns"], event["node"], event["seq"]))
        return [{**event, "seq": number} for number, event in enumerate(told, 1)]

    def _told(self, index: int, plan: dict[str, Any], event: dict[str, Any] | None) -> list[dict[str, Any]]:
        rng = self._rng
        spans = [span for span in self._run.of_kind("span") if span["round"] == index]
        told: list[dict[str, Any]] = []
        if event is not None:
            phases, straggler, last = tiles(event, plan, spans)
            event |= {
                "phases": phases,
                "airtime_s": self._airtime(index),
                "cut_move_ns": 0,
                "join_ns": 0,
                "policy": "balanced",
            }
        else:
            phases, straggler, last = dict.fromkeys(ROUND_PHASES, 0.01), CLIENTS[0], CLIENTS[0]
        guessed = {name: self._interval(value) for name, value in phases.items()}
        airtime = {
            name: self._interval(value)
            for name, value in (event["airtime_s"] if event else dict.fromkeys(STREAMS, 0.02)).items()
        }
        prediction = {
            "model": "twin",
            "round_s": {
                "mean": sum(entry["mean"] for entry in guessed.values()),
                "low": sum(entry["mean"] for entry in guessed.values()) * 0.93,
                "high": sum(entry["mean"] for entry in guessed.values()) * 1.09,
            },
            "phases": guessed,
            "airtime_s": airtime,
            "persistence": self._before or {"round_s": None, "phases": None, "airtime_s": None},
        }
        cut = plan["cut_layer"]
        if self._moved_from is not None and cut != self._moved_from and event is not None:
            took_ns = int(rng.integers(3 * MS, 9 * MS))
            event["cut_move_ns"] = took_ns
            prediction["cut_move_s"] = self._interval(took_ns / 1e9)
            told.append(
                self._event(
                    plan["at_ns"],
                    "controller",
                    "cut-move",
                    index,
                    **{"from": self._moved_from, "to": cut},
                    start_ns=plan["at_ns"] - took_ns,
                    latency_ns=took_ns,
                    validation_loss_before=0.5 if cut < self._moved_from else None,
                    validation_loss_after=0.52 if cut < self._moved_from else None,
                )
            )
        self._moved_from = cut
        other = 1 if cut > 1 else 2
        formula_s = plan.pop("predicted_latency_s", 0.05)
        mean_s = prediction["round_s"]["mean"]
        plan |= {
            "policy": "balanced",
            "formula_latency_s": formula_s,
            "lower_bound_s": formula_s * 0.97,
            "gap": 0.03,
            "subchannels_moved": int(rng.integers(0, 4)),
            "why": f"{straggler} holds the uplink up; a move of the cut would not pay for itself",
            "binding": {
                "uplink_client": straggler,
                "downlink_client": last,
                "uplink_slack_s": float(rng.uniform(0, 0.01)),
                "downlink_slack_s": float(rng.uniform(0, 0.01)),
                "power": "total",
                "phase": max(guessed, key=lambda name: guessed[name]["mean"]),
                "runner_up_cut": other,
                "runner_up_latency_s": formula_s * 1.2,
                "runner_up_is_bound": bool(index % 2),
            },
            "candidates": [
                {"name": "best of this cut", "cut_layer": cut, "predicted_s": mean_s},
                {"name": "best of another cut", "cut_layer": other, "predicted_s": mean_s * 1.15},
            ],
        }
        told += [plan, self._event(plan["at_ns"], "controller", "prediction", index, **prediction)]
        told += self._estimates(index, plan["at_ns"])
        if event is not None:
            told.append(event)
            self._before = {
                "round_s": event["latency_ns"] / 1e9,
                "phases": phases,
                "airtime_s": event["airtime_s"],
            }
        if index == 2:
            names = (event or {}).get("clients") or CLIENTS
            words = "14 dB from what was expected, and the sounding before and after agree"
            told.append(
                self._event(
                    plan["at_ns"] + 1,
                    SERVER,
                    "rejected",
                    index,
                    what="gain",
                    subject=f"{names[0]} to {SERVER}",
                    words=words,
                )
            )
            told.append(self._event(plan["at_ns"] + 2, names[-1], "left", index, words="said goodbye"))
            told.append(self._event(plan["at_ns"] + 3, names[-1], "joined-late", index, donor=names[0]))
        return told

    def _interval(self, value_s: float) -> dict[str, float]:
        mean_s = value_s * float(self._rng.normal(1.01, 0.05))
        return {"mean": mean_s, "low": mean_s * 0.9, "high": mean_s * 1.12}

    def _airtime(self, index: int) -> dict[str, float]:
        sums = dict.fromkeys(STREAMS, 0.0)
        sums["sounding"] = 0.0015
        for sent in self._run.of_kind("transmission"):
            if sent["round"] == index:
                sums[sent["stream"]] += sent["airtime_ns"] / 1e9
        return sums

    def _estimates(self, index: int, at_ns: int) -> list[dict[str, Any]]:
        return [
            self._event(
                at_ns,
                "controller",
                "estimate",
                index,
                transmitter=link["transmitter"],
                receiver=link["receiver"],
                snr_per_psd_db=[
                    10 * float(np.log10(gain / link["noise_w_per_hz"])) if gain > 0 else None
                    for gain in link["channel_gain"]
                ],
                deviation_db=1.0,
                age_rounds=1,
            )
            for link in self._run.of_kind("link")
            if link["round"] == index - 1
        ]

    @staticmethod
    def _event(at_ns: int, node: str, kind: str, index: int, **values: Any) -> dict[str, Any]:
        return {"at_ns": at_ns, "node": node, "seq": 0, "kind": kind, "round": index, **values}


def tiles(
    event: Mapping[str, Any], plan: Mapping[str, Any], spans: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float], str, str]:
    """The phases of a round from its spans [s], and the stragglers of uplink and downlink.

    They add up to the latency, by construction: whatever is left at the end is control.
    """

    def ends(phase: str, resource: str) -> dict[str, int]:
        return {
            span["node"]: span["end_ns"]
            for span in spans
            if span["phase"] == phase and span["resource"] == resource
        }

    up = ends("uplink", "transmitter")
    straggler = max(up, key=lambda name: up[name])
    backward = ends("client-backward", "processor")
    last = max(backward, key=lambda name: backward[name])
    sounded = max((span["end_ns"] for span in spans if span["phase"].startswith("sounding")), default=0)
    instants = [plan["start_ns"], max(sounded, plan["start_ns"])]
    instants.append(max(instants[-1], ends("client-forward", "processor")[straggler]))
    instants.append(up[straggler])
    for phase in ("server-forward", "server-backward"):
        (end,) = ends(phase, "processor").values()
        instants.append(end)
    instants.append(max([instants[-1], *ends("broadcast", "receiver").values()]))
    instants.append(max(instants[-1], ends("unicast", "receiver").get(last, 0)))
    instants.append(max(instants[-1], backward[last]))
    names = ROUND_PHASES[1:]
    values = {name: (b - a) / 1e9 for name, a, b in zip(names, instants, instants[1:], strict=False)}
    control = event["latency_ns"] / 1e9 - sum(values.values())
    return {"control": control, **values}, straggler, last
