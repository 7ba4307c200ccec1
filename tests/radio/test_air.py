"""The emulated air: its physics against the formulas, and that nothing depends on order or cutting."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from signals import complex_noise

from radio.air.channel import FadingProfile, LinkChannel, LinkParameters
from radio.air.core import AirCore, AirParameters, PortParameters, Window, WindowRequest
from radio.air.kernels import add_link, receive_convert, transmit_convert
from radio.errors import GapError, LateBurstError, RadioConfigurationError
from radio.events import RadioEvent, RadioEventKind
from radio.units import thermal_noise_w_per_hz

RATE_HZ = 1e6
FINE_BITS = 24  # quantisation far below everything else
CONFIDENCE = 1 - 1e-4


def _port(name: str, **changes: object) -> PortParameters:
    values: dict[str, object] = {"tx_full_scale_dbm": 20.0, "converter_bits": FINE_BITS, **changes}
    return PortParameters(name, **values)  # type: ignore[arg-type]


def _air(
    links: tuple[LinkParameters, ...],
    ports: tuple[PortParameters, ...] = (_port("a"), _port("b"), _port("server")),
    events: list[RadioEvent] | None = None,
    seed: int = 1,
    update: int = 1500,
) -> AirCore:
    observe = (lambda event: None) if events is None else events.append
    return AirCore(AirParameters(seed, RATE_HZ, update, ports, links), observe)


def _hear(
    core: AirCore, first: int, count: int, receiver: str = "server", expected: str = ""
) -> list[Window]:
    return core.request(WindowRequest(receiver, first, first, count, frozenset(expected.split())))


def _one(windows: list[Window]) -> NDArray[np.complex64]:
    assert len(windows) == 1
    return windows[0].samples


# --------------------------------------------------------------------------------- channel statistics
@pytest.mark.parametrize("k_db", [None, 5.0])
def test_taps_have_the_profiles_mean_power_and_rician_k(k_db: float | None) -> None:
    profile = FadingProfile(150e-9, 6, k_db, 0.0)
    taps = []
    for seed in range(3000):
        channel = LinkChannel(LinkParameters("a", "b", 60.0, 3.0, fading=profile), seed, 20e6)
        taps.append(channel.taps_at(0.0))
    delays = channel.delays
    gains = np.abs(np.array(taps, np.complex128)) ** 2 * 10**5.7
    powers = np.exp(-delays / (150e-9 * 20e6))
    powers /= powers.sum()
    constant = 0.0 if k_db is None else 10 ** (k_db / 10) / (1 + 10 ** (k_db / 10))
    expected = powers * (1 - constant)
    expected[0] += constant
    deviation = gains.std(axis=0) / np.sqrt(len(gains))
    assert (np.abs(gains.mean(axis=0) - expected) < stats.norm.isf(1e-5) * deviation).all()
    assert gains.sum(axis=1).mean() == pytest.approx(1.0, abs=0.05)
    if k_db is None:
        # Rayleigh: exponential power, whose variance is its mean squared (16 sinusoids: 1/16 less).
        assert gains[:, 3].std() / gains[:, 3].mean() == pytest.approx(1.0, abs=0.08)
    else:
        # E|h|^4 - (E|h|^2)^2 of a Rice variable with scattered power s and constant c: s^2 + 2 s c.
        scattered = powers[0] * (1 - constant)
        expected_variance = scattered**2 * (1 - 1 / 16) + 2 * scattered * constant
        assert gains[:, 0].var() == pytest.approx(expected_variance, rel=0.12)


def test_doppler_decorrelates_as_clarke_says_and_zero_freezes() -> None:
    from scipy.special import j0

    profile = FadingProfile(0.0, 1, None, 10.0)
    lags_s = np.array([0.0, 0.01, 0.02, 0.0383])
    taps = np.array(
        [
            LinkChannel(LinkParameters("a", "b", 0.0, fading=profile), seed, 1e6).taps_at(lags_s)[:, 0]
            for seed in range(3000)
        ]
    )
    correlation = (taps * taps[:, :1].conj()).mean(axis=0)
    np.testing.assert_allclose(correlation, j0(2 * np.pi * 10.0 * lags_s), atol=5 / np.sqrt(3000))
    frozen = LinkChannel(LinkParameters("a", "b", 0.0, fading=FadingProfile(1e-6, 3)), 1, 1e6)
    assert (frozen.taps_at(0.0) == frozen.taps_at(1234.5)).all()


def test_a_flat_link_has_exactly_its_loss_delay_and_carrier_offset() -> None:
    link = LinkParameters("a", "server", 40.0, 6.0, cfo_hz=1234.5, timing_offset_samples=17)
    ports = (_port("a", tx_full_scale_dbm=30.0), _port("server", noise_figure_db=-300.0))
    core = _air((link,), ports)
    core.set_rx_gain("server", 20.0)
    sent = complex_noise(np.random.default_rng(2), 4000, 0.02)
    core.burst("a", 5000, sent)
    core.silent_until("a", 20_000)
    heard = _one(_hear(core, 4000, 8000))
    n = np.arange(4000, 12_000)
    padded = np.zeros(8000, np.complex64)
    padded[1017:5017] = sent
    # 30 dBm full scale, 34 dB loss, full scale of the receiver 0 dBm - 20 dB: 16 dB up.
    phase = np.angle(_flat_gain(core))
    expected = padded * 10 ** (16 / 20) * np.exp(2j * np.pi * 1234.5 / RATE_HZ * n + 1j * phase)
    scale = np.abs(_flat_gain(core)) / 10 ** (-34 / 20)
    np.testing.assert_allclose(heard, expected * scale, atol=3e-6)
    assert not heard[:1000].any()


def _flat_gain(core: AirCore) -> complex:
    return complex(core._heard_by["server"][0].taps_at(0.0)[0])


def test_noise_floor_is_k_t_f_over_all_frequencies() -> None:
    ports = (_port("a"), _port("server", noise_figure_db=7.0))
    core = _air((), ports)
    core.set_rx_gain("server", 90.0)
    count = 1 << 18
    samples = _one(_hear(core, 0, count)).astype(np.complex128)
    # Back from full scale 0 dBm - 90 dB to watts at the port.
    power_w = np.abs(np.fft.fft(samples)) ** 2 / count**2 * 1e-3 * 1e-9
    expected_w = thermal_noise_w_per_hz(7.0) * RATE_HZ / count
    bands = power_w.reshape(16, -1).mean(axis=1) / expected_w
    interval = stats.gamma.interval(1 - 1e-4 / 16, count // 16, scale=16 / count)
    assert ((bands > interval[0]) & (bands < interval[1])).all()


@pytest.mark.parametrize("bits", [8, 12])
def test_quantisation_noise_is_a_twelfth_of_the_step_squared(bits: int) -> None:
    rng = np.random.default_rng(3)
    window = rng.uniform(-0.9, 0.9, (2, 1 << 17)).astype(np.float32)
    out = np.empty(1 << 17, np.complex64)
    assert receive_convert(window, 1.0, bits, out) == 0
    error = out - (window[0] + 1j * window[1])
    step = 2.0 ** (1 - bits)
    assert np.mean(np.abs(error) ** 2) == pytest.approx(2 * step**2 / 12, rel=0.02)
    assert np.abs(error.real).max() <= step / 2 * 1.001
    codes = out.real / step
    assert (codes == np.rint(codes)).all()
    planes = np.empty_like(window)
    assert transmit_convert(out, bits, planes) == 0
    assert (planes[0] == out.real).all()
    assert (planes[1] == out.imag).all()


def test_clipping_is_limited_counted_and_reported() -> None:
    events: list[RadioEvent] = []
    core = _air((LinkParameters("a", "server", 0.0),), events=events)
    core.burst("a", 0, np.array([2.0, 0.5j, np.nan, -3j, np.inf, 0.1], np.complex64))
    assert [(e.kind, e.port, e.count, e.detail) for e in events] == [
        (RadioEventKind.CLIPPED, "a", 4, "transmitter")
    ]
    core.set_rx_gain("server", 100.0)
    samples = _one(_hear(core, 0, 6))
    assert np.isfinite(samples).all()
    assert np.abs(samples.real).max() <= 1.0
    assert events[-1].detail == "receiver"


# --------------------------------------------------------------------------------- kernels
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(0, 3000),
    st.integers(1, 5000),
    st.integers(-4000, 4000),
    st.sampled_from([0.0, 1e-4, -0.31]),
)
def test_add_link_is_the_convolution(
    seed: int, num_taps: int, max_delay: int, length: int, shift: int, cycles: float
) -> None:
    rng = np.random.default_rng(seed)
    delays = np.sort(rng.integers(0, max_delay + 1, num_taps))
    taps = complex_noise(rng, num_taps, 1.0)
    sent = complex_noise(rng, length, 1.0)
    first, count, burst_first = 10_000, 3000, 10_000 + shift
    out = np.zeros((2, count), np.float32)
    planes = np.stack([sent.real, sent.imag]).astype(np.float32)
    add_link(out, first, first, first + count, 9_500, planes, burst_first, delays, taps, cycles)
    expected = np.zeros(count, np.complex128)
    n = np.arange(first, first + count)
    for delay, tap in zip(delays, taps, strict=True):
        place = n - delay - burst_first
        inside = (place >= 0) & (place < length)
        expected[inside] += tap * sent[place[inside]]
    expected *= np.exp(2j * np.pi * np.mod(n * cycles, 1.0))
    np.testing.assert_allclose(out[0] + 1j * out[1], expected, atol=2e-5)


# --------------------------------------------------------------------------------- merging
FADING = FadingProfile(20e-6, 4, 3.0, 30.0)
LINKS = (
    LinkParameters("a", "server", 70.0, cfo_hz=300.0, timing_offset_samples=3, fading=FADING),
    LinkParameters("b", "server", 75.0, cfo_hz=-220.0, timing_offset_samples=8, fading=FADING),
)


def _bursts() -> tuple[NDArray[np.complex64], NDArray[np.complex64], NDArray[np.complex64]]:
    rng = np.random.default_rng(4)
    return (complex_noise(rng, 2500, 0.02), complex_noise(rng, 1700, 0.02), complex_noise(rng, 900, 0.02))


def test_order_of_arrival_never_changes_a_window() -> None:
    one, two, three = _bursts()
    # Words of a port keep their order; those of different ports come in any interleaving.
    words_a = [("burst", 200, one), ("burst", 3000, three), ("silent", 6000, None)]
    words_b = [("burst", 700, two), ("silent", 6000, None)]
    asked = [("ask", 0, None), ("ask", 3000, None)]
    outcomes = set()
    for order in set(itertools.permutations("aaabbrr")):
        queues = {"a": iter(words_a), "b": iter(words_b), "r": iter(asked)}
        core = _air(LINKS)
        core.set_rx_gain("server", 50.0)
        windows: list[Window] = []
        for port in order:
            what, sample, samples = next(queues[port])
            if what == "burst":
                assert samples is not None
                windows += core.burst(port, sample, samples)
            elif what == "silent":
                windows += core.silent_until(port, sample)
            else:
                windows += _hear(core, sample, 3000, expected="a b")
        assert [window.first_sample for window in windows] == [0, 3000]
        outcomes.add(b"".join(window.samples.tobytes() for window in windows))
    assert len(outcomes) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 2600), min_size=1, max_size=9))
def test_cutting_of_windows_changes_no_bit(lengths: list[int]) -> None:
    total = sum(lengths)

    def fresh() -> AirCore:
        core = _air(LINKS, (_port("a"), _port("b"), _port("server", converter_bits=20)))
        core.set_rx_gain("server", 60.0)
        one, two, three = _bursts()
        core.burst("a", 200, one)
        core.burst("a", 3000, three)
        core.burst("b", 700, two)
        core.silent_until("a", total)
        core.silent_until("b", total)
        return core

    whole = _one(_hear(fresh(), 0, total))
    core = fresh()
    pieces, first = [], 0
    for length in lengths:
        pieces.append(_one(_hear(core, first, length)))
        first += length
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_cutting_of_bursts_changes_no_bit() -> None:
    one = _bursts()[0]
    outcomes = set()
    for cuts in ([0, 2500], [0, 1024, 2500], [0, 1, 77, 2499, 2500]):
        core = _air(LINKS[:1], (_port("a"), _port("server", converter_bits=12)))
        core.set_rx_gain("server", 50.0)
        for start, stop in itertools.pairwise(cuts):
            core.burst("a", 100 + start, one[start:stop])
        core.silent_until("a", 4000)
        outcomes.add(_one(_hear(core, 0, 4000)).tobytes())
    assert len(outcomes) == 1


def test_seeds_change_noise_and_fading() -> None:
    windows = {
        _one(_hear(_air((), seed=seed, ports=(_port("server", rx_full_scale_dbm=-100.0),)), 0, 50)).tobytes()
        for seed in range(5)
    }
    assert len(windows) == 5


def test_a_window_waits_for_every_port_that_has_not_spoken() -> None:
    core = _air(LINKS)
    core.silent_until("a", 100)
    core.silent_until("b", 100)
    assert _hear(core, 0, 500) == []
    assert set(core.waiting_for("server")) == {"a", "b"}
    assert core.silent_until("a", 500) == []
    assert core.waiting_for("server") == ["b"]
    assert len(core.silent_until("b", 500)) == 1
    assert core.waiting_for("server") == []


def test_standing_down_counts_unless_a_word_is_expected() -> None:
    core = _air(LINKS)
    assert len(_hear(core, 0, 100)) == 1, "at the start all stand down"
    assert _hear(core, 100, 100, expected="a") == []
    assert core.stand_down("a") == []
    assert len(core.silent_until("a", 200)) == 1
    core.silent_until("b", 250)
    assert _hear(core, 200, 100, expected="a") == []
    assert core.silent_until("a", 300) == [], "b speaks for itself until it stands down"
    assert len(core.stand_down("b")) == 1


def test_a_detached_port_is_not_waited_for() -> None:
    core = _air(LINKS)
    core.silent_until("b", 1000)
    assert _hear(core, 0, 500, expected="a") == []
    assert len(core.detach("a")) == 1
    core.attach("a")
    assert _hear(core, 500, 100, expected="a") == []


def test_late_bursts_are_refused_and_reported() -> None:
    events: list[RadioEvent] = []
    core = _air(LINKS, events=events)
    core.burst("a", 100, np.zeros(50, np.complex64))
    with pytest.raises(LateBurstError, match="everything before 150"):
        core.burst("a", 149, np.zeros(5, np.complex64))
    core.stand_down("a")
    assert len(_hear(core, 0, 400)) == 1
    with pytest.raises(LateBurstError, match="everything before 400"):
        core.burst("a", 399, np.zeros(5, np.complex64))
    assert [event.kind for event in events] == [RadioEventKind.LATE] * 2
    assert [event.sample_index for event in events] == [149, 399]
    core.burst("a", 400, np.zeros(5, np.complex64))


def test_what_is_no_longer_kept_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radio.air.core.RETAINED_SAMPLES", 1000)
    events: list[RadioEvent] = []
    core = _air(LINKS, events=events)
    for index in range(5):
        core.burst("a", 400 * index, np.zeros(400, np.complex64))
    with pytest.raises(GapError, match="are kept from 1200 on only"):
        _hear(core, 800, 100)
    assert [event.kind for event in events] == [RadioEventKind.GAP]
    assert len(_hear(core, 1300, 100)) == 1


def test_going_back_to_bursts_that_all_have_heard_is_a_gap_and_not_silence() -> None:
    core = _air(LINKS)
    core.burst("a", 0, np.ones(400, np.complex64))
    core.silent_until("a", 5000)
    assert len(_hear(core, 0, 5000)) == 1
    core.burst("a", 5000, np.ones(400, np.complex64))
    core.burst("a", 5400, np.ones(400, np.complex64))
    with pytest.raises(GapError):
        _hear(core, 0, 100)
    assert len(_hear(core, 5000, 400)) == 1


def test_a_muted_port_radiates_nothing() -> None:
    def listen(muted: bool, burst: bool) -> bytes:
        core = _air(LINKS[:1], (_port("a", muted=muted), _port("server", rx_full_scale_dbm=-60.0)))
        if burst:
            core.burst("a", 0, np.full(1000, 0.5, np.complex64))
        core.silent_until("a", 1000)
        return _one(_hear(core, 0, 1000)).tobytes()

    assert listen(True, True) == listen(False, False) != listen(False, True)


def test_impossible_settings_are_refused_in_words() -> None:
    core = _air(LINKS)
    with pytest.raises(RadioConfigurationError, match="ports are: a, b, server"):
        core.silent_until("c", 5)
    with pytest.raises(RadioConfigurationError, match="no port 'x'"):
        _air((LinkParameters("x", "server", 1.0),))
    for gain_db in (np.nan, np.inf, 1e6):
        with pytest.raises(RadioConfigurationError, match="gain"):
            core.set_rx_gain("server", gain_db)
