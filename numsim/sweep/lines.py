"""Lines of results.csv: rows as text, and which of them make a finished case.

Every record is one line. The last row of a case (``layer="all"``) carries a digest of the others:
a case is finished where its lines give that digest, so none is missing, doubled or changed.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numsim.errors import NumsimError, printable
from numsim.files import SEPARATORS, escape_cell, plain_cell, separator_of
from numsim.sweep.columns import COLUMNS, NAMES
from numsim.version import __version__

_CASE_ID = re.compile(r"[0-9a-f]{12}")
_NAMES_OF_IT = ("case_id", "model", "text")  # the same in all rows of a case
_NOT_COUNTED = {"seconds", "check", *_NAMES_OF_IT}  # the digest is that of the figures
_SHOWN = 6  # ranges of lines in a message


def parse(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row read from a file with the types of a row just computed."""
    values: dict[str, Any] = {}
    for column in COLUMNS:
        text = row[column.name]
        if text in ("", None):
            values[column.name] = None
        elif column.type is bool:
            values[column.name] = text == "True"
        else:
            values[column.name] = plain_cell(text) if column.type is str else column.type(text)
    return values


def check_header(path: Path, lines: list[bytes]) -> None:
    """Raise NumsimError unless the first line has the columns of this version."""
    first = lines[0].decode("utf-8-sig", "replace").rstrip("\r")
    if first == ",".join(NAMES):
        return
    words, names = "", first.split(",")
    separator = separator_of(first)
    if separator != "," and set(NAMES) & set(first.replace('"', "").split(separator)):
        words = (
            f"is separated by {SEPARATORS[separator]}, as spreadsheets write it, who may have "
            "rounded its numbers; resume needs the file that numsim wrote"
        )
    elif {"case_id", "numsim_version"} <= set(names):
        version = "another version of numsim"
        with contextlib.suppress(csv.Error, UnicodeDecodeError, IndexError):
            version = f"numsim {next(_cells(lines[1]))[names.index('numsim_version')]}"
        unlike = [*(n for n in NAMES if n not in names), *(n for n in names if n not in NAMES)]
        words = (
            f"was written by {printable(version)}, or changed since: its columns differ "
            f"({printable(', '.join(unlike[:_SHOWN]) or 'their order')}); this is numsim "
            f"{__version__}, which does not mix the two"
        )
    else:
        words = "does not have the columns of a results file; resume needs one"
    raise NumsimError(f"sweep: {path} {words}; name another file, or --force replaces it")


def finished(
    header: bytes, lines: list[bytes]
) -> tuple[list[bytes], list[dict[str, Any]], list[int]]:
    """Return the lines that stay, their rows, and the numbers of lines that are not a sweep's.

    What a kill leaves, an unfinished case and a last line without its end, is no damage.
    """
    found: dict[str, list[tuple[int, list[str]]]] = {}
    bad = []
    for number, raw in enumerate(lines[1:], start=2):
        if not raw.strip() or raw.rstrip(b"\r") == header.rstrip(b"\n"):
            continue  # a second header: of a file put after another
        try:
            cells = next(_cells(raw))
        except (csv.Error, UnicodeDecodeError, StopIteration):
            cells = []
        if len(cells) == len(NAMES) and _CASE_ID.fullmatch(cells[NAMES.index("case_id")]):
            found.setdefault(cells[NAMES.index("case_id")], []).append((number, cells))
        elif number < len(lines):  # the last has no end: it is cut, or empty
            bad.append(number)
    content, kept = [header], []
    for rows in found.values():
        cells_of = [cells for _, cells in rows]
        layers = [cells[NAMES.index("layer")] for cells in cells_of]
        if "all" not in layers:
            continue  # unfinished
        parsed = _intact(cells_of) if layers.index("all") == len(layers) - 1 else None
        if parsed is None:
            bad += [number for number, _ in rows]
            continue
        kept += parsed
        content += [lines[number - 1].rstrip(b"\r") + b"\n" for number, _ in rows]
    return content, kept, sorted(bad)


def _intact(rows: list[list[str]]) -> list[dict[str, Any]] | None:
    """Return the rows of a case if they give the digest in the last of them."""
    digest = hashlib.sha256()
    for cells in rows:
        add_to(digest, cells)
    one = all(len({cells[NAMES.index(name)] for cells in rows}) == 1 for name in _NAMES_OF_IT)
    if not one or rows[-1][NAMES.index("check")] != digest.hexdigest()[:12]:
        return None
    try:
        return [parse(dict(zip(NAMES, cells, strict=True))) for cells in rows]
    except ValueError:  # in `seconds`, which the digest does not cover
        return None


def add_to(digest: Any, cells: Iterable[str]) -> None:
    """Add a row to the digest of its case."""
    counted = (c for name, c in zip(NAMES, cells, strict=True) if name not in _NOT_COUNTED)
    digest.update(line_of(counted))


def printed(value: Any) -> Any:
    """Return a value as a row keeps it: words without control characters."""
    return printable(value) if isinstance(value, str) else value


def cell(value: Any) -> str:
    """Return a value as the file has it."""
    if value is None:
        return ""
    return escape_cell(value) if isinstance(value, str) else str(value)


def line_of(cells: Iterable[str]) -> bytes:
    """Return a record as a line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cells(raw: bytes) -> Any:
    return csv.reader([raw.decode().rstrip("\r")], strict=True)


def ranges(numbers: list[int]) -> str:
    """Return ``lines 3 and 7 to 9 are``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [f"{low}" if low == high else f"{low} to {high}" for low, high in runs]
    if len(words) > _SHOWN:
        words = [*words[:_SHOWN], f"{len(words) - _SHOWN} more places"]
    last = words.pop()
    if not words and last.isdigit():
        return f"line {last} is"
    return f"lines {', '.join(words)}{' and ' if words else ''}{last} are"
