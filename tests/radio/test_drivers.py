"""One contract, three ways to the emulated air: memory, shared memory and network plane.

The last two talk to a real ``python -m radio.air.process``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from signals import complex_noise

from radio import plane
from radio.air.channel import LinkParameters
from radio.air.core import AirCore, AirParameters, PortParameters
from radio.air.process import AirReady, AirSetup
from radio.drivers.base import Radio, RadioConfig, TimestampSource
from radio.drivers.emulated import RX_GAIN_RANGE_DB, EmulatedRadio, InMemoryAir, ZmqConnection
from radio.errors import (
    LateBurstError,
    PlaneError,
    RadioConfigurationError,
    RadioError,
    RadioLostError,
    RadioTimeoutError,
)
from radio.events import Observer, RadioEvent, RadioEventKind, ignore
from radio.warmup import warm_up

RATE_HZ = 1e6
PARAMETERS = AirParameters(
    1,
    RATE_HZ,
    1000,
    (PortParameters("board", 20.0), PortParameters("server", 20.0)),
    (
        LinkParameters("board", "server", 40.0, timing_offset_samples=5),
        LinkParameters("server", "board", 40.0),
    ),
)
PATIENCE_S = 20.0

Factory = Callable[..., Radio]
Lab = Callable[[], AbstractAsyncContextManager[Factory]]


@contextlib.contextmanager
def air_process(setup: AirSetup) -> Iterator[tuple[subprocess.Popen[bytes], AirReady]]:
    """A child that serves the air, and what it answered; its input is closed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "radio.air.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(setup) + b"\n")
        process.stdin.flush()
        yield process, msgspec.json.decode(process.stdout.readline(), type=AirReady)
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def _in_memory() -> AsyncIterator[Factory]:
    air = InMemoryAir(lambda observer: AirCore(PARAMETERS, observer), contextlib.nullcontext)

    def radio(name: str, observer: Observer = ignore) -> Radio:
        return EmulatedRadio(air.connect(name, observer), RATE_HZ)

    yield radio


@asynccontextmanager
async def _over_zmq(use_shared_memory: bool) -> AsyncIterator[Factory]:
    with air_process(AirSetup(PARAMETERS, frame_samples=4000)) as (_, ready):
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

        def radio(name: str, observer: Observer = ignore) -> Radio:
            connection = ZmqConnection(context, ready.endpoint, name, observer, use_shared_memory)
            return EmulatedRadio(connection, RATE_HZ)

        try:
            yield radio
        finally:
            context.term()


LABS: dict[str, Lab] = {
    "memory": _in_memory,
    "shared-memory": lambda: _over_zmq(True),
    "network": lambda: _over_zmq(False),
}


@pytest.fixture(params=list(LABS))
def lab(request: pytest.FixtureRequest) -> Lab:
    warm_up()
    return LABS[request.param]


def _with_radios(lab: Lab, body: Callable[[Radio, Radio, list[RadioEvent]], Awaitable[None]]) -> None:
    """Run a body with a started board and server; events are the board's."""

    async def run() -> None:
        events: list[RadioEvent] = []
        async with lab() as factory:
            board, server = factory("board", events.append), factory("server")
            await board.start()
            await server.start()
            try:
                await asyncio.wait_for(body(board, server, events), PATIENCE_S)
            finally:
                await board.stop()
                await server.stop()

    asyncio.run(run())


# Each test body covers several clauses, since each starts a process in two of three cases.
def test_contract_samples(lab: Lab) -> None:
    """Configuration is read back; shapes, indices and content are those of the air, in every way."""

    async def body(board: Radio, server: Radio, events: list[RadioEvent]) -> None:
        assert board.capabilities.timestamps is TimestampSource.SAMPLES
        assert board.capabilities.common_timing
        # Twice is once.
        await board.start()
        accepted = await server.configure(RadioConfig(RATE_HZ, 40.4))
        assert accepted == RadioConfig(RATE_HZ, 40.0)
        assert (await server.configure(RadioConfig(RATE_HZ, 1e9))).rx_gain_db == RX_GAIN_RANGE_DB[1]
        await server.configure(RadioConfig(RATE_HZ, 20.0))
        with pytest.raises(RadioConfigurationError, match=r"2000000\.0 Hz asked for"):
            await server.configure(RadioConfig(2e6, 0.0))
        with pytest.raises(RadioConfigurationError, match="gain"):
            await server.configure(RadioConfig(RATE_HZ, float("nan")))

        sent = complex_noise(np.random.default_rng(1), 3000, 0.02)
        await board.transmit(sent[None, :2000], 1000)
        await board.transmit(sent[None, 2000:], 3000)
        await board.silent_until(20_000)
        reception = await server.receive(5000, 0, frozenset({"board"}), PATIENCE_S)
        assert reception.samples.shape == (1, 5000)
        assert reception.samples.dtype == np.complex64
        assert reception.first_sample == 0
        assert reception.uncertainty_samples == 0.0
        assert reception.clipped_samples == 0
        expected = np.zeros(5000, np.complex64)
        expected[1005:4005] = sent
        gain = np.vdot(expected, reception.samples[0]) / np.vdot(expected, expected)
        # 20 dBm full scale, 40 dB loss, 20 dB gain, full scale 0 dBm: unity but for the flat fading.
        assert np.abs(reception.samples[0] - gain * expected).max() < 2e-3
        # The ring of six frames wraps several times.
        for turn in range(1, 12):
            again = await server.receive(4000, 1000 + 4000 * turn, frozenset(), PATIENCE_S)
            assert again.first_sample == 1000 + 4000 * turn
            await board.silent_until(9000 + 4000 * (turn + 1))
        assert not events

    _with_radios(lab, body)


