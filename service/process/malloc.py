"""Settings of glibc's malloc, so that memory that was freed goes back to the system. Elsewhere they do nothing."""

import contextlib
import ctypes
import os

_MALLOC_OPTIONS = {
    -8: 4,  # M_ARENA_MAX: arenas
    -3: 4 * 2**20,  # M_MMAP_THRESHOLD: larger blocks have pages of their own, which free() gives back
    -1: 8 * 2**20,  # M_TRIM_THRESHOLD: what may stay free at the end of an arena
}


def limit_freed_memory() -> None:
    """Has glibc's malloc give memory back that large requests needed. Call it before threads start; elsewhere it does nothing.

    By default each thread gets an arena of its own, up to eight a core, and an arena keeps up to 64 MiB free once it has had large
    blocks. The many threads of the HTTP port would keep gigabytes. If the environment has settings for malloc, these hold and
    nothing is changed.
    """
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):  # macOS and musl have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _MALLOC_OPTIONS.items():
            mallopt(option, value)


def return_freed_memory() -> None:
    """Gives the memory that malloc holds free back to the system: a model that is closed leaves up to its own size there.

    Takes milliseconds with glibc; elsewhere it does nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
