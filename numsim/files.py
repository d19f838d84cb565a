"""Files: only regular ones are read and written; TOML; cells of CSV that no spreadsheet runs."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from numsim.errors import NumsimError

_KINDS = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # a spreadsheet computes such a cell, or sends it


def digest_of(text: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a text: what recipes and units go by.

    >>> digest_of("")
    'e3b0c44298fc1c14'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def replace_files(files: Mapping[Path, bytes]) -> None:
    """Write every file beside its place first, then move all of them there.

    So a full disk or a kill leaves what was there before, whole; a link stays one.

    Raises
    ------
    OSError
        Where that cannot be done; nothing has changed then, but for a kill between two moves.
    """
    waiting = {}
    try:
        for path, data in files.items():
            place = Path(os.path.realpath(path))
            part = place.with_name(f".{place.name}.{os.getpid()}.part")
            waiting[part] = place
            part.write_bytes(data)
        for part, place in waiting.items():
            part.replace(place)
    finally:
        for part in waiting:
            part.unlink(missing_ok=True)


def check_apart(out: Path | None, read: Iterable[tuple[str, object]], who: str) -> None:
    """Raise NumsimError if the file to write is one of those that are read: (what, path).

    What is no path to an existing file passes: a name of a format may stand there too.
    """
    for what, path in read:
        same = False
        if out is not None and isinstance(path, str | Path):
            with suppress(OSError, ValueError):
                same = out.samefile(path)
        if same:
            raise NumsimError(f"{who}: out would replace the {what} {path}; name another file")


def read_toml(path: str | Path, who: str) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises
    ------
    NumsimError
        For what is no path, no regular file, cannot be read or is not TOML.

    Examples
    --------
    >>> read_toml("none.toml", "Format.from_toml")
    Traceback (most recent call last):
    numsim.errors.NumsimError: Format.from_toml: cannot read none.toml: No such file or directory...
    """
    if not isinstance(path, str | Path):
        raise NumsimError(f"{who}: a file is a str or Path; got {path!r:.60}")
    check_regular(path, who)
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        why = error.strerror
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, 4300 digits, a NUL
        raise NumsimError(f"{who}: {path} is not TOML in UTF-8: {error}") from None
    raise NumsimError(f"{who}: cannot read {path}: {why}; give a UTF-8 TOML file")


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


def table_beside(results: Path, name: str) -> Path:
    """Return the path of a table beside results.

    >>> table_beside(Path("runs/results.csv"), "tensors").as_posix()
    'runs/tensors.csv'
    >>> table_beside(Path("a.csv"), "x").name
    'a.x.csv'
    """
    stem = "" if results.stem == "results" else f"{results.stem}."
    return results.with_name(f"{stem}{name}.csv")
