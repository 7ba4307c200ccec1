"""What transmitters' blocks add up to at a receiver, subcarrier by subcarrier."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radio.jit import kernel, register_warmup


class Superposition(NamedTuple):
    """All transmitters together, by slot and subchannel.

    Attributes
    ----------
    signals
        complex64 ``[num_slots, 2, num_subchannels, width]`` at both pilots, which all transmitters send
        alike.
    truth
        complex64 ``[num_slots, num_subchannels, width]`` channel of the loudest, which alone can be
        decoded, half-way between the pilots.
    total
        float32 ``[num_slots, num_subchannels, width]`` power of all.
    strength
        float64 ``[num_slots, num_subchannels]`` power of the loudest, summed over subcarriers.
    sent, loudest
        int64 ``[num_slots, num_subchannels]`` its MCS (-1: nobody sends), and its number.
    advance
        float64 ``[num_slots, num_subchannels]`` its phase from pilot to pilot [rad].
    power
        float64 ``[num_slots]`` of all, summed over the band.
    """

    signals: NDArray[np.complex64]
    truth: NDArray[np.complex64]
    total: NDArray[np.float32]
    strength: NDArray[np.float64]
    sent: NDArray[np.int64]
    loudest: NDArray[np.int64]
    advance: NDArray[np.float64]
    power: NDArray[np.float64]


def nothing_heard(num_slots: int, num_subchannels: int, width: int) -> Superposition:
    """Silence, to add transmitters to."""
    places = (num_slots, num_subchannels)
    return Superposition(
        np.zeros((num_slots, 2, num_subchannels, width), np.complex64),
        np.zeros((*places, width), np.complex64),
        np.zeros((*places, width), np.float32),
        np.zeros(places),
        np.full(places, -1, np.int64),
        np.zeros(places, np.int64),
        np.zeros(places),
        np.zeros(num_slots),
    )


@kernel
def _add(taps, ramps, amplitude, turn, advance, mcs_index, number, to):  # type: ignore[no-untyped-def]
    width = to.truth.shape[2]
    num_taps = taps.shape[1]
    channel = np.empty(width, np.complex64)
    scaled = np.empty(num_taps, np.complex64)
    for slot in range(taps.shape[0]):
        c, s = np.float32(np.cos(advance[slot] / 2)), np.float32(np.sin(advance[slot] / 2))
        for subchannel in range(amplitude.shape[1]):
            if mcs_index[slot, subchannel] < 0:
                continue
            for tap in range(num_taps):
                scaled[tap] = np.complex64(taps[slot, tap] * turn[slot] * amplitude[slot, subchannel])
            first = subchannel * width
            channel[:] = np.complex64(0.0)
            for tap in range(num_taps):
                gain_real, gain_imaginary = scaled[tap].real, scaled[tap].imag
                ramp = ramps[tap, first : first + width]
                for n in range(width):
                    real, imaginary = ramp[n].real, ramp[n].imag
                    channel[n] += complex(
                        gain_real * real - gain_imaginary * imaginary,
                        gain_real * imaginary + gain_imaginary * real,
                    )
            strength = 0.0
            before, after = to.signals[slot, 0, subchannel], to.signals[slot, 1, subchannel]
            total = to.total[slot, subchannel]
            for n in range(width):
                real, imaginary = channel[n].real, channel[n].imag
                power = real * real + imaginary * imaginary
                total[n] += power
                strength += power
                before[n] += complex(real * c + imaginary * s, imaginary * c - real * s)
                after[n] += complex(real * c - imaginary * s, imaginary * c + real * s)
            to.power[slot] += strength
            if strength > to.strength[slot, subchannel]:
                to.strength[slot, subchannel] = strength
                to.truth[slot, subchannel] = channel
                to.sent[slot, subchannel] = mcs_index[slot, subchannel]
                to.loudest[slot, subchannel] = number
                to.advance[slot, subchannel] = advance[slot]


def add_transmitter(
    taps: NDArray[np.complex128],
    ramps: NDArray[np.complex64],
    amplitude: NDArray[np.float64],
    turn: NDArray[np.complex128],
    advance: NDArray[np.float64],
    mcs_index: NDArray[np.int64],
    number: int,
    to: Superposition,
) -> None:
    """Add one transmitter's blocks.

    Parameters
    ----------
    taps
        ``[num_slots, num_taps]`` amplitude gains.
    ramps
        ``[num_taps, num_subcarriers]`` phase of each tap's delay.
    amplitude, mcs_index
        ``[num_slots, num_subchannels]`` of what is sent; a negative MCS: nothing is.
    turn
        ``[num_slots]`` common factor half-way between the pilots.
    advance
        ``[num_slots]`` phase from pilot to pilot [rad].
    number
        What the transmitter is called in ``loudest``.
    """
    _add(taps, ramps, amplitude, turn, advance, mcs_index, number, to)


def add_transmitter_reference(
    taps: NDArray[np.complex128],
    ramps: NDArray[np.complex64],
    amplitude: NDArray[np.float64],
    turn: NDArray[np.complex128],
    advance: NDArray[np.float64],
    mcs_index: NDArray[np.int64],
    number: int,
    to: Superposition,
) -> None:
    """The same in plain NumPy and double precision."""
    sends = mcs_index >= 0
    channel = (taps @ ramps).reshape(to.truth.shape)
    channel = channel * (np.where(sends, amplitude, 0.0) * turn[:, None])[:, :, None]
    half = np.exp(0.5j * advance)[:, None, None]
    to.signals[:, 0] += (channel * half.conj()).astype(np.complex64)
    to.signals[:, 1] += (channel * half).astype(np.complex64)
    power = np.abs(channel) ** 2
    to.total[:] += power.astype(np.float32)
    strength = power.sum(axis=2)
    to.power[:] += strength.sum(axis=1)
    louder = sends & (strength > to.strength)
    to.strength[louder] = strength[louder]
    to.truth[louder] = channel[louder]
    to.sent[louder] = mcs_index[louder]
    to.loudest[louder] = number
    to.advance[louder] = np.broadcast_to(advance[:, None], louder.shape)[louder]


@kernel
def _transfer_power(taps, ramps, out):  # type: ignore[no-untyped-def]
    real, imaginary = np.empty(out.shape[1], np.float32), np.empty(out.shape[1], np.float32)
    for slot in range(taps.shape[0]):
        real[:] = np.float32(0.0)
        imaginary[:] = np.float32(0.0)
        for tap in range(taps.shape[1]):
            gain = np.complex64(taps[slot, tap])
            gain_real, gain_imaginary = gain.real, gain.imag
            for n in range(out.shape[1]):
                ramp_real, ramp_imaginary = ramps[tap, n].real, ramps[tap, n].imag
                real[n] += gain_real * ramp_real - gain_imaginary * ramp_imaginary
                imaginary[n] += gain_real * ramp_imaginary + gain_imaginary * ramp_real
        for n in range(out.shape[1]):
            out[slot, n] = real[n] * real[n] + imaginary[n] * imaginary[n]


def transfer_power(taps: NDArray[np.complex128], ramps: NDArray[np.complex64]) -> NDArray[np.float32]:
    """``[num_slots, num_subcarriers]`` power gain of each subcarrier; the arguments as above."""
    # A matrix product would wake the threads of the linear algebra library for a few thousand numbers.
    out = np.empty((len(taps), ramps.shape[1]), np.float32)
    _transfer_power(taps, ramps, out)
    return out


@register_warmup
def _warm_up() -> None:
    transfer_power(np.ones((1, 1), np.complex128), np.ones((1, 2), np.complex64))
    ones = np.ones((1, 1))
    complex_ones = np.ones((1, 1), np.complex128)
    add_transmitter(
        complex_ones,
        np.ones((1, 2), np.complex64),
        ones,
        complex_ones[0],
        ones[0],
        np.zeros((1, 1), np.int64),
        0,
        nothing_heard(1, 1, 2),
    )
