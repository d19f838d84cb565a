"""What a format is called: by its name where the table means it, else by name and meaning."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
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


def short_labels(labels: Sequence[str]) -> list[str]:
    """Return labels as tables show them: formats of one's own by name, and by what differs.

    Only where two of them have one name, something else is said; all of it stays in the results.

    Examples
    --------
    >>> short_labels(["int8", "mine (kind=float, bits=6)", "float8_e4m3fn (bias=10)"])
    ['int8', 'mine', 'float8_e4m3fn (bias=10)']
    >>> short_labels(["mine (kind=float, bias=1)", "mine (kind=float, bias=2)"])
    ['mine (bias=1)', 'mine (bias=2)']
    >>> short_labels(["int8 (kind=float, bias=7)"])  # "int8" would be the table's
    ['int8 (kind=float, bias=7)']
    """
    own: dict[str, list[tuple[str, list[str]]]] = {}
    for label in dict.fromkeys(labels):
        found = re.fullmatch(r"(.+) \((kind=.+)\)", label, re.DOTALL)
        if found and named_fields(found[1]) is None:  # a name of the table alone means the table's
            own.setdefault(found[1], []).append((label, found[2].split(", ")))
    short = {}
    for name, alike in own.items():
        common = set.intersection(*(set(parts) for _, parts in alike))
        for label, parts in alike:
            apart = ", ".join(part for part in parts if part not in common)
            short[label] = f"{name} ({apart})" if apart else name
    shown = [short.get(label, label) for label in labels]
    return shown if len(set(shown)) == len(set(labels)) else [*labels]


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
