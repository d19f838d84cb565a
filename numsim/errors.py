"""Exceptions and warnings. Every message says the rule, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NumsimError(ValueError):
    """Wrong input: the message names the rule, what came, and the remedy."""


class UnsupportedError(NumsimError):
    """A valid request that this unit, format or model family does not have."""


class UnvalidatedWarning(UserWarning):
    """A target was used whose rules no silicon recording confirms."""


class SkippedWarning(UserWarning):
    """Combinations of a sweep were left out: the unit does not multiply the format."""


class DamagedFileWarning(UserWarning):
    """Lines of a results file were damaged, doubled or foreign: they are not kept."""


def printable(text: object) -> str:
    r"""Return text without control characters: a name may hold some, or bytes that are no UTF-8.

    >>> printable("a\x1b[31m.csv"), printable("caf\udce9")
    ('a\\x1b[31m.csv', 'caf\\udce9')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def near_names(name: str, known: Iterable[str], *, limit: int = 4) -> str:
    """Return the end of a message for a misspelt name: ``; did you mean a, b``.

    >>> near_names("fp8_e4m4", ["fp8_e4m3", "int8"])
    '; did you mean fp8_e4m3'
    """
    close = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f"; did you mean {', '.join(close)}" if close else ""
