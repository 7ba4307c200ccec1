"""Channel, noise, timing and frequency from known symbols.

A channel whose impulse response lies inside the cyclic prefix moves slowly over neighbouring
subcarriers.  The few vectors that span all such channels (discrete prolate spheroidal sequences,
Slepian 1978) separate signal from noise without knowing the delays: what lies in their span is
the channel, the rest is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray

from radio.numerology import SOUNDING_SYMBOLS, Numerology
from radio.ofdm import reference_symbols

LEAKAGE = 3e-5  # power of an in-prefix channel that the span may miss: 45 dB below it
# At its edges a span misses most (37 dB below a path), and the first edge is where the strongest path
# of a well-timed transmitter lies.  A span that begins this share of the prefix earlier misses 50 dB
# there and 35 dB at the very last sample, where only the faintest echoes arrive.
EARLY_SHARE = 0.05


@lru_cache(maxsize=8)
def prefix_span(
    prefix_samples: int, fft_size: int, num_subcarriers: int
) -> tuple[NDArray[np.complex64], int]:
    """Projection on the channels inside the prefix, and its rank.

    Returns
    -------
    projection
        ``[num_subcarriers, num_subcarriers]``, Hermitian and idempotent.
    rank
        Dimensions that it keeps.
    """
    lag = np.subtract.outer(np.arange(num_subcarriers), np.arange(num_subcarriers))
    width = prefix_samples / fft_size
    spread, centre = width * (1 + EARLY_SHARE), width * (1 - EARLY_SHARE) / 2
    covariance = np.sinc(spread * lag) * np.exp(-2j * np.pi * centre * lag)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    missed = np.cumsum(np.maximum(eigenvalues, 0.0)) / num_subcarriers
    rank = max(1, int(np.count_nonzero(missed > LEAKAGE)))
    rank = min(rank, max(1, num_subcarriers - 2))  # two dimensions stay for the noise
    kept = vectors[:, -rank:]
    return (kept @ kept.conj().T).astype(np.complex64), rank


@dataclass(frozen=True)
class ChannelEstimate:
    """Channel of all subchannels in some slots, from their two pilot symbols.

    Attributes
    ----------
    first, second
        ``[num_slots, num_subchannels, subcarriers]`` channel at each pilot symbol.
    noise_power
        ``[num_slots, num_subchannels]`` noise power per subcarrier.
    snr
        ``[num_slots, num_subchannels]`` signal-to-noise power ratio per subcarrier, not below 0.
    detected
        ``[num_slots, num_subchannels]`` whether pilots were sent there at all: an F-test of the
        energy inside the prefix's span against that outside of it.
    channel_power
        ``[num_slots, num_subchannels]`` squared magnitudes of both pilots' channels, summed.
    """

    first: NDArray[np.complex64]
    second: NDArray[np.complex64]
    noise_power: NDArray[np.float32]
    snr: NDArray[np.float32]
    detected: NDArray[np.bool_]
    channel_power: NDArray[np.float32]


FALSE_ALARM = 1e-3  # of the tests for pilots, per slot and subchannel, or per slot and transmitter
# Of the test for whether decoding is worth a try.  A block tried in vain costs some iterations; one that
# is not tried is lost, and pilots are few where a subchannel is narrow.
TRIAL_FALSE_ALARM = 0.25
EMPTY_SHARE = 0.25  # of a subchannel's mean energy above the noise: a slot with less holds no block


@lru_cache(maxsize=64)
def _detection_thresholds(
    rank: int, num_subcarriers: int, max_places: int, false_alarm: float
) -> NDArray[np.float64]:
    """Energy per dimension over noise that n empty places exceed with a probability, ``[max_places + 1]``."""
    # Two pilot symbols, two real dimensions for each complex one.
    places = np.maximum(np.arange(max_places + 1), 1)
    outside = 4 * (num_subcarriers - rank)
    return np.asarray(scipy.special.fdtri(4 * rank * places, outside * places, 1.0 - false_alarm))


def _power(pilots: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Squared magnitudes, ``[num_slots, 2, num_subchannels, subcarriers]``, summed over pilots and subcarriers."""
    parts = np.ascontiguousarray(pilots).view(np.float32)
    return np.asarray(np.einsum("spkn,spkn->sk", parts, parts))


