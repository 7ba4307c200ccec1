"""A sampling clock that is off, within a slot."""

import numpy as np
import pytest
from numpy.typing import NDArray
from signals import LAPTOP, PLUTO_LAB, complex_noise, random_blocks, slots_of

from radio.estimation import ChannelEstimate, estimate_channel
from radio.grid import bend_blocks
from radio.mcs import thresholds_db
from radio.numerology import Numerology
from radio.phy import demodulate_slots, modulate_slots
from radio.rotation import rotate
from radio.tracking import RESIDUAL_CFO_SPACINGS, RESIDUAL_CLOCK_PPM, SlotMotion, slot_motion

BOTH = pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])


def _through_a_drifting_clock(
    numerology: Numerology, samples: NDArray[np.complex64], drift_ppm: float
) -> NDArray[np.complex64]:
    """Samples on a clock that is off by some ppm, right at the middle of each slot.

    Every symbol is band limited and periodic, so that a delay is a phase over its subcarriers, exactly.
    """
    length, size = numerology.symbol_samples, numerology.fft_size
    symbols = samples.reshape(-1, length)
    spectrum = np.fft.fft(symbols[:, numerology.prefix_samples :], axis=1)
    frequency = np.fft.fftfreq(size)
    middle = (numerology.symbols_per_slot - 1) / 2
    index = np.arange(len(symbols)) % numerology.symbols_per_slot - middle
    delay = drift_ppm * 1e-6 * index * length
    moved = np.fft.ifft(spectrum * np.exp(-2j * np.pi * frequency * delay[:, None]), axis=1)
    out = np.concatenate([moved[:, size - numerology.prefix_samples :], moved], axis=1)
    return out.reshape(-1).astype(np.complex64)


@BOTH
@pytest.mark.parametrize("drift_ppm", [-50.0, -5.0, 0.0, 20.0, 50.0])
def test_a_clock_that_is_off_costs_no_evm(numerology: Numerology, drift_ppm: float) -> None:
    rng = np.random.default_rng(1)
    mcs = np.full(20, 22)
    owner = np.zeros(20, np.int64)
    blocks = random_blocks(rng, numerology, 4, mcs)
    samples = _through_a_drifting_clock(numerology, slots_of(numerology, 4, blocks, mcs), drift_ppm)
    snr_db = 34.0
    noisy = samples + complex_noise(rng, len(samples), 10 ** (-snr_db / 10))
    received = demodulate_slots(numerology, noisy, mcs, owner)
    assert received.blocks == blocks
    # Noise, its part in the channel estimate (half the pilots' rank over the subchannel's width),
    # and at most 20 % more from the clock: without tracking it would be 20 dB more at 50 ppm.
    estimation = 1.35 if numerology is PLUTO_LAB else 1.15
    assert received.evm < 1.2 * np.sqrt(estimation) * 10 ** (-snr_db / 20)


@BOTH
def test_five_transmitters_have_clocks_of_their_own(numerology: Numerology) -> None:
    rng = np.random.default_rng(2)
    mcs = np.full(20, 18)
    owner = np.arange(20) // 4
    blocks = random_blocks(rng, numerology, 4, mcs)
    heard = np.zeros(4 * numerology.slot_samples, np.complex64)
    for client, drift_ppm in enumerate((-40.0, -10.0, 0.0, 15.0, 40.0)):
        own = {place: block for place, block in blocks.items() if owner[place[1]] == client}
        sent = slots_of(numerology, 4, own, mcs)
        heard += _through_a_drifting_clock(numerology, sent, drift_ppm)
    heard += complex_noise(rng, len(heard), 10 ** (-28.0 / 10))
    assert demodulate_slots(numerology, heard, mcs, owner).blocks == blocks


@BOTH
def test_a_good_clock_is_not_bent_by_noise(numerology: Numerology) -> None:
    """At the lowest MCS and one subchannel the prior holds the slope at zero."""
    rng = np.random.default_rng(3)
    mcs = np.full(20, -1)
    mcs[7] = 0
    blocks = random_blocks(rng, numerology, 40, mcs)
    samples = slots_of(numerology, 40, blocks, mcs)
    snr_db = thresholds_db(numerology.block_resource_elements, 0.01)[0] + (
        4.0 if numerology is PLUTO_LAB else 2.0
    )
    noisy = samples + complex_noise(rng, len(samples), 10 ** (-snr_db / 10))
    received = demodulate_slots(numerology, noisy, mcs, np.zeros(20, np.int64))
    assert len(received.blocks) >= 38


