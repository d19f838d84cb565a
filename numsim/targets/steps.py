"""One step of each kind of unit in words; the numbers are exact fractions."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor, frexp, trunc

import numpy as np

from numsim.convert import cast
from numsim.decimals import exact_text
from numsim.formats import Format
from numsim.quant import QTensor
from numsim.targets.trace import Step, Trace
from numsim.targets.types import Exact, Fused, IntSum, Mac, ScaledFp4, TwoStage


@dataclass(frozen=True)
class Addend:
    """A finite addend: its name, value, and the power of two at which hardware places it."""

    name: str
    value: Fraction
    exponent: int


def lines(found: Trace, step: Step) -> Iterator[str]:
    """Explain one step.

    Examples
    --------
    >>> from numsim.targets.trace import trace
    >>> found = trace(QTensor.from_codes([[2]], "int8"), QTensor.from_codes([[3]], "int8"),
    ...               "ideal.int")
    >>> list(lines(found, found.chains[0][0]))[-1]
    'sum 6, with the accumulator 6'
    """
    rule = found.rule
    if isinstance(rule, IntSum):
        yield from _integer(rule, step)
        return
    x, y = _row(step.a), _row(step.b)
    before = float(step.before.item())
    if step.a.scale_codes is not None:
        yield from _block_scales(step)
        if not np.isfinite([s for q in (step.a, step.b) for s in _element_scales(q)]).all():
            yield "a NaN scale makes the result NaN"
            return
    terms = [p for p, q in zip(x, y, strict=True)] + y + [before]
    if not np.isfinite(terms).all():
        yield from _table(["k", "a", "b", "product"], _products(step, x, y))
        yield "NaN or Inf among the operands: the IEEE 754 value of the whole sum"
        return
    if isinstance(rule, Exact):
        yield from _table(["k", "a", "b", "product"], _products(step, x, y))
        total = sum(
            (Fraction(p) * Fraction(q) for p, q in zip(x, y, strict=True)), Fraction(before)
        )
        yield f"exact sum {exact_text(total)}, rounded once to nearest even"
    elif isinstance(rule, Mac):
        yield from _mac(rule, step, x, y, before)
    elif isinstance(rule, ScaledFp4):
        yield from _runs(rule, step, x, y, before)
    else:
        yield from _aligned(found, rule, step, x, y, before)


def aligned(
    addends: list[Addend], place: int, bits: int, how: str = "truncate"
) -> tuple[list[Fraction], list[list[str]]]:
    """Cut addends (`how` as in `Fused`) to `bits` bits below 2**place; return them and table rows.

    Examples
    --------
    >>> aligned([Addend("0", Fraction(3, 4), -1)], 3, 3)
    ([Fraction(0, 1)], [['0', '-1', '4', '0', '0.75']])
    """
    unit = Fraction(2) ** (place - bits)
    kept, rows = [], []
    for addend in addends:
        whole = addend.value / unit
        kept.append((floor(whole) if how == "floor" else trunc(whole)) * unit)
        lost = addend.value - kept[-1]
        rows.append(
            [addend.name, str(addend.exponent), str(place - addend.exponent), exact_text(kept[-1]),
             exact_text(lost) if lost else "-"]
        )  # fmt: skip
    return kept, rows


def _row(q: QTensor) -> list[float]:
    return [float(v) for v in q.values().ravel()]


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        yield ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip()


def _products(step: Step, x: list[float], y: list[float]) -> list[list[str]]:
    return [
        [str(k), exact_text(p), exact_text(q), exact_text(p * q)]
        for k, p, q in zip(step.positions, x, y, strict=True)
    ]


def _integer(rule: IntSum, step: Step) -> Iterator[str]:
    a, b = step.a.codes.ravel().tolist(), step.b.codes.ravel().tolist()
    products = [p * q for p, q in zip(a, b, strict=True)]
    rows = [[str(v) for v in row] for row in zip(step.positions, a, b, products, strict=True)]
    yield from _table(["k", "a", "b", "product"], rows)
    if rule.pair_bits is not None:
        top = 1 << (rule.pair_bits - 1)
        pairs = [sum(products[i : i + 2]) for i in range(0, len(products), 2)]
        products = [min(max(pair, -top), top - 1) for pair in pairs]
        for pair, clamped in zip(pairs, products, strict=True):
            cut = f", saturates to {clamped}" if clamped != pair else ""
            yield f"pair {pair} in {rule.pair_bits} bits{cut}"
    total, before = sum(products), int(step.before.item())
    after = int(step.after.item())
    word = {"wrap": "wraps modulo", "saturate": "saturates in"}.get(rule.overflow, "")
    end = f", {word} {rule.acc_bits} bits" if after != before + total else ""
    yield f"sum {total}, with the accumulator {before + total}{end}"


def _mac(rule: Mac, step: Step, x: list[float], y: list[float], before: float) -> Iterator[str]:
    rounded = rule.product_format or ("" if rule.fused else rule.acc_format)
    yield from _table(["k", "a", "b", "product"], _products(step, x, y))
    if rule.flush:
        yield "subnormal operands and results become zero"
    if rounded:
        yield f"products rounded to {rounded} ({rule.rounding})"
    after = float(step.after.item())
    if len(x) == 1 and not rounded:
        total = Fraction(x[0]) * Fraction(y[0]) + Fraction(before)
        lost = f", off by {exact_text(Fraction(after) - total)}" if np.isfinite(after) else ""
        yield f"sum {exact_text(total)}, rounded to {rule.acc_format} ({rule.rounding}){lost}"
    else:
        how = {
            "sequential": "added to the accumulator",
            "odd_first": "added to the accumulator, odd k first",
            "tree": "added pairwise, then the accumulator",
            "two_chains": "even and odd k in two chains from zero, their sum, then the accumulator",
        }[rule.order]
        yield f"{how}; every sum rounded to {rule.acc_format} ({rule.rounding})"


def _aligned(
    found: Trace, rule: Fused | TwoStage, step: Step, x: list[float], y: list[float], before: float
) -> Iterator[str]:
    out = found.d.dtype
    zeros = rule.zero_products
    scale = _block_exponents(step)
    placed = []
    for i, (p, q) in enumerate(zip(x, y, strict=True)):
        e = _exponent(p, step.a.fmt) + _exponent(q, step.b.fmt) + scale[i]
        value = Fraction(p) * Fraction(q) * Fraction(2) ** scale[i]
        name = f"k {step.positions[i]}: {exact_text(p)} * {exact_text(q)}"
        if step.a.scale_codes is not None:
            name += f" * 2^{scale[i]}"
        placed.append(Addend(name, value, e))
    emin = -14 if out == np.float16 else -126
    held = (
        Addend("accumulator", Fraction(before), max(_floor_log2(before), emin)) if before else None
    )
    if isinstance(rule, TwoStage):
        yield from _two_stages(rule, placed, held)
        return
    groups = [placed]
    if rule.accumulator == "halves":
        groups = [placed[i::4] + placed[i + 1 :: 4] for i in (0, 2)]
        groups = [sorted(g, key=placed.index) for g in groups]
    joins = held if rule.accumulator == "joins" else None
    how = f", truncated to {rule.keep_bits} bits of fraction"
    if rule.rounding == "rne":
        how = f", rounded to nearest even, {rule.keep_bits} bits of fraction"
    if out == np.float16:
        how = ", truncated to float16" if rule.rounding == "rtz" else ", rounded to float16"
    for group in groups:
        here = [t for t in group if t.value or zeros] + ([joins] if joins else [])
        total = yield from _one_alignment(rule.align_bits, here, rule.min_exponent, rule.align)
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
            joins = Addend("first half", Fraction(half), max(_floor_log2(half), emin))
    if rule.accumulator != "joins":
        yield f"then added to the accumulator {exact_text(before)} in {out}, nearest even"


def _one_alignment(
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
    yield from _table(["addend", "exponent", "shift", "kept", "cut"], rows)
    return sum(kept, Fraction(0))


def _two_stages(rule: TwoStage, placed: list[Addend], held: Addend | None) -> Iterator[str]:
    zeros = rule.zero_products
    nonzero = [t for t in placed if t.value or zeros]
    streams = [placed[i :: rule.streams] for i in range(rule.streams)]
    place = max((t.exponent for t in nonzero), default=None)
    total = Fraction(0)
    for i, stream in enumerate(streams):
        if rule.streams == 2:
            yield f"{('even', 'odd')[i]} k"
        part = yield from _one_alignment(rule.align_bits, [t for t in stream if t.value or zeros])
        if place is not None:
            unit = Fraction(2) ** (place - rule.align_bits)
            total += floor(part / unit) * unit
    yield f"sum of the products {exact_text(total)}"
    second = max(
        [e for e in (place, held.exponent if held else None) if e is not None], default=None
    )
    if second is None:
        return
    unit = Fraction(2) ** (second - rule.sum_bits)
    whole = floor(total / unit) * unit
    if held and not (rule.streams == 2 and held.exponent < second - rule.align_bits - 1):
        unit = Fraction(2) ** (second - rule.align_bits)
        whole += floor(held.value / unit) * unit
    yield (
        f"with the accumulator, floored below 2^{second} to {rule.sum_bits} and "
        f"{rule.align_bits} bits: {exact_text(whole)}, rounded to nearest even"
    )


def _runs(
    rule: ScaledFp4, step: Step, x: list[float], y: list[float], before: float
) -> Iterator[str]:
    scale_a, scale_b = (_element_scales(q) for q in (step.a, step.b))
    addends = []
    for i in range(0, len(x), 16):
        pairs = zip(x[i : i + 16], y[i : i + 16], strict=True)
        run = sum((Fraction(p) * Fraction(q) for p, q in pairs), Fraction(0))
        sa, sb = abs(scale_a[i]), abs(scale_b[i])
        e = _scale_exponent(sa, step.a) + _scale_exponent(sb, step.b)
        span = f"k {step.positions[i]} to {step.positions[min(i + 15, len(x) - 1)]}"
        name = f"{span}: {exact_text(run)} * {exact_text(sa)} * {exact_text(sb)}"
        addends.append(Addend(name, run * Fraction(sa) * Fraction(sb), e))
    if before:
        addends.append(Addend("accumulator", Fraction(before), max(_floor_log2(before), -126)))
    total = yield from _one_alignment(rule.align_bits, addends)
    yield f"sum {exact_text(total)}, truncated to 23 bits of fraction"


def _block_scales(step: Step) -> Iterator[str]:
    """Show the codes of the scales inside the unit, their values, their part of the exponents."""
    assert step.a.block_shape is not None
    scales = [_element_scales(q) for q in (step.a, step.b)]
    codes = [q.scale_codes.ravel().tolist() for q in (step.a, step.b) if q.scale_codes is not None]
    depth, block = step.a.shape[-1], step.a.block_shape[-1]
    rows = []
    for j, i in enumerate(range(0, depth, block)):
        row = [f"{step.positions[i]} to {step.positions[min(i + block, depth) - 1]}"]
        for q, code, scale in zip((step.a, step.b), codes, scales, strict=True):
            e = str(_scale_exponent(scale[i], q)) if np.isfinite(scale[i]) else "-"
            row += [f"{code[j]:#04x}", exact_text(scale[i]), e]
        rows.append(row)
    yield from _table(
        ["scales of k", "a: code", "value", "exponent", "b: code", "value", "exponent"], rows
    )


def _element_scales(q: QTensor) -> list[float]:
    scale = q.element_scale()
    assert scale is not None
    return [float(v) for v in scale.ravel()]


def _scale_exponent(value: float, q: QTensor) -> int:
    """Return the exponent that hardware reads from the code of a scale; its sign is ignored."""
    assert q.scale_format is not None
    return _exponent(abs(value), q.scale_format)


def _block_exponents(step: Step) -> list[int]:
    """Return the exponents of power-of-two scales inside the unit, for every k."""
    both = [0] * step.a.shape[-1]
    for q in (step.a, step.b):
        if q.scale_codes is not None:
            both = [n + _floor_log2(s) for n, s in zip(both, _element_scales(q), strict=True)]
    return both


def _floor_log2(value: float) -> int:
    return frexp(value)[1] - 1


def _exponent(value: float, fmt: Format) -> int:
    """Return the exponent that hardware reads: a subnormal (or zero) has the smallest one."""
    return max(_floor_log2(value), fmt.emin) if value else fmt.emin