def estimate_channel(numerology: Numerology, pilots: NDArray[np.complex64]) -> ChannelEstimate:
    """Channel and noise from received pilot symbols divided by what was sent.

    Parameters
    ----------
    pilots
        ``[num_slots, 2, num_subchannels, subcarriers]``, received over sent.
    """
    width = numerology.subcarriers_per_subchannel
    projection, rank = prefix_span(numerology.prefix_samples, numerology.fft_size, width)
    # P is Hermitian, so rows times its transpose project each row.
    channel = pilots @ projection.T
    total = _power(pilots)
    inside = _power(channel)
    noise = np.maximum(total - inside, 1e-20) / (2 * (width - rank))
    signal = np.maximum(inside - 2 * rank * noise, 0.0) / (2 * width)
    return ChannelEstimate(
        channel[:, 0],
        channel[:, 1],
        noise.astype(np.float32),
        # The mean of 1 / noise exceeds that of the noise by n / (n - 2), n its degrees of freedom.
        (signal / noise * (1 - 1 / (2 * (width - rank)))).astype(np.float32),
        inside / (2 * rank) > _detection_thresholds(rank, width, 1, FALSE_ALARM)[1] * noise,
        inside,
    )


class Presence(NamedTuple):
    """Where transmitters were, by the evidence of all their subchannels.

    Attributes
    ----------
    tried
        bool ``[num_slots, num_used]``: decoding is worth a try.
    certain
        bool ``[num_slots, num_used]``: a block was sent there.
    """

    tried: NDArray[np.bool_]
    certain: NDArray[np.bool_]


def find_transmitters(
    numerology: Numerology, estimate: ChannelEstimate, members: NDArray[np.float32]
) -> Presence:
    """In which slots of a window transmitters were present.

    Parameters
    ----------
    estimate
        Of the used subchannels.
    members
        ``[num_owners, num_used]``, 1 where a subchannel is of a transmitter, else 0.

    Notes
    -----
    A transmitter sends without a pause: it was present from the first slot in which it was found to the
    last one.  It fills the subchannels that it uses in every slot but the last.
    """
    width = numerology.subcarriers_per_subchannel
    _, rank = prefix_span(numerology.prefix_samples, numerology.fft_size, width)
    num_slots, num_used = estimate.detected.shape
    sizes = members.sum(axis=1).astype(int)
    strict, lenient = (
        _detection_thresholds(rank, width, num_used, alarm)[sizes]
        for alarm in (FALSE_ALARM, TRIAL_FALSE_ALARM)
    )
    ratio = (
        (estimate.channel_power / (2 * rank))
        @ members.T
        / np.maximum(estimate.noise_power @ members.T, 1e-30)
    )
    found = (ratio > strict) | ((estimate.detected @ members.T) > 0)
    since = np.maximum.accumulate(found, axis=0)
    until = np.maximum.accumulate(found[::-1], axis=0)[::-1]
    later = np.vstack([until[1:], np.zeros((1, len(members)), bool)])
    belongs = members.T > 0
    # [num_slots, num_owners] -> [num_slots, num_used]: each subchannel has one owner.
    between = (since & until) @ belongs.T
    tried = between | (ratio > lenient) @ belongs.T
    # Over all slots of its transmitter a subchannel shows whether it is used and how strongly; then a slot
    # of much less energy was empty.
    own = estimate.channel_power / (2 * rank) / np.maximum(estimate.noise_power, 1e-30)
    num_between = between.sum(axis=0)
    mean = (own * between).sum(axis=0) / np.maximum(num_between, 1)
    by_length = _detection_thresholds(rank, width, num_slots, FALSE_ALARM)[num_between]
    used = (mean > by_length) & (own > 1 + EMPTY_SHARE * (mean - 1))
    return Presence(tried, ((since & later) @ belongs.T & used) | estimate.detected)


@dataclass(frozen=True)
class SoundingEstimate:
    """What one transmitter's sounding says about its link.

    Attributes
    ----------
    detected
        Whether the known signal was there.
    gain
        ``[num_subchannels]`` received over sent power, in the receiver's digital scale.
    noise_power
        Noise power per subcarrier in the receiver's digital scale.
    snr
        ``[num_subchannels]`` power ratio at the sounding's PSD.
    cfo_hz
        Carrier frequency offset left after what the receiver already corrected [Hz].
    delay_samples
        Delay of the strongest path after the receiver's window start [samples].
    """

    detected: bool
    gain: NDArray[np.float64]
    noise_power: float
    snr: NDArray[np.float64]
    cfo_hz: float
    delay_samples: float


DETECTION_SNR = 10 ** (-15 / 10)  # sounding below this is taken for noise
SOUNDING_FALSE_ALARM = 1e-6  # probability that noise alone is taken for a sounding


def sounding_grid(numerology: Numerology, amplitude: float) -> NDArray[np.complex64]:
    """Known full-band signal, ``[SOUNDING_SYMBOLS, num_subcarriers]``."""
    reference = reference_symbols("sounding", SOUNDING_SYMBOLS, numerology.num_subcarriers)
    return np.asarray(reference * np.float32(amplitude), np.complex64)


