"""What the twin of a round is told: plain arrays in SI units, checked once at the door.

C clients, M subchannels, K steps of the MCS table.  Whatever there is one of per client may be
given as a scalar.  The payloads, instants and rates are facts; what varies from round to round is
given as a mean and how much it varies.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.units import NS_PER_S, seconds_to_ns

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PerClient = Any  # a number, or one for each client; an array once it was checked

UNUSED = -1  # owner of a subchannel that nobody uses; step of one that carries nothing
# Receivers of a broadcast are the bits of a word.
MAX_CLIENTS = 62
# A worse one does not last: adaptation lowers the MCS within the stream, or the link is given up.
MAX_BLOCK_ERROR = 0.9


class PredictionError(ValueError):
    """An input from which no round can be predicted.

    Attributes
    ----------
    field
        The name of the input at fault, with its index where there is one.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"predicting a round: {field}: {problem}")
        self.field = field


def _array(name: str, value: ArrayLike, shape: tuple[int, ...], low: float, high: float) -> FloatArray:
    """A fresh float64 array of the shape, a scalar spread over it, with every value within the bounds."""
    try:
        given = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise PredictionError(name, f"not a rectangular array of numbers ({error})") from error
    if given.shape not in ((), shape):
        raise PredictionError(name, f"shape {list(given.shape)}, where {list(shape)} is needed")
    array = np.array(np.broadcast_to(given, shape))
    wrong = ~((array >= low) & (array <= high))  # finds NaN too
    if wrong.any():
        index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        where = name + "".join(f"[{axis}]" for axis in index)
        raise PredictionError(where, f"{float(array[index])!r} is not within {low:g}..{high:g}")
    return array


def whole_numbers(name: str, value: ArrayLike, shape: tuple[int, ...], low: int, high: int) -> IntArray:
    """Like :func:`_array` as int64, refusing what is not whole."""
    array = _array(name, value, shape, low, high)
    if (array != np.rint(array)).any():
        raise PredictionError(name, "whole numbers are needed")
    return array.astype(np.int64)


def _instant(name: str, value: int) -> int:
    """An instant [ns], exactly: not every one of them is a float."""
    try:
        instant = operator.index(value)
    except TypeError as error:
        raise PredictionError(name, f"{value!r}, where whole nanoseconds are needed") from error
    if not 0 <= instant < 2**61:
        raise PredictionError(name, f"{instant} ns is not within 0..2**61")
    return instant


@dataclass(frozen=True)
class Timing:
    """The grid that all nodes share, and what messages and turns cost.

    Parameters
    ----------
    sample_rate_hz
        [Hz].
    slot_samples, slots_per_frame
        Length of a slot [samples] and of a frame [slots].
    ack_delay_ns
        From the end of a frame, or of the sounding, until the answer to it is there [ns].
    control_latency_ns
        Of a message between controller and nodes, or of one that announces a downlink stream [ns].
    turnaround_ns
        Between the sounding of the downlink and that of the uplink [ns].
    sounders_per_slot, sounding_samples
        Clients whose soundings fit into a slot, and the length of one [samples].
    lead_ns
        How long before its start a burst must be announced [ns]; 0 in virtual time.
    """

    sample_rate_hz: float
    slot_samples: int
    slots_per_frame: int
    ack_delay_ns: int
    control_latency_ns: int
    turnaround_ns: int
    sounders_per_slot: int
    sounding_samples: int
    lead_ns: int = 0

    def __post_init__(self) -> None:
        _array("sample_rate_hz", self.sample_rate_hz, (), 1e-3, 1e12)
        for name in ("slot_samples", "slots_per_frame", "sounders_per_slot"):
            whole_numbers(name, getattr(self, name), (), 1, 2**40)
        for name in ("ack_delay_ns", "control_latency_ns", "turnaround_ns", "sounding_samples", "lead_ns"):
            whole_numbers(name, getattr(self, name), (), 0, 2**50)

    @property
    def slot_s(self) -> float:
        """Length of a slot [s]."""
        return self.slot_samples / self.sample_rate_hz


