"""The protocol's rules on the slot grid, written down a second time, as compiled kernels.

What the nodes do between them, seen from nobody's side: instants of slots in whole nanoseconds,
frames on a grid that all share, blocks filled slot by slot, an acknowledgement per frame, and
selective repeat with lost ranges cut anew.  A stream's bytes are followed as fragments: the length
of a block's content, and who has it.

Rules, as the nodes have them:

- a frame is composed from the acknowledgements that take effect by its first slot;
- with nothing to say before the next acknowledgement a sender waits for it and goes on at the next
  slot, in the middle of a frame;
- repeats go before new bytes: the first of a block's own size, else the first in the order of their
  loss, which is cut if it is too long;
- a block must reach every receiver that is not yet known to be complete, in one and the same
  transmission.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from testbed.allocator.jit import kernel
from testbed.allocator.problem import FloatArray, IntArray

# Fragments that a stream set can have lost at first; the pool doubles when it is full.
POOL_SIZE = 256
NONE = -1
LENGTH, HELD, REACHED, FRAME, NEXT = range(5)  # columns of the pool
UNIT = 1 << 53  # random words and probabilities are compared in this many steps

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)


class Grid(NamedTuple):
    """What the kernels must know of the timing; see :class:`testbed.latency.inputs.Timing`."""

    sample_rate_hz: float
    slot_samples: int
    slots_per_frame: int
    ack_delay_ns: int
    control_latency_ns: int
    turnaround_ns: int
    lead_ns: int


# ------------------------------------------------------------------------------------ slot grid
@kernel
def sample_ns(grid: Grid, sample: int) -> int:
    """Instant of a sample, to the nearest nanosecond."""
    # In floats, since samples x 1e9 leaves 64 bits after minutes; the product is rounded once.
    return int(np.rint(np.float64(sample) * 1e9 / grid.sample_rate_hz))


@kernel
def slot_ns(grid: Grid, slot: int) -> int:
    """Instant at which a slot starts."""
    return sample_ns(grid, slot * grid.slot_samples)


@kernel
def frame_ns(grid: Grid, frame: int) -> int:
    """Instant at which a frame starts."""
    return slot_ns(grid, frame * grid.slots_per_frame)


@kernel
def next_slot(grid: Grid, instant_ns: int) -> int:
    """First slot that starts at or after an instant."""
    sample = int(np.float64(instant_ns) * grid.sample_rate_hz / 1e9)
    while sample_ns(grid, sample) < instant_ns:
        sample += 1
    while sample > 0 and sample_ns(grid, sample - 1) >= instant_ns:
        sample -= 1
    return -(-sample // grid.slot_samples)


# ---------------------------------------------------------------------------------------- chance
@kernel
def mixed(word: np.uint64) -> np.uint64:
    """A word with its bits well mixed: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    word = (word ^ (word >> np.uint64(30))) * _FACTOR_1
    word = (word ^ (word >> np.uint64(27))) * _FACTOR_2
    return word ^ (word >> np.uint64(31))


@kernel
def key_of(seed: np.uint64, draw: int, stream: int) -> np.uint64:
    """Key of one receiver's losses in one stream of one draw."""
    return mixed(mixed(seed + np.uint64(draw) * GOLDEN) + np.uint64(stream + 1) * GOLDEN)


@kernel
def is_lost(key: np.uint64, block: int, limit: np.uint64) -> bool:
    """Whether the n-th block of a stream is lost; `limit` is the probability in steps of 1 / UNIT."""
    return bool((mixed(key + np.uint64(block + 1) * GOLDEN) >> np.uint64(11)) < limit)


# ------------------------------------------------------------------------------------ MCS and room
@kernel
def choose_steps(
    snr_db: FloatArray,
    margin_db: float,
    threshold_db: FloatArray,
    subchannels: IntArray,
    count: int,
    steps: IntArray,
) -> None:
    """Fill in the fastest step whose threshold the SNR less margin reaches, else -1.

    If there is none on any of the subchannels, the best one gets the slowest step all the same.

    Parameters
    ----------
    snr_db
        Of every subchannel ``[M]`` [dB].
    subchannels, count
        Those to choose for, and how many.
    steps
        Output ``[>= count]``, in their order.
    """
    usable = False
    best = 0
    for j in range(count):
        snr = snr_db[subchannels[j]]
        steps[j] = np.searchsorted(threshold_db, snr - margin_db, side="right") - 1
        usable |= steps[j] >= 0
        if snr > snr_db[subchannels[best]]:
            best = j
    if not usable and count > 0:
        steps[best] = 0


