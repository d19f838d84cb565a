"""CDNA3: the products' aligned sum first, then the accumulator, one rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from numsim.decimals import exact_text
from numsim.formats import Format
from numsim.kernels.jit import over_items
from numsim.kernels.rules import align
from numsim.kernels.rules import two_stage as kernel
from numsim.targets.chain import Chain, Work, item, noted, shape, start, store
from numsim.targets.rules.limits import (
    GROUP,
    INTEGERS,
    NAN_WORDS,
    NANS,
    WIDE,
    Adder,
    Kind,
    aligns,
    has_output,
    is_scaled,
)
from numsim.targets.steps import Step, floor_log2, one_alignment, placed
from numsim.targets.tensor import planes


@dataclass(frozen=True)
class TwoStage:
    """CDNA3: the products' aligned sum first, then the accumulator, one rounding to float32.

    Products are truncated to `align_bits` below their largest exponent (`streams` = 2: even and
    odd k apart, their sums floored to the larger exponent). Beside the accumulator the sum is
    floored to `sum_bits` and the accumulator to `align_bits` fraction bits; what they add up to is
    floored once more, to one fraction bit less than `sum_bits` of its own exponent. `zero_products`
    and `nan`: as in `Fused`.
    """

    group: int
    align_bits: int = 24
    sum_bits: int = 32
    streams: int = 1
    zero_products: bool = False
    nan: Literal["ones", "quiet"] = "quiet"

    outputs: ClassVar[tuple[str, ...]] = ("float32",)


def block_of(rule: TwoStage, a: Format, b: Format) -> align.Block:
    """Return a rule as kernels take it."""
    limit = 128 if a.emax == 127 else 0
    fraction = a.precision + b.precision - 2
    return align.Block(
        align.TWO_STAGE, rule.group, rule.align_bits, fraction, rule.zero_products,
        align.NO_LIMIT, rule.streams, rule.sum_bits, limit, 24, -126, 127, 0, 24,
    )  # fmt: skip


def _definition(x: Chain) -> Work:
    """Blocks one by one, chained through the accumulator."""

    def work() -> NDArray[Any]:
        block = block_of(x.rule, x.a.fmt, x.b.fmt)
        left, right = planes(x.a, False), planes(x.b, True)
        begin, values = start(x, np.float64), np.empty(shape(x))
        over_items(
            lambda i, lo, hi: kernel.matmul(
                *(p[i] for p in left), *(item(p, i) for p in right), begin[i], values[i], lo, hi,
                block, *noted(x, i),
            ),
            *values.shape[:2],
        )  # fmt: skip
        return store(values, x.out, x.rule)

    return Work("scalar", work)


def _explain(rule: TwoStage, step: Step) -> Iterator[str]:
    (terms, held), zeros = placed(step), rule.zero_products
    nonzero = [t for t in terms if t.value or zeros]
    streams = [terms[i :: rule.streams] for i in range(rule.streams)]
    place = max((t.exponent for t in nonzero), default=None)
    total = Fraction(0)
    for i, stream in enumerate(streams):
        if rule.streams == 2:
            yield f"{('even', 'odd')[i]} k"
        part = yield from one_alignment(rule.align_bits, [t for t in stream if t.value or zeros])
        if place is not None:
            unit = Fraction(2) ** (place - rule.align_bits)
            total += floor(part / unit) * unit
    yield f"sum of the products {exact_text(total)}"
    if place is None and held is None:
        return
    second = max(-126 if place is None else place, held.exponent if held else -126)
    unit = Fraction(2) ** (second - rule.sum_bits)
    whole = floor(total / unit) * unit
    if held and not (rule.streams == 2 and held.exponent < second - rule.align_bits - 1):
        unit = Fraction(2) ** (second - rule.align_bits)
        whole += floor(held.value / unit) * unit
    yield (
        f"with the accumulator, floored below 2^{second} to {rule.sum_bits} and "
        f"{rule.align_bits} bits: {exact_text(whole)}"
    )
    own = max(floor_log2(float(whole)), -126) if whole else -126
    unit = Fraction(2) ** (own - rule.sum_bits + 1)
    kept = exact_text(floor(whole / unit) * unit)
    yield f"floored below 2^{own} to {rule.sum_bits - 1} bits: {kept}, rounded to nearest even"


def _contradiction(rule: TwoStage, kind: str, given: Mapping[str, Any]) -> str:
    if rule.sum_bits < rule.align_bits:
        return f"sum_bits ({rule.sum_bits}) is at least align_bits ({rule.align_bits})"
    why = aligns(kind)
    return why and f"TwoStage {why}"


TWO_STAGE = Kind(
    TwoStage,
    "the products' aligned sum first, then the accumulator, one rounding (CDNA3)",
    {
        "group": "products in one step; longer dot products chain steps through the accumulator",
        "align_bits": "fraction bits kept below the largest exponent",
        "sum_bits": "fraction bits of the products' sum beside the accumulator; of all, one less",
        "streams": "2: even and odd k are aligned apart",
        "zero_products": "a product with a zero factor counts for the largest exponent",
        "nan": NAN_WORDS,
    },
    {
        "group": GROUP, "align_bits": (1, 35), "sum_bits": (1, 40), "streams": (1, 2),
        "zero_products": bool, "nan": NANS,
    },
    takes=lambda kind: not is_scaled(kind) and not has_output(kind)
    and kind not in (*INTEGERS, *WIDE),
    definition=_definition,
    explain=_explain,
    contradiction=_contradiction,
    adder=lambda rule, a, b: Adder(rule.group, rule.align_bits),
)  # fmt: skip
