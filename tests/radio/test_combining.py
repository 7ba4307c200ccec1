"""Copies of failed blocks: what they are worth, how they are recognised, what they cost."""

import numpy as np
import pytest
from numpy.typing import NDArray
from signals import LAPTOP, complex_noise, random_blocks, slots_of

from radio.combining import KEPT_BITS, SoftMemory
from radio.mcs import SCHEMES, thresholds_db
from radio.phy import demodulate_slots, samples_to_soft_blocks
from radio.workers import Workers

OWNER = np.zeros(20, np.int64)


def _copies(mcs: int, snr_db: float, num_slots: int, num_copies: int) -> list[NDArray[np.complex64]]:
    rng = np.random.default_rng([mcs, num_slots])
    index = np.full(20, mcs)
    samples = slots_of(LAPTOP, num_slots, random_blocks(rng, LAPTOP, num_slots, index), index)
    return [samples + complex_noise(rng, len(samples), 10 ** (-snr_db / 10)) for _ in range(num_copies)]


def test_two_copies_are_worth_three_decibels() -> None:
    """What two copies below the threshold decode to equals what one decodes to 3 dB higher."""
    num_slots = 8
    for mcs in (2, 6, 13, 20, 30):
        threshold = float(thresholds_db(LAPTOP.block_resource_elements, 0.5)[mcs])
        index = np.full(20, mcs)
        memory = {0: SoftMemory()}
        counts: list[int] = []
        arrived: set[tuple[int, int]] = set()
        for heard in _copies(mcs, threshold - 1.5, num_slots, 2):
            received = demodulate_slots(LAPTOP, heard, index, OWNER, memory=memory)
            counts.append(len(received.blocks))
            arrived |= set(received.blocks)
        (alone,) = _copies(mcs, threshold + 1.5, num_slots, 1)
        single = len(demodulate_slots(LAPTOP, alone, index, OWNER).blocks)
        assert counts[0] < 0.02 * 20 * num_slots
        assert single > 0.95 * 20 * num_slots
        # Each copy's channel estimate is noisier than that of the one at 3 dB more: at the lowest SNR
        # that costs a part of the gain.
        assert len(arrived) > 0.85 * single
        assert len(received.combined) == counts[1]


def test_payloads_are_those_that_were_sent() -> None:
    rng = np.random.default_rng(9)
    mcs = np.full(20, 8)
    blocks = random_blocks(rng, LAPTOP, 10, mcs)
    samples = slots_of(LAPTOP, 10, blocks, mcs)
    power = 10 ** (-(thresholds_db(LAPTOP.block_resource_elements, 0.5)[8] - 1.0) / 10)
    memory = {0: SoftMemory()}
    arrived: dict[tuple[int, int], bytes] = {}
    for _ in range(3):
        heard = samples + complex_noise(rng, len(samples), power)
        arrived |= demodulate_slots(LAPTOP, heard, mcs, OWNER, memory=memory).blocks
    assert len(arrived) > 190
    assert all(blocks[place] == block for place, block in arrived.items())


def test_copies_are_recognised_and_strangers_are_not() -> None:
    """One decibel below the SNR at which half of the blocks fail; 1e4 strangers are told apart."""
    for mcs in range(1, len(SCHEMES), 5):
        snr_db = float(thresholds_db(LAPTOP.block_resource_elements, 0.5)[mcs]) - 1.0
        index = np.full(20, mcs)
        first, second = (
            samples_to_soft_blocks(LAPTOP, heard, index, OWNER)[1][0].llr
            for heard in _copies(mcs, snr_db, 2, 2)
        )
        memory = SoftMemory()
        for row in first[:20]:
            memory.keep(mcs, row)
        assert [memory.find(mcs, row) for row in second[:20]] == list(range(20))
        assert [memory.find(mcs, row) for row in second[20:]] == [None] * 20
        assert memory.find((mcs + 1) % len(SCHEMES), second[0]) is None
    rng = np.random.default_rng(1)
    memory = SoftMemory()
    for _ in range(100):
        memory.keep(0, rng.integers(-60, 61, 1030).astype(np.int8))
    strangers = rng.integers(-60, 61, (100, 1030)).astype(np.int8)
    assert [memory.find(0, stranger) for stranger in strangers] == [None] * 100


def test_an_erased_block_matches_nothing() -> None:
    memory = SoftMemory()
    memory.keep(0, np.zeros(100, np.int8))
    assert memory.find(0, np.zeros(100, np.int8)) is None
    assert memory.find(0, np.ones(100, np.int8)) is None


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    memory = SoftMemory()
    block = np.ones(KEPT_BITS // 8, np.int8)
    for number in range(20):
        memory.keep(number % 3, block)
        assert memory.kept_bits <= KEPT_BITS
    assert len(memory) == 8
    memory.keep(0, np.ones(KEPT_BITS + 1, np.int8))
    assert len(memory) == 8


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radio.phy.LEAST_SLOTS", 1)
    rng = np.random.default_rng(2)
    mcs = np.repeat([4, 9, 14, 18, 25], 4)
    owner = np.arange(20) // 4
    samples = slots_of(LAPTOP, 7, random_blocks(rng, LAPTOP, 7, mcs), mcs)
    heard = samples + complex_noise(rng, len(samples), 10 ** (-18 / 10))
    alone = demodulate_slots(LAPTOP, heard, mcs, owner)
    assert 0 < len(alone.blocks) < 140
    for num_threads in (2, 3, 5):
        with Workers(num_threads) as workers:
            shared = demodulate_slots(LAPTOP, heard, mcs, owner, workers=workers)
            assert workers.take_cpu_ns() > 0
            assert workers.take_cpu_ns() == 0
        assert shared.blocks == alone.blocks
        assert shared.evm == alone.evm
        assert shared.iterations == alone.iterations
        np.testing.assert_array_equal(shared.snr, alone.snr)
        np.testing.assert_array_equal(shared.attempted, alone.attempted)


def test_a_failing_part_is_raised_when_all_have_ended() -> None:
    done = []

    def work(part: int) -> None:
        if part == 1:
            raise ZeroDivisionError("part 1")
        done.append(part)

    with Workers(3) as workers:
        for _ in range(20):
            try:
                workers.run(work, range(4))
            except ZeroDivisionError:
                continue
            raise AssertionError("nothing was raised")
    assert set(done) <= {0, 2, 3}


def test_ranges_cover_everything_once() -> None:
    with Workers(4) as workers:
        for count in range(40):
            for at_least in (1, 3, 8):
                ranges = workers.ranges(count, at_least)
                assert [n for first, end in ranges for n in range(first, end)] == list(range(count))
                assert len(ranges) <= 4
