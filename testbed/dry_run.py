"""What an experiment would do, without running any of it: ``testbed plan``.

The links are either those of a link budget (path loss from ``lab.yaml``, no fading, thermal noise)
or what an earlier run of the same lab has measured.  Data and model are loaded to count samples,
FLOPs and bytes; no radio, no process and no training is involved.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from nodes.messages import LinkMeasurement, ModelSpec, RehearsedSpan, SpanRecord
from radio.units import thermal_noise_w_per_hz
from testbed.allocator.problem import AllocationError
from testbed.config.loader import ResolvedConfig
from testbed.errors import NodeError, StorageError
from testbed.forecast import RoundForecast, Summary
from testbed.planner import Planner
from testbed.policies import Decision
from testbed.record import read_run
from testbed.scenario import resolve_scenario
from testbed.specs import node_setup
from testbed.state import LinkBudgetError

EVENT_BYTES = 190  # one event without arrays
NUMBER_BYTES = 12  # one number of an array of gains or SNRs
REPORT_BYTES = 5_000_000  # the page carries its own plotting library
REPORT_ROUND_BYTES = 12_000  # of a round in page and trace
CONTROL_EVENTS = 10  # plan, prediction, round, server's spans and losses


@dataclass(frozen=True)
class Budget:
    """Bytes and seconds of a run.

    Attributes
    ----------
    uplink_bytes
        By client, per round, labels and description included.
    cut_move_bytes
        By neighbouring cut: one way over the air.
    record_bytes, report_bytes, checkpoint_bytes
        Disk space of the whole run, about.
    """

    uplink_bytes: dict[str, int]
    broadcast_bytes: int
    unicast_bytes: dict[str, int]
    cut_move_bytes: dict[int, int]
    record_bytes: int
    report_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class DryRun:
    """The first round's plan, what it is expected to take, and what the run needs."""

    experiment: str
    lab: str
    policy: str
    scenario: str | None
    source: str
    rounds: int
    subchannel_bandwidth_hz: float
    decision: Decision
    forecast: RoundForecast
    budget: Budget

    @property
    def run_s(self) -> Summary:
        """Expected experiment time of all rounds, if all were like the first [s]."""
        one = self.forecast.round_s
        return Summary(one.mean * self.rounds, one.low * self.rounds, one.high * self.rounds)

    def to_builtins(self) -> dict[str, Any]:
        """As JSON types."""
        plan, clients = self.decision.plan, self.decision.clients
        return {
            "format": "dry-run/1",
            "experiment": self.experiment,
            "lab": self.lab,
            "policy": self.policy,
            "scenario": self.scenario,
            "source": self.source,
            "rounds": self.rounds,
            "cut_layer": plan.cut_layer,
            "assignment": [clients[int(owner)] if owner >= 0 else None for owner in plan.assignment],
            "psd_w_per_hz": [float(value) for value in plan.psd_w_per_hz],
            "why": self.decision.why,
            "formula_latency_s": plan.latency_s,
            **self.forecast.record(None),
            "run_s": self.run_s.record(),
            "bytes": asdict(self.budget),
        }


def link_budget(config: ResolvedConfig) -> list[LinkMeasurement]:
    """Mean gains and thermal noise of every link, as soundings would report them.

    Raises
    ------
    NodeError
        A board has no channel in ``lab.yaml``: nothing says how strong it is.
    """
    lab, num = config.lab, config.experiment.numerology.num_subchannels
    noise = thermal_noise_w_per_hz(lab.radio.noise_figure_db)
    links = []
    for board in lab.boards:
        if board.channel is None:
            raise NodeError(
                f"{board.name} has no channel in lab.yaml, so its link budget is unknown; plan from what an "
                "earlier run of this lab measured (--from RUN)"
            )
        gain = 10 ** ((lab.radio.antenna_gain_db - board.channel.path_loss_db) / 10)
        for ends in ((board.name, lab.server.name), (lab.server.name, board.name)):
            links.append(LinkMeasurement(*ends, True, (gain,) * num, noise, 0.0, 0.0))
    return links


