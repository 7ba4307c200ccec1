"""Local search over the assignment of one cut: moves and swaps, priced in seconds.

Around deadlines (tau1, tau2) an assignment is judged by

    merit = sum_i ([u_i - tau1]+ + [t_i - tau2]+) + f(sum_i P_i)

P_i is the least power that meets tau1, at most client i's own limit; u_i, when its uplink ends under
that limit; t_i, when its unicast and backward pass end.  f charges power at the price of the dual, and
what exceeds the total limit at what it costs to wait for it.  To first order, tau1 + tau2 + merit is
an upper estimate of the latency; what is accepted in the end is judged by the exact latency.

Only owners with a small reduced cost are considered.  One that exceeds the gap between incumbent and
bound can be ruled out: no better plan contains it.  Units are those of
:class:`testbed.allocator.dual.CutData`.
"""

from __future__ import annotations

import math

import numpy as np

from testbed.allocator.demand import HOPELESS, Levels, uplink_demand
from testbed.allocator.dual import CutData
from testbed.allocator.jit import kernel
from testbed.allocator.power import mcs_power, owned_subchannels, shannon_deadline
from testbed.allocator.problem import FloatArray, IntArray

OPTIONS_PER_SUBCHANNEL = 6
SWAP_BUDGET = 0.2  # of the widest threshold
WIDEST_GAP = 1.0  # of a typical latency: aims stay finite before anything feasible is known
LEAST_GAIN = 1e-9  # improvements below this share of a typical latency are not pursued


@kernel
def exact_latency(owner: IntArray, data: CutData, levels: Levels) -> tuple[float, float]:
    """Return (tau1, tau2) of an assignment with optimal power; their sum is its variable latency."""
    num_clients, num_subchannels = data.quality.shape
    down = np.zeros(num_clients)
    for k in range(num_subchannels):
        if owner[k] >= 0:
            down[owner[k]] += data.down_rate[owner[k], k]
    tau2 = 0.0
    for i in range(num_clients):
        time = data.backward[i]
        if data.unicast[i] > 0.0:
            time += data.unicast[i] / down[i] if down[i] > 0.0 else HOPELESS
        tau2 = max(tau2, time)
    if len(levels.slopes) == 0:
        start, order = owned_subchannels(owner, data.quality)
        quality = np.empty(len(order))
        width = np.empty(len(order))
        for i in range(num_clients):
            for n in range(start[i], start[i + 1]):
                quality[n] = data.quality[i, order[n]]
                width[n] = data.width[order[n]]
        rates = np.empty(num_clients)
        tau1 = shannon_deadline(quality, width, start, data.forward, data.payload, data.max_power, 1.0, rates)
    else:
        tau1, _ = mcs_power(
            owner, data.quality, data.width, data.forward, data.payload, data.max_power, 1.0,
            levels.rate, levels.snr, levels.hull,
        )  # fmt: skip
    return min(tau1, HOPELESS), tau2


@kernel
def _late(client: int, rate: float, tau2: float, data: CutData) -> float:
    if data.unicast[client] <= 0.0:
        return 0.0
    if rate <= 1e-12:
        return HOPELESS
    return max(0.0, data.backward[client] + data.unicast[client] / rate - tau2)


@kernel
def _charge(total: float, price: float, excess_price: float) -> float:
    """Return f: the total power in seconds."""
    return price * min(total, 1.0) + excess_price * max(0.0, total - 1.0)


@kernel
def _place(own: IntArray, count: IntArray, client: int, k: int, data: CutData) -> None:
    """Insert a subchannel into a client's list, best first."""
    position = count[client]
    while position > 0 and data.quality[client, own[client, position - 1]] < data.quality[client, k]:
        own[client, position] = own[client, position - 1]
        position -= 1
    own[client, position] = k
    count[client] += 1


@kernel
def _displace(own: IntArray, count: IntArray, client: int, k: int) -> None:
    """Remove a subchannel from a client's list."""
    position = 0
    while own[client, position] != k:
        position += 1
    count[client] -= 1
    for n in range(position, count[client]):
        own[client, n] = own[client, n + 1]


