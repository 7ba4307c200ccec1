"""libiio, where the machine has it, is new enough, and the PLUTO's Python package loads over it."""

from __future__ import annotations

import ctypes
import ctypes.util
import subprocess
import sys

import pytest

pytestmark = pytest.mark.libiio


def test_the_library_is_new_enough_for_the_network_context():
    library = ctypes.CDLL(ctypes.util.find_library("iio"))
    major, minor, tag = ctypes.c_uint(), ctypes.c_uint(), ctypes.create_string_buffer(8)
    library.iio_library_get_version(ctypes.byref(major), ctypes.byref(minor), tag)
    assert (0, 24) <= (major.value, minor.value) < (1, 0)
    library.iio_has_backend.restype = ctypes.c_bool
    assert library.iio_has_backend(b"ip")


def test_the_pluto_package_loads_in_a_child_process():
    # In a child: a fault of the library must not take the caller with it.
    child = "import adi, iio; print(adi.Pluto.__name__, *iio.version[:2])"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    name, major, minor = done.stdout.split()
    assert name == "Pluto"
    assert (0, 24) <= (int(major), int(minor)) < (1, 0)
