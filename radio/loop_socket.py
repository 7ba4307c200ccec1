"""A ZeroMQ socket in an asyncio loop, at the cost of the message and little more.

pyzmq's own asyncio sockets make several futures and option look-ups for each message, which at
the rate of frames and acknowledgements was a third of a run's CPU time.  Here the loop watches
ZeroMQ's file descriptor, everything that has arrived is handed to a callback, and sending does
not wait: a peer that does not read for thousands of messages is an error, not a reason to stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import zmq

from radio.errors import RadioTimeoutError

READABLE = int(zmq.POLLIN)
BATCH_MESSAGES = 64  # handled before others in the loop get their turn


class LoopSocket:
    """Wraps a socket; use and close it from its event loop only.

    Parameters
    ----------
    socket
        Plain ZeroMQ socket, bound or connected; this object owns it.
    on_message
        Called with the frames of each message that arrives.
    """

    def __init__(self, socket: zmq.Socket[bytes], on_message: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._closed = False
        self._scheduled = False
        self._draining = False  # whoever drains looks for more after each message anyway
        self._loop.add_reader(self._descriptor, self._drain)
        self._schedule()

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, frames: Sequence[bytes]) -> None:
        """Queue a message.

        Raises
        ------
        RadioTimeoutError
            The queue is full: the peer has not read for thousands of messages.
        """
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again as exc:
            raise RadioTimeoutError(
                "a message cannot be queued: its receiver has not read for thousands of messages, or is not there"
            ) from exc
        # ZeroMQ signals its descriptor once per change, and sending may have taken that signal.
        if not self._draining:
            self._schedule()

    def close(self) -> None:
        """Stop watching and close the socket; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._descriptor)
            self._socket.close()

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._drain_scheduled)

    def _drain_scheduled(self) -> None:
        self._scheduled = False
        self._drain()

    def _drain(self) -> None:
        if self._closed:
            return
        self._draining = True
        try:
            self._take_batch()
        finally:
            self._draining = False

    def _take_batch(self) -> None:
        for _ in range(BATCH_MESSAGES):
            # Asking first is cheaper than the exception that says "nothing there".
            if not int(self._socket.get(zmq.EVENTS)) & READABLE:
                return
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
            try:
                self._on_message(frames)
            except BaseException:
                self._schedule()  # what has arrived behind it must not wait for the next signal
                raise
            if self._closed:
                return
        self._schedule()
