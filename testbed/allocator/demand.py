"""What a client's uplink takes with the subchannels it has, with one more, or with one less.

Kernels for the inner loop of :mod:`testbed.allocator.search`: least power for a rate, most rate for a
power, Shannon and MCS, on a list of subchannels sorted best first, without copying it.  Units are
those of :class:`testbed.allocator.dual.CutData`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from testbed.allocator.dual import CutData
from testbed.allocator.jit import kernel
from testbed.allocator.problem import FloatArray, IntArray

HOPELESS = 1e9  # stands for an infinite power or time, so that differences stay defined


class Levels(NamedTuple):
    """The MCS table with silence in front; empty for Shannon.

    Attributes
    ----------
    rate, snr
        Of every level ``[K + 1]``.
    hull
        Levels on the convex hull ``[H]``.
    slopes
        SNR per efficiency of each hull step ``[H - 1]``.
    """

    rate: FloatArray
    snr: FloatArray
    hull: IntArray
    slopes: FloatArray


@kernel
def _shannon_need(
    client: int, rate: float, skip: int, extra: int, own: IntArray, count: int, data: CutData
) -> tuple[float, float]:
    """Return (least power, marginal power) for a rate on the client's, without `skip`, with `extra`."""
    if rate <= 0.0:
        return 0.0, 0.0
    total_width = 0.0
    inverse = 0.0
    log_quality = 0.0
    log_level = math.inf
    position = 0
    pending = extra
    while True:
        if position < count and own[position] == skip:
            position += 1
            continue
        if position < count and (
            pending < 0 or data.quality[client, own[position]] >= data.quality[client, pending]
        ):
            k = own[position]
            position += 1
        elif pending >= 0:
            k = pending
            pending = -1
        else:
            break
        log_own = data.log_quality[client, k]
        if log_own == -math.inf or (total_width > 0.0 and log_level + log_own <= 0.0):
            break
        total_width += data.width[k]
        inverse += data.width[k] / data.quality[client, k]
        log_quality += data.width[k] * log_own
        log_level = (rate - log_quality) / total_width
    if total_width == 0.0 or log_level > 60.0:
        return HOPELESS, HOPELESS
    level = math.exp(log_level)
    return max(0.0, level * total_width - inverse), level


@kernel
def _mcs_need(
    client: int,
    rate: float,
    skip: int,
    extra: int,
    own: IntArray,
    count: int,
    data: CutData,
    levels: Levels,
    price: float,
) -> tuple[float, float]:
    """Return (little power for a rate, price of the last hull step); see :func:`_shannon_need`.

    Greedy along the hull from the levels of a guessed price, then the last step repaired with any
    level, then what the overshoot allows lowered again.
    """
    if rate <= 0.0:
        return 0.0, price
    wanted = rate * (1.0 - 1e-12)
    size = 0
    quality = np.empty(count + 1)
    width = np.empty(count + 1)
    rung = np.empty(count + 1, np.int64)
    top = len(levels.hull) - 1
    carried = 0.0
    for position in range(count + 1):
        k = own[position] if position < count else extra
        if k < 0 or k == skip or data.quality[client, k] <= 0.0:
            continue
        quality[size] = data.quality[client, k]
        width[size] = data.width[k]
        limit = price * quality[size]
        low, high = 0, top
        while low < high:
            middle = (low + high) // 2
            if levels.slopes[middle] < limit:
                low = middle + 1
            else:
                high = middle
        rung[size] = low
        carried += width[size] * levels.rate[levels.hull[low]]
        size += 1
    while carried < wanted:
        best = -1
        cheapest = math.inf
        for n in range(size):
            if rung[n] < top and levels.slopes[rung[n]] / quality[n] < cheapest:
                best, cheapest = n, levels.slopes[rung[n]] / quality[n]
        if best < 0:
            return HOPELESS, price
        low = levels.hull[rung[best]]
        rung[best] += 1
        carried += width[best] * (levels.rate[levels.hull[rung[best]]] - levels.rate[low])
    # Take back hull steps, dearest first; the one that breaks the rate stays out, to be repaired.
    while True:
        best = -1
        dearest = -1.0
        for n in range(size):
            if rung[n] > 0 and levels.slopes[rung[n] - 1] / quality[n] > dearest:
                best, dearest = n, levels.slopes[rung[n] - 1] / quality[n]
        if best < 0:  # rounding left a trace of a rate that is tiny
            break
        high = levels.hull[rung[best]]
        rung[best] -= 1
        carried -= width[best] * (levels.rate[high] - levels.rate[levels.hull[rung[best]]])
        if carried < wanted:
            break
    power = 0.0
    cost = math.inf
    chosen = -1
    chosen_level = 0
    for n in range(size):
        rung[n] = levels.hull[rung[n]]  # from here on: levels of the whole table
        power += width[n] * levels.snr[rung[n]] / quality[n]
    for n in range(size):
        for level in range(rung[n] + 1, len(levels.snr)):
            if carried + width[n] * (levels.rate[level] - levels.rate[rung[n]]) >= wanted:
                rise = width[n] * (levels.snr[level] - levels.snr[rung[n]]) / quality[n]
                if rise < cost:
                    cost, chosen, chosen_level = rise, n, level
                break
    if chosen < 0:
        return HOPELESS, price
    carried += width[chosen] * (levels.rate[chosen_level] - levels.rate[rung[chosen]])
    rung[chosen] = chosen_level
    power += cost
    while True:
        saving = 0.0
        chosen = -1
        for n in range(size):
            for level in range(rung[n]):
                if carried - width[n] * (levels.rate[rung[n]] - levels.rate[level]) >= wanted:
                    saved = width[n] * (levels.snr[rung[n]] - levels.snr[level]) / quality[n]
                    if saved > saving:
                        saving, chosen, chosen_level = saved, n, level
                    break
        if chosen < 0:
            return power, dearest
        carried -= width[chosen] * (levels.rate[rung[chosen]] - levels.rate[chosen_level])
        rung[chosen] = chosen_level
        power -= saving


