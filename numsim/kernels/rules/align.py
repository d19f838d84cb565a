"""What rules that align products and cut them have in common: planes, scans, cuts, roundings.

Operands are planes of significands, exponents and classes (finite, infinite, NaN). Every product is
cut, toward zero or to the floor, to `align_bits` fraction bits below the largest exponent, and the
pieces are added in int64. `fused` and `two_stage` say how the accumulator joins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numsim.kernels.convert.round import round_quotient, top_bit
from numsim.kernels.jit import borrowing_kernel, inline, kernel
from numsim.kernels.rules.counts import CUT, GAP, OVERFLOWS, STEPS, SWAMPED

FINITE, INFINITE, NOT_A_NUMBER = 0, 1, 2
JOINS, LATE, HALVES, TWO_STAGE = range(4)
BULK, AFTER = 5, 6  # 4 is TWO_STAGE with two streams to the vector kernels
NO_TERM = -(1 << 30)
NO_LIMIT = -(1 << 29)  # as the lower limit of the largest exponent: below that of any product


class Block(NamedTuple):
    """A rule as scalars. See `numsim.targets.types` for the words of each kind."""

    kind: int
    group: int
    align_bits: int
    fraction: int  # fraction bits of a product of two significands
    zero_products: bool  # a product with a zero factor takes part in the largest exponent
    min_exponent: int  # lower limit of the largest exponent
    streams: int  # TWO_STAGE: 1, or 2 for separate sums of even and odd k
    sum_bits: int  # TWO_STAGE: fraction bits of the product sum beside the accumulator
    product_limit: int  # products of this exponent and above are infinite, 0: no limit
    precision: int  # of the result of each block
    emin: int
    emax: int
    mode: int
    out_precision: int  # of the final addition of LATE and HALVES
    floor: bool = False  # terms are cut toward minus infinity, not toward zero


class Terms(NamedTuple):
    """One line of an operand: significands, exponents and classes of K codes."""

    sig: Any
    exp: Any
    cls: Any


@kernel
def split(
    bits: np.ndarray, trailing: int, exponent_bits: int, bias: int, classes: np.ndarray,
    sig: np.ndarray, exp: np.ndarray, cls: np.ndarray,
) -> None:  # fmt: skip
    """Split codes into signed significands, exponents of the leading one's place, classes.

    A subnormal keeps the smallest exponent and a significand below ``2**trailing``. `classes`
    maps a magnitude code's exponent field and fraction to a class: [all-ones codes].
    """
    field_mask = (1 << exponent_bits) - 1
    for i in range(bits.size):
        c = np.int64(bits[i])
        field = (c >> trailing) & field_mask
        m = c & ((1 << trailing) - 1)
        if field:
            m |= 1 << trailing
        sig[i] = -m if (c >> (trailing + exponent_bits)) & 1 else m
        exp[i] = (field if field else 1) - bias
        cls[i] = classes[c]


@inline
def shifted(value: np.int64, left: np.int64) -> np.int64:
    """Return ``value * 2**left`` cut toward zero."""
    magnitude = abs(value)
    if left >= 0:
        magnitude <<= left
    else:
        magnitude >>= min(-left, np.int64(63))
    return -magnitude if value < 0 else magnitude


@inline
def floored(value: np.int64, left: np.int64) -> np.int64:
    """Return ``value * 2**left`` rounded toward minus infinity."""
    return value << left if left >= 0 else value >> min(-left, np.int64(63))


@inline
def cut(value: np.int64, left: np.int64, r: Any) -> np.int64:
    """Return ``value * 2**left`` as a rule cuts terms."""
    return floored(value, left) if r.floor else shifted(value, left)


@inline
def power_of_two(n: np.int64) -> Any:
    """Return 2.0**n for -1022 <= n <= 1023."""
    return np.int64((n + 1023) << 52).view(np.float64)


@inline
def round_sum(
    total: np.int64, scale: np.int64, precision: np.int64, emin: np.int64, emax: np.int64,
    mode: np.int64,
) -> Any:  # fmt: skip
    """Round ``total * 2**scale`` to a float of the given precision and exponent range.

    A value whose rounded exponent leaves the range is infinite, toward zero included. Zero is +0.
    """
    if total == 0:
        return 0.0
    negative = total < 0
    magnitude = np.uint64(abs(total))
    exponent = max(top_bit(magnitude) + scale, emin)
    shift = exponent - (precision - 1) - scale
    if shift > 0:
        magnitude = round_quotient(
            magnitude, min(shift, np.int64(127)), negative, np.int64(0), mode, np.uint64(0),
            np.int64(0), np.int64(0),
        )  # fmt: skip
        scale += shift
    if magnitude == np.uint64(0):
        return 0.0
    if top_bit(magnitude) + scale > emax:
        return -np.inf if negative else np.inf
    # the significand has at most 53 bits and 2**scale is split to stay in range: exact
    half = scale // 2
    value = np.float64(magnitude) * power_of_two(half) * power_of_two(scale - half)
    return -value if negative else value


@inline
def parts(acc: Any, emin: np.int64) -> tuple[np.int64, np.int64]:
    """Split a finite number into (signed significand with 52 fraction bits, exponent).

    Below `emin` the exponent stays at `emin`, as a subnormal's does.
    """
    bits = np.float64(acc).view(np.int64)
    exponent = ((bits >> 52) & 2047) - 1023
    magnitude = (bits & ((1 << 52) - 1)) | (1 << 52)
    if exponent < emin:
        magnitude >>= min(emin - exponent, np.int64(63))
        exponent = emin
    return (-magnitude if bits < 0 else magnitude), exponent


@inline
def scan(
    a: Terms, b: Terms, k0: int, k1: int, width: int, phase: int, r: Block
) -> tuple[Any, Any, Any, Any]:
    """Return (largest exponent, NaN met, +Inf met, -Inf met) among one stream of products.

    With width > 0 the stream is the k with ``((k - k0) // width) % 2 == phase``.
    """
    largest = np.int64(NO_TERM)
    nan = up = down = False
    for k in range(k0, k1):
        if width and ((k - k0) // width) % 2 != phase:
            continue
        sa, sb = np.int64(a.sig[k]), np.int64(b.sig[k])
        e = np.int64(a.exp[k]) + np.int64(b.exp[k])
        ca, cb = a.cls[k], b.cls[k]
        if ca or cb:
            zero = (ca == FINITE and sa == 0) or (cb == FINITE and sb == 0)
            if ca == NOT_A_NUMBER or cb == NOT_A_NUMBER or zero:
                nan = True
            elif (sa < 0) != (sb < 0):
                down = True
            else:
                up = True
        elif r.zero_products or (sa != 0 and sb != 0):
            largest = max(largest, e)
    return largest, nan, up, down


@inline
def note_cut(product: Any, kept: Any, left: Any, gap: Any, n: Any) -> None:
    """Count a product of which ``product * 2**left`` is kept, `gap` below the largest exponent."""
    if product != 0:
        n[GAP] = max(n[GAP], gap)
        if kept == 0:
            n[SWAMPED] += 1
        if left < 0 and (kept == 0 or left < -62 or kept << -left != product):
            n[CUT] += 1


@inline
def note_result(before: Any, after: Any, products: bool, n: Any) -> None:
    """Count a block between finite accumulators; `products`: the cut ones' sum is not zero."""
    if not np.isfinite(after):
        n[OVERFLOWS] += 1
    if products and after == before:
        n[SWAMPED] += 1


@inline
def total_of(
    a: Terms, b: Terms, k0: int, k1: int, width: int, phase: int, largest: Any, r: Block, n: Any
) -> Any:
    """Return the sum of one stream of products, each cut below ``2**largest``."""
    total = np.int64(0)
    for k in range(k0, k1):
        if width and ((k - k0) // width) % 2 != phase:
            continue
        product = np.int64(a.sig[k]) * np.int64(b.sig[k])
        if product != 0:
            gap = largest - (np.int64(a.exp[k]) + np.int64(b.exp[k]))
            left = r.align_bits - r.fraction - gap
            kept = cut(product, left, r)
            total += kept
            if n is not None:
                note_cut(product, kept, left, gap, n)
    return total


@inline
def counted_block(
    a: Terms, b: Terms, k0: int, k1: int, acc: Any, r: Block, n: Any, unused: Any
) -> Any:
    """Count a block as a step; return where it counts the rest: nowhere, if not all is finite."""
    if n is None:
        return None
    n[STEPS] += 1
    _, nan, up, down = scan(a, b, k0, k1, 0, 0, r)
    return n if not (nan or up or down) and np.isfinite(acc) else unused


@inline
def with_special(value: Any, nan: bool, up: bool, down: bool) -> tuple[Any, bool]:
    """Add NaN and infinities among products to a value; return it and whether it is special."""
    up, down = up or value == np.inf, down or value == -np.inf
    if nan or np.isnan(value) or (up and down):
        return np.nan, True
    if up or down:
        return (np.inf if up else -np.inf), True
    return value, False


@kernel
def store_float32(values: np.ndarray, out: np.ndarray, nan: int) -> None:
    """Write float64 values that float32 holds exactly as bits, NaN as the bits `nan`."""
    for i in range(values.size):
        v = values[i]
        out[i] = np.uint32(nan) if np.isnan(v) else np.float32(v).view(np.uint32)


@borrowing_kernel
def name_nan(bits: np.ndarray, nan: int) -> None:
    """Give every NaN among float32 bit patterns the bits `nan`."""
    met = np.uint32(0)
    for i in range(bits.size):
        met |= np.uint32((bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000))
    if met:
        for i in range(bits.size):
            if (bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
                bits[i] = np.uint32(nan)
