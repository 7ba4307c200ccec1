"""Streams of bytes over granted subchannels: frames, acknowledgements, MCS, giving up.

Frames lie on a grid that all nodes share.  What is decided for a frame depends only on messages
that take effect before it starts, and every node can tell which those are, so each waits for
exactly them and virtual time needs no global order of arrival.

Uplink: one client sends, the server acknowledges each frame ``ack_delay`` after its end and sets
the MCS.  Downlink: the server sends to one client or to all, each client acknowledges, and the
server's answer sets the MCS one control latency later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nodes.context import NodeContext
from nodes.messages import (
    FrameAck,
    FrameControl,
    ReceptionReport,
    TransmissionReport,
    UplinkIntent,
)
from nodes.timeline import Resource
from radio.adaptation import LinkAdaptation, TrackedSnr
from radio.link import SelectiveRepeatReceiver, SelectiveRepeatSender
from radio.numerology import Numerology
from radio.phy import UNUSED, ReceivedSlots, block_bytes
from radio.units import linear_to_db

SNR_STEP_DB = 0.25  # resolution of reported SNRs
NO_SNR_DB = -99.0


def belongs_to(stream: str, frame: int) -> Callable[[FrameAck | FrameControl], bool]:
    """Whether a message speaks of this frame of this stream."""
    return lambda message: message.stream == stream and message.frame == frame


def settles(stream: str, frame: int) -> Callable[[FrameAck], bool]:
    """Whether an acknowledgement settles this frame, be it by giving the stream up."""
    return lambda ack: ack.stream == stream and (ack.frame == frame or ack.give_up)


def pack_places(places: set[tuple[int, int]], num_slots: int, num_subchannels: int) -> bytes:
    """Bitmap of decoded (slot, subchannel) places, slot-major."""
    bits = np.zeros((num_slots, num_subchannels), np.uint8)
    for place in places:
        bits[place] = 1
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


def unpack_places(bitmap: bytes, num_slots: int, num_subchannels: int) -> set[tuple[int, int]]:
    """Places of a bitmap; a short one lacks its tail."""
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")[: num_slots * num_subchannels]
    slots, subchannels = np.divmod(np.flatnonzero(bits), num_subchannels)
    return set(zip(slots.tolist(), subchannels.tolist(), strict=True))


@dataclass
class McsHistory:
    """Which MCS a frame has: the latest that took effect by its start, else the first."""

    entries: list[tuple[int, NDArray[np.int64]]]  # (takes effect [ns], [num_subchannels])

    def at(self, instant_ns: int) -> NDArray[np.int64]:
        current = self.entries[0][1]
        for takes_effect_ns, mcs in self.entries:
            if takes_effect_ns <= instant_ns:
                current = mcs
        return current


@dataclass
class SnrAverage:
    """Mean linear SNR per subchannel over the slots in which something was sent."""

    total: NDArray[np.float64]
    count: NDArray[np.float64]

    @classmethod
    def empty(cls, num_subchannels: int) -> SnrAverage:
        return cls(np.zeros(num_subchannels), np.zeros(num_subchannels))

    def add(self, received: ReceivedSlots) -> None:
        self.total += np.where(received.attempted, received.snr, 0.0).sum(axis=0)
        self.count += received.attempted.sum(axis=0)

    def mean_db(self, subchannels: tuple[int, ...]) -> tuple[float | None, ...]:
        return tuple(
            round(float(linear_to_db(self.total[k] / self.count[k])), 2)
            if self.count[k] and self.total[k]
            else None
            for k in subchannels
        )


def subchannel_array(
    num_subchannels: int, subchannels: tuple[int, ...], values: tuple[int, ...] | NDArray[np.int64]
) -> NDArray[np.int64]:
    """``[num_subchannels]`` with values where given and :data:`UNUSED` elsewhere."""
    array = np.full(num_subchannels, UNUSED, np.int64)
    array[list(subchannels)] = values
    return array


def fill_blocks(
    context: NodeContext,
    sender: SelectiveRepeatSender,
    frame: int,
    first_slot: int,
    subchannels: tuple[int, ...],
    mcs: NDArray[np.int64],
) -> dict[tuple[int, int], bytes]:
    """Blocks of one frame by (slot in frame, subchannel)."""
    used = [k for k in subchannels if mcs[k] != UNUSED]
    # Strong subchannels first: a half-empty slot leaves the weak ones out.
    used.sort(key=lambda k: (-int(mcs[k]), k))
    capacity = {k: block_bytes(context.numerology, int(mcs[k])) for k in used}
    blocks: dict[tuple[int, int], bytes] = {}
    for slot in range(first_slot, context.numerology.slots_per_frame):
        for k in used:
            block = sender.next_block((frame, slot, k), capacity[k])
            if block is None:
                return blocks
            blocks[(slot, k)] = block
    return blocks


async def announceable_slot(context: NodeContext, slot: int) -> int:
    """The first slot from ``slot`` on that can still be announced in time."""
    numerology, lead_ns = context.numerology, context.clock.lead_ns
    # A lead earlier than needed: who sleeps on the wall wakes up a little late.
    now_ns = await context.clock.reach(numerology.slot_start_ns(slot) - 2 * lead_ns)
    return max(slot, numerology.next_slot(now_ns + lead_ns))


# ------------------------------------------------------------------------------------------ uplink
@dataclass
class UplinkOutcome:
    report: TransmissionReport
    end_ns: int
    complete: bool


async def client_send(
    context: NodeContext,
    round_index: int,
    stream: str,
    payload: bytes,
    ready_ns: int,
    subchannels: tuple[int, ...],
    psd_w_per_hz: tuple[float, ...],
    permit: tuple[int, tuple[int, ...]],
    tag: int,
) -> UplinkOutcome:
    """Send a stream to the server on granted subchannels until it has everything or gives up.

    Parameters
    ----------
    permit
        (instant [ns], MCS index per granted subchannel) with which the stream starts.
    """
    numerology, server = context.numerology, context.setup.server
    num = numerology.num_subchannels
    slots = numerology.slots_per_frame
    sender = SelectiveRepeatSender(payload, tag, [server])
    history = McsHistory([(permit[0], subchannel_array(num, subchannels, permit[1]))])
    amplitude = np.zeros(num)
    amplitude[list(subchannels)] = context.amplitude(context.name, np.array(psd_w_per_hz))

    start_ns = await context.clock.reach(max(ready_ns, permit[0]))
    first_slot = numerology.next_slot(start_ns + context.clock.lead_ns)
    await context.endpoint.send(
        server, UplinkIntent(stream, first_slot), round_index=round_index, at_ns=start_ns
    )
    position = first_slot
    first_sent_ns: int | None = None
    last_sent_ns = numerology.slot_start_ns(first_slot)
    gave_up = False
    end_ns = start_ns
    promised_ns = start_ns  # until then this client has spoken, whatever it hears meanwhile
    while not gave_up and not sender.done:
        position = await announceable_slot(context, position)
        in_flight = sender.frames_in_flight()
        if in_flight and not sender.has_unsent:
            # Nothing to say before the next acknowledgement, so be silent until it is there.
            answer_ns = numerology.frame_start_ns(in_flight[0] + 1) + context.link.ack_delay_ns
            position = max(position, numerology.next_slot(answer_ns))
            await context.radio.silent_until(position * numerology.slot_samples)
        position_ns = numerology.slot_start_ns(position)
        for frame in in_flight:
            if numerology.frame_start_ns(frame + 1) + context.link.ack_delay_ns > position_ns:
                break
            ack, envelope = await context.endpoint.take(
                FrameAck,
                server,
                round_index=round_index,
                timeout_s=context.wait_s,
                accepts=settles(stream, frame),
                what=f"acknowledgement of frame {frame} of {stream}",
            )
            sender.acknowledge(frame, [unpack_places(ack.received, slots, num)])
            end_ns = max(end_ns, envelope.takes_effect_ns)
            if ack.mcs_index:
                history.entries.append(
                    (envelope.takes_effect_ns, subchannel_array(num, subchannels, ack.mcs_index))
                )
            if ack.give_up:
                gave_up = True
                break
        if gave_up or not sender.has_unsent:
            continue
        # Acknowledgements may have taken their time on the wall: announce anew.
        announced = await announceable_slot(context, position)
        if announced != position:
            position = announced
            continue
        frame, offset = divmod(position, slots)
        mcs = history.at(numerology.frame_start_ns(frame))
        at_sample = position * numerology.slot_samples
        with context.ledger.account("modem"):
            blocks = fill_blocks(context, sender, frame, offset, subchannels, mcs)
            used = max(slot for slot, _ in blocks) + 1 - offset
            shifted = {(slot - offset, k): block for (slot, k), block in blocks.items()}
        end_sample = (frame + 1) * numerology.frame_samples
        num_samples = await context.modem.send_slots(
            position, used, shifted, mcs, amplitude, silent_until=end_sample, cfo_hz=context.cfo_hz
        )
        promised_ns = numerology.samples_to_ns(end_sample)
        sender.report.airtime_samples += num_samples
        sender.report.frames += 1
        if first_sent_ns is None:
            first_sent_ns = numerology.samples_to_ns(at_sample)
        last_sent_ns = numerology.samples_to_ns(at_sample + num_samples)
        position = (frame + 1) * slots
    if gave_up:
        # The frame that was on its way when the word came occupies its time: no round starts in it.
        end_ns = max(end_ns, promised_ns)
    await context.radio.stand_down()
    if first_sent_ns is not None:
        context.timeline.add(
            stream,
            Resource.TRANSMITTER,
            first_sent_ns,
            last_sent_ns,
            bytes=len(payload),
            airtime_ns=numerology.samples_to_ns(sender.report.airtime_samples),
        )
    report = stream_report(
        context, sender, stream, (server,), subchannels, history, first_sent_ns, last_sent_ns, not gave_up
    )
    return UplinkOutcome(report, end_ns, not gave_up)


def stream_report(
    context: NodeContext,
    sender: SelectiveRepeatSender,
    stream: str,
    receivers: tuple[str, ...],
    subchannels: tuple[int, ...],
    history: McsHistory,
    first_ns: int | None,
    last_ns: int,
    complete: bool,
) -> TransmissionReport:
    numbers = sender.report
    seconds = (last_ns - first_ns) / 1e9 if first_ns is not None else 0.0
    last_mcs = history.entries[-1][1]
    return TransmissionReport(
        stream=stream,
        transmitter=context.name,
        receivers=receivers,
        subchannels=subchannels,
        payload_bytes=numbers.sent_bytes,
        blocks_sent=numbers.blocks_sent,
        blocks_failed=numbers.blocks_failed,
        blocks_retransmitted=numbers.blocks_retransmitted,
        airtime_ns=context.numerology.samples_to_ns(numbers.airtime_samples),
        frames=numbers.frames,
        complete=complete,
        mcs_index=tuple(int(last_mcs[k]) for k in subchannels),
        goodput_bps=8 * numbers.sent_bytes / seconds if complete and seconds > 0 else None,
    )


@dataclass
class Incoming:
    """One client's stream as the server receives it."""

    client: str
    subchannels: tuple[int, ...]
    receiver: SelectiveRepeatReceiver
    adaptation: LinkAdaptation
    history: McsHistory
    first_slot: int
    complete_ns: int | None = None
    failure: str = ""
    idle_frames: int = 0
    blocks_ok: int = 0
    blocks_failed: int = 0
    blocks_combined: int = 0
    tracked: TrackedSnr = field(default_factory=lambda: TrackedSnr.empty(0))
    snr: SnrAverage = field(default_factory=lambda: SnrAverage.empty(0))
    evm: list[float] = field(default_factory=list)

    @property
    def open(self) -> bool:
        return self.complete_ns is None and not self.failure

    def report(self, stream: str, receiver: str) -> ReceptionReport:
        return ReceptionReport(
            stream=stream,
            transmitter=self.client,
            receiver=receiver,
            received_bytes=self.receiver.received_bytes,
            blocks_ok=self.blocks_ok,
            blocks_failed=self.blocks_failed,
            blocks_refused=self.receiver.refused_blocks,
            mean_snr_db=self.snr.mean_db(self.subchannels),
            evm=float(np.mean(self.evm)) if self.evm else None,
            complete_ns=self.complete_ns,
            failure=self.failure,
            blocks_combined=self.blocks_combined,
        )