@kernel
def _shannon_reach(
    client: int, power: float, skip: int, extra: int, own: IntArray, count: int, data: CutData
) -> float:
    """Return the most rate for a power on the client's subchannels, without `skip`, with `extra`."""
    total_width = 0.0
    inverse = 0.0
    log_quality = 0.0
    level = 0.0
    position = 0
    pending = extra
    while True:
        if position < count and own[position] == skip:
            position += 1
            continue
        if position < count and (
            pending < 0 or data.quality[client, own[position]] >= data.quality[client, pending]
        ):
            k = own[position]
            position += 1
        elif pending >= 0:
            k = pending
            pending = -1
        else:
            break
        quality = data.quality[client, k]
        if quality <= 0.0 or (total_width > 0.0 and level * quality <= 1.0):
            break
        total_width += data.width[k]
        inverse += data.width[k] / quality
        log_quality += data.width[k] * data.log_quality[client, k]
        level = (power + inverse) / total_width
    return total_width * math.log(level) + log_quality if total_width > 0.0 else 0.0


@kernel
def _mcs_reach(
    client: int,
    power: float,
    skip: int,
    extra: int,
    own: IntArray,
    count: int,
    data: CutData,
    levels: Levels,
) -> float:
    """Return the rate that a power reaches along the hull, its last step in part."""
    size = 0
    quality = np.empty(count + 1)
    width = np.empty(count + 1)
    rung = np.zeros(count + 1, np.int64)
    top = len(levels.hull) - 1
    for position in range(count + 1):
        k = own[position] if position < count else extra
        if k < 0 or k == skip or data.quality[client, k] <= 0.0:
            continue
        quality[size] = data.quality[client, k]
        width[size] = data.width[k]
        size += 1
    rate = 0.0
    spent = 0.0
    while True:
        best = -1
        cheapest = math.inf
        for n in range(size):
            if rung[n] < top and levels.slopes[rung[n]] / quality[n] < cheapest:
                best, cheapest = n, levels.slopes[rung[n]] / quality[n]
        if best < 0:
            return rate
        low, high = levels.hull[rung[best]], levels.hull[rung[best] + 1]
        more = width[best] * (levels.rate[high] - levels.rate[low])
        if spent + more * cheapest > power:
            return rate + (power - spent) / cheapest
        spent += more * cheapest
        rate += more
        rung[best] += 1


@kernel
def uplink_demand(
    client: int,
    skip: int,
    extra: int,
    own: IntArray,
    count: IntArray,
    rate: FloatArray,
    price: FloatArray,
    tau1: float,
    data: CutData,
    levels: Levels,
) -> tuple[float, float, float]:
    """Return (power within the client's limit, lateness of its uplink after tau1, marginal power).

    The marginal is what one more unit of rate takes; 0 at the limit.
    """
    limit = data.max_power[client]
    if rate[client] <= 0.0:
        return 0.0, 0.0, 0.0
    list_, held = own[client], count[client]
    shannon = len(levels.slopes) == 0
    if shannon:
        power, marginal = _shannon_need(client, rate[client], skip, extra, list_, held, data)
    else:
        power, marginal = _mcs_need(
            client, rate[client], skip, extra, list_, held, data, levels, price[client]
        )
    if power <= limit:
        return power, 0.0, marginal
    if shannon:
        reach = _shannon_reach(client, limit, skip, extra, list_, held, data)
    else:
        reach = _mcs_reach(client, limit, skip, extra, list_, held, data, levels)
    if reach <= 1e-12:
        return limit, HOPELESS, 0.0
    return limit, max(0.0, data.forward[client] + data.payload[client] / reach - tau1), 0.0
