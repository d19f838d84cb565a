"""Quantised tensors: codes and scales."""

from numsim.quant.delayed import DelayedScale
from numsim.quant.losses import storage_losses
from numsim.quant.quantize import quantize
from numsim.quant.rule import Quant
from numsim.quant.table import QUANTS, SOURCES, as_quant, list_recipes, recipe_name
from numsim.quant.types import QTensor

__all__ = [
    "QUANTS", "SOURCES", "DelayedScale", "QTensor", "Quant", "as_quant", "list_recipes", "quantize",
    "recipe_name", "storage_losses",
]  # fmt: skip
