"""The physics of the modem, with more statistics than a test may take: run by ``make validate``.

Each study in ``studies/`` consists of cases with a seed of their own.  A finished case is kept in the
folder, so that an interrupted call goes on where it was; cases of another commit or share are not
taken over.  What came of them is written to ``physics.json`` beside this file.

    python tests/validation/physics.py                        everything, about 15 minutes of one core
    python tests/validation/physics.py --share 0.1 --output /tmp/quick.json
    python tests/validation/physics.py --only bler/laptop --output /tmp/some.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE / "studies"))

import numba  # noqa: E402
import numpy as np  # noqa: E402
import study_bler  # noqa: E402
import study_coding  # noqa: E402
import study_estimators  # noqa: E402
import study_modulation  # noqa: E402
import study_sharing  # noqa: E402
from study_common import CONFIDENCE, NUMEROLOGIES, SEED, Case  # noqa: E402

RESULTS = HERE / "physics.json"
FORMAT = "physics-validation/1"
STUDIES = (study_modulation, study_coding, study_estimators, study_sharing, study_bler)


def all_cases() -> list[Case]:
    """Every case of every study."""
    return [case for study in STUDIES for case in study.cases()]


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


def run_case(case: Case, share: float, folder: Path, measured_on: str) -> dict[str, Any]:
    """Result of a case, from the folder where it was finished before on the same commit."""
    kept = folder / (case.name.replace("/", "_") + ".json")
    if kept.exists():
        found = json.loads(kept.read_text())
        if found["commit"] == measured_on and found["share"] == share:
            return found["result"]
    started = time.process_time()
    result = case(share)
    elapsed = time.process_time() - started
    document = {"commit": measured_on, "share": share, "cpu_s": round(elapsed, 2), "result": result}
    # Written under another name first: an interrupted write must not pass for a result.
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(document))
    partial.replace(kept)
    sys.stderr.write(f"{case.name}: {elapsed:.1f} s\n")
    return result


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The few numbers that the studies come to, as far as their cases are there."""
    found: dict[str, Any] = {}
    of = {kind: [r for name, r in results.items() if name.split("/")[0] == kind] for kind in _kinds(results)}
    if curves := of.get("bler"):
        found["bler"] = {
            f"{name}, {members} subchannels per transmitter": {
                "largest_excess_db": max(abs(r["excess_db"]) for r in chosen),
                "estimation_loss_db": [
                    min(r["estimation_loss_db"] for r in chosen),
                    max(r["estimation_loss_db"] for r in chosen),
                ],
                "curves_that_rise": sum(bool(r["rising_pairs"]) for r in chosen),
            }
            for name in NUMEROLOGIES
            for members in study_bler.MEMBERS
            if (
                chosen := [
                    r
                    for r in curves
                    if r["numerology"] == name and r["subchannels_of_a_transmitter"] == members
                ]
            )
        }
    if goodput := of.get("goodput"):
        found["goodput_over_shannon"] = {
            name: {
                label: {
                    "mean": float(np.mean([r[label]["share"] for r in chosen])),
                    "least": min(r[label]["share"] for r in chosen),
                }
                for label in ("best_mcs", "adapted", "adapted_from_single_frames")
            }
            for name in NUMEROLOGIES
            if (chosen := [r for r in goodput if r["numerology"] == name])
        }
    if sharing := of.get("sharing"):
        found["loss_beside_another_client_db"] = {
            f"{r['numerology']}, {r['mcs']}": {
                situation: None if value["loss_db"] is None else round(value["loss_db"], 3)
                for situation, value in r["situations"].items()
            }
            for r in sharing
        }
    if undetected := of.get("undetected"):
        failed = sum(r["num_failed"] for r in undetected)
        wrong = sum(r["num_undetected"] for r in undetected)
        found["undetected"] = {"failed_blocks": failed, "undetected": wrong, "rule_of_three": 3 / failed}
    return found


def _kinds(results: dict[str, dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name.split("/")[0] for name in results))


def main() -> None:
    """Run everything, or what is missing of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/validate/physics"))
    parser.add_argument("--share", type=float, default=1.0, help="of the full statistics")
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.output == RESULTS and (options.share != 1.0 or options.only):
        parser.error("a part of the statistics needs an --output of its own")
    folder = ROOT / options.folder / f"share-{options.share:g}"
    folder.mkdir(parents=True, exist_ok=True)
    measured_on = commit()
    cases = [case for case in all_cases() if case.name.startswith(options.only)]
    results = {}
    for index, case in enumerate(cases):
        results[case.name] = run_case(case, options.share, folder, measured_on)
        if index % 20 == 19:
            sys.stderr.write(f"{index + 1} of {len(cases)} cases\n")
    document = {
        "format": FORMAT,
        "commit": measured_on,
        "host": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
        },
        "radio": "the modem in memory; the sharing studies on the emulated air, converters made ideal",
        "clock": "none: samples are counted, nothing is timed",
        "seed": SEED,
        "share": options.share,
        "confidence": CONFIDENCE,
        "numerologies": {
            name: {
                "sample_rate_hz": numerology.sample_rate_hz,
                "fft_size": numerology.fft_size,
                "prefix_samples": numerology.prefix_samples,
                "num_subchannels": numerology.num_subchannels,
                "subcarriers_per_subchannel": numerology.subcarriers_per_subchannel,
                "symbols_per_slot": numerology.symbols_per_slot,
                "block_resource_elements": numerology.block_resource_elements,
            }
            for name, numerology in NUMEROLOGIES.items()
        },
        "summary": summary(results),
        "cases": results,
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(result)}" for name, result in results.items()]
    head = json.dumps({key: value for key, value in document.items() if key != "cases"}, indent=1)
    text = head[:-2] + ',\n "cases": {\n' + ",\n".join(lines) + "\n }\n}\n"
    options.output.write_text(text)
    sys.stdout.write(f"{options.output}\n")


if __name__ == "__main__":
    main()
