"""Exact sums, rounded once: what every other rule is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numsim.decimals import exact_text
from numsim.formats import Format, get_format
from numsim.kernels.jit import over_items
from numsim.kernels.rules import exact as kernel
from numsim.kernels.rules.mac import Arithmetic
from numsim.quant.types import decoded
from numsim.targets.chain import DTYPES, Chain, Work, item, nan_code, noted, shape, start
from numsim.targets.rules.limits import (
    ANY_GROUP,
    BLOCK_WORDS,
    CLASSES,
    E8M0_BLOCKS,
    GROUP,
    NAN_WORDS,
    NANS,
    OUTPUT_WORDS,
    OUTPUTS,
    Adder,
    Kind,
    is_scaled,
    no_blocks,
    operands_of,
)
from numsim.targets.steps import Step, block_exponents, products, values_of
from numsim.targets.tensor import NAN_POWER, batched, quantum, scale_powers


@dataclass(frozen=True)
class Exact:
    """Products and the accumulator are added exactly and rounded once (nearest even).

    Parameters
    ----------
    group
        Products in one such sum, which the next one takes as its accumulator; None: all.
    negative_zero
        A sum of nothing but -0 is -0, as IEEE 754 adds (a short group is filled with +0); False:
        every zero is +0.
    outputs
        Formats in which the unit can return the sum.
    nan
        As in `Fused`.
    lscale
        The sum of the products counts times ``2**-lscale`` (Arm: FPMR.LSCALE and LSCALE2; a float16
        result reads the low 4 bits of it).
    osm
        A sum of finite numbers beyond the largest one is the largest one, not Inf (Arm: FPMR.OSM).
    accumulator
        ``joins`` the exact sum; ``late``: is added by an ordinary addition to the rounded sum.
    flush
        With a late accumulator: it, sums and results that are subnormal become zeros of their sign.
    blocks
        Block scales that the unit applies itself, in a class ``mx:``, as in `Fused`.
    """

    group: int | None = None
    negative_zero: bool = False
    outputs: tuple[str, ...] = ("float32",)
    nan: Literal["ones", "quiet"] = "quiet"
    lscale: int = 0
    osm: bool = False
    accumulator: Literal["joins", "late"] = "joins"
    flush: bool = False
    blocks: tuple[str, ...] | None = None


_HALF_SCALE = 15  # the bits of `lscale` that a float16 result reads


def lscale_of(rule: Exact, out: Format) -> int:
    """Return the power of two by which the sum of the products is divided.

    >>> from numsim.formats import get_format
    >>> rule = Exact(4, lscale=33)
    >>> lscale_of(rule, get_format("float32")), lscale_of(rule, get_format("float16"))
    (33, 1)
    """
    return rule.lscale & _HALF_SCALE if out.name == "float16" else rule.lscale


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


_LARGEST = (2 - 2.0**-23) * 2.0**127
_SINGLE = Arithmetic(24, -126, 127, 0, False, False, _LARGEST, _LARGEST)  # of late additions


def _definition(x: Chain) -> Work:
    """One rounding of the exact sum, to the output format (with groups: of each group's)."""

    def work() -> NDArray[Any]:
        left, right = batched(decoded(x.a)), batched(decoded(x.b)).transpose(0, 2, 1)
        powers = scale_powers(x.a, False), scale_powers(x.b, True)
        left, right = (
            values if power is None else np.where(power == NAN_POWER, np.float32(np.nan), values)
            for power, values in zip(powers, (left, right), strict=True)
        )
        parts = 4 if np.float64 in (left.dtype, right.dtype) else 1
        if parts == 4:  # integers that float32 does not hold
            left, right = _halved(left, right)
        depth = left.shape[-1]
        group = (x.rule.group or depth) * parts
        acc: NDArray[Any] = start(x, np.float32)
        for k in range(0, depth, group):
            part = slice(k, k + group)
            minus = x.rule.negative_zero and k + group <= depth  # a short group holds +0
            scales = tuple(p if p is None else np.ascontiguousarray(p[..., part]) for p in powers)
            acc = _group(x, left[..., part], right[..., part], acc, parts, minus, scales)
        return acc

    return Work("scalar", work)


def _group(
    x: Chain, left: NDArray[Any], right: NDArray[Any], acc: NDArray[Any], parts: int, minus: bool,
    powers: tuple[NDArray[np.int32] | None, ...],
) -> NDArray[Any]:  # fmt: skip
    """Add the products of a group to accumulators.

    `parts`: of how many each product is made; `minus`: whether a sum of nothing but -0 is -0;
    `powers`: exponents of the scales of operands.
    """
    lscale = lscale_of(x.rule, x.out)
    how = kernel.Sums(minus, lscale, x.rule.osm, x.rule.accumulator == "late", x.rule.flush)
    rows, columns, begin = (
        np.ascontiguousarray(values, np.float32).view(np.uint32) for values in (left, right, acc)
    )
    count, m, n = shape(x)
    codes, width = np.empty((count, m, n), np.uint32), quantum_exponent(x) - lscale
    over_items(
        lambda i, lo, hi: kernel.matmul(
            rows[i], item(columns, i), begin[i], codes[i], lo, hi, x.out.params,
            how, _SINGLE._replace(flush=x.rule.flush), width, parts,
            *(None if p is None else item(p, i) for p in powers), *noted(x, i),
        ),
        count, m,
    )  # fmt: skip
    result: NDArray[Any] = codes.astype(x.out.code_dtype).view(DTYPES[x.out.name])
    result.view(x.out.code_dtype)[np.isnan(result)] = nan_code(x.out, x.rule)
    return result


def _explain(rule: Exact, step: Step) -> Iterator[str]:
    yield from products(step)
    pairs = zip(values_of(step.a), values_of(step.b), block_exponents(step), strict=True)
    before, half = Fraction(float(step.before.item())), step.after.dtype == np.float16
    lscale = rule.lscale & _HALF_SCALE if half else rule.lscale
    sums = sum((Fraction(p) * Fraction(q) * Fraction(2) ** e for p, q, e in pairs), Fraction(0))
    total = sums / 2**lscale
    if lscale:
        yield f"sum of the products {exact_text(sums)}, times 2^-{lscale}: {exact_text(total)}"
    if rule.accumulator == "joins":
        end = ", at most the largest number" if rule.osm else ""
        yield f"exact sum {exact_text(total + before)}, rounded once to nearest even{end}"
        return
    yield f"exact sum {exact_text(total)}, rounded to float32, nearest even"
    yield f"then added to the accumulator {exact_text(before)} in float32, nearest even"
    if rule.flush:
        yield "subnormal sums, accumulators and results become zero"


def _contradiction(rule: Exact, kind: str, given: Mapping[str, Any]) -> str:
    if rule.accumulator == "late" and rule.outputs != ("float32",):
        return 'accumulator = "late" adds in float32: outputs = ["float32"]'
    if rule.flush and rule.accumulator == "joins":
        return 'flush is of additions after the sum: accumulator = "late"'
    if rule.osm and rule.accumulator == "late":
        return 'osm limits the sum that the accumulator joins: accumulator = "joins"'
    return no_blocks(rule, kind, given)


def _takes(kind: str) -> bool:
    """Whether the accumulator holds every product: of scaled operands, those of a byte."""
    return not is_scaled(kind) or all(
        get_format(name).bits <= 8 for name in CLASSES[operands_of(kind)]
    )


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
        "lscale": "the sum of the products counts times 2**-lscale (float16: its low 4 bits)",
        "osm": "true: a sum beyond the largest number is that number; false: Inf",
        "accumulator": "joins the exact sum; late: added to the rounded sum in float32",
        "flush": "late: subnormal sums, accumulators and results become zeros",
        "blocks": BLOCK_WORDS,
    },
    {
        "group": GROUP, "negative_zero": bool, "outputs": frozenset(OUTPUTS), "nan": NANS,
        "lscale": (0, 127), "osm": bool, "accumulator": ("joins", "late"), "flush": bool,
        "blocks": E8M0_BLOCKS,
    },
    takes=_takes,
    definition=_definition,
    explain=_explain,
    contradiction=_contradiction,
    changes=lambda rule, kind, key, value: key != "blocks" or is_scaled(kind),
    adder=_adder,
)  # fmt: skip
