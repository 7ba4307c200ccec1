"""Control messages: what one node encodes the other reads, and everything else is refused in words."""

from __future__ import annotations

import types
import typing

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodes.errors import MessageError
from nodes.messages import (
    CONTROL_FORMAT,
    MAX_CONTROL_BYTES,
    Body,
    Envelope,
    Evaluate,
    FrameAck,
    GradientNotice,
    Heartbeat,
    Message,
    decode_envelope,
    encode_envelope,
)

BODIES = typing.get_args(Body)


def values_of(kind: object) -> st.SearchStrategy:
    """Values of a field's type, by introspection: a field that is added is tested."""
    simple = {
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        str: st.text(max_size=8),
        bytes: st.binary(max_size=16),
        type(None): st.none(),
    }
    if kind in simple:
        return simple[kind]  # type: ignore[index]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is tuple:
        assert arguments[1:] == (...,), f"teach this test about {kind}"
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=2)
    assert isinstance(kind, type), f"teach this test about {kind}"
    assert issubclass(kind, msgspec.Struct), f"teach this test about {kind}"
    hints = typing.get_type_hints(kind)
    named = {name: values_of(hints[name]) for name in kind.__struct_fields__}
    if "format" in named:
        named["format"] = st.just(CONTROL_FORMAT)
    return st.builds(kind, **named)


def envelope(body: Message, **changes: object) -> Envelope:
    plain = Envelope("run-1", "board-1", "server", 3, 1, 17, 123_456_789_012, body)
    return msgspec.structs.replace(plain, **changes)


def examples(seed: int, number: int) -> list[Envelope]:
    """Some envelope of each body type, filled from a seeded generator."""
    rng = np.random.default_rng(seed)

    def some(kind: object) -> object:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return some(arguments[rng.integers(len(arguments))])
        if origin is tuple:
            return tuple(some(arguments[0]) for _ in range(rng.integers(4)))
        if origin is dict:
            return {str(some(str)): some(arguments[1]) for _ in range(rng.integers(3))}
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            hints = typing.get_type_hints(kind)
            filled = {name: some(hints[name]) for name in kind.__struct_fields__}
            return kind(**filled | ({"format": CONTROL_FORMAT} if "format" in filled else {}))
        return {
            int: int(rng.integers(-(2**40), 2**40)),
            float: float(rng.standard_normal()),
            bool: bool(rng.integers(2)),
            str: f"name-{rng.integers(100)}",
            bytes: rng.bytes(int(rng.integers(8))),
            type(None): None,
        }[kind]  # type: ignore[index]

    return [envelope(some(kind)) for kind in BODIES for _ in range(number)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.__name__)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_message_arrives_as_it_was_sent(kind: type[Message], data: st.DataObject) -> None:
    sent = envelope(data.draw(values_of(kind)), takes_effect_ns=data.draw(values_of(int)))
    received = decode_envelope(encode_envelope(sent))
    assert received == sent
    assert type(received.body) is kind


def test_every_message_type_has_a_tag_of_its_own_and_a_place_in_the_union() -> None:
    tags = [msgspec.inspect.type_info(kind).tag for kind in BODIES]
    assert len(set(tags)) == len(BODIES)
    assert set(Message.__subclasses__()) == set(BODIES)


def test_a_message_of_exactly_64_kib_travels_and_one_byte_more_does_not() -> None:
    def frame_of(length: int) -> bytes:
        return encode_envelope(envelope(FrameAck("uplink", 1, bytes(length), False)))

    overhead = len(frame_of(60_000)) - 60_000  # both lengths take two bytes of header
    assert len(frame_of(MAX_CONTROL_BYTES - overhead)) == MAX_CONTROL_BYTES == 65536
    with pytest.raises(MessageError) as refused:
        frame_of(MAX_CONTROL_BYTES - overhead + 1)
    for word in ("FrameAck from board-1 to server", "65537", "65536", "bulk plane", "over the air"):
        assert word in str(refused.value)


def test_a_received_frame_above_64_kib_is_refused_before_it_is_parsed() -> None:
    frame = msgspec.msgpack.encode(envelope(FrameAck("uplink", 1, bytes(MAX_CONTROL_BYTES), False)))
    with pytest.raises(MessageError, match=f"{len(frame)} bytes exceeds {MAX_CONTROL_BYTES}"):
        decode_envelope(frame)
    with pytest.raises(MessageError, match="exceeds"):
        decode_envelope(b"\xc1" * (MAX_CONTROL_BYTES + 1))


