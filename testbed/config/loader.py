"""From files, environment and flags to one checked configuration, or every reason why not.

Precedence, weakest first: the schema's defaults, a shipped preset, the user's files, environment
variables (``TESTBED__LEARNING__PHI=0.5``, ``TESTBED_LAB__RADIO__NOISE_FIGURE_DB=5``), flags
(``--set learning.phi=0.5``, ``--set lab.boards.0.max_power_dbm=3``).  Mappings merge key by key;
lists are replaced whole, and one entry of a list is reached by its index, by its ``name`` or, for
all of them, by ``*``.  The name of a scenario (``lab.scenario``) stands for its text from the moment
it is read, so that whoever comes later can change a part of it.  Nothing here starts anything: a wrong
configuration costs no radio a sample.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from os import PathLike
from types import MappingProxyType
from typing import Annotated, Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from testbed.config import checks, messages
from testbed.config.schema import Experiment, Lab
from testbed.config.yamltree import (
    MAX_BYTES,
    Origin,
    Path,
    SourceKind,
    Tree,
    dump,
    merge,
    path_text,
    put,
    read,
)
from testbed.errors import ConfigError, ConfigProblem

DEFAULT_PRESET = "laptop"
RESOLVED_FORMAT = "resolved/1"
ENVIRONMENT_PREFIXES = {"TESTBED__": "experiment", "TESTBED_LAB__": "lab"}
# Options of their own on the command line, and the keys that they set.
FLAG_KEYS = MappingProxyType(
    {
        "allocator": "allocator.name",
        "fidelity": "lab.radio.fidelity",
        "model": "prediction.model",
        "scenario": "lab.scenario",
    }
)

_ROOTS: dict[str, type[BaseModel]] = {"experiment": Experiment, "lab": Lab}
# What a file can be, and how to give it to a command.
_FILE_KINDS = {
    "experiment": "give it as EXPERIMENT.yaml, without --lab",
    "lab": "give it with --lab",
    "scenario": "give it with --scenario",
}


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration that was checked, and who said each value.

    ``sources`` maps dotted paths (``experiment.learning.phi``, ``lab.boards[0].name``) to the
    origin of the value; defaults included.
    """

    experiment: Experiment
    lab: Lab
    sources: Mapping[str, Origin]


def preset_names() -> list[str]:
    """The names of the shipped presets, sorted."""
    root = resources.files("testbed") / "presets"
    return sorted(entry.name for entry in root.iterdir() if (entry / "experiment.yaml").is_file())


