"""The report as one file: tables, pictures and what they mean, with everything it needs inside.

No script, style, font or picture is fetched: the file can be mailed, archived and read offline.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import msgspec
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from testbed.frames import LoadedRun
from testbed.report import charts, tables, words
from testbed.report.round_chart import round_chart
from testbed.report.skill import ROUND_ROW, skill_table
from testbed.report.style import finite
from testbed.runs import section


@dataclass(frozen=True)
class Picture:
    """A figure and the choice above it."""

    name: str
    height: int
    spec: Mapping[str, Any]
    selector: charts.Selector | None = None


@dataclass(frozen=True)
class KeyFigure:
    """One of the large numbers at the top."""

    value: str
    words: str


def write_page(loaded: LoadedRun, path: Path) -> Path:
    """Write the report of a run as one HTML file, replaced as a whole; return its path.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(page(loaded), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def page(loaded: LoadedRun) -> str:
    """The report of a run as HTML."""
    skills = skill_table(loaded)
    spectrum = charts.spectrum_chart(loaded)
    rounds = round_chart(loaded)
    pictures = {
        "learning": _picture("learning", charts.learning_chart(loaded)),
        "spectrum": _picture("spectrum", *spectrum) if spectrum else None,
        "truth": _picture("truth", charts.truth_chart(loaded)),
        "latency": _picture("latency", charts.latency_chart(loaded)),
        "phases": _picture("phases", charts.multiples_chart(loaded.phases, "phase")),
        "airtime": _picture("airtime", charts.multiples_chart(loaded.airtime, "stream")),
        "links": _picture("links", charts.links_chart(loaded)),
    }
    context = {
        "title": loaded.run.start.get("run") or loaded.run.directory.name,
        "verdict": words.verdict(loaded, skills),
        "label": words.label(loaded.run.start),
        "failed": (loaded.run.stop or {}).get("reason") == "failed",
        "torn": loaded.run.torn_lines,
        "key_figures": _key_figures(loaded, skills),
        "pictures": pictures,
        "rounds": rounds,
        "round_numbers": list(rounds.rounds) if rounds else [],
        "rounds_json": _json(rounds.as_json()) if rounds else None,
        "figures_json": _json({name: dict(entry.spec) for name, entry in pictures.items() if entry}),
        "skill": tables.skill_rows(skills),
        "round_skill": words.prediction_words(skills),
        "links": tables.link_rows(loaded),
        "target_bler": _target_bler(loaded),
        "radio_events": tables.radio_event_rows(loaded),
        "decisions": tables.decision_rows(loaded),
        "decision_words": tables.decision_words(loaded),
        "cut_moves": tables.cut_move_rows(loaded),
        "remarks": tables.remark_rows(loaded),
        "rejections": tables.rejection_rows(loaded),
        "rejection_words": tables.rejection_words(loaded),
        "facts": tables.fact_rows(loaded),
        "virtual": loaded.run.start.get("clock") == "virtual",
        "plotly": markupsafe.Markup(get_plotlyjs()),
        "script": markupsafe.Markup(_resource("report.js")),
        "style": markupsafe.Markup(_resource("report.css")),
    }
    return _environment().get_template("report.html.j2").render(context)


def _target_bler(loaded: LoadedRun) -> str | None:
    """Block error rate that the run asked its links for, in words."""
    target = section(loaded.config, "experiment", "link").get("target_bler")
    return f"{100 * target:g} %" if isinstance(target, float | int) else None


def _key_figures(loaded: LoadedRun, skills: pd.DataFrame) -> list[KeyFigure]:
    found = []
    accuracy = words.final_accuracy(loaded)
    if accuracy:
        split, mean, worst = accuracy
        found.append(
            KeyFigure(
                f"{100 * mean:.1f} %", f"{split} accuracy, mean over clients (worst {100 * worst:.1f} %)"
            )
        )
    rounds = loaded.rounds
    if len(rounds):
        beside = ", cut moves and joins included" if (rounds["total_s"] > rounds["latency_s"]).any() else ""
        found.append(KeyFigure(f"{1e3 * rounds['total_s'].mean():.1f} ms", f"mean round latency{beside}"))
        found.append(
            KeyFigure(str(len(rounds)), f"rounds in {rounds['at_s'].max():.1f} s of experiment time")
        )
    row = skills[skills["what"] == ROUND_ROW]
    if len(row):
        found.append(
            KeyFigure(f"{row['mape_percent'].iloc[0]:.1f} %", "mean error of the predicted round latency")
        )
        skill = finite(row["skill"].iloc[0])
        if skill is not None:
            found.append(
                KeyFigure(f"{skill:+.2f}", "skill against persistence (1 perfect, 0 no better than it)")
            )
    return found


def _picture(name: str, chart: go.Figure | None, selector: charts.Selector | None = None) -> Picture | None:
    if chart is None:
        return None
    return Picture(name, int(chart.layout.height), chart.to_plotly_json(), selector)


def _json(value: Any) -> markupsafe.Markup:
    """JSON that can stand inside a script element: nothing in it ends that element."""
    text = msgspec.json.encode(value, enc_hook=_plain).decode()
    return markupsafe.Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _plain(value: Any) -> Any:
    """Numbers of numpy, and arrays, as JSON knows them."""
    return value.tolist()


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("testbed.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _resource(name: str) -> str:
    return (resources.files("testbed.report") / "templates" / name).read_text(encoding="utf-8")
