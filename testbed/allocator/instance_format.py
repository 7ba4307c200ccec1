"""Instances as JSON objects: one problem per file, in SI units.

The keys ``C M L rho omega psi chi b phi f kappa f_s kappa_s bandwidth gain G sigma2 p_max p_th p_dl
mcs_eff mcs_snr_db`` carry the symbols of the latency formula.  Layer tables hold layers 1..L, index
0 being layer 1.  Gains count for both directions.  Other keys are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from radio.units import db_to_linear
from testbed.allocator.problem import AllocationError, FloatArray, Problem


def _scalar(instance: Mapping[str, Any], name: str) -> float:
    value = instance.get(name)
    if name not in instance:
        raise AllocationError(name, "missing from the instance")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AllocationError(name, f"{value!r}, where a finite number is needed")
    return float(value)


def _count(instance: Mapping[str, Any], name: str, least: int) -> int:
    value = _scalar(instance, name)
    if value != int(value) or value < least:
        raise AllocationError(name, f"{value!r}, where a whole number of at least {least} is needed")
    return int(value)


def _vector(instance: Mapping[str, Any], name: str, length: int | None) -> FloatArray:
    if name not in instance:
        raise AllocationError(name, "missing from the instance")
    return _numbers(instance[name], name, length)


def _numbers(values: Any, name: str, length: int | None) -> FloatArray:
    if not isinstance(values, (list, tuple)):
        raise AllocationError(name, "a list of numbers is needed")
    if length is not None and len(values) != length:
        raise AllocationError(name, f"{len(values)} entries, where {length} are needed")
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise AllocationError(f"{name}[{index}]", f"{value!r}, where a finite number is needed")
    return np.array(values, dtype=np.float64)


def _at_least(name: str, values: FloatArray, *, positive: bool) -> None:
    wrong = values <= 0 if positive else values < 0
    if wrong.any():
        index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        where = name + "".join(f"[{axis}]" for axis in index)
        raise AllocationError(where, f"{values[index]!r} is {'not positive' if positive else 'negative'}")


def read_instance(instance: Mapping[str, Any]) -> Problem:
    """Return the problem of an instance.

    Raises
    ------
    AllocationError
        Naming the key that is missing, of another length than C, M and L say, negative or not finite.
    """
    if not isinstance(instance, Mapping):
        raise AllocationError("instance", "not a JSON object")
    num_clients = _count(instance, "C", 1)
    num_subchannels = _count(instance, "M", 1)
    num_layers = _count(instance, "L", 2)
    batch_size = _count(instance, "b", 1)
    if num_subchannels < num_clients:
        raise AllocationError("M", f"{num_subchannels} subchannels for {num_clients} clients")

    tables: dict[str, FloatArray] = {}
    for name in ("rho", "omega", "psi", "chi"):
        table = _vector(instance, name, num_layers)
        _at_least(name, table, positive=False)
        if name in ("rho", "omega") and (np.diff(table) < 0).any():
            raise AllocationError(name, "cumulative operations fall from one layer to the next")
        tables[name] = np.concatenate(([0.0], table))

    clients: dict[str, FloatArray] = {}
    for name in ("f", "kappa", "p_max"):
        clients[name] = _vector(instance, name, num_clients)
        _at_least(name, clients[name], positive=True)
    bandwidth = _vector(instance, "bandwidth", num_subchannels)
    _at_least("bandwidth", bandwidth, positive=True)

    rows = instance.get("gain")
    if not isinstance(rows, (list, tuple)) or len(rows) != num_clients:
        raise AllocationError("gain", f"a list of {num_clients} lists is needed, one per client")
    gain = np.array([_numbers(row, f"gain[{i}]", num_subchannels) for i, row in enumerate(rows)])
    _at_least("gain", gain, positive=False)

    scalars = {name: _scalar(instance, name) for name in ("f_s", "kappa_s", "G", "sigma2", "p_th", "p_dl")}
    for name, value in scalars.items():
        _at_least(name, np.array(value), positive=True)
    ratio = _scalar(instance, "phi")
    if not 0 <= ratio <= 1:
        raise AllocationError("phi", f"{ratio} is outside 0..1")

    efficiency = _vector(instance, "mcs_eff", None)
    thresholds_db = _vector(instance, "mcs_snr_db", len(efficiency))
    _at_least("mcs_eff", efficiency, positive=False)
    snr_per_psd = scalars["G"] * gain / scalars["sigma2"]
    return Problem(
        forward_flops=tables["rho"],
        backward_flops=tables["omega"],
        smashed_bits=tables["psi"],
        gradient_bits=tables["chi"],
        batch_size=np.full(num_clients, batch_size, dtype=np.int64),
        aggregation_ratio=ratio,
        client_flops_per_s=clients["f"] / clients["kappa"],
        server_flops_per_s=scalars["f_s"] / scalars["kappa_s"],
        bandwidth_hz=bandwidth,
        uplink_snr_per_psd=snr_per_psd,
        downlink_snr_per_psd=snr_per_psd,
        downlink_psd_w_per_hz=scalars["p_dl"],
        max_power_w=clients["p_max"],
        total_power_w=scalars["p_th"],
        mcs_efficiency=efficiency,
        mcs_snr=np.asarray(db_to_linear(thresholds_db), dtype=np.float64),
        broadcast="whole-band",
    )
