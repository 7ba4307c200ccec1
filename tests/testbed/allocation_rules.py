"""The rules of an allocation, written out once more: plain Python, one loop per formula.

Shares no code with the project.  It also holds what several test modules make problems with.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from testbed.allocator.problem import Problem

DATA = Path(__file__).parent / "data"
INSTANCES = ("c3m8_s100", "c3m8_s101", "c5m20_s100", "c5m20_s102")
SLACK = 1e-9


def load(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


def efficiency(instance: dict[str, Any], model: str, snr: float) -> float:
    if model == "shannon":
        return math.log2(1 + snr) if snr > 1e-6 else snr / math.log(2) * (1 - snr / 2)
    met = [
        step
        for step, threshold_db in zip(instance["mcs_eff"], instance["mcs_snr_db"], strict=True)
        if snr * (1 + SLACK) >= 10 ** (threshold_db / 10)
    ]
    return max(met, default=0.0)


def judge(instance: dict[str, Any], decision: dict[str, Any], model: str) -> tuple[float, list[str]]:
    """Latency [s] and broken rules of a decision for an instance, both as JSON types."""
    clients, subchannels = range(instance["C"]), range(instance["M"])
    width, owner, psd = instance["bandwidth"], decision["assignment"], decision["psd"]
    broken = []
    assert len(owner) == len(psd) == instance["M"]
    assert all(o is None or (type(o) is int and 0 <= o < instance["C"]) for o in owner)
    assert all(type(p) is float and math.isfinite(p) for p in psd)
    assert type(decision["cut"]) is int
    assert 1 <= decision["cut"] <= instance["L"] - 1
    for k in subchannels:
        if psd[k] < 0 or (owner[k] is None and psd[k] != 0):
            broken.append(f"psd of subchannel {k}")
    spent = [math.fsum(psd[k] * width[k] for k in subchannels if owner[k] == i) for i in clients]
    for i in clients:
        if i not in owner:
            broken.append(f"client {i} has nothing")
        if spent[i] > instance["p_max"][i] * (1 + SLACK):
            broken.append(f"client {i} is too loud")
    if math.fsum(spent) > instance["p_th"] * (1 + SLACK):
        broken.append("all together are too loud")

    def rate(i: int, k: int, density: float) -> float:
        snr = density * instance["G"] * instance["gain"][i][k] / instance["sigma2"]
        return width[k] * efficiency(instance, model, snr)

    def seconds(bits: float, bps: float) -> float:
        if bits == 0:
            return 0.0
        return bits / bps if bps > 0 else math.inf

    cut, batch = decision["cut"] - 1, instance["b"]
    merged = math.ceil(instance["phi"] * batch - 1e-12)
    forward, backward = instance["rho"], instance["omega"]
    up, down, everywhere = [], [], []
    for i in clients:
        speed = instance["f"][i] / instance["kappa"][i]
        own = [k for k in subchannels if owner[k] == i]
        sent = math.fsum(rate(i, k, psd[k]) for k in own)
        heard = math.fsum(rate(i, k, instance["p_dl"]) for k in own)
        everywhere.append(math.fsum(rate(i, k, instance["p_dl"]) for k in subchannels))
        up.append(batch * forward[cut] / speed + seconds(batch * instance["psi"][cut], sent))
        down.append(batch * backward[cut] / speed + seconds((batch - merged) * instance["chi"][cut], heard))
    server = instance["f_s"] / instance["kappa_s"]
    samples = instance["C"] * batch
    server_forward = samples * (forward[-1] - forward[cut]) / server
    items = merged + instance["C"] * (batch - merged)
    inner = items * (backward[-2] - backward[cut])
    server_backward = (inner + samples * (backward[-1] - backward[-2])) / server
    broadcast = seconds(merged * instance["chi"][cut], min(everywhere))
    return max(up) + server_forward + server_backward + broadcast + max(down), broken


def small_problem(
    rng: np.random.Generator, num_clients: int, num_subchannels: int, **changes: Any
) -> Problem:
    """A problem of a few layers with SNRs around one, in units near one."""
    layers = 4
    values: dict[str, Any] = {
        "forward_flops": np.concatenate(([0.0], np.cumsum(rng.uniform(0.2, 1.0, layers)))),
        "backward_flops": np.concatenate(([0.0], np.cumsum(rng.uniform(0.4, 2.0, layers)))),
        "smashed_bits": rng.uniform(0.5, 4.0, layers + 1),
        "gradient_bits": rng.uniform(0.5, 4.0, layers + 1),
        "batch_size": np.full(num_clients, 4),
        "aggregation_ratio": float(rng.choice([0.0, 0.5, 1.0])),
        "client_flops_per_s": rng.uniform(5.0, 10.0, num_clients),
        "server_flops_per_s": 50.0,
        "bandwidth_hz": np.full(num_subchannels, 2.0),
        "uplink_snr_per_psd": 10 ** rng.uniform(-0.5, 1.5, (num_clients, num_subchannels)),
        "downlink_snr_per_psd": 10 ** rng.uniform(-0.5, 1.5, (num_clients, num_subchannels)),
        "downlink_psd_w_per_hz": 1.0,
        "max_power_w": rng.uniform(2.0, 6.0, num_clients),
        "total_power_w": 3.0 * num_clients,
        "mcs_efficiency": [0.3, 1.0, 2.2, 3.0],
        "mcs_snr": [0.3, 1.2, 4.5, 10.0],
        "broadcast": str(rng.choice(["whole-band", "per-subchannel"])),
    }
    return Problem(**{**values, **changes})


def assignments(num_clients: int, num_subchannels: int) -> list[np.ndarray]:
    """Every way to give all subchannels away so that each client has one."""
    return [
        np.array(owners)
        for owners in itertools.product(range(num_clients), repeat=num_subchannels)
        if len(set(owners)) == num_clients
    ]