async def server_receive(
    context: NodeContext,
    round_index: int,
    stream: str,
    incoming: dict[str, Incoming],
    order: tuple[str, ...],
    deadline_ns: int,
) -> None:
    """Receive the streams of several clients at once; each ends complete or with a failure in words.

    Parameters
    ----------
    incoming
        By client; changed in place.
    order
        Clients of the run; their positions number the owners of subchannels.
    """
    numerology = context.numerology
    num, slots = numerology.num_subchannels, numerology.slots_per_frame
    for state in incoming.values():
        state.snr = SnrAverage.empty(num)
        state.tracked = TrackedSnr.empty(num)
    if not any(state.open for state in incoming.values()):
        return
    first_slot = min(state.first_slot for state in incoming.values() if state.open)
    # What lies before was heard as sounding, or by nobody: a receiver asks for each sample once.
    frame, offset = divmod(first_slot, slots)
    first_ns = numerology.slot_start_ns(first_slot)
    memory = context.modem.new_memory(order.index(name) for name in incoming)
    while any(state.open for state in incoming.values()):
        active = {name: state for name, state in incoming.items() if state.open}
        frame_ns = numerology.frame_start_ns(frame)
        owner = np.full(num, UNUSED, np.int64)
        mcs = np.full(num, UNUSED, np.int64)
        for name, state in active.items():
            chosen = list(state.subchannels)
            owner[chosen] = order.index(name)
            mcs[chosen] = state.history.at(frame_ns)[chosen]
        position = frame * slots + offset
        received = await context.modem.receive_slots(
            position,
            slots - offset,
            mcs,
            owner,
            expected=frozenset(name for name in active if name not in context.endpoint.lost),
            timeout_s=context.wait_s,
            memory=memory,
        )
        with context.ledger.account("modem"):
            decoded = {
                name: _take_blocks(numerology, received, state, frame, offset)
                for name, state in active.items()
            }
            for state in active.values():
                _note_quality(received, state)
        end_ns = numerology.frame_start_ns(frame + 1)
        ack_ns = await context.clock.reach(end_ns + context.link.ack_delay_ns)
        for name, state in active.items():
            places = decoded[name]
            lost = context.endpoint.lost.get(name)
            if lost is not None:
                state.failure = f"{name} is lost: {lost}"
                continue
            state.idle_frames = 0 if places or frame * slots < state.first_slot else state.idle_frames + 1
            if state.open and state.idle_frames >= context.link.stall_frames:
                state.failure = (
                    f"nothing of {name} decoded in {state.idle_frames} frames; "
                    f"{state.receiver.received_bytes} bytes of its {stream} had arrived"
                )
            elif state.open and end_ns > deadline_ns:
                state.failure = (
                    f"{name} missed the round's deadline with {state.receiver.received_bytes} bytes of "
                    f"its {stream}"
                )
            with context.ledger.account("modem"):
                next_mcs = _adapt(context, received, state)
                bitmap = pack_places(places, slots, num)
            state.history.entries.append((ack_ns, subchannel_array(num, state.subchannels, next_mcs)))
            await context.endpoint.send(
                name,
                FrameAck(
                    stream,
                    frame,
                    bitmap,
                    complete=state.complete_ns is not None,
                    give_up=bool(state.failure),
                    mcs_index=tuple(int(value) for value in next_mcs),
                ),
                round_index=round_index,
                at_ns=ack_ns,
            )
        frame, offset = frame + 1, 0
    context.timeline.add(stream, Resource.RECEIVER, first_ns, numerology.frame_start_ns(frame), frames=frame)


