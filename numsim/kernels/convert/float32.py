"""Branch-free conversions from float32, each proven bit-equal to the generic kernel.

One pass over the uint32 view, every operand 32 bits wide so that LLVM fills whole vectors: every
step is cast, shifts come from `instructions`, and arrays are indexed from 0 over slices. All
take signed floats, unsigned floats (not under ``special``) and integers of at most 16 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numsim.kernels.convert.philox import fill_words
from numsim.kernels.convert.round import RDN, RNA, RNE, RTO, RTZ, RUP, SATURATE, SPECIAL
from numsim.kernels.instructions import shl, shr, wide_vectors
from numsim.kernels.ir.encode import byte_codes, signed_bytes
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
def _limited(b: np.uint32, a: np.uint32, q: np.uint32, f: Fast) -> np.uint32:
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


@kernel
def quotients_to_bytes(x: np.ndarray, by: np.float32, out: np.ndarray, f: Fast) -> bool:
    """Do ``byte_rne`` for float32 x / by; return whether NaN was met."""
    wide_vectors()
    quotients, met = np.empty(_NEAR, np.float32), False
    for start in range(0, x.size, _NEAR):
        part, to = x[start : start + _NEAR], out[start : start + _NEAR]
        for i in range(part.size):
            quotients[i] = part[i] / by
        met |= byte_rne(quotients[: part.size].view(np.uint32), to, f)
    return met


@kernel
def quotients_to_integers(
    x: np.ndarray, by: np.float32, out: np.ndarray, scale: np.float32, low: np.float32,
    high: np.float32,
) -> bool:  # fmt: skip
    """Do ``integer_rne`` for float32 x / by; return whether NaN was met."""
    wide_vectors()
    quotients, met = np.empty(_NEAR, np.float32), False
    for start in range(0, x.size, _NEAR):
        part, to = x[start : start + _NEAR], out[start : start + _NEAR]
        for i in range(part.size):
            quotients[i] = part[i] / by
        met |= integer_rne(quotients[: part.size], to, scale, low, high)
    return met


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
        out[i] = _limited(b, a, q, f)
    return bool(top > _INFINITY)


class Noise(NamedTuple):
    """A stochastic rounding that looks at 32 bits or fewer of the discarded fraction, uint32."""

    key: np.uint32
    seen: np.uint32  # bits of the 32-bit fraction that the adder sees
    drawn: np.uint32  # bits of the random word that are added
    half: np.uint32  # the bit that half_offset adds below them
    full: np.uint32  # all ones where fraction bits beyond 32 count too


def noise(bits: int, half_offset: bool, seed: int) -> Noise:
    """Return the scalars for `bits` random bits (64: all)."""
    count = min(bits, 32)
    drawn = (0xFFFFFFFF << (32 - count)) & 0xFFFFFFFF
    half = 1 << (31 - count) if half_offset else 0
    full = 0xFFFFFFFF if bits > 32 else 0
    return Noise(*(np.uint32(n) for n in (seed, drawn | half, drawn, half, full)))


@kernel
def float_sr(
    x: np.ndarray, out: np.ndarray, f: Fast, noise: Noise, number: np.uint64
) -> tuple[bool, bool]:
    """Round float32 bits stochastically, the first with the random bits of stream `number`.

    Return (whether NaN was met, whether the lower random word of some element matters).
    """
    wide_vectors()
    blocks = np.empty(1025, np.uint64)
    odd = np.int64(number & np.uint64(1))
    top, open_ = _ZERO, _ZERO
    for start in range(0, x.size, 2048):
        source, target = x[start : start + 2048], out[start : start + 2048]
        fill_words(blocks[: source.size // 2 + 1], number + np.uint64(start), noise.key)
        words = blocks.view(np.uint32)[odd : odd + source.size]
        for i in range(source.size):
            b = source[i]
            a = np.uint32(b & _MAGNITUDE)
            top = max(top, a)
            field = max(shr(a, np.uint32(23)), _ONE)
            sig = np.uint32(np.uint32(a & _FRACTION) | (_HIDDEN if a >= _HIDDEN else _ZERO))
            e = max(field, f.min_field)
            shift = np.uint32(np.uint32(e - field) + f.cut)
            near = min(shift, np.uint32(32))
            far = np.uint32(min(shift, np.uint32(63)) - near)
            # the discarded fraction in units of 2**-32 (sig < 2**24: a shift of 31 leaves 0)
            fraction = shr(shl(sig, np.uint32(np.uint32(32) - near)), far)
            low = np.uint32(shr(sig, min(near, np.uint32(31))) + shl(
                np.uint32(e - f.min_field), f.stored))  # fmt: skip
            bar = np.uint32(~np.uint32(np.uint32(words[i] & noise.drawn) | noise.half))
            up = np.uint32(fraction & noise.seen) > np.uint32(bar & noise.seen)
            open_ = np.uint32(open_ | (far if fraction == bar else _ZERO))
            target[i] = _limited(b, a, np.uint32(low + (_ONE if up else _ZERO)), f)
    return bool(top > _INFINITY), bool(np.uint32(open_ & noise.full) != _ZERO)


SUB_BITS = 24  # fraction bits of a subnormal that `float_sr_narrow` looks at, at least


@kernel
def float_sr_narrow(
    x: np.ndarray, out: np.ndarray, f: Fast, noise: Noise, to_fixed: np.float32,
    number: np.uint64,
) -> tuple[bool, bool]:  # fmt: skip
    """Do what `float_sr` does for formats of few bits, by additions alone.

    A normal number is its float32 pattern plus random bits below the cut. A subnormal one is a
    fixed-point number of 31 bits, a multiple of ``1 / to_fixed``; where its cut-off bits, or
    random bits below them, decide, the caller is told.
    """
    wide_vectors()
    blocks = np.empty(1025, np.uint64)
    odd = np.int64(number & np.uint64(1))
    top, open_ = _ZERO, _ZERO
    cuts = _cuts(f, noise)
    for start in range(0, x.size, 2048):
        source, target = x[start : start + 2048], out[start : start + 2048]
        fill_words(blocks[: source.size // 2 + 1], number + np.uint64(start), noise.key)
        words = blocks.view(np.uint32)[odd : odd + source.size]
        for i in range(source.size):
            b = source[i]
            a = np.uint32(b & _MAGNITUDE)
            top = max(top, a)
            q, undecided = _narrow(a, words[i], to_fixed, f, noise, cuts)
            open_ = np.uint32(open_ | undecided)
            target[i] = _limited(b, a, q, f)
    return bool(top > _INFINITY), bool(open_ != _ZERO)


@kernel
def byte_sr_narrow(
    x: np.ndarray, out: np.ndarray, f: Fast, noise: Noise, to_fixed: np.float32,
    number: np.uint64,
) -> tuple[bool, bool]:  # fmt: skip
    """Do what `float_sr_narrow` does where `takes_bytes`: signs and NaN come 64 at a time."""
    wide_vectors()
    blocks = np.empty(1025, np.uint64)
    odd = np.int64(number & np.uint64(1))
    met, open_ = np.int64(0), _ZERO
    cuts = _cuts(f, noise)
    whole = x.size // 64 * 64
    for start in range(0, whole, 2048):
        source, target = x[start : min(start + 2048, whole)], out[start : start + 2048]
        fill_words(blocks[: source.size // 2 + 1], number + np.uint64(start), noise.key)
        words = blocks.view(np.uint32)[odd : odd + source.size]
        for i in range(source.size):
            a = np.uint32(source[i] & _MAGNITUDE)
            q, undecided = _narrow(a, words[i], to_fixed, f, noise, cuts)
            open_ = np.uint32(open_ | undecided)
            target[i] = min(q, f.limit)
        met |= signed_bytes(source, source.size // 64, target, f)
    rest = number + np.uint64(whole)
    few, more = float_sr_narrow(x[whole:], out[whole:], f, noise, to_fixed, rest)
    return few or met != 0, more or open_ != _ZERO


class _Cuts(NamedTuple):
    """What `_narrow` derives from a format and a stochastic rounding, all uint32."""

    least: np.uint32
    base: np.uint32
    seen_up: np.uint32
    cut_seen: np.uint32
    point: np.uint32  # fraction bits of fixed point
    down: np.uint32
    fixed_seen: np.uint32
    ones: np.uint32
    deep: np.uint32


@inline
def _cuts(f: Fast, noise: Noise) -> _Cuts:
    seen_up = np.uint32(np.uint32(32) - f.cut)
    point = np.uint32(np.uint32(31) - np.uint32(f.stored + _ONE))
    down = np.uint32(np.uint32(32) - point)
    # all seen bits fit: nothing is cut off
    deep = _ONE if shl(shr(noise.seen, down), down) != noise.seen else _ZERO
    return _Cuts(
        shl(f.min_field, np.uint32(23)),
        shl(np.uint32(f.min_field - _ONE), f.stored),
        seen_up,
        np.uint32(~shr(np.uint32(~noise.seen), seen_up)),
        point,
        down,
        np.uint32(~shr(np.uint32(~noise.seen), down)),
        np.uint32(shl(_ONE, point) - _ONE),
        np.uint32(deep | (noise.full & _ONE)),
    )


@inline
def _narrow(
    a: np.uint32, drawn: np.uint32, to_fixed: np.float32, f: Fast, noise: Noise, k: _Cuts
) -> tuple[np.uint32, np.uint32]:
    """Return the magnitude code before overflow, and whether bits that are cut off decide."""
    word = np.uint32(np.uint32(drawn & noise.drawn) | noise.half)
    normal = shr(np.uint32(np.uint32(a & k.cut_seen) + shr(word, k.seen_up)), f.cut)
    small = np.float32(np.uint32(min(a, k.least)).view(np.float32) * to_fixed)
    fixed = np.uint32(np.uint32(np.int32(small)) & k.fixed_seen)
    total = np.uint32(fixed + shr(word, k.down))
    tiny = a < k.least
    undecided = k.deep if tiny and np.uint32(total & k.ones) == k.ones else _ZERO
    return shr(total, k.point) if tiny else np.uint32(normal - k.base), undecided


@kernel
def integer_rne(
    x: np.ndarray, out: np.ndarray, scale: np.float32, low: np.float32, high: np.float32
) -> bool:
    """Encode float32 to integers of at most 16 bits, saturating; return whether NaN was met.

    Clamping to integers and rounding commute; adding 1.5 * 2**23 rounds to nearest even.
    """
    wide_vectors()
    magic = np.float32(12582912.0)
    offset = np.int32(0x4B400000)
    nans = np.int32(0)
    for i in range(x.size):
        v = np.float32(x[i] * scale)
        nans = np.int32(nans | (np.int32(1) if v != v else np.int32(0)))
        v = high if v > high else v
        v = low if v < low else v
        out[i] = np.int32(np.float32(v + magic).view(np.int32) - offset)
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
