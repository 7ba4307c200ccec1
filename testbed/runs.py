"""The runs of a folder: which there are, what one came to, and where two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from testbed.errors import StorageError
from testbed.record import Run, read_run

MISSING = "(not set)"
# Keys of run.json that differ between any two runs and say nothing about them.
OF_THE_MOMENT = {"run", "pid", "started_wall_s", "config_hash", "format", "events_format"}
# Results of stop.json worth a comparison; what the machine was busy with is not one.
NOT_RESULTS = {"format", "cpu_s"}


@dataclass(frozen=True)
class RunSummary:
    """One line about one run.

    Attributes
    ----------
    reason
        ``finished``, ``interrupted``, ``failed``; ``unfinished`` without last words; ``damaged`` for
        a directory that cannot be read, with ``words`` saying why.
    mean_round_latency_s
        [s] of experiment time, moves of the cut and joining boards included; ``None`` before the
        first round.
    """

    run: str
    directory: Path
    reason: str
    words: str
    started_wall_s: float | None = None
    radio: str | None = None
    fidelity: str | None = None  # of an emulated radio; older records name none: they are iq
    clock: str | None = None
    compute: str | None = None
    policy: str | None = None
    scenario: str | None = None
    seed: int | None = None
    rounds: int = 0
    test_accuracy: float | None = None
    mean_round_latency_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "directory": str(self.directory)}


@dataclass(frozen=True)
class Difference:
    """One key that two runs do not agree on; values as the files have them."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class RunDifferences:
    """Where two runs differ, by what it is about; empty lists mean that they agree."""

    config: list[Difference] = field(default_factory=list)
    start: list[Difference] = field(default_factory=list)
    versions: list[Difference] = field(default_factory=list)
    results: list[Difference] = field(default_factory=list)

    def as_json(self) -> dict[str, dict[str, list[Any]]]:
        """By section and key, the two values; ``null`` where a run lacks the key."""
        return {
            section: {
                entry.key: [None if value is MISSING else value for value in (entry.first, entry.second)]
                for entry in entries
            }
            for section, entries in vars(self).items()
        }


def list_runs(directory: Path) -> list[RunSummary]:
    """The runs right below a folder, oldest first; damaged ones are listed as such.

    Raises
    ------
    StorageError
        The folder cannot be read.
    """
    try:
        places = sorted(entry for entry in directory.iterdir() if (entry / "run.json").is_file())
    except OSError as exc:
        raise StorageError(f"the runs of {directory} cannot be listed: {exc}") from exc
    found = []
    for place in places:
        try:
            found.append(summary_of(read_run(place)))
        except StorageError as exc:
            found.append(RunSummary(place.name, place, "damaged", str(exc)))
    return sorted(found, key=lambda entry: (entry.started_wall_s or 0.0, entry.run))


def summary_of(run: Run) -> RunSummary:
    """What a run was and came to."""
    start, stop = run.start, run.stop
    rounds = run.of_kind("round")
    latencies = [
        entry["latency_ns"] + (entry.get("cut_move_ns") or 0) + (entry.get("join_ns") or 0)
        for entry in rounds
    ]
    tests = [entry["accuracy"] for entry in run.of_kind("evaluation") if entry.get("split") == "test"]
    scenario = start.get("scenario")
    if isinstance(scenario, Mapping):
        scenario = f"{scenario.get('name')} {scenario.get('version')}"
    else:
        scenario = None  # older records said here that the scenario is reconstructed
    allocator = section(config_of(run), "experiment", "allocator")
    return RunSummary(
        run=start.get("run") or run.directory.name,
        directory=run.directory,
        reason="unfinished" if stop is None else stop.get("reason", "ended"),
        words="no last words: it still runs, or was killed" if stop is None else stop.get("words", ""),
        started_wall_s=start.get("started_wall_s"),
        radio=start.get("radio"),
        fidelity=start.get("fidelity"),
        clock=start.get("clock"),
        compute=start.get("compute"),
        policy=start.get("policy") or allocator.get("name"),
        scenario=scenario,
        seed=start.get("seed"),
        rounds=len(rounds),
        test_accuracy=tests[-1] if tests else None,
        mean_round_latency_s=sum(latencies) / len(latencies) / 1e9 if latencies else None,
    )


def config_of(run: Run) -> dict[str, Any]:
    """The resolved configuration as mappings and lists, unchecked; empty if it cannot be read."""
    try:
        found = yaml.safe_load((run.directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def section(tree: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """A part of a configuration; empty where there is none."""
    found: Any = tree
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def versions_of(run: Run) -> dict[str, str]:
    """Versions by package that every node has, and by ``node: package`` where they disagree."""
    by_node = {
        entry.get("node", "?"): dict(entry.get("versions") or {})
        for entry in run.operations
        if entry.get("kind") == "joined"
    }
    packages = sorted({package for versions in by_node.values() for package in versions})
    found: dict[str, str] = {}
    for package in packages:
        values = {node: versions.get(package, MISSING) for node, versions in by_node.items()}
        if len(set(values.values())) == 1:
            found[package] = next(iter(values.values()))
        else:
            found |= {f"{node}: {package}": value for node, value in values.items()}
    return found


def diff_runs(first: Run, second: Run) -> RunDifferences:
    """Where two runs differ: resolved configuration key by key, start, versions and results."""
    return RunDifferences(
        config=_differences(_flat(config_of(first)), _flat(config_of(second))),
        start=_differences(*(_flat(_without(run.start, OF_THE_MOMENT)) for run in (first, second))),
        versions=_differences(versions_of(first), versions_of(second)),
        results=_differences(*(_flat(_without(run.stop or {}, NOT_RESULTS)) for run in (first, second))),
    )


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    keys = [*first, *(key for key in second if key not in first)]
    pairs = [Difference(key, first.get(key, MISSING), second.get(key, MISSING)) for key in keys]
    return [pair for pair in pairs if pair.first != pair.second or type(pair.first) is not type(pair.second)]


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; entries of a list by their name if they have one, else by index."""
    if isinstance(tree, Mapping) and tree:
        children = {f"{path}.{key}" if path else str(key): value for key, value in tree.items()}
    elif isinstance(tree, list) and any(isinstance(entry, Mapping) for entry in tree):
        names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in tree]
        named = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        labels = names if named else list(range(len(tree)))
        children = {f"{path}[{label}]": entry for label, entry in zip(labels, tree, strict=True)}
    else:
        return {path: tree}
    return {key: value for child, entry in children.items() for key, value in _flat(entry, child).items()}


def _without(document: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}
