"""Cases on the workers of a dask scheduler: the results of one process, each as it is done."""

from __future__ import annotations

import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.jit import limit_threads
from numsim.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Future

S = TypeVar("S")
I = TypeVar("I")
R = TypeVar("R")
A = TypeVar("A")
CONNECT = 10  # seconds for a connection, and for a first worker
RETURN = 60  # seconds in which a lost worker may be replaced
_ADDRESS = re.compile(
    r"((tcp|tls|ucx|ws|wss)://)?(?P<host>[^\s:/@\[\]]+|\[[0-9a-fA-F:.%\w]+\]):(?P<port>\d{1,5})/?",
    re.ASCII,
)
_INPROC = re.compile(r"inproc://[^/\s]+/\d+/\d+")  # a scheduler in this process
_STATE: dict[str, Any] = {}  # of a worker: run -> what `start` returned, the latest only
_ONE_CASE = threading.Lock()  # a case uses all threads of its worker


def check_address(address: str) -> None:
    """Raise NumsimError unless `address` names a host that exists and a port.

    Examples
    --------
    >>> check_address("tcp://127.0.0.1:8786")
    >>> check_address("nowhere")
    Traceback (most recent call last):
    numsim.errors.NumsimError: sweep: no dask scheduler answers at 'nowhere' (an address is \
tcp://HOST:PORT); start one with `dask scheduler`, which prints its address
    """
    if _INPROC.fullmatch(address):
        return
    found = _ADDRESS.fullmatch(address)
    why = "an address is tcp://HOST:PORT"
    if found is not None and 0 < int(found["port"]) < 1 << 16:
        try:
            socket.getaddrinfo(found["host"].strip("[]"), int(found["port"]))
        except (OSError, UnicodeError) as error:
            why = f"{found['host']}: {getattr(error, 'strerror', None) or 'no name of a host'}"
        else:
            return
    raise NumsimError(
        f"sweep: no dask scheduler answers at {address!r} ({why}); start one with `dask "
        "scheduler`, which prints its address"
    )


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Connect to a scheduler that has a worker.

    Raises
    ------
    NumsimError
        distributed is not installed, nothing answers at `address`, or no worker is there.
    """
    check_address(address)
    try:
        from distributed import Client
    except ImportError:
        raise NumsimError(
            "sweep: a scheduler needs the package distributed, which is not installed; "
            "pip install 'numsim[cluster]', or use jobs"
        ) from None
    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise NumsimError(
            f"sweep: no dask scheduler answers at {address!r} ({error}); start one with "
            "`dask scheduler`, which prints an address such as tcp://HOST:8786"
        ) from None
    with client:
        _wait_for_a_worker(client, CONNECT)
        yield client


def on_cluster(
    start: Callable[[A], S], argument: A, work: Callable[[S, I], R], items: Sequence[I], *,
    address: str,
) -> Iterator[R]:  # fmt: skip
    """Yield ``work(start(argument), item)``, each as soon as it is done; each worker starts once.

    A worker runs one item at a time, on as many threads as it has. What a lost worker ran is run
    again by another.

    Raises
    ------
    NumsimError
        As `connected`; all workers, the same item's workers again and again, or the scheduler
        were lost; a worker has another numsim.
    """
    run = uuid4().hex
    with connected(address) as client:
        ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        left = set()
        for i, item in enumerate(items):
            key = f"{run}-{i}"
            future = client.submit(_work, run, __version__, start, argument, work, item, key=key)
            future.add_done_callback(ended.put)
            left.add(future)
        while left:
            try:
                future = ended.get(timeout=CONNECT)
            except queue.Empty:
                _wait_for_a_worker(client, RETURN)
                continue
            yield _result(client, future)
            left.discard(future)  # what it holds goes from the worker
        client.run(_forget)  # a worker outlives the sweep


def _result(client: Client, future: Future) -> Any:
    from distributed import KilledWorker

    while True:  # the worker that holds it may be lost too
        try:
            return future.result(timeout=CONNECT)
        except NumsimError:
            raise
        except TimeoutError:
            _wait_for_a_worker(client, RETURN)
        except KilledWorker as error:
            raise NumsimError(
                f"sweep: {error.allowed_failures + 1} workers were lost while they ran one case, "
                f"the last at {error.last_worker.address}, as for want of memory; give them more, "
                "and --resume"
            ) from None
        except Exception as error:
            raise NumsimError(
                f"sweep: a worker could not run a case ({type(error).__name__}: {error}); each "
                f"needs numsim {__version__}, and the scheduler must stay up; --resume goes on"
            ) from None


def _wait_for_a_worker(client: Client, seconds: int) -> None:
    try:
        client.wait_for_workers(1, timeout=seconds)
    except (TimeoutError, OSError):
        raise NumsimError(
            "sweep: the scheduler has no worker, or lost all of them; start some with "
            "`dask worker ADDRESS`, and --resume"
        ) from None


def _forget() -> None:
    _STATE.clear()


@known_floats
def _work(
    run: str, version: str, start: Callable[[A], S], argument: A, work: Callable[[S, I], R], item: I
) -> R:
    from distributed import get_worker

    if version != __version__:
        raise NumsimError(
            f"sweep: a worker has numsim {__version__}; the sweep {version}; install the same"
        )
    with _ONE_CASE:
        limit_threads(get_worker().state.nthreads)
        if run not in _STATE:
            _STATE.clear()
            _STATE[run] = start(argument)
        return work(_STATE[run], item)
