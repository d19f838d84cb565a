"""The dot products of CDNA3: the products' aligned sum first, then the accumulator, floored.

This is the definition of the rule `TwoStage`, and counts what is lost where it is asked to.
Operands are planes as in `align`, a [M, K] by b [N, K], the transposed right operand.
`tests/oracle_mac.py` states the rule in fractions; MMA-Sim agrees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.round import top_bit
from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.align import (
    NO_TERM,
    Block,
    Terms,
    counted_block,
    floored,
    note_result,
    parts,
    round_sum,
    scan,
    total_of,
    with_special,
)
from numsim.kernels.rules.counts import COLUMNS, GAP, note_peak, row


@inline
def beyond(a: Terms, b: Terms, k0: int, k1: int, r: Block) -> tuple[Any, Any]:
    """Return whether a finite product of either sign reaches 2**product_limit."""
    up = down = False
    for k in range(k0, k1):
        product = np.int64(a.sig[k]) * np.int64(b.sig[k])
        e = np.int64(a.exp[k]) + np.int64(b.exp[k])
        if product != 0 and e + (abs(product) >> (r.fraction + 1)) >= r.product_limit:
            up, down = up or bool(product > 0), down or bool(product < 0)
    return up, down


@inline
def normalised_floor(total: Any, scale: Any, bits: Any, emin: Any) -> tuple[Any, Any]:
    """Floor ``total * 2**scale`` to `bits` fraction bits of its own exponent, at least `emin`."""
    if total == 0:
        return total, scale
    exponent = max(top_bit(np.uint64(abs(total))) + scale, emin)
    drop = max(exponent - bits - scale, np.int64(0))
    return floored(total, -drop), scale + drop


@inline
def block(a: Terms, b: Terms, k0: int, k1: int, acc: Any, r: Block, n: Any) -> Any:
    """Return the accumulator after a block: the products' sum, then the accumulator, floored."""
    largest, nan, up, down = scan(a, b, k0, k1, 0, 0, r)
    if r.product_limit:
        over, under = beyond(a, b, k0, k1, r)
        up, down = up or over, down or under
    value, special = with_special(acc, nan, up, down)
    if special:
        if n is not None:
            note_result(acc, value, False, n)
        return value
    total = np.int64(0)
    for phase in range(r.streams):
        width = r.streams - 1
        top = scan(a, b, k0, k1, width, phase, r)[0]
        if top != NO_TERM:
            part = total_of(a, b, k0, k1, width, phase, top, r, n)
            total += floored(part, top - largest)
    if largest == NO_TERM and acc == 0:
        return 0.0
    sig, exponent = parts(acc, np.int64(r.emin))  # of a zero: the least one
    second = max(largest, exponent)
    whole = np.int64(0)
    if largest != NO_TERM:
        whole = floored(total, r.sum_bits - r.align_bits - (second - largest))
    if acc != 0 and not (r.streams == 2 and exponent < second - (r.align_bits + 1)):
        part = floored(sig, r.align_bits - 52 - (second - exponent))
        whole += part << np.int64(r.sum_bits - r.align_bits)
    kept, scale = normalised_floor(
        whole, second - r.sum_bits, np.int64(r.sum_bits - 1), np.int64(r.emin)
    )
    after = round_sum(
        kept, scale, np.int64(r.precision), np.int64(r.emin), np.int64(r.emax), np.int64(r.mode)
    )
    if whole < 0 and after == 0:
        after = -0.0
    if n is not None:
        if acc != 0 and largest != NO_TERM:
            n[GAP] = max(n[GAP], abs(largest - exponent))
        note_result(acc, after, total != 0, n)
    return after


@kernel
def matmul(
    a_sig: np.ndarray, a_exp: np.ndarray, a_cls: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_cls: np.ndarray,
    c: np.ndarray, out: np.ndarray, start: int, stop: int, r: Block,
    counts: Any = None, extremes: Any = None,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; planes a [M, K], b [N, K] (transposed), c, out float64.

    NaN results are stored as NaN; the caller writes the unit's bit pattern. Counts are described in
    `numsim.kernels.rules.counts`.
    """
    n_columns, depth = b_sig.shape
    unused = np.zeros(COLUMNS, np.int64)
    for i in range(start, stop):
        a, n, e = Terms(a_sig[i], a_exp[i], a_cls[i]), row(counts, i), row(extremes, i)
        for j in range(n_columns):
            b, acc = Terms(b_sig[j], b_exp[j], b_cls[j]), c[i, j]
            note_peak(acc, e)
            for k0 in range(0, depth, r.group):
                k1 = min(k0 + r.group, depth)
                into = counted_block(a, b, k0, k1, acc, r, n, unused)
                acc = block(a, b, k0, k1, acc, r, into)
                note_peak(acc, e)
            out[i, j] = acc
