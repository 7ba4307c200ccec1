"""The twin of a round: drawn many times by the protocol's rules, with links and boards at random.

It differs from the run in what it does not know: the SNRs of the round, the compute times, and which
blocks will be lost.  The MCS of a stream is chosen once, from the SNR of the draw less the margin,
and stays; that adaptation moves it within a stream is in the block error probability.

Random numbers depend on the seed, the draw, the client and the block's number only, so that two plans
that are compared with one seed meet the same luck, and their difference varies little.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from radio.units import NS_PER_S
from testbed.latency.inputs import (
    MAX_BLOCK_ERROR,
    UNUSED,
    ComputeTime,
    FloatArray,
    IntArray,
    Links,
    McsSteps,
    PredictionError,
    RoundInputs,
    Timing,
    whole_numbers,
)
from testbed.latency.names import ROUND_PHASES, STREAMS
from testbed.latency.protocol import Grid
from testbed.latency.rounds import Facts, Luck, Outcome, simulate_moves, simulate_rounds

DEFAULT_DRAWS = 200
# Probabilities this close to a certainty are constants: the inversion loses its footing there.
NO_CHANCE = 1e-9
MIN_WEIGHT = 1e-3  # of a beta distribution that is all but two-valued
LOW_QUANTILE, HIGH_QUANTILE = 0.05, 0.95


class _Purpose(IntEnum):
    """What random numbers are for; each has a generator of its own."""

    BLOCKS = 0
    UPLINK_COMMON = 1
    UPLINK_SUBCHANNEL = 2
    DOWNLINK_COMMON = 3
    DOWNLINK_SUBCHANNEL = 4
    UPLINK_ERROR = 5
    BROADCAST_ERROR = 6
    UNICAST_ERROR = 7
    CLIENT_FORWARD = 8
    CLIENT_BACKWARD = 9
    SERVER_FORWARD = 10
    SERVER_BACKWARD = 11


# -------------------------------------------------------------------------------------- results
class Summary(NamedTuple):
    """Mean, 5 % and 95 % quantile over the draws, in the unit of what is summarised."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: FloatArray) -> Summary:
        low, high = np.quantile(values, (LOW_QUANTILE, HIGH_QUANTILE))
        return cls(float(values.mean()), float(low), float(high))

    def record(self) -> dict[str, float]:
        """By name, for an event."""
        return self._asdict()


def _summaries(values: dict[str, FloatArray]) -> dict[str, Summary]:
    return {name: Summary.of(drawn) for name, drawn in values.items()}


@dataclass(frozen=True, eq=False)
class RoundPrediction:
    """Draws of one round; S draws, C clients.

    Attributes
    ----------
    model
        ``twin`` or ``paper``.
    latency_s
        From the decision to the end, control latencies included ``[S]`` [s].
    phases_s
        Tiles ``[S]`` [s] by name, :data:`~testbed.latency.names.ROUND_PHASES`; in each draw they add
        up to the latency.
    airtime_s
        Radiated, summed over transmitters ``[S]`` [s], by stream.
    uplink_s
        From the permit, or the end of the forward pass where that is later, to completion
        ``[S, C]`` [s]; NaN without a stream.
    unicast_s
        From when the server was free to send it to completion ``[S, C]`` [s]; NaN without a stream.
    uplink_straggler, downlink_straggler
        The client that the server, and the round, waited for ``[S]``.
    missed
        Whether a stream missed the deadline; it then ended there ``[S]``.
    """

    model: str
    latency_s: FloatArray
    phases_s: dict[str, FloatArray]
    airtime_s: dict[str, FloatArray]
    uplink_s: FloatArray
    unicast_s: FloatArray
    uplink_straggler: IntArray
    downlink_straggler: IntArray
    missed: NDArray[np.bool_]

    @property
    def round_s(self) -> Summary:
        """The latency [s]."""
        return Summary.of(self.latency_s)

    @property
    def phases(self) -> dict[str, Summary]:
        """The tiles [s]."""
        return _summaries(self.phases_s)

    @property
    def airtime(self) -> dict[str, Summary]:
        """The airtimes [s]."""
        return _summaries(self.airtime_s)

    @property
    def longest_phase(self) -> str:
        """The tile with the largest mean."""
        return max(ROUND_PHASES, key=lambda name: float(self.phases_s[name].mean()))

    def record(self) -> dict[str, Any]:
        """Model and summaries as JSON types, for an event."""
        return {
            "model": self.model,
            "round_s": self.round_s.record(),
            "phases": {name: summary.record() for name, summary in self.phases.items()},
            "airtime_s": {name: summary.record() for name, summary in self.airtime.items()},
        }