def test_another_version_is_refused_naming_both() -> None:
    frame = msgspec.msgpack.encode(envelope(Heartbeat(), format="control/9"))
    with pytest.raises(MessageError, match=r"this side speaks control/1, board-1 speaks control/9"):
        decode_envelope(frame)


def test_a_later_version_with_a_body_that_nobody_here_knows_is_refused_for_its_version() -> None:
    """The version decides, and is looked at before the body that only the other side understands."""
    document = msgspec.msgpack.decode(encode_envelope(envelope(Heartbeat())))
    document |= {"format": "control/9", "body": {"t": "from-the-future", "x": 1}}
    with pytest.raises(MessageError, match="speaks control/9"):
        decode_envelope(msgspec.msgpack.encode(document))


@pytest.mark.parametrize(
    "document",
    [{}, [], 7, {"format": 1}, {"body": {"t": "stop", "reason": "no envelope"}}, "heartbeat", None],
    ids=str,
)
def test_well_formed_msgpack_that_is_no_envelope_is_refused(document: object) -> None:
    with pytest.raises(MessageError, match=r"not a control/1 message|speaks"):
        decode_envelope(msgspec.msgpack.encode(document))


def test_values_of_another_type_are_refused_not_converted() -> None:
    good = msgspec.msgpack.decode(encode_envelope(envelope(GradientNotice(True, False, 0.5))))
    assert decode_envelope(msgspec.msgpack.encode(good)).body == GradientNotice(True, False, 0.5)
    for key, wrong in (("broadcast", 1), ("weight", "0.5"), ("words", b"raw"), ("t", "no-such-message")):
        changed = good | {"body": good["body"] | {key: wrong}}
        with pytest.raises(MessageError, match="not a control/1 message"):
            decode_envelope(msgspec.msgpack.encode(changed))


def test_damaged_frames_are_refused_or_read_and_nothing_else_happens() -> None:
    """20,000 mutated, cut, stretched and spliced frames: an envelope or MessageError, never another error."""
    rng = np.random.default_rng(20_000)
    frames = [encode_envelope(one) for one in examples(1, 4)]
    refused = 0
    for number in range(20_000):
        frame = bytearray(frames[rng.integers(len(frames))])
        kind = number % 5
        if kind == 0:  # flipped bits
            for _ in range(rng.integers(1, 9)):
                frame[rng.integers(len(frame))] ^= 1 << int(rng.integers(8))
        elif kind == 1:  # truncated
            del frame[rng.integers(len(frame)) :]
        elif kind == 2:  # something inserted
            position = int(rng.integers(len(frame)))
            frame[position:position] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 3:  # two frames spliced
            other = frames[rng.integers(len(frames))]
            frame[rng.integers(len(frame)) :] = other[rng.integers(len(other)) :]
        else:  # garbage
            frame[:] = rng.bytes(int(rng.integers(200)))
        try:
            decoded = decode_envelope(bytes(frame))
        except MessageError:
            refused += 1
        else:
            assert isinstance(decoded, Envelope)
            assert isinstance(decoded.body, BODIES)
    assert refused > 12_000  # so most of them were really damaged


def test_a_length_that_lies_allocates_nothing() -> None:
    """Arrays and byte strings that claim 4 GiB in a short frame are refused by their missing bytes."""
    good = encode_envelope(envelope(Evaluate("test", ("a", "b"))))
    at = good.index(b"\x92\xa1a\xa1b")
    for claim in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        with pytest.raises(MessageError, match="not a control/1 message"):
            decode_envelope(good[:at] + claim + good[at + 1 :])


def test_deep_nesting_is_refused() -> None:
    """Also in a field that no version knows, which a reader skips."""
    with pytest.raises(MessageError, match="not a control/1 message"):
        decode_envelope(b"\x91" * 60_000)
    good = encode_envelope(envelope(Heartbeat()))
    frame = bytes([good[0] + 1]) + good[1:] + b"\xa5extra" + b"\x91" * 60_000 + b"\x00"
    with pytest.raises(MessageError, match="not a control/1 message"):
        decode_envelope(frame)
