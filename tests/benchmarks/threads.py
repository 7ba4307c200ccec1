"""Five uplinks on one core and on all: what threads are worth.  Prints one JSON object.

Wall time is what counts here, so the machine should have nothing else to do: one-core and all-core
calls alternate, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "radio"))

from signals import LAPTOP, complex_noise, random_blocks, slots_of

from radio.phy import demodulate_slots
from radio.warmup import warm_up
from radio.workers import Workers, num_cores

OWNERS = np.repeat(np.arange(5), 4)
MCS = np.repeat([18, 14, 10, 7, 4], 4)  # as the five boards of a lab at 24 dB and less
SNR_DB = 24.0


def main() -> None:
    """Time the two, alternating."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--slots", type=int, default=60)
    parser.add_argument("--threads", type=int, default=num_cores())
    options = parser.parse_args()
    warm_up()
    rng = np.random.default_rng(1)
    blocks = random_blocks(rng, LAPTOP, options.slots, MCS)
    samples = slots_of(LAPTOP, options.slots, blocks, MCS)
    heard = samples + complex_noise(rng, len(samples), 10 ** (-SNR_DB / 10))
    seconds: dict[int, list[float]] = {1: [], options.threads: []}
    with Workers(1) as one, Workers(options.threads) as many:
        for _ in range(options.calls):
            for workers in (one, many):
                started = time.perf_counter()
                received = demodulate_slots(LAPTOP, heard, MCS, OWNERS, workers=workers)
                seconds[workers.num_threads].append(time.perf_counter() - started)
                if received.blocks != blocks:
                    raise SystemExit("blocks were lost: this measures nothing")
    rate = {threads: len(heard) * 1e-6 / statistics.median(spent) for threads, spent in seconds.items()}
    report = {
        "unit": "MS/s of wall time, median",
        "num_slots": options.slots,
        "one_thread": round(rate[1], 2),
        "all_threads": round(rate[options.threads], 2),
        "num_threads": options.threads,
        "ratio": round(rate[options.threads] / rate[1], 3),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