@dataclass(frozen=True, eq=False)
class CutMovePrediction:
    """Draws of one cut move ``[S]``.

    Attributes
    ----------
    latency_s
        From the decision to the end, control latencies included [s].
    airtime_s
        Radiated [s], of ``sounding`` and ``cut-move``.
    missed
        Whether a stream missed the deadline.
    """

    latency_s: FloatArray
    airtime_s: dict[str, FloatArray]
    missed: NDArray[np.bool_]

    @property
    def round_s(self) -> Summary:
        """The latency [s]."""
        return Summary.of(self.latency_s)

    def record(self) -> dict[str, float]:
        """Summary of the latency as JSON types, for an event."""
        return self.round_s.record()


# --------------------------------------------------------------------------------------- chance
@functools.lru_cache(maxsize=32)
def _normal(seed: int, purpose: _Purpose, *shape: int) -> FloatArray:
    """Standard normal numbers, kept because candidates are compared with the same ones.  Read only."""
    values = np.random.default_rng((seed, purpose)).standard_normal(shape)
    values.flags.writeable = False
    return values


@functools.lru_cache(maxsize=32)
def _beta(
    seed: int, purpose: _Purpose, num_draws: int, mean: tuple[float, ...], overdispersion: tuple[float, ...]
) -> FloatArray:
    """Beta distributed probabilities ``[S, C]`` with Var p = overdispersion x p (1 - p).  Read only.

    By inversion, so that a larger mean gives a larger value in every draw.
    """
    uniform = np.random.default_rng((seed, purpose)).random((num_draws, len(mean)))
    drawn = np.empty_like(uniform)
    for c, (probability, excess) in enumerate(zip(mean, overdispersion, strict=True)):
        if excess < NO_CHANCE or not NO_CHANCE < probability < 1 - NO_CHANCE:
            drawn[:, c] = probability
            continue
        weight = max((1 - excess) / excess, MIN_WEIGHT)
        drawn[:, c] = special.betaincinv(probability * weight, (1 - probability) * weight, uniform[:, c])
    drawn = np.minimum(drawn, MAX_BLOCK_ERROR)
    drawn.flags.writeable = False
    return drawn


def _spans_ns(
    seed: int, purpose: _Purpose, num_draws: int, mean_s: FloatArray, deviation: FloatArray
) -> IntArray:
    """Lognormal durations ``[S, n]`` [ns] of the given means and relative deviations ``[n]``."""
    spread = np.sqrt(np.log1p(deviation**2))
    factor = np.exp(spread * _normal(seed, purpose, num_draws, len(mean_s)) - spread**2 / 2)
    return np.rint(mean_s * factor * NS_PER_S).astype(np.int64)


def _snr_db(seed: int, num_draws: int, inputs: RoundInputs) -> tuple[FloatArray, FloatArray]:
    """SNR of each subchannel's owner ``[S, M]``, and of each downlink ``[S, C, M]`` [dB]."""
    num_clients, num_subchannels = inputs.num_clients, inputs.num_subchannels
    size = (num_draws, num_clients)
    up, down = inputs.uplink, inputs.downlink
    owner = np.maximum(inputs.assignment, 0)
    common = up.common_deviation_db * _normal(seed, _Purpose.UPLINK_COMMON, *size)
    single = up.subchannel_deviation_db[owner] * _normal(
        seed, _Purpose.UPLINK_SUBCHANNEL, num_draws, num_subchannels
    )
    uplink_db = up.snr_db[owner, np.arange(num_subchannels)] + common[:, owner] + single
    common = down.common_deviation_db * _normal(seed, _Purpose.DOWNLINK_COMMON, *size)
    single = down.subchannel_deviation_db[:, None] * _normal(
        seed, _Purpose.DOWNLINK_SUBCHANNEL, *size, num_subchannels
    )
    return uplink_db, down.snr_db + common[..., None] + single


def _broadcast_error(inputs: RoundInputs, members: NDArray[np.bool_]) -> FloatArray:
    """Block error probability of each client ``[C]`` whose union is the given one, if there is one.

    Independent losses p_i have the union q with 1 - q = prod(1 - p_i); the survivals are all raised to
    the same power.
    """
    own = np.minimum(inputs.broadcast_block_error, MAX_BLOCK_ERROR)
    if inputs.broadcast_union_error is None:
        return own
    survived = np.log1p(-min(inputs.broadcast_union_error, MAX_BLOCK_ERROR))
    shares = np.log1p(-own) * members
    total = shares.sum()
    shares = shares / total if total < 0 else members / members.sum()
    return np.asarray(-np.expm1(survived * shares))


