"""A round and a cut move, drawn many times by the protocol's rules, as compiled kernels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from testbed.allocator.jit import kernel
from testbed.allocator.problem import FloatArray, IntArray
from testbed.latency.protocol import (
    Grid,
    broadcast_steps,
    choose_steps,
    deliver,
    fill_order,
    key_of,
    next_slot,
    open_streams,
    slot_ns,
)

PREFIX_BYTES = 4  # length of a stream, in front of its payload

# Kinds of streams, for the keys of their losses.
UPLINK, BROADCAST, UNICAST, MOVE = range(4)
NUM_KINDS = 4


class Facts(NamedTuple):
    """What is the same in every draw; see :class:`testbed.latency.inputs.RoundInputs`.

    Attributes
    ----------
    own, num_own
        Subchannels of each client ``[C, M]``, ascending, and how many they are ``[C]``.
    """

    plan_ns: int
    deadline_ns: int
    sounding_slots: int
    own: IntArray
    num_own: IntArray
    threshold_db: FloatArray
    room_bytes: IntArray
    uplink_margin_db: FloatArray
    downlink_margin_db: FloatArray
    uplink_bytes: IntArray
    broadcast_bytes: int
    unicast_bytes: IntArray


class Luck(NamedTuple):
    """What each of S draws has of its own.

    Attributes
    ----------
    seed
        Of the losses of single blocks.
    uplink_snr_db
        Of the owner of each subchannel ``[S, M]`` [dB].
    downlink_snr_db
        ``[S, C, M]`` [dB].
    uplink_error, broadcast_error, unicast_error
        Block error probabilities ``[S, C]``.
    forward_ns, backward_ns
        Compute times of the clients ``[S, C]`` [ns].
    server_ns
        Of the server, forward and backward ``[S, 2]`` [ns].
    """

    seed: np.uint64
    uplink_snr_db: FloatArray
    downlink_snr_db: FloatArray
    uplink_error: FloatArray
    broadcast_error: FloatArray
    unicast_error: FloatArray
    forward_ns: IntArray
    backward_ns: IntArray
    server_ns: IntArray


class Outcome(NamedTuple):
    """What each draw came to; filled by the kernels.

    Attributes
    ----------
    tiles_ns
        In the order of ``ROUND_PHASES`` ``[S, 9]`` [ns].
    air_slots
        Of uplink, broadcast and unicast, summed over transmitters ``[S, 3]``.
    uplink_ns, unicast_ns
        Duration of each client's stream ``[S, C]`` [ns]; -1 where there is none.
    stragglers
        Client of the uplink and of the downlink ``[S, 2]``.
    missed
        Whether a stream missed the deadline ``[S]``.
    """

    tiles_ns: IntArray
    air_slots: IntArray
    uplink_ns: IntArray
    unicast_ns: IntArray
    stragglers: IntArray
    missed: NDArray[np.bool_]


@kernel
def sounding_end_ns(grid: Grid, start_ns: int, sounding_slots: int) -> int:
    """End of a sounding: the server's slot, the turnaround, then the clients' slots."""
    downlink_slot = next_slot(grid, start_ns)
    uplink_slot = next_slot(grid, slot_ns(grid, downlink_slot + 1) + grid.turnaround_ns)
    return slot_ns(grid, uplink_slot + sounding_slots)


@kernel
def send_uplink(
    grid: Grid, facts: Facts, luck: Luck, d: int, c: int, kind: int, num_bytes: int, ready_ns: int
) -> tuple[int, int, int, bool]:
    """Send one client's stream to the server.

    Returns
    -------
    complete_ns, answered_ns
        When the server had everything, and when the client knew [ns].
    air_slots
        Slots it was on the air.
    missed
        Whether it was given up.
    """
    count = facts.num_own[c]
    steps = np.empty(count, np.int64)
    rooms = np.empty((1, count), np.int64)
    snr_db = luck.uplink_snr_db[d]
    choose_steps(snr_db, facts.uplink_margin_db[c], facts.threshold_db, facts.own[c], count, steps)
    streams = open_streams(
        rooms,
        np.array([fill_order(steps, count, facts.room_bytes, rooms[0])]),
        np.array([num_bytes + PREFIX_BYTES]),
        np.array([0, 1]),
        luck.uplink_error[d, c : c + 1],
        np.array([key_of(luck.seed, d, NUM_KINDS * c + kind)]),
    )
    first_slot = next_slot(grid, ready_ns + grid.lead_ns)
    _, answered_ns, missed = deliver(grid, streams, first_slot, facts.deadline_ns)
    return slot_ns(grid, streams.end_slot[0]), answered_ns, streams.air_slots[0], missed


@kernel
def send_broadcast(
    grid: Grid,
    facts: Facts,
    luck: Luck,
    d: int,
    kind: int,
    num_bytes: int,
    ready_ns: int,
    complete_ns: IntArray,
) -> tuple[int, int, bool]:
    """Send one stream from the server to all clients that take part.

    Parameters
    ----------
    complete_ns
        Output: when each client had everything ``[C]`` [ns]; unchanged for those that take no part.

    Returns
    -------
    end_ns
        When the transmitter is free and everything is acknowledged [ns].
    air_slots, missed
        As of :func:`send_uplink`.
    """
    num_subchannels = facts.own.shape[1]
    steps = np.empty(num_subchannels, np.int64)
    rooms = np.empty((1, num_subchannels), np.int64)
    snr_db = luck.downlink_snr_db[d]
    broadcast_steps(snr_db, facts.downlink_margin_db, facts.threshold_db, facts.num_own, steps)
    members = np.flatnonzero(facts.num_own)
    keys = np.empty(len(members), np.uint64)
    for i in range(len(members)):
        keys[i] = key_of(luck.seed, d, NUM_KINDS * members[i] + kind)
    streams = open_streams(
        rooms,
        np.array([fill_order(steps, num_subchannels, facts.room_bytes, rooms[0])]),
        np.array([num_bytes + PREFIX_BYTES]),
        np.array([0, len(members)]),
        luck.broadcast_error[d][members],
        keys,
    )
    first_slot = next_slot(grid, ready_ns + grid.control_latency_ns + grid.lead_ns)
    # The server gives up when the acknowledgement comes too late, not the frame.
    limit_ns = facts.deadline_ns - grid.ack_delay_ns
    position, _, missed = deliver(grid, streams, first_slot, limit_ns)
    for i in range(len(members)):
        complete_ns[members[i]] = slot_ns(grid, streams.end_slot[i])
    return slot_ns(grid, position), streams.air_slots[0], missed


@kernel
def send_unicasts(
    grid: Grid, facts: Facts, luck: Luck, d: int, ready_ns: int, complete_ns: IntArray
) -> tuple[int, int, bool]:
    """Send each client's own stream on its subchannels, all at once; see :func:`send_broadcast`."""
    num_clients, num_subchannels = facts.own.shape
    rooms = np.zeros((num_clients, num_subchannels), np.int64)
    num_used = np.zeros(num_clients, np.int64)
    totals = np.zeros(num_clients, np.int64)
    steps = np.empty(num_subchannels, np.int64)
    keys = np.empty(num_clients, np.uint64)
    for c in range(num_clients):
        keys[c] = key_of(luck.seed, d, NUM_KINDS * c + UNICAST)
        count = facts.num_own[c]
        if count == 0 or facts.unicast_bytes[c] == 0:
            continue
        snr_db, margin_db = luck.downlink_snr_db[d, c], facts.downlink_margin_db[c]
        choose_steps(snr_db, margin_db, facts.threshold_db, facts.own[c], count, steps)
        num_used[c] = fill_order(steps, count, facts.room_bytes, rooms[c])
        totals[c] = facts.unicast_bytes[c] + PREFIX_BYTES
    streams = open_streams(rooms, num_used, totals, np.arange(num_clients + 1), luck.unicast_error[d], keys)
    first_slot = next_slot(grid, ready_ns + grid.control_latency_ns + grid.lead_ns)
    limit_ns = facts.deadline_ns - grid.ack_delay_ns
    position, _, missed = deliver(grid, streams, first_slot, limit_ns)
    for c in range(num_clients):
        if totals[c] > 0:
            complete_ns[c] = slot_ns(grid, streams.end_slot[c])
    return slot_ns(grid, position), streams.air_slots.sum(), missed


