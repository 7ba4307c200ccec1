"""The two planes besides the air: one body of facts over the in-memory wire and over ZeroMQ."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from nodes.codec import encode_tensors
from nodes.errors import MessageError, PeerLostError, StoppedError, WaitTimeoutError
from nodes.messages import (
    CONTROLLER,
    MAX_CONTROL_BYTES,
    Envelope,
    FrameAck,
    Heartbeat,
    Hello,
    PeerLost,
    Stop,
    UplinkIntent,
    WeightsDone,
    encode_envelope,
)
from nodes.transport.endpoint import MAX_BULK_BYTES, MAX_PENDING, BulkHeader, Endpoint
from nodes.transport.wire import CHUNK_BYTES, Delivery, MemoryHub, Plane, Wire
from nodes.transport.zeromq import ZmqHub, ZmqWire
from nodes.weights import WeightsError, manifest_of, pack_weights, unpack_weights

LIMIT_S = 20.0  # of waits that must succeed
SHORT_S = 0.05  # of waits that must not
NAMES = ("a", "b")


@dataclass
class Net:
    """A controller and two nodes that have found each other."""

    ends: dict[str, Endpoint]
    refusals: dict[str, list[tuple[str, str]]]
    hub: MemoryHub | ZmqHub

    async def settle(self, source: str, target: str) -> None:
        """Return once everything that ``source`` has sent to ``target`` was read there."""
        await self.ends[source].send(target, WeightsDone("settled", 0))
        await self.ends[target].take(WeightsDone, source, timeout_s=LIMIT_S, what="the last message")

    def wire(self, name: str) -> Wire:
        return self.ends[name]._wire


@asynccontextmanager
async def connected(kind: str) -> AsyncIterator[Net]:
    refusals: dict[str, list[tuple[str, str]]] = {name: [] for name in (CONTROLLER, *NAMES, "hub")}
    context = zmq.Context()
    hub: MemoryHub | ZmqHub
    wires: dict[str, Wire]
    if kind == "memory":
        hub = MemoryHub()
        wires = {name: hub.wire(name) for name in (CONTROLLER, *NAMES)}
    else:
        hub = ZmqHub(
            context, "tcp://127.0.0.1:*", NAMES, lambda peer, why: refusals["hub"].append((peer, why))
        )
        wires = {CONTROLLER: hub, **{name: ZmqWire(context, hub.endpoint, name) for name in NAMES}}

    def observer(name: str) -> Callable[[str, str], None]:
        return lambda peer, why: refusals[name].append((peer, why))

    ends = {name: Endpoint(wire, "run-1", observer(name)) for name, wire in wires.items()}
    try:
        for name in NAMES:
            await ends[name].send(CONTROLLER, Hello(0, {}))
            await ends[CONTROLLER].take(Hello, name, timeout_s=LIMIT_S, what="hello")
        yield Net(ends, refusals, hub)
    finally:
        for end in (*(ends[name] for name in NAMES), ends[CONTROLLER]):
            await end.close()
        context.term()


Body = Callable[[Net], Coroutine[Any, Any, None]]


@pytest.fixture(params=["memory", "zeromq"])
def over(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """Runs a body over a transport."""

    def run(body: Body) -> None:
        async def main() -> None:
            async with connected(request.param) as net:
                await body(net)

        asyncio.run(main())

    run.kind = request.param  # type: ignore[attr-defined]
    return run


def intent(number: int, stream: str = "uplink") -> UplinkIntent:
    return UplinkIntent(stream, number)


# ------------------------------------------------------------------------------------------ control
def test_messages_of_one_pair_arrive_in_order_and_with_their_envelope(over) -> None:
    async def body(net: Net) -> None:
        for number in range(200):
            await net.ends["a"].send("b", intent(number), round_index=4, attempt=2, at_ns=number * 10)
        sequence = 0
        for number in range(200):
            message, envelope = await net.ends["b"].take(UplinkIntent, "a", timeout_s=LIMIT_S)
            assert message == intent(number)
            assert (envelope.source, envelope.target) == ("a", "b")
            assert (envelope.round_index, envelope.attempt, envelope.takes_effect_ns) == (4, 2, number * 10)
            assert envelope.sequence > sequence
            sequence = envelope.sequence

    over(body)


def test_take_finds_what_it_was_asked_for_and_leaves_the_rest_in_order(over) -> None:
    async def body(net: Net) -> None:
        for number in range(4):
            await net.ends["a"].send("b", intent(number), round_index=number % 2)
        await net.ends[CONTROLLER].send("b", intent(9), round_index=1)
        await net.ends["a"].send("b", Stop("no intent"))
        await net.settle("a", "b")
        await net.settle(CONTROLLER, "b")
        take = net.ends["b"].take
        assert (await take(Stop, None, timeout_s=LIMIT_S))[0] == Stop("no intent")
        wanted = await take(
            UplinkIntent, "a", timeout_s=LIMIT_S, round_index=1, accepts=lambda one: one.first_slot > 1
        )
        assert wanted[0] == intent(3)
        assert (await take(UplinkIntent, CONTROLLER, timeout_s=LIMIT_S))[0] == intent(9)
        left = [(await take((UplinkIntent, Stop), "a", timeout_s=LIMIT_S))[0] for _ in range(3)]
        assert left == [intent(0), intent(1), intent(2)]

    over(body)


def test_draining_takes_all_of_one_kind_and_source_and_nothing_else(over) -> None:
    async def body(net: Net) -> None:
        for number in range(3):
            await net.ends["a"].send("b", intent(number))
        await net.ends["a"].send("b", Stop("no intent"))
        await net.ends[CONTROLLER].send("b", intent(9))
        await net.settle("a", "b")
        await net.settle(CONTROLLER, "b")
        end = net.ends["b"]
        assert end.drain(UplinkIntent, "a") == [intent(0), intent(1), intent(2)]
        assert end.drain(UplinkIntent, "a") == []
        assert (await end.take(Stop, "a", timeout_s=LIMIT_S))[0] == Stop("no intent")
        assert end.drain(UplinkIntent, CONTROLLER) == [intent(9)]

    over(body)


def test_waiters_get_only_what_they_accept_whoever_waited_first(over) -> None:
    async def body(net: Net) -> None:
        end = net.ends["b"]
        late = asyncio.create_task(
            end.take(UplinkIntent, "a", timeout_s=LIMIT_S, accepts=lambda one: one.first_slot == 2)
        )
        early = asyncio.create_task(end.take(UplinkIntent, "a", timeout_s=LIMIT_S))
        await asyncio.sleep(0)  # both wait now
        await net.ends["a"].send("b", intent(1))
        await net.ends["a"].send("b", intent(2))
        assert (await early)[0] == intent(1)
        assert (await late)[0] == intent(2)

    over(body)


def test_a_timeout_says_who_waited_for_what_from_whom_and_how_long(over) -> None:
    async def body(net: Net) -> None:
        with pytest.raises(
            WaitTimeoutError, match=r"^b waited 0\.05 s for the permit to send after sounding from a$"
        ):
            await net.ends["b"].take(Stop, "a", timeout_s=SHORT_S, what="the permit to send after sounding")
        with pytest.raises(WaitTimeoutError, match=r"Stop.* from anyone"):
            await net.ends["b"].take(Stop, None, timeout_s=SHORT_S)
        with pytest.raises(WaitTimeoutError, match=r"b waited 0\.05 s for weights \(start/b\)"):
            await net.ends["b"].take_bulk("start/b", SHORT_S)
        # Who gave up waiting takes nothing away from the next.
        await net.ends["a"].send("b", Stop("now"))
        assert (await net.ends["b"].take(Stop, "a", timeout_s=LIMIT_S))[0].reason == "now"

    over(body)


def test_losing_a_peer_ends_waits_for_it_alone_until_it_is_back(over) -> None:
    async def body(net: Net) -> None:
        end = net.ends["b"]
        for_a = asyncio.create_task(end.take(Stop, "a", timeout_s=LIMIT_S))
        for_all = asyncio.create_task(end.take(Stop, None, timeout_s=LIMIT_S))
        await net.ends["a"].send("b", intent(1))
        await net.settle("a", "b")
        await net.ends[CONTROLLER].send("b", PeerLost("a", "silent for 2.1 s"))
        with pytest.raises(PeerLostError, match=r"^a is lost: silent for 2\.1 s$"):
            await for_a
        assert not for_all.done()
        with pytest.raises(PeerLostError, match="a is lost"):
            await end.take(Stop, "a", timeout_s=LIMIT_S)
        assert (await end.take(UplinkIntent, "a", timeout_s=LIMIT_S))[0] == intent(1)  # it came in time
        end.regain("a")
        await net.ends["a"].send("b", Stop("back"))
        assert (await for_all)[0].reason == "back"
        with pytest.raises(WaitTimeoutError):
            await end.take(Stop, "a", timeout_s=SHORT_S)

    over(body)


def test_only_the_controller_declares_peers_lost(over) -> None:
    async def body(net: Net) -> None:
        await net.ends["a"].send("b", PeerLost(CONTROLLER, "says a board"))
        await net.settle("a", "b")
        assert net.ends["b"].lost == {}

    over(body)


def test_the_end_ends_every_wait_open_or_to_come(over) -> None:
    async def body(net: Net) -> None:
        end = net.ends["b"]
        waits = [
            asyncio.create_task(end.take(Stop, "a", timeout_s=LIMIT_S)),
            asyncio.create_task(end.take_bulk("start/b", LIMIT_S)),
        ]
        await asyncio.sleep(0)
        end.end("the controller has been silent for 6.0 s")
        end.end("a later reason")
        waits.append(asyncio.create_task(end.take(Stop, None, timeout_s=LIMIT_S)))
        waits.append(asyncio.create_task(end.take_bulk("evaluate/1", LIMIT_S)))
        done, _ = await asyncio.wait(waits, timeout=LIMIT_S / 4)
        assert len(done) == 4
        for wait in waits:
            failure = wait.exception()
            assert isinstance(failure, StoppedError)
            assert str(failure) == "the controller has been silent for 6.0 s"

    over(body)


def test_messages_of_earlier_rounds_are_stale_refused_and_counted(over) -> None:
    async def body(net: Net) -> None:
        end = net.ends["b"]
        await net.ends["a"].send("b", intent(1), round_index=6)  # waits there when the round changes
        await net.ends["a"].send("b", intent(2), round_index=7)
        await net.ends["a"].send("b", Stop("outside of rounds"))
        await net.settle("a", "b")
        end.enter_round(7)
        assert end.stale == 1
        await net.ends["a"].send("b", intent(3), round_index=6)  # comes late
        await net.ends["a"].send("b", intent(4), round_index=8)  # is early
        await net.settle("a", "b")
        assert end.stale == 2
        assert [(await end.take(UplinkIntent, "a", timeout_s=LIMIT_S))[0] for _ in range(2)] == [
            intent(2),
            intent(4),
        ]
        assert (await end.take(Stop, "a", timeout_s=LIMIT_S))[1].round_index == -1
        assert end.refused == 0

    over(body)


def test_a_forged_source_is_refused_and_the_forger_named(over) -> None:
    async def body(net: Net) -> None:
        forged = Envelope("run-1", CONTROLLER, "b", -1, 0, 1, 0, Stop("forged"))
        await net.wire("a").send("b", Plane.CONTROL, (encode_envelope(forged),))
        await net.settle("a", "b")
        assert net.ends["b"].refused == 1
        assert net.refusals["b"] == [("a", "a signed a message as controller")]
        with pytest.raises(WaitTimeoutError):
            await net.ends["b"].take(Stop, None, timeout_s=SHORT_S)

    over(body)


def test_messages_of_another_run_are_refused_but_for_a_first_hello(over) -> None:
    async def body(net: Net) -> None:
        sender, end = net.ends["a"], net.ends["b"]
        for run, message in (
            ("run-0", Stop("of yesterday")),
            ("run-0", Hello(1, {})),
            ("", Stop("of no run")),
            ("", Hello(2, {})),
        ):
            sender.run = run
            await sender.send("b", message)
        sender.run = "run-1"
        await net.settle("a", "b")
        assert end.refused == 3
        assert "run 'run-0'; this is run 'run-1'" in net.refusals["b"][0][1]
        hello, _ = await end.take((Hello, Stop), "a", timeout_s=LIMIT_S)
        assert hello == Hello(2, {})
        with pytest.raises(WaitTimeoutError):
            await end.take((Hello, Stop), "a", timeout_s=SHORT_S)

    over(body)


def test_damaged_frames_are_counted_and_the_next_message_arrives(over) -> None:
    async def body(net: Net) -> None:
        rng = np.random.default_rng(3)
        frame = encode_envelope(Envelope("run-1", "a", "b", 0, 0, 1, 0, intent(1)))
        for _ in range(50):
            await net.wire("a").send("b", Plane.CONTROL, (frame[: rng.integers(len(frame))],))
        nested = bytes([frame[0] + 1]) + frame[1:] + b"\xa5extra" + b"\x91" * 60_000 + b"\x00"
        await net.wire("a").send("b", Plane.CONTROL, (nested,))
        await net.wire("a").send("b", Plane.BULK, (b"\x81\xa5extra" + b"\x91" * 60_000 + b"\x00", b""))
        await net.settle("a", "b")
        assert net.ends["b"].refused == 52 == len(net.refusals["b"])
        assert net.ends["b"].ended is None

    over(body)


def test_both_planes_refuse_what_is_too_large_to_send(over) -> None:
    async def body(net: Net) -> None:
        with pytest.raises(MessageError, match=r"65536.*bulk plane.*air"):
            await net.ends["a"].send("b", FrameAck("uplink", 0, bytes(MAX_CONTROL_BYTES), False))
        wire = net.wire("a")
        with pytest.raises(MessageError, match=f"{MAX_CONTROL_BYTES + 1} bytes exceeds"):
            await wire.send("b", Plane.CONTROL, (bytes(MAX_CONTROL_BYTES + 1),))
        with pytest.raises(MessageError, match="one part, not 2"):
            await wire.send("b", Plane.CONTROL, (b"", b""))
        with pytest.raises(MessageError, match="a header and a chunk of at most 1 MiB"):
            await wire.send("b", Plane.BULK, (b"", bytes(2 * CHUNK_BYTES)))
        await net.settle("a", "b")
        assert net.ends["b"].refused == 0  # nothing of it left

    over(body)


def test_a_flood_that_nobody_reads_is_bounded(over) -> None:
    async def body(net: Net) -> None:
        frame = encode_envelope(Envelope("run-1", "a", "b", 0, 0, 1, 0, intent(1)))
        for _ in range(MAX_PENDING + 100):
            await net.wire("a").send("b", Plane.CONTROL, (frame,))
            if net.ends["b"].last_heard_s is not None:
                await asyncio.sleep(0)
        await net.ends["a"].send("b", Heartbeat())
        flood = asyncio.get_running_loop().time() + LIMIT_S
        while net.ends["b"].refused < 100 and asyncio.get_running_loop().time() < flood:
            await asyncio.sleep(0)
        assert net.ends["b"].refused == 100
        assert f"more than {MAX_PENDING} messages wait" in net.refusals["b"][0][1]
        assert len(net.ends["b"]._pending) == MAX_PENDING

    over(body)


def test_a_message_to_nobody_harms_nobody(over) -> None:
    async def body(net: Net) -> None:
        await net.ends["a"].send("nobody", Stop("hello?"))
        await net.ends[CONTROLLER].send("nobody", Stop("hello?"))
        await net.settle("a", CONTROLLER)
        await net.settle(CONTROLLER, "a")
        if over.kind == "zeromq":
            assert net.refusals["hub"] == [("a", "a wants to reach 'nobody', which has no part in this run")]

    over(body)


# --------------------------------------------------------------------------------------------- bulk
SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 12_345)


def test_weights_of_any_length_arrive_exactly_before_or_after_they_are_waited_for(over) -> None:
    async def body(net: Net) -> None:
        rng = np.random.default_rng(1)
        for number, size in enumerate(SIZES):
            data = rng.bytes(size)
            early = number % 2 == 0
            purpose = f"start/{size}"
            wait = asyncio.create_task(net.ends["b"].take_bulk(purpose, LIMIT_S)) if early else None
            await asyncio.sleep(0)
            await net.ends["a"].send_bulk("b", purpose, "weights", data)
            if wait is None:
                await net.settle("a", "b")
                wait = asyncio.create_task(net.ends["b"].take_bulk(purpose, LIMIT_S))
            assert await wait == data
        assert net.ends["b"].refused == 0

    over(body)


def test_weights_of_two_senders_do_not_mix(over) -> None:
    async def body(net: Net) -> None:
        rng = np.random.default_rng(2)
        data = {name: rng.bytes(2 * CHUNK_BYTES + 7) for name in ("a", CONTROLLER)}
        await asyncio.gather(
            *(net.ends[name].send_bulk("b", f"from/{name}", "weights", data[name]) for name in data)
        )
        for name, sent in data.items():
            assert await net.ends["b"].take_bulk(f"from/{name}", LIMIT_S) == sent

    over(body)


async def chunks_of(data: bytes) -> list[Delivery]:
    """What a transfer looks like on the wire."""
    hub = MemoryHub()
    queue = hub.wire("b")
    sender = Endpoint(hub.wire("a"), "run-1")
    try:
        await sender.send_bulk("b", "start/b", "weights", data)
        return [await queue.receive() for _ in range(max(1, -(-len(data) // CHUNK_BYTES)))]
    finally:
        await sender.close()


def _changed(delivery: Delivery, **changes: object) -> tuple[bytes, bytes]:
    header = msgspec.structs.replace(msgspec.msgpack.decode(delivery.frames[0], type=BulkHeader), **changes)
    return msgspec.msgpack.encode(header), delivery.frames[1]


Damage = Callable[[list[Delivery]], list[tuple[bytes, bytes]]]


def _plain(chunks: list[Delivery]) -> list[tuple[bytes, bytes]]:
    return [(chunk.frames[0], chunk.frames[1]) for chunk in chunks]


def _flip(chunks: list[Delivery]) -> list[tuple[bytes, bytes]]:
    sent = _plain(chunks)
    damaged = bytearray(sent[1][1])
    damaged[777] ^= 4
    sent[1] = sent[1][0], bytes(damaged)
    return sent


DAMAGES: dict[str, tuple[Damage, str]] = {
    "one bit flipped": (_flip, "arrived damaged"),
    "chunks swapped": (lambda c: [_plain(c)[i] for i in (0, 2, 1)], "chunk 2 .* out of order"),
    "a chunk missing": (lambda c: [_plain(c)[i] for i in (0, 2)], "chunk 2 .* out of order"),
    "a chunk twice": (lambda c: [_plain(c)[i] for i in (0, 1, 1, 2)], "chunk 1 .* out of order"),
    "the start missing": (lambda c: _plain(c)[1:], "chunk 1 .* out of order"),
    "a chunk cut short": (
        lambda c: [(c[0].frames[0], c[0].frames[1][:-1]), *_plain(c)[1:]],
        "does not fit",
    ),
    "another transfer's chunk": (
        lambda c: [_plain(c)[0], _changed(c[1], digest=bytes(16)), _plain(c)[2]],
        "chunk 1 .* out of order",
    ),
    "fewer chunks stated": (lambda c: [_changed(chunk, num_chunks=2) for chunk in c], "does not fit"),
    "more bytes stated": (
        lambda c: [_changed(chunk, total_bytes=MAX_BULK_BYTES + 1) for chunk in c],
        r"2147483649 bytes of weights are not in the 0 to 2147483648 allowed",
    ),
    "less than nothing": (lambda c: [_changed(chunk, total_bytes=-1) for chunk in c], "-1 bytes"),
    "smashed data": (
        lambda c: [_changed(chunk, kind="smashed") for chunk in c],
        "carries weights, not smashed: smashed data and gradients go over the air",
    ),
    "a gradient": (lambda c: [_changed(chunk, kind="gradient") for chunk in c], "not gradient"),
    "another run": (lambda c: [_changed(chunk, run="run-0") for chunk in c], "expected run 'run-1'"),
    "another version": (lambda c: [_changed(chunk, format="bulk/9") for chunk in c], "bulk/9"),
    "no header": (lambda c: [(b"\xc1", chunk.frames[1]) for chunk in c], "not a bulk/1 header"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_transfer_is_refused_in_words_and_can_be_repeated(over, damage: str) -> None:
    async def body(net: Net) -> None:
        data = np.random.default_rng(4).bytes(2 * CHUNK_BYTES + 99)
        chunks = await chunks_of(data)
        damaged, words = DAMAGES[damage]
        for frames in damaged(chunks):
            await net.wire("a").send("b", Plane.BULK, frames)
        await net.settle("a", "b")
        end = net.ends["b"]
        assert end.refused >= 1
        peer, reason = net.refusals["b"][0]
        assert peer == "a"
        assert re.search(words, reason), reason
        assert end._bulk_ready == {}
        await net.ends["a"].send_bulk("b", "start/b", "weights", data)
        assert await end.take_bulk("start/b", LIMIT_S) == data

    over(body)


@pytest.mark.parametrize("kind", ["smashed", "gradient", "activations", ""])
def test_only_weights_leave_over_the_bulk_plane(over, kind: str) -> None:
    async def body(net: Net) -> None:
        with pytest.raises(MessageError, match=f"carries weights, not {kind}: smashed data and gradients"):
            await net.ends["a"].send_bulk("b", "start/b", kind, b"x")

    over(body)


def test_smashed_data_that_calls_itself_weights_is_refused_by_the_manifest(over) -> None:
    """The plane sees bytes only; what they hold is held against the model's own manifest."""
    rng = np.random.default_rng(5)
    weights = {"0/param.0.weight": rng.standard_normal((4, 3)).astype(np.float32)}
    smashed = {"smashed": rng.standard_normal((8, 4)).astype(np.float32)}

    async def body(net: Net) -> None:
        for number, data in enumerate((encode_tensors(smashed), pack_weights(smashed))):
            await net.ends["a"].send_bulk("b", f"start/{number}", "weights", data)
            received = await net.ends["b"].take_bulk(f"start/{number}", LIMIT_S)
            with pytest.raises(WeightsError, match="unpacking weights"):
                unpack_weights(received, manifest_of(weights))
        await net.ends["a"].send_bulk("b", "start/2", "weights", pack_weights(weights))
        honest = unpack_weights(await net.ends["b"].take_bulk("start/2", LIMIT_S), manifest_of(weights))
        assert np.array_equal(honest["0/param.0.weight"], weights["0/param.0.weight"])

    over(body)


