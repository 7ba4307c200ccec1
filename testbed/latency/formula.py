"""Predicted latency of one round, from parameters alone.

The formula is that of arXiv 2303.15991, reconstructed (check it against the paper)::

    T = max_i(T_F,i + T_U,i) + T_sF + T_sB + T_bc + max_i(T_D,i + T_B,i)

No modem, no board and no record is imported: a prediction that shared code with what it predicts
would validate nothing.  Labels, sounding, acknowledgements and model transfers are not in the
formula; whoever runs them adds their bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from testbed.allocator.problem import (
    UNUSED,
    AllocationError,
    Binding,
    FloatArray,
    IntArray,
    Problem,
    RateModel,
)

# Thresholds are met, and limits kept, up to this relative error: an SNR is rebuilt from a PSD that
# was itself divided out of the threshold.
RELATIVE_TOLERANCE = 1e-9

PHASES = ("uplink_s", "server_forward_s", "server_backward_s", "broadcast_s", "downlink_s")


def spectral_efficiency(problem: Problem, snr: ArrayLike, rate_model: RateModel) -> FloatArray:
    """Return the spectral efficiency [bit/s/Hz] at a linear SNR, in the shape of `snr`.

    Shannon: log2(1 + SNR).  MCS: the best step whose threshold is reached, 0 below the first.
    """
    values = np.asarray(snr, dtype=np.float64)
    if rate_model is RateModel.SHANNON:
        return np.asarray(np.log1p(values) / np.log(2.0))
    efficiency, thresholds = problem.mcs_steps
    reached = np.searchsorted(thresholds, values * (1 + RELATIVE_TOLERANCE), side="right")
    return np.concatenate(([0.0], efficiency))[reached]


def downlink_rates(problem: Problem, rate_model: RateModel) -> FloatArray:
    """Return the downlink rate of every client on every subchannel ``[C, M]`` [bit/s]."""
    snr = problem.downlink_psd_w_per_hz * problem.downlink_snr_per_psd
    return problem.bandwidth_hz * spectral_efficiency(problem, snr, rate_model)


def broadcast_rate(problem: Problem, rates: FloatArray) -> float:
    """Return the broadcast rate [bit/s] of the downlink rates ``[C, M]``.

    ``whole-band``: min_i sum_k, the paper's.  ``per-subchannel``: sum_k min_i, a modem's.
    """
    if problem.broadcast == "whole-band":
        return float(rates.sum(axis=1).min())
    return float(rates.min(axis=0).sum())


@dataclass(frozen=True, eq=False)
class CutTerms:
    """The parts of the latency that a cut fixes, whatever the assignment.

    Attributes
    ----------
    forward_s, backward_s
        Client compute ``[C]`` [s] (T_F,i, T_B,i).
    uplink_bits, unicast_bits
        To carry on the client's own subchannels ``[C]`` [bit] (b psi_j, (b - m) chi_j).
    server_forward_s, server_backward_s
        T_sF, T_sB [s].
    broadcast_s
        T_bc [s]; infinite if a client hears nothing of a broadcast.
    """

    forward_s: FloatArray
    backward_s: FloatArray
    uplink_bits: FloatArray
    unicast_bits: FloatArray
    server_forward_s: float
    server_backward_s: float
    broadcast_s: float

    @property
    def constant_s(self) -> float:
        """What no assignment changes [s]."""
        return self.server_forward_s + self.server_backward_s + self.broadcast_s


def _seconds(bits: FloatArray, rate: FloatArray) -> FloatArray:
    """Return bits / rate ``[n]`` [s]: 0 for no bits, infinite for bits without a rate."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(bits > 0, np.where(rate > 0, bits / rate, np.inf), 0.0)


def cut_terms(problem: Problem, cut: int, broadcast_bps: float) -> CutTerms:
    """Return what cut layer `cut` costs before anything is assigned.

    With unequal batches b_i, m = ceil(phi max_i b_i) slots are merged over the clients that have
    them, and client i has max(0, b_i - m) samples of its own left.

    Parameters
    ----------
    broadcast_bps
        From :func:`broadcast_rate`.
    """
    samples = problem.batch_size.astype(np.float64)
    merged = problem.num_aggregated
    own = np.maximum(0.0, samples - merged)
    forward, backward = problem.forward_flops, problem.backward_flops
    inner = (merged + own.sum()) * (backward[-2] - backward[cut])
    last = samples.sum() * (backward[-1] - backward[-2])
    broadcast = _seconds(np.array([merged * problem.gradient_bits[cut]]), np.array([broadcast_bps]))
    return CutTerms(
        forward_s=samples * forward[cut] / problem.client_flops_per_s,
        backward_s=samples * backward[cut] / problem.client_flops_per_s,
        uplink_bits=samples * problem.smashed_bits[cut],
        unicast_bits=own * problem.gradient_bits[cut],
        server_forward_s=float(samples.sum() * (forward[-1] - forward[cut]) / problem.server_flops_per_s),
        server_backward_s=float((inner + last) / problem.server_flops_per_s),
        broadcast_s=float(broadcast[0]),
    )


def per_client(problem: Problem, owners: IntArray, values: FloatArray) -> FloatArray:
    """Return the sum of `values` over what each client owns ``[C]``."""
    return np.bincount(owners, weights=values, minlength=problem.num_clients).astype(np.float64)


