"""Checkpoints on disk: a folder per round, its manifest written last, never overwritten.

Layout::

    DIRECTORY/round-00000120.0/NAME.safetensors ...
    DIRECTORY/round-00000120.0/manifest.json

A checkpoint is assembled in a hidden folder, every file flushed to the disk, the manifest (with
the length and hash of each file, and of itself) last, and then renamed into place: whatever
moment the process dies, the previous checkpoint is untouched and an unfinished one is ignored.
The number behind the dot counts up when a resumed run reaches the same round again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

FORMAT = "checkpoint/1"

_FOLDER = re.compile(r"round-(\d{8,})\.(\d+)")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}")
_MANIFEST = "manifest.json"
_TEMPORARY = ".incomplete-"
_MAX_MANIFEST_BYTES = 1 << 24


class CheckpointError(ValueError):
    """A checkpoint cannot be written as asked."""


class _FileEntry(msgspec.Struct, frozen=True):
    num_bytes: int
    blake2b: str


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    round_index: int
    files: dict[str, _FileEntry]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """One valid checkpoint: its round, the bytes of its files by name, and the caller's notes."""

    path: Path
    round_index: int
    files: dict[str, bytes]
    meta: dict[str, Any]


def save_checkpoint(
    directory: str | Path,
    round_index: int,
    files: Mapping[str, bytes],
    meta: Mapping[str, Any] | None = None,
    keep: int = 3,
) -> Path:
    """Write a checkpoint, durable once this returns, then delete all but the newest `keep`.

    Parameters
    ----------
    directory : folder of the checkpoints; created if needed
    files : safetensors bytes by name (letters, digits, ``_ . -``)
    meta : JSON-serialisable notes

    Returns
    -------
    The folder of the new checkpoint.

    Raises
    ------
    CheckpointError
        For an unusable name, notes that are not JSON, or ``keep < 1``.
    OSError
        If the disk refuses; earlier checkpoints are untouched.
    """
    root = Path(directory)
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(f"checkpoint of round {round_index}: {name!r} cannot be a file name")
    if keep < 1 or round_index < 0:
        raise CheckpointError(f"checkpoint of round {round_index} keeping {keep}: keep at least one")
    entries = {name: _FileEntry(len(data), _hash(data)) for name, data in files.items()}
    manifest = _Manifest(format=FORMAT, round_index=round_index, files=entries, meta=dict(meta or {}))
    try:
        body = msgspec.json.encode(manifest)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint of round {round_index}: notes are not JSON: {error}") from error
    root.mkdir(parents=True, exist_ok=True)
    taken = [attempt for number, attempt, _ in _folders(root) if number == round_index]
    name = f"round-{round_index:08d}.{max(taken, default=-1) + 1}"
    temporary = root / f"{_TEMPORARY}{name}"
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        for file_name, data in files.items():
            _write(temporary / f"{file_name}.safetensors", data)
        _write(temporary / _MANIFEST, _hash(body).encode() + b"\n" + body + b"\n")
        _flush_folder(temporary)
        temporary.rename(root / name)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush_folder(root)
    _prune(root, keep)
    return root / name


def latest_checkpoint(directory: str | Path) -> Checkpoint | None:
    """The newest checkpoint that is complete and undamaged, or None; others are passed over."""
    root = Path(directory)
    for _, _, folder in sorted(_folders(root), reverse=True):
        checkpoint = read_checkpoint(folder)
        if checkpoint is not None:
            return checkpoint
    return None


def read_checkpoint(folder: str | Path) -> Checkpoint | None:
    """The checkpoint in one folder, or None if it is incomplete, damaged or of another format."""
    path = Path(folder)
    try:
        if (path / _MANIFEST).stat().st_size > _MAX_MANIFEST_BYTES:
            return None
        digest, _, rest = (path / _MANIFEST).read_bytes().partition(b"\n")
        body = rest.removesuffix(b"\n")
        if digest != _hash(body).encode() or rest == body:
            return None
        manifest = msgspec.json.decode(body, type=_Manifest)
        if manifest.format != FORMAT:
            return None
        files: dict[str, bytes] = {}
        for name, entry in manifest.files.items():
            file = path / f"{name}.safetensors"
            if not _FILE_NAME.fullmatch(name) or file.stat().st_size != entry.num_bytes:
                return None
            files[name] = file.read_bytes()
            if len(files[name]) != entry.num_bytes or _hash(files[name]) != entry.blake2b:
                return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Checkpoint(path, manifest.round_index, files, manifest.meta)


def _folders(root: Path) -> list[tuple[int, int, Path]]:
    found = []
    if root.is_dir():
        for folder in root.iterdir():
            match = _FOLDER.fullmatch(folder.name)
            if match and folder.is_dir():
                found.append((int(match[1]), int(match[2]), folder))
    return found


def _prune(root: Path, keep: int) -> None:
    # Only folders with a manifest count, so that damaged ones cannot push out the last good one.
    complete = sorted(entry for entry in _folders(root) if read_checkpoint(entry[2]) is not None)
    for _, _, folder in complete[:-keep]:
        # Out of sight in one step first, so that a death in here leaves no half checkpoint.
        doomed = root / f"{_TEMPORARY}{folder.name}"
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    for leftover in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames are already durable
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
