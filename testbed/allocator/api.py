"""One door to all methods: :func:`allocate`.

Every plan that comes out is valid: one owner per subchannel, at least one subchannel per client,
power limits kept, a rate wherever bits must flow.  A method whose own answer leaves a client without
a rate is repaired by optimal power, then by balanced turns; the plan's `notes` say so.  Where no
method finds a way, :class:`InfeasibleError` names the client's channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from testbed import latency
from testbed.allocator import baselines, fast
from testbed.allocator.instances import generate_instance
from testbed.allocator.power import optimal_power
from testbed.allocator.problem import (
    AllocationError,
    FloatArray,
    InfeasibleError,
    IntArray,
    Plan,
    Problem,
    RateModel,
)

DEFAULT_SEED = 0  # for methods that draw, when no generator is passed in
DEFAULT_BCD_SWEEPS = 50
UNLIMITED_KICKS = 10**9  # a time limit ends the search instead


@dataclass(frozen=True, eq=False)
class _Round:
    """What all methods share for one problem."""

    problem: Problem
    rate_model: RateModel
    cuts: tuple[int, ...]
    down_bps: FloatArray
    terms: dict[int, latency.CutTerms]
    rng: np.random.Generator
    iterations: int | None
    time_limit_s: float | None


@dataclass(frozen=True, eq=False)
class _Draft:
    """A method's answer before it is checked."""

    cut: int
    assignment: IntArray
    psd: FloatArray
    lower_bound_s: float | None = None
    runner_up: tuple[int, float] | None = None
    runner_up_is_bound: bool = False
    notes: tuple[str, ...] = ()


def _best_cut(job: _Round, assign: Callable[[latency.CutTerms], IntArray], *, optimise_power: bool) -> _Draft:
    """Return the best cut's draft, with an assignment made for each cut."""
    drafts: list[tuple[float, _Draft]] = []
    for cut in job.cuts:
        terms = job.terms[cut]
        assignment = assign(terms)
        if optimise_power:
            psd = _power(job, cut, assignment)
        else:
            psd = baselines.uniform_psd(job.problem, assignment)
        reached, _ = latency.assigned_latency(
            job.problem, terms, job.down_bps, assignment, psd, job.rate_model
        )
        drafts.append((reached, _Draft(cut, assignment, psd)))
    drafts.sort(key=lambda pair: pair[0])
    best = drafts[0][1]
    runner_up = (drafts[1][1].cut, drafts[1][0]) if len(drafts) > 1 else None
    return _Draft(best.cut, best.assignment, best.psd, runner_up=runner_up)


def _power(job: _Round, cut: int, assignment: IntArray) -> FloatArray:
    terms = job.terms[cut]
    return optimal_power(job.problem, assignment, terms.forward_s, terms.uplink_bits, job.rate_model)[1]


def _balanced(job: _Round) -> _Draft:
    rates = baselines.uniform_rates(job.problem, job.rate_model)
    return _best_cut(
        job,
        lambda terms: baselines.balanced_turns(job.problem, terms, rates, job.down_bps),
        optimise_power=True,
    )


def _round_robin(job: _Round) -> _Draft:
    assignment = baselines.assign_round_robin(job.problem)
    return _best_cut(job, lambda terms: assignment, optimise_power=False)


def _rss(job: _Round) -> _Draft:
    assignment = baselines.assign_best_receiver(job.problem)
    return _best_cut(job, lambda terms: assignment, optimise_power=False)


def _random_cut(job: _Round) -> int:
    return job.cuts[int(job.rng.integers(len(job.cuts)))]


def _random(job: _Round) -> _Draft:
    assignment = baselines.assign_random(job.problem, job.rng)
    return _Draft(_random_cut(job), assignment, baselines.uniform_psd(job.problem, assignment))


def _descend(job: _Round, cuts: tuple[int, ...]) -> _Draft:
    cut, assignment, psd = baselines.block_coordinate_descent(
        job.problem,
        {cut: job.terms[cut] for cut in cuts},
        job.down_bps,
        job.rate_model,
        job.rng,
        job.iterations or DEFAULT_BCD_SWEEPS,
    )
    return _Draft(cut, assignment, psd)


def _bcd(job: _Round) -> _Draft:
    return _descend(job, job.cuts)


def _baseline_a(job: _Round) -> _Draft:
    assignment = baselines.assign_best_receiver(job.problem)
    return _Draft(_random_cut(job), assignment, baselines.uniform_psd(job.problem, assignment))


