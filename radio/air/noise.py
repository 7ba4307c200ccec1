"""White Gaussian noise as a pure function of a key and the absolute sample index.

Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with 7 rounds, the
fewest with which it passes TestU01's BigCrush, turns a counter into four words; Box-Muller turns
two words into one complex sample.  However a receiver cuts its windows, sample n has the same
noise: whole blocks on a fixed grid are computed and cut afterwards, so that not even the rounding
of a compiler's remainder loop differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup
from radio.randomness import derive_key

BLOCK_SAMPLES = 1024  # grid of the blocks; part of the generator's definition
_HALF = BLOCK_SAMPLES // 2  # counter j of a block gives samples j and j + _HALF
_ROUNDS = 7
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

# Kernels want constants of exactly the type of the arithmetic, or it is done in double precision.
_F = np.float32
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(_MULTIPLIERS[0]), np.uint64(_MULTIPLIERS[1])
_WEYL_0, _WEYL_1 = np.uint32(_WEYL[0]), np.uint32(_WEYL[1])
_BITS_32 = np.uint64(32)
_LOW = np.uint64(_MASK)
_LN_2 = _F(np.log(2.0))
_MANTISSA_BITS = np.int32(23)
_SQRT_HALF_PATTERN = np.int32(0x3F3504F3)  # of sqrt(1/2) in IEEE 754
# Interpolated at Chebyshev nodes, lowest power first.  (ln(1 + m) - m + m^2 / 2) / m^3 between
# sqrt(1/2) - 1 and sqrt(2) - 1 (error 1e-8), sin(t) / t (3e-9) and cos(t) (3e-8) in t^2 up to pi/4.
_L0, _L1, _L2, _L3 = _F(0.333333307), _F(-0.250003064), _F(0.200010451), _F(-0.166412815)
_L4, _L5, _L6, _L7 = _F(0.142144959), _F(-0.129981838), _F(0.126223198), _F(-0.0790274377)
_S0, _S1, _S2, _S3 = _F(1.0), _F(-0.1666665067), _F(0.008332035786), _F(-0.0001950390425)
_C0, _C1, _C2, _C3 = _F(1.0), _F(-0.4999985642), _F(0.04165501492), _F(-0.001358577926)


@intrinsic
def _pattern(typing_context: Any, value: Any) -> Any:
    """Return the IEEE 754 bits of a float32 as int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _from_pattern(typing_context: Any, value: Any) -> Any:
    """Return the float32 that has these IEEE 754 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@kernel
def _words(key, block, w0, w1, w2, w3):  # type: ignore[no-untyped-def]
    """Write the four output words of the counters of one block."""
    first = np.uint64(block) * np.uint64(_HALF)
    low, high = np.uint32(first & _LOW), np.uint32(first >> _BITS_32)
    key_0, key_1, counter_2, counter_3 = key[0], key[1], key[2], key[3]
    for j in range(_HALF):
        # A block starts at a multiple of its length, so the low word never carries inside it.
        a, b, c, d = np.uint32(low + np.uint32(j)), high, counter_2, counter_3
        k0, k1 = key_0, key_1
        for _ in range(_ROUNDS):
            product_0 = np.uint64(a) * _MULTIPLIER_0
            product_1 = np.uint64(c) * _MULTIPLIER_1
            a = np.uint32(product_1 >> _BITS_32) ^ b ^ k0
            c = np.uint32(product_0 >> _BITS_32) ^ d ^ k1
            b, d = np.uint32(product_1), np.uint32(product_0)
            k0, k1 = np.uint32(k0 + _WEYL_0), np.uint32(k1 + _WEYL_1)
        w0[j], w1[j], w2[j], w3[j] = a, b, c, d


@kernel(fastmath=True)
def _gaussian(radius_word, angle_word, scale, real, imaginary):  # type: ignore[no-untyped-def]
    """Box-Muller, one complex sample of variance 2 scale^2 from two words."""
    one, half, two, zero = np.uint32(1), _F(0.5), _F(2.0), _F(0.0)
    for j in range(_HALF):
        # 31 bits, since processors convert signed integers: magnitudes up to 6.6 standard deviations.
        uniform = (_F(np.int32(radius_word[j] >> one)) + half) * _F(2.0**-31)
        bits = _pattern(uniform)
        exponent = (bits - _SQRT_HALF_PATTERN) >> _MANTISSA_BITS
        m = _from_pattern(bits - (exponent << _MANTISSA_BITS)) - _F(1.0)
        p = ((((((_L7 * m + _L6) * m + _L5) * m + _L4) * m + _L3) * m + _L2) * m + _L1) * m + _L0
        logarithm = p * m * m * m - half * m * m + m + _F(exponent) * _LN_2
        radius = np.sqrt(max(-two * logarithm, zero)) * scale
        # The word gives an angle in an eighth of the circle to both sides of zero; three of its low
        # bits, which hardly move that angle, exchange and negate the parts to reach the rest.
        word = angle_word[j]
        angle = _F(np.int32(word)) * _F(np.pi / 4 * 2.0**-31)
        square = angle * angle
        sine = (((_S3 * square + _S2) * square + _S1) * square + _S0) * angle
        cosine = ((_C3 * square + _C2) * square + _C1) * square + _C0
        exchange = (word & one) != 0
        x = sine if exchange else cosine
        y = cosine if exchange else sine
        real[j] = _from_pattern(_pattern(x * radius) ^ np.int32((word & np.uint32(2)) << np.uint32(30)))
        imaginary[j] = _from_pattern(_pattern(y * radius) ^ np.int32((word & np.uint32(4)) << np.uint32(29)))


@kernel
def fill_noise(out, first_sample, key, scale):  # type: ignore[no-untyped-def]
    """Write noise over a window.

    Parameters
    ----------
    out
        float32 [2, num_samples], real parts and imaginary parts.
    first_sample
        Absolute index of the first sample, not negative.
    key
        uint32 [4] from :func:`noise_key`.
    scale
        float32, standard deviation of each part.
    """
    w0, w1 = np.empty(_HALF, np.uint32), np.empty(_HALF, np.uint32)
    w2, w3 = np.empty(_HALF, np.uint32), np.empty(_HALF, np.uint32)
    real = np.empty(BLOCK_SAMPLES, np.float32)
    imaginary = np.empty(BLOCK_SAMPLES, np.float32)
    end = first_sample + out.shape[1]
    for block in range(first_sample // BLOCK_SAMPLES, -(-end // BLOCK_SAMPLES)):
        _words(key, block, w0, w1, w2, w3)
        _gaussian(w0, w1, scale, real, imaginary)
        _gaussian(w2, w3, scale, real[_HALF:], imaginary[_HALF:])
        origin = block * BLOCK_SAMPLES
        start, stop = max(origin, first_sample), min(origin + BLOCK_SAMPLES, end)
        out[0, start - first_sample : stop - first_sample] = real[start - origin : stop - origin]
        out[1, start - first_sample : stop - first_sample] = imaginary[start - origin : stop - origin]


def noise_key(seed: int, *labels: str | int) -> NDArray[np.uint32]:
    """Key of an independent noise source, ``[4]``, equal on every machine."""
    return np.frombuffer(derive_key(seed, *labels).to_bytes(16, "little"), "<u4").astype(np.uint32)


def gaussian_noise(
    key: NDArray[np.uint32], first_sample: int, num_samples: int, deviation: float = 1.0
) -> NDArray[np.float32]:
    """Return noise of absolute sample indices.

    Parameters
    ----------
    key
        From :func:`noise_key`.
    first_sample
        Absolute index, not negative.
    deviation
        Standard deviation of each part; a complex sample has twice its square as power.

    Returns
    -------
    float32 [2, num_samples]
        Real parts and imaginary parts.
    """
    if first_sample < 0:
        raise ValueError(f"noise from sample {first_sample} on: indices start at 0")
    out = np.empty((2, num_samples), np.float32)
    fill_noise(out, int(first_sample), key, np.float32(deviation))
    return out


def gaussian_noise_reference(
    key: NDArray[np.uint32], first_sample: int, num_samples: int
) -> NDArray[np.float64]:
    """The same in plain NumPy and double precision, ``[2, num_samples]``."""
    index = np.arange(first_sample, first_sample + num_samples, dtype=np.uint64)
    block, place = index // np.uint64(BLOCK_SAMPLES), index % np.uint64(BLOCK_SAMPLES)
    counter = block * np.uint64(_HALF) + place % np.uint64(_HALF)
    a, b = counter & _LOW, counter >> _BITS_32
    c, d = np.full_like(a, key[2]), np.full_like(a, key[3])
    for turn in range(_ROUNDS):
        product_0, product_1 = a * _MULTIPLIER_0, c * _MULTIPLIER_1
        k0, k1 = (np.uint64((int(key[i]) + turn * _WEYL[i]) & _MASK) for i in range(2))
        a, c = (product_1 >> _BITS_32) ^ b ^ k0, (product_0 >> _BITS_32) ^ d ^ k1
        b, d = product_1 & _LOW, product_0 & _LOW
    second = place >= np.uint64(_HALF)
    radius_word, angle_word = np.where(second, c, a), np.where(second, d, b)
    radius = np.sqrt(-2.0 * np.log(((radius_word >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-31))
    angle = angle_word.astype(np.uint32).view(np.int32) * (np.pi / 4 * 2.0**-31)
    exchange = (angle_word & np.uint64(1)) != 0
    parts = np.stack(
        [np.where(exchange, np.sin(angle), np.cos(angle)), np.where(exchange, np.cos(angle), np.sin(angle))]
    )
    signs = [np.where(angle_word & np.uint64(mask), -1.0, 1.0) for mask in (2, 4)]
    return np.asarray(parts * radius * signs)


@register_warmup
def _warm_up() -> None:
    gaussian_noise(noise_key(0), 0, 8)
