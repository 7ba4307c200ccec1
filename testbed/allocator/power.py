"""Optimal transmit power for a given assignment and cut: the earliest common uplink deadline.

For a deadline tau, client i needs the rate D_i / (tau - F_i) at the least power.  Shannon: water
filling on its subchannels, in closed form for a rate or a power; then one scalar root for the
common limit.  MCS: greedy loading along the lower convex hull of the step table, whose last step is
repaired with any level (a knapsack, solved to within that step); then bisection.

F_i [s] is compute before the transmission, D_i [bit] the payload; `snr_per_psd` [Hz/W].
"""

from __future__ import annotations

import math

import numpy as np

from testbed.allocator.jit import kernel
from testbed.allocator.problem import FloatArray, IntArray, Problem, RateModel

LN2 = math.log(2.0)


@kernel
def owned_subchannels(assignment: IntArray, snr_per_psd: FloatArray) -> tuple[IntArray, IntArray]:
    """Return (start ``[C + 1]``, subchannels ``[used]``): each client's own, best uplink first."""
    num_clients, num_subchannels = snr_per_psd.shape
    start = np.zeros(num_clients + 1, np.int64)
    for k in range(num_subchannels):
        if assignment[k] >= 0:
            start[assignment[k] + 1] += 1
    for i in range(num_clients):
        start[i + 1] += start[i]
    order = np.empty(start[num_clients], np.int64)
    fill = start[:-1].copy()
    for k in range(num_subchannels):
        owner = assignment[k]
        if owner >= 0:
            # Insertion: a client owns few subchannels.
            position = fill[owner]
            while position > start[owner] and (
                snr_per_psd[owner, order[position - 1]] < snr_per_psd[owner, k]
            ):
                order[position] = order[position - 1]
                position -= 1
            order[position] = k
            fill[owner] += 1
    return start, order


# ------------------------------------------------------------------------------------- Shannon
@kernel
def rate_of_power(quality: FloatArray, bandwidth: FloatArray, count: int, power_w: float) -> float:
    """Return the Shannon rate [nat/s] of a power water-filled over `count` best-first subchannels."""
    total_bandwidth = 0.0
    inverse = 0.0
    log_quality = 0.0
    level = 0.0
    for n in range(count):
        if quality[n] <= 0.0:
            break
        if n > 0 and level * quality[n] <= 1.0:
            break
        total_bandwidth += bandwidth[n]
        inverse += bandwidth[n] / quality[n]
        log_quality += bandwidth[n] * math.log(quality[n])
        level = (power_w + inverse) / total_bandwidth
    if total_bandwidth == 0.0:
        return 0.0
    return total_bandwidth * math.log(level) + log_quality


@kernel
def power_of_rate(
    quality: FloatArray, bandwidth: FloatArray, count: int, rate_nats: float
) -> tuple[float, float]:
    """Return (least power [W], water level [W/Hz]) for a Shannon rate [nat/s]; infinite if none."""
    if rate_nats <= 0.0:
        return 0.0, 0.0
    total_bandwidth = 0.0
    inverse = 0.0
    log_quality = 0.0
    log_level = math.inf
    for n in range(count):
        if quality[n] <= 0.0:
            break
        log_own = math.log(quality[n])
        if n > 0 and log_level + log_own <= 0.0:
            break
        total_bandwidth += bandwidth[n]
        inverse += bandwidth[n] / quality[n]
        log_quality += bandwidth[n] * log_own
        log_level = (rate_nats - log_quality) / total_bandwidth
    level = math.exp(log_level)
    if total_bandwidth == 0.0 or level == math.inf:
        return math.inf, math.inf
    # Rounding may leave a hair below zero where the rate is tiny.
    return max(0.0, level * total_bandwidth - inverse), level


