"""Networks: a checkpoint becomes an Arch and arrays, blocks are functions, recipes are data."""

from numsim.models.arch import Arch
from numsim.models.bundled import bundled_model
from numsim.models.context import Past
from numsim.models.describe import Description, describe_model
from numsim.models.load import load_model
from numsim.models.named import list_recipes, named_recipe
from numsim.models.packed.write import pack
from numsim.models.prepare import prepare, rotated, rounded, smoothed
from numsim.models.recipe import Recipe
from numsim.models.rule import Rule
from numsim.models.run import Model, Run
from numsim.models.text import TextTools, load_text_tools

__all__ = [
    "Arch",
    "Description",
    "Model",
    "Past",
    "Recipe",
    "Rule",
    "Run",
    "TextTools",
    "bundled_model",
    "describe_model",
    "list_recipes",
    "load_model",
    "load_text_tools",
    "named_recipe",
    "pack",
    "prepare",
    "rotated",
    "rounded",
    "smoothed",
]
