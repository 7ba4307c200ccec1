"""The twin of a round against a slow simulation of it, and facts of the field."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.numerology import Numerology
from radio.phy import UNUSED
from testbed import latency
from testbed.allocator.problem import RateModel
from testbed.latency import twin
from testbed.latency.inputs import ComputeTime, Links, McsSteps, PredictionError, RoundInputs
from testbed.latency.names import ROUND_PHASES, STREAMS
from testbed.latency.paper import predict_formula
from testbed.latency.twin import predict_cut_move, predict_round
from tests.testbed import protocol_reference as reference
from tests.testbed.allocation_rules import small_problem
from tests.testbed.protocol_reference import Stream
from tests.testbed.round_inputs import NUM_SUBCHANNELS, grid_numerology, level_inputs, timing_of
from tests.testbed.round_truth import link_steps


def standard_error(values):
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


# ------------------------------------------------------------------------------- whole rounds
class SlowRound:
    """Rounds drawn one at a time with NumPy's generator and the nodes' link code."""

    def __init__(self, inputs: RoundInputs, numerology: Numerology) -> None:
        self.inputs, self.numerology = inputs, numerology
        self.names = [f"client-{c}" for c in range(inputs.num_clients)]
        self.own = {
            name: tuple(np.flatnonzero(inputs.assignment == c).tolist()) for c, name in enumerate(self.names)
        }

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        inputs, timing, numerology, own = self.inputs, self.inputs.timing, self.numerology, self.own

        def snr(links: Links, c: int) -> np.ndarray:
            shift = rng.normal(0, links.common_deviation_db[c])
            return links.snr_db[c] + shift + rng.normal(0, links.subchannel_deviation_db[c], NUM_SUBCHANNELS)

        def seconds_ns(time: ComputeTime, c: int) -> int:
            spread = np.sqrt(np.log(1 + np.broadcast_to(time.deviation, (8,))[c] ** 2))
            mean_s = np.broadcast_to(time.mean_s, (8,))[c]
            return round(rng.lognormal(np.log(mean_s) - spread**2 / 2, spread) * 1e9)

        def chance(mean: float, overdispersion: float) -> reference.Lost:
            weight = (1 - overdispersion) / overdispersion
            probability = min(0.9, rng.beta(mean * weight, (1 - mean) * weight))
            return lambda number: bool(rng.random() < probability)

        start_ns = inputs.start_ns
        sounded_ns = reference.sounding_end_ns(numerology, start_ns, timing.turnaround_ns, inputs.sounders)
        permit_ns = sounded_ns + timing.ack_delay_ns
        ends, uplinks, air = [], [], dict.fromkeys(STREAMS, 0.0)
        for c, name in enumerate(self.names):
            ready_ns = max(permit_ns, start_ns + seconds_ns(inputs.client_forward, c))
            mcs = reference.uplink_mcs(
                numerology, snr(inputs.uplink, c), inputs.uplink.margin_db[c], own[name]
            )
            lost = {"server": chance(inputs.uplink.block_error[c], inputs.uplink.overdispersion[c])}
            stream = Stream(int(inputs.uplink_bytes[c]), own[name], mcs, lost)
            ends.append(reference.uplink(numerology, timing.ack_delay_ns, stream, ready_ns))
            uplinks.append((stream.complete_ns["server"], ready_ns))
            air["uplink"] += stream.air_slots
        uplink_ns, ready_ns = max(uplinks)
        forward_ns = uplink_ns + seconds_ns(inputs.server_forward, 0)
        backward_ns = forward_ns + seconds_ns(inputs.server_backward, 0)

        down_db = {name: snr(inputs.downlink, c) for c, name in enumerate(self.names)}
        margin_db = dict(zip(self.names, inputs.downlink.margin_db, strict=True))
        every = tuple(range(NUM_SUBCHANNELS))
        mcs = reference.downlink_mcs(numerology, down_db, margin_db, every)
        lost = {
            name: chance(inputs.broadcast_block_error[c], inputs.broadcast_overdispersion[c])
            for c, name in enumerate(self.names)
        }
        broadcast = Stream(inputs.broadcast_bytes, every, mcs, lost)
        timings = (numerology, timing.ack_delay_ns, timing.control_latency_ns)
        settled_ns = reference.downlink(*timings, [broadcast], backward_ns)
        broadcast_ns = max(broadcast.complete_ns.values())
        air["broadcast"] += broadcast.air_slots
        unicasts = [
            Stream(
                int(inputs.unicast_bytes[c]),
                own[name],
                reference.downlink_mcs(numerology, {name: down_db[name]}, {name: margin_db[name]}, own[name]),
                {name: chance(inputs.downlink.block_error[c], inputs.downlink.overdispersion[c])},
            )
            for c, name in enumerate(self.names)
        ]
        ends.append(reference.downlink(*timings, unicasts, settled_ns))
        downlinks = []
        for c, (name, stream) in enumerate(zip(self.names, unicasts, strict=True)):
            complete_ns = stream.complete_ns[name]
            downlinks.append((complete_ns + seconds_ns(inputs.client_backward, c), complete_ns))
            air["unicast"] += stream.air_slots
        done_ns, unicast_ns = max(downlinks)
        end_ns = max(*ends, done_ns)
        marks = (permit_ns, ready_ns, uplink_ns, forward_ns, backward_ns, broadcast_ns, unicast_ns, done_ns)
        tiles = np.diff((start_ns, *marks)) / 1e9
        control_s = (2 * timing.control_latency_ns + end_ns - done_ns) / 1e9
        drawn = dict(zip(ROUND_PHASES, (control_s, *tiles), strict=True))
        drawn |= {f"air {name}": slots * timing.slot_s for name, slots in air.items()}
        drawn["latency"] = (end_ns - inputs.plan_ns) / 1e9 + timing.control_latency_ns / 1e9
        return drawn


def test_mean_of_a_lossy_round_is_that_of_a_slow_simulation():
    """Every tile and airtime, within four standard errors of two independent simulations."""
    numerology = grid_numerology(3.84e6, 3)
    rng = np.random.default_rng(1)
    shape = (3, NUM_SUBCHANNELS)
    deviations = ((1.5, 0.5, 2.0), (1.0, 2.0, 0.5), (1.0, 2.5, -0.5), (0.1, 0.25, 0.05), (0.02, 0.1, 0.01))
    inputs = level_inputs(
        timing=timing_of(numerology, ack_delay_ns=1_300_000),
        steps=link_steps(numerology),
        uplink=Links(rng.uniform(2, 20, shape), *map(np.array, deviations)),
        downlink=Links(rng.uniform(-6, 14, shape), *map(np.array, deviations)),
        broadcast_block_error=np.array([0.15, 0.02, 0.3]),
        broadcast_overdispersion=0.05,
        uplink_bytes=np.array([1500, 900, 1200]),
        unicast_bytes=np.array([400, 700, 600]),
        assignment=np.array([0, 0, 1, 2, 1, 2]),
        num_sounders=5,
    )
    slow = SlowRound(inputs, numerology)
    draws = [slow.draw(rng) for _ in range(500)]
    fast = predict_round(inputs, num_draws=4000, seed=2)
    values = {"latency": fast.latency_s, **fast.phases_s}
    values |= {f"air {name}": drawn for name, drawn in fast.airtime_s.items() if name != "sounding"}
    for name, drawn in values.items():
        others = np.array([draw[name] for draw in draws])
        tolerance = 4 * np.hypot(standard_error(others), standard_error(drawn))
        assert drawn.mean() == pytest.approx(others.mean(), abs=max(tolerance, 1e-9)), name
        spread = others.std()
        assert drawn.std() == pytest.approx(spread, rel=0.25, abs=1e-9), name


@settings(deadline=None, max_examples=60)
@given(
    num_clients=st.integers(1, 4),
    snr_db=st.floats(-20, 35),
    probability=st.floats(0, 1),
    excess=st.floats(0, 1),
    broadcast_bytes=st.sampled_from([0, 1, 700, 5000]),
    unicast_bytes=st.sampled_from([0, 1, 900]),
    seed=st.integers(0, 2**40),
)
def test_everything_arrives_and_tiles_add_up(
    num_clients, snr_db, probability, excess, broadcast_bytes, unicast_bytes, seed
):
    """No draw radiates less than the bytes at the fastest step, loses a nanosecond, or is over early."""
    links = Links(np.full((num_clients, NUM_SUBCHANNELS), snr_db), 2.0, 2.0, 1.0, probability, excess)
    inputs = level_inputs(
        num_clients,
        uplink=links,
        downlink=links,
        broadcast_bytes=broadcast_bytes,
        unicast_bytes=unicast_bytes,
    )
    predicted = predict_round(inputs, num_draws=16, seed=seed)
    tiles_ns = np.rint(np.array([predicted.phases_s[name] for name in ROUND_PHASES]) * 1e9)
    assert (tiles_ns >= 0).all()
    assert (tiles_ns.sum(axis=0) == np.rint(predicted.latency_s * 1e9)).all()
    assert not predicted.missed.any()
    assert (predicted.phases_s["control"] >= 2e-3).all()
    best_bps = inputs.steps.room_bytes.max() / inputs.timing.slot_s
    width = {"uplink": 0, "broadcast": NUM_SUBCHANNELS, "unicast": 0}
    for c in range(num_clients):
        width["uplink"] = width["unicast"] = max(width["uplink"], (inputs.assignment == c).sum())
    sizes = {
        "uplink": num_clients * 1500,
        "broadcast": broadcast_bytes,
        "unicast": num_clients * unicast_bytes,
    }
    for stream, num_bytes in sizes.items():
        assert (predicted.airtime_s[stream] >= num_bytes / (best_bps * width[stream]) - 1e-12).all()
        assert (num_bytes > 0) == (predicted.airtime_s[stream] > 0).all()


def test_a_rounds_straggler_ends_its_tiles():
    assignment = np.array([0, 1, 2, 3, 0, 1])
    predicted = predict_round(level_inputs(4, assignment=assignment, uplink_bytes=6000), num_draws=300)
    rows = np.arange(300)
    straggler_s = predicted.uplink_s[rows, predicted.uplink_straggler]
    assert np.allclose(straggler_s, predicted.phases_s["uplink"], atol=2e-9)
    # Clients with one subchannel of two-subchannel colleagues hold up the round.
    assert np.isin(predicted.uplink_straggler, (2, 3)).mean() > 0.8
    assert (predicted.unicast_s > 0).all()


def test_a_board_that_is_only_sounded_takes_no_part():
    alone = predict_round(level_inputs(1), num_draws=50, seed=4)
    nothing = np.full((2, NUM_SUBCHANNELS), -np.inf)
    links = level_inputs(1).uplink
    beside = Links(np.vstack([links.snr_db, nothing]), 1.0, 1.0, 1.0, 0.1, 0.05)
    idle = level_inputs(3, assignment=np.zeros(NUM_SUBCHANNELS), uplink=beside, downlink=beside)
    beside_s = predict_round(dataclasses.replace(idle, num_sounders=1), num_draws=2000, seed=4)
    assert np.isnan(beside_s.uplink_s[:, 1:]).all()
    tolerance = 4 * standard_error(alone.latency_s)
    assert beside_s.latency_s.mean() == pytest.approx(alone.latency_s.mean(), abs=tolerance)
    per_slot = idle.timing.sounders_per_slot
    crowded = predict_round(dataclasses.replace(idle, num_sounders=per_slot + 1), num_draws=5)
    few = predict_round(dataclasses.replace(idle, num_sounders=per_slot), num_draws=5)
    added_s = crowded.phases_s["sounding"] - few.phases_s["sounding"]
    assert np.allclose(added_s, idle.timing.slot_s, atol=1e-8)


# ------------------------------------------------------------------------------- monotonicity
def test_more_block_errors_never_make_a_round_faster():
    means = []
    for probability in (0.0, 0.03, 0.1, 0.3, 0.6):
        links = Links(np.full((3, NUM_SUBCHANNELS), 16.0), 1.0, 1.0, 1.0, probability, 0.05)
        predicted = predict_round(level_inputs(uplink=links, downlink=links), num_draws=400)
        means.append(
            [predicted.latency_s.mean(), *(predicted.airtime_s[name].mean() for name in STREAMS[1:])]
        )
    assert (np.diff(means, axis=0) >= 0).all()
    assert (np.diff(means, axis=0)[:, 0] > 0).all()


def test_more_subchannels_never_make_a_round_slower():
    """Without losses in every draw, with losses on average."""
    few = np.array([0, 1, 2, UNUSED, UNUSED, UNUSED])
    for probability in (0.0, 0.15):
        links = Links(np.full((3, NUM_SUBCHANNELS), 16.0), 1.0, 1.0, 1.0, probability, 0.0)
        before = None
        for more in ((), (3,), (3, 4), (3, 4, 5)):
            assignment = few.copy()
            assignment[list(more)] = np.array(more) - 3 if more else []
            drawn_s = predict_round(
                level_inputs(uplink=links, downlink=links, assignment=assignment), num_draws=400
            ).latency_s
            if before is not None and probability == 0:
                assert (drawn_s <= before).all()
            elif before is not None:
                assert drawn_s.mean() <= before.mean() + 2 * standard_error(drawn_s - before)
            before = drawn_s


def test_better_links_and_faster_boards_never_make_a_round_slower():
    for field, values in (
        ("snr_db", (-5.0, 3.0, 12.0, 30.0)),
        ("server_forward", tuple(ComputeTime(mean_s, 0.1) for mean_s in (9e-3, 3e-3, 0.0))),
        ("client_forward", tuple(ComputeTime(mean_s, 0.1) for mean_s in (90e-3, 3e-3, 0.0))),
    ):
        drawn = [predict_round(level_inputs(**{field: value}), num_draws=200).latency_s for value in values]
        means = [float(latencies.mean()) for latencies in drawn]
        assert means == sorted(means, reverse=True)


def test_a_lead_on_wall_time_postpones_what_waits_for_an_answer():
    virtual = level_inputs()
    timing = dataclasses.replace(virtual.timing, lead_ns=2_000_000)
    late = predict_round(dataclasses.replace(virtual, timing=timing), num_draws=200)
    assert (late.latency_s >= predict_round(virtual, num_draws=200).latency_s).mean() > 0.95
    assert late.latency_s.mean() > predict_round(virtual, num_draws=200).latency_s.mean() + 3 * 2e-3


# --------------------------------------------------------------------------------- randomness
def test_a_seed_is_a_draw_and_a_generator_gives_one():
    inputs = level_inputs()
    first = predict_round(inputs, num_draws=30, seed=5)
    assert (predict_round(inputs, num_draws=30, seed=5).latency_s == first.latency_s).all()
    assert (predict_round(inputs, num_draws=30, seed=6).latency_s != first.latency_s).any()
    draws = [
        predict_round(inputs, num_draws=30, seed=np.random.default_rng(seed)).latency_s for seed in (1, 1, 2)
    ]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


def test_equal_luck_makes_differences_of_plans_sharper():
    """The variance of the difference is below a third of that of independent draws."""
    one = level_inputs(4, assignment=np.array([0, 1, 2, 3, 0, 1]))
    other = dataclasses.replace(one, assignment=np.array([0, 1, 2, 3, 2, 1]))
    for change in (other, dataclasses.replace(one, uplink_bytes=1650)):
        same = predict_round(one, 400, seed=1).latency_s - predict_round(change, 400, seed=1).latency_s
        apart = predict_round(one, 400, seed=1).latency_s - predict_round(change, 400, seed=2).latency_s
        assert same.var() < apart.var() / 3


def test_compute_times_and_error_rates_have_the_moments_asked_for():
    count = 20_000
    means_s, deviation = np.array([1e-3, 0.2]), np.array([0.05, 0.6])
    spans_s = twin._spans_ns(3, twin._Purpose.CLIENT_FORWARD, count, means_s, deviation) / 1e9
    assert np.allclose(spans_s.mean(axis=0), means_s, rtol=4 * deviation / np.sqrt(count))
    assert np.allclose(spans_s.std(axis=0), means_s * deviation, rtol=0.1)
    mean, excess = (0.02, 0.1, 0.45, 0.0, 0.3), (0.01, 0.2, 0.05, 0.5, 0.0)
    drawn = twin._beta(3, twin._Purpose.UPLINK_ERROR, count, mean, excess)
    variance = np.array(excess) * np.array(mean) * (1 - np.array(mean))
    assert np.allclose(drawn.mean(axis=0), mean, atol=4 * np.sqrt(variance.max() / count))
    assert np.allclose(drawn.var(axis=0), variance, rtol=0.1)
    assert (drawn[:, 3] == 0).all()
    assert (drawn[:, 4] == 0.3).all()


def test_a_known_union_of_losses_is_kept():
    for own in (0.0, 0.05, np.array([0.2, 0.0, 0.01])):
        inputs = level_inputs(broadcast_block_error=own, broadcast_union_error=0.22)
        scaled = twin._broadcast_error(inputs, np.ones(3, bool))
        assert 1 - np.prod(1 - scaled) == pytest.approx(0.22)
    two = twin._broadcast_error(level_inputs(broadcast_union_error=0.22), np.array([True, True, False]))
    assert 1 - np.prod(1 - two[:2]) == pytest.approx(0.22)
    lossless = level_inputs(broadcast_block_error=0.4, broadcast_union_error=0.0)
    assert (twin._broadcast_error(lossless, np.ones(3, bool)) == 0).all()


def test_steps_fall_with_margin_and_deviation_of_the_snr():
    """The margin shifts thresholds, and an MCS is chosen per draw from the SNR of the draw."""
    numerology = grid_numerology()
    steps = link_steps(numerology)
    threshold_db = steps.threshold_db[12]
    airtimes = {}
    for margin_db in (0.0, 2.0):
        for snr_db in (threshold_db + 1e-6, threshold_db - 1e-6):
            links = Links(np.full((1, NUM_SUBCHANNELS), snr_db + margin_db), 0, 0, margin_db, 0.0)
            inputs = level_inputs(1, uplink=links, uplink_bytes=10 * 6 * int(steps.room_bytes[12]) - 4)
            air_s = predict_round(inputs, num_draws=1).airtime_s["uplink"][0]
            airtimes[margin_db, snr_db > threshold_db] = air_s / inputs.timing.slot_s
    assert airtimes[0.0, True] == pytest.approx(10)
    assert airtimes[2.0, True] == pytest.approx(10)
    assert airtimes[0.0, False] > 10.5
    certain = predict_round(level_inputs(1, uplink_bytes=15_000), num_draws=400).airtime_s["uplink"]
    unsure = Links(np.full((1, NUM_SUBCHANNELS), 16.0), 4.0, 3.0, 1.0, 0.1, 0.05)
    varied_inputs = level_inputs(1, uplink=unsure, uplink_bytes=15_000)
    varied = predict_round(varied_inputs, num_draws=400).airtime_s["uplink"]
    assert varied.std() > 2 * certain.std()


# ------------------------------------------------------------------- deadline, cut moves, paper
def test_a_stream_that_misses_the_deadline_ends_there():
    links = Links(np.full((3, NUM_SUBCHANNELS), -30.0), 0, 0, 0, 0.9)
    inputs = level_inputs(uplink=links, uplink_bytes=60_000, deadline_s=0.3)
    predicted = predict_round(inputs, num_draws=20)
    assert predicted.missed.all()
    frame_s = inputs.timing.slot_s * inputs.timing.slots_per_frame
    end_s = (
        predicted.phases_s["sounding"] + predicted.phases_s["client-forward"] + predicted.phases_s["uplink"]
    )
    assert (end_s > 0.3).all()
    assert (end_s < 0.3 + 2 * frame_s).all()
    assert np.allclose(sum(predicted.phases_s.values()), predicted.latency_s)


@pytest.mark.parametrize("deeper", [True, False])
def test_a_cut_move_costs_its_bytes_and_a_sounding(deeper):
    inputs = level_inputs()
    small = predict_cut_move(inputs, 2_000, deeper, 200)
    large = predict_cut_move(inputs, 40_000, deeper, 200)
    assert (large.latency_s > small.latency_s).all()
    assert not large.missed.any()
    assert large.round_s.low <= large.round_s.mean <= large.round_s.high
    sounding_s = predict_round(inputs, 1).phases_s["sounding"][0]
    shortest_s = 40_000 / (NUM_SUBCHANNELS * inputs.steps.room_bytes.max()) * inputs.timing.slot_s
    assert (large.latency_s > sounding_s + shortest_s).all()
    # Deeper, one transmitter sends to all at once; shallower, each client its own copy.
    assert (large.airtime_s["cut-move"] > (1 if deeper else 3) * shortest_s).all()


def test_the_papers_formula_in_the_tiles_of_a_round():
    rng = np.random.default_rng(9)
    problem = small_problem(rng, 3, 8)
    owner, psd = np.array([0, 1, 2, 0, 1, 2, 0, 1]), rng.uniform(0.01, 1.0, 8)
    for model in RateModel:
        expected_s, phases = latency.evaluate(problem, 2, owner, psd, model)
        predicted = predict_formula(problem, 2, owner, psd, model)
        assert predicted.model == "paper"
        assert tuple(predicted.phases_s) == ROUND_PHASES
        assert predicted.latency_s[0] == pytest.approx(expected_s)
        assert sum(tile[0] for tile in predicted.phases_s.values()) == pytest.approx(expected_s)
        first = predicted.phases_s["client-forward"] + predicted.phases_s["uplink"]
        assert first[0] == pytest.approx(phases["uplink_s"])
        assert predicted.phases_s["control"] == predicted.phases_s["sounding"] == 0
        assert predicted.airtime_s["uplink"][0] >= predicted.phases_s["uplink"][0]
        record = predicted.record()
        assert record["round_s"]["low"] == record["round_s"]["high"] == pytest.approx(expected_s)
        assert set(record["airtime_s"]) == set(STREAMS)


# ------------------------------------------------------------------------------------- inputs
@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("assignment", np.full(6, UNUSED), "assignment"),
        ("assignment", np.array([0, 1, 2, 3, 0, 0]), "assignment[3]"),
        ("assignment", np.zeros(5), "assignment"),
        ("uplink_bytes", [1, 2], "uplink_bytes"),
        ("uplink_bytes", 1.5, "uplink_bytes"),
        ("unicast_bytes", [1, -2, 1], "unicast_bytes[1]"),
        ("broadcast_bytes", -1, "broadcast_bytes"),
        ("plan_ns", 1.5, "plan_ns"),
        ("plan_ns", -1, "plan_ns"),
        ("broadcast_block_error", 1.5, "broadcast_block_error"),
        ("broadcast_union_error", np.nan, "broadcast_union_error"),
        ("num_sounders", 0, "num_sounders"),
        ("deadline_s", 0.0, "deadline_s"),
        ("uplink", Links(np.zeros((3, 6)), block_error=[0.1, 0.1, 2.0]), "uplink.block_error[2]"),
        ("uplink", Links(np.zeros((3, 6)), overdispersion=1.1), "uplink.overdispersion"),
        ("downlink", Links(np.zeros((2, 6))), "downlink.snr_db"),
        ("downlink", Links(np.full((3, 6), np.inf)), "downlink.snr_db[0][0]"),
        ("downlink", Links(np.zeros((3, 6)), common_deviation_db=-1.0), "downlink.common_deviation_db"),
        ("client_forward", ComputeTime([1e-3, np.nan, 1e-3]), "client_forward.mean_s[1]"),
        ("server_forward", ComputeTime([1e-3, 1e-3]), "server_forward.mean_s"),
    ],
)
def test_an_input_at_fault_is_named(field, value, named):
    with pytest.raises(PredictionError) as caught:
        predict_round(level_inputs(**{field: value}), num_draws=1)
    assert caught.value.field.startswith(named)


def test_a_table_or_timing_at_fault_is_named():
    for threshold_db, room_bytes, named in (
        ([], [], "threshold_db"),
        ([1.0, 0.0], [10, 20], "threshold_db"),
        ([0.0, 1.0], [0, 20], "room_bytes"),
        ([0.0, 1.0], [10], "room_bytes"),
    ):
        with pytest.raises(PredictionError) as caught:
            McsSteps(np.array(threshold_db), np.array(room_bytes))
        assert caught.value.field.startswith(named)
    for field, value in (("slot_samples", 0), ("sample_rate_hz", -1.0), ("ack_delay_ns", -1)):
        with pytest.raises(PredictionError) as caught:
            dataclasses.replace(timing_of(grid_numerology()), **{field: value})
        assert caught.value.field == field
    with pytest.raises(PredictionError):
        predict_round(level_inputs(), num_draws=0)
    with pytest.raises(PredictionError):
        predict_cut_move(level_inputs(), 0, True)
