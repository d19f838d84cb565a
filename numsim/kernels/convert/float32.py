"""Branch-free conversions from float32, each proven bit-equal to the generic kernel.

One pass over the uint32 view, every operand 32 bits wide so that LLVM fills whole vectors: every
step is cast, shifts come from `instructions`, and arrays are indexed from 0 over slices. All
take signed floats, unsigned floats (not under ``special``) and integers of at most 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import types
from numba.np.numpy_support import from_dtype

from numsim.kernels.convert.round import RDN, RNA, RNE, RTO, RTZ, RUP, SATURATE, SPECIAL
from numsim.kernels.instructions import fused, shl, shr, wide_vectors
from numsim.kernels.ir import simd
from numsim.kernels.ir.encode import byte_codes
from numsim.kernels.jit import expanded, inline, kernel

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)
_FRACTION = np.uint32(0x7FFFFF)
_HIDDEN = np.uint32(0x800000)
_ZERO, _ONE = np.uint32(0), np.uint32(1)


class Fast(NamedTuple):
    """A format, rounding and overflow policy as the fast kernels take them, all uint32."""

    cut: np.uint32  # float32 fraction bits that a normal number loses
    min_field: np.uint32  # float32 exponent field of the lowest binade
    stored: np.uint32  # fraction bits that are kept
    limit: np.uint32  # largest magnitude code after finite overflow, per sign
    limit_negative: np.uint32
    clamp: np.uint32  # float32 bits of the value of code `limit`
    inf: np.uint32  # magnitude code of an infinite input, per sign
    inf_negative: np.uint32
    nan: np.uint32
    nan_sign: np.uint32  # sign bit that NaN keeps
    sign_bit: np.uint32
    zero_sign: np.uint32  # sign bit that zero keeps
    negate: np.uint32  # all ones: negative codes are two's complement
    away: np.uint32  # all ones where the rounding adds: all discarded bits if positive,
    away_negative: np.uint32  # all discarded bits if negative,
    half: np.uint32  # half (ties away),
    even: np.uint32  # half less the last bit (ties to even);
    odd: np.uint32  # one: inexact results end in a one


def fast_scalars(
    params: tuple[int, ...], mode: int, overflow: int, nan_input: tuple[int, int],
    max_positive_bits: int,
) -> Fast | None:  # fmt: skip
    """Return the scalars of a format of at most 16 bits, or None where the kernels do not apply.

    `nan_input`: what NaN becomes, a code (-1: refused) and the sign bit it keeps.
    `max_positive_bits`: the float32 bits of the value of code ``limit``; 0 if there is none.
    """
    p, emin, offset, top, bottom, inf, nan, _, sign_bit, minus_zero, twos, _, p3109 = params
    min_field = emin + 127
    if offset or not 1 <= min_field <= 254 or p > 18:
        return None
    if p3109 and overflow != SATURATE and (inf < 0 or not sign_bit or mode == RTO):
        return None  # whose rules differ there
    special = nan if inf < 0 else inf
    unsigned = not twos and not sign_bit
    if overflow == SPECIAL and special >= 0:
        if unsigned or special != top + 1:
            return None
        stop_up, stop_down = mode in (RTZ, RTO, RDN), mode in (RTZ, RTO, RUP)
        limit, limit_negative = top + (not stop_up), bottom + (not stop_down)
    else:
        limit, limit_negative = top, bottom
    at_inf, at_minus_inf = top, bottom
    if overflow != SATURATE and special >= 0:
        at_inf, at_minus_inf = special, special
        if unsigned:
            at_minus_inf = nan if nan >= 0 else bottom
    mask = {RUP: "p", RDN: "n", RNA: "h", RNE: "e", RTO: "o"}.get(mode, "")
    flags = [0xFFFFFFFF if mask == letter else 0 for letter in "pnheo"]
    numbers = (
        24 - p, min_field, p - 1, limit, limit_negative, max_positive_bits, at_inf, at_minus_inf,
        max(nan_input[0], 0), nan_input[1], sign_bit, sign_bit if minus_zero else 0,
        0xFFFFFFFF if twos else 0, *flags[:4], flags[4] & 1,
    )  # fmt: skip
    return Fast(*(np.uint32(n) for n in numbers))


@inline
def _signed(b: np.uint32, a: np.uint32, q: np.uint32, f: Fast) -> np.uint32:
    """Return the code: NaN, else the magnitude code with its sign."""
    negative = b > _MAGNITUDE
    sign = f.sign_bit if q != _ZERO else f.zero_sign
    sign = sign if negative else _ZERO
    flip = f.negate if negative else _ZERO
    nan = np.uint32(f.nan | (f.nan_sign if negative else _ZERO))
    code = np.uint32(np.uint32(np.uint32(q ^ flip) - flip) | sign)
    return nan if a > _INFINITY else code


@inline
def limited(b: np.uint32, a: np.uint32, q: np.uint32, f: Fast) -> np.uint32:
    """Apply overflow to a magnitude code, then the sign."""
    negative = b > _MAGNITUDE
    q = min(q, f.limit_negative if negative else f.limit)
    inf = f.inf_negative if negative else f.inf
    return _signed(b, a, inf if a == _INFINITY else q, f)


@kernel
def float_rne(x: np.ndarray, out: np.ndarray, f: Fast) -> bool:
    """Round float32 bits to nearest even by one float addition; return whether NaN was met.

    Adding 2**(e + cut) for a number of binade e leaves its rounded significand in the low bits.
    """
    wide_vectors()
    top = _ZERO
    least = shl(f.min_field, np.uint32(23))
    magic = shl(f.cut, np.uint32(23))
    base = np.uint32(magic + shl(f.min_field, f.stored))
    for i in range(x.size):
        b = x[i]
        a = np.uint32(b & _MAGNITUDE)
        top = max(top, a)
        c = min(a, f.clamp)
        e = max(np.uint32(c & _INFINITY), least)
        s = np.float32(np.uint32(c).view(np.float32) + np.uint32(e + magic).view(np.float32))
        q = np.uint32(np.uint32(np.uint32(s.view(np.uint32) - e) + shr(e, f.cut)) - base)
        out[i] = _signed(b, a, f.inf if a == _INFINITY else q, f)
    return bool(top > _INFINITY)


@kernel
def byte_rne(x: np.ndarray, out: np.ndarray, f: Fast) -> bool:
    """Do what `float_rne` does for a format of eight bits (`ir.encode.byte_codes`)."""
    runs = x.size // 64
    met = byte_codes(x, runs, out, f)
    return float_rne(x[64 * runs :], out[64 * runs :], f) or met != 0


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
def _nearest(x: np.float32, scale: np.float32, low: np.float32, high: np.float32) -> np.int32:
    """Return the integer nearest to x times `scale`, ties to even, limited.

    Limiting to integers and rounding commute; adding 1.5 * 2**23 rounds to nearest even.
    """
    v = np.float32(x * scale)
    v = high if v > high else v
    v = low if v < low else v
    return np.int32(np.float32(v + np.float32(12582912.0)).view(np.int32) - np.int32(0x4B400000))


@inline
def quotient(x: np.float32, by: np.float32, inverse: np.float32) -> np.float32:
    """Return fp32(x / by) without a division, which takes long; `inverse` is fp32(1 / by).

    `by` and the quotient lie between 2**-60 and 2**60; of a smaller quotient only that it is small
    holds. The first correction leaves less than one last place, of which Markstein's theorem makes
    the nearest number: the remainder is exact, and `inverse` is the nearest to 1 / by. Without the
    first no quotient was seen to differ, in 2**37 of them, but no proof says so.
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
            out[i] = _nearest(quotient(x[i], by, inverse), scale, low, high)
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


