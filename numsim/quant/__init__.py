"""Quantised tensors: codes and scales."""

from numsim.quant.quantize import quantize
from numsim.quant.types import QTensor, Quant, as_quant

__all__ = ["QTensor", "Quant", "as_quant", "quantize"]
