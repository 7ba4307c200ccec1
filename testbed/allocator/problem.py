"""What is decided, from what, and the answer: plain arrays in SI units, checked once at the door.

A :class:`Problem` knows no modem and no board, only bits, floating-point operations, bandwidths and
signal-to-noise ratios per unit of transmit PSD.  The exceptions::

    ValueError
    └── AllocationError          an input makes no sense; `field` names it
        └── InfeasibleError      the input is sound, but no plan can carry the bits
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

UNUSED = -1  # owner of a subchannel that nobody uses


class AllocationError(ValueError):
    """An input cannot be allocated from.

    Attributes
    ----------
    field
        The name of the input at fault, with its index where there is one.
    problem
        What is wrong with it.
    """

    def __init__(self, field_name: str, problem: str) -> None:
        super().__init__(f"allocating: {field_name}: {problem}")
        self.field = field_name
        self.problem = problem


class InfeasibleError(AllocationError):
    """No plan that the method found gives every client the rate its bits need."""


class RateModel(str, Enum):
    """How SNR becomes spectral efficiency."""

    SHANNON = "shannon"  # log2(1 + SNR)
    MCS = "mcs"  # the step table


Broadcast = Literal["whole-band", "per-subchannel"]


def _checked(
    name: str, value: ArrayLike, shape: tuple[int | None, ...], *, positive: bool = False
) -> FloatArray:
    """Return a read-only float64 copy of finite, non-negative numbers of the asked-for shape."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise AllocationError(name, f"not a rectangular array of numbers ({error})") from error
    if array.ndim != len(shape) or any(
        want is not None and want != have for want, have in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise AllocationError(name, f"shape {list(array.shape)}, where [{wanted}] is needed")
    # NaN compares false, so this finds it too.
    wrong = ~((array > 0 if positive else array >= 0) & np.isfinite(array))
    if wrong.any():
        index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        where = name + "".join(f"[{axis}]" for axis in index)
        kind = "positive" if positive else "non-negative"
        raise AllocationError(where, f"{array[index]!r}, where a finite, {kind} number is needed")
    array.flags.writeable = False
    return array


def _checked_scalar(name: str, value: Any, *, positive: bool = False) -> float:
    return float(_checked(name, value, (), positive=positive))


@dataclass(frozen=True, eq=False)
class Problem:
    """One round to be planned.  C clients, M subchannels, L layers, K steps of the MCS table.

    Symbols in brackets are those of the latency formula (reconstructed from arXiv 2303.15991).

    Parameters
    ----------
    forward_flops, backward_flops
        Cumulative over layers 1..j, by cut j, per sample ``[L + 1]`` [FLOP] (rho, omega).
    smashed_bits, gradient_bits
        Payload at cut j per sample ``[L + 1]`` [bit] (psi, chi).
    batch_size
        Samples of each client ``[C]`` (b).
    aggregation_ratio
        Share of the sample slots whose last-layer gradients are merged, 0 to 1 (phi).
    client_flops_per_s, server_flops_per_s
        ``[C]`` and scalar [FLOP/s] (f / kappa).
    bandwidth_hz
        Of each subchannel ``[M]`` [Hz] (B).
    uplink_snr_per_psd, downlink_snr_per_psd
        Received SNR per unit of transmit PSD ``[C, M]`` [Hz/W] (G g / n0); no reciprocity assumed.
    downlink_psd_w_per_hz
        PSD of the server [W/Hz].
    max_power_w, total_power_w
        Uplink limit of each client ``[C]`` and of all together [W].
    mcs_efficiency, mcs_snr
        Step table ``[K]``: spectral efficiency [bit/s/Hz] from the linear SNR on, margin included.
    broadcast
        ``whole-band``: one code over the whole band at the rate of the weakest client,
        min_i sum_k, as in the paper.  ``per-subchannel``: each subchannel at the rate of the client
        weakest there, sum_k min_i, as a modem does it.
    cuts
        Cut layers to choose from, within 1..L-1; None for all of them.

    Raises
    ------
    AllocationError
        Naming the field that is ragged, negative, not finite, or at odds with another.
    """

    forward_flops: FloatArray
    backward_flops: FloatArray
    smashed_bits: FloatArray
    gradient_bits: FloatArray
    batch_size: IntArray
    aggregation_ratio: float
    client_flops_per_s: FloatArray
    server_flops_per_s: float
    bandwidth_hz: FloatArray
    uplink_snr_per_psd: FloatArray
    downlink_snr_per_psd: FloatArray
    downlink_psd_w_per_hz: float
    max_power_w: FloatArray
    total_power_w: float
    mcs_efficiency: FloatArray
    mcs_snr: FloatArray
    broadcast: Broadcast = "whole-band"
    cuts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("forward_flops", _checked("forward_flops", self.forward_flops, (None,)))
        num_points = len(self.forward_flops)
        if num_points < 3:
            raise AllocationError("forward_flops", "a network needs two layers or more to be cut")
        for name in ("backward_flops", "smashed_bits", "gradient_bits"):
            put(name, _checked(name, getattr(self, name), (num_points,)))
        for name in ("forward_flops", "backward_flops"):
            if (np.diff(getattr(self, name)) < 0).any():
                raise AllocationError(name, "cumulative operations fall from one layer to the next")

        batch_size = _checked("batch_size", self.batch_size, (None,), positive=True)
        if not len(batch_size):
            raise AllocationError("batch_size", "no clients")
        if (batch_size != np.rint(batch_size)).any() or batch_size.max() > 2**31:
            raise AllocationError("batch_size", "samples are counted in whole numbers")
        samples = batch_size.astype(np.int64)
        samples.flags.writeable = False
        put("batch_size", samples)
        num_clients = len(samples)

        put("aggregation_ratio", _checked_scalar("aggregation_ratio", self.aggregation_ratio))
        if self.aggregation_ratio > 1:
            raise AllocationError("aggregation_ratio", f"{self.aggregation_ratio} is above 1")
        put(
            "client_flops_per_s",
            _checked("client_flops_per_s", self.client_flops_per_s, (num_clients,), positive=True),
        )
        for name in ("server_flops_per_s", "total_power_w", "downlink_psd_w_per_hz"):
            put(name, _checked_scalar(name, getattr(self, name), positive=True))

        put("bandwidth_hz", _checked("bandwidth_hz", self.bandwidth_hz, (None,), positive=True))
        num_subchannels = len(self.bandwidth_hz)
        if num_subchannels < num_clients:
            raise AllocationError(
                "bandwidth_hz",
                f"{num_subchannels} subchannels for {num_clients} clients; each needs one of its own",
            )
        for name in ("uplink_snr_per_psd", "downlink_snr_per_psd"):
            put(name, _checked(name, getattr(self, name), (num_clients, num_subchannels)))
        put("max_power_w", _checked("max_power_w", self.max_power_w, (num_clients,), positive=True))

        put("mcs_efficiency", _checked("mcs_efficiency", self.mcs_efficiency, (None,)))
        put("mcs_snr", _checked("mcs_snr", self.mcs_snr, (len(self.mcs_efficiency),), positive=True))
        if self.broadcast not in ("whole-band", "per-subchannel"):
            raise AllocationError("broadcast", f"{self.broadcast!r}: whole-band or per-subchannel")

        cuts = range(1, num_points - 1) if self.cuts is None else self.cuts
        try:
            chosen = tuple(sorted({int(cut) for cut in cuts}))
        except (TypeError, ValueError) as error:
            raise AllocationError("cuts", f"{self.cuts!r} is not a sequence of layers") from error
        if not chosen or chosen[0] < 1 or chosen[-1] > num_points - 2:
            raise AllocationError("cuts", f"{list(chosen)}, where layers of 1..{num_points - 2} are needed")
        put("cuts", chosen)

    @property
    def num_clients(self) -> int:
        """C."""
        return len(self.batch_size)

    @property
    def num_subchannels(self) -> int:
        """M."""
        return len(self.bandwidth_hz)

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.forward_flops) - 1

    @property
    def allowed_cuts(self) -> tuple[int, ...]:
        """The cut layers to choose from, ascending."""
        assert self.cuts is not None
        return self.cuts

    @property
    def num_aggregated(self) -> int:
        """m = ceil(phi b), with b the largest batch: sample slots that are merged across clients.

        A product that is an integer up to rounding is not pushed to the next slot.
        """
        largest = int(self.batch_size.max())
        return min(largest, math.ceil(self.aggregation_ratio * largest - 1e-12))

    @functools.cached_property
    def mcs_steps(self) -> tuple[FloatArray, FloatArray]:
        """(efficiency, linear SNR) of the steps that pay, both strictly ascending ``[<= K]``.

        A step that needs more SNR than another for no more efficiency is never chosen.

        Raises
        ------
        AllocationError
            If no step remains.
        """
        efficiency: list[float] = []
        snr: list[float] = []
        for index in np.lexsort((-self.mcs_efficiency, self.mcs_snr)):
            if self.mcs_efficiency[index] > (efficiency[-1] if efficiency else 0.0):
                efficiency.append(float(self.mcs_efficiency[index]))
                snr.append(float(self.mcs_snr[index]))
        if not efficiency:
            raise AllocationError("mcs_efficiency", "no step with a positive efficiency")
        return np.array(efficiency), np.array(snr)

    @functools.cached_property
    def mcs_levels(self) -> tuple[FloatArray, FloatArray, IntArray]:
        """The steps with silence in front, ``[<= K + 1]`` twice, and those on their lower convex hull.

        Between neighbours of the hull, SNR per efficiency only rises: loading along it is greedy.
        """
        efficiency, snr = (np.concatenate(([0.0], values)) for values in self.mcs_steps)
        hull = [0]
        for level in range(1, len(snr)):
            while len(hull) > 1:
                a, b = hull[-2], hull[-1]
                before = (snr[b] - snr[a]) * (efficiency[level] - efficiency[b])
                after = (snr[level] - snr[b]) * (efficiency[b] - efficiency[a])
                if before < after:
                    break
                hull.pop()
            hull.append(level)
        return efficiency, snr, np.array(hull, dtype=np.int64)

    @classmethod
    def from_instance(cls, instance: Mapping[str, Any]) -> Problem:
        """Return the problem of a JSON instance; see :mod:`testbed.allocator.instance_format`."""
        from testbed.allocator.instance_format import read_instance

        return read_instance(instance)


