"""Formats and casts in words: where a format comes from, its limits, every step of a rounding."""

from numsim.explain.cast import explain_cast, parse_number
from numsim.explain.formats import bit_string, explain_format, value_rows
from numsim.explain.lists import list_lines
from numsim.explain.recipes import explain_block, explain_recipe, recipe_title

__all__ = [
    "bit_string", "explain_block", "explain_cast", "explain_format", "explain_recipe",
    "list_lines", "parse_number", "recipe_title", "value_rows",
]  # fmt: skip
