"""Tiles of real rounds add up, and the twin that knows everything predicts them to the nanosecond."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from radio.adaptation import LinkAdaptation
from radio.units import seconds_to_ns
from testbed.latency.names import ROUND_PHASES, STREAMS
from testbed.latency.twin import predict_cut_move, predict_round
from testbed.phases import measured_airtime, measured_phases, phases_ns
from testbed.specs import numerology_of
from tests.testbed.experiments import board, run_in_memory, small
from tests.testbed.round_truth import of_round, reports_of, the_round, true_inputs

STILL = {"delay_spread_s": 0.0, "num_taps": 1, "rician_k_db": 30.0, "doppler_hz": 0.0}
NEAR_DB = 70.0  # path loss at which no block is lost, at whatever MCS


def experiment(*overrides, num_boards=3, clocks_hz=(), path_loss_db=NEAR_DB, fading=STILL, **options):
    boards = [board(number, path_loss_db=path_loss_db, fading=fading) for number in range(1, num_boards + 1)]
    for entry, clock_hz in zip(boards, clocks_hz, strict=False):
        entry["processor"]["clock_hz"] = clock_hz
    return small(
        "model.cut_layer=2",
        "allocator.name=round-robin",  # uniform power: more than any MCS needs
        f"lab.boards={json.dumps(boards)}",
        *overrides,
        num_boards=num_boards,
        **options,
    )


def measured_ns(run, config, round_index):
    """Reports, tiles and latency of a round [ns]."""
    event = the_round(run, round_index)
    control_ns = seconds_to_ns(config.lab.control.latency_s)
    arguments = (
        reports_of(run, round_index),
        event["start_ns"],
        event["start_ns"] + control_ns,
        control_ns,
        config.lab.server.name,
    )
    ack_ns = seconds_to_ns(config.experiment.link.ack_delay_s)
    return arguments, phases_ns(*arguments, ack_delay_ns=ack_ns), event["latency_ns"], ack_ns


@pytest.fixture
def fixed_mcs(monkeypatch):
    """Links choose from a list by the place of a subchannel among those of a stream, for ever."""
    places = np.array([17, 14, 21, 12, 16, 19])

    def choose(self, snr, num_resource_elements):
        # A broadcast, which has them all, at the slowest: its MCS is one that every client could have.
        return places[: len(snr)].copy() if len(snr) < len(places) else np.full(len(snr), 11)

    monkeypatch.setattr(LinkAdaptation, "choose", choose)


CASES = {
    "epsl": ((), {}),
    "two boards, frames of three slots": (
        ("numerology.slots_per_frame=3",),
        {"num_boards": 2, "seed": 2},
    ),
    "slots of no whole nanosecond": (
        ("numerology.sample_rate_hz=3.84e6", "link.ack_delay_s=0.0031", "lab.control.latency_s=0.00073"),
        {"seed": 3},
    ),
    "acknowledgements later than frames": (
        ("numerology.slots_per_frame=1", "link.ack_delay_s=0.0123", "link.turnaround_s=0.004"),
        {"seed": 4},
    ),
    "psl: nothing is broadcast": (("learning.scheme=psl",), {"seed": 5}),
    "phi = 1: nothing is unicast": (("learning.phi=1.0",), {"seed": 6, "num_boards": 4}),
    "unequal batches": (
        (
            "data.partition=dirichlet",
            "data.dirichlet_alpha=0.1",
            "learning.batch_size=300",
            "learning.phi=0.7",
        ),
        {"seed": 7, "num_boards": 4},
    ),
    "a board that is still computing when the sounding is over": (
        (),
        {"seed": 8, "clocks_hz": (2e6, 1e8, 4e5)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_round_without_losses_is_predicted_to_the_nanosecond(case, fixed_mcs, tmp_path):
    """Latency, tiles and airtimes, from bytes, compute spans, MCS and the timing rules alone."""
    overrides, options = CASES[case]
    config = experiment("learning.batch_size=24", *overrides, **options)
    result, run = run_in_memory(config, tmp_path / "run")
    assert result.rounds == 2
    for round_index in range(2):
        arguments, tiles, latency_ns, _ = measured_ns(run, config, round_index)
        assert sum(tiles.values()) == latency_ns
        inputs = true_inputs(run, config, round_index)
        predicted = predict_round(inputs, num_draws=2)
        assert np.rint(predicted.latency_s * 1e9).tolist() == [latency_ns] * 2
        for name in ROUND_PHASES:
            assert np.rint(predicted.phases_s[name] * 1e9).tolist() == [tiles[name]] * 2, name
        airtime_s = measured_airtime(arguments[0])
        assert set(airtime_s) == set(predicted.airtime_s) == set(STREAMS)
        for stream in STREAMS:
            # Each report rounds to nanoseconds.
            assert predicted.airtime_s[stream] == pytest.approx(airtime_s[stream], abs=1e-8), stream
        # The case is what its name says.
        assert (tiles["broadcast"] == 0) == ("nothing is broadcast" in case)
        assert (tiles["unicast"] == 0) == ("nothing is unicast" in case)
        assert (tiles["client-forward"] > 0) == ("computing" in case)
        assert (len(set(inputs.uplink_bytes)) > 1) == ("unequal" in case)


def test_cut_moves_without_losses_are_predicted_to_the_nanosecond(fixed_mcs, tmp_path):
    """Deeper, the server broadcasts to all; shallower, each client sends its own copy."""
    schedule = {"0": 1, "1": 2, "2": 1}
    config = experiment(f"model.cut_schedule={json.dumps(schedule)}", rounds=3, seed=12)
    _, run = run_in_memory(config, tmp_path / "run")
    numerology = numerology_of(config.experiment)
    moves = run.of_kind("cut-move")
    assert [(move["from"], move["to"]) for move in moves] == [(1, 2), (2, 1)]
    for move in moves:
        round_index = move["round"]
        streams = [
            stream for stream in of_round(run, "transmission", round_index) if stream["stream"] == "cut-move"
        ]
        deeper = move["to"] > move["from"]
        assert len(streams) == (1 if deeper else 3)
        assert not any(stream["blocks_failed"] for stream in streams)
        # Round and move share plan and MCS; the round's payloads do not count.
        inputs = true_inputs(run, config, round_index)
        inputs = dataclasses.replace(inputs, plan_ns=move["start_ns"])
        (num_bytes,) = {stream["payload_bytes"] for stream in streams}
        predicted = predict_cut_move(inputs, num_bytes, deeper, num_draws=2)
        assert np.rint(predicted.latency_s * 1e9).tolist() == [move["latency_ns"]] * 2
        radiated_s = sum(stream["airtime_ns"] for stream in streams) / 1e9
        assert predicted.airtime_s["cut-move"] == pytest.approx(radiated_s, abs=1e-8)
        assert predicted.airtime_s["cut-move"][0] > numerology.slot_samples / numerology.sample_rate_hz


def test_adaptation_at_the_top_of_the_table_is_predicted_too(tmp_path):
    """Alone, with all the power there is, a board's links settle at the fastest MCS by themselves."""
    config = experiment("learning.batch_size=48", num_boards=1, seed=9)
    _, run = run_in_memory(config, tmp_path / "run")
    for round_index in range(2):
        _, tiles, latency_ns, _ = measured_ns(run, config, round_index)
        predicted = predict_round(true_inputs(run, config, round_index), num_draws=1)
        assert round(predicted.latency_s[0] * 1e9) == latency_ns
        assert {name: round(predicted.phases_s[name][0] * 1e9) for name in tiles} == tiles


