"""What a format is called: by its name where the table means it, else by name and meaning."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

import numpy as np

from numsim.formats.table import named_format, table_name
from numsim.formats.types import Format

_POSITIONAL = ("name", "kind", "bits", "precision", "bias")
_NAMED = ("signed", "nan", "inf", "zero", "table")
_LISTED = 16  # values of a table that are written out


def labelled(f: Format) -> str:
    """Return what results call a format; see `Format.label`."""
    known = table_name(f)
    if known:
        return known
    base = named_format(f.name)
    given = [(key, getattr(f, key), _usual(key, base)) for key in (*_POSITIONAL[1:], *_NAMED)]
    words = (f"{key}={_short(f, value)}" for key, value, usual in given if _differ(value, usual))
    return f"{f.name} ({', '.join(words)})"


def written(f: Format) -> str:
    """Return a format as Python writes it: by its name where the table means it."""
    if table_name(f) == f.name:
        return f"Format({f.name!r})"
    words = [repr(getattr(f, key)) for key in _POSITIONAL]
    for key in _NAMED:
        value = getattr(f, key)
        if _differ(value, _usual(key, None)):
            words.append(f"{key}={_short(f, value)!r}")
    return f"Format({', '.join(words)})"


def _usual(key: str, base: Format | None) -> Any:
    default = {field.name: field.default for field in fields(Format)}
    return default[key] if base is None else getattr(base, key)


def _differ(value: Any, usual: Any) -> bool:
    if not isinstance(value, tuple):
        return bool(value != usual)
    other = usual if isinstance(usual, tuple) else ()
    return np.array(value, np.float64).tobytes() != np.array(other, np.float64).tobytes()


def _short(f: Format, value: Any) -> Any:
    if isinstance(value, tuple) and len(value) > _LISTED:
        digest = hashlib.sha256(f.meaning[-1]).hexdigest()[:16]
        return f"{len(value)} values of SHA-256 {digest}"
    return value
