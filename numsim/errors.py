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


class ConfigKeyWarning(UserWarning):
    """A checkpoint's config.json has keys that only other software reads."""


def near_names(name: str, known: Iterable[str], *, limit: int = 4) -> str:
    """Return the end of a message for a misspelt name: ``; did you mean a, b``.

    >>> near_names("fp8_e4m4", ["fp8_e4m3", "int8"])
    '; did you mean fp8_e4m3'
    """
    close = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f"; did you mean {', '.join(close)}" if close else ""
