"""Sweeps: a grid of formats, granularities and targets over one model and text."""

from numsim.sweep.columns import COLUMNS
from numsim.sweep.run import sweep
from numsim.sweep.spec import Case, SweepSpec

__all__ = ["COLUMNS", "Case", "SweepSpec", "sweep"]
