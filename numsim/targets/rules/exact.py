"""Exact sums, rounded once: what every other rule is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numsim.decimals import exact_text
from numsim.formats import Format
from numsim.kernels.jit import over_items
from numsim.kernels.rules import exact as kernel
from numsim.quant.types import decoded
from numsim.targets.chain import DTYPES, Chain, Work, item, nan_code, noted, shape, start
from numsim.targets.rules.limits import (
    ANY_GROUP,
    GROUP,
    NAN_WORDS,
    NANS,
    OUTPUT_WORDS,
    OUTPUTS,
    Adder,
    Kind,
    has_output,
    is_scaled,
)
from numsim.targets.steps import Step, products, values_of
from numsim.targets.tensor import batched, quantum


@dataclass(frozen=True)
class Exact:
    """Products and the accumulator are added exactly and rounded once (nearest even).

    `group`: products in one such sum, which the next one takes as its accumulator; None: all.
    `negative_zero`: a sum of nothing but -0 is -0, as IEEE 754 adds (a short group is filled with
    +0); False: every zero is +0.
    `outputs`: formats in which the unit can return the sum. `nan`: as in `Fused`.
    """

    group: int | None = None
    negative_zero: bool = False
    outputs: tuple[str, ...] = ("float32",)
    nan: Literal["ones", "quiet"] = "quiet"


def _halved(left: NDArray[Any], right: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return float32 operands of four times the depth: four products add up to one of these."""

    def parts(x: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        high = x.astype(np.float32)  # the rest has at most 32 - 24 bits, so float32 holds it
        return high, (x - high).astype(np.float32)

    (ah, al), (bh, bl) = parts(left), parts(right)
    rows = np.stack([ah, ah, al, al], -1).reshape(*ah.shape[:2], -1)
    columns = np.stack([bh, bl, bh, bl], -1).reshape(*bh.shape[:2], -1)
    return rows, columns


def quantum_exponent(x: Chain) -> int:
    """Return the exponent of the power of two that every product is a multiple of."""
    unit = quantum(x.a.fmt) * quantum(x.b.fmt)
    return unit.numerator.bit_length() - unit.denominator.bit_length()


def _definition(x: Chain) -> Work:
    """One rounding of the exact sum, to the output format (with groups: of each group's)."""

    def work() -> NDArray[Any]:
        left, right = batched(decoded(x.a)), batched(decoded(x.b)).transpose(0, 2, 1)
        parts = 4 if np.float64 in (left.dtype, right.dtype) else 1
        if parts == 4:  # integers that float32 does not hold
            left, right = _halved(left, right)
        depth = left.shape[-1]
        group = (x.rule.group or depth) * parts
        acc: NDArray[Any] = start(x, np.float32)
        for k in range(0, depth, group):
            part = slice(k, k + group)
            minus = x.rule.negative_zero and k + group <= depth  # a short group holds +0
            acc = _group(x, left[..., part], right[..., part], acc, parts, minus)
        return acc

    return Work("scalar", work)


def _group(
    x: Chain, left: NDArray[Any], right: NDArray[Any], acc: NDArray[Any], parts: int, minus: bool
) -> NDArray[Any]:
    """Add the products of a group to accumulators.

    `parts`: of how many each product is made; `minus`: whether a sum of nothing but -0 is -0.
    """
    rows, columns, begin = (
        np.ascontiguousarray(values, np.float32).view(np.uint32) for values in (left, right, acc)
    )
    count, m, n = shape(x)
    codes, width = np.empty((count, m, n), np.uint32), quantum_exponent(x)
    over_items(
        lambda i, lo, hi: kernel.matmul(
            rows[i], item(columns, i), begin[i], codes[i], lo, hi, x.out.params,
            minus, width, parts, *noted(x, i),
        ),
        count, m,
    )  # fmt: skip
    result: NDArray[Any] = codes.astype(x.out.code_dtype).view(DTYPES[x.out.name])
    result.view(x.out.code_dtype)[np.isnan(result)] = nan_code(x.out, x.rule)
    return result


def _explain(rule: Exact, step: Step) -> Iterator[str]:
    yield from products(step)
    pairs = zip(values_of(step.a), values_of(step.b), strict=True)
    total = sum((Fraction(p) * Fraction(q) for p, q in pairs), Fraction(float(step.before.item())))
    yield f"exact sum {exact_text(total)}, rounded once to nearest even"


def _adder(rule: Exact, a: Format, b: Format) -> Adder:
    """Bits for every product of two formats, and room for 4,096 of them."""
    floats = "float" in (a.kind, b.kind)
    bits = sum(f.emax - f.emin + f.precision if floats else f.bits for f in (a, b))
    return Adder(rule.group or ANY_GROUP, None, bits + 1 + 12)


EXACT = Kind(
    Exact,
    "exact sums, rounded once to nearest even",
    {
        "group": "products in one exact sum, the next takes it as its accumulator; unset: all",
        "negative_zero": "a sum of nothing but -0 is -0; false: every zero is +0",
        "outputs": OUTPUT_WORDS,
        "nan": NAN_WORDS,
    },
    {"group": GROUP, "negative_zero": bool, "outputs": frozenset(OUTPUTS), "nan": NANS},
    takes=lambda kind: not is_scaled(kind) and not has_output(kind),
    definition=_definition,
    explain=_explain,
    adder=_adder,
)
