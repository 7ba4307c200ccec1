"""The near-optimal method: a dual bound for every cut, and local search in those it can't rule out.

Cuts are taken in order of what balanced turns make of them.  A cut whose bound exceeds the best
latency known is dropped as soon as the bound shows it, mostly after a few Newton steps.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from testbed.allocator import baselines
from testbed.allocator.demand import Levels
from testbed.allocator.dual import (
    BOUND_SAFETY,
    CutData,
    dual_deadlines,
    evaluate_dual,
    maximise_dual,
    reduced_costs,
    round_shares,
)
from testbed.allocator.power import LN2, optimal_power
from testbed.allocator.problem import FloatArray, IntArray, Problem, RateModel
from testbed.allocator.search import enumerate_owners, search
from testbed.latency import CutTerms, assigned_latency

# Smoothing per subchannel, relative to its share of a typical latency.
FIRST_TEMPERATURE = 3e-2
LAST_TEMPERATURE = 3e-4
LAST_TEMPERATURE_SMALL = 1e-4  # where the last stages cost next to nothing
SMALL = 1000  # clients x subchannels
MAX_NEWTON_STEPS = 300
NEWTON_TOLERANCE = 1e-7
GOOD_ENOUGH = 1e-4  # relative gap at which the search rests
# (largest clients x subchannels, perturbed starts): what still pays at that size.
SHANNON_KICKS = ((50, 120), (1_000, 60), (10_000, 160), (math.inf, 50))
MCS_KICKS = ((50, 80), (200, 36), (1_000, 24), (math.inf, 10))
MOST_ENUMERATED = 1000  # assignments; tiny problems are solved by trying all that the bound allows
KICKS_PER_BATCH = 16  # between looks at the clock


@dataclass(frozen=True)
class CutOutcome:
    """What became of one cut.

    Attributes
    ----------
    lower_bound_s
        Valid bound on the latency of any plan with this cut [s].
    latency_s
        The best plan found with it [s]; infinite if none.
    searched
        False if the bound ruled it out.
    """

    lower_bound_s: float
    latency_s: float
    searched: bool


@dataclass(frozen=True, eq=False)
class Solution:
    """The best plan found, with a bound over all cuts."""

    cut: int
    assignment: IntArray
    psd: FloatArray
    latency_s: float
    lower_bound_s: float
    outcomes: dict[int, CutOutcome]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A cut with the plan it starts from."""

    cut: int
    terms: CutTerms
    assignment: IntArray
    psd: FloatArray
    latency_s: float
    uplink_s: float
    downlink_s: float


def default_kicks(num_clients: int, num_subchannels: int, rate_model: RateModel) -> int:
    """Return how many perturbed starts pay at this size."""
    size = num_clients * num_subchannels
    limits = SHANNON_KICKS if rate_model is RateModel.SHANNON else MCS_KICKS
    return next(kicks for largest, kicks in limits if size <= largest)


class _Units:
    """Conversion to the kernels' units: a typical latency, the power limit, the mean bandwidth."""

    def __init__(self, problem: Problem, rate_model: RateModel, down_bps: FloatArray, time_s: float) -> None:
        self.time_s = time_s
        self.psd_w_per_hz = problem.total_power_w / float(problem.bandwidth_hz.mean())
        bandwidth_hz = float(problem.bandwidth_hz.mean())
        self.payload_bits = bandwidth_hz * time_s
        rate_bps = bandwidth_hz
        shannon = rate_model is RateModel.SHANNON
        if shannon:  # in nats
            self.payload_bits /= LN2
            rate_bps /= LN2
        empty, no_levels = np.zeros(0), np.zeros(0, dtype=np.int64)
        if shannon:
            self.levels = Levels(empty, empty, no_levels, empty)
        else:
            efficiency, snr, hull = problem.mcs_levels
            slopes = np.diff(snr[hull]) / np.diff(efficiency[hull])
            self.levels = Levels(efficiency, snr, hull, slopes)
        self.quality = problem.uplink_snr_per_psd * self.psd_w_per_hz
        with np.errstate(divide="ignore"):
            self.log_quality = np.log(self.quality)
        self.down_rate = down_bps / rate_bps
        self.width = problem.bandwidth_hz / bandwidth_hz
        self.max_power = problem.max_power_w / problem.total_power_w

    def data(self, terms: CutTerms) -> CutData:
        """Return the numbers of one cut."""
        return CutData(
            forward=terms.forward_s / self.time_s,
            payload=terms.uplink_bits / self.payload_bits,
            backward=terms.backward_s / self.time_s,
            unicast=terms.unicast_bits / self.payload_bits,
            quality=self.quality,
            log_quality=self.log_quality,
            down_rate=self.down_rate,
            width=self.width,
            max_power=self.max_power,
            level_rate=self.levels.rate[self.levels.hull],
            level_snr=self.levels.snr[self.levels.hull],
        )


