"""Checkpoints: whatever moment a process dies, the previous one is still there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nodes.checkpoints import CheckpointError, latest_checkpoint, save_checkpoint

FILES = {"server": b"weights of the server" * 20, "client-0": b"weights of a client"}


def test_the_newest_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None
    save_checkpoint(tmp_path, 10, {"server": b"old"})
    path = save_checkpoint(tmp_path, 20, FILES, {"seed": 3, "cut": 2})
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert (latest.round_index, latest.files, latest.meta) == (20, FILES, {"seed": 3, "cut": 2})
    assert latest.path == path
    assert sorted(file.name for file in path.iterdir()) == [
        "client-0.safetensors",
        "manifest.json",
        "server.safetensors",
    ]


def test_only_the_newest_are_kept_and_nothing_half_done_is_left(tmp_path: Path) -> None:
    (tmp_path / ".incomplete-round-00000007.0").mkdir()
    for round_index in range(6):
        save_checkpoint(tmp_path, round_index, FILES, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00000004.0", "round-00000005.0"]


def test_a_round_written_again_replaces_nothing_until_it_is_complete(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"server": b"first"})
    path = save_checkpoint(tmp_path, 5, {"server": b"second"})
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.files == {"server": b"second"}
    (path / "manifest.json").unlink()
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.files == {"server": b"first"}


def test_a_file_cut_or_changed_anywhere_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"server": b"good"})
    newest = save_checkpoint(tmp_path, 2, FILES, {"note": "x"})
    for file in sorted(newest.iterdir()):
        whole = file.read_bytes()
        for size in range(len(whole)):
            file.write_bytes(whole[:size])
            latest = latest_checkpoint(tmp_path)
            assert latest is not None
            assert latest.round_index == 1, f"{file.name} cut to {size} bytes was accepted"
            flipped = bytearray(whole)
            flipped[size] ^= 1
            file.write_bytes(flipped)
            latest = latest_checkpoint(tmp_path)
            assert latest is not None
            assert latest.round_index == 1, f"{file.name} changed at byte {size} was accepted"
        file.write_bytes(whole)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.round_index == 2


def test_dying_at_any_system_call_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every flush and the rename fail in turn; afterwards a new checkpoint can be written."""
    real_fsync, real_rename = os.fsync, Path.rename
    for fatal in range(20):
        directory = tmp_path / str(fatal)
        save_checkpoint(directory, 1, {"server": b"good"}, keep=1)
        calls = 0

        def maybe_die(fatal: int = fatal) -> None:
            nonlocal calls
            calls += 1
            if calls > fatal:
                raise KeyboardInterrupt

        def fsync(descriptor: int, maybe_die=maybe_die) -> None:
            maybe_die()
            real_fsync(descriptor)

        def rename(self: Path, target: Path, maybe_die=maybe_die) -> Path:
            maybe_die()
            return real_rename(self, target)

        died = False
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            patch.setattr(Path, "rename", rename)
            try:
                save_checkpoint(directory, 2, FILES, keep=1)
            except KeyboardInterrupt:
                died = True
        latest = latest_checkpoint(directory)
        assert latest is not None
        assert (latest.round_index, latest.files) in [(1, {"server": b"good"}), (2, FILES)]
        save_checkpoint(directory, 3, FILES, keep=1)
        assert [path.name for path in directory.iterdir()] == ["round-00000003.0"]
        if not died:
            assert fatal > 4
            return
    pytest.fail("a checkpoint takes more than 20 flushes")


def test_damaged_checkpoints_do_not_push_out_the_last_good_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, FILES, keep=2)
    for round_index in (2, 3):
        shutil.copytree(tmp_path / "round-00000001.0", tmp_path / f"round-0000000{round_index}.0")
        (tmp_path / f"round-0000000{round_index}.0" / "server.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, 4, FILES, keep=2)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.round_index == 4
    assert (tmp_path / "round-00000001.0").is_dir()


def test_what_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    for name in ("../evil", "", "a/b", ".hidden"):
        with pytest.raises(CheckpointError, match="cannot be a file name"):
            save_checkpoint(tmp_path, 1, {name: b""})
    with pytest.raises(CheckpointError, match="not JSON"):
        save_checkpoint(tmp_path, 1, FILES, {"x": object()})
    with pytest.raises(CheckpointError, match="keep at least one"):
        save_checkpoint(tmp_path, 1, FILES, keep=0)
    assert not list(tmp_path.iterdir())
