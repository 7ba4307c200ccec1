"""The air as a process of its own: ``python -m radio.air.process``.

Standard input carries one line of JSON (:class:`AirSetup`) and is then the lifeline: when it
closes, whoever started this process is gone, and it ends.  Standard output carries one line of
JSON (:class:`AirReady`).
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time

import msgspec
import numpy as np
import zmq
import zmq.asyncio
from numpy.typing import NDArray

from radio import plane
from radio.air.core import AirCore, AirParameters, Window
from radio.drivers.emulated import apply_word
from radio.errors import PlaneError, RadioError
from radio.events import RadioEvent
from radio.ledger import CpuLedger

RING_FRAMES = 6  # windows or bursts of the usual length that fit into a ring


class AirSetup(msgspec.Struct, frozen=True):
    """What the process is told at its start."""

    parameters: AirParameters
    frame_samples: int
    bind: str = "tcp://127.0.0.1:*"
    shared_memory: bool = True
    format: str = "air-setup/1"


class AirReady(msgspec.Struct, frozen=True):
    """What the process answers once its kernels are warm and its socket is bound."""

    endpoint: str
    pid: int


class _Port:
    """Transport state of one attached port."""

    def __init__(self, identity: bytes, ring_samples: int, name: str, shared: bool) -> None:
        self.identity = identity
        self.tx: plane.SampleRing | None = None
        self.rx: plane.SampleRing | None = None
        self.fds: list[int] = []
        self.nonce = b""
        if shared:
            self.tx, tx_fd, tx_nonce = plane.SampleRing.create(ring_samples, f"{name}-tx")
            self.rx, rx_fd, rx_nonce = plane.SampleRing.create(ring_samples, f"{name}-rx")
            self.fds = [tx_fd, rx_fd]
            self.nonce = tx_nonce + rx_nonce

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.tx = self.rx = None


class AirServer:
    """Serves an :class:`AirCore` to ports in other processes."""

    def __init__(self, setup: AirSetup, socket: zmq.asyncio.Socket) -> None:
        self._setup = setup
        self._socket = socket
        self._ports: dict[str, _Port] = {}
        self._notes: list[RadioEvent] = []
        self._ledger = CpuLedger()
        self._core = AirCore(setup.parameters, self._notes.append)
        self._ring_samples = RING_FRAMES * setup.frame_samples

    async def serve(self) -> None:
        """Handle words until cancelled."""
        while True:
            frames = await self._socket.recv_multipart()
            identity = frames[0]
            name = identity.decode(errors="replace")
            try:
                word = plane.decode_word(frames[1]) if len(frames) > 1 else None
                if word is None:
                    raise PlaneError("an empty message")
                await self._handle(identity, name, word, frames)
            except RadioError as exc:
                await self._send(identity, plane.Refused(str(exc), fatal=True))
            await self._flush_notes()

    async def _handle(self, identity: bytes, name: str, word: plane.AnyWord, frames: list[bytes]) -> None:
        if isinstance(word, plane.Attach):
            await self._attach(identity, word)
            return
        if isinstance(word, plane.Usage):
            usage = plane.Usage(
                self._ledger.seconds("air"),
                time.process_time(),
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            )
            await self._send(identity, usage)
            return
        if isinstance(word, plane.Detach):
            if identity not in (plane.CONTROLLER_IDENTITY, word.port.encode()):
                raise PlaneError(f"{name!r} may not detach {word.port!r}")
            await self._detach(word.port)
            return
        port = self._ports.get(name)
        if port is None:
            raise PlaneError(f"{name!r} has not attached")
        samples: NDArray[np.complex64] | None = None
        if isinstance(word, plane.Burst):
            if word.ring_offset == plane.INLINE:
                samples = plane.samples_from_bytes(frames[2] if len(frames) > 2 else b"", word.num_samples)
            elif port.tx is not None:
                samples = port.tx.read(word.ring_offset, word.num_samples)
            else:
                raise PlaneError("a burst in shared memory that was not offered")
        with self._ledger.account("air"):
            windows = apply_word(self._core, name, word, samples)
        for window in windows:
            await self._deliver(window)

    async def _attach(self, identity: bytes, word: plane.Attach) -> None:
        if word.format != plane.PLANE_FORMAT:
            raise PlaneError(f"this air speaks {plane.PLANE_FORMAT}, {word.port} speaks {word.format}")
        self._core.attach(word.port)
        shared = self._setup.shared_memory and bool(word.boot_id) and word.boot_id == plane.boot_id()
        old = self._ports.pop(word.port, None)
        if old is not None:
            old.close()
        port = _Port(identity, self._ring_samples, word.port, shared)
        self._ports[word.port] = port
        tx_fd, rx_fd = port.fds if port.fds else (-1, -1)
        await self._send(
            identity,
            plane.Attached(word.port, os.getpid(), tx_fd, rx_fd, self._ring_samples, port.nonce),
        )

    async def _deliver(self, window: Window) -> None:
        port = self._ports.get(window.receiver)
        if port is None:
            return
        offset = port.rx.write(window.samples) if port.rx is not None else plane.INLINE
        word = plane.Samples(
            window.request_id, window.first_sample, len(window.samples), offset, window.clipped_samples
        )
        frames = [port.identity, plane.encode_word(word)]
        if offset == plane.INLINE:
            frames.append(window.samples.tobytes())
        await self._socket.send_multipart(frames)

    async def _send(self, identity: bytes, word: plane.Word) -> None:
        await self._socket.send_multipart([identity, plane.encode_word(word)])

    async def _flush_notes(self) -> None:
        notes, self._notes[:] = list(self._notes), []
        for event in notes:
            port = self._ports.get(event.port)
            if port is not None:
                word = plane.Event(event.kind.value, event.sample_index, event.count, event.detail)
                await self._send(port.identity, word)

    async def _detach(self, name: str) -> None:
        port = self._ports.pop(name, None)
        if port is None:
            return
        port.close()
        for window in self._core.detach(name):
            await self._deliver(window)


async def _main(lifeline: asyncio.StreamReader, setup: AirSetup) -> None:
    from radio.warmup import warm_up

    warm_up()
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a radio that comes back takes over its name
    socket.setsockopt(zmq.MAXMSGSIZE, plane.MAX_MESSAGE_BYTES)
    socket.bind(setup.bind)
    ready = AirReady(socket.getsockopt_string(zmq.LAST_ENDPOINT), os.getpid())
    sys.stdout.buffer.write(msgspec.json.encode(ready) + b"\n")
    sys.stdout.buffer.flush()
    server = asyncio.create_task(AirServer(setup, socket).serve(), name="air")
    end_of_parent = asyncio.create_task(lifeline.read(), name="lifeline")
    done, _ = await asyncio.wait({server, end_of_parent}, return_when=asyncio.FIRST_COMPLETED)
    for task in (server, end_of_parent):
        task.cancel()
    await asyncio.gather(server, end_of_parent, return_exceptions=True)
    socket.close()
    context.term()
    if server in done and not server.cancelled():
        server.result()  # a bug of ours: let it end the process with its traceback


async def _run() -> None:
    loop = asyncio.get_running_loop()
    lifeline = asyncio.StreamReader(limit=1 << 22)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lifeline), sys.stdin.buffer)
    line = await lifeline.readline()
    if line:
        await _main(lifeline, msgspec.json.decode(line, type=AirSetup))


def main() -> None:
    """Entry of the process; an interrupt from the terminal is the controller's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_run())


if __name__ == "__main__":
    main()
