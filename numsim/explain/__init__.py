"""Formats and casts in words: where a format comes from, its limits, every step of a rounding."""

from numsim.explain.accumulator import (
    accumulator_readings,
    explain_accumulator,
    is_accumulator,
)
from numsim.explain.cast import explain_cast, parse_number
from numsim.explain.formats import bit_string, explain_format, value_rows
from numsim.explain.lists import list_lines
from numsim.explain.recipes import explain_block, explain_recipe, recipe_title

__all__ = [
    "accumulator_readings", "bit_string", "explain_accumulator", "explain_block", "explain_cast",
    "explain_format", "explain_recipe", "is_accumulator", "list_lines", "parse_number",
    "recipe_title", "value_rows",
]  # fmt: skip
