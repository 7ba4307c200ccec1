"""The prediction's own protocol against the nodes' link code: the same losses, the same nanoseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.phy import UNUSED, block_bytes
from testbed import latency
from testbed.allocator import jit
from testbed.latency import protocol
from tests.testbed import protocol_reference as reference
from tests.testbed.protocol_reference import Stream
from tests.testbed.round_inputs import NUM_SUBCHANNELS, grid_numerology, grid_of
from tests.testbed.round_truth import link_steps

MEMBERS = ("a", "b", "c")


# ------------------------------------------------------------------------------------- the grid
@settings(deadline=None)
@given(
    st.sampled_from([5e6, 3.84e6, 20e6, 1e6 / 3, 61.44e6]),
    st.integers(1, 9),
    st.integers(0, 10**16),
    st.integers(0, 10**7),
)
def test_slots_lie_where_the_nodes_have_them(rate_hz, slots_per_frame, instant_ns, slot):
    """To the nanosecond, also when samples x 1e9 no longer fit into 64 bits."""
    numerology = grid_numerology(rate_hz, slots_per_frame)
    grid = grid_of(numerology, 0)
    assert protocol.slot_ns(grid, slot) == numerology.slot_start_ns(slot)
    assert protocol.frame_ns(grid, slot) == numerology.frame_start_ns(slot)
    instants_ns = [instant_ns // 1000, numerology.slot_start_ns(slot), numerology.slot_start_ns(slot) + 1]
    for each_ns in instants_ns:
        assert protocol.next_slot(grid, each_ns) == numerology.next_slot(each_ns)


def test_losses_are_independent_and_as_frequent_as_asked_for():
    """Of neighbouring blocks, draws and streams, within four standard errors."""
    count = 40_000
    for probability in (0.02, 0.1, 0.7):
        limit = np.uint64(int(probability * protocol.UNIT))
        keys = [key_of(7, d, s) for d, s in ((0, 0), (0, 1), (1, 0), (2, 5))]
        lost = np.array([[protocol.is_lost(key, n, limit) for n in range(count)] for key in keys], float)
        spread = np.sqrt(probability * (1 - probability) / count)
        assert np.abs(lost.mean(axis=1) - probability).max() < 4 * spread
        others = [lost[0, 1:] * lost[0, :-1], lost[0] * lost[1], lost[0] * lost[2], lost[2] * lost[3]]
        for both in others:
            assert abs(both.mean() - probability**2) < 4 * np.sqrt(probability**2 / count)


# -------------------------------------------------------------------- streams, draw by draw
def key_of(seed, draw, stream):
    # A compiled function gives back a Python integer.
    return np.uint64(protocol.key_of(np.uint64(seed), draw, stream))


def losses(key, probability):
    limit = np.uint64(int(probability * protocol.UNIT))
    return lambda number: bool(protocol.is_lost(key, number, limit))


def rooms_of(numerology, mcs, subchannels):
    rooms = np.zeros(NUM_SUBCHANNELS, np.int64)
    steps = np.array([mcs[k] for k in subchannels])
    used = protocol.fill_order(steps, len(steps), link_steps(numerology).room_bytes, rooms)
    return rooms, used


mcs_choice = st.lists(st.sampled_from([UNUSED, 2, 5, 9, 14, 20, 25]), min_size=6, max_size=6).filter(
    lambda chosen: any(mcs >= 0 for mcs in chosen)
)
timing_choice = {
    "slots_per_frame": st.integers(1, 5),
    "ack_delay_ns": st.sampled_from([0, 1, 300_000, 1_612_800, 5_000_000]),
    "ready_ns": st.integers(0, 10**8),
    "probability": st.sampled_from([0.0, 0.1, 0.35, 0.8]),
    "seed": st.integers(0, 2**63),
}


@settings(deadline=None, max_examples=150)
@given(num_bytes=st.integers(1, 4000), mcs=mcs_choice, **timing_choice)
def test_an_uplink_is_that_of_the_nodes_link_code(
    num_bytes, mcs, slots_per_frame, ack_delay_ns, ready_ns, probability, seed
):
    """Completion, last acknowledgement and airtime are equal when the same blocks are lost."""
    numerology = grid_numerology(slots_per_frame=slots_per_frame)
    key = key_of(seed, 3, 1)
    subchannels = tuple(range(NUM_SUBCHANNELS))
    stream = Stream(num_bytes, subchannels, np.array(mcs), {"server": losses(key, probability)})
    end_ns = reference.uplink(numerology, ack_delay_ns, stream, ready_ns)

    rooms, used = rooms_of(numerology, mcs, subchannels)
    grid = grid_of(numerology, ack_delay_ns)
    streams = protocol.open_streams(
        rooms[None, :],
        np.array([used]),
        np.array([num_bytes + 4]),
        np.array([0, 1]),
        np.array([probability]),
        np.array([key]),
    )
    _, answered_ns, missed = protocol.deliver(grid, streams, protocol.next_slot(grid, ready_ns), 2**61)
    assert not missed
    assert protocol.slot_ns(grid, streams.end_slot[0]) == stream.complete_ns["server"]
    assert answered_ns == end_ns
    assert streams.air_slots[0] == stream.air_slots
    assert streams.num_sent[0] == stream.sender.report.blocks_sent
    assert streams.held_bytes[0] == num_bytes + 4
    assert stream.payloads_agree()


@settings(deadline=None, max_examples=150)
@given(
    num_bytes=st.tuples(*[st.integers(0, 2500)] * 3),
    broadcast=st.booleans(),
    mcs=mcs_choice,
    data=st.data(),
    **timing_choice,
)
def test_downlinks_are_those_of_the_nodes_link_code(
    num_bytes, broadcast, mcs, data, slots_per_frame, ack_delay_ns, ready_ns, probability, seed
):
    """One stream to three, repeated on the union of their losses, or three at once to one each."""
    numerology = grid_numerology(slots_per_frame=slots_per_frame)
    grid = grid_of(numerology, ack_delay_ns, control_latency_ns=400_000)
    keys = np.array([key_of(seed, 0, s) for s in range(3)])
    errors = np.array([probability, probability / 2, data.draw(st.sampled_from([0.0, probability]))])
    lost = {name: losses(keys[r], errors[r]) for r, name in enumerate(MEMBERS)}
    if broadcast:
        size = max(1, num_bytes[0])
        subchannels = tuple(range(NUM_SUBCHANNELS))
        outgoing = [Stream(size, subchannels, np.array(mcs), lost)]
        totals, first_receiver = np.array([size + 4]), np.array([0, 3])
    else:
        outgoing = []
        for r, name in enumerate(MEMBERS):
            own = (r, r + 3)
            chosen = np.full(NUM_SUBCHANNELS, UNUSED)
            chosen[list(own)] = [mcs[r], mcs[r + 3]] if max(mcs[r], mcs[r + 3]) >= 0 else [4, UNUSED]
            outgoing.append(Stream(num_bytes[r], own, chosen, {name: lost[name]}))
        totals = np.array([size + 4 if size else 0 for size in num_bytes])
        first_receiver = np.arange(4)
    present = [stream for stream in outgoing if stream.num_bytes]
    if not present:
        return
    end_ns = reference.downlink(numerology, ack_delay_ns, 400_000, present, ready_ns)

    filled = [rooms_of(numerology, stream.mcs, stream.subchannels) for stream in outgoing]
    streams = protocol.open_streams(
        np.array([rooms for rooms, _ in filled]),
        np.array([used for _, used in filled]),
        totals,
        first_receiver,
        errors,
        keys,
    )
    first_slot = protocol.next_slot(grid, ready_ns + 400_000)
    position, _, missed = protocol.deliver(grid, streams, first_slot, 2**61)
    assert not missed
    assert protocol.slot_ns(grid, position) == end_ns
    assert streams.air_slots.tolist() == [stream.air_slots for stream in outgoing]
    for s, stream in enumerate(outgoing):
        assert streams.num_sent[s] == stream.sender.report.blocks_sent
        if not stream.num_bytes:
            continue
        assert stream.payloads_agree()
        for name, complete_ns in stream.complete_ns.items():
            assert protocol.slot_ns(grid, streams.end_slot[MEMBERS.index(name)]) == complete_ns


def test_kernels_lie_in_a_cache_of_their_own():
    """An edit to the prediction leaves the allocator's machine code alone, and the other way round."""
    package = Path(latency.__file__).parent
    assert jit.cache_directory(package).name.startswith("latency-")
    assert jit.cache_directory(package) != jit.cache_directory()


def test_a_block_has_room_for_its_header():
    """What the inputs call room is what the nodes' senders fill."""
    numerology = grid_numerology()
    steps = link_steps(numerology)
    assert (steps.room_bytes > 0).all()
    assert steps.room_bytes[7] == block_bytes(numerology, 7) - 8
