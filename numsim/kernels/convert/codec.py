"""Arrays of values to codes and back: loops around `round.encode_value`, and table look-up.

What is computed: codes of flat arrays of float32 or float64 bit patterns, of integers, or of values
between those of a table; one loop, any format, rounding and overflow. This is the definition that
the branch-free kernels are compared with; `tests/oracle.py` states it in fractions, and
``tests/convert`` compares all codes of all formats with it and with ml_dtypes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.philox import random64
from numsim.kernels.convert.round import (
    RDN,
    RNA,
    RNE,
    RTO,
    RTZ,
    RUP,
    SATURATE,
    SPECIAL,
    SR,
    encode_value,
    limited_code,
    random_carry,
    rounded_magnitude,
)
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import inline, kernel

_ROUNDED_BLOCK = 4096  # numbers whose rounding is kept in a cache


@inline
def draw(
    i: np.int64, random: np.ndarray, seed: np.uint32, offset: np.uint64, bits: np.int64
) -> np.uint64:
    """Return the `bits` random bits of element i: supplied, or the top bits of the stream."""
    if random.size:
        return np.uint64(random[i])
    return random64(offset + np.uint64(i), seed) >> np.uint64(64 - bits)


@inline
def nan_result(
    fraction: np.uint64, negative: bool, nan_code: np.int64, nan_sign: np.int64, nan_drop: np.int64
) -> np.int64:
    """Return the code of a NaN: its sign and upper fraction bits go where the rule keeps them."""
    payload = np.int64(fraction >> np.uint64(nan_drop))
    return np.int64(nan_code) | payload | (np.int64(nan_sign) if negative else np.int64(0))


@kernel
def encode_float32(
    x: np.ndarray, out: np.ndarray, params: Any, mode: int, overflow: int, bits: int, variant: int,
    random: np.ndarray, seed: int, offset: int, nan_code: int, nan_sign: int, nan_drop: int,
) -> tuple[int, int]:  # fmt: skip
    """Encode float32 bit patterns (uint32); return (NaNs refused, first index)."""
    refused, first = 0, -1
    for i in range(x.size):
        u = x[i]
        negative = (u >> np.uint32(31)) != np.uint32(0)
        field = np.int64((u >> np.uint32(23)) & np.uint32(255))
        sig = np.uint64(u & np.uint32(0x7FFFFF))
        if field == 255 and sig != np.uint64(0):
            if nan_code < 0:
                refused += 1
                first = i if first < 0 else first
            else:
                fraction = sig << np.uint64(29)
                out[i] = nan_result(fraction, negative, nan_code, nan_sign, nan_drop)
            continue
        if field:
            sig |= np.uint64(1 << 23)
        r = np.uint64(0)
        if mode == SR:
            r = draw(i, random, np.uint32(seed), np.uint64(offset), bits)
        out[i] = encode_value(
            negative, sig, max(field, np.int64(1)) - np.int64(150), field == 255, params, mode,
            overflow, r, bits, variant,
        )  # fmt: skip
    return refused, first


@kernel
def encode_float64(
    x: np.ndarray, out: np.ndarray, params: Any, mode: int, overflow: int, bits: int, variant: int,
    random: np.ndarray, seed: int, offset: int, nan_code: int, nan_sign: int, nan_drop: int,
) -> tuple[int, int]:  # fmt: skip
    """Encode float64 bit patterns (uint64); return (NaNs refused, first index)."""
    refused, first = 0, -1
    for i in range(x.size):
        u = x[i]
        negative = (u >> np.uint64(63)) != np.uint64(0)
        field = np.int64((u >> np.uint64(52)) & np.uint64(2047))
        sig = u & np.uint64(0xFFFFFFFFFFFFF)
        if field == 2047 and sig != np.uint64(0):
            if nan_code < 0:
                refused += 1
                first = i if first < 0 else first
            else:
                out[i] = nan_result(sig, negative, nan_code, nan_sign, nan_drop)
            continue
        if field:
            sig |= np.uint64(1 << 52)
        r = np.uint64(0)
        if mode == SR:
            r = draw(i, random, np.uint32(seed), np.uint64(offset), bits)
        out[i] = encode_value(
            negative, sig, max(field, np.int64(1)) - np.int64(1075), field == 2047, params, mode,
            overflow, r, bits, variant,
        )  # fmt: skip
    return refused, first


@kernel
def encode_integer(
    x: np.ndarray, out: np.ndarray, signed: bool, params: Any, mode: int, overflow: int, bits: int,
    variant: int, random: np.ndarray, seed: int, offset: int,
) -> None:  # fmt: skip
    """Encode 64-bit integers, given as uint64 bit patterns."""
    for i in range(x.size):
        u = x[i]
        negative = signed and (u >> np.uint64(63)) != np.uint64(0)
        sig = np.uint64(0) - u if negative else u
        r = np.uint64(0)
        if mode == SR:
            r = draw(i, random, np.uint32(seed), np.uint64(offset), bits)
        out[i] = encode_value(
            negative, sig, np.int64(0), False, params, mode, overflow, r, bits, variant
        )


@inline
def from_middle(v: Any, lo: Any, hi: Any) -> Any:
    """Return a number of the sign of v - (lo + hi) / 2, exactly: 0.0 on a tie."""
    if lo > 1e290 or hi < -1e290:  # else the sum is finite, and halves of tiny numbers inexact
        v, lo, hi = v * 0.5, lo * 0.5, hi * 0.5
    total = lo + hi
    twice = v * 2.0
    if twice != total:
        return twice - total
    back = total - lo
    return -((lo - (total - back)) + (hi - back))  # what rounding the sum has lost


@kernel
def encode_table(
    x: np.ndarray, out: np.ndarray, values: np.ndarray, codes: np.ndarray, mode: int, overflow: int,
    bits: int, variant: int, random: np.ndarray, seed: int, offset: int, nan_code: int,
    inf_codes: tuple[int, int], to_inf: bool, doubtful: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Encode float64 numbers into a format given by its sorted finite values and their codes.

    `inf_codes`: of Inf and of -Inf. `to_inf`: the first and the last value stand for infinities.
    Stochastic rounding marks in `doubtful` the elements that float64 arithmetic cannot decide.
    """
    refused, first = 0, -1
    last = len(values) - 1
    for i in range(x.size):
        v = x[i]
        if np.isnan(v):
            if nan_code < 0:
                refused += 1
                first = i if first < 0 else first
            else:
                out[i] = nan_code
            continue
        if np.isinf(v) and overflow != SATURATE and inf_codes[0] >= 0:
            out[i] = inf_codes[0] if v > 0 else inf_codes[1]
            continue
        if to_inf and (v <= values[0] or v >= values[last]):
            stops = mode in (RTZ, RTO) or mode == (RUP if v < 0 else RDN)
            inward = 1 if stops else 0
            out[i] = codes[inward] if v < 0 else codes[last - inward]
            continue
        if v <= values[0] or v >= values[last]:
            out[i] = codes[0] if v <= values[0] else codes[last]
            continue
        hi = np.searchsorted(values, v, side="left")
        if values[hi] == v:
            out[i] = codes[hi]
            continue
        lo = hi - 1
        side = from_middle(v, values[lo], values[hi])
        lo_even = codes[lo] & 1 == 0
        if mode == RNE:
            up = side > 0 or (side == 0 and not lo_even)
        elif mode == RNA:
            up = side > 0 or (side == 0 and v > 0)
        elif mode == RTZ:
            up = v < 0
        elif mode in (RUP, RDN):
            up = mode == RUP
        elif mode == RTO:
            up = lo_even
        else:  # away from zero with the probability of the distance, in units of 2**-53
            near, far = (values[lo], values[hi]) if v > 0 else (values[hi], values[lo])
            # halves of numbers whose difference may overflow; the fraction is off by less than 8
            unit = 0.5 if max(abs(near), abs(far)) > 1e300 else 1.0
            part, whole = v * unit - near * unit, far * unit - near * unit
            fraction = np.int64(part / whole * 2.0**53)
            least = np.uint64(max(fraction - np.int64(8), np.int64(0)))
            most = np.uint64(min(fraction + np.int64(8), np.int64((1 << 53) - 1)))
            r = draw(i, random, np.uint32(seed), np.uint64(offset), bits)
            away = random_carry(least, np.int64(53), r, np.int64(bits), np.int64(variant))
            other = random_carry(most, np.int64(53), r, np.int64(bits), np.int64(variant))
            doubtful[i] = away != other or fraction > np.int64((1 << 53) - 9)
            up = away == (v > 0)
        out[i] = codes[hi] if up else codes[lo]
    return refused, first


