"""Branch-free conversions from float32, each proven bit-equal to the generic kernel by tests.

One pass over the uint32 view, every operand 32 bits wide so that LLVM fills whole vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numsim.kernels.jit import kernel
from numsim.kernels.round import SATURATE, SPECIAL


class FastFloat(NamedTuple):
    """A signed float format of at most 16 bits as the fast kernel takes it, all uint32."""

    shift: np.uint32  # float32 fraction bits that are dropped
    rebias: np.uint32  # float32 exponent field of code 0's binade, in place
    min_normal: np.uint32  # float32 bits of the smallest normal number
    magic: np.uint32  # float32 bits of 2**(emin - trailing + 23)
    sign_shift: np.uint32
    max_code: np.uint32
    over: np.uint32  # code after finite overflow, and whether it takes the sign
    over_signed: np.uint32
    inf: np.uint32  # code of an infinite input
    inf_signed: np.uint32
    nan: np.uint32
    nan_signed: np.uint32
    minus_zero: np.uint32


def fast_float(
    bits: int, p: int, emin: int, max_code: int, inf: int, nan: int, nan_signed: bool,
    minus_zero: bool, overflow: int, nan_code: int,
) -> FastFloat:  # fmt: skip
    """Return the scalars of a format for nearest-even rounding under an overflow policy."""
    u = np.uint32

    def special(wanted: bool) -> tuple[int, int]:
        if not wanted:
            return max_code, 1
        if inf >= 0:
            return inf, 1
        return (nan, int(nan_signed)) if nan >= 0 else (max_code, 1)

    over, inf_in = special(overflow == SPECIAL), special(overflow != SATURATE)
    return FastFloat(
        u(24 - p), u((emin + 126) << 23), u((emin + 127) << 23), u((emin - p + 1 + 23 + 127) << 23),
        u(bits - 1), u(max_code), u(over[0]), u(over[1]), u(inf_in[0]), u(inf_in[1]),
        u(max(nan_code, 0)), u(nan_signed), u(minus_zero),
    )  # fmt: skip


@kernel
def float_rne(x: np.ndarray, out: np.ndarray, start: int, stop: int, f: FastFloat) -> bool:
    """Encode float32 bits (uint32) to a float format, nearest even; return whether NaN was met."""
    one, zero = np.uint32(1), np.uint32(0)  # Numba widens uint32 work: every step is cast
    infinity = np.uint32(0x7F800000)
    half = np.uint32((one << np.uint32(f.shift - one)) - one)
    magic = np.uint32(f.magic).view(np.float32)
    nans = zero
    source, target = x[start:stop], out[start:stop]  # indices from 0: no negative ones to handle
    for i in range(source.size):
        b = source[i]
        a = np.uint32(b & np.uint32(0x7FFFFFFF))
        r = np.uint32(a - f.rebias)
        even = np.uint32(np.uint32(r >> f.shift) & one)
        normal = np.uint32(np.uint32(np.uint32(r + even) + half) >> f.shift)
        sum_ = np.float32(np.uint32(a).view(np.float32) + magic)
        small = np.uint32(sum_.view(np.uint32) - f.magic)
        q = normal if a >= f.min_normal else small
        signed = one if q != zero else f.minus_zero
        over = q > f.max_code
        q = f.over if over else q
        signed = f.over_signed if over else signed
        q = f.inf if a == infinity else q
        signed = f.inf_signed if a == infinity else signed
        nan = a > infinity
        q = f.nan if nan else q
        signed = f.nan_signed if nan else signed
        nans = np.uint32(nans | (one if nan else zero))
        sign = np.uint32(np.uint32(b >> np.uint32(31)) & signed)
        target[i] = np.uint32(q | np.uint32(sign << f.sign_shift))
    return nans != zero


@kernel
def integer_rne(
    x: np.ndarray, out: np.ndarray, start: int, stop: int, scale: np.float32, low: np.float32,
    high: np.float32,
) -> bool:  # fmt: skip
    """Encode float32 to integers of at most 16 bits, saturating; return whether NaN was met.

    Clamping to integers and rounding commute; adding 1.5 * 2**23 rounds to nearest even.
    """
    magic = np.float32(12582912.0)
    offset = np.int32(0x4B400000)
    nans = np.int32(0)
    source, target = x[start:stop], out[start:stop]
    for i in range(source.size):
        v = np.float32(source[i] * scale)
        nans = np.int32(nans | (np.int32(1) if v != v else np.int32(0)))
        v = high if v > high else v
        v = low if v < low else v
        target[i] = np.int32(np.float32(v + magic).view(np.int32) - offset)
    return nans != np.int32(0)