def test_tiles_of_lossy_rounds_add_up(tmp_path):
    """Whatever is repeated and whoever waits: nothing is negative, nothing is left over."""
    fading = {"delay_spread_s": 2e-7, "num_taps": 3, "rician_k_db": 3.0, "doppler_hz": 30.0}
    config = experiment(
        "learning.batch_size=24",
        "allocator.name=closed-loop",
        path_loss_db=106.0,
        fading=fading,
        rounds=3,
        seed=10,
    )
    _, run = run_in_memory(config, tmp_path / "run")
    lost = 0
    for round_index in range(3):
        arguments, tiles, latency_ns, ack_ns = measured_ns(run, config, round_index)
        assert tuple(tiles) == ROUND_PHASES
        assert sum(tiles.values()) == latency_ns
        assert min(tiles.values()) >= 0
        assert tiles["control"] >= 2 * arguments[3]
        seconds, airtime_s = measured_phases(*arguments, ack_delay_ns=ack_ns)
        assert sum(seconds.values()) == pytest.approx(latency_ns / 1e9, rel=1e-12)
        assert airtime_s["broadcast"] <= seconds["broadcast"]
        lost += sum(sent.blocks_failed for report in arguments[0].values() for sent in report.transmissions)
    assert lost > 0


def test_clients_that_failed_are_left_out(tmp_path):
    """Reports that break off on the way leave tiles that still add up, as long as anybody finished."""
    config = experiment("allocator.name=closed-loop", path_loss_db=95.0, seed=11)
    _, run = run_in_memory(config, tmp_path / "run")
    (reports, *rest), _, _, ack_ns = measured_ns(run, config, 1)
    server = config.lab.server.name
    clients = sorted(set(reports) - {server})
    ends = {
        name: max(span.end_ns for span in reports[name].spans if span.phase == "client-backward")
        for name in clients
    }
    last = max(clients, key=ends.__getitem__)
    left = {name: report for name, report in reports.items() if name != last}
    tiles = phases_ns(left, *rest, ack_delay_ns=ack_ns)
    end_ns = max(report.end_ns for report in left.values()) + rest[2]
    assert sum(tiles.values()) == end_ns - rest[0]
    assert min(tiles.values()) >= 0
    assert tiles["control"] > 2 * rest[2]  # the server still waited for the one that is gone

    assert phases_ns({server: reports[server]}, *rest, ack_delay_ns=ack_ns) is None
    nobody = {name: report for name, report in reports.items() if name != server}
    seconds, airtime_s = measured_phases(nobody, *rest, ack_delay_ns=ack_ns)
    assert seconds is None
    assert airtime_s["uplink"] > 0
    assert airtime_s["broadcast"] == 0
