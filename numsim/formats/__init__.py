"""Number formats as data: what each code means, and how hardware rounds to them at random."""

from numsim.formats.stochastic import STOCHASTIC, Stochastic, get_stochastic
from numsim.formats.table import get_format, list_formats
from numsim.formats.types import Format, Params

__all__ = [
    "STOCHASTIC", "Format", "Params", "Stochastic", "get_format", "get_stochastic", "list_formats",
]  # fmt: skip
