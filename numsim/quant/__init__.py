"""Quantised tensors: codes and scales."""

from numsim.quant.quantize import quantize, storage_losses
from numsim.quant.types import QTensor, Quant, as_quant

__all__ = ["QTensor", "Quant", "as_quant", "quantize", "storage_losses"]
