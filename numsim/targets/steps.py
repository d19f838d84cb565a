"""One step of a unit, and what its rule shows of it in words; the numbers are exact fractions."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor, frexp, trunc
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.decimals import exact_text
from numsim.formats import Format
from numsim.quant import QTensor


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a chain.

    Parameters
    ----------
    a, b
        The operands of the step: [..., M, k] and [..., k, N].
    before, after
        Accumulator [batch, M, N] in the type of the accumulator's format (integers: int64).
    positions
        The k of the step in the whole product.
    """

    a: QTensor
    b: QTensor
    before: NDArray[Any]
    after: NDArray[Any]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Addend:
    """A finite addend: its name, value, and the power of two at which hardware places it."""

    name: str
    value: Fraction
    exponent: int


def aligned(
    addends: list[Addend], place: int, bits: int, how: str = "truncate"
) -> tuple[list[Fraction], list[list[str]]]:
    """Cut addends to `bits` bits below 2**place; return them and rows of a table.

    `how`: as in `Fused`, or ``jam``: toward zero, what is cut ORed into the last bit.

    Examples
    --------
    >>> aligned([Addend("0", Fraction(3, 4), -1)], 3, 3)
    ([Fraction(0, 1)], [['0', '-1', '4', '0', '0.75']])
    """
    unit = Fraction(2) ** (place - bits)
    kept, rows = [], []
    for addend in addends:
        whole = addend.value / unit
        count = floor(whole) if how == "floor" else trunc(whole)
        if how == "jam" and count != whole and count % 2 == 0:  # ORed into the last bit
            count += 1 if whole > 0 else -1
        kept.append(count * unit)
        lost = addend.value - kept[-1]
        rows.append(
            [addend.name, str(addend.exponent), str(place - addend.exponent), exact_text(kept[-1]),
             exact_text(lost) if lost else "-"]
        )  # fmt: skip
    return kept, rows


def values_of(q: QTensor) -> list[float]:
    """Return the values of an operand of one row or column."""
    return [float(v) for v in q.values().ravel()]


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a table, its columns aligned."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        yield ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip()


def products(step: Step) -> Iterator[str]:
    """Yield a table of the products of a step."""
    x, y = values_of(step.a), values_of(step.b)
    rows = [
        [str(k), exact_text(p), exact_text(q), exact_text(p * q)]
        for k, p, q in zip(step.positions, x, y, strict=True)
    ]
    yield from table(["k", "a", "b", "product"], rows)


def placed(step: Step) -> tuple[list[Addend], Addend | None]:
    """Return the products of a step where hardware places them, and the accumulator; None: 0."""
    x, y, before = values_of(step.a), values_of(step.b), float(step.before.item())
    scale = block_exponents(step)
    found = []
    for i, (p, q) in enumerate(zip(x, y, strict=True)):
        e = exponent_of(p, step.a.fmt) + exponent_of(q, step.b.fmt) + scale[i]
        value = Fraction(p) * Fraction(q) * Fraction(2) ** scale[i]
        name = f"k {step.positions[i]}: {exact_text(p)} * {exact_text(q)}"
        if step.a.scale_codes is not None:
            name += f" * 2^{scale[i]}"
        found.append(Addend(name, value, e))
    if not before:
        return found, None
    least = -14 if step.before.dtype == np.float16 else -126
    return found, Addend("accumulator", Fraction(before), max(floor_log2(before), least))


def one_alignment(
    bits: int, addends: list[Addend], least: int | None = None, how: str = "truncate"
) -> Generator[str, None, Fraction]:
    """Explain one alignment; return the sum of what is kept."""
    if not addends:
        yield "no nonzero addend"
        return Fraction(0)
    place = max(t.exponent for t in addends)
    if least is not None:
        place = max(place, least)
    kept, rows = aligned(addends, place, bits, how)
    yield f"largest exponent {place}: multiples of 2^{place - bits} are kept"
    yield from table(["addend", "exponent", "shift", "kept", "cut"], rows)
    return sum(kept, Fraction(0))


def block_scales(step: Step) -> Iterator[str]:
    """Show the codes of the scales inside the unit, their values, their part of the exponents."""
    assert step.a.block_shape is not None
    scales = [element_scales(q) for q in (step.a, step.b)]
    codes = [q.scale_codes.ravel().tolist() for q in (step.a, step.b) if q.scale_codes is not None]
    depth, block = step.a.shape[-1], step.a.block_shape[-1]
    rows = []
    for j, i in enumerate(range(0, depth, block)):
        row = [f"{step.positions[i]} to {step.positions[min(i + block, depth) - 1]}"]
        for q, code, scale in zip((step.a, step.b), codes, scales, strict=True):
            e = str(scale_exponent(scale[i], q)) if np.isfinite(scale[i]) else "-"
            row += [f"{code[j]:#04x}", exact_text(scale[i]), e]
        rows.append(row)
    yield from table(
        ["scales of k", "a: code", "value", "exponent", "b: code", "value", "exponent"], rows
    )


def element_scales(q: QTensor) -> list[float]:
    """Return the scale of every k inside the unit."""
    scale = q.element_scale()
    assert scale is not None
    return [float(v) for v in scale.ravel()]


def scale_exponent(value: float, q: QTensor) -> int:
    """Return the exponent that hardware reads from the code of a scale; its sign is ignored."""
    assert q.scale_format is not None
    return exponent_of(abs(value), q.scale_format)


def block_exponents(step: Step) -> list[int]:
    """Return the exponents of power-of-two scales inside the unit, for every k."""
    both = [0] * step.a.shape[-1]
    for q in (step.a, step.b):
        if q.scale_codes is not None:
            both = [n + floor_log2(s) for n, s in zip(both, element_scales(q), strict=True)]
    return both


def floor_log2(value: float) -> int:
    """Return the exponent of a finite number but zero."""
    return frexp(value)[1] - 1


def exponent_of(value: float, fmt: Format) -> int:
    """Return the exponent that hardware reads: a subnormal (or zero) has the smallest one."""
    return max(floor_log2(value), fmt.emin) if value else fmt.emin
