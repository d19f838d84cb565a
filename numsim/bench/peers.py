"""What every timer needs: libraries beside numsim where they are installed, and how often."""

from __future__ import annotations

import importlib
from typing import Any

from numsim.arguments import is_integer
from numsim.errors import NumsimError


def installed(name: str) -> Any:
    """Return a module, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def check_repeats(who: str, repeats: Any) -> None:
    """Raise for a number of calls that leaves nothing to time.

    >>> check_repeats("bench cast", 1.5)
    Traceback (most recent call last):
    numsim.errors.NumsimError: bench cast: repeats is a positive integer; got 1.5
    """
    if not is_integer(repeats) or repeats < 1:
        raise NumsimError(f"{who}: repeats is a positive integer; got {repeats!r:.60}")