def learn_from(planner: Planner, directory: Path) -> None:
    """Feed a planner's estimates with what an earlier run measured.

    Raises
    ------
    StorageError
        There is no run, or it measured other boards or another number of subchannels.
    """
    run = read_run(directory)
    estimates = planner.estimates
    links = [event for event in run.of_kind("link") if event["detected"]]
    cuts = {event["round"]: event["cut_layer"] for event in run.of_kind("round")}
    if not links or not cuts:
        raise StorageError(f"{directory} measured nothing to plan from: it has no soundings or no rounds")
    num = len(links[0]["channel_gain"])
    if num != planner.numerology.num_subchannels:
        raise StorageError(
            f"{directory} has {num} subchannels, this experiment {planner.numerology.num_subchannels}"
        )
    for event in run.of_kind("rehearsal"):
        estimates.take_rehearsal(event["node"], [msgspec.convert(event, RehearsedSpan, strict=False)])
    by_round: dict[int, list[dict[str, Any]]] = {}
    for event in run.events:
        if event["kind"] in ("link", "span"):
            by_round.setdefault(event["round"], []).append(event)
    # Of the soundings that set the gains, only the last of each link was made with the right one.
    last = {
        (event["transmitter"], event["receiver"]): event
        for event in by_round.get(-1, [])
        if event["kind"] == "link"
    }
    by_round[-1] = list(last.values())
    for index in sorted(by_round):
        estimates.begin_round()
        for event in by_round[index]:
            if event["kind"] == "link":
                estimates.take_links([msgspec.convert(event, LinkMeasurement, strict=False)])
            elif index in cuts and "flops" in event["attributes"]:
                span = msgspec.convert(event, SpanRecord, strict=False)
                estimates.take_spans(event["node"], [span], cuts[index])
    estimates.begin_round()
    silent = [name for name in planner.clients if name not in estimates.heard]
    if silent:
        raise StorageError(f"{directory} never heard {', '.join(silent)}; plan from a run of the same lab")


def record_bytes_per_round(num_clients: int, num_subchannels: int) -> int:
    """Size of one round in ``events.jsonl``, about [byte]."""
    arrays = 2 * num_clients * num_subchannels  # gains, and estimates, of both directions
    arrays += num_clients * num_subchannels  # SNRs of a broadcast's receptions
    arrays += 4 * num_subchannels  # plan, MCS, SNRs on own subchannels
    events = CONTROL_EVENTS + 20 * num_clients
    return 2 * NUMBER_BYTES * arrays + EVENT_BYTES * events


def budget(config: ResolvedConfig, planner: Planner, decision: Decision) -> Budget:
    """Bytes of a round at the decided cut, and disk space of the run."""
    experiment, model = config.experiment, planner.model
    cut, clients = decision.plan.cut_layer, decision.clients
    sizes = planner.stream_bytes(clients, cut)
    every, rounds = experiment.checkpoints.every_rounds, experiment.rounds
    checkpoints = (rounds // every if every else 0) + 1
    client_bytes = sum(model.state_bytes[:cut])
    one = len(clients) * client_bytes + sum(model.state_bytes[cut:])
    moves = {
        other: sum(model.packed_bytes[min(cut, other) : max(cut, other)])
        for other in (cut - 1, cut + 1)
        if 1 <= other <= len(model.state_bytes) - 1
    }
    return Budget(
        uplink_bytes=dict(zip(clients, map(int, sizes.uplink), strict=True)),
        broadcast_bytes=int(sizes.broadcast),
        unicast_bytes=dict(zip(clients, map(int, sizes.unicast), strict=True)),
        cut_move_bytes=moves,
        record_bytes=rounds * record_bytes_per_round(len(clients), planner.numerology.num_subchannels),
        report_bytes=REPORT_BYTES + rounds * REPORT_ROUND_BYTES,
        checkpoint_bytes=checkpoints * one,
    )


def dry_run(config: ResolvedConfig, source: Path | None = None) -> DryRun:
    """Plan an experiment's first round and say what the run would take and need.

    Parameters
    ----------
    source
        A run directory to take measured links and speeds from; the link budget when left out.

    Raises
    ------
    NodeError, StorageError, LinkBudgetError
        The links are unknown, the run does not fit, or no plan carries every client's bits.
    """
    from nodes.data_source import load_material  # loads torch

    experiment, lab = config.experiment, config.lab
    material = load_material(node_setup(experiment, lab, lab.server.name, "dry-run", "", 0))
    model: ModelSpec = material.model_spec()
    names = [board.name for board in lab.boards]
    sizes = dict(zip(names, material.partition.sizes, strict=True))
    planner = Planner(experiment, lab, model, sizes)
    if source is None:
        planner.estimates.take_links(link_budget(config))
        words = "link budget: path loss of lab.yaml without fading, thermal noise, declared speeds"
    else:
        learn_from(planner, source)
        words = f"measured by {source}"
    clients = resolve_scenario(lab.scenario, lab, experiment.rounds).present(0)
    try:
        decision, forecast = planner.decide(0, clients, None, 0, len(clients))
    except AllocationError as exc:
        raise LinkBudgetError(
            f"there is no plan for {', '.join(clients)} ({exc}); links from: {words}; is a path loss beyond "
            "the link budget?"
        ) from exc
    return DryRun(
        experiment=experiment.name,
        lab=lab.name,
        policy=experiment.allocator.name,
        scenario=lab.scenario.name if lab.scenario else None,
        source=words,
        rounds=experiment.rounds,
        subchannel_bandwidth_hz=planner.numerology.subchannel_bandwidth_hz,
        decision=decision,
        forecast=forecast,
        budget=budget(config, planner, decision),
    )
