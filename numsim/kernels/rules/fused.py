"""The align-and-truncate dot products of tensor cores, for any group, width and operand format.

One block: every product is cut, toward zero, to `align_bits` fraction bits below the largest
exponent; the pieces are added exactly; how the accumulator joins is the unit's `kind`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numsim.kernels.convert.round import RNE, RTZ, round_quotient, top_bit
from numsim.kernels.jit import inline, kernel

FINITE, INFINITE, NOT_A_NUMBER = 0, 1, 2
JOINS, LATE, HALVES, TWO_STAGE = range(4)
NO_TERM = -(1 << 30)
_NAN32 = np.uint32(0x7FFFFFFF)


class Block(NamedTuple):
    """A rule as scalars. See `numsim.targets.types.Fused` and `TwoStage` for the words."""

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
    a_sig: Any, a_exp: Any, a_cls: Any, b_sig: Any, b_exp: Any, b_cls: Any,
    k0: int, k1: int, width: int, phase: int, r: Block,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """Return (largest exponent, NaN met, +Inf met, -Inf met) among one stream of products.

    With width > 0 the stream is the k with ``((k - k0) // width) % 2 == phase``.
    """
    largest = np.int64(NO_TERM)
    nan = up = down = False
    for k in range(k0, k1):
        if width and ((k - k0) // width) % 2 != phase:
            continue
        sa, sb = np.int64(a_sig[k]), np.int64(b_sig[k])
        e = np.int64(a_exp[k]) + np.int64(b_exp[k])
        ca, cb = a_cls[k], b_cls[k]
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
def beyond(
    a_sig: Any, a_exp: Any, b_sig: Any, b_exp: Any, k0: int, k1: int, r: Block
) -> tuple[Any, Any]:
    """Return whether a finite product of either sign reaches 2**product_limit."""
    up = down = False
    for k in range(k0, k1):
        product = np.int64(a_sig[k]) * np.int64(b_sig[k])
        e = np.int64(a_exp[k]) + np.int64(b_exp[k])
        if product != 0 and e + (abs(product) >> (r.fraction + 1)) >= r.product_limit:
            up, down = up or bool(product > 0), down or bool(product < 0)
    return up, down


@inline
def total_of(
    a_sig: Any, a_exp: Any, b_sig: Any, b_exp: Any, k0: int, k1: int, width: int, phase: int,
    largest: Any, r: Block,
) -> Any:  # fmt: skip
    """Return the sum of one stream of products, each cut below ``2**largest``."""
    total = np.int64(0)
    for k in range(k0, k1):
        if width and ((k - k0) // width) % 2 != phase:
            continue
        product = np.int64(a_sig[k]) * np.int64(b_sig[k])
        if product != 0:
            e = np.int64(a_exp[k]) + np.int64(b_exp[k])
            total += cut(product, r.align_bits - r.fraction - (largest - e), r)
    return total


@inline
def joined(total: Any, largest: Any, acc: Any, r: Block) -> Any:
    """Round the products' sum plus an accumulator that took part in `largest`."""
    if acc != 0:
        sig, exponent = parts(acc, np.int64(r.emin))
        total += cut(sig, r.align_bits - 52 - (largest - exponent), r)
    return round_sum(
        total, largest - r.align_bits, np.int64(r.precision), np.int64(r.emin), np.int64(r.emax),
        np.int64(r.mode),
    )  # fmt: skip


@inline
def add_rounded(x: Any, y: Any, precision: int, emin: int, emax: int) -> Any:
    """Return x + y rounded to nearest even; both have at most 24 bits, so TwoSum decides."""
    total = x + y
    if not np.isfinite(total) or total == 0.0:
        return total
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = np.float64(total).view(np.int64)
    if error != 0.0 and bits & 1 == 0:  # to odd: the later rounding sees that it is inexact
        bits += 1 if (error > 0) == (total > 0) else -1
    sig, exponent = parts(np.int64(bits).view(np.float64), np.int64(-1022))
    return round_sum(
        sig, exponent - 52, np.int64(precision), np.int64(emin), np.int64(emax), np.int64(RNE)
    )


@inline
def with_special(value: Any, nan: bool, up: bool, down: bool) -> tuple[Any, bool]:
    """Add NaN and infinities among products to a value; return it and whether it is special."""
    up, down = up or value == np.inf, down or value == -np.inf
    if nan or np.isnan(value) or (up and down):
        return np.nan, True
    if up or down:
        return (np.inf if up else -np.inf), True
    return value, False


@inline
def block(
    a_sig: Any, a_exp: Any, a_cls: Any, b_sig: Any, b_exp: Any, b_cls: Any,
    k0: int, k1: int, acc: Any, r: Block,
) -> Any:  # fmt: skip
    """Return the accumulator after one block of products."""
    floor = np.int64(r.min_exponent)
    if r.kind == HALVES:
        value = 0.0
        for phase in range(2):
            largest, nan, up, down = scan(
                a_sig, a_exp, a_cls, b_sig, b_exp, b_cls, k0, k1, 2, phase, r
            )
            value, special = with_special(value, nan, up, down)
            if special:
                continue
            if value != 0:
                largest = max(largest, parts(value, np.int64(r.emin))[1])
            if largest != NO_TERM:
                largest = max(largest, floor)
                total = total_of(a_sig, a_exp, b_sig, b_exp, k0, k1, 2, phase, largest, r)
                value = joined(total, largest, value, r)
        return add_rounded(value, acc, r.out_precision, r.emin, r.emax)
    largest, nan, up, down = scan(a_sig, a_exp, a_cls, b_sig, b_exp, b_cls, k0, k1, 0, 0, r)
    if r.kind == LATE:
        value, special = with_special(0.0, nan, up, down)
        if not special and largest != NO_TERM:
            largest = max(largest, floor)
            total = total_of(a_sig, a_exp, b_sig, b_exp, k0, k1, 0, 0, largest, r)
            value = joined(total, largest, 0.0, r)
        return add_rounded(value, acc, r.out_precision, r.emin, r.emax)
    value, special = with_special(acc, nan, up, down)
    if special:
        return value
    if r.kind == JOINS:
        if acc != 0:
            largest = max(largest, parts(acc, np.int64(r.emin))[1])
        if largest == NO_TERM:
            return 0.0
        largest = max(largest, floor)
        total = total_of(a_sig, a_exp, b_sig, b_exp, k0, k1, 0, 0, largest, r)
        return joined(total, largest, acc, r)
    if r.product_limit:
        up, down = beyond(a_sig, a_exp, b_sig, b_exp, k0, k1, r)
        if up or down:
            return np.nan if up and down else (np.inf if up else -np.inf)
    # TWO_STAGE: the products' sum first, then the accumulator, each floored
    if r.streams == 1:
        total = np.int64(0)
        if largest != NO_TERM:
            total = total_of(a_sig, a_exp, b_sig, b_exp, k0, k1, 0, 0, largest, r)
    else:
        even, _, _, _ = scan(a_sig, a_exp, a_cls, b_sig, b_exp, b_cls, k0, k1, 1, 0, r)
        odd, _, _, _ = scan(a_sig, a_exp, a_cls, b_sig, b_exp, b_cls, k0, k1, 1, 1, r)
        total = np.int64(0)
        if even != NO_TERM:
            part = total_of(a_sig, a_exp, b_sig, b_exp, k0, k1, 1, 0, even, r)
            total += floored(part, even - largest)
        if odd != NO_TERM:
            part = total_of(a_sig, a_exp, b_sig, b_exp, k0, k1, 1, 1, odd, r)
            total += floored(part, odd - largest)
    second = largest
    sig, exponent = parts(acc, np.int64(r.emin))
    if acc != 0:
        second = max(second, exponent)
    if second == NO_TERM:
        return 0.0
    whole = np.int64(0)
    if largest != NO_TERM:
        whole = floored(total, r.sum_bits - r.align_bits - (second - largest))
    if acc != 0 and not (r.streams == 2 and exponent < second - (r.align_bits + 1)):
        part = floored(sig, r.align_bits - 52 - (second - exponent))
        whole += part << np.int64(r.sum_bits - r.align_bits)
    value = round_sum(
        whole, second - r.sum_bits, np.int64(r.precision), np.int64(r.emin), np.int64(r.emax),
        np.int64(r.mode),
    )  # fmt: skip
    return -0.0 if whole < 0 and value == 0 else value


@kernel
def matmul(
    a_sig: np.ndarray, a_exp: np.ndarray, a_cls: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_cls: np.ndarray,
    c: np.ndarray, out: np.ndarray, start: int, stop: int, r: Block,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; planes a [M, K], b [N, K] (transposed), c, out float64.

    NaN results are stored as NaN; the caller writes the unit's bit pattern.
    """
    n_columns, depth = b_sig.shape
    for i in range(start, stop):
        for j in range(n_columns):
            acc = c[i, j]
            for k0 in range(0, depth, r.group):
                acc = block(
                    a_sig[i], a_exp[i], a_cls[i], b_sig[j], b_exp[j], b_cls[j], k0,
                    min(k0 + r.group, depth), acc, r,
                )  # fmt: skip
            out[i, j] = acc


@kernel
def store_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Write float64 values that float32 holds exactly as bits; NaN is 0x7FFFFFFF (NVIDIA)."""
    for i in range(values.size):
        v = values[i]
        out[i] = _NAN32 if np.isnan(v) else np.float32(v).view(np.uint32)


__all__ = ["RNE", "RTZ", "Block", "matmul", "split", "store_float32"]