@kernel
def largest(x: np.ndarray) -> np.uint32:
    """Return the largest magnitude among float32 bits, as bits: NaN is above Inf."""
    wide_vectors()
    top = _ZERO
    for i in range(x.size):
        top = max(top, np.uint32(x[i] & _MAGNITUDE))
    return top


def takes_bytes(f: Fast) -> bool:
    """Whether the kernels of bytes are right for a format: eight bits, minus zero, no other Inf.

    Infinite inputs become what other large numbers do.
    """
    one = f.limit == f.limit_negative == f.inf == f.inf_negative
    return bool(one and f.sign_bit == f.zero_sign == np.uint32(0x80) and not f.negate)


@kernel
def odd_singles(x: np.ndarray, out: np.ndarray) -> None:
    """Fill `out` with the bits of float32 numbers that keep what float64 numbers `x` decide.

    Inexact ones are rounded to odd: rounded again to 22 bits or fewer, in any direction, they give
    what the exact number does, ties included (Boldo and Melquiond, IEEE TC 57(4), 2008).
    """
    wide_vectors()
    for i in range(x.size):
        v = x[i]
        single = np.float32(v)
        back = np.float64(single)
        bits = np.float32(single).view(np.uint32)
        above = (back if back > 0.0 else -back) > (v if v > 0.0 else -v)
        cut = np.uint32(np.uint32(bits - (_ONE if above else _ZERO)) | _ONE)
        out[i] = cut if back < v or back > v else bits


