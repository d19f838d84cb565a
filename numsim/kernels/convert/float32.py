"""Branch-free conversions from float32, each proven bit-equal to the generic kernel.

One pass over the uint32 view, every operand 32 bits wide so that LLVM fills whole vectors: every
step is cast, shifts come from `instructions`, and arrays are indexed from 0 over slices. All
take signed floats, unsigned floats (not under ``special``) and integers of at most 16 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numsim.kernels.convert.round import RDN, RNA, RNE, RTO, RTZ, RUP, SATURATE, SPECIAL
from numsim.kernels.instructions import shl, shr, wide_vectors
from numsim.kernels.ir.encode import byte_codes
from numsim.kernels.jit import inline, kernel

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


@inline
def nearest(x: np.float32, scale: np.float32, low: np.float32, high: np.float32) -> np.int32:
    """Return the integer nearest to x times `scale`, ties to even, limited.

    Limiting to integers and rounding commute; adding 1.5 * 2**23 rounds to nearest even.
    """
    v = np.float32(x * scale)
    v = high if v > high else v
    v = low if v < low else v
    return np.int32(np.float32(v + np.float32(12582912.0)).view(np.int32) - np.int32(0x4B400000))


@kernel
def integer_rne(
    x: np.ndarray, out: np.ndarray, scale: np.float32, low: np.float32, high: np.float32
) -> bool:
    """Encode float32 to integers of at most 16 bits, saturating; return whether NaN was met."""
    wide_vectors()
    nans = np.int32(0)
    for i in range(x.size):
        nans = np.int32(nans | (np.int32(1) if x[i] != x[i] else np.int32(0)))
        out[i] = nearest(x[i], scale, low, high)
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
