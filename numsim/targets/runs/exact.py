"""Exact sums, rounded once: the kernels, and which chains each covers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode
from numsim.formats import Format
from numsim.kernels.gemm import mac as gemm_mac
from numsim.kernels.ir.mac import Flavour
from numsim.kernels.jit import over_items
from numsim.kernels.rules import exact as exact_kernel
from numsim.kernels.rules.exact import extent
from numsim.kernels.rules.mac import Arithmetic
from numsim.quant import QTensor
from numsim.quant.odd import to_odd
from numsim.quant.types import decoded
from numsim.targets.runs.chain import (
    DTYPES,
    Chain,
    Ways,
    Work,
    item,
    round_to,
    shape,
)
from numsim.targets.runs.mac import fma
from numsim.targets.runs.tensor import (
    as_float64,
    batched,
    kept,
    survey,
    surveyed,
)
from numsim.targets.types import Exact


def sum_bits(a: QTensor, b: QTensor) -> int:
    """Return bits in which every partial sum over K of products fits, 99 if not all are finite."""

    def look(q: QTensor) -> tuple[bool, int, int]:
        if surveyed(q.fmt):
            return survey(q).extent
        values = np.ascontiguousarray(decoded(q), np.float32).reshape(-1)
        found: tuple[bool, int, int] = kept(q, "extent", lambda: extent(values.view(np.uint32)))
        return found

    (finite_a, low_a, high_a), (finite_b, low_b, high_b) = (look(q) for q in (a, b))
    if not (finite_a and finite_b):
        return 99
    return int(high_a + high_b - low_a - low_b + a.shape[-1].bit_length())


def _in_float32(x: Chain) -> bool:
    """Whether float32 holds the values of both operands."""
    return np.float64 not in (x.a.fmt.value_dtype, x.b.fmt.value_dtype)


def exact_groups_apply(rule: Exact, bits: int, out: Format) -> bool:
    """Whether sums of groups are exact in float64, and rounded to an IEEE format."""
    return rule.group in (1, 2, 4, 8) and bits <= 53 and out.inf == "ieee"


def exact_groups(
    a: QTensor, b: QTensor, c: NDArray[np.float64], rule: Exact, out: Format
) -> NDArray[np.float64]:
    """Exact sums of groups of products and the accumulator, rounded once a group."""
    assert rule.group is not None
    f = Arithmetic(out.precision, out.emin, out.emax, 0, False, True, out.max, out.max)
    flavour = Flavour(
        rule.group, rounded=False, exact=False, plain=True, signed_zero=rule.negative_zero
    )
    key = f"exact {rule.group}"
    packed = kept(
        b, key, lambda: gemm_mac.pack_b(batched(decoded(b)).astype(np.float64), flavour.tree)
    )
    rows = batched(decoded(a)).astype(np.float64)
    return gemm_mac.gemm_mac(rows, packed, c, f, f, flavour)


def _groups(x: Chain) -> Work | None:
    if not (_in_float32(x) and exact_groups_apply(x.rule, sum_bits(x.a, x.b), x.out)):
        return None

    def work() -> NDArray[Any]:
        begin = np.zeros(shape(x)) if x.c is None else as_float64(x.c)
        return round_to(exact_groups(x.a, x.b, begin, x.rule, x.out), x.out)

    return Work("exact groups in float64", work)


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
    if x.rule.group is not None or x.rule.negative_zero or not _in_float32(x):
        return None
    if sum_bits(x.a, x.b) > 53:
        return None
    return Work("exact sums in float64", lambda: round_to(exact_sum(x.a, x.b, x.c), x.out))


def _halved(left: NDArray[Any], right: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return float32 operands of four times the depth whose products add up to the same sum."""

    def parts(x: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        high = x.astype(np.float32)  # the rest has at most 32 - 24 bits, so float32 holds it
        return high, (x - high).astype(np.float32)

    (ah, al), (bh, bl) = parts(left), parts(right)
    return np.concatenate([ah, ah, al, al], -1), np.concatenate([bh, bl, bh, bl], -2)


def _exactly(
    left: NDArray[Any], right: NDArray[Any], c: NDArray[Any] | None, out: Format, rule: Exact
) -> NDArray[Any]:
    if np.float64 in (left.dtype, right.dtype):  # integers that float32 does not hold
        left, right = _halved(left, right)
    batch, m, _ = left.shape
    n = right.shape[-1]
    codes = np.empty((batch, m, n), np.uint32)
    start = np.zeros((batch, m, n), np.float32) if c is None else c.astype(np.float32)
    rows = np.ascontiguousarray(left).view(np.uint32)
    columns = np.ascontiguousarray(right.transpose(0, 2, 1)).view(np.uint32)
    begin = np.ascontiguousarray(start).view(np.uint32)
    over_items(
        lambda i, lo, hi: exact_kernel.matmul(
            rows[i], item(columns, i), begin[i], codes[i], lo, hi, out.params, rule.negative_zero
        ),
        batch, m,
    )  # fmt: skip
    return codes.astype(out.code_dtype).view(DTYPES[out.name])


def _exact(x: Chain) -> Work:
    """One rounding of the exact sum, to the output format (with groups: of each group's)."""

    def work() -> NDArray[Any]:
        left, right, c = batched(decoded(x.a)), batched(decoded(x.b)), x.c
        depth = left.shape[-1]
        step = x.rule.group or depth
        for k in range(0, depth, step):
            part = slice(k, k + step)
            c = _exactly(left[..., part], right[:, part], c, x.out, x.rule)
        assert c is not None
        return c

    return Work("scalar", work)


EXACT: Ways = (_groups, _sums, _exact)
