"""Power, bound and search against exhaustive search, and symmetries of the problem."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed import latency
from testbed.allocator import jit
from testbed.allocator.api import allocate
from testbed.allocator.instances import generate_instance
from testbed.allocator.power import optimal_power
from testbed.allocator.problem import Problem, RateModel
from tests.testbed.allocation_rules import INSTANCES, assignments, load, small_problem

MODELS = [model.value for model in RateModel]


def terms_of(problem: Problem, cut: int, model: RateModel):
    down_bps = latency.downlink_rates(problem, model)
    return latency.cut_terms(problem, cut, latency.broadcast_rate(problem, down_bps)), down_bps


def best_by_exhaustion(problem: Problem, model: RateModel) -> float:
    """The least latency over all cuts, assignments and (Shannon) optimal or (MCS) all powers."""
    best = math.inf
    for cut in problem.allowed_cuts:
        terms, down_bps = terms_of(problem, cut, model)
        for owners in assignments(problem.num_clients, problem.num_subchannels):
            if model is RateModel.SHANNON:
                powers = [optimal_power(problem, owners, terms.forward_s, terms.uplink_bits, model)[1]]
                for psd in powers:
                    reached, _ = latency.assigned_latency(problem, terms, down_bps, owners, psd, model)
                    best = min(best, reached)
                continue
            best = min(best, best_levels(problem, terms, down_bps, owners))
    return best


def best_levels(problem: Problem, terms, down_bps, owners) -> float:
    """The least latency over every combination of MCS levels for one assignment."""
    efficiency, snr, _ = problem.mcs_levels
    count, levels = len(owners), len(efficiency)
    grid = np.array(list(itertools.product(range(levels), repeat=count)))
    columns = np.arange(count)
    quality = problem.uplink_snr_per_psd[owners, columns]
    watts = snr[grid] / quality * problem.bandwidth_hz
    rates = efficiency[grid] * problem.bandwidth_hz
    up, kept = np.zeros(len(grid)), watts.sum(axis=1) <= problem.total_power_w
    down = []
    for i in range(problem.num_clients):
        own = owners == i
        kept &= watts[:, own].sum(axis=1) <= problem.max_power_w[i]
        with np.errstate(divide="ignore"):
            sent = terms.uplink_bits[i] / rates[:, own].sum(axis=1) if terms.uplink_bits[i] else 0.0
        up = np.maximum(up, terms.forward_s[i] + sent)
        bits, bps = terms.unicast_bits[i], down_bps[i, own].sum()
        down.append(terms.backward_s[i] + (0.0 if bits == 0 else bits / bps if bps else math.inf))
    return float(np.where(kept, up, math.inf).min() + terms.constant_s + max(down))


@pytest.mark.parametrize("model", MODELS)
def test_the_bound_holds_and_the_search_finds_the_optimum(model):
    """All assignments of 2-3 clients to 4-5 subchannels, all levels: bound <= optimum <= plan."""
    rng = np.random.default_rng(31)
    excess, gaps = [], []
    for _ in range(12):
        clients = int(rng.integers(2, 4))
        subchannels = 5 if model == "shannon" else 4
        problem = small_problem(rng, clients, subchannels, cuts=(1, 3))
        optimum = best_by_exhaustion(problem, RateModel(model))
        plan = allocate(problem, "fast", model)
        assert plan.lower_bound_s <= optimum * (1 + 1e-9)
        assert plan.latency_s >= optimum * (1 - 1e-9)
        excess.append(plan.latency_s / optimum - 1)
        gaps.append(plan.gap)
    assert np.median(excess) < 1e-6
    assert max(excess) < 0.02
    assert max(gaps) < 0.5  # tiny problems have large integrality gaps; the bound is still about something


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", INSTANCES)
def test_nothing_known_is_better_than_the_bound(name, model):
    instance = load(name)
    reference = instance["reference"][model]
    plan = allocate(Problem.from_instance(instance), "fast", model)
    assert plan.lower_bound_s <= reference["best_known"]
    assert plan.latency_s >= reference["lower_bound"]
    assert plan.latency_s <= reference["best_known"] * 1.005
    assert plan.gap < 0.02


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("family", ["c1m1", "c1m8", "c4m4", "c10m64"])
def test_gaps_are_small_at_other_sizes(family, model):
    gaps = [
        allocate(Problem.from_instance(generate_instance(family, seed)), "fast", model).gap
        for seed in range(4)
    ]
    assert np.median(gaps) < {"c1m1": 0.05, "c1m8": 0.02, "c4m4": 0.5, "c10m64": 0.015}[family]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), model=st.sampled_from(MODELS))
def test_no_decision_beats_the_bound(seed, model):
    """Random owners with random powers, and what the other methods do."""
    rng = np.random.default_rng(seed)
    clients = int(rng.integers(1, 5))
    problem = small_problem(rng, clients, clients + int(rng.integers(0, 8)))
    bound = allocate(problem, "fast", model, iterations=1).lower_bound_s
    for method in ("balanced", "bcd", "random"):
        assert bound <= allocate(problem, method, model, rng=rng).latency_s
    for _ in range(20):
        owners = rng.integers(0, clients, problem.num_subchannels)
        psd = rng.exponential(1.0, problem.num_subchannels)
        spent = np.bincount(owners, weights=psd * problem.bandwidth_hz, minlength=clients)
        psd *= min(1.0, problem.total_power_w / spent.sum()) * min(
            1.0, (problem.max_power_w / np.maximum(spent, 1e-9)).min()
        )
        cut = int(rng.choice(problem.allowed_cuts))
        assert bound <= latency.evaluate(problem, cut, owners, psd, RateModel(model))[0]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_shannon_power_is_optimal(seed):
    """All clients end together or at their own limit, and no shift of power ends them sooner."""
    rng = np.random.default_rng(seed)
    problem = small_problem(rng, 3, 9)
    owners = np.array([0, 1, 2] * 3)
    terms, down_bps = terms_of(problem, 1, RateModel.SHANNON)
    arguments = problem, owners, terms.forward_s, terms.uplink_bits, RateModel.SHANNON
    deadline, psd = optimal_power(*arguments)
    assert latency.violations(problem, owners, psd) == []
    up, _ = latency.assigned_times(problem, terms, down_bps, owners, psd, RateModel.SHANNON)
    assert up.max() == pytest.approx(deadline, rel=1e-9)
    watts = psd * problem.bandwidth_hz
    spent = np.bincount(owners, weights=watts)
    at_limit = spent > problem.max_power_w * (1 - 1e-6)
    last = up > deadline * (1 - 1e-6)
    assert at_limit[last].any() or spent.sum() == pytest.approx(problem.total_power_w, rel=1e-6)
    for i in range(3):  # water level: equal where in use, not above the floor elsewhere
        own = owners == i
        floor = 1 / problem.uplink_snr_per_psd[i, own]
        level = (psd[own] + floor)[psd[own] > 0]
        assert np.ptp(level) <= 1e-9 * level.max()
        assert (floor[psd[own] == 0] >= level.min() * (1 - 1e-9)).all()
    for _ in range(20):
        other = np.maximum(0.0, psd * (1 + 0.1 * rng.standard_normal(9)) + 0.01 * rng.random(9))
        spent = np.bincount(owners, weights=other * problem.bandwidth_hz)
        other *= np.minimum(1.0, problem.max_power_w / spent)[owners]
        other *= min(1.0, problem.total_power_w / (other * problem.bandwidth_hz).sum())
        later, _ = latency.assigned_times(problem, terms, down_bps, owners, other, RateModel.SHANNON)
        assert later.max() >= deadline * (1 - 1e-9)


def test_mcs_loading_is_close_to_exhaustive_loading():
    """Within the last step of a knapsack, and in most cases exact."""
    rng = np.random.default_rng(41)
    excess = []
    for _ in range(60):
        problem = small_problem(rng, 2, 5, aggregation_ratio=1.0)
        owners = rng.permutation([0, 0, 1, 1, 1])
        terms, down_bps = terms_of(problem, 1, RateModel.MCS)
        _, psd = optimal_power(problem, owners, terms.forward_s, terms.uplink_bits, RateModel.MCS)
        assert latency.violations(problem, owners, psd) == []
        reached, _ = latency.assigned_latency(problem, terms, down_bps, owners, psd, RateModel.MCS)
        excess.append(reached / best_levels(problem, terms, down_bps, owners) - 1)
    assert min(excess) > -1e-9
    assert np.mean(np.array(excess) < 1e-9) > 0.7
    assert max(excess) < 0.15


def scaled(problem: Problem, s: float) -> Problem:
    """The same scenario in s times the bandwidth: power x s, compute time x 1/s; PSD and SNR stay."""
    return dataclasses.replace(
        problem,
        bandwidth_hz=problem.bandwidth_hz * s,
        max_power_w=problem.max_power_w * s,
        total_power_w=problem.total_power_w * s,
        client_flops_per_s=problem.client_flops_per_s * s,
        server_flops_per_s=problem.server_flops_per_s * s,
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("s", [1 / 64, 20e6 / 200e6, 8.0])
def test_a_scaled_scenario_has_the_same_plan(s, model):
    for seed in range(3):
        problem = Problem.from_instance(generate_instance("c5m20", seed))
        plan, other = (allocate(p, "fast", model) for p in (problem, scaled(problem, s)))
        assert other.cut_layer == plan.cut_layer
        assert other.latency_s * s == pytest.approx(plan.latency_s, rel=1e-4)
        assert other.lower_bound_s * s == pytest.approx(plan.lower_bound_s, rel=1e-4)
        # Payload x s says the same as compute x 1/s, with all times divided by 1/s.
        if s == 1 / 64:  # a power of two: not a bit differs
            assert (other.assignment == plan.assignment).all()
            assert other.psd_w_per_hz == pytest.approx(plan.psd_w_per_hz, rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_the_bound_does_not_depend_on_the_order_of_clients(model):
    problem = Problem.from_instance(load("c5m20_s100"))
    order = np.array([3, 0, 4, 2, 1])
    fields = ("client_flops_per_s", "uplink_snr_per_psd", "downlink_snr_per_psd", "max_power_w")
    turned = dataclasses.replace(problem, **{name: getattr(problem, name)[order] for name in fields})
    first, second = (allocate(p, "fast", model).lower_bound_s for p in (problem, turned))
    assert second == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_more_of_anything_helps(model):
    """Twice the power or all SNRs doubled: the optimum is no later, so the bound stays below."""
    problem = Problem.from_instance(load("c3m8_s101"))
    before = allocate(problem, "fast", model)
    for better in (
        dataclasses.replace(problem, total_power_w=2 * problem.total_power_w),
        dataclasses.replace(problem, max_power_w=2 * problem.max_power_w),
        dataclasses.replace(problem, uplink_snr_per_psd=2 * problem.uplink_snr_per_psd),
    ):
        assert allocate(better, "fast", model).lower_bound_s <= before.latency_s
        assert allocate(better, "fast", model).latency_s <= before.latency_s * 1.005


def test_more_iterations_are_no_worse():
    problem = Problem.from_instance(generate_instance("c10m64", 1))
    reached = [allocate(problem, "fast", "shannon", iterations=n).latency_s for n in (1, 10, 80)]
    assert reached == sorted(reached, reverse=True)


def test_kernels_lie_in_a_cache_of_their_own(monkeypatch, tmp_path):
    """The key changes with any source of the package; other packages' setting is left alone."""
    assert jit.cache_directory().name.startswith("allocator-")
    before = numba.config.CACHE_DIR
    jit.kernel(lambda x: x)
    assert before == numba.config.CACHE_DIR
    package = tmp_path / "allocator"
    package.mkdir()
    for name, text in (("jit.py", "a = 1\n"), ("power.py", "b = 1\n")):
        (package / name).write_text(text)
    monkeypatch.setattr(jit, "__file__", str(package / "jit.py"))
    first = jit._source_hash()
    (package / "power.py").write_text("b = 2\n")
    assert jit._source_hash() != first