@kernel
def shannon_deadline(
    quality: FloatArray,
    bandwidth: FloatArray,
    start: IntArray,
    forward_s: FloatArray,
    payload_nats: FloatArray,
    max_power_w: FloatArray,
    total_power_w: float,
    rate_nats: FloatArray,
) -> float:
    """Return the earliest common deadline [s]; writes each client's rate at it to `rate_nats`.

    `quality` and `bandwidth` hold every client's subchannels best first, client i's from
    ``start[i]`` to ``start[i + 1]``.  Infinite where a client cannot send its payload at all.
    """
    num_clients = len(start) - 1
    earliest = 0.0
    for i in range(num_clients):
        tau = forward_s[i]
        if payload_nats[i] > 0.0:
            a, b = start[i], start[i + 1]
            rate = rate_of_power(quality[a:b], bandwidth[a:b], b - a, max_power_w[i])
            tau += payload_nats[i] / rate if rate > 0.0 else math.inf
        earliest = max(earliest, tau)
    if earliest == math.inf:
        return math.inf

    # log(sum of least powers) falls with the deadline; Newton inside a bracket.
    low, high = earliest, math.inf
    tau = earliest
    log_limit = math.log(total_power_w)
    for _ in range(200):
        total = 0.0
        slope = 0.0
        for i in range(num_clients):
            rate_nats[i] = 0.0
            if payload_nats[i] > 0.0:
                spare = tau - forward_s[i]
                rate = payload_nats[i] / spare if spare > 0.0 else math.inf
                a, b = start[i], start[i + 1]
                power, level = power_of_rate(quality[a:b], bandwidth[a:b], b - a, rate)
                rate_nats[i] = rate
                total += power
                slope -= level * rate / spare  # d power / d tau
        excess = math.log(total) - log_limit if total > 0.0 else -math.inf
        if excess <= 0.0:
            high = tau
            if tau == earliest or excess > -1e-13:
                break
        else:
            low = tau
        if high < math.inf and high - low <= 1e-15 * high:
            tau = high
            break
        step = -excess * total / slope if slope < 0.0 and total < math.inf else math.nan
        # Aim a hair past the root, so that the limit is met from the feasible side.
        tau = tau + step * (1.0 + 1e-6) if excess > 0.0 else tau + step * (1.0 - 1e-6)
        if not (tau > low and tau < high):
            tau = 0.5 * (low + high) if high < math.inf else 2.0 * low
    tau = high
    for i in range(num_clients):
        rate_nats[i] = payload_nats[i] / (tau - forward_s[i]) if payload_nats[i] > 0.0 else 0.0
    return tau


@kernel
def shannon_power(
    assignment: IntArray,
    snr_per_psd: FloatArray,
    bandwidth: FloatArray,
    forward_s: FloatArray,
    payload_bits: FloatArray,
    max_power_w: FloatArray,
    total_power_w: float,
) -> tuple[float, FloatArray]:
    """Return (deadline [s], PSD ``[M]`` [W/Hz]) of the optimal powers."""
    num_clients, num_subchannels = snr_per_psd.shape
    start, order = owned_subchannels(assignment, snr_per_psd)
    quality = np.empty(len(order))
    width = np.empty(len(order))
    for i in range(num_clients):
        for n in range(start[i], start[i + 1]):
            quality[n] = snr_per_psd[i, order[n]]
            width[n] = bandwidth[order[n]]
    rates = np.zeros(num_clients)
    payload = payload_bits * LN2
    psd = np.zeros(num_subchannels)
    tau = shannon_deadline(quality, width, start, forward_s, payload, max_power_w, total_power_w, rates)
    if tau == math.inf:
        return tau, psd
    total = 0.0
    for i in range(num_clients):
        a, b = start[i], start[i + 1]
        power, level = power_of_rate(quality[a:b], width[a:b], b - a, rates[i])
        if power <= 0.0:
            continue
        spent = 0.0
        for n in range(a, b):
            if quality[n] > 0.0 and level * quality[n] > 1.0:
                psd[order[n]] = level - 1.0 / quality[n]
                spent += psd[order[n]] * width[n]
        if spent > max_power_w[i]:
            psd[order[a:b]] *= max_power_w[i] / spent
            spent = max_power_w[i]
        total += spent
    if total > total_power_w:
        psd *= total_power_w / total
    return tau, psd


# ----------------------------------------------------------------------------------------- MCS
@kernel
def sorted_steps(
    quality: FloatArray,
    bandwidth: FloatArray,
    count: int,
    efficiency: FloatArray,
    snr: FloatArray,
    hull: IntArray,
    step_where: IntArray,
    step_rate: FloatArray,
    step_power: FloatArray,
) -> int:
    """Write one client's hull steps, cheapest per bit first; return how many there are.

    `step_where` gets the position of the subchannel (each occurrence is its next hull step),
    `step_rate` [bit/s] and `step_power` [W] the sums up to and including the step.
    """
    rungs = len(hull) - 1
    usable = 0
    while usable < count and quality[usable] > 0.0:
        usable += 1
    steps = usable * rungs
    price = np.empty(steps)
    for n in range(usable):
        for r in range(rungs):
            low, high = hull[r], hull[r + 1]
            slope = (snr[high] - snr[low]) / (efficiency[high] - efficiency[low])
            price[n * rungs + r] = slope / quality[n]
    rate = 0.0
    power = 0.0
    # Mergesort is stable: the rungs of one subchannel stay in order.
    ranked = np.argsort(price, kind="mergesort")
    for position in range(steps):
        n = ranked[position] // rungs
        r = ranked[position] - n * rungs
        low, high = hull[r], hull[r + 1]
        rate += bandwidth[n] * (efficiency[high] - efficiency[low])
        power += bandwidth[n] * (snr[high] - snr[low]) / quality[n]
        step_where[position] = n
        step_rate[position] = rate
        step_power[position] = power
    return steps