def _take_blocks(
    numerology: Numerology, received: ReceivedSlots, state: Incoming, frame: int, offset: int
) -> set[tuple[int, int]]:
    """Give a client's decoded blocks to its stream; note the slot that completes it.

    Returns the (slot in frame, subchannel) places; what was received begins with slot ``offset``.
    """
    mine = set(state.subchannels)
    places = set()
    for (slot, k), block in sorted(received.blocks.items()):
        if k in mine and state.receiver.accept(block):
            places.add((slot + offset, k))
            if state.complete_ns is None and state.receiver.complete:
                end_slot = frame * numerology.slots_per_frame + slot + offset + 1
                state.complete_ns = numerology.slot_start_ns(end_slot)
    return places


def _note_quality(received: ReceivedSlots, state: Incoming) -> None:
    mask = np.zeros(received.attempted.shape[1], bool)
    mask[list(state.subchannels)] = True
    attempted = received.attempted & mask
    ok = sum(1 for _, k in received.blocks if mask[k])
    state.blocks_ok += ok
    state.blocks_combined += sum(1 for _, k in received.combined if mask[k])
    state.blocks_failed += int(attempted.sum()) - ok
    state.snr.total += np.where(attempted, received.snr, 0.0).sum(axis=0)
    state.snr.count += attempted.sum(axis=0)
    if np.isfinite(received.evm):
        state.evm.append(received.evm)


def _adapt(context: NodeContext, received: ReceivedSlots, state: Incoming) -> NDArray[np.int64]:
    """MCS of a client's subchannels after a frame; unchanged when nothing was heard."""
    chosen = list(state.subchannels)
    attempted = received.attempted[:, chosen]
    current = state.history.entries[-1][1][chosen]
    if not attempted.any():
        return current
    state.adaptation.observe_slots(*_outcomes(received, chosen))
    heard = attempted.any(axis=0)
    snr = np.where(attempted, received.snr[:, chosen], 0.0).sum(axis=0) / np.maximum(attempted.sum(axis=0), 1)
    own = np.array(chosen)
    state.tracked.add(own[heard], snr[heard])
    proposal = state.adaptation.choose(state.tracked.snr[own], context.numerology.block_resource_elements)
    return np.where(heard, proposal, current)


def _outcomes(received: ReceivedSlots, subchannels: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Decoded and failed blocks of each slot in some subchannels, each ``[num_slots]``."""
    decoded = np.zeros(received.attempted.shape, bool)
    for place in received.blocks:
        decoded[place] = True
    num_ok = decoded[:, subchannels].sum(axis=1)
    return num_ok, received.attempted[:, subchannels].sum(axis=1) - num_ok
