"""Denormal numbers count as zero, where a processor can do that: those below 1.2e-38 in float32.

An operation on one can take a hundred times as long. Weight decay leaves such weights in filters that a network does not need,
and clients may send them. Next to any other number they make no difference.
"""

import contextlib
import ctypes
import platform
import sys

_FLUSH_TO_ZERO = 1 << 15
_DENORMALS_ARE_ZERO = 1 << 6
_STATE_WORDS = 8
"""Of 32 bits in `fenv_t` on x86-64. The last is MXCSR, which has these two bits."""


def flush_denormals() -> None:
    """Sets it for this thread and all that it starts from now on. Call it before threads start; not on x86-64 it does nothing."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):
        libm = ctypes.CDLL("libm.so.6")
        state = (ctypes.c_uint32 * _STATE_WORDS)()
        if libm.fegetenv(state) == 0:
            state[-1] |= _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO
            libm.fesetenv(state)
