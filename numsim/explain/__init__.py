"""Formats and casts in words: where a format comes from, its limits, every step of a rounding."""

from numsim.explain.cast import explain_cast, parse_number
from numsim.explain.formats import bit_string, explain_format, value_rows

__all__ = ["bit_string", "explain_cast", "explain_format", "parse_number", "value_rows"]
