"""What the engine puts into the record, event by event."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from nodes.messages import Evaluated, Hello, LossReport, Ready, RehearsedSpan, RoundReport, SoundingReport
from testbed.config.loader import ResolvedConfig, config_hash, resolved_yaml
from testbed.estimates import Estimates
from testbed.estimation import Rejection
from testbed.policies import Decision
from testbed.record import Event, RunWriter


def write_start_document(writer: RunWriter, config: ResolvedConfig, run: str, transport: str) -> None:
    """``run.json`` and the resolved configuration."""
    lab, experiment = config.lab, config.experiment
    scenario = lab.scenario
    writer.start(
        {
            "run": run,
            "experiment": experiment.name,
            "lab": lab.name,
            "seed": experiment.seed,
            "config_hash": config_hash(config),
            "radio": lab.radio.driver,
            "fidelity": lab.radio.fidelity.value,
            "environment": lab.environment,
            "clock": lab.clock.kind,
            "slow_motion": lab.clock.slow_motion,
            "compute": experiment.compute.value,
            "transport": transport,
            "policy": experiment.allocator.name,
            "reading": experiment.learning.reading,
            "scenario": scenario and {"name": scenario.name, "version": scenario.version},
            "label": "reconstructed, check against the paper",
            "started_wall_s": round(time.time(), 3),
            "host": {
                "machine": platform.machine(),
                "system": platform.system(),
                "python": platform.python_version(),
                "cores": os.cpu_count(),
            },
            "pid": os.getpid(),
        },
        resolved_yaml(config),
    )


class Notes:
    """Turns what nodes report into events."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer

    def add(self, at_ns: int, node: str, kind: str, round_index: int, values: Mapping[str, Any]) -> None:
        """Note one experiment fact."""
        self._writer.add(Event(at_ns, node, kind, round_index, values))

    def joined(self, at_ns: int, name: str, hello: Hello, ready: Ready, round_index: int = -1) -> None:
        self._writer.operation("joined", node=name, pid=hello.pid, versions=hello.versions)
        self.add(at_ns, name, "joined", round_index, {"num_samples": ready.num_samples})

    def rehearsal(self, at_ns: int, round_index: int, name: str, spans: Iterable[RehearsedSpan]) -> None:
        """How long a node's work took off the clock, by cut."""
        for span in spans:
            self.add(at_ns, name, "rehearsal", round_index, msgspec.to_builtins(span))

    def model(self, ready: Ready) -> None:
        self.add(0, "controller", "model", -1, msgspec.to_builtins(ready.model))

    def sounding(self, name: str, report: SoundingReport, attempt: int, round_index: int = -1) -> None:
        values = msgspec.to_builtins(report)
        for link in values.pop("links"):
            self.add(report.end_ns, name, "link", round_index, link)
        for span in values.pop("spans"):
            self.add(span["start_ns"], name, "span", round_index, span)
        for event in values.pop("radio_events"):
            self.add(event["at_ns"], name, "radio-event", round_index, _renamed(event))
        self.add(report.end_ns, name, "gain", round_index, {"attempt": attempt, **values})

    def report(self, round_index: int, name: str, report: RoundReport) -> None:
        values = msgspec.to_builtins(report)
        for span in values["spans"]:
            self.add(span["start_ns"], name, "span", round_index, span)
        for kind, key in (("transmission", "transmissions"), ("reception", "receptions")):
            for stream in values[key]:
                self.add(report.end_ns, name, kind, round_index, stream)
        for link in values["links"]:
            self.add(report.end_ns, name, "link", round_index, link)
        for entry in values["losses"]:
            self.add(report.end_ns, name, "loss", round_index, entry)
        for event in values["radio_events"]:
            self.add(event["at_ns"], name, "radio-event", round_index, _renamed(event))

    def rejected(self, at_ns: int, round_index: int, rejections: Iterable[Rejection]) -> None:
        """Measurements that were not believed, or did not come."""
        for rejection in rejections:
            values = {"what": rejection.what, "subject": rejection.subject, "words": rejection.words}
            self.add(at_ns, rejection.node, "rejected", round_index, values)

    def estimates(self, at_ns: int, round_index: int, estimates: Estimates, clients: tuple[str, ...]) -> None:
        """What the allocator is given of each link."""
        for name in clients:
            for state in (estimates.uplink[name], estimates.downlink[name]):
                gains = state.gains
                self.add(
                    at_ns,
                    "controller",
                    "estimate",
                    round_index,
                    {
                        "transmitter": gains.transmitter,
                        "receiver": gains.receiver,
                        "snr_per_psd_db": [round(float(value), 2) for value in gains.filter.level],
                        "deviation_db": round(gains.filter.deviation(), 3),
                        "age_rounds": gains.filter.age_rounds,
                        "outer_loop_db": round(state.outer_loop_db, 3),
                        "bias_db": round(state.bias_db, 3),
                        "bler": round(state.stream.bler, 4),
                    },
                )

    def decision(
        self,
        at_ns: int,
        round_index: int,
        start_ns: int,
        decision: Decision,
        policy: str,
        moved: int,
        phase: str,
    ) -> None:
        """A plan, why it came about, and what it says about itself."""
        plan, clients = decision.plan, decision.clients
        binding = plan.binding
        self.add(
            at_ns,
            "controller",
            "plan",
            round_index,
            {
                "policy": policy,
                "method": plan.method,
                "cut_layer": plan.cut_layer,
                "assignment": [clients[int(owner)] if owner >= 0 else None for owner in plan.assignment],
                "psd_w_per_hz": [float(value) for value in plan.psd_w_per_hz],
                "start_ns": start_ns,
                "formula_latency_s": plan.latency_s,
                "lower_bound_s": plan.lower_bound_s,
                "gap": plan.gap,
                "subchannels_moved": moved,
                "why": decision.why,
                "binding": {
                    "uplink_client": clients[binding.uplink_client],
                    "downlink_client": clients[binding.downlink_client],
                    "uplink_slack_s": binding.uplink_slack_s,
                    "downlink_slack_s": binding.downlink_slack_s,
                    "power": binding.power,
                    "phase": phase,
                    "runner_up_cut": binding.runner_up_cut,
                    "runner_up_latency_s": binding.runner_up_latency_s,
                    "runner_up_is_bound": binding.runner_up_is_bound,
                },
                "candidates": [
                    {
                        "name": candidate.name,
                        "cut_layer": candidate.plan.cut_layer,
                        "predicted_s": candidate.predicted_s,
                    }
                    for candidate in decision.candidates
                ],
                "notes": list(plan.notes),
            },
        )

    def evaluation(self, at_ns: int, round_index: int, outcome: Evaluated, clients: tuple[str, ...]) -> float:
        """Note an evaluation; the mean accuracy over the composites."""
        accuracy = float(np.mean(outcome.accuracy))
        self.add(
            at_ns,
            "controller",
            "evaluation",
            round_index,
            {
                "split": outcome.split,
                "accuracy": accuracy,
                "worst_client_accuracy": float(np.min(outcome.accuracy)),
                "loss": float(np.mean(outcome.loss)),
                "by_client": dict(zip(clients, outcome.accuracy, strict=True)),
                "num_samples": outcome.num_samples,
            },
        )
        return accuracy


def mean_loss(losses: Sequence[LossReport]) -> float | None:
    """Mean training loss over the clients; ``None`` without any."""
    return float(np.mean([entry.loss for entry in losses])) if losses else None


def _renamed(event: dict[str, Any]) -> dict[str, Any]:
    """A radio event's own kind, beside the record's."""
    values = {key: value for key, value in event.items() if key not in ("at_ns", "kind")}
    return {"radio_event": event["kind"], **values}