@kernel
def simulate_round(grid: Grid, facts: Facts, luck: Luck, d: int, outcome: Outcome) -> None:
    """One draw of a round; its tiles are those of the measurement, instant by instant.

    Of clients that are complete in the same slot, the straggler is the one that was on the air for
    the shorter time; likewise for the downlink.
    """
    num_clients = len(facts.num_own)
    start_ns = facts.plan_ns + grid.control_latency_ns
    sounded_ns = sounding_end_ns(grid, start_ns, facts.sounding_slots)
    permit_ns = sounded_ns + grid.ack_delay_ns
    end_ns = sounded_ns
    missed = False

    uplink_done_ns = np.int64(-1)
    uplink_ready_ns = permit_ns
    for c in range(num_clients):
        if facts.num_own[c] == 0:
            continue
        forward_end_ns = start_ns + luck.forward_ns[d, c]
        ready_ns = max(forward_end_ns, permit_ns)
        complete_ns, answered_ns = ready_ns, ready_ns
        if facts.uplink_bytes[c] > 0:
            complete_ns, answered_ns, air_slots, late = send_uplink(
                grid, facts, luck, d, c, UPLINK, facts.uplink_bytes[c], ready_ns
            )
            outcome.air_slots[d, 0] += air_slots
            outcome.uplink_ns[d, c] = complete_ns - ready_ns
            missed |= late
        end_ns = max(end_ns, answered_ns)
        if complete_ns > uplink_done_ns or (complete_ns == uplink_done_ns and ready_ns > uplink_ready_ns):
            uplink_done_ns, uplink_ready_ns = complete_ns, ready_ns
            outcome.stragglers[d, 0] = c

    forward_ns = uplink_done_ns + luck.server_ns[d, 0]
    backward_ns = forward_ns + luck.server_ns[d, 1]
    end_ns = max(end_ns, backward_ns)

    complete = np.full(num_clients, backward_ns)
    broadcast_ns = settled_ns = backward_ns
    if facts.broadcast_bytes > 0:
        settled_ns, air_slots, late = send_broadcast(
            grid, facts, luck, d, BROADCAST, facts.broadcast_bytes, backward_ns, complete
        )
        outcome.air_slots[d, 1] = air_slots
        missed |= late
        end_ns = max(end_ns, settled_ns)
        broadcast_ns = complete.max()

    unicast = complete.copy()
    if facts.unicast_bytes[facts.num_own > 0].any():
        unicasts_end_ns, air_slots, late = send_unicasts(grid, facts, luck, d, settled_ns, unicast)
        outcome.air_slots[d, 2] = air_slots
        missed |= late
        end_ns = max(end_ns, unicasts_end_ns)

    done_ns = np.int64(-1)
    downlink_ns = broadcast_ns
    for c in range(num_clients):
        if facts.num_own[c] == 0:
            continue
        if facts.unicast_bytes[c] > 0:
            outcome.unicast_ns[d, c] = unicast[c] - settled_ns
        client_end_ns = unicast[c] + luck.backward_ns[d, c]
        received_ns = max(unicast[c], broadcast_ns)
        if client_end_ns > done_ns or (client_end_ns == done_ns and received_ns > downlink_ns):
            done_ns, downlink_ns = client_end_ns, received_ns
            outcome.stragglers[d, 1] = c
    end_ns = max(end_ns, done_ns)

    tiles = outcome.tiles_ns[d]
    tiles[0] = 2 * grid.control_latency_ns + end_ns - done_ns
    tiles[1] = permit_ns - start_ns
    tiles[2] = uplink_ready_ns - permit_ns
    tiles[3] = uplink_done_ns - uplink_ready_ns
    tiles[4] = forward_ns - uplink_done_ns
    tiles[5] = backward_ns - forward_ns
    tiles[6] = broadcast_ns - backward_ns
    tiles[7] = downlink_ns - broadcast_ns
    tiles[8] = done_ns - downlink_ns
    outcome.missed[d] = missed


