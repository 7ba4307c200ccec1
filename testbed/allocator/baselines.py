"""Simple methods to measure against, and the paper's own (reconstructed, to be checked against it).

Each returns an assignment and PSDs for one cut; :mod:`testbed.allocator.api` tries the cuts and
builds the plan.  None of them proves anything about the optimum.
"""

from __future__ import annotations

import math

import numpy as np

from testbed.allocator.jit import kernel
from testbed.allocator.power import optimal_power
from testbed.allocator.problem import FloatArray, IntArray, Problem, RateModel
from testbed.latency import CutTerms, spectral_efficiency


def uniform_psd(problem: Problem, assignment: IntArray) -> FloatArray:
    """Return one PSD on all used subchannels ``[M]`` [W/Hz], lowered for clients that exceed theirs."""
    used = assignment >= 0
    width = np.where(used, problem.bandwidth_hz, 0.0)
    density = problem.total_power_w / width.sum()
    owned_hz = np.bincount(assignment[used], weights=width[used], minlength=problem.num_clients)
    own_limit = problem.max_power_w / np.maximum(owned_hz, 1e-300)
    return np.where(used, np.minimum(density, own_limit[assignment]), 0.0)


def give_everyone_one(assignment: IntArray, preference: FloatArray) -> IntArray:
    """Return the assignment ``[M]`` with a subchannel for every client.

    A client without one takes, of those whose owner keeps another, the one it prefers most.

    Parameters
    ----------
    preference
        Larger is better ``[C, M]``.
    """
    result = assignment.copy()
    owned = np.bincount(result[result >= 0], minlength=len(preference))
    for client in np.flatnonzero(owned == 0):
        spare = (result < 0) | (owned[result] > 1)
        k = int(np.where(spare, preference[client], -1.0).argmax())
        if result[k] >= 0:
            owned[result[k]] -= 1
        result[k] = client
        owned[client] += 1
    return result


def assign_round_robin(problem: Problem) -> IntArray:
    """Return the subchannels dealt out in turn, whatever the channel ``[M]``."""
    return np.arange(problem.num_subchannels, dtype=np.int64) % problem.num_clients


def assign_best_receiver(problem: Problem) -> IntArray:
    """Return each subchannel given to the client that receives best on it ``[M]`` (RSS).

    A client that is best nowhere takes the one it hears best of those whose owner keeps another.
    """
    quality = problem.downlink_snr_per_psd
    return give_everyone_one(quality.argmax(axis=0).astype(np.int64), quality)


def assign_random(problem: Problem, rng: np.random.Generator) -> IntArray:
    """Return a random assignment that gives every client at least one subchannel ``[M]``."""
    assignment = rng.integers(0, problem.num_clients, problem.num_subchannels, dtype=np.int64)
    first = rng.permutation(problem.num_subchannels)[: problem.num_clients]
    assignment[first] = np.arange(problem.num_clients)
    return assignment


@kernel
def assign_in_turns(
    up_bps: FloatArray,
    down_bps: FloatArray,
    forward_s: FloatArray,
    uplink_bits: FloatArray,
    backward_s: FloatArray,
    unicast_bits: FloatArray,
) -> IntArray:
    """Return the greedy assignment ``[M]``: the straggler takes the free subchannel best for it.

    The straggler is the client whose compute and transmission, up and down, last longest with what
    it has; of those that cannot send at all, the one that is worst off at its best comes first.
    `up_bps` and `down_bps` are rates ``[C, M]`` at a uniform PSD.
    """
    num_clients, num_subchannels = up_bps.shape
    assignment = np.full(num_subchannels, -1, np.int64)
    owned = np.zeros(num_clients, np.int64)
    up = np.zeros(num_clients)
    down = np.zeros(num_clients)
    # What one more subchannel may save at best, to compare clients that still lack a rate.
    need = np.zeros(num_clients)
    for i in range(num_clients):
        need[i] = forward_s[i] + backward_s[i]
        if uplink_bits[i] > 0.0:
            need[i] += uplink_bits[i] / up_bps[i].max()
        if unicast_bits[i] > 0.0:
            need[i] += unicast_bits[i] / down_bps[i].max()
    for turn in range(num_subchannels):
        straggler = -1
        latest = -1.0
        cut_off = False
        for i in range(num_clients):
            lacking = (
                owned[i] == 0
                or (uplink_bits[i] > 0.0 and up[i] <= 0.0)
                or (unicast_bits[i] > 0.0 and down[i] <= 0.0)
            )
            if owned[i] > 0 and num_subchannels - turn <= np.sum(owned == 0):
                continue  # the rest is for those that have none
            if lacking and need[i] == math.inf and owned[i] > 0:
                continue  # nothing will help it
            time = need[i]
            if not lacking:
                time = forward_s[i] + backward_s[i]
                time += uplink_bits[i] / up[i] if uplink_bits[i] > 0.0 else 0.0
                time += unicast_bits[i] / down[i] if unicast_bits[i] > 0.0 else 0.0
            if (lacking and not cut_off) or (lacking == cut_off and time > latest):
                straggler, latest, cut_off = i, time, lacking
        if straggler < 0:
            break
        best = -1
        saved = math.inf
        for k in range(num_subchannels):
            if assignment[k] < 0:
                # Weighed by what each direction still has to carry.
                time = uplink_bits[straggler] / (up[straggler] + up_bps[straggler, k] + 1e-300)
                time += unicast_bits[straggler] / (down[straggler] + down_bps[straggler, k] + 1e-300)
                if time < saved or best < 0:
                    best, saved = k, time
        assignment[best] = straggler
        owned[straggler] += 1
        up[straggler] += up_bps[straggler, best]
        down[straggler] += down_bps[straggler, best]
    return assignment