@kernel
def descend(
    owner: IntArray,
    tau1: float,
    tau2: float,
    power_price: float,
    data: CutData,
    levels: Levels,
    reduced: FloatArray,
    threshold: FloatArray,
    max_steps: int,
) -> int:
    """Improve an assignment in place until no move or swap lowers the merit; return the steps.

    Parameters
    ----------
    power_price
        nu_0 of the dual.
    reduced
        Reduced costs ``[C, M]``; client i is considered up to ``threshold[i]``.
    """
    num_clients, num_subchannels = data.quality.shape
    own = np.empty((num_clients, num_subchannels), np.int64)
    count = np.zeros(num_clients, np.int64)
    down = np.zeros(num_clients)
    for k in range(num_subchannels):
        if owner[k] >= 0:
            _place(own, count, owner[k], k, data)
            down[owner[k]] += data.down_rate[owner[k], k]
    # Who may own what: lists by subchannel.
    options = np.empty((num_subchannels, num_clients), np.int64)
    num_options = np.zeros(num_subchannels, np.int64)
    for k in range(num_subchannels):
        for i in range(num_clients):
            if reduced[i, k] <= threshold[i]:
                options[k, num_options[k]] = i
                num_options[k] += 1

    rate = np.zeros(num_clients)
    price = np.zeros(num_clients)
    power = np.zeros(num_clients)
    late = np.zeros(num_clients)  # uplink and downlink
    for i in range(num_clients):
        if data.payload[i] > 0.0:
            rate[i] = data.payload[i] / max(tau1 - data.forward[i], 1e-9)
            price[i] = 1.0 / data.quality[i].max()
    excess_price = -1.0
    swap_budget = SWAP_BUDGET * threshold.max()

    # Power and lateness of each uplink with one subchannel less (its own) or more (any other).
    new_power = np.zeros((num_clients, num_subchannels))
    new_late = np.zeros((num_clients, num_subchannels))
    stale = np.ones(num_clients, np.bool_)
    steps = 0
    cursor = 0
    while steps < max_steps:
        slope = 0.0
        for i in range(num_clients):
            if not stale[i]:
                continue
            stale[i] = False
            # As it is, then with each change.
            for k in range(-1, num_subchannels):
                skip = extra = -1
                rest = down[i]
                if k >= 0:
                    if owner[k] == i:
                        if count[i] <= 1:
                            continue
                        skip = k
                        rest -= data.down_rate[i, k]
                    elif reduced[i, k] <= threshold[i]:
                        extra = k
                        rest += data.down_rate[i, k]
                    else:
                        continue
                need, later, marginal = uplink_demand(
                    i, skip, extra, own, count, rate, price, tau1, data, levels
                )
                later += _late(i, rest, tau2, data)
                if k >= 0:
                    new_power[i, k], new_late[i, k] = need, later
                else:
                    power[i], late[i] = need, later
                    if marginal > 0.0:
                        price[i] = marginal
                        slope += marginal * rate[i] / max(tau1 - data.forward[i], 1e-9)
        if excess_price < 0.0:
            excess_price = max(power_price, 1.0 / slope if slope > 0.0 else 1.0)
        total = power.sum()
        charge = _charge(total, power_price, excess_price)
        # The best single move.
        gain = LEAST_GAIN
        move_k = -1
        move_to = -1
        for k in range(num_subchannels):
            i = owner[k]
            before = charge
            rest = total
            if i >= 0:
                if count[i] <= 1:
                    continue
                before += late[i] - new_late[i, k]
                rest += new_power[i, k] - power[i]
            for n in range(num_options[k]):
                j = options[k, n]
                if j == i:
                    continue
                after = _charge(rest + new_power[j, k] - power[j], power_price, excess_price)
                won = before + late[j] - new_late[j, k] - after
                if won > gain:
                    gain, move_k, move_to = won, k, j
        swap_k = -1
        if move_k < 0:
            # No move helps: the best swap of the first subchannel, from where the last one was found,
            # that has one.
            for offset in range(num_subchannels):
                k = (cursor + offset) % num_subchannels
                i = owner[k]
                if i < 0:
                    continue
                for n in range(num_options[k]):
                    j = options[k, n]
                    if j == i:
                        continue
                    for position in range(count[j]):
                        other = own[j, position]
                        if reduced[i, other] > threshold[i]:
                            continue
                        # What the dual says such a swap loses.
                        loss = reduced[j, k] - reduced[i, k] + reduced[i, other] - reduced[j, other]
                        if loss > swap_budget:
                            continue
                        won = charge + late[i] + late[j]
                        won -= _late(i, down[i] - data.down_rate[i, k] + data.down_rate[i, other], tau2, data)
                        won -= _late(j, down[j] + data.down_rate[j, k] - data.down_rate[j, other], tau2, data)
                        # Neither can need less than with both subchannels.
                        rest = total - power[i] - power[j]
                        least = rest + new_power[i, other] + new_power[j, k]
                        if won - _charge(least, power_price, excess_price) <= gain:
                            continue
                        for side in range(2):
                            who, gone, gained = (i, k, other) if side == 0 else (j, other, k)
                            need, later, _ = uplink_demand(
                                who, gone, gained, own, count, rate, price, tau1, data, levels
                            )
                            won -= later
                            rest += need
                            least = rest + new_power[j, k] if side == 0 else rest
                            if won - _charge(least, power_price, excess_price) <= gain:
                                break
                        won -= _charge(rest, power_price, excess_price)
                        if side == 0:
                            continue
                        if won > gain:
                            gain, move_k, move_to, swap_k = won, k, j, other
                if swap_k >= 0:
                    cursor = k
                    break
            if move_k < 0:
                return steps
        i, j = owner[move_k], move_to
        if i >= 0:
            _displace(own, count, i, move_k)
            down[i] -= data.down_rate[i, move_k]
        if swap_k >= 0:
            _displace(own, count, j, swap_k)
            down[j] -= data.down_rate[j, swap_k]
            _place(own, count, i, swap_k, data)
            down[i] += data.down_rate[i, swap_k]
            owner[swap_k] = i
        _place(own, count, j, move_k, data)
        down[j] += data.down_rate[j, move_k]
        owner[move_k] = j
        if i >= 0:
            stale[i] = True
        stale[j] = True
        steps += 1
    return steps


