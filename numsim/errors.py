"""Exceptions and warnings. Every message says the rule, what came, and what to do."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from types import FrameType


class NumsimError(ValueError):
    """Wrong input: the message names the rule, what came, and the remedy."""


class UnsupportedError(NumsimError):
    """A valid request that this unit, format or model family does not have."""


class NotFiniteError(NumsimError):
    """A value that must be finite is NaN or Inf: the message names it."""


class StoppedError(NumsimError):
    """A run that began and could not go on: what it had made is kept."""


class UnvalidatedWarning(UserWarning):
    """A target was used whose rules no silicon recording confirms."""


class SkippedWarning(UserWarning):
    """Combinations of a sweep were left out: the unit does not multiply the format."""


def near_names(name: str, known: Iterable[str], *, limit: int = 4) -> str:
    """Return the end of a message for a misspelt name: ``; did you mean a, b``.

    >>> near_names("fp8_e4m4", ["fp8_e4m3", "int8"])
    '; did you mean fp8_e4m3'
    """
    close = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f"; did you mean {', '.join(close)}" if close else ""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line that called numsim, however many of numsim's calls lie between."""
    level, frame = 1, sys._getframe()
    while _is_own(frame) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_own(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "numsim"