@kernel
def steps_for(step_rate: FloatArray, steps: int, rate: float) -> int:
    """Return how many steps reach the rate; `steps` + 1 if all do not."""
    low, high = 0, steps + 1
    if rate <= 0.0:
        return 0
    # A payload divided by its own time must find the rate it came from.
    wanted = rate * (1.0 - 1e-12)
    while low + 1 < high:
        middle = (low + high) // 2
        if step_rate[middle - 1] >= wanted:
            high = middle
        else:
            low = middle
    return high


@kernel
def load_levels(
    quality: FloatArray,
    bandwidth: FloatArray,
    count: int,
    efficiency: FloatArray,
    snr: FloatArray,
    hull: IntArray,
    step_where: IntArray,
    step_rate: FloatArray,
    steps: int,
    rate: float,
    levels: IntArray,
) -> float:
    """Write the level of each subchannel that carries `rate` at little power; return that power [W].

    Hull steps up to the last one, in whose place the cheapest single rise on any subchannel to any
    level is taken if cheaper; then what the overshoot allows is lowered again.
    """
    levels[:count] = 0
    needed = steps_for(step_rate, steps, rate)
    if needed == 0:
        return 0.0
    if needed > steps:
        return math.inf
    rung = np.zeros(count, np.int64)
    for position in range(needed - 1):
        rung[step_where[position]] += 1
    wanted = rate * (1.0 - 1e-12)
    carried = 0.0
    power = 0.0
    for n in range(count):
        levels[n] = hull[rung[n]]
        carried += bandwidth[n] * efficiency[levels[n]]
        if levels[n] > 0:
            power += bandwidth[n] * snr[levels[n]] / quality[n]
    best_cost = math.inf
    best_n = -1
    best_level = 0
    for n in range(count):
        if quality[n] <= 0.0:
            break
        for level in range(levels[n] + 1, len(snr)):
            if carried + bandwidth[n] * (efficiency[level] - efficiency[levels[n]]) >= wanted:
                cost = bandwidth[n] * (snr[level] - snr[levels[n]]) / quality[n]
                if cost < best_cost:
                    best_cost, best_n, best_level = cost, n, level
                break
    if best_n < 0:  # only rounding can lead here: the hull step itself is among the rises
        return math.inf
    carried += bandwidth[best_n] * (efficiency[best_level] - efficiency[levels[best_n]])
    levels[best_n] = best_level
    power += best_cost
    while True:
        best_saving = 0.0
        best_n = -1
        for n in range(count):
            for level in range(levels[n]):
                if carried - bandwidth[n] * (efficiency[levels[n]] - efficiency[level]) >= wanted:
                    saving = bandwidth[n] * (snr[levels[n]] - snr[level]) / quality[n]
                    if saving > best_saving:
                        best_saving, best_n, best_level = saving, n, level
                    break
        if best_n < 0:
            return power
        carried -= bandwidth[best_n] * (efficiency[levels[best_n]] - efficiency[best_level])
        levels[best_n] = best_level
        power -= best_saving


