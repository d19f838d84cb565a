"""RISC-V's bulk normalisation: many products normalised once, every rounding to odd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from numsim.decimals import exact_text
from numsim.formats import Format
from numsim.kernels.jit import over_items
from numsim.kernels.rules import align
from numsim.kernels.rules import bulk_norm as kernel
from numsim.kernels.rules.mac import Arithmetic
from numsim.targets.chain import Chain, Work, item, mode, noted, shape, start, store
from numsim.targets.rules.limits import (
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
from numsim.targets.steps import Step, one_alignment, placed
from numsim.targets.tensor import planes

MOST = 1 << 16  # products of a set: eight registers of 65,536 bits


@dataclass(frozen=True)
class BulkNorm:
    """RISC-V: sets of products are aligned, added and normalised once, then the accumulator.

    Every product is aligned to the set's largest exponent; with g = ceil(log2(group)), 23 + g
    fraction bits are kept, and what is cut off is ORed into the last of them. The sum is rounded to
    float32, and so is its sum with the accumulator, both to odd; beyond the largest number is Inf.

    `group`: products of one set, as many as the unit takes at once (VLMAX). `nan`: as in `Fused`.
    """

    group: int
    nan: Literal["ones", "quiet"] = "quiet"

    outputs: ClassVar[tuple[str, ...]] = ("float32",)


_TO_ODD = mode("rto")
_LARGEST = (2 - 2.0**-23) * 2.0**127
ADDITION = Arithmetic(24, -126, 127, _TO_ODD, False, True, _LARGEST, _LARGEST)


def align_bits(rule: BulkNorm) -> int:
    """Return the fraction bits that are kept of a product.

    >>> [align_bits(BulkNorm(group)) for group in (1, 4, 5, 8)]
    [23, 25, 26, 26]
    """
    return 23 + (rule.group - 1).bit_length()


def block_of(rule: BulkNorm, a: Format, b: Format) -> align.Block:
    """Return a rule as kernels take it."""
    return align.Block(
        align.BULK, rule.group, align_bits(rule), a.precision + b.precision - 2, False,
        align.NO_LIMIT, 1, 0, 0, 24, -126, 127, _TO_ODD, 24,
    )  # fmt: skip


def _definition(x: Chain) -> Work:
    """Add sets one by one, chained through the accumulator."""

    def work() -> NDArray[Any]:
        block = block_of(x.rule, x.a.fmt, x.b.fmt)
        left, right = planes(x.a, False), planes(x.b, True)
        begin, values = start(x, np.float64), np.empty(shape(x))
        over_items(
            lambda i, lo, hi: kernel.matmul(
                *(p[i] for p in left), *(item(p, i) for p in right), begin[i], values[i], lo, hi,
                block, ADDITION, *noted(x, i),
            ),
            *values.shape[:2],
        )  # fmt: skip
        return store(values, x.out, x.rule)

    return Work("scalar", work)


def _explain(rule: BulkNorm, step: Step) -> Iterator[str]:
    terms, _ = placed(step)
    here = [t for t in terms if t.value]
    total = yield from one_alignment(align_bits(rule), here, how="jam")
    yield f"sum {exact_text(total)}, rounded to float32, to odd"
    yield f"then added to the accumulator {exact_text(float(step.before.item()))}, to odd"


def _contradiction(rule: BulkNorm, kind: str, given: Mapping[str, Any]) -> str:
    why = aligns(kind)
    return why and f"BulkNorm {why}"


BULK_NORM = Kind(
    BulkNorm,
    "aligned sets of products normalised once, every rounding to odd (RISC-V)",
    {"group": "products of one set, VLMAX; 23 bits and its logarithm are kept", "nan": NAN_WORDS},
    {"group": (1, MOST), "nan": NANS},
    takes=lambda kind: not is_scaled(kind) and not has_output(kind)
    and kind not in (*INTEGERS, *WIDE),
    definition=_definition,
    explain=_explain,
    contradiction=_contradiction,
    adder=lambda rule, a, b: Adder(rule.group, align_bits(rule)),
)  # fmt: skip
