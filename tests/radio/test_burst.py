"""Bursts of radios that share neither time, carrier nor clock: decoded bit by bit, or refused and counted."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from burst_signals import (
    NUM_GARBAGE_KINDS,
    TINY,
    announced,
    beginning,
    burst_of,
    cfo_bound_hz,
    echoes,
    garbage,
    heard,
    quantised,
)
from scipy import stats
from signals import LAPTOP, PLUTO_LAB, complex_noise

from radio.burst import (
    BurstCounters,
    BurstFault,
    BurstGrant,
    burst_samples,
    modulate_burst,
    overhead_symbols,
    receive_bursts,
)
from radio.header import BurstHeader, HeaderFault
from radio.mcs import thresholds_db
from radio.numerology import Numerology
from radio.phy import UNUSED, block_bytes, demodulate_slots
from radio.preamble import MAX_SEARCH_SAMPLES
from radio.resampling import MAX_OUTPUT_SAMPLES, correct_clock, interpolate, interpolate_reference

BOTH = pytest.mark.parametrize("numerology", [LAPTOP, PLUTO_LAB], ids=["laptop", "pluto-lab"])


@BOTH
def test_three_clients_take_turns_without_common_timing(numerology: Numerology) -> None:
    """TDMA: own delays, carriers within +-150 kHz, clocks within +-50 ppm, echoes, converters of 12 bits."""
    rng = np.random.default_rng(1)
    num_slots = 2
    gap = 3 * numerology.symbol_samples
    samples = np.zeros(3 * (burst_samples(numerology, num_slots) + gap) + gap, np.complex64)
    position = 0.0
    sent, grants, truths = {}, [], {}
    for client, (mcs, drift_ppm) in enumerate([(6, 50.0), (12, -50.0), (18, rng.uniform(-50, 50))]):
        header, blocks, grant = announced(rng, numerology, mcs, num_slots, transmitter=client)
        cfo_hz = float(rng.uniform(-150e3, 150e3))
        # Levels 6 dB apart, the strongest 15 dB below full scale.
        level = np.float32(10 ** (-(15 + 6 * (2 - client)) / 20))
        position += rng.uniform(0.1, 1.0) * gap
        signal = level * heard(
            numerology,
            burst_of(numerology, header, blocks),
            delay_samples=position % 1.0,
            cfo_hz=cfo_hz,
            clock_drift_ppm=drift_ppm,
            taps=echoes(rng, numerology),
            phase=rng.uniform(0, 6),
        )
        begin = int(position)
        samples[begin : begin + len(signal)] += signal
        sent[client], truths[client] = (header, blocks), (position, cfo_hz, drift_ppm)
        grants.append(grant)
        position += burst_samples(numerology, num_slots) * (1 + 60e-6) + numerology.prefix_samples
    # The faintest is 25 dB above the noise.
    samples += complex_noise(rng, len(samples), 10 ** (-(27 + 25) / 10))
    counters = BurstCounters()
    received = receive_bursts(numerology, quantised(samples), grants, counters=counters)
    assert [burst.fault for burst in received] == [None] * 3
    for client, burst in enumerate(received):
        header, blocks = sent[client]
        position, cfo_hz, drift_ppm = truths[client]
        assert burst.header == header
        assert burst.blocks == blocks
        assert abs(burst.start_sample - position) < numerology.prefix_samples / 4
        assert burst.cfo_hz == pytest.approx(cfo_hz, abs=0.001 * numerology.subcarrier_spacing_hz)
        assert burst.clock_drift_ppm == pytest.approx(drift_ppm, abs=1.0)
    assert counters.num_received == 3
    assert not counters.refused


@BOTH
@pytest.mark.parametrize("drift_ppm", [-50.0, 50.0])
def test_drift_over_many_slots_is_followed(numerology: Numerology, drift_ppm: float) -> None:
    """12 slots: 18 samples, or more than half of pluto-lab's prefix."""
    rng = np.random.default_rng(2)
    header, blocks, grant = announced(rng, numerology, 16, 12)
    signal = heard(numerology, burst_of(numerology, header, blocks), clock_drift_ppm=drift_ppm)
    noisy = signal + complex_noise(rng, len(signal), 10**-2.5)
    (burst,) = receive_bursts(numerology, noisy, [grant])
    assert burst.blocks == blocks
    assert burst.clock_drift_ppm == pytest.approx(drift_ppm, abs=0.3)


