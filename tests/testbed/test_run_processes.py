"""Whole runs in processes of their own: equal to those in memory, and nothing left, however they end."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from testbed.errors import ExitCode
from testbed.record import Run, read_run
from testbed.results import RoundSummary, RunResult, StopReason
from testbed.session import run_experiment
from tests.testbed.experiments import (
    checkpoint_bytes,
    run_in_memory,
    run_in_processes,
    small,
    small_overrides,
)

START_LIMIT_S = 90.0  # interpreter, torch and kernels of every process, on a busy machine
LIMIT_S = 40.0
GONE_LIMIT_S = 5.0
JSON_KEYS = {"run", "rounds", "test_accuracy", "mean_round_latency_s", "wall_s"}


# ----------------------------------------------------------------------------- the command as such
class Command:
    """``testbed ...`` as a user's shell would run it, with its output collected."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "testbed", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, lines: list[str]) -> None:
        for line in stream:
            with self._news:
                lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def says(self, words: str, limit_s: float = START_LIMIT_S) -> None:
        """Return once a line on standard error has these words."""
        with self._news:
            found = self._news.wait_for(
                lambda: any(words in line for line in self.err) or self.process.poll() is not None, limit_s
            )
            assert found, f"waited {limit_s} s for {words!r}; so far: {self.err}"
            assert any(words in line for line in self.err), f"ended without {words!r}: {self.err}"

    def interrupt(self) -> None:
        """Ctrl-C: the terminal signals the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self, limit_s: float = LIMIT_S) -> int:
        code = self.process.wait(limit_s)
        for reader in self._readers:
            reader.join(limit_s)
        return code

    def tree(self) -> dict[str, list[psutil.Process]]:
        """The processes below it by what they are."""
        found: dict[str, list[psutil.Process]] = {"air": [], "forkserver": [], "other": []}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            line = " ".join(process.cmdline())
            kind = next((kind for kind in ("radio.air.process", "forkserver") if kind in line), "other")
            found["air" if kind == "radio.air.process" else kind].append(process)
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ends()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def command(*arguments: str | Path) -> Iterator[Command]:
    started = Command(*arguments)
    try:
        yield started
    finally:
        started.close()


def run_arguments(out: Path, *overrides: str, rounds: int = 2, num_boards: int = 2) -> list[str]:
    chosen = [*small_overrides(num_boards), *overrides]
    options = [part for override in chosen for part in ("--set", override)]
    return [
        *("run", "--json", "--compute", "modelled", "--seed", "1"),
        *("--rounds", str(rounds), "--out", str(out), *options),
    ]


def loads_torch(process: psutil.Process) -> bool:
    return "torch" in Path(f"/proc/{process.pid}/maps").read_text()


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(processes: list[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Those that are still there after a limit."""
    deadline, tick = time.monotonic() + limit_s, threading.Event()
    while (left := [one for one in processes if not is_gone(one)]) and time.monotonic() < deadline:
        tick.wait(0.02)
    return left


def listening_ports(processes: list[psutil.Process]) -> set[int]:
    return {
        connection.laddr.port
        for process in processes
        for connection in process.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def named_shared_memory(processes: list[psutil.Process]) -> set[str]:
    return {
        line.split(maxsplit=5)[5]
        for process in processes
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()
        if "/dev/shm/" in line and "(deleted)" not in line
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------------------------------------- equal results
def assert_equal_runs(one: Run, other: Run) -> None:
    assert (one.directory / "events.jsonl").read_bytes() == (other.directory / "events.jsonl").read_bytes()
    assert checkpoint_bytes(one.directory) == checkpoint_bytes(other.directory)


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Run]:
    return run_in_memory(small(rounds=3), tmp_path_factory.mktemp("memory") / "run")


def test_processes_and_memory_give_the_same_bytes(tmp_path: Path, in_memory: tuple[RunResult, Run]) -> None:
    result, run = run_in_processes(small(rounds=3), tmp_path / "run")
    assert (result.exit_code, result.rounds) == (0, 3), result.words
    assert_equal_runs(run, in_memory[1])
    assert (run.start["transport"], in_memory[1].start["transport"]) == ("processes", "memory")
    assert len({entry["pid"] for entry in run.operations if entry["kind"] == "joined"}) == 3
    assert {"air", "board-1", "board-2", "controller", "server"} <= set(result.cpu_s)
    assert result.peak_memory_bytes > 1e8


def test_a_machine_that_is_busy_otherwise_changes_no_byte(
    tmp_path: Path, in_memory: tuple[RunResult, Run]
) -> None:
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)
    ]
    try:
        result, run = run_in_processes(small(rounds=3), tmp_path / "run")
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert (result.exit_code, result.rounds) == (0, 3), result.words
    assert_equal_runs(run, in_memory[1])


