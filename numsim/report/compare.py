"""Two sweeps side by side: which cases moved, which are new, which are gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from numsim.errors import NumsimError
from numsim.report.tables import RUN, Results, read_results, records

PERPLEXITY = 1e-6  # relative change from which a case moved
DECIBELS = 0.01
SIGMAS = 2.0  # standard errors of the difference of two dNLL
Line = Mapping[str, Any]
COLUMNS = ("perplexity", "sqnr_cumulative_db", "dnll", "embedding_cosine")


def compare(now: Results, old: Path) -> pd.DataFrame:
    """Return the cases of two files that are not alike.

    A case of one file is that of the other with the same ``case_id``, else the only one with the
    same recipe digest and unit. Where their model, text or tokens differ there is nothing to
    compare.

    Returns
    -------
    DataFrame
        `case_id`, `name`, `change` ("moved", "new", "gone"), `moved` (whether it moved beyond
        `PERPLEXITY`, `DECIBELS` or `SIGMAS`), `same_recipe`; each of `COLUMNS` before and now
        (``perplexity_before``, ``perplexity_now``), and the differences `relative` (of perplexity,
        or the cosine), `decibels` and `sigmas`.

    Raises
    ------
    NumsimError
        Where `old` cannot be read, or is of another model, text or number of tokens.
    """
    before = read_results(old)
    _check_same_run(now, before)
    after, was = now.cases.set_index("case_id"), before.cases.set_index("case_id")
    pairs = _pairs(after, was)
    mine = {row["case_id"]: row for row in records(now.cases)}
    other = {row["case_id"]: row for row in records(before.cases)}
    rows = [_row(case, row, row, None) for case, row in mine.items() if case not in pairs]
    known = set(pairs.values())
    rows += [_row(case, row, None, row) for case, row in other.items() if case not in known]
    moved = [_row(a, mine[a], mine[a], other[b]) for a, b in pairs.items()]
    rows = [row for row in moved if row["differs"]] + rows
    columns = list(rows[0]) if rows else ["case_id", "name", "change", "moved"]
    return pd.DataFrame(rows, columns=columns)


def _check_same_run(now: Results, before: Results) -> None:
    for name in RUN:
        mine, other = (list(dict.fromkeys(found.cases[name])) for found in (now, before))
        if not set(mine) & set(other):
            raise NumsimError(
                f"report: --against compares sweeps of one model, text and number of tokens, and "
                f"{name} is {', '.join(mine)} in {now.source}, {', '.join(other)} in "
                f"{before.source}; name an older file of the same sweep"
            )


def _pairs(after: pd.DataFrame, was: pd.DataFrame) -> dict[str, str]:
    """Return the case of `was` that each case of `after` is."""
    pairs = {case: case for case in after.index if case in was.index}

    def alone(cases: pd.DataFrame, taken: set[str]) -> dict[tuple[str, str, str], str]:
        free = cases[~cases.index.isin(taken) & (cases["recipe_digest"] != "")]
        keys = list(zip(free["recipe_digest"], free["target"], free["seed"], strict=True))
        return {key: i for key, i in zip(keys, free.index, strict=True) if keys.count(key) == 1}

    old = alone(was, set(pairs.values()))
    for key, case in alone(after, set(pairs)).items():
        if key in old:
            pairs[case] = old[key]
    return pairs


def _row(case: str, one: Line, now: Line | None, was: Line | None) -> dict[str, object]:
    """Return a line; `one` is the case as far as there is one, now or before."""
    change = "moved" if now is not None and was is not None else "gone" if now is None else "new"
    row: dict[str, object] = {
        "case_id": case,
        "name": ", ".join(filter(None, (one["format"], one["scales"], one["target"]))),
        "change": change,
    }
    for name in COLUMNS:
        row[f"{name}_before"] = np.nan if was is None else was[name]
        row[f"{name}_now"] = np.nan if now is None else now[name]
    if now is None or was is None:
        return row | {"moved": True, "differs": True, "same_recipe": False, "appeared": False,
                      "relative": np.nan, "decibels": np.nan, "sigmas": np.nan}  # fmt: skip
    key = "perplexity" if np.isfinite(now["perplexity"]) else "embedding_cosine"
    with np.errstate(all="ignore"):
        relative = now[key] / was[key] - 1
        decibels = now["sqnr_cumulative_db"] - was["sqnr_cumulative_db"]
        error = np.hypot(now["dnll_stderr"], was["dnll_stderr"])
        sigmas = (now["dnll"] - was["dnll"]) / error if error > 0 else np.nan
    appeared = any(_appeared(now[n], was[n]) for n in COLUMNS)
    unlike = any(_unlike(now[name], was[name]) for name in COLUMNS)
    return row | {
        "moved": _beyond(relative, PERPLEXITY) or _beyond(decibels, DECIBELS)
        or _beyond(sigmas, SIGMAS) or appeared,
        "differs": unlike, "appeared": appeared,
        "same_recipe": unlike and one["recipe_digest"] != ""
        and now["recipe_digest"] == was["recipe_digest"],
        "relative": relative, "decibels": decibels, "sigmas": sigmas,
    }  # fmt: skip


def _beyond(difference: float, threshold: float) -> bool:
    return bool(abs(difference) > threshold)  # NaN: not known, so not beyond


def _appeared(a: float, b: float) -> bool:
    return bool(np.isnan(a) != np.isnan(b))


def _unlike(a: float, b: float) -> bool:
    return not (a == b or (np.isnan(a) and np.isnan(b)))
