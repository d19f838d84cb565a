"""Exact dot products: a fixed-point accumulator as wide as the formats need, rounded once.

This is the definition of the rule `Exact`, and counts what is lost where it is asked to. Operands
are float32 bit patterns, a [M, K] by b [N, K], the transposed right operand; the accumulator is 20
digits of 32 bits, wide enough for every product of float32. `tests/oracle_mac.py` states the rule
in fractions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numsim.kernels.convert.round import encode_value, top_bit
from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.align import power_of_two
from numsim.kernels.rules.counts import BITS, OVERFLOWS, SATURATIONS, STEPS, SWAMPED, note_peak, row
from numsim.kernels.rules.mac import Arithmetic, add, flushed

# float32 products, and float32 times 2**127, lie between 2**-298 and 2**256; 32 bits of carry room
# cover any K
LOWEST = -298
LIMBS = 20
_SCALED_ZEROS = 16  # of the 24 bits of an operand with a scale, at least so many are zero
_MASK32 = np.uint64(0xFFFFFFFF)
_M32 = np.int64(0xFFFFFFFF)


class Sums(NamedTuple):
    """What happens to an exact sum; see `numsim.targets.rules.exact.Exact` for the words."""

    signed_zero: bool  # a sum of nothing but -0 is -0
    lscale: int
    osm: bool
    late: bool
    flush: bool


@inline
def float32_parts(u: np.uint32) -> tuple[np.int64, np.int64]:
    """Return (magnitude, exponent) of finite float32 bits: value = magnitude * 2**exponent."""
    field = np.int64((u >> np.uint32(23)) & np.uint32(255))
    m = np.int64(u & np.uint32(0x7FFFFF))
    if field:
        m |= np.int64(1 << 23)
    return m, max(field, np.int64(1)) - np.int64(150)


@inline
def add_term(limbs: np.ndarray, magnitude: np.int64, exponent: np.int64, negative: bool) -> None:
    """Add ``(-1)**negative * magnitude * 2**exponent`` (magnitude < 2**48) to the accumulator."""
    position = exponent - LOWEST
    limb, offset = position >> 5, position & 31
    low = (np.uint64(magnitude) & _MASK32) << np.uint64(offset)
    high = (np.uint64(magnitude) >> np.uint64(32)) << np.uint64(offset)
    d0 = np.int64(low & _MASK32)
    d1 = np.int64(low >> np.uint64(32)) + np.int64(high & _MASK32)
    d2 = np.int64(high >> np.uint64(32))
    if negative:
        d0, d1, d2 = -d0, -d1, -d2
    limbs[limb] += d0
    limbs[limb + 1] += d1
    limbs[limb + 2] += d2


@inline
def carried(limbs: np.ndarray) -> None:
    """Make limbs 0 to LIMBS - 2 digits of 32 bits; the last one keeps the sign."""
    for i in range(LIMBS - 1):
        limbs[i + 1] += limbs[i] >> 32
        limbs[i] &= _M32


@inline
def finish(
    limbs: np.ndarray, lowest: np.int64, params: Any, nan: bool, up: bool, down: bool, minus: bool
) -> np.int64:
    """Round the accumulator to a code of the output format (nearest even, overflow special).

    `lowest`: exponent of its last bit; `minus`: a zero is -0.
    """
    zero = np.uint64(0)
    if nan or (up and down):
        return np.int64(params.nan)
    if up or down:
        return encode_value(
            down, zero, np.int64(0), True, params, np.int64(0), np.int64(1), zero, np.int64(0),
            np.int64(0),
        )  # fmt: skip
    carried(limbs)
    negative = limbs[LIMBS - 1] < 0
    if negative:  # two's complement: negate digit by digit
        carry = np.int64(1)
        for i in range(LIMBS - 1):
            digit = (limbs[i] ^ _M32) + carry
            limbs[i] = digit & _M32
            carry = digit >> 32
        limbs[LIMBS - 1] = ~limbs[LIMBS - 1] + carry
    top = LIMBS - 1
    while top > 0 and limbs[top] == 0:
        top -= 1
    # 62 to 64 leading bits and a sticky one below decide any output of 60 bits or fewer
    sig = np.uint64(limbs[top])
    exponent = np.int64(lowest + 32 * top)
    if sig == zero:
        return np.int64(params.sign_bit) if minus else np.int64(0)
    sticky = False
    taken = top
    while taken > 0 and top_bit(sig) < 32:
        room = np.int64(32)
        taken -= 1
        sig = (sig << np.uint64(room)) | np.uint64(limbs[taken])
        exponent -= room
    for i in range(taken):
        sticky = sticky or limbs[i] != 0
    if sticky:
        if top_bit(sig) < 63:
            sig <<= np.uint64(1)
            exponent -= np.int64(1)
        sig |= np.uint64(1)
    return encode_value(
        negative, sig, exponent, False, params, np.int64(0), np.int64(1), zero, np.int64(0),
        np.int64(0),
    )  # fmt: skip


@inline
def note_width(
    limbs: np.ndarray, lowest: np.int64, quantum: np.int64, n: Any, extremes: Any
) -> None:
    """Note the width and value of the accumulator; `quantum`: exponent of its unit."""
    carried(limbs)
    negative = limbs[LIMBS - 1] < 0
    highest = np.int64(-1)
    value = 0.0
    for t in range(LIMBS - 1, -1, -1):
        digit = limbs[t]
        if negative:
            digit = ~digit if t == LIMBS - 1 else digit ^ _M32
        if digit != 0 and highest < 0:
            highest = 32 * t + top_bit(np.uint64(digit))
        value += np.float64(limbs[t]) * power_of_two(np.int64(32 * t + lowest))
    n[BITS] = max(n[BITS], max(highest + lowest - quantum + 1, np.int64(0)) + 1)
    note_peak(value, extremes)


@kernel
def matmul(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    params: Any, how: Sums, f: Arithmetic, quantum: int, stride: int, a_power: Any, b_power: Any,
    counts: Any = None, extremes: Any = None,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; a [M, K], b [N, K], c [M, N] float32 bits; out codes.

    `f`: arithmetic of late additions; `a_power`, `b_power`: exponents of the scales of a and b, or
    None. Counts are described in `numsim.kernels.rules.counts`: a partial sum follows every
    `stride` products, and BITS is the width of the largest in units of ``2**quantum``.
    """
    limbs, begin = np.empty(LIMBS, np.int64), np.empty(LIMBS, np.int64)
    lowest = np.int64(LOWEST - how.lscale)  # products stand as they are, c lies higher
    for i in range(start, stop):
        n, e = row(counts, i), row(extremes, i)
        for j in range(b.shape[0]):
            limbs[:] = 0
            nan = up = down = False
            uc = np.uint32(0x80000000) if how.late else c[i, j]
            minus = how.signed_zero and uc == np.uint32(0x80000000)
            mc = uc & np.uint32(0x7FFFFFFF)
            if mc > np.uint32(0x7F800000):
                nan = True
            elif mc == np.uint32(0x7F800000):
                down = (uc >> np.uint32(31)) != 0
                up = not down
            else:
                sc, ec = float32_parts(uc)
                add_term(limbs, sc, ec + how.lscale, (uc >> np.uint32(31)) != 0)
                if counts is not None:
                    note_width(limbs, lowest, np.int64(quantum), n, e)
            if counts is not None:
                begin[:] = limbs
            for k in range(a.shape[1]):
                ua, ub = a[i, k], b[j, k]
                negative = ((ua ^ ub) >> np.uint32(31)) != 0
                minus = minus and negative
                ma, mb = ua & np.uint32(0x7FFFFFFF), ub & np.uint32(0x7FFFFFFF)
                if ma >= np.uint32(0x7F800000) or mb >= np.uint32(0x7F800000):
                    if max(ma, mb) > np.uint32(0x7F800000) or min(ma, mb) == np.uint32(0):
                        nan = True
                    elif negative:
                        down = True
                    else:
                        up = True
                elif ma != 0 and mb != 0:
                    sa, ea = float32_parts(ua)
                    sb, eb = float32_parts(ub)
                    exponent = ea + eb
                    if a_power is not None:
                        sa >>= _SCALED_ZEROS
                        sb >>= _SCALED_ZEROS
                        exponent += a_power[i, k] + b_power[j, k] + 2 * _SCALED_ZEROS
                    add_term(limbs, sa * sb, exponent, negative)
                if counts is not None and (k + 1) % stride == 0:
                    note_width(limbs, lowest, np.int64(quantum), n, e)
            changed = False
            if counts is not None:
                carried(limbs)
                changed = (limbs != begin).any()
            code = finish(limbs, lowest, params, nan, up, down, minus)
            finite = not (nan or up or down)
            over = finite and (code & ~np.int64(params.sign_bit)) == params.inf
            if how.osm and over:
                code -= 1
            if how.late:
                total = flushed(np.float64(np.uint32(code).view(np.float32)), how.flush, f.emin)
                before = flushed(np.float64(np.uint32(c[i, j]).view(np.float32)), how.flush, f.emin)
                after = add(before, total, f, n, False)
                out[i, j] = np.float32(after).view(np.uint32)
                note_peak(before, e)
                note_peak(after, e)
            else:
                out[i, j] = code
            if counts is not None:
                n[STEPS] += 1
                if over:
                    n[SATURATIONS if how.osm else OVERFLOWS] += 1
                same = finite and not how.late and changed
                if same and code == finish(begin, lowest, params, False, False, False, False):
                    n[SWAMPED] += 1


@kernel
def extent(bits: np.ndarray) -> tuple[bool, int, int]:
    """Return whether float32 bits are all finite, and low and high.

    The nonzero numbers are multiples of 2**low, and smaller than 2**high in magnitude. Without any:
    (0, 0).
    """
    low, high = np.int64(1 << 20), np.int64(-(1 << 20))
    finite = True
    for i in range(bits.size):
        m = bits[i] & np.uint32(0x7FFFFFFF)
        if m >= np.uint32(0x7F800000):
            finite = False
        elif m != 0:
            magnitude, exponent = float32_parts(m)
            high = max(high, top_bit(np.uint64(magnitude)) + 1 + exponent)
            low = min(low, top_bit(np.uint64(magnitude & -magnitude)) + exponent)
    if low > high:
        low = high = np.int64(0)
    return finite, int(low), int(high)
