"""Sample clocks that differ: interpolation, what is heard when, and that nothing depends on cutting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from signals import complex_noise

from radio.air.channel import FadingProfile, LinkParameters
from radio.air.core import AirCore, AirParameters, PortParameters, Window, WindowRequest
from radio.air.fractional import HALF_WIDTH, interpolation_kernel
from radio.air.interpolation import interpolate, interpolate_reference, source_range
from radio.air.sample_clock import SampleClock
from radio.errors import LateBurstError, RadioConfigurationError

RATE_HZ = 1e6
FRAME = 9000


# --------------------------------------------------------------------------------- interpolation
def test_the_kernel_errs_by_60_db_at_most_in_the_used_band() -> None:
    """At any fraction and any frequency within 80 % of the band, and 67 dB on average."""
    cycles = np.linspace(-0.4, 0.4, 401)
    places = np.arange(1 - HALF_WIDTH, HALF_WIDTH + 1)
    fractions = np.linspace(0, 1, 33)
    error = np.array(
        [
            interpolation_kernel(fraction - places) @ np.exp(2j * np.pi * np.outer(places - fraction, cycles))
            - 1
            for fraction in fractions
        ]
    )
    assert (np.abs(error) ** 2).max() < 1e-6
    assert 10 * np.log10((np.abs(error) ** 2).mean()) < -66
    whole = interpolation_kernel(places[:, None] - places)
    np.testing.assert_allclose(whole, np.eye(2 * HALF_WIDTH), atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(
        [(1, 2e-5), (1, -3e-5), (1, 9e-4), (1, -1e-3), (1, 0.0), (0, 0.013), (0, 0.5), (0, 0.97)]
    ),
    st.integers(-500, 10**11),
    st.lists(st.integers(1, 900), min_size=2, max_size=5),
)
def test_interpolation_is_its_reference_however_it_is_cut(
    seed: int, rate: tuple[int, float], first: int, lengths: list[int]
) -> None:
    unit, slope = rate
    anchor, total = 77, sum(lengths)
    low, high = source_range(first, first + total, unit, anchor, slope)
    samples = complex_noise(np.random.default_rng(seed), high - low, 1.0)
    source = np.stack([samples.real, samples.imag]).astype(np.float32)
    whole = np.empty((2, total), np.float32)
    interpolate(source, low, first, unit, anchor, slope, whole)
    reference = interpolate_reference(source, low, first, unit, anchor, slope, total)
    error = np.mean(np.abs(whole[0] + 1j * whole[1] - reference) ** 2)
    assert error < 10**-8 * np.mean(np.abs(samples) ** 2)  # 80 dB: the table has 128 phases
    pieces = []
    for begin, end in itertools.pairwise([0, *np.cumsum(lengths)]):
        start, stop = source_range(first + begin, first + end, unit, anchor, slope)
        piece = np.empty((2, end - begin), np.float32)
        interpolate(
            np.ascontiguousarray(source[:, start - low : stop - low]),
            start,
            first + begin,
            unit,
            anchor,
            slope,
            piece,
        )
        pieces.append(piece)
    assert np.concatenate(pieces, axis=1).tobytes() == whole.tobytes()


def test_a_source_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs source samples -9\.\.20; 0\.\.30 are given"):
        interpolate(np.zeros((2, 30), np.float32), 0, 0, 1, 0, 0.0, np.empty((2, 10), np.float32))


# --------------------------------------------------------------------------------- links
def _air(*drifts_ppm: float, realign: int = FRAME, bits: int = 20, delay: int = 0) -> AirCore:
    names = "ab"[: len(drifts_ppm)]
    ports = tuple(
        PortParameters(name, 0.0, converter_bits=bits, noise_figure_db=-300.0) for name in (*names, "server")
    )
    links = tuple(
        LinkParameters(
            name,
            "server",
            0.0,
            cfo_hz=0.0,
            timing_offset_samples=delay,
            fading=FadingProfile(rician_k_db=300.0),
            clock_drift_ppm=drift_ppm,
            clock_realign_samples=realign,
        )
        for name, drift_ppm in zip(names, drifts_ppm, strict=True)
    )
    return AirCore(AirParameters(1, RATE_HZ, 1500, ports, links))


def _hear(core: AirCore, first: int, count: int) -> list[Window]:
    return core.request(WindowRequest("server", first, first, count, frozenset()))


def _tones(at: NDArray[np.floating]) -> NDArray[np.complex128]:
    """A signal that is known between its samples, over 80 % of the band."""
    cycles = np.linspace(-0.4, 0.4, 23)
    phases = 2 * np.pi * np.arange(23) ** 2 / 23
    return np.asarray(np.exp(2j * np.pi * np.multiply.outer(at, cycles) + 1j * phases).mean(axis=-1))


def _heard_over_sent(heard: NDArray[np.complex64], expected: NDArray[np.complex128]) -> float:
    """Error [dB] after the link's one phase, which its constant path has."""
    phase = np.vdot(expected, heard)
    return float(
        10
        * np.log10(
            np.mean(np.abs(heard * abs(phase) / phase - expected) ** 2) / np.mean(np.abs(expected) ** 2)
        )
    )


