"""Bursts for radios without common timing: what starts anywhere, on a carrier and a clock of its own.

::

    | preamble: 4 symbols | header: H symbols | slot | slot | ...    slots as in radio.phy

    samples -> preambles (radio.preamble) -> header, at a few hypotheses of what is left of the offset
            -> header against the grant -> offset from preamble and header together
            -> pilots of slot after slot: clock drift and offset -> resampled -> demodulate_slots

A crystal that is off by 50 ppm moves the signal by 1.5 samples over a slot, and turns the outermost
subcarriers by half a cycle.  The drift is the slope over frequency by which the pilots of a slot turn
against each other; slots are aligned to it one after the other, and once it is known from all of them the
whole burst is interpolated to the transmitter's clock.  Then a slot is as if timing were common.

Everything that a burst claims is checked against the grant before its slots are looked at, and what does
not fit is counted, never raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.estimation import ChannelEstimate, estimate_channel
from radio.grid import sensible, take_pilots
from radio.header import (
    BurstHeader,
    HeaderFault,
    decode_header,
    header_grid,
    num_header_symbols,
    pack_header,
    parse_header,
)
from radio.numerology import Numerology
from radio.ofdm import grid_to_samples, samples_to_grid, useful_to_spectrum
from radio.phy import UNUSED, ReceivedSlots, demodulate_slots, modulate_slots, pilot_reference
from radio.preamble import (
    DEFAULT_MAX_CFO_HZ,
    MAX_SEARCH_SAMPLES,
    PREAMBLE_SYMBOLS,
    FoundPreamble,
    advance_per_symbol,
    confirm,
    cut,
    find_candidates,
    in_span,
    preamble_grid,
)
from radio.resampling import correct_clock, interpolate
from radio.rotation import rotate

MAX_CLOCK_DRIFT_PPM = 60.0  # two crystals of +-25 ppm, and some margin
# Prior of the drift.  A few subcarriers at -5 dB know less than that; without it they would tilt the
# phase of their slots by their own error.
TYPICAL_CLOCK_DRIFT_PPM = 25.0
# Hypotheses of the carrier offset lie so close that the last header symbol is off by this at most [rad].
_HYPOTHESIS_ERROR = 0.25
_MAX_HYPOTHESES = 9
_LENIENCE = 1 / 8  # of a prefix, that the samples may lack at either end of a burst


class BurstFault(Enum):
    """Why a burst whose header is in order is refused."""

    UNKNOWN_TRANSMITTER = "nobody with this number holds a grant"
    FOREIGN_RUN = "a burst of another run or stream"
    CONTRADICTS_GRANT = "more slots or other schemes than granted"
    TRUNCATED = "the samples end before the burst does"


@dataclass(frozen=True)
class BurstGrant:
    """What a receiver expects of one transmitter.

    Attributes
    ----------
    transmitter, run_tag
        As in :class:`~radio.header.BurstHeader`.
    num_slots
        At most; a transmitter may have less to send.
    mcs_index
        One for each subchannel; ``UNUSED`` where nothing is granted.
    """

    transmitter: int
    run_tag: int
    num_slots: int
    mcs_index: tuple[int, ...]


@dataclass(frozen=True)
class BurstReception:
    """One burst that was found.

    Attributes
    ----------
    fault
        Why it was refused; ``None`` when its slots were demodulated.
    header
        ``None`` when it could not be read.
    preamble
        Where it was found, and the channel there.
    cfo_hz
        Carrier offset by all that is known in the burst [Hz].
    clock_drift_ppm
        How much the sender's sampling clock is fast [ppm]; 0 when the slots were not looked at.
    slots
        What the slots held; ``None`` when they were not looked at.
    end_sample
        First sample after it; after the preamble alone where the header could not be read.
    """

    fault: HeaderFault | BurstFault | None
    header: BurstHeader | None
    preamble: FoundPreamble
    cfo_hz: float
    clock_drift_ppm: float
    slots: ReceivedSlots | None
    end_sample: int

    @property
    def start_sample(self) -> int:
        """Sample at which the preamble's prefix begins."""
        return self.preamble.start_sample

    @property
    def blocks(self) -> dict[tuple[int, int], bytes]:
        """Decoded payload by (slot, subchannel)."""
        return {} if self.slots is None else self.slots.blocks

    @property
    def snr(self) -> float:
        """Linear SNR per subcarrier at the preamble, mean over the band."""
        return self.preamble.snr

    @property
    def evm(self) -> float:
        """Root mean square error of the equalised symbols; NaN when nothing was decoded."""
        return float("nan") if self.slots is None else self.slots.evm


