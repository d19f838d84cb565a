"""From the CSV file of a sweep to tables of its finished cases."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from numsim.cost import Row
from numsim.errors import NumsimError
from numsim.formats.label import short_labels
from numsim.report.csv import RANGES, REMEDY, Line, read_table
from numsim.report.measures import DERIVED, MEASURES
from numsim.report.prices import area_range, repriced
from numsim.words import unusual_settings

NUMBERS = (
    "bits_per_weight", "bits_per_act", "sqnr_local_db", "sqnr_cumulative_db", "kl_nats", "dnll",
    "dnll_stderr", "perplexity", "top1_agreement", "embedding_cosine", "embedding_cosine_min",
    "M", "N", "K",
)  # fmt: skip
SETTINGS = (
    "recipe", "weight_format", "act_format", "model", "text", "tokens", "scale_format",
    "scale_rule", "rounding", "seed", "numsim_version", "case_id",
)  # fmt: skip
COLUMNS = ("layer", "op", "granularity", "block", "target", "exact", *NUMBERS, *SETTINGS)
# Columns that came later, or that only some sweeps have: without them there is nothing to show.
LATER_NUMBERS = tuple(
    dict.fromkeys((
        "kl_stderr", "embedding_cosine_stderr", "perplexity_reference", "saturation_rate",
        "underflow_rate", "acc_overflow_rate", "mean_signed_error", "sqnr_depth_db",
        "acc_swamp_rate", "acc_peak_bits",
        *(m.key for m in MEASURES if m.key not in (*NUMBERS, *DERIVED)),
    ))
)  # fmt: skip
ASKED = ("products", "kv_format")  # settings that say by themselves what they set
LATER_WORDS = (
    "error", "recipe_digest", "accumulator", "energy_node", "cost_source", "cost_mark", *ASKED,
)  # fmt: skip
WHOLE = ("block", "tokens", "seed")
_KEYS = re.compile(r" (?:scale_format=(?:float\d+_)?|scale_rule=|products=(?=\w))")
RUN = ("model", "text", "tokens")  # cases that agree in these can be ranked


@dataclass(frozen=True)
class Results:
    """The finished cases of a sweep.

    Both tables have the columns of the CSV file and two more. `format` has the settings beside it
    that nobody expects, or that differ between otherwise equal cases. `scales`: granularity and
    block. `bits`: stored bits for each weight of that format and granularity. `cases` has one row
    for each case, `products` one for each (case, layer, op) that the case emulates. `short_format`
    is what `format` says of the format itself, `whole_format` what the file says.
    """

    source: Path
    cases: pd.DataFrame
    products: pd.DataFrame
    unfinished: tuple[str, ...]


def read_results(path: Path, costs: Iterable[Row] | None = None) -> Results:
    """Read the CSV file of a sweep; `costs` price its energies again.

    Raises
    ------
    NumsimError
        If there is no such file, it is not CSV, columns are missing, a number is not one, or no
        case is finished.
    """
    rows = _read_rows(path)
    if costs is not None:
        rows = repriced(rows, costs)
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
    labels = cases[["case_id", "name", "format", "scales", "bits"]]
    emulated = rows["emulated"].str.lower() == "true"  # others are not what the case is about
    products = rows[~whole & emulated].drop(columns="format").merge(labels, on="case_id")
    return Results(path, _with_derived(cases, products), products, unfinished)


def _read_rows(path: Path) -> pd.DataFrame:
    numbers_here = (*NUMBERS, *LATER_NUMBERS)
    lines = read_table(path, COLUMNS, {*numbers_here, *RANGES})
    heads = dict.fromkeys(tuple(line.cells) for line in lines)  # one, or of files put together
    names = dict.fromkeys(name for head in heads for name in head)
    rows = pd.DataFrame([line.cells for line in lines], columns=list(names or COLUMNS), dtype=str)
    rows = rows.fillna("")  # of two files, one may have more columns
    for name in (*LATER_NUMBERS, *LATER_WORDS):
        if name not in rows:
            rows[name] = ""
    if "format" not in rows:
        rows["format"] = rows["weight_format"]
    if "emulated" not in rows:
        stays = (rows["weight_format"] == "float32") & (rows["act_format"] == "float32")
        rows["emulated"] = (~stays).astype(str)
    for name in WHOLE:  # other programs write 32 as 32.0
        rows[name] = rows[name].str.replace(r"[.,]0$", "", regex=True)
    for name in numbers_here:
        text = rows[name].mask(rows[name].str.lower().isin(["", "nan"]))
        numbers = pd.to_numeric(text, errors="coerce").astype(float)
        low, high, words = RANGES.get(name, (-math.inf, math.inf, ""))
        wrong = text.notna() & ~numbers.between(low, high)
        if wrong.any():
            at = int(wrong.to_numpy().argmax())
            kind = "numbers" if math.isnan(numbers[at]) else f"numbers of {words}"
            raise _wrong(path, name, kind, text[at], lines[at])
        rows[name] = numbers
    for name in ("exact", "emulated"):
        wrong = ~rows[name].str.lower().isin(["true", "false", ""])
        if wrong.any():
            at = int(wrong.to_numpy().argmax())
            raise _wrong(path, name, "True or False", rows[name][at], lines[at])
    return rows


def _wrong(path: Path, column: str, kind: str, cell: str, line: Line) -> NumsimError:
    return NumsimError(
        f"report: column {column} holds {kind}, and {path} has {cell!r} there, in line "
        f"{line.number}; {REMEDY}"
    )


def _with_labels(cases: pd.DataFrame) -> pd.DataFrame:
    """Add `scales` and `bits`, and settings to `format`: with the target, they name one case."""
    block = cases["block"]
    cases = cases.assign(
        whole_format=cases["format"],
        format=short_labels(cases["format"].tolist()),
        scales=cases["granularity"] + (" " + block).mask(block == "", ""),
        exact=cases["exact"].str.lower() == "true",
    )
    keys = ["format", "scales", "target"]
    suffix = pd.Series("", index=cases.index)
    unusual = [unusual_settings(dict(row)) for _, row in cases.iterrows()]
    for name in (*ASKED, *SETTINGS):
        unlike = name in RUN and cases[name].nunique() > 1  # figures of two runs do not compare
        empty = cases[name] == ""
        said = f" {name}=" + cases[name].mask(empty, "none")
        if name in ASKED:
            said = said.mask(empty, "")
        if unlike or (cases.groupby(keys)[name].nunique() > 1).any():
            keys.append(name)
            suffix += said
        else:
            suffix += said.where(pd.Series([name in row for row in unusual], index=cases.index), "")
    cases["short_format"] = cases["format"]
    cases["format"] += suffix
    plain = cases["scales"].isin(["", "none"])
    cases["name"] = [without_keys(name) for name in cases["format"]]
    cases["name"] += (", " + cases["scales"]).mask(plain, "")
    cases["kind"] = cases["exact"].map({True: "exact", False: "fake"})
    cases["bits"] = cases.groupby(["format", "scales"])["bits_per_weight"].transform("first")
    return cases


def without_keys(name: str) -> str:
    """Return the name of a case without the keys of words that say by themselves what they set.

    >>> without_keys("int4 scale_format=float8_e8m0fnu scale_rule=floor seed=1")
    'int4 e8m0fnu floor seed=1'
    """
    return _KEYS.sub(" ", name)


def _with_derived(cases: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """Add what follows from other columns; see `numsim.report.measures`."""
    worst = products.groupby("case_id")["sqnr_local_db"].min()
    moved = cases["bytes_weights"] + cases["bytes_acts"] + cases["bytes_out"]
    moved += cases["bytes_kv"].fillna(0.0)
    low, high = area_range(cases["area_ge"], cases["bits_per_weight"], cases["block"])
    return cases.assign(
        perplexity_above=100 * (cases["perplexity"] / cases["perplexity_reference"] - 1),
        worst_db=cases["case_id"].map(worst),
        bytes_moved=moved,
        pj_per_mac=cases["energy_pj"] / cases["macs"],
        area_low=low,
        area_high=high,
        failed=cases["error"] != "",
    )


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dicts."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def ranking(results: Results) -> list[pd.DataFrame]:
    """Return the cases of each run, best first: lowest KL divergence, or highest cosine."""
    runs = []
    for _, run in results.cases.groupby(list(RUN), sort=False):
        encoder = run["kl_nats"].isna().all() and run["embedding_cosine"].notna().any()
        measure = "embedding_cosine" if encoder else "kl_nats"
        runs.append(run.sort_values(measure, ascending=not encoder, kind="stable"))
    return runs


def what_has_noise(cases: pd.DataFrame) -> str:
    """Return what `sqnr_cumulative_db` of whole networks was measured on."""
    found = {
        "the logits": cases["kl_nats"].notna().any(),
        "the last hidden states": cases["embedding_cosine"].notna().any(),
    }
    return " or ".join(what for what, there in found.items() if there) or "the output"


def emulated_lengths(results: Results) -> list[int]:
    """Return the lengths K of the dot products that were emulated."""
    return sorted(int(k) for k in results.products["K"].dropna().unique())


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
