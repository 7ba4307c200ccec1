"""Slots of transport blocks through the channels that a receiver must stand."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from signals import LAPTOP, PLUTO_LAB, complex_noise, random_blocks, slots_of

from radio.mcs import SCHEMES, thresholds_db
from radio.numerology import Numerology
from radio.phy import UNUSED, block_bytes, demodulate_slots, effective_snr, modulate_slots

BOTH = pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])


def _all_on(numerology: Numerology, mcs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    num = numerology.num_subchannels
    return np.full(num, mcs, np.int64), np.zeros(num, np.int64)


@BOTH
@pytest.mark.parametrize("mcs", range(0, len(SCHEMES), 3))
def test_every_block_arrives_on_awgn_above_its_threshold(numerology: Numerology, mcs: int) -> None:
    rng = np.random.default_rng([1, mcs])
    index, owner = _all_on(numerology, mcs)
    blocks = random_blocks(rng, numerology, 2, index)
    # 3 dB above the 10 % point: estimation costs up to 1.5 dB of it where a subchannel is narrow.
    snr_db = thresholds_db(numerology.block_resource_elements)[mcs] + 3.0
    power = 10 ** (-snr_db / 10)
    samples = slots_of(numerology, 2, blocks, index)
    received = demodulate_slots(numerology, samples + complex_noise(rng, len(samples), power), index, owner)
    assert received.blocks == blocks
    assert received.attempted.all()
    # Four standard deviations of 40 estimates from 24 (pluto-lab) or 136 real dimensions each.
    tolerance = 4 * np.sqrt(2 / (24 if numerology is PLUTO_LAB else 136) / 40)
    assert received.noise_power.mean() == pytest.approx(power, rel=tolerance)
    assert received.snr.mean() == pytest.approx(1 / power, rel=2 * tolerance)
    # Channel estimates add noise of their own, the more the fewer subcarriers they rest upon.
    assert 0.9 * np.sqrt(power) < received.evm < 1.6 * np.sqrt(power)


def test_what_is_sent_is_what_the_grid_holds_without_noise() -> None:
    rng = np.random.default_rng(2)
    index = np.arange(20) % len(SCHEMES)
    index[[3, 11]] = UNUSED
    blocks = random_blocks(rng, PLUTO_LAB, 3, index)
    for k in range(20):
        blocks.pop((1, k), None)  # a silent slot
    samples = slots_of(PLUTO_LAB, 3, blocks, index)
    slot = PLUTO_LAB.slot_samples
    assert not samples[slot : 2 * slot].any()
    received = demodulate_slots(PLUTO_LAB, samples, index, np.arange(20) // 4)
    assert received.blocks == blocks
    assert not received.attempted[1].any()
    assert not received.attempted[:, [3, 11]].any()


@BOTH
@pytest.mark.parametrize("offset_share", [0.0, 0.3])
def test_multipath_with_timing_offset_and_cfo(numerology: Numerology, offset_share: float) -> None:
    rng = np.random.default_rng([3, round(10 * offset_share)])
    index, owner = _all_on(numerology, 8)
    blocks = random_blocks(rng, numerology, 2, index)
    samples = slots_of(numerology, 2, blocks, index)
    length = numerology.prefix_samples // 4
    taps = complex_noise(rng, length, 0.4 / length)
    taps[0] += np.complex64(0.8)
    late = np.zeros(round(offset_share * numerology.prefix_samples), np.complex64)
    heard = np.convolve(np.concatenate([late, samples]), taps)[: len(samples)]
    cfo = 0.002 * numerology.subcarrier_spacing_hz / numerology.sample_rate_hz
    heard = heard * np.exp(2j * np.pi * cfo * np.arange(len(heard)))
    heard = heard + complex_noise(rng, len(heard), 10**-2.2)
    received = demodulate_slots(numerology, heard.astype(np.complex64), index, owner)
    assert len(received.blocks) >= 0.95 * len(blocks)
    assert all(blocks[place] == block for place, block in received.blocks.items())


def test_five_clients_with_their_own_timing_and_carrier_share_the_band() -> None:
    rng = np.random.default_rng(4)
    owner = np.array([0, 1, 2, 3, 4] * 4)  # interleaved: every client has four neighbours
    index = np.array([16, 12, 9, 6, 3])[owner]
    blocks = random_blocks(rng, LAPTOP, 4, index)
    heard = np.zeros(LAPTOP.frame_samples, np.complex128)
    n = np.arange(LAPTOP.frame_samples)
    for client, (delay, cfo_hz) in enumerate([(0, 20.0), (9, -30.0), (14, 35.0), (30, -15.0), (20, 5.0)]):
        mine = {place: block for place, block in blocks.items() if owner[place[1]] == client}
        sent = slots_of(LAPTOP, 4, mine, index)
        delayed = np.concatenate([np.zeros(delay), sent])[: len(sent)]
        heard += delayed * np.exp(2j * np.pi * (cfo_hz / 20e6 * n + rng.random()))
    heard += complex_noise(rng, len(heard), 10**-2.2)
    received = demodulate_slots(LAPTOP, heard.astype(np.complex64), index, owner)
    assert received.blocks == blocks


def test_silence_gives_no_block_and_rarely_a_pilot() -> None:
    rng = np.random.default_rng(5)
    index, owner = _all_on(PLUTO_LAB, 0)
    owner = np.arange(20) // 4
    attempted = places = 0
    for _ in range(30):
        noise = complex_noise(rng, PLUTO_LAB.frame_samples, 1.0)
        received = demodulate_slots(PLUTO_LAB, noise, index, owner)
        assert not received.blocks
        assert np.isnan(received.evm)
        attempted += int(received.attempted.sum())
        places += received.attempted.size
    assert stats.binomtest(attempted, places, 1e-3, alternative="greater").pvalue > 1e-4
    silent = demodulate_slots(PLUTO_LAB, np.zeros(PLUTO_LAB.frame_samples, np.complex64), index, owner)
    assert not silent.blocks
    assert not silent.attempted.any()


def test_missing_blocks_are_not_held_against_the_link() -> None:
    rng = np.random.default_rng(6)
    index, owner = _all_on(LAPTOP, 6)
    blocks = random_blocks(rng, LAPTOP, 4, index)
    blocks = {(slot, k): block for (slot, k), block in blocks.items() if slot < 2 and k < 7}
    samples = slots_of(LAPTOP, 4, blocks, index)
    received = demodulate_slots(LAPTOP, samples + complex_noise(rng, len(samples), 0.02), index, owner)
    assert received.blocks == blocks
    assert received.attempted.sum() <= len(blocks) + 2  # false alarms: 66 places at 1e-3


def test_failed_blocks_are_attempted() -> None:
    rng = np.random.default_rng(7)
    index, owner = _all_on(LAPTOP, 20)
    samples = slots_of(LAPTOP, 4, random_blocks(rng, LAPTOP, 4, index), index)
    received = demodulate_slots(LAPTOP, samples + complex_noise(rng, len(samples), 1.0), index, owner)
    assert not received.blocks
    found = int(received.attempted.sum())
    assert stats.binomtest(found, received.attempted.size).proportion_ci(0.999).low > 0.9


def test_nothing_expected_costs_nothing() -> None:
    index = np.full(20, UNUSED)
    samples = np.ones(LAPTOP.frame_samples, np.complex64)
    received = demodulate_slots(LAPTOP, samples, index, np.zeros(20, np.int64))
    assert not received.blocks
    assert received.snr.shape == (4, 20)


def _garbage(rng: np.random.Generator, kind: int, samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    damaged = samples.copy()
    place = rng.integers(0, len(samples), 40)
    if kind == 0:
        damaged[place] = np.nan
    elif kind == 1:
        damaged[place] = np.inf
    elif kind == 2:
        damaged[place] = np.float32(3e38) * (1 - 1j)
    elif kind == 3:
        damaged[:] = np.nan
    elif kind == 4:
        return damaged[: int(rng.integers(0, len(damaged)))]
    elif kind == 5:
        damaged[:] = rng.integers(0, 2**32, 2 * len(samples), dtype=np.uint32).view(np.complex64)
    elif kind == 6:
        damaged[:] = damaged[0] + 1
    else:
        rng.shuffle(damaged)
    return damaged


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", range(8))
def test_garbage_neither_crashes_nor_yields_wrong_blocks(kind: int) -> None:
    rng = np.random.default_rng([8, kind])
    small = Numerology(1e6, 64, 8, 4, 12, 12, 4)
    for _ in range(25):
        index = rng.integers(4, len(SCHEMES), 4)
        blocks = random_blocks(rng, small, 4, index)
        samples = slots_of(small, 4, blocks, index)
        received = demodulate_slots(small, _garbage(rng, kind, samples), index, np.zeros(4, np.int64))
        assert all(blocks[place] == block for place, block in received.blocks.items())
        if kind not in (0, 1, 2, 4):
            assert not received.blocks
        assert np.isfinite(received.snr).all()
        assert np.isfinite(received.noise_power).all()


def test_one_bad_sample_spoils_its_symbol_only() -> None:
    rng = np.random.default_rng(9)
    index, owner = _all_on(LAPTOP, 4)
    blocks = random_blocks(rng, LAPTOP, 4, index)
    samples = slots_of(LAPTOP, 4, blocks, index)
    samples[LAPTOP.slot_samples + 700] = np.nan
    assert demodulate_slots(LAPTOP, samples, index, owner).blocks == blocks


def test_a_block_of_the_wrong_size_is_refused() -> None:
    index, _ = _all_on(LAPTOP, 4)
    with pytest.raises(ValueError, match=r"shape|reshape|expected"):
        modulate_slots(LAPTOP, 1, {(0, 0): bytes(block_bytes(LAPTOP, 4) + 1)}, index, np.ones(20))


def test_effective_snr_is_that_of_equal_capacity() -> None:
    assert effective_snr(np.array([3.0, 3.0])) == pytest.approx(3.0)
    assert effective_snr(np.array([0.0, 15.0])) == pytest.approx(3.0)