@kernel
def float_any(x: np.ndarray, out: np.ndarray, f: Fast) -> bool:
    """Round float32 bits in any deterministic mode; return whether NaN was met."""
    wide_vectors()
    top = _ZERO
    for i in range(x.size):
        b = x[i]
        a = np.uint32(b & _MAGNITUDE)
        top = max(top, a)
        field = max(shr(a, np.uint32(23)), _ONE)
        sig = np.uint32(np.uint32(a & _FRACTION) | (_HIDDEN if a >= _HIDDEN else _ZERO))
        e = max(field, f.min_field)
        # beyond 25 nothing changes: the value lies below half of the smallest number
        shift = min(np.uint32(np.uint32(e - field) + f.cut), np.uint32(25))
        low = np.uint32(shr(sig, shift) + shl(np.uint32(e - f.min_field), f.stored))
        mask = np.uint32(shl(_ONE, shift) - _ONE)
        rest = np.uint32(sig & mask)
        half = np.uint32(shr(mask, _ONE) + _ONE)
        add = np.uint32(mask & (f.away_negative if b > _MAGNITUDE else f.away))
        add = np.uint32(add | np.uint32(half & f.half))
        even = np.uint32(np.uint32(half - _ONE) + np.uint32(low & _ONE))
        add = np.uint32(add | np.uint32(even & f.even))
        q = np.uint32(low + shr(np.uint32(rest + add), shift))
        q = np.uint32(q | (f.odd if rest != _ZERO else _ZERO))
        out[i] = limited(b, a, q, f)
    return bool(top > _INFINITY)


@kernel
def integer_rne(
    x: np.ndarray, out: np.ndarray, scale: np.float32, low: np.float32, high: np.float32
) -> bool:
    """Encode float32 to integers of at most 16 bits, saturating; return whether NaN was met."""
    wide_vectors()
    nans = np.int32(0)
    for i in range(x.size):
        nans = np.int32(nans | (np.int32(1) if x[i] != x[i] else np.int32(0)))
        out[i] = _nearest(x[i], scale, low, high)
    return bool(nans != np.int32(0))


@kernel
def scale_rne(
    x: np.ndarray, out: np.ndarray, limit: np.uint32, inf: np.uint32, below: np.uint32,
    minus_inf: np.uint32, nan: np.uint32,
) -> bool:  # fmt: skip
    """Encode float32 bits to E8M0 as ml_dtypes does: ties up; return whether NaN was met.

    The code is float32's exponent field. `limit`: the code of finite overflow; `below`: that of
    zero and of negative numbers.
    """
    wide_vectors()
    top = _ZERO
    half = np.uint32(0x400000)
    for i in range(x.size):
        b = x[i]
        a = np.uint32(b & _MAGNITUDE)
        top = max(top, a)
        # 2**-127, half of float32's smallest normal, is the one number that is exact below it
        q = shr(np.uint32(a + half - (_ONE if a == half else _ZERO)), np.uint32(23))
        q = inf if a == _INFINITY else min(q, limit)
        low = minus_inf if a == _INFINITY else below
        q = low if b > _MAGNITUDE or a == _ZERO else q
        out[i] = nan if a > _INFINITY else q
    return bool(top > _INFINITY)
