"""How far a long command is: a bar on a terminal and in a notebook, plain lines in a log."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from numsim.errors import printable
from numsim.words import shorten

Tell = Callable[[str, int, int], None]
EVERY = 10.0  # seconds between two lines of a log
_CASE = re.compile(r"(\d+) of (\d+): ")


@contextmanager
def sweep_progress(*, quiet: bool = False) -> Iterator[Tell]:
    """Show how far a sweep is, on stderr; yield the function that is told.

    A terminal and a notebook with ipywidgets get a bar with the time that is left, a log a line
    every ten seconds, and `quiet` nothing.
    """
    console = Console(stderr=True)
    if quiet:
        yield lambda what, done, total: None
    elif console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):
        with _bar(console) as tell:
            yield tell
    else:
        yield _lines()


@contextmanager
def spinner(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Show that something is being done, where a terminal is there to see it."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextmanager
def _bar(console: Console) -> Iterator[Tell]:
    bar = Progress(
        TextColumn("{task.description:<52}", markup=False), BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[best]}", markup=False),
        console=console, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("loading and compiling", total=None, best="")

        def move(what: str, done: int, total: int) -> None:
            words, _, best = what.partition("; best ")
            shown = f"best {shorten(best, 40)}" if best else ""
            bar.update(
                task, description=shorten(words, 52), completed=done, total=total, best=shown
            )

        yield move


def _lines() -> Tell:
    """Return what writes a line of a log, the first after ten seconds."""
    began = last = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < EVERY:
            return
        last = now
        words = log_line(what, done, total, now - began)
        print(f"numsim: {printable(words)}", file=sys.stderr, flush=True)  # noqa: T201

    return tell


def log_line(what: str, done: int, total: int, seconds: float) -> str:
    """Return how far a sweep is, with its rate and the time that is left.

    Examples
    --------
    >>> log_line("3 of 14: int8 per_tensor ideal.int", 24, 120, 12.0)
    '3 of 14: int8 per_tensor ideal.int, 20 %, 15.0 cases a minute, about 48 s left'
    """
    share = done / total if total else 0.0
    found = _CASE.match(what)
    rate = f", {60 * int(found[1]) / seconds:.1f} cases a minute" if found and seconds else ""
    left = f", about {seconds * (1 - share) / share:.0f} s left" if share else ""
    return f"{what}, {share:.0%}{rate}{left}".replace("%", " %")
