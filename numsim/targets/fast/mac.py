"""Multiply-adds with a rounding at every step: the kernels, and which chains each covers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode
from numsim.dispatch import float_codes
from numsim.formats import Format
from numsim.kernels.gemm import fma as gemm_fma
from numsim.kernels.gemm import mac as gemm_mac
from numsim.kernels.gemm import two_chains as gemm_two_chains
from numsim.kernels.gemm import values as gemm_values
from numsim.kernels.ir.mac import Flavour
from numsim.kernels.rules.mac import Arithmetic
from numsim.quant import QTensor
from numsim.quant.kept import kept
from numsim.quant.types import decoded
from numsim.targets.chain import (
    Chain,
    Ways,
    Work,
    one_nan,
    round_to,
    start,
)
from numsim.targets.rules import Mac
from numsim.targets.rules.mac import arithmetics, flushed, normals
from numsim.targets.tensor import (
    as_float64,
    batched,
    coded,
    codes_of,
    in_halves,
    survey,
)

_NO_TINY = 2.0**-103  # numbers of 24 bits from here on are multiples of float32's least normal


def fma(a: NDArray[Any], b: QTensor, c: NDArray[Any] | None = None) -> NDArray[Any]:
    """Chains of fused multiply-adds in the type of a [batch, M, K], float32 or float64."""
    how = codes_of(b)
    if how is not None:
        codes = kept(
            b, "code panels", lambda: gemm_values.pack_b(batched(b.codes), a.dtype), a.dtype
        )
        return gemm_values.gemm_values(a, codes, how, c=c, in_halves=in_halves(b.fmt))
    values = kept(
        b,
        "value panels",
        lambda: gemm_fma.pack_b(batched(decode(b.codes, b.fmt)).astype(a.dtype)),
        a.dtype,
    )
    return gemm_fma.gemm_fma(a, values, c=c)


_FUSED_CHAIN = Mac()


def _fma_chain(x: Chain) -> Work | None:
    if x.rule.steps != _FUSED_CHAIN:
        return None

    def work() -> NDArray[Any]:
        begin = None if x.c is None else x.c.astype(np.float32)
        sums = fma(batched(decoded(x.a)), x.b, begin)
        return sums if x.out.name == "float32" else round_to(sums, x.out)

    return Work("chains of fused multiply-adds", work)


def two_chains_apply(
    a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, rule: Mac
) -> bool:  # fmt: skip
    """Whether two chains of float32 never meet a number below the normal ones, nor flush any.

    Sums are multiples of the least product's lowest bit, rounded or not.
    """
    group = rule.group or 0
    plain = Mac(order="two_chains", group=group, flush=True, tiny="unbounded")
    if replace(rule.steps, flush_inputs=True) != plain:
        return False
    if group < 2 or group % 2 or out.name != "float32" or not (coded(a, 16) and coded(b, 16)):
        return False
    if float_codes(b.fmt) is None or a.fmt.value_dtype != np.float32:
        return False
    finite_a, low_a, _ = survey(taken(a, rule)).extent
    finite_b, low_b, _ = survey(taken(b, rule)).extent
    if not (finite_a and finite_b and low_a + low_b >= -126):
        return False
    return c is None or bool(((c == 0) | (np.abs(c) >= _NO_TINY)).all())


def normal(q: QTensor) -> QTensor:
    """Return a float tensor with zeros for subnormal numbers, made once."""

    def make() -> QTensor:
        f = q.fmt
        field = ((1 << (f.bits - f.signed)) - 1) >> (f.precision - 1) << (f.precision - 1)
        some = q.codes & field != 0
        if f.nan == "minus_zero":
            some |= q.codes == 1 << (f.bits - 1)
        return QTensor(np.where(some, q.codes, q.codes.dtype.type(0)), f)

    found: QTensor = kept(q, "normal", make)
    return found


def taken(q: QTensor, rule: Mac) -> QTensor:
    """Return an operand as a unit that flushes takes it."""
    return normal(q) if rule.flush_inputs else q


def two_chains(a: QTensor, b: QTensor, c: NDArray[Any] | None, rule: Mac) -> NDArray[np.float32]:
    """Even and odd k of a group in chains of their own."""
    assert rule.group is not None
    group, right, how = rule.group, taken(b, rule), float_codes(b.fmt)
    assert how is not None
    packed = kept(
        right, "two chains", lambda: gemm_two_chains.pack_b(batched(right.codes), group), group
    )
    rows = batched(decoded(taken(a, rule)))
    return gemm_two_chains.gemm_two_chains(rows, packed, how, group, c=c)


def _two_chains(x: Chain) -> Work | None:
    if not two_chains_apply(x.a, x.b, x.c, x.out, x.rule):
        return None
    return Work("two chains of float32", lambda: one_nan(two_chains(x.a, x.b, x.c, x.rule), x.rule))


def mac_flavour(a: Format, b: Format, rule: Mac, p: Arithmetic, f: Arithmetic) -> Flavour | None:
    """Return the vector kernel for a rule: chains, or trees of 2 or 4 rounded products."""
    rounded = not rule.fused or rule.product_format is not None
    tree = rule.group if rule.order == "tree" and rounded else 1
    chain = rule.order in ("sequential", "odd_first")
    if rule.rounding != "rne" or not (chain or tree in (2, 4)):
        return None
    if not (ieee(f) and (ieee(p) or not rounded)):
        return None
    low, high = f.emin - f.precision + 1, f.emax + 1
    if rounded:
        low, high = min(low, p.emin - p.precision + 1), max(high, p.emax + 1)
    elif a.kind == b.kind == "float":
        low = min(low, a.emin - a.precision + b.emin - b.precision + 2)
        high = max(high, a.emax + b.emax + 2)
    else:
        high = low + 99
    keeps = rule.negative_zero or rule.order != "tree"
    return Flavour(tree or 1, rounded, exact=high + 1 - low <= 53, signed_zero=keeps)


def ieee(f: Arithmetic) -> bool:
    """Whether a format is IEEE-like: its last binade is full and infinities follow."""
    return f.beyond == 0 and f.minus_zero and f.top == (2 - 2.0 ** (1 - f.precision)) * 2.0**f.emax


def mac(
    a: QTensor, b: QTensor, c: NDArray[np.float64], rule: Mac, p: Arithmetic, f: Arithmetic,
    flavour: Flavour,
) -> NDArray[np.float64]:  # fmt: skip
    """Multiply-adds that round to nearest even, from c; values as float64."""
    odd_first = rule.order == "odd_first"

    def values(q: QTensor, axis: int) -> NDArray[np.float64]:
        x = as_float64(batched(decoded(q)))
        if odd_first:
            x = gemm_mac.padded(x, axis, 2)
            x = np.take(x, np.arange(x.shape[axis]) ^ 1, axis)
        return normals(x, q.fmt) if rule.flush and rule.flush_inputs else x

    packed = kept(
        b, "mac", lambda: gemm_mac.pack_b(values(b, 1), flavour.tree), flavour.tree, odd_first,
        rule.flush and rule.flush_inputs,
    )  # fmt: skip
    begin = flushed(c, 2.0**f.emin) if f.flush else c
    return gemm_mac.gemm_mac(values(a, 2), packed, begin, p, f, flavour)


def _steps(x: Chain) -> Work | None:
    p, f = arithmetics(x.rule)
    flavour = mac_flavour(x.a.fmt, x.b.fmt, x.rule, p, f)
    if flavour is None:
        return None
    chosen = flavour

    def work() -> NDArray[Any]:
        first = start(x, np.float64)
        return round_to(mac(x.a, x.b, first, x.rule, p, f, chosen), x.out, x.rule)

    return Work("rounded steps in float64", work)


MAC: Ways = (_fma_chain, _two_chains, _steps)