def test_transfers_begun_and_never_finished_do_not_pile_up(over) -> None:
    """A sender has one transfer open at a time, so it holds one chunk's memory here, not thousands."""

    async def body(net: Net) -> None:
        chunks = await chunks_of(bytes(2 * CHUNK_BYTES))
        for number in range(20):
            await net.wire("a").send("b", Plane.BULK, _changed(chunks[0], purpose=f"start/{number}"))
        await net.settle("a", "b")
        held = sum(len(part) for open_ in net.ends["b"]._assemblies.values() for part in open_.chunks)
        assert held == CHUNK_BYTES

    over(body)


# ------------------------------------------------------------------------------------------- ZeroMQ
async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited {LIMIT_S} s for {what}"
        await asyncio.sleep(0.005)


def _over_zeromq(body: Callable[[Net, zmq.Context], Awaitable[None]]) -> None:
    async def main() -> None:
        context = zmq.Context()
        try:
            async with connected("zeromq") as net:
                await body(net, context)
        finally:
            context.destroy(linger=0)

    asyncio.run(main())


def test_a_name_that_is_not_in_the_lab_is_refused_at_the_hub() -> None:
    async def body(net: Net, context: zmq.Context) -> None:
        stranger = Endpoint(ZmqWire(context, net.hub.endpoint, "stranger"), "run-1")
        try:
            for target in (CONTROLLER, "b"):
                await stranger.send(target, Stop("let me in"))
            await _until(lambda: len(net.refusals["hub"]) == 2, "two refusals")
        finally:
            await stranger.close()
        assert net.hub.refused == {"stranger": 2}
        assert net.refusals["hub"][0] == ("stranger", "'stranger' has no part in this run")
        for name in (CONTROLLER, "b"):
            with pytest.raises(WaitTimeoutError):
                await net.ends[name].take(Stop, None, timeout_s=SHORT_S)
        assert "stranger" not in net.hub.last_seen_s

    _over_zeromq(body)