def _baseline_b(job: _Round) -> _Draft:
    return _descend(job, (_random_cut(job),))


def _baseline_c(job: _Round) -> _Draft:
    assignment = baselines.assign_best_receiver(job.problem)
    return _best_cut(job, lambda terms: assignment, optimise_power=True)


def _baseline_d(job: _Round) -> _Draft:
    rates = baselines.uniform_rates(job.problem, job.rate_model)
    return _best_cut(
        job,
        lambda terms: baselines.balanced_turns(job.problem, terms, rates, job.down_bps),
        optimise_power=False,
    )


def _fast(job: _Round) -> _Draft:
    kicks = job.iterations
    if job.time_limit_s is not None and kicks is None:
        kicks = UNLIMITED_KICKS
    found = fast.solve(
        job.problem,
        job.rate_model,
        job.terms,
        job.down_bps,
        kicks=kicks,
        seed=int(job.rng.integers(1, 2**31)),
        time_limit_s=job.time_limit_s,
    )
    runner_up: tuple[int, float] | None = None
    is_bound = False
    others = {cut: outcome for cut, outcome in found.outcomes.items() if cut != found.cut}
    if others:
        # A cut that was ruled out has a bound only, which is at least the plan's latency.
        cut = min(others, key=lambda other: max(others[other].latency_s, others[other].lower_bound_s))
        is_bound = not math.isfinite(others[cut].latency_s) or not others[cut].searched
        runner_up = (cut, others[cut].lower_bound_s if is_bound else others[cut].latency_s)
    return _Draft(
        found.cut,
        found.assignment,
        found.psd,
        lower_bound_s=found.lower_bound_s,
        runner_up=runner_up,
        runner_up_is_bound=is_bound,
    )


_METHODS: dict[str, Callable[[_Round], _Draft]] = {
    "fast": _fast,
    "balanced": _balanced,
    "bcd": _bcd,
    "round-robin": _round_robin,
    "rss": _rss,
    "random": _random,
    "baseline-a": _baseline_a,
    "baseline-b": _baseline_b,
    "baseline-c": _baseline_c,
    "baseline-d": _baseline_d,
}

METHODS: dict[str, str] = {
    "fast": "dual bound per cut, rounding, optimal power and local search; says how far from optimal",
    "balanced": "next-best subchannel to the straggler in turn, optimal power, best cut",
    "bcd": "the paper's block coordinate descent from one random start (reconstructed)",
    "round-robin": "subchannels dealt out in turn, uniform PSD, best cut",
    "rss": "subchannel to the best receiver, uniform PSD, best cut",
    "random": "random subchannels, uniform PSD, random cut",
    "baseline-a": "the paper's a (reconstructed): best receiver, uniform PSD, random cut",
    "baseline-b": "the paper's b (reconstructed): random cut, the rest by block coordinate descent",
    "baseline-c": "the paper's c (reconstructed): best receiver, optimal power, best cut",
    "baseline-d": "the paper's d (reconstructed): uniform PSD, subchannels in turn, best cut",
}


def _check_reachable(job: _Round) -> None:
    """Raise `InfeasibleError` if a client's bits cannot flow whatever the others do."""
    problem, cuts = job.problem, job.cuts
    # All of a client's power on its best subchannel is the most any one SNR can be.
    snr = problem.uplink_snr_per_psd * (problem.max_power_w[:, None] / problem.bandwidth_hz)
    up = latency.spectral_efficiency(problem, snr, job.rate_model).max(axis=1) > 0
    down = job.down_bps.max(axis=1) > 0
    for cut in cuts:
        terms = job.terms[cut]
        need_up, need_down = terms.uplink_bits > 0, terms.unicast_bits > 0
        if math.isfinite(terms.broadcast_s) and (up | ~need_up).all() and (down | ~need_down).all():
            return
    for client in range(problem.num_clients):
        if not up[client]:
            raise InfeasibleError(
                f"uplink_snr_per_psd[{client}]", "no subchannel carries a bit at full power"
            )
        if not down[client]:
            raise InfeasibleError(
                f"downlink_snr_per_psd[{client}]", "no subchannel carries a bit at the server's PSD"
            )
    raise InfeasibleError("downlink_snr_per_psd", "no cut whose broadcast every client can hear")