def test_samples_over_the_network_plane_are_the_same_samples(
    tmp_path: Path, in_memory: tuple[RunResult, Run]
) -> None:
    result, run = run_in_processes(small("lab.radio.plane=network", rounds=3), tmp_path / "run")
    assert (result.exit_code, result.rounds) == (0, 3), result.words
    assert_equal_runs(run, in_memory[1])


# ------------------------------------------------------------------------------------ boards that go
def run_with_a_fault(directory: Path, number: signal.Signals) -> tuple[RunResult, Run, list[float]]:
    """Signal board-2 after round 1, wherever it is then; when each round ended, in wall time."""
    ends: list[float] = []

    def progress(summary: RoundSummary) -> None:
        ends.append(time.monotonic())
        if summary.round_index == 1:
            (pid,) = (
                entry["pid"]
                for entry in read_run(directory).operations
                if entry["kind"] == "joined" and entry["node"] == "board-2"
            )
            os.kill(pid, number)

    config = small("lab.control.heartbeat_s=0.2", "lab.control.timeout_s=1.5", num_boards=3, rounds=6)
    _, result = asyncio.run(run_experiment(config, directory, progress=progress))
    return result, read_run(directory), ends


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGKILL, "its process ended with exit code -9"), (signal.SIGSTOP, "silent for ")],
    ids=["killed", "stopped"],
)
def test_the_run_goes_on_without_a_board_that_is_gone(
    tmp_path: Path, number: signal.Signals, reason: str
) -> None:
    result, run, ends = run_with_a_fault(tmp_path / "run", number)
    assert (result.reason, result.exit_code, result.rounds) == (StopReason.FINISHED, 0, 6), result.words
    (lost,) = run.of_kind("lost")
    assert lost["node"] == "board-2"
    assert lost["reason"].startswith(reason)
    assert [entry["node"] for entry in run.operations if entry["kind"] == "lost"] == ["board-2"]
    rounds = run.of_kind("round")
    assert [event["clients"] for event in rounds[-2:]] == [["board-1", "board-3"]] * 2
    # The round it was lost in names it and trains with the others.
    words = [text for event in rounds for text in event["words"] if "board-2" in text]
    assert any("board-2 is lost" in text for text in words)
    assert {event["client"] for event in run.of_kind("loss") if event["round"] == 5} == {"board-1", "board-3"}
    assert set(checkpoint_bytes(run.directory)) == {
        f"{name}.safetensors" for name in ("board-1", "board-3", "server")
    }
    assert max(b - a for a, b in itertools.pairwise(ends)) < 1.5 + 10.0  # timeout, busy machine