@dataclass(frozen=True, eq=False)
class McsSteps:
    """The steps of the MCS table, slowest first.

    Parameters
    ----------
    threshold_db
        SNR from which a step works at 10 % block errors ``[K]`` [dB], ascending.
    room_bytes
        Bytes of a stream that one block carries ``[K]`` [byte]: the block's own less its header.
    """

    threshold_db: FloatArray
    room_bytes: IntArray

    def __post_init__(self) -> None:
        num_steps = np.size(self.threshold_db)
        if not num_steps:
            raise PredictionError("threshold_db", "no steps")
        threshold = _array("threshold_db", self.threshold_db, (num_steps,), -1e3, 1e3)
        if (np.diff(threshold) < 0).any():
            raise PredictionError("threshold_db", "a faster step works at a lower SNR than a slower one")
        object.__setattr__(self, "threshold_db", threshold)
        object.__setattr__(
            self, "room_bytes", whole_numbers("room_bytes", self.room_bytes, (num_steps,), 1, 2**40)
        )


@dataclass(frozen=True, eq=False)
class Links:
    """What is known of the links of one direction, and how far a round may be off it.

    Parameters
    ----------
    snr_db
        Expected SNR at the PSD that will be used ``[C, M]`` [dB]; NaN or -inf where nothing is heard.
        Of an uplink only what is granted is looked at.
    common_deviation_db
        Standard deviation of what shifts all subchannels of a link alike ``[C]`` [dB].
    subchannel_deviation_db
        Standard deviation of what shifts each subchannel by itself ``[C]`` [dB].
    margin_db
        Subtracted from the SNR before a step is chosen ``[C]`` [dB]: back-off, outer loop, bias.
    block_error
        Probability that a block is lost ``[C]``.
    overdispersion
        How much more that probability varies between rounds than chance within one explains ``[C]``:
        a beta distribution with Var p = overdispersion x p (1 - p); 0 is a constant.
    """

    snr_db: FloatArray
    common_deviation_db: PerClient = 0.0
    subchannel_deviation_db: PerClient = 0.0
    margin_db: PerClient = 0.0
    block_error: PerClient = 0.1
    overdispersion: PerClient = 0.0

    def checked(self, name: str, num_clients: int, num_subchannels: int) -> Links:
        """The same with every array in its full shape.

        Raises
        ------
        PredictionError
            For a wrong shape or a value that makes no sense.
        """
        given = np.asarray(self.snr_db, np.float64)
        # An SNR that is not there is one at which nothing works.
        snr = np.where(np.isnan(given) | (given == -np.inf), -1e3, given)

        def spread(field: str, low: float, high: float) -> FloatArray:
            return _array(f"{name}.{field}", getattr(self, field), (num_clients,), low, high)

        return Links(
            _array(f"{name}.snr_db", snr, (num_clients, num_subchannels), -1e3, 1e3),
            spread("common_deviation_db", 0.0, 100.0),
            spread("subchannel_deviation_db", 0.0, 100.0),
            spread("margin_db", -1e3, 1e3),
            spread("block_error", 0.0, 1.0),
            spread("overdispersion", 0.0, 1.0),
        )