def test_a_transmitter_that_knows_its_clock_corrects_it() -> None:
    rng = np.random.default_rng(3)
    header, blocks, grant = announced(rng, PLUTO_LAB, 16, 2)
    amplitude = np.ones(20)
    corrected = modulate_burst(PLUTO_LAB, header, blocks, amplitude, clock_drift_ppm=40.0)
    signal = heard(PLUTO_LAB, corrected, delay_samples=20.0, clock_drift_ppm=40.0)
    true_clock = modulate_burst(PLUTO_LAB, header, blocks, amplitude)
    error = signal[40 : len(true_clock)] - true_clock[20 : len(true_clock) - 20]
    # The steps between symbols reach beyond the band, where nothing can be interpolated.
    assert np.mean(np.abs(error) ** 2) < 2e-4 * np.mean(np.abs(true_clock) ** 2)
    (burst,) = receive_bursts(PLUTO_LAB, signal + complex_noise(rng, len(signal), 10**-2.5), [grant])
    assert burst.blocks == blocks
    assert burst.clock_drift_ppm == pytest.approx(0.0, abs=0.3)


@BOTH
def test_offset_by_the_whole_burst_is_better_than_by_the_preamble(numerology: Numerology) -> None:
    """Preamble and header are one observation: near the bound of all their symbols, and better with pilots."""
    rng = np.random.default_rng(4)
    header, _, _ = announced(rng, numerology, 0, 1)
    sent = beginning(numerology, header)
    trials, snr = 80, 10**0.3
    errors = []
    for _ in range(trials):
        cfo_hz = rng.uniform(-150e3, 150e3)
        signal = heard(numerology, sent, cfo_hz=cfo_hz)
        signal = np.concatenate([signal, np.zeros(numerology.slot_samples + 1000, np.complex64)])
        (burst,) = receive_bursts(numerology, signal + complex_noise(rng, len(signal), 1 / snr), [])
        assert burst.header == header
        errors.append(burst.cfo_hz - cfo_hz)
    spread = np.sqrt(stats.chi2.isf(1e-4, trials) / trials)
    bound_hz = cfo_bound_hz(numerology, snr, overhead_symbols(numerology))
    assert np.sqrt(np.mean(np.square(errors))) < 1.1 * bound_hz * spread


@BOTH
def test_header_after_its_own_preamble_at_the_lowest_threshold(numerology: Numerology) -> None:
    """Found, and read, in 999 of 1000: the lowest scheme loses a tenth of its blocks there."""
    rng = np.random.default_rng(5)
    snr_db = thresholds_db(numerology.block_resource_elements)[0]
    header, _, grant = announced(rng, numerology, 0, 1)
    sent = beginning(numerology, header)
    trials = 150
    lost = 0
    for _ in range(trials):
        cfo_hz, at = rng.uniform(-150e3, 150e3), int(rng.integers(0, 2000))
        samples = complex_noise(rng, at + len(sent) + 500, 10 ** (-snr_db / 10))
        turned = sent * np.exp(2j * np.pi * cfo_hz / numerology.sample_rate_hz * np.arange(len(sent)))
        samples[at : at + len(sent)] += turned.astype(np.complex64)
        bursts = receive_bursts(numerology, samples, [grant])
        lost += not any(burst.header == header for burst in bursts)
    assert stats.binomtest(lost, trials, 1e-3, alternative="greater").pvalue > 1e-4


@BOTH
def test_near_the_threshold_it_costs_less_than_half_a_decibel(numerology: Numerology) -> None:
    """Blocks lost with unknown time, carrier and clock are no more than without them 0.4 dB lower."""
    rng = np.random.default_rng(6)
    mcs, trials, num_slots = 8, 8, 2
    offset_db = 1.0 if numerology is PLUTO_LAB else 0.5  # narrow subchannels cost more to estimate
    snr_db = thresholds_db(numerology.block_resource_elements)[mcs] + offset_db
    lost_burst = lost_common = total = 0
    for _ in range(trials):
        header, blocks, grant = announced(rng, numerology, mcs, num_slots)
        sent = burst_of(numerology, header, blocks)
        signal = heard(
            numerology,
            sent,
            delay_samples=rng.random(),
            cfo_hz=rng.uniform(-150e3, 150e3),
            clock_drift_ppm=rng.uniform(-50, 50),
        )
        noise = complex_noise(rng, len(signal), 10 ** (-(snr_db + 0.4) / 10))
        bursts = receive_bursts(numerology, signal + noise, [grant])
        right = sum(blocks[place] == block for burst in bursts for place, block in burst.blocks.items())
        lost_burst += len(blocks) - right
        slots = sent[-num_slots * numerology.slot_samples :]
        noise = complex_noise(rng, len(slots), 10 ** (-snr_db / 10))
        common = demodulate_slots(numerology, slots + noise, np.full(20, mcs), np.zeros(20, np.int64))
        lost_common += len(blocks) - len(common.blocks)
        total += len(blocks)
    assert 0 < lost_common < total / 2
    table = [[lost_burst, total - lost_burst], [lost_common, total - lost_common]]
    assert stats.fisher_exact(table, alternative="greater").pvalue > 1e-3


