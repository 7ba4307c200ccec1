"""A round by the nodes' own link code, without radios and processes: slow, plain, and in one place.

Senders, receivers, frame filling and the choice of MCS are those of the protocol; the loops around
them follow the roles line by line.  What is lost is asked of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from nodes.downlink import ClientDownlink, _choose_mcs
from nodes.streams import fill_blocks, subchannel_array
from radio.adaptation import LinkAdaptation, TrackedSnr
from radio.link import SelectiveRepeatReceiver, SelectiveRepeatSender
from radio.numerology import Numerology
from radio.phy import UNUSED

Lost = Callable[[int], bool]  # whether the n-th block of a stream is lost to a receiver


@dataclass
class Stream:
    """One stream, its receivers, and what became of it."""

    num_bytes: int
    subchannels: tuple[int, ...]
    mcs: np.ndarray  # [num_subchannels]
    lost: Mapping[str, Lost]
    air_slots: int = 0
    complete_ns: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        payload = np.random.default_rng(self.num_bytes).bytes(self.num_bytes)
        self.sender = SelectiveRepeatSender(payload, 1, self.lost)
        self.receivers = {name: SelectiveRepeatReceiver(1, self.num_bytes) for name in self.lost}
        self.places: dict[int, dict[str, set[tuple[int, int]]]] = {}

    def send(self, numerology: Numerology, frame: int, offset: int) -> None:
        """Compose a frame and let every receiver that still listens decode what it does not lose."""
        context: Any = SimpleNamespace(numerology=numerology)
        number = self.sender.report.blocks_sent
        blocks = fill_blocks(context, self.sender, frame, offset, self.subchannels, self.mcs)
        self.air_slots += len({slot for slot, _ in blocks})
        decoded: dict[str, set[tuple[int, int]]] = {name: set() for name in self.receivers}
        listening = set(self.receivers) - set(self.complete_ns)
        for (slot, k), block in blocks.items():
            for name in sorted(listening):
                if self.lost[name](number):
                    continue
                assert self.receivers[name].accept(block)
                decoded[name].add((slot, k))
                if self.receivers[name].complete and name not in self.complete_ns:
                    end = frame * numerology.slots_per_frame + slot + 1
                    self.complete_ns[name] = numerology.slot_start_ns(end)
            number += 1
        self.places[frame] = decoded

    def payloads_agree(self) -> bool:
        sent = np.random.default_rng(self.num_bytes).bytes(self.num_bytes)
        return all(receiver.payload() == sent for receiver in self.receivers.values())


def uplink(numerology: Numerology, ack_delay_ns: int, stream: Stream, ready_ns: int) -> int:
    """Run one client's stream as ``client_send`` does; when its last acknowledgement was there."""
    slots = numerology.slots_per_frame
    sender = stream.sender
    position = numerology.next_slot(ready_ns)
    end_ns = ready_ns
    while not sender.done:
        in_flight = sender.frames_in_flight()
        if in_flight and not sender.has_unsent:
            answer_ns = numerology.frame_start_ns(in_flight[0] + 1) + ack_delay_ns
            position = max(position, numerology.next_slot(answer_ns))
        for frame in in_flight:
            due_ns = numerology.frame_start_ns(frame + 1) + ack_delay_ns
            if due_ns > numerology.slot_start_ns(position):
                break
            sender.acknowledge(frame, stream.places[frame].values())
            end_ns = due_ns
        if sender.has_unsent:
            frame, offset = divmod(position, slots)
            stream.send(numerology, frame, offset)
            position = (frame + 1) * slots
    return end_ns


def downlink(
    numerology: Numerology,
    ack_delay_ns: int,
    control_latency_ns: int,
    streams: Sequence[Stream],
    ready_ns: int,
) -> int:
    """Run streams as ``server_send`` does; when the transmitter is free and all is acknowledged."""
    slots = numerology.slots_per_frame
    position = numerology.next_slot(ready_ns + control_latency_ns)
    unsettled: list[int] = []
    listed = position // slots
    end_ns = ready_ns + control_latency_ns

    def unsent() -> bool:
        return any(stream.sender.receivers and stream.sender.has_unsent for stream in streams)

    while any(stream.sender.receivers for stream in streams):
        if unsettled and not unsent():
            answer_ns = numerology.frame_start_ns(unsettled[0] + 1) + ack_delay_ns
            position = max(position, numerology.next_slot(answer_ns))
        unsettled.extend(range(listed, position // slots))
        listed = position // slots
        while unsettled:
            due_ns = numerology.frame_start_ns(unsettled[0] + 1) + ack_delay_ns
            if due_ns > numerology.slot_start_ns(position):
                break
            frame = unsettled.pop(0)
            for stream in streams:
                if not stream.sender.receivers:
                    continue
                for name in sorted(stream.sender.receivers):
                    if stream.complete_ns.get(name, 2**62) <= numerology.frame_start_ns(frame + 1):
                        stream.sender.give_up(name)
                places = stream.places.get(frame, {})
                waiting = [places.get(name, set()) for name in sorted(stream.sender.receivers)]
                stream.sender.acknowledge(frame, waiting)
                end_ns = max(end_ns, due_ns)
        if not unsent():
            continue
        frame, offset = divmod(position, slots)
        for stream in streams:
            if stream.sender.receivers and stream.sender.has_unsent:
                stream.send(numerology, frame, offset)
        unsettled.append(frame)
        listed = frame + 1
        position = listed * slots
    return max(end_ns, numerology.slot_start_ns(position))


def uplink_mcs(
    numerology: Numerology, snr_db: np.ndarray, margin_db: float, subchannels: tuple[int, ...]
) -> np.ndarray:
    """MCS of a client's subchannels ``[num_subchannels]``, as the permit after sounding says it."""
    chosen = LinkAdaptation(0.1, margin_db).choose(
        10 ** (snr_db[list(subchannels)] / 10), numerology.block_resource_elements
    )
    return subchannel_array(numerology.num_subchannels, subchannels, chosen)


def downlink_mcs(
    numerology: Numerology,
    snr_db: Mapping[str, np.ndarray],
    margin_db: Mapping[str, float],
    subchannels: tuple[int, ...],
) -> np.ndarray:
    """MCS of a downlink stream to these receivers ``[num_subchannels]``."""
    context: Any = SimpleNamespace(numerology=numerology)
    outgoing: Any = SimpleNamespace(subchannels=subchannels)
    downlinks = {
        name: ClientDownlink(
            LinkAdaptation(0.1, margin_db[name]),
            TrackedSnr(10 ** (values / 10), np.ones(len(values), np.int64)),
        )
        for name, values in snr_db.items()
    }
    return _choose_mcs(context, outgoing, downlinks, set(downlinks))


def sounding_end_ns(numerology: Numerology, start_ns: int, turnaround_ns: int, num_clients: int) -> int:
    """End of the sounding that starts at or after an instant."""
    downlink_slot = numerology.next_slot(start_ns)
    ready_ns = numerology.slot_start_ns(downlink_slot + 1) + turnaround_ns
    return numerology.slot_start_ns(numerology.next_slot(ready_ns) + numerology.sounding_slots(num_clients))


__all__ = ["UNUSED", "Stream", "downlink", "downlink_mcs", "sounding_end_ns", "uplink", "uplink_mcs"]
