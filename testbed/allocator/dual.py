"""A lower bound on the latency of a cut, from Lagrangian duality, and the prices that prove it.

For a fixed cut the round lasts tau1 + tau2 + constant, subject to

    sum_k x_ik r_ik(p_k) >= D_i / (tau1 - F_i)      (uplink; price lambda_i)
    sum_k x_ik d_ik      >= E_i / (tau2 - B_i)      (unicast; price mu_i)
    sum_k x_ik B_k p_k   <= P_i,  over all: <= P    (power; prices nu_i and nu_0)

With c_i = nu_i + nu_0 the dual function splits per subchannel:

    g = min_tau1 [tau1 + sum_i lambda_i D_i / (tau1 - F_i)] + min_tau2 [tau2 + sum_i mu_i E_i / (tau2 - B_i)]
        - sum_k max_i phi_ik - sum_i nu_i P_i - nu_0 P
    phi_ik = max_p [lambda_i r_ik(p) - c_i B_k p] + mu_i d_ik

Any non-negative prices give a valid bound.  Good ones are found by Newton's method in the logarithms
of the prices on a smoothed dual: max_i, and the choice of an MCS level, become log-sum-exp with a
temperature that is lowered in stages.  The bound itself is taken without smoothing.

All quantities here are in units of :class:`CutData`: time in a typical latency, power in the total
limit, bandwidth in the mean subchannel, rates in nats (Shannon) or bits (MCS) per that bandwidth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from testbed.allocator.jit import kernel
from testbed.allocator.problem import FloatArray, IntArray

# Terms below exp(-CUTOFF) of the largest are left out of the smoothed derivatives.
CUTOFF = 14.0
STEPS_PER_TEMPERATURE = 25
SETTLED = 0.05  # share of the smoothing loss that a Newton step must promise to be worth taking
MAX_LOG_STEP = 1.5  # prices change by at most this factor's exponential in one Newton step
# The referee of a bound may allow a relative 1e-9 in power and in thresholds.
BOUND_SAFETY = 1e-8


class CutData(NamedTuple):
    """One cut in natural units, as the kernels take it.

    Attributes
    ----------
    forward, payload
        F_i and D_i ``[C]``.
    backward, unicast
        B_i and E_i ``[C]``.
    quality, log_quality
        SNR per power per bandwidth unit, and its logarithm (-inf for none) ``[C, M]``.
    down_rate
        d_ik ``[C, M]``.
    width
        Bandwidth ``[M]``.
    max_power
        P_i ``[C]``; the total limit P is 1.
    level_rate, level_snr
        Convex-hull steps of the MCS table, silence first ``[H]``; empty for Shannon.
    """

    forward: FloatArray
    payload: FloatArray
    backward: FloatArray
    unicast: FloatArray
    quality: FloatArray
    log_quality: FloatArray
    down_rate: FloatArray
    width: FloatArray
    max_power: FloatArray
    level_rate: FloatArray
    level_snr: FloatArray


@kernel
def _deadline_term(weight: FloatArray, offset: FloatArray) -> tuple[float, float, float]:
    """Return (value, tau, curvature) of min over tau >= max(offset) of tau + sum weight/(tau - offset).

    The curvature is the second derivative at tau, infinite where tau is held by its lower limit.
    """
    floor = -math.inf
    tau = -math.inf
    for i in range(len(offset)):
        floor = max(floor, offset[i])
        tau = max(tau, offset[i] + math.sqrt(weight[i]))
    # sum weight / (tau - offset)^2 - 1 is convex and falling, and not negative here: Newton from
    # the left never passes the root.
    for _ in range(60):
        value = -1.0
        slope = 0.0
        for i in range(len(offset)):
            if weight[i] > 0.0:
                inverse = 1.0 / (tau - offset[i])
                value += weight[i] * inverse * inverse
                slope += 2.0 * weight[i] * inverse * inverse * inverse
        if value <= 1e-14 or slope <= 0.0:
            break
        tau += value / slope
    total = tau
    curvature = 0.0
    for i in range(len(offset)):
        if weight[i] > 0.0:
            inverse = 1.0 / (tau - offset[i])
            total += weight[i] * inverse
            curvature += 2.0 * weight[i] * inverse * inverse * inverse
    if curvature <= 0.0 or tau <= floor:
        return total, tau, math.inf
    return total, tau, curvature


@kernel
def _best_level(ratio: float, slopes: FloatArray) -> int:
    """Return the hull level where one more bit costs more than it is worth."""
    low, high = 0, len(slopes)
    while low < high:
        middle = (low + high) // 2
        if slopes[middle] < ratio:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def evaluate_dual(
    prices: FloatArray,
    temperature: float,
    data: CutData,
    slopes: FloatArray,
    derivatives: bool,
    gradient: FloatArray,
    hessian: FloatArray,
) -> tuple[float, float, float]:
    """Return (smoothed dual, exact dual, entropy); writes gradient and minus the Hessian.

    The entropy [nat] times the temperature is what smoothing costs at most.

    Parameters
    ----------
    prices
        lambda, mu, nu ``[3 C]`` and nu_0: ``[3 C + 1]``.
    slopes
        SNR per efficiency of each hull step ``[H - 1]``; empty for Shannon.
    """
    num_clients, num_subchannels = data.quality.shape
    size = 3 * num_clients + 1
    shannon = len(slopes) == 0
    shared = prices[size - 1]
    up_value, up_tau, up_curvature = _deadline_term(prices[:num_clients] * data.payload, data.forward)
    down_value, down_tau, down_curvature = _deadline_term(
        prices[num_clients : 2 * num_clients] * data.unicast, data.backward
    )
    linear = up_value + down_value - shared
    cost = np.empty(num_clients)
    log_ratio = np.empty(num_clients)
    for i in range(num_clients):
        nu = prices[2 * num_clients + i]
        linear -= nu * data.max_power[i]
        cost[i] = nu + shared
        log_ratio[i] = math.log(prices[i] / cost[i]) if prices[i] > 0.0 else -math.inf
    if derivatives:
        gradient[:] = 0.0
        hessian[:, :] = 0.0
        for i in range(num_clients):
            if prices[i] > 0.0 and data.payload[i] > 0.0:
                gradient[i] = data.payload[i] / (up_tau - data.forward[i])
            if prices[num_clients + i] > 0.0 and data.unicast[i] > 0.0:
                gradient[num_clients + i] = data.unicast[i] / (down_tau - data.backward[i])
        for i in range(num_clients):
            for j in range(num_clients):
                if gradient[i] > 0.0 and gradient[j] > 0.0:
                    hessian[i, j] = (
                        gradient[i] / (up_tau - data.forward[i]) * gradient[j] / (up_tau - data.forward[j])
                    ) / up_curvature
                a, b = num_clients + i, num_clients + j
                if gradient[a] > 0.0 and gradient[b] > 0.0:
                    hessian[a, b] = (
                        gradient[a]
                        / (down_tau - data.backward[i])
                        * gradient[b]
                        / (down_tau - data.backward[j])
                    ) / down_curvature

    smooth = linear
    exact = linear
    entropy = 0.0
    log_slopes = np.log(slopes)
    phi = np.empty(num_clients)
    level = np.zeros(num_clients, np.int64)
    active = np.empty(num_clients, np.int64)
    mean = np.empty((num_clients, 3))
    block = np.zeros((num_clients, 6))
    for k in range(num_subchannels):
        width = data.width[k]
        largest = -math.inf
        for i in range(num_clients):
            value = prices[num_clients + i] * data.down_rate[i, k]
            log_water = log_ratio[i] + data.log_quality[i, k]
            if shannon:
                if log_water > 0.0:
                    value += width * (prices[i] * (log_water - 1.0) + cost[i] / data.quality[i, k])
            elif log_water > log_slopes[0]:
                best = _best_level(log_water, log_slopes)
                level[i] = best
                value += width * (
                    prices[i] * data.level_rate[best] - cost[i] * data.level_snr[best] / data.quality[i, k]
                )
            else:
                level[i] = 0
            phi[i] = value
            if value > largest:
                largest = value
        exact -= largest
        floor = largest - CUTOFF * temperature
        num_active = 0
        mass = 0.0
        tilt = 0.0
        for i in range(num_clients):
            if phi[i] < floor:
                continue
            m0 = m1 = m2 = 0.0
            h0 = h1 = h2 = h3 = h4 = h5 = 0.0
            down = data.down_rate[i, k]
            if shannon:
                weight = math.exp((phi[i] - largest) / temperature)
                mass += weight
                tilt += weight * (phi[i] - largest)
                log_water = log_ratio[i] + data.log_quality[i, k]
                rate = 0.0
                power = 0.0
                if log_water > 0.0:
                    rate = width * log_water
                    power = width * (prices[i] / cost[i] - 1.0 / data.quality[i, k])
                    h0 = weight * width / prices[i]
                    h2 = -weight * width / cost[i]
                    h5 = weight * width * prices[i] / (cost[i] * cost[i])
                m0, m1, m2 = weight * rate, weight * down, -weight * power
                h0 += m0 * rate / temperature
                h1 += m0 * down / temperature
                h2 += -m0 * power / temperature
                h3 += m1 * down / temperature
                h4 += -m1 * power / temperature
                h5 += -m2 * power / temperature
            else:
                base = prices[num_clients + i] * down
                inverse = 1.0 / data.quality[i, k] if data.quality[i, k] > 0.0 else 0.0
                for direction in range(2):
                    step = 1 if direction else -1
                    option = level[i] + direction
                    while 0 <= option < len(data.level_rate):
                        if option > 0 and inverse == 0.0:
                            break
                        rate = width * data.level_rate[option]
                        power = width * data.level_snr[option] * inverse
                        value = base + prices[i] * rate - cost[i] * power
                        if value < floor:
                            break
                        weight = math.exp((value - largest) / temperature)
                        mass += weight
                        tilt += weight * (value - largest)
                        m0 += weight * rate
                        m1 += weight * down
                        m2 -= weight * power
                        h0 += weight * rate * rate / temperature
                        h1 += weight * rate * down / temperature
                        h2 -= weight * rate * power / temperature
                        h3 += weight * down * down / temperature
                        h4 -= weight * down * power / temperature
                        h5 += weight * power * power / temperature
                        option += step
            active[num_active] = i
            mean[num_active, 0], mean[num_active, 1], mean[num_active, 2] = m0, m1, m2
            block[num_active, 0], block[num_active, 1], block[num_active, 2] = h0, h1, h2
            block[num_active, 3], block[num_active, 4], block[num_active, 5] = h3, h4, h5
            num_active += 1
        log_mass = math.log(mass)
        smooth -= largest + temperature * log_mass
        entropy += log_mass - tilt / (mass * temperature)
        if not derivatives:
            continue
        for n in range(num_active):
            i = active[n]
            a, b, c = i, num_clients + i, 2 * num_clients + i
            for m in range(3):
                mean[n, m] /= mass
            gradient[a] -= mean[n, 0]
            gradient[b] -= mean[n, 1]
            gradient[c] -= mean[n, 2]
            hessian[a, a] += block[n, 0] / mass
            hessian[a, b] += block[n, 1] / mass
            hessian[a, c] += block[n, 2] / mass
            hessian[b, b] += block[n, 3] / mass
            hessian[b, c] += block[n, 4] / mass
            hessian[c, c] += block[n, 5] / mass
        # Only the upper triangle is filled, in the order lambda < mu < nu and by client.
        for n in range(num_active):
            for m in range(n, num_active):
                for s in range(3):
                    scaled = mean[n, s] / temperature
                    row = s * num_clients + active[n]
                    for t in range(3):
                        column = t * num_clients + active[m]
                        if row <= column:
                            hessian[row, column] -= scaled * mean[m, t]
                        elif n != m:
                            hessian[column, row] -= scaled * mean[m, t]
    if derivatives:
        _share_power_price(data.max_power, gradient, hessian, num_clients)
    return smooth, exact, entropy


@kernel
def _share_power_price(
    max_power: FloatArray, gradient: FloatArray, hessian: FloatArray, num_clients: int
) -> None:
    """Mirror the upper triangle and add nu_0, which acts on every c_i, to gradient and Hessian."""
    last = 3 * num_clients
    for row in range(last):
        for column in range(row):
            hessian[row, column] = hessian[column, row]
    gradient[last] = -1.0
    corner = 0.0
    for i in range(num_clients):
        c = 2 * num_clients + i
        gradient[last] += gradient[c]
        for row in range(last):
            hessian[row, last] += hessian[row, c]
    for i in range(num_clients):
        corner += hessian[2 * num_clients + i, last]
        gradient[2 * num_clients + i] -= max_power[i]
    hessian[last, last] = corner
    for row in range(last):
        hessian[last, row] = hessian[row, last]


@kernel
def _solve_positive(matrix: FloatArray, right: FloatArray) -> bool:
    """Solve in place by Cholesky; False if the matrix is not positive definite."""
    size = len(right)
    for j in range(size):
        pivot = matrix[j, j]
        if not pivot > 0.0:
            return False
        root = math.sqrt(pivot)
        matrix[j, j] = root
        for i in range(j + 1, size):
            matrix[j, i] /= root  # row j of the upper factor
        for i in range(j + 1, size):
            factor = matrix[j, i]
            if factor != 0.0:
                for n in range(i, size):
                    matrix[i, n] -= factor * matrix[j, n]
    for j in range(size):
        right[j] /= matrix[j, j]
        for i in range(j + 1, size):
            right[i] -= matrix[j, i] * right[j]
    for j in range(size - 1, -1, -1):
        total = right[j]
        for i in range(j + 1, size):
            total -= matrix[j, i] * right[i]
        right[j] = total / matrix[j, j]
    return True


@kernel
def maximise_dual(
    prices: FloatArray,
    data: CutData,
    slopes: FloatArray,
    first_temperature: float,
    last_temperature: float,
    give_up_above: float,
    max_iterations: int,
    tolerance: float,
) -> tuple[float, int]:
    """Return (best exact bound, Newton iterations); `prices` becomes the last iterate.

    Stops as soon as the bound exceeds `give_up_above`: then the cut need not be solved.  A price
    that is zero stays zero.
    """
    size = len(prices)
    gradient = np.zeros(size)
    hessian = np.zeros((size, size))
    scaled = np.empty((size, size))
    step = np.zeros(size)
    trial = prices.copy()
    best = -math.inf
    temperature = first_temperature
    iterations = 0
    at_this_temperature = 0
    smooth = -math.inf  # nothing accepted yet at this temperature
    gain = 0.0
    length = 1.0
    shortenings = 0
    while True:
        reached, exact, entropy = evaluate_dual(trial, temperature, data, slopes, True, gradient, hessian)
        best = max(best, exact)
        if best > give_up_above:
            return best, iterations
        if not reached >= smooth + 1e-4 * length * gain and shortenings < 12:
            shortenings += 1
            length *= 0.4
            for row in range(size):
                trial[row] = prices[row] * math.exp(length * step[row])
            continue
        prices[:] = trial
        smooth = reached
        for row in range(size):
            for column in range(size):
                scaled[row, column] = prices[row] * hessian[row, column] * prices[column]
        for row in range(size):
            pull = prices[row] * gradient[row]
            step[row] = pull
            # In logarithms the Hessian has -pull on its diagonal; its size keeps the sign right.
            scaled[row, row] += abs(pull) + 1e-12
            if prices[row] == 0.0:
                scaled[row, row] = 1.0
                step[row] = 0.0
        if not _solve_positive(scaled, step):
            for row in range(size):
                pull = prices[row] * gradient[row]
                step[row] = pull / (prices[row] * prices[row] * hessian[row, row] + abs(pull) + 1e-9)
        gain = 0.0
        for row in range(size):
            step[row] = min(MAX_LOG_STEP, max(-MAX_LOG_STEP, step[row]))
            gain += step[row] * prices[row] * gradient[row]
        stuck = shortenings >= 12
        settled = gain <= max(SETTLED * temperature * entropy, tolerance)
        at_this_temperature += 1
        if settled or stuck or at_this_temperature >= STEPS_PER_TEMPERATURE:
            if temperature <= last_temperature:
                return best, iterations
            temperature = max(last_temperature, 0.25 * temperature)
            at_this_temperature = 0
            smooth = -math.inf
            gain = 0.0
            for row in range(size):
                trial[row] = prices[row]
            shortenings = 0
            continue
        if iterations >= max_iterations:
            return best, iterations
        iterations += 1
        length = 1.0
        shortenings = 0
        for row in range(size):
            trial[row] = prices[row] * math.exp(step[row])


@kernel
def dual_deadlines(prices: FloatArray, data: CutData) -> tuple[float, float]:
    """Return (tau1, tau2) at which these prices would have the deadlines."""
    num_clients = len(data.forward)
    _, tau1, _ = _deadline_term(prices[:num_clients] * data.payload, data.forward)
    _, tau2, _ = _deadline_term(prices[num_clients : 2 * num_clients] * data.unicast, data.backward)
    return tau1, tau2


@kernel
def reduced_costs(
    prices: FloatArray, temperature: float, data: CutData, slopes: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (reduced costs ``[C, M]``, shares ``[C, M]``, values ``[M]``) at these prices.

    Giving subchannel k to client i loses its reduced cost against the best owner.  The shares are
    those of the smoothed dual: how the subchannel would be divided if it could.
    """
    num_clients, num_subchannels = data.quality.shape
    loss = np.empty((num_clients, num_subchannels))
    share = np.empty((num_clients, num_subchannels))
    values = np.empty(num_subchannels)
    shared = prices[3 * num_clients]
    for k in range(num_subchannels):
        largest = -math.inf
        for i in range(num_clients):
            cost = prices[2 * num_clients + i] + shared
            value = prices[num_clients + i] * data.down_rate[i, k]
            quality = data.quality[i, k]
            water = prices[i] / cost * quality
            if len(slopes) == 0:
                if water > 1.0:
                    value += data.width[k] * (prices[i] * (math.log(water) - 1.0) + cost / quality)
            elif water > 0.0:
                best = _best_level(water, slopes)
                value += data.width[k] * (
                    prices[i] * data.level_rate[best] - cost * data.level_snr[best] / quality
                )
            loss[i, k] = value
            largest = max(largest, value)
        values[k] = largest
        mass = 0.0
        for i in range(num_clients):
            loss[i, k] = largest - loss[i, k]
            share[i, k] = math.exp(-min(700.0, loss[i, k] / temperature))
            quality = data.quality[i, k]
            if len(slopes) > 0 and quality > 0.0 and loss[i, k] < CUTOFF * temperature:
                # As many levels as are about as good.
                cost = prices[2 * num_clients + i] + shared
                base = prices[num_clients + i] * data.down_rate[i, k]
                share[i, k] = 0.0
                for level in range(len(data.level_rate)):
                    value = base + data.width[k] * (
                        prices[i] * data.level_rate[level] - cost * data.level_snr[level] / quality
                    )
                    share[i, k] += math.exp(max(-700.0, (value - largest) / temperature))
            mass += share[i, k]
        for i in range(num_clients):
            share[i, k] /= mass
    return loss, share, values


@kernel
def round_shares(share: FloatArray, values: FloatArray) -> IntArray:
    """Return owners ``[M]`` whose value per client comes close to its shares'.

    Subchannels in order of how clear the owner is; each goes to the client that so far has been
    given the least against its shares, among those with a share in it.
    """
    num_clients, num_subchannels = share.shape
    owner = np.empty(num_subchannels, np.int64)
    credit = np.zeros(num_clients)
    clarity = np.empty(num_subchannels)
    for k in range(num_subchannels):
        clarity[k] = -share[:, k].max()
    for k in np.argsort(clarity, kind="mergesort"):
        best = -1
        for i in range(num_clients):
            credit[i] += share[i, k] * values[k]
            if share[i, k] > 0.02 and (best < 0 or credit[i] > credit[best]):
                best = i
        owner[k] = best
        credit[best] -= values[k]
    return owner
