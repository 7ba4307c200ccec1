"""The project's only door to Numba: cached kernels, where the cache lies, and the warm-up registry.

Numba's cache on disk notices an edit to the file of a kernel, but not an edit to a *callee* in
another file: it would go on running the old machine code.  Therefore the cache directory carries a
hash over the text of every module of this package, the versions of Numba, llvmlite and Python, and
the processor with its features.  Any edit leads to a fresh directory; old ones are pruned.

Kernels release the GIL and never allocate Python objects.  What is not here: the kernels, which
live beside the mathematics they compute, each with a plain NumPy reference.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import llvmlite
import llvmlite.binding
import numba
import platformdirs

CACHE_ENVIRONMENT_VARIABLE = "TESTBED_KERNEL_CACHE"
MAX_CACHE_DIRECTORIES = 8
# A directory younger than this may belong to a process that is still compiling into it.
PRUNE_MIN_AGE_S = 3600.0

_Function = TypeVar("_Function", bound=Callable[..., Any])
_decoration_lock = threading.Lock()
_warmups: dict[str, Callable[[], None]] = {}


def _source_hash() -> str:
    """Return a hash of everything that decides which machine code the kernels become."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    environment = (
        numba.__version__,
        llvmlite.__version__,
        platform.python_implementation(),
        platform.python_version(),
        platform.machine(),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
    )
    digest.update("\0".join(environment).encode())
    return digest.hexdigest()[:24]


def _is_writable(directory: Path) -> bool:
    """Return whether a file can really be made in `directory`, which is created when missing."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _temporary_root() -> Path:
    """Return a cache root under the temporary folder that only this user can write.

    Cached machine code is executed, so a folder that someone else could have prepared is refused.
    """
    user = os.getuid() if hasattr(os, "getuid") else None
    root = Path(tempfile.gettempdir()) / f"epsl-testbed-kernels-{'user' if user is None else user}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()
        trusted = stat.S_ISDIR(status.st_mode) and (
            user is None or (status.st_uid == user and not status.st_mode & 0o022)
        )
    except OSError:
        trusted = False
    if trusted and _is_writable(root):
        return root
    return Path(tempfile.mkdtemp(prefix="epsl-testbed-kernels-"))


def _cache_root() -> Path:
    """Return the folder that holds one cache directory per source hash."""
    chosen = os.environ.get(CACHE_ENVIRONMENT_VARIABLE)
    if chosen:
        root = Path(chosen).expanduser().absolute()
    else:
        root = Path(platformdirs.user_cache_dir("epsl-testbed")) / "kernels"
    return root if _is_writable(root) else _temporary_root()


def _prune(root: Path, current: Path) -> None:
    """Remove the oldest cache directories beyond `MAX_CACHE_DIRECTORIES`.

    Another process may prune at the same time, so a directory that vanishes is not an error.
    """
    aged: list[tuple[float, Path]] = []
    for directory in root.iterdir():
        # Only names of our own making: the root may be a folder that the user shares.
        if directory == current or len(directory.name) != 24 or not directory.is_dir():
            continue
        if not all(character in "0123456789abcdef" for character in directory.name):
            continue
        try:
            aged.append((directory.stat().st_mtime, directory))
        except OSError:
            continue
    aged.sort(reverse=True)
    for modified, directory in aged[MAX_CACHE_DIRECTORIES - 1 :]:
        if time.time() - modified > PRUNE_MIN_AGE_S:
            shutil.rmtree(directory, ignore_errors=True)


@functools.lru_cache(maxsize=1)
def cache_directory() -> Path:
    """Return the directory of this process's compiled kernels, created and marked as in use.

    The root is the environment variable `TESTBED_KERNEL_CACHE`, else the user's cache folder, else
    a private temporary folder where neither can be written.
    """
    root = _cache_root()
    directory = root / _source_hash()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        _prune(root, directory)
    except OSError:
        # Pruning and time stamps are housekeeping; Numba says so itself if it cannot save.
        pass
    return directory


@overload
def kernel(function: _Function, /) -> _Function: ...
@overload
def kernel(*, fastmath: bool | set[str] = False) -> Callable[[_Function], _Function]: ...
def kernel(
    function: _Function | None = None, /, *, fastmath: bool | set[str] = False
) -> _Function | Callable[[_Function], _Function]:
    """Compile a function to machine code on first call, cached on disk and without the GIL.

    Parameters
    ----------
    function
        The function, when used as a bare decorator.
    fastmath
        Lets the compiler reorder float arithmetic (a set names single LLVM flags).  Only where the
        NumPy reference is compared within a tolerance.

    Returns
    -------
    The compiled function, callable from Python and from other kernels.
    """

    def decorate(target: _Function) -> _Function:
        # Numba reads the setting while it decorates.  It is put back at once, so that kernels of
        # other packages in this process keep their own cache.
        with _decoration_lock:
            previous = numba.config.CACHE_DIR
            numba.config.CACHE_DIR = str(cache_directory())
            try:
                compiled = numba.njit(cache=True, nogil=True, fastmath=fastmath)(target)
            finally:
                numba.config.CACHE_DIR = previous
        return cast(_Function, compiled)

    return decorate if function is None else decorate(function)


def register_warmup(function: Callable[[], None]) -> Callable[[], None]:
    """Register a function that calls a module's kernels once with tiny production-typed arrays.

    The module name is its label, so a module registers one function; registering again replaces
    it.  Returns the function, so that it works as a decorator.
    """
    _warmups[function.__module__] = function
    return function


def warm_up(progress: Callable[[str], None] | None = None) -> None:
    """Compile, or load from the cache, the kernels of every module that has registered.

    Parameters
    ----------
    progress
        Called with the name of each module just before its kernels are compiled.
    """
    for name, function in list(_warmups.items()):
        if progress is not None:
            progress(name)
        function()
