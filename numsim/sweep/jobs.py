"""Cases in several processes: the results of one, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.jit import limit_threads, threads

S = TypeVar("S")
I = TypeVar("I")
R = TypeVar("R")
A = TypeVar("A")
_STATE: list[Any] = []  # of a worker: what `start` returned


def in_processes(
    start: Callable[[A], S], argument: A, work: Callable[[S, I], R], items: Sequence[I], *,
    jobs: int,
) -> Iterator[R]:  # fmt: skip
    """Yield ``work(start(argument), item)`` in order; each of `jobs` processes starts once.

    The processes share the threads of this one. They are fresh interpreters (no fork: threads do
    not survive one), so `start`, `work` and what they take must be importable and picklable.

    Raises
    ------
    NumsimError
        A process was killed, as for want of memory.
    """
    jobs = min(jobs, len(items))
    pool = ProcessPoolExecutor(
        jobs, get_context("spawn"), _start, (start, argument, max(1, threads() // jobs))
    )
    try:
        yield from pool.map(_work, [work] * len(items), items)
    except BrokenProcessPool:
        raise NumsimError(
            f"sweep: one of {jobs} processes ended early, as for want of memory, or the script "
            'that calls sweep lacks `if __name__ == "__main__":`; use fewer jobs, or --resume'
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@known_floats
def _start(start: Callable[[A], S], argument: A, share: int) -> None:
    limit_threads(share)
    _STATE[:] = [start(argument)]


@known_floats
def _work(work: Callable[[Any, I], R], item: I) -> R:
    return work(_STATE[0], item)