@kernel
def mcs_power(
    assignment: IntArray,
    snr_per_psd: FloatArray,
    bandwidth: FloatArray,
    forward_s: FloatArray,
    payload_bits: FloatArray,
    max_power_w: FloatArray,
    total_power_w: float,
    efficiency: FloatArray,
    snr: FloatArray,
    hull: IntArray,
) -> tuple[float, FloatArray]:
    """Return (deadline [s], PSD ``[M]`` [W/Hz]) of the loading that bisection finds.

    `efficiency` and `snr` begin with silence; `hull` holds the levels on their convex hull.
    """
    num_clients, num_subchannels = snr_per_psd.shape
    start, order = owned_subchannels(assignment, snr_per_psd)
    used = len(order)
    rungs = len(hull) - 1
    quality = np.empty(used)
    width = np.empty(used)
    where = np.empty(used * rungs, np.int64)
    cumulative_rate = np.empty(used * rungs)
    cumulative_power = np.empty(used * rungs)
    num_steps = np.zeros(num_clients, np.int64)
    levels = np.zeros(used, np.int64)
    best_levels = np.zeros(used, np.int64)
    psd = np.zeros(num_subchannels)
    low = 0.0
    high = 0.0
    least_power = 0.0
    for i in range(num_clients):
        a, b = start[i], start[i + 1]
        for n in range(a, b):
            quality[n] = snr_per_psd[i, order[n]]
            width[n] = bandwidth[order[n]]
        s = slice(a * rungs, b * rungs)
        num_steps[i] = sorted_steps(
            quality[a:b], width[a:b], b - a, efficiency, snr, hull,
            where[s], cumulative_rate[s], cumulative_power[s],
        )  # fmt: skip
        low = max(low, forward_s[i])
        high = max(high, forward_s[i])
        if payload_bits[i] > 0.0:
            if num_steps[i] == 0:
                return math.inf, psd
            ceiling = cumulative_rate[s][num_steps[i] - 1]
            low = max(low, forward_s[i] + payload_bits[i] / ceiling)
            # The least that sends anything: the lowest step where it costs least.
            cheapest = a
            for n in range(a, a + num_steps[i] // rungs):
                if width[n] / quality[n] < width[cheapest] / quality[cheapest]:
                    cheapest = n
            cost = width[cheapest] * snr[1] / quality[cheapest]
            if cost > max_power_w[i]:
                return math.inf, psd
            least_power += cost
            best_levels[cheapest] = 1
            high = max(high, forward_s[i] + payload_bits[i] / (width[cheapest] * efficiency[1]))
    if least_power > total_power_w:
        return math.inf, psd

    tau = low
    for _ in range(100):
        total = 0.0
        achieved = 0.0
        feasible = True
        for i in range(num_clients):
            achieved = max(achieved, forward_s[i])
            if payload_bits[i] <= 0.0:
                continue
            spare = tau - forward_s[i]
            if spare <= 0.0:
                feasible = False
                break
            a, b = start[i], start[i + 1]
            s = slice(a * rungs, b * rungs)
            power = load_levels(
                quality[a:b], width[a:b], b - a, efficiency, snr, hull,
                where[s], cumulative_rate[s], num_steps[i], payload_bits[i] / spare, levels[a:b],
            )  # fmt: skip
            total += power
            if power > max_power_w[i] or total > total_power_w:
                feasible = False
                break
            carried = 0.0
            for n in range(a, b):
                carried += width[n] * efficiency[levels[n]]
            achieved = max(achieved, forward_s[i] + payload_bits[i] / carried)
        if feasible and achieved < high:
            high = achieved
            best_levels[:] = levels
            low = min(low, high)
        elif not feasible:
            low = max(low, tau)
        else:
            break
        if high - low <= 1e-7 * high:
            break
        # Far apart at first, when one starting level bounds from above: halve the ratio.
        tau = 0.5 * (low + high) if high < 4.0 * low or low <= 0.0 else math.sqrt(low * high)
    for i in range(num_clients):
        if payload_bits[i] > 0.0:
            for n in range(start[i], start[i + 1]):
                if best_levels[n] > 0:
                    psd[order[n]] = snr[best_levels[n]] / quality[n]
    return high, psd


def optimal_power(
    problem: Problem,
    assignment: IntArray,
    forward_s: FloatArray,
    uplink_bits: FloatArray,
    rate_model: RateModel,
) -> tuple[float, FloatArray]:
    """Return (deadline [s], PSD ``[M]`` [W/Hz]) of the earliest uplink for an assignment.

    Exact for Shannon (to rounding); for MCS, within the last step of a knapsack.  The deadline is
    infinite, and the PSD zero, where no power carries the bits.

    Parameters
    ----------
    forward_s, uplink_bits
        ``[C]``, from :func:`testbed.latency.cut_terms`.
    """
    arguments = (
        assignment,
        problem.uplink_snr_per_psd,
        problem.bandwidth_hz,
        forward_s,
        uplink_bits,
        problem.max_power_w,
        problem.total_power_w,
    )
    if rate_model is RateModel.SHANNON:
        tau, psd = shannon_power(*arguments)
    else:
        tau, psd = mcs_power(*arguments, *problem.mcs_levels)
    return float(tau), psd
