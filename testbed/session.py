"""From files and flags to a finished run directory: what ``testbed run`` does, as a function."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path

from testbed.config.loader import ResolvedConfig
from testbed.engine import Engine
from testbed.launch import InMemoryLab, ProcessLab, RunningLab
from testbed.record import RunWriter
from testbed.results import Interrupts, RoundSummary, RunResult, run_directory
from testbed.specs import air_setup


def new_run_id(name: str) -> str:
    """Name of a run: experiment, wall time, and two random bytes against collisions."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


async def run_experiment(
    config: ResolvedConfig,
    out: Path | None = None,
    *,
    in_memory: bool = False,
    progress: Callable[[RoundSummary], None] = lambda summary: None,
    status: Callable[[str], None] = lambda words: None,
    handle_signals: bool = False,
) -> tuple[Path, RunResult]:
    """Run an experiment and return its directory and result.

    Parameters
    ----------
    in_memory
        Nodes and air as tasks of this event loop instead of processes; loads torch here.
    handle_signals
        Interrupts finish the round, a second one stops now; termination counts as an interrupt.

    Raises
    ------
    LabError
        The air cannot be what the lab asks for; nothing was begun.
    StorageError
        The run directory cannot be made.  Every later failure ends up in the result and in
        ``stop.json``.
    """
    air = air_setup(config.experiment, config.lab)
    run = new_run_id(config.experiment.name)
    directory = run_directory(out, run)
    writer = RunWriter(directory)
    names = (*(board.name for board in config.lab.boards), config.lab.server.name)
    interrupts = Interrupts()
    interrupts.task = asyncio.current_task()
    interrupts.say = status
    loop = asyncio.get_running_loop()
    caught = (signal.SIGINT, signal.SIGTERM) if handle_signals else ()
    for number in caught:
        loop.add_signal_handler(number, interrupts)
    try:
        lab: RunningLab
        if in_memory:
            lab = InMemoryLab(air, names)
        else:
            lab = ProcessLab(
                air,
                config.lab.control.bind,
                names,
                lambda peer, reason: writer.operation("refused", peer=peer, reason=reason),
            )
        engine = Engine(config, lab, writer, run, interrupts, progress, status)
        return directory, await engine.run()
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
