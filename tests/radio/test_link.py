"""Selective repeat: whatever is lost, what arrives in the end is what was sent."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.link import (
    HEADER,
    LENGTH_PREFIX,
    MAX_BLOCK_BYTES,
    MAX_STREAM_BYTES,
    SelectiveRepeatReceiver,
    SelectiveRepeatSender,
    stream_tag,
)

SLOTS, SUBCHANNELS = 3, 4
CAPACITIES = st.sampled_from([9, 11, 17, 40, 120])  # of blocks, as the MCS changes


def _run(
    sender: SelectiveRepeatSender,
    receivers: dict[str, SelectiveRepeatReceiver],
    rng: np.random.Generator,
    loss: float,
    capacities: list[int],
    ack_delay: int,
    lossy_frames: int,
) -> int:
    """Frames until the sender is done; losses end after `lossy_frames`."""
    reports: dict[int, dict[str, set[tuple[int, int]]]] = {}
    frame = 0
    while not sender.done:
        assert frame < 4000, "no end"
        capacity = capacities[frame % len(capacities)]
        decoded: dict[str, set[tuple[int, int]]] = {name: set() for name in receivers}
        sent = {}
        for slot in range(SLOTS):
            for k in range(SUBCHANNELS):
                block = sender.next_block((frame, slot, k), capacity)
                if block is None:
                    break
                assert len(block) == capacity
                sent[(slot, k)] = block
        assert sender.places(frame) == set(sent)
        for name, receiver in receivers.items():
            for place in rng.permutation(sorted(sent)).tolist():
                if frame >= lossy_frames or rng.random() >= loss:
                    assert receiver.accept(sent[tuple(place)])
                    decoded[name].add(tuple(place))
        reports[frame] = decoded
        if frame >= ack_delay:
            waiting = sorted(sender.receivers)
            sender.acknowledge(frame - ack_delay, [reports[frame - ack_delay][name] for name in waiting])
        frame += 1
    return frame


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=900),
    st.integers(0, 2**32),
    st.floats(0, 1),
    st.lists(CAPACITIES, min_size=1, max_size=5),
    st.integers(0, 4),
    st.integers(1, 3),
)
def test_any_losses_and_sizes_give_the_exact_payload(
    payload: bytes, seed: int, loss: float, capacities: list[int], ack_delay: int, num_receivers: int
) -> None:
    names = [f"client-{n}" for n in range(num_receivers)]
    sender = SelectiveRepeatSender(payload, 77, names)
    receivers = {name: SelectiveRepeatReceiver(77, 1000) for name in names}
    _run(sender, receivers, np.random.default_rng(seed), loss, capacities, ack_delay, 25)
    for receiver in receivers.values():
        assert receiver.complete
        assert receiver.payload() == payload
        assert receiver.total_bytes == len(payload)
        assert receiver.received_bytes == len(payload) + LENGTH_PREFIX.size
        assert receiver.refused_blocks == 0
    report = sender.report
    assert report.sent_bytes == len(payload)
    # A repeated range is cut anew, so one failed block may become several.
    assert report.blocks_retransmitted >= report.blocks_failed
    assert sender.frames_in_flight() == []


def test_without_losses_nothing_is_repeated() -> None:
    payload = bytes(range(256)) * 8
    sender = SelectiveRepeatSender(payload, 1, ["a"])
    receiver = SelectiveRepeatReceiver(1, len(payload))
    _run(sender, {"a": receiver}, np.random.default_rng(1), 0.0, [64], 2, 0)
    assert receiver.payload() == payload
    assert sender.report.blocks_sent == -(-(len(payload) + 4) // (64 - HEADER.size))
    assert sender.report.blocks_retransmitted == sender.report.blocks_failed == receiver.duplicate_blocks == 0


def test_a_lost_range_is_cut_to_the_blocks_of_the_moment() -> None:
    sender = SelectiveRepeatSender(bytes(100), 1, ["a"])
    assert sender.next_block((0, 0, 0), 108 + 4) is not None
    assert not sender.has_unsent
    assert sender.acknowledge(0, [set()]) == 1
    sizes = []
    while (block := sender.next_block((1, 0, len(sizes)), 38)) is not None:
        sizes.append(HEADER.unpack_from(block)[:2])
    assert sizes == [(0, 30), (30, 30), (60, 30), (90, 14)]


def test_a_block_counts_only_when_every_receiver_has_it_and_duplicates_do_no_harm() -> None:
    sender = SelectiveRepeatSender(b"payload", 5, ["a", "b"])
    a, b = SelectiveRepeatReceiver(5, 7), SelectiveRepeatReceiver(5, 7)
    first = sender.next_block((0, 0, 0), 30)
    assert first is not None
    assert a.accept(first)
    assert sender.acknowledge(0, [{(0, 0)}, set()]) == 1
    again = sender.next_block((1, 0, 0), 30)
    assert again == first
    assert a.accept(again)
    assert a.duplicate_blocks == 1
    assert b.accept(again)
    assert sender.acknowledge(1, [{(0, 0)}, {(0, 0)}]) == 0
    assert sender.acknowledge(1, [set(), set()]) == 0, "settled twice"
    assert sender.done
    assert a.payload() == b.payload() == b"payload"


def test_giving_up_the_last_receiver_ends_the_stream() -> None:
    sender = SelectiveRepeatSender(bytes(500), 5, ["a", "b"])
    sender.next_block((0, 0, 0), 30)
    sender.give_up("a")
    assert not sender.done
    sender.give_up("b")
    assert sender.done
    assert sender.next_block((1, 0, 0), 30) is None


def test_a_place_is_used_once() -> None:
    sender = SelectiveRepeatSender(bytes(500), 5, ["a"])
    sender.next_block((3, 1, 2), 30)
    with pytest.raises(ValueError, match="frame 3 has a block in slot 1, subchannel 2 already"):
        sender.next_block((3, 1, 2), 30)


def test_blocks_longer_than_a_header_can_say_are_filled_as_far_as_it_can() -> None:
    sender = SelectiveRepeatSender(bytes(100_000), 5, ["a"])
    block = sender.next_block((0, 0, 0), 90_000)
    assert block is not None
    assert len(block) == 90_000
    receiver = SelectiveRepeatReceiver(5, 100_000)
    assert receiver.accept(block)
    assert receiver.received_bytes == MAX_BLOCK_BYTES


def test_blocks_of_other_streams_and_lying_blocks_are_refused_and_counted() -> None:
    receiver = SelectiveRepeatReceiver(5, 100)
    lies = [
        HEADER.pack(0, 10, 6) + bytes(10),  # another stream's tag
        HEADER.pack(0, 11, 5) + bytes(10),  # longer than the block
        HEADER.pack(0, 0, 5) + bytes(10),  # nothing in it
        HEADER.pack(95, 10, 5) + bytes(10),  # beyond the cap
        HEADER.pack(0xFFFFFFFF, 10, 5) + bytes(10),
        b"short",
        b"",
    ]
    for lie in lies:
        assert not receiver.accept(lie)
    assert receiver.refused_blocks == len(lies)
    assert receiver.received_bytes == 0


def test_a_stream_that_lies_about_its_length_never_completes() -> None:
    for stated in (0, 5, 4_000_000_000):
        receiver = SelectiveRepeatReceiver(5, 100)
        content = LENGTH_PREFIX.pack(stated) + bytes(60)
        assert receiver.accept(HEADER.pack(0, len(content), 5) + content)
        assert not receiver.complete
        with pytest.raises(ValueError, match="incomplete"):
            receiver.payload()


def test_random_blocks_never_allocate_more_than_the_cap() -> None:
    rng = np.random.default_rng(11)
    receiver = SelectiveRepeatReceiver(5, 4096)
    tracemalloc.start()
    try:
        for _ in range(4000):
            offset = int(rng.choice([rng.integers(0, 5000), rng.integers(0, 2**32)]))
            header = HEADER.pack(offset, int(rng.integers(0, 2**16)), int(rng.choice([5, 6])))
            receiver.accept((header + rng.bytes(int(rng.integers(0, 300))))[: int(rng.integers(0, 300))])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert receiver.received_bytes <= 4096 + LENGTH_PREFIX.size
    assert peak < 200_000


def test_impossible_requests_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="no room"):
        SelectiveRepeatSender(b"x", 1, ["a"]).next_block((0, 0, 0), HEADER.size)

    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_STREAM_BYTES + 1

    with pytest.raises(ValueError, match="at most"):
        SelectiveRepeatSender(Huge(), 1, ["a"])


def test_tags_tell_streams_apart() -> None:
    tags = {stream_tag("up", round_index, client) for round_index in range(50) for client in "abcde"}
    assert len(tags) > 245
    assert stream_tag("up", 1, "a") == stream_tag("up", 1, "a")


def test_a_repeated_block_goes_bit_for_bit_where_it_fits() -> None:
    """So that a receiver can add the copies; without a place of its size the oldest range is cut."""
    payload = np.random.default_rng(1).bytes(400)
    sender = SelectiveRepeatSender(payload, 7, ["server"])
    first = {
        capacity: sender.next_block((0, slot, 0), capacity) for slot, capacity in enumerate((60, 90, 120))
    }
    sender.acknowledge(0, [set()])
    again = {
        capacity: sender.next_block((1, slot, 0), capacity) for slot, capacity in enumerate((120, 90, 60))
    }
    assert again == first
    sender.acknowledge(1, [set()])
    cut = sender.next_block((2, 0, 0), 50)
    assert cut is not None
    assert cut != first[60]
    assert cut[:4] == first[120][:4]  # type: ignore[index]
