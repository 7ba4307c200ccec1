"""Compiled kernels of allocator and prediction, cached on disk under a key that changes with their sources.

Both import nothing of the other rooms but units, hence caches of their own.  Numba does not notice
an edit to a callee in another file, so a cache directory carries a hash over every module of the
package, the versions that generate code, and the processor.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.registry import cpu_target

CACHE_ENVIRONMENT_VARIABLE = "TESTBED_KERNEL_CACHE"
MAX_CACHE_DIRECTORIES = 4
# A directory younger than this may belong to a process that is still compiling into it.
PRUNE_MIN_AGE_S = 3600.0

_Function = TypeVar("_Function", bound=Callable[..., Any])
_decoration_lock = threading.Lock()


def _package() -> Path:
    return Path(__file__).resolve().parent


def _source_hash(package: Path | None = None) -> str:
    """Return a hash of everything that decides which machine code a package's kernels become."""
    digest = hashlib.sha256()
    package = package or _package()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    # The last entry is (triple, processor, features), the key that Numba itself trusts.
    environment = (
        numba.__version__,
        platform.python_implementation(),
        platform.python_version(),
        *cpu_target.target_context.codegen().magic_tuple(),
    )
    digest.update("\0".join(map(str, environment)).encode())
    return digest.hexdigest()[:24]


def _cache_root() -> Path | None:
    """Return a folder that can be written, or None where there is none but a private one."""
    chosen = os.environ.get(CACHE_ENVIRONMENT_VARIABLE)
    if chosen:
        root = Path(chosen).expanduser().absolute()
    else:
        cache_home = os.environ.get("XDG_CACHE_HOME")
        base = Path(cache_home) if cache_home else Path("~/.cache").expanduser()
        root = base / "epsl-testbed" / "kernels"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return root
    except (OSError, RuntimeError):
        return None


def _prune(root: Path, prefix: str, current: Path) -> None:
    """Remove the oldest cache directories of a package beyond `MAX_CACHE_DIRECTORIES`."""
    aged: list[tuple[float, Path]] = []
    for directory in root.glob(f"{prefix}*"):
        try:
            if directory != current and directory.is_dir():
                aged.append((directory.stat().st_mtime, directory))
        except OSError:  # another process prunes too
            continue
    aged.sort(reverse=True)
    for modified, directory in aged[MAX_CACHE_DIRECTORIES - 1 :]:
        if time.time() - modified > PRUNE_MIN_AGE_S:
            shutil.rmtree(directory, ignore_errors=True)


@functools.lru_cache
def cache_directory(package: Path | None = None) -> Path:
    """Return the directory of a package's compiled kernels; None: of the allocator's.

    The root is the environment variable `TESTBED_KERNEL_CACHE`, else the user's cache folder, else
    a fresh private folder: cached machine code is executed, so one that others could have prepared
    is never used.
    """
    root = _cache_root()
    if root is None:
        return Path(tempfile.mkdtemp(prefix="epsl-testbed-kernels-"))
    prefix = f"{(package or _package()).name}-"
    directory = root / f"{prefix}{_source_hash(package)}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        _prune(root, prefix, directory)
    except OSError:
        # Time stamps and pruning are housekeeping; Numba says so itself if it cannot save.
        pass
    return directory


def kernel(function: _Function) -> _Function:
    """Compile a function to machine code on first call, cached on disk and without the GIL.

    Division by zero gives infinity, as in NumPy, since a zero rate is an infinite time here.
    """
    package = Path(function.__code__.co_filename).resolve().parent
    if package.parent != _package().parent:  # such as a test's; it is no package of kernels
        package = _package()
    # Numba reads the setting while it decorates.  It is put back at once, so that kernels of other
    # packages in this process keep their own cache.
    with _decoration_lock:
        previous = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(cache_directory(package))
        try:
            compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
        finally:
            numba.config.CACHE_DIR = previous
    return cast(_Function, compiled)
