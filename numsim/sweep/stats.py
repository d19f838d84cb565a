"""The tables that a sweep with `stats` writes beside its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numsim.files import table_beside
from numsim.sweep import accumulators, sidecars, tensors
from numsim.sweep.grid import DEFAULT_FORMATS, Entry
from numsim.sweep.prepare import Prepared
from numsim.sweep.spec import SweepSpec

LONGEST_K = 65536  # of synthetic sums
TOKENS = 512  # of the first windows, whose tensors are looked at


def entries_of(plan: SweepSpec) -> list[Entry]:
    """Return the formats of a plan, as a sweep of it has them."""
    return [Entry.of(given) for given in plan.formats or DEFAULT_FORMATS]


def write_stats(
    plan: SweepSpec, runs: Sequence[Prepared], results: Path, rows: Sequence[dict[str, Any]]
) -> list[Path]:
    """Write ``tensors.csv``, ``accumulators.csv`` and ``positions.csv`` beside `results`.

    Files of these names are replaced: they belong to the results.

    Raises
    ------
    NumsimError
        A file cannot be written.
    """
    entries = entries_of(plan)
    both = [entry for entry in entries if len(entry.sides) == 2]
    ranges: list[dict[str, Any]] = []
    widths: list[dict[str, Any]] = []
    windows = max(1, min(plan.batch, TOKENS // plan.window))
    for run in runs:
        ranges += tensors.tensor_rows(run.model, run.inputs, entries, windows)
        widths += accumulators.accumulator_rows(
            run.model, run.inputs, both, plan.targets, windows, LONGEST_K
        )
    whole = [row for row in rows if row["layer"] == "all"]
    positions = sidecars.position_rows(results, whole)
    tables: list[tuple[str, Sequence[str], list[dict[str, Any]]]] = [
        ("tensors", tensors.COLUMNS, ranges),
        ("accumulators", accumulators.COLUMNS, widths),
        ("positions", sidecars.POSITION_COLUMNS, positions),
    ]
    paths = []
    for name, columns, found in tables:
        paths.append(table_beside(results, name))
        sidecars.write_table(paths[-1], columns, found, force=True)
    return paths
