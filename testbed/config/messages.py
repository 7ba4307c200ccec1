"""What a wrong value is told: pydantic's findings in words a person at the bench can act on.

Only single values and keys are judged here; whether values fit each other is
:mod:`testbed.config.checks`.
"""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from testbed.config.yamltree import Path

# Longest suffix first: `_dbm_per_hz` ends in `_hz` too.
_UNITS: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("_dbm_per_hz", "dBm/Hz", {"dbm/hz": 1.0}),
    ("_dbm", "dBm", {"dbm": 1.0}),
    ("_db", "dB", {"db": 1.0, "dbi": 1.0}),
    (
        "_hz",
        "Hz",
        {"hz": 1.0, "khz": 1e3, "mhz": 1e6, "ghz": 1e9, "s/s": 1.0, "ks/s": 1e3, "ms/s": 1e6, "msps": 1e6}
        | {"k": 1e3, "m": 1e6, "g": 1e9},
    ),
    ("_s", "seconds", {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0}),
    ("_samples", "samples", {"samples": 1.0}),
)
_WATTS = {"w": 1e3, "mw": 1.0, "µw": 1e-3, "uw": 1e-3}
_QUANTITY = re.compile(r"\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\d\s].*?)?\s*")


def number_text(value: float) -> str:
    """``value`` as people write it in these files: ``20e6``, ``31.76``, ``150e-9``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 0.01 <= abs(value) < 1e6:
        return f"{value:.10g}"
    exponent = 3 * math.floor(math.log10(abs(value)) / 3)
    return f"{value / 10.0**exponent:.10g}e{exponent}"


def unit_of(key: str) -> str | None:
    """The unit that the key's name ends in, in words, or None."""
    return next((unit for suffix, unit, _ in _UNITS if key.endswith(suffix)), None)