@kernel
def encode_lookup(x: np.ndarray, out: np.ndarray, table: np.ndarray, infinity: np.uint16) -> bool:
    """Look the codes of 16-bit floats (uint16 bits) up; return whether NaN was met."""
    top = np.uint16(0)
    for i in range(x.size):
        u = x[i]
        top = max(top, np.uint16(u & np.uint16(0x7FFF)))
        out[i] = table[u]
    return bool(top > infinity)


@inline
def generic_code(
    u: np.uint32, params: Any, mode: np.int64, overflow: np.int64, nan_code: np.int64
) -> np.int64:
    """Return the code of one float32 bit pattern under a deterministic rounding."""
    negative = (u >> np.uint32(31)) != np.uint32(0)
    field = np.int64((u >> np.uint32(23)) & np.uint32(255))
    sig = np.uint64(u & np.uint32(0x7FFFFF))
    if field == 255 and sig != np.uint64(0):
        return np.int64(nan_code | (params.sign_bit if negative and params.nan_signed else 0))
    if field:
        sig |= np.uint64(1 << 23)
    return encode_value(
        negative, sig, max(field, np.int64(1)) - np.int64(150), field == 255, params, mode,
        overflow, np.uint64(0), 64, 0,
    )  # fmt: skip


@kernel
def differing(
    x: np.ndarray, codes: np.ndarray, params: Any, mode: int, overflow: int, nan_code: int
) -> tuple[int, int]:
    """Compare codes of float32 bit patterns (uint32) with the generic rounding.

    Return (how many differ, the first such pattern).
    """
    count, where = 0, -1
    for i in range(codes.size):
        if np.int64(codes[i]) != generic_code(x[i], params, mode, overflow, nan_code):
            count += 1
            where = int(x[i]) if where < 0 else where
    return count, where


