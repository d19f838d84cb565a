"""Formats in TOML: as lines of a file, or an inline table where a recipe or a unit has its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from numsim.errors import NumsimError, near_names
from numsim.formats.fields import DEFAULTS, NAMED, POSITIONAL, Fields, HasFields


def fields_from_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a format that a TOML table holds.

    Raises
    ------
    NumsimError
        For a field that is missing or unknown.

    Examples
    --------
    >>> given = {"name": "mine", "kind": "table", "bits": 1, "precision": 1, "bias": 0}
    >>> fields_from_table(given | {"table": [-1.0, 1.0]})["table"]
    (-1.0, 1.0)
    """
    check_keys("a format", table, {key: key not in DEFAULTS for key in Fields._fields})
    values = dict(table)
    if isinstance(values.get("table"), list):
        values["table"] = tuple(values["table"])
    return values


def check_keys(what: str, given: Mapping[str, Any], known: Mapping[str, bool]) -> None:
    """Raise where a table has a field that is not known, or lacks one that is needed (True)."""
    for key in given:
        if key not in known:
            raise NumsimError(
                f"{what} has no field {key!r}; it has {', '.join(known)}{near_names(key, known)}"
            )
    missing = [name for name, needed in known.items() if needed and name not in given]
    if missing:
        raise NumsimError(f"{what} needs {', '.join(missing)}; missing here")


def format_to_toml(f: HasFields) -> str:
    """Return a format as TOML; see `Format.to_toml`."""
    source = {"source": f.source} if f.source else {}
    return "".join(f"{key} = {_value(v)}\n" for key, v in (_table(f) | source).items())


def format_inline(f: HasFields) -> str:
    """Return what a format means as an inline TOML table (its source is no part of that).

    Examples
    --------
    >>> format_inline(Fields("mine", "float", 6, 3, 3, nan="minus_zero"))
    '{name = "mine", kind = "float", bits = 6, precision = 3, bias = 3, nan = "minus_zero"}'
    """
    return "{" + ", ".join(f"{key} = {_value(v)}" for key, v in _table(f).items()) + "}"


def _table(f: HasFields) -> dict[str, Any]:
    given = {key: getattr(f, key) for key in (*POSITIONAL, *NAMED)}
    return {key: v for key, v in given.items() if key not in DEFAULTS or v != DEFAULTS[key]}


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join("nan" if math.isnan(v) else repr(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
