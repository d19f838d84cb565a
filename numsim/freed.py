"""Freed memory: whether the C library keeps it for the next array or gives it back.

A training step frees and asks for the same hundreds of megabytes again and again. What was given
back returns page by page, each with an interrupt: a third of a step's time.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

# glibc's malloc.h, and bytes: what is kept, what is asked for at once, what is mapped by itself
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT, _AT_ONCE, _OWN_MAP = 1 << 28, 1 << 24, 1 << 25
_SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


@cache
def keep_freed() -> bool:
    """Keep up to 256 MB of freed memory in this process from now on, where glibc manages it.

    Returns
    -------
    bool
        False where another C library does, or where the user has set one of glibc's variables.

    Notes
    -----
    **Source**: glibc manual, "Malloc Tunable Parameters".

    Examples
    --------
    >>> keep_freed() in (True, False)
    True
    """
    if os.name != "posix" or any(name in os.environ for name in _SET_BY_USER):
        return False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    settings = ((_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _AT_ONCE), (_MMAP_THRESHOLD, _OWN_MAP))
    return all(library.mallopt(*setting) for setting in settings)