def test_subchannels_of_a_burst_may_be_unused_and_unequal() -> None:
    rng = np.random.default_rng(7)
    index = np.full(20, UNUSED)
    index[[2, 3, 11]] = [0, 9, 14]
    header = BurstHeader(1, 2, 3, 3, tuple(index.tolist()))
    blocks = {
        (slot, k): rng.bytes(block_bytes(PLUTO_LAB, int(index[k]))) for slot in range(3) for k in (2, 3, 11)
    }
    del blocks[1, 3]
    sent = modulate_burst(PLUTO_LAB, header, blocks, np.where(index >= 0, 2.0, 0.0))
    signal = heard(PLUTO_LAB, sent, cfo_hz=-120e3, clock_drift_ppm=-45.0)
    noisy = signal + complex_noise(rng, len(signal), 10**-1.5)
    (burst,) = receive_bursts(PLUTO_LAB, noisy, [BurstGrant(1, 2, 3, header.mcs_index)])
    assert burst.blocks == blocks
    start = overhead_symbols(PLUTO_LAB) * PLUTO_LAB.symbol_samples
    powers = [np.mean(np.abs(part) ** 2) for part in (sent[:start], sent[start : start + 30_000])]
    assert powers[0] == pytest.approx(powers[1], rel=0.05)  # amplifiers like that


def _one_burst(rng: np.random.Generator) -> tuple[BurstHeader, BurstGrant, np.ndarray]:
    header, blocks, grant = announced(rng, TINY, 6, 2)
    sent = burst_of(TINY, header, blocks)
    quiet = np.zeros(200, np.complex64)
    samples = np.concatenate([quiet, sent, quiet])
    return header, grant, samples + complex_noise(rng, len(samples), 1e-2)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"num_slots": 3}, None),
        ({"transmitter": 9}, BurstFault.UNKNOWN_TRANSMITTER),
        ({"run_tag": 1}, BurstFault.FOREIGN_RUN),
        ({"num_slots": 1}, BurstFault.CONTRADICTS_GRANT),
        ({"mcs_index": (6, 6, 6, 7)}, BurstFault.CONTRADICTS_GRANT),
    ],
)
def test_a_header_that_contradicts_the_grant_is_refused_and_counted(
    change: dict, fault: BurstFault | None
) -> None:
    header, grant, samples = _one_burst(np.random.default_rng(8))
    counters = BurstCounters()
    (burst,) = receive_bursts(TINY, samples, [dataclasses.replace(grant, **change)], counters=counters)
    assert burst.header == header
    assert burst.fault is fault
    assert (burst.slots is None) == (fault is not None)
    assert counters.num_received == (fault is None)
    assert counters.refused == ({fault: 1} if fault else {})


def test_a_burst_that_is_cut_off_is_refused_until_the_rest_is_there() -> None:
    _, grant, samples = _one_burst(np.random.default_rng(9))
    end = 200 + burst_samples(TINY, 2)
    symbol = TINY.symbol_samples
    for length in (200 + 10 * symbol, end - symbol, end - TINY.prefix_samples):
        counters = BurstCounters()
        (burst,) = receive_bursts(TINY, samples[:length], [grant], counters=counters)
        assert burst.fault is BurstFault.TRUNCATED
        assert counters.refused == {BurstFault.TRUNCATED: 1}
    (burst,) = receive_bursts(TINY, samples[:end], [grant])
    assert burst.fault is None


def test_a_header_destroyed_by_a_jammer_is_counted() -> None:
    rng = np.random.default_rng(10)
    _, grant, samples = _one_burst(rng)
    begin = 200 + 4 * TINY.symbol_samples
    samples[begin : begin + 17 * TINY.symbol_samples] = complex_noise(rng, 17 * TINY.symbol_samples, 1.0)
    counters = BurstCounters()
    bursts = receive_bursts(TINY, samples, [grant], counters=counters)
    assert [burst.fault for burst in bursts] == [HeaderFault.CHECK]
    assert counters.refused == {HeaderFault.CHECK: 1}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", range(NUM_GARBAGE_KINDS))
