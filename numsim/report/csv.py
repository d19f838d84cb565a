"""CSV files as people have them: from numsim, from a spreadsheet, two put one after the other."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from numsim.errors import NumsimError, printable
from numsim.files import SEPARATORS, check_regular, plain_cell, separator_of
from numsim.version import __version__

REMEDY = "give the results.csv of numsim sweep"
CURVES = "give the file that numsim train wrote"
WATCHED = "give the file that numsim train --watch wrote"
# Least and largest value of a column, and how to say it; a little is left for rounding.
_POSITIVE = (0.0, float("inf"), "0 or more")
_SHARE = (0.0, 1 + 1e-6, "0 to 1")
_COSINE = (-1 - 1e-6, 1 + 1e-6, "-1 to 1")
RANGES: dict[str, tuple[float, float, str]] = {
    "perplexity": (1 - 1e-6, float("inf"), "1 or more"),
    "perplexity_reference": (1 - 1e-6, float("inf"), "1 or more"),
    "kl_nats": (-1e-6, float("inf"), "0 or more"),
    **dict.fromkeys(
        ("bits_per_weight", "bits_per_act", "M", "N", "K", "mse", "max_abs", "max_ulp", "seconds",
         "tokens", "dnll_stderr", "kl_stderr", "embedding_cosine_stderr", "energy_pj"), _POSITIVE,
    ),
    **dict.fromkeys(
        ("saturation_rate", "underflow_rate", "acc_overflow_rate", "top1_agreement"), _SHARE
    ),
    **dict.fromkeys(("cosine", "embedding_cosine", "embedding_cosine_min"), _COSINE),
}  # fmt: skip


class Line(NamedTuple):
    """A line of a table: its number in the file, and its cells by column."""

    number: int
    cells: dict[str, str]


def read_table(
    path: Path, columns: Iterable[str], numbers: Iterable[str], remedy: str = REMEDY
) -> list[Line]:
    """Read a CSV file whose lines have the `columns`, and perhaps more.

    Cells are separated by commas, semicolons, tabs or bars; except with commas, `numbers` may have
    decimal commas. A further header begins the lines of another file. A last line that ends early
    is left out: it was cut off while it was written.

    Raises
    ------
    NumsimError
        The file cannot be read, a column is missing, or a line has too many or too few cells.
    """
    text = _text(path, remedy)
    lines: list[Line] = []
    for start, section in _sections(text):
        separator = separator_of(section[0])
        reader = csv.reader(section, delimiter=separator, strict=True)
        try:
            table = [(start + reader.line_num - 1, cells) for cells in reader if cells]
        except csv.Error as error:
            at = start + reader.line_num - 1
            raise NumsimError(
                f"report: {path} is not a CSV file ({error}, in line {at}); {remedy}"
            ) from None
        names = [name.strip() for name in table[0][1]] if table else []
        table, names = _without_empty(table, names)
        read = [Line(n, dict(zip(names, cells, strict=False))) for n, cells in table[1:]]
        _check_columns(path, columns, names, read[:1], start, remedy)
        for number, cells in table[1:]:
            if len(cells) > len(names):
                raise NumsimError(
                    f"report: {path} has lines longer than its header, line {number} the first; "
                    f"{remedy}"
                )
            if len(cells) < len(names) and number < table[-1][0]:
                again = "compute its case again with numsim sweep --resume"
                raise NumsimError(
                    f"report: line {number} of {path} has {len(cells)} cells of {len(names)}, "
                    f"separated by {SEPARATORS[separator]}; it is damaged; "
                    f"{again if remedy == REMEDY else remedy}"
                )
        comma = set(numbers) if separator != "," else set()
        lines += [
            Line(
                line.number, {name: _cell(text, name in comma) for name, text in line.cells.items()}
            )
            for line in read
            if len(line.cells) == len(names)
        ]
    return lines


def number_columns(
    path: Path, lines: list[Line], numbers: Iterable[str], remedy: str
) -> pd.DataFrame:
    """Return the cells of lines as text, and the columns `numbers` as float64: empty is NaN.

    Raises
    ------
    NumsimError
        Where a number is not one, with its line.
    """
    names = list(dict.fromkeys(name for line in lines for name in line.cells))
    frame = pd.DataFrame([line.cells for line in lines], columns=names, dtype=str).fillna("")
    for name in numbers:
        text = frame[name] if name in frame else pd.Series("", index=frame.index)
        found = pd.to_numeric(text.where(text != ""), errors="coerce")
        wrong = found.isna() & ~text.str.lower().isin(["", "nan"])
        if wrong.any():
            at = int(wrong.to_numpy().argmax())
            raise NumsimError(
                f"report: column {name} holds numbers, and {path} has {text[at]!r} in line "
                f"{lines[at].number}; {remedy}"
            )
        frame[name] = found.astype(float)
    return frame


def _text(path: Path, remedy: str) -> str:
    check_regular(path, "report: needs the CSV file of a sweep")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise NumsimError(f"report: needs the CSV file of a sweep, and {path} {what}; {remedy}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise NumsimError(f"report: cannot read {path}: {error.strerror}; {remedy}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = data.count(b"\n", 0, error.start) + 1
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        why = "UTF-16; save it as UTF-8" if wide else f"{error.reason} in UTF-8, in line {at}"
        raise NumsimError(f"report: {path} is not a CSV file ({why}); {remedy}") from None


def _sections(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of each file in `text` with the number of its first: a header begins one."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[0].lower().startswith("sep="):  # a word to spreadsheets
        lines[0] = ""
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    starts = [first]
    for i, line in enumerate(lines[first + 1 :], start=first + 1):
        bare = line.lstrip("\ufeff")
        if bare == lines[first] or bare.replace('"', "").startswith(
            tuple(f"case_id{separator}" for separator in SEPARATORS)
        ):
            starts.append(i)
            lines[i] = bare
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield start + 1, [f"{line}\n" for line in lines[start:end]]


def _without_empty(
    table: list[tuple[int, list[str]]], names: list[str]
) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Leave out what spreadsheets add: empty lines, last columns without name or text."""
    width = len(names)
    while names and not names[-1]:
        names = names[:-1]
    kept = []
    for number, cells in table:
        if len(cells) == width and not any(cell.strip() for cell in cells):
            continue
        extra = cells[len(names) :]
        spare = len(cells) <= width and not any(cell.strip() for cell in extra)
        kept.append((number, cells[: len(names)] if spare else cells))
    return kept, names


def _check_columns(
    path: Path,
    columns: Iterable[str],
    names: list[str],
    first: list[Line],
    start: int,
    remedy: str,
) -> None:
    missing = [name for name in columns if name not in names]
    version = first[0].cells.get("numsim_version", "") if first else ""
    if len(missing) == len(list(columns)):
        raise NumsimError(
            f"report: {path} is no CSV file of results: its first line names none of their "
            f"columns; {remedy}"
        )
    if missing:
        which = f"line {start} of {path}" if start > 1 else f"{path}"
        if version and version != __version__:
            which += f", written by numsim {printable(version)} (this is {__version__}),"
        kind = "a sweep" if remedy == REMEDY else "training"
        raise NumsimError(
            f"report: the CSV file of {kind} has the columns {', '.join(missing)}, and {which} "
            f"does not; {remedy}"
        )
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise NumsimError(
            f"report: {path} has column {printable(twice[0])} {names.count(twice[0])} times; "
            f"{remedy}"
        )


@lru_cache(maxsize=1 << 16)  # names stand in thousands of lines
def _cell(text: str, comma: bool) -> str:
    if comma and text.count(",") == 1 and "." not in text:
        return text.replace(",", ".")
    return printable(plain_cell(text))