@kernel
def _draw(state: IntArray, limit: int) -> int:
    """Return a pseudo-random number below `limit` (a linear congruential generator, seeded by us)."""
    state[0] = (state[0] * 1103515245 + 12345) & 0x7FFFFFFF
    return (state[0] >> 8) % limit


@kernel
def _perturb(
    owner: IntArray, changes: int, reduced: FloatArray, threshold: FloatArray, state: IntArray
) -> None:
    """Give a few subchannels to other plausible owners; everyone keeps one."""
    num_clients, num_subchannels = reduced.shape
    count = np.zeros(num_clients, np.int64)
    for k in range(num_subchannels):
        if owner[k] >= 0:
            count[owner[k]] += 1
    for _ in range(200):
        k = _draw(state, num_subchannels)
        j = _draw(state, num_clients)
        if reduced[j, k] <= threshold[j] and owner[k] != j and (owner[k] < 0 or count[owner[k]] > 1):
            if owner[k] >= 0:
                count[owner[k]] -= 1
            owner[k] = j
            count[j] += 1
            changes -= 1
            if changes == 0:
                return


@kernel
def _settle(
    owner: IntArray,
    tau1: float,
    tau2: float,
    power_price: float,
    data: CutData,
    levels: Levels,
    reduced: FloatArray,
    threshold: FloatArray,
    rounds: int,
) -> tuple[float, float]:
    """Descend, re-centre tau1 on the result, and repeat while it pays; return its exact deadlines."""
    trial = owner.copy()
    best1, best2 = math.inf, math.inf
    for _ in range(rounds):
        steps = descend(trial, tau1, tau2, power_price, data, levels, reduced, threshold, 4 * len(owner))
        new1, new2 = exact_latency(trial, data, levels)
        if new1 + new2 < best1 + best2 - LEAST_GAIN:
            best1, best2 = new1, new2
            owner[:] = trial
        else:
            break
        if steps == 0:
            break
        tau1 = new1
    return best1, best2


