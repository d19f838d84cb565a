"""Quantised tensors: codes and scales."""

from numsim.quant.quantize import quantize, storage_losses
from numsim.quant.table import QUANTS, as_quant
from numsim.quant.types import QTensor, Quant

__all__ = ["QUANTS", "QTensor", "Quant", "as_quant", "quantize", "storage_losses"]
