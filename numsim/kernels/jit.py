"""The one compilation policy, and the one way to use more than one core."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar, cast

import numba
from numba.core.registry import CPUDispatcher

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.cache import KernelCache

R = TypeVar("R")
_CONFIG: Any = numba.config
_JIT: Any = partial(numba.njit, error_model="numpy", nogil=True)

# Inside compiled code scalars are NumPy's; at the boundary plain int and float are fine. So the
# wrappers keep what a kernel returns and leave its arguments unchecked.


def kernel(function: Callable[..., R]) -> Callable[..., R]:
    """Compile an entry point: no fastmath, releases the GIL, kept on disk."""
    return _entry(function)


def borrowing_kernel(function: Callable[..., R]) -> Callable[..., R]:
    """Compile an entry point that makes and returns no array, and counts no references to any.

    A count is a locked instruction, which waits until all that was stored before is in the cache.
    """
    return _entry(function, _nrt=False)


def _entry(function: Callable[..., R], **options: bool) -> Callable[..., R]:
    if function.__closure__:
        raise TypeError(f"{function.__qualname__} has a closure, of which no file's name tells")
    if _CONFIG.DISABLE_JIT:
        return cast("Callable[..., R]", _NotCompiled())
    compiled: Any = _JIT(no_cfunc_wrapper=True, **options)(function)
    compiled._cache = KernelCache(function)
    return cast("Callable[..., R]", compiled)


def inline(function: Callable[..., R]) -> Callable[..., R]:
    """Compile a helper that kernels call; LLVM inlines it into each of them."""
    if _CONFIG.DISABLE_JIT:
        return cast("Callable[..., R]", _NotCompiled())
    # What Python would call it by was a seventh of the time that kernels take to compile.
    compiled: Any = _JIT(no_cfunc_wrapper=True, no_cpython_wrapper=True)(function)
    compiled.__class__ = _Helper
    return cast("Callable[..., R]", compiled)


def called(function: Callable[..., R]) -> Callable[..., R]:
    """Compile a helper that kernels call by its address (`gemm.called`), kept on disk."""
    if _CONFIG.DISABLE_JIT:
        return cast("Callable[..., R]", _NotCompiled())
    compiled: Any = _JIT(no_cpython_wrapper=True)(function)
    compiled.__class__ = _Helper
    compiled._cache = KernelCache(function)
    return cast("Callable[..., R]", compiled)


def expanded(function: Callable[..., R]) -> Callable[..., R]:
    """Compile a helper that is copied into its callers before they are typed."""
    # Expanding in Numba's IR, not in LLVM's, leaves no trace of a function passed to it, which
    # would otherwise keep the caller out of the disk cache.
    compiled: Any = _JIT(inline="always")(function)
    return cast("Callable[..., R]", compiled)


class _Helper(CPUDispatcher):
    """A helper of kernels. Compiled code alone calls it: it has nothing that Python could call."""

    def __call__(self, *_: object) -> Any:
        name = self.py_func.__qualname__
        raise TypeError(f"{name} is a helper of kernels; call it in a function under @kernel")


class _NotCompiled:
    """A kernel under NUMBA_DISABLE_JIT: Python's integers do not wrap, nor has it the vectors."""

    def __call__(self, *_: object) -> Any:
        raise NumsimError(
            "kernels run as compiled code only, and NUMBA_DISABLE_JIT is set; unset it"
        )

    compile = __call__


def threads() -> int:
    """Return how many threads kernels use: NUMBA_NUM_THREADS, ``numba.set_num_threads``."""
    if _CONFIG.NUMBA_NUM_THREADS == 1:  # there can be no other answer, and Numba takes its time
        return 1
    return int(numba.get_num_threads())


def limit_threads(count: int) -> None:
    """Use at most `count` threads from now on."""
    numba.set_num_threads(min(count, threads()))


@cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="numsim")


if hasattr(os, "register_at_fork"):  # a child inherits the pool but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def over_range(work: Callable[[int, int], object], count: int, *, grain: int = 1) -> None:
    """Call ``work(start, stop)`` on consecutive pieces of ``range(count)``, one piece a thread.

    Pieces start at multiples of `grain`. Work is split over outputs only, so results cannot
    depend on the number of threads.
    """
    pieces = -(-count // grain)
    n = min(threads(), pieces) if pieces > 1 and not getattr(_WORKING, "here", False) else 1
    if n == 1:
        if count:
            work(0, count)
        return
    edges = [pieces * i // n * grain for i in range(n)] + [count]
    futures = [_pool(n - 1).submit(_piece, work, edges[i], edges[i + 1]) for i in range(1, n)]
    work(edges[0], edges[1])
    for future in futures:
        future.result()


_WORKING = threading.local()  # set in a pool's thread: waiting there for others would be for ever


@known_floats  # a pool's thread inherits nothing from its caller
def _piece(work: Callable[[int, int], object], start: int, stop: int) -> None:
    _WORKING.here = True
    work(start, stop)


_LEAST_WORK = 1 << 20  # products: fewer are done before a second thread has begun
PACKED = 16  # products that take as long as packing an element


def grain_of(pieces: int, products: int) -> int:
    """Return how many of the pieces, which take as long as so many products, a thread takes."""
    return max(1, pieces * _LEAST_WORK // max(products, 1))


def over_items(work: Callable[[int, int, int], object], batch: int, rows: int) -> None:
    """Call ``work(item, start, stop)`` over the rows of every item of a batch."""
    for i in range(batch):
        over_range(partial(work, i), rows)


@contextmanager
def using_threads(count: int) -> Iterator[bool]:
    """Use `count` threads inside; yield whether Numba was started with that many."""
    before = threads()
    possible = count <= int(_CONFIG.NUMBA_NUM_THREADS)
    if possible:
        numba.set_num_threads(count)
    try:
        yield possible
    finally:
        numba.set_num_threads(before)
