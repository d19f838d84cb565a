"""The one generic rounding: an exact value to the nearest code of any format.

A value is ``(-1)**negative * significand * 2**exponent`` with a 64-bit unsigned significand, so
float16, bfloat16, float32, float64 and 64-bit integers all enter without loss and are rounded
once. Everything is integer work; no log2, no float arithmetic that could itself round.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.instructions import top_bit as top_bit
from numsim.kernels.jit import inline

# Rounding modes, overflow policies and few-bit stochastic variants as kernels see them.
RNE, RNA, RTZ, RUP, RDN, RTO, SR = range(7)
SATURATE, SPECIAL, SATURATE_FINITE, WRAP = range(4)
TRUNCATE, HALF_OFFSET, RNE_FIRST = range(3)

_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@inline
def random_carry(
    rem: np.uint64, shift: np.int64, random: np.uint64, bits: np.int64, variant: np.int64
) -> bool:
    """Whether few-bit stochastic rounding rounds away from zero.

    ``rem / 2**shift`` is the discarded fraction f (shift >= 1, clamped to 128 by the caller).
    truncate: floor(f 2^b) + R >= 2^b; half_offset: floor(f 2^(b+1)) + 2R + 1 >= 2^(b+1);
    rne_first: round_to_even(f 2^b) + R >= 2^b. With 64 bits every discarded bit takes part.
    """
    if bits == 64:
        if shift <= 64:
            scaled = rem << np.uint64(64 - shift)
        else:
            scaled = rem >> np.uint64(shift - 64) if shift < 128 else _ZERO
        return bool(scaled > ~random)
    width = bits + 1 if variant == HALF_OFFSET else bits
    cut = shift - width  # bits of the fraction that the adder does not see
    if cut <= 0:
        scaled, low, half = rem << np.uint64(-cut), _ZERO, _ONE
    elif cut < 64:
        scaled = rem >> np.uint64(cut)
        low, half = rem & ((_ONE << np.uint64(cut)) - _ONE), _ONE << np.uint64(cut - 1)
    else:  # f < 2**-width; rem < 2**64 <= 2**cut, so it is below half unless cut is 64
        scaled, low = _ZERO, rem
        half = _ONE << np.uint64(63) if cut == 64 else ~_ZERO
    addend = (random << _ONE) + _ONE if variant == HALF_OFFSET else random
    if variant == RNE_FIRST and (low > half or (low == half and (scaled & _ONE) == _ONE)):
        scaled += _ONE
    return bool(scaled + addend >= (_ONE << np.uint64(width)))


@inline
def round_quotient(
    sig: np.uint64, shift: np.int64, negative: bool, parity: np.int64, mode: np.int64,
    random: np.uint64, bits: np.int64, variant: np.int64,
) -> np.uint64:  # fmt: skip
    """Round ``sig / 2**shift`` (shift >= 1) to an integer.

    `parity` is added to the integer before its last bit is looked at (ties to even, to odd).
    """
    if shift < 64:
        quotient = sig >> np.uint64(shift)
        rem = sig & ((_ONE << np.uint64(shift)) - _ONE)
        half = _ONE << np.uint64(shift - 1)
    else:
        quotient, rem = _ZERO, sig
        half = _ONE << np.uint64(63) if shift == 64 else ~_ZERO
    if rem == _ZERO:
        return quotient
    odd = ((quotient + np.uint64(parity)) & _ONE) == _ONE
    if mode == RNE:
        up = rem > half or (rem == half and odd and shift <= 64)
    elif mode == RNA:
        up = rem >= half and shift <= 64
    elif mode == RTZ:
        up = False
    elif mode == RUP:
        up = not negative
    elif mode == RDN:
        up = negative
    elif mode == RTO:
        up = not odd
    else:
        up = random_carry(rem, shift, random, bits, variant)
    return quotient + _ONE if up else quotient


@inline
def significand(
    negative: bool, sig: np.uint64, exponent: np.int64, e: np.int64, params: Any, mode: np.int64,
    random: np.uint64, bits: np.int64, variant: np.int64,
) -> np.uint64:  # fmt: skip
    """Round a nonzero number to a multiple of the last place of binade `e`."""
    p = np.int64(params.p)
    shift = e - (p - 1) - exponent
    if shift <= 0:
        return sig << np.uint64(-shift) if shift > -64 else _ZERO
    by_code = p == 1 and (params.even_by_code or mode == RTO)
    parity = e - np.int64(params.emin) + params.offset if by_code else np.int64(0)
    return round_quotient(
        sig, min(shift, np.int64(128)), negative, parity, mode, random, bits, variant
    )


@inline
def rounded_magnitude(
    negative: bool, sig: np.uint64, exponent: np.int64, params: Any, mode: np.int64,
    random: np.uint64, bits: np.int64, variant: np.int64,
) -> np.int64:  # fmt: skip
    """Return the magnitude code of a finite number, as if codes had no upper end."""
    if sig == _ZERO:
        return np.int64(0)
    p, emin = np.int64(params.p), np.int64(params.emin)
    binade = top_bit(sig) + exponent
    e = max(binade, emin)
    m = significand(negative, sig, exponent, e, params, mode, random, bits, variant)
    shift = e - (p - 1) - exponent
    if params.offset == 1 and mode == RNE and binade == emin and shift > 0:
        # E8M0 as ml_dtypes casts to it: all between the two smallest values rounds up
        m = _ONE if sig == _ONE << np.uint64(shift) else np.uint64(2)
    magnitude = np.int64(m) + ((e - emin) << np.int64(p - 1)) - np.int64(params.offset)
    return np.int64(0) if params.offset == 1 and magnitude < 0 else magnitude


@inline
def residue(m: np.uint64, negative: bool, params: Any) -> np.int64:
    """Return the integer `m`, with its sign, modulo 2**bits."""
    span = np.int64(params.max_positive) + 1  # 2**(bits - 1), unsigned: 2**bits
    signed = params.max_negative > 0
    rest = np.int64(_ZERO - m if negative else m)
    rest &= (span << 1) - 1 if signed else span - 1
    return rest - (span << 1) if signed and rest >= span else rest


@inline
def _p3109_code(
    negative: bool, magnitude: np.int64, over: bool, is_inf: bool, params: Any, mode: np.int64,
    overflow: np.int64,
) -> np.int64:  # fmt: skip
    """Return the code under SatPropagate or SatNone of IEEE P3109 (4.7.5): no number becomes NaN.

    But those below zero of unsigned formats under SatNone, unless their rounding goes upward.
    """
    unsigned = params.sign_bit == 0
    if negative and unsigned:
        stays = overflow != SPECIAL or (not is_inf and (mode in (RTZ, RUP) or magnitude == 0))
        return np.int64(0) if stays else np.int64(params.nan)
    if over:
        to_inf = is_inf
        if overflow == SPECIAL and not is_inf:
            toward_zero = mode == RTZ or mode == (RUP if negative else RDN)
            to_inf = not toward_zero and not (mode == RTO and unsigned)
        limit = np.int64(params.max_negative if negative else params.max_positive)
        magnitude = np.int64(params.inf) if to_inf and params.inf >= 0 else limit
    if negative and magnitude != 0:
        return magnitude | np.int64(params.sign_bit)
    return magnitude


@inline
def limited_code(
    negative: bool, magnitude: np.int64, is_zero: bool, is_inf: bool, params: Any, mode: np.int64,
    overflow: np.int64,
) -> np.int64:  # fmt: skip
    """Return the code of a rounded number: overflow, then the sign."""
    limit = np.int64(params.max_negative if negative else params.max_positive)
    over = is_inf or magnitude > limit
    if params.offset == 1 and (is_zero or negative):
        # E8M0 has neither zero nor negative values
        if overflow == SPECIAL or (overflow == SATURATE_FINITE and is_inf):
            return np.int64(params.nan)
        return np.int64(0)
    # a negative value of an unsigned format that does not round to zero
    below = over and params.sign_bit == 0 and not params.twos_complement and negative
    if params.p3109 and overflow != SATURATE:
        return _p3109_code(negative, magnitude, over, is_inf, params, mode, overflow)
    if over:
        special = overflow == SPECIAL or (overflow == SATURATE_FINITE and is_inf)
        if special and not is_inf and overflow == SPECIAL and not below:
            toward_zero = mode in (RTZ, RTO) or mode == (RUP if negative else RDN)
            special = not toward_zero
        if special and params.inf >= 0 and not below:
            magnitude = np.int64(params.inf)
        elif special and params.nan >= 0:
            nan = np.int64(params.nan)
            return nan | np.int64(params.sign_bit) if negative and params.nan_signed else nan
        else:
            magnitude = limit
    if params.twos_complement:
        return -magnitude if negative else magnitude
    if negative and (magnitude != 0 or params.minus_zero):
        return magnitude | np.int64(params.sign_bit)
    return magnitude


@inline
def encode_value(
    negative: bool, sig: np.uint64, exponent: np.int64, is_inf: bool, params: Any,
    mode: np.int64, overflow: np.int64, random: np.uint64, bits: np.int64, variant: np.int64,
) -> np.int64:  # fmt: skip
    """Return the code of a number (not NaN): sign-magnitude bits, or a signed integer."""
    magnitude = np.int64(0)
    if not is_inf:
        if overflow == WRAP:  # count multiples of the quantum, modulo 2**64
            if sig == _ZERO:
                return np.int64(0)
            emin = np.int64(params.emin)
            m = significand(negative, sig, exponent, emin, params, mode, random, bits, variant)
            return residue(m, negative, params)
        magnitude = rounded_magnitude(negative, sig, exponent, params, mode, random, bits, variant)
    is_zero = not is_inf and sig == _ZERO
    return limited_code(negative, magnitude, is_zero, is_inf, params, mode, overflow)
