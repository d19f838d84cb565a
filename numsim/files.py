"""Files: only regular ones are read and written; cells of CSV files that no spreadsheet runs."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from numsim.errors import NumsimError

_KINDS = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # a spreadsheet computes such a cell, or sends it


def check_regular(path: str | Path, who: str) -> None:
    """Raise NumsimError if `path` is a pipe, a device or a socket, which may never end.

    What is missing, is a folder or cannot be looked at passes: opening it says why.

    Examples
    --------
    >>> check_regular("/dev/zero", "sweep")
    Traceback (most recent call last):
    numsim.errors.NumsimError: sweep: /dev/zero is a device, not a file; name a file
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return
    for is_kind, word in _KINDS:
        if is_kind(mode):
            raise NumsimError(f"{who}: {path} is {word}, not a file; name a file")


def escape_cell(text: str) -> str:
    """Return a cell that a spreadsheet shows as text: before = + - @ stands one apostrophe.

    >>> escape_cell("=1+1"), plain_cell("'=1+1"), escape_cell("int8")
    ("'=1+1", '=1+1', 'int8')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def plain_cell(text: str) -> str:
    """Return what `escape_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def separator_of(header: str) -> str:
    """Return the character that separates the names in the first line of a CSV file.

    >>> separator_of("case_id;model;layer")
    ';'
    """
    return max(SEPARATORS, key=header.count)
