"""Libraries that are timed beside numsim where they are installed."""

from __future__ import annotations

import importlib
from typing import Any


def installed(name: str) -> Any:
    """Return a module, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
