"""Formats in TOML: a file of one, or an inline table where a recipe or a unit uses its own."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from numsim.errors import NumsimError, near_names
from numsim.formats.types import Format


def read_format(path: str | Path) -> Format:
    """Read a format from a TOML file; see `Format.from_toml`."""
    if not isinstance(path, str | Path):
        raise NumsimError(f"Format.from_toml: a file is a str or Path; got {path!r:.60}")
    file = Path(path)
    try:
        if file.exists() and not file.is_file():  # a pipe or a device may never end
            raise NumsimError(f"cannot read the format {str(file)!r}: it is no regular file")
        text = file.read_text(encoding="utf-8")
    except NumsimError:
        raise
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise NumsimError(
            f"cannot read the format {str(file)!r}: {why}; give a UTF-8 TOML file"
        ) from None
    try:
        return format_from_table(tomllib.loads(text))
    except NumsimError as error:
        raise NumsimError(f"{file}: {error}") from None
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, or 4300 digits
        raise NumsimError(f"{file}: not TOML: {error}") from None


def format_from_table(table: Mapping[str, Any]) -> Format:
    """Return the format whose fields a TOML table holds.

    Raises
    ------
    NumsimError
        For a field that is missing, unknown, or makes no format.

    Examples
    --------
    >>> given = {"name": "mine", "kind": "float", "bits": 6, "precision": 3, "bias": 3}
    >>> format_from_table(given).max
    28.0
    """
    check_keys("a format", table, {f.name: f for f in fields(Format)})
    values = dict(table)
    if isinstance(values.get("table"), list):
        values["table"] = tuple(values["table"])
    return Format(**values)


def check_keys(what: str, given: Mapping[str, Any], known: Mapping[str, Field[Any]]) -> None:
    """Raise where a TOML table has a field that its dataclass has not, or lacks one it needs."""
    for key in given:
        if key not in known:
            raise NumsimError(
                f"{what} has no field {key!r}; it has {', '.join(known)}{near_names(key, known)}"
            )
    missing = [name for name, f in known.items() if f.default is MISSING and name not in given]
    if missing:
        raise NumsimError(f"{what} needs {', '.join(missing)}; missing here")


def format_to_toml(f: Format) -> str:
    """Return a format as TOML; see `Format.to_toml`."""
    source = {"source": f.source} if f.source else {}
    return "".join(f"{key} = {_value(v)}\n" for key, v in (_table(f) | source).items())


def format_inline(f: Format) -> str:
    """Return what a format means as an inline TOML table (its source is no part of that).

    Examples
    --------
    >>> format_inline(Format("mine", "float", 6, 3, 3, nan="minus_zero"))
    '{name = "mine", kind = "float", bits = 6, precision = 3, bias = 3, nan = "minus_zero"}'
    """
    return "{" + ", ".join(f"{key} = {_value(v)}" for key, v in _table(f).items()) + "}"


def _table(f: Format) -> dict[str, Any]:
    given = {field.name: (getattr(f, field.name), field.default) for field in fields(f)}
    return {key: v for key, (v, default) in given.items() if v != default and key != "source"}


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join("nan" if math.isnan(v) else repr(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
