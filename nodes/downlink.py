"""Downlink streams: one to all clients, or one to each on its own subchannels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nodes.context import NodeContext
from nodes.errors import PeerLostError
from nodes.messages import DownlinkStart, FrameAck, FrameControl, ReceptionReport, TransmissionReport
from nodes.streams import (
    NO_SNR_DB,
    SNR_STEP_DB,
    McsHistory,
    SnrAverage,
    announceable_slot,
    belongs_to,
    fill_blocks,
    pack_places,
    stream_report,
    subchannel_array,
    unpack_places,
)
from nodes.timeline import Resource
from radio.adaptation import LinkAdaptation, TrackedSnr
from radio.link import SelectiveRepeatReceiver, SelectiveRepeatSender
from radio.phy import UNUSED
from radio.units import db_to_linear, linear_to_db


@dataclass
class ClientDownlink:
    """What the server knows of one client's downlink, over the rounds.

    Attributes
    ----------
    tracked
        SNRs that the client has reported since the latest sounding.
    """

    adaptation: LinkAdaptation
    tracked: TrackedSnr


@dataclass
class Outgoing:
    """One downlink stream as the server sends it: to one client, or the same to several."""

    stream: str
    sender: SelectiveRepeatSender
    subchannels: tuple[int, ...]
    history: McsHistory = field(default_factory=lambda: McsHistory([]))
    failures: dict[str, str] = field(default_factory=dict)
    idle_frames: dict[str, int] = field(default_factory=dict)
    first_sent_ns: int | None = None
    last_sent_ns: int = 0

    @property
    def has_unsent(self) -> bool:
        """Somebody is left who misses bytes that are not on their way."""
        return bool(self.sender.receivers) and self.sender.has_unsent


def _choose_mcs(
    context: NodeContext,
    outgoing: Outgoing,
    downlinks: dict[str, ClientDownlink],
    receivers: set[str],
) -> NDArray[np.int64]:
    """MCS per subchannel of the stream: that of the client which is weakest there."""
    chosen = list(outgoing.subchannels)
    proposals = [
        downlinks[name].adaptation.choose(
            downlinks[name].tracked.snr[chosen], context.numerology.block_resource_elements
        )
        for name in sorted(receivers)
    ]
    if not proposals:
        return outgoing.history.entries[-1][1]
    weakest = np.min(proposals, axis=0)
    if np.all(weakest == UNUSED):
        # Every subchannel is lost to somebody: take the one where the worst client hears best.
        floor = np.min([downlinks[name].tracked.snr[chosen] for name in sorted(receivers)], axis=0)
        weakest[int(np.argmax(floor))] = 0
    return subchannel_array(context.numerology.num_subchannels, outgoing.subchannels, weakest)


async def server_send(
    context: NodeContext,
    round_index: int,
    streams: list[Outgoing],
    downlinks: dict[str, ClientDownlink],
    ready_ns: int,
    psd_w_per_hz: float,
    deadline_ns: int,
) -> tuple[list[TransmissionReport], int]:
    """Send streams on disjoint subchannels at once until each is acknowledged or given up.

    Returns
    -------
    reports
        One per stream; ``receivers`` are those that were served to the end.
    end_ns
        When the last acknowledgement was known and the transmitter is free.
    """
    numerology, link = context.numerology, context.link
    num, slots = numerology.num_subchannels, numerology.slots_per_frame
    amplitude = np.repeat(context.amplitude(context.name, np.array([psd_w_per_hz])), num)
    start_ns = await context.clock.reach(ready_ns)
    permit_ns = start_ns + link.control_latency_ns
    first_slot = numerology.next_slot(permit_ns + context.clock.lead_ns)
    for outgoing in streams:
        outgoing.history = McsHistory([(permit_ns, np.full(num, UNUSED, np.int64))])
        mcs = _choose_mcs(context, outgoing, downlinks, outgoing.sender.receivers)
        outgoing.history = McsHistory([(permit_ns, mcs)])
        for name in sorted(outgoing.sender.receivers):
            outgoing.idle_frames[name] = 0
            await context.endpoint.send(
                name,
                DownlinkStart(
                    outgoing.stream,
                    first_slot,
                    outgoing.subchannels,
                    tuple(int(mcs[k]) for k in outgoing.subchannels),
                ),
                round_index=round_index,
                at_ns=permit_ns,
            )
    position = first_slot
    unsettled: list[int] = []  # frames that clients listen to and whose acknowledgements are open
    listed = first_slot // slots  # frames before this one are settled or among the unsettled
    end_ns = permit_ns
    while any(outgoing.sender.receivers for outgoing in streams):
        position = await announceable_slot(context, position)
        unsent = any(outgoing.has_unsent for outgoing in streams)
        if unsettled and not unsent:
            # Nothing to say before the next acknowledgements, so be silent until they are there.
            answer_ns = numerology.frame_start_ns(unsettled[0] + 1) + link.ack_delay_ns
            position = max(position, numerology.next_slot(answer_ns))
            await context.radio.silent_until(position * numerology.slot_samples)
        unsettled.extend(range(listed, position // slots))
        listed = position // slots
        position_ns = numerology.slot_start_ns(position)
        while unsettled:
            due_ns = numerology.frame_start_ns(unsettled[0] + 1) + link.ack_delay_ns
            if due_ns > position_ns:
                break
            settled = unsettled.pop(0)
            for outgoing in streams:
                end_ns = await _settle(
                    context, round_index, outgoing, downlinks, settled, due_ns, end_ns, deadline_ns
                )
        if not any(outgoing.has_unsent for outgoing in streams):
            continue
        # Acknowledgements may have taken their time on the wall: announce anew.
        announced = await announceable_slot(context, position)
        if announced != position:
            position = announced
            continue
        frame, offset = divmod(position, slots)
        frame_ns = numerology.frame_start_ns(frame)
        with context.ledger.account("modem"):
            num_slots, blocks, mcs = _fill_frame(context, streams, frame, offset, frame_ns)
        await context.modem.send_slots(
            position,
            num_slots,
            blocks,
            mcs,
            amplitude,
            silent_until=(frame + 1) * numerology.frame_samples,
        )
        unsettled.append(frame)
        listed = frame + 1
        position = listed * slots
    # What was announced stands: a repetition that turned out to be needless occupies its frame.
    end_ns = max(end_ns, numerology.slot_start_ns(position))
    reports = []
    for outgoing in streams:
        served = tuple(sorted(set(outgoing.idle_frames) - set(outgoing.failures)))
        reports.append(
            stream_report(
                context,
                outgoing.sender,
                outgoing.stream,
                served,
                outgoing.subchannels,
                outgoing.history,
                outgoing.first_sent_ns,
                outgoing.last_sent_ns,
                not outgoing.failures,
            )
        )
        if outgoing.first_sent_ns is not None:
            context.timeline.add(
                outgoing.stream,
                Resource.TRANSMITTER,
                outgoing.first_sent_ns,
                outgoing.last_sent_ns,
                bytes=outgoing.sender.report.sent_bytes,
            )
    return reports, end_ns


def _fill_frame(
    context: NodeContext, streams: list[Outgoing], frame: int, offset: int, frame_ns: int
) -> tuple[int, dict[tuple[int, int], bytes], NDArray[np.int64]]:
    """What all streams have to say in a frame, from a slot of it on: slots, blocks, MCS by subchannel."""
    numerology = context.numerology
    slots = numerology.slots_per_frame
    blocks: dict[tuple[int, int], bytes] = {}
    mcs = np.full(numerology.num_subchannels, UNUSED, np.int64)
    for outgoing in streams:
        if not outgoing.has_unsent:
            continue
        current = outgoing.history.at(frame_ns)
        chosen = list(outgoing.subchannels)
        mcs[chosen] = current[chosen]
        own = fill_blocks(context, outgoing.sender, frame, offset, outgoing.subchannels, current)
        for (slot, k), block in own.items():
            blocks[(slot - offset, k)] = block
        used = {slot for slot, _ in own}
        outgoing.sender.report.airtime_samples += len(used) * numerology.slot_samples
        outgoing.sender.report.frames += 1
        if outgoing.first_sent_ns is None:
            outgoing.first_sent_ns = numerology.slot_start_ns(frame * slots + offset)
        outgoing.last_sent_ns = numerology.slot_start_ns(frame * slots + max(used) + 1)
    num_slots = max(slot for slot, _ in blocks) + 1
    return num_slots, blocks, mcs


def _by_slot(places: set[tuple[int, int]], num_slots: int) -> NDArray[np.int64]:
    """How many of some (slot, subchannel) places lie in each slot."""
    return np.bincount([slot for slot, _ in places], minlength=num_slots).astype(np.int64)


async def _settle(
    context: NodeContext,
    round_index: int,
    outgoing: Outgoing,
    downlinks: dict[str, ClientDownlink],
    frame: int,
    due_ns: int,
    end_ns: int,
    deadline_ns: int,
) -> int:
    """Take the acknowledgements of a frame from all receivers left, answer them, adapt."""
    numerology, link = context.numerology, context.link
    num, slots = numerology.num_subchannels, numerology.slots_per_frame
    receivers = sorted(outgoing.sender.receivers)
    if not receivers:
        return end_ns
    takes_effect_ns = due_ns
    received: dict[str, set[tuple[int, int]]] = {}
    sent = outgoing.sender.places(frame)
    complete = set()
    for name in receivers:
        try:
            ack, envelope = await context.endpoint.take(
                FrameAck,
                name,
                round_index=round_index,
                timeout_s=context.wait_s,
                accepts=belongs_to(outgoing.stream, frame),
                what=f"acknowledgement of frame {frame} of {outgoing.stream}",
            )
        except PeerLostError as exc:
            outgoing.failures[name] = str(exc)
            outgoing.sender.give_up(name)
            continue
        takes_effect_ns = max(takes_effect_ns, envelope.takes_effect_ns)
        with context.ledger.account("modem"):
            places = unpack_places(ack.received, slots, num)
            downlink = downlinks[name]
            downlink.adaptation.observe_slots(_by_slot(sent & places, slots), _by_slot(sent - places, slots))
            heard = [
                (k, snr_db)
                for k, snr_db in zip(outgoing.subchannels, ack.snr_db, strict=False)
                if snr_db != NO_SNR_DB
            ]
            if heard:
                subchannels, snrs_db = zip(*heard, strict=True)
                downlink.tracked.add(np.array(subchannels), np.asarray(db_to_linear(np.array(snrs_db))))
        received[name] = places
        if ack.complete:
            complete.add(name)
        idle = 0 if places else outgoing.idle_frames[name] + 1
        outgoing.idle_frames[name] = idle
        if ack.complete:
            continue
        if idle >= link.stall_frames:
            outgoing.failures[name] = f"nothing of {outgoing.stream} reached {name} in {idle} frames"
        elif due_ns > deadline_ns:
            outgoing.failures[name] = f"{outgoing.stream} to {name} missed the round's deadline"
    for name in complete | (set(outgoing.failures) & set(received)):
        outgoing.sender.give_up(name)
    waiting = [received[name] for name in sorted(outgoing.sender.receivers)]
    answer_ns = takes_effect_ns + link.control_latency_ns
    with context.ledger.account("modem"):
        outgoing.sender.acknowledge(frame, waiting)
        mcs = _choose_mcs(context, outgoing, downlinks, outgoing.sender.receivers)
    outgoing.history.entries.append((answer_ns, mcs))
    for name in sorted(set(received) - complete):
        await context.endpoint.send(
            name,
            FrameControl(
                outgoing.stream,
                frame,
                tuple(int(mcs[k]) for k in outgoing.subchannels),
                give_up=name in outgoing.failures,
            ),
            round_index=round_index,
            at_ns=answer_ns,
        )
    return max(end_ns, takes_effect_ns)


@dataclass
class DownlinkOutcome:
    """A stream as one client received it.

    Attributes
    ----------
    complete_ns
        End of the slot that completed it; ``None`` when it was given up.
    """

    receiver: SelectiveRepeatReceiver
    complete_ns: int | None
    failure: str
    snr: SnrAverage
    blocks_ok: int
    blocks_failed: int
    evm: float | None
    blocks_combined: int = 0
    end_ns: int = 0
    subchannels: tuple[int, ...] = ()

    def report(self, stream: str, transmitter: str, receiver: str) -> ReceptionReport:
        return ReceptionReport(
            stream=stream,
            transmitter=transmitter,
            receiver=receiver,
            received_bytes=self.receiver.received_bytes,
            blocks_ok=self.blocks_ok,
            blocks_failed=self.blocks_failed,
            blocks_refused=self.receiver.refused_blocks,
            mean_snr_db=self.snr.mean_db(self.subchannels),
            evm=self.evm,
            complete_ns=self.complete_ns,
            failure=self.failure,
            blocks_combined=self.blocks_combined,
        )


async def client_receive(
    context: NodeContext,
    round_index: int,
    stream: str,
    tag: int,
    max_bytes: int,
) -> DownlinkOutcome:
    """Receive one stream from the server and acknowledge its frames."""
    numerology, link, server = context.numerology, context.link, context.setup.server
    num, slots = numerology.num_subchannels, numerology.slots_per_frame
    start, envelope = await context.endpoint.take(
        DownlinkStart,
        server,
        round_index=round_index,
        timeout_s=context.wait_s,
        accepts=lambda start: start.stream == stream,
        what=f"the start of {stream}",
    )
    subchannels = start.subchannels
    history = McsHistory([(envelope.takes_effect_ns, subchannel_array(num, subchannels, start.mcs_index))])
    owner = subchannel_array(num, subchannels, (0,) * len(subchannels))
    outcome = DownlinkOutcome(
        SelectiveRepeatReceiver(tag, max_bytes), None, "", SnrAverage.empty(num), 0, 0, None
    )
    memory = context.modem.new_memory((0,))
    frame, offset = divmod(start.first_slot, slots)
    unanswered: list[tuple[int, int]] = []  # (frame, when the server's answer takes effect)
    evms: list[float] = []
    first_ns = numerology.slot_start_ns(start.first_slot)
    while True:
        frame_ns = numerology.frame_start_ns(frame)
        while unanswered and unanswered[0][1] <= frame_ns:
            earlier, _ = unanswered.pop(0)
            control, answer = await context.endpoint.take(
                FrameControl,
                server,
                round_index=round_index,
                timeout_s=context.wait_s,
                accepts=belongs_to(stream, earlier),
                what=f"the answer to frame {earlier} of {stream}",
            )
            if control.give_up:
                outcome.failure = f"the server gave up {stream} to {context.name}"
                break
            history.entries.append(
                (answer.takes_effect_ns, subchannel_array(num, subchannels, control.mcs_index))
            )
        if outcome.failure:
            break
        received = await context.modem.receive_slots(
            frame * slots + offset,
            slots - offset,
            history.at(frame_ns),
            owner,
            expected=frozenset({server}),
            timeout_s=context.wait_s,
            cfo_hz=context.cfo_hz,
            memory=memory,
        )
        with context.ledger.account("modem"):
            received.blocks = {(slot + offset, k): block for (slot, k), block in received.blocks.items()}
            places = set()
            for (slot, k), block in sorted(received.blocks.items()):
                if outcome.receiver.accept(block):
                    places.add((slot, k))
                    if outcome.complete_ns is None and outcome.receiver.complete:
                        outcome.complete_ns = numerology.slot_start_ns(frame * slots + slot + 1)
            outcome.snr.add(received)
            outcome.blocks_ok += len(received.blocks)
            outcome.blocks_combined += len(received.combined)
            outcome.blocks_failed += int(received.attempted.sum()) - len(received.blocks)
            if np.isfinite(received.evm):
                evms.append(received.evm)
            snr_db = _report_snr(received.snr, received.attempted, subchannels)
            bitmap = pack_places(places, slots, num)
        ack_ns = await context.clock.reach(numerology.frame_start_ns(frame + 1) + link.ack_delay_ns)
        await context.endpoint.send(
            server,
            FrameAck(
                stream,
                frame,
                bitmap,
                complete=outcome.complete_ns is not None,
                snr_db=snr_db,
            ),
            round_index=round_index,
            at_ns=ack_ns,
        )
        unanswered.append((frame, ack_ns + link.control_latency_ns))
        frame, offset = frame + 1, 0
        if outcome.complete_ns is not None:
            break
    outcome.evm = float(np.mean(evms)) if evms else None
    end_ns = outcome.complete_ns or numerology.frame_start_ns(frame)
    outcome.end_ns, outcome.subchannels = end_ns, subchannels
    context.timeline.add(stream, Resource.RECEIVER, first_ns, end_ns, bytes=outcome.receiver.received_bytes)
    return outcome


def _report_snr(
    snr: NDArray[np.float32], attempted: NDArray[np.bool_], subchannels: tuple[int, ...]
) -> tuple[float, ...]:
    """SNR [dB] of each subchannel over the slots that held something, in coarse steps."""
    values = []
    for k in subchannels:
        heard = attempted[:, k]
        mean = float(snr[heard, k].mean()) if heard.any() else 0.0
        values.append(round(float(linear_to_db(mean)) / SNR_STEP_DB) * SNR_STEP_DB if mean > 0 else NO_SNR_DB)
    return tuple(values)
