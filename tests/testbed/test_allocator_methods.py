"""Every method, on every kind of input: a valid plan, or an error that names the field."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from testbed import latency
from testbed.allocate_command import allocate_files, generate_file
from testbed.allocator.api import METHODS, allocate
from testbed.allocator.instances import generate_instance
from testbed.allocator.problem import AllocationError, InfeasibleError, Problem, RateModel
from tests.testbed.allocation_rules import INSTANCES, judge, load, small_problem

MODELS = [model.value for model in RateModel]


def assert_in_order(problem: Problem, plan, model: str) -> None:
    """The plan keeps all rules, says its true latency, and its bound does not contradict it."""
    assert latency.violations(problem, plan.assignment, plan.psd_w_per_hz) == []
    assert math.isfinite(plan.latency_s)
    assert plan.latency_s > 0
    again, _ = latency.evaluate(problem, plan.cut_layer, plan.assignment, plan.psd_w_per_hz, RateModel(model))
    assert again == pytest.approx(plan.latency_s, rel=1e-12)
    if plan.lower_bound_s is not None:
        assert plan.lower_bound_s <= plan.latency_s


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_rules(method, model):
    for instance in (*map(load, INSTANCES), generate_instance("c10m64", 3)):
        plan = allocate(Problem.from_instance(instance), method, model)
        decision = json.loads(json.dumps(plan.to_decision()))
        expected, broken = judge(instance, decision, model)
        assert not broken
        assert plan.latency_s == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_question_gets_the_same_answer(method, model):
    problem = Problem.from_instance(load("c5m20_s102"))
    first, second = (allocate(problem, method, model, rng=np.random.default_rng(7)) for _ in range(2))
    assert first.to_decision() == second.to_decision()
    assert first.lower_bound_s == second.lower_bound_s


def test_what_is_known_of_the_methods_order():
    """Over instances: fast beats balanced turns, which beats round robin and best receiver."""
    for model in MODELS:
        mean = {}
        for method in ("fast", "balanced", "round-robin", "rss"):
            plans = [
                allocate(Problem.from_instance(generate_instance("c5m20", seed)), method, model)
                for seed in range(12)
            ]
            mean[method] = np.mean(np.log([plan.latency_s for plan in plans]))
        assert mean["fast"] + 0.01 < mean["balanced"]
        assert mean["balanced"] + 0.05 < min(mean["round-robin"], mean["rss"])


def test_descent_never_ends_worse_with_more_sweeps():
    problem = Problem.from_instance(load("c5m20_s100"))
    for seed in range(5):
        reached = [
            allocate(problem, "bcd", "shannon", rng=np.random.default_rng(seed), iterations=sweeps).latency_s
            for sweeps in (1, 2, 5, 20)
        ]
        assert reached == sorted(reached, reverse=True)


def test_best_receiver_gets_its_subchannels():
    problem = Problem.from_instance(load("c5m20_s100"))
    plan = allocate(problem, "rss", "shannon")
    best = problem.downlink_snr_per_psd.argmax(axis=0)
    owned = np.bincount(plan.assignment, minlength=problem.num_clients)
    # Only clients that are best nowhere may hold another's.
    nowhere = set(range(problem.num_clients)) - set(best)
    given = {int(owner) for owner in plan.assignment[plan.assignment != best]}
    assert given == nowhere
    assert (owned > 0).all()


def test_a_fixed_cut_is_kept_and_never_better():
    problem = Problem.from_instance(load("c5m20_s100"))
    free = allocate(problem, "fast", "shannon")
    for cut in problem.allowed_cuts:
        fixed = allocate(problem, "fast", "shannon", fixed_cut=cut)
        assert fixed.cut_layer == cut
        assert fixed.latency_s >= free.lower_bound_s
    runner_up = free.binding.runner_up_cut
    assert runner_up not in (None, free.cut_layer)
    other = allocate(problem, "fast", "shannon", fixed_cut=runner_up).latency_s
    if free.binding.runner_up_is_bound:
        assert free.binding.runner_up_latency_s <= other
    assert other >= free.latency_s


def test_the_explanation_names_the_stragglers():
    problem = Problem.from_instance(load("c5m20_s102"))
    plan = allocate(problem, "rss", "shannon")
    down_bps = latency.downlink_rates(problem, RateModel.SHANNON)
    terms = latency.cut_terms(problem, plan.cut_layer, latency.broadcast_rate(problem, down_bps))
    up, down = latency.assigned_times(
        problem, terms, down_bps, plan.assignment, plan.psd_w_per_hz, RateModel.SHANNON
    )
    assert plan.binding.uplink_client == up.argmax()
    assert plan.binding.downlink_client == down.argmax()
    assert plan.phases["uplink_s"] == up.max()
    assert plan.binding.uplink_slack_s == pytest.approx(np.diff(np.sort(up))[-1])


def nasty_problem(rng: np.random.Generator) -> Problem:
    """A problem with anything in it that may turn up: dead channels, empty cuts, huge ratios."""
    clients = int(rng.integers(1, 4))
    subchannels = int(rng.integers(clients, 7))
    shape = (clients, subchannels)
    spread = float(rng.choice([0.5, 3.0, 12.0]))

    def quality() -> np.ndarray:
        values = 10 ** rng.uniform(-spread, spread, shape)
        values[rng.random(shape) < rng.choice([0.0, 0.3])] = 0.0
        if rng.random() < 0.02:
            values[rng.integers(clients), rng.integers(subchannels)] = math.nan
        return values

    def per_layer() -> np.ndarray:
        values = rng.uniform(0.0, 1.0, 5) * 10.0 ** rng.uniform(-3, 3)
        values[rng.random(5) < 0.15] = 0.0
        return values

    changes = {
        "forward_flops": np.cumsum(per_layer()),
        "backward_flops": np.cumsum(per_layer()),
        "smashed_bits": per_layer(),
        "gradient_bits": per_layer(),
        "batch_size": rng.integers(1, 5, clients),
        "aggregation_ratio": rng.choice([0.0, 0.3, 1.0, rng.random()]),
        "client_flops_per_s": 10.0 ** rng.uniform(-3, 3, clients),
        "bandwidth_hz": 10.0 ** rng.uniform(-1, 1, subchannels)
        if rng.random() < 0.5
        else np.ones(subchannels),
        "uplink_snr_per_psd": quality(),
        "downlink_snr_per_psd": quality(),
        "max_power_w": 10.0 ** rng.uniform(-3, 3, clients),
        "total_power_w": 10.0 ** rng.uniform(-3, 3),
        "cuts": tuple(rng.integers(1, 4, 2)),
    }
    if rng.random() < 0.02:
        changes[str(rng.choice(["smashed_bits", "max_power_w", "bandwidth_hz"]))] = [1.0, -1.0]
    return small_problem(rng, clients, subchannels, **changes)


def test_nasty_inputs_never_make_an_invalid_plan():
    """20,000 of them; every tenth by the full method, the others by all methods in turn."""
    rng = np.random.default_rng(20260)
    others = [name for name in METHODS if name != "fast"]
    count = {"planned": 0, "infeasible": 0, "refused": 0}
    unnamed = 0
    for number in range(20_000):
        method = "fast" if number % 10 == 0 else others[number % len(others)]
        model = MODELS[int(rng.integers(2))]
        try:
            problem = nasty_problem(rng)
            plan = allocate(problem, method, model, rng=rng, iterations=3)
        except AllocationError as error:
            count["infeasible" if isinstance(error, InfeasibleError) else "refused"] += 1
            unnamed += not error.field
        else:
            assert_in_order(problem, plan, model)
            count["planned"] += 1
    assert unnamed == 0
    assert min(count.values()) > 200, count
    assert count["planned"] > 8_000, count


def test_a_client_that_hears_nothing_is_named():
    rng = np.random.default_rng(9)
    quality = np.ones((3, 6))
    quality[1] = 0.0
    with pytest.raises(InfeasibleError) as caught:
        allocate(small_problem(rng, 3, 6, uplink_snr_per_psd=quality), "fast", "shannon")
    assert caught.value.field == "uplink_snr_per_psd[1]"
    with pytest.raises(InfeasibleError) as caught:
        allocate(small_problem(rng, 3, 6, downlink_snr_per_psd=quality, aggregation_ratio=0.0), "rss", "mcs")
    assert caught.value.field == "downlink_snr_per_psd[1]"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": "magic"}, "method"),
        ({"rate_model": "fibre"}, "rate_model"),
        ({"fixed_cut": 99}, "fixed_cut"),
        ({"iterations": 0}, "iterations"),
        ({"time_limit_s": -1.0}, "time_limit_s"),
    ],
)
def test_a_senseless_request_is_refused(changes, field):
    problem = small_problem(np.random.default_rng(10), 2, 4)
    request = {"method": "fast", "rate_model": "mcs", **changes}
    with pytest.raises(AllocationError) as caught:
        allocate(problem, **request)
    assert caught.value.field == field


def test_a_method_whose_answer_leaves_a_client_mute_is_repaired():
    """At a uniform PSD the weak client reaches no MCS step; the plan says what was done about it."""
    quality = np.full((2, 4), 10.0)
    quality[1] = 0.15
    problem = small_problem(
        np.random.default_rng(11), 2, 4, uplink_snr_per_psd=quality, downlink_snr_per_psd=np.full((2, 4), 10.0),
        max_power_w=[6.0, 6.0], total_power_w=7.0,
    )  # fmt: skip
    plan = allocate(problem, "round-robin", "mcs")
    assert plan.notes
    assert_in_order(problem, plan, "mcs")


def test_files_become_decisions(tmp_path):
    paths = [generate_file("c3m8", seed, tmp_path / "made") for seed in range(2)]
    results = list(allocate_files(paths, "mcs"))
    assert [result["instance"] for result in results] == [str(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        again = json.loads(json.dumps(result))
        expected, broken = judge(json.loads(path.read_text()), again, "mcs")
        assert not broken
        assert again["latency_s"] == pytest.approx(expected, rel=1e-12)
        assert again["lower_bound_s"] <= expected
        assert again["gap"] == pytest.approx(1 - again["lower_bound_s"] / expected)
        assert again["method"] == "fast"
        assert again["cpu_s"] > 0
    (unproven,) = allocate_files(paths[:1], "shannon", method="rss")
    assert unproven["lower_bound_s"] is None
    (quick,) = allocate_files(paths[:1], "shannon", time_limit_s=0.0)
    assert quick["latency_s"] >= quick["lower_bound_s"]


def test_a_file_at_fault_is_named(tmp_path):
    for text, words in (("{", "not JSON"), ("[]", "not a JSON object"), ('{"C": 2}', "M: missing")):
        path = tmp_path / "wrong.json"
        path.write_text(text)
        with pytest.raises(AllocationError, match=words) as caught:
            list(allocate_files([path], "shannon"))
        assert "wrong.json" in str(caught.value)
    with pytest.raises(AllocationError, match="cannot be read"):
        list(allocate_files([tmp_path / "absent.json"], "shannon"))