def scenario_names() -> list[str]:
    """The names of the shipped scenarios, sorted."""
    root = resources.files("testbed") / "scenarios"
    names = [entry.name for entry in root.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load(
    experiment_path: str | PathLike[str] | None = None,
    lab_path: str | PathLike[str] | None = None,
    preset: str = DEFAULT_PRESET,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> ResolvedConfig:
    """The configuration that all sources together describe.

    Parameters
    ----------
    experiment_path
        ``experiment.yaml``; or a file written by :func:`resolved_yaml`, which also gives the lab;
        or the name of a preset, for its file.  None: the preset alone.
    lab_path
        ``lab.yaml``, or the name of a preset.
    preset
        What the files are merged over.
    overrides
        ``KEY=VALUE`` of each ``--set``; the value is read as YAML.  Keys of the lab begin with
        ``lab.``.
    environ
        Usually ``os.environ``; None: no variable is looked at.
    flags
        Values of options of their own, by option (``{"rounds": 3, "allocator": "rss"}``); None
        means not given.  They win over ``overrides``.

    Raises
    ------
    ConfigError
        With every problem of every source.
    """
    loading = _Loading()
    loading.presets(preset)
    loading.files(experiment_path, lab_path)
    loading.environment(environ or {})
    for override in overrides:
        loading.override(override)
    for option, value in (flags or {}).items():
        if value is not None:
            loading.flag(option, value)
    return loading.resolve()


def resolved_yaml(config: ResolvedConfig) -> str:
    """One YAML document that :func:`load` reads back as the same experiment and lab."""
    return dump({"format": RESOLVED_FORMAT, **_plain(config)})


def config_hash(config: ResolvedConfig) -> str:
    """SHA-256 over every value of experiment and lab [64 hex digits], whatever source it came from."""
    text = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(config: ResolvedConfig) -> dict[str, Any]:
    return {
        "experiment": config.experiment.model_dump(mode="json"),
        "lab": config.lab.model_dump(mode="json"),
    }


# -------------------------------------------------------------------------------------- sources
class _Loading:
    """The trees as they grow from source to source, and the problems met on the way."""

    def __init__(self) -> None:
        self.problems: list[ConfigProblem] = []
        self.trees: dict[str, Tree] = {
            root: Tree({}, Origin(SourceKind.DEFAULT, f"{root} (defaults)")) for root in _ROOTS
        }
        # A file that could not be read leaves its side unknown: checks against the preset in its
        # place would complain about values that the user never meant to use.
        self.unknown: set[str] = set()
        self.names = {"experiment": "the experiment file", "lab": "the lab file"}

    def complain(self, origin: Origin, path: Path, message: str, suggestion: str | None = None) -> None:
        self.problems.append(
            ConfigProblem(origin.source, origin.line, origin.column, path_text(path), message, suggestion)
        )

    def presets(self, name: str) -> None:
        if name not in preset_names():
            near = messages.closest(name, preset_names())
            hint = f"did you mean {near}?" if near else f"there are {', '.join(preset_names())}"
            self.complain(Origin(SourceKind.FLAG, f"--preset {name}"), (), "there is no such preset", hint)
            self.unknown.update(_ROOTS)
            return
        for root in _ROOTS:
            self.trees[root] = merge(self.trees[root], _preset_tree(name, root))
        self._expand_scenario()

    def files(
        self, experiment_path: str | PathLike[str] | None, lab_path: str | PathLike[str] | None
    ) -> None:
        if experiment_path is not None:
            self._file(experiment_path, "experiment", take_lab=lab_path is None)
        if lab_path is not None:
            self._file(lab_path, "lab")

    def _file(self, path: str | PathLike[str], root: str, *, take_lab: bool = False) -> None:
        shown = str(path)
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as exc:  # ValueError: a null byte in the name
            name = shown.removesuffix(f"/{root}.yaml")
            if name in preset_names():
                data, shown = _preset_file(name, root)
            else:
                reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
                presets = ", ".join(preset_names())
                hint = f"give a file, or the name of a preset: {presets}"
                self.complain(Origin(SourceKind.FILE, shown), (), f"can't be read: {reason}", hint)
                self.unknown.add(root)
                return
        self.names[root] = shown
        self._add(data, root, SourceKind.FILE, shown, take_lab=take_lab)

    def _add(self, data: bytes, root: str, kind: SourceKind, shown: str, *, take_lab: bool = False) -> None:
        tree, problems = read(data, kind, shown)
        self.problems += problems
        if tree is None:
            self.unknown.add(root)
            return
        if not isinstance(tree.value, dict):
            wanted = f"the file must hold keys and values, and begin with `format: {root}/1`"
            self.complain(tree.origin, (), wanted)
            self.unknown.add(root)
            return
        if root == "experiment" and (found := tree.child("format")) and found.value == RESOLVED_FORMAT:
            self._add_resolved(tree, take_lab)
        elif self._has_format(tree, root):
            self.trees[root] = merge(self.trees[root], tree)
        self._expand_scenario()

    def _has_format(self, tree: Tree, root: str) -> bool:
        """True if the file says it is what it was given as; otherwise that is the one complaint."""
        wanted = f"{root}/1"
        found = tree.child("format")
        if found is not None and found.value == wanted:
            return True
        self.unknown.add(root)
        if found is None:
            message, hint = "missing: every file says what it is", f"begin the file with `format: {wanted}`"
            self.complain(tree.origin, ("format",), message, hint)
            return False
        kind, _, version = str(found.value).partition("/")
        if kind in _FILE_KINDS and kind != root:
            message, hint = f"this is a file for the {kind}, not for the {root}", _FILE_KINDS[kind]
        elif kind == root and version.isdecimal() and int(version) > 1:
            message, hint = (
                f"{found.value} is newer than this testbed, which reads {wanted}",
                "update the testbed",
            )
        else:
            message, hint = f"must be {wanted}, not {found.value}", f"write `format: {wanted}`"
        self.complain(found.origin, ("format",), message, hint)
        return False

    def _add_resolved(self, tree: Tree, take_lab: bool) -> None:
        entries = cast(dict[str, Tree], tree.value)
        for key, child in entries.items():
            if key not in ("format", *_ROOTS):
                self.complain(
                    child.key_origin or child.origin, (key,), "unknown key", "known here: experiment, lab"
                )
        for root in _ROOTS if take_lab else ("experiment",):
            found = tree.child(root)
            if found is None or not isinstance(found.value, dict):
                self.complain(tree.origin, (root,), "this section is missing")
                self.unknown.add(root)
            else:
                self.trees[root] = merge(self.trees[root], found)

    def _expand_scenario(self) -> None:
        """Put a scenario's text in the place of its name."""
        lab = self.trees["lab"]
        named = lab.child("scenario")
        if named is None or not isinstance(named.value, str):
            return
        text = self._scenario_text(named.value, named.origin)
        tree = Tree(text.value if text else None, named.origin, named.key_origin)
        self.trees["lab"] = put(lab, ("scenario",), tree)

    def _scenario_text(self, name: str, origin: Origin) -> Tree | None:
        path: Path = ("scenario",)
        if name in scenario_names():
            file = resources.files("testbed") / "scenarios" / f"{name}.yaml"
            kind, shown, data = SourceKind.PRESET, f"scenarios/{name}.yaml", file.read_bytes()
        else:
            # A file names another one from where it lies itself, a command from where it runs.
            folder = os.path.dirname(origin.source) if origin.kind is SourceKind.FILE else ""
            kind, shown = SourceKind.FILE, os.path.join(folder, name)
            try:
                with open(shown, "rb") as opened:
                    data = opened.read(MAX_BYTES + 1)
            except (OSError, ValueError) as exc:  # ValueError: a null byte in the name
                reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
                there_are = ", ".join(scenario_names())
                if "/" in name or name.endswith((".yaml", ".yml")):
                    message, hint = f"{shown} can't be read: {reason}", f"shipped ones: {there_are}"
                else:
                    near = messages.closest(name, scenario_names())
                    message = f"there is no scenario {name}"
                    hint = f"did you mean {near}?" if near else f"there are {there_are}, or give a file"
                self.complain(origin, path, message, hint)
                return None
        tree, problems = read(data, kind, shown)
        self.problems += problems
        if tree is None:
            return None
        if not isinstance(tree.value, dict):
            wanted = "the file must hold keys and values, and begin with `format: scenario/1`"
            self.complain(tree.origin, (), wanted)
            return None
        return tree if self._has_format(tree, "scenario") else None

    def environment(self, environ: Mapping[str, str]) -> None:
        for name in sorted(environ):
            for prefix, root in ENVIRONMENT_PREFIXES.items():
                if name.startswith(prefix):
                    keys = name.removeprefix(prefix).lower().split("__")
                    origin = Origin(SourceKind.ENVIRONMENT, f"environment variable {name}")
                    self._set(root, keys, environ[name], origin)

    def override(self, override: str) -> None:
        origin = Origin(SourceKind.FLAG, f"--set {override}")
        dotted, equals, text = override.partition("=")
        keys = dotted.strip().replace("[", ".").replace("]", "").split(".")
        if not equals or not all(keys):
            self.complain(origin, (), "is no KEY=VALUE", "as in --set learning.phi=0.5")
            return
        root = "experiment"
        if keys[0] in _ROOTS and len(keys) > 1:
            root, keys = keys[0], keys[1:]
        self._set(root, keys, text, origin)

    def flag(self, option: str, value: object) -> None:
        shown = value.value if hasattr(value, "value") else value
        dotted = FLAG_KEYS.get(option, option)
        origin = Origin(SourceKind.FLAG, f"--{option.replace('_', '-')} {shown}")
        first, _, rest = dotted.partition(".")
        root, keys = (first, rest) if first in _ROOTS else ("experiment", dotted)
        self._set(root, keys.split("."), str(shown), origin)

    def _set(self, root: str, keys: list[str], text: str, origin: Origin) -> None:
        leaf, problems = read(text, origin.kind, origin.source, positions=False)
        self.problems += problems
        if leaf is None or root in self.unknown:
            return
        for path in self._paths(self.trees[root], keys, (), origin):
            self.trees[root] = put(self.trees[root], path, Tree(leaf.value, origin, origin))
        self._expand_scenario()

    def _paths(self, tree: Tree | None, keys: list[str], path: Path, origin: Origin) -> Iterator[Path]:
        """The paths that ``keys`` stand for, entries of lists by index, name or ``*``."""
        if not keys:
            yield path
            return
        key, rest = keys[0], keys[1:]
        if tree is None or not isinstance(tree.value, list):
            below = tree.child(key) if tree is not None else None
            yield from self._paths(below, rest, (*path, key), origin)
            return
        names = {str(entry.value): i for i, e in enumerate(tree.value) if (entry := e.child("name"))}
        if key == "*":
            indices: list[int] = list(range(len(tree.value)))
        elif key.isdecimal() and int(key) < len(tree.value):
            indices = [int(key)]
        elif key in names:
            indices = [names[key]]
        else:
            known = f"0 to {len(tree.value) - 1}, * for all" if tree.value else "it is empty"
            hint = known + (f", or a name: {', '.join(names)}" if names else "")
            self.complain(origin, path, f"has no entry {key}", hint)
            return
        for index in indices:
            yield from self._paths(tree.value[index], rest, (*path, index), origin)

    # -------------------------------------------------------------------------------- verdict
    def resolve(self) -> ResolvedConfig:
        sections: dict[str, Any] = {}
        for root, model in _ROOTS.items():
            if root in self.unknown:
                sections[root] = checks.Partial({})
                continue
            try:
                sections[root] = _validated(model, self.trees[root])
            except ValidationError as exc:
                self._explain(root, exc)
                sections[root] = _salvaged(model, self.trees[root])
        for finding in checks.findings(sections["experiment"], sections["lab"]):
            tree, depth = self.trees[finding.root].nearest(finding.path)
            origin = tree.origin
            if depth < len(finding.path) and tree.key_origin is not None:
                origin = tree.key_origin  # the section that lacks the key, not its first entry
            self.complain(origin, finding.path, finding.message, finding.suggestion)
        if self.problems:
            unique = dict.fromkeys(self.problems)
            raise ConfigError(sorted(unique, key=lambda p: (p.file, p.line or 0, p.column or 0)))
        return ResolvedConfig(sections["experiment"], sections["lab"], self._sources(sections))

    def _explain(self, root: str, exc: ValidationError) -> None:
        """One problem for each wrong value, however many types it failed to be."""
        model, tree = _ROOTS[root], self.trees[root]
        others = sorted(
            ((self.names[name], other) for name, other in _ROOTS.items()),
            key=lambda entry: entry[1] is not model,
        )
        wrong: dict[Path, list[dict[str, Any]]] = {}
        for error in exc.errors(include_url=False):
            location, kind = error["loc"], error["type"]
            at, depth = tree.nearest(location)
            path = location[:depth]
            if kind == "too_short" and at.value:
                continue  # pydantic counts the good entries only, and the bad ones speak for themselves
            if kind == "extra_forbidden":
                message, hint = messages.unknown_key(model, path, others)
                self.complain(at.key_origin or at.origin, path, message, hint)
            elif kind == "missing":
                self.complain(at.key_origin or at.origin, location, "this key is missing")
            else:
                wrong.setdefault(path, []).append(cast(dict[str, Any], error))
        unread = {(problem.where, problem.path) for problem in self.problems}
        for path, errors in wrong.items():
            at, _ = tree.nearest(path)
            if (str(at.origin), path_text(path)) in unread:
                continue  # a value that could not even be read was complained about there
            message, hint = messages.wrong_value(errors, path, model, at.plain())
            self.complain(at.origin, path, message, hint)

    def _sources(self, sections: Mapping[str, BaseModel]) -> Mapping[str, Origin]:
        found: dict[str, Origin] = {}
        default = Origin(SourceKind.DEFAULT, "default")
        for root, section in sections.items():
            for path in _leaf_paths(section.model_dump(mode="json")):
                at, depth = self.trees[root].nearest(path)
                found[path_text((root, *path))] = at.origin if depth == len(path) else default
        return MappingProxyType(found)


def _leaf_paths(data: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(data, dict | list) and data:
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _leaf_paths(value, (*path, key))
    else:
        yield path


@cache
def _preset_tree(name: str, root: str) -> Tree:
    data, shown = _preset_file(name, root)
    tree, problems = read(data, SourceKind.PRESET, shown)
    if tree is None or problems:
        raise ConfigError(problems)
    return tree


def _preset_file(name: str, root: str) -> tuple[bytes, str]:
    file = resources.files("testbed") / "presets" / name / f"{root}.yaml"
    return file.read_bytes(), f"presets/{name}/{root}.yaml"


# ----------------------------------------------------------------------------------- validation
def _json(tree: Tree) -> str:
    # By way of JSON, strict validation still takes lists for tuples and words for enums, while a
    # quoted number or a `true` in place of a number stays the mistake that it is.
    return json.dumps(tree.plain())


def _validated(model: type[BaseModel], tree: Tree) -> BaseModel:
    return model.model_validate_json(_json(tree), strict=True)


def _salvaged(model: type[BaseModel], tree: Tree) -> Any:
    """``model``, or as much of it as can be understood, for the checks."""
    try:
        return _validated(model, tree)
    except ValidationError:
        known: dict[str, Any] = {}
    if isinstance(tree.value, dict):
        for name, field in model.model_fields.items():
            below = tree.value.get(name)
            if below is not None:
                known.update(_salvaged_field(name, field, below))
            elif not field.is_required():
                known[name] = field.get_default(call_default_factory=True)
    return checks.Partial(known)


def _salvaged_field(name: str, field: FieldInfo, tree: Tree) -> dict[str, Any]:
    annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    try:
        return {name: TypeAdapter(annotation).validate_json(_json(tree), strict=True)}
    except ValidationError:
        for section, many in messages.sections_in(field.annotation):
            if not many:
                return {name: _salvaged(section, tree)}
            if isinstance(tree.value, list):
                return {name: tuple(_salvaged(section, entry) for entry in tree.value)}
    return {}
