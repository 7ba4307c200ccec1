"""All that a run knows of its links, streams and processors, fed from reports only.

The emulated lab's truth is nowhere in here: soundings give gains and noise, reports give block
errors and how careful the outer loops are, compute spans give speeds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nodes.messages import LinkMeasurement, RehearsedSpan, RoundGrant, RoundReport, SpanRecord
from radio.adaptation import TRUSTED_DB
from testbed.estimation import SPEED_PRIORS, LinkFilter, Rejection, SpeedFilter

FloatArray = NDArray[np.float64]

SOUNDING_FLOOR_DB = -12.0  # SNR of a sounded subcarrier below which a gain is as good as none
STREAM_MEMORY = 0.85  # weight of the past in block statistics, per round
PRIOR_BLOCKS = 60.0  # blocks that the target error rate counts for, before any is seen
MAX_BIAS_DB = 6.0
MISSES_UNTIL_LEFT_OUT = 2
AGREEMENT = 0.5  # of two spans' surprises, as logarithms
BIAS_WEIGHT = 0.2
CLIENT_PHASES = ("client-forward", "client-backward")
SERVER_PHASES = ("server-forward", "server-backward")


@dataclass
class StreamStatistics:
    """Block errors of one kind of stream on one link.

    Attributes
    ----------
    overdispersion
        In 0..1: how much more the error rate of a round varies than independent blocks would,
        Var p = overdispersion x p (1 - p).
    """

    target_bler: float
    failed: float = 0.0
    sent: float = 0.0
    overdispersion: float = 0.03

    def __post_init__(self) -> None:
        self.failed = self.target_bler * PRIOR_BLOCKS
        self.sent = PRIOR_BLOCKS

    @property
    def bler(self) -> float:
        """Expected block error rate of the next round."""
        return float(np.clip(self.failed / self.sent, 1e-4, 0.9))

    def take(self, failed: int, sent: int) -> None:
        """Take one round's blocks."""
        if not 0 <= failed <= sent or sent == 0:
            return
        expected = self.bler
        spread = expected * (1 - expected)
        excess = ((failed / sent - expected) ** 2 - spread / sent) / spread
        self.overdispersion += (1 - STREAM_MEMORY) * (float(np.clip(excess, 0.0, 1.0)) - self.overdispersion)
        self.failed = STREAM_MEMORY * self.failed + failed
        self.sent = STREAM_MEMORY * self.sent + sent


class LinkState:
    """One direction between one client and the server: gains, errors, care."""

    def __init__(self, transmitter: str, receiver: str, num_subchannels: int, target_bler: float) -> None:
        self.gains = LinkFilter(transmitter, receiver, num_subchannels)
        self.stream = StreamStatistics(target_bler)
        self.outer_loop_db = 0.0
        self.bias_db = 0.0  # SNR in the slots over the SNR that the sounding promised


