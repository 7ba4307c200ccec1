"""pyproject.toml, environment.yml and constraints.txt name the same dependencies."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
# Where conda-forge's name is not the one on the Python index.
CONDA_NAMES = {"torch": "pytorch-cpu", "build": "python-build"}
# What a virtual environment gets from elsewhere: the interpreter, pip and Debian's packages.
ONLY_CONDA = {"python", "pip", "make", "gnuradio", "libiio"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> dict[str, Requirement]:
    """Every dependency and extra of pyproject.toml, by its normalised name."""
    table = project()
    texts = [*table["dependencies"], *(t for extra in table["optional-dependencies"].values() for t in extra)]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, texts):
        name = canonicalize_name(requirement.name)
        assert found.setdefault(name, requirement).specifier == requirement.specifier, name
    return found


def conda() -> dict[str, Requirement]:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    texts: list[str] = []
    for entry in entries:
        texts += entry["pip"] if isinstance(entry, dict) else [entry]
    names = [Requirement(text).name for text in texts]
    assert len(names) == len(set(names)), "named twice"
    return dict(zip(names, map(Requirement, texts), strict=True))


def test_conda_has_every_dependency_with_the_same_versions():
    environment = conda()
    for name, requirement in declared().items():
        conda_name = CONDA_NAMES.get(name, name)
        assert conda_name in environment, f"{name} is missing from environment.yml"
        assert environment[conda_name].specifier == requirement.specifier, name


def test_conda_has_nothing_that_the_project_does_not_name():
    known = {CONDA_NAMES.get(name, name) for name in declared()} | ONLY_CONDA
    assert set(conda()) == known


def pins() -> dict[str, Version]:
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


@pytest.mark.parametrize("name", sorted(declared()))
def test_the_pin_of_a_dependency_is_a_version_that_pyproject_allows(name):
    assert declared()[name].specifier.contains(pins()[name])


def test_a_pin_names_no_build_of_one_machine():
    assert all(version.local is None for version in pins().values())
