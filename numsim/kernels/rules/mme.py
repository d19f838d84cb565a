"""The dot products of Gaudi's matrix engines: aligned, cut, with the accumulator inside or after.

This is the definition of the rule `Mme`, and counts what is lost where it is asked to. Operands are
planes as in `align`, and which elements are negative: a [M, K] by b [N, K], the transposed right
operand. `tests/oracle_mac.py` states the rule in integers; the vendor's model agrees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.jit import inline, kernel
from numsim.kernels.rules.align import (
    JOINS,
    NO_TERM,
    Block,
    Terms,
    counted_block,
    power_of_two,
    scan,
    total_of,
    with_special,
)
from numsim.kernels.rules.counts import COLUMNS, note_peak, row
from numsim.kernels.rules.fused import joining
from numsim.kernels.rules.mac import Arithmetic, add, flushed


@inline
def minus_zeros(a: Terms, b: Terms, a_neg: Any, b_neg: Any, k0: int, k1: int) -> bool:
    """Return whether every product of a block is -0."""
    all_minus = True
    for k in range(k0, k1):
        zero = a.sig[k] == 0 or b.sig[k] == 0
        all_minus = all_minus and zero and a_neg[k] != b_neg[k]
    return all_minus


@inline
def after(
    a: Terms, b: Terms, minus: bool, k0: int, k1: int, acc: Any, r: Block, f: Arithmetic, n: Any
) -> Any:  # fmt: skip
    """Return the accumulator after a block whose sum it is added to exactly, with one rounding."""
    largest, nan, up, down = scan(a, b, k0, k1, 0, 0, r)
    value, special = with_special(acc, nan, up, down)
    if special:
        return value
    total = -0.0 if minus else 0.0
    if largest != NO_TERM:
        whole = total_of(a, b, k0, k1, 0, 0, largest, r, n)
        scale = largest - r.align_bits
        half = scale // 2
        total = np.float64(whole) * power_of_two(half) * power_of_two(scale - half)
    return add(acc, total, f, n, False)


@kernel
def matmul(
    a_sig: np.ndarray, a_exp: np.ndarray, a_cls: np.ndarray, a_neg: np.ndarray,
    b_sig: np.ndarray, b_exp: np.ndarray, b_cls: np.ndarray, b_neg: np.ndarray,
    c: np.ndarray, out: np.ndarray, start: int, stop: int, r: Block, f: Arithmetic,
    counts: Any = None, extremes: Any = None,
) -> None:  # fmt: skip
    """Rows [start:stop] of D = A B + C; planes a [M, K], b [N, K] (transposed), c, out float64.

    `f`: how an accumulator is added that does not join the alignment. NaN results are stored as
    NaN; the caller writes the unit's bit pattern. Counts are described in
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
                if r.kind == JOINS:
                    acc = joining(a, b, k0, k1, acc, r, into)
                else:
                    acc = flushed(acc, f.flush, f.emin)
                    minus = k1 - k0 == r.group and minus_zeros(a, b, a_neg[i], b_neg[j], k0, k1)
                    acc = after(a, b, minus, k0, k1, acc, r, f, into)
                note_peak(acc, e)
            out[i, j] = acc