@dataclass(frozen=True)
class Binding:
    """Why a plan takes as long as it does.

    Attributes
    ----------
    uplink_client, downlink_client
        The straggler of each direction: the client whose compute and transmission last longest.
    uplink_slack_s, downlink_slack_s
        How much later the next-to-last client would be allowed to be [s]; 0 for one client.
    power
        What limits the uplink: ``total``, ``client`` (the straggler's own limit), or ``none`` (more
        power buys nothing, as at the top of an MCS table).
    runner_up_cut, runner_up_latency_s
        The next-best cut and the latency [s] it would cost; None where there was no other.
    runner_up_is_bound
        True if that latency is a lower bound: the cut was ruled out without being solved.
    """

    uplink_client: int
    downlink_client: int
    uplink_slack_s: float
    downlink_slack_s: float
    power: str
    runner_up_cut: int | None = None
    runner_up_latency_s: float | None = None
    runner_up_is_bound: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """A decision, what it is predicted to cost, and how far from the optimum it can be.

    Attributes
    ----------
    cut_layer
        j, the last layer of the client-side submodel.
    assignment
        Owner of each subchannel ``[M]``, -1 where unused.
    psd_w_per_hz
        Uplink transmit PSD ``[M]`` [W/Hz], 0 where unused.
    latency_s
        Predicted latency of the round [s].
    lower_bound_s
        No plan of this problem is faster [s]; None if the method proves nothing.
    phases
        The terms that add up to the latency [s], by name.
    method
        The name it was asked for by.
    binding
        Why it takes this long.
    notes
        What the method had to do differently from its description, if anything.
    """

    cut_layer: int
    assignment: IntArray
    psd_w_per_hz: FloatArray
    latency_s: float
    lower_bound_s: float | None
    phases: dict[str, float]
    method: str
    binding: Binding
    notes: tuple[str, ...] = field(default=())

    @property
    def gap(self) -> float | None:
        """(latency - bound) / latency: the optimum is at most this share faster."""
        if self.lower_bound_s is None:
            return None
        return max(0.0, (self.latency_s - self.lower_bound_s) / self.latency_s)

    def to_decision(self) -> dict[str, Any]:
        """Return the decision as JSON types: cut, assignment (null: unused) and psd [W/Hz]."""
        return {
            "cut": int(self.cut_layer),
            "assignment": [int(owner) if owner >= 0 else None for owner in self.assignment],
            "psd": [float(psd) for psd in self.psd_w_per_hz],
        }