def _checked_decision(
    problem: Problem, cut: int, assignment: ArrayLike, psd: ArrayLike
) -> tuple[IntArray, FloatArray]:
    owners = np.asarray(assignment)
    densities = np.asarray(psd, dtype=np.float64)
    if not 1 <= cut <= problem.num_layers - 1:
        raise AllocationError("cut", f"{cut} is outside 1..{problem.num_layers - 1}")
    if owners.shape != (problem.num_subchannels,) or not np.issubdtype(owners.dtype, np.integer):
        raise AllocationError("assignment", f"{problem.num_subchannels} client indices are needed")
    if (owners < UNUSED).any() or (owners >= problem.num_clients).any():
        raise AllocationError("assignment", f"clients are 0..{problem.num_clients - 1}, or -1 for none")
    if densities.shape != owners.shape or not np.isfinite(densities).all() or (densities < 0).any():
        raise AllocationError("psd", "one finite, non-negative value per subchannel is needed")
    return owners.astype(np.int64), densities


def assigned_times(
    problem: Problem,
    terms: CutTerms,
    down_bps: FloatArray,
    owners: IntArray,
    psd: FloatArray,
    rate_model: RateModel,
) -> tuple[FloatArray, FloatArray]:
    """Return (T_F + T_U, T_D + T_B) of each client ``[C]`` [s] for a decision that is in order.

    Parameters
    ----------
    terms, down_bps
        From :func:`cut_terms` and :func:`downlink_rates`, made once for many decisions.
    """
    used = np.flatnonzero(owners >= 0)
    owner = owners[used]
    snr = psd[used] * problem.uplink_snr_per_psd[owner, used]
    rates = problem.bandwidth_hz[used] * spectral_efficiency(problem, snr, rate_model)
    up_bps = per_client(problem, owner, rates)
    down = per_client(problem, owner, down_bps[owner, used])
    up_s = terms.forward_s + _seconds(terms.uplink_bits, up_bps)
    return up_s, terms.backward_s + _seconds(terms.unicast_bits, down)


def assigned_latency(
    problem: Problem,
    terms: CutTerms,
    down_bps: FloatArray,
    owners: IntArray,
    psd: FloatArray,
    rate_model: RateModel,
) -> tuple[float, dict[str, float]]:
    """Return what :func:`evaluate` does, for a decision in order; see :func:`assigned_times`."""
    up, down = assigned_times(problem, terms, down_bps, owners, psd, rate_model)
    phases = dict(
        zip(
            PHASES,
            (
                float(up.max()),
                terms.server_forward_s,
                terms.server_backward_s,
                terms.broadcast_s,
                float(down.max()),
            ),
            strict=True,
        )
    )
    return sum(phases.values()), phases


def evaluate(
    problem: Problem, cut: int, assignment: ArrayLike, psd: ArrayLike, rate_model: RateModel
) -> tuple[float, dict[str, float]]:
    """Return the latency of a decision [s] and its phases (:data:`PHASES`), which add up to it.

    Infinite where bits must flow and no rate carries them.

    Raises
    ------
    AllocationError
        For a decision of the wrong shape or type.  Power limits are :func:`violations`' task.
    """
    owners, densities = _checked_decision(problem, cut, assignment, psd)
    down_bps = downlink_rates(problem, rate_model)
    terms = cut_terms(problem, cut, broadcast_rate(problem, down_bps))
    return assigned_latency(problem, terms, down_bps, owners, densities, rate_model)


def violations(problem: Problem, assignment: ArrayLike, psd: ArrayLike) -> list[str]:
    """Return what a decision breaks, in words; empty for a valid one.

    Every client owns a subchannel, unused subchannels are silent, no power limit is exceeded by more
    than `RELATIVE_TOLERANCE`.
    """
    owners, densities = _checked_decision(problem, 1, assignment, psd)
    used = owners >= 0
    found = [f"client {i} has no subchannel" for i in range(problem.num_clients) if i not in owners]
    if densities[~used].any():
        found.append("power on an unused subchannel")
    spent = per_client(problem, owners[used], (densities * problem.bandwidth_hz)[used])
    over = spent > problem.max_power_w * (1 + RELATIVE_TOLERANCE)
    found += [f"client {i} sends {spent[i]} W of {problem.max_power_w[i]} W" for i in np.flatnonzero(over)]
    if spent.sum() > problem.total_power_w * (1 + RELATIVE_TOLERANCE):
        found.append(f"all clients send {spent.sum()} W of {problem.total_power_w} W")
    return found


def explain(
    problem: Problem,
    cut: int,
    assignment: ArrayLike,
    psd: ArrayLike,
    rate_model: RateModel,
    *,
    runner_up: tuple[int, float] | None = None,
    runner_up_is_bound: bool = False,
) -> Binding:
    """Return which clients hold up the round, which limit holds them, and the runner-up cut.

    Parameters
    ----------
    runner_up
        The next-best cut and its latency [s], as the method found it.
    """
    owners, densities = _checked_decision(problem, cut, assignment, psd)
    down_bps = downlink_rates(problem, rate_model)
    terms = cut_terms(problem, cut, broadcast_rate(problem, down_bps))
    up, down = assigned_times(problem, terms, down_bps, owners, densities, rate_model)

    def slack(times: FloatArray) -> float:
        latest = np.sort(times)[::-1]
        return float(latest[0] - latest[1]) if len(latest) > 1 and np.isfinite(latest[1]) else 0.0

    straggler = int(up.argmax())
    watts = densities * problem.bandwidth_hz
    near = 1 - 1e-3
    if watts[owners >= 0].sum() >= near * problem.total_power_w:
        power = "total"
    elif watts[owners == straggler].sum() >= near * problem.max_power_w[straggler]:
        power = "client"
    else:
        power = "none"
    return Binding(
        uplink_client=straggler,
        downlink_client=int(down.argmax()),
        uplink_slack_s=slack(up),
        downlink_slack_s=slack(down),
        power=power,
        runner_up_cut=runner_up[0] if runner_up else None,
        runner_up_latency_s=runner_up[1] if runner_up else None,
        runner_up_is_bound=runner_up_is_bound,
    )