def test_garbage_neither_crashes_nor_yields_wrong_blocks(kind: int) -> None:
    rng = np.random.default_rng([11, kind])
    counters = BurstCounters()
    num_found = 0
    for _ in range(15):
        header, blocks, grant = announced(rng, TINY, 6, 2)
        sent = burst_of(TINY, header, blocks)
        for _ in range(15):
            damaged = garbage(rng, kind, sent)
            for burst in receive_bursts(TINY, damaged, [grant], counters=counters):
                num_found += 1
                assert np.isfinite([burst.cfo_hz, burst.clock_drift_ppm, burst.snr]).all()
                assert burst.header in (None, header)
                # A part that is heard twice may yield a block twice, but none that was not sent.
                assert set(burst.blocks.values()) <= set(blocks.values())
                assert kind == 8 or all(blocks[place] == block for place, block in burst.blocks.items())
    assert num_found == counters.num_received + sum(counters.refused.values())
    if kind in (3, 5, 6):
        assert num_found == 0


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((2, 5000), np.complex64),
        np.array("samples"),
        np.zeros(100, np.int64),
        np.broadcast_to(np.complex64(0), MAX_SEARCH_SAMPLES + 1),
    ],
)
def test_inputs_that_are_no_samples_or_too_long_are_refused_without_allocation(samples: np.ndarray) -> None:
    counters = BurstCounters()
    tracemalloc.start()
    assert receive_bursts(TINY, samples, [], counters=counters) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counters.num_refused_inputs == 1
    assert peak < 1 << 20


def test_memory_follows_the_samples_not_the_claim() -> None:
    """A header that claims 64 slots, granted, in samples that hold two."""
    rng = np.random.default_rng(12)
    header, blocks, _ = announced(rng, TINY, 6, 2)
    grant = BurstGrant(header.transmitter, header.run_tag, 64, header.mcs_index)
    samples = burst_of(TINY, dataclasses.replace(header, num_slots=64), blocks)[: burst_samples(TINY, 2)]
    receive_bursts(TINY, samples, [grant])
    tracemalloc.start()
    (burst,) = receive_bursts(TINY, samples, [grant])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert burst.fault is BurstFault.TRUNCATED
    assert peak < (1 << 20) + 64 * samples.nbytes


def test_empty_and_double_precision_samples_are_samples() -> None:
    _, grant, samples = _one_burst(np.random.default_rng(13))
    assert receive_bursts(TINY, np.zeros(0, np.complex64), [grant]) == []
    for other in (samples.astype(np.complex128), samples[::-1].copy()[::-1]):
        (burst,) = receive_bursts(TINY, other, [grant])
        assert burst.fault is None


def test_blocks_that_the_header_does_not_announce_are_not_sent() -> None:
    header, blocks, _ = announced(np.random.default_rng(14), TINY, 6, 1)
    block = blocks[0, 0]
    for place in ((1, 0), (0, 4), (-1, 0)):
        with pytest.raises(ValueError, match="does not announce"):
            modulate_burst(TINY, header, {place: block}, np.ones(4))


def test_interpolator_is_its_reference_and_exact_for_tones_in_the_band() -> None:
    rng = np.random.default_rng(15)
    samples = complex_noise(rng, 3000, 1.0)
    for start, step in ((0.0, 1.0), (-7.3, 1.00005), (40.7, 0.99995), (2900.2, 1.001), (-500.0, 1.0)):
        found = interpolate(samples, start, step, 3100)
        np.testing.assert_allclose(found, interpolate_reference(samples, start, step, 3100), atol=5e-6)
    np.testing.assert_allclose(interpolate(samples, 0.0, 1.0, 3000), samples, atol=1e-6)
    positions = 100.3 + 1.00005 * np.arange(2000)
    for cycles in np.linspace(-400 / 1024, 400 / 1024, 41):
        tone = np.exp(2j * np.pi * cycles * np.arange(2300)).astype(np.complex64)
        error = interpolate(tone, 100.3, 1.00005, 2000) - np.exp(2j * np.pi * cycles * positions)
        assert 10 * np.log10(np.mean(np.abs(error) ** 2)) < -60


def test_clock_correction_and_its_opposite_cancel() -> None:
    samples = burst_of(TINY, *announced(np.random.default_rng(16), TINY, 6, 2)[:2])
    back = correct_clock(correct_clock(samples, 80.0), -80.0)
    count = min(len(back), len(samples)) - 40
    error = back[20:count] - samples[20:count]
    assert np.mean(np.abs(error) ** 2) < 2e-4 * np.mean(np.abs(samples) ** 2)


@pytest.mark.parametrize(
    ("start", "step", "count"),
    [(np.nan, 1.0, 5), (0.0, 1.01, 5), (0.0, np.nan, 5), (0.0, 1.0, -1), (0.0, 1.0, MAX_OUTPUT_SAMPLES + 1)],
)
def test_resampling_out_of_bounds_is_refused(start: float, step: float, count: int) -> None:
    with pytest.raises(ValueError, match="resampling"):
        interpolate(np.zeros(10, np.complex64), start, step, count)
