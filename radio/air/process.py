"""The air as a process of its own: ``python -m radio.air.process``.

Standard input carries one line of JSON (:class:`AirSetup`) and is then the lifeline: when it
closes, whoever started this process is gone, and it ends.  Standard output carries one line of
JSON (:class:`AirReady`).
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import stat
import sys
import time

import msgspec
import zmq

from radio import plane
from radio.air.blocks import make_air
from radio.air.core import AirParameters, Window
from radio.block_words import decode_burst, decode_request, encode_reception
from radio.drivers.emulated import Content, apply_word
from radio.errors import LateBurstError, PlaneError, RadioError
from radio.event_loop import run
from radio.events import RadioEvent
from radio.ledger import CpuLedger
from radio.loop_socket import LoopSocket

RING_FRAMES = 6  # windows or bursts of the usual length that fit into a ring
MAX_SETUP_BYTES = 1 << 26  # attenuation by round of hundreds of links, over ten thousand rounds


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

    def __init__(self, setup: AirSetup, socket: zmq.Socket[bytes]) -> None:
        self._setup = setup
        self._ports: dict[str, _Port] = {}
        self._notes: list[RadioEvent] = []
        self._ledger = CpuLedger()
        self._core = make_air(setup.parameters, self._notes.append)
        self._ring_samples = RING_FRAMES * setup.frame_samples
        self._socket = LoopSocket(socket, self._take)

    def close(self) -> None:
        """Give socket and shared memory back."""
        for port in self._ports.values():
            port.close()
        self._socket.close()

    def _take(self, frames: list[bytes]) -> None:
        """Handle one message; whoever breaks the rules is told so, and the others go on."""
        identity = frames[0]
        name = identity.decode(errors="replace")
        try:
            if len(frames) < 2:
                raise PlaneError("an empty message")
            self._handle(identity, name, plane.decode_word(frames[1]), frames)
        except RadioError as exc:
            late = isinstance(exc, LateBurstError)
            self._send(identity, plane.Refused(str(exc), fatal=True, late=late))
        self._flush_notes()

    def _handle(self, identity: bytes, name: str, word: plane.AnyWord, frames: list[bytes]) -> None:
        if isinstance(word, plane.Attach):
            self._attach(identity, word)
            return
        if isinstance(word, plane.Usage):
            usage = plane.Usage(
                self._ledger.seconds("air"),
                time.process_time(),
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            )
            self._send(identity, usage)
            return
        if isinstance(word, plane.Detach):
            if identity not in (plane.CONTROLLER_IDENTITY, word.port.encode()):
                raise PlaneError(f"{name!r} may not detach {word.port!r}")
            self._detach(word.port)
            return
        if isinstance(word, plane.BeginRound):
            if identity != plane.CONTROLLER_IDENTITY:
                raise PlaneError(f"{name!r} may not begin a round")
            self._begin_round(word)
            return
        port = self._ports.get(name)
        if port is None:
            raise PlaneError(f"{name!r} has not attached")
        with self._ledger.account("air"):
            content = self._content(port, word, frames[2] if len(frames) > 2 else b"")
            windows = apply_word(self._core, name, word, content)
        for window in windows:
            self._deliver(window)

    def _content(self, port: _Port, word: plane.AnyWord, body: bytes) -> Content | None:
        """What goes along with a word, from its second frame or from shared memory."""
        if isinstance(word, plane.Burst):
            if word.ring_offset == plane.INLINE:
                return plane.samples_from_bytes(body, word.num_samples)
            if port.tx is None:
                raise PlaneError("a burst in shared memory that was not offered")
            return port.tx.read(word.ring_offset, word.num_samples)
        if isinstance(word, plane.SlotBurst | plane.SlotsRequest):
            numerology = self._setup.parameters.numerology
            if numerology is None:
                raise PlaneError("blocks on an air that carries samples (radio.fidelity: iq)")
            if isinstance(word, plane.SlotBurst):
                return decode_burst(body, numerology)
            return decode_request(body, numerology)
        return None

    def _attach(self, identity: bytes, word: plane.Attach) -> None:
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
        self._send(
            identity,
            plane.Attached(word.port, os.getpid(), tx_fd, rx_fd, self._ring_samples, port.nonce),
        )

    def _begin_round(self, word: plane.BeginRound) -> None:
        refusal = ""
        try:
            self._core.begin_round(word.round_index, word.first_sample)
        except RadioError as exc:
            refusal = str(exc)
        answer = plane.RoundBegun(word.round_index, word.first_sample, refusal)
        self._send(plane.CONTROLLER_IDENTITY, answer)

    def _deliver(self, window: Window) -> None:
        port = self._ports.get(window.receiver)
        if port is None:
            return
        if window.slots is not None:
            with self._ledger.account("air"):
                body = encode_reception(window.slots)
            slots = plane.Slots(window.request_id, window.first_sample)
            self._socket.send([port.identity, plane.encode_word(slots), body])
            return
        with self._ledger.account("air"):
            offset = port.rx.write(window.samples) if port.rx is not None else plane.INLINE
        word = plane.Samples(
            window.request_id, window.first_sample, len(window.samples), offset, window.clipped_samples
        )
        frames = [port.identity, plane.encode_word(word)]
        if offset == plane.INLINE:
            frames.append(window.samples.tobytes())
        self._socket.send(frames)

    def _send(self, identity: bytes, word: plane.Word) -> None:
        self._socket.send([identity, plane.encode_word(word)])

    def _flush_notes(self) -> None:
        notes, self._notes[:] = list(self._notes), []
        for event in notes:
            port = self._ports.get(event.port)
            if port is not None:
                word = plane.Event(event.kind.value, event.sample_index, event.count, event.detail)
                self._send(port.identity, word)

    def _detach(self, name: str) -> None:
        port = self._ports.pop(name, None)
        if port is None:
            return
        port.close()
        for window in self._core.detach(name):
            self._deliver(window)


async def _main(lifeline: asyncio.StreamReader, setup: AirSetup) -> None:
    from radio.warmup import warm_up

    warm_up()
    gc.freeze()  # what was imported stays; collections need not walk it
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a radio that comes back takes over its name
    socket.setsockopt(zmq.MAXMSGSIZE, plane.MAX_MESSAGE_BYTES)
    socket.bind(setup.bind)
    ready = AirReady(socket.getsockopt_string(zmq.LAST_ENDPOINT), os.getpid())
    sys.stdout.buffer.write(msgspec.json.encode(ready) + b"\n")
    sys.stdout.buffer.flush()
    server = AirServer(setup, socket)
    await lifeline.read()
    server.close()
    context.term()


async def _run() -> None:
    loop = asyncio.get_running_loop()
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        # Of anything else the loop could not tell when it closes, and the process would stay for ever.
        raise SystemExit("the air needs a pipe as standard input: its setup, and then the lifeline")
    lifeline = asyncio.StreamReader(limit=MAX_SETUP_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lifeline), sys.stdin.buffer)
    line = await lifeline.readline()
    if line:
        await _main(lifeline, msgspec.json.decode(line, type=AirSetup))


def main() -> None:
    """Entry of the process; an interrupt from the terminal is the controller's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run(_run())


if __name__ == "__main__":
    main()
