"""Front ends and interferers against their formulas, alone and through the modem."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from signals import LAPTOP, complex_noise, random_blocks

from radio.air.channel import FadingProfile, LinkParameters
from radio.air.core import AirCore, AirParameters, PortParameters, WindowRequest
from radio.air.fractional import HALF_WIDTH, interpolation_kernel
from radio.air.front_end import (
    IDEAL,
    FrontEnd,
    PortImpairments,
    ReceiverImpairments,
    TransmitterImpairments,
    compress,
    image_rejection_db,
    rapp_gain,
)
from radio.air.interference import Interference, Interferer
from radio.air.noise import noise_key
from radio.air.oscillator import Oscillator, PhaseNoise
from radio.errors import RadioConfigurationError
from radio.estimation import prefix_span
from radio.phy import ReceivedSlots, demodulate_slots, modulate_slots
from radio.units import thermal_noise_w_per_hz, watt_to_dbm

RATE_HZ = 1e6
QUIET = -300.0  # noise figure [dB] far below everything
WIDE = float(stats.norm.isf(1e-6))  # standard deviations that an estimate stays within
NOISE = PhaseNoise(3.0, 5e3)
SENDS = TransmitterImpairments(0.7, -2.0, -35.0, -3.0, 1.3)
RECEIVES = ReceiverImpairments(-0.4, 1.5, -30.0)
EVERYTHING = PortImpairments(NOISE, SENDS, RECEIVES)


def air(
    sender: PortImpairments = IDEAL,
    receiver: PortImpairments = IDEAL,
    interference: tuple[Interference, ...] = (),
    *,
    noise_figure_db: float = QUIET,
    bits: int = 24,
    seed: int = 1,
    **link: object,
) -> AirCore:
    """A link without loss whose one constant path turns nothing but the phase, ``fading`` aside."""
    ports = (
        PortParameters("a", 0.0, 0.0, QUIET, bits, impairments=sender),
        PortParameters("b", 0.0, 0.0, noise_figure_db, bits, impairments=receiver),
    )
    values: dict[str, object] = {"fading": FadingProfile(rician_k_db=300.0), **link}
    links = (LinkParameters("a", "b", 0.0, **values),)  # type: ignore[arg-type]
    return AirCore(AirParameters(seed, RATE_HZ, 1500, ports, links, interference))


def hear(core: AirCore, first: int, count: int, receiver: str = "b") -> NDArray[np.complex64]:
    [window] = core.request(WindowRequest(receiver, first, first, count, frozenset()))
    return window.samples


def through(core: AirCore, sent: NDArray[np.complex64]) -> NDArray[np.complex64]:
    core.burst("a", 0, sent, silent_until=len(sent) + 100)
    return hear(core, 0, len(sent))


def path_of(core: AirCore) -> complex:
    return complex(core._heard_by["b"][0].taps_at(0.0)[0])


# --------------------------------------------------------------------------------- off
def test_nothing_is_impaired_by_default() -> None:
    core = air(noise_figure_db=7.0, bits=12)
    front_end = core._ports["a"].front_end
    assert front_end.sends_ideally
    assert front_end.receives_ideally
    sent = complex_noise(np.random.default_rng(1), 3000, 0.02)
    explicit = PortImpairments(
        PhaseNoise(0.0, 1e4), TransmitterImpairments(0.0, 0.0, None, None, 3.0), ReceiverImpairments(0.0, 0.0)
    )
    outcomes = {
        through(air(one, one, noise_figure_db=7.0, bits=12), sent).tobytes() for one in (IDEAL, explicit)
    }
    assert len(outcomes) == 1


def test_parameters_travel_as_json() -> None:
    interference = (Interference("b", "noise", -60.0, 1e5, 2e4, 0.5, 1e-3),)
    parameters = air(EVERYTHING, EVERYTHING, interference, clock_drift_ppm=3.0).parameters
    assert msgspec.json.decode(msgspec.json.encode(parameters), type=AirParameters) == parameters


# --------------------------------------------------------------------------------- phase noise
@pytest.mark.parametrize(("rms_deg", "bandwidth_hz"), [(0.5, 2e3), (5.0, 50e3), (2.0, 100.0)])
def test_phase_noise_has_its_rms_and_density(rms_deg: float, bandwidth_hz: float) -> None:
    num_parts, length = 256, 1 << 12
    oscillator = Oscillator(PhaseNoise(rms_deg, bandwidth_hz), RATE_HZ, noise_key(4, "test"))
    phases = oscillator.phases(10**9, num_parts * length).astype(np.float64).reshape(num_parts, length)
    variance = np.deg2rad(rms_deg) ** 2
    # Correlated over f_s / (2 pi B) samples on either side: as many fewer are independent.
    num_independent = phases.size * np.pi * bandwidth_hz / RATE_HZ
    assert phases.var() == pytest.approx(variance, rel=WIDE * np.sqrt(2 / num_independent))
    window = np.hanning(length)
    spectra = np.abs(np.fft.rfft(phases * window)) ** 2 / (window**2).sum() / RATE_HZ
    frequencies_hz = np.fft.rfftfreq(length, 1 / RATE_HZ)
    pole = np.exp(-2 * np.pi * bandwidth_hz / RATE_HZ)
    turn = np.exp(-2j * np.pi * frequencies_hz / RATE_HZ)
    expected = variance * (1 - pole**2) / np.abs(1 - pole * turn) ** 2 / RATE_HZ
    # In bands of 32 bins, where the density changes little from bin to bin.
    bands = slice(32, 2048)
    measured = (spectra[:, bands] / expected[bands]).reshape(num_parts, -1, 32).mean(axis=(0, 2))
    np.testing.assert_allclose(measured, 1.0, atol=WIDE * np.sqrt(1.95 / (32 * num_parts)) + 0.01)
    # The textbook's Lorentzian: a plateau of sigma^2 / (pi B), and 20 dB per decade above B.
    offset = np.searchsorted(frequencies_hz, 20e3)
    lorentzian = variance / (np.pi * bandwidth_hz) / (1 + (frequencies_hz[offset] / bandwidth_hz) ** 2)
    assert expected[offset] == pytest.approx(lorentzian, rel=0.15)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**11), st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_phase_noise_is_a_function_of_the_sample_index(first: int, lengths: list[int]) -> None:
    oscillator = Oscillator(NOISE, RATE_HZ, noise_key(4, "test"))
    whole = oscillator.phases(first, sum(lengths))
    ends = np.cumsum([0, *lengths])
    parts = [oscillator.phases(first + begin, end - begin) for begin, end in itertools.pairwise(ends)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_an_oscillator_turns_what_is_sent_and_turns_back_what_is_received() -> None:
    """Of one port, so a port that hears itself sees no phase noise; of two ports, independent ones."""
    noisy = PortImpairments(PhaseNoise(8.0, 2e3))
    count = 200_000
    sent = np.full(count, 0.5, np.complex64)
    phases = {}
    for sender, receiver in ((noisy, IDEAL), (IDEAL, noisy), (noisy, noisy)):
        core = air(sender, receiver)
        phases[sender is noisy, receiver is noisy] = np.angle(through(core, sent) * np.conj(path_of(core)))
    out, back, both = phases[True, False], phases[False, True], phases[True, True]
    np.testing.assert_allclose(both, out + back, atol=2e-6)
    assert abs(np.corrcoef(out, back)[0, 1]) < 0.2  # some 630 independent values
    planes = np.stack([np.full(2000, 0.5), np.zeros(2000)]).astype(np.float32)
    own = FrontEnd(noisy, 1, "a", RATE_HZ)
    own.send(planes, 12_345)
    own.receive(planes, 12_345, 1.0)
    np.testing.assert_allclose(planes[0], 0.5, atol=1e-6)
    np.testing.assert_allclose(planes[1], 0.0, atol=1e-6)


def test_turning_is_exact_at_any_phase() -> None:
    oscillator = Oscillator(PhaseNoise(60.0, 1e4), RATE_HZ, noise_key(5))
    phases = oscillator.phases(0, 100_000).astype(np.float64)
    assert np.abs(phases).max() > np.pi
    planes = np.stack([np.ones(100_000), np.zeros(100_000)]).astype(np.float32)
    oscillator.turn(planes, 0, -1.0)
    np.testing.assert_allclose(planes[0] + 1j * planes[1], np.exp(-1j * phases), atol=2e-6)


# --------------------------------------------------------------------------------- mixers
@pytest.mark.parametrize(("gain_db", "phase_deg"), [(0.0, 1.0), (0.5, 0.0), (-1.0, 3.0), (0.17, 0.57)])
@pytest.mark.parametrize("sending", [True, False])
def test_an_image_lies_below_by_the_image_rejection_ratio(
    gain_db: float, phase_deg: float, sending: bool
) -> None:
    gain, angle = 10 ** (gain_db / 20), np.deg2rad(phase_deg)
    ratio = (1 + 2 * gain * np.cos(angle) + gain**2) / (1 - 2 * gain * np.cos(angle) + gain**2)
    assert image_rejection_db(gain_db, phase_deg) == pytest.approx(10 * np.log10(ratio), abs=1e-9)
    sends = PortImpairments(transmitter=TransmitterImpairments(gain_db, phase_deg))
    receives = PortImpairments(receiver=ReceiverImpairments(gain_db, phase_deg))
    core = air(sends) if sending else air(receiver=receives)
    count = 4096
    sent = (0.5 * np.exp(2j * np.pi * 300 / count * np.arange(count))).astype(np.complex64)
    spectrum = np.abs(np.fft.fft(through(core, sent).astype(np.complex128))) ** 2
    assert 10 * np.log10(spectrum[300] / spectrum[-300]) == pytest.approx(10 * np.log10(ratio), abs=0.02)
    # (g + 1/g) / 2 of the power stays, split between both.
    total = (spectrum[300] + spectrum[-300]) / (0.5 * count) ** 2
    assert total == pytest.approx((gain + 1 / gain) / 2, rel=1e-4)


def test_an_ideal_mixer_has_no_image() -> None:
    assert image_rejection_db(0.0, 0.0) == np.inf


def test_the_carrier_leaks_at_its_level_while_a_burst_is_sent() -> None:
    core = air(PortImpairments(transmitter=TransmitterImpairments(lo_leakage_dbfs=-40.0)))
    core.burst("a", 500, np.zeros(1000, np.complex64), silent_until=3000)
    heard = hear(core, 0, 2000)
    np.testing.assert_allclose(np.abs(heard[500:1500]), 0.01, atol=1e-6)
    assert np.ptp(np.angle(heard[500:1500])) < 1e-3
    assert not heard[:500].any()
    assert not heard[1500:].any()


@pytest.mark.parametrize("rx_gain_db", [0.0, 60.0])
def test_the_receivers_offset_has_its_level_at_any_gain(rx_gain_db: float) -> None:
    core = air(receiver=PortImpairments(receiver=ReceiverImpairments(dc_offset_dbfs=-50.0)))
    core.set_rx_gain("b", rx_gain_db)
    np.testing.assert_allclose(np.abs(hear(core, 0, 100)), 10 ** (-50 / 20), rtol=1e-4)


def test_offsets_point_elsewhere_in_each_port_and_run() -> None:
    impaired = PortImpairments(receiver=ReceiverImpairments(dc_offset_dbfs=-20.0))
    angles = [np.angle(hear(air(receiver=impaired, seed=seed), 0, 1)[0]) for seed in range(200)]
    assert stats.kstest(np.mod(angles, 2 * np.pi) / (2 * np.pi), "uniform").pvalue > 1e-5


# --------------------------------------------------------------------------------- amplifier
@pytest.mark.parametrize("smoothness", [1.0, 2.0, 3.0, 7.5])
@pytest.mark.parametrize("saturation_dbfs", [-6.0, 3.0])
def test_an_amplifier_follows_rapps_curve(smoothness: float, saturation_dbfs: float) -> None:
    """AM/AM to the formula at every level, no AM/PM, and 1 dB of compression where the formula puts it."""
    saturation = 10 ** (saturation_dbfs / 20)
    sends = TransmitterImpairments(pa_saturation_dbfs=saturation_dbfs, pa_smoothness=smoothness)
    core = air(PortImpairments(transmitter=sends))
    levels = np.linspace(0.0, 0.99, 2000)
    sent = (levels * np.exp(0.7j)).astype(np.complex64)
    heard = through(core, sent) / path_of(core)
    expected = levels / (1 + (levels / saturation) ** (2 * smoothness)) ** (1 / (2 * smoothness))
    np.testing.assert_allclose(np.abs(heard), expected, atol=1e-6)
    np.testing.assert_allclose(rapp_gain(levels**2, saturation, smoothness) * levels, expected, rtol=1e-12)
    assert np.ptp(np.angle(heard[200:])) < 1e-4
    compressed = saturation * (10 ** (smoothness / 10) - 1) ** (1 / (2 * smoothness))
    planes = np.array([[compressed], [0.0]], np.float32)
    compress(planes, saturation, smoothness)
    assert 20 * np.log10(planes[0, 0] / compressed) == pytest.approx(-1.0, abs=1e-4)


# --------------------------------------------------------------------------------- interference
def _added(interference: Interference, first: int, count: int, seed: int = 1) -> NDArray[np.complex128]:
    window = np.zeros((2, count), np.float32)
    Interferer(interference, seed, 0, RATE_HZ).add(window, first)
    return np.asarray(window[0] + 1j * window[1].astype(np.float64))


def test_a_tone_has_its_power_frequency_and_duty_at_the_receivers_port() -> None:
    tone = Interference("b", "tone", -50.0, 123_456.0, duty=0.25, period_s=1e-3)
    core = air(interference=(tone,))
    core.set_rx_gain("b", 40.0)
    heard = np.concatenate([hear(core, 0, 777), hear(core, 777, 2223)])
    # -50 dBm into a full scale of -40 dBm, on in the first quarter of every 1000 samples.
    on = np.arange(3000) % 1000 < 250
    np.testing.assert_allclose(np.abs(heard[on]), 10 ** (-10 / 20), rtol=1e-5)
    assert not heard[~on].any()
    turned = heard * np.exp(-2j * np.pi * 0.123456 * np.arange(3000))
    assert np.ptp(np.angle(turned[on] * np.conj(turned[0]))) < 1e-4


@pytest.mark.parametrize(
    ("centre_hz", "bandwidth_hz"), [(0.0, 1e5), (-2.5e5, 3e5), (1e5, 2e4), (0.0, 1e6), (4.6e5, 2e5)]
)
def test_noise_has_its_power_and_band(centre_hz: float, bandwidth_hz: float) -> None:
    num_parts, length = 128, 1 << 12
    noise = Interference("b", "noise", 10.0, centre_hz, bandwidth_hz)
    samples = _added(noise, 10**9, num_parts * length)
    num_independent = samples.size * bandwidth_hz / RATE_HZ
    error = WIDE / np.sqrt(num_independent) + 0.01
    assert np.mean(np.abs(samples) ** 2) == pytest.approx(0.01, rel=error)
    window = np.blackman(length)
    spectra = np.abs(np.fft.fft(samples.reshape(num_parts, length) * window)) ** 2
    density = spectra.mean(axis=0) / (window**2).sum() / RATE_HZ
    away_hz = np.fft.fftfreq(length, 1 / RATE_HZ) - centre_hz
    away_hz = np.abs(np.mod(away_hz + RATE_HZ / 2, RATE_HZ) - RATE_HZ / 2)
    inside = away_hz < 0.4 * bandwidth_hz - 1e3
    num_averaged = inside.sum() * num_parts / 1.8
    # The band's edges are as steep as the kernel is long: its noise bandwidth is the kernel's energy.
    energy = np.mean(interpolation_kernel(np.arange(-HALF_WIDTH, HALF_WIDTH, 0.01)) ** 2) * 2 * HALF_WIDTH
    expected = 0.01 / bandwidth_hz / (1.0 if bandwidth_hz == RATE_HZ else energy)
    assert density[inside].mean() == pytest.approx(expected, rel=WIDE / np.sqrt(num_averaged) + 0.02)
    outside = away_hz > 0.6 * bandwidth_hz + 2e3
    if outside.any():
        assert 10 * np.log10(density[outside].max() / expected) < -50


def test_interferers_are_gaussian_independent_and_functions_of_the_index() -> None:
    noise = Interference("b", "noise", 0.0, 1e5, 2e5, duty=0.5, period_s=3.3e-3)
    whole = _added(noise, 5000, 40_000)
    parts = [_added(noise, 5000 + start, 1250) for start in range(0, 40_000, 1250)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    on = np.arange(5000, 45_000) % 3300 < 1650
    assert not whole[~on].any()
    values = whole[on][::20].real
    assert stats.kstest(values / values.std(), "norm").pvalue > 1e-5
    other = _added(noise, 5000, 40_000, seed=2)
    correlation = abs(np.vdot(whole, other)) / np.vdot(whole, whole).real
    assert correlation < WIDE / np.sqrt(20_000 * 0.2)


def test_only_the_named_receiver_hears_an_interferer() -> None:
    core = air(interference=(Interference("b", "tone", 0.0),))
    assert hear(core, 0, 100).any()
    assert not hear(core, 0, 100, "a").any()


# --------------------------------------------------------------------------------- cutting
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 2600), min_size=1, max_size=7),
    st.lists(st.integers(1, 3999), max_size=4).map(sorted),
)
def test_cutting_of_windows_and_bursts_changes_no_bit(lengths: list[int], cuts: list[int]) -> None:
    sent = complex_noise(np.random.default_rng(5), 4000, 0.05)
    interference = (
        Interference("b", "noise", -20.0, 1e5, 2e5, 0.7, 1e-3),
        Interference("b", "tone", -30.0, -2e5, duty=0.3, period_s=7e-4),
    )
    total = sum(lengths)

    def fresh(places: list[int]) -> AirCore:
        core = air(
            EVERYTHING,
            EVERYTHING,
            interference,
            noise_figure_db=7.0,
            bits=20,
            cfo_hz=321.0,
            clock_drift_ppm=30.0,
            clock_realign_samples=2500,
            fading=FadingProfile(1e-6, doppler_hz=20.0, profile="tdl-d"),
        )
        for start, stop in itertools.pairwise([0, *places, 4000]):
            core.burst("a", 700 + start, sent[start:stop])
        core.silent_until("a", total)
        return core

    whole = hear(fresh([]), 0, total)
    core, pieces, first = fresh(cuts), [], 0
    for length in lengths:
        pieces.append(hear(core, first, length))
        first += length
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


# --------------------------------------------------------------------------------- through the modem
AMPLITUDE = 10 ** (-12 / 20) / np.sqrt(800 / 1024)  # of a subcarrier: 12 dB below full scale in all
MCS_64QAM_5_6 = 20
PLUTO_MIXER = (0.13, 0.8)  # 40 dB of image rejection
PLUTO = PortImpairments(
    PhaseNoise(0.5, 50e3),
    TransmitterImpairments(*PLUTO_MIXER, -50.0, 0.0, 2.0),  # 12 dB of back-off below saturation
    ReceiverImpairments(*PLUTO_MIXER, -50.0),
)


def frame_over_the_air(
    sender: PortImpairments = IDEAL,
    receiver: PortImpairments = IDEAL,
    *,
    snr_db: float = 70.0,
    bits: int = 16,
    fading: FadingProfile | None = None,
    clock_drift_ppm: float = 0.0,
    interference: tuple[Interference, ...] = (),
) -> tuple[ReceivedSlots, int]:
    """Two slots of 64QAM 5/6 on all subchannels, and the number of blocks that were wrong or missing."""
    noise_w = thermal_noise_w_per_hz(7.0) * LAPTOP.sample_rate_hz
    path_loss_db = 30.0 + 20 * np.log10(AMPLITUDE) - snr_db - float(watt_to_dbm(noise_w))
    link = LinkParameters(
        "a",
        "b",
        path_loss_db,
        cfo_hz=20.0,
        timing_offset_samples=4,
        fading=fading or FadingProfile(rician_k_db=300.0),
        clock_drift_ppm=clock_drift_ppm,
        clock_realign_samples=LAPTOP.frame_samples,
    )
    ports = (
        PortParameters("a", 30.0, converter_bits=bits, impairments=sender),
        PortParameters("b", 30.0, converter_bits=bits, impairments=receiver),
    )
    core = AirCore(AirParameters(3, LAPTOP.sample_rate_hz, LAPTOP.slot_samples, ports, (link,), interference))
    core.set_rx_gain("b", path_loss_db - 30.0)  # full scale is received as full scale
    mcs = np.full(LAPTOP.num_subchannels, MCS_64QAM_5_6, np.int64)
    blocks = random_blocks(np.random.default_rng(6), LAPTOP, 2, mcs)
    sent = modulate_slots(LAPTOP, 2, blocks, mcs, np.full(LAPTOP.num_subchannels, AMPLITUDE))
    first = 7 * LAPTOP.frame_samples
    core.burst("a", first, sent, silent_until=first + LAPTOP.frame_samples)
    received = demodulate_slots(LAPTOP, hear(core, first, len(sent)), mcs, np.zeros(len(mcs), np.int64))
    wrong = sum(received.blocks.get(place) != block for place, block in blocks.items())
    return received, wrong


@pytest.mark.parametrize(
    "case", ["none", "phase noise", "mixers", "amplifier", "clock drift", "interference", "all", "all, tdl-d"]
)
def test_64qam_survives_what_a_pluto_has_at_30_db(case: str) -> None:
    impaired = {
        "phase noise": PortImpairments(PLUTO.phase_noise),
        "mixers": replace(
            PLUTO, phase_noise=None, transmitter=replace(PLUTO.transmitter, pa_saturation_dbfs=None)
        ),
        "amplifier": PortImpairments(transmitter=TransmitterImpairments(pa_saturation_dbfs=0.0)),
    }.get(case, PLUTO if case.startswith("all") else IDEAL)
    received, wrong = frame_over_the_air(
        impaired,
        impaired,
        snr_db=30.0,
        bits=12,
        clock_drift_ppm=2.0 if "all" in case or case == "clock drift" else 0.0,
        # A megahertz of it, 10 dB below the thermal noise there.
        interference=(
            (
                Interference(
                    "b", "noise", float(watt_to_dbm(thermal_noise_w_per_hz(7.0) * 1e6)) - 10, 2e6, 1e6
                ),
            )
            if "all" in case or case == "interference"
            else ()
        ),
        fading=FadingProfile(30e-9, rician_k_db=15.0, profile="tdl-d") if "tdl" in case else None,
    )
    assert wrong == 0
    assert received.evm < (0.08 if "tdl" in case else 0.06)


def evm_of(sender: PortImpairments = IDEAL, receiver: PortImpairments = IDEAL) -> float:
    received, wrong = frame_over_the_air(sender, receiver)
    assert wrong == 0
    return received.evm**2


# A block's channel is estimated from two pilots, which are as noisy: the span's rank over twice its width.
PILOT_LOSS = 1 + prefix_span(72, 1024, 40)[1] / 80


@pytest.mark.parametrize("bandwidth_hz", [60e3, 400e3])
def test_the_evm_floor_of_phase_noise_is_its_variance(bandwidth_hz: float) -> None:
    """E|exp(j phi) - 1|^2 = sigma^2 for each oscillator, where the loop is wider than subcarriers are spaced.

    What a carrier loses it spreads over its neighbours as the Lorentzian density says.  EVM is that of the
    first subchannel, at the band's edge, which has neighbours on one side only.
    """
    floor = evm_of()
    assert floor < 1e-4  # what the channel estimate's span misses
    noisy = PortImpairments(PhaseNoise(1.5, bandwidth_hz))
    from_edge_hz = np.arange(LAPTOP.subcarriers_per_subchannel) * LAPTOP.sample_rate_hz / LAPTOP.fft_size
    caught = np.mean(0.5 + np.arctan(from_edge_hz / bandwidth_hz) / np.pi)
    expected = np.deg2rad(1.5) ** 2 * caught * PILOT_LOSS
    assert evm_of(noisy) - floor == pytest.approx(expected, rel=0.15)
    assert evm_of(noisy, noisy) - floor == pytest.approx(2 * expected, rel=0.15)


def test_the_evm_floor_of_an_iq_imbalance_is_the_image() -> None:
    """Each subcarrier gets its mirror image, 10^(-IRR/10) below."""
    mixer = (0.3, 1.5)
    sends = PortImpairments(transmitter=TransmitterImpairments(*mixer))
    receives = PortImpairments(receiver=ReceiverImpairments(*mixer))
    floor = evm_of()
    for one in (evm_of(sends), evm_of(IDEAL, receives)):
        image = 10 ** (-image_rejection_db(*mixer) / 10)
        assert one - floor == pytest.approx(image * PILOT_LOSS, rel=0.12)


def test_offsets_fall_on_the_subcarrier_that_nobody_uses() -> None:
    leaky = PortImpairments(
        transmitter=TransmitterImpairments(lo_leakage_dbfs=-40.0),
        receiver=ReceiverImpairments(dc_offset_dbfs=-40.0),
    )
    assert evm_of(leaky, leaky) < evm_of() + 1e-5


# --------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("impairments", "words"),
    [
        (PortImpairments(PhaseNoise(61.0, 1e4)), "61.0 deg RMS; from 0 to 60"),
        (PortImpairments(PhaseNoise(1.0, 1.0)), "1.0 Hz bandwidth; from 10 to 250000 Hz"),
        (PortImpairments(PhaseNoise(float("nan"), 1e4)), "nan deg"),
        (PortImpairments(transmitter=TransmitterImpairments(7.0)), "an IQ imbalance of 7.0 dB"),
        (PortImpairments(receiver=ReceiverImpairments(0.0, -50.0)), "and -50.0 deg at b"),
        (PortImpairments(receiver=ReceiverImpairments(dc_offset_dbfs=1.0)), "at most 0 dB"),
        (PortImpairments(transmitter=TransmitterImpairments(pa_saturation_dbfs=float("inf"))), "saturates"),
        (
            PortImpairments(transmitter=TransmitterImpairments(pa_saturation_dbfs=0.0, pa_smoothness=0.0)),
            "ness 0",
        ),
    ],
)
def test_impossible_front_ends_are_refused_in_words(impairments: PortImpairments, words: str) -> None:
    with pytest.raises(RadioConfigurationError, match=words):
        air(receiver=impairments)


@pytest.mark.parametrize(
    ("interference", "words"),
    [
        (Interference("b", "chirp", 0.0), "of kind 'chirp'"),
        (Interference("c", "tone", 0.0), "no port 'c'"),
        (Interference("b", "noise", 0.0), "a bandwidth of 0.0 Hz"),
        (Interference("b", "noise", 0.0, 0.0, 1.1e6), "to the sample rate"),
        (Interference("b", "tone", 0.0, 6e5), "lies at 600000.0 Hz"),
        (Interference("b", "tone", float("nan")), "nan dBm"),
        (Interference("b", "tone", 0.0, duty=0.0), "for 0.0 of the time"),
        (Interference("b", "tone", 0.0, period_s=1e-7), "below a sample"),
    ],
)
def test_impossible_interferers_are_refused_in_words(interference: Interference, words: str) -> None:
    with pytest.raises(RadioConfigurationError, match=words):
        air(interference=(interference,))