def _motion_reference(
    numerology: Numerology,
    estimate: ChannelEstimate,
    noise: NDArray[np.float32],
    centres: NDArray[np.float64],
    owner_of_used: NDArray[np.int64],
    heard: NDArray[np.bool_],
) -> SlotMotion:
    """The same by whole arrays: a weighted regression of phases on subcarrier numbers."""
    first, second = estimate.first.astype(np.complex128), estimate.second.astype(np.complex128)
    members = owner_of_used[None, :] == np.arange(owner_of_used.max() + 1)[:, None]
    width = first.shape[2]
    away_within = np.arange(width) - (width - 1) / 2
    z = second * first.conj()
    product, moment = z.sum(axis=2), (z * away_within).sum(axis=2)
    raw = np.angle(product @ members.T)
    total_snr = (estimate.channel_power @ members.T) / (2 * (members @ noise / members.sum(axis=1)))
    power = np.abs((product * np.exp(-1j * raw)[:, owner_of_used] * heard).sum(axis=0))
    weight = members @ power
    centre = members @ (power * centres) / weight
    away = centres - centre[owner_of_used]
    within = (width**2 - 1) / 12
    spread = members @ (power * (away**2 + within)) / weight
    found = np.zeros(len(members))
    for _ in range(4):
        bent = np.exp(-1j * (raw[:, owner_of_used] + found[owner_of_used] * away)) * heard
        level = (product * bent).sum(axis=0)
        inside = (moment * bent).imag.sum(axis=0) - found[owner_of_used] * within * level.real
        found = found + members @ (away * level.imag + inside) / (spread * weight)
    pilot_a, pilot_b = numerology.pilot_symbols
    distance = 2 * np.pi * numerology.symbol_samples * (pilot_b - pilot_a) / numerology.fft_size
    snr = (total_snr * ((heard @ members.T) > 0)).sum(axis=0)
    prior = (distance * RESIDUAL_CLOCK_PPM * 1e-6) ** 2
    slope = (found * prior / (prior + 1 / (snr * spread)))[owner_of_used]
    prior = (distance * RESIDUAL_CFO_SPACINGS) ** 2
    angle = (raw * prior / (prior + 1 / total_snr))[:, owner_of_used] + slope * away
    half = np.exp(0.5j * (angle[:, :, None] + slope[:, None] * away_within))
    return SlotMotion((first * half + second * half.conj()) / 2, angle, slope)


def test_the_kernel_is_the_regression_of_its_reference() -> None:
    rng = np.random.default_rng(4)
    owner = np.array([0, 0, 1, 2, 1, 0, 2])
    centres = np.array([-95.5, -80.5, -20.5, -5.5, 9.5, 40.5, 94.5])
    flat = np.broadcast_to(np.exp(2j * np.pi * rng.random((3, 7, 1))), (3, 7, 10))
    truth = np.array([0.003, -0.001, 0.004])
    drift = truth[owner][:, None] * (centres[:, None] + np.arange(10) - 4.5)
    pilots = np.stack([flat, flat * np.exp(1j * (drift + 0.3))], axis=1)
    estimate = estimate_channel(
        PLUTO_LAB, (pilots + complex_noise(rng, pilots.shape, 0.001)).astype(np.complex64)
    )
    noise = estimate.noise_power.mean(axis=0)
    heard = np.ones((3, 7), bool)
    heard[2, owner == 1] = False
    found = slot_motion(PLUTO_LAB, estimate, noise, centres, owner, heard)
    expected = _motion_reference(PLUTO_LAB, estimate, noise, centres, owner, heard)
    np.testing.assert_allclose(found.slope, expected.slope, rtol=1e-3)
    np.testing.assert_allclose(found.angle, expected.angle, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.middle, expected.middle, atol=1e-3)
    # What the regression finds lies near the truth.
    np.testing.assert_allclose(found.slope, truth[owner], atol=5e-4)


def test_bending_takes_a_linear_phase_out() -> None:
    rng = np.random.default_rng(5)
    width, positions, slope = 10, np.array([-0.9, 0.0, 0.4]), np.array([0.02, -0.1], np.float32)
    flat = complex_noise(rng, (2, 30), 1.0)
    away = np.arange(width) - (width - 1) / 2
    phase = (positions[None, :, None] * slope[:, None, None] * away).reshape(2, 30)
    bent = (flat * np.exp(1j * phase)).astype(np.complex64)
    bend_blocks(width, positions, slope, bent)
    np.testing.assert_allclose(bent, flat, atol=2e-6)


@BOTH
@pytest.mark.parametrize("share", [-0.02, -0.012, -0.008, -0.004, 0.0, 0.004, 0.008, 0.012, 0.02])
def test_a_carrier_is_followed_to_two_percent_of_the_spacing(numerology: Numerology, share: float) -> None:
    """Five transmitters, at PLUTO's numerology more than a turn between the pilots."""
    rng = np.random.default_rng(7)
    mcs = np.repeat([3, 6, 8, 10, 12], 4)
    owner = np.arange(20) // 4
    threshold = thresholds_db(numerology.block_resource_elements, 0.01)[mcs]
    amplitude = np.sqrt(10 ** ((threshold + 3.0) / 10))
    blocks = random_blocks(rng, numerology, 4, mcs)
    samples = modulate_slots(numerology, 4, blocks, mcs, amplitude)
    samples = rotate(samples, 0, share * numerology.subcarrier_spacing_hz / numerology.sample_rate_hz)
    received = demodulate_slots(numerology, samples + complex_noise(rng, len(samples), 1.0), mcs, owner)
    assert len(received.blocks) >= 79
    assert all(blocks[place] == block for place, block in received.blocks.items())