def uniform_rates(problem: Problem, rate_model: RateModel, psd: FloatArray | None = None) -> FloatArray:
    """Return each client's uplink rate on each subchannel ``[C, M]`` [bit/s].

    At the PSD given ``[M]``, else at that which spreads the total power over the whole band.  A
    client's own limit is left out: it binds only what the client holds in the end.
    """
    if psd is None:
        psd = np.full(problem.num_subchannels, problem.total_power_w / problem.bandwidth_hz.sum())
    snr = psd * problem.uplink_snr_per_psd
    return problem.bandwidth_hz * spectral_efficiency(problem, snr, rate_model)


def balanced_turns(problem: Problem, terms: CutTerms, up_bps: FloatArray, down_bps: FloatArray) -> IntArray:
    """Return the assignment of balanced turns for one cut ``[M]``; see :func:`assign_in_turns`."""
    assignment = assign_in_turns(
        up_bps, down_bps, terms.forward_s, terms.uplink_bits, terms.backward_s, terms.unicast_bits
    )
    return give_everyone_one(assignment, problem.uplink_snr_per_psd)


def block_coordinate_descent(
    problem: Problem,
    terms_by_cut: dict[int, CutTerms],
    down_bps: FloatArray,
    rate_model: RateModel,
    rng: np.random.Generator,
    max_sweeps: int,
) -> tuple[int, IntArray, FloatArray]:
    """Return (cut, assignment, PSD) of the paper's descent from one random start.

    Reconstructed: from a random assignment, PSD uniform and a random cut, repeat until nothing
    improves: greedy subchannels for the cut and PSDs at hand (the next one to the straggler),
    optimal power for that assignment, the best cut for both.  A block is kept only if it does not
    make the round longer, so the latency never rises.
    """

    def latency(cut: int, assignment: IntArray, psd: FloatArray) -> float:
        terms = terms_by_cut[cut]
        snr = psd * problem.uplink_snr_per_psd[assignment, columns]
        up_rate = problem.bandwidth_hz * spectral_efficiency(problem, snr, rate_model)
        used = assignment >= 0
        up = np.bincount(assignment[used], weights=up_rate[used], minlength=problem.num_clients)
        own = down_bps[assignment, columns]
        down = np.bincount(assignment[used], weights=own[used], minlength=problem.num_clients)
        with np.errstate(divide="ignore", invalid="ignore"):
            up_s = np.where(terms.uplink_bits > 0, terms.uplink_bits / up, 0.0)
            down_s = np.where(terms.unicast_bits > 0, terms.unicast_bits / down, 0.0)
        return float((terms.forward_s + up_s).max() + terms.constant_s + (terms.backward_s + down_s).max())

    columns = np.arange(problem.num_subchannels)
    cuts = list(terms_by_cut)
    assignment = assign_random(problem, rng)
    psd = uniform_psd(problem, assignment)
    cut = cuts[int(rng.integers(len(cuts)))]
    best = latency(cut, assignment, psd)
    for _ in range(1, max_sweeps + 1):
        before = best
        rates = uniform_rates(problem, rate_model, np.where(psd > 0, psd, psd.max()))
        candidate = balanced_turns(problem, terms_by_cut[cut], rates, down_bps)
        # The PSDs of other owners may break a client's limit, so power is solved before judging.
        for owners in (candidate, assignment):
            terms = terms_by_cut[cut]
            _, new_psd = optimal_power(problem, owners, terms.forward_s, terms.uplink_bits, rate_model)
            reached = latency(cut, owners, new_psd)
            if reached <= best:
                best, assignment, psd = reached, owners, new_psd
        for other in cuts:
            reached = latency(other, assignment, psd)
            if reached < best:
                best, cut = reached, other
        if not best < before * (1 - 1e-9) and best < math.inf:
            break
    return cut, assignment, psd
