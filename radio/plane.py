"""The sample plane: IQ between a radio's process and the air's.

On one host samples lie in anonymous shared memory that the air creates and a radio opens through
``/proc``; it has no name in any directory, so nothing is left behind however a process ends.
Between hosts, or when a ring is full, the samples travel inside the message.  Words are
msgpack-encoded structs over ZeroMQ, checked before anything is allocated.
"""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from radio.errors import PlaneError

PLANE_FORMAT = "sample-plane/1"
MAX_BURST_SAMPLES = 1 << 22
MAX_WORD_BYTES = 4096
MAX_MESSAGE_BYTES = MAX_BURST_SAMPLES * 8
CONTROLLER_IDENTITY = b"@controller"  # no port can have this name
INLINE = -1  # ring offset of samples that travel inside the message
_HEADER_BYTES = 64  # [nonce 16 bytes][released samples, uint64][padding]


# Bounds keep what a peer says inside 64-bit arithmetic.
SampleIndex = Annotated[int, msgspec.Meta(ge=0, le=1 << 56)]
SampleCount = Annotated[int, msgspec.Meta(ge=0, le=MAX_BURST_SAMPLES)]
RingOffset = Annotated[int, msgspec.Meta(ge=INLINE, le=1 << 56)]
RoundIndex = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]


class Word(msgspec.Struct, tag_field="t", frozen=True):
    """Base of everything said on the sample plane."""


class Attach(Word, tag="attach", frozen=True):
    port: str
    boot_id: str
    format: str = PLANE_FORMAT


class Attached(Word, tag="attached", frozen=True):
    port: str
    pid: int
    tx_fd: int  # -1: no shared memory offered
    rx_fd: int
    ring_samples: int
    nonce: bytes


class Burst(Word, tag="burst", frozen=True):
    """Samples, and a promise of silence behind them (0: none)."""

    first_sample: SampleIndex
    num_samples: SampleCount
    ring_offset: RingOffset
    silent_until: SampleIndex = 0


class SlotBurst(Word, tag="slots", frozen=True):
    """A burst of blocks, which a second frame holds (:mod:`radio.block_words`)."""

    first_sample: SampleIndex
    silent_until: SampleIndex = 0


class SilentUntil(Word, tag="silent", frozen=True):
    sample: SampleIndex


class StandDown(Word, tag="stand-down", frozen=True):
    pass


class SetGain(Word, tag="gain", frozen=True):
    rx_gain_db: float


class Request(Word, tag="request", frozen=True):
    request_id: int
    first_sample: SampleIndex
    num_samples: SampleCount
    expected: tuple[str, ...]


class SlotsRequest(Word, tag="request-slots", frozen=True):
    """A window of slots; what is expected in them stands in a second frame."""

    request_id: int
    first_sample: SampleIndex
    num_samples: SampleCount
    expected: tuple[str, ...]


class Samples(Word, tag="samples", frozen=True):
    request_id: int
    first_sample: SampleIndex
    num_samples: SampleCount
    ring_offset: RingOffset
    clipped_samples: int


class Slots(Word, tag="received-slots", frozen=True):
    """Answer to :class:`SlotsRequest`, with a second frame."""

    request_id: int
    first_sample: SampleIndex


class Event(Word, tag="event", frozen=True):
    kind: str
    sample_index: int
    count: int
    detail: str


class Refused(Word, tag="refused", frozen=True):
    reason: str
    fatal: bool
    late: bool = False


class Detach(Word, tag="detach", frozen=True):
    """A port's owner is gone; said by the port itself or by the run's controller."""

    port: str


class BeginRound(Word, tag="begin-round", frozen=True):
    """From a sample on it is this round; said by the run's controller alone, and answered."""

    round_index: RoundIndex
    first_sample: SampleIndex


class RoundBegun(Word, tag="round-begun", frozen=True):
    """Answer to :class:`BeginRound`; why not, if it was refused."""

    round_index: int
    first_sample: int
    refusal: str = ""


class Usage(Word, tag="usage", frozen=True):
    """What the air's process has cost so far, in CPU seconds, on request."""

    air_cpu_s: float = 0.0
    process_cpu_s: float = 0.0
    max_rss_bytes: int = 0


