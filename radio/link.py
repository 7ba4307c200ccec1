"""Bytes over lossy transport blocks: selective repeat with re-segmentation, and the link report.

A stream is a byte string with its length in front.  Each block names the bytes it carries, so a
lost range is cut anew to the block sizes of the moment, whatever the MCS has become.  The window
is the whole stream: a sender never waits for an acknowledgement while it has unsent bytes.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from radio.randomness import derive_key

HEADER = struct.Struct("<IHH")  # offset, length, tag
LENGTH_PREFIX = struct.Struct("<I")
MAX_STREAM_BYTES = 1 << 28
MAX_BLOCK_BYTES = 0xFFFF  # that a header can state

Place = tuple[int, int, int]  # frame, slot in frame, subchannel


@dataclass
class LinkReport:
    """Statistics of one stream; what closes the loop.

    Attributes
    ----------
    sent_bytes
        Payload bytes, headers and retransmissions not counted.
    airtime_samples
        Slots in which the sender radiated, in samples, retransmissions included.
    """

    sent_bytes: int = 0
    blocks_sent: int = 0
    blocks_failed: int = 0
    blocks_retransmitted: int = 0
    airtime_samples: int = 0
    frames: int = 0


@dataclass
class _InFlight:
    offset: int
    length: int


class SelectiveRepeatSender:
    """Sending end of one stream, to one receiver or to several at once.

    Parameters
    ----------
    payload
        The bytes to carry.
    tag
        16 bits that a stale block of another stream is told apart by.
    receivers
        Names of those that must get everything.
    """

    def __init__(self, payload: bytes, tag: int, receivers: Iterable[str]) -> None:
        if len(payload) > MAX_STREAM_BYTES:
            raise ValueError(f"a stream holds at most {MAX_STREAM_BYTES} bytes, got {len(payload)}")
        self._stream = LENGTH_PREFIX.pack(len(payload)) + payload
        self._tag = tag & 0xFFFF
        self.receivers = set(receivers)
        self._next_offset = 0
        self._repeat: deque[tuple[int, int]] = deque()
        self._in_flight: dict[int, dict[tuple[int, int], _InFlight]] = {}
        self.report = LinkReport(sent_bytes=len(payload))

    @property
    def has_unsent(self) -> bool:
        """Whether there is something to put into the next block."""
        return bool(self._repeat) or self._next_offset < len(self._stream)

    @property
    def done(self) -> bool:
        """Everything was sent and acknowledged by all receivers that are left."""
        return not self.has_unsent and not self._in_flight

    def next_block(self, place: Place, capacity_bytes: int) -> bytes | None:
        """Content of the block at a place, zero-padded to its capacity; ``None`` when there is none."""
        room = min(capacity_bytes - HEADER.size, MAX_BLOCK_BYTES)
        if room <= 0:
            raise ValueError(f"a block of {capacity_bytes} bytes has no room behind its header")
        frame, slot, subchannel = place
        if (slot, subchannel) in self._in_flight.get(frame, {}):
            raise ValueError(f"frame {frame} has a block in slot {slot}, subchannel {subchannel} already")
        repeated = bool(self._repeat)
        if repeated:
            # Into a block of its own size a range goes bit for bit as before, and copies can be added up.
            same = next((place for place, (_, length) in enumerate(self._repeat) if length == room), 0)
            offset, length = self._repeat[same]
            del self._repeat[same]
            if length > room:
                self._repeat.appendleft((offset + room, length - room))
                length = room
        elif self._next_offset < len(self._stream):
            offset = self._next_offset
            length = min(room, len(self._stream) - offset)
            self._next_offset += length
        else:
            return None
        self._in_flight.setdefault(frame, {})[(slot, subchannel)] = _InFlight(offset, length)
        self.report.blocks_sent += 1
        self.report.blocks_retransmitted += repeated
        block = HEADER.pack(offset, length, self._tag) + self._stream[offset : offset + length]
        return block.ljust(capacity_bytes, b"\0")

    def acknowledge(self, frame: int, received: Iterable[set[tuple[int, int]]]) -> int:
        """Settle a frame; return how many of its blocks must be repeated.

        Parameters
        ----------
        frame
            Frame index.
        received
            For each receiver that is left, the (slot, subchannel) places it decoded.
        """
        blocks = self._in_flight.pop(frame, {})
        reports = list(received)
        failed = 0
        for place, block in blocks.items():
            if not all(place in report for report in reports):
                self._repeat.append((block.offset, block.length))
                failed += 1
        self.report.blocks_failed += failed
        return failed

    def places(self, frame: int) -> set[tuple[int, int]]:
        """(slot, subchannel) places of a frame whose acknowledgement is open."""
        return set(self._in_flight.get(frame, {}))

    def frames_in_flight(self) -> list[int]:
        """Frames whose acknowledgement is open, oldest first."""
        return sorted(self._in_flight)

    def give_up(self, receiver: str) -> None:
        """Stop serving one receiver; without any, the stream ends."""
        self.receivers.discard(receiver)
        if not self.receivers:
            self._repeat.clear()
            self._in_flight.clear()
            self._next_offset = len(self._stream)


@dataclass
class SelectiveRepeatReceiver:
    """Receiving end of one stream.

    Attributes
    ----------
    max_bytes
        Longest payload to be accepted; nothing is allocated beyond it.
    refused_blocks
        Blocks with a wrong tag, a length beyond the block or bytes beyond ``max_bytes``.
    """

    tag: int
    max_bytes: int
    refused_blocks: int = 0
    duplicate_blocks: int = 0
    _buffer: bytearray = field(default_factory=bytearray, repr=False)
    _ranges: dict[int, int] = field(default_factory=dict, repr=False)  # start -> end, disjoint
    _received_bytes: int = 0

    def accept(self, block: bytes) -> bool:
        """Take a decoded block; ``True`` when it belonged to this stream."""
        if len(block) < HEADER.size:
            self.refused_blocks += 1
            return False
        offset, length, tag = HEADER.unpack_from(block)
        end = offset + length
        if (
            tag != self.tag & 0xFFFF
            or length == 0
            or length > len(block) - HEADER.size
            or end > self.max_bytes + LENGTH_PREFIX.size
        ):
            self.refused_blocks += 1
            return False
        if end > len(self._buffer):
            self._buffer.extend(bytes(end - len(self._buffer)))
        self._buffer[offset:end] = block[HEADER.size : HEADER.size + length]
        self._note(offset, end)
        return True

    def _note(self, start: int, end: int) -> None:
        """Merge [start, end) into the received ranges."""
        overlapping = [
            (known_start, known_end)
            for known_start, known_end in self._ranges.items()
            if known_start <= end and start <= known_end
        ]
        if any(known_start <= start and end <= known_end for known_start, known_end in overlapping):
            self.duplicate_blocks += 1
            return
        for known_start, known_end in overlapping:
            del self._ranges[known_start]
            self._received_bytes -= known_end - known_start
            start, end = min(start, known_start), max(end, known_end)
        self._ranges[start] = end
        self._received_bytes += end - start

    @property
    def received_bytes(self) -> int:
        """Bytes of the stream received so far, its length prefix included."""
        return self._received_bytes

    @property
    def total_bytes(self) -> int | None:
        """Payload length as the stream states it; ``None`` until its first bytes are there."""
        if self._ranges.get(0, 0) < LENGTH_PREFIX.size:
            return None
        return int(LENGTH_PREFIX.unpack_from(self._buffer)[0])

    @property
    def complete(self) -> bool:
        total = self.total_bytes
        return total is not None and self._ranges.get(0, 0) == total + LENGTH_PREFIX.size

    def payload(self) -> bytes:
        """The stream's payload.

        Raises
        ------
        ValueError
            If bytes are missing.
        """
        total = self.total_bytes
        if total is None or not self.complete:
            raise ValueError(f"stream incomplete: {self._received_bytes} bytes of {total} received")
        return bytes(self._buffer[LENGTH_PREFIX.size : LENGTH_PREFIX.size + total])


def stream_tag(*labels: str | int) -> int:
    """16-bit tag of a stream, from what identifies it."""
    return derive_key(0, "stream", *labels) & 0xFFFF
