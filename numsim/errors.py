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


def near_words(name: str, known: Iterable[str], *, limit: int = 4) -> list[str]:
    """Return known words that contain a name, or else those that are spelt like it.

    >>> near_words("Hopper", ["nvidia.hopper.wgmma", "nvidia.hopper.mma", "ideal.int"])
    ['nvidia.hopper.wgmma', 'nvidia.hopper.mma']
    """
    words, part = list(known), name.strip().lower()
    holding = [word for word in words if part in word.lower()] if len(part) > 2 else []
    return holding[:12] or difflib.get_close_matches(name, words, n=limit, cutoff=0.5)


def near_names(name: str, known: Iterable[str], *, limit: int = 4) -> str:
    """Return the end of a message for a misspelt name: ``; did you mean a, b``.

    >>> near_names("fp8_e4m4", ["fp8_e4m3", "int8"])
    '; did you mean fp8_e4m3'
    """
    close = near_words(name, known, limit=limit)
    return f"; did you mean {', '.join(close)}" if close else ""
