"""The guard in conftest.py is itself a check, so it must be able to fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LEAKS = """
import multiprocessing, os, signal, socket, subprocess, sys, threading, time
import pytest

kept = []


def test_thread():
    thread = threading.Thread(target=threading.Event().wait, args=(60,), name="forgotten", daemon=True)
    thread.start()


def test_process():
    kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))


def _forked():
    time.sleep(60)


def test_worker_of_the_forkserver():
    kept.append(multiprocessing.get_context("forkserver").Process(target=_forked, daemon=True))
    kept[-1].start()


def test_socket():
    kept.append(socket.create_server(("127.0.0.1", 0)))


def test_memory():
    with open("/dev/shm/left_by_a_test_%d" % os.getpid(), "w") as file:
        file.write("x")


@pytest.fixture(scope="module")
def stubborn():
    thread = threading.Thread(target=threading.Event().wait, args=(60,), name="of a fixture", daemon=True)
    thread.start()


def test_fixture(stubborn):
    pass


def test_clean():
    context = multiprocessing.get_context("forkserver")
    worker = context.Process(target=abs, args=(-1,))
    worker.start()
    thread = threading.Thread(target=time.sleep, args=(0.2,))
    thread.start()
    with socket.create_server(("127.0.0.1", 0)):
        pass
    # Ends in its own time, and within the guard's patience.


@pytest.mark.hardware
def test_skipped():
    raise AssertionError
"""


def run_pytest(folder: Path, *arguments: str, **environ: str) -> str:
    guard = Path(__file__).with_name("conftest.py").read_text()
    assert "SETTLE_S = 3.0" in guard
    (folder / "conftest.py").write_text(guard.replace("SETTLE_S = 3.0", "SETTLE_S = 1.0"))
    (folder / "test_leaks.py").write_text(LEAKS)
    # Its own settings: those of the project would make errors of what the leaks warn about.
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    hardware\naddopts = -rA -p no:cacheprovider\n"
    )
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("TESTBED_", "PYTEST_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(folder / "pytest.ini"), str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**environment, "COLUMNS": "400", **environ},
    )
    return done.stdout + done.stderr


@pytest.fixture
def leaky_memory() -> None:
    yield
    for path in Path("/dev/shm").glob("left_by_a_test_*"):
        path.unlink()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm on this system")
def test_whatever_a_test_leaves_behind_fails_it(tmp_path, leaky_memory):
    output = run_pytest(tmp_path)
    errors = dict(re.findall(r"ERROR test_leaks\.py::(\w+) - Failed: left behind: (.*)", output))
    assert set(errors) == {
        "test_thread",
        "test_process",
        "test_worker_of_the_forkserver",
        "test_socket",
        "test_memory",
        # What a fixture of the module leaves is found at the end of the session: on the last test.
        "test_skipped",
    }, output
    assert "forgotten" in errors["test_thread"]
    assert "process" in errors["test_process"]
    assert "shared memory" in errors["test_memory"]
    assert "of a fixture" in errors["test_skipped"]
    assert "7 passed, 1 skipped, 6 errors" in output


def test_a_skip_is_a_failure_where_the_machine_must_have_what_the_test_needs(tmp_path):
    skipped = run_pytest(tmp_path, "-k", "test_skipped")
    assert "1 skipped" in skipped
    assert "no radio on the bench" in skipped
    failed = run_pytest(tmp_path, "-k", "test_skipped", TESTBED_REQUIRE="hardware")
    assert "1 error" in failed
    assert "TESTBED_REQUIRE asks for hardware, but: Skipped: no radio on the bench" in failed
    unknown = run_pytest(tmp_path, TESTBED_REQUIRE="warp-drive")
    assert "TESTBED_REQUIRE names ['warp-drive']" in unknown
