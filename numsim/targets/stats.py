"""What a matrix product lost on its unit: overflow, saturation, wrapping, swamping, widths."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.float_state import known_floats
from numsim.formats import Format
from numsim.kernels.rules.counts import (
    BITS,
    COLUMNS,
    CUT,
    GAP,
    OVERFLOWS,
    SATURATIONS,
    STEPS,
    SWAMPED,
    WRAPS,
)
from numsim.quant import QTensor
from numsim.targets import runs
from numsim.targets.chain import Chain, Tally, shape
from numsim.targets.fast.integer import outside
from numsim.targets.levels import Level
from numsim.targets.rules import IntSum, Rule, adds_integers
from numsim.targets.tensor import quantum, signed_bits


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
        `TwoStage`, `ScaledFp4`, `BulkNorm`, `Mme`) or between the two operands of an addition
        (`Mac`; the last one of the others where an accumulator comes after); else 0.
    peak_bits
        Bits of the largest value of the accumulator in units of the product quantum, sign
        included: the narrowest two's-complement register that holds all of them. `Exact`: after
        every product. Integers: before a clamp, and as if nothing wrapped (65: beyond 64 bits).
        None where scales inside the unit leave no common quantum.
    largest
        Largest magnitude of the accumulator, in the units of the operands without their scales.

    Notes
    -----
    Kernels that count compute D too, slower than those that do not: `numsim.targets.fast` has some
    that count 0.3 to 3 billion products a second and core, for `Fused` and `TwoStage` units with
    finite operands, `Mac` that rounds to nearest even and does not flush (trees: of 64 products at
    most), `Exact` where float64 holds the partial sums, `IntSum` below 62 bits. Definitions count
    10 to 100 million: `ScaledFp4`, results of fewer than four columns, other roundings, flushed
    subnormals, wide exact sums, operands of aligning units that are not finite, and
    ``overflow="raise"``.

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


class Counter:
    """Runs chains as `runs` does and counts; see `numsim.targets.split_k.Engine`."""

    def __init__(self) -> None:
        self.counts = np.zeros(COLUMNS, np.int64)
        self.products = 0
        self.bits: int | None = 1
        self.largest = 0.0

    def run(
        self, rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, name: str
    ) -> NDArray[Any]:
        """Run one chain by a kernel that counts what it loses."""
        chain = runs.counted(Chain(rule, a, b, c, out, name))
        assert chain.tally is not None
        result = runs.chosen(chain).run()
        count, m, n = shape(chain)
        self.products += count * m * n * a.shape[-1]
        self._add(chain.tally.counts.reshape(-1, COLUMNS))
        self._widen(chain, chain.tally)
        return result

    def add_parts(
        self, parts: list[NDArray[Any]], rule: Rule, level: Level | None = None
    ) -> NDArray[Any]:
        """Add parts as `runs` does, counting every addition."""
        found, result = self.counts, runs.add_parts(parts, rule, level)
        if adds_integers(rule):
            total = np.zeros(parts[0].shape, np.int64)
            for i, part in enumerate(parts):
                _, above, below = outside(total, part.astype(np.int64), rule.outer_bits)
                saturate = rule.overflow == "saturate"
                found[SATURATIONS if saturate else WRAPS] += (above | below).sum()
                new = runs.add_parts([total, part], rule).astype(np.int64)
                if i:  # the first part is not added, but may not fit
                    found[SWAMPED] += ((part != 0) & (new == total)).sum()
                    found[STEPS] += total.size
                total = new
        else:
            before = runs.add_parts(parts[:1], rule, level)
            for part in parts[1:]:
                after = runs.add_parts([before, part], rule, level, more=True)
                fine = np.isfinite(before) & np.isfinite(part)
                found[OVERFLOWS] += (fine & ~np.isfinite(after)).sum()
                found[SWAMPED] += (fine & (part != 0) & (after == before)).sum()
                found[STEPS] += before.size
                before = after
        return result

    def add_terms(
        self, acc: NDArray[Any], terms: NDArray[np.int64], rule: IntSum, bits: int, depth: int
    ) -> NDArray[Any]:
        """Add the terms of zero points as `runs` does, counting sums that leave the accumulator."""
        _, above, below = outside(acc.astype(np.int64), terms, bits)
        saturate = rule.overflow == "saturate"
        self.counts[SATURATIONS if saturate else WRAPS] += (above | below).sum()
        return runs.add_terms(acc, terms, rule, bits, depth)

    def stats(self) -> MacStats:
        """Return what was counted so far."""
        n = [int(v) for v in self.counts]
        return MacStats(
            products=self.products, steps=n[STEPS], overflows=n[OVERFLOWS],
            saturations=n[SATURATIONS], wraps=n[WRAPS],
            swamped=n[SWAMPED], cut=n[CUT], exponent_gap=n[GAP],
            peak_bits=self.bits, largest=self.largest,
        )  # fmt: skip

    def _add(self, counts: NDArray[np.int64]) -> None:
        total = counts.sum(0)
        for column in (GAP, BITS):
            total[column] = max(counts[:, column].max(initial=0) - self.counts[column], 0)
        self.counts += total

    def _widen(self, chain: Chain, tally: Tally) -> None:
        a, b, ends = chain.a, chain.b, tally.extremes
        low, high = ends[..., 0].min(initial=0), ends[..., 1].max(initial=0)
        largest = max(-float(low), float(high))
        if adds_integers(chain.rule):  # in codes
            bits = signed_bits(int(low), int(high))
            with np.errstate(over="ignore", under="ignore"):
                largest = float(np.ldexp(largest, -(a.fmt.bias + b.fmt.bias)))
        else:
            step = quantum(a.fmt) * quantum(b.fmt)
            bits = signed_bits(Fraction(float(low)) / step, Fraction(float(high)) / step)
        self.largest = max(self.largest, largest)
        if a.scale_codes is not None or b.scale_codes is not None:
            self.bits = None
        elif self.bits is not None:  # some kernels know better than by the ends
            self.bits = max(self.bits, int(self.counts[BITS]) or bits)
