"""What a run was and what it came to, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from testbed.frames import LoadedRun
from testbed.report.skill import ROUND_ROW, repeat_spread
from testbed.runs import section

# Radio driver: what it is, and whether anything was really radiated.
RADIOS = {
    "emulated": "the emulated radio (real modem and IQ samples through a channel emulator; nothing was radiated)",
    "emulated, blocks": "the emulated radio in blocks fidelity (block errors drawn from the decoder's measured curves, samples only for soundings; nothing was radiated)",
    "replay": "replayed IQ recordings (nothing was radiated)",
    "pluto": "ADALM-PLUTO radios",
    "virtual-pluto": "a virtual PLUTO (the driver's protocol without its hardware; nothing was radiated)",
    "gnuradio": "GNU Radio",
    "faulty": "a radio with injected faults",
}
CLOCKS = {
    "virtual": "virtual time (nobody sleeps; every latency is experiment time)",
    "wall": "wall time",
}
COMPUTES = {
    "measured": "measured compute time (a thread's CPU time times the emulated board's slowdown)",
    "modelled": "modelled compute time (FLOPs over board speed)",
}
LABEL = "reconstructed"  # of scenarios and readings that were rebuilt from public descriptions


def verdict(loaded: LoadedRun, skills: pd.DataFrame) -> str:
    """The run in a few plain sentences."""
    return " ".join(_verdict(loaded, skills))


def _verdict(loaded: LoadedRun, skills: pd.DataFrame) -> Iterator[str]:
    start, stop, rounds = loaded.run.start, loaded.run.stop, loaded.rounds
    clients = len(loaded.clients)
    scheme = str(section(loaded.config, "experiment", "learning").get("scheme", "split learning")).upper()
    count = f"{len(rounds)} round{'' if len(rounds) == 1 else 's'}"
    yield (
        f"{count} of {scheme} with {clients} board{'' if clients == 1 else 's'} over "
        f"{_named(RADIOS, _radio(start), 'a radio that run.json does not name')}, in {_clock(start)}, "
        f"with {_named(COMPUTES, start.get('compute'), 'compute time of unknown kind')}."
    )
    accuracy = final_accuracy(loaded)
    if accuracy is not None:
        split, mean, worst = accuracy
        yield f"{split.capitalize()} accuracy {100 * mean:.1f} % (worst client {100 * worst:.1f} %)."
    else:
        yield "No accuracy was measured."
    if len(rounds):
        mean_s, alone_s = float(rounds["total_s"].mean()), float(rounds["latency_s"].mean())
        beside = (
            f", moves of the cut and joining boards included ({_duration(alone_s)} without)"
            if mean_s > alone_s
            else ""
        )
        yield f"Mean round latency {_duration(mean_s)}{beside}."
    else:
        yield "No round was finished."
    yield prediction_words(skills) + spread_words(loaded)
    yield _end(stop, loaded)
    yield _scenario(start, loaded)


def final_accuracy(loaded: LoadedRun) -> tuple[str, float, float] | None:
    """Split, mean and worst client's accuracy: of the test if it was made, else of the last check."""
    checks = loaded.evaluations
    for split in ("test", "validation"):
        rows = checks[checks["split"] == split]
        if len(rows):
            last = rows.iloc[-1]
            return split, float(last["accuracy"]), float(last["worst_client_accuracy"])
    return None


def prediction_words(skills: pd.DataFrame) -> str:
    """How well the round latency was predicted, against persistence."""
    rows = skills[skills["what"] == ROUND_ROW]
    if rows.empty:
        return "No round's latency was predicted beforehand."
    row = rows.iloc[0]
    words = f"Predictions of the round latency were off by {row['mape_percent']:.1f} % on average"
    if np.isfinite(row["persistence_mape_percent"]):
        words += f", against {row['persistence_mape_percent']:.1f} % for guessing the last round's value"
        if np.isfinite(row["skill"]):
            better = "better" if row["skill"] > 0 else "worse"
            words += f" (skill {row['skill']:+.2f}: {better} than that guess)"
    return f"{words}."


def spread_words(loaded: LoadedRun) -> str:
    """What no prediction can do better than: how much equal work varies on this machine."""
    spread = repeat_spread([loaded])
    if not np.isfinite(spread):
        return ""
    return (
        f" Equal compute work done again took ±{100 * spread:.0f} % on this machine (one standard deviation)."
    )


def label(start: Mapping[str, Any]) -> str | None:
    """What run.json says about its scenario having been reconstructed, wherever it says so."""
    for value in start.values():
        nested = value.values() if isinstance(value, Mapping) else (value,)
        for text in nested:
            if isinstance(text, str) and LABEL in text.lower():
                return text
    return None


def _clock(start: Mapping[str, Any]) -> str:
    words = _named(CLOCKS, start.get("clock"), "time of unknown kind")
    slow = start.get("slow_motion", 1.0)
    if start.get("clock") == "wall" and slow != 1.0:
        words += f" in slow motion ({slow:g} times slower)"
    return words


def _radio(start: Mapping[str, Any]) -> str | None:
    """Key of the radio: its driver, and the fidelity where it is not that of samples."""
    driver, fidelity = start.get("radio"), start.get("fidelity", "iq")
    return driver if driver is None or fidelity == "iq" else f"{driver}, {fidelity}"


def _end(stop: Mapping[str, Any] | None, loaded: LoadedRun) -> str:
    if stop is None:
        return "The record has no end: the run still goes on, or its process was killed."
    reason = stop.get("reason", "ended")
    words = f"It {'was ' if reason == 'interrupted' else ''}{reason}: {stop.get('words') or 'no words'}"
    return words if words.endswith(".") else f"{words}."


def _scenario(start: Mapping[str, Any], loaded: LoadedRun) -> str:
    scenario = start.get("scenario")
    if isinstance(scenario, Mapping):
        told = f"Scenario {scenario.get('name')}, version {scenario.get('version')}"
    else:
        told = "No named scenario"
    allocator = section(loaded.config, "experiment", "allocator")
    policies = [name for name in loaded.rounds["policy"].dropna().unique() if name]
    policy = start.get("policy") or (policies[0] if policies else None) or allocator.get("name")
    told += f"; allocation policy {policy or 'unknown'}"
    said = label(start)
    return f"{told}; {said}." if said else f"{told}."


def _named(known: Mapping[str, str], key: Any, otherwise: str) -> str:
    if key is None:
        return otherwise
    return known.get(str(key), f"“{key}”")


def _duration(duration_s: float) -> str:
    return f"{1e3 * duration_s:.1f} ms" if duration_s < 1 else f"{duration_s:.3f} s"