def test_a_detached_node_is_no_longer_forwarded() -> None:
    async def body(net: Net, context: zmq.Context) -> None:
        net.hub.forget("a")
        await net.ends["a"].send("b", Stop("late words"))
        await _until(lambda: bool(net.refusals["hub"]), "a refusal")
        with pytest.raises(WaitTimeoutError):
            await net.ends["b"].take(Stop, None, timeout_s=SHORT_S)

    _over_zeromq(body)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([b""], "incomplete"),
        ([b"b", b"C"], "incomplete"),
        ([b"b", b"X", b"frame"], "not a valid Plane"),
        ([b"\xff\xfe", b"C", b"frame"], "decode"),
        ([b"b", b"C", b"one", b"two"], "one part, not 2"),
        ([b"b", b"C", bytes(MAX_CONTROL_BYTES + 1)], "65537 bytes exceeds"),
        ([b"b", b"B", b"header only"], "a header and a chunk"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_hub_survives_what_no_node_of_ours_would_send(parts: list[bytes], words: str) -> None:
    async def body(net: Net, context: zmq.Context) -> None:
        raw = context.socket(zmq.DEALER)
        raw.setsockopt(zmq.IDENTITY, b"a")  # takes the name over, as a board that comes back does
        raw.setsockopt(zmq.LINGER, 0)
        raw.connect(net.hub.endpoint)
        raw.send_multipart(parts)
        await _until(lambda: bool(net.refusals["hub"]), "a refusal")
        assert net.refusals["hub"][0][0] == "a"
        assert words in net.refusals["hub"][0][1]
        raw.close()
        await net.settle("b", CONTROLLER)

    _over_zeromq(body)


def test_a_part_above_a_mebibyte_costs_its_sender_the_connection_and_the_hub_nothing() -> None:
    async def body(net: Net, context: zmq.Context) -> None:
        raw = context.socket(zmq.DEALER)
        raw.setsockopt(zmq.IDENTITY, b"stranger")
        raw.setsockopt(zmq.LINGER, 0)
        monitor = raw.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        raw.connect(net.hub.endpoint)
        raw.send_multipart([b"b", b"B", b"", bytes(4 * CHUNK_BYTES)])
        await _until(lambda: bool(monitor.poll(0)), "the disconnection")
        raw.disable_monitor()
        monitor.close()
        raw.close()
        await net.settle("b", CONTROLLER)
        assert net.refusals["hub"] == []

    _over_zeromq(body)


def test_a_name_is_taken_over_by_the_one_that_comes_back() -> None:
    async def body(net: Net, context: zmq.Context) -> None:
        again = Endpoint(ZmqWire(context, net.hub.endpoint, "a"))
        try:
            await again.send(CONTROLLER, Hello(2, {}))
            hello, _ = await net.ends[CONTROLLER].take(Hello, "a", timeout_s=LIMIT_S)
            assert hello.pid == 2
            await net.ends[CONTROLLER].send("a", Stop("for the new one"))
            assert (await again.take(Stop, CONTROLLER, timeout_s=LIMIT_S))[0].reason == "for the new one"
        finally:
            await again.close()

    _over_zeromq(body)
