"""What a matrix product lost: every step of a unit again, one output at a time, with counts.

Each kernel writes its results, which equal those of the unit's own kernel, and for every row of
them one row of `counts` (columns `OVERFLOWS` to `BITS`) and of `extremes` (lowest and highest value
of the accumulator). A step whose operands or accumulator are not finite counts nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels import exact as ex
from numsim.kernels import fused as fu
from numsim.kernels.fused import Block, parts, power_of_two, round_sum, shifted
from numsim.kernels.jit import inline, kernel
from numsim.kernels.mac import ODD_FIRST, SEQUENTIAL, TWO_CHAINS, Arithmetic, add, flushed, round_to
from numsim.kernels.round import top_bit
from numsim.kernels.scaled_fp4 import RUN, STEP

OVERFLOWS, SATURATIONS, WRAPS, SWAMPED, CUT, GAP, BITS, STEPS = range(8)
COLUMNS = 8


@inline
def note_peak(value: Any, extremes: Any) -> None:
    """Widen the range of accumulator values."""
    if np.isfinite(value):
        extremes[0] = min(extremes[0], value)
        extremes[1] = max(extremes[1], value)


@inline
def sum_to_odd(x: Any, y: Any) -> Any:
    """Return x + y, rounded to odd where float64 cannot hold it."""
    total = x + y
    if not np.isfinite(total) or total == 0.0:
        return total
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = np.float64(total).view(np.int64)
    if error != 0.0 and bits & 1 == 0:
        bits += 1 if (error > 0) == (total > 0) else -1
    return np.int64(bits).view(np.float64)


@inline
def noted_range(exact: Any, rounded: Any, emax: int, n: Any) -> None:
    """Count a finite value that left the range: to infinity, or stopped at the largest value."""
    if np.isinf(rounded):
        n[OVERFLOWS] += 1
    elif abs(exact) >= power_of_two(np.int64(emax + 1)):
        n[SATURATIONS] += 1


@inline
def counted_add(x: Any, y: Any, f: Arithmetic, n: Any, both: bool) -> Any:
    """Return x + y rounded to `f`; `both`: x is an addend like y, not the accumulator."""
    value = add(x, y, f)
    if np.isfinite(x) and np.isfinite(y):
        noted_range(sum_to_odd(x, y), value, f.emax, n)
        if (y != 0 and value == x) or (both and x != 0 and value == y):
            n[SWAMPED] += 1
        if x != 0 and y != 0:
            gap = parts(x, np.int64(-1022))[1] - parts(y, np.int64(-1022))[1]
            n[GAP] = max(n[GAP], abs(gap))
    return value


@inline
def counted_product(x: Any, y: Any, rounded: bool, p: Arithmetic, n: Any) -> Any:
    """Return x * y, exact or rounded to `p`."""
    exact = x * y
    if not rounded:
        return exact
    value = round_to(exact, p)
    if np.isfinite(exact):
        noted_range(exact, value, p.emax, n)
        if value != exact:
            n[CUT] += 1
            if value == 0:
                n[SWAMPED] += 1
    return value


@kernel
def mac(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    order: int, group: int, rounded: bool, p: Arithmetic, f: Arithmetic,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`numsim.kernels.mac.matmul` with counts; shapes as there, counts [M, 8], extremes [M, 2]."""
    depth = a.shape[1]
    leaves = np.empty(max(group, 1))
    for i in range(start, stop):
        x, n, e = a[i], counts[i], extremes[i]
        for j in range(b.shape[0]):
            y = b[j]
            acc = flushed(c[i, j], f.flush, f.emin)
            note_peak(acc, e)
            if order in (SEQUENTIAL, ODD_FIRST):
                width = 1 if order == SEQUENTIAL else 2
                for k0 in range(0, depth, width):
                    for k in range(min(k0 + width, depth) - 1, k0 - 1, -1):
                        acc = counted_add(acc, counted_product(x[k], y[k], rounded, p, n), f, n, False)
                        note_peak(acc, e)
                        n[STEPS] += 1
            elif order == TWO_CHAINS:
                for k0 in range(0, depth, group):
                    even = odd = 0.0
                    for k in range(k0, min(k0 + group, depth)):
                        term = counted_product(x[k], y[k], rounded, p, n)
                        if (k - k0) % 2:
                            odd = counted_add(odd, term, f, n, False)
                        else:
                            even = counted_add(even, term, f, n, False)
                    acc = counted_add(acc, counted_add(even, odd, f, n, True), f, n, False)
                    note_peak(acc, e)
                    n[STEPS] += 1
            else:
                for k0 in range(0, depth, group):
                    m = min(group, depth - k0)
                    for k in range(m):
                        leaves[k] = counted_product(x[k0 + k], y[k0 + k], rounded, p, n)
                    while m > 1:
                        for k in range(m // 2):
                            leaves[k] = counted_add(leaves[2 * k], leaves[2 * k + 1], f, n, True)
                        if m % 2:
                            leaves[m // 2] = leaves[m - 1]
                        m = (m + 1) // 2
                    acc = counted_add(acc, leaves[0] + 0.0, f, n, False)
                    note_peak(acc, e)
                    n[STEPS] += 1
            out[i, j] = acc


@kernel
def integer(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    low: int, high: int, saturate: bool, group: int, pair_low: int, pair_high: int,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`numsim.kernels.integer.matmul` with counts; a [M, K], b [K, N], extremes [M, 2] int64.

    Extremes are of the sum before it is clamped or wrapped (where sums wrap: as if none did).
    """
    depth = b.shape[0]
    for i in range(start, stop):
        n, e = counts[i], extremes[i]
        for j in range(b.shape[1]):
            acc = whole = np.int64(c[i, j])
            e[0], e[1] = min(e[0], whole), max(e[1], whole)
            for k0 in range(0, depth, group):
                step = np.int64(0)
                last = min(k0 + group, depth)
                if pair_high > 0:
                    for k in range(k0, last, 2):
                        pair = np.int64(a[i, k]) * np.int64(b[k, j])
                        if k + 1 < depth:
                            pair += np.int64(a[i, k + 1]) * np.int64(b[k + 1, j])
                        clamped = min(max(pair, pair_low), pair_high)
                        if clamped != pair:
                            n[SATURATIONS] += 1
                        step += clamped
                else:
                    for k in range(k0, last):
                        step += np.int64(a[i, k]) * np.int64(b[k, j])
                before = acc
                acc += step
                whole = acc if saturate else whole + step
                e[0], e[1] = min(e[0], whole), max(e[1], whole)
                if acc < low or acc > high:
                    if saturate:
                        n[SATURATIONS] += 1
                        acc = min(max(acc, low), high)
                    else:
                        n[WRAPS] += 1
                        acc = low + ((acc - low) & (high - low))
                if step != 0 and acc == before:
                    n[SWAMPED] += 1
                n[STEPS] += 1
            out[i, j] = acc


@inline
def counted_stream(
    a_sig: Any, a_exp: Any, b_sig: Any, b_exp: Any, k0: int, k1: int, width: int, phase: int,
    largest: Any, r: Block, n: Any,
) -> Any:  # fmt: skip
    """Return `fused.total_of`, counting what the alignment cuts."""
    total = np.int64(0)
    for k in range(k0, k1):
        if width and ((k - k0) // width) % 2 != phase:
            continue
        product = np.int64(a_sig[k]) * np.int64(b_sig[k])
        if product != 0:
            gap = largest - (np.int64(a_exp[k]) + np.int64(b_exp[k]))
            left = np.int64(r.align_bits - r.fraction) - gap
            kept = shifted(product, left)
            n[GAP] = max(n[GAP], gap)
            if kept == 0:
                n[SWAMPED] += 1
            if left < 0 and (kept == 0 or kept << -left != product):
                n[CUT] += 1
            total += kept
    return total


@inline
def counted_block(
    a_sig: Any, a_exp: Any, a_cls: Any, b_sig: Any, b_exp: Any, b_cls: Any,
    k0: int, k1: int, acc: Any, after: Any, r: Block, n: Any,
) -> None:  # fmt: skip
    """Count what one block of products lost on the way from `acc` to `after`."""
    largest, nan, up, down = fu.scan(a_sig, a_exp, a_cls, b_sig, b_exp, b_cls, k0, k1, 0, 0, r)
    n[STEPS] += 1
    if nan or up or down or not np.isfinite(acc):
        return
    if not np.isfinite(after):
        n[OVERFLOWS] += 1
    floor = np.int64(r.min_exponent)
    total = np.int64(0)
    moved = after != acc
    if r.kind == fu.HALVES:
        value = 0.0
        for phase in range(2):
            top = fu.scan(a_sig, a_exp, a_cls, b_sig, b_exp, b_cls, k0, k1, 2, phase, r)[0]
            if value != 0 and np.isfinite(value):
                exponent = parts(value, np.int64(r.emin))[1]
                top = max(top, exponent)
                n[GAP] = max(n[GAP], top - exponent)
            if top == fu.NO_TERM or not np.isfinite(value):
                continue
            top = max(top, floor)
            part = counted_stream(a_sig, a_exp, b_sig, b_exp, k0, k1, 2, phase, top, r, n)
            before = value
            value = fu.joined(part, top, value, r)
            if part != 0 and value == before:
                n[SWAMPED] += 1
        if value != 0 and not moved:
            n[SWAMPED] += 1
        return
    exponent = largest
    if r.kind != fu.LATE and acc != 0:
        exponent = parts(acc, np.int64(r.emin))[1]
    if r.kind == fu.JOINS:
        top = max(largest, exponent)
        if top == fu.NO_TERM:
            return
        top = max(top, floor)
        if acc != 0:
            n[GAP] = max(n[GAP], top - exponent)
        total = counted_stream(a_sig, a_exp, b_sig, b_exp, k0, k1, 0, 0, top, r, n)
    elif largest != fu.NO_TERM and r.kind == fu.LATE:
        top = max(largest, floor)
        total = counted_stream(a_sig, a_exp, b_sig, b_exp, k0, k1, 0, 0, top, r, n)
    elif largest != fu.NO_TERM:  # TWO_STAGE
        for phase in range(r.streams):
            width = r.streams - 1
            top = fu.scan(a_sig, a_exp, a_cls, b_sig, b_exp, b_cls, k0, k1, width, phase, r)[0]
            if top != fu.NO_TERM:
                part = counted_stream(a_sig, a_exp, b_sig, b_exp, k0, k1, width, phase, top, r, n)
                total += fu.floored(part, top - largest)
        if acc != 0:
            n[GAP] = max(n[GAP], abs(largest - exponent))
    if total != 0 and not moved:
        n[SWAMPED] += 1


@kernel
def fused(
    a_sig: np.ndarray, a_exp: np.ndarray, a_cls: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_cls: np.ndarray,
    c: np.ndarray, out: np.ndarray, start: int, stop: int, r: Block,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`numsim.kernels.fused.matmul` with counts; shapes as there, counts [M, 8], extremes [M, 2]."""
    n_columns, depth = b_sig.shape
    for i in range(start, stop):
        for j in range(n_columns):
            acc = c[i, j]
            note_peak(acc, extremes[i])
            for k0 in range(0, depth, r.group):
                k1 = min(k0 + r.group, depth)
                after = fu.block(
                    a_sig[i], a_exp[i], a_cls[i], b_sig[j], b_exp[j], b_cls[j], k0, k1, acc, r
                )
                counted_block(
                    a_sig[i], a_exp[i], a_cls[i], b_sig[j], b_exp[j], b_cls[j], k0, k1, acc, after,
                    r, counts[i],
                )  # fmt: skip
                acc = after
                note_peak(acc, extremes[i])
            out[i, j] = acc


@kernel
def scaled_fp4(
    a: np.ndarray, b: np.ndarray,
    a_sig: np.ndarray, a_exp: np.ndarray, a_nan: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_nan: np.ndarray,
    fraction: int, c: np.ndarray, out: np.ndarray, start: int, stop: int, align_bits: int,
    counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`numsim.kernels.scaled_fp4.matmul` with counts; an addend is an exact run of 16 products."""
    depth = a.shape[1]
    for i in range(start, stop):
        n, ext = counts[i], extremes[i]
        for j in range(b.shape[0]):
            acc = c[i, j]
            note_peak(acc, ext)
            for k0 in range(0, depth, STEP):
                n[STEPS] += 1
                first, last = k0 // RUN, (min(k0 + STEP, depth) + RUN - 1) // RUN
                top = np.int64(fu.NO_TERM)
                nan = np.isnan(acc)
                for s in range(first, last):
                    nan = nan or a_nan[i, s] or b_nan[j, s]
                    top = max(top, np.int64(a_exp[i, s]) + np.int64(b_exp[j, s]))
                if nan:
                    acc = np.nan
                if not np.isfinite(acc):
                    continue
                sig, exponent = parts(acc, np.int64(-126))
                if acc != 0:
                    top = max(top, exponent)
                    n[GAP] = max(n[GAP], top - exponent)
                total = np.int64(0)
                for s in range(first, last):
                    run = np.int64(0)
                    for k in range(s * RUN, min((s + 1) * RUN, depth)):
                        run += np.int64(a[i, k]) * np.int64(b[j, k])
                    run *= np.int64(a_sig[i, s]) * np.int64(b_sig[j, s])
                    if run != 0:
                        gap = top - (np.int64(a_exp[i, s]) + np.int64(b_exp[j, s]))
                        left = np.int64(align_bits - 2 - fraction) - gap
                        kept = shifted(run, left)
                        n[GAP] = max(n[GAP], gap)
                        if kept == 0:
                            n[SWAMPED] += 1
                        if left < 0 and (kept == 0 or kept << -left != run):
                            n[CUT] += 1
                        total += kept
                before, products = acc, total
                if acc != 0:
                    total += shifted(sig, align_bits - 52 - (top - exponent))
                acc = round_sum(
                    total, top - align_bits, np.int64(24), np.int64(-126), np.int64(127),
                    np.int64(2),
                )  # fmt: skip
                if np.isinf(acc):
                    n[OVERFLOWS] += 1
                elif products != 0 and acc == before:
                    n[SWAMPED] += 1
                note_peak(acc, ext)
            out[i, j] = acc


@inline
def carried(limbs: np.ndarray) -> None:
    """Make limbs 0 to LIMBS - 2 digits of 32 bits; the last one keeps the sign."""
    for i in range(ex.LIMBS - 1):
        limbs[i + 1] += limbs[i] >> 32
        limbs[i] &= np.int64(0xFFFFFFFF)


@inline
def noted_width(limbs: np.ndarray, quantum: np.int64, n: Any, extremes: Any) -> None:
    """Note the width and value of a carried accumulator; `quantum`: exponent of its unit."""
    negative = limbs[ex.LIMBS - 1] < 0
    highest = np.int64(-1)
    value = 0.0
    for t in range(ex.LIMBS - 1, -1, -1):
        digit = limbs[t]
        if negative:
            digit = ~digit if t == ex.LIMBS - 1 else digit ^ np.int64(0xFFFFFFFF)
        if digit != 0 and highest < 0:
            highest = 32 * t + top_bit(np.uint64(digit))
        value += np.float64(limbs[t]) * power_of_two(np.int64(32 * t + ex.LOWEST))
    n[BITS] = max(n[BITS], max(highest + ex.LOWEST - quantum + 1, np.int64(0)) + 1)
    note_peak(value, extremes)


@kernel
def exact(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, out: np.ndarray, start: int, stop: int,
    params: Any, quantum: int, stride: int, counts: np.ndarray, extremes: np.ndarray,
) -> None:  # fmt: skip
    """`numsim.kernels.exact.matmul` with counts; a partial sum follows every `stride` products.

    Column BITS is the width of the largest partial sum in units of ``2**quantum``.
    """
    limbs, begin = np.empty(ex.LIMBS, np.int64), np.empty(ex.LIMBS, np.int64)
    for i in range(start, stop):
        n, e = counts[i], extremes[i]
        for j in range(b.shape[0]):
            limbs[:] = 0
            nan = up = down = False
            uc = c[i, j]
            mc = uc & np.uint32(0x7FFFFFFF)
            if mc > np.uint32(0x7F800000):
                nan = True
            elif mc == np.uint32(0x7F800000):
                down = (uc >> np.uint32(31)) != 0
                up = not down
            else:
                sc, ec = ex.float32_parts(uc)
                ex.add_term(limbs, sc, ec, (uc >> np.uint32(31)) != 0)
                carried(limbs)
                noted_width(limbs, np.int64(quantum), n, e)
            begin[:] = limbs
            for k in range(a.shape[1]):
                ua, ub = a[i, k], b[j, k]
                negative = ((ua ^ ub) >> np.uint32(31)) != 0
                ma, mb = ua & np.uint32(0x7FFFFFFF), ub & np.uint32(0x7FFFFFFF)
                if ma >= np.uint32(0x7F800000) or mb >= np.uint32(0x7F800000):
                    if max(ma, mb) > np.uint32(0x7F800000) or min(ma, mb) == np.uint32(0):
                        nan = True
                    elif negative:
                        down = True
                    else:
                        up = True
                elif ma != 0 and mb != 0:
                    sa, ea = ex.float32_parts(ua)
                    sb, eb = ex.float32_parts(ub)
                    ex.add_term(limbs, sa * sb, ea + eb, negative)
                    carried(limbs)
                if (k + 1) % stride == 0:
                    noted_width(limbs, np.int64(quantum), n, e)
            n[STEPS] += 1
            changed = (limbs != begin).any()
            code = ex.finish(limbs, params, nan, up, down)
            out[i, j] = code
            if not (nan or up or down):
                magnitude = code & ~np.int64(params.sign_bit)
                if params.inf >= 0 and magnitude == params.inf:
                    n[OVERFLOWS] += 1
                begin_code = ex.finish(begin, params, False, False, False)
                if changed and code == begin_code:
                    n[SWAMPED] += 1
