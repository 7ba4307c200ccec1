"""How good a prediction was: errors, the promised interval, and the comparison with persistence.

Persistence says that this round will be like the last one.  It costs nothing, so a prediction is
worth having only where it beats it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from testbed.frames import LoadedRun

ROUND_ROW = "round latency"
AIRTIME_ROW = "airtime, all streams"
INTERVAL_PERCENT = 90  # between the quantiles of 5 % and 95 % that a prediction gives
CLOCK_S = 1e-9  # instants are whole nanoseconds, so a bound is met when it is missed by less

SKILL_UNITS = {
    "what": "-",
    "num_rounds": "1",
    "mean_measured_s": "s",
    "median_error_percent": "%",
    "mape_percent": "%",
    "bias_percent": "%",
    "coverage_percent": "%",
    "persistence_mape_percent": "%",
    "skill": "1",
}


def skill_of(compared: pd.DataFrame) -> dict[str, Any]:
    """Errors of one quantity over the rounds.

    Parameters
    ----------
    compared
        Columns ``measured_s``, ``predicted_s``, ``low_s``, ``high_s``, ``persistence_s`` [s].

    Returns
    -------
    dict
        Only rounds that have all three of measurement, prediction and persistence count, so that the
        two predictions face the same rounds; without any persistence, those that have the other two.
        ``median_error_percent`` and ``mape_percent``: median and mean of |predicted - measured| /
        measured over rounds in which something was measured.  ``bias_percent``: mean of predicted -
        measured over the mean measured.  ``coverage_percent``: share of rounds measured inside the
        predicted 90 % interval.  ``skill``: 1 - MAPE / MAPE of persistence; 1 is perfect, 0 is no
        better than persistence.  NaN where nothing can be said.
    """
    measured, predicted, low, high, persistence = (
        compared[name].to_numpy(float)
        for name in ("measured_s", "predicted_s", "low_s", "high_s", "persistence_s")
    )
    counted = np.isfinite(measured) & np.isfinite(predicted)
    if np.any(counted & np.isfinite(persistence)):
        counted &= np.isfinite(persistence)
    spent = counted & (measured > 0)
    errors = _relative_errors(measured[spent], predicted[spent])
    persistence_errors = _relative_errors(measured[spent], persistence[spent])
    bounded = counted & np.isfinite(low) & np.isfinite(high)
    inside = (measured >= low - CLOCK_S) & (measured <= high + CLOCK_S)
    mape, persistence_mape = _mean(np.abs(errors)), _mean(np.abs(persistence_errors))
    total = float(np.sum(measured[counted]))
    difference = float(np.sum(predicted[counted] - measured[counted]))
    return {
        "num_rounds": int(np.sum(counted)),
        "mean_measured_s": _mean(measured[counted]),
        "median_error_percent": 100 * float(np.median(np.abs(errors))) if errors.size else np.nan,
        "mape_percent": 100 * mape,
        "bias_percent": 100 * difference / total if total > 0 else np.nan,
        "coverage_percent": 100 * _mean(inside[bounded].astype(float)),
        "persistence_mape_percent": 100 * persistence_mape,
        "skill": 1 - mape / persistence_mape if persistence_mape > 0 else np.nan,
    }


def skill_table(loaded: LoadedRun) -> pd.DataFrame:
    """One row for the round, each phase and each stream's airtime that was predicted and measured."""
    return pooled_skill([loaded])


def pooled_skill(runs: Sequence[LoadedRun]) -> pd.DataFrame:
    """The same over the rounds of several runs together."""
    rounds = _together([_complete_rounds(loaded) for loaded in runs])
    phases = _together([loaded.phases for loaded in runs])
    airtime = _together([loaded.airtime for loaded in runs])
    groups = [(ROUND_ROW, rounds)]
    groups += [(str(name), rows) for name, rows in phases.groupby("phase", sort=False)]
    groups += [(AIRTIME_ROW, _together([_whole_airtime(loaded.airtime) for loaded in runs]))]
    groups += [(f"airtime, {name}", rows) for name, rows in airtime.groupby("stream", sort=False)]
    rows = [{"what": name, **skill_of(group)} for name, group in groups if len(group)]
    frame = pd.DataFrame([row for row in rows if row["num_rounds"]], columns=list(SKILL_UNITS))
    frame.attrs["units"] = dict(SKILL_UNITS)
    return frame


def _complete_rounds(loaded: LoadedRun) -> pd.DataFrame:
    """Rounds that came about; one that was given up has no phases, and its latency means nothing."""
    rounds = loaded.rounds.rename(columns={"latency_s": "measured_s"})
    phases = loaded.phases
    if not len(phases):
        return rounds
    return rounds[rounds["round"].isin(phases.loc[phases["measured_s"].notna(), "round"])]


def _together(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]


def _whole_airtime(airtime: pd.DataFrame) -> pd.DataFrame:
    """Seconds radiated in each round by all transmitters together.

    Bounds of streams do not add up to bounds of their sum, so there are none.
    """
    columns = ["measured_s", "predicted_s", "persistence_s"]
    total = airtime.groupby("round")[columns].sum(min_count=1).reset_index()
    return total.assign(low_s=np.nan, high_s=np.nan)


def repeat_spread(runs: Sequence[LoadedRun]) -> float:
    """Relative standard deviation of equal compute work done again, the machine's own unrest.

    From one round to the next, spans of the same node, phase and work differ by a factor whose
    logarithm has sqrt(2) times the spread of one of them; the median absolute deviation keeps
    throttles and other steps out of it.  NaN without measured compute.
    """
    steps = []
    for loaded in runs:
        spans = loaded.spans
        work = spans["attributes"].map(lambda values: values.get("flops"))
        kind = spans["attributes"].map(lambda values: values.get("compute"))
        measured = spans[(kind == "measured") & (spans["duration_s"] > 0)].assign(flops=work)
        for _, rows in measured.groupby(["node", "phase", "flops"]):
            steps.append(np.diff(np.log(rows.sort_values("round")["duration_s"].to_numpy(float))))
    found = np.concatenate(steps) if steps else np.array([])
    return float(1.4826 * np.median(np.abs(found)) / np.sqrt(2)) if found.size else float("nan")


def _relative_errors(measured: NDArray[np.float64], said: NDArray[np.float64]) -> NDArray[np.float64]:
    return (said - measured) / measured


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.mean(values)) if values.size else float("nan")
