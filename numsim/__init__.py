"""Bit-exact emulation of low-precision number formats and matrix-multiply hardware."""

from numsim.convert import cast, decode, encode
from numsim.errors import NumsimError, UnsupportedError, UnvalidatedWarning
from numsim.formats import Format, get_format, list_formats
from numsim.quant import QTensor, Quant, quantize

__version__ = "0.1.0"

__all__ = [
    "Format", "NumsimError", "QTensor", "Quant", "UnsupportedError", "UnvalidatedWarning", "cast",
    "decode", "encode", "get_format", "list_formats", "quantize",
]  # fmt: skip
