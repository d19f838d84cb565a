"""What other commands wrote beside the results: tensors, accumulators, sensitivity, differences."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from numsim.errors import printable
from numsim.files import table_beside
from numsim.report.csv import number_columns, read_table


class Beside(NamedTuple):
    """A table beside results: its columns that are words, and what the page calls it."""

    title: str
    meaning: str
    words: tuple[str, ...]
    numbers: tuple[str, ...]
    made_by: str


TABLES: dict[str, Beside] = {
    "tensors": Beside(
        "Tensors",
        "Ranges of the tensors of the network, in float32, and what each format loses of them. "
        "Crest: the largest magnitude of a block over its root mean square. W: weights, A: inputs "
        "of products, O: their results, KV: keys and values.",
        ("layer", "op", "role", "format", "granularity", "block", "hist_counts"),
        ("n", "amax", "rms", "crest_row_median", "crest_16_median", "crest_32_median", "kurtosis",
         "subnormal_rate", "underflow_rate", "saturation_rate", "sqnr_db", "hist_lo", "hist_step"),
        "numsim sweep --stats, or numsim profile",
    ),
    "accumulators": Beside(
        "Accumulators",
        "How wide an accumulator must be: for any data of the format (bound), for these weights "
        "(l1 bound), for these tokens (measured peak), and fraction bits of a float one by the "
        "retention of variance (VRR). SQNR: of the sum alone.",
        ("layer", "op", "format", "target", "overflow", "promote_every"),
        ("K", "bits_bound", "bits_bound_l1", "bits_measured_peak", "vrr_bits", "acc_bits",
         "swamp_rate", "overflow_rate", "sqnr_db"),
        "numsim accumulator, or numsim sweep --stats",
    ),
    "orders": Beside(
        "Order of sums",
        "Whether a unit gives the same bits where the sum is cut or ordered otherwise.",
        ("layer", "op", "format", "target", "order"), ("K", "differing", "max_abs_rms"),
        "numsim accumulator",
    ),
    "positions": Beside(
        "Error by position",
        "KL divergence by the position of a token in its window: what grows with decode length.",
        ("case_id", "format", "granularity", "target"),
        ("begin", "end", "tokens", "kl_nats", "kl_stderr", "nll"),
        "numsim sweep --stats",
    ),
    "sensitivity": Beside(
        "Sensitivity",
        "Whose error it is. Only: this part alone in the format. Budget: KL of the case minus its "
        "KL with this part in float32. Shares of parts need not add up to one.",
        ("part",),
        ("products", "values", "kl_only_nats", "kl_only_stderr", "share_only",
         "kl_without_nats", "kl_budget_nats", "kl_budget_stderr", "share_budget"),
        "numsim sensitivity",
    ),
    "diff": Beside(
        "Two units on equal inputs",
        "Share of outputs that differ, and by how many units in the last place.",
        ("layer", "op", "ulp_hist", "first"),
        ("K", "differing", "max_ulp", "mean_signed_ulp", "sqnr_db"),
        "numsim diff",
    ),
    "cause": Beside(
        "Which rule explains it",
        "Share of the differing outputs that come right when this field alone is changed.",
        ("field", "a", "b"), ("differing_if_only_this_changed", "explains"),
        "numsim diff",
    ),
    "depth": Beside(
        "Depth",
        "How two runs part with the layers.",
        (), ("depth", "sqnr_db", "differing", "kl_nats"), "numsim diff",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Sidecars:
    """The tables that stand beside results, by name, and what their manifest says."""

    tables: dict[str, pd.DataFrame]
    manifest: dict[str, Any]


def read_beside(results: Path) -> Sidecars:
    """Read the tables beside the results of a sweep; those that are not there are left out.

    Raises
    ------
    NumsimError
        A table is there and is none, or has something else where numbers stand.
    """
    tables = {}
    for name, kind in TABLES.items():
        path = table_beside(results, name)
        if not path.is_file():
            continue
        remedy = f"write it again with {kind.made_by}, or take it away"
        lines = read_table(path, [*kind.words, *kind.numbers], kind.numbers, remedy)
        if lines:
            tables[name] = number_columns(path, lines, kind.numbers, remedy)
    manifest = results.with_name(f"{results.stem}.manifest.toml")
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError, RecursionError):  # it only adds to what the page says
        found = tomllib.loads(manifest.read_text(encoding="utf-8")).get("manifest", {})
    return Sidecars(tables, found if isinstance(found, dict) else {})


def manifest_facts(manifest: dict[str, Any]) -> dict[str, str]:
    """Return what a manifest says of the machine and the code, for people."""
    names = {"processor": "Processor", "system": "System", "python": "Python",
             "code_hash": "Hash of the code"}  # fmt: skip
    facts = {word: printable(manifest[name]) for name, word in names.items() if manifest.get(name)}
    for name, word in (("models", "Hash of the model"), ("texts", "Hash of the text"),
                       ("libraries", "Libraries")):  # fmt: skip
        found = manifest.get(name)
        if isinstance(found, dict) and found:
            facts[word] = ", ".join(_pairs(found.items()))
    return facts


def _pairs(items: Iterable[tuple[str, Any]]) -> list[str]:
    return [f"{printable(key)} {printable(value)}" for key, value in items]
