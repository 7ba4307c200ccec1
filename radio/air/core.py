"""The merge point of the emulated air.

Each port says, in order, either ``burst(first_sample)`` or ``silent_until(sample)``; a window
asked for by a receiver is computed once every port that it can hear has spoken for it.  Nothing
here knows wall time, processes or transports, so the outcome depends on what was said and never
on when it arrived.

A port may *stand down*: it stays silent until a control message makes it speak again.  A receiver
names the ports from which it expects a word of their own in this window; for those, standing
down does not count.

The experiment's *rounds* are told to the air, since channels may change with them.  What is received
at a sample has gone through the channel of the round in which that sample lies, whenever it was sent:
a burst that straddles a boundary is cut there, and echoes that outlast a round fade with the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from radio.air.channel import LinkChannel, LinkParameters
from radio.air.front_end import IDEAL, FrontEnd, PortImpairments
from radio.air.interference import Interference, Interferer
from radio.air.kernels import add_link, receive_convert, transmit_convert
from radio.air.noise import fill_noise, noise_key
from radio.block_words import SlotBurst, SlotReception, SlotRequest
from radio.errors import GapError, LateBurstError, LateRoundError, RadioConfigurationError
from radio.events import Observer, RadioEvent, RadioEventKind, ignore
from radio.fidelity import Fidelity
from radio.numerology import Numerology
from radio.units import db_to_linear, thermal_noise_w_per_hz

MAX_GAIN_DB = 400.0
RETAINED_SAMPLES = 1 << 23  # per port: 64 MiB of bursts that some receiver has not passed yet


@dataclass(frozen=True)
class PortParameters:
    """Hardware of one port.

    Attributes
    ----------
    tx_full_scale_dbm
        Power of a sample of magnitude 1.0 at the transmit port.
    rx_full_scale_dbm
        Power at the receive port that reaches full scale with a receiver gain of 0 dB.
    muted
        The power amplifier is off: bursts are accepted and nothing is radiated.
    impairments
        Of its analogue hardware; ideal by default.
    """

    name: str
    tx_full_scale_dbm: float
    rx_full_scale_dbm: float = 0.0
    noise_figure_db: float = 7.0
    converter_bits: int = 12
    muted: bool = False
    impairments: PortImpairments = IDEAL


@dataclass(frozen=True)
class AirParameters:
    """The whole emulated air; everything in it but the ports' names is hidden truth.

    Attributes
    ----------
    numerology
        The resource grid that an air of ``blocks`` fidelity works on; others need none.
    """

    seed: int
    sample_rate_hz: float
    tap_update_samples: int
    ports: tuple[PortParameters, ...]
    links: tuple[LinkParameters, ...]
    interference: tuple[Interference, ...] = ()
    fidelity: Fidelity = Fidelity.IQ
    numerology: Numerology | None = None


@dataclass(frozen=True)
class WindowRequest:
    receiver: str
    request_id: int
    first_sample: int
    num_samples: int
    expected: frozenset[str]
    slots: SlotRequest | None = None  # air of ``blocks`` fidelity only: these in place of samples


@dataclass
class Window:
    """Samples that a receiver asked for, after its converter."""

    receiver: str
    request_id: int
    first_sample: int
    samples: NDArray[np.complex64]  # [num_samples]; none where it is one of slots
    clipped_samples: int
    slots: SlotReception | None = None  # air of ``blocks`` fidelity only


class Burst(Protocol):
    """What a port radiates from an absolute sample index on."""

    @property
    def first_sample(self) -> int: ...

    @property
    def samples(self) -> NDArray[np.float32]:
        """``[2, num_samples]``, real and imaginary parts after the converter."""

    @property
    def num_samples(self) -> int: ...

    @property
    def end(self) -> int: ...


@dataclass
class _Burst:
    first_sample: int
    samples: NDArray[np.float32]

    @property
    def num_samples(self) -> int:
        return int(self.samples.shape[1])

    @property
    def end(self) -> int:
        return self.first_sample + self.num_samples


@dataclass
class _Port:
    parameters: PortParameters
    noise_key: NDArray[np.uint32]
    front_end: FrontEnd
    interferers: list[Interferer] = field(default_factory=list)
    rx_gain_db: float = 0.0
    attached: bool = True
    listening: bool = False  # has attached or asked for a window: bursts are kept for it
    spoken_until: int = 0
    standing_down: bool = True
    heard_until: int = 0
    dropped_until: int = 0
    bursts: deque[Burst] = field(default_factory=deque)
    requests: deque[WindowRequest] = field(default_factory=deque)


class AirCore:
    """State machine of the air: feed it words and requests, collect windows.

    Parameters
    ----------
    parameters
        Ports, links and seed.
    observer
        Called with LATE, GAP and CLIPPED events.
    """

    def __init__(self, parameters: AirParameters, observer: Observer = ignore) -> None:
        self.parameters = parameters
        self._observe = observer
        seed, rate_hz = parameters.seed, parameters.sample_rate_hz
        self._ports = {
            port.name: _Port(
                port,
                noise_key(seed, "noise", port.name),
                FrontEnd(port.impairments, seed, port.name, rate_hz),
            )
            for port in parameters.ports
        }
        for index, interference in enumerate(parameters.interference):
            interferer = Interferer(interference, seed, index, rate_hz)
            self._port(interference.receiver).interferers.append(interferer)
        self._heard_by: dict[str, list[LinkChannel]] = {name: [] for name in self._ports}
        for link in parameters.links:
            for end in (link.transmitter, link.receiver):
                self._port(end)
            self._heard_by[link.receiver].append(LinkChannel(link, seed, rate_hz))
        self._round_begins = [0]  # first sample of each round that the air was told of, ascending
        self._round_indices = [0]

    def _port(self, name: str) -> _Port:
        try:
            return self._ports[name]
        except KeyError:
            known = ", ".join(sorted(self._ports))
            raise RadioConfigurationError(f"no port {name!r} on this air; ports are: {known}") from None

    # ------------------------------------------------------------------------------ words
    def attach(self, name: str) -> None:
        """A radio takes its port (again); it stands down until it speaks."""
        port = self._port(name)
        port.attached = port.listening = True
        port.standing_down = True

    def detach(self, name: str) -> list[Window]:
        """A radio is gone: nobody waits for it any more."""
        port = self._port(name)
        port.attached = False
        port.requests.clear()
        return self._advance()

    def set_rx_gain(self, name: str, rx_gain_db: float) -> None:
        """Receiver gain [dB] for windows computed from now on.

        Raises
        ------
        RadioConfigurationError
            It is no number that a receiver could have.
        """
        if not abs(rx_gain_db) <= MAX_GAIN_DB:
            raise RadioConfigurationError(f"a receiver gain of {rx_gain_db} dB for {name}")
        self._port(name).rx_gain_db = rx_gain_db

    def burst(
        self, name: str, first_sample: int, samples: NDArray[np.complex64], silent_until: int = 0
    ) -> list[Window]:
        """Radiate ``samples`` ``[num_samples]`` from an absolute index on.

        ``silent_until`` promises silence from its end until an absolute index, as :meth:`silent_until`.

        Raises
        ------
        LateBurstError
            The burst overlaps what this port has spoken for or what a receiver has already heard.
        """
        port = self._accept(name, first_sample)
        if not port.parameters.muted and len(samples):
            # Kernels know contiguous writable arrays only; a burst out of a message is neither.
            source = np.require(samples, np.complex64, ("C", "W"))
            converted = np.empty((2, len(source)), np.float32)
            clipped = transmit_convert(source, port.parameters.converter_bits, converted)
            if clipped:
                self._observe(RadioEvent(RadioEventKind.CLIPPED, name, first_sample, clipped, "transmitter"))
            if not port.front_end.sends_ideally:
                port.front_end.send(converted, first_sample)
            self._keep(port, _Burst(first_sample, converted))
        return self._spoken(port, max(first_sample + len(samples), silent_until))

    def _accept(self, name: str, first_sample: int) -> _Port:
        """The port that may send a burst from this sample on."""
        port = self._port(name)
        self._check_order(port, first_sample, "burst")
        return port

    def _keep(self, port: _Port, burst: Burst) -> None:
        port.bursts.append(burst)
        self._drop_old(port)

    def _spoken(self, port: _Port, until: int) -> list[Window]:
        port.spoken_until = until
        port.standing_down = False
        return self._advance()

    def burst_of_slots(
        self, name: str, first_sample: int, burst: SlotBurst, silent_until: int = 0
    ) -> list[Window]:
        """Radiate blocks; as :meth:`burst`, on an air of ``blocks`` fidelity.

        Raises
        ------
        RadioConfigurationError
            This air carries samples.
        """
        raise RadioConfigurationError(
            f"{name} sends blocks on an air that carries samples (radio.fidelity: iq)"
        )

    def silent_until(self, name: str, sample: int) -> list[Window]:
        """Promise to radiate nothing before an absolute sample index."""
        port = self._port(name)
        port.spoken_until = max(port.spoken_until, sample)
        port.standing_down = False
        return self._advance()

    def stand_down(self, name: str) -> list[Window]:
        """Stay silent until told otherwise by a control message."""
        self._port(name).standing_down = True
        return self._advance()

    def begin_round(self, round_index: int, first_sample: int) -> None:
        """From an absolute sample index on it is this round, for every channel.

        Before the first word it is round 0 from the start.  Rounds may be left out; the same word
        again is harmless.

        Raises
        ------
        LateRoundError
            A receiver has already been given samples behind this index.
        RadioConfigurationError
            The round has begun elsewhere, or comes after a later one.
        """
        latest, latest_first = self._round_indices[-1], self._round_begins[-1]
        if (round_index, first_sample) == (latest, latest_first):
            return
        if round_index == 0 and len(self._round_indices) == 1 and first_sample >= 0:
            return  # it lasts from the start on
        if round_index <= latest or first_sample < latest_first:
            raise RadioConfigurationError(
                f"round {round_index} from sample {first_sample} on does not follow round {latest}, which "
                f"began at sample {latest_first}"
            )
        heard = max(port.heard_until for port in self._ports.values())
        if first_sample < heard:
            raise LateRoundError(
                f"round {round_index} would begin at sample {first_sample}, but receivers have been given "
                f"everything before {heard} as of round {latest}"
            )
        self._round_indices.append(round_index)
        self._round_begins.append(first_sample)

    def _rounds_between(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(round, first, end) of the parts of a stretch of samples that lie in one round each."""
        place = bisect_right(self._round_begins, first) - 1
        while first < end:
            later = place + 1 < len(self._round_begins)
            stop = min(end, self._round_begins[place + 1]) if later else end
            if stop > first:
                yield self._round_indices[place], first, stop
            first, place = stop, place + 1

    def request(self, request: WindowRequest) -> list[Window]:
        """Ask for a window; windows of one receiver are asked for in order.

        Raises
        ------
        GapError
            The window begins before samples that are no longer kept.
        """
        port = self._port(request.receiver)
        if request.slots is not None:
            self._check_slots(request)
        port.listening = True
        for link in self._heard_by[request.receiver]:
            source = self._port(link.parameters.transmitter)
            # Nothing was dropped at the start of a run.
            needed_from, _ = link.source_span(request.first_sample, request.first_sample + 1)
            if source.dropped_until and needed_from < source.dropped_until:
                self._observe(RadioEvent(RadioEventKind.GAP, request.receiver, request.first_sample))
                raise GapError(
                    f"{request.receiver} asked for samples from {request.first_sample} on, but bursts of "
                    f"{source.parameters.name} are kept from {source.dropped_until} on only"
                )
        port.requests.append(request)
        return self._advance()

    def _check_slots(self, request: WindowRequest) -> None:
        raise RadioConfigurationError(
            f"{request.receiver} asks for blocks on an air that carries samples (radio.fidelity: iq)"
        )

    def _check_order(self, port: _Port, first_sample: int, what: str) -> None:
        name = port.parameters.name
        heard = max(
            (
                link.spoken_for(self._ports[receiver].heard_until)
                for receiver, links in self._heard_by.items()
                for link in links
                if link.parameters.transmitter == name
            ),
            default=0,
        )
        earliest = max(port.spoken_until, heard)
        if first_sample < earliest:
            self._observe(RadioEvent(RadioEventKind.LATE, name, first_sample))
            raise LateBurstError(
                f"{what} of {name} at sample {first_sample} is late: everything before {earliest} is settled"
            )

    def _drop_old(self, port: _Port) -> None:
        """Forget bursts that all who listen have passed, and the oldest beyond the retention."""
        name = port.parameters.name
        passed = min(
            (
                link.source_span(self._ports[receiver].heard_until, self._ports[receiver].heard_until + 1)[0]
                for receiver, links in self._heard_by.items()
                if self._ports[receiver].attached and self._ports[receiver].listening
                for link in links
                if link.parameters.transmitter == name
            ),
            default=0,
        )
        kept = sum(burst.num_samples for burst in port.bursts)
        while len(port.bursts) > 1 and (port.bursts[0].end <= passed or kept > RETAINED_SAMPLES):
            burst = port.bursts.popleft()
            kept -= burst.num_samples
            port.dropped_until = burst.end

    # ---------------------------------------------------------------------------- windows
    def _advance(self) -> list[Window]:
        windows = []
        for port in self._ports.values():
            while port.requests and self._is_settled(port.requests[0]):
                windows.append(self._compute(port, port.requests.popleft()))
        return windows

    def _is_settled(self, request: WindowRequest) -> bool:
        end = request.first_sample + request.num_samples
        for link in self._heard_by[request.receiver]:
            source = self._ports[link.parameters.transmitter]
            if not source.attached or source.spoken_until >= link.spoken_for(end):
                continue
            if not source.standing_down or source.parameters.name in request.expected:
                return False
        return True

    def waiting_for(self, receiver: str) -> Sequence[str]:
        """Ports that the oldest open request of a receiver waits for, for messages to people."""
        port = self._port(receiver)
        if not port.requests:
            return []
        request = port.requests[0]
        end = request.first_sample + request.num_samples
        names = []
        for link in self._heard_by[receiver]:
            source = self._ports[link.parameters.transmitter]
            if source.attached and source.spoken_until < link.spoken_for(end):
                names.append(source.parameters.name)
        return names

    def _compute(self, port: _Port, request: WindowRequest) -> Window:
        """Superpose what the receiver hears, in sqrt(W) at its port, then convert."""
        first, end = request.first_sample, request.first_sample + request.num_samples
        sample_rate_hz = self.parameters.sample_rate_hz
        noise_w = thermal_noise_w_per_hz(port.parameters.noise_figure_db) * sample_rate_hz
        window = np.empty((2, request.num_samples), np.float32)
        fill_noise(window, first, port.noise_key, np.float32(np.sqrt(noise_w / 2)))
        for link in self._heard_by[port.parameters.name]:
            self._add_source(window, first, end, link)
        for interferer in port.interferers:
            interferer.add(window, first)
        gain = float(np.sqrt(db_to_linear(port.rx_gain_db))) / _amplitude_sqrt_w(
            port.parameters.rx_full_scale_dbm
        )
        if not port.front_end.receives_ideally:
            port.front_end.receive(window, first, 1.0 / gain)
        samples = np.empty(request.num_samples, np.complex64)
        clipped = receive_convert(window, gain, port.parameters.converter_bits, samples)
        if clipped:
            self._observe(
                RadioEvent(RadioEventKind.CLIPPED, port.parameters.name, first, clipped, "receiver")
            )
        port.heard_until = max(port.heard_until, end)
        return Window(request.receiver, request.request_id, first, samples, clipped)

    def _add_source(self, window: NDArray[np.float32], first: int, end: int, link: LinkChannel) -> None:
        """Add what one link carries into samples first..end of a window."""
        source = self._ports[link.parameters.transmitter]
        if link.clock is None:
            heard = [
                burst
                for burst in source.bursts
                if burst.first_sample + link.min_delay_samples < end
                and burst.end + link.max_delay_samples > first
            ]
        else:  # all of them as one, by the receiver's clock
            sent = ((burst.first_sample, burst.samples) for burst in source.bursts)
            found = link.clock.heard(sent, first - link.max_delay_samples, end - link.min_delay_samples)
            heard = [] if found is None else [_Burst(*found)]
        if not heard:
            return
        update = self.parameters.tap_update_samples
        amplitude = np.float32(_amplitude_sqrt_w(source.parameters.tx_full_scale_dbm))
        for round_index, round_first, round_end in self._rounds_between(first, end):
            blocks = np.arange(round_first // update, -(-round_end // update))
            time_s = blocks * (update / self.parameters.sample_rate_hz)
            taps = link.taps_at(time_s, round_index) * amplitude
            for row, block in enumerate(blocks.tolist()):
                start, stop = max(round_first, block * update), min(round_end, (block + 1) * update)
                for burst in heard:
                    if burst.first_sample + link.min_delay_samples < stop and (
                        burst.end + link.max_delay_samples > start
                    ):
                        add_link(
                            window,
                            first,
                            start,
                            stop,
                            block * update,
                            burst.samples,
                            burst.first_sample,
                            link.delays,
                            taps[row],
                            link.cycles_per_sample,
                        )


def _amplitude_sqrt_w(level_dbm: float) -> float:
    """Square root of a power [W] given as a level [dBm]."""
    return float(10.0 ** ((level_dbm - 30.0) / 20.0))