@pytest.mark.parametrize("drift_ppm", [40.0, -40.0, 3.0, -900.0, 900.0])
@pytest.mark.parametrize("realign", [0, FRAME])
def test_a_drifting_link_is_the_sent_signal_at_other_instants(drift_ppm: float, realign: int) -> None:
    total = 30_000
    core = _air(drift_ppm, realign=realign, delay=5)
    core.burst("a", 0, _tones(np.arange(total + 100)).astype(np.complex64), silent_until=total + 200)
    [window] = _hear(core, 0, total)
    drift = drift_ppm * 1e-6
    sent_at = np.arange(total) - 5 - SampleClock(drift_ppm, realign).delay_samples
    origin = sent_at // realign * realign if realign else 0
    instants = sent_at + drift * (sent_at - origin)
    inside = instants > HALF_WIDTH
    assert _heard_over_sent(window.samples[inside], _tones(instants)[inside]) < -58


@given(
    st.floats(-1000, 1000).filter(lambda ppm: abs(ppm) > 1e-3),
    st.integers(1, 200_000),
    st.integers(0, 10**10),
    st.integers(1, 200_000),
)
@settings(max_examples=200, deadline=None)
def test_nothing_is_heard_before_it_was_sent_nor_later_than_is_said(
    drift_ppm: float, realign: int, first: int, count: int
) -> None:
    clock = SampleClock(drift_ppm, realign)
    low, high = clock.source_span(first, first + count)
    assert high <= first + count
    assert low >= first - clock.max_delay_samples - HALF_WIDTH
    assert clock.delay_samples <= HALF_WIDTH + 1 + abs(drift_ppm) * 1e-6 * realign


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=8),
    st.lists(st.integers(1, 5999), min_size=0, max_size=4).map(sorted),
    st.sampled_from([(60.0, -25.0, FRAME), (-60.0, 700.0, FRAME), (-60.0, -700.0, 0)]),
)
def test_cutting_of_windows_and_bursts_changes_no_bit(
    lengths: list[int], cuts: list[int], drifts: tuple[float, float, int]
) -> None:
    one, two, realign = drifts
    sent = complex_noise(np.random.default_rng(3), 6000, 0.02)
    total = sum(lengths)

    def fresh(places: list[int]) -> AirCore:
        core = _air(one, two, realign=realign)
        for start, stop in itertools.pairwise([0, *places, 6000]):
            core.burst("a", 7000 + start, sent[start:stop])
        core.burst("b", 500, sent[:900])
        core.burst("b", 9100, sent)
        for name in "ab":
            core.silent_until(name, total)
        return core

    whole = _hear(fresh([]), 0, total)[0].samples
    core, pieces, first = fresh(cuts), [], 0
    for length in lengths:
        pieces.append(_hear(core, first, length)[0].samples)
        first += length
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_a_free_and_fast_clock_makes_the_air_wait_for_as_many_samples() -> None:
    """At 500 ppm and 100 000 samples, 50 samples: they are heard before the receiver counts so far."""
    core = _air(500.0, realign=0)
    lead = round(500e-6 * 100_000)
    core.silent_until("a", 100_000)
    assert _hear(core, 0, 100_000) == []
    assert core.waiting_for("server") == ["a"]
    assert core.silent_until("a", 100_000 + lead - 2) == []
    assert len(core.silent_until("a", 100_000 + lead)) == 1
    core.stand_down("a")
    assert len(_hear(core, 100_000, 50)) == 1
    with pytest.raises(LateBurstError):
        core.burst("a", 100_060, np.ones(10, np.complex64))
    core.burst("a", 100_060 + lead, np.ones(10, np.complex64))


def test_a_free_and_slow_clock_is_heard_later_and_later() -> None:
    core = _air(-800.0, realign=0)
    for turn in range(4):
        core.burst("a", 100_000 * turn, np.full(100, 0.5, np.complex64), 100_000 * (turn + 1))
        [window] = _hear(core, 100_000 * turn, 100_000)
        strong = np.flatnonzero(np.abs(window.samples) > 0.25)
        # n (1 - 8e-4) = 100 000 turn, behind the kernel's delay.
        expected = HALF_WIDTH + 100_000 * turn * (1 / (1 - 800e-6) - 1)
        assert strong[0] == pytest.approx(expected, abs=1.01)


def test_clocks_that_do_not_drift_leave_the_air_as_it_is() -> None:
    outcomes = set()
    for realign in (0, FRAME):
        core = _air(0.0, realign=realign)
        core.burst("a", 10, _tones(np.arange(4000)).astype(np.complex64), silent_until=5000)
        outcomes.add(_hear(core, 0, 5000)[0].samples.tobytes())
    assert len(outcomes) == 1


@pytest.mark.parametrize(("drift_ppm", "realign"), [(float("nan"), 0), (1001.0, 0), (1.0, -1)])
def test_impossible_clocks_are_refused(drift_ppm: float, realign: int) -> None:
    with pytest.raises(RadioConfigurationError, match="clock"):
        SampleClock(drift_ppm, realign)
