"""Tables beside the results of a sweep: tensors, accumulators, error by position."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from numsim.errors import NumsimError, printable
from numsim.files import check_regular, escape_cell, replace_files
from numsim.losses import read_losses
from numsim.metrics import paired_difference

POSITION_COLUMNS = (
    "case_id", "format", "granularity", "target", "begin", "end", "tokens", "kl_nats", "kl_stderr",
    "nll",
)  # fmt: skip


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, force: bool
) -> None:
    """Write rows as CSV, all of them or nothing.

    Raises
    ------
    NumsimError
        The file exists and `force` is not given, or it cannot be written.
    """
    check_table(path, force=force)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(name)) for name in columns] for row in rows])
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a text, all of it or nothing.

    Raises
    ------
    NumsimError
        It cannot be written.
    """
    try:
        replace_files({path: text.encode()})
    except OSError as error:
        raise NumsimError(f"numsim: cannot write {path}: {error.strerror}; name another") from None


def check_table(path: Path, *, force: bool) -> None:
    """Raise NumsimError where `write_table` would not write; nothing is touched."""
    check_regular(path, "numsim")
    if path.is_dir() or not path.parent.is_dir():
        raise NumsimError(f"numsim: cannot write {path}: it is no file in a folder; name another")
    if path.exists() and path.stat().st_size and not force:
        raise NumsimError(
            f"numsim: {path} exists and is not replaced unasked; --force replaces it, --out names "
            "another"
        )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return escape_cell(printable(value)) if isinstance(value, str) else str(value)


def position_rows(results: Path, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the error of each case by the position of a token in its window.

    Positions are counted from 1, the first that is scored, in ranges that double: 1, 2 to 3, 4 to
    7, ... Cases whose losses are not beside `results`, and those of encoders, have no rows.

    Parameters
    ----------
    results
        The CSV file of the sweep.
    rows
        Those of whole cases, ``layer="all"``.
    """
    found = []
    for row in rows:
        losses = read_losses(results, str(row["case_id"])) or {}
        if "kl" not in losses or losses["kl"].ndim != 2:
            continue
        length, begin = losses["kl"].shape[1], 1
        while begin <= length:
            end = min(2 * begin - 1, length)
            kl, nll = (losses[name][:, begin - 1 : end].reshape(-1) for name in ("kl", "nll"))
            mean, error = paired_difference(np.zeros_like(kl), kl)
            found.append(
                {
                    **{name: row[name] for name in POSITION_COLUMNS[:4]}, "begin": begin,
                    "end": end, "tokens": kl.size, "kl_nats": mean, "kl_stderr": error,
                    "nll": float(nll.mean()),
                }
            )  # fmt: skip
            begin = end + 1
    return found
