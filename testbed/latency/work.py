"""Floating-point work of the server in a round, by what carries the aggregated gradients."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

READINGS = ("layerwise", "individual", "merged")


def num_aggregated(aggregation_ratio: float, batch_sizes: ArrayLike) -> int:
    """m = ceil(phi max_i b_i): sample slots that are merged across clients.

    A product that is an integer up to rounding is not pushed to the next slot.
    """
    largest = int(np.max(np.asarray(batch_sizes)))
    return min(largest, math.ceil(aggregation_ratio * largest - 1e-12))


def server_work(
    forward_flops: ArrayLike,
    backward_flops: ArrayLike,
    cut: int,
    batch_sizes: ArrayLike,
    aggregation_ratio: float,
    reading: str,
) -> tuple[float, float]:
    """Forward and backward work of the server in one round [FLOP].

    With L layers, N = sum_i b_i samples, m merged slots and O = sum_i max(0, b_i - m) others, the
    latency formula (arXiv 2303.15991, reconstructed) has ::

        FP = N (rho_L - rho_j)
        BP = (m + O) (omega_{L-1} - omega_j) + N (omega_L - omega_{L-1})

    ``layerwise`` recomputes m items per layer in its backward pass, ``individual`` sends m virtual
    samples forward, ``merged`` has m + O items throughout.

    Parameters
    ----------
    forward_flops, backward_flops
        Cumulative per sample, ``[L + 1]`` (rho, omega).

    Raises
    ------
    ValueError
        For an unknown reading.
    """
    if reading not in READINGS:
        raise ValueError(f"{reading!r} is no reading of the aggregated backward pass: {', '.join(READINGS)}")
    rho, omega = np.asarray(forward_flops, float), np.asarray(backward_flops, float)
    samples = np.asarray(batch_sizes, float)
    merged = num_aggregated(aggregation_ratio, samples)
    items = merged + float(np.maximum(0.0, samples - merged).sum())
    total = float(samples.sum())
    below, top = rho[-2] - rho[cut], rho[-1] - rho[-2]
    below_back, top_back = omega[-2] - omega[cut], omega[-1] - omega[-2]
    if reading == "merged":
        return items * (below + top), items * (below_back + top_back)
    forward, backward = total * (below + top), items * below_back + total * top_back
    virtual = merged * below
    return (forward, backward + virtual) if reading == "layerwise" else (forward + virtual, backward)
