"""Float32 numbers over one scale as codes: given, one for each row, or by their largest magnitude.

Proof: ``tests/kernels/test_quotients.py`` and ``tests/quant/test_quantize_quotients.py`` compare
with divisions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from numsim.kernels.convert.float32 import Fast, byte_rne, float_rne, integer_rne, nearest
from numsim.kernels.instructions import fused, wide_vectors
from numsim.kernels.ir import simd
from numsim.kernels.jit import expanded, inline, kernel

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_ZERO = np.uint32(0)
_NEAR = 1024  # quotients that stay in the first cache until they are codes


@expanded
def _quotients(
    encode: Callable[..., bool], word: Any, x: np.ndarray, by: np.float32, out: np.ndarray, how: Any
) -> bool:
    """Encode float32 x / by, which `encode` takes viewed as `word`; return whether NaN was met."""
    quotients, met = np.empty(_NEAR, np.float32), False
    for start in range(0, x.size, _NEAR):
        part, to = x[start : start + _NEAR], out[start : start + _NEAR]
        for i in range(part.size):
            quotients[i] = part[i] / by
        met |= encode(quotients[: part.size].view(word), to, *how)
    return met


@kernel
def quotients_to_bytes(x: np.ndarray, by: np.float32, out: np.ndarray, f: Fast) -> bool:
    """Do ``byte_rne`` for float32 x / by; return whether NaN was met."""
    wide_vectors()
    return _quotients(byte_rne, np.uint32, x, by, out, (f,))


@inline
def _quotients_to_floats(x: np.ndarray, by: np.float32, out: np.ndarray, f: Fast) -> bool:
    """Do ``float_rne`` for float32 x / by; return whether NaN was met."""
    return _quotients(float_rne, np.uint32, x, by, out, (f,))


@inline
def quotient(x: np.float32, by: np.float32, inverse: np.float32) -> np.float32:
    """Return fp32(x / by) without a division, which takes long; `inverse` is fp32(1 / by).

    `by` lies between 2**-60 and 2**60, the quotient between 2**-40 and 2**60; of a smaller quotient
    only that it is small holds. The first correction leaves less than one last place, of which
    Markstein's theorem makes the nearest number: the remainder is exact, as a multiple of 2**-146,
    and `inverse` is the nearest to 1 / by. Without the first no quotient was seen to differ, in
    2**37 of them, but no proof says so.
    """
    q = np.float32(x * inverse)
    q = fused(fused(-q, by, x), inverse, q)
    return np.float32(fused(fused(-q, by, x), inverse, q))


@kernel
def quotients_to_integers(
    x: np.ndarray, by: np.float32, out: np.ndarray, scale: np.float32, low: np.float32,
    high: np.float32,
) -> bool:  # fmt: skip
    """Do ``integer_rne`` for float32 x / by; return whether NaN was met."""
    wide_vectors()
    reach = np.float32(2.0**60)
    if by > np.float32(1.0) / reach and by < reach:
        inverse, most, far = np.float32(np.float32(1.0) / by), np.float32(by * reach), np.int32(0)
        for i in range(x.size):
            far = np.int32(far | (np.int32(0) if abs(x[i]) <= most else np.int32(1)))
            out[i] = nearest(quotient(x[i], by, inverse), scale, low, high)
        if far == np.int32(0):
            return False
    return _quotients(integer_rne, np.float32, x, by, out, (scale, low, high))


@inline
def _scale_of(x: np.ndarray, top: np.float32) -> np.float32:
    """Return fp32(amax / top), 1 where amax is 0 or `top` is; -1: x or the scale is unusual."""
    most = _ZERO
    bits = x.view(np.uint32)
    for i in range(bits.size):
        most = max(most, np.uint32(bits[i] & _MAGNITUDE))
    return _scale_by(most, top)


@kernel
def scale_by(most: int, top: np.float32) -> np.float32:
    """Return what `by_amax` does, `most` being the bits of amax."""
    return _scale_by(np.uint32(most), top)


@inline
def _scale_by(most: np.uint32, top: np.float32) -> np.float32:
    amax = np.uint32(most).view(np.float32)
    if most >= _INFINITY:
        return np.float32(-1.0)
    if most == _ZERO or top == np.float32(0.0):
        return np.float32(1.0)
    scale = np.float32(amax / top)
    usual = scale >= np.float32(2.0**-100) and scale <= np.float32(2.0**100)
    return scale if usual else np.float32(-1.0)


@kernel
def _amax_to_bytes(x: np.ndarray, top: np.float32, out: np.ndarray, f: Fast) -> np.float32:
    wide_vectors()
    scale = _scale_of(x, top)
    if scale > np.float32(0.0):
        quotients_to_bytes(x, scale, out, f)
    return scale


@kernel
def _amax_to_floats(x: np.ndarray, top: np.float32, out: np.ndarray, f: Fast) -> np.float32:
    wide_vectors()
    scale = _scale_of(x, top)
    if scale > np.float32(0.0):
        _quotients_to_floats(x, scale, out, f)
    return scale


@kernel
def _amax_to_integers(
    x: np.ndarray, top: np.float32, out: np.ndarray, limits: tuple[np.float32, ...]
) -> np.float32:
    wide_vectors()
    scale = _scale_of(x, top)
    if scale > np.float32(0.0):
        quotients_to_integers(x, scale, out, limits[0], limits[1], limits[2])
    return scale


@cache
def by_amax(
    code: np.dtype[Any], to: Literal["integers", "bytes", "floats"]
) -> Callable[..., np.float32]:
    """Return the kernel (x, top, out, how) of codes under fp32(amax / top), which it returns.

    It is 1 where amax or `top` is 0, and -1 with nothing written where x is not finite or it lies
    beyond 2**100 or 2**-100. `how`: what `integer_rne` takes as a tuple, or `Fast` of what
    `byte_rne` or `float_rne` takes.
    """
    make: Any = types.UniTuple if to == "integers" else types.NamedUniTuple
    how = (
        make(types.float32, 3) if to == "integers" else make(types.uint32, len(Fast._fields), Fast)
    )
    given = types.Array(types.float32, 1, "C", readonly=True)
    out = simd.contiguous(from_dtype(code), 1)
    entries = {"integers": _amax_to_integers, "bytes": _amax_to_bytes, "floats": _amax_to_floats}
    return simd.compiled(entries[to], given, types.float32, out, how)


@kernel
def rows_to_bytes(x: np.ndarray, by: np.ndarray, out: np.ndarray, f: Fast) -> bool:
    """Do `quotients_to_bytes` for rows [count, n], each by its own scale [count]."""
    met = False
    for row in range(x.shape[0]):
        met |= quotients_to_bytes(x[row], by[row], out[row], f)
    return met


@kernel
def rows_to_integers(
    x: np.ndarray, by: np.ndarray, out: np.ndarray, scale: np.float32, low: np.float32,
    high: np.float32,
) -> bool:  # fmt: skip
    """Do `quotients_to_integers` for rows [count, n], each by its own scale [count]."""
    met = False
    for row in range(x.shape[0]):
        met |= quotients_to_integers(x[row], by[row], out[row], scale, low, high)
    return met
