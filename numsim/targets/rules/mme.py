"""Gaudi's matrix engines: FP8 of any exponent bias, aligned and cut; c joins, or comes after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.decimals import exact_text
from numsim.formats import Format, get_format
from numsim.kernels.jit import over_items
from numsim.kernels.rules import align
from numsim.kernels.rules import mme as kernel
from numsim.kernels.rules.mac import Arithmetic
from numsim.quant import QTensor
from numsim.quant.kept import kept
from numsim.targets.chain import Chain, Work, item, mode, noted, shape, start, store
from numsim.targets.rules.limits import (
    CLASSES,
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
from numsim.targets.steps import Addend, Step, floor_log2, one_alignment, values_of
from numsim.targets.tensor import batched, planes

_LEAST_HALF = -14  # exponent of float16's subnormals


@dataclass(frozen=True)
class Mme:
    """Intel Gaudi: products of a group aligned to the largest exponent, cut toward zero, added.

    Parameters
    ----------
    group
        Products of one step; longer dot products chain steps through the accumulator.
    align_bits
        Fraction bits kept below the largest exponent.
    accumulator
        ``joins`` the alignment, and the sum is cut to float32 (Gaudi 3); ``after``: subnormal ones
        as zeros, it is added exactly to the aligned sum of the products, one rounding to nearest
        even, subnormal results become zeros of their sign (Gaudi 2).
    subnormals
        Where subnormal operands are placed: ``normalised``, at their leading bit; ``half``, the
        same but not below 2**-14, as float16 holds them; ``kept``, at their format's least
        exponent; ``flushed``: they are zeros.
    bias_a, bias_b
        Exponent bias of an FP8 operand: a value is significand * 2**(exponent field - bias). None:
        its format's own.
    biases
        Biases that operands may have; empty: 0 to 62.
    min_exponent
        Lower limit of the largest exponent; None: no limit.
    nan
        As in `Fused`.
    """

    group: int
    align_bits: int
    accumulator: Literal["joins", "after"] = "joins"
    subnormals: Literal["normalised", "half", "kept", "flushed"] = "normalised"
    bias_a: int | None = None
    bias_b: int | None = None
    biases: tuple[int, ...] = ()
    min_exponent: int | None = None
    nan: Literal["ones", "quiet"] = "ones"

    outputs: ClassVar[tuple[str, ...]] = ("float32",)


_LARGEST = (2 - 2.0**-23) * 2.0**127
AFTER = Arithmetic(24, -126, 127, mode("rne"), True, False, _LARGEST, _LARGEST)


def block_of(rule: Mme, a: Format, b: Format) -> align.Block:
    """Return a rule as kernels take it."""
    joins = rule.accumulator == "joins"
    least = align.NO_LIMIT if rule.min_exponent is None else rule.min_exponent
    return align.Block(
        align.JOINS if joins else align.AFTER, rule.group, rule.align_bits,
        a.precision + b.precision - 2, False, least, 1, 0, 0, 24, -126, 127, mode("rtz"), 24,
    )  # fmt: skip


class Signs(NamedTuple):
    """Planes of an operand as in `numsim.targets.tensor.planes`, and which are negative."""

    sig: NDArray[np.int32]
    exp: NDArray[np.int32]
    cls: NDArray[np.uint8]
    negative: NDArray[np.bool_]


@cache
def _meaning(f: Format, bias: int, subnormals: str) -> Signs:
    """Return the planes of all codes of a format, as a unit reads them."""
    every = QTensor.from_codes(np.arange(1 << f.bits, dtype=f.code_dtype)[None], f)
    sig, exp, cls = (p[0, 0] for p in planes(every, False))
    exp = exp + np.int32(f.bias - bias)
    size = np.abs(sig)
    short = np.where(size > 0, f.precision - np.frexp(np.maximum(size, 1))[1], 0)
    if subnormals == "flushed":
        sig = np.where(short > 0, 0, sig)
    elif subnormals != "kept":
        least = exp - short if subnormals == "normalised" else np.maximum(exp - short, _LEAST_HALF)
        short = np.maximum(exp - least, 0)
        sig, exp = sig << short, exp - short
    negative = (np.arange(1 << f.bits) >> (f.bits - 1)).astype(np.bool_)
    return Signs(sig.astype(np.int32), exp.astype(np.int32), cls, negative)


def operand(q: QTensor, rule: Mme, *, transposed: bool) -> Signs:
    """Return the planes of an operand [batch, M, K] (b: [batch, N, K]) as the unit reads it."""
    bias = rule.bias_b if transposed else rule.bias_a
    bias = q.fmt.bias if bias is None else bias

    def look() -> Signs:
        codes = batched(q.codes)
        codes = np.ascontiguousarray(codes.transpose(0, 2, 1) if transposed else codes)
        meaning = _meaning(q.fmt, bias, rule.subnormals)
        return Signs(
            meaning.sig[codes], meaning.exp[codes], meaning.cls[codes], meaning.negative[codes]
        )

    found: Signs = kept(q, "signs", look, transposed, bias, rule.subnormals)
    return found


@cache
def exponents(f: Format, bias: int | None, subnormals: str) -> tuple[int, int]:
    """Return the least and largest exponent of the finite numbers but zero that a unit reads."""
    meaning = _meaning(f, f.bias if bias is None else bias, subnormals)
    found = meaning.exp[(meaning.sig != 0) & (meaning.cls == align.FINITE)]
    return int(found.min()), int(found.max())


def _definition(x: Chain) -> Work:
    """Add groups one by one, chained through the accumulator."""

    def work() -> NDArray[Any]:
        block = block_of(x.rule, x.a.fmt, x.b.fmt)
        left = operand(x.a, x.rule, transposed=False)
        right = operand(x.b, x.rule, transposed=True)
        begin, values = start(x, np.float64), np.empty(shape(x))
        over_items(
            lambda i, lo, hi: kernel.matmul(
                *(p[i] for p in left), *(item(p, i) for p in right), begin[i], values[i], lo, hi,
                block, AFTER, *noted(x, i),
            ),
            *values.shape[:2],
        )  # fmt: skip
        return store(values, x.out, x.rule)

    return Work("scalar", work)


def _placed(rule: Mme, step: Step) -> list[Addend]:
    """Return the products of a step where the unit places them."""
    parts = []
    for q, transposed, bias in ((step.a, False, rule.bias_a), (step.b, True, rule.bias_b)):
        found = operand(q, rule, transposed=transposed)
        shift = 0 if bias is None else q.fmt.bias - bias
        names = [exact_text(Fraction(v) * Fraction(2) ** shift) for v in values_of(q)]
        sig, exp = (p.ravel().tolist() for p in found[:2])
        trailing = q.fmt.precision - 1
        values = [s * Fraction(2) ** (e - trailing) for s, e in zip(sig, exp, strict=True)]
        parts.append(list(zip(names, values, exp, strict=True)))
    return [
        Addend(f"k {k}: {m} * {n}", u * v, d + e)
        for k, (m, u, d), (n, v, e) in zip(step.positions, *parts, strict=True)
    ]


def _explain(rule: Mme, step: Step) -> Iterator[str]:
    before = float(step.before.item())
    terms = [t for t in _placed(rule, step) if t.value]
    joins = rule.accumulator == "joins"
    if joins and before:
        terms.append(Addend("accumulator", Fraction(before), max(floor_log2(before), -126)))
    total = yield from one_alignment(rule.align_bits, terms, rule.min_exponent)
    if joins:
        yield f"sum {exact_text(total)}, truncated to 23 bits of fraction"
        return
    held = 0.0 if abs(before) < 2.0**-126 else before
    yield f"sum {exact_text(total)}, with the accumulator {exact_text(total + Fraction(held))}"
    yield "rounded once to nearest even; subnormal accumulators and results become zero"


def _of_bytes(kind: str) -> bool:
    """Whether a class is of FP8 formats, whose bias a unit may change."""
    names = CLASSES.get(kind, ())
    return bool(names) and all(get_format(name).bits == 8 for name in names)


def _contradiction(rule: Mme, kind: str, given: Mapping[str, Any]) -> str:
    for key in ("bias_a", "bias_b"):
        bias = getattr(rule, key)
        if bias is None:
            continue
        if not _of_bytes(kind):
            return f"{key} is of operands of 8 bits; leave it out"
        if rule.biases and bias not in rule.biases:
            return f"{key} is {', '.join(map(str, rule.biases))}; got {bias}"
    widest = rule.align_bits + 2 + (rule.group - 1).bit_length()
    if rule.accumulator == "after" and widest > 53:
        return (
            f"sums of {rule.group} products with {rule.align_bits} fraction bits have {widest} "
            'bits; accumulator = "after" takes 53'
        )
    why = aligns(kind)
    return why and f"Mme {why}"


def _changes(rule: Mme, kind: str, key: str, value: object) -> bool:
    if key not in ("bias_a", "bias_b"):
        return True
    return _of_bytes(kind) and (value is None or not rule.biases or value in rule.biases)


MME = Kind(
    Mme,
    "FP8 of any bias aligned, cut and added; the accumulator joins or comes after (Gaudi)",
    {
        "group": "products in one step; longer dot products chain steps through the accumulator",
        "align_bits": "fraction bits kept below the largest exponent",
        "accumulator": "joins the alignment; after: added exactly to the sum, rounded once",
        "subnormals": "operands are normalised; half: from 2**-14 on; kept in place; or flushed",
        "bias_a": "exponent bias of a; unset: its format's",
        "bias_b": "exponent bias of b; unset: its format's",
        "biases": "biases that operands may have; empty: 0 to 62",
        "min_exponent": "lower limit of the largest exponent; unset: none",
        "nan": NAN_WORDS,
    },
    {
        "group": (1, 1 << 14), "align_bits": (1, 46), "accumulator": ("joins", "after"),
        "subnormals": ("normalised", "half", "kept", "flushed"), "bias_a": (0, 62),
        "bias_b": (0, 62), "biases": frozenset(range(63)), "min_exponent": (-1000, 127),
        "nan": NANS,
    },
    takes=lambda kind: not is_scaled(kind) and not has_output(kind)
    and kind not in (*INTEGERS, *WIDE),
    definition=_definition,
    explain=_explain,
    contradiction=_contradiction,
    changes=_changes,
    adder=lambda rule, a, b: Adder(rule.group, rule.align_bits),
)  # fmt: skip
