"""Blackwell's block-scaled FP4: exact runs of 16, scaled, aligned, cut, rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.decimals import exact_text
from numsim.kernels.jit import over_items
from numsim.kernels.rules import scaled_fp4 as kernel
from numsim.quant import QTensor
from numsim.quant.types import decoded
from numsim.targets.chain import Chain, Work, item, noted, shape, start, store
from numsim.targets.rules.limits import BLOCK_WORDS, E8M0_BLOCKS, NAN_WORDS, NANS, Adder, Kind
from numsim.targets.steps import (
    Addend,
    Step,
    element_scales,
    floor_log2,
    one_alignment,
    scale_exponent,
    values_of,
)
from numsim.targets.tensor import batched


@dataclass(frozen=True)
class ScaledFp4:
    """Blackwell's k = 64 block-scaled FP4: exact runs of 16, scaled, aligned, truncated.

    A run has the exponent of its two scales, also where it cancels to zero; but none where all its
    products are zero. `min_exponent`: lower limit of the largest one. `blocks`: scales that the
    unit takes, as format/length, the lengths multiples of 16. `nan`: as in `Fused`.
    """

    align_bits: int = 35
    min_exponent: int = -139
    nan: Literal["ones", "quiet"] = "ones"
    blocks: tuple[str, ...] = ("float8_e8m0fnu/32", "float8_e8m0fnu/16", "float8_e4m3fn/16")

    outputs: ClassVar[tuple[str, ...]] = ("float32",)


class ScaleMeaning(NamedTuple):
    """What each of 256 codes of a scale means to the FP4 unit.

    `significands` are integers with `fraction` fraction bits; the exponent of a zero is `NO_TERM`.
    """

    significands: NDArray[np.int32]
    exponents: NDArray[np.int32]
    nan: NDArray[np.bool_]
    fraction: int
    magnitude: int  # bits of a code without its sign; NaN has them all


@cache
def _scale_meaning(e8m0: bool) -> ScaleMeaning:
    codes = np.arange(256, dtype=np.int32)
    if e8m0:
        return ScaleMeaning(np.ones_like(codes), codes - 127, codes == 255, 0, 255)
    magnitude = codes & 0x7F  # the unit ignores the sign of an E4M3 scale
    field = magnitude >> 3
    significands = np.where(field > 0, 8, 0).astype(np.int32) + (magnitude & 7)
    exponents = np.where(magnitude > 0, np.maximum(field, 1) - 7, kernel.NO_TERM)
    return ScaleMeaning(significands, exponents.astype(np.int32), magnitude == 0x7F, 3, 0x7F)


def scale_meaning(q: QTensor) -> ScaleMeaning:
    """Return how the FP4 unit reads the scales of a tensor."""
    return _scale_meaning(q.scale_format is not None and q.scale_format.name == "float8_e8m0fnu")


def run_scales(q: QTensor, *, transposed: bool) -> NDArray[np.uint8]:
    """Return the scale codes of every run of 16 k, [batch, lines, runs]."""
    assert q.scale_codes is not None
    assert q.block_shape is not None
    codes = batched(q.scale_codes.view(np.uint8))
    codes = codes.transpose(0, 2, 1) if transposed else codes
    depth = q.shape[-2 if transposed else -1]
    runs = -(-depth // kernel.RUN)
    return np.repeat(codes, max(q.block_shape) // kernel.RUN, axis=-1)[..., :runs]


def scale_planes(q: QTensor, *, transposed: bool) -> tuple[tuple[NDArray[Any], ...], int]:
    """Split scale codes for every run of 16: significand, exponent, whether NaN; fraction bits."""
    codes = run_scales(q, transposed=transposed)
    meaning = scale_meaning(q)
    parts = (meaning.significands, meaning.exponents, meaning.nan)
    return tuple(part[codes].astype(part.dtype) for part in parts), meaning.fraction


def _definition(x: Chain) -> Work:
    """Blackwell's k = 64 block-scaled FP4, run by run."""

    def twice(q: QTensor, transposed: bool) -> NDArray[np.int8]:
        values = batched(decoded(q) * 2)
        return np.ascontiguousarray(values.transpose(0, 2, 1) if transposed else values, np.int8)

    def work() -> NDArray[Any]:
        left, right = twice(x.a, transposed=False), twice(x.b, transposed=True)
        scale_a, fraction_a = scale_planes(x.a, transposed=False)
        scale_b, fraction_b = scale_planes(x.b, transposed=True)
        begin, values = start(x, np.float64), np.empty(shape(x))
        over_items(
            lambda i, lo, hi: kernel.matmul(
                left[i], item(right, i), *(p[i] for p in scale_a), *(item(p, i) for p in scale_b),
                fraction_a + fraction_b, begin[i], values[i], lo, hi, x.rule.align_bits,
                x.rule.min_exponent, *noted(x, i),
            ),
            *values.shape[:2],
        )  # fmt: skip
        return store(values, x.out, x.rule)

    return Work("scalar", work)


def _explain(rule: ScaledFp4, step: Step) -> Iterator[str]:
    x, y, before = values_of(step.a), values_of(step.b), float(step.before.item())
    scale_a, scale_b = (element_scales(q) for q in (step.a, step.b))
    addends = []
    for i in range(0, len(x), 16):
        pairs = [*zip(x[i : i + 16], y[i : i + 16], strict=True)]
        run = sum((Fraction(p) * Fraction(q) for p, q in pairs), Fraction(0))
        sa, sb = abs(scale_a[i]), abs(scale_b[i])
        e = scale_exponent(sa, step.a) + scale_exponent(sb, step.b)
        span = f"k {step.positions[i]} to {step.positions[min(i + 15, len(x) - 1)]}"
        name = f"{span}: {exact_text(run)} * {exact_text(sa)} * {exact_text(sb)}"
        if sa and sb and any(p and q for p, q in pairs):
            addends.append(Addend(name, run * Fraction(sa) * Fraction(sb), e))
    if before:
        addends.append(Addend("accumulator", Fraction(before), max(floor_log2(before), -126)))
    total = yield from one_alignment(rule.align_bits, addends, rule.min_exponent)
    yield f"sum {exact_text(total)}, truncated to 23 bits of fraction"


SCALED_FP4 = Kind(
    ScaledFp4,
    "block-scaled FP4: exact runs of 16, scaled, aligned, cut, rounded once",
    {
        "align_bits": "fraction bits kept below the largest exponent",
        "min_exponent": "lower limit of the largest exponent",
        "nan": NAN_WORDS,
        "blocks": BLOCK_WORDS,
    },
    {
        "align_bits": (1, 35), "min_exponent": (-1000, 127), "nan": NANS,
        "blocks": E8M0_BLOCKS | {name.replace("e8m0fnu", "e4m3fn") for name in E8M0_BLOCKS},
    },
    takes=lambda kind: kind == "mx:fp4",
    changes=lambda rule, kind, key, value: value is not None,
    definition=_definition,
    explain=_explain,
    step=lambda rule, depth: kernel.STEP,
    adder=lambda rule, a, b: Adder(kernel.STEP, rule.align_bits),
    run_of_k=kernel.RUN,
)  # fmt: skip
