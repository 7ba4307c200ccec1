"""Do the values fit each other, and can they be what the user meant?

The schema judges one value at a time; here are the facts that need several (a resource grid that
fits its FFT, clients that fit the subchannels, powers below the cap) and the ranges outside of
which a number was probably typed in another unit.  Every check runs, also when other parts of the
configuration are broken: it then gets :class:`Partial` sections and is skipped where it asks for a
value that is not known.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from radio.air.fractional import HALF_WIDTH
from radio.air.tdl import EXPONENTIAL, PROFILES_WITH_LINE_OF_SIGHT, tdl_paths, tdl_span_samples
from radio.errors import RadioConfigurationError
from testbed.config.messages import closest, number_text
from testbed.config.schema import (
    Board,
    Change,
    Experiment,
    Fading,
    Interference,
    Lab,
    NumerologySection,
    Scenario,
)
from testbed.config.yamltree import Path
from testbed.scenario import MAX_DEPTH_DB, attenuation_by_round, position_of, resolve_scenario

# Unused subcarriers at the band's edges, as a share of the FFT: room for the filters' slopes.
GUARD_FRACTION = 1 / 16
MAX_FFT_SIZE = 65536
# The lowest MCS: BPSK at code rate 1/4, CRC included; two symbols of a slot are pilots.
LOWEST_MCS_BITS_PER_SYMBOL = 0.25
PILOT_SYMBOLS_PER_SLOT = 2
MIN_SLOT_SYMBOLS = 4
# Below this a transport block's CRC and the code's short-block loss eat the subchannel.
MIN_SLOT_BITS = 256
# The emulated air puts a profile's last tap here, on whole samples: its power has fallen by 13 dB.
LAST_TAP_DELAY_SPREADS = 3.0
# Of a TDL profile's power, what may come later than the cyclic prefix: 30 dB below the signal.
MAX_LATE_SHARE = 1e-3
# Bandwidths of an oscillator's loop that the emulated air can compute, over the sample rate.
PHASE_NOISE_BANDWIDTHS = (1e-5, 0.25)
# Beyond half a spacing an offset can't be told from one of the neighbouring subcarrier.
MAX_CFO_SPACINGS = 0.5
# A board's slowdown by round travels in one control message, with 9 bytes for each round.
MAX_THROTTLED_ROUNDS = 5000
NUM_CLASSES = {"digits": 10, "mnist": 10, "cifar10": 10, "ham10000": 7}


@dataclass(frozen=True)
class Finding:
    """One thing wrong: at ``path`` below ``root`` (``experiment`` or ``lab``)."""

    root: str
    path: Path
    message: str
    suggestion: str | None = None


class UnknownValueError(Exception):
    """A check asked for a value that could not be read; its own fault is reported elsewhere."""


class Partial:
    """What is known of a section that has faults; asking for the rest ends the check that asks."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise UnknownValueError(name) from None


def _without(section: Any, path: Path) -> Any:
    """``section`` as if the value at ``path`` were not known."""
    key, rest = path[0], path[1:]
    if isinstance(section, tuple):
        return tuple(_without(entry, rest) if index == key else entry for index, entry in enumerate(section))
    known = section._values if isinstance(section, Partial) else dict(section)
    if rest:
        return Partial({**known, str(key): _without(known[str(key)], rest)})
    return Partial({name: value for name, value in known.items() if name != key})


# ------------------------------------------------------------------------------ plausible values
@dataclass(frozen=True)
class _Range:
    root: str
    keys: str  # dotted; ``*`` for every entry of a list
    lowest: float
    highest: float
    unit: str
    # The units people type by mistake, likeliest first: name and factor, None for milliwatts.
    mistakes: tuple[tuple[str, float | None], ...] = ()


