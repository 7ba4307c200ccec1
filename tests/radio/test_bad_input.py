"""Whatever comes from the air or from a peer is counted or refused: a hundred thousand seeded cases.

No case may crash, warn, yield bytes that nobody sent, or take more memory than is declared.
"""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from signals import random_blocks, slots_of

from radio import plane
from radio.combining import KEPT_BITS, SoftMemory
from radio.errors import PlaneError
from radio.link import HEADER, LENGTH_PREFIX, MAX_STREAM_BYTES, SelectiveRepeatReceiver
from radio.mcs import SCHEMES
from radio.numerology import Numerology
from radio.phy import demodulate_slots
from radio.plane import decode_word, encode_word

SMALL = Numerology(1e6, 64, 8, 4, 12, 12, 2)
SAMPLE_CASES = 6_000
HEADER_CASES = 66_000
WORD_CASES = 30_000


def _damaged(rng: np.random.Generator, samples: NDArray[np.complex64]) -> NDArray[np.complex64]:
    kind = int(rng.integers(0, 9))
    out = samples.copy()
    place = rng.integers(0, len(out), int(rng.integers(1, 60)))
    if kind == 0:
        out[place] = rng.choice(np.array([np.nan, np.inf, -np.inf, 3e38, 1e-45], np.float32))
    elif kind == 1:
        out[place] = np.complex64(complex(np.nan, 1.0))
    elif kind == 2:
        out = rng.integers(0, 2**32, 2 * len(out), dtype=np.uint32).view(np.complex64)
    elif kind == 3:
        out = out[: int(rng.integers(0, len(out)))]
    elif kind == 4:
        out = np.concatenate([out, out])[: int(rng.integers(0, 2 * len(out)))]
    elif kind == 5:
        out[:] = np.complex64(rng.choice([0.0, np.nan, np.inf, 1e30]))
    elif kind == 6:
        rng.shuffle(out)
    elif kind == 7:
        out *= np.float32(10.0 ** rng.uniform(-40, 8))
    else:
        out += (rng.standard_normal(len(out)) * 10.0 ** rng.uniform(-2, 3)).astype(np.float32)
    return out


@pytest.mark.filterwarnings("error")
def test_samples_of_any_kind_yield_nothing_that_was_not_sent() -> None:
    rng = np.random.default_rng(1)
    memory = {0: SoftMemory(), 1: SoftMemory()}
    owner = np.array([0, 0, 1, -1])
    for case in range(SAMPLE_CASES):
        if case % 200 == 0:
            mcs = rng.integers(4, len(SCHEMES), 4)
            blocks = random_blocks(rng, SMALL, 2, mcs)
            samples = slots_of(SMALL, 2, blocks, mcs)
        received = demodulate_slots(SMALL, _damaged(rng, samples), mcs, owner, memory=memory)
        assert all(blocks[place] == block for place, block in received.blocks.items() if place in blocks)
        assert all(place in blocks for place in received.blocks) or len(received.attempted) != 2
        assert np.isfinite(received.snr).all()
        assert np.isfinite(received.noise_power).all()
        assert max(kept.kept_bits for kept in memory.values()) <= KEPT_BITS


def test_headers_that_lie_are_refused_and_cost_no_memory() -> None:
    rng = np.random.default_rng(2)
    receiver = SelectiveRepeatReceiver(tag=77, max_bytes=2000)
    words = rng.integers(0, 2**32, (HEADER_CASES, 4), dtype=np.uint64)
    sizes = rng.integers(0, 64, HEADER_CASES)
    cases = list(zip(words.tolist(), sizes.tolist(), strict=True))
    tracemalloc.start()
    for (offset, length, tag, kind), size in cases:
        if kind % 3 == 0:
            block = words[int(size)].tobytes()[: int(size)]
        else:
            # Plausible in all but one respect.
            header = HEADER.pack(
                offset if kind % 2 else offset % 4000, length % 70, 77 if kind % 5 else tag % 65536
            )
            block = header + bytes(int(size))
        before = receiver.refused_blocks
        taken = receiver.accept(block)
        assert taken == (receiver.refused_blocks == before)
        if taken:
            start, span, seen = HEADER.unpack_from(block)
            assert seen == 77
            assert 0 < span <= len(block) - HEADER.size
            assert start + span <= 2000 + LENGTH_PREFIX.size
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert receiver.refused_blocks > HEADER_CASES // 3
    assert receiver.received_bytes <= 2000 + LENGTH_PREFIX.size
    assert peak < 1 << 20 < MAX_STREAM_BYTES


def test_words_of_any_kind_are_decoded_or_refused() -> None:
    """Random bytes, and words with bytes changed, cut or added."""
    rng = np.random.default_rng(3)
    honest = [
        encode_word(word)
        for word in (
            plane.Burst(1, 2, 3, 4),
            plane.Request(1, 2, 3, ("a", "b")),
            plane.Attach("port", "boot"),
            plane.Samples(1, 2, 3, 4, 5),
            plane.BeginRound(3, 4),
        )
    ]
    refused = 0
    for case in range(WORD_CASES):
        if case % 4 == 0:
            data = rng.bytes(int(rng.integers(0, 200)))
        else:
            changed = bytearray(honest[case % len(honest)])
            for place in rng.integers(0, len(changed), int(rng.integers(1, 5))).tolist():
                changed[place] = int(rng.integers(0, 256))
            data = (
                bytes(changed[: int(rng.integers(1, len(changed) + 1))]) if case % 4 == 1 else bytes(changed)
            )
        try:
            word = decode_word(data)
        except PlaneError:
            refused += 1
            continue
        if isinstance(word, plane.Burst):
            assert 0 <= word.num_samples <= plane.MAX_BURST_SAMPLES
            assert 0 <= word.first_sample <= 1 << 56
    assert refused > WORD_CASES // 2
