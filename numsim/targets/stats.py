"""What a matrix product lost on its unit: overflow, saturation, wrapping, swamping, widths."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.float_state import known_floats
from numsim.formats import Format, get_format
from numsim.kernels.counts import align as stats_align
from numsim.kernels.counts import stats as kernels
from numsim.kernels.jit import over_range
from numsim.quant import QTensor
from numsim.quant.types import decoded
from numsim.targets import runs, stats_fast
from numsim.targets.runs.fp4 import scale_planes
from numsim.targets.runs.fused import block_of
from numsim.targets.runs.integer import limits, outside
from numsim.targets.runs.mac import ORDER, arithmetic
from numsim.targets.runs.tensor import as_float64, planes
from numsim.targets.types import Exact, Fused, IntSum, Mac, Rule, ScaledFp4, TwoStage


@known_floats
@dataclass(frozen=True)
class MacStats:
    """What happened in every step of a matrix product; ``numsim.matmul(..., stats=True)``.

    A step is what the unit does before it writes its accumulator: one multiply-add, one group, one
    whole exact sum; the float32 (or `outer_bits`) additions of promoted and split sums are steps
    too. Steps with operands or an accumulator that are not finite count nothing but themselves.

    Parameters
    ----------
    products
        Products, M x N x K.
    steps
        Steps, as above.
    overflows
        Finite operands gave an infinity (a rounded product, or a sum).
    saturations
        A result stopped at the largest value: integer clamps (of pairs too), and float sums of
        directed roundings.
    wraps
        Integer sums that left the accumulator and were reduced modulo ``2**acc_bits``.
    swamped
        Nonzero addends lost whole: a product that alignment or rounding cuts to zero, or a step
        whose nonzero sum of (cut) products leaves the accumulator unchanged. Inside adder trees,
        every operand that does not change the other one.
    cut
        Products that lost bits before they were added: rounded to the product format, or cut by
        the alignment. (`ScaledFp4`: the exact runs of 16 products are the addends.)
    exponent_gap
        Largest distance, in powers of two, between an addend and the place of alignment (`Fused`,
        `TwoStage`, `ScaledFp4`) or between the two operands of an addition (`Mac`); else 0.
    peak_bits
        Bits of the largest value of the accumulator in units of the product quantum, sign
        included: the narrowest two's-complement register that holds all of them. `Exact`: after
        every product. Integers: before a clamp, and as if nothing wrapped (65: beyond 64 bits).
        None where scales inside the unit leave no common quantum.
    largest
        Largest magnitude of the accumulator, in the units of the operands without their scales.

    Notes
    -----
    Counting runs the product once more. One output a vector lane counts 0.3 to 3 billion products
    a second and core: `Fused` and `TwoStage` units with finite operands, `Mac` that rounds to
    nearest even and does not flush (trees: of 64 products at most), `Exact` where float64 holds
    the partial sums, `IntSum` below 62 bits. The rest counts 10 to 100 million: `ScaledFp4`,
    results of fewer than four columns, other roundings, flushed subnormals, wide exact sums,
    operands of aligning units that are not finite.

    Examples
    --------
    >>> import numsim as ns
    >>> a = ns.QTensor.from_codes([[100, 100, 1]], "int8")
    >>> b = ns.QTensor.from_codes([[100], [100], [1]], "int8")
    >>> unit = ns.get_target("ideal.int", acc_bits=14, overflow="saturate")
    >>> d, stats = ns.matmul(a, b, target=unit, stats=True)
    >>> int(d[0, 0]), stats.saturations, stats.swamped, stats.peak_bits
    (8191, 3, 2, 16)
    """

    products: int
    steps: int
    overflows: int
    saturations: int
    wraps: int
    swamped: int
    cut: int
    exponent_gap: int
    peak_bits: int | None
    largest: float

    def as_dict(self) -> dict[str, int | float | None]:
        """Return the counts by name, in order.

        Examples
        --------
        >>> MacStats(8, 8, 0, 0, 0, 2, 0, 3, 12, 1.5).as_dict()["swamped"]
        2
        """
        return {f.name: getattr(self, f.name) for f in fields(self)}


def quantum(fmt: Format) -> Fraction:
    """Return the largest power of two that every finite value of a format is a multiple of.

    Examples
    --------
    >>> quantum(get_format("float8_e4m3fn")), quantum(get_format("q3.4"))
    (Fraction(1, 512), Fraction(1, 16))
    """
    if fmt.kind != "table":
        return Fraction(fmt.min_subnormal)
    values = [Fraction(v) for v in fmt.table if np.isfinite(v) and v]
    return Fraction(1, max(v.denominator for v in values))


def signed_bits(low: Fraction | int, high: Fraction | int) -> int:
    """Return the bits of the narrowest two's-complement register for all of [low, high].

    Examples
    --------
    >>> signed_bits(-128, 127), signed_bits(0, 128), signed_bits(0, 0)
    (8, 9, 1)
    """
    return max((n if n >= 0 else ~n).bit_length() + 1 for n in (low.__floor__(), high.__floor__()))


class Counter:
    """Runs chains as `runs` does and counts; see `numsim.targets.chains.Engine`."""

    def __init__(self) -> None:
        self.counts = np.zeros(kernels.COLUMNS, np.int64)
        self.products = 0
        self.bits: int | None = 1
        self.largest = 0.0

    def run(
        self, rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, name: str
    ) -> NDArray[Any]:
        """Run one chain on the unit, then again with counts."""
        result = runs.run(rule, a, b, c, out, name)
        self.count(rule, a, b, c, out)
        return result

    def count(
        self, rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format
    ) -> NDArray[Any]:
        """Count one chain; return its results as the counting kernel finds them, as float64."""
        batch, m, depth = _batched(a.codes).shape
        n = b.codes.shape[-1]
        integers = isinstance(rule, IntSum)
        start = np.zeros((batch, m, n), np.int64 if integers else np.float64)
        if c is not None:
            with np.errstate(invalid="ignore"):  # signalling NaN
                start[:] = c
        step = quantum(a.fmt) * quantum(b.fmt)
        work = stats_fast.work(rule, a, b, start, out, step)
        if work is None:
            work = _WORK[type(rule)](rule, a, b, out)
        counts = np.zeros((batch, m, kernels.COLUMNS), np.int64)
        extremes = np.zeros((batch, m, 2), start.dtype)
        values = np.empty((batch, m, n), start.dtype)
        for i in range(batch):
            over_range(partial(_piece, work, i, start[i], values[i], counts[i], extremes[i]), m)
        self.products += batch * m * n * depth
        self._add(counts.reshape(-1, kernels.COLUMNS))
        self._widen(rule, a, b, extremes)
        return values

    def add_parts(self, parts: list[NDArray[Any]], rule: Rule) -> NDArray[Any]:
        """Add parts as `runs` does, counting every addition."""
        found, result = self.counts, runs.add_parts(parts, rule)
        if isinstance(rule, IntSum):
            total = np.zeros(parts[0].shape, np.int64)
            for i, part in enumerate(parts):
                _, above, below = outside(total, part.astype(np.int64), rule.outer_bits)
                saturate = rule.overflow == "saturate"
                found[kernels.SATURATIONS if saturate else kernels.WRAPS] += (above | below).sum()
                new = runs.add_parts([total, part], rule).astype(np.int64)
                if i:  # the first part is not added, but may not fit
                    found[kernels.SWAMPED] += ((part != 0) & (new == total)).sum()
                    found[kernels.STEPS] += total.size
                total = new
        else:
            before = runs.add_parts(parts[:1], rule)
            for part in parts[1:]:
                after = runs.add_parts([before, part], rule)
                fine = np.isfinite(before) & np.isfinite(part)
                found[kernels.OVERFLOWS] += (fine & ~np.isfinite(after)).sum()
                found[kernels.SWAMPED] += (fine & (part != 0) & (after == before)).sum()
                found[kernels.STEPS] += before.size
                before = after
        return result

    def stats(self) -> MacStats:
        """Return what was counted so far."""
        n = [int(v) for v in self.counts]
        return MacStats(
            products=self.products, steps=n[kernels.STEPS], overflows=n[kernels.OVERFLOWS],
            saturations=n[kernels.SATURATIONS], wraps=n[kernels.WRAPS],
            swamped=n[kernels.SWAMPED], cut=n[kernels.CUT], exponent_gap=n[kernels.GAP],
            peak_bits=self.bits, largest=self.largest,
        )  # fmt: skip

    def _add(self, counts: NDArray[np.int64]) -> None:
        total = counts.sum(0)
        for column in (kernels.GAP, kernels.BITS):
            total[column] = max(counts[:, column].max(initial=0) - self.counts[column], 0)
        self.counts += total

    def _widen(self, rule: Rule, a: QTensor, b: QTensor, extremes: NDArray[Any]) -> None:
        low, high = extremes[..., 0].min(initial=0), extremes[..., 1].max(initial=0)
        step = quantum(a.fmt) * quantum(b.fmt)
        largest = max(-float(low), float(high))
        if isinstance(rule, IntSum):  # in codes
            bits = max(signed_bits(int(low), int(high)), int(self.counts[kernels.BITS]))
            with np.errstate(over="ignore", under="ignore"):
                largest = float(np.ldexp(largest, -(a.fmt.bias + b.fmt.bias)))
        else:
            bits = signed_bits(Fraction(float(low)) / step, Fraction(float(high)) / step)
        if isinstance(rule, Exact):
            bits = int(self.counts[kernels.BITS])
        self.largest = max(self.largest, largest)
        if a.scale_codes is not None or b.scale_codes is not None:
            self.bits = None
        elif self.bits is not None:
            self.bits = max(self.bits, bits)


def _piece(
    work: Any, i: int, c: NDArray[Any], d: NDArray[Any], n: NDArray[Any], e: NDArray[Any],
    start: int, stop: int,
) -> None:  # fmt: skip
    work(i, c, d, start, stop, n, e)


def _batched(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(math.prod(array.shape[:-2]), *array.shape[-2:])


def _item(array: NDArray[Any], i: int) -> NDArray[Any]:
    item: NDArray[Any] = array[min(i, len(array) - 1)]
    return item


def _flushed(values: NDArray[np.float64], fmt: Format) -> NDArray[np.float64]:
    return np.where(np.abs(values) < fmt.min_normal, np.copysign(0.0, values), values)


# Each returns work(item, start, values, first row, last row, counts, extremes).


def _mac(rule: Mac, a: QTensor, b: QTensor, out: Format) -> Any:
    acc, prod = get_format(rule.acc_format), get_format(rule.product_format or rule.acc_format)
    rounded = rule.product_format is not None or not rule.fused
    p, f = (arithmetic(rule, g) for g in (prod, acc))
    left = as_float64(_batched(decoded(a)))
    right = as_float64(_batched(decoded(b)).transpose(0, 2, 1))
    if rule.flush:
        left, right = _flushed(left, a.fmt), _flushed(right, b.fmt)
    order, group = ORDER[rule.order], rule.group or left.shape[-1]
    return lambda i, c, d, lo, hi, n, e: kernels.mac(
        left[i], _item(right, i), c, d, lo, hi, order, group, rounded, p, f, n, e
    )


def _integer(rule: IntSum, a: QTensor, b: QTensor, out: Format) -> Any:
    left, right = _batched(a.codes), _batched(b.codes)
    low, high = limits(rule.acc_bits)
    pair = limits(rule.pair_bits)[1] if rule.pair_bits else 0
    saturate = rule.overflow == "saturate"
    return lambda i, c, d, lo, hi, n, e: kernels.integer(
        left[i], _item(right, i), c, d, lo, hi, low, high, saturate, rule.group, -pair - 1,
        pair, n, e,
    )  # fmt: skip


def _fused(rule: Fused | TwoStage, a: QTensor, b: QTensor, out: Format) -> Any:
    left, right = planes(a, False), planes(b, True)
    block = block_of(rule, a.fmt, b.fmt, out)
    return lambda i, c, d, lo, hi, n, e: stats_align.fused(
        *(p[i] for p in left), *(_item(p, i) for p in right), c, d, lo, hi, block, n, e
    )


def _fp4(rule: ScaledFp4, a: QTensor, b: QTensor, out: Format) -> Any:
    left, right = (_batched(decoded(q) * 2).astype(np.int8) for q in (a, b))
    right = np.ascontiguousarray(right.transpose(0, 2, 1))
    scale_a, fraction_a = scale_planes(a, transposed=False)
    scale_b, fraction_b = scale_planes(b, transposed=True)
    return lambda i, c, d, lo, hi, n, e: stats_align.scaled_fp4(
        left[i], _item(right, i), *(p[i] for p in scale_a),
        *(_item(p, i) for p in scale_b), fraction_a + fraction_b, c, d, lo, hi,
        rule.align_bits, n, e,
    )  # fmt: skip


def _exact(rule: Exact, a: QTensor, b: QTensor, out: Format) -> Any:
    left, right = _batched(decoded(a)), _batched(decoded(b)).transpose(0, 2, 1)
    parts = 4 if np.float64 in (left.dtype, right.dtype) else 1
    if parts == 4:  # wide integers: four float32 products for each k
        high_a, high_b = left.astype(np.float32), right.astype(np.float32)
        low_a, low_b = left - high_a, right - high_b
        left = np.stack([high_a, high_a, low_a, low_a], -1)
        right = np.stack([high_b, low_b, high_b, low_b], -1)
        left, right = (x.reshape(*x.shape[:2], -1) for x in (left, right))
    left, right = (np.ascontiguousarray(x, np.float32).view(np.uint32) for x in (left, right))
    step = quantum(a.fmt) * quantum(b.fmt)
    exponent = step.numerator.bit_length() - step.denominator.bit_length()
    depth = left.shape[-1]
    group = (rule.group or depth) * parts

    def work(
        i: int, c: NDArray[Any], d: NDArray[Any], lo: int, hi: int, n: NDArray[Any], e: NDArray[Any]
    ) -> None:
        acc = np.ascontiguousarray(c, np.float32)
        codes = np.empty(c.shape, np.uint32)
        for k in range(0, depth, group):
            rows = np.ascontiguousarray(left[i][:, k : k + group])
            columns = np.ascontiguousarray(_item(right, i)[:, k : k + group])
            kernels.exact(
                rows,
                columns,
                acc.view(np.uint32),
                codes,
                lo,
                hi,
                out.params,
                exponent,
                parts,
                rule.negative_zero,
                n,
                e,
            )
            acc[lo:hi] = out.decode_bits(codes[lo:hi].astype(np.int64))
        d[lo:hi] = acc[lo:hi]

    return work


_WORK: dict[type, Any] = {
    Mac: _mac, IntSum: _integer, Fused: _fused, TwoStage: _fused, ScaledFp4: _fp4, Exact: _exact,
}  # fmt: skip
