"""The sample plane: rings that wrap, words that lie, and memory that is somebody else's."""

import os
import tracemalloc
from collections import deque
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio import plane
from radio.errors import PlaneError


@pytest.fixture
def rings() -> Iterator[tuple[plane.SampleRing, plane.SampleRing]]:
    """Writer's and reader's view of one ring of 1000 samples."""
    writer, fd, nonce = plane.SampleRing.create(1000, "test")
    yield writer, plane.SampleRing.open_from(os.getpid(), fd, 1000, nonce)
    os.close(fd)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 300),
    st.lists(st.one_of(st.integers(0, 320), st.none()), max_size=120),
    st.integers(0, 2**32),
)
def test_samples_come_out_as_they_went_in_however_the_ring_wraps(
    capacity: int, steps: list[int | None], seed: int
) -> None:
    """A number writes so many samples, None reads the oldest that are inside."""
    rng = np.random.default_rng(seed)
    writer, fd, nonce = plane.SampleRing.create(capacity, "test")
    try:
        reader = plane.SampleRing.open_from(os.getpid(), fd, capacity, nonce)
        inside: deque[tuple[int, np.ndarray]] = deque()
        for step in steps:
            if step is None:
                if inside:
                    offset, expected = inside.popleft()
                    assert (reader.read(offset, len(expected)) == expected).all()
                continue
            samples = rng.standard_normal(step).astype(np.complex64)
            offset = writer.write(samples)
            if offset == plane.INLINE:
                # An empty ring refuses only what does not fit behind its position.
                assert inside or 2 * step > capacity
            else:
                assert 0 <= offset <= offset + step <= capacity
                inside.append((offset, samples))
        while inside:
            offset, expected = inside.popleft()
            assert (reader.read(offset, len(expected)) == expected).all()
        assert capacity < 2 or writer.write(np.ones(capacity // 2, np.complex64)) != plane.INLINE
    finally:
        os.close(fd)


def test_a_full_ring_falls_back_and_recovers(rings: tuple[plane.SampleRing, plane.SampleRing]) -> None:
    writer, reader = rings
    block = np.ones(400, np.complex64)
    assert [writer.write(block), writer.write(block), writer.write(block)] == [0, 400, plane.INLINE]
    reader.read(0, 400)
    assert writer.write(np.ones(401, np.complex64)) == plane.INLINE, "behind 800 only 200 are free"
    assert writer.write(block) == 0, "the 200 at the end are left out"
    assert writer.write(block[:1]) == plane.INLINE
    reader.read(400, 400)
    reader.read(0, 400)
    assert writer.write(block) == 400


@pytest.mark.parametrize(("offset", "count"), [(-1, 10), (0, -1), (0, 1001), (991, 10), (1 << 40, 1)])
def test_reading_outside_is_refused(
    rings: tuple[plane.SampleRing, plane.SampleRing], offset: int, count: int
) -> None:
    with pytest.raises(PlaneError, match="outside a ring of 1000"):
        rings[1].read(offset, count)


def test_other_memory_than_offered_is_refused() -> None:
    _, fd, nonce = plane.SampleRing.create(100, "test")
    try:
        with pytest.raises(PlaneError, match="not the one"):
            plane.SampleRing.open_from(os.getpid(), fd, 100, bytes(16))
        with pytest.raises(PlaneError, match="another size"):
            plane.SampleRing.open_from(os.getpid(), fd, 101, nonce)
        with pytest.raises(PlaneError, match="larger than allowed"):
            plane.SampleRing.open_from(os.getpid(), fd, 1 << 40, nonce)
        with pytest.raises(PlaneError, match="another size"):
            plane.SampleRing.open_from(os.getpid(), fd, -1, nonce)
    finally:
        os.close(fd)
    with pytest.raises(PlaneError, match="cannot open"):
        plane.SampleRing.open_from(os.getpid(), 1_000_000, 100, nonce)


WORDS = [
    plane.Attach("board-1", "boot"),
    plane.Attached("board-1", 5, 3, 4, 100, bytes(32)),
    plane.Burst(10**9, 1000, plane.INLINE),
    plane.SilentUntil(5),
    plane.StandDown(),
    plane.SetGain(31.0),
    plane.Request(7, 10**9, 4000, ("board-1", "board-2")),
    plane.Samples(7, 10**9, 4000, 0, 3),
    plane.Event("late", 4, 1, "words"),
    plane.Refused("words", True),
    plane.Detach("board-1"),
    plane.BeginRound(3, 10**9),
    plane.RoundBegun(3, 10**9, "words"),
    plane.Usage(1.0, 2.0, 3),
]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: type(word).__name__)
def test_words_survive_the_wire(word: plane.AnyWord) -> None:
    assert plane.decode_word(plane.encode_word(word)) == word


@pytest.mark.parametrize(
    "word",
    [
        {"t": "burst", "first_sample": -1, "num_samples": 5, "ring_offset": 0},
        {"t": "burst", "first_sample": 2**63, "num_samples": 5, "ring_offset": 0},
        {"t": "burst", "first_sample": 0, "num_samples": plane.MAX_BURST_SAMPLES + 1, "ring_offset": 0},
        {"t": "burst", "first_sample": 0, "num_samples": -5, "ring_offset": 0},
        {"t": "request", "request_id": 1, "first_sample": 0, "num_samples": 2**40, "expected": []},
        {"t": "silent", "sample": 2**62},
        {"t": "begin-round", "round_index": -1, "first_sample": 0},
        {"t": "begin-round", "round_index": 0, "first_sample": 2**63},
        {
            "t": "samples",
            "request_id": 1,
            "first_sample": 0,
            "num_samples": 1,
            "ring_offset": -2,
            "clipped_samples": 0,
        },
        {"t": "unknown"},
        {},
        [],
        5,
    ],
)
def test_words_out_of_bounds_are_refused(word: object) -> None:
    with pytest.raises(PlaneError):
        plane.decode_word(msgspec.msgpack.encode(word))


def test_twenty_thousand_malformed_words_raise_nothing_else_and_allocate_little() -> None:
    rng = np.random.default_rng(1)
    good = [plane.encode_word(word) for word in WORDS]
    refused = 0
    for turn in range(20_000):
        data = bytearray(good[turn % len(good)])
        kind = turn % 5
        if kind == 0:
            data = bytearray(rng.bytes(int(rng.integers(0, 64))))
        elif kind == 1:
            del data[int(rng.integers(0, len(data))) :]
        elif kind == 2:
            for place in rng.integers(0, len(data), 3):
                data[place] ^= int(rng.integers(1, 256))
        elif kind == 3:
            data[int(rng.integers(0, len(data)))] = int(rng.choice([0xC6, 0xDB, 0xDD, 0xDF, 0xC9, 0xCF]))
        else:
            data += rng.bytes(int(rng.integers(1, 9)))
        if turn == 19_000:
            tracemalloc.start()
        try:
            plane.decode_word(bytes(data))
        except PlaneError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 12_000
    assert peak < 1_000_000


def test_nested_and_oversized_words_are_refused() -> None:
    with pytest.raises(PlaneError, match="exceeds"):
        plane.decode_word(bytes(plane.MAX_WORD_BYTES + 1))
    with pytest.raises(PlaneError):
        plane.decode_word(b"\x91" * plane.MAX_WORD_BYTES)


def test_samples_in_a_message_must_be_as_many_as_stated() -> None:
    samples = np.arange(5).astype(np.complex64)
    assert (plane.samples_from_bytes(samples.tobytes(), 5) == samples).all()
    for data, count in ((bytes(39), 5), (bytes(40), 4), (b"", -1), (bytes(8), 2**61 + 1)):
        with pytest.raises(PlaneError, match="are not"):
            plane.samples_from_bytes(data, count)
