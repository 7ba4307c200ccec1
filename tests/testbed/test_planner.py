"""The planner sees measurements only, ignores nonsense, and grants what limits allow."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from nodes.messages import LinkMeasurement, ModelSpec, RoundReport, SpanRecord
from radio.units import dbm_to_watt
from testbed.config.loader import load
from testbed.planner import Planner
from testbed.specs import numerology_of

MODEL = ModelSpec(
    forward_flops=(0.0, 2e5, 6e5, 7e5, 7.1e5),
    backward_flops=(0.0, 3e5, 9e5, 1.0e6, 1.1e6),
    smashed_bits=(2048, 12288, 4096, 2048, 320),
    gradient_bits=(2048, 12288, 4096, 2048, 320),
    smashed_shape=((1, 8, 8), (6, 8, 8), (32, 2, 2), (64,), (10,)),
    state_bytes=(480, 20000, 66000, 5200),
)


@pytest.fixture
def planner() -> Planner:
    config = load()
    names = [board.name for board in config.lab.boards]
    made = Planner(config.experiment, config.lab, MODEL, dict.fromkeys(names, 250))
    rng = np.random.default_rng(1)
    num = numerology_of(config.experiment).num_subchannels
    for name in names:
        made.estimates.take_links([_link(name, "server", rng.exponential(1e-10, num))])
        made.estimates.take_links([_link("server", name, rng.exponential(1e-10, num))])
    return made


def _link(transmitter: str, receiver: str, gain: np.ndarray) -> LinkMeasurement:
    return LinkMeasurement(
        transmitter, receiver, True, tuple(float(value) for value in gain), 2e-20, 0.0, 0.0
    )


def test_a_grant_keeps_every_power_limit_and_shares_no_subchannel(planner: Planner) -> None:
    config = load()
    plan = planner.plan(0, planner.clients, None)
    grant = planner.grant(plan, planner.clients, 0, plan.cut_layer, plan.cut_layer)
    width_hz = numerology_of(config.experiment).subchannel_bandwidth_hz
    taken = [k for client in grant.clients for k in client.subchannels]
    assert len(taken) == len(set(taken))
    total_w = 0.0
    for client, board in zip(grant.clients, config.lab.boards, strict=True):
        assert client.subchannels
        power_w = sum(client.psd_w_per_hz) * width_hz
        total_w += power_w
        assert power_w <= float(dbm_to_watt(board.max_power_dbm)) * (1 + 1e-9)
        band_w = client.sounding_psd_w_per_hz * width_hz * 20
        assert band_w == pytest.approx(float(dbm_to_watt(board.max_power_dbm)))
    assert total_w <= float(dbm_to_watt(config.lab.total_power_dbm)) * (1 + 1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"detected": False},
        {"noise_w_per_hz": 0.0},
        {"noise_w_per_hz": float("nan")},
        {"channel_gain": (float("nan"),) * 20},
        {"channel_gain": (float("inf"),) * 20},
    ],
    ids=["not detected", "no noise", "NaN noise", "NaN gain", "infinite gain"],
)
def test_a_measurement_that_makes_no_sense_changes_nothing(
    planner: Planner, change: dict[str, object]
) -> None:
    before = planner.estimates.uplink_snr_per_psd.copy()
    good = _link("board-2", "server", np.full(20, 3e-9))
    planner.estimates.take_links([msgspec.structs.replace(good, **change)])
    np.testing.assert_array_equal(planner.estimates.uplink_snr_per_psd, before)
    planner.estimates.take_links([good])
    assert planner.estimates.uplink_snr_per_psd[1, 0] == pytest.approx(3e-9 / 2e-20)


def test_uplink_and_downlink_are_separate_estimates(planner: Planner) -> None:
    before = planner.estimates.downlink_snr_per_psd.copy()
    planner.estimates.take_links([_link("board-1", "server", np.full(20, 1e-8))])
    np.testing.assert_array_equal(planner.estimates.downlink_snr_per_psd, before)


def test_a_cut_moves_only_for_a_gain_beyond_the_hysteresis(planner: Planner) -> None:
    config = load(overrides=["model.cut_layer=auto", "allocator.cut_hysteresis=0.999"])
    stubborn = Planner(config.experiment, config.lab, MODEL, dict.fromkeys(planner.clients, 250))
    stubborn.estimates = planner.estimates
    eager_config = load(overrides=["model.cut_layer=auto", "allocator.cut_hysteresis=0"])
    eager = Planner(eager_config.experiment, config.lab, MODEL, dict.fromkeys(planner.clients, 250))
    eager.estimates = planner.estimates
    best = eager.plan(0, planner.clients, None).cut_layer
    other = next(cut for cut in (1, 2, 3) if cut != best)
    assert eager.plan(1, planner.clients, other).cut_layer == best
    assert stubborn.plan(1, planner.clients, other).cut_layer == other


def test_a_schedule_fixes_the_cut_from_a_round_on() -> None:
    config = load()
    section = config.experiment.model.model_copy(update={"cut_schedule": {2: 3, 5: 1}})
    experiment = config.experiment.model_copy(update={"model": section})
    names = [board.name for board in config.lab.boards]
    planner = Planner(experiment, config.lab, MODEL, dict.fromkeys(names, 250))
    assert [planner.cuts(index) for index in (1, 2, 4, 5, 9)] == [(1,), (3,), (3,), (1,), (1,)]


def test_speed_follows_the_compute_spans(planner: Planner) -> None:
    span = SpanRecord("client-forward", "processor", 0, 1_000_000, {"flops": 5e6, "compute": "measured"})
    airtime = SpanRecord("uplink", "transmitter", 0, 9_000_000, {"bytes": 10})
    report = RoundReport(True, (), 0, (span, airtime) * 40, (), (), (), (), ())
    planner.estimates.take_spans("board-1", report)
    assert planner.estimates.flops_per_s["board-1"] == pytest.approx(5e9, rel=1e-3)
