"""The wheel carries everything, and works from a directory that is not the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("radio", "nodes", "calibration", "testbed")


def run(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation: the build back end is a development dependency, so nothing is fetched.
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel)])
    return target


def elsewhere(installed: Path, folder: Path) -> dict:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TESTBED_")}
    return {"cwd": folder, "env": {**environment, "PYTHONPATH": str(installed)}}


def test_the_wheel_has_every_file_of_the_rooms(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - packed == set()
    assert "testbed/presets/laptop/lab.yaml" in packed
    assert "testbed/scenarios/busy-day.yaml" in packed
    assert "radio/data/nr_ldpc_base_graphs.csv" in packed


def test_the_wheel_has_nothing_else(wheel):
    packed = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in packed}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(ROOMS)


def test_presets_and_tables_are_found_from_another_directory(installed, tmp_path):
    code = """
import json
from importlib import resources
import testbed
from testbed.config.loader import load, preset_names, scenario_names
table = (resources.files("radio") / "data" / "nr_ldpc_base_graphs.csv").read_text()
labs = [load(preset=name).lab.name for name in preset_names()]
scenarios = [load(flags={"scenario": name}).lab.scenario.name for name in scenario_names()]
found = {"labs": labs, "scenarios": scenarios, "file": testbed.__file__, "rows": len(table.splitlines())}
print(json.dumps(found))
"""
    found = json.loads(run([sys.executable, "-c", code], **elsewhere(installed, tmp_path)))
    assert found["labs"] == ["edge", "laptop", "pluto-lab"]
    assert found["scenarios"] == ["busy-day", "static", "throttle", "walk"]
    assert Path(found["file"]).is_relative_to(installed)
    assert found["rows"] > 316 + 197


def test_the_installed_command_answers_from_another_directory(installed, tmp_path):
    command = str(installed / "bin" / "testbed")
    assert "run" in run([sys.executable, command, "--help"], **elsewhere(installed, tmp_path))
