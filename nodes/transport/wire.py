"""The wire below both planes, and its in-memory form."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from nodes.errors import MessageError
from nodes.messages import MAX_CONTROL_BYTES

CHUNK_BYTES = 1 << 20
MAX_PART_BYTES = CHUNK_BYTES + 4096


class Plane(bytes, Enum):
    CONTROL = b"C"
    BULK = b"B"


@dataclass(frozen=True)
class Delivery:
    """Frames of one message as they arrived."""

    source: str
    plane: Plane
    frames: tuple[bytes, ...]


class Wire(Protocol):
    """One node's end."""

    name: str

    async def send(self, target: str, plane: Plane, frames: tuple[bytes, ...]) -> None:
        """Hand frames over; delivery is in order per pair of nodes, and not confirmed."""

    async def receive(self) -> Delivery:
        """The next message for this node."""

    async def close(self) -> None:
        """Give the wire back; a second call does nothing."""


def check_frames(plane: Plane, frames: tuple[bytes, ...]) -> None:
    """Refuse what a plane may not carry.

    Raises
    ------
    MessageError
        Wrong number of parts, or a part above the plane's limit.
    """
    if plane is Plane.CONTROL:
        if len(frames) != 1:
            raise MessageError(f"a control message has one part, not {len(frames)}")
        if len(frames[0]) > MAX_CONTROL_BYTES:
            raise MessageError(
                f"a control frame of {len(frames[0])} bytes exceeds the {MAX_CONTROL_BYTES} allowed"
            )
        return
    if len(frames) != 2 or any(len(part) > MAX_PART_BYTES for part in frames):
        raise MessageError("a bulk message is a header and a chunk of at most 1 MiB")


class MemoryHub:
    """Wires of one event loop, each a queue."""

    def __init__(self) -> None:
        self._queues: dict[str, asyncio.Queue[Delivery]] = {}

    def wire(self, name: str) -> MemoryWire:
        """The wire of a node; its queue exists from now on."""
        self._queues.setdefault(name, asyncio.Queue())
        return MemoryWire(self, name)

    def deliver(self, target: str, delivery: Delivery) -> None:
        queue = self._queues.get(target)
        if queue is not None:
            queue.put_nowait(delivery)

    def queue(self, name: str) -> asyncio.Queue[Delivery]:
        return self._queues[name]


class MemoryWire:
    """One end of a :class:`MemoryHub`."""

    def __init__(self, hub: MemoryHub, name: str) -> None:
        self._hub = hub
        self.name = name

    async def send(self, target: str, plane: Plane, frames: tuple[bytes, ...]) -> None:
        check_frames(plane, frames)
        self._hub.deliver(target, Delivery(self.name, plane, frames))

    async def receive(self) -> Delivery:
        return await self._hub.queue(self.name).get()

    async def close(self) -> None:
        pass
