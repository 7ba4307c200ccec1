"""The tutorial is followed as it stands: each command and each Python block, in order, in one folder.

What it quotes must be printed, numbers aside; and what its text claims of runs, files, tables and
the report must hold for the runs that were just made.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import testbed
from testbed.cli import main
from testbed.frames import ROUND_PHASES, LoadedRun
from testbed.record import read_run

TUTORIAL = Path(testbed.__file__).parent / "docs" / "tutorial.md"
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
DRAWN = re.compile(r"[\u2500-\u257f]")
ELLIPSIS = "..."  # a quoted line that stands for any number of printed ones

# Several runs, one after the other: on a busy machine longer than a test may take otherwise.
pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``file`` is what a block of YAML is saved as."""

    language: str
    file: str
    text: str
    line: int

    @property
    def where(self) -> str:
        return f"{TUTORIAL.name}:{self.line}"


@dataclass
class Followed:
    """What came of following the tutorial.

    Attributes
    ----------
    printed
        By command, what it said on both streams.
    faults
        Blocks that failed, or did not print what is quoted.
    """

    folder: Path
    printed: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)

    def load(self, run: str) -> LoadedRun:
        return testbed.load_run(self.folder / run)


def blocks() -> list[Block]:
    text = TUTORIAL.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, _, file = match["info"].partition(" ")
        found.append(Block(language, file.strip(), match["text"], text.count("\n", 0, match.start()) + 1))
    return found


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block, with the lines quoted below it."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, *quoted = part.splitlines()
        yield command, quoted


