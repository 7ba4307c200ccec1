"""YAML as a tree that remembers where every value was written.

Reading goes through PyYAML's nodes and not through its constructors, for three reasons: positions
survive into error messages; nothing is ever constructed but text, numbers, booleans, lists and
mappings; and the scalars follow YAML 1.2, where ``2e6`` is a number and ``on`` or ``no`` are words.
What the keys mean is not known here: see :mod:`testbed.config.loader`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import yaml

from testbed.errors import ConfigProblem

MAX_BYTES = 1 << 20
# Aliases let a small file describe a huge tree, and let a tree contain itself.
MAX_VALUES = 50_000
MAX_DEPTH = 32

Path = tuple[str | int, ...]


class SourceKind(str, Enum):
    """Who said a value, weakest first."""

    DEFAULT = "default"
    PRESET = "preset"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True)
class Origin:
    """Where a value was written; ``line`` and ``column`` count from 1, None outside files."""

    kind: SourceKind
    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Tree:
    """A value, its origin and, for an entry of a mapping, the origin of its key."""

    value: dict[str, Tree] | list[Tree] | str | float | int | bool | None
    origin: Origin
    key_origin: Origin | None = None

    def plain(self) -> Any:
        """The value without origins: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str | int) -> Tree | None:
        """The entry at ``key``, or None where there is none."""
        if isinstance(self.value, dict) and isinstance(key, str):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def nearest(self, path: Path) -> tuple[Tree, int]:
        """The deepest existing value on the way along ``path``, and how many steps lead there."""
        tree = self
        for depth, key in enumerate(path):
            below = tree.child(key)
            if below is None:
                return tree, depth
            tree = below
        return tree, len(path)


def path_text(path: Path) -> str:
    """``("boards", 2, "name")`` as ``boards[2].name``."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def merge(under: Tree, over: Tree) -> Tree:
    """``over`` laid over ``under``: mappings key by key, lists and scalars replaced whole."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(under.value)
    for key, child in over.value.items():
        below = merged.get(key)
        merged[key] = child if below is None else merge(below, child)
    return replace(over, value=merged)


def put(tree: Tree, path: Path, leaf: Tree) -> Tree:
    """``tree`` with ``leaf`` at ``path``; mappings on the way are made where they are missing."""
    if not path:
        return merge(tree, leaf)
    key, rest = path[0], path[1:]
    below = tree.child(key)
    if below is None or (rest and below.value is None):
        below = Tree({}, leaf.origin, leaf.origin) if rest else leaf
    child = put(below, rest, leaf)
    if isinstance(tree.value, list) and isinstance(key, int):
        return replace(tree, value=[child if i == key else old for i, old in enumerate(tree.value)])
    if isinstance(tree.value, dict):
        return replace(tree, value={**tree.value, str(key): child})
    # A key below a scalar: replacing it lets the validator say what belongs there.
    return replace(tree, value={str(key): child}, origin=leaf.origin)


