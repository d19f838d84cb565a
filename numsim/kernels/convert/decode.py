"""Codes of at most 16 bits to float32 without a table: shifts, one multiplication, selects.

Flat arrays in, flat arrays of float32 bit patterns out. Proof: ``tests/convert`` decodes every code
of every format and compares with fractions and with ml_dtypes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numsim.kernels.instructions import shl, wide_vectors
from numsim.kernels.jit import inline, kernel


class Codes(NamedTuple):
    """A float format as the decoding kernel takes it: uint32, and one float32."""

    magnitude: np.uint32  # mask of the magnitude code
    sign_bit: np.uint32
    sign_up: np.uint32  # places to the float32 sign
    up: np.uint32  # places from a trailing fraction to float32's
    rebias: np.uint32  # difference of exponents, in place
    least: np.uint32  # smallest normal magnitude code
    quantum: np.float32  # smallest subnormal
    inf: np.uint32  # magnitude code of infinity
    nan_from: np.uint32  # smallest magnitude code that is NaN
    nan: np.uint32  # the one full code that is NaN (minus zero)


def code_scalars(
    bits: int, p: int, emin: int, signed: bool, inf: int, nan_from: int, nan: int
) -> Codes:
    """Return the scalars of a float of at most 16 bits, emin >= -126; -1: no such code.

    A format with float32's exponents has its subnormals in float32's place too. A subnormal factor
    in their stead would cost an assist of the processor at every element.
    """
    width = bits - signed
    same = emin == -126
    numbers = (
        (1 << width) - 1, 1 << width if signed else 0, 31 - width, 24 - p, (emin + 126) << 23,
        0 if same else 1 << (p - 1),
    )  # fmt: skip
    mask, sign_bit, sign_up, up, rebias, least = (np.uint32(n) for n in numbers)
    specials = (np.uint32(code & 0xFFFFFFFF) for code in (inf, nan_from, nan))
    return Codes(
        mask,
        sign_bit,
        sign_up,
        up,
        rebias,
        least,
        np.float32(0.0 if same else 2.0 ** (emin - p + 1)),
        *specials,
    )


@inline
def float_bits(code: np.uint32, f: Codes) -> np.uint32:
    """Return the float32 bit pattern of a code."""
    infinity, quiet = np.uint32(0x7F800000), np.uint32(0x7FC00000)
    m = np.uint32(code & f.magnitude)
    normal = np.uint32(shl(m, f.up) + f.rebias)
    small = np.float32(np.float32(np.int32(m)) * f.quantum).view(np.uint32)
    value = normal if m >= f.least else small
    value = infinity if m == f.inf else value
    value = quiet if m >= f.nan_from else value
    value = np.uint32(value | shl(np.uint32(code & f.sign_bit), f.sign_up))
    return quiet if code == f.nan else value


@kernel
def decode_float(codes: np.ndarray, out: np.ndarray, f: Codes) -> None:
    """Decode codes to float32 bit patterns (uint32)."""
    wide_vectors()
    for i in range(codes.size):
        out[i] = float_bits(np.uint32(codes[i]), f)


@kernel
def decode_integer(codes: np.ndarray, out: np.ndarray, quantum: np.float32) -> None:
    """Multiply integer codes of at most 24 bits by the format's quantum (exact in float32)."""
    wide_vectors()
    for i in range(codes.size):
        out[i] = np.float32(np.float32(np.int32(codes[i])) * quantum)


@kernel
def decode_table(codes: np.ndarray, out: np.ndarray, table: np.ndarray) -> None:
    """Look codes up in the format's table of values."""
    wide_vectors()
    for i in range(codes.size):
        out[i] = table[np.uint64(codes[i])]
