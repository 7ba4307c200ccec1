"""Kernels between the spectrum of OFDM symbols and the blocks of the resource grid.

A spectrum is what the FFT works on: complex64 [num_symbols, fft_size], DC first.  Subchannel k is a
run of neighbouring FFT bins, or two runs where it lies across the empty DC subcarrier, so nothing
is gathered by index arrays.  What a slot holds, and the radio that sends it, are not here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup
from radio.modulation import map_labels


@kernel
def _first_bin(shape, subcarrier):  # type: ignore[no-untyped-def]
    """Return the FFT bin of a subcarrier."""
    offset = subcarrier - shape.num_below
    return offset + shape.fft_size if offset < 0 else offset + 1


@kernel
def _lower_part(shape, subchannel):  # type: ignore[no-untyped-def]
    """Return how many subcarriers of a subchannel lie below DC."""
    return min(max(shape.num_below - subchannel * shape.width, 0), shape.width)


@kernel
def map_blocks(shape, slots, subchannels, data_symbols, points, bits_per_symbol, bits, amplitude, spectrum):  # type: ignore[no-untyped-def]
    """Map coded bits onto the data symbols of their blocks.

    Parameters
    ----------
    shape
        :class:`~radio.numerology.GridShape`.
    slots, subchannels
        int64 [num_blocks].
    data_symbols
        int64 [num_data_symbols], places within a slot.
    points
        complex64 [2**bits_per_symbol].
    bits
        uint8 [num_blocks, num_data_symbols * width * bits_per_symbol].
    amplitude
        float32 [num_subchannels].
    spectrum
        complex64 [num_slots * symbols_per_slot, fft_size], changed where the blocks lie.
    """
    width = shape.width
    for block in range(slots.shape[0]):
        subchannel = subchannels[block]
        lower = _lower_part(shape, subchannel)
        first = subchannel * width
        scale = amplitude[subchannel]
        block_bits = bits[block]
        below = _first_bin(shape, first)
        above = _first_bin(shape, first + lower)
        for index in range(data_symbols.shape[0]):
            row = spectrum[slots[block] * shape.symbols_per_slot + data_symbols[index]]
            bit = index * width * bits_per_symbol
            map_labels(points, bits_per_symbol, block_bits, bit, scale, row[below : below + lower])
            bit += lower * bits_per_symbol
            upper = row[above : above + width - lower]
            map_labels(points, bits_per_symbol, block_bits, bit, scale, upper)


@kernel
def map_pilots(shape, slots, subchannels, pilot_symbols, reference, amplitude, spectrum):  # type: ignore[no-untyped-def]
    """Write the pilots of some (slot, subchannel) places.

    Parameters
    ----------
    pilot_symbols
        (int, int), places within a slot.
    reference
        complex64 [2, num_subcarriers].
    """
    width = shape.width
    for block in range(slots.shape[0]):
        first = subchannels[block] * width
        scale = amplitude[subchannels[block]]
        for pilot in range(2):
            row = spectrum[slots[block] * shape.symbols_per_slot + pilot_symbols[pilot]]
            for n in range(width):
                known = reference[pilot, first + n]
                row[_first_bin(shape, first + n)] = complex(known.real * scale, known.imag * scale)


@kernel
def take_pilots(shape, subchannels, spectra, reference, out):  # type: ignore[no-untyped-def]
    """Divide received pilots by what was sent.

    Parameters
    ----------
    subchannels
        int64 [num_used].
    spectra
        Two of complex64 [num_slots, fft_size], one for each pilot symbol of the slots.
    reference
        complex64 [2, num_subcarriers] of unit magnitude.
    out
        complex64 [num_slots, 2, num_used, width].
    """
    for slot in range(out.shape[0]):
        for pilot in range(2):
            row = spectra[pilot][slot]
            for index in range(subchannels.shape[0]):
                first = subchannels[index] * shape.width
                for n in range(shape.width):
                    known = reference[pilot, first + n]
                    out[slot, pilot, index, n] = row[_first_bin(shape, first + n)] * known.conjugate()


@kernel(fastmath={"contract"})
def _equalise_run(row, start, weight, skipped, count, turn_real, turn_imaginary, out):  # type: ignore[no-untyped-def]
    received = row[start : start + count]
    weight = weight[skipped : skipped + count]
    out = out[skipped : skipped + count]
    for n in range(count):
        w_real, w_imaginary = weight[n].real, weight[n].imag
        c = w_real * turn_real - w_imaginary * turn_imaginary
        s = w_real * turn_imaginary + w_imaginary * turn_real
        real, imaginary = received[n].real, received[n].imag
        out[n] = complex(real * c - imaginary * s, real * s + imaginary * c)


@kernel
def equalise_blocks(  # type: ignore[no-untyped-def]
    shape, rows, subchannels, data_symbols, positions, channel, angle, noise, spectrum, symbols, variance
):
    """Equalise the data symbols of blocks with one tap per subcarrier and a linear phase.

    Parameters
    ----------
    rows, subchannels
        int64 [num_blocks], first row of the slot in the spectrum, and subchannel.
    data_symbols
        int64 [num_data_symbols], places within a slot.
    positions
        float64 [num_data_symbols], distance from where `channel` holds over the distance for which
        `angle` holds.
    channel
        complex64 [num_blocks, width].
    angle, noise
        float32 [num_blocks], phase [rad] and noise power per subcarrier.
    spectrum
        complex64 [num_symbols, fft_size].
    symbols, variance
        complex64 and float32 [num_blocks, num_data_symbols * width], written: symbols at the scale
        of the constellation, and the noise power of each.
    """
    width = shape.width
    weight = np.empty(width, np.complex64)
    spread = np.empty(width, np.float32)
    num_symbols = data_symbols.shape[0]
    turn_real = np.ones(num_symbols, np.float32)
    turn_imaginary = np.zeros(num_symbols, np.float32)
    turned_by = np.float32(0.0)
    least = np.float32(1e-20)
    for block in range(rows.shape[0]):
        if angle[block] != turned_by:  # the blocks of one transmitter in a slot share theirs
            turned_by = angle[block]
            for index in range(num_symbols):
                turn = -positions[index] * turned_by
                turn_real[index], turn_imaginary[index] = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        values = channel[block]
        for n in range(width):
            value = values[n]
            power = max(value.real * value.real + value.imag * value.imag, least)
            # The operator "/" would test for zero and raise, subcarrier by subcarrier.
            weight[n] = complex(np.divide(value.real, power), -np.divide(value.imag, power))
            spread[n] = np.divide(noise[block], power)
        first = subchannels[block] * width
        lower = _lower_part(shape, subchannels[block])
        below = _first_bin(shape, first)
        above = _first_bin(shape, first + lower)
        for index in range(num_symbols):
            c, s = turn_real[index], turn_imaginary[index]
            row = spectrum[rows[block] + data_symbols[index]]
            out = symbols[block, index * width : (index + 1) * width]
            _equalise_run(row, below, weight, 0, lower, c, s, out)
            _equalise_run(row, above, weight, lower, width - lower, c, s, out)
            variance[block, index * width : (index + 1) * width] = spread


@kernel
def bend_blocks(width, positions, slope, symbols):  # type: ignore[no-untyped-def]
    """Take a phase that is linear in subcarrier and time out of equalised blocks, in place.

    Parameters
    ----------
    positions
        float64 [num_data_symbols], as for :func:`equalise_blocks`.
    slope
        float32 [num_blocks], growth of `angle` per subcarrier [rad], nothing at the middle one.
    symbols
        complex64 [num_blocks, num_data_symbols * width].
    """
    centre = 0.5 * (width - 1)
    for block in range(symbols.shape[0]):
        for index in range(positions.shape[0]):
            step = -positions[index] * slope[block]
            c, s = np.cos(-centre * step), np.sin(-centre * step)
            step_c, step_s = np.cos(step), np.sin(step)
            run = symbols[block, index * width : (index + 1) * width]
            for n in range(width):
                real, imaginary = run[n].real, run[n].imag
                run[n] = complex(np.float32(real * c - imaginary * s), np.float32(real * s + imaginary * c))
                c, s = c * step_c - s * step_s, c * step_s + s * step_c


# Full scale is 1.0: what lies 120 dB beyond it is no signal, and its square would overflow.
_SENSELESS = 1e6


@kernel
def _all_sensible(parts, limit):  # type: ignore[no-untyped-def]
    """Return whether all magnitudes are below a limit; what is no number is not."""
    bad = np.int32(0)
    for n in range(parts.shape[0]):
        bad += np.int32(not abs(parts[n]) < limit)
    return bad == 0


def sensible(samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return samples with zeros in place of what is no number or absurdly large.

    Parameters
    ----------
    samples
        complex64 [num_samples].

    Returns
    -------
    complex64 [num_samples]
        `samples` itself where nothing had to be replaced.  Contiguous and writable.
    """
    source = np.require(samples, np.complex64, ("C", "W"))  # kernels know writable arrays only
    if _all_sensible(source.view(np.float32), np.float32(_SENSELESS)):
        return source
    good = (np.abs(source.real) < _SENSELESS) & (np.abs(source.imag) < _SENSELESS)
    return np.where(good, source, np.complex64(0))


@register_warmup
def _warm_up() -> None:
    # The others are reached by radio.phy's warm-up, with the types that it gives them.
    bend_blocks(2, np.zeros(1), np.zeros(1, np.float32), np.zeros((1, 2), np.complex64))
    sensible(np.zeros(8, np.complex64))
