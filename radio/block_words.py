"""What ports say to an air of ``blocks`` fidelity, and what it answers: slots in place of samples.

On the wire each is the second frame behind a word of :mod:`radio.plane`: a msgpack struct whose
arrays are bytes of stated lengths.  Nothing is allocated for what does not fit the air's numerology.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from radio.errors import PlaneError
from radio.mcs import mcs_table
from radio.numerology import Numerology
from radio.phy import UNUSED, ReceivedSlots, block_bytes
from radio.plane import MAX_BURST_SAMPLES

MAX_REMEMBERED = 1 << 14  # failed blocks that a request may bring along
DIGEST_BYTES = 8
_SUBCHANNEL_BYTES = 1 << 16

Place = tuple[int, int]  # slot, counted from the first of the burst or window; subchannel


@dataclass(frozen=True, eq=False)
class SlotBurst:
    """Blocks of consecutive slots, as :func:`radio.phy.modulate_slots` takes them.

    Attributes
    ----------
    blocks
        Payload by (slot, subchannel).
    mcs_index
        int64 ``[num_subchannels]``.
    amplitude
        float64 ``[num_subchannels]``.
    cycles_per_sample
        Carrier offset that the transmitter puts in, over the sample rate.
    """

    num_slots: int
    blocks: dict[Place, bytes]
    mcs_index: NDArray[np.int64]
    amplitude: NDArray[np.float64]
    cycles_per_sample: float = 0.0


@dataclass(frozen=True, eq=False)
class SlotRequest:
    """What a receiver expects in consecutive slots, as :func:`radio.phy.demodulate_slots` takes it.

    Attributes
    ----------
    cycles_per_sample
        Carrier offset that the receiver takes out, over the sample rate.
    remembered
        SNR that earlier copies of a block have left in the receiver's memory, by content; ``None``
        where the receiver keeps none.
    """

    num_slots: int
    mcs_index: NDArray[np.int64]
    owner: NDArray[np.int64]
    cycles_per_sample: float = 0.0
    remembered: dict[bytes, float] | None = None


@dataclass(eq=False)
class SlotReception:
    """Answer to a :class:`SlotRequest`.

    Attributes
    ----------
    failed
        Content of the blocks that could not be decoded, with the SNR that all copies together had;
        filled where the request brought a memory along.
    clipped_samples
        Samples of the window beyond the receiver's full scale.
    """

    received: ReceivedSlots
    failed: dict[bytes, float] = field(default_factory=dict)
    clipped_samples: int = 0


def block_digest(mcs_index: int, payload: bytes) -> bytes:
    """What tells blocks of different content apart: two of one digest are copies of each other."""
    return hashlib.blake2b(payload, digest_size=DIGEST_BYTES, key=mcs_index.to_bytes(2, "little")).digest()


# ------------------------------------------------------------------------------------- on the wire
_Array = Annotated[bytes, msgspec.Meta(max_length=_SUBCHANNEL_BYTES)]
_NumSlots = Annotated[int, msgspec.Meta(ge=1, le=MAX_BURST_SAMPLES)]
_Cycles = Annotated[float, msgspec.Meta(ge=-0.5, le=0.5)]


class _Burst(msgspec.Struct, frozen=True):
    num_slots: _NumSlots
    cycles_per_sample: _Cycles
    mcs_index: _Array
    amplitude: _Array
    places: bytes  # int32 [num_blocks, 2]
    payload: bytes  # one after the other


class _Request(msgspec.Struct, frozen=True):
    num_slots: _NumSlots
    cycles_per_sample: _Cycles
    mcs_index: _Array
    owner: _Array
    digests: Annotated[bytes, msgspec.Meta(max_length=MAX_REMEMBERED * DIGEST_BYTES)] | None
    snr: Annotated[bytes, msgspec.Meta(max_length=MAX_REMEMBERED * 8)]


class _Reception(msgspec.Struct, frozen=True):
    attempted: bytes
    snr: bytes
    noise_power: bytes
    evm: float | None
    places: bytes
    payload: bytes
    lengths: bytes  # uint32 [num_blocks]
    digests: bytes
    failed_snr: bytes
    clipped_samples: int


_encoder = msgspec.msgpack.Encoder()
_burst_decoder = msgspec.msgpack.Decoder(_Burst)
_request_decoder = msgspec.msgpack.Decoder(_Request)
_reception_decoder = msgspec.msgpack.Decoder(_Reception)
_Struct = TypeVar("_Struct")


def _decode(decoder: msgspec.msgpack.Decoder[_Struct], data: bytes, what: str) -> _Struct:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise PlaneError(f"not {what}: {exc}") from exc


def _array(data: bytes, kind: str, shape: tuple[int, ...], what: str) -> NDArray[np.generic]:
    """Array of an exact shape; -1 in its first place is as many as there are."""
    kind_of_item = np.dtype(kind)
    row = kind_of_item.itemsize * int(np.prod(shape[1:]))
    rows = len(data) // row if shape[0] < 0 else shape[0]
    if len(data) != rows * row:
        raise PlaneError(f"{len(data)} bytes are not {what} of shape {list(shape)}")
    return np.frombuffer(data, kind_of_item).reshape(rows, *shape[1:])


def encode_burst(burst: SlotBurst) -> bytes:
    """Bytes of a burst."""
    return _encoder.encode(
        _Burst(
            burst.num_slots,
            burst.cycles_per_sample,
            burst.mcs_index.astype("<i4").tobytes(),
            burst.amplitude.astype("<f8").tobytes(),
            np.array(list(burst.blocks), "<i4").tobytes(),
            b"".join(burst.blocks.values()),
        )
    )


def decode_burst(data: bytes, numerology: Numerology) -> SlotBurst:
    """A burst from bytes.

    Raises
    ------
    PlaneError
        It is none, or does not fit the numerology.
    """
    told = _decode(_burst_decoder, data, "a burst of blocks")
    num = numerology.num_subchannels
    mcs_index = _array(told.mcs_index, "<i4", (num,), "MCS indices").astype(np.int64)
    amplitude = _array(told.amplitude, "<f8", (num,), "amplitudes").astype(np.float64)
    places = _array(told.places, "<i4", (-1, 2), "places")
    _check_mcs(mcs_index)
    if len(places) > told.num_slots * num:
        raise PlaneError(f"{len(places)} blocks in {told.num_slots} slots of {num} subchannels")
    lengths = [-1 if mcs == UNUSED else block_bytes(numerology, mcs) for mcs in mcs_index.tolist()]
    blocks: dict[Place, bytes] = {}
    position = 0
    for slot, subchannel in places.tolist():
        if not (0 <= slot < told.num_slots and 0 <= subchannel < num) or lengths[subchannel] < 0:
            raise PlaneError(f"a block in slot {slot}, subchannel {subchannel}, where none can be")
        length = lengths[subchannel]
        blocks[slot, subchannel] = told.payload[position : position + length]
        position += length
    if position != len(told.payload) or len(blocks) != len(places):
        raise PlaneError(f"{len(told.payload)} bytes of payload are not those of {len(places)} blocks")
    burst = SlotBurst(told.num_slots, blocks, mcs_index, amplitude, told.cycles_per_sample)
    check_burst(burst, numerology)
    return burst


def check_burst(burst: SlotBurst, numerology: Numerology) -> None:
    """Refuse a burst that no modulator would take.

    Raises
    ------
    PlaneError
        It has places outside of its slots, payloads of a wrong length or amplitudes that are none.
    """
    num = numerology.num_subchannels
    if not 0 < burst.num_slots <= MAX_BURST_SAMPLES // numerology.slot_samples:
        raise PlaneError(
            f"a burst of {burst.num_slots} slots; at most {MAX_BURST_SAMPLES} samples are one burst"
        )
    if burst.mcs_index.shape != (num,) or burst.amplitude.shape != (num,):
        raise PlaneError(f"a burst for {len(burst.mcs_index)} subchannels on an air of {num}")
    if not (np.isfinite(burst.amplitude).all() and (burst.amplitude >= 0).all()):
        raise PlaneError("an amplitude of a burst is no number or negative")
    _check_mcs(burst.mcs_index)
    lengths = [-1 if mcs == UNUSED else block_bytes(numerology, mcs) for mcs in burst.mcs_index.tolist()]
    for (slot, subchannel), payload in burst.blocks.items():
        if not (0 <= slot < burst.num_slots and 0 <= subchannel < num):
            raise PlaneError(f"a block in slot {slot}, subchannel {subchannel} of a burst without them")
        if len(payload) != lengths[subchannel]:
            mcs = int(burst.mcs_index[subchannel])
            raise PlaneError(f"a block of {len(payload)} bytes at MCS {mcs} in subchannel {subchannel}")


def _check_mcs(mcs_index: NDArray[np.int64]) -> None:
    if len(mcs_index) and not (mcs_index.min() >= UNUSED and mcs_index.max() < len(mcs_table())):
        raise PlaneError(f"an MCS index outside of {UNUSED}..{len(mcs_table()) - 1}")


def check_request(request: SlotRequest, numerology: Numerology) -> None:
    """Refuse a request that does not fit the air.

    Raises
    ------
    PlaneError
        It asks for no slots or too many, or for other subchannels.
    """
    num = numerology.num_subchannels
    if not 0 < request.num_slots <= MAX_BURST_SAMPLES // numerology.slot_samples:
        raise PlaneError(f"a window of {request.num_slots} slots is empty or too long")
    if request.mcs_index.shape != (num,) or request.owner.shape != (num,):
        raise PlaneError(f"a window of {len(request.mcs_index)} subchannels on an air of {num}")
    _check_mcs(request.mcs_index)


def encode_request(request: SlotRequest) -> bytes:
    """Bytes of a request."""
    remembered = request.remembered
    return _encoder.encode(
        _Request(
            request.num_slots,
            request.cycles_per_sample,
            request.mcs_index.astype("<i4").tobytes(),
            request.owner.astype("<i4").tobytes(),
            None if remembered is None else b"".join(remembered),
            np.array(list((remembered or {}).values()), "<f8").tobytes(),
        )
    )


def decode_request(data: bytes, numerology: Numerology) -> SlotRequest:
    """A request from bytes.

    Raises
    ------
    PlaneError
        It is none, or does not fit the numerology.
    """
    told = _decode(_request_decoder, data, "a request for slots")
    num = numerology.num_subchannels
    remembered = None
    if told.digests is not None:
        digests = [
            told.digests[start : start + DIGEST_BYTES] for start in range(0, len(told.digests), DIGEST_BYTES)
        ]
        snr = _array(told.snr, "<f8", (len(digests),), "SNRs of remembered blocks")
        remembered = dict(zip(digests, snr.tolist(), strict=True))
    request = SlotRequest(
        told.num_slots,
        _array(told.mcs_index, "<i4", (num,), "MCS indices").astype(np.int64),
        _array(told.owner, "<i4", (num,), "owners").astype(np.int64),
        told.cycles_per_sample,
        remembered,
    )
    check_request(request, numerology)
    return request


def encode_reception(reception: SlotReception) -> bytes:
    """Bytes of an answer."""
    received, blocks = reception.received, reception.received.blocks
    return _encoder.encode(
        _Reception(
            received.attempted.tobytes(),
            received.snr.astype("<f4").tobytes(),
            received.noise_power.astype("<f4").tobytes(),
            float(received.evm) if np.isfinite(received.evm) else None,
            np.array(list(blocks), "<i4").tobytes(),
            b"".join(blocks.values()),
            np.array([len(block) for block in blocks.values()], "<u4").tobytes(),
            b"".join(reception.failed),
            np.array(list(reception.failed.values()), "<f8").tobytes(),
            reception.clipped_samples,
        )
    )


def decode_reception(data: bytes, num_slots: int, num_subchannels: int) -> SlotReception:
    """An answer from bytes.

    Raises
    ------
    PlaneError
        It is none, or has another shape than what was asked for.
    """
    told = _decode(_reception_decoder, data, "an answer of the air")
    shape = (num_slots, num_subchannels)
    places = _array(told.places, "<i4", (-1, 2), "places")
    lengths = _array(told.lengths, "<u4", (len(places),), "lengths")
    ends = np.cumsum(lengths, dtype=np.int64)
    if (int(ends[-1]) if len(ends) else 0) != len(told.payload):
        raise PlaneError(f"{len(told.payload)} bytes of payload are not those of {len(places)} blocks")
    blocks = {
        (slot, subchannel): told.payload[end - length : end]
        for (slot, subchannel), length, end in zip(
            places.tolist(), lengths.tolist(), ends.tolist(), strict=True
        )
    }
    snr = _array(told.failed_snr, "<f8", (-1,), "SNRs of failed blocks")
    if len(told.digests) != DIGEST_BYTES * len(snr):
        raise PlaneError("an answer of the air names other failed blocks than it has SNRs of")
    failed = {
        told.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]: float(value)
        for index, value in enumerate(snr.tolist())
    }
    return SlotReception(
        ReceivedSlots(
            blocks,
            _array(told.attempted, "?", shape, "flags").astype(bool),
            _array(told.snr, "<f4", shape, "SNRs").astype(np.float32),
            _array(told.noise_power, "<f4", shape, "noise powers").astype(np.float32),
            float("nan") if told.evm is None else told.evm,
            0,
        ),
        failed,
        told.clipped_samples,
    )