# ------------------------------------------------------------------------------------- scalars
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_RESOLVERS = (
    ("null", re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("int", re.compile(f"({_INT.pattern})\\Z"), list("-+0123456789")),
    ("float", re.compile(f"({_FLOAT.pattern})\\Z"), list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own class attribute, emptied


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or 1.2 would take for something else."""

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Line breaks of any kind are folded into spaces in every style but this one.
    style = '"' if any(character in text for character in "\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)

for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _first)


def dump(data: Any) -> str:
    """``data`` (dicts, lists, scalars) as YAML that :func:`read` reads back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _scalar(node: yaml.ScalarNode) -> str | float | int | bool | None:
    tag, text = node.tag, node.value
    if tag == _TAG + "null":
        return None
    if tag == _TAG + "bool":
        return {"true": True, "false": False}[text.lower()]
    if tag == _TAG + "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if tag == _TAG + "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if tag == _TAG + "str":
        text.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
        return text
    raise ValueError(f"the tag {tag.replace(_TAG, '!!')} is not allowed")


# ------------------------------------------------------------------------------------- reading
class _Reader:
    def __init__(self, kind: SourceKind, source: str, positions: bool) -> None:
        self.kind, self.source, self.positions = kind, source, positions
        self.problems: list[ConfigProblem] = []
        self.num_values = 0

    def origin(self, mark: Any) -> Origin:
        if not self.positions or mark is None:
            return Origin(self.kind, self.source)
        return Origin(self.kind, self.source, mark.line + 1, mark.column + 1)

    def complain(self, mark: Any, path: Path, message: str, suggestion: str | None = None) -> None:
        at = self.origin(mark)
        self.problems.append(
            ConfigProblem(at.source, at.line, at.column, path_text(path), message, suggestion)
        )

    def build(self, node: yaml.Node, path: Path, key_origin: Origin | None = None) -> Tree:
        self.num_values += 1
        if self.num_values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise _TooMuchError(node.start_mark)
        origin = self.origin(node.start_mark)
        value: Any = None
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            value = self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            value = [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
        elif isinstance(node, yaml.ScalarNode):
            try:
                value = _scalar(node)
            except (ValueError, KeyError) as exc:
                detail = str(exc) if "tag" in str(exc) else f"this {node.tag.replace(_TAG, '')} can't be read"
                self.complain(node.start_mark, path, detail)
        else:
            tag = node.tag.replace(_TAG, "!!")
            self.complain(node.start_mark, path, f"the tag {tag} is not allowed")
        return Tree(value, origin, key_origin)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Tree]:
        entries: dict[str, Tree] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(mark, path, "a key must be a plain word")
                continue
            key = key_node.value
            if not key.isprintable():
                self.complain(mark, path, f"{key!a} is no key")
                continue
            if key in entries:
                first = entries[key].key_origin
                seen = f"already given in line {first.line}" if first and first.line else "already given"
                self.complain(mark, (*path, key), f"this key is {seen}", "keep one of the two")
                continue
            entries[key] = self.build(value_node, (*path, key), self.origin(mark))
        return entries


class _TooMuchError(Exception):
    def __init__(self, mark: Any) -> None:
        self.mark = mark
        super().__init__()


def _syntax_hint(problem: str) -> str | None:
    if "\\t" in problem:
        return "indent with spaces, not tabs"
    if "could not find expected ':'" in problem:
        return "is a space missing after a colon?"
    if "mapping values are not allowed" in problem:
        return "is a colon too many on the line, or the line indented too deep?"
    return None


def read(
    data: bytes | str, kind: SourceKind, source: str, *, positions: bool = True
) -> tuple[Tree | None, list[ConfigProblem]]:
    """The tree written in ``data``, and what is wrong with its syntax.

    Parameters
    ----------
    data
        One YAML document of at most ``MAX_BYTES`` bytes.
    kind, source
        Go into every origin; ``source`` is shown to the user.
    positions
        False for values from a flag or the environment, where a column means nothing.

    Returns
    -------
    tree
        None when nothing could be read; an empty document is a tree of value None.
    problems
        Empty when the whole document was understood.
    """
    reader = _Reader(kind, source, positions)
    if len(data) > MAX_BYTES:
        reader.complain(None, (), f"larger than {MAX_BYTES // 1024} KiB: this is no configuration file")
        return None, reader.problems
    loader = None
    try:
        # The constructor already looks at the first characters, and may refuse them.
        loader = _Loader(data)
        node = loader.get_single_node()
        if node is None:
            return Tree(None, Origin(kind, source, *((1, 1) if positions else ()))), []
        return reader.build(node, ()), reader.problems
    except _TooMuchError as exc:
        reader.complain(
            exc.mark, (), f"more than {MAX_VALUES} values or {MAX_DEPTH} levels (aliases counted)"
        )
    except RecursionError:
        reader.complain(None, (), f"nested deeper than {MAX_DEPTH} levels")
    except yaml.MarkedYAMLError as exc:
        problem = exc.problem or "can't be read as YAML"
        context = f" {exc.context}" if exc.context else ""
        reader.complain(
            exc.problem_mark or exc.context_mark, (), f"{problem}{context}", _syntax_hint(problem)
        )
    except yaml.reader.ReaderError as exc:
        reader.complain(None, (), f"not a text file in UTF-8: {exc.reason} at byte {exc.position}")
    finally:
        if loader is not None:
            loader.dispose()
    return None, reader.problems
