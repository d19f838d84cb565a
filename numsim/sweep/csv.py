"""results.csv: every row is appended and flushed as it is made; finished cases can be read back."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from numsim.errors import NumsimError
from numsim.sweep.columns import COLUMNS, NAMES


class RowWriter:
    """Append rows to a CSV file, flushed one by one; without a path, do nothing.

    The file is replaced by a header and the `kept` rows when the writer opens.
    """

    def __init__(self, path: Path | None, kept: list[dict[str, Any]]) -> None:
        self._file: TextIO | None = None
        if path is None:
            return
        try:
            self._file = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise NumsimError(f"sweep: cannot write {path}: {error.strerror}") from None
        self._csv = csv.DictWriter(self._file, NAMES, lineterminator="\n")
        self._csv.writeheader()
        self._csv.writerows(kept)
        self._file.flush()

    def write(self, row: dict[str, Any]) -> None:
        """Append one row and flush it."""
        if self._file is not None:
            self._csv.writerow(row)
            self._file.flush()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()


def check_writable(path: Path) -> None:
    """Raise NumsimError unless `path` can be written; an existing file is left as it is."""
    folder = path.parent
    if path.is_dir():
        raise NumsimError(f"sweep: {path} is a folder; name a file in it")
    if not folder.is_dir():
        raise NumsimError(f"sweep: cannot write {path}: there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise NumsimError(f"sweep: cannot write {path}: permission denied")


def finished_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the finished cases of `path` (those with a ``layer="all"`` row).

    Raises
    ------
    NumsimError
        If the file exists and is not a results file of this version's columns.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != NAMES:
            raise NumsimError(
                f"sweep: {path} does not have the columns of a results file; resume needs one, "
                "or leave --resume out to replace it"
            )
        rows = [row for row in reader if None not in row.values() and row["seed"] != ""]
    finished = {row["case_id"] for row in rows if row["layer"] == "all"}
    return [row for row in rows if row["case_id"] in finished]


def parse(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row read from a file with the types of a row just computed."""
    values: dict[str, Any] = {}
    for column in COLUMNS:
        text = row[column.name]
        if text in ("", None):
            values[column.name] = None
        else:
            values[column.name] = text == "True" if column.type is bool else column.type(text)
    return values