@dataclass
class BurstCounters:
    """What happened, for health lines and tests.

    Attributes
    ----------
    num_samples
        Searched.
    num_candidates, num_rejected, num_dropped
        Peaks of the search, those taken for noise, and those beyond the limit.
    num_received
        Bursts whose slots were demodulated.
    refused
        Bursts by fault.
    num_refused_inputs
        Inputs that were no vector of samples, or longer than :data:`~radio.preamble.MAX_SEARCH_SAMPLES`.
    """

    num_samples: int = 0
    num_candidates: int = 0
    num_rejected: int = 0
    num_dropped: int = 0
    num_received: int = 0
    refused: Counter[HeaderFault | BurstFault] = field(default_factory=Counter)
    num_refused_inputs: int = 0


def overhead_symbols(numerology: Numerology) -> int:
    """Symbols of a burst before its first slot."""
    return PREAMBLE_SYMBOLS + num_header_symbols(numerology)


def burst_samples(numerology: Numerology, num_slots: int) -> int:
    """Samples of a burst, on the transmitter's clock."""
    return overhead_symbols(numerology) * numerology.symbol_samples + num_slots * numerology.slot_samples


def modulate_burst(
    numerology: Numerology,
    header: BurstHeader,
    blocks: Mapping[tuple[int, int], bytes],
    amplitude: NDArray[np.float64],
    *,
    clock_drift_ppm: float = 0.0,
) -> NDArray[np.complex64]:
    """Samples of one burst.

    Parameters
    ----------
    header
        Says how many slots follow and at which MCS.
    blocks
        Payload by (slot, subchannel), as for :func:`radio.phy.modulate_slots`.
    amplitude
        ``[num_subchannels]`` magnitude of each subcarrier of the slots.  Preamble and header spread the same
        power evenly over the whole band.
    clock_drift_ppm
        How much this transmitter's clock is known to be fast [ppm]; corrected by resampling.

    Returns
    -------
    complex64 ``[burst_samples]``; with a drift as many more as it takes.

    Raises
    ------
    ValueError
        A header field out of its range, or a block outside of the header's slots and subchannels.
    """
    bits = pack_header(numerology, header)
    mcs_index = np.array(header.mcs_index, np.int64)
    for slot, subchannel in blocks:
        inside = 0 <= slot < header.num_slots and 0 <= subchannel < numerology.num_subchannels
        if not inside or mcs_index[subchannel] == UNUSED:
            raise ValueError(
                f"modulating a burst: a block at slot {slot}, subchannel {subchannel}, which the header with "
                f"{header.num_slots} slots does not announce"
            )
    power = np.where(mcs_index != UNUSED, np.asarray(amplitude, np.float64) ** 2, 0.0)
    start = np.concatenate([preamble_grid(numerology), header_grid(numerology, bits)])
    start *= np.float32(np.sqrt(power.mean()))
    slots = modulate_slots(numerology, header.num_slots, blocks, mcs_index, amplitude)
    samples = np.concatenate([grid_to_samples(numerology, start), slots])
    return correct_clock(samples, clock_drift_ppm) if clock_drift_ppm else samples


class _ReadHeader(NamedTuple):
    """The header's bits, and the carrier offset [cycles per sample] after it."""

    bits: NDArray[np.uint8]
    cycles: float


