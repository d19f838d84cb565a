"""Align to the largest exponent, cut, add exactly, round once: the block of a tensor core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numsim.convert import cast
from numsim.decimals import exact_text
from numsim.formats import Format
from numsim.kernels.jit import over_items
from numsim.kernels.rules import align
from numsim.kernels.rules import fused as kernel
from numsim.targets.chain import Chain, Work, item, mode, noted, shape, start, store
from numsim.targets.rules.limits import (
    BLOCK_WORDS,
    E8M0_BLOCKS,
    GROUP,
    INTEGERS,
    NAN_WORDS,
    NANS,
    OUTPUT_WORDS,
    WIDE,
    Adder,
    Kind,
    aligns,
    has_output,
    is_scaled,
    no_blocks,
)
from numsim.targets.steps import Addend, Step, floor_log2, one_alignment, placed
from numsim.targets.tensor import planes

_ACCUMULATOR = {"joins": align.JOINS, "late": align.LATE, "halves": align.HALVES}


@dataclass(frozen=True)
class Fused:
    """Align to the largest exponent, truncate, add exactly, round once: the tensor-core block.

    Parameters
    ----------
    group
        Products in one block; longer dot products chain blocks through the accumulator.
    align_bits
        Fraction bits kept below the largest exponent.
    keep_bits
        Fraction bits of a float32 result (23, or 13 where the unit returns e8m13).
    accumulator
        ``joins`` the alignment; ``late``: is added to the rounded sum by an ordinary addition;
        ``halves``: k with (k // 2) even, then the others on top in float16, then the accumulator.
    zero_products
        Whether a product with a zero factor takes part in the largest exponent.
    min_exponent
        Lower limit of the largest exponent, None: no limit. It can differ by output: a class
        ``fp16->float16`` has a rule of its own.
    align
        How terms are cut to the alignment: ``truncate`` toward zero, or ``floor``.
    rounding
        Of each block's result, ``rtz`` or ``rne``. None: float32 toward zero, float16 to nearest
        even.
    nan
        Pattern of NaN results: ``ones`` (0x7FFFFFFF, 0x7FFF) or ``quiet`` (0x7FC00000, 0x7E00).
    outputs
        Formats of the accumulator and the result: ``float32``, ``float16``.
    blocks
        Block scales that the unit applies itself, in a class ``mx:``, as format/length. None: those
        of MX, ``float8_e8m0fnu/32``.

    Two things are no fields, since all models and recordings agree on them: a zero result is +0,
    and a result that rounds beyond the largest number is infinite, toward zero too.
    """

    group: int
    align_bits: int
    keep_bits: int = 23
    accumulator: Literal["joins", "late", "halves"] = "joins"
    zero_products: bool = False
    min_exponent: int | None = None
    align: Literal["truncate", "floor"] = "truncate"
    rounding: Literal["rtz", "rne"] | None = None
    nan: Literal["ones", "quiet"] = "ones"
    outputs: tuple[str, ...] = ("float32", "float16")
    blocks: tuple[str, ...] | None = None

    @cached_property
    def steps(self) -> Fused:
        """The rule without what it takes and returns: how each block is added."""
        return replace(self, outputs=Fused.outputs, blocks=None)


def block_of(rule: Fused, a: Format, b: Format, out: Format) -> align.Block:
    """Return a rule as kernels take it."""
    fraction = a.precision + b.precision - 2
    least = align.NO_LIMIT if rule.min_exponent is None else rule.min_exponent
    if out.name == "float32":
        result = (rule.keep_bits + 1, -126, 127, mode(rule.rounding or "rtz"), 24)
    else:
        result = (11, -14, 15, mode(rule.rounding or "rne"), 11)
    return align.Block(
        _ACCUMULATOR[rule.accumulator], rule.group, rule.align_bits, fraction, rule.zero_products,
        least, 1, 0, 0, *result, rule.align == "floor",
    )  # fmt: skip


def _definition(x: Chain) -> Work:
    """Align-and-truncate blocks one by one, chained through the accumulator."""

    def work() -> NDArray[Any]:
        block = block_of(x.rule, x.a.fmt, x.b.fmt, x.out)
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


def _explain(rule: Fused, step: Step) -> Iterator[str]:
    out, before, zeros = step.after.dtype, step.before.item(), rule.zero_products
    terms, held = placed(step)
    groups = [terms]
    if rule.accumulator == "halves":
        groups = [terms[i::4] + terms[i + 1 :: 4] for i in (0, 2)]
        groups = [sorted(g, key=terms.index) for g in groups]
    joins = held if rule.accumulator == "joins" else None
    how = f", truncated to {rule.keep_bits} bits of fraction"
    if rule.rounding == "rne":
        how = f", rounded to nearest even, {rule.keep_bits} bits of fraction"
    if out == np.float16:
        how = ", truncated to float16" if rule.rounding == "rtz" else ", rounded to float16"
    for group in groups:
        here = [t for t in group if t.value or zeros] + ([joins] if joins else [])
        total = yield from one_alignment(rule.align_bits, here, rule.min_exponent, rule.align)
        yield f"sum {exact_text(total)}{how}"
        if rule.accumulator != "halves":
            continue
        half = float(
            cast(np.float64(total), "float16", rounding=rule.rounding or "rne", overflow="special")
        )
        joins = None
        if not np.isfinite(half):
            yield f"beyond float16: the half is {exact_text(half)}, and so is all that follows"
        elif half:
            joins = Addend("first half", Fraction(half), max(floor_log2(half), -14))
    if rule.accumulator != "joins":
        yield f"then added to the accumulator {exact_text(float(before))} in {out}, nearest even"


def _contradiction(rule: Fused, kind: str, given: Mapping[str, Any]) -> str:
    if rule.accumulator == "halves" and not has_output(kind):
        return f'accumulator = "halves" gives float16: name the class "{kind}->float16"'
    why = aligns(kind)
    return f"Fused {why}" if why else no_blocks(rule, kind, given)


def _changes(rule: Fused, kind: str, key: str, value: object) -> bool:
    if key == "blocks":
        return is_scaled(kind)
    return value != "halves" or has_output(kind)


FUSED = Kind(
    Fused,
    "align to the largest exponent, cut, add exactly, round once (tensor cores)",
    {
        "group": "products in one step; longer dot products chain steps through the accumulator",
        "align_bits": "fraction bits kept below the largest exponent",
        "keep_bits": "fraction bits of a float32 result: 23, or fewer",
        "accumulator": "joins the alignment; late: added to the rounded sum; halves: float16 in "
        "two",
        "zero_products": "a product with a zero factor counts for the largest exponent",
        "min_exponent": "lower limit of the largest exponent; unset: none",
        "align": "how addends are cut: truncate toward zero, or floor",
        "rounding": "rtz or rne; unset: float32 toward zero, float16 to nearest even",
        "nan": NAN_WORDS,
        "outputs": OUTPUT_WORDS,
        "blocks": BLOCK_WORDS,
    },
    {
        "group": GROUP, "align_bits": (1, 35), "keep_bits": (1, 23),
        "accumulator": ("joins", "late", "halves"), "zero_products": bool,
        "min_exponent": (-1000, 127), "align": ("truncate", "floor"), "rounding": ("rtz", "rne"),
        "nan": NANS, "outputs": frozenset(("float32", "float16")), "blocks": E8M0_BLOCKS,
    },
    takes=lambda kind: kind not in (*INTEGERS, *WIDE),
    definition=_definition,
    explain=_explain,
    contradiction=_contradiction,
    changes=_changes,
    adder=lambda rule, a, b: Adder(rule.group, rule.align_bits),
)  # fmt: skip
