"""The start of a burst: found at an unknown time and carrier offset, by signal shape and never by level.

::

    |CP R|CP R|CP -R|CP R|   four OFDM symbols over the whole band, R known, one of them negated

    samples -> correlation with themselves one symbol later: time within half a symbol, offset modulo 1/T_s
            -> symbols added up, correlated with R at each possible offset: which one, and when
            -> FFT: offset refined, first path, channel, F-test of what lies inside the prefix's span

The first step runs over every sample and costs a few additions each; the others see only its candidates.
Of white noise the first metric exceeds its threshold with :data:`CANDIDATE_FALSE_ALARM` at any one sample;
the last test passes noise with at most :data:`CONFIRM_FALSE_ALARM` per candidate.  Both are ratios of
powers, so nothing depends on the receiver's gain.  What follows the preamble is in `radio.burst`.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field

import numpy as np
import scipy.fft
import scipy.linalg
import scipy.special
from numpy.typing import NDArray

from radio.estimation import EARLY_SHARE
from radio.grid import sensible
from radio.jit import kernel, register_warmup
from radio.numerology import Numerology
from radio.ofdm import grid_to_samples, reference_symbols, samples_to_grid
from radio.rotation import rotate

# Products of neighbours are + - -, whose own correlation one step apart is zero: the metric has a single
# triangular peak, and an unmodulated carrier reaches a third of it.
COVER = (1, 1, -1, 1)
PREAMBLE_SYMBOLS = len(COVER)
DEFAULT_MAX_CFO_HZ = 150e3
CANDIDATE_FALSE_ALARM = 1e-3  # per sample of white noise
CONFIRM_FALSE_ALARM = 1e-7  # per candidate
MAX_SEARCH_SAMPLES = 1 << 22  # of one call; the caller cuts longer captures into overlapping pieces
MAX_CANDIDATES = 1024  # of one call, each of which costs about a millisecond
# A path this far below the strongest one still counts as the first [dB] ...
FIRST_PATH_DB = -16.0
# ... if it exceeds what noise leaves in one bin of the profile, which it does once in e^12.
FIRST_PATH_OVER_NOISE = 12.0


def preamble_grid(numerology: Numerology) -> NDArray[np.complex64]:
    """What is sent, ``[PREAMBLE_SYMBOLS, num_subcarriers]``, unit magnitude."""
    reference = reference_symbols("preamble", 1, numerology.num_subcarriers)
    return np.asarray(np.array(COVER, np.float32)[:, None] * reference, np.complex64)


@kernel
def _window_sums(parts, first, size, num_samples, real, imaginary, energy, scratch):  # type: ignore[no-untyped-def]
    """Sum products and energies over the `size` samples from each of `size` starts on.

    A window is the end of one block and the beginning of the next.  Nothing is ever subtracted, so
    silence after a loud burst sums to exactly nothing.
    """
    num_products = num_samples - size
    total_real = np.float32(0.0)
    total_imaginary = np.float32(0.0)
    total = np.float32(0.0)
    for n in range(size - 1, -1, -1):
        at = first + n
        if at < num_samples:
            a, b = parts[2 * at], parts[2 * at + 1]
            total += a * a + b * b
            if at < num_products:
                c, d = parts[2 * (at + size)], parts[2 * (at + size) + 1]
                total_real += a * c + b * d
                total_imaginary += a * d - b * c
        real[n] = total_real
        imaginary[n] = total_imaginary
        energy[n] = total
    total_real = np.float32(0.0)
    total_imaginary = np.float32(0.0)
    total = np.float32(0.0)
    for n in range(size - 1):
        at = first + size + n
        if at < num_samples:
            a, b = parts[2 * at], parts[2 * at + 1]
            total += a * a + b * b
            if at < num_products:
                c, d = parts[2 * (at + size)], parts[2 * (at + size) + 1]
                total_real += a * c + b * d
                total_imaginary += a * d - b * c
        scratch[0, n + 1] = total_real
        scratch[1, n + 1] = total_imaginary
        scratch[2, n + 1] = total
    for n in range(1, size):
        real[n] += scratch[0, n]
        imaginary[n] += scratch[1, n]
        energy[n] += scratch[2, n]


@kernel
def _search(parts, size, threshold, starts, metrics, angles):  # type: ignore[no-untyped-def]
    """Write the peaks of the metric above a threshold, and return how many there are.

    Parameters
    ----------
    parts
        float32 [2 * num_samples], real and imaginary parts in turn.
    size
        Samples of a symbol with its prefix.
    starts, metrics, angles
        int64, float32 and float32 [max_peaks]: where, how high, and the phase over one symbol.  Peaks
        beyond their length are counted and not written.

    Notes
    -----
    A peak is the highest value within three symbols: the metric's side lobes lie closer.
    """
    num_samples = parts.shape[0] // 2
    last = num_samples - PREAMBLE_SYMBOLS * size
    real = np.zeros((4, size), np.float32)
    imaginary = np.zeros((4, size), np.float32)
    energy = np.zeros((4, size), np.float32)
    scratch = np.zeros((3, size), np.float32)
    metric = np.empty(size, np.float32)
    for block in range(3):
        slot = block & 3
        _window_sums(
            parts, block * size, size, num_samples, real[slot], imaginary[slot], energy[slot], scratch
        )
    count = 0
    best, best_start, best_angle = np.float32(0.0), -1, 0.0
    zero = np.float32(0.0)
    for block in range(last // size + 1):
        a, b, c, d = block & 3, (block + 1) & 3, (block + 2) & 3, (block + 3) & 3
        _window_sums(parts, (block + 3) * size, size, num_samples, real[d], imaginary[d], energy[d], scratch)
        highest = zero
        for n in range(size):
            x = real[a, n] - real[b, n] - real[c, n]
            y = imaginary[a, n] - imaginary[b, n] - imaginary[c, n]
            middle = energy[b, n] + energy[c, n]
            scale = (middle + energy[a, n]) * (middle + energy[d, n])
            value = (x * x + y * y) / scale if scale > zero else zero
            metric[n] = value
            highest = value if value > highest else highest
        first = block * size
        if best_start >= 0 and first > best_start + 3 * size:
            if count < starts.shape[0]:
                starts[count], metrics[count], angles[count] = best_start, best, best_angle
            count += 1
            best, best_start = zero, -1
        if not highest > threshold:
            continue
        for n in range(min(size, last - first + 1)):
            if metric[n] > threshold and metric[n] > best:
                best, best_start = metric[n], first + n
                x = real[a, n] - real[b, n] - real[c, n]
                y = imaginary[a, n] - imaginary[b, n] - imaginary[c, n]
                best_angle = np.arctan2(y, x)
    if best_start >= 0:
        if count < starts.shape[0]:
            starts[count], metrics[count], angles[count] = best_start, best, best_angle
        count += 1
    return count


def correlation_metric_reference(
    samples: NDArray[np.complex64], symbol_samples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first step's metric and phase [rad] at each start, from its definition in NumPy.

    With x and y the three symbols from a start and from one symbol later on, the metric is
    |<x, y>|^2 / (|x|^2 |y|^2) with the signs of the cover taken out of each symbol's products.
    """
    span = (PREAMBLE_SYMBOLS - 1) * symbol_samples
    count = len(samples) - span - symbol_samples + 1
    windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.complex128), span)
    early, late = windows[:count], windows[symbol_samples : symbol_samples + count]
    signs = np.repeat([a * b for a, b in itertools.pairwise(COVER)], symbol_samples)
    product = np.einsum("sn,sn,n->s", early.conj(), late, signs)
    scale = (np.abs(early) ** 2).sum(axis=1) * (np.abs(late) ** 2).sum(axis=1)
    metric = np.divide(np.abs(product) ** 2, scale, out=np.zeros(count), where=scale > 0)
    return metric, np.angle(product)


