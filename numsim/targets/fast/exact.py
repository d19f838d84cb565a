"""Exact sums, rounded once: the kernels, and which chains each covers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode
from numsim.dispatch import float_codes
from numsim.formats import Format
from numsim.kernels.gemm import exact_rows as gemm_exact_rows
from numsim.kernels.gemm import mac as gemm_mac
from numsim.kernels.gemm.codes import Fields
from numsim.kernels.ir.mac import Flavour
from numsim.kernels.rules.exact import extent
from numsim.kernels.rules.mac import Arithmetic
from numsim.quant import QTensor
from numsim.quant.kept import kept
from numsim.quant.odd import to_odd
from numsim.quant.types import decoded
from numsim.targets.chain import (
    Chain,
    Ways,
    Work,
    round_to,
    start,
)
from numsim.targets.fast.mac import fma
from numsim.targets.rules import Exact, exact
from numsim.targets.rules.exact import lscale_of
from numsim.targets.tensor import (
    batched,
    codes_of,
    edges,
    fields,
    short_codes,
    survey,
    surveyed,
)


def product_range(a: QTensor, b: QTensor) -> tuple[int, int] | None:
    """Return (low, high): products are multiples of 2**low and below 2**high; None: not finite."""

    def look(q: QTensor) -> tuple[bool, int, int]:
        if surveyed(q.fmt):
            return survey(q).extent
        values = np.ascontiguousarray(decoded(q), np.float32).reshape(-1)
        found: tuple[bool, int, int] = kept(q, "extent", lambda: extent(values.view(np.uint32)))
        return found

    (finite_a, low_a, high_a), (finite_b, low_b, high_b) = (look(q) for q in (a, b))
    return (low_a + low_b, high_a + high_b) if finite_a and finite_b else None


def sum_bits(a: QTensor, b: QTensor) -> int:
    """Return bits in which every partial sum over K of products fits, 99 if not all are finite."""
    found = product_range(a, b)
    return 99 if found is None else found[1] - found[0] + a.shape[-1].bit_length()


def _in_float32(x: Chain) -> bool:
    """Whether float32 holds the values of both operands."""
    return np.float64 not in (x.a.fmt.value_dtype, x.b.fmt.value_dtype)


_CARRY = 3  # bits by which a sum of at most 8 products can be longer
_NOWHERE = 1 << 12  # beyond the exponents of all products
_LEAST = -149  # sums of multiples of 2**-149, float32's least number, do not round to zero


def split_place(rule: Exact, low: int, high: int) -> int | None:
    """Return the place at which products are split: sums of both parts are exact in float64.

    Two products are two numbers anyway. They lose the sign of zeros, which shows where c or a sum
    rounded to zero is -0.
    """
    place = high + _CARRY + 1 - 53
    fits = (rule.group == 2 or place + _CARRY - low <= 53) and low > -600 and high < 400
    return place if fits and (not rule.negative_zero or low >= _LEAST) else None


def _squares(q: QTensor, axis: int) -> NDArray[np.int32]:
    """Return e of every line along an axis: its squares add up to less than 2**e."""

    def look() -> NDArray[np.int32]:
        values = batched(decoded(q)).astype(np.float64)
        total = np.square(values).sum(axis)
        found: NDArray[np.int32] = np.frexp(total * (1 + 2.0**-20))[1]  # more than its roundings
        return found

    found: NDArray[np.int32] = kept(q, "squares", look, axis)
    return found


def reaches(x: Chain) -> NDArray[np.int64]:
    """Return e of every row of a: no products with a line of b, some left out, add up to 2**e."""
    right = int(_squares(x.b, -2).max(initial=0))
    found: NDArray[np.int64] = (_squares(x.a, -1).astype(np.int64) + right + 1) // 2
    return found  # Cauchy and Schwarz


def rows_in_double(x: Chain, lscale: int) -> NDArray[np.bool_] | None:
    """Return for which rows of a, [M], float64 holds every sum: `in_double`; None: not asked.

    The least numbers of all rows and the largest meet in few of them.
    """
    fmt = x.a.fmt
    few = fmt.code_dtype.itemsize <= 2 and fmt.bits == 8 * fmt.code_dtype.itemsize
    if not few or x.a.codes.ndim != 2 or not surveyed(x.b.fmt):
        return None

    def look() -> NDArray[np.int64]:
        codes = x.a.codes.view(f"u{fmt.code_dtype.itemsize}")
        low, high = edges(fmt)[:, 2:4].T
        ends = low[codes].min(-1, initial=_NOWHERE), high[codes].max(-1, initial=-_NOWHERE)
        return np.stack(ends).astype(np.int64)

    (lows, highs), (_, low, high) = kept(x.a, "ends of rows", look), survey(x.b).extent
    fits = in_double(x, lows + low - lscale, highs + high - lscale, reaches(x)[0] - lscale)
    return np.broadcast_to(fits, lows.shape)


def in_double(x: Chain, low: Any, high: Any, reach: Any = 1 << 20) -> Any:
    """Whether float64 holds every sum of a chain, and float32, its format, every rounded one.

    All numbers are multiples of one power of two, which rounding keeps, and stay finite. `reach`:
    sums of products lie below 2**reach. Numbers for all rows of a, or one of each.
    """
    if x.out.name != "float32":
        return False
    if x.c is not None:
        bits = np.ascontiguousarray(x.c, np.float32).reshape(-1).view(np.uint32)
        finite, low_c, high_c = extent(bits)
        if not finite:
            return False
        if low_c < high_c:
            low, high = np.minimum(low, low_c), np.maximum(high, high_c)
        reach = np.maximum(reach, high_c) + 1
    depth = x.a.shape[-1] + 1
    # roundings add one part in 2**24 each
    top = np.maximum(np.minimum(high + depth.bit_length(), reach), high) + 1
    return (top - low <= 53) & (top < 128) & (low >= _LEAST) & (depth < 1 << 24)


def _few(b: QTensor, rows: NDArray[np.float64], group: int) -> bool:
    """Whether the kernel of few rows sums such groups of b, whose codes are finite."""
    f = b.fmt
    fits = short_codes(f) and f.emax + f.bias <= 30
    return fits and gemm_exact_rows.covers(group, rows.shape[0] * rows.shape[1], fields(f))


def exact_groups(
    a: QTensor, b: QTensor, c: NDArray[np.float64], rule: Exact, out: Format, place: int | None,
    *, single: bool = False, lines: Any = slice(None),
) -> NDArray[np.float64]:  # fmt: skip
    """Exact sums of groups of products and the accumulator, rounded once a group.

    `place`: float64 holds sums of products cut there; None: whole ones. `single`: as `in_double`.
    `lines`: the rows of a that c has.
    """
    assert rule.group is not None
    f = Arithmetic(out.precision, out.emin, out.emax, 0, False, True, out.max, out.max)
    flavour = Flavour(
        rule.group, rounded=False, exact=False, plain=True,
        signed_zero=rule.negative_zero and place is None, split=place is not None, single=single,
    )  # fmt: skip
    splitter = 0.0 if place is None else 1.5 * 2.0 ** (place + 52)
    if single and not rule.negative_zero:
        c = c + 0.0
    rows = batched(decoded(a))[:, lines].astype(np.float64) * 2.0 ** -lscale_of(rule, out)
    how = codes_of(b) if b.fmt.kind == "float" else None
    if isinstance(how, Fields):  # which vectors of 16-bit lanes read
        how = float_codes(b.fmt)
    if how is not None:
        codes = kept(
            b, "exact codes", lambda: gemm_mac.pack_b_codes(batched(b.codes), flavour.tree),
            rule.group,
        )  # fmt: skip
        if single and _few(b, rows, rule.group):
            return gemm_exact_rows.exact_rows(rows, codes, c, rule.group, fields(b.fmt))
        return gemm_mac.gemm_mac(rows, codes, c, f, f, flavour, how, splitter)
    packed = kept(
        b, "exact", lambda: gemm_mac.pack_b(batched(decoded(b)).astype(np.float64), flavour.tree),
        rule.group,
    )  # fmt: skip
    return gemm_mac.gemm_mac(rows, packed, c, f, f, flavour, None, splitter)


def _groups(x: Chain) -> Work | None:
    rule = x.rule
    joins = rule.accumulator == "joins" and rule.group in (1, 2, 4, 8)
    if not joins or x.a.scale_codes is not None or x.out.inf != "ieee" or not _in_float32(x):
        return None
    found = product_range(x.a, x.b)
    if found is None:
        return None
    lscale = lscale_of(rule, x.out)
    low, high = (edge - lscale for edge in found)
    single = bool(in_double(x, low, high)) or (
        high - low <= 53 and bool(in_double(x, low, high, reaches(x).max(initial=0) - lscale))
    )  # fmt: skip
    lines = None if single else rows_in_double(x, lscale)
    single = single or (lines is not None and bool(lines.all()))
    whole = single or rule.group == 1 or high - low + _CARRY <= 53
    place = None if whole else split_place(rule, low, high)
    if not whole and place is None:
        return None
    parts: list[tuple[Any, bool]] = [(slice(None), single)]
    if lines is not None and lines.any() and not single:
        parts = [(lines, True), (~lines, False)]

    def work() -> NDArray[Any]:
        begin = start(x, np.float64)
        sums = np.empty_like(begin)
        for some, alone in parts:
            sums[:, some] = exact_groups(
                x.a, x.b, begin[:, some], rule, x.out, None if alone else place, single=alone,
                lines=some,
            )  # fmt: skip
        if single:
            return sums.astype(np.float32)
        minus = rule.negative_zero and not whole and x.c is not None and (begin == 0) & (sums == 0)
        if np.any(minus & np.signbit(begin)):
            return exact.EXACT.definition(x).run()
        if rule.osm and not np.isfinite(sums).all():  # infinite sums stay so, the unit's do not
            return exact.EXACT.definition(x).run()
        return round_to(sums, x.out, rule)

    names = "float64, rounded to float32", "float64" if whole else "two float64"
    name = names[0] if single else names[1]
    if len(parts) > 1:
        name = f"{names[0]}, and some rows in {names[1]}"
    return Work(f"exact groups in {name}", work)


def exact_sum(a: QTensor, b: QTensor, c: NDArray[Any] | None) -> NDArray[np.float64]:
    """Return exact sums that float64 holds; plus c, they are rounded to odd."""
    sums = fma(batched(decode(a.codes, a.fmt)).astype(np.float64), b) + 0.0
    if c is None:
        return sums
    with np.errstate(all="ignore"):
        start = c.astype(np.float64)
        total = sums + start
        back = total - sums
        error = (sums - (total - back)) + (start - back)
    return to_odd(total, error)


def _sums(x: Chain) -> Work | None:
    if x.rule != Exact(outputs=x.rule.outputs, nan=x.rule.nan) or not _in_float32(x):
        return None
    if sum_bits(x.a, x.b) > 53:
        return None
    return Work("exact sums in float64", lambda: round_to(exact_sum(x.a, x.b, x.c), x.out, x.rule))


EXACT: Ways = (_groups, _sums)