@kernel
def broadcast_steps(
    snr_db: FloatArray, margin_db: FloatArray, threshold_db: FloatArray, num_own: IntArray, steps: IntArray
) -> None:
    """Fill in each subchannel's step for a broadcast: that of the client weakest there.

    If every subchannel is lost to somebody, the one where the worst client hears best gets the
    slowest step.

    Parameters
    ----------
    snr_db, margin_db
        Of each client ``[C, M]``, ``[C]`` [dB].
    num_own
        Subchannels that each client owns ``[C]``; one without any does not listen.
    steps
        Output ``[M]``.
    """
    num_clients, num_subchannels = snr_db.shape
    every = np.arange(num_subchannels)
    proposal = np.empty(num_subchannels, np.int64)
    floor_db = np.full(num_subchannels, np.inf)
    steps[:] = len(threshold_db)
    for c in range(num_clients):
        if num_own[c] == 0:
            continue
        choose_steps(snr_db[c], margin_db[c], threshold_db, every, num_subchannels, proposal)
        for k in range(num_subchannels):
            steps[k] = min(steps[k], proposal[k])
            floor_db[k] = min(floor_db[k], snr_db[c, k])
    if (steps < 0).all():
        steps[np.argmax(floor_db)] = 0


@kernel
def fill_order(steps: IntArray, count: int, room_bytes: IntArray, rooms: IntArray) -> int:
    """Fill in the rooms [byte] of the used ones among subchannels, fastest first; return their number."""
    used = 0
    for step in range(len(room_bytes) - 1, -1, -1):
        for j in range(count):
            if steps[j] == step:
                rooms[used] = room_bytes[step]
                used += 1
    return used


# ------------------------------------------------------------------------------------ the streams
class Streams(NamedTuple):
    """Streams on disjoint subchannels that one transmitter sends at once, and how far they are.

    Attributes
    ----------
    rooms, num_used
        Room of each stream's used subchannels ``[streams, M]`` [byte] in the order in which blocks
        are filled, and how many those are ``[streams]``.
    totals
        Bytes of each stream, its length prefix included ``[streams]``; 0: there is no such stream.
    first_receiver
        ``[streams + 1]``: stream s goes to receivers first_receiver[s] to first_receiver[s + 1] - 1.
    limits, keys
        Block error probability of each receiver ``[R]`` in steps of 1 / UNIT, and the keys of its losses.
    next_offset, num_sent
        First byte never sent, and blocks sent, of each stream ``[streams]``.
    waiting
        Bits of the receivers that are not known to be complete ``[streams]``.
    held_bytes, end_slot
        What each receiver has, and the slot at whose start it had everything, or -1 ``[R]``;
        0 for a stream that there is not.
    air_slots
        Slots in which each stream was on the air ``[streams]``.
    lost, repeats
        First and last of each stream's fragments, as rows of the pool or -1 ``[2, streams]``: lost
        without the sender knowing yet, and to be sent again.
    pool_use
        Rows of the pool that were ever used, and the first that is free again.
    """

    rooms: IntArray
    num_used: IntArray
    totals: IntArray
    first_receiver: IntArray
    limits: NDArray[np.uint64]
    keys: NDArray[np.uint64]
    next_offset: IntArray
    num_sent: IntArray
    waiting: IntArray
    held_bytes: IntArray
    end_slot: IntArray
    air_slots: IntArray
    lost: IntArray
    repeats: IntArray
    pool_use: IntArray