def candidate_threshold(numerology: Numerology, noise_bandwidth: float = 1.0) -> float:
    """Metric that noise exceeds at one sample with :data:`CANDIDATE_FALSE_ALARM`.

    Of two independent vectors of L complex Gaussian variables it is Beta(1, L - 1) distributed; noise
    of a narrower band counts as fewer variables.
    """
    count = (PREAMBLE_SYMBOLS - 1) * numerology.symbol_samples * noise_bandwidth
    return float(1.0 - CANDIDATE_FALSE_ALARM ** (1.0 / max(count - 1.0, 1.0)))


@functools.lru_cache(maxsize=8)
def band_span(numerology: Numerology) -> NDArray[np.complex64]:
    """Orthonormal vectors that hold every channel inside the prefix, ``[num_subcarriers, rank]``.

    Discrete prolate spheroidal sequences (Slepian 1978), as eigenvectors of the tridiagonal matrix that
    commutes with the band limitation, over the whole band with the gap at DC taken out.
    """
    size = numerology.num_subcarriers + 1
    share = numerology.prefix_samples / numerology.fft_size
    width = share * (1 + EARLY_SHARE)
    rank = min(int(np.ceil(size * width)) + 4, max(1, numerology.num_subcarriers // 2))
    index = np.arange(size)
    diagonal = ((size - 1 - 2 * index) / 2.0) ** 2 * np.cos(np.pi * width)
    beside = index[1:] * (size - index[1:]) / 2.0
    _, vectors = scipy.linalg.eigh_tridiagonal(
        diagonal, beside, select="i", select_range=(size - rank, size - 1)
    )
    lowest = int(numerology.subcarrier_offsets[0])
    kept = vectors[numerology.subcarrier_offsets - lowest]
    centre = share * (1 - EARLY_SHARE) / 2
    turned = kept * np.exp(-2j * np.pi * centre * numerology.subcarrier_offsets)[:, None]
    basis, _ = np.linalg.qr(turned)
    span = np.ascontiguousarray(basis, np.complex64)
    return span


@kernel(fastmath={"contract"})
def _coordinates(vectors, span, out):  # type: ignore[no-untyped-def]
    for row in range(vectors.shape[0]):
        out[row, :] = 0
        for n in range(vectors.shape[1]):
            real, imaginary = vectors[row, n].real, vectors[row, n].imag
            for m in range(span.shape[1]):
                c, d = span[n, m].real, span[n, m].imag
                out[row, m] += complex(real * c + imaginary * d, imaginary * c - real * d)


def in_span(numerology: Numerology, vectors: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Coordinates of vectors ``[n, num_subcarriers]`` in :func:`band_span`, ``[n, rank]``.

    A matrix product; but BLAS would wake all its threads for one this small.
    """
    span = band_span(numerology)
    out = np.empty((len(vectors), span.shape[1]), np.complex64)
    _coordinates(np.ascontiguousarray(vectors, np.complex64), span, out)
    return out


def advance_per_symbol(observed: NDArray[np.complex64], places: NDArray[np.float64], start: float) -> float:
    """Most likely phase advance from one symbol to the next [rad], near a first guess.

    Parameters
    ----------
    observed
        ``[num_symbols, n]``: the same unknown vector each time, turned, in white noise.
    places
        ``[num_symbols]`` time of each symbol [symbols].
    start
        First guess, within the main lobe of the likelihood [rad].

    Notes
    -----
    The likelihood is |sum_m y_m exp(-j places_m a)|^2: Newton's method on its correlations.  With M
    successive symbols, K elements each, at SNR s the Cramer-Rao bound is 6 / (s K M (M^2 - 1)) [rad^2].
    """
    gram = (observed.conj() @ observed.T).astype(np.complex128)
    lag = places[None, :] - places[:, None]
    upper = np.triu_indices(len(places), 1)
    products, lags = gram[upper], lag[upper]
    limit = np.pi / (np.ptp(places) + 1.0)
    advance = start
    for _ in range(6):
        turned = products * np.exp(-1j * advance * lags)
        curvature = float(np.sum(lags**2 * turned.real))
        if curvature <= 0:
            break
        step = min(max(float(np.sum(lags * turned.imag)) / curvature, -limit), limit)
        advance += step
        if abs(step) < 1e-7:
            break
    return advance


@dataclass(frozen=True)
class FoundPreamble:
    """A preamble that passed all tests.

    Attributes
    ----------
    start_sample
        Where its prefix begins: about two samples before the first path.
    cfo_hz
        Carrier offset [Hz].
    channel
        complex64 ``[num_subcarriers]``, at the middle of the preamble, in the receiver's scale over the
        transmitter's, inside the prefix's span.
    noise_power
        Per subcarrier, in the receiver's digital scale.
    snr
        Mean over the band, linear, per subcarrier.
    metric
        Height of the first step's peak, 0..1.
    """

    start_sample: int
    cfo_hz: float
    channel: NDArray[np.complex64] = field(repr=False)
    noise_power: float
    snr: float
    metric: float


@dataclass
class SearchResult:
    """What a search came to.

    Attributes
    ----------
    found
        In order of time.
    num_candidates
        Peaks of the first step.
    num_rejected
        Candidates that the last test took for noise.
    num_dropped
        Candidates beyond :data:`MAX_CANDIDATES`, not looked at.
    """

    found: list[FoundPreamble] = field(default_factory=list)
    num_candidates: int = 0
    num_rejected: int = 0
    num_dropped: int = 0


@dataclass(frozen=True)
class Candidate:
    """A peak of the first step: start sample, height, and phase over one symbol [rad]."""

    start_sample: int
    metric: float
    angle: float


def find_candidates(
    numerology: Numerology, samples: NDArray[np.complex64], noise_bandwidth: float = 1.0
) -> tuple[list[Candidate], int]:
    """Peaks of the first step in order of time, at most :data:`MAX_CANDIDATES`, and how many there were."""
    starts = np.empty(MAX_CANDIDATES, np.int64)
    metrics = np.empty(MAX_CANDIDATES, np.float32)
    angles = np.empty(MAX_CANDIDATES, np.float32)
    if len(samples) < PREAMBLE_SYMBOLS * numerology.symbol_samples:
        return [], 0
    threshold = np.float32(candidate_threshold(numerology, noise_bandwidth))
    parts = np.require(samples, np.complex64, ("C", "W")).view(np.float32)
    count = int(_search(parts, numerology.symbol_samples, threshold, starts, metrics, angles))
    kept = min(count, MAX_CANDIDATES)
    rows = zip(starts[:kept].tolist(), metrics[:kept].tolist(), angles[:kept].tolist(), strict=True)
    return [Candidate(*row) for row in rows], count


@functools.lru_cache(maxsize=8)
def _reference_spectrum(numerology: Numerology, length: int) -> NDArray[np.complex64]:
    """Conjugate spectrum of one preamble symbol without its prefix."""
    useful = grid_to_samples(numerology, preamble_grid(numerology)[:1])[numerology.prefix_samples :]
    return np.asarray(np.conj(scipy.fft.fft(useful, length)), np.complex64)


@functools.lru_cache(maxsize=8)
def _whole_turns(symbol_samples: int, length: int, count: int) -> NDArray[np.complex64]:
    """Phasors of 0, 1, .. turns per symbol taken out, ``[count, length]``."""
    cycles = np.arange(count)[:, None] / symbol_samples
    return np.exp(-2j * np.pi * cycles * np.arange(length)).astype(np.complex64)


def _which_offset(
    numerology: Numerology, samples: NDArray[np.complex64], candidate: Candidate, max_cfo_hz: float
) -> tuple[int, float]:
    """Start of the prefix that holds most of the channel, and the carrier offset [cycles per sample]."""
    size, prefix = numerology.symbol_samples, numerology.prefix_samples
    reach = size // 2 + prefix
    begin = candidate.start_sample - reach
    padded = cut(samples, begin, (PREAMBLE_SYMBOLS - 1) * size + 2 * reach + size)
    turns = np.array(COVER) * np.exp(-1j * candidate.angle * np.arange(PREAMBLE_SYMBOLS))
    length = 2 * reach + size
    views = np.lib.stride_tricks.sliding_window_view(padded, length)[::size]
    summed = (turns.astype(np.complex64)[:, None] * views).sum(axis=0)

    fraction = candidate.angle / (2 * np.pi * size)
    largest = min(max_cfo_hz / numerology.sample_rate_hz, 0.5) + 0.25 / size
    lowest, highest = int(np.ceil((-largest - fraction) * size)), int(np.floor((largest - fraction) * size))
    wraps = np.arange(lowest, max(lowest, highest) + 1)
    num_fft = scipy.fft.next_fast_len(length + numerology.fft_size)
    turn = np.exp(-2j * np.pi * (fraction + lowest / size) * np.arange(length))
    turned = (summed * turn.astype(np.complex64)) * _whole_turns(size, length, len(wraps))
    spectrum = scipy.fft.fft(turned, num_fft, axis=1)
    lags = scipy.fft.ifft(spectrum * _reference_spectrum(numerology, num_fft), axis=1)
    # A lag is the start of the useful part.  Energy of a prefix's worth of paths from each lag on.
    power = np.abs(lags[:, : 2 * reach + prefix]) ** 2
    running = np.cumsum(power, axis=1, dtype=np.float64)
    window = running[:, prefix:] - running[:, :-prefix]
    row, column = np.unravel_index(int(np.argmax(window)), window.shape)
    return begin + int(column) + 1 - prefix, float(fraction + wraps[row] / size)


def cut(samples: NDArray[np.complex64], start: int, count: int) -> NDArray[np.complex64]:
    """Samples from `start` on, zeros where there are none."""
    below = max(0, -start)
    inside = samples[max(start, 0) : max(start + count, 0)]
    if below == 0 and len(inside) == count:
        return inside
    out = np.zeros(count, np.complex64)
    out[below : below + len(inside)] = inside[: count - below]
    return out


def _observe(
    numerology: Numerology, samples: NDArray[np.complex64], start: int, cycles: float
) -> NDArray[np.complex64]:
    """Received preamble over the sent one, ``[PREAMBLE_SYMBOLS, num_subcarriers]``, the offset taken out."""
    piece = cut(samples, start, PREAMBLE_SYMBOLS * numerology.symbol_samples)
    grid = samples_to_grid(numerology, rotate(piece, 0, -cycles))
    return np.asarray(grid * preamble_grid(numerology).conj(), np.complex64)


def _refine_offset(
    numerology: Numerology, samples: NDArray[np.complex64], start: int, cycles: float
) -> float:
    """Offset [cycles per sample] from the phase advance inside the span, in two passes."""
    places = np.arange(PREAMBLE_SYMBOLS, dtype=np.float64)
    for _ in range(2):
        # Only what can be channel takes part: noise meets noise in fewer dimensions.
        inside = in_span(numerology, _observe(numerology, samples, start, cycles))
        cycles += advance_per_symbol(inside, places, 0.0) / (2 * np.pi * numerology.symbol_samples)
    return cycles


@functools.lru_cache(maxsize=8)
def _taper(num_subcarriers: int) -> NDArray[np.float32]:
    """Weights over the band whose profile has no side lobes that could be taken for a path."""
    return np.hanning(num_subcarriers + 2)[1:-1].astype(np.float32)


def _first_path(numerology: Numerology, observed: NDArray[np.complex64]) -> int:
    """Delay of the first path after the window's start [samples], about two samples early."""
    mean = observed.mean(axis=0)
    scatter = float(np.sum(np.abs(observed - mean) ** 2)) / (
        (PREAMBLE_SYMBOLS - 1) * numerology.num_subcarriers
    )
    taper = _taper(numerology.num_subcarriers)
    spectrum = np.zeros(numerology.fft_size, np.complex64)
    spectrum[numerology.fft_bins] = mean * taper
    profile = np.abs(scipy.fft.ifft(spectrum)) ** 2 * numerology.fft_size**2
    noise = scatter / PREAMBLE_SYMBOLS * float(np.sum(taper**2))
    reach = max(numerology.prefix_samples // 4, 2)
    delays = np.arange(-reach, numerology.prefix_samples + 1)
    power = profile[delays]
    threshold = max(float(power.max()) * 10 ** (FIRST_PATH_DB / 10), FIRST_PATH_OVER_NOISE * noise)
    above = np.flatnonzero(power >= threshold)
    return int(delays[above[0] if len(above) else int(np.argmax(power))])


@functools.lru_cache(maxsize=16)
def _confirm_threshold(rank: int, num_elements: int, probability: float) -> float:
    """F-ratio of 2 rank and 2 (num_elements - rank) real dimensions that noise exceeds so rarely."""
    # From the reciprocal's distribution: 1 - 1e-12 would leave few digits.
    return float(1.0 / scipy.special.fdtri(2 * (num_elements - rank), 2 * rank, probability))


def confirm(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    candidate: Candidate,
    max_cfo_hz: float = DEFAULT_MAX_CFO_HZ,
    false_alarm: float = CONFIRM_FALSE_ALARM,
) -> FoundPreamble | None:
    """The preamble behind a candidate, or ``None`` when it looks like noise.

    Parameters
    ----------
    samples
        complex64 ``[num_samples]``, finite.
    false_alarm
        Probability that noise passes, a bound: the test's own probability times the number of times and
        offsets out of which the best is taken.
    """
    start, cycles = _which_offset(numerology, samples, candidate, max_cfo_hz)
    cycles = _refine_offset(numerology, samples, start, cycles)
    start += _first_path(numerology, _observe(numerology, samples, start, cycles))
    cycles = _refine_offset(numerology, samples, start, cycles)
    observed = _observe(numerology, samples, start, cycles)

    basis = band_span(numerology)
    rank, num_subcarriers = basis.shape[1], numerology.num_subcarriers
    mean = observed.mean(axis=0, keepdims=True)
    inside = in_span(numerology, mean)[0]
    explained = float(np.sum(np.abs(inside) ** 2))
    # What repeats from symbol to symbol but is no channel, such as a carrier, is outside of the span:
    # the test must not compare with what changes between symbols.
    outside = max(float(np.sum(np.abs(mean) ** 2)) - explained, 1e-6 * explained)
    size = numerology.symbol_samples
    cells = 2 * size * (2 * max_cfo_hz / numerology.sample_rate_hz * size + 2)
    threshold = _confirm_threshold(rank, num_subcarriers, false_alarm / cells)
    if explained <= 0 or explained / rank <= threshold * outside / (num_subcarriers - rank):
        return None
    count = observed.size
    explained *= PREAMBLE_SYMBOLS
    total = float(np.sum(np.abs(observed) ** 2))
    noise = max(total - explained, 1e-6 * total) / (count - rank)
    snr = max(explained - rank * noise, 0.0) / count / noise
    channel = np.einsum("kr,r->k", basis, inside)  # not BLAS, see in_span
    cfo_hz = cycles * numerology.sample_rate_hz
    return FoundPreamble(start, cfo_hz, channel, noise, snr, candidate.metric)


def find_preambles(
    numerology: Numerology,
    samples: NDArray[np.complex64],
    *,
    max_cfo_hz: float = DEFAULT_MAX_CFO_HZ,
    noise_bandwidth: float = 1.0,
) -> SearchResult:
    """All preambles in some samples.

    Parameters
    ----------
    samples
        complex64 ``[num_samples]``; what is no number counts as zero.
    max_cfo_hz
        Largest carrier offset looked for [Hz].
    noise_bandwidth
        Share of the sample rate that the noise fills, where samples were filtered.

    Raises
    ------
    ValueError
        More than :data:`MAX_SEARCH_SAMPLES`.
    """
    if len(samples) > MAX_SEARCH_SAMPLES:
        raise ValueError(
            f"searching {len(samples)} samples for preambles; at most {MAX_SEARCH_SAMPLES} at a time: cut "
            "them into pieces that overlap by a burst"
        )
    usable = sensible(np.asarray(samples, np.complex64))
    candidates, count = find_candidates(numerology, usable, noise_bandwidth)
    result = SearchResult(num_candidates=count, num_dropped=count - len(candidates))
    for candidate in candidates:
        found = confirm(numerology, usable, candidate, max_cfo_hz)
        if found is None:
            result.num_rejected += 1
        else:
            result.found.append(found)
    return result


@register_warmup
def _warm_up() -> None:
    arrays = np.empty(1, np.int64), np.empty(1, np.float32), np.empty(1, np.float32)
    _search(np.ones(200, np.float32), 16, np.float32(0.1), *arrays)
    ones = np.ones((1, 4), np.complex64)
    _coordinates(ones, np.ones((4, 2), np.complex64), np.empty((1, 2), np.complex64))
