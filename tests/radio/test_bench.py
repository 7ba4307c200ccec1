"""The bench: the cases that the goals name exist, and its figures are work over this thread's CPU time."""

import time

import pytest

from radio import bench


def test_the_cases_of_the_goals_exist_with_their_definitions() -> None:
    cases = {case.name: case for group in bench.CASE_GROUPS for case in group()}
    for rate, value in {"r13": 1 / 3, "r12": 1 / 2, "r56": 5 / 6}.items():
        near, high = (cases[f"ldpc_decode_{rate}_{place}"] for place in ("near", "high"))
        assert high.details["snr_db"] - near.details["snr_db"] == 6.0
        for case in (near, high, cases[f"ldpc_encode_{rate}"]):
            assert case.details["code_rate"] == round(value, 4)
            assert case.unit == "info Mbit/s"
        # A speed at which blocks are lost would be no speed.
        assert near.details["bler"] == high.details["bler"] == 0.0
    for name in ("ofdm_tx", "ofdm_rx", "chain", "uplink5"):
        assert cases[name].unit == "MS/s"
        assert cases[name].work == bench.LAPTOP.frame_samples * 1e-6
    assert cases["chain"].details == {"snr_db": 18.0, "bler": 0.0}
    assert cases["uplink5"].details["bler"] == 0.0
    assert cases["air"].details["num_taps"] == 6


def test_rates_are_work_over_cpu_time_and_the_first_call_does_not_count(monkeypatch) -> None:
    now_s, calls = [0.0], [0]

    def call() -> None:
        calls[0] += 1
        now_s[0] += 5.0 if calls[0] == 1 else 1e-3

    monkeypatch.setattr(time, "thread_time", lambda: now_s[0])
    found = bench.measure(bench.Case("name", "MS/s", 3.0, call, {"fact": 1}))
    assert found["mean"] == pytest.approx(3000.0)
    assert found["best"] == pytest.approx(3000.0)
    assert found["fact"] == 1


def test_a_clock_that_advances_in_steps_gives_finite_rates(monkeypatch) -> None:
    """Calls of 1 ms under a clock that moves once in 4 ms: single calls seem to take no time."""
    now_s = [0.0]

    def call() -> None:
        now_s[0] += 1e-3

    monkeypatch.setattr(time, "thread_time", lambda: now_s[0] // 4e-3 * 4e-3)
    found = bench.measure(bench.Case("name", "MS/s", 1.0, call))
    assert found["mean"] == pytest.approx(1000.0, rel=0.2)
    assert found["best"] < 2000.0


def test_the_profile_accounts_for_the_whole_chain() -> None:
    parts = bench.profile(num_batches=3, batch_calls=2)
    assert list(parts)[-1] == "chain"
    shares = sum(part["share"] for name, part in parts.items() if name != "chain")
    assert shares == pytest.approx(1.0, abs=0.01)
    assert all(parts[name]["mean"] > 0 for name in ("encode", "tx", "air", "demod", "decode", "chain"))