@kernel
def open_streams(
    rooms: IntArray,
    num_used: IntArray,
    totals: IntArray,
    first_receiver: IntArray,
    block_error: FloatArray,
    keys: NDArray[np.uint64],
) -> Streams:
    """Streams of which nothing was sent yet; see :class:`Streams`."""
    num_streams, num_receivers = len(totals), len(block_error)
    limits = np.empty(num_receivers, np.uint64)
    for r in range(num_receivers):
        limits[r] = np.uint64(np.int64(block_error[r] * UNIT))
    waiting = np.zeros(num_streams, np.int64)
    end_slot = np.zeros(num_receivers, np.int64)
    for s in range(num_streams):
        if totals[s] > 0:
            waiting[s] = (np.int64(1) << (first_receiver[s + 1] - first_receiver[s])) - 1
            end_slot[first_receiver[s] : first_receiver[s + 1]] = NONE
    return Streams(
        rooms,
        num_used,
        totals,
        first_receiver,
        limits,
        keys,
        np.zeros(num_streams, np.int64),
        np.zeros(num_streams, np.int64),
        waiting,
        np.zeros(num_receivers, np.int64),
        end_slot,
        np.zeros(num_streams, np.int64),
        np.full((2, num_streams), NONE, np.int64),
        np.full((2, num_streams), NONE, np.int64),
        np.array([0, NONE]),
    )


@kernel
def any_unsent(waiting: IntArray, repeats: IntArray, next_offset: IntArray, totals: IntArray) -> bool:
    """Whether a stream that somebody still waits for has something to put into the next block."""
    unsent = False
    for s in range(len(totals)):
        unsent |= waiting[s] != 0 and (repeats[0, s] != NONE or next_offset[s] < totals[s])
    return unsent


@kernel
def _append(queue: IntArray, s: int, pool: IntArray, row: int) -> None:
    pool[row, NEXT] = NONE
    if queue[0, s] == NONE:
        queue[0, s] = row
    else:
        pool[queue[1, s], NEXT] = row
    queue[1, s] = row


@kernel
def _grown(pool: IntArray) -> IntArray:
    larger = np.empty((2 * len(pool), pool.shape[1]), np.int64)
    larger[: len(pool)] = pool
    return larger


@kernel
def settle(grid: Grid, streams: Streams, pool: IntArray, frame: int) -> None:
    """The acknowledgements of a frame are in: who is complete, and what must be repeated."""
    frame_end = (frame + 1) * grid.slots_per_frame
    for s in range(len(streams.totals)):
        if streams.waiting[s] == 0:
            continue
        first = streams.first_receiver[s]
        for r in range(first, streams.first_receiver[s + 1]):
            if streams.end_slot[r] != NONE and streams.end_slot[r] <= frame_end:
                streams.waiting[s] &= ~(np.int64(1) << (r - first))
        while streams.lost[0, s] != NONE and pool[streams.lost[0, s], FRAME] == frame:
            row = streams.lost[0, s]
            streams.lost[0, s] = pool[row, NEXT]
            # What only those lost who have everything by now is not repeated.
            if streams.waiting[s] & ~pool[row, REACHED]:
                _append(streams.repeats, s, pool, row)
            else:
                pool[row, NEXT] = streams.pool_use[1]
                streams.pool_use[1] = row