def _plan(job: _Round, method: str, draft: _Draft) -> Plan:
    reached, phases = latency.evaluate(job.problem, draft.cut, draft.assignment, draft.psd, job.rate_model)
    draft.assignment.flags.writeable = False
    draft.psd.flags.writeable = False
    return Plan(
        cut_layer=draft.cut,
        assignment=draft.assignment,
        psd_w_per_hz=draft.psd,
        latency_s=reached,
        lower_bound_s=draft.lower_bound_s,
        phases=phases,
        method=method,
        binding=latency.explain(
            job.problem,
            draft.cut,
            draft.assignment,
            draft.psd,
            job.rate_model,
            runner_up=draft.runner_up,
            runner_up_is_bound=draft.runner_up_is_bound,
        ),
        notes=draft.notes,
    )


def _repaired(job: _Round, draft: _Draft) -> _Draft:
    """Return the draft, or one whose bits flow where the draft's do not."""

    def flows(candidate: _Draft) -> bool:
        reached, _ = latency.evaluate(
            job.problem, candidate.cut, candidate.assignment, candidate.psd, job.rate_model
        )
        valid = not latency.violations(job.problem, candidate.assignment, candidate.psd)
        return math.isfinite(reached) and valid

    if flows(draft):
        return draft
    powered = _Draft(
        draft.cut,
        draft.assignment,
        _power(job, draft.cut, draft.assignment),
        notes=("a client had no rate at the method's PSD: optimal power instead",),
    )
    if flows(powered):
        return powered
    balanced = _balanced(job)
    if flows(balanced):
        note = "a client had no rate on the method's subchannels: balanced turns instead"
        return _Draft(
            balanced.cut, balanced.assignment, balanced.psd, runner_up=balanced.runner_up, notes=(note,)
        )
    raise InfeasibleError(
        "uplink_snr_per_psd", "no assignment was found on which every client's bits flow within the limits"
    )


def warm_up(
    methods: Sequence[str] = ("fast", "bcd"), rate_models: Sequence[RateModel] = tuple(RateModel)
) -> None:
    """Compile the kernels of some methods, or load them from the cache, by planning a tiny problem.

    The default methods between them use every kernel there is.
    """
    problem = Problem.from_instance(generate_instance("c2m4", 0))
    for rate_model in rate_models:
        for method in methods:
            allocate(problem, method, rate_model, iterations=1)


def allocate(
    problem: Problem,
    method: str,
    rate_model: RateModel | str,
    *,
    rng: np.random.Generator | None = None,
    iterations: int | None = None,
    fixed_cut: int | None = None,
    time_limit_s: float | None = None,
) -> Plan:
    """Return a valid plan for one round.

    Deterministic: the same problem, generator state and `iterations` give the same plan, unless a
    time limit is asked for.

    Parameters
    ----------
    method
        One of :data:`METHODS`.
    rng
        For methods that draw; None is a fixed seed.
    iterations
        Limits the method's outer loop (sweeps of ``bcd``, perturbed starts of ``fast``); None is its
        own default.
    fixed_cut
        Plan for this cut only.
    time_limit_s
        Processor time after which the method stops improving [s].

    Raises
    ------
    AllocationError
        For an unknown method, rate model or cut.
    InfeasibleError
        If no plan is found that carries every client's bits.
    """
    if method not in _METHODS:
        raise AllocationError("method", f"{method!r} is not one of {', '.join(METHODS)}")
    try:
        model = RateModel(rate_model)
    except ValueError as error:
        raise AllocationError("rate_model", f"{rate_model!r} is neither shannon nor mcs") from error
    if fixed_cut is not None and fixed_cut not in problem.allowed_cuts:
        raise AllocationError("fixed_cut", f"{fixed_cut} is not among {list(problem.allowed_cuts)}")
    if iterations is not None and iterations < 1:
        raise AllocationError("iterations", f"{iterations} is not positive")
    if time_limit_s is not None and not time_limit_s >= 0:
        raise AllocationError("time_limit_s", f"{time_limit_s} is negative")
    cuts = problem.allowed_cuts if fixed_cut is None else (fixed_cut,)
    down_bps = latency.downlink_rates(problem, model)
    broadcast_bps = latency.broadcast_rate(problem, down_bps)
    job = _Round(
        problem=problem,
        rate_model=model,
        cuts=cuts,
        down_bps=down_bps,
        terms={cut: latency.cut_terms(problem, cut, broadcast_bps) for cut in cuts},
        rng=np.random.default_rng(DEFAULT_SEED) if rng is None else rng,
        iterations=iterations,
        time_limit_s=time_limit_s,
    )
    _check_reachable(job)
    return _plan(job, method, _repaired(job, _METHODS[method](job)))