_GHZ = (("GHz", 1e9), ("MHz", 1e6), ("kHz", 1e3))
_MHZ = (("MHz", 1e6), ("kHz", 1e3), ("GHz", 1e9))
_MS = (("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))
_NS = (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3))
_MW = (("mW", None),)

_RANGES = (
    _Range("experiment", "numerology.sample_rate_hz", 1e5, 1e9, "Hz", _MHZ),
    _Range("experiment", "link.ack_delay_s", 0, 1, "s", _MS),
    _Range("experiment", "link.mcs_backoff_db", -10, 30, "dB"),
    _Range("lab", "carrier_hz", 1e6, 3e11, "Hz", _GHZ),
    _Range("lab", "total_power_dbm", -60, 60, "dBm", _MW),
    _Range("lab", "radio.antenna_gain_db", -60, 100, "dB"),
    _Range("lab", "radio.noise_figure_db", 0, 40, "dB"),
    _Range("lab", "radio.backoff_db", 0, 40, "dB"),
    _Range("lab", "control.latency_s", 0, 1, "s", _MS),
    _Range("lab", "control.heartbeat_s", 0.01, 60, "s", _MS),
    _Range("lab", "control.timeout_s", 0.05, 600, "s", _MS),
    _Range("lab", "server.downlink_psd_dbm_per_hz", -200, 0, "dBm/Hz"),
    _Range("lab", "server.processor.clock_hz", 1e5, 1e13, "Hz", _GHZ),
    _Range("lab", "boards.*.processor.clock_hz", 1e5, 1e13, "Hz", _GHZ),
    _Range("lab", "boards.*.max_power_dbm", -60, 50, "dBm", _MW),
    _Range("lab", "boards.*.channel.path_loss_db", 0, 250, "dB"),
    _Range("lab", "boards.*.channel.fading.delay_spread_s", 0, 1e-3, "s", _NS),
    _Range("lab", "boards.*.channel.fading.rician_k_db", -40, 60, "dB"),
    _Range("lab", "boards.*.channel.fading.doppler_hz", 0, 1e5, "Hz"),
    _Range("lab", "boards.*.channel.clock_drift_ppm", -200, 200, "ppm"),
    _Range("lab", "interference.*.power_dbm", -200, 30, "dBm", _MW),
    _Range("lab", "interference.*.period_s", 1e-6, 1e3, "s", _MS),
    _Range("lab", "scenario.fading.doppler_hz", 0, 1e5, "Hz"),
)


def _values(section: Any, keys: list[str], path: Path = ()) -> Iterator[tuple[Path, float]]:
    if section is None:
        return
    if not keys:
        yield path, section
    elif keys[0] == "*":
        for index, entry in enumerate(section):
            yield from _known(_values(entry, keys[1:], (*path, index)))
    else:
        yield from _values(getattr(section, keys[0]), keys[1:], (*path, keys[0]))


def _known(findings: Iterator[Any]) -> Iterator[Any]:
    """``findings`` up to the first value that is not known."""
    try:
        yield from findings
    except UnknownValueError:
        return


def _mistaken(limits: _Range, value: float) -> str | None:
    for unit, factor in limits.mistakes:
        if factor is None and value > 0:
            meant = round(10 * math.log10(value), 2)
        elif factor is not None:
            meant = value * factor
        else:
            continue
        if limits.lowest <= meant <= limits.highest:
            return f"if {number_text(value)} {unit} is meant, write {number_text(meant)}"
    return None


def _plausible(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    for limits in _RANGES:
        root = experiment if limits.root == "experiment" else lab
        for path, value in _known(_values(root, limits.keys.split("."))):
            if not limits.lowest <= value <= limits.highest:
                span = f"{number_text(limits.lowest)} to {number_text(limits.highest)} {limits.unit}"
                message = f"{number_text(value)} {limits.unit} is not plausible, {span} is"
                yield Finding(limits.root, path, message, _mistaken(limits, value))


# ----------------------------------------------------------------------------------- numerology
def _is_fast_fft_size(size: int) -> bool:
    for prime in (2, 3, 5):
        while size % prime == 0:
            size //= prime
    return size == 1


def _fft(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    size = experiment.numerology.fft_size
    path: Path = ("numerology", "fft_size")
    if not 16 <= size <= MAX_FFT_SIZE:
        yield Finding("experiment", path, f"an FFT of {size} points is not in 16 to {MAX_FFT_SIZE}")
    elif not _is_fast_fft_size(size):
        better = next(n for n in range(size, 2 * size) if _is_fast_fft_size(n))
        yield Finding(
            "experiment", path, f"{size} has a prime factor above 5: the FFT is slow", f"the next is {better}"
        )


def _prefix(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    grid = experiment.numerology
    if grid.prefix_samples >= grid.fft_size:
        message = (
            f"a cyclic prefix of {grid.prefix_samples} samples is not shorter than the symbol it precedes, "
            f"{grid.fft_size}"
        )
        yield Finding("experiment", ("numerology", "prefix_samples"), message)


def _band(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    grid = experiment.numerology
    used = grid.num_subchannels * grid.subcarriers_per_subchannel
    guard = math.ceil(grid.fft_size * GUARD_FRACTION)
    if used + 1 + guard > grid.fft_size:
        fit = max((grid.fft_size - 1 - guard) // grid.subcarriers_per_subchannel, 0)
        message = (
            f"{grid.num_subchannels} subchannels of {grid.subcarriers_per_subchannel} subcarriers, DC and "
            f"{guard} guard subcarriers are {used + 1 + guard}: more than the FFT's {grid.fft_size}"
        )
        hint = f"at most {fit} subchannels of that width fit" if fit else None
        yield Finding("experiment", ("numerology", "num_subchannels"), message, hint)


def lowest_mcs_bits(grid: NumerologySection) -> int:
    """Information bits per subchannel and slot at the lowest MCS, CRC included [bits]."""
    data_symbols = max(grid.symbols_per_slot - PILOT_SYMBOLS_PER_SLOT, 0)
    return math.floor(data_symbols * grid.subcarriers_per_subchannel * LOWEST_MCS_BITS_PER_SYMBOL)


def _slot(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    grid = experiment.numerology
    bits = lowest_mcs_bits(grid)
    path: Path = ("numerology", "symbols_per_slot")
    if grid.symbols_per_slot < MIN_SLOT_SYMBOLS:
        yield Finding(
            "experiment", path, f"a slot of {grid.symbols_per_slot} symbols can't hold its two pilots apart"
        )
    elif bits < MIN_SLOT_BITS:
        per_symbol = grid.subcarriers_per_subchannel * LOWEST_MCS_BITS_PER_SYMBOL
        needed = math.ceil(MIN_SLOT_BITS / per_symbol) + PILOT_SYMBOLS_PER_SLOT
        message = (
            f"a slot of {grid.symbols_per_slot} symbols carries {bits} bits per subchannel at the lowest "
            f"MCS; {MIN_SLOT_BITS} are needed"
        )
        yield Finding("experiment", path, message, f"write at least {needed}")


def _duplex(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    if experiment.numerology.duplex == "fdd" and lab.radio.driver == "emulated":
        yield Finding(
            "experiment", ("numerology", "duplex"), "the emulated radio has no fdd yet", "write duplex: tdd"
        )


def _deadline(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    grid = experiment.numerology
    symbols = grid.slots_per_frame * grid.symbols_per_slot
    frame_s = symbols * (grid.fft_size + grid.prefix_samples) / grid.sample_rate_hz
    if experiment.round_deadline_s <= frame_s:
        message = f"one frame takes {number_text(round(frame_s, 6))} s: no round can meet this deadline"
        yield Finding("experiment", ("round_deadline_s",), message)


# ----------------------------------------------------------------------------- learning and data
def _data(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    data = experiment.data
    if data.name != "digits" and not data.path:
        message = f"{data.name} is read from files, and no folder is given"
        yield Finding(
            "experiment", ("data", "path"), message, "add data.path; only digits comes with the testbed"
        )
    if data.partition == "labels" and data.labels_per_client > NUM_CLASSES[data.name]:
        message = f"{data.name} has {NUM_CLASSES[data.name]} labels, not {data.labels_per_client}"
        yield Finding("experiment", ("data", "labels_per_client"), message)


def _model(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    if experiment.model.name == "digits-cnn" and experiment.data.name != "digits":
        message = f"digits-cnn takes the 8 x 8 images of digits, not {experiment.data.name}"
        yield Finding("experiment", ("model", "name"), message, "write name: resnet18, or data.name: digits")


def _clients(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    available = experiment.numerology.num_subchannels
    if len(lab.boards) > available:
        message = (
            f"{len(lab.boards)} boards share {available} subchannels "
            "(numerology.num_subchannels of the experiment); each needs one"
        )
        yield Finding("lab", ("boards",), message, "take fewer boards, or more and narrower subchannels")


# ------------------------------------------------------------------------------------------ lab
def _environment(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    if lab.radio.driver == "emulated" and lab.environment != "emulated":
        message = f"the emulated radio radiates nothing: this is not {lab.environment}"
        yield Finding("lab", ("environment",), message, "write environment: emulated")


def _names(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    seen: dict[str, str] = {lab.server.name: "the server"}
    for index, board in enumerate(lab.boards):
        try:
            name = board.name
        except UnknownValueError:
            continue
        if name in seen:
            yield Finding("lab", ("boards", index, "name"), f"the name {name} is taken by {seen[name]}")
        seen.setdefault(name, f"boards[{index}]")


def _muted(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    ports = [lab.server.name, *(board.name for board in lab.boards)]
    for index, name in enumerate(lab.radio.muted):
        if name not in ports:
            near = closest(name, ports)
            hint = f"did you mean {near}?" if near else f"ports: {', '.join(ports)}"
            yield Finding("lab", ("radio", "muted", index), f"there is no port {name}", hint)


def _impairments(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    sections: list[tuple[Path, Any]] = [
        (("radio", "impairments"), lab.radio),
        (("server", "impairments"), lab.server),
    ]
    for index, board in _known(_boards(lab)):
        sections.append((("boards", index, "impairments"), board))
    for path, owner in sections:
        yield from _known(_phase_noise(experiment, path, owner))


def _phase_noise(experiment: Experiment, path: Path, owner: Any) -> Iterator[Finding]:
    if owner.impairments is None or owner.impairments.phase_noise is None:
        return
    bandwidth_hz = owner.impairments.phase_noise.bandwidth_hz
    low_hz, high_hz = (share * experiment.numerology.sample_rate_hz for share in PHASE_NOISE_BANDWIDTHS)
    if not low_hz <= bandwidth_hz <= high_hz:
        message = (
            f"a loop of {number_text(bandwidth_hz)} Hz can't be emulated at this sample rate, "
            f"{number_text(low_hz)} to {number_text(high_hz)} Hz can"
        )
        yield Finding("lab", (*path, "phase_noise", "bandwidth_hz"), message)


def _interference(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    for index, section in _known(enumerate(lab.interference)):
        for finding in _known(_interferer(experiment, lab, section)):
            yield replace(finding, path=("interference", index, *finding.path))


def _interferer(experiment: Experiment, lab: Lab, section: Interference) -> Iterator[Finding]:
    ports = [lab.server.name, *(board.name for board in lab.boards)]
    rate_hz = experiment.numerology.sample_rate_hz
    if section.receiver not in ports:
        near = closest(section.receiver, ports)
        hint = f"did you mean {near}?" if near else f"ports: {', '.join(ports)}"
        yield Finding("lab", ("receiver",), f"there is no port {section.receiver}", hint)
    if section.kind == "noise" and section.bandwidth_hz is None:
        yield Finding("lab", ("bandwidth_hz",), "noise needs one", "as in bandwidth_hz: 1e6")
    elif section.kind == "tone" and section.bandwidth_hz is not None:
        yield Finding("lab", ("bandwidth_hz",), "a tone has none", "leave it out, or write kind: noise")
    elif section.bandwidth_hz is not None and not 1e-6 * rate_hz <= section.bandwidth_hz <= rate_hz:
        message = (
            f"{number_text(section.bandwidth_hz)} Hz is not within 1e-6 of the sample rate and all of it"
        )
        yield Finding("lab", ("bandwidth_hz",), message)
    if abs(section.centre_hz) > rate_hz / 2:
        message = (
            f"{number_text(section.centre_hz)} Hz lies outside of what a receiver of "
            f"{number_text(rate_hz)} samples/s hears"
        )
        yield Finding("lab", ("centre_hz",), message)
    if section.period_s * rate_hz < 1:
        yield Finding("lab", ("period_s",), "this period is shorter than a sample")


_ENDPOINT = re.compile(r"tcp://(?P<host>\[[0-9a-fA-F:.]+\]|[^:/\[\]]+):(?P<port>\*|[0-9]{1,5})")


def _bind(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    path: Path = ("control", "bind")
    match = _ENDPOINT.fullmatch(lab.control.bind)
    if match is None or (match["port"] != "*" and not 0 < int(match["port"]) < 65536):
        yield Finding("lab", path, f"{lab.control.bind!r} is no endpoint", "as in tcp://127.0.0.1:* or :5555")
        return
    host = match["host"].strip("[]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        message = f"{host} is not loopback, and without CURVE keys anyone there could join or stop a run"
        yield Finding("lab", path, message, "keys can't be configured yet: bind to tcp://127.0.0.1:*")


def _heartbeat(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    control = lab.control
    if control.timeout_s < 2 * control.heartbeat_s:
        message = (
            f"a peer is given up after {number_text(control.timeout_s)} s, but sends a heartbeat only every "
            f"{number_text(control.heartbeat_s)} s: one late heartbeat detaches it"
        )
        yield Finding(
            "lab", ("control", "timeout_s"), message, f"at least {number_text(2 * control.heartbeat_s)}"
        )


# ------------------------------------------------------------------------------------- scenario
_SPANS = {"walks": "a walk", "throttles": "a throttle"}
_CHANGES = (*_SPANS, "redraws", "joins", "leaves")


def _scenario_radio(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    if lab.scenario is not None and lab.radio.driver != "emulated":
        message = f"a scenario changes the emulated air, and the {lab.radio.driver} radio has none"
        yield Finding("lab", ("scenario",), message, "leave it out: real channels change by themselves")


def _scenario_fading(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    if lab.scenario is None or lab.scenario.fading is None:
        return
    fading, path = lab.scenario.fading, ("scenario", "fading")
    needs = {"per_round": ("correlation", "0.98"), "doppler": ("doppler_hz", "2.0")}
    for kind, (key, example) in needs.items():
        given = getattr(fading, key) is not None
        if kind == fading.kind and not given:
            message = f"fading of kind {kind} needs it"
            yield Finding("lab", (*path, key), message, f"as in {key}: {example}")
        elif kind != fading.kind and given:
            yield Finding("lab", (*path, key), f"belongs to kind: {kind}, not to {fading.kind}")


def _changes(scenario: Scenario, *keys: str) -> Iterator[tuple[Path, Change]]:
    for key in keys:
        for index, change in _known(enumerate(getattr(scenario, key))):
            yield ("scenario", key, index), change


def _scenario_boards(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    if lab.scenario is None:
        return
    for path, change in _changes(lab.scenario, *_CHANGES):
        yield from _known(_change_board(lab, path, change))


def _change_board(lab: Lab, path: Path, change: Change) -> Iterator[Finding]:
    if change.board is None and change.index is None:
        yield Finding("lab", path, "names no board", "add board: NAME, or index: 0 for the lab's first")
    elif change.board is not None and change.index is not None:
        yield Finding("lab", (*path, "index"), "names a board beside this index", "keep one of the two")
    elif position_of(change, lab) is None and change.index is not None:
        message = f"the lab has {len(lab.boards)} boards, and none of index {change.index}"
        yield Finding("lab", (*path, "index"), message, f"0 to {len(lab.boards) - 1}")
    elif position_of(change, lab) is None:
        names = [board.name for board in lab.boards]
        near = closest(change.board or "", names)
        hint = f"did you mean {near}?" if near else f"boards: {', '.join(names)}"
        yield Finding("lab", (*path, "board"), f"there is no board {change.board}", hint)


def _scenario_spans(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    if lab.scenario is None:
        return
    for key, what in _SPANS.items():
        for path, change in _changes(lab.scenario, key):
            yield from _known(_span(what, path, change))


def _span(what: str, path: Path, change: Any) -> Iterator[Finding]:
    if change.begins >= change.ends:
        span = f"from {number_text(change.begins)} to {number_text(change.ends)} of the run"
        yield Finding("lab", (*path, "ends"), f"{what} {span} has no length", "begins must lie before ends")


def _scenario_depth(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    if lab.scenario is None:
        return
    for position, board in enumerate(lab.boards):
        by_round = attenuation_by_round(lab.scenario, lab, position, experiment.rounds)
        deepest = max(by_round, default=0.0)
        if deepest > MAX_DEPTH_DB:
            path, _ = [
                found for found in _changes(lab.scenario, "walks") if position_of(found[1], lab) == position
            ][-1]
            message = (
                f"the walks of {board.name} add up to {number_text(round(deepest, 1))} dB in round "
                f"{by_round.index(deepest)}; {number_text(MAX_DEPTH_DB)} dB in total are the most"
            )
            yield Finding("lab", path, message)


def _scenario_throttles(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    if lab.scenario is None:
        return
    truths = resolve_scenario(lab.scenario, lab, experiment.rounds).boards
    longest = max(len(truth.slowdown_by_round) for truth in truths.values())
    if longest > MAX_THROTTLED_ROUNDS:
        message = (
            f"processors change until round {longest} of {experiment.rounds}; {MAX_THROTTLED_ROUNDS} rounds "
            "can be told to a board"
        )
        yield Finding("lab", ("scenario", "throttles"), message, "take fewer rounds, or no throttles")


def _scenario_members(experiment: Experiment, lab: Lab) -> Iterator[Finding]:
    """Who joins and leaves: each board once, in this order, and somebody is always there."""
    if lab.scenario is None:
        return
    seen: dict[tuple[str, int], float] = {}
    for key, what in (("joins", "joins"), ("leaves", "leaves")):
        for path, change in _changes(lab.scenario, key):
            position = position_of(change, lab)
            if position is None:
                return  # said elsewhere, and then nobody knows who is there
            at = change.at  # type: ignore[attr-defined]
            name = lab.boards[position].name
            if (key, position) in seen:
                yield Finding("lab", path, f"{name} {what} twice; a board joins once and leaves once")
                return
            seen[key, position] = at
            joined = seen.get(("joins", position))
            if key == "leaves" and joined is not None and at <= joined:
                message = f"{name} leaves at {number_text(at)} of the run, and joins at {number_text(joined)}"
                yield Finding("lab", (*path, "at"), message, "a board does not come back")
                return
    resolved = resolve_scenario(lab.scenario, lab, experiment.rounds)
    empty = next((index for index in range(experiment.rounds) if not resolved.present(index)), None)
    if empty is not None:
        culprit = "leaves" if lab.scenario.leaves else "joins"
        message = f"nobody is left in round {empty} of {experiment.rounds}: every round needs a board"
        yield Finding("lab", ("scenario", culprit), message)


# ---------------------------------------------------------------------------------- one board
def _board_power(experiment: Experiment, lab: Lab, board: Board) -> Iterator[Finding]:
    if board.max_power_dbm > lab.total_power_dbm:
        message = (
            f"{number_text(board.max_power_dbm)} dBm is above the lab's total_power_dbm, "
            f"{number_text(lab.total_power_dbm)}"
        )
        yield Finding("lab", ("max_power_dbm",), message)


def _board_channel(experiment: Experiment, lab: Lab, board: Board) -> Iterator[Finding]:
    if board.channel is None and lab.radio.driver == "emulated":
        yield Finding(
            "lab", (), "the emulated radio needs a channel for this board", "add channel: {path_loss_db: ...}"
        )


def _board_prefix(experiment: Experiment, lab: Lab, board: Board) -> Iterator[Finding]:
    if board.channel is None:
        return
    grid, fading = experiment.numerology, board.channel.fading
    tail = 0
    if fading.profile != EXPONENTIAL:
        paths = tdl_paths(fading.profile, fading.delay_spread_s, _k_factor_db(fading))
        try:
            tail = tdl_span_samples(paths, grid.sample_rate_hz, MAX_LATE_SHARE)
        except RadioConfigurationError as exc:
            yield Finding("lab", ("channel", "fading", "delay_spread_s"), str(exc))
            return
    elif fading.num_taps > 1:
        gaps = fading.num_taps - 1
        last = LAST_TAP_DELAY_SPREADS * fading.delay_spread_s * grid.sample_rate_hz
        tail = gaps * max(1, round(last / gaps))
    drifting = ""
    if board.channel.clock_drift_ppm:
        frame_samples = grid.slots_per_frame * grid.symbols_per_slot * (grid.fft_size + grid.prefix_samples)
        drift = HALF_WIDTH + math.ceil(abs(board.channel.clock_drift_ppm) * 1e-6 * frame_samples)
        tail, drifting = tail + drift, f", {drift} of them for a drifting clock,"
    offset = board.channel.timing_offset_samples
    if offset + tail > grid.prefix_samples:
        message = (
            f"{offset} samples of timing offset and {tail} of delay spread{drifting} exceed the cyclic prefix "
            f"of {grid.prefix_samples} samples: symbols would run into each other"
        )
        hint = f"at most {grid.prefix_samples - tail}" if tail <= grid.prefix_samples else None
        yield Finding("lab", ("channel", "timing_offset_samples"), message, hint)


def _k_factor_db(fading: Fading) -> float | None:
    """K factor of a TDL profile that has a line of sight; another one is a finding of its own."""
    return fading.rician_k_db if fading.profile in PROFILES_WITH_LINE_OF_SIGHT else None


def _board_profile(experiment: Experiment, lab: Lab, board: Board) -> Iterator[Finding]:
    if board.channel is None or board.channel.fading.profile == EXPONENTIAL:
        return
    fading, path = board.channel.fading, ("channel", "fading")
    if fading.num_taps != 1:
        message = f"{fading.profile} has the taps of its table"
        yield Finding("lab", (*path, "num_taps"), message, "write num_taps: 1, or leave it out")
    if fading.delay_spread_s == 0:
        message = f"{fading.profile} is scaled to a delay spread, and this one is 0"
        yield Finding("lab", (*path, "delay_spread_s"), message, "as in delay_spread_s: 100e-9")
    if fading.rician_k_db is not None and fading.profile not in PROFILES_WITH_LINE_OF_SIGHT:
        message = f"{fading.profile} has no line of sight, hence no K factor"
        hint = f"write null, or take {' or '.join(PROFILES_WITH_LINE_OF_SIGHT)}"
        yield Finding("lab", (*path, "rician_k_db"), message, hint)


def _board_cfo(experiment: Experiment, lab: Lab, board: Board) -> Iterator[Finding]:
    if board.channel is None:
        return
    spacing_hz = experiment.numerology.sample_rate_hz / experiment.numerology.fft_size
    if abs(board.channel.cfo_hz) > MAX_CFO_SPACINGS * spacing_hz:
        message = (
            f"an offset of {number_text(board.channel.cfo_hz)} Hz is more than half the subcarrier spacing "
            f"of {number_text(spacing_hz)} Hz: it can't be estimated"
        )
        yield Finding("lab", ("channel", "cfo_hz"), message)


def _board_fading(experiment: Experiment, lab: Lab, board: Board) -> Iterator[Finding]:
    if board.channel is None or board.channel.fading.round_correlation is None:
        return
    if board.channel.fading.doppler_hz:
        message = (
            f"a channel changes with the round or with time, and doppler_hz is "
            f"{number_text(board.channel.fading.doppler_hz)}"
        )
        path = ("channel", "fading", "round_correlation")
        yield Finding("lab", path, message, "write doppler_hz: 0")


_CHECKS: tuple[Callable[[Experiment, Lab], Iterator[Finding]], ...] = (
    _fft,
    _prefix,
    _band,
    _slot,
    _duplex,
    _deadline,
    _data,
    _model,
    _clients,
    _environment,
    _names,
    _muted,
    _impairments,
    _interference,
    _bind,
    _heartbeat,
    _scenario_radio,
    _scenario_fading,
    _scenario_boards,
    _scenario_spans,
    _scenario_depth,
    _scenario_throttles,
    _scenario_members,
)
_BOARD_CHECKS: tuple[Callable[[Experiment, Lab, Board], Iterator[Finding]], ...] = (
    _board_power,
    _board_channel,
    _board_prefix,
    _board_profile,
    _board_cfo,
    _board_fading,
)


def _boards(lab: Lab) -> Iterator[tuple[int, Board]]:
    yield from enumerate(lab.boards)


def findings(experiment: Experiment, lab: Lab) -> list[Finding]:
    """Everything in which the two files contradict themselves, each other or the bench.

    Parameters
    ----------
    experiment, lab
        As validated by the schema, or :class:`Partial` where the schema found faults.
    """
    found = list(_plausible(experiment, lab))
    # One number in the wrong unit is one mistake, not one for each check that computes with it.
    for finding in found:
        if finding.root == "experiment":
            experiment = _without(experiment, finding.path)
        else:
            lab = _without(lab, finding.path)
    for check in _CHECKS:
        found.extend(_known(check(experiment, lab)))
    for index, board in _known(_boards(lab)):
        for board_check in _BOARD_CHECKS:
            for finding in _known(board_check(experiment, lab, board)):
                found.append(replace(finding, path=("boards", index, *finding.path)))
    return found
