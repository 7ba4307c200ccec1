"""What is said of finished runs on the command line: ``testbed report`` and ``testbed runs``.

Results go to standard output, one JSON object with ``--json``.  What draws and reads tables is
imported only by the command that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

Directory = Annotated[Path, typer.Argument(help="run directory")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]

runs_app = typer.Typer(
    name="runs", help="List runs, show one, compare two.", no_args_is_help=True, rich_markup_mode=None
)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("report")(report)
    app.add_typer(runs_app)


def report(
    directory: Directory,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="scalars for TensorBoard too; an extra of the package")
    ] = False,
) -> None:
    """Make report.html, trace.json and run.svg again from a run's directory alone."""
    from testbed.report import write_report

    paths = write_report(directory)
    for path in paths.values():
        typer.echo(str(path))
    if tensorboard:
        from testbed.frames import load_run
        from testbed.scalars import write_scalars

        typer.echo(str(write_scalars(load_run(directory), directory / "tensorboard")))


@runs_app.command("ls")
def list_(
    directory: Annotated[Path, typer.Argument(help="folder of runs")] = Path("runs"), json: AsJson = False
) -> None:
    """List the runs of a folder, oldest first."""
    from testbed.runs import list_runs

    found = list_runs(directory)
    if json:
        _say_json({"runs": [entry.as_json() for entry in found]})
        return
    heads = (
        "folder",
        "started",
        "ended",
        "rounds",
        "test accuracy",
        "mean latency [ms]",
        "policy",
        "scenario",
        "seed",
        "radio",
    )
    rows = [
        (
            str(entry.directory),
            _moment(entry.started_wall_s),
            entry.reason,
            str(entry.rounds),
            _number(entry.test_accuracy, "{:.4f}"),
            _number(entry.mean_round_latency_s, "{:.2f}", 1e3),
            entry.policy or "-",
            entry.scenario or "-",
            "-" if entry.seed is None else str(entry.seed),
            f"{entry.radio or '-'}{f' {entry.fidelity}' if entry.fidelity else ''}, {entry.clock or '-'} time, {entry.compute or '-'} compute",
        )
        for entry in found
    ]
    _say_table(heads, rows)
    for entry in found:
        if entry.reason == "damaged":
            typer.echo(f"{entry.run}: {entry.words}", err=True)


@runs_app.command("show")
def show(directory: Directory, json: AsJson = False) -> None:
    """Say what one run was and came to, and how well it was predicted."""
    from testbed.frames import load_run
    from testbed.report.skill import skill_table
    from testbed.report.words import verdict
    from testbed.runs import summary_of, versions_of

    loaded = load_run(directory)
    skills = skill_table(loaded)
    if json:
        _say_json(
            {
                **summary_of(loaded.run).as_json(),
                "verdict": verdict(loaded, skills),
                "versions": versions_of(loaded.run),
                "prediction": _without_nan(skills),
                "torn_lines": loaded.run.torn_lines,
            }
        )
        return
    typer.echo(verdict(loaded, skills))
    _say_skills(skills)
    _say_spread([loaded])


@runs_app.command("skill")
def skill(
    directories: Annotated[list[Path], typer.Argument(help="run directories")], json: AsJson = False
) -> None:
    """Say how well the rounds of several runs together were predicted."""
    from testbed.frames import load_run
    from testbed.report.skill import pooled_skill, repeat_spread

    loaded = [load_run(directory) for directory in directories]
    skills = pooled_skill(loaded)
    if json:
        spread = repeat_spread(loaded)
        _say_json(
            {
                "format": "skill/1",
                "runs": [str(directory) for directory in directories],
                "prediction": _without_nan(skills),
                "repeat_spread": None if spread != spread else spread,
            }
        )
        return
    _say_skills(skills)
    _say_spread(loaded)


def _say_skills(skills: Any) -> None:
    if not len(skills):
        return
    heads = (
        "predicted",
        "rounds",
        "mean [ms]",
        "median error [%]",
        "MAPE [%]",
        "bias [%]",
        "persistence [%]",
        "skill",
        "inside 90 % [%]",
    )
    _say_table(
        heads,
        [
            (
                row["what"],
                str(row["num_rounds"]),
                _number(row["mean_measured_s"], "{:.2f}", 1e3),
                _number(row["median_error_percent"], "{:.1f}"),
                _number(row["mape_percent"], "{:.1f}"),
                _number(row["bias_percent"], "{:+.1f}"),
                _number(row["persistence_mape_percent"], "{:.1f}"),
                _number(row["skill"], "{:+.2f}"),
                _number(row["coverage_percent"], "{:.0f}"),
            )
            for row in skills.to_dict("records")
        ],
    )


def _say_spread(loaded: Sequence[Any]) -> None:
    from testbed.report.skill import repeat_spread

    spread = repeat_spread(loaded)
    if spread == spread:
        typer.echo(f"equal compute work done again takes +-{100 * spread:.1f} % (one standard deviation)")


def _without_nan(frame: Any) -> list[dict[str, Any]]:
    """Rows for JSON, which knows no NaN."""
    return [
        {key: None if value != value else value for key, value in row.items()}
        for row in frame.to_dict("records")
    ]


@runs_app.command("diff")
def diff(
    first: Annotated[Path, typer.Argument(help="run directory")],
    second: Annotated[Path, typer.Argument(help="run directory")],
    json: AsJson = False,
) -> None:
    """Compare two runs: resolved configuration key by key, versions, and results."""
    from testbed.record import read_run
    from testbed.runs import diff_runs

    found = diff_runs(read_run(first), read_run(second))
    if json:
        _say_json(found.as_json())
        return
    sections = {
        "configuration": found.config,
        "start": found.start,
        "versions": found.versions,
        "results": found.results,
    }
    for title, entries in sections.items():
        typer.echo(title if entries else f"{title}: the same")
        _say_table((), [(f"  {entry.key}", str(entry.first), "->", str(entry.second)) for entry in entries])


def _say_json(document: dict[str, Any]) -> None:
    typer.echo(msgspec.json.encode(document).decode())


def _say_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [line for line in (heads, *rows) if line]
    if not lines:
        return
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _number(value: float | None, pattern: str, factor: float = 1.0) -> str:
    return "-" if value is None or value != value else pattern.format(factor * value)


def _moment(wall_s: float | None) -> str:
    return "-" if wall_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_s))
