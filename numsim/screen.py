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
        TextColumn("{task.description:<52}", markup=False), BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("loading and compiling", total=None)

        def move(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield move


# column of the results -> heading, format; the first decides the order
LANGUAGE = {
    "perplexity": ("perplexity", ".3f"),
    "kl_nats": ("KL nats", ".5f"),
    "sqnr_cumulative_db": ("SQNR dB", ".1f"),
    "top1_agreement": ("top-1", ".1%"),
}
SENTENCES = {
    "embedding_cosine": ("cosine", ".5f"),
    "embedding_cosine_min": ("smallest cosine", ".5f"),
}


# cases that agree in these were measured on the same text by the same network, and can be ranked
RUN = ("model", "text", "tokens", "perplexity_reference")


def sweep_table(rows: pd.DataFrame) -> None:
    """Print one line a case, a table for each run: model, text, tokens and reference."""
    console = Console(markup=False)  # a name may hold brackets
    if not console.is_terminal:
        console = Console(width=140, markup=False)
    cases = rows[rows["layer"] == "all"]
    for _, run in cases.groupby(list(RUN), sort=False, dropna=False):
        console.print(_ranked(run))


def _ranked(cases: pd.DataFrame) -> Table:
    """Return the cases of one run: lowest perplexity first, of an encoder the highest cosine."""
    encoder = "embedding_cosine" in cases and cases["embedding_cosine"].notna().any()
    figures = SENTENCES if encoder else LANGUAGE
    if not encoder and cases["perplexity"].isna().all() and cases["kl_nats"].notna().any():
        figures = {key: words for key, words in LANGUAGE.items() if key != "perplexity"}  # labels
    cases = cases.sort_values(next(iter(figures)), ascending=not encoder, kind="stable")
    model, text, tokens, reference = cases.iloc[0][list(RUN)]
    title = f"error versus bit format, best first; {model}, {int(tokens):,} tokens of {text}"
    if pd.notna(reference):
        title += f", reference perplexity {float(reference):.3f}"
    table = Table(title=title)
    for name in ("format", "granularity", "target"):
        table.add_column(name, no_wrap=True)
    for name in ("bits/weight", "bits/act", *(heading for heading, _ in figures.values()), "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in cases.to_dict("records"):
        recipe = row["recipe"] if isinstance(row["recipe"], str) else ""  # else None, or NaN
        failed = isinstance(row["error"], str)
        table.add_row(
            recipe or row["weight_format"], row["granularity"], row["target"],
            f"{float(row['bits_per_weight']):.2f}", f"{float(row['bits_per_act']):.2f}",
            *(
                "failed" if failed else f"{float(row[column]):{spec}}"
                for column, (_, spec) in figures.items()
            ),
            f"{float(row['seconds']):.1f}",
        )  # fmt: skip
    return table
