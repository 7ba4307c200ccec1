"""The latency formula: against the rules written out again, and facts that follow from it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from testbed import latency
from testbed.allocator.instances import generate_instance
from testbed.allocator.problem import AllocationError, Problem, RateModel
from tests.testbed.allocation_rules import INSTANCES, judge, load, small_problem


def random_decision(rng, instance):
    """Owners at random, each client with one at least, power within all limits."""
    clients, subchannels = instance["C"], instance["M"]
    owner = rng.integers(-1, clients, subchannels)
    owner[rng.permutation(subchannels)[:clients]] = np.arange(clients)
    width = np.array(instance["bandwidth"])
    share = rng.uniform(0.1, 1.0, subchannels) * (owner >= 0)
    share /= share.sum()
    limit = min(instance["p_th"], min(instance["p_max"]))
    return owner, share * limit / width


@pytest.mark.parametrize("model", ["shannon", "mcs"])
@pytest.mark.parametrize("name", INSTANCES)
def test_agrees_with_the_rules(name, model):
    instance = load(name)
    problem = Problem.from_instance(instance)
    rng = np.random.default_rng(1)
    finite = 0
    for _ in range(40):
        owner, psd = random_decision(rng, instance)
        cut = int(rng.integers(1, instance["L"]))
        decision = {
            "cut": cut,
            "assignment": [int(o) if o >= 0 else None for o in owner],
            "psd": [float(p) for p in psd],
        }
        expected, broken = judge(instance, decision, model)
        predicted, phases = latency.evaluate(problem, cut, owner, psd, RateModel(model))
        assert not broken
        assert latency.violations(problem, owner, psd) == []
        assert sum(phases.values()) == pytest.approx(predicted, rel=1e-14)
        assert predicted == pytest.approx(expected, rel=1e-12)
        finite += math.isfinite(expected)
    assert finite > 10


def test_a_power_on_the_threshold_gets_the_step():
    """A PSD that was divided out of the threshold meets it, whatever the rounding."""
    rng = np.random.default_rng(2)
    problem = small_problem(rng, 2, 4)
    for step, snr in enumerate(problem.mcs_snr):
        quality = rng.uniform(0.1, 10.0, 1000)
        reached = latency.spectral_efficiency(problem, snr / quality * quality, RateModel.MCS)
        assert (reached == problem.mcs_efficiency[step]).all()
        below = latency.spectral_efficiency(problem, snr * 0.999, RateModel.MCS)
        assert below == (problem.mcs_efficiency[step - 1] if step else 0.0)


def test_dominated_steps_change_nothing():
    rng = np.random.default_rng(3)
    clean = small_problem(rng, 2, 4)
    clumsy = small_problem(
        np.random.default_rng(3), 2, 4,
        mcs_efficiency=[3.0, 0.3, 1.0, 0.9, 2.2, 0.0, 3.0], mcs_snr=[10.0, 0.3, 1.2, 2.0, 4.5, 0.1, 20.0],
    )  # fmt: skip
    snr = 10 ** rng.uniform(-2, 3, 500)
    ours = latency.spectral_efficiency(clumsy, snr, RateModel.MCS)
    assert (ours == latency.spectral_efficiency(clean, snr, RateModel.MCS)).all()


def test_a_modems_broadcast_is_never_faster_than_the_papers():
    """sum_k min_i <= min_i sum_k, with equality for a single client."""
    for seed in range(20):
        for clients in (1, 3):
            rates = np.random.default_rng(seed).uniform(0, 1, (clients, 6))
            whole = small_problem(np.random.default_rng(seed), clients, 6, broadcast="whole-band")
            split = small_problem(np.random.default_rng(seed), clients, 6, broadcast="per-subchannel")
            slower = latency.broadcast_rate(split, rates)
            faster = latency.broadcast_rate(whole, rates)
            assert slower == pytest.approx(faster) if clients == 1 else slower < faster


def test_without_aggregation_nothing_is_broadcast_and_with_all_nothing_is_unicast():
    rng = np.random.default_rng(4)
    for ratio, absent in ((0.0, "broadcast"), (1.0, "unicast")):
        problem = small_problem(rng, 3, 6, aggregation_ratio=ratio)
        terms = latency.cut_terms(problem, 2, 1.0)
        assert (terms.broadcast_s == 0) == (absent == "broadcast")
        assert (terms.unicast_bits == 0).all() == (absent == "unicast")


def test_unequal_batches_merge_the_slots_that_exist():
    problem = small_problem(np.random.default_rng(5), 3, 6, batch_size=[10, 4, 7], aggregation_ratio=0.5)
    terms = latency.cut_terms(problem, 1, 1.0)
    assert problem.num_aggregated == 5
    assert (terms.unicast_bits == np.array([5, 0, 2]) * problem.gradient_bits[1]).all()
    backward = problem.backward_flops
    items = 5 + 5 + 0 + 2
    expected = items * (backward[-2] - backward[1]) + 21 * (backward[-1] - backward[-2])
    assert terms.server_backward_s == pytest.approx(expected / problem.server_flops_per_s)


def test_rounding_does_not_add_a_slot():
    assert (
        small_problem(np.random.default_rng(6), 1, 1, batch_size=[30], aggregation_ratio=0.1).num_aggregated
        == 3
    )
    assert 0.1 * 30 > 3 or 0.1 * 3 * 10 > 3  # the trap is there


def test_more_power_never_hurts():
    rng = np.random.default_rng(7)
    problem = small_problem(rng, 3, 8)
    owner = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    psd = rng.uniform(0.01, 1.0, 8)
    for model in RateModel:
        before, _ = latency.evaluate(problem, 2, owner, psd, model)
        for k in range(8):
            louder = psd.copy()
            louder[k] *= 2
            assert latency.evaluate(problem, 2, owner, louder, model)[0] <= before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("smashed_bits", [1.0, 2.0]),
        ("gradient_bits", [1.0, math.nan, 1.0, 1.0, 1.0]),
        ("forward_flops", [0.0, 2.0, 1.0, 3.0, 4.0]),
        ("batch_size", [4, 4, 2.5]),
        ("batch_size", [4, 4, 0]),
        ("batch_size", []),
        ("aggregation_ratio", 1.5),
        ("client_flops_per_s", [1.0, 1.0, 0.0]),
        ("server_flops_per_s", math.inf),
        ("bandwidth_hz", [1.0, 1.0]),
        ("uplink_snr_per_psd", [[1.0] * 6, [1.0] * 6, [1.0] * 5]),
        ("downlink_snr_per_psd", [[1.0] * 6, [-1.0] * 6, [1.0] * 6]),
        ("downlink_psd_w_per_hz", "loud"),
        ("max_power_w", [1.0, -1.0, 1.0]),
        ("total_power_w", 0.0),
        ("mcs_efficiency", [1.0]),
        ("broadcast", "sometimes"),
        ("cuts", (0,)),
        ("cuts", ()),
    ],
)
def test_an_input_at_fault_is_named(field, value):
    with pytest.raises(AllocationError) as caught:
        small_problem(np.random.default_rng(8), 3, 6, **{field: value})
    related = {"mcs_efficiency": "mcs_snr"}  # a table's two columns must agree
    assert caught.value.field.startswith((field, related.get(field, field)))


@pytest.mark.parametrize(
    "field",
    sorted(set(load("c3m8_s100")) - {"reference", "name", "seed", "net", "layer_names", "distance", "los"}),
)
def test_an_instance_at_fault_is_named(field):
    for wrong in (None, "x", math.nan, [[]], -1):
        instance = load("c3m8_s100")
        instance[field] = wrong
        with pytest.raises(AllocationError) as caught:
            Problem.from_instance(instance)
        # Sizes are checked against what they size.
        assert caught.value.field.split("[")[0] == field or field in "CML"
    del instance[field]
    with pytest.raises(AllocationError, match=r"missing|needed"):
        Problem.from_instance(instance)


def test_generated_instances_resemble_the_scenario():
    """Layer tables are ResNet-18's; gains span what the cell does; the same seed is the same instance."""
    shipped = load("c5m20_s100")
    losses = []
    for seed in range(40):
        instance = generate_instance("c5m20", seed)
        assert instance == generate_instance("c5m20", seed)
        for table in ("rho", "omega", "psi", "chi"):
            if instance["net"] == shipped["net"]:
                assert instance[table] == pytest.approx(shipped[table], rel=1e-12)
        for name in ("b", "f_s", "kappa", "kappa_s", "bandwidth", "G", "sigma2", "p_max", "p_th", "p_dl"):
            assert instance[name] == pytest.approx(shipped[name], rel=1e-9)
        losses += [-10 * math.log10(np.mean(row)) for row in instance["gain"]]
        Problem.from_instance(instance)
    assert 60 < min(losses) < 105
    assert 125 < max(losses) < 140
    with pytest.raises(AllocationError):
        generate_instance("c5m4", 0)
    with pytest.raises(AllocationError):
        generate_instance("big", 0)
