"""Work in several processes: the results of one, in the same order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
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
    jobs: int, who: str, ordered: bool = True,
) -> Generator[R]:  # fmt: skip
    """Yield ``work(start(argument), item)``; each of `jobs` processes starts once.

    In the order of the items, or, not `ordered`, each as soon as it is done.

    The processes share the threads of this one. They are fresh interpreters (no fork: threads do
    not survive one), so `start`, `work` and what they take must be importable and picklable. They
    end with this one, however it ends, and at once where the caller closes the iterator. `who`
    begins the message of an error.

    Raises
    ------
    NumsimError
        A process was killed, as for want of memory.
    """
    jobs = min(jobs, len(items))
    context = get_context("spawn")
    ended, alive = context.Pipe(duplex=False)  # nothing is sent: its end is the message
    pool = ProcessPoolExecutor(
        jobs, context, _start, (start, argument, max(1, threads() // jobs), ended)
    )
    done = False
    try:
        with _interrupts_are_ours():
            futures = [pool.submit(_work, work, item) for item in items]
        for future in futures if ordered else as_completed(futures):
            yield future.result()
        done = True
    except BrokenProcessPool:
        raise NumsimError(
            f"{who}: one of {jobs} processes ended early, as for want of memory, or the script "
            f'that calls {who} lacks `if __name__ == "__main__":`; use fewer jobs, or --resume'
        ) from None
    finally:
        if not done:
            alive.close()
        pool.shutdown(wait=True, cancel_futures=True)
        alive.close()
        ended.close()


@contextmanager
def _interrupts_are_ours() -> Iterator[None]:
    """Let processes that start meanwhile ignore Ctrl-C, which the terminal sends to all."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would let them through when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@known_floats
def _start(start: Callable[[A], S], argument: A, share: int, ended: Connection) -> None:
    threading.Thread(target=_end_with, args=(ended,), daemon=True).start()
    limit_threads(share)
    _STATE[:] = [start(argument)]


def _end_with(ended: Connection) -> None:
    """End this process when the one that began it is gone or wants no more."""
    try:
        ended.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)


@known_floats
def _work(work: Callable[[Any, I], R], item: I) -> R:
    return work(_STATE[0], item)
