"""Products of units that align and cut, with counts, one output a lane: finite operands.

Operands are planes of significands and exponents, a [M, K] by b [K, columns], columns a multiple of
`steps.LANES`. Cut products are int32; the rest of a block is exact in float64, as in
`numsim.kernels.ir.align`. Results and counts are those of `numsim.kernels.rules`, `fused` and
`two_stage`, for the cases that `numsim.targets.fast.counted` selects;
`tests/targets/test_fast_stats.py` compares every bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.round import RTZ
from numsim.kernels.counts.steps import TILE, end_rows, start_rows
from numsim.kernels.instructions import shl, shr, wide_vectors
from numsim.kernels.ir.align import LOWEST
from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.align import HALVES, JOINS, LATE, Block, power_of_two
from numsim.kernels.rules.counts import CUT, GAP, OVERFLOWS, STEPS, SWAMPED

NO_TERM = -(1 << 20)  # exponent of a factor that takes no part in the largest one
_SIGN = np.int64(-(1 << 63))
_EXPONENT = np.int64(0x7FF << 52)


@inline
def rounded(x: Any, precision: int, emin: int, emax: int, truncates: bool) -> Any:
    """Return a float64 rounded toward zero or to nearest even; zeros keep their sign."""
    least, limit = power_of_two(np.int64(emin)), power_of_two(np.int64(emax + 1))
    up, down = power_of_two(np.int64(53 - precision)), power_of_two(np.int64(1 - precision))
    raw = np.float64(x).view(np.int64)
    size = abs(x)
    place = np.int64(raw & _EXPONENT).view(np.float64)
    place = place if place > least else least
    lift = place * up
    near = (size + lift) - lift
    near = near - place * down if truncates & (near > size) else near
    near = near if near < limit else np.inf
    return np.int64(np.float64(near).view(np.int64) | (raw & _SIGN)).view(np.float64)


@inline
def exponent_of(x: Any, emin: int) -> Any:
    """Return the exponent of a finite float64, at least `emin`."""
    return max((np.float64(x).view(np.int64) >> 52 & 2047) - 1023, np.int64(emin))


@inline
def top_rows(
    a_sig: Any, a_exp: Any, b_exp: Any, j0: int, ks: tuple[int, int, int], zeros: bool, top: Any
) -> None:
    """Raise a row to the largest exponents of products; ks: first k, end, step."""
    wide_vectors()
    for k in range(ks[0], ks[1], ks[2]):
        if a_sig[k] != 0 or zeros:
            own, row = a_exp[k], b_exp[k, j0 : j0 + top.size]
            for j in range(top.size):
                e = np.int32(own + row[j])
                top[j] = e if e > top[j] else top[j]


@inline
def cut_rows(
    a_sig: Any, a_exp: Any, b_sig: Any, b_exp: Any, j0: int, ks: tuple[int, int, int],
    r: Block, top: Any, total: Any, n: Any,
) -> None:  # fmt: skip
    """`counts.align.counted_stream`: add cut products to a row; hidden lanes count nothing."""
    wide_vectors()
    word = total.dtype.type
    lift = np.int32(max(r.align_bits - r.fraction, 0))
    base = np.int32(max(r.fraction - r.align_bits, 0))
    zero, last = np.int32(0), np.int32(31)
    for k in range(ks[0], ks[1], ks[2]):
        if a_sig[k] == 0:
            continue
        x, own = np.int32(a_sig[k] << lift), a_exp[k]
        y, exponents = b_sig[k, j0 : j0 + total.size], b_exp[k, j0 : j0 + total.size]
        cut = swamped = worst = zero
        for j in range(total.size):
            product = np.int32(x * y[j])
            sign = np.int32(product >> 31)
            size = np.int32(np.int32(product ^ sign) - sign)
            gap = np.int32(np.int32(top[j] - own) - exponents[j])
            right = np.int32(gap + base)
            right = right if right > zero else zero
            right = right if right < last else last
            kept = shr(np.uint32(size), np.uint32(right))
            some = size != zero
            cut = np.int32(cut + np.int32(np.int32(shl(kept, np.uint32(right))) != size))
            swamped = np.int32(swamped + np.int32(some & (np.int32(kept) == zero)))
            gap = gap if some else zero
            worst = gap if gap > worst else worst
            total[j] += word(np.int32(np.int32(np.int32(kept) ^ sign) - sign))
        n[CUT] += np.int64(cut)
        n[SWAMPED] += np.int64(swamped)
        n[GAP] = max(n[GAP], np.int64(worst))


@inline
def settled(x: Any, after: Any, products: bool, j: int, low: Any, high: Any) -> tuple[Any, Any]:
    """Note a lane's new accumulator; return whether it overflowed, and was swamped.

    `products`: the accumulator x was finite and the (cut) products' sum is not zero.
    """
    live = abs(x) < np.inf
    fits = live & (abs(after) < np.inf)
    v = after if fits else 0.0
    low[j] = v if v < low[j] else low[j]
    high[j] = v if v > high[j] else high[j]
    return np.int64(live & (abs(after) == np.inf)), np.int64(products & (after == x))


@inline
def join_row(r: Block, top: Any, total: Any, acc: Any, low: Any, high: Any, n: Any) -> Any:
    """`rules.fused.joined` for a row; return how many lanes overflowed."""
    wide_vectors()
    overflows = swamped = gap = np.int64(0)
    truncates, cut = r.mode == RTZ, np.int64(r.align_bits)
    for j in range(acc.size):
        x = acc[j]
        live = abs(x) < np.inf
        place = np.int64(top[j]) if live else np.int64(0)
        value = x if live else 0.0
        distance = place - exponent_of(value, r.emin)
        distance = distance if value != 0.0 else np.int64(0)
        gap = max(gap, distance)
        units = np.float64(np.int32(value * power_of_two(cut - place)))
        whole = (np.float64(total[j]) + units) * power_of_two(place - cut)
        after = rounded(whole, r.precision, r.emin, r.emax, truncates) + 0.0
        after = after if live else x
        over, lost = settled(x, after, live & (total[j] != 0), j, low, high)
        overflows += over
        swamped += lost
        acc[j] = after
    n[SWAMPED] += swamped
    n[GAP] = max(n[GAP], gap)
    return overflows


@inline
def sum_row(r: Block, top: Any, total: Any, value: Any) -> None:
    """Round the sums of products, without an accumulator."""
    wide_vectors()
    truncates, cut = r.mode == RTZ, np.int64(r.align_bits)
    for j in range(value.size):
        place = max(np.int64(top[j]), np.int64(LOWEST))
        whole = np.float64(total[j]) * power_of_two(place - cut)
        value[j] = rounded(whole, r.precision, r.emin, r.emax, truncates) + 0.0


@inline
def late_row(r: Block, value: Any, some: Any, acc: Any, low: Any, high: Any, n: Any) -> None:
    """Add rows by an ordinary addition; `some`: not zero where a lane has an addend."""
    wide_vectors()
    overflows = swamped = np.int64(0)
    half = r.out_precision == 11
    for j in range(acc.size):
        x = acc[j]
        live = abs(x) < np.inf
        single = np.float64(np.float32(np.float32(value[j]) + np.float32(x)))
        after = rounded(value[j] + x, 11, r.emin, r.emax, False) if half else single
        after = after if live else x
        over, lost = settled(x, after, live & (some[j] != 0), j, low, high)
        overflows += over
        swamped += lost
        acc[j] = after
    n[OVERFLOWS] += overflows
    n[SWAMPED] += swamped


@inline
def both_rows(top: Any, total: Any, odd_top: Any, odd: Any) -> None:
    """Join the sums of two streams, floored to the larger of their largest exponents."""
    wide_vectors()
    word = total.dtype.type
    for j in range(top.size):
        largest = max(top[j], odd_top[j])
        even = np.floor(np.float64(total[j]) * power_of_two(np.int64(top[j] - largest)))
        other = np.floor(np.float64(odd[j]) * power_of_two(np.int64(odd_top[j] - largest)))
        top[j] = largest
        total[j] = word(even + other)


@inline
def second_row(r: Block, top: Any, total: Any, acc: Any, low: Any, high: Any, n: Any) -> None:
    """Add the accumulator of TWO_STAGE."""
    wide_vectors()
    overflows = swamped = gap = np.int64(0)
    cut, kept = np.int64(r.align_bits), np.int64(r.sum_bits)
    for j in range(acc.size):
        x = acc[j]
        live = abs(x) < np.inf
        largest = np.int64(top[j]) if live else np.int64(0)
        value = x if live else 0.0
        own = exponent_of(value, r.emin)  # of a zero: the least one
        distance = abs(largest - own)
        distance = distance if (value != 0.0) & (largest > LOWEST) else np.int64(0)
        gap = max(gap, distance)
        second = max(largest, own)
        whole = np.floor(np.float64(total[j]) * power_of_two(kept - cut - second + largest))
        units = np.floor(value * power_of_two(cut - second)) * power_of_two(kept - cut)
        far = (r.streams == 2) & (own < second - (cut + 1))
        whole = (whole + (0.0 if far else units)) * power_of_two(second - kept)
        place = kept - 1 - exponent_of(whole, r.emin)
        whole = np.floor(whole * power_of_two(place)) * power_of_two(-place)
        after = rounded(whole, 24, r.emin, r.emax, False)
        after = after if live else x
        over, lost = settled(x, after, live & (total[j] != 0), j, low, high)
        overflows += over
        swamped += lost
        acc[j] = after
    n[OVERFLOWS] += overflows
    n[SWAMPED] += swamped
    n[GAP] = max(n[GAP], gap)


@inline
def hide_rows(acc: Any, top: Any) -> None:
    """Keep lanes that are not finite from counting: their products count at no distance."""
    wide_vectors()
    for j in range(acc.size):
        top[j] = top[j] if abs(acc[j]) < np.inf else np.int32(2 * NO_TERM)


@inline
def first_row(r: Block, joins: bool, acc: Any, top: Any) -> None:
    """Begin the largest exponents: their lower limit, or that of an accumulator that joins."""
    wide_vectors()
    floor = np.int32(max(r.min_exponent, LOWEST))
    for j in range(acc.size):
        own = np.int32(exponent_of(acc[j], r.emin))
        top[j] = own if joins & (acc[j] != 0.0) & (own > floor) else floor


@kernel
def fused(
    a_sig: np.ndarray, a_exp: np.ndarray, b_sig: np.ndarray, b_exp: np.ndarray,
    c: np.ndarray, out: np.ndarray, totals: np.ndarray, start: int, stop: int, r: Block,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`counts.align.fused` of finite operands; a [M, K], b [K, columns] int32.

    `totals` [2, TILE] is scratch: int32 where the cut products of a block fit, else int64.
    """
    wide_vectors()
    (depth, columns), real = b_sig.shape, c.shape[1]
    size = min(TILE, columns)
    rows, unused, tops = np.empty((4, size)), np.zeros((2, size)), np.empty((2, size), np.int32)
    zeros, joins = r.zero_products, r.kind == JOINS
    for j0 in range(0, columns, TILE):
        w = min(TILE, columns - j0)
        last = min(j0 + w, real)
        acc, low, high, value = rows[0, :w], rows[1, :w], rows[2, :w], rows[3, :w]
        no_low, no_high = unused[0, :w], unused[1, :w]
        top, total, odd_top, odd = tops[0, :w], totals[0, :w], tops[1, :w], totals[1, :w]
        for i in range(start, stop):
            n, sig, exp = counts[i], a_sig[i], a_exp[i]
            start_rows(c[i, j0:last], acc, low, high)
            for k0 in range(0, depth, r.group):
                k1 = min(k0 + r.group, depth)
                n[STEPS] += last - j0
                if r.kind == HALVES:
                    for j in range(w):
                        value[j] = 0.0 if abs(acc[j]) < np.inf else np.nan
                    for phase in range(0, 4, 2):
                        first_row(r, True, value, top)
                        top_rows(sig, exp, b_exp, j0, (k0 + phase, k1, 4), zeros, top)
                        top_rows(sig, exp, b_exp, j0, (k0 + phase + 1, k1, 4), zeros, top)
                        hide_rows(value, top)
                        total[:] = 0
                        for k in range(k0 + phase, k0 + phase + 2):
                            cut_rows(sig, exp, b_sig, b_exp, j0, (k, k1, 4), r, top, total, n)
                        join_row(r, top, total, value, no_low, no_high, n)
                    late_row(r, value, value, acc, low, high, n)
                    continue
                step = r.streams
                total[:] = 0
                first_row(r, joins, acc, top)
                top_rows(sig, exp, b_exp, j0, (k0, k1, step), zeros, top)
                hide_rows(acc, top)
                cut_rows(sig, exp, b_sig, b_exp, j0, (k0, k1, step), r, top, total, n)
                if joins:
                    n[OVERFLOWS] += join_row(r, top, total, acc, low, high, n)
                elif r.kind == LATE:
                    sum_row(r, top, total, value)
                    late_row(r, value, total, acc, low, high, n)
                else:
                    if step == 2:
                        odd[:] = 0
                        first_row(r, False, acc, odd_top)
                        top_rows(sig, exp, b_exp, j0, (k0 + 1, k1, 2), zeros, odd_top)
                        hide_rows(acc, odd_top)
                        cut_rows(
                            sig, exp, b_sig, b_exp, j0, (k0 + 1, k1, 2), r, odd_top, odd, n
                        )  # fmt: skip
                        both_rows(top, total, odd_top, odd)
                    second_row(r, top, total, acc, low, high, n)
            end_rows(acc, low, high, out[i, j0:last], extremes[i])
