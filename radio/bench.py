"""Speed of the radio's kernels in CPU time on one thread: `python -m radio.bench --json`.

Numbers from a shared machine vary; compare ratios inside one run.  Nothing here asserts a speed.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from radio.coding.transport_block import decode, encode, transport_block_code
from radio.modulation import Modulation, demodulate_llr, modulate
from radio.warmup import warm_up

Result = dict[str, float | int | str]


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes
    ----------
    name
        Key in the report.
    unit
        Of the amount of work per second.
    work
        Work that one call does, in `unit` times one second.
    call
        What is timed.
    details
        Facts about the case for the report.
    """

    name: str
    unit: str
    work: float
    call: Callable[[], object]
    details: Result = field(default_factory=dict)


def measure(case: Case, min_duration_s: float = 0.4) -> Result:
    """Return mean and best throughput of repeated calls, from the CPU time of this thread."""
    case.call()
    durations: list[float] = []
    while sum(durations) < min_duration_s or len(durations) < 5:
        started = time.thread_time()
        case.call()
        durations.append(time.thread_time() - started)
    return {
        "unit": case.unit,
        "mean": round(case.work * len(durations) / sum(durations), 2),
        "best": round(case.work / min(durations), 2),
        "num_calls": len(durations),
        **case.details,
    }


def coding_cases() -> Iterator[Case]:
    """Yield encoder and decoder cases: code blocks of 8448 bits, QPSK on AWGN."""
    num_blocks = 40
    rng = np.random.default_rng(1)
    # Es/N0 of QPSK just above the waterfall, and 6 dB higher; short blocks at a link's usual SNR.
    plans = [
        ("r13", 8448, 1 / 3, (0.0, 6.0)),
        ("r12", 8448, 1 / 2, (2.0, 8.0)),
        ("r56", 8448, 5 / 6, (6.0, 12.0)),
        ("short_r12", 640, 1 / 2, (3.0, 9.0)),
    ]
    for label, num_bits, code_rate, snrs_db in plans:
        num_coded_bits = int(num_bits / code_rate) // 2 * 2
        code = transport_block_code(num_coded_bits, 2, code_rate)
        payload = rng.integers(0, 256, (num_blocks, code.num_info_bytes), dtype=np.uint8)
        work = payload.size * 8e-6
        bits = encode(code, payload)
        shape: Result = {"code_rate": round(code_rate, 4), "num_info_bits": code.num_info_bytes * 8}
        yield Case(
            f"ldpc_encode_{label}", "info Mbit/s", work, functools.partial(encode, code, payload), shape
        )
        for place, snr_db in zip(("near", "high"), snrs_db, strict=True):
            symbols = modulate(Modulation.QPSK, bits)
            variance = np.full(symbols.shape, 10 ** (-snr_db / 10), dtype=np.float32)
            noise = rng.standard_normal((num_blocks, 2 * symbols.shape[1]), dtype=np.float32)
            symbols += noise.view(np.complex64) * np.sqrt(variance / 2)
            llr = demodulate_llr(Modulation.QPSK, symbols, variance)
            result = decode(code, llr)
            yield Case(
                f"ldpc_decode_{label}_{place}",
                "info Mbit/s",
                work,
                functools.partial(decode, code, llr),
                {
                    **shape,
                    "snr_db": snr_db,
                    "mean_iterations": round(float(result.iterations.mean()), 2),
                    "bler": round(1 - float(result.ok.mean()), 4),
                },
            )


def modulation_cases() -> Iterator[Case]:
    """Yield mapper and soft demapper cases."""
    rng = np.random.default_rng(2)
    for modulation in Modulation:
        bits = rng.integers(0, 2, (20, 2000 * modulation), dtype=np.uint8)
        symbols = modulate(modulation, bits)
        variance = np.full(symbols.shape, 0.02, dtype=np.float32)
        name, work = modulation.name.lower(), symbols.size * 1e-6
        yield Case(f"modulate_{name}", "Msymbol/s", work, functools.partial(modulate, modulation, bits))
        yield Case(
            f"demodulate_{name}",
            "Msymbol/s",
            work,
            functools.partial(demodulate_llr, modulation, symbols, variance),
        )


CASE_GROUPS: tuple[Callable[[], Iterator[Case]], ...] = (coding_cases, modulation_cases)


def _say(module: str) -> None:
    sys.stderr.write(f"warming {module}\n")


def main(arguments: list[str] | None = None) -> None:
    """Time all cases and print them."""
    parser = argparse.ArgumentParser(prog="python -m radio.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default="", help="only names that contain this")
    options = parser.parse_args(arguments)
    warm_up(_say)
    results: dict[str, Result] = {}
    for group in CASE_GROUPS:
        for case in group():
            if options.only in case.name:
                results[case.name] = measure(case)
                if not options.json:
                    found = results[case.name]
                    sys.stdout.write(
                        f"{case.name:24s} {found['mean']:>10} {found['best']:>10} {found['unit']}\n"
                    )
    if options.json:
        sys.stdout.write(json.dumps({"machine": {"unit": platform.machine()}, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
