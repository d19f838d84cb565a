"""The table that a sweep returns: all rows, and two tidy views of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from numsim.sweep.columns import COLUMNS, NAMES, Column

_OF_PRODUCTS = (  # columns that only rows of products fill
    "M", "N", "K", "sqnr_local_db", "saturation_rate", "underflow_rate", "acc_overflow_rate",
    "mean_signed_error", "sqnr_depth_db", "acc_swamp_rate", "acc_peak_bits",
)  # fmt: skip
_OF_CASES = (  # columns that only the row of the network fills
    "kl_nats", "kl_stderr", "kl_p99_nats", "kl_max_nats", "top1_agreement", "top5_agreement",
    "perplexity", "perplexity_reference", "dnll", "dnll_stderr", "embedding_cosine",
    "embedding_cosine_min", "embedding_cosine_stderr", "seconds", "tokens", "window_start",
    "unused_keys", "error", "check",
)  # fmt: skip
_PLAIN = ("error", "check", "case_id")  # words that do not repeat


class Rows(pd.DataFrame):
    """Rows of a sweep, a DataFrame: one for each product of each case, and one for each case."""

    @property
    def _constructor(self) -> type[Rows]:
        return Rows

    @property
    def cases(self) -> pd.DataFrame:
        """One row a case: the figures of the whole network; words are categories."""
        return self._view(self["layer"] == "all", ("layer", "op", *_OF_PRODUCTS))

    @property
    def products(self) -> pd.DataFrame:
        """One row a case and product; words are categories. `emulated` tells what stays float32."""
        return self._view(self["layer"] != "all", _OF_CASES)

    @property
    def glossary(self) -> pd.DataFrame:
        """Name, unit and meaning of every column."""
        rows = [(c.name, c.unit, c.meaning) for c in COLUMNS]
        return pd.DataFrame(rows, columns=["column", "unit", "meaning"]).set_index("column")

    def _view(self, chosen: Any, left_out: tuple[str, ...]) -> pd.DataFrame:
        dropped = [name for name in left_out if name in self]
        frame = pd.DataFrame(self[chosen].drop(columns=dropped)).reset_index(drop=True)
        words = [c.name for c in COLUMNS if _repeats(c) and c.name in frame]
        words = [name for name in words if frame[name].dtype == "string"]  # blocks are numbers
        return frame.astype(dict.fromkeys(words, "category"))


def _repeats(column: Column) -> bool:
    return column.type is str and column.name not in _PLAIN


def as_frame(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Return rows as a table whose columns have one type each, whatever is missing."""
    types = {str: "string", int: "Int64", bool: "boolean", float: "float64"}
    frame = Rows([dict(row) for row in rows], columns=list(NAMES), dtype=object)
    chosen = {column.name: types[column.type] for column in COLUMNS}
    if frame["block"].dropna().astype(str).str.isdecimal().all():  # no tiles
        frame["block"] = frame["block"].map(int, na_action="ignore")
        chosen["block"] = "Int64"
    return Rows(frame.astype(chosen))
