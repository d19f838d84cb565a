"""Sections of the page for the tables that other commands wrote beside the results."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from numsim.report.beside import TABLES, Beside
from numsim.report.markup import Html, tag
from numsim.report.sections import number, rows_table, section
from numsim.report.tables import records

FEW = 12  # rows of a table that is shown unfolded
ROWS = 60  # of a table that the page shows; the file beside it has all
RANGES = ("amax", "rms", "crest_row_median", "crest_16_median", "crest_32_median", "kurtosis")
FIGURES = {
    "tensors": ("hist", "crest"), "accumulators": ("accumulator", "promotion", "cliffs"),
    "positions": ("positions",), "sensitivity": ("sensitivity",), "diff": ("diff",),
}  # fmt: skip


def beside_sections(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Html]) -> list[Html]:
    """Return a section for each table; `figures`: all that are drawn, by name."""
    made = []
    for name, frame in tables.items():
        kind = TABLES[name]
        shown = [
            figure for key, figure in figures.items() if key.startswith(FIGURES.get(name, ("\0",)))
        ]
        body = _tensors(frame) if name == "tensors" else _rows(frame, kind)
        verdict = _verdicts(frame) if name == "orders" else None
        note = tag("p", kind.meaning, class_="note")
        made.append(section(f"beside-{name}", kind.title, note, verdict, *shown, body))
    return made


def _rows(frame: pd.DataFrame, kind: Beside) -> Html:
    names = [name for name in map(str, frame) if (frame[name].astype(str) != "").any()]
    names = [name for name in names if frame[name].notna().any()]
    body = [
        tag("tr", *(_cell(row[name], name in kind.numbers) for name in names))
        for row in records(frame.iloc[:ROWS])
    ]
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    return _folded(rows_table(head, body), len(frame))


def _verdicts(orders: pd.DataFrame) -> Html:
    """Return a row for each unit and order: whether its sums have the same bits in it."""
    body = []
    for (fmt, unit, order), own in orders.groupby(["format", "target", "order"], sort=False):
        moved = int((own["differing"] > 0).sum())
        cells = [
            tag("th", f"{fmt}, {unit}", scope="row"), tag("td", str(order)),
            tag("td", f"other bits in {moved} of {len(own)} products" if moved else
                f"the same bits in all {len(own)} products"),
            tag("td", number(100 * float(own["differing"].max()), ".3g"), class_="n"),
            tag("td", number(float(own["max_abs_rms"].max()), ".3g"), class_="n"),
        ]  # fmt: skip
        body.append(tag("tr", *cells))
    heads = ("unit", "order", "verdict", "most outputs differ, %", "largest, of rms")
    return rows_table(tag("tr", *(tag("th", word, scope="col") for word in heads)), body)


def _tensors(frame: pd.DataFrame) -> Html:
    """Return a row for each tensor: its ranges, and its SQNR in each format; the worst first."""
    way = frame["format"] + (" " + frame["granularity"]).mask(frame["granularity"] == "none", "")
    keys = ["layer", "op", "role"]
    table = frame.assign(way=way).pivot_table(
        index=keys, columns="way", values="sqnr_db", aggfunc="min", sort=False
    )
    ranges = frame.drop_duplicates(keys).set_index(keys)[list(RANGES)]
    order = table.min(axis=1).sort_values(kind="stable").index[:ROWS]
    body = []
    for key in order:
        cells = [*(number(float(v), ".3g") for v in ranges.loc[key])]
        cells += [number(float(v), ".1f") for v in table.loc[key]]
        body.append(
            tag("tr", tag("th", f"{key[0]}.{key[1]} {key[2]}", scope="row"),
                *(tag("td", cell, class_="n") for cell in cells))
        )  # fmt: skip
    heads = ["tensor", *RANGES, *(f"{name}, dB" for name in table.columns)]
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    return _folded(rows_table(head, body), len(table))


def _cell(value: object, numeric: bool) -> Html:
    if numeric:
        return tag("td", number(float(str(value)), ".4g"), class_="n")
    return tag("td", str(value))


def _folded(rows: Html, count: int) -> Html:
    words = (
        f"{count} rows" if count <= ROWS else f"{ROWS} of {count} rows; the file in tables has all"
    )
    return tag("details", tag("summary", words), rows, open=count <= FEW)