def _starting_prices(
    data: CutData, assignment: IntArray, psd: FloatArray, tau1: float, tau2: float
) -> FloatArray:
    """Return prices ``[3 C + 1]`` that would be optimal if the plan at hand were.

    On the client's own subchannels the water level p + 1/h is lambda_i / nu_0, and the prices of the
    deadlines add up to one.
    """
    num_clients = len(data.forward)
    water = np.empty(num_clients)
    for i in range(num_clients):
        own = (assignment == i) & (psd > 0)
        if own.any():
            water[i] = (psd[own] + 1 / data.quality[i, own]).mean()
        else:
            water[i] = 1 / data.width.sum() + 1 / max(data.quality[i].max(), 1e-300)
    pull = data.payload / np.maximum(tau1 - data.forward, 1e-9) ** 2
    total = float((water * pull).sum())
    shared = 1 / total if total > 0 else 1.0
    up = np.where(data.payload > 0, shared * water, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        down = np.maximum(tau2 - data.backward, 1e-9) ** 2 / (data.unicast * num_clients)
    down = np.where(data.unicast > 0, down, 0.0)
    return np.concatenate([up, down, np.full(num_clients, 0.1 * shared), [shared]])


def _candidates(
    problem: Problem, rate_model: RateModel, terms_by_cut: dict[int, CutTerms], down_bps: FloatArray
) -> list[_Candidate]:
    """Return the cuts with their balanced plans, best first."""
    rates = baselines.uniform_rates(problem, rate_model)
    found = []
    for cut, terms in terms_by_cut.items():
        if not math.isfinite(terms.broadcast_s):
            continue
        assignment = baselines.balanced_turns(problem, terms, rates, down_bps)
        _, psd = optimal_power(problem, assignment, terms.forward_s, terms.uplink_bits, rate_model)
        latency_s, phases = assigned_latency(problem, terms, down_bps, assignment, psd, rate_model)
        found.append(
            _Candidate(cut, terms, assignment, psd, latency_s, phases["uplink_s"], phases["downlink_s"])
        )
    return sorted(found, key=lambda candidate: candidate.latency_s)


def _typical_latency(candidates: list[_Candidate]) -> float:
    """Return a latency [s] of the right order, even if balanced turns found nothing feasible."""
    best = candidates[0].latency_s
    if math.isfinite(best):
        return best
    terms = candidates[0].terms
    compute = terms.constant_s + float(terms.forward_s.max() + terms.backward_s.max())
    return 2 * compute if compute > 0 else 1.0


def solve(
    problem: Problem,
    rate_model: RateModel,
    terms_by_cut: dict[int, CutTerms],
    down_bps: FloatArray,
    *,
    kicks: int | None = None,
    seed: int = 1,
    time_limit_s: float | None = None,
) -> Solution:
    """Return the best plan found over all cuts, and a lower bound that holds for every plan.

    The latency may be infinite: then nothing feasible was found.

    Parameters
    ----------
    terms_by_cut
        Of the cuts to choose from.
    down_bps
        Downlink rates ``[C, M]`` [bit/s].
    kicks
        Perturbed starts of the local search per cut.
    time_limit_s
        Processor time [s] after which no more kicks are tried; the bound is always finished.
    """
    started = time.process_time()
    candidates = _candidates(problem, rate_model, terms_by_cut, down_bps)
    units = _Units(problem, rate_model, down_bps, _typical_latency(candidates))
    if kicks is None:
        kicks = default_kicks(problem.num_clients, problem.num_subchannels, rate_model)
    best = candidates[0]
    outcomes: dict[int, CutOutcome] = {}
    state = np.array([seed % 2**31], dtype=np.int64)
    share = 1.0
    for candidate in candidates:
        # Half of what is left for each cut: the first is mostly, but not always, the best.
        share *= 0.5
        cut_limit_s = None if time_limit_s is None else time_limit_s * (1 - share)
        outcome, improved = _solve_cut(
            problem,
            rate_model,
            down_bps,
            candidate,
            best.latency_s,
            units,
            kicks,
            state,
            started,
            cut_limit_s,
        )
        outcomes[candidate.cut] = outcome
        if improved is not None and improved.latency_s < best.latency_s:
            best = improved
    bound = min(outcome.lower_bound_s for outcome in outcomes.values())
    return Solution(
        cut=best.cut,
        assignment=best.assignment,
        psd=best.psd,
        latency_s=best.latency_s,
        lower_bound_s=min(bound, best.latency_s),
        outcomes=outcomes,
    )


def _solve_cut(
    problem: Problem,
    rate_model: RateModel,
    down_bps: FloatArray,
    candidate: _Candidate,
    incumbent_s: float,
    units: _Units,
    kicks: int,
    state: IntArray,
    started: float,
    time_limit_s: float | None,
) -> tuple[CutOutcome, _Candidate | None]:
    """Return the cut's outcome, and its best plan unless the bound rules it out."""
    terms = candidate.terms
    constant_s, scale_s = terms.constant_s, units.time_s
    data, levels = units.data(terms), units.levels
    num_subchannels = problem.num_subchannels
    # Compute alone, without a bit on the air, is a bound too.
    floor1, floor2 = float(data.forward.max()), float(data.backward.max())
    room = (incumbent_s - constant_s) / scale_s if math.isfinite(incumbent_s) else math.inf
    if floor1 + floor2 > room * (1 + 2 * BOUND_SAFETY):
        bound_s = (constant_s + (floor1 + floor2) * scale_s) * (1 - BOUND_SAFETY)
        return CutOutcome(bound_s, candidate.latency_s, searched=False), None
    # Prices as if the cut were just as good as the best so far: only then is it of interest.
    spare1, spare2 = candidate.uplink_s / scale_s - floor1, candidate.downlink_s / scale_s - floor2
    if not math.isfinite(spare1 + spare2) or spare1 + spare2 <= 0:
        spare1 = spare2 = 0.5
    spare = max(1e-3, min(spare1 + spare2, room - floor1 - floor2)) / (spare1 + spare2)
    prices = _starting_prices(
        data,
        candidate.assignment,
        candidate.psd / units.psd_w_per_hz,
        floor1 + spare * spare1,
        floor2 + spare * spare2,
    )
    small = problem.num_clients * num_subchannels <= SMALL
    temperature = (LAST_TEMPERATURE_SMALL if small else LAST_TEMPERATURE) / num_subchannels
    bound, _ = maximise_dual(
        prices,
        data,
        levels.slopes,
        FIRST_TEMPERATURE / num_subchannels,
        temperature,
        room * (1 + 2 * BOUND_SAFETY) if math.isfinite(room) else math.inf,
        MAX_NEWTON_STEPS,
        NEWTON_TOLERANCE,
    )
    bound_s = (constant_s + max(bound, floor1 + floor2) * scale_s) * (1 - BOUND_SAFETY)
    if bound_s > incumbent_s:
        return CutOutcome(bound_s, candidate.latency_s, searched=False), None

    size = len(prices)
    _, exact, _ = evaluate_dual(
        prices, temperature, data, levels.slopes, False, np.empty(size), np.empty((size, size))
    )
    reduced, share, values = reduced_costs(prices, temperature, data, levels.slopes)
    rounded = baselines.give_everyone_one(round_shares(share, values), reduced.max() - reduced)
    tau1, tau2 = dual_deadlines(prices, data)
    # Shannon at large sizes: the rounded one is the better start, and time goes to searching around it.
    both = small or rate_model is RateModel.MCS
    starts = np.stack([candidate.assignment, rounded] if both else [rounded])
    done = 0
    while True:
        out_of_time = time_limit_s is not None and time.process_time() - started > time_limit_s
        batch = 0 if out_of_time else kicks - done
        if time_limit_s is not None:
            batch = min(batch, KICKS_PER_BATCH)
        new1, new2, owner = search(
            starts, tau1, tau2, exact, prices[-1], data, levels, reduced, batch, GOOD_ENOUGH, state
        )
        if done == 0:
            _, _, complete = enumerate_owners(owner, exact, data, levels, reduced, MOST_ENUMERATED)
            if complete:
                break
        done += batch
        starts = owner[None, :]
        if out_of_time or done >= kicks or new1 + new2 - exact <= GOOD_ENOUGH * exact:
            break
    _, psd = optimal_power(problem, owner, terms.forward_s, terms.uplink_bits, rate_model)
    latency_s, phases = assigned_latency(problem, terms, down_bps, owner, psd, rate_model)
    improved = _Candidate(
        candidate.cut, terms, owner, psd, latency_s, phases["uplink_s"], phases["downlink_s"]
    )
    if candidate.latency_s < latency_s:
        improved = candidate
    return CutOutcome(bound_s, improved.latency_s, searched=True), improved
