"""What a sweep shows on a terminal: a progress bar on stderr, a table on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@contextmanager
def sweep_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on stderr; yield the function that moves it."""
    bar = Progress(
        TextColumn("{task.description:<52}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("loading and compiling", total=None)

        def move(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield move


def sweep_table(rows: pd.DataFrame) -> None:
    """Print one line a case, lowest perplexity first."""
    cases = rows[rows["layer"] == "all"].sort_values("perplexity", kind="stable")
    table = Table(title="error versus bit format, best first")
    for name, justify in (
        ("format", "left"), ("granularity", "left"), ("target", "left"), ("bits/weight", "right"),
        ("bits/act", "right"), ("perplexity", "right"), ("KL nats", "right"),
        ("SQNR dB", "right"), ("top-1", "right"), ("s", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in cases.to_dict("records"):
        table.add_row(
            row["weight_format"], row["granularity"], row["target"],
            f"{float(row['bits_per_weight']):.2f}", f"{float(row['bits_per_act']):.2f}",
            f"{float(row['perplexity']):.3f}", f"{float(row['kl_nats']):.5f}",
            f"{float(row['sqnr_cumulative_db']):.1f}", f"{float(row['top1_agreement']):.1%}",
            f"{float(row['seconds']):.1f}",
        )  # fmt: skip
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
