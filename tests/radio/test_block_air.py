"""The air without samples: its statistics against those of the air with samples, and its bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from radio import effective_snr
from radio.air import block_kernels
from radio.air.block_kernels import (
    add_transmitter,
    add_transmitter_reference,
    nothing_heard,
    transfer_power,
)
from radio.air.block_limits import unsupported_by_blocks
from radio.air.blocks import BlockAir, make_air
from radio.air.channel import FadingProfile, LinkParameters
from radio.air.converter import converter_effect
from radio.air.core import AirCore, AirParameters, PortParameters, Window, WindowRequest
from radio.air.kernels import receive_convert
from radio.block_errors import block_errors, failure_rate, parse_block_errors
from radio.block_words import (
    MAX_REMEMBERED,
    SlotBurst,
    SlotReception,
    SlotRequest,
    decode_burst,
    decode_reception,
    decode_request,
    encode_burst,
    encode_reception,
    encode_request,
)
from radio.drivers.emulated import EmulatedRadio
from radio.effective_snr import block_quality, block_quality_reference, effective_snr_db
from radio.errors import GapError, LateBurstError, PlaneError, RadioConfigurationError
from radio.events import RadioEvent, RadioEventKind, ignore
from radio.fidelity import Fidelity
from radio.mcs import thresholds_db
from radio.modem import BlockMemory, make_modem
from radio.modulation import Modulation, constellation
from radio.numerology import Numerology
from radio.phy import UNUSED, ReceivedSlots, block_bytes, demodulate_slots, modulate_slots
from radio.rotation import rotate
from radio.units import thermal_noise_w_per_hz
from radio.warmup import warm_up

GRID = Numerology(20e6, 1024, 72, 20, 40, 28, 6)
NUM = GRID.num_subchannels
SLOT = GRID.slot_samples
STILL = FadingProfile(rician_k_db=80.0)
CONFIDENCE = 1 - 1e-4
PATH_LOSS_DB = 70.0
ALL_OWNED = np.zeros(NUM, np.int64)


def _parameters(fidelity: Fidelity, *, seed: int = 1, num_boards: int = 1, **link: object) -> AirParameters:
    values: dict[str, object] = {
        "path_loss_db": PATH_LOSS_DB,
        "fading": STILL,
        "timing_offset_samples": 9,
        **link,
    }
    names = [f"board-{index}" for index in range(num_boards)]
    links = tuple(LinkParameters(name, "server", **values) for name in names)  # type: ignore[arg-type]
    ports = tuple(PortParameters(name, 20.0) for name in [*names, "server"])
    return AirParameters(seed, GRID.sample_rate_hz, SLOT, ports, links, fidelity=fidelity, numerology=GRID)


def _air(parameters: AirParameters, snr_db: float = 20.0, events: list[RadioEvent] | None = None) -> AirCore:
    core = make_air(parameters, ignore if events is None else events.append)
    for port in parameters.ports:
        core.attach(port.name)
    received_w = (10 ** (snr_db / 10) + 1) * thermal_noise_w_per_hz(7.0) * GRID.sample_rate_hz
    core.set_rx_gain("server", -15.0 - 10 * np.log10(received_w) - 30)
    return core


def _amplitude(snr_db: float) -> float:
    noise_w = thermal_noise_w_per_hz(7.0) * GRID.sample_rate_hz
    return float(np.sqrt(10 ** (snr_db / 10) * noise_w / (0.1 * 10 ** (-PATH_LOSS_DB / 10))))


def _blocks(rng: np.random.Generator, num_slots: int, mcs: NDArray[np.int64]) -> dict[tuple[int, int], bytes]:
    used = np.flatnonzero(mcs != UNUSED).tolist()
    return {(slot, k): rng.bytes(block_bytes(GRID, int(mcs[k]))) for slot in range(num_slots) for k in used}


def _exchange(
    core: AirCore,
    num_slots: int,
    mcs: NDArray[np.int64],
    amplitude: NDArray[np.float64],
    *,
    first_slot: int = 0,
    cfo_hz: float = 0.0,
    rng: np.random.Generator,
) -> tuple[dict[tuple[int, int], bytes], ReceivedSlots]:
    """One burst of ``board-0`` through an air of either fidelity."""
    blocks = _blocks(rng, num_slots, mcs)
    first, count = first_slot * SLOT, num_slots * SLOT
    cycles = cfo_hz / GRID.sample_rate_hz
    owner = np.where(mcs == UNUSED, UNUSED, 0)
    if isinstance(core, BlockAir):
        core.burst_of_slots("board-0", first, SlotBurst(num_slots, blocks, mcs, amplitude, cycles))
        wanted = SlotRequest(num_slots, mcs, owner)
        (window,) = core.request(WindowRequest("server", first_slot, first, count, frozenset(), wanted))
        assert window.slots is not None
        return blocks, window.slots.received
    samples = modulate_slots(GRID, num_slots, blocks, mcs, amplitude)
    core.burst("board-0", first, rotate(samples, first, cycles), silent_until=first + count)
    (window,) = core.request(WindowRequest("server", first_slot, first, count, frozenset()))
    return blocks, demodulate_slots(GRID, window.samples, mcs, owner)


def _both(
    num_slots: int, mcs: NDArray[np.int64], snr_db: float, *, cfo_hz: float = 0.0, **link: object
) -> Iterator[tuple[dict[tuple[int, int], bytes], ReceivedSlots]]:
    for fidelity in Fidelity:
        core = _air(_parameters(fidelity, **link), snr_db)  # type: ignore[arg-type]
        amplitude = np.full(NUM, _amplitude(snr_db))
        yield _exchange(core, num_slots, mcs, amplitude, cfo_hz=cfo_hz, rng=np.random.default_rng(3))


# ------------------------------------------------------------------------------- against samples
@pytest.mark.parametrize("snr_db", [-4.0, 3.0, 22.0])
def test_estimates_have_the_distributions_that_samples_give_them(snr_db: float) -> None:
    """SNR and noise per slot and subchannel: two-sample Kolmogorov-Smirnov."""
    mcs = np.zeros(NUM, np.int64)
    (_, samples), (_, blocks) = _both(60, mcs, snr_db)
    for name in ("snr", "noise_power"):
        left, right = getattr(samples, name).ravel(), getattr(blocks, name).ravel()
        if name == "noise_power":  # a mean over the window: one value per subchannel
            left, right = samples.noise_power[0], blocks.noise_power[0]
        assert stats.ks_2samp(left, right).pvalue > 1 - CONFIDENCE, name


@pytest.mark.parametrize(
    ("mcs_index", "fading", "cfo_spacings", "snr_db"),
    [
        (0, STILL, 0.0, -3.9),
        (6, STILL, 0.0, 2.2),
        (13, FadingProfile(150e-9, 6, 5.0), 0.0, 11.0),
        (19, STILL, 0.01, 16.35),
        (28, FadingProfile(200e-9, 6, None), 0.0, 27.0),
    ],
)
def test_blocks_fail_as_often_as_with_samples(
    mcs_index: int, fading: FadingProfile, cfo_spacings: float, snr_db: float
) -> None:
    """Within what 2400 blocks can tell, and 0.05 dB of SNR: the slope at 10 % is below 7 per dB."""
    mcs = np.full(NUM, mcs_index, np.int64)
    rates = []
    for sent, received in _both(
        120, mcs, snr_db, cfo_hz=cfo_spacings * GRID.subcarrier_spacing_hz, fading=fading
    ):
        assert all(sent[place] == block for place, block in received.blocks.items())
        rates.append(1 - len(received.blocks) / len(sent))
    samples, blocks = rates
    assert 0.01 < samples < 0.9, "the point says nothing: move the SNR"
    pooled = (samples + blocks) / 2
    margin = stats.norm.isf((1 - CONFIDENCE) / 2) * np.sqrt(2 * pooled * (1 - pooled) / 2400)
    assert abs(samples - blocks) < margin + 0.05 * 7 * min(pooled, 1 - pooled)


def test_error_vectors_are_as_long_as_with_samples() -> None:
    mcs = np.full(NUM, 19, np.int64)
    (_, samples), (_, blocks) = _both(6, mcs, 20.0)
    # One block each: 1040 squared errors scatter by 3 % of their mean, their root by half of that.
    assert blocks.evm == pytest.approx(samples.evm, rel=4 * 0.5 * np.sqrt(2 / 1040))


def test_a_neighbour_off_its_carrier_disturbs_the_edge_as_with_samples() -> None:
    """Two boards side by side, one 15 dB louder and 2 % of a spacing off: noise of the nearest blocks."""
    parameters = {
        fidelity: dataclasses.replace(
            _parameters(fidelity, num_boards=2),
            links=(
                LinkParameters("board-0", "server", PATH_LOSS_DB, fading=STILL),
                LinkParameters(
                    "board-1", "server", PATH_LOSS_DB, cfo_hz=0.02 * GRID.subcarrier_spacing_hz, fading=STILL
                ),
            ),
        )
        for fidelity in Fidelity
    }
    halves = [np.where(np.arange(NUM) // 10 == index, 15, UNUSED) for index in range(2)]
    owner = np.arange(NUM) // 10
    quiet, loud = _amplitude(25.0), _amplitude(40.0)
    rng = np.random.default_rng(1)
    noise = {}
    for fidelity, told in parameters.items():
        core = _air(told, 40.0)
        count = 30 * SLOT
        for index, amplitude in enumerate((quiet, loud)):
            blocks = _blocks(rng, 30, halves[index])
            magnitudes = np.full(NUM, amplitude)
            if isinstance(core, BlockAir):
                core.burst_of_slots(f"board-{index}", 0, SlotBurst(30, blocks, halves[index], magnitudes))
            else:
                core.burst(
                    f"board-{index}", 0, modulate_slots(GRID, 30, blocks, halves[index], magnitudes), count
                )
        mcs = np.full(NUM, 15, np.int64)
        slots = SlotRequest(30, mcs, owner) if isinstance(core, BlockAir) else None
        (window,) = core.request(WindowRequest("server", 1, 0, count, frozenset(), slots))
        received = (
            window.slots.received if window.slots else demodulate_slots(GRID, window.samples, mcs, owner)
        )
        noise[fidelity] = received.noise_power[0]
    ratio_db = 10 * np.log10(noise[Fidelity.BLOCKS] / noise[Fidelity.IQ])
    edge_db = 10 * np.log10(noise[Fidelity.IQ][9] / noise[Fidelity.IQ][0])
    assert edge_db > 1.0, "nothing spills over: the test says nothing"
    assert np.abs(ratio_db).max() < 1.0


def test_empty_pilots_are_found_as_rarely_as_the_estimator_promises() -> None:
    mcs = np.full(NUM, 5, np.int64)
    core = _air(_parameters(Fidelity.BLOCKS))
    wanted = SlotRequest(130, mcs, ALL_OWNED)
    core.silent_until("board-0", 130 * SLOT)
    (window,) = core.request(WindowRequest("server", 1, 0, 130 * SLOT, frozenset(), wanted))
    assert window.slots is not None
    found = int(window.slots.received.attempted.sum())
    assert window.slots.received.blocks == {}
    low, high = stats.binom.interval(CONFIDENCE, 130 * NUM, 1e-3)
    assert low <= found <= high


def test_a_sounding_hears_bursts_of_blocks_as_their_samples() -> None:
    """A window of samples over blocks is that of the same burst, modulated."""
    rng = np.random.default_rng(5)
    mcs, amplitude = np.full(NUM, 8, np.int64), np.full(NUM, _amplitude(15.0))
    blocks = _blocks(rng, 2, mcs)
    cycles = 100.0 / GRID.sample_rate_hz
    windows = []
    for fidelity in Fidelity:
        core = _air(_parameters(fidelity))
        if isinstance(core, BlockAir):
            core.burst_of_slots("board-0", SLOT, SlotBurst(2, blocks, mcs, amplitude, cycles))
        else:
            samples = rotate(modulate_slots(GRID, 2, blocks, mcs, amplitude), SLOT, cycles)
            core.burst("board-0", SLOT, samples)
        (window,) = core.request(WindowRequest("server", 1, 2 * SLOT, SLOT // 2, frozenset()))
        windows.append(window.samples)
    np.testing.assert_array_equal(windows[0], windows[1])


# -------------------------------------------------------------------------------- what repeats
def test_draws_depend_neither_on_order_nor_on_the_cutting_of_windows() -> None:
    mcs = np.full(NUM, 11, np.int64)
    amplitude = np.full(NUM, _amplitude(float(thresholds_db(GRID.block_resource_elements)[11]) + 0.4))
    blocks = _blocks(np.random.default_rng(2), 12, mcs)
    burst = SlotBurst(12, blocks, mcs, amplitude)

    def hear(cut: list[int], ask_first: bool) -> tuple[set[tuple[int, int]], NDArray[np.float32]]:
        core = _air(_parameters(Fidelity.BLOCKS))
        windows: list[Window] = []
        if not ask_first:
            windows += core.burst_of_slots("board-0", 0, burst)
        first = 0
        for count in cut:
            request = SlotRequest(count, mcs, ALL_OWNED)
            expected = frozenset({"board-0"})
            windows += core.request(
                WindowRequest("server", first, first * SLOT, count * SLOT, expected, request)
            )
            first += count
        if ask_first:
            assert windows == []
            windows += core.burst_of_slots("board-0", 0, burst)
        places, snr = set(), []
        for window in windows:
            assert window.slots is not None
            start = window.first_sample // SLOT
            places |= {(slot + start, k) for slot, k in window.slots.received.blocks}
            snr.append(window.slots.received.snr)
        return places, np.concatenate(snr)

    once, snr = hear([12], False)
    assert 0 < len(once) < len(blocks)
    for cut, ask_first in (([12], True), ([5, 7], False), ([1] * 12, True)):
        places, other = hear(cut, ask_first)
        np.testing.assert_allclose(other, snr, rtol=1e-5)
        # The noise estimate is a mean over the window, so a block on the edge may fall to either side.
        assert len(places ^ once) <= 0.03 * len(blocks)
        if cut == [12]:
            assert places == once


def test_copies_of_a_block_add_up() -> None:
    """3 dB below threshold single copies fail and two together arrive: SNRs of copies are summed."""
    mcs = np.full(NUM, 11, np.int64)
    snr_db = float(thresholds_db(GRID.block_resource_elements)[11]) - 2.0
    amplitude = np.full(NUM, _amplitude(snr_db))
    core = _air(_parameters(Fidelity.BLOCKS))
    blocks = _blocks(np.random.default_rng(4), 2, mcs)

    def send(first_slot: int, remembered: dict[bytes, float] | None) -> SlotReception:
        core.burst_of_slots("board-0", first_slot * SLOT, SlotBurst(2, blocks, mcs, amplitude))
        wanted = SlotRequest(2, mcs, ALL_OWNED, remembered=remembered)
        (window,) = core.request(
            WindowRequest("server", first_slot, first_slot * SLOT, 2 * SLOT, frozenset(), wanted)
        )
        assert window.slots is not None
        return window.slots

    first = send(0, {})
    assert first.received.blocks == {}
    assert len(first.failed) == len(blocks)
    assert send(2, None).received.blocks == {}
    assert send(4, first.failed).received.blocks == blocks


def test_a_window_of_blocks_compiles_nothing_once_warm() -> None:
    warm_up()
    kernels = (block_kernels._add, block_kernels._transfer_power, effective_snr._quality)
    before = [len(kernel.signatures) for kernel in kernels]
    assert min(before) > 0
    mcs = np.full(NUM, 12, np.int64)
    core = _air(_parameters(Fidelity.BLOCKS), 30.0)
    # Off its carrier and loud, so that it spills over too.
    sent, received = _exchange(
        core, 2, mcs, np.full(NUM, _amplitude(30.0)), cfo_hz=200.0, rng=np.random.default_rng(0)
    )
    assert received.blocks == sent
    assert [len(kernel.signatures) for kernel in kernels] == before


# ------------------------------------------------------------------------------- words and bounds
def test_late_bursts_gaps_and_muted_ports_are_those_of_any_air() -> None:
    events: list[RadioEvent] = []
    mcs, amplitude = np.full(NUM, 5, np.int64), np.full(NUM, _amplitude(20.0))
    core = _air(_parameters(Fidelity.BLOCKS), events=events)
    burst = SlotBurst(2, _blocks(np.random.default_rng(0), 2, mcs), mcs, amplitude)
    core.burst_of_slots("board-0", 0, burst, silent_until=4 * SLOT)
    with pytest.raises(LateBurstError):
        core.burst_of_slots("board-0", 3 * SLOT, burst)
    assert [event.kind for event in events] == [RadioEventKind.LATE]
    for _ in range(400):  # beyond what a port keeps
        core.burst_of_slots("board-0", core._ports["board-0"].spoken_until, burst)
    with pytest.raises(GapError):
        core.request(WindowRequest("server", 1, 0, SLOT, frozenset(), SlotRequest(1, mcs, ALL_OWNED)))

    muted = _parameters(Fidelity.BLOCKS)
    ports = tuple(dataclasses.replace(port, muted=port.name == "board-0") for port in muted.ports)
    core = _air(dataclasses.replace(muted, ports=ports))
    _, received = _exchange(core, 2, mcs, amplitude, rng=np.random.default_rng(0))
    assert received.blocks == {}


def test_an_overdriven_receiver_clips_and_decodes_worse() -> None:
    events: list[RadioEvent] = []
    mcs, amplitude = np.full(NUM, 25, np.int64), np.full(NUM, _amplitude(30.0))
    core = _air(_parameters(Fidelity.BLOCKS), 30.0, events)
    _, good = _exchange(core, 2, mcs, amplitude, rng=np.random.default_rng(0))
    assert (len(good.blocks), events) == (2 * NUM, [])
    core.set_rx_gain("server", core._ports["server"].rx_gain_db + 20.0)
    _, bad = _exchange(core, 2, mcs, amplitude, first_slot=2, rng=np.random.default_rng(0))
    assert bad.blocks == {}
    assert [event.kind for event in events] == [RadioEventKind.CLIPPED]
    assert events[0].count > SLOT / 10


@pytest.mark.parametrize("level_db", [-70.0, -30.0, -12.0, 3.0])
def test_the_converters_effect_is_that_on_gaussian_samples(level_db: float) -> None:
    """Bussgang gain and distortion against the converter itself."""
    rng = np.random.default_rng(8)
    count = 400_000
    deviation = np.sqrt(10 ** (level_db / 10) / 2)
    window = (rng.standard_normal((2, count)) * deviation).astype(np.float32)
    out = np.empty(count, np.complex64)
    clipped = receive_convert(window, 1.0, 12, out)
    sent = window[0].astype(np.float64) + 1j * window[1]
    gain = np.vdot(sent, out).real / np.vdot(sent, sent).real
    distortion = float(np.mean(np.abs(out - gain * sent) ** 2))
    effect = converter_effect(10 ** (level_db / 10), 12)
    assert effect.gain == pytest.approx(gain, abs=0.005)
    assert effect.distortion_power == pytest.approx(distortion, rel=0.02)
    assert effect.clipped_share == pytest.approx(clipped / count, abs=0.005)


def test_what_blocks_cannot_represent_is_refused_by_name() -> None:
    good = _parameters(Fidelity.BLOCKS)
    assert unsupported_by_blocks(good) == []
    late = _parameters(Fidelity.BLOCKS, timing_offset_samples=GRID.prefix_samples)
    assert any("prefix" in words for words in unsupported_by_blocks(late))
    with pytest.raises(RadioConfigurationError, match="prefix"):
        BlockAir(late)
    fast = dataclasses.replace(good, tap_update_samples=SLOT // 2)
    assert any("taps" in words for words in unsupported_by_blocks(fast))
    assert unsupported_by_blocks(dataclasses.replace(good, numerology=None)) == ["no numerology was given"]

    @dataclasses.dataclass(frozen=True)
    class Impaired(PortParameters):
        phase_noise_hz: float = 0.0

    for linewidth_hz, refused in ((0.0, []), (3.0, ["port board-0: phase_noise_hz = 3.0"])):
        port = Impaired("board-0", 20.0, phase_noise_hz=linewidth_hz)
        changed = dataclasses.replace(good, ports=(port, *good.ports[1:]))
        assert unsupported_by_blocks(changed) == refused


def test_an_air_of_samples_refuses_blocks() -> None:
    core = _air(_parameters(Fidelity.IQ))
    mcs = np.full(NUM, 5, np.int64)
    with pytest.raises(RadioConfigurationError, match="fidelity"):
        core.burst_of_slots("board-0", 0, SlotBurst(1, {}, mcs, np.ones(NUM)))
    with pytest.raises(RadioConfigurationError, match="fidelity"):
        core.request(WindowRequest("server", 1, 0, SLOT, frozenset(), SlotRequest(1, mcs, ALL_OWNED)))


def test_a_radio_of_samples_is_no_radio_for_blocks() -> None:
    class Samples:
        capabilities = dataclasses.replace(EmulatedRadio.capabilities, driver="pluto", slots=False)

    with pytest.raises(RadioConfigurationError, match="pluto radio carries samples only"):
        make_modem(Fidelity.BLOCKS, GRID, Samples())  # type: ignore[arg-type]


def test_the_memory_of_failed_blocks_is_bounded_and_keeps_the_newest() -> None:
    memory = BlockMemory()
    for start in range(0, 3 * MAX_REMEMBERED, MAX_REMEMBERED // 2):
        memory.note({(start + index).to_bytes(8, "big"): 1.0 for index in range(MAX_REMEMBERED // 2)})
    assert len(memory.snr) == MAX_REMEMBERED
    assert (3 * MAX_REMEMBERED - 1).to_bytes(8, "big") in memory.snr


@pytest.mark.parametrize(
    "change",
    [
        {"num_slots": 1 << 20},
        {"mcs_index": np.full(NUM, 99)},
        {"mcs_index": np.zeros(NUM + 1, np.int64)},
        {"amplitude": np.full(NUM, np.nan)},
        {"blocks": {(0, 0): b"too short"}},
        {"blocks": {(7, 0): bytes(block_bytes(GRID, 5))}},
    ],
)
def test_bursts_that_no_modulator_would_take_are_refused(change: dict[str, object]) -> None:
    mcs = np.full(NUM, 5, np.int64)
    blocks = _blocks(np.random.default_rng(0), 1, mcs)
    burst = dataclasses.replace(SlotBurst(1, blocks, mcs, np.ones(NUM)), **change)  # type: ignore[arg-type]
    with pytest.raises(PlaneError):
        _air(_parameters(Fidelity.BLOCKS)).burst_of_slots("board-0", 0, burst)
    with pytest.raises(PlaneError):
        decode_burst(encode_burst(burst), GRID)


def test_slots_lie_on_the_grid_of_slots() -> None:
    core = _air(_parameters(Fidelity.BLOCKS))
    mcs = np.full(NUM, 5, np.int64)
    with pytest.raises(PlaneError, match="no slot"):
        core.burst_of_slots("board-0", 7, SlotBurst(1, {}, mcs, np.ones(NUM)))
    with pytest.raises(PlaneError, match="no slot"):
        core.request(WindowRequest("server", 1, 7, SLOT, frozenset(), SlotRequest(1, mcs, ALL_OWNED)))


def test_words_survive_the_wire_and_damage_is_refused() -> None:
    rng = np.random.default_rng(9)
    mcs = np.where(np.arange(NUM) % 3 == 0, UNUSED, 7)
    burst = SlotBurst(3, _blocks(rng, 3, mcs), mcs, rng.random(NUM), 1e-5)
    request = SlotRequest(3, mcs, ALL_OWNED, -1e-5, {b"12345678": 1.5})
    shape = (3, NUM)
    received = ReceivedSlots(
        dict(burst.blocks),
        rng.random(shape) < 0.5,
        rng.random(shape).astype(np.float32),
        rng.random(shape).astype(np.float32),
        0.25,
        0,
    )
    answer = SlotReception(received, {b"abcdefgh": 2.5}, 17)
    there = decode_burst(encode_burst(burst), GRID)
    assert there.blocks == burst.blocks
    np.testing.assert_array_equal(there.amplitude, burst.amplitude)
    asked = decode_request(encode_request(request), GRID)
    assert (asked.remembered, asked.cycles_per_sample) == (request.remembered, request.cycles_per_sample)
    back = decode_reception(encode_reception(answer), *shape)
    assert back.received.blocks == received.blocks
    assert (back.failed, back.clipped_samples, back.received.evm) == (answer.failed, 17, 0.25)
    np.testing.assert_array_equal(back.received.snr, received.snr)

    decoders = (
        (encode_burst(burst), lambda data: decode_burst(data, GRID)),
        (encode_request(request), lambda data: decode_request(data, GRID)),
        (encode_reception(answer), lambda data: decode_reception(data, *shape)),
    )
    refused = 0
    for data, decode in decoders:
        for _ in range(400):
            damaged = bytearray(data[: rng.integers(0, len(data))] if rng.random() < 0.5 else data)
            for _ in range(3):
                if damaged:
                    damaged[rng.integers(0, len(damaged))] = rng.integers(0, 256)
            try:
                decode(bytes(damaged))
            except PlaneError:
                refused += 1
    assert refused > 500


# ------------------------------------------------------------------------------- curves and mapping
@pytest.mark.parametrize("modulation", list(Modulation))
def test_equal_snrs_are_their_own_effective_snr(modulation: Modulation) -> None:
    snr_db = np.arange(-10.0, 3.0 + 4 * int(modulation), 0.7)
    snr = np.repeat(10 ** (snr_db / 10)[:, None], 8, axis=1)
    bits = np.full(len(snr), int(modulation))
    np.testing.assert_allclose(effective_snr_db(bits, snr), snr_db, atol=0.02)


def test_the_information_of_bpsk_and_16qam_is_that_of_a_simulation() -> None:
    """Half the symbols at one SNR and half at nothing carry half the information."""
    rng = np.random.default_rng(6)
    for modulation, snr_db in ((Modulation.BPSK, -1.0), (Modulation.QAM16, 9.0)):
        snr = np.array([[10 ** (snr_db / 10), 1e-9]])
        half_db = float(effective_snr_db(np.array([int(modulation)]), snr)[0])
        full, half = (_information(modulation, value, rng) for value in (snr_db, half_db))
        assert half == pytest.approx(full / 2, abs=0.01)


def _information(modulation: Modulation, snr_db: float, rng: np.random.Generator) -> float:
    """Mutual information per bit of a labelled constellation on AWGN, simulated."""
    points = constellation(modulation).astype(np.complex128)
    bits = int(modulation)
    labels = rng.integers(0, len(points), 60_000)
    deviation = np.sqrt(0.5 * 10 ** (-snr_db / 10))
    noise = (rng.standard_normal(len(labels)) + 1j * rng.standard_normal(len(labels))) * deviation
    likelihood = np.exp(
        -(np.abs(points[labels][:, None] + noise[:, None] - points) ** 2 - np.abs(noise)[:, None] ** 2)
        / (2 * deviation**2)
    )
    lost = 0.0
    for bit in range(bits):
        value = (np.arange(len(points)) >> bit) & 1
        same = value[None, :] == value[labels][:, None]
        lost += float(np.mean(np.log2(likelihood.sum(axis=1) / (likelihood * same).sum(axis=1))))
    return 1 - lost / bits


def _complex(rng: np.random.Generator, *shape: int) -> NDArray[np.complex128]:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def test_the_quality_of_blocks_is_that_of_plain_numpy() -> None:
    rng = np.random.default_rng(11)
    num_blocks = 300
    truth = _complex(rng, num_blocks, 40).astype(np.complex64)
    middle = (truth + 0.2 * _complex(rng, num_blocks, 40)).astype(np.complex64)
    variance = (rng.random((num_blocks, 40)) * 10.0 ** rng.uniform(-4, 1, (num_blocks, 1))).astype(np.float32)
    slip = np.repeat(rng.uniform(-0.5, 0.5, num_blocks // 3), 3)
    positions = np.linspace(-1, 1, 26)
    mcs = rng.integers(0, len(thresholds_db(520)), num_blocks)
    arguments = (truth, middle, variance, slip, positions, mcs)
    found, expected = block_quality(*arguments), block_quality_reference(*arguments)
    np.testing.assert_allclose(found.effective_snr_db, expected.effective_snr_db, atol=2e-3)
    np.testing.assert_allclose(found.error_power, expected.error_power, rtol=1e-4)


def test_transmitters_add_up_as_in_plain_numpy() -> None:
    """Two that share a subchannel, too: the louder one is what can be decoded there."""
    rng = np.random.default_rng(12)
    found, expected = nothing_heard(3, 4, 6), nothing_heard(3, 4, 6)
    for number in range(2):
        taps, ramps = _complex(rng, 3, 5), np.exp(2j * np.pi * rng.random((5, 24))).astype(np.complex64)
        mcs = rng.integers(-1, 9, (3, 4))
        mcs[:, 1] = 5
        turn, advance = np.exp(2j * np.pi * rng.random(3)), rng.uniform(-1, 1, 3)
        arguments = (taps, ramps, rng.random((3, 4)), turn, advance, mcs, number)
        add_transmitter(*arguments, found)
        add_transmitter_reference(*arguments, expected)
        np.testing.assert_allclose(
            transfer_power(taps, ramps), np.abs(taps @ ramps) ** 2, rtol=1e-4, atol=1e-4
        )
    assert len(set(found.loudest[:, 1].tolist())) == 2, "one is the louder everywhere: the test says less"
    for name in found._fields:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_failure_rates_fall_with_the_snr_and_meet_their_points() -> None:
    elements = GRID.block_resource_elements
    index = np.arange(len(thresholds_db(elements)))
    offsets = block_errors()
    at_10 = thresholds_db(elements, 0.1) + offsets.offset_10_percent_db
    at_1 = thresholds_db(elements, 0.01) + offsets.offset_1_percent_db
    assert (at_1 > at_10).all()
    np.testing.assert_allclose(failure_rate(index, at_10, elements), 0.1, rtol=1e-9)
    np.testing.assert_allclose(failure_rate(index, at_1, elements), 0.01, rtol=1e-9)
    # An estimator costs little that is not in the effective SNR: the data would say otherwise.
    assert np.abs(offsets.offset_10_percent_db).max() < 0.2
    assert offsets.provenance["measured_by"] == "python -m calibration.block_errors"


def test_a_document_of_other_schemes_is_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        parse_block_errors({"format": "block-errors/0"})
    with pytest.raises(ValueError, match="another list of schemes"):
        parse_block_errors({"format": "block-errors/1", "mcs": []})
