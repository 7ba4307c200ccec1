"""The README names what there is: policies, scenarios, presets, commands, extras, exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from testbed.cli import app
from testbed.config.loader import preset_names, scenario_names
from testbed.errors import ExitCode
from testbed.policies import POLICIES

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def column(head: str) -> list[str]:
    """The code in the first column of the table that begins so."""
    table = README.read_text(encoding="utf-8").partition(f"| {head} |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    return [word for cell in cells for word in re.findall(r"`([^`]*)`", cell)]


def test_policies_scenarios_and_presets_are_those_that_are_shipped():
    assert column("policy (`--allocator`)") == list(POLICIES)
    assert sorted(column("scenario (`--scenario`)")) == scenario_names()
    assert sorted(column("preset (`--preset`)")) == preset_names()


def test_every_command_is_named_and_every_named_command_exists():
    named = {words.split()[1] for words in column("command") if words.startswith("testbed")}
    assert named == set(typer.main.get_command(app).commands)


def test_exit_codes_lie_in_the_ranges_that_are_told():
    table = README.read_text(encoding="utf-8").partition("| exit code | meaning |")[2].partition("\n\n")[0]
    told: set[int] = set()
    for cell in re.findall(r"^\| ([\d, -]+) \|", table, re.MULTILINE):
        for part in cell.split(", "):
            first, _, last = part.partition("-")
            told |= set(range(int(first), int(last or first) + 1))
    assert {int(code) for code in ExitCode} <= told


def test_extras_are_those_of_the_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert set(column("extra")) == set(re.findall(r"^(\w+) = ", table, re.MULTILINE)) - {"dev"}


def test_links_lead_somewhere():
    for page in (README, ROOT / "testbed" / "docs" / "tutorial.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"
