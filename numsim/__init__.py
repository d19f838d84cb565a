"""Bit-exact emulation of low-precision number formats and matrix-multiply hardware."""

from numsim.convert import cast, decode, encode
from numsim.errors import NumsimError, UnsupportedError, UnvalidatedWarning
from numsim.formats import Format, get_format, list_formats
from numsim.quant import QTensor, Quant, quantize
from numsim.targets import Target, get_target, list_targets, matmul

__version__ = "0.1.0"

__all__ = [
    "Format", "NumsimError", "QTensor", "Quant", "UnsupportedError", "UnvalidatedWarning", "cast",
    "Target", "decode", "encode", "get_format", "get_target", "list_formats", "list_targets", "matmul",
    "quantize",
]  # fmt: skip
