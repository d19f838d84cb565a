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


class DamagedFileWarning(UserWarning):
    """Lines of a results file were damaged, doubled or foreign: they are not kept."""


def printable(text: object, *, keep: str = "") -> str:
    r"""Return a text whose unprintable characters are written as ``\u....``.

    Names come from files and arguments: an escape sequence in one could move the cursor, colour
    the screen or hide what follows, and a line feed could pass for a second message.

    Parameters
    ----------
    text
        Anything; its `str` is taken.
    keep
        Characters that stay, such as the line feeds of a page.

    Examples
    --------
    >>> printable("\x1b[31mred\x1b[0m\n"), printable("caf\udce9")
    ('\\u001b[31mred\\u001b[0m\\u000a', 'caf\\udce9')
    """
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in words)


def _escaped(character: str) -> str:
    number = ord(character)  # TOML and JSON read these two forms back
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


def near_words(name: str, known: Iterable[str], *, limit: int = 4) -> list[str]:
    """Return known words that contain a name, or else those that are spelt like it.

    >>> near_words("Hopper", ["nvidia.hopper.wgmma", "nvidia.hopper.mma", "ideal.int"])
    ['nvidia.hopper.wgmma', 'nvidia.hopper.mma']
    """
    words, part = list(known), name.strip().lower()
    holding = [word for word in words if part in word.lower()] if len(part) > 2 else []
    return holding[:12] or difflib.get_close_matches(name, words, n=limit, cutoff=0.5)


class ConfigKeyWarning(UserWarning):
    """A checkpoint's config.json has keys that only other software reads."""


class LeftOutWarning(UserWarning):
    """A checkpoint has parts beside its text model, which do not run."""


def near_names(name: str, known: Iterable[str], *, limit: int = 4) -> str:
    """Return the end of a message for a misspelt name: ``; did you mean a, b``.

    >>> near_names("fp8_e4m4", ["fp8_e4m3", "int8"])
    '; did you mean fp8_e4m3'
    """
    close = near_words(name, known, limit=limit)
    return f"; did you mean {', '.join(close)}" if close else ""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line that called numsim, however many of numsim's calls lie between."""
    level, frame = 1, sys._getframe()
    while _is_own(frame) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_own(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "numsim"