# ------------------------------------------------------------------------------------ the command line
def test_neither_the_command_line_nor_the_air_imports_torch() -> None:
    script = (
        "import sys, testbed.cli, testbed.session, testbed.progress, testbed.picture, radio.air.process\n"
        "from testbed.config.loader import load\n"
        "load()\n"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in ('torch', 'sklearn')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=START_LIMIT_S
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_one_interrupt_finishes_the_round_and_closes_the_run(tmp_path: Path) -> None:
    with command(*run_arguments(tmp_path / "run", rounds=5000)) as running:
        running.says("round    1")
        tree = running.tree()
        assert len(tree["air"]) == 1
        assert not loads_torch(tree["air"][0])
        assert not loads_torch(psutil.Process(running.process.pid))
        assert any(map(loads_torch, tree["forkserver"]))  # the check can fail
        everyone = [process for kind in tree.values() for process in kind]
        running.interrupt()
        assert running.ends() == ExitCode.INTERRUPTED
    assert wait_until_gone(everyone, GONE_LIMIT_S) == []
    run = read_run(tmp_path / "run")
    assert run.stop is not None
    assert (run.stop["reason"], run.stop["exit_code"]) == ("interrupted", 1)
    assert "interrupted; the round was finished" in run.stop["words"]
    num_rounds = len(run.of_kind("round"))
    assert 2 <= num_rounds == run.stop["rounds"] < 5000
    assert checkpoint_bytes(run.directory)
    # Standard output is the one object and nothing else; all the rest went to standard error.
    (line,) = running.out
    summary = json.loads(line)
    assert summary.keys() >= JSON_KEYS
    assert summary["run"] == str((tmp_path / "run").resolve())
    assert summary["rounds"] == num_rounds
    assert summary["reason"] == "interrupted"
    assert 0 <= summary["test_accuracy"] <= 1
    assert sum(text.startswith("round ") for text in running.err) == num_rounds


def test_a_second_interrupt_stops_now(tmp_path: Path) -> None:
    """In the middle of a round that would take seconds."""
    slow = ("learning.batch_size=128", "lab.boards.*.channel.path_loss_db=124")
    with command(*run_arguments(tmp_path / "run", *slow, rounds=5000)) as running:
        running.says("training")
        everyone = psutil.Process(running.process.pid).children(recursive=True)
        running.interrupt()
        running.says("once more stops now")
        running.interrupt()
        assert running.ends() == ExitCode.INTERRUPTED
    assert wait_until_gone(everyone, GONE_LIMIT_S) == []
    run = read_run(tmp_path / "run")
    assert run.stop is not None
    assert (run.stop["reason"], run.stop["exit_code"]) == ("interrupted", 1)
    assert run.stop["words"] == "stopped at once by a second interrupt"
    assert json.loads(running.out[-1])["reason"] == "interrupted"
    assert not any("Traceback" in text for text in running.err), running.err


def test_nothing_outlives_a_controller_that_is_killed(tmp_path: Path) -> None:
    with command(*run_arguments(tmp_path / "run", rounds=5000)) as running:
        running.says("round    1")
        own = psutil.Process(running.process.pid)
        everyone = own.children(recursive=True)
        assert len(everyone) >= 5  # forkserver and its tracker, air, server, two boards
        ports = listening_ports([own, *everyone])
        assert len(ports) >= 2  # hub and air
        assert named_shared_memory([own, *everyone]) == set()
        own.kill()
        assert running.ends() == -signal.SIGKILL
        assert wait_until_gone(everyone, GONE_LIMIT_S) == []
    still = {
        connection.laddr.port
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert ports.isdisjoint(still)
    run = read_run(tmp_path / "run")
    assert run.stop is None
    assert run.torn_lines <= 1
    assert len(run.of_kind("round")) >= 1
    assert run.start["transport"] == "processes"


def test_a_board_joins_by_its_own_command(tmp_path: Path, in_memory: tuple[RunResult, Run]) -> None:
    """Whoever starts a node, and however late, the run is the same."""
    address = f"tcp://127.0.0.1:{free_port()}"
    arguments = run_arguments(
        tmp_path / "run", f"lab.control.bind={address}", "lab.boards.0.launch=external", rounds=3
    )
    with (
        command("node", "--name", "board-1", "--controller", address) as node,
        command(*arguments) as running,
    ):
        assert running.ends(START_LIMIT_S) == 0, running.err
        assert node.ends(GONE_LIMIT_S) == 0, node.err
    run = read_run(tmp_path / "run")
    assert_equal_runs(run, in_memory[1])
    pids = {entry["node"]: entry["pid"] for entry in run.operations if entry["kind"] == "joined"}
    assert pids["board-1"] == node.process.pid
    assert json.loads(running.out[-1])["rounds"] == 3
    assert node.out == []


def test_a_node_without_a_controller_says_so_and_ends() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with command("node", "--name", "board-1", "--controller", address, "--join-timeout", "0.1") as node:
        assert node.ends(START_LIMIT_S) == ExitCode.NODE
    assert any("board-1 waited" in text and "welcome" in text for text in node.err), node.err


def test_an_address_in_use_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        result, run = run_in_processes(small(f"lab.control.bind={address}"), tmp_path / "run")
    assert result.exit_code == ExitCode.TRANSPORT
    assert f"cannot listen on {address}" in result.words
    assert run.stop is not None
    assert run.stop["words"] == result.words


def test_a_wrong_configuration_lists_every_reason_and_starts_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    wrong = ("learning.phi=2", "learning.epochs=3", "lab.boards.0.max_power_dbm=1500")
    with command(*run_arguments(out, *wrong)) as refused:
        assert refused.ends(START_LIMIT_S) == ExitCode.CONFIG
    assert not out.exists()
    assert refused.out == []
    text = "\n".join(refused.err)
    for word in ("3 problems", "learning.phi", "learning.epochs", "max_power_dbm"):
        assert word in text


def test_a_directory_with_a_run_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with command(*run_arguments(tmp_path)) as refused:
        assert refused.ends(START_LIMIT_S) == ExitCode.STORAGE
    assert any("already holds a run" in text for text in refused.err)