def test_contract_order_and_refusals(lab: Lab) -> None:
    async def body(board: Radio, server: Radio, events: list[RadioEvent]) -> None:
        with pytest.raises(RadioError, match="shape"):
            await board.transmit(np.zeros(5, np.complex64), 0)
        with pytest.raises(RadioError, match="send it in parts"):
            await board.transmit(np.zeros((1, (1 << 22) + 1), np.complex64), 0)
        for count, first in ((0, 0), (-1, 0), (1 << 23, 0), (5, -1)):
            with pytest.raises(RadioError, match="asked for"):
                await server.receive(count, first)

        # A radio that is expected and says nothing is waited for, and the message says so.
        with pytest.raises(RadioTimeoutError, match=r"no samples 0\.\.100 within 0\.2 s.*board"):
            await server.receive(100, 0, frozenset({"board"}), 0.2)
        # The wait leaves nothing broken behind.
        await board.silent_until(500)
        assert (await server.receive(100, 100, frozenset({"board"}), PATIENCE_S)).samples.shape == (1, 100)

        # Waiting ends when the word comes, not before.
        pending = asyncio.create_task(server.receive(400, 200, frozenset({"board"}), PATIENCE_S))
        await asyncio.sleep(0.05)
        assert not pending.done()
        await board.silent_until(600)
        assert (await pending).first_sample == 200

        # Clipping is an event, not an error.
        await board.transmit(np.full((1, 50), 3 + 0j, np.complex64), 700)
        await board.stand_down()
        await server.receive(100, 700, frozenset(), PATIENCE_S)
        for _ in range(100):
            if events:
                break
            await asyncio.sleep(0.02)
        assert [(event.kind, event.count) for event in events] == [(RadioEventKind.CLIPPED, 50)]

        # A late burst is refused: at once in memory, at the next word over a wire.
        async def repeat_late_burst() -> None:
            for _ in range(100):
                await board.transmit(np.zeros((1, 10), np.complex64), 0)
                await asyncio.sleep(0.02)

        with pytest.raises(LateBurstError, match="late"):
            await repeat_late_burst()
        assert events[-1].kind is RadioEventKind.LATE

    _with_radios(lab, body)


def test_contract_stop_and_start(lab: Lab) -> None:
    async def body(board: Radio, server: Radio, events: list[RadioEvent]) -> None:
        waiting = asyncio.create_task(board.receive(100, 0, frozenset({"server"}), PATIENCE_S))
        await asyncio.sleep(0.05)
        await board.stop()
        with pytest.raises(RadioLostError, match="stopped"):
            await waiting
        await board.stop()
        for action in (
            board.transmit(np.zeros((1, 5), np.complex64), 0),
            board.silent_until(5),
            board.stand_down(),
            board.configure(RadioConfig(RATE_HZ, 0.0)),
            board.receive(5, 0),
        ):
            with pytest.raises(RadioLostError, match="not started"):
                await action
        # Who is gone is not waited for, not even where expected.
        await server.receive(100, 0, frozenset({"board"}), PATIENCE_S)
        await board.start()
        await board.transmit(np.full((1, 100), 0.5, np.complex64), 2000)
        await server.configure(RadioConfig(RATE_HZ, 20.0))
        await board.silent_until(3000)
        samples = (await server.receive(200, 1950, frozenset({"board"}), PATIENCE_S)).samples[0]
        assert np.abs(samples[60:150]).mean() > 5 * np.abs(samples[:50]).mean()

    _with_radios(lab, body)


def _shared_memory_names() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir()}


