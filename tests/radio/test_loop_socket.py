"""ZeroMQ sockets driven by the event loop lose no message and never stall."""

from __future__ import annotations

import asyncio

import pytest
import zmq

from radio.errors import RadioTimeoutError
from radio.loop_socket import LoopSocket


def test_messages_cross_in_order_both_ways_whatever_the_interleaving() -> None:
    """ZeroMQ's descriptor signals changes only: a send may swallow the signal of an arrival."""
    count = 3000

    async def exchange() -> tuple[list[int], list[int]]:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        at_left: list[int] = []
        at_right: list[int] = []
        done = asyncio.Event()

        connected = asyncio.Event()

        def note(received: list[int], frames: list[bytes]) -> None:
            if frames == [b"hello"]:
                connected.set()
                return
            received.append(int(frames[-1]))
            if len(at_left) == len(at_right) == count:
                done.set()

        server = context.socket(zmq.DEALER)
        client = context.socket(zmq.DEALER)
        for socket in (server, client):
            socket.set_hwm(2 * count)
        server.bind("tcp://127.0.0.1:*")
        client.connect(server.getsockopt_string(zmq.LAST_ENDPOINT))
        left = LoopSocket(server, lambda frames: note(at_left, frames))
        right = LoopSocket(client, lambda frames: note(at_right, frames))
        right.send([b"hello"])  # a bound socket has no queue to send to before its peer is there
        await asyncio.wait_for(connected.wait(), 20)
        for number in range(count):
            left.send([b"header", b"%d" % number])
            right.send([b"%d" % number])
            if number % 7 == 0:
                await asyncio.sleep(0)
        await asyncio.wait_for(done.wait(), 20)
        left.close()
        right.close()
        assert left.closed
        context.term()
        return at_left, at_right

    at_left, at_right = asyncio.run(exchange())
    assert at_left == list(range(count))
    assert at_right == list(range(count))


def test_a_full_queue_is_an_error_and_not_a_wait() -> None:
    async def fill() -> int:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.PUSH)
        socket.setsockopt(zmq.SNDHWM, 10)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind("tcp://127.0.0.1:*")
        sender = LoopSocket(socket, lambda frames: None)
        sent = 0

        def send_on() -> None:
            nonlocal sent
            for _ in range(1000):
                sender.send([b"nobody listens"])
                sent += 1

        with pytest.raises(RadioTimeoutError, match="has not read"):
            send_on()
        sender.close()
        context.term()
        return sent

    assert asyncio.run(fill()) <= 10
