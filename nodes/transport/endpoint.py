"""What a node or the controller holds in its hand: send a message, wait for one, move weights."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from nodes.errors import MessageError, PeerLostError, StoppedError, WaitTimeoutError
from nodes.messages import (
    CONTROLLER,
    Body,
    Envelope,
    Heartbeat,
    Hello,
    PeerLost,
    decode_envelope,
    encode_envelope,
)
from nodes.transport.wire import CHUNK_BYTES, Delivery, Plane, Wire

BULK_FORMAT = "bulk/1"
MAX_BULK_BYTES = 1 << 31
MAX_PENDING = 10_000
BULK_KINDS = ("weights",)  # parameters, buffers and optimiser state; nothing else has a bulk plane

BodyType = TypeVar("BodyType")


class BulkHeader(msgspec.Struct, frozen=True):
    """In front of every chunk."""

    run: str
    purpose: str
    kind: str
    index: int
    num_chunks: int
    total_bytes: int
    digest: bytes
    format: str = BULK_FORMAT


@dataclass
class _Waiter:
    source: str | None
    accepts: Callable[[Envelope], bool]
    future: asyncio.Future[Envelope]


@dataclass
class _Assembly:
    header: BulkHeader
    chunks: list[bytes] = field(default_factory=list)


class Endpoint:
    """A named participant of one run.

    Parameters
    ----------
    wire
        In-memory or ZeroMQ wire.
    run
        Run id; messages of other runs are refused and counted.  Empty until a node is welcomed,
        so a hello may come without one.
    on_refused
        Called with (peer, reason) for each refused message.

    Attributes
    ----------
    lost
        Reason by peer that the controller declared gone.
    ended
        Why every wait ends; ``None`` while none does.
    """

    def __init__(
        self,
        wire: Wire,
        run: str = "",
        on_refused: Callable[[str, str], None] = lambda peer, reason: None,
    ) -> None:
        self.name = wire.name
        self.run = run
        self.refused = 0
        self.stale = 0
        self.last_heard_s: float | None = None
        self._wire = wire
        self._on_refused = on_refused
        self._sequence = 0
        self._oldest_round = -1
        self._pending: deque[Envelope] = deque()
        self._waiters: list[_Waiter] = []
        self.lost: dict[str, str] = {}
        self.ended: str | None = None
        self._assemblies: dict[str, _Assembly] = {}  # by source: one transfer at a time
        self._bulk_ready: dict[str, bytes] = {}
        self._bulk_waiters: dict[str, asyncio.Future[bytes]] = {}
        self._reader = asyncio.create_task(self._read(), name=f"messages to {self.name}")
        self._reader.add_done_callback(self._reading_ended)

    # ---------------------------------------------------------------------------- sending
    async def send(
        self, target: str, body: Body, *, round_index: int = -1, attempt: int = 0, at_ns: int = 0
    ) -> None:
        """Send a message that takes effect at ``at_ns`` of experiment time.

        Raises
        ------
        MessageError
            The message is larger than the control plane carries.
        """
        self._sequence += 1
        envelope = Envelope(self.run, self.name, target, round_index, attempt, self._sequence, at_ns, body)
        await self._wire.send(target, Plane.CONTROL, (encode_envelope(envelope),))

    async def send_bulk(self, target: str, purpose: str, kind: str, data: bytes) -> None:
        """Send weights in chunks, off the clock.

        Raises
        ------
        MessageError
            ``kind`` is not one that the bulk plane carries: smashed data and gradients go over
            the air.
        """
        _check_bulk(kind, len(data))
        digest = hashlib.blake2b(data, digest_size=16).digest()
        num_chunks = _num_chunks(len(data))
        for index in range(num_chunks):
            header = BulkHeader(self.run, purpose, kind, index, num_chunks, len(data), digest)
            chunk = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            await self._wire.send(target, Plane.BULK, (msgspec.msgpack.encode(header), chunk))

    # -------------------------------------------------------------------------- receiving
    async def take(
        self,
        body_type: type[BodyType] | tuple[type[BodyType], ...],
        source: str | None,
        *,
        timeout_s: float,
        round_index: int | None = None,
        accepts: Callable[[BodyType], bool] = lambda body: True,
        what: str = "",
    ) -> tuple[BodyType, Envelope]:
        """The oldest message of a type from a source, waited for if need be.

        Parameters
        ----------
        timeout_s
            Wall-clock limit [s].
        what
            What is being waited for, for the error.

        Raises
        ------
        WaitTimeoutError, PeerLostError, StoppedError
        """

        def fits(envelope: Envelope) -> bool:
            return (
                isinstance(envelope.body, body_type)
                and (source is None or envelope.source == source)
                and (round_index is None or envelope.round_index == round_index)
                and accepts(envelope.body)
            )

        for envelope in self._pending:
            if fits(envelope):
                self._pending.remove(envelope)
                return envelope.body, envelope  # type: ignore[return-value]
        if self.ended is not None:
            raise StoppedError(self.ended)
        if source is not None and source in self.lost:
            raise PeerLostError(f"{source} is lost: {self.lost[source]}")
        waiter = _Waiter(source, fits, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            envelope = await asyncio.wait_for(waiter.future, timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            raise WaitTimeoutError(
                f"{self.name} waited {timeout_s} s for {what or body_type} from {source or 'anyone'}"
            ) from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        return envelope.body, envelope  # type: ignore[return-value]

    def drain(self, body_type: type[BodyType], source: str) -> list[BodyType]:
        """The messages of a type from a source that nobody has waited for yet, oldest first."""
        found = [e for e in self._pending if isinstance(e.body, body_type) and e.source == source]
        self._pending = deque(envelope for envelope in self._pending if envelope not in found)
        return [envelope.body for envelope in found]  # type: ignore[misc]

    async def take_bulk(self, purpose: str, timeout_s: float) -> bytes:
        """Weights that came under a purpose.

        Raises
        ------
        WaitTimeoutError, StoppedError
        """
        if purpose in self._bulk_ready:
            return self._bulk_ready.pop(purpose)
        if self.ended is not None:
            raise StoppedError(self.ended)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._bulk_waiters[purpose] = future
        try:
            return await asyncio.wait_for(future, timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            raise WaitTimeoutError(f"{self.name} waited {timeout_s} s for weights ({purpose})") from None
        finally:
            self._bulk_waiters.pop(purpose, None)

    def enter_round(self, round_index: int) -> None:
        """Messages of earlier rounds are stale from now on: refused and counted."""
        self._oldest_round = round_index
        kept = [envelope for envelope in self._pending if not self._is_stale(envelope)]
        self.stale += len(self._pending) - len(kept)
        self._pending = deque(kept)

    def lose(self, peer: str, reason: str) -> None:
        """Everyone who waits for this peer is told that it is gone."""
        self.lost[peer] = reason
        for waiter in self._waiters:
            if waiter.source == peer and not waiter.future.done():
                waiter.future.set_exception(PeerLostError(f"{peer} is lost: {reason}"))

    def regain(self, peer: str) -> None:
        """The peer is back."""
        self.lost.pop(peer, None)

    def end(self, reason: str) -> None:
        """Every wait, open or to come, ends with :class:`StoppedError`."""
        if self.ended is None:
            self.ended = reason
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(StoppedError(reason))
        for future in self._bulk_waiters.values():
            if not future.done():
                future.set_exception(StoppedError(reason))

    async def close(self) -> None:
        """Stop reading and give the wire back."""
        self.end("the endpoint was closed")
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._wire.close()

    # ---------------------------------------------------------------------------- reading
    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            delivery = await self._wire.receive()
            self.last_heard_s = loop.time()
            try:
                if delivery.plane is Plane.BULK:
                    self._put_bulk(delivery)
                else:
                    self._put(decode_envelope(delivery.frames[0]), delivery.source)
            except MessageError as exc:
                self.refused += 1
                self._on_refused(delivery.source, str(exc))

    def _reading_ended(self, reader: asyncio.Task[None]) -> None:
        """Nobody may wait for what nobody reads any more."""
        if not reader.cancelled() and (failure := reader.exception()) is not None:
            self.end(f"{self.name} can read no more messages: {failure!r}")

    def _is_stale(self, envelope: Envelope) -> bool:
        return 0 <= envelope.round_index < self._oldest_round

    def _put(self, envelope: Envelope, source: str) -> None:
        if envelope.source != source:
            raise MessageError(f"{source} signed a message as {envelope.source}")
        if self.run and envelope.run != self.run and (envelope.run or not isinstance(envelope.body, Hello)):
            raise MessageError(
                f"{type(envelope.body).__name__} of run {envelope.run!r}; this is run {self.run!r}"
            )
        if isinstance(envelope.body, Heartbeat):
            return
        if isinstance(envelope.body, PeerLost) and source == CONTROLLER:
            self.lose(envelope.body.peer, envelope.body.reason)
            return
        if self._is_stale(envelope):
            self.stale += 1
            return
        for waiter in self._waiters:
            if not waiter.future.done() and waiter.accepts(envelope):
                waiter.future.set_result(envelope)
                return
        if len(self._pending) >= MAX_PENDING:
            raise MessageError(f"more than {MAX_PENDING} messages wait; dropped one of {source}")
        self._pending.append(envelope)

    def _put_bulk(self, delivery: Delivery) -> None:
        try:
            header = msgspec.msgpack.decode(delivery.frames[0], type=BulkHeader)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise MessageError(f"not a {BULK_FORMAT} header: {exc}") from exc
        if header.format != BULK_FORMAT or (self.run and header.run != self.run):
            raise MessageError(f"bulk data of {header.format}, run {header.run!r}; expected run {self.run!r}")
        _check_bulk(header.kind, header.total_bytes)
        source, chunk = delivery.source, delivery.frames[1]
        # Whatever is wrong with a chunk, its transfer is over: a sender starts again with chunk 0.
        assembly = self._assemblies.pop(source, None)
        if header.index == 0:
            assembly = _Assembly(header)
        if assembly is None or header != msgspec.structs.replace(assembly.header, index=len(assembly.chunks)):
            raise MessageError(f"chunk {header.index} of {header.purpose} from {source} out of order")
        left = header.total_bytes - header.index * CHUNK_BYTES
        if header.num_chunks != _num_chunks(header.total_bytes) or len(chunk) != min(left, CHUNK_BYTES):
            raise MessageError(
                f"{header.purpose} from {source}: chunk {header.index} of {header.num_chunks} has {len(chunk)} "
                f"bytes, which does not fit the {header.total_bytes} stated"
            )
        assembly.chunks.append(chunk)
        if len(assembly.chunks) < header.num_chunks:
            self._assemblies[source] = assembly
            return
        data = b"".join(assembly.chunks)
        if hashlib.blake2b(data, digest_size=16).digest() != header.digest:
            raise MessageError(f"{header.purpose} from {source} arrived damaged")
        future = self._bulk_waiters.get(header.purpose)
        if future is not None and not future.done():
            future.set_result(data)
        else:
            waiting = sum(map(len, self._bulk_ready.values())) + len(data)
            if waiting > MAX_BULK_BYTES:
                raise MessageError(
                    f"{waiting} bytes of weights wait here for nobody; dropped {header.purpose}"
                )
            self._bulk_ready[header.purpose] = data


def _num_chunks(num_bytes: int) -> int:
    return max(1, -(-num_bytes // CHUNK_BYTES))


def _check_bulk(kind: str, num_bytes: int) -> None:
    if kind not in BULK_KINDS:
        raise MessageError(
            f"the bulk plane carries {', '.join(BULK_KINDS)}, not {kind}: smashed data and gradients go over the air"
        )
    if not 0 <= num_bytes <= MAX_BULK_BYTES:
        raise MessageError(f"{num_bytes} bytes of {kind} are not in the 0 to {MAX_BULK_BYTES} allowed")
