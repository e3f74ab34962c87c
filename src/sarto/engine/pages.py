"""What glibc does with memory that was freed: a run keeps it for its next step, a server that lives long gives it back.
Elsewhere both do nothing.
"""

from __future__ import annotations

import ctypes
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2
KEPT = ((MMAP_THRESHOLD, 32 << 20), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 << 20))


def keep_pages() -> None:
    """Keep what is freed, so that no step has to have its pages given to it again."""
    if library := _glibc():
        for option, size in KEPT:
            library.mallopt(option, size)


def return_pages() -> None:
    """Give the pages between what is in use back to the system; takes milliseconds."""
    if library := _glibc():
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "gnu_get_libc_version") else None
