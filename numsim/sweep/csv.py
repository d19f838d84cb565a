"""results.csv: every row is appended and flushed as it is made; finished cases can be read back."""

from __future__ import annotations

import contextlib
import csv
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from numsim.errors import NumsimError
from numsim.sweep.columns import COLUMNS, NAMES


class RowWriter:
    """Append rows to a CSV file, flushed one by one; without a path, do nothing.

    The file is replaced by a header and the `kept` rows when the first row comes, so a sweep that
    computes nothing leaves what was there.
    """

    def __init__(self, path: Path | None, kept: list[dict[str, Any]]) -> None:
        self._path, self._kept = path, kept
        self._file: TextIO | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Append one row and flush it."""
        if self._path is None:
            return
        try:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8", newline="")
                self._csv = csv.DictWriter(self._file, NAMES, lineterminator="\n")
                self._csv.writeheader()
                self._csv.writerows(self._kept)
            self._csv.writerow(row)
            self._file.flush()
        except OSError as error:
            raise NumsimError(f"sweep: cannot write {self._path}: {error.strerror}") from None

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be flushed has been reported
                self._file.close()


def check_writable(path: Path) -> None:
    """Raise NumsimError unless `path` can be written; an existing file is left as it is."""
    folder = path.parent
    if "\0" in str(path):
        raise NumsimError("sweep: a file name has no NUL character; name another file")
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
    damaged = NumsimError(
        f"sweep: {path} does not have the columns of a results file, or is damaged; resume needs "
        "one, or leave --resume out to replace it"
    )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != NAMES:
                raise damaged
            rows = [row for row in reader if set(row) == set(NAMES) and None not in row.values()]
        finished = {row["case_id"] for row in rows if row["layer"] == "all"}
        kept = [row for row in rows if row["case_id"] in finished]
        for row in kept:
            parse(row)
    except (ValueError, csv.Error) as error:
        raise damaged from error
    except OSError as error:
        raise NumsimError(f"sweep: cannot read {path}: {error.strerror}") from None
    return kept


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
