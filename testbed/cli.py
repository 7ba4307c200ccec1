"""The ``testbed`` command.

Standard output carries results only; progress and errors go to standard error.  Exit codes are
those of :class:`testbed.errors.ExitCode`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from testbed import report_commands
from testbed.errors import ConfigError, ExitCode, TestbedError, exit_code

app = typer.Typer(
    name="testbed",
    help="Hardware-in-the-loop testbed for efficient parallel split learning over SDR wireless links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _root() -> None:
    """Hardware-in-the-loop testbed for efficient parallel split learning over SDR wireless links."""


@app.command()
def run(
    experiment: Annotated[
        Path | None, typer.Argument(help="experiment.yaml; the preset's when left out")
    ] = None,
    lab: Annotated[Path | None, typer.Option(help="lab.yaml; the preset's when left out")] = None,
    preset: Annotated[
        str, typer.Option(help="shipped experiment and lab: laptop, edge, pluto-lab")
    ] = "laptop",
    rounds: Annotated[int | None, typer.Option(help="number of rounds")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of everything random")] = None,
    allocator: Annotated[
        str | None, typer.Option(help="policy: closed-loop, solve-once, balanced, round-robin, rss, bcd")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="what changes meanwhile: static, walk, throttle, busy-day, or a file")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="what predicts each round: twin, or paper (its formula)")
    ] = None,
    compute: Annotated[str | None, typer.Option(help="measured or modelled compute time")] = None,
    fidelity: Annotated[
        str | None, typer.Option(help="emulated radio: iq (samples), or blocks (drawn errors, for long runs)")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="any key, for example learning.phi=1 or lab.radio.muted=[board-1]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run directory; runs/NAME when left out")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object as the last line of output")] = False,
    in_memory: Annotated[
        bool, typer.Option("--in-memory", help="all nodes in this process, for debugging")
    ] = False,
) -> None:
    """Run an experiment: boards, server and air train a split model over the radio."""
    from radio.event_loop import run as run_loop
    from testbed.config.loader import load
    from testbed.progress import RunProgress
    from testbed.session import run_experiment

    config = load(
        experiment,
        lab,
        preset,
        overrides=set_ or [],
        environ=os.environ,
        flags={
            "rounds": rounds,
            "seed": seed,
            "allocator": allocator,
            "scenario": scenario,
            "model": model,
            "compute": compute,
            "fidelity": fidelity,
        },
    )
    with RunProgress(config.experiment.rounds) as progress:
        directory, result = run_loop(
            run_experiment(
                config,
                out,
                in_memory=in_memory,
                progress=progress.round,
                status=progress.status,
                handle_signals=True,
            )
        )
        progress.status("writing the report")
        progress.finish(directory, result, _report(directory, progress.status))
    if json:
        summary: dict[str, Any] = {
            "run": str(directory.resolve()),
            "reason": result.reason.value,
            "words": result.words,
            "rounds": result.rounds,
            "test_accuracy": result.test_accuracy,
            "test_accuracy_worst_client": result.test_accuracy_worst_client,
            "mean_round_latency_s": result.mean_round_latency_s,
            "experiment_s": result.experiment_s,
            "wall_s": result.wall_s,
            "peak_memory_bytes": result.peak_memory_bytes,
            "cpu_share_outside_signal_and_training": result.cpu_share_outside_signal_and_training,
            "clock": config.lab.clock.kind,
            "compute": config.experiment.compute.value,
            "radio": config.lab.radio.driver,
            "fidelity": config.lab.radio.fidelity.value,
        }
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
        sys.stdout.flush()
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@app.command()
def plan(
    experiment: Annotated[
        Path | None, typer.Argument(help="experiment.yaml; the preset's when left out")
    ] = None,
    lab: Annotated[Path | None, typer.Option(help="lab.yaml; the preset's when left out")] = None,
    preset: Annotated[
        str, typer.Option(help="shipped experiment and lab: laptop, edge, pluto-lab")
    ] = "laptop",
    rounds: Annotated[int | None, typer.Option(help="number of rounds")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of everything random")] = None,
    allocator: Annotated[
        str | None, typer.Option(help="policy: closed-loop, solve-once, balanced, round-robin, rss, bcd")
    ] = None,
    compute: Annotated[str | None, typer.Option(help="measured or modelled compute time")] = None,
    scenario: Annotated[
        str | None, typer.Option(help="scenario; only who is there at the start counts")
    ] = None,
    model: Annotated[str | None, typer.Option(help="twin, or paper (its formula)")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any key")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="run directory: its measurements in place of a link budget")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Show plan, predicted phases, bytes, airtime and disk need of an experiment, and run nothing."""
    from testbed.config.loader import load
    from testbed.dry_run import dry_run
    from testbed.plan_command import render

    flags = {
        "rounds": rounds,
        "seed": seed,
        "allocator": allocator,
        "scenario": scenario,
        "model": model,
        "compute": compute,
    }
    config = load(experiment, lab, preset, overrides=set_ or [], environ=os.environ, flags=flags)
    dry = dry_run(config, source)
    typer.echo(msgspec.json.encode(dry.to_builtins()).decode() if json else render(dry))


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="folder for the runs; those in it already are not repeated")],
    experiment: Annotated[
        Path | None, typer.Argument(help="experiment.yaml; the preset's when left out")
    ] = None,
    lab: Annotated[Path | None, typer.Option(help="lab.yaml; the preset's when left out")] = None,
    preset: Annotated[str, typer.Option(help="shipped experiment and lab")] = "edge",
    scenario: Annotated[str, typer.Option(help="scenario of all runs")] = "busy-day",
    policies: Annotated[
        str, typer.Option(help="comma between; the first is compared with each other one")
    ] = "closed-loop,solve-once,balanced,round-robin",
    seeds: Annotated[int, typer.Option(min=2, help="number of seeds, from 1 on")] = 10,
    rounds: Annotated[int | None, typer.Option(help="rounds of each run")] = None,
    compute: Annotated[str | None, typer.Option(help="measured or modelled compute time")] = None,
    fidelity: Annotated[
        str | None, typer.Option(help="emulated radio: iq (samples), or blocks (drawn errors, for long runs)")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any key")] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Run several policies over several seeds and compare their round latencies in pairs."""
    from radio.event_loop import run as run_loop
    from testbed.compare import compare as compare_policies
    from testbed.compare_command import line, render
    from testbed.config.loader import ResolvedConfig, load
    from testbed.session import run_experiment

    names = [name.strip() for name in policies.split(",")]
    if len(set(names)) < 2:
        raise typer.BadParameter(f"{policies}: it takes two policies to compare", param_hint="--policies")

    def configured(policy: str, seed: int) -> ResolvedConfig:
        flags = {
            "rounds": rounds,
            "seed": seed,
            "allocator": policy,
            "scenario": scenario,
            "compute": compute,
            "fidelity": fidelity,
        }
        return load(experiment, lab, preset, overrides=set_ or [], environ=os.environ, flags=flags)

    found = compare_policies(
        configured,
        names,
        range(1, seeds + 1),
        out,
        lambda config, place: run_loop(run_experiment(config, place, handle_signals=True)),
        lambda numbers: typer.echo(line(numbers), err=True),
    )
    typer.echo(found.to_json() if json else render(found))


def _report(directory: Path, status: Callable[[str], None]) -> dict[str, Path]:
    """Write the report of a run that ended; what goes wrong there does not undo the run."""
    from testbed.report import write_report

    try:
        return write_report(directory)
    except Exception as exc:  # noqa: BLE001 - the record is on disk, and the report is made from it
        status(f"the report could not be written ({exc!r}); try: testbed report {directory}")
        return {}


@app.command()
def node(
    name: Annotated[str, typer.Option(help="this node's name in lab.yaml")],
    controller: Annotated[str, typer.Option(help="the run's address, for example tcp://127.0.0.1:5555")],
    join_timeout: Annotated[float, typer.Option(help="seconds to look for the controller")] = 60.0,
) -> None:
    """Join a run as a board or as the server, serve it, and end with it."""
    from nodes.process import NodeOptions, run_node

    run_node(NodeOptions(name, controller, join_timeout_s=join_timeout))


@app.command()
def warmup() -> None:
    """Compile every kernel of modem, air and allocator now, so that no run has to."""
    from radio.jit import cache_directory
    from radio.warmup import warm_up
    from testbed.allocator.api import warm_up as warm_up_allocator

    warm_up(lambda module: typer.echo(f"warm: {module}", err=True))
    warm_up_allocator()
    typer.echo("warm: testbed.allocator", err=True)
    typer.echo(str(cache_directory()))


@app.command()
def picture(
    directory: Annotated[Path, typer.Argument(help="run directory")],
    out: Annotated[
        Path | None, typer.Option(help="SVG or PNG file; run.svg in the run directory when left out")
    ] = None,
) -> None:
    """Draw a run again from its directory alone."""
    from testbed.picture import draw_run
    from testbed.record import read_run

    typer.echo(str(draw_run(read_run(directory), out or directory / "run.svg")))


report_commands.add_to(app)


def main() -> None:
    """Entry of the command: errors in words on standard error, exit codes as documented."""
    try:
        # Outside of its standalone mode, the parser returns the code of an Exit in place of raising it.
        code = app(standalone_mode=False)
    except typer.Exit as exc:
        sys.exit(exc.exit_code)
    except typer.Abort:
        sys.exit(int(ExitCode.INTERRUPTED))
    except ConfigError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(int(exit_code(exc)))
    except TestbedError as exc:
        sys.stderr.write(f"testbed: {exc}\n")
        sys.exit(int(exit_code(exc)))
    except Exception as exc:  # noqa: BLE001 - the last place where anything can be put into words
        _other(exc)
    else:
        sys.exit(code or 0)


def _other(exc: Exception) -> None:
    """Usage errors of the parser, failures of lower rooms, and bugs with their traceback."""
    # By shape and not by type: typer may carry a parser library of its own.
    show = getattr(exc, "show", None)
    if show is not None and hasattr(exc, "format_message"):
        show()
        sys.exit(0 if type(exc).__name__ == "NoArgsIsHelpError" else int(ExitCode.USAGE))
    code = exit_code(exc)
    if code is ExitCode.BUG:
        import traceback

        traceback.print_exc()
    sys.stderr.write(f"testbed: {exc}\n{code.help}\n")
    sys.exit(int(code))


if __name__ == "__main__":
    main()