def _bounded_union(error: FloatArray, members: NDArray[np.bool_]) -> FloatArray:
    """Block error probabilities ``[S, C]`` lowered where their union would exceed the bound.

    A block that has to reach many at once is otherwise repeated for ever, where the run lowers the MCS.
    """
    survived = np.log1p(-error) * members
    union = survived.sum(axis=1, keepdims=True)
    bound = np.log1p(-MAX_BLOCK_ERROR)
    excess = union < bound
    return np.where(excess, -np.expm1(survived * (bound / np.where(excess, union, bound))), error)


# ----------------------------------------------------------------------------------- the draws
def _grid(timing: Timing) -> Grid:
    return Grid(
        float(timing.sample_rate_hz),
        int(timing.slot_samples),
        int(timing.slots_per_frame),
        int(timing.ack_delay_ns),
        int(timing.control_latency_ns),
        int(timing.turnaround_ns),
        int(timing.lead_ns),
    )


def _facts(inputs: RoundInputs) -> Facts:
    own = np.zeros((inputs.num_clients, inputs.num_subchannels), np.int64)
    num_own = np.zeros(inputs.num_clients, np.int64)
    for k in np.flatnonzero(inputs.assignment != UNUSED):
        owner = inputs.assignment[k]
        own[owner, num_own[owner]] = k
        num_own[owner] += 1
    return Facts(
        inputs.plan_ns,
        inputs.deadline_ns,
        -(-inputs.sounders // inputs.timing.sounders_per_slot),
        own,
        num_own,
        inputs.steps.threshold_db,
        inputs.steps.room_bytes,
        inputs.uplink.margin_db,
        inputs.downlink.margin_db,
        inputs.uplink_bytes,
        inputs.broadcast_bytes,
        inputs.unicast_bytes,
    )


def _luck(inputs: RoundInputs, facts: Facts, num_draws: int, seed: int) -> Luck:
    uplink_db, downlink_db = _snr_db(seed, num_draws, inputs)

    def errors(purpose: _Purpose, mean: FloatArray, overdispersion: FloatArray) -> FloatArray:
        # A copy, since kernels are compiled for arrays that may be written.
        return _beta(seed, purpose, num_draws, tuple(mean.tolist()), tuple(overdispersion.tolist())).copy()

    def spans(purpose: _Purpose, time: ComputeTime, count: int) -> IntArray:
        mean_s, deviation = time.checked(purpose.name.lower(), (count,))
        return _spans_ns(seed, purpose, num_draws, mean_s, deviation)

    members = facts.num_own > 0
    broadcast_error = errors(
        _Purpose.BROADCAST_ERROR, _broadcast_error(inputs, members), inputs.broadcast_overdispersion
    )
    server = [
        spans(_Purpose.SERVER_FORWARD, inputs.server_forward, 1),
        spans(_Purpose.SERVER_BACKWARD, inputs.server_backward, 1),
    ]
    return Luck(
        np.random.default_rng((seed, _Purpose.BLOCKS)).integers(2**64, dtype=np.uint64),
        uplink_db,
        downlink_db,
        errors(_Purpose.UPLINK_ERROR, inputs.uplink.block_error, inputs.uplink.overdispersion),
        _bounded_union(broadcast_error, members),
        errors(_Purpose.UNICAST_ERROR, inputs.downlink.block_error, inputs.downlink.overdispersion),
        spans(_Purpose.CLIENT_FORWARD, inputs.client_forward, inputs.num_clients),
        spans(_Purpose.CLIENT_BACKWARD, inputs.client_backward, inputs.num_clients),
        np.concatenate(server, axis=1),
    )


def _outcome(num_draws: int, num_clients: int) -> Outcome:
    return Outcome(
        np.zeros((num_draws, len(ROUND_PHASES)), np.int64),
        np.zeros((num_draws, len(STREAMS) - 1), np.int64),
        np.full((num_draws, num_clients), -1),
        np.full((num_draws, num_clients), -1),
        np.zeros((num_draws, 2), np.int64),
        np.zeros(num_draws, np.bool_),
    )


def _seed_of(seed: int | np.random.Generator) -> int:
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(2**63))
    return abs(int(seed))