@kernel
def compose(streams: Streams, pool: IntArray, s: int, position: int, frame: int, end: int) -> IntArray:
    """Fill the blocks of a frame from a slot on as far as a stream has something to say.

    Returns the pool, which may have grown.  This is where the time goes: nothing is called here that
    would take the streams along.
    """
    end_slot, held_bytes, keys, limits = streams.end_slot, streams.held_bytes, streams.keys, streams.limits
    repeats, rooms, pool_use = streams.repeats, streams.rooms[s], streams.pool_use
    first, last = streams.first_receiver[s], streams.first_receiver[s + 1]
    total, num_used = streams.totals[s], streams.num_used[s]
    next_offset, num_sent = streams.next_offset[s], streams.num_sent[s]
    slot = position
    more = streams.waiting[s] != 0
    while more and slot < end:
        for j in range(num_used):
            room = rooms[j]
            held = np.int64(0)
            row = repeats[0, s]
            if row != NONE:
                before = NONE
                while row != NONE and pool[row, LENGTH] != room:
                    before, row = row, pool[row, NEXT]
                if row == NONE:
                    before, row = NONE, repeats[0, s]
                length, held = pool[row, LENGTH], pool[row, HELD]
                if length > room:
                    pool[row, LENGTH] = length - room
                    length = room
                else:
                    if before == NONE:
                        repeats[0, s] = pool[row, NEXT]
                    else:
                        pool[before, NEXT] = pool[row, NEXT]
                    if repeats[1, s] == row:
                        repeats[1, s] = before
                    pool[row, NEXT] = pool_use[1]
                    pool_use[1] = row
            elif next_offset < total:
                length = min(room, total - next_offset)
                next_offset += length
            else:
                more = False
                break
            if j == 0:
                streams.air_slots[s] += 1
            reached = np.int64(0)
            everybody = True
            for r in range(first, last):
                if end_slot[r] != NONE:
                    continue  # complete, and no longer listening
                if is_lost(keys[r], num_sent, limits[r]):
                    everybody = False
                    continue
                bit = np.int64(1) << (r - first)
                reached |= bit
                if held & bit == 0:
                    held_bytes[r] += length
                    if held_bytes[r] == total:
                        end_slot[r] = slot + 1
            num_sent += 1
            if everybody:
                continue
            row = pool_use[1]
            if row != NONE:
                pool_use[1] = pool[row, NEXT]
            else:
                row = pool_use[0]
                pool_use[0] += 1
                if row == len(pool):
                    pool = _grown(pool)
            pool[row, LENGTH] = length
            pool[row, HELD] = held | reached
            pool[row, REACHED] = reached
            pool[row, FRAME] = frame
            _append(streams.lost, s, pool, row)
        slot += 1
    streams.next_offset[s], streams.num_sent[s] = next_offset, num_sent
    return pool


@kernel
def deliver(grid: Grid, streams: Streams, first_slot: int, limit_ns: int) -> tuple[int, int, bool]:
    """Send streams until every receiver has everything.

    Parameters
    ----------
    first_slot
        In which they start.
    limit_ns
        They are given up after the first frame that ends later.

    Returns
    -------
    position
        The slot from which the transmitter is free again.
    answered_ns
        When the last acknowledgement was there.
    missed
        Whether a stream was given up.
    """
    slots = grid.slots_per_frame
    pool = np.empty((POOL_SIZE, 5), np.int64)
    # Frames whose acknowledgements are open, in a ring: no more of them than an answer takes.
    ring = np.empty(grid.ack_delay_ns // max(1, frame_ns(grid, 1)) + 4, np.int64)
    oldest = 0
    num_open = 0
    position = first_slot
    answered_ns = slot_ns(grid, first_slot)
    waiting, repeats = streams.waiting, streams.repeats
    next_offset, totals = streams.next_offset, streams.totals
    while waiting.any():
        if num_open and not any_unsent(waiting, repeats, next_offset, totals):
            due_ns = frame_ns(grid, ring[oldest] + 1) + grid.ack_delay_ns
            position = max(position, next_slot(grid, due_ns))
        position_ns = slot_ns(grid, position)
        settled = False
        while num_open:
            frame = ring[oldest]
            end_ns = frame_ns(grid, frame + 1)
            if end_ns + grid.ack_delay_ns > position_ns:
                break
            oldest = (oldest + 1) % len(ring)
            num_open -= 1
            settle(grid, streams, pool, frame)
            answered_ns = end_ns + grid.ack_delay_ns
            settled = True
            if end_ns > limit_ns and (streams.end_slot == NONE).any():
                streams.end_slot[streams.end_slot == NONE] = (frame + 1) * slots
                return position, answered_ns, True
        if not any_unsent(waiting, repeats, next_offset, totals):
            continue
        if settled:
            # On wall time it is as late as the last acknowledgement, and a burst needs its lead.
            announced = next_slot(grid, answered_ns + grid.lead_ns)
            if announced > position:
                position = announced
                continue
        frame = position // slots
        for s in range(len(streams.totals)):
            pool = compose(streams, pool, s, position, frame, (frame + 1) * slots)
        ring[(oldest + num_open) % len(ring)] = frame
        num_open += 1
        position = (frame + 1) * slots
    return position, answered_ns, False
