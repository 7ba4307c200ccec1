"""The wire over ZeroMQ: a ROUTER in the controller's process, a DEALER in each node's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

import zmq

from nodes.errors import MessageError
from nodes.messages import CONTROLLER
from nodes.transport.wire import MAX_PART_BYTES, Delivery, Plane, check_frames
from radio.loop_socket import LoopSocket

HIGH_WATER_MARK = 10_000
LINGER_MS = 500


def _configure(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)


class ZmqHub:
    """Forwards between the nodes of a run and is the controller's own wire.

    Parameters
    ----------
    bind
        ZeroMQ endpoint to listen on, for example ``tcp://127.0.0.1:*``.
    names
        Nodes that may take part; frames of others are refused and counted.
    on_refused
        Called with the peer's name and the reason for each refused message.
    """

    name = CONTROLLER

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        bind: str,
        names: Collection[str],
        on_refused: Callable[[str, str], None] = lambda peer, reason: None,
    ) -> None:
        self._names = set(names)
        self._on_refused = on_refused
        self._inbox: asyncio.Queue[Delivery] = asyncio.Queue()
        self.last_seen_s: dict[str, float] = {}
        self.refused: dict[str, int] = {}
        socket = context.socket(zmq.ROUTER)
        _configure(socket)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            socket.bind(bind)
        except zmq.ZMQError:
            socket.close()
            raise
        self.endpoint: str = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._socket = LoopSocket(socket, self._route)

    async def send(self, target: str, plane: Plane, frames: tuple[bytes, ...]) -> None:
        check_frames(plane, frames)
        self._socket.send([target.encode(), self.name.encode(), plane.value, *frames])

    async def receive(self) -> Delivery:
        return await self._inbox.get()

    async def close(self) -> None:
        self._socket.close()

    def forget(self, name: str) -> None:
        """A node was detached: nothing of it is forwarded any more."""
        self._names.discard(name)
        self.last_seen_s.pop(name, None)

    def _route(self, parts: list[bytes]) -> None:
        peer = parts[0].decode(errors="replace")
        try:
            self._forward(peer, parts)
        except (MessageError, ValueError) as exc:
            self.refused[peer] = self.refused.get(peer, 0) + 1
            self._on_refused(peer, str(exc))

    def _forward(self, peer: str, parts: list[bytes]) -> None:
        if peer not in self._names:
            raise MessageError(f"{peer!r} has no part in this run")
        if len(parts) < 4:
            raise MessageError("an incomplete message")
        target, plane, frames = parts[1].decode(), Plane(parts[2]), tuple(parts[3:])
        check_frames(plane, frames)
        self.last_seen_s[peer] = time.monotonic()
        if target == self.name:
            self._inbox.put_nowait(Delivery(peer, plane, frames))
        elif target in self._names:
            self._socket.send([parts[1], parts[0], plane.value, *frames])
        else:
            raise MessageError(f"{peer} wants to reach {target!r}, which has no part in this run")


class ZmqWire:
    """A node's end; ``connect`` returns at once, ZeroMQ keeps trying."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, name: str) -> None:
        self.name = name
        self.refused = 0
        socket = context.socket(zmq.DEALER)
        _configure(socket)
        socket.setsockopt(zmq.IDENTITY, name.encode())
        socket.connect(endpoint)
        self._inbox: asyncio.Queue[Delivery] = asyncio.Queue()
        self._socket = LoopSocket(socket, self._take)

    async def send(self, target: str, plane: Plane, frames: tuple[bytes, ...]) -> None:
        check_frames(plane, frames)
        self._socket.send([target.encode(), plane.value, *frames])

    async def receive(self) -> Delivery:
        return await self._inbox.get()

    def _take(self, parts: list[bytes]) -> None:
        try:
            if len(parts) < 3:
                raise MessageError("an incomplete message")
            plane, frames = Plane(parts[1]), tuple(parts[2:])
            check_frames(plane, frames)
            self._inbox.put_nowait(Delivery(parts[0].decode(), plane, frames))
        except (MessageError, ValueError):
            self.refused += 1

    async def close(self) -> None:
        self._socket.close()
