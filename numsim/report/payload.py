"""The data of the page as one JSON text: columns, words that repeat stored once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from numsim.report.compare import DECIBELS, PERPLEXITY, SIGMAS
from numsim.report.decide import COSINE_TOLERANCE, EDGES, SHOWN, TOLERANCE, Answers, runs_of
from numsim.report.measures import BY_KEY, MEASURES, SETTINGS
from numsim.report.tables import Results

# What the script reads beside SETTINGS: name of the case, its facets.
FACETS = {"format": "short_format", "scales": "scales", "target": "target", "kind": "kind"}


def page_data(
    results: Results, answers: Iterable[Answers], compared: pd.DataFrame | None
) -> dict[str, Any]:
    """Return everything that the script of the page works with."""
    cases = results.cases
    shown = shown_measures(cases)
    words = {name: cases[name].astype(str) for name in SETTINGS if (cases[name] != "").any()}
    return {
        "measures": [BY_KEY[key]._asdict() | {"head": BY_KEY[key].head} for key in shown],
        "settings": {name: SETTINGS[name] for name in words},
        "words": {name: _words(column) for name, column in words.items()},
        "names": _words(cases["name"]),
        "facets": {name: _words(cases[column]) for name, column in FACETS.items()},
        "run": runs_of(cases).tolist(),
        "failed": cases["failed"].astype(int).tolist(),
        "numbers": {
            name: _numbers(cases[name])
            for name in dict.fromkeys(
                (*shown, *(m.stderr for m in MEASURES if m.stderr and m.key in shown),
                 *(("area_low", "area_high") if "area_ge" in shown else ()))
            )
        },
        "products": _products(results),
        "answers": [
            {"judged": found.key, "steps": found.steps, "tied": found.tied, "cost": found.cost}
            for found in answers
        ],
        "edges": list(EDGES),
        "tolerance": TOLERANCE,
        "shown": SHOWN,
        "cosine_tolerance": COSINE_TOLERANCE,
        "thresholds": [PERPLEXITY, DECIBELS, SIGMAS],
        "compared": None if compared is None else _rows(compared),
    }  # fmt: skip


def shown_measures(cases: pd.DataFrame) -> list[str]:
    """Return the measures that some case has."""
    return [m.key for m in MEASURES if cases[m.key].notna().any()]


def as_json(data: Any) -> str:
    r"""Return JSON that may stand in a script element: no letter of it ends one.

    Examples
    --------
    >>> as_json({"a": ["</script>", None, 8]})
    '{"a":["\\u003c/script>",null,8]}'
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def plain_number(value: float) -> float | int | str | None:
    """Return a number as JSON has it: None for NaN, "inf", integers without a point.

    >>> [plain_number(x) for x in (8.0, 0.1, math.nan, -math.inf)]
    [8, 0.1, None, '-inf']
    """
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return int(value) if value == int(value) and abs(value) < 1e15 else float(value)


def _numbers(column: pd.Series) -> list[Any]:
    return [plain_number(float(value)) for value in column]


def _words(column: pd.Series) -> dict[str, list[Any]]:
    codes, words = pd.factorize(column)
    return {"words": [str(word) for word in words], "at": codes.tolist()}


def _products(results: Results) -> dict[str, Any]:
    """Return local and cumulative SQNR of each product of each case."""
    products = results.products
    place = {case: i for i, case in enumerate(results.cases["case_id"])}
    return {
        "case": products["case_id"].map(place).tolist(),
        "layer": _words(products["layer"]),
        "op": _words(products["op"]),
        "local": _numbers(products["sqnr_local_db"]),
        "cumulative": _numbers(products["sqnr_cumulative_db"]),
    }


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            str(key): plain_number(float(value))
            if isinstance(value, float | np.floating)
            else bool(value)
            if isinstance(value, bool | np.bool_)
            else str(value)
            for key, value in row.items()
        }
        for row in frame.to_dict("records")
    ]
