"""Channels that change with the round: their statistics, and that only seed, link and round decide them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from signals import complex_noise

from radio.air.channel import FadingProfile, LinkChannel, LinkParameters
from radio.air.core import AirCore, AirParameters, PortParameters, Window, WindowRequest
from radio.errors import GapError, LateRoundError, RadioConfigurationError

RATE_HZ = 1e6
NUM_SEEDS = 4000
WIDE = float(stats.norm.isf(1e-6))  # standard deviations that an estimate stays within


def taps_by_round(
    rounds: list[int], fading: FadingProfile, num_seeds: int = NUM_SEEDS, **changes: object
) -> NDArray[np.complex128]:
    """Taps of many independent links in some rounds, ``[num_seeds, num_rounds, num_taps]``."""
    link = replace(LinkParameters("a", "b", 0.0, fading=fading), **changes)  # type: ignore[arg-type]
    return np.array(
        [
            [channel.taps_at(0.0, index) for index in rounds]
            for channel in (LinkChannel(link, seed, 20e6) for seed in range(num_seeds))
        ],
        np.complex128,
    )


@pytest.mark.parametrize("k_db", [None, 5.0])
def test_power_and_moments_by_round_are_those_of_rayleigh_and_rice(k_db: float | None) -> None:
    """In the first round as in a later one: the process is stationary from its start."""
    profile = FadingProfile(150e-9, 6, k_db, 0.0, 0.8)
    taps = taps_by_round([0, 7], profile, path_loss_db=60.0, antenna_gain_db=3.0) * 10**2.85
    delays = LinkChannel(LinkParameters("a", "b", 60.0, fading=profile), 0, 20e6).delays
    powers = np.exp(-delays / (150e-9 * 20e6))
    powers /= powers.sum()
    constant = 0.0 if k_db is None else 10 ** (k_db / 10) / (1 + 10 ** (k_db / 10))
    scattered = powers * (1 - constant)
    expected = scattered + constant * (np.arange(6) == 0)
    gains = np.abs(taps) ** 2
    # Of a Rice variable with scattered power s and constant power c: variance s^2 + 2 s c.
    variance = scattered**2 + 2 * scattered * constant * (np.arange(6) == 0)
    error = np.abs(gains.mean(axis=0) - expected)
    assert (error < WIDE * np.sqrt(variance / NUM_SEEDS)).all()
    # The variance of a variance: an exponential's fourth central moment is 9 times its variance squared.
    assert (np.abs(gains.var(axis=0) / variance - 1) < WIDE * np.sqrt(8 / NUM_SEEDS)).all()
    if k_db is None:
        for column in range(2):
            assert stats.kstest(gains[:, column, 2] / powers[2], "expon").pvalue > 1e-5
        phases = np.mod(np.angle(taps[:, 1, 2]), 2 * np.pi) / (2 * np.pi)
        assert stats.kstest(phases, "uniform").pvalue > 1e-5


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.98])
def test_correlation_over_k_rounds_is_rho_to_the_k(rho: float) -> None:
    rounds = [3, 4, 5, 8, 13]
    taps = taps_by_round(rounds, FadingProfile(0.0, 1, None, 0.0, rho))[:, :, 0]
    for i, j in itertools.combinations(range(len(rounds)), 2):
        expected = rho ** (rounds[j] - rounds[i])
        estimate = (taps[:, j] * taps[:, i].conj()).mean()
        # Real part: variance (1 + rho^2k) / 2 per sample; imaginary part: (1 - rho^2k) / 2.
        assert abs(estimate.real - expected) < WIDE * np.sqrt((1 + expected**2) / 2 / NUM_SEEDS)
        assert abs(estimate.imag) <= WIDE * np.sqrt((1 - expected**2) / 2 / NUM_SEEDS) + 1e-7


def test_links_and_taps_fade_independently() -> None:
    fading = FadingProfile(100e-9, 2, None, 0.0, 0.9)
    there = taps_by_round([6], fading)[:, 0]
    back = taps_by_round([6], fading, transmitter="b", receiver="a")[:, 0]
    powers = np.mean(np.abs(there) ** 2, axis=0)
    limit = WIDE / np.sqrt(NUM_SEEDS)
    for one, other, power in (
        (there[:, 0], back[:, 0], powers[0]),
        (there[:, 0], there[:, 1], np.sqrt(powers[0] * powers[1])),
    ):
        assert abs((one * other.conj()).mean() / power) < limit


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 2**63 - 1), st.floats(0, 1, exclude_max=True))
def test_the_order_of_asking_changes_no_bit(order: list[int], seed: int, rho: float) -> None:
    link = LinkParameters(
        "a",
        "b",
        0.0,
        fading=FadingProfile(100e-9, 3, 4.0, 0.0, rho),
        redraw_rounds=(5, 9),
        attenuation_db=(1, 2),
    )
    channel = LinkChannel(link, seed, 20e6)
    asked = {index: channel.taps_at(0.0, index).tobytes() for index in order}
    for index in range(12):
        assert LinkChannel(link, seed, 20e6).taps_at(0.0, index).tobytes() == asked[index]


def test_taps_by_round_stand_still_within_a_round() -> None:
    channel = LinkChannel(
        LinkParameters("a", "b", 0.0, fading=FadingProfile(1e-6, 3, None, 0.0, 0.5)), 1, 1e6
    )
    times_s = np.array([[0.0, 0.3], [7.0, 1e4]])
    taps = channel.taps_at(times_s, 4)
    assert taps.shape == (2, 2, 3)
    assert (taps == taps[0, 0]).all()
    assert (channel.taps_at(0.0, 5) != taps[0, 0]).all()


@pytest.mark.parametrize("rho", [None, 0.7])
def test_attenuation_is_exact_in_decibels_and_its_last_value_stays(rho: float | None) -> None:
    fading = FadingProfile(1e-6, 3, 5.0, 0.0 if rho is not None else 30.0, rho)
    profile_db = (0.0, 3.0, 15.0, 7.5)
    plain = LinkParameters("a", "b", 80.0, fading=fading)
    one, other = (LinkChannel(link, 3, 1e6) for link in (plain, replace(plain, attenuation_db=profile_db)))
    for index in range(8):
        expected_db = profile_db[min(index, 3)]
        before, after = (channel.taps_at([0.0, 0.4], index) for channel in (one, other))
        np.testing.assert_allclose(-20 * np.log10(np.abs(after / before)), expected_db, atol=2e-6)
        np.testing.assert_allclose(np.angle(after / before), 0.0, atol=1e-6)


@pytest.mark.parametrize("fading", [FadingProfile(0.0, 1, None, 0.0, 0.98), FadingProfile(0.0, 1, None, 5.0)])
def test_a_redraw_is_an_independent_realisation_from_its_round_on(fading: FadingProfile) -> None:
    rounds = [9, 10, 11]
    taps = taps_by_round(rounds, fading, redraw_rounds=(10,))[:, :, 0]
    limit = WIDE / np.sqrt(NUM_SEEDS)
    assert abs((taps[:, 1] * taps[:, 0].conj()).mean()) < limit
    assert abs((taps[:, 2] * taps[:, 1].conj()).mean()) > 0.9, "behind it, as before"
    assert abs(np.mean(np.abs(taps[:, 1]) ** 2) - 1) < 1.1 * limit
    untouched = taps_by_round(rounds, fading, num_seeds=50)[:, :, 0]
    assert (untouched[:, 0] == taps[:50, 0]).all()
    assert (untouched[:, 1:] != taps[:50, 1:]).all()


@pytest.mark.parametrize("rho", [None, 0.0])
def test_a_redraw_leaves_the_constant_part(rho: float | None) -> None:
    """Furniture moves, the line of sight stays: at K = 60 dB a tap hardly changes."""
    link = LinkParameters("a", "b", 0.0, fading=FadingProfile(0.0, 1, 60.0, 0.0, rho), redraw_rounds=(2,))
    before, after = (LinkChannel(link, 1, 1e6).taps_at(0.0, index) for index in (1, 2))
    assert 0 < abs(after[0] - before[0]) < 0.01


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fading": FadingProfile(round_correlation=1.0)}, r"lies in \[0, 1\)"),
        ({"fading": FadingProfile(round_correlation=-0.1)}, r"lies in \[0, 1\)"),
        ({"fading": FadingProfile(doppler_hz=2.0, round_correlation=0.5)}, "a channel has one"),
        ({"attenuation_db": (0.0, float("nan"))}, "is no number"),
    ],
)
def test_impossible_channels_are_refused_in_words(changes: dict[str, object], words: str) -> None:
    link = replace(LinkParameters("a", "b", 0.0), **changes)  # type: ignore[arg-type]
    with pytest.raises(RadioConfigurationError, match=words):
        LinkChannel(link, 1, 1e6)


# ------------------------------------------------------------------------------- rounds in the air
UPDATE = 1500
BOUNDARY = 4321  # not on the grid of tap updates, and inside a burst
PORTS = tuple(PortParameters(name, 20.0, converter_bits=20) for name in ("a", "b", "server"))
LINKS = tuple(
    LinkParameters(
        name,
        "server",
        70.0,
        cfo_hz=300.0,
        timing_offset_samples=3,
        fading=FadingProfile(20e-6, 4, 3.0, doppler_hz, rho),
        attenuation_db=(0.0, 6.0),
        redraw_rounds=(2,),
    )
    for name, doppler_hz, rho in (("a", 0.0, 0.5), ("b", 30.0, None))
)


def air(*rounds: tuple[int, int]) -> AirCore:
    """Two ports that have spoken until sample 9000; each of ``rounds`` is (index, first sample)."""
    core = AirCore(AirParameters(1, RATE_HZ, UPDATE, PORTS, LINKS))
    core.set_rx_gain("server", 50.0)
    for index, first_sample in rounds:
        core.begin_round(index, first_sample)
    rng = np.random.default_rng(4)
    core.burst("a", 200, complex_noise(rng, 2500, 0.02))
    core.burst("a", 3000, complex_noise(rng, 3000, 0.02))  # straddles the boundary
    core.burst("b", 2000, complex_noise(rng, BOUNDARY - 2000, 0.02))  # its echoes do
    core.silent_until("a", 9000)
    core.silent_until("b", 9000)
    return core


def hear(core: AirCore, first: int, count: int) -> NDArray[np.complex64]:
    windows: list[Window] = core.request(WindowRequest("server", 0, first, count, frozenset()))
    assert len(windows) == 1
    return windows[0].samples


def test_what_is_received_has_the_channel_of_the_round_in_which_it_is_received() -> None:
    """Exactly to the sample: before the boundary as if it never came, behind it as if it always was."""
    whole = hear(air((1, BOUNDARY)), 0, 9000)
    before, after = hear(air(), 0, 9000), hear(air((1, 0)), 0, 9000)
    assert (before[:BOUNDARY] != after[:BOUNDARY])[300:].mean() > 0.9
    assert whole[:BOUNDARY].tobytes() == before[:BOUNDARY].tobytes()
    assert whole[BOUNDARY:].tobytes() == after[BOUNDARY:].tobytes()
    # The echoes of the burst that ended at the boundary: noise alone would be the same in any round.
    assert (before[BOUNDARY : BOUNDARY + 60] != after[BOUNDARY : BOUNDARY + 60]).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 2600), min_size=1, max_size=6),
    st.lists(st.integers(1, 8000), min_size=1, max_size=4).map(sorted),
)
def test_cutting_of_windows_across_rounds_changes_no_bit(lengths: list[int], begins: list[int]) -> None:
    rounds = list(enumerate(begins, start=1))
    total = min(sum(lengths), 9000)
    whole = hear(air(*rounds), 0, total)
    core, pieces, first = air(*rounds), [], 0
    for length in lengths:
        length = min(length, total - first)
        if length:
            pieces.append(hear(core, first, length))
        first += length
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_rounds_of_any_length_meet_the_same_channel() -> None:
    """A policy that is slower by half finds the same taps in the same round."""

    def response(begins: list[int], index: int) -> NDArray[np.complex64]:
        still = tuple(replace(link, cfo_hz=0.0) for link in LINKS[:1])
        core = AirCore(
            AirParameters(1, RATE_HZ, UPDATE, tuple(replace(p, noise_figure_db=-300.0) for p in PORTS), still)
        )
        core.set_rx_gain("server", 50.0)
        for number, first in enumerate(begins):
            core.begin_round(number, first)
        core.burst("a", begins[index] + 100, np.full(1, 0.5, np.complex64))
        core.silent_until("a", begins[index] + 1000)
        return hear(core, begins[index], 1000)

    fast, slow = [0, 10_000, 20_000, 30_000], [0, 17_000, 31_234, 48_000]
    for index in range(4):
        np.testing.assert_array_equal(response(fast, index), response(slow, index))
    assert (response(fast, 1) != response(fast, 2)).any()


def test_a_round_that_comes_too_late_or_out_of_order_is_refused() -> None:
    core = air()
    core.begin_round(0, 500)  # it lasts from the start on
    hear(core, 0, 2000)
    with pytest.raises(LateRoundError, match=r"round 1 would begin at sample 1999.*everything before 2000"):
        core.begin_round(1, 1999)
    core.begin_round(1, 2000)
    core.begin_round(1, 2000)  # the same word is harmless
    hear(core, 2000, 2000)
    core.begin_round(1, 2000)
    core.begin_round(5, 4000)  # rounds may be left out
    for index, first_sample in ((5, 5000), (4, 6000), (0, 7000), (6, 3999), (-1, 0)):
        with pytest.raises(RadioConfigurationError, match=f"round {index} .* does not follow round 5"):
            core.begin_round(index, first_sample)


def test_bursts_are_not_kept_for_a_port_that_has_not_joined() -> None:
    """A board that comes in later must not cost memory until then, nor hear what was sent before."""
    links = tuple(LinkParameters("server", name, 40.0) for name in ("a", "b"))
    core = AirCore(AirParameters(1, RATE_HZ, UPDATE, PORTS, links))
    core.attach("a")

    def send(turn: int) -> None:
        core.burst("server", 1000 * turn, np.full(1000, 0.5, np.complex64))
        assert len(core.request(WindowRequest("a", turn, 1000 * turn, 1000, frozenset()))) == 1

    for turn in range(4):
        send(turn)
    with pytest.raises(GapError, match="kept from 3000 on"):
        core.request(WindowRequest("a", 9, 0, 100, frozenset()))
    core.attach("b")
    for turn in range(4, 8):
        send(turn)
    assert len(core.request(WindowRequest("b", 1, 4000, 4000, frozenset()))) == 1, "from now on all is kept"
