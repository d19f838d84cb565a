"""Number formats as data: what each code means, and how hardware rounds to them at random."""

from numsim.formats.lookup import (
    FormatLike,
    format_name,
    get_format,
    is_ambiguous,
    kept_format,
    list_formats,
    near_formats,
    table_name,
)
from numsim.formats.params import Params
from numsim.formats.stochastic import STOCHASTIC, Stochastic, get_stochastic
from numsim.formats.types import Format

__all__ = [
    "STOCHASTIC", "Format", "FormatLike", "Params", "Stochastic", "format_name", "get_format",
    "get_stochastic", "is_ambiguous", "kept_format", "list_formats", "near_formats", "table_name",
]  # fmt: skip