@inline
def first_differing(
    x: np.ndarray, codes: np.ndarray, params: Any, mode: int, overflow: int, nan_code: int
) -> int:
    """Return the first pattern whose code is not that of the generic rounding, -1: none."""
    for i in range(codes.size):
        if np.int64(codes[i]) != generic_code(x[i], params, mode, overflow, nan_code):
            return int(x[i])
    return -1


@kernel
def differing_nearest(
    x: np.ndarray, saturated: np.ndarray, special: np.ndarray, params: Any, nan_code: int
) -> tuple[int, int, int, int]:
    """Do the same for nearest-even under both policies, in a form that fills vectors.

    Each number is rounded once, a block at a time; overflow is then applied twice. Return (how
    many saturated codes differ, the first such pattern, the same two of special codes).
    """
    wide_vectors()
    count, where, count_special, where_special = 0, -1, 0, -1
    magnitudes = np.empty(_ROUNDED_BLOCK, np.int64)
    nan_sign = np.int64(params.sign_bit if params.nan_signed else 0)
    for start in range(0, x.size, _ROUNDED_BLOCK):
        block = x[start : start + _ROUNDED_BLOCK]
        for i in range(block.size):
            u = block[i]
            field = np.int64((u >> np.uint32(23)) & np.uint32(255))
            sig = np.uint64(u & np.uint32(0x7FFFFF)) | np.uint64(np.int64(field != 0) << 23)
            magnitudes[i] = rounded_magnitude(
                u > np.uint32(0x7FFFFFFF), sig, max(field, np.int64(1)) - np.int64(150), params,
                np.int64(RNE), np.uint64(0), np.int64(64), np.int64(0),
            )  # fmt: skip
        one, other = saturated[start : start + block.size], special[start : start + block.size]
        wrong = wrong_special = 0
        for i in range(block.size):
            u = block[i]
            a, negative = u & np.uint32(0x7FFFFFFF), u > np.uint32(0x7FFFFFFF)
            zero, infinite, m = a == np.uint32(0), a == np.uint32(0x7F800000), magnitudes[i]
            want = limited_code(negative, m, zero, infinite, params, RNE, SATURATE)
            want_special = limited_code(negative, m, zero, infinite, params, RNE, SPECIAL)
            if a > np.uint32(0x7F800000):
                want = want_special = np.int64(nan_code) | (nan_sign if negative else np.int64(0))
            wrong += np.int64(one[i]) != want
            wrong_special += np.int64(other[i]) != want_special
        if wrong and where < 0:
            where = first_differing(block, one, params, RNE, SATURATE, nan_code)
        if wrong_special and where_special < 0:
            where_special = first_differing(block, other, params, RNE, SPECIAL, nan_code)
        count, count_special = count + wrong, count_special + wrong_special
    return count, where, count_special, where_special