# ------------------------------------------------------------------------------------- following it
def run_command(command: str) -> tuple[int, str]:
    """Exit code and output; ``testbed`` runs in this process, which has its libraries already."""
    words = shlex.split(command)
    if words[0] != "testbed":
        shell = subprocess.run(
            command, shell=True, text=True, timeout=60, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return shell.returncode, shell.stdout
    said = io.StringIO()
    with redirected(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        try:
            main()
        except SystemExit as exc:
            return int(exc.code or 0), said.getvalue()
    return 0, said.getvalue()


def run_python(block: Block, names: dict[str, Any]) -> tuple[int, str]:
    said = io.StringIO()
    with redirected(said):
        try:
            exec(compile(block.text, block.where, "exec"), names)
        except Exception:  # noqa: BLE001 - whatever it is, it is told with the block
            traceback.print_exc()
            return 1, said.getvalue()
    return 0, said.getvalue()


@contextlib.contextmanager
def redirected(stream: io.StringIO) -> Iterator[None]:
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield


def plain(line: str) -> str:
    """A line without numbers, and without what the layout of a table makes of them."""
    line = NUMBER.sub("#", DRAWN.sub(" ", line))
    return " ".join(re.sub(r"#(, ?#)+", "#", line).split())


def missing(quoted: list[str], printed: str) -> str | None:
    """The first quoted line that was not printed where it should be."""
    lines = [plain(line) for line in printed.splitlines()]
    lines = [line for line in lines if line]
    position, anywhere = 0, True
    for line in quoted:
        wanted = plain(line)
        if line.strip() == ELLIPSIS:
            anywhere = True
        elif wanted:
            rest = lines[position:] if anywhere else lines[position : position + 1]
            if wanted not in rest:
                return line
            position += rest.index(wanted) + 1
            anywhere = False
    return None


def follow(folder: Path) -> Followed:
    followed = Followed(folder)
    said = ""

    def judge(block: Block, what: str, code: int, quoted: list[str]) -> None:
        if code:
            followed.faults.append(f"{block.where}: {what} ended with {code}:\n{said}")
        elif (line := missing(quoted, said)) is not None:
            followed.faults.append(f"{block.where}: {what} did not print {line!r} in its place:\n{said}")

    for block in blocks():
        if block.language == "yaml":
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            code, said = run_python(block, followed.names)
            judge(block, "the block", code, [])
        elif block.language == "text":
            judge(block, "the block above", 0, block.text.splitlines())
        else:
            for command, quoted in commands(block):
                code, said = run_command(command)
                followed.printed[command] = said
                judge(block, command, code, quoted)
    return followed


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Iterator[Followed]:
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("TESTBED_") or name == "FORCE_COLOR"]:
            patch.delenv(name)
        patch.chdir(folder)
        yield follow(folder)


# ------------------------------------------------------------------------------------------- facts
def test_only_what_can_be_followed_stands_in_blocks():
    found = blocks()
    for index, block in enumerate(found):
        assert block.language in ("console", "python", "yaml", "text"), block.where
        if block.language == "console":
            assert block.text.startswith("$ "), block.where
        if block.language == "yaml":
            assert re.fullmatch(r"[\w-]+\.yaml", block.file), f"{block.where} needs a file name"
        if block.language == "text":  # the output of the Python above it
            assert found[index - 1].language == "python", block.where
    assert not re.search(r"^ {4}\S", FENCE.sub("", TUTORIAL.read_text(encoding="utf-8")), re.MULTILINE)


def test_every_block_runs_and_prints_what_is_quoted(followed):
    assert not followed.faults, "\n\n".join(followed.faults)


def test_every_run_of_it_finished(followed):
    places = {path.parent for path in followed.folder.glob("*/*/run.json")}
    reasons = {str(place.relative_to(followed.folder)): read_run(place).stop["reason"] for place in places}
    assert set(reasons.values()) == {"finished"}, reasons


def test_the_readme_tells_every_kind_of_event_of_these_runs(followed):
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| events of kind | tell |")[2].partition("\n\n")[0]
    told = {
        kind for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for kind in cell.split("`")[1::2]
    }
    places = [path.parent for path in followed.folder.glob("*/*/run.json")]
    found = {event["kind"] for place in places for event in read_run(place).events}
    assert {"plan", "prediction", "round", "left"} <= found
    assert found <= told


def test_the_tiles_are_those_of_the_table_and_add_up(followed):
    text = TUTORIAL.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \|", text.partition("| tile |")[2].partition("\n\n")[0], re.MULTILINE)
    assert rows == list(ROUND_PHASES)
    first = followed.load("runs/first")
    tiles = first.phases[first.phases["phase"].isin(rows)]
    sums = tiles.groupby("round")["measured_s"].sum()
    latency = first.rounds.set_index("round")["latency_s"]
    assert len(sums) == len(latency) > 0
    assert (sums - latency).abs().max() < 1e-9


def test_the_report_is_told_section_by_section(followed):
    page = (followed.folder / "runs/first/report.html").read_text(encoding="utf-8")
    heads = re.findall(r"<section[^>]*><h2>([^<]*)</h2>", page)
    told = re.findall(r"^\d+\. \*\*([^*]*)\*\*", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE)
    assert told == heads


def test_the_tables_have_the_columns_that_are_named(followed):
    first = followed.load("runs/first")
    text = TUTORIAL.read_text(encoding="utf-8").partition("| table | one row per |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    assert len(rows) > 8
    for table, columns in rows:
        frame = getattr(first, table)
        assert set(re.findall(r"`(\w+)`", columns)) <= set(frame.columns), table
        assert set(frame.attrs["units"]) == set(frame.columns), table


def test_the_trace_has_every_span(followed):
    trace = json.loads((followed.folder / "runs/first/trace.json").read_text(encoding="utf-8"))
    spans = followed.load("runs/first").spans
    assert sum(event["ph"] == "X" for event in trace["traceEvents"]) == len(spans) > 0


def test_the_walk_is_deepest_where_the_text_says(followed):
    truth = followed.load("runs/first").truth
    deepest = truth.loc[truth["attenuation_db"].idxmax()]
    told = re.search(r"deepest\s+in\s+round\s+(\d+)", TUTORIAL.read_text(encoding="utf-8"))
    assert told is not None
    assert deepest["board"] == "board-1"
    assert deepest["round"] == int(told[1])


def test_the_loop_is_faster_than_dealing_out_in_turn(followed):
    mean_s = {
        policy: [followed.load(f"versus/{policy}-{seed}").rounds["total_s"].mean() for seed in (1, 2)]
        for policy in ("closed-loop", "round-robin")
    }
    assert max(mean_s["closed-loop"]) < min(mean_s["round-robin"])


def test_the_formula_predicts_the_same_rounds_and_leaves_out_what_the_text_says(followed):
    twin, paper = followed.load("versus/closed-loop-1"), followed.load("runs/paper")
    assert list(paper.rounds["total_s"]) == list(twin.rounds["total_s"])
    assert list(paper.plans["client"]) == list(twin.plans["client"])
    left_out = paper.phases[paper.phases["phase"].isin(["control", "sounding"])]
    assert (left_out["predicted_s"] == 0).all()
    assert (left_out["measured_s"] > 0).all()
    assert (paper.rounds["predicted_s"] == paper.rounds["formula_latency_s"]).all()


def test_the_loop_follows_the_channel_and_dealing_out_in_turn_does_not(followed):
    above_db = {
        policy: followed.names["selectivity_db"](followed.load(f"versus/{policy}-1")).mean()
        for policy in ("closed-loop", "round-robin")
    }
    assert above_db["closed-loop"] > above_db["round-robin"] + 0.5