def _checked_draws(num_draws: int) -> int:
    if num_draws < 1:
        raise PredictionError("num_draws", f"{num_draws} is not positive")
    return int(num_draws)


def _sounding_s(inputs: RoundInputs, num_draws: int) -> FloatArray:
    """Airtime of the soundings: the server's and each board's."""
    timing = inputs.timing
    seconds = (1 + inputs.sounders) * timing.sounding_samples / timing.sample_rate_hz
    return np.full(num_draws, seconds)


def _seconds_or_nan(durations_ns: IntArray) -> FloatArray:
    return np.where(durations_ns >= 0, durations_ns / NS_PER_S, np.nan)


def predict_round(
    inputs: RoundInputs, num_draws: int = DEFAULT_DRAWS, seed: int | np.random.Generator = 0
) -> RoundPrediction:
    """Return draws of a round.

    Parameters
    ----------
    num_draws
        S; the mean's standard error falls with its root.
    seed
        The same one means the same luck, whatever the plan; a generator gives one number.

    Raises
    ------
    PredictionError
        For inputs that make no sense.
    """
    num_draws = _checked_draws(num_draws)
    facts = _facts(inputs)
    luck = _luck(inputs, facts, num_draws, _seed_of(seed))
    outcome = _outcome(num_draws, inputs.num_clients)
    simulate_rounds(_grid(inputs.timing), facts, luck, outcome)
    air_s = np.asarray(outcome.air_slots * inputs.timing.slot_s)
    airtime_s = dict(zip(STREAMS[1:], air_s.T, strict=True))
    return RoundPrediction(
        model="twin",
        latency_s=outcome.tiles_ns.sum(axis=1) / NS_PER_S,
        phases_s=dict(zip(ROUND_PHASES, (outcome.tiles_ns / NS_PER_S).T, strict=True)),
        airtime_s={"sounding": _sounding_s(inputs, num_draws), **airtime_s},
        uplink_s=_seconds_or_nan(outcome.uplink_ns),
        unicast_s=_seconds_or_nan(outcome.unicast_ns),
        uplink_straggler=outcome.stragglers[:, 0],
        downlink_straggler=outcome.stragglers[:, 1],
        missed=outcome.missed,
    )


def predict_cut_move(
    inputs: RoundInputs,
    num_bytes: ArrayLike,
    deeper: bool,
    num_draws: int = DEFAULT_DRAWS,
    seed: int | np.random.Generator = 0,
) -> CutMovePrediction:
    """Return draws of a cut move: a sounding, then the moved stages over the air.

    Parameters
    ----------
    inputs
        As for a round; its payloads and compute times are not used.
    num_bytes
        Payload: deeper, the one that is broadcast; else that of each client, scalar or ``[C]`` [byte].
    deeper
        Stages move from the server to the clients.

    Raises
    ------
    PredictionError
        For inputs that make no sense.
    """
    num_draws = _checked_draws(num_draws)
    payload = whole_numbers("num_bytes", num_bytes, () if deeper else (inputs.num_clients,), 1, 2**40)
    facts = _facts(inputs)
    luck = _luck(inputs, facts, num_draws, _seed_of(seed))
    outcome = _outcome(num_draws, inputs.num_clients)
    simulate_moves(_grid(inputs.timing), facts, luck, bool(deeper), np.atleast_1d(payload), outcome)
    return CutMovePrediction(
        latency_s=outcome.tiles_ns[:, 0] / NS_PER_S,
        airtime_s={
            "sounding": _sounding_s(inputs, num_draws),
            "cut-move": np.asarray(outcome.air_slots[:, 0] * inputs.timing.slot_s),
        },
        missed=outcome.missed,
    )


def warm_up() -> None:
    """Compile the kernels, or load them from the cache, by predicting a tiny round."""
    still = ComputeTime(1e-3)
    links = Links(np.full((2, 2), 10.0), 1.0, 1.0, 0.0, 0.1, 0.1)
    inputs = RoundInputs(
        timing=Timing(1e6, 100, 4, 1000, 1000, 1000, 2, 10),
        steps=McsSteps(np.array([0.0, 5.0]), np.array([10, 20])),
        plan_ns=0,
        assignment=np.array([0, 1]),
        uplink=links,
        downlink=links,
        uplink_bytes=100,
        broadcast_bytes=100,
        unicast_bytes=100,
        client_forward=still,
        client_backward=still,
        server_forward=still,
        server_backward=still,
    )
    predict_round(inputs, 2)
    for deeper in (False, True):
        predict_cut_move(inputs, 100, deeper, 2)
