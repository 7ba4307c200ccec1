"""A radio on the emulated air, in the air's process or in another one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import zmq
from numpy.typing import NDArray

from radio import plane
from radio.air.core import AirCore, Window, WindowRequest
from radio.block_words import (
    SlotBurst,
    SlotReception,
    SlotRequest,
    decode_reception,
    encode_burst,
    encode_request,
)
from radio.drivers.base import Capabilities, RadioConfig, Reception, TimestampSource
from radio.errors import (
    LateBurstError,
    PlaneError,
    RadioConfigurationError,
    RadioError,
    RadioLostError,
    RadioTimeoutError,
)
from radio.events import Observer, RadioEvent, RadioEventKind, ignore
from radio.loop_socket import LoopSocket

RX_GAIN_RANGE_DB = (-3.0, 150.0)


Content = NDArray[np.complex64] | SlotBurst | SlotRequest  # of a word


class AirConnection(Protocol):
    """How one port talks to the air."""

    async def attach(self) -> None: ...

    async def say(self, word: plane.Word, content: Content | None = None) -> None: ...

    async def window(
        self, request: plane.Request | plane.SlotsRequest, slots: SlotRequest | None = None
    ) -> Window: ...

    async def detach(self) -> None: ...


class EmulatedRadio:
    """One port of the emulated air.

    Parameters
    ----------
    connection
        In-memory or ZeroMQ connection of this port.
    sample_rate_hz
        Sample rate of the air [Hz]; the air has one, another is refused.
    """

    capabilities = Capabilities(
        driver="emulated",
        timestamps=TimestampSource.SAMPLES,
        common_timing=True,
        min_sample_rate_hz=1e3,
        max_sample_rate_hz=1e9,
        rx_gain_range_db=RX_GAIN_RANGE_DB,
        slots=True,
    )

    def __init__(self, connection: AirConnection, sample_rate_hz: float) -> None:
        self._connection = connection
        self._sample_rate_hz = sample_rate_hz
        self._started = False
        self._next_request = 0

    async def start(self) -> None:
        if not self._started:
            await self._connection.attach()
            self._started = True

    async def stop(self) -> None:
        if self._started:
            self._started = False
            await self._connection.detach()

    async def configure(self, config: RadioConfig) -> RadioConfig:
        if config.sample_rate_hz != self._sample_rate_hz:
            raise RadioConfigurationError(
                f"sample rate {config.sample_rate_hz} Hz asked for, the air runs at {self._sample_rate_hz} Hz"
            )
        self._check_started()
        if not math.isfinite(config.rx_gain_db):
            raise RadioConfigurationError(f"a receiver gain of {config.rx_gain_db} dB asked for")
        low, high = RX_GAIN_RANGE_DB
        accepted = min(max(round(config.rx_gain_db), low), high)  # whole decibels, like real front ends
        await self._connection.say(plane.SetGain(accepted))
        return RadioConfig(config.sample_rate_hz, accepted)

    async def transmit(
        self,
        samples: NDArray[np.complex64],
        at_sample: int,
        end_of_burst: bool = True,
        silent_until: int | None = None,
    ) -> None:
        self._check_started()
        if samples.ndim != 2 or len(samples) != self.capabilities.num_channels:
            raise RadioError(
                f"a burst of shape {list(samples.shape)}; this radio sends "
                f"[{self.capabilities.num_channels}, num_samples]"
            )
        burst = samples[0]
        if len(burst) > plane.MAX_BURST_SAMPLES:
            raise RadioError(
                f"a burst of {len(burst)} samples exceeds the {plane.MAX_BURST_SAMPLES} allowed; send it in parts"
            )
        await self._connection.say(plane.Burst(at_sample, len(burst), plane.INLINE, silent_until or 0), burst)

    async def silent_until(self, at_sample: int) -> None:
        self._check_started()
        await self._connection.say(plane.SilentUntil(at_sample))

    async def stand_down(self) -> None:
        self._check_started()
        await self._connection.say(plane.StandDown())

    async def receive(
        self,
        num_samples: int,
        at_sample: int,
        expected: frozenset[str] = frozenset(),
        timeout_s: float = 30.0,
    ) -> Reception:
        self._check_started()
        if not 0 < num_samples <= plane.MAX_BURST_SAMPLES or at_sample < 0:
            raise RadioError(
                f"{num_samples} samples from {at_sample} on asked for; 1..{plane.MAX_BURST_SAMPLES} samples "
                "from 0 on can be had"
            )
        self._next_request += 1
        request = plane.Request(self._next_request, at_sample, num_samples, tuple(sorted(expected)))
        window = await self._window(request, None, timeout_s)
        return Reception(window.samples[None, :], window.first_sample, 0.0, window.clipped_samples)

    async def transmit_slots(self, burst: SlotBurst, at_sample: int, silent_until: int | None = None) -> None:
        self._check_started()
        await self._connection.say(plane.SlotBurst(at_sample, silent_until or 0), burst)

    async def receive_slots(
        self,
        request: SlotRequest,
        at_sample: int,
        num_samples: int,
        expected: frozenset[str] = frozenset(),
        timeout_s: float = 30.0,
    ) -> SlotReception:
        self._check_started()
        self._next_request += 1
        word = plane.SlotsRequest(self._next_request, at_sample, num_samples, tuple(sorted(expected)))
        window = await self._window(word, request, timeout_s)
        if window.slots is None:
            raise PlaneError(f"the air answered slots from sample {at_sample} on with samples")
        return window.slots

    async def _window(
        self, request: plane.Request | plane.SlotsRequest, slots: SlotRequest | None, timeout_s: float
    ) -> Window:
        try:
            return await asyncio.wait_for(self._connection.window(request, slots), timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            first, end = request.first_sample, request.first_sample + request.num_samples
            raise RadioTimeoutError(
                f"no samples {first}..{end} within {timeout_s} s; "
                f"expected to speak: {', '.join(request.expected) or 'nobody'}"
            ) from None

    def _check_started(self) -> None:
        if not self._started:
            raise RadioLostError("the radio is not started")


class InMemoryAir:
    """The air for radios of the same event loop: words become calls."""

    def __init__(
        self, core_of: Callable[[Observer], AirCore], account: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._observers: dict[str, Observer] = {}
        self.core = core_of(self._notify)
        self._waiting: dict[tuple[str, int], asyncio.Future[Window]] = {}
        self.account = account

    def _notify(self, event: RadioEvent) -> None:
        self._observers.get(event.port, ignore)(event)

    def connect(self, port: str, observer: Observer = ignore) -> InMemoryConnection:
        self._observers[port] = observer
        return InMemoryConnection(self, port)

    def deliver(self, windows: list[Window]) -> None:
        for window in windows:
            future = self._waiting.pop((window.receiver, window.request_id), None)
            if future is not None and not future.done():
                future.set_result(window)

    def wait(self, port: str, request_id: int) -> asyncio.Future[Window]:
        future: asyncio.Future[Window] = asyncio.get_running_loop().create_future()
        self._waiting[(port, request_id)] = future
        return future

    def forget(self, port: str, request_id: int) -> None:
        """Nobody waits for this window any more."""
        self._waiting.pop((port, request_id), None)

    def fail(self, port: str, failure: RadioError) -> None:
        """Let everything that a port waits for end with an error."""
        for key in [key for key in self._waiting if key[0] == port]:
            future = self._waiting.pop(key)
            if not future.done():
                future.set_exception(failure)


class InMemoryConnection:
    """Connection of one port to an :class:`InMemoryAir`."""

    def __init__(self, air: InMemoryAir, port: str) -> None:
        self._air = air
        self._port = port

    async def attach(self) -> None:
        self._air.core.attach(self._port)

    async def say(self, word: plane.Word, content: Content | None = None) -> None:
        with self._air.account():
            self._air.deliver(apply_word(self._air.core, self._port, word, content))

    async def window(
        self, request: plane.Request | plane.SlotsRequest, slots: SlotRequest | None = None
    ) -> Window:
        future = self._air.wait(self._port, request.request_id)
        with self._air.account():
            self._air.deliver(apply_word(self._air.core, self._port, request, slots))
        try:
            return await future
        finally:
            self._air.forget(self._port, request.request_id)

    async def detach(self) -> None:
        self._air.fail(self._port, RadioLostError("the radio was stopped"))
        self._air.deliver(self._air.core.detach(self._port))


def apply_word(core: AirCore, port: str, word: plane.Word, content: Content | None) -> list[Window]:
    """Let the air hear one word of a port, with what goes along; return the windows that it settles."""
    if isinstance(word, plane.Burst):
        if not isinstance(content, np.ndarray) or len(content) != word.num_samples:
            raise PlaneError("a burst without its samples")
        return core.burst(port, word.first_sample, content, word.silent_until)
    if isinstance(word, plane.SlotBurst):
        if not isinstance(content, SlotBurst):
            raise PlaneError("a burst of slots without its blocks")
        return core.burst_of_slots(port, word.first_sample, content, word.silent_until)
    if isinstance(word, plane.SilentUntil):
        return core.silent_until(port, word.sample)
    if isinstance(word, plane.StandDown):
        return core.stand_down(port)
    if isinstance(word, plane.SetGain):
        core.set_rx_gain(port, word.rx_gain_db)
        return []
    if isinstance(word, plane.Request | plane.SlotsRequest):
        if not 0 < word.num_samples <= plane.MAX_BURST_SAMPLES:
            raise PlaneError(f"a window of {word.num_samples} samples is empty or too long")
        slots = content if isinstance(content, SlotRequest) else None
        if slots is None and isinstance(word, plane.SlotsRequest):
            raise PlaneError("a request for slots that does not say what is expected in them")
        return core.request(
            WindowRequest(
                port, word.request_id, word.first_sample, word.num_samples, frozenset(word.expected), slots
            )
        )
    raise PlaneError(f"{type(word).__name__} is nothing that a radio says")


class ZmqConnection:
    """Connection of one port to the air's process.

    Parameters
    ----------
    endpoint
        ZeroMQ endpoint of the air.
    use_shared_memory
        ``None``: where possible; ``True``: or refuse; ``False``: never.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        port: str,
        observer: Observer = ignore,
        use_shared_memory: bool | None = None,
        attach_timeout_s: float = 10.0,
        account: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._account = account
        self._context = context
        self._endpoint = endpoint
        self._port = port
        self._observe = observer
        self._use_shared_memory = use_shared_memory
        self._attach_timeout_s = attach_timeout_s
        self._socket: LoopSocket | None = None
        self._tx: plane.SampleRing | None = None
        self._rx: plane.SampleRing | None = None
        self._waiting: dict[int, asyncio.Future[Window]] = {}
        self._shapes: dict[int, tuple[int, int]] = {}  # slots and subchannels that were asked for
        self._attached: asyncio.Future[plane.Attached] | None = None
        self._failure: RadioError | None = None

    @property
    def shared_memory(self) -> bool:
        """Whether samples move by shared memory."""
        return self._tx is not None

    async def attach(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.IDENTITY, self._port.encode())
        socket.setsockopt(zmq.MAXMSGSIZE, plane.MAX_MESSAGE_BYTES)
        socket.connect(self._endpoint)
        self._socket = LoopSocket(socket, self._take)
        self._attached = asyncio.get_running_loop().create_future()
        self._failure = None  # of an earlier start
        host = plane.boot_id() if self._use_shared_memory is not False else ""
        self._socket.send([plane.encode_word(plane.Attach(self._port, host))])
        try:
            offer = await asyncio.wait_for(self._attached, self._attach_timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            await self.detach()
            raise RadioTimeoutError(
                f"the air at {self._endpoint} did not answer {self._port} within {self._attach_timeout_s} s"
            ) from None
        if offer.tx_fd >= 0:
            try:
                self._tx = plane.SampleRing.open_from(
                    offer.pid, offer.tx_fd, offer.ring_samples, offer.nonce[:16]
                )
                self._rx = plane.SampleRing.open_from(
                    offer.pid, offer.rx_fd, offer.ring_samples, offer.nonce[16:]
                )
            except PlaneError:
                self._tx = self._rx = None
                if self._use_shared_memory:
                    raise
        if self._use_shared_memory and self._tx is None:
            raise PlaneError("the air offered no shared memory; set radio.plane to auto or network")
        if self._tx is None:
            # Tell the air not to put windows into a ring that nobody reads.
            self._socket.send([plane.encode_word(plane.Attach(self._port, ""))])

    async def say(self, word: plane.Word, content: Content | None = None) -> None:
        socket = self._check()
        if isinstance(word, plane.Burst) and isinstance(content, np.ndarray):
            with self._account():
                offset = self._tx.write(content) if self._tx is not None else plane.INLINE
            word = plane.Burst(word.first_sample, word.num_samples, offset, word.silent_until)
            if offset == plane.INLINE:
                frames = [plane.encode_word(word), np.ascontiguousarray(content, np.complex64).tobytes()]
                socket.send(frames)
                return
        if isinstance(content, SlotBurst):
            with self._account():
                frames = [plane.encode_word(word), encode_burst(content)]
            socket.send(frames)
            return
        socket.send([plane.encode_word(word)])

    async def window(
        self, request: plane.Request | plane.SlotsRequest, slots: SlotRequest | None = None
    ) -> Window:
        socket = self._check()
        future: asyncio.Future[Window] = asyncio.get_running_loop().create_future()
        self._waiting[request.request_id] = future
        frames = [plane.encode_word(request)]
        if slots is not None:
            self._shapes[request.request_id] = (slots.num_slots, len(slots.mcs_index))
            frames.append(encode_request(slots))
        try:
            socket.send(frames)
            return await future
        finally:
            self._waiting.pop(request.request_id, None)
            self._shapes.pop(request.request_id, None)

    async def detach(self) -> None:
        if self._socket is not None and self._failure is None:
            self._socket.send([plane.encode_word(plane.Detach(self._port))])
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._tx = self._rx = None
        self._fail(RadioLostError("the radio was stopped"))

    def _check(self) -> LoopSocket:
        if self._failure is not None:
            raise self._failure
        if self._socket is None:
            raise RadioLostError("the radio is not attached to the air")
        return self._socket

    def _fail(self, failure: RadioError) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(failure)
        self._waiting.clear()

    def _take(self, frames: list[bytes]) -> None:
        """Handle one message of the air; a broken one fails the radio, never the loop."""
        try:
            self._handle(plane.decode_word(frames[0]), frames)
        except PlaneError as exc:
            self._give_up(exc)

    def _handle(self, word: plane.AnyWord, frames: list[bytes]) -> None:
        if isinstance(word, plane.Samples):
            if word.ring_offset == plane.INLINE:
                inline = frames[1] if len(frames) > 1 else b""
                samples = plane.samples_from_bytes(inline, word.num_samples).copy()
            elif self._rx is not None:
                with self._account():
                    samples = self._rx.read(word.ring_offset, word.num_samples)
            else:
                raise PlaneError("samples in shared memory that this radio has not opened")
            future = self._waiting.get(word.request_id)
            if future is not None and not future.done():
                future.set_result(
                    Window(self._port, word.request_id, word.first_sample, samples, word.clipped_samples)
                )
        elif isinstance(word, plane.Slots):
            future = self._waiting.get(word.request_id)
            shape = self._shapes.get(word.request_id)
            if future is not None and not future.done() and shape is not None:
                with self._account():
                    slots = decode_reception(frames[1] if len(frames) > 1 else b"", *shape)
                none = np.empty(0, np.complex64)
                future.set_result(
                    Window(self._port, word.request_id, word.first_sample, none, slots.clipped_samples, slots)
                )
        elif isinstance(word, plane.Event):
            kind = RadioEventKind(word.kind)
            self._observe(RadioEvent(kind, self._port, word.sample_index, word.count, word.detail))
        elif isinstance(word, plane.Attached):
            if self._attached is not None and not self._attached.done():
                self._attached.set_result(word)
        elif isinstance(word, plane.Refused) and word.fatal:
            kind_of_error = LateBurstError if word.late else RadioError
            self._give_up(kind_of_error(word.reason))

    def _give_up(self, failure: RadioError) -> None:
        self._failure = failure
        if self._attached is not None and not self._attached.done():
            self._attached.set_exception(RadioConfigurationError(str(failure)))
        self._fail(failure)