@kernel
def search(
    starts: IntArray,
    tau1: float,
    tau2: float,
    bound: float,
    power_price: float,
    data: CutData,
    levels: Levels,
    reduced: FloatArray,
    kicks: int,
    good_enough: float,
    state: IntArray,
) -> tuple[float, float, IntArray]:
    """Return the best assignment found with its exact deadlines: (tau1, tau2, owners ``[M]``).

    From each start, around the deadlines of the dual with different shares for tau2; then from the
    best assignment with a few subchannels given to other plausible owners.

    Parameters
    ----------
    starts
        Assignments ``[S, M]`` that give every client a subchannel.
    tau1, tau2
        Deadlines of the dual solution.
    bound
        Lower bound on tau1 + tau2.
    power_price
        nu_0 of the dual.
    kicks
        How many perturbed starts to try.
    good_enough
        Stop within this relative gap.
    state
        Of the pseudo-random generator ``[1]``.
    """
    num_clients, num_subchannels = data.quality.shape
    best1, best2 = math.inf, math.inf
    best = starts[0].copy()
    for s in range(len(starts)):
        new1, new2 = exact_latency(starts[s], data, levels)
        if new1 + new2 < best1 + best2:
            best1, best2 = new1, new2
            best[:] = starts[s]
    # A handful of owners per subchannel: at large sizes the gap alone rules out nobody.
    flat = np.sort(reduced.copy().reshape(-1))
    plausible = flat[min(len(flat) - 1, OPTIONS_PER_SUBCHANNEL * num_subchannels)]
    # And for everyone a few times what it needs.
    own_plausible = np.empty(num_clients)
    own_options = min(num_subchannels - 1, 4 + 3 * num_subchannels // num_clients)
    for i in range(num_clients):
        own_plausible[i] = max(plausible, np.sort(reduced[i])[own_options])
    current = best.copy()
    current1, current2 = best1, best2
    opening = 3 * len(starts)
    for turn in range(opening + kicks):
        gap = min(best1 + best2 - bound, WIDEST_GAP)
        if gap <= good_enough * bound:
            break
        limit = np.minimum(own_plausible, gap)
        if turn < opening:
            trial = starts[turn // 3].copy() if turn % 3 == 0 else best.copy()
            aim1 = tau1 + 0.4 * gap
            aim2 = tau2 + (0.15 + 0.25 * (turn % 3)) * gap
        else:
            trial = current.copy()
            if turn % 2 == 1:
                _perturb(trial, 2 + _draw(state, 3), reduced, limit, state)
            # Aim between bound and incumbent, the room divided at random: other aims, other landscapes.
            room = 0.01 * (30 + _draw(state, 70))
            share = 0.01 * _draw(state, 100)
            aim1 = tau1 + room * (1.0 - share) * gap
            aim2 = tau2 + room * share * gap
        rounds = 4 if turn < opening else 2
        new1, new2 = _settle(trial, aim1, aim2, power_price, data, levels, reduced, limit, rounds)
        if new1 + new2 < current1 + current2 + 0.1 * gap:
            current1, current2 = new1, new2
            current[:] = trial
        if new1 + new2 < best1 + best2:
            best1, best2 = new1, new2
            best[:] = trial
    return best1, best2, best


@kernel
def enumerate_owners(
    best: IntArray,
    bound: float,
    data: CutData,
    levels: Levels,
    reduced: FloatArray,
    most: int,
) -> tuple[float, float, bool]:
    """Try every assignment that can beat `best`, in place; return (tau1, tau2, whether it did).

    Does nothing if there are more than `most`.  A better plan holds only owners, and owners together,
    whose reduced costs stay within the gap.
    """
    num_clients, num_subchannels = data.quality.shape
    best1, best2 = exact_latency(best, data, levels)
    gap = best1 + best2 - bound
    options = np.empty((num_subchannels, num_clients), np.int64)
    num_options = np.zeros(num_subchannels, np.int64)
    total = 1
    for k in range(num_subchannels):
        for i in range(num_clients):
            if reduced[i, k] <= gap:
                options[k, num_options[k]] = i
                num_options[k] += 1
        total *= num_options[k]
        if total > most:
            return best1, best2, False
    digit = np.zeros(num_subchannels, np.int64)
    owner = np.empty(num_subchannels, np.int64)
    count = np.empty(num_clients, np.int64)
    for _ in range(total):
        count[:] = 0
        loss = 0.0
        for k in range(num_subchannels):
            owner[k] = options[k, digit[k]]
            count[owner[k]] += 1
            loss += reduced[owner[k], k]
        if loss <= best1 + best2 - bound and count.min() > 0:
            new1, new2 = exact_latency(owner, data, levels)
            if new1 + new2 < best1 + best2:
                best1, best2 = new1, new2
                best[:] = owner
        k = 0
        while k < num_subchannels:
            digit[k] += 1
            if digit[k] < num_options[k]:
                break
            digit[k] = 0
            k += 1
    return best1, best2, True
