"""Integer units: sums of codes in an accumulator of any width, and the accumulator of their parts.

All arithmetic is int64. A sum that leaves it is told by its sign, so 64-bit accumulators are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError, UnsupportedError
from numsim.kernels.gemm import fma as gemm_fma
from numsim.kernels.gemm import integer as gemm_int
from numsim.kernels.gemm import saturate as gemm_saturate
from numsim.kernels.ir import integer as simd_int
from numsim.kernels.jit import over_items
from numsim.kernels.rules import integer as integer_kernel
from numsim.quant import QTensor
from numsim.targets.runs.chain import (
    Chain,
    Ways,
    Work,
    item,
    shape,
)
from numsim.targets.runs.tensor import (
    batched,
    kept,
)
from numsim.targets.types import IntSum
from numsim.vocabulary import ACCUMULATIONS


@dataclass
class Overflowed(Exception):
    """A sum left an accumulator that must not overflow; `k` counts from the start of the chain."""

    what: str
    place: tuple[int, int, int]
    k: int
    part: int = 0  # which addend of an outer accumulator

    def error(self, name: str, batch: int) -> NumsimError:
        """Return the message for the user of the unit `name`."""
        item, row, column = self.place
        end = f" of batch {item}" if batch > 1 else ""
        return NumsimError(
            f"matmul: {name} with overflow='raise': the {self.what} overflows at row {row}, "
            f"column {column}, k = {self.k}{end}; widen it or choose wrap or saturate"
        )


def limits(bits: int) -> tuple[int, int]:
    """Return the least and largest value of a two's-complement integer.

    Examples
    --------
    >>> limits(8)
    (-128, 127)
    """
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def wrapped(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return values modulo 2**bits as signed integers: int32, or int64 beyond 32 bits.

    Examples
    --------
    >>> wrapped(np.array([128, -129]), 8)
    array([-128,  127], dtype=int32)
    """
    if bits == 32 and values.dtype == np.int32:
        return values
    unused = np.int64(64 - bits)
    cut = (values.astype(np.int64) << unused) >> unused
    return cut.astype(np.int32 if bits <= 32 else np.int64)


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
    bound = largest(a) * largest(b)
    start = 0 if c is None or not c.size else max(int(c.max()), -int(c.min()))
    total, most = bound * a.shape[-1] + start, (1 << (rule.acc_bits - 1)) - 1
    free = rule.pair_bits is None or 2 * bound < 1 << (rule.pair_bits - 1)
    if free and (rule.overflow == "wrap" or total <= most):
        bytes_only = a.codes.dtype.itemsize == 1 and b.codes.dtype.itemsize == 1
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


def integer(
    a: QTensor, b: QTensor, c: NDArray[np.int64] | None, rule: IntSum, plan: IntegerPlan
) -> NDArray[Any]:
    """Integer sums by a plan, right modulo 2**acc_bits."""
    left, right = batched(a.codes), batched(b.codes)
    if plan == "int8":
        bytes_b = kept(b, "int8", lambda: gemm_int.pack_b(right))
        small = gemm_int.gemm_int8(left, bytes_b)
        return small if c is None else small + c
    if plan == "float64":
        doubles = kept(b, "float64", lambda: gemm_fma.pack_b(right.astype(np.float64)))
        sums = gemm_fma.gemm_fma(left.astype(np.float64), doubles).astype(np.int64)
        return sums if c is None else sums + c
    kind = {"clamp": simd_int.CLAMP, "full": simd_int.FULL, "pairs": simd_int.PAIRS}[plan]
    bits = rule.pair_bits if plan == "pairs" else rule.acc_bits
    assert bits is not None
    high = (1 << (bits - 1)) - 1
    key = f"saturate {rule.group} {left.dtype}"
    words = kept(b, key, lambda: gemm_saturate.pack_b(right, rule.group, left.dtype))
    shape = (len(left), left.shape[1], right.shape[-1])
    begin = np.zeros(shape, np.int32) if c is None else c.astype(np.int32)
    return gemm_saturate.gemm_saturate(left, words, begin, kind, rule.group, -high - 1, high)


def _checked_plan(x: Chain) -> IntegerPlan | None:
    """Return `integer_plan`, for operands whose sums 64 bits hold before they are limited."""
    rule, depth = x.rule, x.a.shape[-1]
    product = 1 << sum(q.fmt.bits - q.fmt.signed for q in (x.a, x.b))
    together = 1 if rule.overflow == "wrap" else min(rule.group, depth)
    if rule.pair_bits is not None:
        together = max(together, 2)
    if product * together >= 1 << 63:
        raise UnsupportedError(
            f"matmul: {x.name} adds {together} products of {x.a.fmt.name} and {x.b.fmt.name} "
            "before it limits their sum, which 64 bits do not hold; use group=1, wrap, or "
            "narrower operands"
        )
    return integer_plan(x.a, x.b, x.c, rule)


_SAID = {
    "int8": "bytes in int32", "float64": "sums in float64", "clamp": "clamped steps in int32",
    "full": "full steps in int32", "pairs": "pairs in int32",
}  # fmt: skip


def _vectors(x: Chain) -> Work | None:
    plan = _checked_plan(x)
    if plan is None:
        return None
    return Work(_SAID[plan], lambda: wrapped(integer(x.a, x.b, x.c, x.rule, plan), x.rule.acc_bits))


def _scalar(x: Chain) -> Work:
    """Codes added one by one in an accumulator of `acc_bits` bits: the definition."""
    rule = x.rule

    def work() -> NDArray[Any]:
        left, right = batched(x.a.codes), batched(x.b.codes)
        out = np.empty(shape(x), np.int64)
        start = np.zeros(out.shape, np.int64) if x.c is None else x.c
        low, high = limits(rule.acc_bits)
        pair = limits(rule.pair_bits)[1] if rule.pair_bits else 0
        found: list[tuple[int, NDArray[np.int64]]] = []

        def rows(i: int, lo: int, hi: int) -> None:
            place = np.full(3, -1, np.int64)
            found.append((i, place))
            integer_kernel.matmul(
                left[i], item(right, i), start[i], out[i], lo, hi, low, high,
                ACCUMULATIONS.index(rule.overflow), rule.group, -pair - 1, pair, place,
            )  # fmt: skip

        over_items(rows, len(out), out.shape[1])
        places = sorted((i, *(int(v) for v in p)) for i, p in found if p[0] >= 0)
        if places:
            at, row, column, k = places[0]
            raise Overflowed(f"{rule.acc_bits}-bit accumulator", (at, row, column), k)
        return wrapped(out, rule.acc_bits)

    return Work("scalar", work)


INTEGER: Ways = (_vectors, _scalar)
