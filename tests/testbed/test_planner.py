"""The planner sees measurements only, ignores nonsense, grants what limits allow, and follows change."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from nodes.messages import (
    AdaptationState,
    LinkMeasurement,
    ModelSpec,
    ReceptionReport,
    RoundReport,
    SpanRecord,
    TransmissionReport,
)
from radio.units import dbm_to_watt
from testbed.config.loader import load
from testbed.planner import Planner
from testbed.policies import POLICIES, Decision
from testbed.specs import numerology_of

MODEL = ModelSpec(
    forward_flops=(0.0, 2e5, 6e5, 7e5, 7.1e5),
    backward_flops=(0.0, 3e5, 9e5, 1.0e6, 1.1e6),
    smashed_bits=(2048, 12288, 4096, 2048, 320),
    gradient_bits=(2048, 12288, 4096, 2048, 320),
    smashed_shape=((1, 8, 8), (6, 8, 8), (32, 2, 2), (64,), (10,)),
    state_bytes=(480, 20000, 66000, 5200),
    packed_bytes=(600, 20200, 66200, 5400),
    uplink_overhead_bytes=(80, 80, 80, 72, 72),
    gradient_overhead_bytes=(60, 60, 60, 52, 52),
    label_bytes=1,
)


NOISE_W_PER_HZ = 2e-20


def made(*overrides: str, seed: int = 1) -> Planner:
    """A planner whose links were sounded once."""
    config = load(overrides=list(overrides))
    names = [board.name for board in config.lab.boards]
    planner = Planner(config.experiment, config.lab, MODEL, dict.fromkeys(names, 250))
    rng = np.random.default_rng(seed)
    num = numerology_of(config.experiment).num_subchannels
    for name in names:
        sound(planner, name, "server", rng.exponential(1e-10, num))
        sound(planner, "server", name, rng.exponential(1e-10, num))
    return planner


@pytest.fixture
def planner() -> Planner:
    return made()


def _link(transmitter: str, receiver: str, gain: np.ndarray) -> LinkMeasurement:
    return LinkMeasurement(
        transmitter, receiver, True, tuple(float(value) for value in gain), NOISE_W_PER_HZ, 0.0, 0.0
    )


def sound(planner: Planner, transmitter: str, receiver: str, gain: np.ndarray) -> None:
    planner.estimates.take_links([_link(transmitter, receiver, gain)])


def decide(planner: Planner, round_index: int = 0, cut: int | None = None) -> Decision:
    decision, _ = planner.decide(round_index, planner.clients, cut, 0, len(planner.clients))
    return decision


def owners(decision: Decision) -> list[str]:
    return [decision.clients[int(owner)] for owner in decision.plan.assignment]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_grant_keeps_every_power_limit_and_shares_no_subchannel(policy: str) -> None:
    planner = made(f"allocator.name={policy}")
    config = load()
    plan = decide(planner).plan
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
        {"channel_gain": (3e-6,) * 20},
        {"channel_gain": (3e-10,) * 3},
        {"transmitter": "nobody"},
    ],
    ids=["not detected", "no noise", "NaN noise", "NaN", "infinite", "spike", "too few", "unknown"],
)
def test_a_measurement_that_makes_no_sense_changes_no_plan(change: dict[str, object]) -> None:
    """Two loops that see the same but for one report decide the same, now and after it."""
    calm, disturbed = made(), made()
    cut = decide(calm).plan.cut_layer
    decide(disturbed)
    rng = np.random.default_rng(2)
    for index in range(1, 6):
        for loop in (calm, disturbed):
            loop.estimates.begin_round()
        for name in calm.clients:
            for ends in ((name, "server"), ("server", name)):
                if index != 3 or ends != ("board-2", "server"):
                    gain = 10 ** (
                        calm.estimates.snr_per_psd_db((name,), downlink=ends[0] == "server")[0] / 10
                    )
                    noisy = gain * NOISE_W_PER_HZ * rng.lognormal(0, 0.05, 20)
                    sound(calm, *ends, noisy)
                    sound(disturbed, *ends, noisy)
        if index == 3:
            good = _link("board-2", "server", np.full(20, 3e-10))
            level = disturbed.estimates.uplink["board-2"].gains.filter.level.copy()
            disturbed.estimates.take_links([msgspec.structs.replace(good, **change)])
            np.testing.assert_array_equal(disturbed.estimates.uplink["board-2"].gains.filter.level, level)
        one, other = decide(calm, index, cut), decide(disturbed, index, cut)
        np.testing.assert_array_equal(one.plan.assignment, other.plan.assignment)
        np.testing.assert_array_equal(one.plan.psd_w_per_hz, other.plan.psd_w_per_hz)
    assert "board-2" in disturbed.estimates.heard


def test_a_lost_report_is_named_and_what_was_known_stays() -> None:
    planner = made()
    before = planner.estimates.snr_per_psd_db(planner.clients, downlink=False)
    planner.estimates.begin_round()
    planner.estimates.expect_reports()
    for name in planner.clients[1:]:
        sound(planner, name, "server", np.full(20, 1e-10))
        sound(planner, "server", name, np.full(20, 1e-10))
    missing = planner.estimates.missing_links(planner.clients)
    assert sorted(rejection.subject for rejection in missing) == ["board-1 to server", "server to board-1"]
    np.testing.assert_array_equal(
        planner.estimates.snr_per_psd_db(("board-1",), downlink=False)[0], before[0]
    )
    assert planner.estimates.uplink["board-1"].gains.filter.age_rounds == 1
    decide(planner, 1, 1)


def test_a_client_that_is_missed_twice_in_a_row_is_not_heard_until_it_is_again() -> None:
    planner = made()
    missed = msgspec.structs.replace(_link("board-3", "server", np.full(20, 1e-10)), detected=False)
    planner.estimates.take_links([missed])
    assert "board-3" in planner.estimates.heard
    planner.estimates.take_links([missed])
    assert "board-3" not in planner.estimates.heard
    sound(planner, "board-3", "server", np.full(20, 1e-10))
    assert "board-3" in planner.estimates.heard


def test_uplink_and_downlink_are_separate_estimates(planner: Planner) -> None:
    before = planner.estimates.snr_per_psd_db(planner.clients, downlink=True)
    sound(planner, "board-1", "server", np.full(20, 1e-10))
    np.testing.assert_array_equal(planner.estimates.snr_per_psd_db(planner.clients, downlink=True), before)


@pytest.mark.parametrize("seed", range(4))
def test_a_subchannel_that_becomes_the_best_of_a_client_is_taken_within_three_rounds(seed: int) -> None:
    """Nobody ever granted it to that client: only its sounding can have told."""
    planner = made("model.cut_layer=1", "allocator.name=closed-loop", seed=seed)
    num = 20
    gains = {name: np.full(num, 1e-10) for name in planner.clients}
    gains["board-4"] /= 10
    rng = np.random.default_rng(seed)
    granted: set[int] = set()

    def play(index: int) -> Decision:
        planner.estimates.begin_round()
        for name in planner.clients:
            for ends in ((name, "server"), ("server", name)):
                sound(planner, *ends, gains[name] * rng.lognormal(0, 0.1, num))
        return decide(planner, index, 1)

    for index in range(4):
        decision = play(index)
        granted |= {k for k, owner in enumerate(owners(decision)) if owner == "board-4"}
    new = next(k for k in range(num) if k not in granted)
    gains["board-4"] = gains["board-4"].copy()
    gains["board-4"][new] *= 300
    taken = [owners(play(index))[new] == "board-4" for index in range(4, 7)]
    assert taken[-1]


def test_a_cut_moves_only_for_a_gain_beyond_the_hysteresis() -> None:
    eager = made("model.cut_layer=auto", "allocator.cut_hysteresis=0", "allocator.cut_horizon_rounds=100000")
    best = decide(eager).plan.cut_layer
    for other in {1, 2, 3} - {best}:
        loop = made(
            "model.cut_layer=auto",
            "allocator.cut_hysteresis=0",
            "allocator.cut_horizon_rounds=100000",
            "rounds=100000",
        )
        assert decide(loop, 1, other).plan.cut_layer == best
        stubborn = made("model.cut_layer=auto", "allocator.cut_hysteresis=0.999")
        kept = decide(stubborn, 1, other)
        assert kept.plan.cut_layer == other
        assert "not worth the move" in kept.why


def test_a_move_that_the_rest_of_the_run_cannot_pay_back_is_not_made() -> None:
    at = {}
    for rounds in (3, 100000):
        loop = made(
            "model.cut_layer=auto",
            "allocator.cut_hysteresis=0",
            "allocator.cut_horizon_rounds=100000",
            f"rounds={rounds}",
        )
        loop.model = msgspec.structs.replace(MODEL, packed_bytes=(600, 2_000_000, 2_000_000, 5400))
        at[rounds] = decide(loop, 1, 1).plan.cut_layer
    assert at[3] == 1
    assert at[100000] != 1


def test_solve_once_never_changes_its_mind_while_the_clients_stay() -> None:
    planner = made("allocator.name=solve-once")
    first = decide(planner)
    rng = np.random.default_rng(5)
    for index in range(1, 5):
        planner.estimates.begin_round()
        for name in planner.clients:
            sound(planner, name, "server", rng.exponential(1e-10, 20))
        later = decide(planner, index, first.plan.cut_layer)
        np.testing.assert_array_equal(later.plan.assignment, first.plan.assignment)
        np.testing.assert_array_equal(later.plan.psd_w_per_hz, first.plan.psd_w_per_hz)
    fewer, _ = planner.decide(5, planner.clients[:-1], first.plan.cut_layer, 0, 4)
    assert set(fewer.plan.assignment.tolist()) == {0, 1, 2, 3}


def test_round_robin_deals_out_in_turn_with_one_psd() -> None:
    planner = made("allocator.name=round-robin")
    plan = decide(planner).plan
    np.testing.assert_array_equal(plan.assignment, np.arange(20) % 5)
    assert np.allclose(plan.psd_w_per_hz, plan.psd_w_per_hz[0])


def test_rss_gives_each_subchannel_to_who_is_received_best_there() -> None:
    planner = made("allocator.name=rss", "model.cut_layer=1", seed=3)
    plan = decide(planner).plan
    best = planner.estimates.snr_per_psd_db(planner.clients, downlink=True).argmax(axis=0)
    assert (plan.assignment == best).mean() >= 0.8  # but for those without any


def test_the_closed_loop_is_expected_to_take_no_longer_than_any_other_policy() -> None:
    expected = {}
    for name in POLICIES:
        _, forecast = (loop := made(f"allocator.name={name}", seed=6)).decide(0, loop.clients, None, 0, 5)
        expected[name] = forecast.round_s.mean
    assert expected["closed-loop"] <= 1.02 * min(expected.values())


def test_a_schedule_fixes_the_cut_from_a_round_on() -> None:
    planner = made()
    section = planner.experiment.model.model_copy(update={"cut_schedule": {2: 3, 5: 1}})
    planner.experiment = planner.experiment.model_copy(update={"model": section})
    assert [planner.cuts(index) for index in (1, 2, 4, 5, 9)] == [(1,), (3,), (3,), (1,), (1,)]


def _report(spans: tuple[SpanRecord, ...] = (), **values: object) -> RoundReport:
    empty = RoundReport(True, (), 0, spans, (), (), (), (), ())
    return msgspec.structs.replace(empty, **values)


def test_a_board_that_slows_down_gets_more_of_the_band_within_three_rounds() -> None:
    planner = made("model.cut_layer=1", "lab.boards.*.max_power_dbm=20")
    for name in planner.clients:
        for ends in ((name, "server"), ("server", name)):
            sound(planner, *ends, np.full(20, 1e-10))
    flops = 32 * MODEL.forward_flops[1]

    def play(index: int, slow_s: float) -> int:
        planner.estimates.begin_round()
        for name in planner.clients:
            seconds = slow_s if name == "board-2" else 0.02
            for phase in ("client-forward", "client-backward"):
                span = SpanRecord(phase, "processor", 0, int(seconds * 1e9), {"flops": flops})
                planner.estimates.take_spans(name, [span], 1)
        return owners(decide(planner, index, 1)).count("board-2")

    before = [play(index, 0.02) for index in range(5)]
    after = [play(index, 0.06) for index in range(5, 8)]
    assert after[-1] > before[-1]


def test_one_span_that_takes_long_is_not_confirmed_by_another_that_does_not(planner: Planner) -> None:
    def play(forward_s: float, backward_s: float) -> int:
        planner.estimates.begin_round()
        lengths = {"client-forward": forward_s, "client-backward": backward_s}
        spans = [
            SpanRecord(phase, "processor", 0, int(seconds * 1e9), {"flops": 1e6})
            for phase, seconds in lengths.items()
        ]
        return len(planner.estimates.take_spans("board-1", spans, 1))

    for _ in range(10):
        assert play(0.05, 0.05) == 0
    assert play(0.085, 0.05) == 1
    assert planner.estimates.flops_per_s("board-1", "client-forward", 1) == pytest.approx(2e7, rel=0.02)
    assert play(0.05, 0.05) == 0
    assert play(0.1, 0.1) == 0
    assert planner.estimates.flops_per_s("board-1", "client-forward", 1) == pytest.approx(1e7, rel=0.02)


def test_a_board_that_slows_down_slowly_is_followed_after_any_number_of_rounds(planner: Planner) -> None:
    for index in range(80):
        planner.estimates.begin_round()
        seconds = 0.05 if index < 60 else 0.065
        span = SpanRecord("client-forward", "processor", 0, int(seconds * 1e9), {"flops": 1e6})
        planner.estimates.take_spans("board-1", [span], 1)
    assert planner.estimates.flops_per_s("board-1", "client-forward", 1) == pytest.approx(
        1e6 / 0.065, rel=0.03
    )


def test_speed_follows_the_compute_spans(planner: Planner) -> None:
    span = SpanRecord("client-forward", "processor", 0, 1_000_000, {"flops": 5e6, "compute": "measured"})
    airtime = SpanRecord("uplink", "transmitter", 0, 9_000_000, {"bytes": 10})
    planner.estimates.take_spans("board-1", (span, airtime), 1)
    assert planner.estimates.flops_per_s("board-1", "client-forward", 1) == pytest.approx(5e9, rel=1e-3)
    assert planner.estimates.flops_per_s("board-1", "client-forward", 2) == pytest.approx(5e9, rel=1e-3)
    assert planner.estimates.flops_per_s("board-2", "client-forward", 1) != pytest.approx(5e9, rel=0.1)


def test_block_errors_outer_loops_and_lost_snr_come_from_the_reports(planner: Planner) -> None:
    plan = decide(planner).plan
    grant = planner.grant(plan, planner.clients, 0, plan.cut_layer, plan.cut_layer)
    own = grant.clients[0]
    state = planner.estimates.uplink["board-1"]
    promised = state.gains.filter.level[list(own.subchannels)] + 10 * np.log10(own.psd_w_per_hz)
    sent = TransmissionReport(
        "uplink", "board-1", ("server",), own.subchannels, 1000, 100, 30, 30, 1, 1, True, (), None
    )
    heard = ReceptionReport(
        "uplink", "board-1", "server", 1000, 70, 30, 0, tuple(float(x) for x in promised - 3), 0.1, 1, ""
    )
    before = state.stream.bler
    for _ in range(30):
        planner.estimates.take_streams(_report(transmissions=(sent,)), grant)
        planner.estimates.take_streams(
            _report(receptions=(heard,), adaptation=(AdaptationState("board-1", "server", 1.5),)), grant
        )
    assert before == pytest.approx(0.01)
    assert state.stream.bler == pytest.approx(0.3, abs=0.01)
    assert state.bias_db == pytest.approx(-3, abs=0.05)
    assert state.outer_loop_db == 1.5


def test_block_errors_that_come_in_bursts_are_known_to() -> None:
    planner = made()
    steady, bursty = (planner.estimates.uplink[name].stream for name in ("board-1", "board-2"))
    rng = np.random.default_rng(4)
    for _ in range(200):
        steady.take(int(rng.binomial(100, 0.1)), 100)
        bursty.take(int(rng.binomial(100, rng.beta(0.3, 2.7))), 100)
    assert steady.overdispersion < 0.03
    assert bursty.overdispersion > 0.08