def _phase_advance(observed: NDArray[np.complex64]) -> float:
    """Phase from one symbol to the next [rad], of ``[num_symbols, num_subcarriers]``.

    With an unknown channel on each subcarrier the likelihood depends on the correlations over all
    lags; the one of neighbouring symbols gives the start, Newton's method the maximum.
    """
    num_symbols = len(observed)
    lags = np.arange(1, num_symbols)
    correlation = np.array([np.vdot(observed[:-lag], observed[lag:]) for lag in lags], np.complex128)
    advance = float(np.angle(correlation[0]))
    limit = np.pi / num_symbols  # half the width of the likelihood's main lobe
    for _ in range(4):
        turned = correlation * np.exp(-1j * advance * lags)
        curvature = float(np.sum(lags**2 * turned.real))
        if curvature <= 0:
            break
        step = float(np.sum(lags * turned.imag)) / curvature
        advance += min(max(step, -limit), limit)
    return float(np.angle(np.exp(1j * advance)))


def estimate_sounding(
    numerology: Numerology, received: NDArray[np.complex64], amplitude: float
) -> SoundingEstimate:
    """Gains, noise, frequency and delay of one link.

    Parameters
    ----------
    received
        ``[SOUNDING_SYMBOLS, num_subcarriers]`` grid of the sounding's symbols.
    amplitude
        Magnitude of each sent subcarrier, in the transmitter's digital scale.

    Notes
    -----
    The frequency offset is the phase advance between successive symbols (range half of one over
    the symbol duration T).  With M symbols of K subcarriers at SNR s its Cramer-Rao bound is
    6 / (s K M (M^2 - 1)) [rad^2]; noise meeting noise adds about 1 / (M s) of that.
    """
    reference = reference_symbols("sounding", SOUNDING_SYMBOLS, numerology.num_subcarriers)
    usable = np.where(np.abs(received) < 1e9, received, 0)  # what is no number says nothing
    observed = usable / (reference * np.float32(amplitude))
    steps = np.sum(observed[1:] * observed[:-1].conj())
    advance = _phase_advance(observed)
    derotated = observed * np.exp(-1j * advance * np.arange(SOUNDING_SYMBOLS))[:, None]
    mean = derotated.mean(axis=0)
    # Noise of the normalised observations: scatter around the mean over the symbols.
    scatter = float(np.sum(np.abs(derotated - mean) ** 2)) / (
        (SOUNDING_SYMBOLS - 1) * numerology.num_subcarriers
    )
    scatter = max(scatter, 1e-30)
    per_subchannel = np.abs(mean.reshape(numerology.num_subchannels, -1)) ** 2
    power = np.maximum(per_subchannel.mean(axis=1) - scatter / SOUNDING_SYMBOLS, 0.0)
    snr = power / scatter
    # Repetition of the known signal from symbol to symbol, against noise that does not repeat.
    # Of noise alone, products of neighbours add up to a complex Gaussian, whose magnitude is Rayleigh.
    # The measure is the total power: the scatter shrinks by what noise happens to repeat.
    products = (SOUNDING_SYMBOLS - 1) * numerology.num_subcarriers
    coherence = abs(steps) / products
    total = max(float(np.mean(np.abs(observed) ** 2)), 1e-30)
    threshold = float(np.sqrt(-np.log(SOUNDING_FALSE_ALARM) / products))
    detected = bool(coherence / total > threshold and snr.mean() > DETECTION_SNR)
    spectrum = np.zeros(numerology.fft_size, np.complex128)
    spectrum[numerology.fft_bins] = mean
    delay = int(np.argmax(np.abs(np.fft.ifft(spectrum))))
    if delay > numerology.fft_size // 2:
        delay -= numerology.fft_size
    symbol_s = numerology.symbol_samples / numerology.sample_rate_hz
    return SoundingEstimate(
        detected,
        power.astype(np.float64),
        scatter * amplitude**2,
        snr.astype(np.float64),
        advance / (2 * np.pi * symbol_s),
        float(delay),
    )


def cfo_rotation(
    num_samples: int, first_sample: int, cfo_hz: float, sample_rate_hz: float
) -> NDArray[np.complex64]:
    """Phasor ``[num_samples]`` of a carrier offset, with the phase of the absolute sample index."""
    cycles = cfo_hz / sample_rate_hz
    start = (first_sample * cycles) % 1.0
    phase = 2 * np.pi * (start + cycles * np.arange(num_samples))
    return np.exp(1j * phase).astype(np.complex64)
