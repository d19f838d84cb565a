"""What a format is called: by its name where the table means it, else by name and meaning."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from numsim.formats.fields import DEFAULTS, NAMED, POSITIONAL, Fields, HasFields, meaning_of
from numsim.formats.table import named_fields

_LISTED = 16  # values of a table that are written out


def known_name(f: HasFields) -> str:
    """Return the canonical name that stands for these fields, "" where none does."""
    known = named_fields(f.name)
    return known.name if known is not None and meaning_of(known) == meaning_of(f) else ""


def labelled(f: HasFields) -> str:
    """Return what results call a format; see `Format.label`."""
    known = known_name(f)
    if known:
        return known
    base = named_fields(f.name)
    given = [(key, getattr(f, key), _usual(key, base)) for key in (*POSITIONAL[1:], *NAMED)]
    words = (f"{key}={_short(f, value)}" for key, value, usual in given if _differ(value, usual))
    return f"{f.name} ({', '.join(words)})"


def written(f: HasFields) -> str:
    """Return a format as Python writes it: by its name where the table means it."""
    if known_name(f) == f.name:
        return f"Format({f.name!r})"
    words = [repr(getattr(f, key)) for key in POSITIONAL]
    for key in NAMED:
        value = getattr(f, key)
        if _differ(value, _usual(key, None)):
            words.append(f"{key}={_short(f, value)!r}")
    return f"Format({', '.join(words)})"


def _usual(key: str, base: Fields | None) -> Any:
    return DEFAULTS.get(key) if base is None else getattr(base, key)


def _differ(value: Any, usual: Any) -> bool:
    if not isinstance(value, tuple):
        return bool(value != usual)
    other = usual if isinstance(usual, tuple) else ()
    return np.array(value, np.float64).tobytes() != np.array(other, np.float64).tobytes()


def _short(f: HasFields, value: Any) -> Any:
    if isinstance(value, tuple) and len(value) > _LISTED:
        digest = hashlib.sha256(meaning_of(f)[-1]).hexdigest()[:16]
        return f"{len(value)} values of SHA-256 {digest}"
    return value
