"""Random problems of the default scenario, as JSON instances.

The scenario is a reconstruction (check it against arXiv 2303.15991): clients uniform in a disk of
200 m, 28 GHz, close-in path loss with a line of sight at random, log-normal shadowing, and fading
over a bandwidth of at most 400 MHz.  What the paper's summary leaves open (exponents, shadowing,
delay spread, Rician factor, the share of lines of sight) was fitted to a handful of instances of
the same families and is marked below.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from radio.units import db_to_linear, dbm_to_watt
from testbed.allocator.problem import AllocationError, FloatArray

CARRIER_HZ = 28e9
SPEED_OF_LIGHT_M_PER_S = 299_792_458.0
CELL_RADIUS_M = 200.0
LEAST_DISTANCE_M = 10.0
MAX_BANDWIDTH_HZ = 400e6
SUBCHANNEL_HZ = 10e6  # until the band is full

# Fitted: with a line of sight, and without.
PATH_LOSS_EXPONENT = {True: 2.0, False: 3.1}
SHADOWING_DB = {True: 5.5, False: 7.5}
SIGHT_DECAY_M = 63.0
RICIAN_FACTOR = 4.2
DELAY_SPREAD_S = 45e-9
MAX_LOSS_DB = 136.0  # the server's PSD still reaches the first step of the table

# Spectral efficiencies of the 15 steps of LTE's CQI table (3GPP TS 36.213, table 7.2.3-1), with
# thresholds of a typical link-level curve.
MCS_EFFICIENCY = (
    0.1523, 0.2344, 0.377, 0.6016, 0.877, 1.1758, 1.4766, 1.9141,
    2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152, 5.5547,
)  # fmt: skip
MCS_SNR_DB = (-6.7, -4.7, -2.3, 0.2, 2.4, 4.3, 5.9, 8.1, 10.3, 11.7, 14.1, 16.3, 18.7, 21.0, 22.7)

FLOAT_BITS = 32
NUM_CLASSES = 7  # HAM10000
BACKWARD_PER_FORWARD = 2.0


def resnet18_tables(image_size: int) -> dict[str, list[float]]:
    """Return cumulative FLOPs and boundary bits of ResNet-18, one entry per stage ``[12]``.

    Stages: stem, pool, eight blocks, average pool, classifier.  A convolution costs two operations
    per multiply-accumulate; batch norm and activation together four per output.
    """
    forward: list[float] = []
    bits: list[float] = []
    total = 0.0

    def stage(flops: float, elements: float) -> None:
        nonlocal total
        total += flops
        forward.append(total)
        bits.append(float(FLOAT_BITS * elements))

    side, channels = math.ceil(image_size / 2), 64
    outputs = side * side * channels
    stage(outputs * (2 * 49 * 3 + 4), outputs)
    side = math.ceil(side / 2)
    outputs = side * side * channels
    stage(9 * outputs, outputs)
    for width in (64, 128, 256, 512):
        for _ in range(2):
            shortcut = 0 if width == channels else 2 * channels
            side = math.ceil(side / (1 if width == channels else 2))
            outputs = side * side * width
            stage(outputs * (2 * 9 * channels + 2 * 9 * width + shortcut + 8), outputs)
            channels = width
    stage(outputs, channels)
    stage(2 * channels * NUM_CLASSES, NUM_CLASSES)
    return {
        "rho": forward,
        "omega": [BACKWARD_PER_FORWARD * value for value in forward],
        "psi": bits,
        "chi": list(bits),
    }


def _fading(
    rng: np.random.Generator, num_subchannels: int, spacing_hz: float, rician_factor: float
) -> FloatArray:
    """Return power gains of mean one over frequency ``[M]``: exponential delay profile, Rician."""
    delays = np.linspace(0.0, 8 * DELAY_SPREAD_S, 160)
    profile = np.exp(-delays / DELAY_SPREAD_S)
    profile /= profile.sum()
    taps = np.sqrt(profile / 2) * (rng.standard_normal(160) + 1j * rng.standard_normal(160))
    frequency = spacing_hz * np.arange(num_subchannels)
    diffuse = np.exp(-2j * np.pi * frequency[:, None] * delays) @ taps
    specular = math.sqrt(rician_factor) * np.exp(2j * np.pi * rng.random())
    amplitude = (specular + diffuse) / math.sqrt(1 + rician_factor)
    return np.asarray(np.abs(amplitude) ** 2, dtype=np.float64)


def generate_instance(family: str, seed: int) -> dict[str, Any]:
    """Return a random instance of a family, ``cCmM`` for C clients and M subchannels.

    Parameters
    ----------
    family
        Such as ``c5m20``, the size of the paper.

    Raises
    ------
    AllocationError
        If the family is not of that form, or has fewer subchannels than clients.
    """
    match = re.fullmatch(r"c([1-9]\d*)m([1-9]\d*)", family)
    if not match:
        raise AllocationError("family", f"{family!r} is not of the form cCmM, such as c5m20")
    num_clients, num_subchannels = int(match[1]), int(match[2])
    if num_subchannels < num_clients:
        raise AllocationError("family", f"{family!r} has fewer subchannels than clients")
    rng = np.random.default_rng(seed)
    image_size = int(rng.choice([64, 224]))
    ratio = float(rng.choice([0.0, 0.5, 1.0]))
    spacing_hz = min(SUBCHANNEL_HZ, MAX_BANDWIDTH_HZ / num_subchannels)
    reference_db = 20 * math.log10(4 * math.pi * CARRIER_HZ / SPEED_OF_LIGHT_M_PER_S)  # at 1 m

    distances: list[float] = []
    sights: list[bool] = []
    gains: list[list[float]] = []
    while len(gains) < num_clients:
        squares = rng.uniform(LEAST_DISTANCE_M**2, CELL_RADIUS_M**2)
        distance = math.sqrt(squares)
        near = min(1.0, 18.0 / distance)
        fade = math.exp(-distance / SIGHT_DECAY_M)
        sight = bool(rng.random() < near * (1 - fade) + fade)
        loss_db = reference_db + 10 * PATH_LOSS_EXPONENT[sight] * math.log10(distance)
        loss_db += SHADOWING_DB[sight] * rng.standard_normal()
        fading = _fading(rng, num_subchannels, spacing_hz, RICIAN_FACTOR if sight else 0.0)
        if loss_db > MAX_LOSS_DB:
            continue  # out of coverage: not a client of this cell
        distances.append(distance)
        sights.append(sight)
        gains.append([float(gain) for gain in db_to_linear(-loss_db) * fading])
    tables = resnet18_tables(image_size)
    return {
        "name": f"{family}_s{seed}",
        "C": num_clients,
        "M": num_subchannels,
        "L": len(tables["rho"]),
        "seed": seed,
        "net": f"resnet18@{image_size}",
        **tables,
        "b": 64,
        "phi": ratio,
        "f": [float(f) for f in rng.uniform(1e9, 1.6e9, num_clients)],
        "f_s": 1e9 * max(5, num_clients),
        "kappa": [1 / 16] * num_clients,
        "kappa_s": 1 / 32,
        "bandwidth": [spacing_hz] * num_subchannels,
        "G": 10.0,
        "sigma2": float(dbm_to_watt(-174.0)),
        "gain": gains,
        "p_max": [float(dbm_to_watt(31.76))] * num_clients,
        "p_th": float(dbm_to_watt(36.99)) * num_clients / 5,
        "p_dl": float(dbm_to_watt(-50.0)),
        "mcs_eff": list(MCS_EFFICIENCY),
        "mcs_snr_db": list(MCS_SNR_DB),
        "distance": distances,
        "los": sights,
    }
