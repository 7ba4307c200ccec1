"""How far from optimal each method ends, and in how much processor time, by problem size.

Prints one JSON object per size, rate model and method.  Excess is latency over the certified lower
bound of the near-optimal method, minus one; for that method itself it is the certificate.

    python tests/benchmarks/allocator.py [--instances 20] [--seed 1000] [FAMILY ...]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from testbed.allocator.api import allocate, warm_up
from testbed.allocator.instances import generate_instance
from testbed.allocator.problem import AllocationError, Plan, Problem, RateModel

# Family, instances by default.
FAMILIES = {"c5m20": 40, "c10m64": 12, "c32m256": 5, "c64m1024": 2}
BCD_STARTS = 5


def best_of_descents(problem: Problem, rate_model: RateModel) -> Plan:
    rng = np.random.default_rng(0)
    plans = [allocate(problem, "bcd", rate_model, rng=rng) for _ in range(BCD_STARTS)]
    return min(plans, key=lambda plan: plan.latency_s)


def single(method: str) -> Callable[[Problem, RateModel], Plan]:
    return lambda problem, rate_model: allocate(problem, method, rate_model)


METHODS: dict[str, Callable[[Problem, RateModel], Plan]] = {
    "fast": single("fast"),
    "balanced": single("balanced"),
    "bcd, one start": single("bcd"),
    f"bcd, best of {BCD_STARTS}": best_of_descents,
    "round-robin": single("round-robin"),
    "rss": single("rss"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="such as c5m20")
    parser.add_argument("--instances", type=int, help="per family")
    parser.add_argument("--seed", type=int, default=1000, help="of the first instance")
    options = parser.parse_args()
    warm_up()
    for family in options.families or FAMILIES:
        count = options.instances or FAMILIES.get(family, 5)
        problems = [Problem.from_instance(generate_instance(family, options.seed + n)) for n in range(count)]
        for rate_model in RateModel:
            bounds: dict[int, float] = {}
            for method, solve in METHODS.items():
                excess, cpu_ms, skipped = [], [], 0
                for index, problem in enumerate(problems):
                    started = time.process_time()
                    try:
                        plan = solve(problem, rate_model)
                    except AllocationError:  # a client below the first MCS step: not this method's fault
                        skipped += 1
                        continue
                    cpu_ms.append(1e3 * (time.process_time() - started))
                    if plan.lower_bound_s is not None:
                        bounds[index] = plan.lower_bound_s
                    excess.append(100 * (plan.latency_s / bounds[index] - 1))
                row = {
                    "family": family,
                    "rate_model": rate_model.value,
                    "method": method,
                    "instances": len(excess),
                    "infeasible": skipped,
                    "excess_percent": {
                        "median": round(float(np.median(excess)), 3),
                        "mean": round(float(np.mean(excess)), 3),
                        "max": round(float(np.max(excess)), 3),
                    },
                    "cpu_ms": {
                        "median": round(float(np.median(cpu_ms)), 2),
                        "max": round(float(np.max(cpu_ms)), 2),
                    },
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
