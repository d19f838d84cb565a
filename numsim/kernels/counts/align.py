"""What the units that align and cut lost: blocks of products, and runs of scaled FP4.

Results, counts and extremes as in `numsim.kernels.counts.stats`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.counts.stats import CUT, GAP, OVERFLOWS, STEPS, SWAMPED, note_peak
from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules import fused as fu
from numsim.kernels.rules.fused import Block, parts, round_sum, shifted
from numsim.kernels.rules.scaled_fp4 import RUN, STEP


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
            kept = fu.cut(product, left, r)
            n[GAP] = max(n[GAP], gap)
            if kept == 0:
                n[SWAMPED] += 1
            if left < 0 and (kept == 0 or left < -62 or kept << -left != product):
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
    """`numsim.kernels.rules.fused.matmul` with counts; counts [M, 8], extremes [M, 2]."""
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
    """`rules.scaled_fp4.matmul` with counts; an addend is an exact run of 16 products."""
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
