"""Keep freed memory: a page that the system takes back costs more than the samples that fill it.

glibc returns the top of its heap to the system, and maps large arrays anew, at each release.  A modem
allocates and frees arrays of about a megabyte per frame, so every frame would touch fresh pages: on
a virtual machine 3 us for each 4 KiB, twenty times what filling them takes.
"""

from __future__ import annotations

import ctypes
import functools
import sys

# mallopt(3), and the values of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
KEPT_BYTES = 1 << 28  # freed memory at the top of the heap that stays with the process
MAPPED_FROM_BYTES = 1 << 25  # larger arrays are mapped one by one; the most that glibc takes


@functools.cache
def keep_freed_memory() -> bool:
    """Tell the allocator of this process to reuse what is freed; ``False`` where it is not glibc's."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no such function
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    wanted = (
        (_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
        (_M_TRIM_THRESHOLD, KEPT_BYTES),
        (_M_TOP_PAD, 1 << 22),
    )
    return all(mallopt(name, value) == 1 for name, value in wanted)
