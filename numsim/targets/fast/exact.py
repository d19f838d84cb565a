"""Exact sums, rounded once: the kernels, and which chains each covers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode
from numsim.dispatch import float_codes
from numsim.formats import Format
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


def split_place(rule: Exact, low: int, high: int) -> int | None:
    """Return the place at which products are split: sums of both parts are exact in float64.

    Two products are two numbers anyway.
    """
    place = high + _CARRY + 1 - 53
    fits = (rule.group == 2 or place + _CARRY - low <= 53) and low > -600 and high < 400
    return place if fits and not rule.negative_zero else None


def _squares(q: QTensor, axis: int) -> int:
    """Return e: the squares of every line along an axis add up to less than 2**e."""

    def look() -> int:
        values = batched(decoded(q)).astype(np.float64)
        most = float(np.square(values).sum(axis).max(initial=0.0))
        return int(np.frexp(most * (1 + 2.0**-20))[1])  # more than the sum's own roundings

    return int(kept(q, "squares", look, axis))


def reach(x: Chain) -> int:
    """Return e: no products of a line of a and one of b add up to 2**e, some left out or not."""
    both = _squares(x.a, -1) + _squares(x.b, -2)  # Cauchy and Schwarz
    return (both + 1) // 2


def in_double(x: Chain, low: int, high: int, reach: int = 1 << 20) -> bool:
    """Whether float64 holds every sum of a chain, and float32, its format, every rounded one.

    All numbers are multiples of one power of two, which rounding keeps, and stay finite. `reach`:
    sums of products lie below 2**reach.
    """
    if x.out.name != "float32":
        return False
    if x.c is not None:
        bits = np.ascontiguousarray(x.c, np.float32).reshape(-1).view(np.uint32)
        finite, low_c, high_c = extent(bits)
        if not finite:
            return False
        if low_c < high_c:
            low, high = min(low, low_c), max(high, high_c)
        reach = max(reach, high_c) + 1
    depth = x.a.shape[-1] + 1
    # roundings add one part in 2**24 each
    top = max(min(high + depth.bit_length(), reach), high) + 1
    return top - low <= 53 and top < 128 and depth < 1 << 24


def exact_groups(
    a: QTensor, b: QTensor, c: NDArray[np.float64], rule: Exact, out: Format, place: int | None,
    *, single: bool = False,
) -> NDArray[np.float64]:  # fmt: skip
    """Exact sums of groups of products and the accumulator, rounded once a group.

    `place`: float64 holds sums of products cut there; None: whole ones. `single`: as `in_double`.
    """
    assert rule.group is not None
    f = Arithmetic(out.precision, out.emin, out.emax, 0, False, True, out.max, out.max)
    flavour = Flavour(
        rule.group, rounded=False, exact=False, plain=True, signed_zero=rule.negative_zero,
        split=place is not None, single=single,
    )  # fmt: skip
    splitter = 0.0 if place is None else 1.5 * 2.0 ** (place + 52)
    if single and not rule.negative_zero:
        c = c + 0.0
    rows = batched(decoded(a)).astype(np.float64) * 2.0 ** -lscale_of(rule, out)
    how = codes_of(b) if b.fmt.kind == "float" else None
    if isinstance(how, Fields):  # which vectors of 16-bit lanes read
        how = float_codes(b.fmt)
    if how is not None:
        codes = kept(
            b, "exact codes", lambda: gemm_mac.pack_b_codes(batched(b.codes), flavour.tree),
            rule.group,
        )  # fmt: skip
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
    low, high = (edge - lscale_of(rule, x.out) for edge in found)
    single = in_double(x, low, high) or (
        high - low <= 53 and in_double(x, low, high, reach(x) - lscale_of(rule, x.out))
    )  # fmt: skip
    whole = single or rule.group == 1 or high - low + _CARRY <= 53
    place = None if whole else split_place(rule, low, high)
    if not whole and place is None:
        return None

    def work() -> NDArray[Any]:
        begin = start(x, np.float64)
        sums = exact_groups(x.a, x.b, begin, rule, x.out, place, single=single)
        if single:
            return sums.astype(np.float32)
        if rule.osm and not np.isfinite(sums).all():  # infinite sums stay so, the unit's do not
            return exact.EXACT.definition(x).run()
        return round_to(sums, x.out, rule)

    name = "in float64, rounded to float32" if single else "in float64"
    return Work(f"exact groups {name if whole else 'in two float64'}", work)


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
