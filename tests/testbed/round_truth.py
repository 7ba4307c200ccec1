"""What a finished round really had, from its record: reports as the nodes gave them, inputs for the twin."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from nodes.messages import RoundReport
from radio.link import HEADER
from radio.mcs import SCHEMES, thresholds_db
from radio.numerology import SOUNDING_SYMBOLS, Numerology
from radio.phy import UNUSED, block_bytes
from radio.units import seconds_to_ns
from testbed.config.loader import ResolvedConfig
from testbed.latency.inputs import ComputeTime, Links, McsSteps, RoundInputs, Timing
from testbed.record import Run
from testbed.specs import numerology_of


def of_round(run: Run, kind: str, round_index: int) -> list[dict[str, Any]]:
    return [event for event in run.of_kind(kind) if event["round"] == round_index]


def the_round(run: Run, round_index: int) -> dict[str, Any]:
    (event,) = of_round(run, "round", round_index)
    return event


def reports_of(run: Run, round_index: int) -> dict[str, RoundReport]:
    """The reports that the nodes gave of a round without a cut move."""
    parts: dict[str, dict[str, Any]] = {}
    for kind, key in (("span", "spans"), ("transmission", "transmissions"), ("reception", "receptions")):
        for event in of_round(run, kind, round_index):
            parts.setdefault(event["node"], {}).setdefault(key, []).append(event)
    for event in of_round(run, "link", round_index):  # noted at the end of the report
        parts.setdefault(event["node"], {})["end_ns"] = event["at_ns"]
    empty: dict[str, Any] = dict.fromkeys(
        ("words", "spans", "transmissions", "receptions", "links", "losses", "radio_events"), ()
    )
    return {
        node: msgspec.convert({"t": "round-report", **empty, "complete": True, **part}, RoundReport)
        for node, part in parts.items()
    }


def timing_of(config: ResolvedConfig) -> Timing:
    numerology, link = numerology_of(config.experiment), config.experiment.link
    return Timing(
        sample_rate_hz=numerology.sample_rate_hz,
        slot_samples=numerology.slot_samples,
        slots_per_frame=numerology.slots_per_frame,
        ack_delay_ns=seconds_to_ns(link.ack_delay_s),
        control_latency_ns=seconds_to_ns(config.lab.control.latency_s),
        turnaround_ns=seconds_to_ns(link.turnaround_s),
        sounders_per_slot=numerology.sounders_per_slot,
        sounding_samples=SOUNDING_SYMBOLS * numerology.symbol_samples,
    )


def link_steps(numerology: Numerology) -> McsSteps:
    """The MCS table as the link uses it."""
    rooms = [block_bytes(numerology, scheme.index) - HEADER.size for scheme in SCHEMES]
    return McsSteps(thresholds_db(numerology.block_resource_elements), np.array(rooms))


def true_inputs(run: Run, config: ResolvedConfig, round_index: int) -> RoundInputs:
    """Inputs without any chance: bytes, spans and MCS of a round in which no block was lost.

    Raises
    ------
    AssertionError
        A block was lost, or the reported MCS cannot be those of single streams.
    """
    event = the_round(run, round_index)
    clients, server = event["clients"], config.lab.server.name
    numerology = numerology_of(config.experiment)
    num = numerology.num_subchannels
    sent = [s for s in of_round(run, "transmission", round_index) if s["stream"] != "cut-move"]
    assert sent
    assert not any(stream["blocks_failed"] or stream["blocks_retransmitted"] for stream in sent)
    step_db = np.append(thresholds_db(numerology.block_resource_elements) + 1e-6, -np.inf)  # last: unused

    assignment = np.full(num, UNUSED)
    uplink_db = np.full((len(clients), num), -np.inf)
    downlink_db = np.full((len(clients), num), np.inf)
    sizes = {"uplink": np.zeros(len(clients)), "unicast": np.zeros(len(clients)), "broadcast": 0}
    for stream in sent:
        chosen, mcs = list(stream["subchannels"]), list(stream["mcs_index"])
        if stream["stream"] == "broadcast":
            sizes["broadcast"] = stream["payload_bytes"]
            continue
        up = stream["stream"] == "uplink"
        row = clients.index(stream["transmitter"] if up else stream["receivers"][0])
        sizes[stream["stream"]][row] = stream["payload_bytes"]
        (uplink_db if up else downlink_db)[row, chosen] = step_db[mcs]
        if up:
            assignment[chosen] = row
    for stream in sent:
        if stream["stream"] == "broadcast":
            lowest = step_db[list(stream["mcs_index"])]
            heard = downlink_db.min(axis=0)
            free = ~np.isfinite(heard) & (heard > 0)
            assert (free | (lowest <= heard)).all()
            # Somebody who has no unicast there is the weakest.
            for k in np.flatnonzero(lowest != heard):
                others = [row for row in range(len(clients)) if downlink_db[row, k] == np.inf]
                downlink_db[others[0], k] = lowest[k]
    downlink_db[downlink_db == np.inf] = 900.0

    def spans(phase: str, nodes: list[str]) -> ComputeTime:
        found = {
            span["node"]: (span["end_ns"] - span["start_ns"]) / 1e9
            for span in of_round(run, "span", round_index)
            if span["phase"] == phase
        }
        return ComputeTime(np.array([found[node] for node in nodes]))

    return RoundInputs(
        timing=timing_of(config),
        steps=link_steps(numerology),
        plan_ns=event["start_ns"],
        assignment=assignment,
        uplink=Links(uplink_db, block_error=0.0),
        downlink=Links(downlink_db, block_error=0.0),
        uplink_bytes=sizes["uplink"],
        broadcast_bytes=sizes["broadcast"],
        unicast_bytes=sizes["unicast"],
        client_forward=spans("client-forward", clients),
        client_backward=spans("client-backward", clients),
        server_forward=spans("server-forward", [server]),
        server_backward=spans("server-backward", [server]),
        num_sounders=len(config.lab.boards),
    )
