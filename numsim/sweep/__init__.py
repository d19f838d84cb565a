"""Sweeps: a grid of formats, granularities and targets over one model and text.

The package is called itself: ``numsim.sweep(...)`` is `numsim.sweep.run.sweep`.
"""

import inspect
import sys
from types import ModuleType

from numsim.sweep.cases import Case
from numsim.sweep.columns import COLUMNS
from numsim.sweep.run import sweep
from numsim.sweep.spec import SweepSpec

__all__ = ["COLUMNS", "Case", "SweepSpec", "sweep"]


class _Called(ModuleType):
    """A function of the name of its package would hide it from ``import numsim.sweep.columns``."""

    __call__ = staticmethod(sweep)


sys.modules[__name__].__class__ = _Called
__signature__ = inspect.signature(sweep)