@dataclass(frozen=True, eq=False)
class ComputeTime:
    """How long a computation lasts: lognormal, by its mean.

    Parameters
    ----------
    mean_s
        [s], ``[C]`` for the clients'.
    deviation
        Standard deviation over mean; 0 is a constant.
    """

    mean_s: PerClient
    deviation: PerClient = 0.0

    def checked(self, name: str, shape: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
        """Mean [s] and relative deviation in the asked-for shape."""
        return (
            _array(f"{name}.mean_s", self.mean_s, shape, 0.0, 1e6),
            _array(f"{name}.deviation", self.deviation, shape, 0.0, 100.0),
        )


@dataclass(frozen=True, eq=False)
class RoundInputs:
    """One round about to be run.

    Parameters
    ----------
    plan_ns
        Instant of the decision [ns], from which latency counts; nodes start one control latency later.
    assignment
        Owner of each subchannel ``[M]``, -1 where unused.  A client without any is sounded and takes
        no further part.
    uplink, downlink
        At the granted PSDs, and at the server's; `block_error` of the downlink is that of unicasts.
    uplink_bytes, broadcast_bytes, unicast_bytes
        Payload of each stream ``[C]``, scalar and ``[C]`` [byte], without the length in front that a
        stream begins with; 0 where there is none.
    client_forward, client_backward, server_forward, server_backward
        Compute times, of each client or of the server.
    broadcast_block_error, broadcast_overdispersion
        What each client loses of the broadcast ``[C]``, with `overdispersion` as in :class:`Links`;
        None: as of a unicast.
    broadcast_union_error
        Probability that somebody loses a block of the broadcast, if it is known: losses of different
        clients are then scaled until their union, as independent, is that.
    num_sounders
        Boards that are sounded, those that merely listen in included; None: C.
    deadline_s
        From the start until streams are given up [s].
    """

    timing: Timing
    steps: McsSteps
    plan_ns: int
    assignment: IntArray
    uplink: Links
    downlink: Links
    uplink_bytes: PerClient
    broadcast_bytes: int
    unicast_bytes: PerClient
    client_forward: ComputeTime
    client_backward: ComputeTime
    server_forward: ComputeTime
    server_backward: ComputeTime
    broadcast_block_error: PerClient = None
    broadcast_overdispersion: PerClient = None
    broadcast_union_error: float | None = None
    num_sounders: int | None = None
    deadline_s: float = math.inf

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        given = np.shape(self.uplink.snr_db)
        if len(given) != 2 or not 1 <= given[0] <= MAX_CLIENTS or not given[1]:
            raise PredictionError(
                "uplink.snr_db", f"shape {list(given)}, where [1..{MAX_CLIENTS}, subchannels] is needed"
            )
        num_clients, num_subchannels = given
        put("uplink", self.uplink.checked("uplink", num_clients, num_subchannels))
        put("downlink", self.downlink.checked("downlink", num_clients, num_subchannels))
        owners = whole_numbers("assignment", self.assignment, (num_subchannels,), UNUSED, num_clients - 1)
        put("assignment", owners)
        if (owners == UNUSED).all():
            raise PredictionError("assignment", "nobody has a subchannel")
        for name in ("uplink_bytes", "unicast_bytes"):
            put(name, whole_numbers(name, getattr(self, name), (num_clients,), 0, 2**40))
        put("broadcast_bytes", int(whole_numbers("broadcast_bytes", self.broadcast_bytes, (), 0, 2**40)))
        put("plan_ns", _instant("plan_ns", self.plan_ns))
        for name in ("broadcast_block_error", "broadcast_overdispersion"):
            value = getattr(self, name)
            if value is None:
                value = getattr(self.downlink, name.removeprefix("broadcast_"))
            put(name, _array(name, value, (num_clients,), 0.0, 1.0))
        if self.broadcast_union_error is not None:
            _array("broadcast_union_error", self.broadcast_union_error, (), 0.0, 1.0)
        if self.num_sounders is not None:
            put("num_sounders", int(whole_numbers("num_sounders", self.num_sounders, (), 1, 2**20)))
        if not self.deadline_s > 0:
            raise PredictionError("deadline_s", f"{self.deadline_s} is not positive")

    @property
    def num_clients(self) -> int:
        """C."""
        return int(np.shape(self.uplink.snr_db)[0])

    @property
    def sounders(self) -> int:
        """Boards that are sounded."""
        return self.num_clients if self.num_sounders is None else self.num_sounders

    @property
    def num_subchannels(self) -> int:
        """M."""
        return len(self.assignment)

    @property
    def start_ns(self) -> int:
        """When the nodes start [ns]."""
        return self.plan_ns + self.timing.control_latency_ns

    @property
    def deadline_ns(self) -> int:
        """Instant after which streams are given up [ns]."""
        far_s = 2**61 / NS_PER_S
        return self.start_ns + seconds_to_ns(min(self.deadline_s, far_s))
