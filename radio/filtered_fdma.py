"""Filtered FDMA: clients side by side in frequency without common timing, each in a filtered band of its own.

::

    band i = one run of whole subchannels with its own numerology, preamble, header and empty middle
    | band 0 | guard | band 1 | guard | band 2 |        guard: empty subcarriers

    burst in its numerology -> FIR filter -> shifted to the band's centre      (transmitter)
    samples -> shifted back -> the same filter -> bursts, found and timed alone (receiver, for each band)

The filter is that of f-OFDM (Abdoli, Jia and Ma, 2015): a Hann-windowed sinc of half a symbol, longer than
the prefix, whose energy lies close around its middle because the band is wide.  Its edge lies half the guard
beyond the outermost subcarrier, and at least :data:`MIN_EXCESS_SUBCARRIERS`, or the band's own edges would
ring beyond the prefix.

What it costs, measured by tests/validation/acquisition.py and kept in acquisition.json there: a band of 7
subchannels between two of 6, all with timing of their own.  Leakage is the mean power per subcarrier over that
of the neighbours' [dB], in parentheses that of plain OFDM; the loss is that of the 10 % threshold of QAM16
0.55 against no neighbours [dB], when they are as strong, 10 dB and 20 dB stronger (-: not reached in 12 dB):

    guard   pluto-lab leakage   loss at 0, 10, 20 dB   laptop leakage   loss at 0, 10, 20 dB
    0       -26 (-19)           0.3   -     -          -32 (-23)         0.0   0.8   -
    2       -41 (-21)          -0.1  -0.2   0.4        -47 (-25)        -0.1   0.0   0.1
    4       -54 (-22)           0.2  -0.3   0.2        -60 (-26)         0.0   0.0   0.0
    8       -63 (-23)           0.1  -0.1  -0.3        -68 (-27)         0.0   0.0   0.0

On pluto-lab four repetitions of the threshold without neighbours lie within 8.8..9.2 dB: losses there are
certain to 0.3 dB only.

Carrier offsets must be corrected to a small part of the guard beforehand: the filter does not follow them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from radio.burst import BurstCounters, BurstGrant, BurstReception, receive_bursts
from radio.errors import RadioConfigurationError
from radio.grid import sensible
from radio.numerology import Numerology
from radio.preamble import MAX_SEARCH_SAMPLES
from radio.rotation import rotate

MIN_EXCESS_SUBCARRIERS = 1.5


@dataclass(frozen=True)
class Band:
    """A client's part of the spectrum.

    Attributes
    ----------
    numerology
        The client's own, as if it were alone; pass it to :func:`radio.burst.modulate_burst`.
    centre_subcarriers
        Its empty middle over the radio's carrier, in subcarriers.
    guard_subcarriers
        Empty subcarriers to the next band.
    """

    numerology: Numerology
    centre_subcarriers: int
    guard_subcarriers: int

    @property
    def width_subcarriers(self) -> int:
        """From the first to the last subcarrier, the empty one between them included."""
        return self.numerology.num_subcarriers + 1


def plan_bands(
    numerology: Numerology, num_subchannels: Sequence[int], guard_subcarriers: int
) -> tuple[Band, ...]:
    """Bands side by side around the carrier, lowest frequency first.

    Parameters
    ----------
    numerology
        Of the radio; subchannels keep their width.
    num_subchannels
        Of each client, contiguous.
    guard_subcarriers
        Left empty between neighbours.

    Raises
    ------
    RadioConfigurationError
        When they and their guards do not fit between the edges of the FFT.
    """
    if guard_subcarriers < 0 or not num_subchannels or min(num_subchannels) < 1:
        raise RadioConfigurationError(
            f"planning filtered FDMA: {list(num_subchannels)} subchannels with {guard_subcarriers} guard "
            "subcarriers; each client needs a subchannel, and a guard is not negative"
        )
    widths = [count * numerology.subcarriers_per_subchannel + 1 for count in num_subchannels]
    total = sum(widths) + guard_subcarriers * (len(widths) - 1)
    if total + 2 * max(guard_subcarriers, 2) > numerology.fft_size:
        raise RadioConfigurationError(
            f"planning filtered FDMA: {len(widths)} bands take {total} of {numerology.fft_size} subcarriers, "
            "and both ends need a guard too; grant fewer subchannels"
        )
    bands = []
    first = -(total // 2)
    for count, width in zip(num_subchannels, widths, strict=True):
        own = replace(numerology, num_subchannels=count)
        bands.append(Band(own, first + own.num_subcarriers // 2, guard_subcarriers))
        first += width + guard_subcarriers
    return tuple(bands)


@functools.lru_cache(maxsize=32)
def band_filter(band: Band) -> NDArray[np.float32]:
    """Taps of the low-pass filter of a band around its own middle, float32 ``[fft_size // 2 + 1]``, odd."""
    size = band.numerology.fft_size
    half = size // 4
    n = np.arange(-half, half + 1)
    # An even number of subcarriers lies evenly around the middle, an odd one half a subcarrier above it.
    excess = max(band.guard_subcarriers / 2, MIN_EXCESS_SUBCARRIERS)
    share = (band.width_subcarriers + 2 * excess) / size
    taps = share * np.sinc(share * n) * np.hanning(2 * half + 3)[1:-1]
    return (taps / taps.sum()).astype(np.float32)


def _filter(samples: NDArray[np.complex64], taps: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Full convolution by overlap-add, complex64 ``[num_samples + num_taps - 1]``."""
    num_fft = scipy.fft.next_fast_len(8 * len(taps))
    step = num_fft - len(taps) + 1
    spectrum = scipy.fft.fft(taps.astype(np.complex64), num_fft)
    out = np.zeros(len(samples) + len(taps) - 1, np.complex64)
    for start in range(0, len(samples), step):
        piece = scipy.fft.fft(samples[start : start + step], num_fft) * spectrum
        filtered = scipy.fft.ifft(piece, overwrite_x=True)
        count = min(num_fft, len(out) - start)
        out[start : start + count] += filtered[:count]
    return out


def _cycles_per_sample(band: Band) -> float:
    return band.centre_subcarriers / band.numerology.fft_size


def filter_burst(band: Band, samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """What a client sends: its burst, filtered and shifted into its band.

    Parameters
    ----------
    samples
        complex64 ``[num_samples]`` around the band's own middle, from :func:`radio.burst.modulate_burst`.

    Returns
    -------
    complex64 ``[num_samples + fft_size // 2]``
        The burst lies a quarter of a symbol after the first sample.
    """
    taps = band_filter(band)
    return rotate(_filter(samples, taps), 0, _cycles_per_sample(band))


def select_band(band: Band, samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """One client's samples around its band's middle, the others' filtered out, at the same instants.

    Parameters
    ----------
    samples
        complex64 ``[num_samples]``; what is no number counts as zero.
    """
    taps = band_filter(band)
    shifted = rotate(sensible(samples), 0, -_cycles_per_sample(band))
    half = len(taps) // 2
    return _filter(shifted, taps)[half : half + len(samples)]


def receive_band(
    band: Band,
    samples: NDArray[np.complex64],
    grants: Sequence[BurstGrant],
    *,
    max_cfo_hz: float | None = None,
    counters: BurstCounters | None = None,
) -> list[BurstReception]:
    """Bursts of one band, with timing of their own.

    Parameters
    ----------
    samples
        complex64 ``[num_samples]``; inputs of another kind are refused and counted.
    max_cfo_hz
        Largest carrier offset looked for [Hz]; half a subcarrier spacing by default.
    """
    counters = BurstCounters() if counters is None else counters
    source = np.asarray(samples)
    if source.ndim != 1 or source.dtype.kind not in "fc" or len(source) > MAX_SEARCH_SAMPLES:
        counters.num_refused_inputs += 1
        return []
    with np.errstate(over="ignore", invalid="ignore"):  # doubles beyond float32 become infinite: no numbers
        own = select_band(band, source.astype(np.complex64, copy=False))
    share = len(own) and (band.width_subcarriers + 2 * MIN_EXCESS_SUBCARRIERS) / band.numerology.fft_size
    return receive_bursts(
        band.numerology,
        own,
        grants,
        max_cfo_hz=band.numerology.subcarrier_spacing_hz / 2 if max_cfo_hz is None else max_cfo_hz,
        noise_bandwidth=min(share, 1.0) or 1.0,
        counters=counters,
    )
