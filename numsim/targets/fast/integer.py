"""Integer units: sums of codes in an accumulator of any width, and the accumulator of their parts.

All arithmetic is int64. A sum that leaves it is told by its sign, so 64-bit accumulators are exact.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.gemm import fma as gemm_fma
from numsim.kernels.gemm import integer as gemm_int
from numsim.kernels.gemm import saturate as gemm_saturate
from numsim.kernels.ir import integer as simd_int
from numsim.quant import QTensor
from numsim.quant.kept import kept
from numsim.targets.chain import (
    Chain,
    Ways,
    Work,
)
from numsim.targets.rules import IntSum
from numsim.targets.rules.int_sum import Overflowed, check_width, limits, wrapped
from numsim.targets.tensor import batched, keeps_rows


def outside(
    total: NDArray[np.int64], part: NDArray[np.int64], bits: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return total + part modulo 2**64, and where it is above and below `bits` bits.

    Examples
    --------
    >>> top = np.array([2**63 - 1])
    >>> [bool(x[0]) for x in outside(top, top, 64)[1:]]
    [True, False]
    """
    low, high = limits(bits)
    wide = total + part
    lost = ((total ^ wide) & (part ^ wide)) < 0
    return wide, np.where(lost, part > 0, wide > high), np.where(lost, part < 0, wide < low)


def add_terms(
    acc: NDArray[Any], terms: NDArray[np.int64], rule: IntSum, bits: int, depth: int
) -> NDArray[Any]:
    """Add the terms of zero points to the sums of `depth` products in an accumulator of `bits`.

    Raises
    ------
    Overflowed
        For a sum beyond an accumulator that must not overflow.
    """
    total, above, below = outside(acc.astype(np.int64), terms, bits)
    if rule.overflow == "saturate":
        low, high = limits(bits)
        total = np.where(above, high, np.where(below, low, total))
    elif rule.overflow == "raise" and (above | below).any():
        item, row, column = (int(v) for v in np.argwhere(above | below)[0])
        raise Overflowed("sum with its zero points", (item, row, column), depth - 1)
    return wrapped(total, bits)


def add_integer_parts(parts: list[NDArray[Any]], rule: IntSum) -> NDArray[Any]:
    """Add the results of chains in order in `outer_bits`, the first to zero."""
    low, high = limits(rule.outer_bits)
    total = np.zeros(parts[0].shape, np.int64)
    for i, part in enumerate(parts):
        total, above, below = outside(total, part.astype(np.int64), rule.outer_bits)
        if rule.overflow == "wrap":
            total = wrapped(total, rule.outer_bits).astype(np.int64)
        elif rule.overflow == "saturate":
            total = np.where(above, high, np.where(below, low, total))
        elif (above | below).any():
            item, row, column = (int(v) for v in np.argwhere(above | below)[0])
            what = f"{rule.outer_bits}-bit outer accumulator"
            raise Overflowed(what, (item, row, column), 0, i)
    return wrapped(total, rule.outer_bits)


def largest(q: QTensor) -> int:
    """Return the largest magnitude of an integer tensor's codes."""

    def look() -> int:
        return max(int(q.codes.max()), -int(q.codes.min())) if q.codes.size else 0

    return int(kept(q, "largest", look))


IntegerPlan = Literal["int8", "float64", "clamp", "full", "pairs"]


def integer_plan(
    a: QTensor, b: QTensor, c: NDArray[np.int64] | None, rule: IntSum
) -> IntegerPlan | None:
    """Return the kernel that gives an integer unit's sums, if only modulo 2**acc_bits.

    ``int8`` and ``float64``: no sum can leave the range, or leaving it is harmless. The others
    limit what they add at every step, in int32.
    """
    bytes_only = a.codes.dtype.itemsize == 1 and b.codes.dtype.itemsize == 1
    if bytes_only and rule.pair_bits is None and rule.overflow == "wrap" and rule.acc_bits <= 32:
        return "int8"  # whatever the codes are
    bound = largest(a) * largest(b)
    start = 0 if c is None or not c.size else max(int(c.max()), -int(c.min()))
    total, most = bound * a.codes.shape[-1] + start, (1 << (rule.acc_bits - 1)) - 1
    free = rule.pair_bits is None or 2 * bound < 1 << (rule.pair_bits - 1)
    if free and (rule.overflow == "wrap" or total <= most):
        if bytes_only and (rule.acc_bits <= 32 or total < 1 << 31):
            return "int8"
        return "float64" if total < 1 << 53 else None
    if 2 * bound * rule.group >= 1 << 31 or rule.overflow == "raise":
        return None
    if rule.overflow == "wrap":
        narrow = rule.pair_bits is not None and rule.pair_bits <= 32 and rule.acc_bits <= 32
        return "pairs" if narrow and rule.group % 2 == 0 else None
    if not free or rule.acc_bits > 32:
        return None
    if rule.acc_bits == 32:
        return "full"
    return "clamp" if most + 1 + bound * rule.group < 1 << 31 else None


def sums_of_bytes(a: QTensor, b: QTensor, scale: np.float32 | None = None) -> NDArray[Any]:
    """Return the sums of plan ``int8``, modulo 2**32, or fp32(fp32(sum) * scale)."""
    packed = kept(b, "int8", lambda: gemm_int.pack_b(batched(b.codes)))
    left, rows = batched(a.codes), None
    if len(left) == 1 and keeps_rows(a):
        rows = kept(a, "int8 rows", lambda: gemm_int.packed_a(left))
    return gemm_int.gemm_int8(left, packed, scale, rows)


def integer(
    a: QTensor, b: QTensor, c: NDArray[np.int64] | None, rule: IntSum, plan: IntegerPlan
) -> NDArray[Any]:
    """Integer sums by a plan, right modulo 2**acc_bits."""
    left, right = batched(a.codes), batched(b.codes)
    if plan == "int8":
        small = sums_of_bytes(a, b)
        return small if c is None else small + c
    if plan == "float64":
        doubles = kept(b, "float64", lambda: gemm_fma.pack_b(right.astype(np.float64)))
        sums = gemm_fma.gemm_fma(left.astype(np.float64), doubles).astype(np.int64)
        return sums if c is None else sums + c
    kind = {"clamp": simd_int.CLAMP, "full": simd_int.FULL, "pairs": simd_int.PAIRS}[plan]
    bits = rule.pair_bits if plan == "pairs" else rule.acc_bits
    assert bits is not None
    high = (1 << (bits - 1)) - 1
    words = kept(
        b, "saturate", lambda: gemm_saturate.pack_b(right, rule.group, left.dtype), rule.group,
        left.dtype,
    )  # fmt: skip
    shape = (len(left), left.shape[1], right.shape[-1])
    begin = np.zeros(shape, np.int32) if c is None else c.astype(np.int32)
    return gemm_saturate.gemm_saturate(left, words, begin, kind, rule.group, -high - 1, high)


_SAID = {
    "int8": "bytes in int32", "float64": "sums in float64", "clamp": "clamped steps in int32",
    "full": "full steps in int32", "pairs": "pairs in int32",
}  # fmt: skip


def _vectors(x: Chain) -> Work | None:
    check_width(x)
    plan = integer_plan(x.a, x.b, x.c, x.rule)
    if plan is None:
        return None
    whole = plan == "int8" and x.rule.acc_bits == 32 and x.c is None
    return Work(
        _SAID[plan],
        lambda: wrapped(integer(x.a, x.b, x.c, x.rule, plan), x.rule.acc_bits),
        (lambda scale: sums_of_bytes(x.a, x.b, scale)) if whole else None,
    )


INTEGER: Ways = (_vectors,)
