"""The kernel cache: an edited callee is seen, a useless directory is replaced, old ones go."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import radio
from radio import jit, warmup

PACKAGE = Path(radio.__file__).resolve().parent

INNER = """
from radio.jit import kernel

@kernel
def inner(value):
    return value + {increment}
"""
OUTER = """
from radio.jit import kernel
from radio.probe_inner import inner

@kernel
def outer(value):
    return 10 * inner(value)
"""
RUN = """
from radio.probe_outer import outer
from radio.jit import cache_directory
print(outer(1), sum(outer.stats.cache_hits.values()), cache_directory().name)
"""


def _run(folder: Path, cache: Path) -> list[str]:
    environment = dict(os.environ, PYTHONPATH=str(folder), TESTBED_KERNEL_CACHE=str(cache))
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout.split()


def test_edited_callee_in_another_file_is_seen_with_the_same_cache(tmp_path: Path) -> None:
    package = tmp_path / "code" / "radio"
    package.mkdir(parents=True)
    for name in ("__init__.py", "jit.py"):
        shutil.copy(PACKAGE / name, package / name)
    (package / "probe_outer.py").write_text(OUTER)
    (package / "probe_inner.py").write_text(INNER.format(increment=1))
    cache = tmp_path / "cache"

    first = _run(package.parent, cache)
    assert first[:2] == ["20", "0"]
    again = _run(package.parent, cache)
    assert again == ["20", "1", first[2]], "the second process must load, not compile"

    (package / "probe_inner.py").write_text(INNER.format(increment=2))
    edited = _run(package.parent, cache)
    assert edited[:2] == ["30", "0"]
    assert edited[2] != first[2]


def test_unwritable_root_falls_back_to_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    monkeypatch.setenv(jit.CACHE_ENVIRONMENT_VARIABLE, str(blocked / "below"))
    monkeypatch.setattr(jit.tempfile, "tempdir", str(tmp_path))
    root = jit._cache_root()
    assert root.parent == tmp_path
    assert root.is_dir()
    if hasattr(os, "getuid"):
        assert root.stat().st_mode & 0o077 == 0


def test_temporary_folder_that_others_can_write_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "getuid"):
        pytest.skip("folder permissions are POSIX")
    monkeypatch.setattr(jit.tempfile, "tempdir", str(tmp_path))
    prepared = jit._temporary_root()
    prepared.chmod(0o777)
    assert jit._temporary_root() != prepared


def test_only_old_directories_of_our_own_making_are_pruned(tmp_path: Path) -> None:
    old = time.time() - 10 * jit.PRUNE_MIN_AGE_S
    names = [f"{index:024x}" for index in range(jit.MAX_CACHE_DIRECTORIES + 4)]
    for age, name in enumerate(names):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (old - age, old - age))
    (tmp_path / "notes").mkdir()
    os.utime(tmp_path / "notes", (0, 0))
    current = tmp_path / names[-1]
    jit._prune(tmp_path, current)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names[: jit.MAX_CACHE_DIRECTORIES - 1], names[-1], "notes"}


def test_warm_up_names_every_kernel_module() -> None:
    named: list[str] = []
    warmup.warm_up(named.append)
    assert set(warmup.KERNEL_MODULES) <= set(named)


def test_decorating_leaves_the_setting_of_other_packages_alone() -> None:
    before = jit.numba.config.CACHE_DIR

    @jit.kernel
    def doubled(value):  # type: ignore[no-untyped-def]
        return 2 * value

    after = jit.numba.config.CACHE_DIR
    assert after == before
    assert doubled(4) == 8
