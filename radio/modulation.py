"""Bits to constellation points and back to soft bits, BPSK to 1024-QAM (TS 38.211, section 5.1).

Each axis of a square constellation is Gray-coded amplitude modulation, so soft bits are computed per
axis.  Equalisation and the estimate of the noise are not here: the receiver hands over equalised
symbols with the noise variance of each.
"""

from __future__ import annotations

import functools
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from radio.coding import vectors
from radio.coding.transport_block import LLR_MAX, LLR_SCALE
from radio.jit import kernel, register_warmup

_LOW_BITS = np.uint64(0x0101010101010101)
_GATHER_BITS = np.uint64(0x8040201008040201)
# Symbols that pass the demodulator together; their working set stays in the first-level cache.
_CHUNK = 256


class Modulation(IntEnum):
    """A constellation; the value is its bits per symbol."""

    BPSK = 1
    QPSK = 2
    QAM16 = 4
    QAM64 = 6
    QAM256 = 8
    QAM1024 = 10

    @property
    def bits_per_axis(self) -> int:
        """Bits that the real (or imaginary) part of a symbol carries; BPSK counts one."""
        return max(1, self.value // 2)

    @property
    def axis_scale(self) -> float:
        """Half the distance of neighbouring points on one axis, at unit mean power."""
        # Mean square of the odd integers below 2**m is (4**m - 1) / 3; two axes share unit power.
        return float(np.sqrt(3.0 / (2.0 * (4.0**self.bits_per_axis - 1.0))))


@functools.cache
def constellation(modulation: Modulation) -> NDArray[np.complex64]:
    """Return the points by label, first bit of a symbol most significant.

    The real part follows d = (1-2b0)[2^(m-1) - (1-2b2)[2^(m-2) - ... (1-2b_(2m-2))]], the imaginary
    part the odd bits (TS 38.211, 5.1.3 to 5.1.7); BPSK is (1-2b)(1+j)/sqrt(2) (5.1.2).

    Returns
    -------
    complex64 [2**bits_per_symbol]
        Unit mean power.  Read only.
    """
    num_bits = int(modulation)
    labels = np.arange(1 << num_bits)
    signs = 1 - 2 * ((labels[:, None] >> np.arange(num_bits - 1, -1, -1)) & 1)
    if modulation is Modulation.BPSK:
        signs = np.repeat(signs, 2, axis=1)
    axes = []
    for axis in range(2):
        amplitude = signs[:, -2 + axis].astype(np.float64)
        for level, index in enumerate(range(signs.shape[1] - 4 + axis, -1, -2), start=1):
            amplitude = signs[:, index] * (2.0**level - amplitude)
        axes.append(amplitude * modulation.axis_scale)
    points = (axes[0] + 1j * axes[1]).astype(np.complex64)
    points.flags.writeable = False
    return points


@kernel
def map_labels(points, bits_per_symbol, bits, first_bit, scale, out):  # type: ignore[no-untyped-def]
    """Write the scaled points of consecutive labels, the bits from `first_bit` on.

    A word of eight bits, one per byte, becomes a label by one product: it brings the low bit of byte i
    to place 63 - i, and no other two terms meet.
    """
    count = out.shape[0]
    # As many symbols as two whole words can be loaded for.
    num_fast = min(count, max(0, bits.shape[0] - first_bit - 16) // bits_per_symbol)
    if bits_per_symbol <= 8:
        shift = np.uint64(64 - bits_per_symbol)
        for n in range(num_fast):
            packed = (vectors.fetch_word(bits, first_bit + n * bits_per_symbol) & _LOW_BITS) * _GATHER_BITS
            point = points[packed >> shift]
            out[n] = complex(point.real * scale, point.imag * scale)
    else:
        more = np.uint64(bits_per_symbol - 8)
        shift = np.uint64(64) - more
        for n in range(num_fast):
            place = first_bit + n * bits_per_symbol
            packed = (vectors.fetch_word(bits, place) & _LOW_BITS) * _GATHER_BITS
            rest = (vectors.fetch_word(bits, place + 8) & _LOW_BITS) * _GATHER_BITS
            point = points[((packed >> np.uint64(56)) << more) | (rest >> shift)]
            out[n] = complex(point.real * scale, point.imag * scale)
    for n in range(num_fast, count):
        label = 0
        for bit in range(bits_per_symbol):
            label = (label << 1) | (bits[first_bit + n * bits_per_symbol + bit] & 1)
        point = points[label]
        out[n] = complex(point.real * scale, point.imag * scale)


def modulate(modulation: Modulation, bits: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """Return the symbols that carry `bits`.

    Parameters
    ----------
    modulation
        The constellation.
    bits
        uint8 [..., num_symbols * bits_per_symbol], zeros and ones.

    Returns
    -------
    complex64 [..., num_symbols]
        Unit mean power over equally likely bits.
    """
    source = np.ascontiguousarray(bits, dtype=np.uint8)
    if source.ndim == 0 or source.shape[-1] % modulation:
        raise ValueError(
            f"modulating {modulation.name}: bits have shape {list(source.shape)}, whose last axis is no "
            f"multiple of {int(modulation)}; pad to whole symbols"
        )
    shape = (*source.shape[:-1], source.shape[-1] // modulation)
    out = np.empty(shape, dtype=np.complex64)
    points, one = constellation(modulation), np.float32(1.0)
    map_labels(points, int(modulation), source.reshape(-1), 0, one, out.reshape(-1))
    return out


@kernel
def _quantise(value):  # type: ignore[no-untyped-def]
    """Round to int8 within +-LLR_MAX; what is not a number is an erasure."""
    limit = np.float32(LLR_MAX)
    value = min(max(value, -limit), limit) if value == value else np.float32(0.0)
    # Above zero the conversion's truncation is a floor.
    return np.int8(np.int32(value + np.float32(LLR_MAX + 1.5)) - np.int32(LLR_MAX + 1))


@kernel
def _interleave_planes(planes, count, bits_per_symbol, out, start):  # type: ignore[no-untyped-def]
    """Write bit planes [bits_per_symbol, _CHUNK] as runs of one symbol each."""
    # The compiler turns the common even widths into shuffles once it sees the constant.
    if bits_per_symbol == 2:
        for index in range(count):
            for bit in range(2):
                out[start + index * 2 + bit] = planes[bit, index]
    elif bits_per_symbol == 4:
        for index in range(count):
            for bit in range(4):
                out[start + index * 4 + bit] = planes[bit, index]
    elif bits_per_symbol == 6:
        for index in range(count):
            for bit in range(6):
                out[start + index * 6 + bit] = planes[bit, index]
    elif bits_per_symbol == 8:
        for index in range(count):
            for bit in range(8):
                out[start + index * 8 + bit] = planes[bit, index]
    else:
        for index in range(count):
            for bit in range(10):
                out[start + index * 10 + bit] = planes[bit, index]


@kernel
def _fold_axis(fold, weight, half, out):  # type: ignore[no-untyped-def]
    """Write the soft bits of one level of one axis and fold the axis for the next.

    Folding at the boundary of a bit maps the points with that bit onto one half-line of odd integers,
    distances to the nearest ones kept.  So the nearest point of the other value is one step beyond
    the fold, and the nearest of the same value is the clipped rounding of the coordinate.
    """
    one, two = np.float32(1.0), np.float32(2.0)
    furthest = two * half - one
    for index in range(_CHUNK):
        distance = abs(fold[index])
        same = min(two * np.floor(np.float32(0.5) * distance) + one, furthest)
        # (distance + 1)^2 - (distance - same)^2
        metric = (one + same) * (two * distance + one - same) * weight[index]
        out[index] = _quantise(metric if fold[index] >= 0 else -metric)
        fold[index] = half - distance


@kernel
def _last_of_axis(fold, weight, out):  # type: ignore[no-untyped-def]
    """Write the soft bits of the last level, which has one point on either side."""
    for index in range(_CHUNK):
        out[index] = _quantise(np.float32(4.0) * fold[index] * weight[index])


@kernel
def _demodulate(bits_per_symbol, axis_scale, symbols, noise_variance, out):  # type: ignore[no-untyped-def]
    """Demodulate flat symbols in chunks whose every step is a plain vector loop."""
    num_levels = bits_per_symbol // 2
    inverse_scale = np.float32(1.0) / axis_scale
    real = np.zeros(_CHUNK, np.float32)
    imaginary = np.zeros(_CHUNK, np.float32)
    weight = np.zeros(_CHUNK, np.float32)
    planes = np.zeros((10, _CHUNK), np.int8)
    numerator = np.float32(LLR_SCALE) * axis_scale * axis_scale
    for start in range(0, noise_variance.shape[0], _CHUNK):
        count = min(_CHUNK, noise_variance.shape[0] - start)
        # Slices, since the compiler cannot know that an index "start + index" is not negative.
        variance = noise_variance[start : start + count]
        received = symbols[start : start + count]
        for index in range(count):
            # A variance that is no positive number marks a symbol about which nothing is known.  The
            # operator "/" would test for zero and raise, symbol by symbol.
            known = np.divide(numerator, variance[index])
            weight[index] = known if variance[index] > 0 else np.float32(0.0)
            real[index] = received[index].real * inverse_scale
            imaginary[index] = received[index].imag * inverse_scale
        if bits_per_symbol == 1:
            for index in range(count):
                metric = np.float32(4.0) * weight[index] * (real[index] + imaginary[index])
                out[start + index] = _quantise(metric)
        else:
            half = np.float32(1 << num_levels)
            for level in range(num_levels - 1):
                half *= np.float32(0.5)
                _fold_axis(real, weight, half, planes[2 * level])
                _fold_axis(imaginary, weight, half, planes[2 * level + 1])
            _last_of_axis(real, weight, planes[2 * num_levels - 2])
            _last_of_axis(imaginary, weight, planes[2 * num_levels - 1])
            _interleave_planes(planes, count, bits_per_symbol, out, start * bits_per_symbol)


def demodulate_llr(
    modulation: Modulation,
    symbols: NDArray[np.complex64],
    noise_variance: NDArray[np.float32],
) -> NDArray[np.int8]:
    """Return the exact max-log LLRs of equalised symbols, scaled for `radio.coding.decode`.

    LLR = (min |y - x|^2 over points with bit 1 - the same with bit 0) / N0, times `LLR_SCALE`,
    rounded and saturated at +-`LLR_MAX`; positive means bit 0.

    Parameters
    ----------
    modulation
        The constellation.
    symbols
        complex64 [num_blocks, num_symbols], at the constellation's own scale.
    noise_variance
        float32 [num_blocks, num_symbols]: N0 = E|noise|^2 after equalisation, relative to unit symbol
        power.  Zero, negative or not a number makes the symbol an erasure.

    Returns
    -------
    int8 [num_blocks, num_symbols * bits_per_symbol]
    """
    received = np.ascontiguousarray(symbols, dtype=np.complex64)
    variance = np.ascontiguousarray(noise_variance, dtype=np.float32)
    if received.ndim != 2 or received.shape != variance.shape:
        raise ValueError(
            f"demodulating {modulation.name}: symbols have shape {list(received.shape)} and noise "
            f"variances {list(variance.shape)}; both must be [num_blocks, num_symbols]"
        )
    out = np.empty((received.shape[0], received.shape[1] * modulation), dtype=np.int8)
    _demodulate(
        int(modulation),
        np.float32(modulation.axis_scale),
        received.reshape(-1),
        variance.reshape(-1),
        out.reshape(-1),
    )
    return out


def demodulate_llr_reference(
    modulation: Modulation,
    symbols: NDArray[np.complex64],
    noise_variance: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return the max-log LLRs by search over all points, scaled by `LLR_SCALE` but not rounded."""
    points = constellation(modulation).astype(np.complex128)
    num_bits = int(modulation)
    distance = np.abs(symbols[..., None].astype(np.complex128) - points) ** 2
    labels = np.arange(points.size)
    soft = []
    for bit in range(num_bits):
        is_one = ((labels >> (num_bits - 1 - bit)) & 1).astype(bool)
        soft.append(distance[..., is_one].min(axis=-1) - distance[..., ~is_one].min(axis=-1))
    scaled = np.stack(soft, axis=-1) / noise_variance[..., None].astype(np.float64) * LLR_SCALE
    return scaled.reshape(*symbols.shape[:-1], -1)


@register_warmup
def _warm_up() -> None:
    symbols = modulate(Modulation.QPSK, np.zeros((1, 4), dtype=np.uint8))
    demodulate_llr(Modulation.QPSK, symbols, np.ones((1, 2), dtype=np.float32))