class Estimates:
    """Estimates of every link and processor.

    Parameters
    ----------
    sounding_psd_w_per_hz, downlink_psd_w_per_hz
        By client, and the server's.
    nominal_flops_per_s
        Declared speed by node, used until a span was measured.

    Attributes
    ----------
    heard
        Clients that the server heard in their latest sounding.
    """

    def __init__(
        self,
        clients: tuple[str, ...],
        server: str,
        num_subchannels: int,
        nominal_flops_per_s: dict[str, float],
        sounding_psd_w_per_hz: dict[str, float],
        downlink_psd_w_per_hz: float,
        target_bler: float,
    ) -> None:
        self.clients = clients
        self.server = server
        self.heard: set[str] = set()
        self._nominal = nominal_flops_per_s
        self._psd = {**sounding_psd_w_per_hz, server: downlink_psd_w_per_hz}
        self.uplink = {name: LinkState(name, server, num_subchannels, target_bler) for name in clients}
        self.downlink = {name: LinkState(server, name, num_subchannels, target_bler) for name in clients}
        self.broadcast = StreamStatistics(target_bler)  # lost to somebody
        self._speeds: dict[tuple[str, str], SpeedFilter] = {}
        self._fresh: set[tuple[str, str]] = set()
        self._misses: dict[str, int] = {}  # soundings in a row in which the server missed a client

    # --------------------------------------------------------------------------- measurements
    def restart(self, clients: Iterable[str]) -> None:
        """Forget the gains of some clients' links, as if they had never been heard."""
        for name in clients:
            self.heard.discard(name)
            self._misses.pop(name, None)
            for state in (self.uplink[name], self.downlink[name]):
                gains = state.gains
                state.gains = LinkFilter(gains.transmitter, gains.receiver, gains.filter.size)

    def begin_round(self) -> None:
        """A round is about to be planned: everything known grows older by one."""
        for state in (*self.uplink.values(), *self.downlink.values()):
            state.gains.filter.pass_round()
            if state.outer_loop_db > TRUSTED_DB:  # the coming sounding halves what exceeds it
                state.outer_loop_db = TRUSTED_DB + (state.outer_loop_db - TRUSTED_DB) / 2
        for speed in self._speeds.values():
            speed.filter.pass_round()

    def expect_reports(self) -> None:
        """The round's reports come next; soundings before it do not count as them."""
        self._fresh.clear()

    def _state(self, link: LinkMeasurement) -> LinkState | None:
        if link.receiver == self.server:
            return self.uplink.get(link.transmitter)
        if link.transmitter == self.server:
            return self.downlink.get(link.receiver)
        return None

    def take_links(self, links: Iterable[LinkMeasurement]) -> list[Rejection]:
        """Take soundings that were detected and make sense; what was not believed, in words."""
        rejections = []
        for link in links:
            state = self._state(link)
            if state is None:
                continue
            if not link.detected:
                if link.receiver == self.server:
                    self._miss(link.transmitter)
                continue
            if len(link.channel_gain) != state.gains.filter.size:
                words = f"{len(link.channel_gain)} gains for {state.gains.filter.size} subchannels"
                rejections.append(
                    Rejection(link.receiver, "gain", f"{link.transmitter} to {link.receiver}", words)
                )
                continue
            floor = 10 ** (SOUNDING_FLOOR_DB / 10) / self._psd[link.transmitter]
            found = state.gains.take(np.array(link.channel_gain), link.noise_w_per_hz, floor)
            rejections.extend(found)
            if state.gains.filter.known:
                self._fresh.add((link.transmitter, link.receiver))
                if link.receiver == self.server:
                    self.heard.add(link.transmitter)
                    self._misses.pop(link.transmitter, None)
        return rejections

    def _miss(self, client: str) -> None:
        """One sounding may be missed by chance; a client that is missed twice is not there."""
        self._misses[client] = self._misses.get(client, 0) + 1
        if self._misses[client] >= MISSES_UNTIL_LEFT_OUT:
            self.heard.discard(client)

    def missing_links(self, clients: Iterable[str]) -> list[Rejection]:
        """Links of these clients that this round brought no report of."""
        found = []
        for name in clients:
            for transmitter, receiver in ((name, self.server), (self.server, name)):
                if (transmitter, receiver) not in self._fresh:
                    words = "no usable sounding this round; what was known before stays, a round older"
                    found.append(Rejection(receiver, "report", f"{transmitter} to {receiver}", words))
        return found

    def take_spans(self, node: str, spans: Iterable[SpanRecord], cut_layer: int) -> list[Rejection]:
        """Follow the speed of a processor, FLOPs over the duration of its compute spans."""
        rejections = []
        found = []
        for span in spans:
            flops = span.attributes.get("flops")
            if isinstance(flops, float | int):
                found.append((self._speed(node, span.phase), span, float(flops)))
        # A spike hits one span; a board that has become slower is slower in all of them.
        surprises = [speed.surprise(cut_layer, flops, _seconds(span)) for speed, span, flops in found]
        told = [value for value in surprises if value is not None]
        confirmed = (
            len(told) > 1
            and max(told) - min(told) < AGREEMENT
            and min(map(abs, told)) > SPEED_PRIORS.min_gate / 2
            and max(told) * min(told) > 0
        )
        for speed, span, flops in found:
            known = speed.known
            if not speed.take(cut_layer, flops, _seconds(span), confirmed=confirmed) and known:
                expected_ms = flops / speed.flops_per_s(cut_layer) * 1e3
                words = (
                    f"{span.phase} took {_seconds(span) * 1e3:.2f} ms where {expected_ms:.2f} ms were "
                    "expected; held back until another span agrees"
                )
                rejections.append(Rejection(node, "compute", span.phase, words))
        return rejections

    def take_rehearsal(self, node: str, spans: Iterable[RehearsedSpan]) -> None:
        """Speeds that a node found before the run, at cuts that the run may never come to."""
        for span in spans:
            self._speed(node, span.phase).rehearse(span.cut_layer, span.flops, span.seconds)

    def take_streams(self, report: RoundReport, grant: RoundGrant) -> None:
        """Block errors, outer loops, and what slots made of the SNR that soundings promised."""
        granted = {client.client: client for client in grant.clients}
        for state in report.adaptation:
            link = self._link(state.transmitter, state.receiver)
            if link is not None and np.isfinite(state.offset_db):
                link.outer_loop_db = float(state.offset_db)
        for sent in report.transmissions:
            if sent.stream == "uplink" and sent.transmitter in self.uplink:
                self.uplink[sent.transmitter].stream.take(sent.blocks_failed, sent.blocks_sent)
            elif sent.stream == "broadcast" and sent.complete:
                self.broadcast.take(sent.blocks_failed, sent.blocks_sent)
        for received in report.receptions:
            link = self._link(received.transmitter, received.receiver)
            if link is None or received.complete_ns is None:
                continue
            total = received.blocks_ok + received.blocks_failed
            if received.stream == "unicast":
                link.stream.take(received.blocks_failed, total)
            client = received.transmitter if received.receiver == self.server else received.receiver
            own = granted.get(client)
            if own is None or received.stream == "cut-move":
                continue
            if received.receiver == self.server:
                subchannels, psd = own.subchannels, np.array(own.psd_w_per_hz)
            else:
                every = tuple(range(link.gains.filter.size))
                subchannels = every if received.stream == "broadcast" else own.subchannels
                psd = np.full(len(subchannels), grant.downlink_psd_w_per_hz)
            self._take_bias(link, subchannels, psd, received.mean_snr_db)

    def _take_bias(
        self,
        link: LinkState,
        subchannels: tuple[int, ...],
        psd: FloatArray,
        mean_snr_db: tuple[float | None, ...],
    ) -> None:
        if len(mean_snr_db) != len(subchannels) or not link.gains.filter.known:
            return
        seen = np.array([np.nan if value is None else value for value in mean_snr_db], float)
        with np.errstate(divide="ignore"):
            promised = link.gains.filter.level[list(subchannels)] + 10 * np.log10(psd)
        differences = (seen - promised)[np.isfinite(seen) & np.isfinite(promised)]
        if differences.size:
            step = float(np.clip(np.median(differences), -MAX_BIAS_DB, MAX_BIAS_DB)) - link.bias_db
            link.bias_db += BIAS_WEIGHT * step

    def _link(self, transmitter: str, receiver: str) -> LinkState | None:
        if receiver == self.server:
            return self.uplink.get(transmitter)
        return self.downlink.get(receiver) if transmitter == self.server else None

    # ------------------------------------------------------------------------------ estimates
    def snr_per_psd_db(self, clients: tuple[str, ...], *, downlink: bool, first: bool = False) -> FloatArray:
        """Gain over noise PSD ``[C, M]`` [dB(Hz/W)]; -inf where nothing was ever heard.

        Parameters
        ----------
        first
            As it was first known, in place of as it is.
        """
        states = self.downlink if downlink else self.uplink
        rows = []
        for name in clients:
            gains = states[name].gains
            level = gains.first_level_db if first else gains.filter.level
            rows.append(
                np.full(gains.filter.size, -np.inf) if level is None else np.nan_to_num(level, nan=-np.inf)
            )
        return np.array(rows)

    def _speed(self, node: str, phase: str) -> SpeedFilter:
        key = (node, phase)
        if key not in self._speeds:
            self._speeds[key] = SpeedFilter(self._nominal[node])
        return self._speeds[key]

    def flops_per_s(self, node: str, phase: str, cut_layer: int) -> float:
        """Speed of a node in a phase at a cut [FLOP/s]."""
        return self._speed(node, phase).flops_per_s(cut_layer)

    def compute_deviation(self, node: str, phase: str) -> float:
        """Relative standard deviation of a compute span's length."""
        return self._speed(node, phase).relative_deviation


def _seconds(span: SpanRecord) -> float:
    return (span.end_ns - span.start_ns) / 1e9