def _read_header(
    numerology: Numerology, samples: NDArray[np.complex64], preamble: FoundPreamble
) -> _ReadHeader:
    """Most likely header after a preamble, and the offset by both together."""
    size, num_symbols = numerology.symbol_samples, overhead_symbols(numerology)
    cycles = preamble.cfo_hz / numerology.sample_rate_hz
    piece = cut(samples, preamble.start_sample, num_symbols * size)
    grid = samples_to_grid(numerology, rotate(piece, 0, -cycles))
    distance = np.arange(PREAMBLE_SYMBOLS, num_symbols) - (PREAMBLE_SYMBOLS - 1) / 2
    # The preamble's Cramer-Rao bound; three deviations of it are looked at.
    elements = numerology.num_subcarriers * PREAMBLE_SYMBOLS * (PREAMBLE_SYMBOLS**2 - 1)
    deviation = np.sqrt(6.0 / (max(preamble.snr, 1e-3) * elements))
    each_side = int(np.ceil(3 * deviation * distance[-1] / (2 * _HYPOTHESIS_ERROR) - 0.5))
    each_side = min(max(each_side, 0), _MAX_HYPOTHESES // 2)
    advances = np.arange(-each_side, each_side + 1) * (2 * _HYPOTHESIS_ERROR / distance[-1])
    matched = grid[PREAMBLE_SYMBOLS:] * (preamble.channel.conj() / np.float32(preamble.noise_power))
    turns = np.exp(-1j * advances[:, None] * distance).astype(np.complex64)
    decoded = decode_header(numerology, matched[None] * turns[:, :, None])
    sent = np.concatenate([preamble_grid(numerology), header_grid(numerology, decoded.bits)])
    inside = in_span(numerology, grid * sent.conj())
    start = float(advances[decoded.hypothesis])
    advance = advance_per_symbol(inside, np.arange(num_symbols, dtype=np.float64), start)
    return _ReadHeader(decoded.bits, cycles + advance / (2 * np.pi * size))


class _Drift:
    """Carrier offset and clock drift from how the pilots of each slot turn against each other.

    With C_k the sum over slots of the second pilot's channel times the conjugate of the first's, over the
    noise power, the log-likelihood of a common phase a and a slope b is Re sum_k C_k exp(-j (a + k b)); both
    have Gaussian priors.  The best slope on a grid starts Newton's method on the two.
    """

    def __init__(self, numerology: Numerology, used: NDArray[np.int64], deviation: float) -> None:
        first, second = numerology.pilot_symbols
        self.symbols = second - first
        offsets = numerology.subcarrier_offsets.reshape(numerology.num_subchannels, -1)[used]
        self._places = offsets.ravel().astype(np.float64)
        self._sum = np.zeros(len(self._places), np.complex128)
        #: slope [rad per subcarrier] of a drift of one ppm
        self._slope_per_ppm = 2e-6 * np.pi * self.symbols * numerology.symbol_samples / numerology.fft_size
        # The likelihood's main lobe is a cycle over the band wide: a fourth of it is fine enough for Newton.
        lobe = 2 * np.pi / max(float(np.ptp(self._places)), 1.0)
        limit = MAX_CLOCK_DRIFT_PPM * self._slope_per_ppm
        each_side = int(np.ceil(4 * limit / lobe))
        self._grid = np.linspace(-limit, limit, 2 * each_side + 1)
        self._step = limit / each_side
        self._steering = np.exp(-1j * self._grid[:, None] * self._places)
        self._phase_precision = 1.0 / (deviation * self.symbols) ** 2
        self._slope_precision = 1.0 / (TYPICAL_CLOCK_DRIFT_PPM * self._slope_per_ppm) ** 2
        self.phase = 0.0
        self.slope = 0.0

    @property
    def ppm(self) -> float:
        return self.slope / self._slope_per_ppm

    def add(self, estimate: ChannelEstimate) -> None:
        """Take one slot more into account."""
        weight = 1.0 / np.maximum(estimate.noise_power[0], 1e-20)
        product = estimate.second[0] * estimate.first[0].conj() * weight[:, None]
        self._sum += product.ravel()
        totals = (self._steering * self._sum).sum(axis=1)
        phases = np.angle(totals)
        prior = self._slope_precision * self._grid**2 + self._phase_precision * phases**2
        best = int(np.argmax(np.abs(totals) - prior / 2))
        self.phase, self.slope = float(phases[best]), float(self._grid[best])
        self._newton()

    def _newton(self) -> None:
        k = self._places
        for _ in range(4):
            turned = self._sum * np.exp(-1j * (self.phase + k * self.slope))
            real, imaginary = turned.real, turned.imag
            gradient = np.array(
                [
                    imaginary.sum() - self._phase_precision * self.phase,
                    k @ imaginary - self._slope_precision * self.slope,
                ]
            )
            hessian = np.array([[real.sum(), k @ real], [k @ real, (k * k) @ real]])
            hessian += np.diag([self._phase_precision, self._slope_precision])
            if not (hessian[0, 0] > 0 and np.linalg.det(hessian) > 0):
                return  # at this noise the likelihood has no peak here; the grid's best stays
            phase_step, slope_step = np.linalg.solve(hessian, gradient)
            self.phase += float(np.clip(phase_step, -1.0, 1.0))
            self.slope += float(np.clip(slope_step, -self._step, self._step))


def _pilots(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    start: int,
    origin: int,
    cycles: float,
    used: NDArray[np.int64],
) -> ChannelEstimate:
    """Channel at the pilots of the slot that begins at a sample, the carrier offset since `origin` taken out."""
    spectra = []
    for symbol in numerology.pilot_symbols:
        at = start + symbol * numerology.symbol_samples + numerology.prefix_samples
        useful = cut(samples, at, numerology.fft_size)
        spectra.append(useful_to_spectrum(rotate(useful, at - origin, -cycles))[None])
    pilots = np.empty((1, 2, len(used), numerology.subcarriers_per_subchannel), np.complex64)
    take_pilots(numerology.grid_shape, used, (spectra[0], spectra[1]), pilot_reference(numerology), pilots)
    return estimate_channel(numerology, pilots)


def _receive_slots(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    preamble: FoundPreamble,
    header: BurstHeader,
    cycles: float,
) -> tuple[ReceivedSlots, float, float]:
    """Slots of a burst, its carrier offset [cycles per sample] and its clock drift [ppm]."""
    size = numerology.symbol_samples
    mcs_index = np.array(header.mcs_index, np.int64)
    used = np.flatnonzero(mcs_index != UNUSED)
    known = overhead_symbols(numerology)
    # What preamble and header leave of the carrier offset [rad per symbol], twice the bound for safety.
    elements = numerology.num_subcarriers * known * (known**2 - 1)
    deviation = 2.0 * np.sqrt(6.0 / (max(preamble.snr, 1e-3) * elements))
    drift = _Drift(numerology, used, deviation)
    for slot in range(header.num_slots):
        sent = known * size + slot * numerology.slot_samples
        start = preamble.start_sample + round(sent / (1 + drift.ppm * 1e-6))
        drift.add(_pilots(numerology, samples, start, preamble.start_sample, cycles, used))
    cycles += drift.phase / (2 * np.pi * drift.symbols * size)
    step = 1.0 / (1 + drift.ppm * 1e-6)
    total = header.num_slots * numerology.slot_samples
    length = known * size + total
    # A few more for the interpolator's reach, and for a clock that is slow.
    reach = int(length * max(step, 1.0)) + numerology.prefix_samples
    piece = rotate(cut(samples, preamble.start_sample, reach), 0, -cycles)
    aligned = interpolate(piece, known * size * step, step, total)
    owner = np.where(mcs_index != UNUSED, 0, UNUSED)
    return demodulate_slots(numerology, aligned, mcs_index, owner), cycles, drift.ppm


def _against_grant(header: BurstHeader, grants: Sequence[BurstGrant]) -> BurstFault | None:
    """Why no grant covers a header, if so."""
    of_transmitter = [grant for grant in grants if grant.transmitter == header.transmitter]
    if not of_transmitter:
        return BurstFault.UNKNOWN_TRANSMITTER
    of_run = [grant for grant in of_transmitter if grant.run_tag == header.run_tag]
    if not of_run:
        return BurstFault.FOREIGN_RUN
    if not any(header.num_slots <= g.num_slots and header.mcs_index == tuple(g.mcs_index) for g in of_run):
        return BurstFault.CONTRADICTS_GRANT
    return None


def demodulate_burst(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    preamble: FoundPreamble,
    grants: Sequence[BurstGrant],
) -> BurstReception:
    """What follows a preamble.

    Parameters
    ----------
    samples
        complex64 ``[num_samples]`` in which the preamble was found, finite.
    grants
        What is expected; a burst that no grant covers is refused before its slots are looked at.
    """
    after_preamble = preamble.start_sample + PREAMBLE_SYMBOLS * numerology.symbol_samples

    def refused(fault: HeaderFault | BurstFault, header: BurstHeader | None, cfo_hz: float) -> BurstReception:
        return BurstReception(fault, header, preamble, cfo_hz, 0.0, None, after_preamble)

    start_size = overhead_symbols(numerology) * numerology.symbol_samples
    lenience = int(numerology.prefix_samples * _LENIENCE)
    if preamble.start_sample < -lenience or preamble.start_sample + start_size > len(samples):
        return refused(BurstFault.TRUNCATED, None, preamble.cfo_hz)
    read = _read_header(numerology, samples, preamble)
    header = parse_header(numerology, read.bits)
    if isinstance(header, HeaderFault):
        return refused(header, None, preamble.cfo_hz)
    cfo_hz = read.cycles * numerology.sample_rate_hz
    fault = _against_grant(header, grants)
    if fault is not None:
        return refused(fault, header, cfo_hz)
    length = burst_samples(numerology, header.num_slots)
    # A fast clock is done earlier; by how much is known only after the slots.
    shortest = int(length / (1 + MAX_CLOCK_DRIFT_PPM * 1e-6))
    if preamble.start_sample + shortest > len(samples) + lenience:
        return refused(BurstFault.TRUNCATED, header, cfo_hz)
    slots, cycles, ppm = _receive_slots(numerology, samples, preamble, header, read.cycles)
    cfo_hz = cycles * numerology.sample_rate_hz
    end = preamble.start_sample + int(length / (1 + ppm * 1e-6))
    return BurstReception(None, header, preamble, cfo_hz, ppm, slots, end)


def receive_bursts(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    grants: Sequence[BurstGrant],
    *,
    max_cfo_hz: float = DEFAULT_MAX_CFO_HZ,
    noise_bandwidth: float = 1.0,
    counters: BurstCounters | None = None,
) -> list[BurstReception]:
    """All bursts in some samples, in order of time.

    Parameters
    ----------
    samples
        complex64 ``[num_samples]``, at most :data:`~radio.preamble.MAX_SEARCH_SAMPLES`; what is no number
        counts as zero.  A burst that ends after them is refused as truncated: hand over its beginning again
        with what follows.
    grants
        What is expected.
    max_cfo_hz
        Largest carrier offset looked for [Hz].
    noise_bandwidth
        Share of the sample rate that the noise fills, where samples were filtered.
    counters
        Where to count; refused inputs are counted and yield nothing.
    """
    counters = BurstCounters() if counters is None else counters
    source = np.asarray(samples)
    if source.ndim != 1 or source.dtype.kind not in "fc" or len(source) > MAX_SEARCH_SAMPLES:
        counters.num_refused_inputs += 1
        return []
    with np.errstate(over="ignore", invalid="ignore"):  # doubles beyond float32 become infinite: no numbers
        usable = sensible(source.astype(np.complex64, copy=False))
    candidates, count = find_candidates(numerology, usable, noise_bandwidth)
    counters.num_samples += len(usable)
    counters.num_candidates += count
    counters.num_dropped += count - len(candidates)
    bursts: list[BurstReception] = []
    busy_until = 0
    for candidate in candidates:
        # Inside a burst that was understood there is no other; earlier by a prefix is the same one again.
        if bursts and candidate.start_sample < busy_until - numerology.prefix_samples:
            continue
        preamble = confirm(numerology, usable, candidate, max_cfo_hz)
        if preamble is None or (bursts and preamble.start_sample < busy_until - numerology.prefix_samples):
            counters.num_rejected += 1
            continue
        burst = demodulate_burst(numerology, usable, preamble, grants)
        bursts.append(burst)
        busy_until = burst.end_sample
        if burst.fault is None:
            counters.num_received += 1
        else:
            counters.refused[burst.fault] += 1
    return bursts
