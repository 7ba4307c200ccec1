"""Statistics of the closed loop that take longer than a test may: run by ``make validate``.

Runs the paired comparisons of the policies and the predicted runs with measured compute time, and
writes what they came to into ``closed_loop.json`` beside this file, with the commit it was measured
on.  Runs that lie in the folder already are not repeated, so that an interrupted validation goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = HERE / "closed_loop.json"
FORMAT = "closed-loop-validation/1"
SEEDS = 10  # of the comparisons, and their rounds
ROUNDS = 40
PREDICTED_SEEDS = 5  # of the runs with measured compute time
PREDICTED_ROUNDS = 60


def testbed(*arguments: str) -> dict[str, Any]:
    """One command of the testbed that prints one JSON object as its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def commit() -> str:
    """The commit in the working tree, marked when something was changed since."""
    name = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return name.stdout.strip() or "unknown"


def predicted_runs(folder: Path, preset: str, seeds: int, rounds: int) -> dict[str, Any]:
    """Runs of busy-day with measured compute time, and how well their rounds were predicted."""
    places = []
    for seed in range(1, seeds + 1):
        place = folder / f"seed-{seed}"
        if not (ROOT / place / "stop.json").exists():
            options = ["--preset", preset, "--scenario", "busy-day", "--rounds", str(rounds)]
            testbed("run", *options, "--seed", str(seed), "--out", str(place), "--json")
        places.append(str(place))
    return testbed("runs", "skill", *places, "--json")


def main() -> None:
    """Run everything, or what is missing of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/validate"))
    parser.add_argument("--commit", default=None, help="commit that the runs in the folder were made on")
    options = parser.parse_args()
    folder: Path = options.folder
    measured_on = options.commit or commit()
    compared = ["--seeds", str(SEEDS), "--rounds", str(ROUNDS), "--compute", "modelled", "--json"]
    results = {
        "format": FORMAT,
        "commit": measured_on,
        "host": {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "busy_day": testbed("compare", "--out", str(folder / "busy-day"), *compared),
        "static": testbed(
            "compare",
            "--scenario",
            "static",
            "--policies",
            "closed-loop,solve-once",
            "--out",
            str(folder / "static"),
            *compared,
        ),
        # Slow boards, whose computations a restless machine blurs, and boards that hardly compute.
        "prediction": {
            preset: predicted_runs(folder / f"measured-{preset}", preset, PREDICTED_SEEDS, PREDICTED_ROUNDS)
            for preset in ("edge", "laptop")
        },
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(f"{RESULTS}\n")


if __name__ == "__main__":
    main()
