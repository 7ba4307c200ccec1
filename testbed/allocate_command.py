"""Instances in files to decisions as JSON objects: what ``testbed allocate`` prints.

Nothing here prints or exits; the command line does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from testbed.allocator.api import allocate, warm_up
from testbed.allocator.instances import generate_instance
from testbed.allocator.problem import AllocationError, Problem, RateModel


def read_problem(path: Path) -> Problem:
    """Return the problem of an instance file.

    Raises
    ------
    AllocationError
        If the file can't be read, is not JSON, or holds no sound instance; the message has its name.
    """
    try:
        instance = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AllocationError(str(path), f"cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:
        raise AllocationError(str(path), f"not JSON ({error})") from error
    try:
        return Problem.from_instance(instance)
    except AllocationError as error:
        raise type(error)(f"{path}: {error.field}", error.problem) from error


def allocate_files(
    paths: Iterable[Path | str],
    rate_model: RateModel | str,
    method: str = "fast",
    time_limit_s: float | None = None,
    iterations: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one JSON-ready object per instance, in the order of the paths.

    The keys are ``cut``, ``assignment`` (null: unused), ``psd`` [W/Hz], ``latency_s``,
    ``lower_bound_s`` and ``gap`` (both null if the method proves nothing), ``cpu_s`` (processor time
    of the method alone; compilation is done before), ``method``, ``rate_model``, ``instance``, and
    ``binding`` with what holds the round up.

    Raises
    ------
    AllocationError
        At the first file that is at fault, with its name and the field.
    """
    warm_up()
    for path in map(Path, paths):
        problem = read_problem(path)
        started = time.process_time()
        try:
            plan = allocate(problem, method, rate_model, iterations=iterations, time_limit_s=time_limit_s)
        except AllocationError as error:
            raise type(error)(f"{path}: {error.field}", error.problem) from error
        cpu_s = time.process_time() - started
        binding = plan.binding
        yield {
            **plan.to_decision(),
            "latency_s": plan.latency_s,
            "lower_bound_s": plan.lower_bound_s,
            "gap": plan.gap,
            "cpu_s": cpu_s,
            "method": plan.method,
            "rate_model": RateModel(rate_model).value,
            "instance": str(path),
            "phases": plan.phases,
            "binding": {
                "uplink_client": binding.uplink_client,
                "downlink_client": binding.downlink_client,
                "power": binding.power,
                "runner_up_cut": binding.runner_up_cut,
                "runner_up_latency_s": binding.runner_up_latency_s,
                "runner_up_is_bound": binding.runner_up_is_bound,
            },
            "notes": list(plan.notes),
        }


def generate_file(family: str, seed: int, directory: Path | str) -> Path:
    """Write a random instance of a family (such as ``c5m20``) and return the new file.

    Raises
    ------
    AllocationError
        For a family that is not of the form cCmM.
    """
    instance = generate_instance(family, seed)
    path = Path(directory) / f"{instance['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(instance), encoding="utf-8")
    return path
