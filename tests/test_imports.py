"""Import rules that the import linter can't express: allow-lists, and rooms that pull in nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("radio", "nodes", "calibration", "testbed")
NUMERIC = {"numpy", "numba", "scipy", "highspy"}


def imported(path: Path, tree: ast.AST | None = None) -> set[str]:
    """Dotted names of all that a file imports, at any depth; relative imports made absolute."""
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imported_at_once(path: Path) -> set[str]:
    """Like :func:`imported`, without what is imported for types only or when a function is called."""

    class AtOnce(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test) == "TYPE_CHECKING" else node

    return imported(path, AtOnce().visit(ast.parse(path.read_text())))


@pytest.mark.parametrize("room", ROOMS)
def test_importing_a_room_pulls_in_nothing(room):
    light = {"__future__.annotations", "typing.TYPE_CHECKING", "typing.Any"}
    assert imported_at_once(ROOT / room / "__init__.py") <= light


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_costs_no_module_of_ours_or_of_others(room):
    code = f"import sys; before = set(sys.modules); import {room}; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    loaded = ast.literal_eval(done.stdout)
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {room}


def prediction_files() -> list[Path]:
    testbed = ROOT / "testbed"
    return [
        *sorted((testbed / "latency").rglob("*.py")),
        *sorted((testbed / "allocator").rglob("*.py")),
        ROOT / "radio" / "units.py",
    ]


@pytest.mark.parametrize("path", prediction_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_predicts_shares_no_code_with_what_it_predicts(path):
    """Only array packages and units; and the units themselves know nothing else."""
    ours = {"radio.units"}
    if path.is_relative_to(ROOT / "testbed"):
        ours |= {"testbed.latency", "testbed.allocator"}
    foreign = {
        name
        for name in imported(path)
        if not within(name, ours | NUMERIC) and name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "nodes"])
def test_torch_has_no_back_door(room):
    """safetensors.torch imports torch, and the import linter sees only the outer package."""
    back_doors = {"torch", "safetensors.torch"}
    files = (ROOT / room).rglob("*.py")
    assert not [path for path in files if any(within(name, back_doors) for name in imported(path))]


def test_the_rule_would_notice(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    package = tmp_path / "testbed" / "allocator"
    package.mkdir(parents=True)
    (package / "greedy.py").write_text(
        "import numpy, safetensors.torch\ndef f():\n    from ..config import loader\nfrom . import power\n"
    )
    assert imported(package / "greedy.py") == {
        "numpy",
        "testbed.config.loader",
        "testbed.allocator.power",
        "safetensors.torch",
    }
