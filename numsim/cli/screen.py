"""What a sweep shows on stdout: a table for people, or its cases for programs."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console

from numsim.errors import printable
from numsim.formats.label import short_labels
from numsim.losses import Ties
from numsim.words import k_tested, shorten, unusual_settings, with_error

# cases that agree in these were measured on the same text by the same network, and can be ranked
RUN = ("model", "text", "tokens", "perplexity_reference")
SETTINGS = (
    "products", "kv_format", "rounding", "scale_format", "scale_rule", "seed", "case_id",
)  # fmt: skip


FORMS = ("table", "csv", "json", "md")


def print_cases(rows: pd.DataFrame, form: str, results: Path | None = None) -> None:
    """Print the cases of a sweep on stdout, in one of `FORMS`.

    Of ``csv``, ``json`` and ``md`` everything goes out whole: one line a case, all columns that
    have a value there.
    """
    if form == "table":
        sweep_table(rows, results)
        return
    cases = rows[rows["layer"] == "all"].dropna(axis="columns", how="all")
    if form == "csv":
        text = cases.to_csv(index=False, lineterminator="\n")
    elif form == "json":
        text = cases.to_json(orient="records", indent=1, double_precision=15) + "\n"
    else:
        plain = cases.astype(object).where(cases.notna(), "")
        table = [list(plain.columns), *plain.to_numpy().tolist()]
        cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in table]
        cells.insert(1, ["---"] * len(cells[0]))
        text = "".join(f"| {' | '.join(row)} |\n" for row in cells)
    sys.stdout.write(text)


def sweep_table(rows: pd.DataFrame, results: Path | None = None) -> None:
    """Print one line a case, a table for each run: model, text, tokens and reference.

    Lines are as wide as the terminal: long words are shortened, and where that is not enough the
    last columns are left out, and named. Numbers are never cut.

    Parameters
    ----------
    rows
        As `numsim.sweep` returns them.
    results
        Their CSV file, beside which are the losses of tokens that tell cases apart.
    """
    width = shutil.get_terminal_size((140, 24)).columns  # where there is none, as in a file: 140
    console = Console(soft_wrap=True, markup=False, highlight=False, emoji=False)
    cases = rows[rows["layer"] == "all"]
    products = rows[rows["layer"] != "all"]
    for _, run in cases.groupby(list(RUN), sort=False, dropna=False):
        own = products[products["case_id"].isin(run["case_id"])]
        for line in ranked(run, own, results, width):
            console.print(line)


class Column(NamedTuple):
    """A column of the table on screen: one cell a case."""

    heading: str
    cells: list[str]
    right: bool = True


def ranked(
    cases: pd.DataFrame, products: pd.DataFrame, results: Path | None, width: int
) -> list[str]:
    """Return the lines of the table of one run: lowest KL first, of an encoder highest cosine."""
    encoder = bool(cases["embedding_cosine"].notna().any())
    first = "embedding_cosine" if encoder else "kl_nats"
    cases = cases.sort_values(first, ascending=not encoder, kind="stable")
    plain = cases.astype(object).where(cases.notna(), None)
    records = [{str(k): v for k, v in row.items()} for row in plain.to_dict("records")]
    names, said = _names(records)
    model, text, tokens = (printable(records[0][name]) for name in RUN[:3])
    title = f"error versus bit format, best first; {model}, {int(tokens):,} tokens of {text}"
    if records[0]["perplexity_reference"] is not None:
        title += f", reference perplexity {records[0]['perplexity_reference']:.3f}"
    marks = _marks(records, results)
    left = [Column("", marks, False)] if any(marks) else []
    for level, gap in ((0, 2), (1, 2), (2, 2), (2, 1), (3, 1)):
        figures = _figures(records, encoder, level)
        if len(set(figures[0].cells)) == 1 < len(records):
            said |= {figures[0].heading: figures[0].cells[0]}
            figures = figures[1:]
        lines = _lines([*left, *(_shorter(column, level) for column in names), *figures], gap)
        if max(map(len, lines)) <= width:
            break
    dropped: list[str] = []
    while max(map(len, lines)) > width and len(figures) > 1:
        bits_go = (
            len(figures) == 2 and figures[0].heading == "bits"
        )  # what cases are ranked by stays
        dropped.insert(0, figures.pop(0 if bits_go else -1).heading)
        lines = _lines([*left, *(_shorter(column, level) for column in names), *figures], gap)
    common = ", ".join(f"{name} {value}" for name, value in said.items())
    titles = [title, f"every case: {common}"] if said else [title]
    notes = [*_notes(marks, records, lines, encoder), *_tested(products)]
    if level:
        notes.append("names are shortened to fit; the file has them whole")
    if dropped:
        notes.append(f"left out, the terminal is too narrow: {', '.join(dropped)}")
    around = textwrap.TextWrapper(max(width, 40), break_on_hyphens=False, subsequent_indent="  ")
    above, below = ([line for t in texts for line in around.wrap(t)] for texts in (titles, notes))
    return [*above, *lines, *below]


def _names(records: list[dict[str, Any]]) -> tuple[list[Column], dict[str, str]]:
    """Return the columns that name a case, and what all cases have in common."""
    blocks = [row["block"] for row in records]
    scales = [
        f"{row['granularity']} {block}" if block else row["granularity"]
        for row, block in zip(records, blocks, strict=True)
    ]
    units = [f"{row['target']}{'' if row['exact'] else '*'}" for row in records]
    columns = {
        "format": short_labels([row["format"] for row in records]),
        "scales": scales,
        "unit": units,
    }
    unusual = {name for row in records for name in unusual_settings(row)}
    for name in SETTINGS:
        cells = ["" if row.get(name) is None else str(row[name]) for row in records]
        alike = set(zip(*columns.values(), strict=True))  # until no two cases have one name
        apart = set(zip(*columns.values(), cells, strict=True))
        if name in unusual or len(apart) > len(alike):
            columns[name] = cells
    said = {}
    for name in [n for n in columns if n != "format" and len(records) > 1]:
        if len(set(columns[name])) == 1:
            said[name] = printable(columns.pop(name)[0])
    shown = [Column(n, [printable(c) for c in cells], False) for n, cells in columns.items()]
    return shown, said


def _figures(records: list[dict[str, Any]], encoder: bool, level: int) -> list[Column]:
    """Return the columns of numbers: bits, the most important, others where they have a number."""

    def measured(name: str, stderr: str, sign: str = "") -> Callable[[dict[str, Any]], str]:
        return lambda row: with_error(row[name], row[stderr], sign, brackets=level > 2)

    def column(heading: str, write: Callable[[dict[str, Any]], str], needs: str) -> Column:
        cells = [
            "failed" if row["error"] else "" if row[needs] is None else write(row)
            for row in records
        ]
        return Column(heading, cells)

    bits = Column("bits", [_bits(row) for row in records])
    name = "embedding_cosine"
    kl, dnll = measured("kl_nats", "kl_stderr"), measured("dnll", "dnll_stderr", "+")
    perplexity, sqnr = ("perplexity", "SQNR dB") if level < 3 else ("ppl", "dB")
    figures = [
        column("KL nats", kl, "kl_nats"),
        column("dNLL nats", dnll, "dnll"),
        column(perplexity, lambda r: _plain(r["perplexity"]), "perplexity"),
    ]
    if encoder:
        figures = [
            column("cosine", measured(name, f"{name}_stderr"), name),
            column("smallest cosine", lambda r: f"{r[f'{name}_min']:.5f}", f"{name}_min"),
        ]
    figures += [
        column(sqnr, lambda r: f"{r['sqnr_cumulative_db']:.1f}", "sqnr_cumulative_db"),
        column("top-1", lambda r: f"{r['top1_agreement']:.1%}", "top1_agreement"),
        Column("s", ["" if r["seconds"] is None else f"{r['seconds']:.1f}" for r in records]),
    ]
    rest = [c for c in figures[1:] if not set(c.cells) <= {"", "failed"}]
    return [bits, figures[0], *rest]


def _bits(row: dict[str, Any]) -> str:
    """Return stored bits: of weights, and of activations where they differ."""
    weight, act = row["bits_per_weight"], row["bits_per_act"]
    if weight is None or act is None:
        return ""
    return f"{weight:.2f}" if abs(weight - act) < 0.05 else f"{weight:.2f}/{act:.2f}"


def _plain(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3e}"


def _marks(records: list[dict[str, Any]], results: Path | None) -> list[str]:
    """Return for each case whether it differs from the one above it by more than chance."""
    ties = Ties(results)
    marks = [""]
    if results is None:
        return marks * len(records)
    for better, worse in pairwise(records):
        marks.append("" if better["error"] or worse["error"] else ties.mark(better, worse))
    return marks


def _notes(
    marks: list[str], records: list[dict[str, Any]], lines: list[str], encoder: bool
) -> list[str]:
    """Return what the signs in the table mean."""
    measure, by = "cosine" if encoder else "KL", "token by token"
    if all(row["perplexity"] is None for row in records):  # an encoder, or a classifier
        by = "text by text"
    words = {
        "~": f"its {measure} and that of the line above differ by less than two standard errors "
        f"of their difference, {by}",
        "=": "the same as the line above, to the last bit",
        "?": "not compared with the line above: the losses of its tokens are not beside the file",
    }
    notes = [f"{mark} {text}" for mark, text in words.items() if mark in marks]
    if not all(row["exact"] for row in records):
        notes.append("* fake quantisation: rounded values, added in float32 by no unit's rules")
    if any("±" in line for line in lines):
        notes.append("± one standard error")
    elif any(re.search(r"\d\(\d+\)", line) for line in lines):
        notes.append("(n) one standard error, in units of the last digit")
    return notes


def _tested(products: pd.DataFrame) -> list[str]:
    """Say which lengths of dot products were emulated, and what that leaves open."""
    lengths = sorted(set(products.loc[products["emulated"].eq(True), "K"].dropna().astype(int)))
    if not lengths:
        return []
    return [k_tested(lengths)]


def _lines(columns: list[Column], gap: int) -> list[str]:
    widths = [max(len(c.heading), *map(len, c.cells)) for c in columns]
    rows = [[c.heading for c in columns], *zip(*(c.cells for c in columns), strict=True)]
    return [
        (" " * gap)
        .join(
            f"{cell:>{size}}" if column.right else f"{cell:<{size}}"
            for cell, column, size in zip(row, columns, widths, strict=True)
        )
        .rstrip()
        for row in rows
    ]


def _shorter(column: Column, level: int) -> Column:
    """Return a column with shorter words, but no two names that become one."""
    for step in range(level, -1, -1):
        cells = [_short_word(cell, step) for cell in column.cells]
        if len(set(cells)) == len(set(column.cells)):
            return column._replace(cells=cells)
    return column


def _short_word(word: str, level: int) -> str:
    """Return a word of a table, the shorter the higher the level.

    >>> [_short_word("nvidia.hopper.wgmma", n) for n in range(4)]
    ['nvidia.hopper.wgmma', 'hopper.wgmma', 'wgmma', 'wgmma']
    >>> [_short_word("per_channel+per_token", n) for n in range(3)]
    ['per_channel+per_token', 'channel+token', 'ch+tok']
    """
    for long in ("per_channel", "per_token", "per_tensor", "per_block"):
        if level:
            word = word.replace(long, long.removeprefix("per_"))
    if level > 1:
        word = re.sub(r"\bfloat\d+_", "", word)
        for long, short in (("channel", "ch"), ("token", "tok"), ("float", "f"), ("block", "blk")):
            word = word.replace(long, short)
    parts = word.split(".")
    if len(parts) > 1 and all(part[:1].isalpha() for part in parts):
        word = ".".join(parts[min(level, len(parts) - 1) :])
    return shorten(word, (60, 32, 24, 14)[level])
