"""From the CSV file of a sweep to tables of its finished cases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from numsim.errors import NumsimError
from numsim.report.csv import RANGES, REMEDY, Line, read_table

NUMBERS = ("bits_per_weight", "sqnr_local_db", "sqnr_cumulative_db", "kl_nats", "perplexity", "M")
SETTINGS = (
    "recipe", "model", "text", "tokens", "scale_format", "scale_rule", "rounding", "seed",
    "numsim_version", "case_id",
)  # fmt: skip
COLUMNS = (
    "layer", "op", "weight_format", "act_format", "granularity", "block", "target", "exact",
    *NUMBERS, *SETTINGS,
)  # fmt: skip
RUN = ("model", "text", "tokens")  # cases that agree in these can be ranked
PLAIN = {
    "weight_format": "float32", "act_format": "float32", "granularity": "none",
    "target": "ideal.fp32",
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """The finished cases of a sweep.

    Both tables have the columns of the CSV file and three more. `format`: element format, with
    the settings that differ between otherwise equal cases. `scales`: granularity and block.
    `bits`: stored bits for each weight of that format and granularity. `cases` has one row for
    each case, `products` one for each (case, layer, op).
    """

    source: str
    cases: pd.DataFrame
    products: pd.DataFrame
    unfinished: tuple[str, ...]


def read_results(path: Path) -> Results:
    """Read the CSV file of a sweep.

    Raises
    ------
    NumsimError
        If there is no such file, it is not CSV, columns are missing, a number is not one, or no
        case is finished.
    """
    rows = _read_rows(path)
    finished = rows.loc[rows["layer"] == "all", "case_id"]
    ids = dict.fromkeys(rows["case_id"])
    unfinished = tuple(case for case in ids if case not in set(finished))
    if finished.empty:
        raise NumsimError(
            f'report: needs a finished case, that is a row with layer "all", and {path} has none '
            f"in {len(rows)} rows; finish the sweep with numsim sweep --resume"
        )
    rows = rows[rows["case_id"].isin(set(finished))].drop_duplicates(
        ["case_id", "layer", "op"], keep="last"
    )
    whole = rows["layer"] == "all"
    cases = _with_labels(rows[whole])
    labels = cases[["case_id", "format", "scales", "bits"]]
    products = _emulated(rows[~whole]).merge(labels, on="case_id")
    return Results(path.name, cases, products, unfinished)


def _emulated(products: pd.DataFrame) -> pd.DataFrame:
    """Leave out the products that a case keeps in float32: their error is that of the order."""
    plain = (products[list(PLAIN)] == list(PLAIN.values())).all(axis=1)
    return products[~plain]


def _read_rows(path: Path) -> pd.DataFrame:
    lines = read_table(path, COLUMNS, {*NUMBERS, *RANGES})
    names = dict.fromkeys(name for line in lines for name in line.cells)
    rows = pd.DataFrame([line.cells for line in lines], columns=list(names or COLUMNS), dtype=str)
    rows = rows.fillna("")  # of two files, one may have more columns
    for name in NUMBERS:
        text = rows[name].mask(rows[name].str.lower().isin(["", "nan"]))
        numbers = pd.to_numeric(text, errors="coerce").astype(float)
        low, high, words = RANGES.get(name, (-math.inf, math.inf, ""))
        wrong = text.notna() & ~numbers.between(low, high)
        if wrong.any():
            at = int(wrong.to_numpy().argmax())
            kind = "numbers" if math.isnan(numbers[at]) else f"numbers of {words}"
            raise _wrong(path, name, kind, text[at], lines[at])
        rows[name] = numbers
    wrong = ~rows["exact"].str.lower().isin(["true", "false", ""])
    if wrong.any():
        at = int(wrong.to_numpy().argmax())
        raise _wrong(path, "exact", "True or False", rows["exact"][at], lines[at])
    return rows


def _wrong(path: Path, column: str, kind: str, cell: str, line: Line) -> NumsimError:
    return NumsimError(
        f"report: column {column} holds {kind}, and {path} has {cell!r} there, in line "
        f"{line.number}; {REMEDY}"
    )


def _with_labels(cases: pd.DataFrame) -> pd.DataFrame:
    """Add `format`, `scales` and `bits`, so that (format, scales, target) names one case."""
    weights, acts = cases["weight_format"], cases["act_format"]
    block = cases["block"].str.removesuffix(".0")
    cases = cases.assign(
        format=weights.where(weights == acts, weights + "/" + acts),
        scales=cases["granularity"] + (" " + block).mask(block == "", ""),
        exact=cases["exact"].str.lower() == "true",
    )
    keys = ["format", "scales", "target"]
    suffix = pd.Series("", index=cases.index)
    for name in SETTINGS:
        unlike = name in RUN and cases[name].nunique() > 1  # figures of two runs do not compare
        if not unlike and not cases.duplicated(keys).any():
            continue
        if unlike or (cases.groupby(keys)[name].nunique() > 1).any():
            keys.append(name)
            suffix += f" {name}=" + cases[name].mask(cases[name] == "", "none")
    cases["format"] += suffix
    cases["bits"] = cases.groupby(["format", "scales"])["bits_per_weight"].transform("first")
    return cases


def pivot(results: Results, column: str) -> pd.DataFrame:
    """Return a column of the finished cases: (format, scales) down, targets across.

    Formats and targets stand in the order of the CSV file, the granularities of a format together.
    """
    cases = results.cases
    table = cases.set_index(["format", "scales", "target"])[column].unstack("target")
    rows = cases[["format", "scales"]].drop_duplicates()
    order = {name: i for i, name in enumerate(dict.fromkeys(rows["format"]))}
    rows = rows.sort_values("format", key=lambda names: names.map(order), kind="stable")
    return table.reindex(
        index=pd.MultiIndex.from_frame(rows), columns=list(dict.fromkeys(cases["target"]))
    )


def local_sqnr(results: Results) -> pd.DataFrame:
    """Return the SQNR of each product alone: layer.op down, (format, scales) across, in dB.

    Where several targets ran, the lowest of them.
    """
    products = results.products
    names = (products["layer"] + "." + products["op"]).str.removesuffix(".")
    keys = [products["format"], products["scales"]]
    lowest = products["sqnr_local_db"].groupby([names.rename("product"), *keys]).min()
    table = lowest.unstack(["format", "scales"])
    columns = [key for key in pivot(results, "bits").index if key in table.columns]
    return table.reindex(
        index=list(dict.fromkeys(names)),
        columns=pd.MultiIndex.from_tuples(columns, names=["format", "scales"]),
    )