def test_lifeline_ends_the_process_and_nothing_stays() -> None:
    before = _shared_memory_names()

    async def use(endpoint: str) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        connection = ZmqConnection(context, endpoint, "board", use_shared_memory=True)
        radio = EmulatedRadio(connection, RATE_HZ)
        await radio.start()
        assert connection.shared_memory
        assert _shared_memory_names() == before, "the rings have no name"
        await radio.stop()
        context.term()

    with air_process(AirSetup(PARAMETERS, frame_samples=4000)) as (process, ready):
        assert ready.pid == process.pid
        asyncio.run(use(ready.endpoint))
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
    assert _shared_memory_names() == before
    assert not Path(f"/proc/{ready.pid}").exists()


def test_no_setup_no_process() -> None:
    command = [sys.executable, "-m", "radio.air.process"]
    closed = subprocess.run(command, input=b"", capture_output=True, timeout=60)
    assert (closed.returncode, closed.stdout) == (0, b"")
    nowhere = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert nowhere.returncode == 1
    assert b"needs a pipe" in nowhere.stderr


def test_an_air_that_offers_no_shared_memory_and_one_that_does_not_answer() -> None:
    async def attach(endpoint: str, port: str = "board") -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        connection = ZmqConnection(context, endpoint, port, ignore, True, attach_timeout_s=1.0)
        try:
            await connection.attach()
        finally:
            await connection.detach()
            context.term()

    with air_process(AirSetup(PARAMETERS, frame_samples=4000, shared_memory=False)) as (_, ready):
        with pytest.raises(PlaneError, match="offered no shared memory"):
            asyncio.run(attach(ready.endpoint))
        with pytest.raises(RadioConfigurationError, match="no port 'nobody'"):
            asyncio.run(attach(ready.endpoint, "nobody"))
    with pytest.raises(RadioTimeoutError, match="did not answer board within"):
        asyncio.run(attach(ready.endpoint))


def test_the_controller_begins_rounds_and_nobody_else() -> None:
    """Each word is answered, a refusal with its reason; a radio that says one is shown out."""

    def controller(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IDENTITY, plane.CONTROLLER_IDENTITY)
        socket.setsockopt(zmq.RCVTIMEO, int(1000 * PATIENCE_S))
        socket.connect(endpoint)
        return socket

    async def use(endpoint: str) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = controller(context, endpoint)

        def begin(round_index: int, first_sample: int) -> plane.RoundBegun:
            socket.send(plane.encode_word(plane.BeginRound(round_index, first_sample)))
            answer = plane.decode_word(socket.recv())
            assert isinstance(answer, plane.RoundBegun)
            assert (answer.round_index, answer.first_sample) == (round_index, first_sample)
            return answer

        connection = ZmqConnection(context, endpoint, "server")
        radio = EmulatedRadio(connection, RATE_HZ)
        try:
            await radio.start()
            assert begin(0, 0).refusal == ""
            await radio.receive(500, 0, frozenset(), PATIENCE_S)
            assert "everything before 500" in begin(1, 499).refusal
            assert begin(1, 500).refusal == ""
            assert begin(1, 500).refusal == ""
            assert "does not follow round 1" in begin(0, 700).refusal
            await connection.say(plane.BeginRound(2, 5000))
            with pytest.raises(RadioError, match="'server' may not begin a round"):
                await radio.receive(100, 500, frozenset({"board"}), PATIENCE_S)
            assert begin(2, 4000).refusal == ""
        finally:
            await radio.stop()
            socket.close()
            context.term()

    with air_process(AirSetup(PARAMETERS, frame_samples=4000)) as (process, ready):
        asyncio.run(use(ready.endpoint))
        assert process.poll() is None


def test_the_air_survives_what_strangers_send() -> None:
    rng = np.random.default_rng(5)

    def raw(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.IDENTITY, b"stranger")
        socket.connect(endpoint)
        for turn in range(300):
            frames = [rng.bytes(int(rng.integers(0, 80))) for _ in range(1 + turn % 3)]
            socket.send_multipart(frames)
        for word in (
            {"t": "burst", "first_sample": 2**63, "num_samples": 1, "ring_offset": -1},
            {"t": "stand-down"},
        ):
            socket.send_multipart([msgspec.msgpack.encode(word)])
        socket.close()

    async def use(endpoint: str) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        raw(context, endpoint)
        radio = EmulatedRadio(ZmqConnection(context, endpoint, "server"), RATE_HZ)
        await radio.start()
        assert (await radio.receive(100, 0, frozenset(), PATIENCE_S)).samples.shape == (1, 100)
        await radio.stop()
        context.term()

    with air_process(AirSetup(PARAMETERS, frame_samples=4000)) as (process, ready):
        asyncio.run(use(ready.endpoint))
        assert process.poll() is None
        assert len(os.listdir(f"/proc/{ready.pid}/fd")) < 40