@kernel
def simulate_rounds(grid: Grid, facts: Facts, luck: Luck, outcome: Outcome) -> None:
    """All draws of a round."""
    for d in range(len(outcome.missed)):
        simulate_round(grid, facts, luck, d, outcome)


@kernel
def simulate_moves(
    grid: Grid, facts: Facts, luck: Luck, deeper: bool, num_bytes: IntArray, outcome: Outcome
) -> None:
    """All draws of a cut move: its latency in the first tile, its stream in the first air slots.

    Parameters
    ----------
    num_bytes
        Of each client ``[C]``; deeper, all get those of the first at once.
    """
    num_clients = len(facts.num_own)
    start_ns = facts.plan_ns + grid.control_latency_ns
    sounded_ns = sounding_end_ns(grid, start_ns, facts.sounding_slots)
    complete = np.zeros(num_clients, np.int64)
    for d in range(len(outcome.missed)):
        end_ns = sounded_ns
        if deeper:
            # The server does not wait for what clients say of the sounding.
            end_ns, air_slots, late = send_broadcast(
                grid, facts, luck, d, MOVE, num_bytes[0], sounded_ns, complete
            )
            outcome.air_slots[d, 0] = air_slots
            outcome.missed[d] = late
        else:
            for c in range(num_clients):
                if facts.num_own[c] == 0:
                    continue
                ready_ns = sounded_ns + grid.ack_delay_ns
                _, answered_ns, air_slots, late = send_uplink(
                    grid, facts, luck, d, c, MOVE, num_bytes[c], ready_ns
                )
                end_ns = max(end_ns, answered_ns)
                outcome.air_slots[d, 0] += air_slots
                outcome.missed[d] |= late
        outcome.tiles_ns[d, 0] = end_ns - facts.plan_ns + grid.control_latency_ns