AnyWord = (
    Attach
    | Attached
    | Burst
    | SlotBurst
    | SilentUntil
    | StandDown
    | SetGain
    | Request
    | SlotsRequest
    | Samples
    | Slots
    | Event
    | Refused
    | Detach
    | BeginRound
    | RoundBegun
    | Usage
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyWord)


def encode_word(word: Word) -> bytes:
    """Bytes of one word."""
    return _encoder.encode(word)


def decode_word(data: bytes) -> AnyWord:
    """One word from bytes.

    Raises
    ------
    PlaneError
        The bytes are too many or no word.
    """
    if len(data) > MAX_WORD_BYTES:
        raise PlaneError(f"a word of {len(data)} bytes exceeds the {MAX_WORD_BYTES} allowed")
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise PlaneError(f"not a word of {PLANE_FORMAT}: {exc}") from exc


def samples_from_bytes(data: bytes | memoryview, num_samples: int) -> NDArray[np.complex64]:
    """Samples that travelled inside a message, checked against the stated count."""
    if not 0 <= num_samples <= MAX_BURST_SAMPLES or len(data) != num_samples * 8:
        raise PlaneError(f"{len(data)} bytes are not {num_samples} samples of complex64")
    return np.frombuffer(data, np.complex64)


def boot_id() -> str:
    """Identity of this host since it booted; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class SampleRing:
    """Ring of complex64 samples in anonymous shared memory; one writer, one reader.

    The writer tells the reader offsets by message; the reader counts released samples in the
    ring's header, which the writer reads when it needs room.
    """

    def __init__(self, fd: int, ring_samples: int, nonce: bytes | None) -> None:
        size = _HEADER_BYTES + 8 * ring_samples
        self._map = mmap.mmap(fd, size)
        self.capacity = ring_samples
        if nonce is not None and self._map[:16] != nonce:
            raise PlaneError("the shared memory found is not the one that was offered")
        self._released = np.frombuffer(self._map, np.uint64, 1, 16)
        self._samples = np.frombuffer(self._map, np.complex64, ring_samples, _HEADER_BYTES)
        self._written = 0  # samples ever allocated, padding at the wrap included

    @classmethod
    def create(cls, ring_samples: int, name: str) -> tuple[SampleRing, int, bytes]:
        """A new ring, its file descriptor and the nonce that proves its identity."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, _HEADER_BYTES + 8 * ring_samples)
        ring = cls(fd, ring_samples, None)
        nonce = secrets.token_bytes(16)
        ring._map[:16] = nonce
        return ring, fd, nonce

    @classmethod
    def open_from(cls, pid: int, fd: int, ring_samples: int, nonce: bytes) -> SampleRing:
        """The ring that another process of this host and user created.

        Raises
        ------
        PlaneError
            It cannot be opened or is another one; the caller falls back to messages.
        """
        if ring_samples > 64 * MAX_BURST_SAMPLES:
            raise PlaneError(f"a ring of {ring_samples} samples is larger than allowed")
        try:
            own_fd = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise PlaneError(f"cannot open the shared memory of process {pid}: {exc}") from exc
        try:
            if os.fstat(own_fd).st_size != _HEADER_BYTES + 8 * ring_samples:
                raise PlaneError("the shared memory found has another size than offered")
            return cls(own_fd, ring_samples, nonce)
        finally:
            os.close(own_fd)

    def write(self, samples: NDArray[np.complex64]) -> int:
        """Copy samples in; return their offset, or :data:`INLINE` when there is no room now."""
        count = len(samples)
        if count > self.capacity:
            return INLINE
        start = self._written % self.capacity
        padding = self.capacity - start if start + count > self.capacity else 0
        if self._written + padding + count - int(self._released[0]) > self.capacity:
            return INLINE
        offset = (start + padding) % self.capacity
        self._samples[offset : offset + count] = samples
        self._written += padding + count
        return offset

    def read(self, offset: int, num_samples: int) -> NDArray[np.complex64]:
        """Copy samples out and release them.

        Raises
        ------
        PlaneError
            The stated range lies outside the ring.
        """
        if offset < 0 or num_samples < 0 or offset + num_samples > self.capacity:
            raise PlaneError(f"samples {offset}+{num_samples} lie outside a ring of {self.capacity}")
        samples = self._samples[offset : offset + num_samples].copy()
        released = int(self._released[0])
        start = released % self.capacity
        padding = self.capacity - start if offset < start else 0
        self._released[0] = released + padding + num_samples
        return samples