def converted(key: str, text: str) -> str | None:
    """What to write in place of a number with a unit such as ``20 MHz``; None if it is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    value = float(match[1].replace("_", ""))
    unit = (match[2] or "").strip()
    if not unit:
        return number_text(value)
    if unit == "%":
        return number_text(value / 100)
    for suffix, _, factors in _UNITS:
        if key.endswith(suffix):
            if suffix == "_dbm" and unit.lower() in _WATTS and value > 0:
                return number_text(round(10 * math.log10(value * _WATTS[unit.lower()]), 2))
            factor = factors.get(unit.lower())
            return None if factor is None else number_text(value * factor)
    return None


def closest(word: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``word`` was most likely meant to be, or None."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


# -------------------------------------------------------------------------------------- schema
def sections_in(annotation: Any) -> Iterator[tuple[type[BaseModel], bool]]:
    """The models a field may hold, each with whether it holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, False
        return
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from sections_in(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from sections_in(option)
    elif origin in (tuple, list):
        for model, _ in sections_in(get_args(annotation)[0]):
            yield model, True


def section_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model of the section at ``path`` below ``model``, or None where there is no section."""
    for key in path:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(key)
        found = next(sections_in(field.annotation), None) if field else None
        if found is None:
            return None
        model = found[0]
    return model


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key below ``model`` with its dotted path, entries of lists as ``boards[].name``."""
    for name, field in model.model_fields.items():
        yield name, prefix + name
        for section, many in sections_in(field.annotation):
            yield from key_paths(section, f"{prefix}{name}{'[]' if many else ''}.")


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    return [choice for option in get_args(annotation) for choice in _choices(option)]


def choices_at(model: type[BaseModel], path: Path) -> list[str]:
    """The words allowed for the value at ``path``; empty where any value of a type will do."""
    keys = [key for key in path if isinstance(key, str)]
    section = section_at(model, tuple(keys[:-1])) if keys else None
    field = section.model_fields.get(keys[-1]) if section else None
    return _choices(field.annotation) if field else []


# ------------------------------------------------------------------------------------ messages
def unknown_key(
    model: type[BaseModel], path: Path, others: Sequence[tuple[str, type[BaseModel]]]
) -> tuple[str, str | None]:
    """Message and suggestion for a key that is not in the schema.

    ``others`` are the files the key might belong to, ``(name, model)``, its own file first.
    """
    key = str(path[-1])
    section = section_at(model, path[:-1])
    known = list(section.model_fields) if section else []
    if key == "<<":
        return "unknown key", "merge keys are not read; put the anchor on a whole value"
    near = closest(key, known)
    if near is not None and near.replace("_", "") == key.lower().replace("_", "").replace("-", ""):
        return "unknown key", f"did you mean {near}?"
    for file, other in others:
        places = [place for name, place in key_paths(other) if name == key]
        if places:
            of_file = "" if other is model else f" of {file}"
            return "unknown key", f"it belongs to {' or '.join(places[:3])}{of_file}"
    if near is not None:
        return "unknown key", f"did you mean {near}?"
    return "unknown key", f"known here: {', '.join(known)}" if known else None


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return number_text(value) if isinstance(value, float) else str(value)


_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_WANTED = {
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
}


def _wanted(error: dict[str, Any], path: Path, model: type[BaseModel]) -> str:
    """What one error says the value should be, as the end of "must be ..."."""
    kind, context = error["type"], error.get("ctx", {})
    key = next((k for k in reversed(path) if isinstance(k, str)), "")
    if kind in ("literal_error", "enum"):
        choices = choices_at(model, path)
        return repr(choices[0]) if len(choices) == 1 else "one of " + ", ".join(choices)
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{words} {number_text(float(context[name]))}"
    if kind.startswith("float") or kind == "finite_number":
        unit = unit_of(key)
        return f"a plain number in {unit}" if unit else "a finite number"
    if kind.startswith("int"):
        return "a whole number"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        section = section_at(model, path)
        return "a mapping" + (f" with the keys {', '.join(section.model_fields)}" if section else "")
    if kind in ("too_short", "too_long"):
        limit = context.get("min_length") if kind == "too_short" else context.get("max_length")
        return f"a list of {'one or more' if limit == 1 else f'at most {limit}'} entries"
    if kind == "string_pattern_mismatch":
        return "a name of at most 63 letters, digits, '.', '_' or '-' that begins with a letter or digit"
    return _WANTED.get(kind, error["msg"])


def _suggestion(
    errors: Sequence[dict[str, Any]], path: Path, model: type[BaseModel], value: Any
) -> str | None:
    kinds = {error["type"] for error in errors}
    key = next((k for k in reversed(path) if isinstance(k, str)), "")
    if isinstance(value, str):
        near = closest(value, choices_at(model, path))
        if near is not None:
            return f"did you mean {near}?"
        if "bool_type" in kinds and value.lower() in ("yes", "on", "y", "no", "off", "n", "true", "false"):
            return f"write {'true' if value.lower() in ('yes', 'on', 'y', 'true') else 'false'}"
        if any(kind.startswith(("float", "int")) for kind in kinds):
            number = converted(key, value)
            return None if number is None else f"write {number}"
    if isinstance(value, float) and value.is_integer() and any(kind.startswith("int") for kind in kinds):
        return f"write {int(value)}"
    if "string_type" in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return "put it in quotes"
    return None


def wrong_value(
    errors: Sequence[dict[str, Any]], path: Path, model: type[BaseModel], value: Any
) -> tuple[str, str | None]:
    """Message and suggestion for a value that is of the wrong type or out of bounds.

    Parameters
    ----------
    errors
        pydantic's findings about this one value; a value that may be one of several types has one
        for each type it failed to be.
    path, model, value
        The key below ``model``, and what was written there.
    """
    wanted: list[str] = []
    for error in errors:
        words = _wanted(error, path, model)
        if words not in wanted:
            wanted.append(words)
    return f"must be {' or '.join(wanted)}, not {_shown(value)}", _suggestion(errors, path, model, value)
