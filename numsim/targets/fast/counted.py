"""Which chains the counting vector kernels cover: for each rule, a condition and a call.

Results and counts are those of the rule's definition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format, get_format
from numsim.kernels.counts import align as align_counts
from numsim.kernels.counts import steps as step_counts
from numsim.kernels.jit import over_items
from numsim.kernels.rules import counts, mac
from numsim.kernels.rules.align import Block
from numsim.kernels.rules.exact import extent
from numsim.quant import QTensor
from numsim.quant.kept import kept
from numsim.quant.types import decoded
from numsim.targets.chain import Chain, Ways, Work, item, noted, round_to, shape, start, store
from numsim.targets.fast import fused as fast_fused
from numsim.targets.fast.integer import largest
from numsim.targets.rules import Exact, Mac, fused, two_stage
from numsim.targets.rules.int_sum import check_width, wrapped
from numsim.targets.tensor import (
    as_float64,
    batched,
    planes,
    quantum,
    signed_bits,
    survey,
    surveyed,
)

Rows = Callable[..., None]  # of (item, start, values, first row, last row, counts, extremes)
_COLUMNS = 4  # below, most lanes would be padding
_LEAVES = 64  # products of a tree that are held at once
_INT32, _INT64 = 1 << 31, 1 << 62


def _narrow(x: Chain) -> bool:
    """Whether a chain has too few results for vectors."""
    return 0 in shape(x) or shape(x)[2] < _COLUMNS


def _work(x: Chain, rows: Rows, begin: NDArray[Any], end: Callable[[NDArray[Any]], Any]) -> Work:
    """Return what runs rows from `begin`, and makes results of their values."""

    def work() -> NDArray[Any]:
        values = np.empty_like(begin)
        over_items(
            lambda i, lo, hi: rows(i, begin[i], values[i], lo, hi, *noted(x, i)), *begin.shape[:2]
        )
        result: NDArray[Any] = end(values)
        return result

    return Work("counting lanes", work)


def padded(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Return [..., N] in a type, with zeros appended to a multiple of the kernels' lanes."""
    short = -array.shape[-1] % step_counts.LANES
    wide = np.zeros((*array.shape[:-1], array.shape[-1] + short), dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide[..., : array.shape[-1]] = array
    return wide


def _nearest(f: Format) -> step_counts.Nearest:
    return step_counts.Nearest(2.0 ** (53 - f.precision), float(f.min_normal), float(f.max))


def _mac(x: Chain) -> Work | None:
    if _narrow(x):
        return None
    begin = start(x, np.float64)
    rows: Rows | None
    if x.rule.steps == Mac() and _fits_float32(x.a, x.b, begin):
        rows = _fma(x.a, x.b)
    else:
        rows = _roundings(x.rule, x.a, x.b)
    if rows is None:
        return None
    return _work(x, rows, begin, lambda values: round_to(values, x.out, x.rule))


def _roundings(rule: Mac, a: QTensor, b: QTensor) -> Rows | None:
    """Count roundings to nearest even without flushes; trees of few products."""
    plain = replace(rule.steps, rounding="rne", flush=False, tiny="stored")
    depth = a.shape[-1]
    group = rule.group or depth
    formats = (rule.acc_format, rule.product_format or rule.acc_format)
    ieee = rule.overflow != "saturate" and all(get_format(f).inf == "ieee" for f in formats)
    if rule.steps != plain or not ieee or (rule.order == "tree" and group > _LEAVES):
        return None
    rounded = rule.product_format is not None or not rule.fused
    f, p = (
        _nearest(get_format(name))
        for name in (rule.acc_format, rule.product_format or rule.acc_format)
    )
    left, right = as_float64(batched(decoded(a))), batched(decoded(b))
    if rule.order == "odd_first":
        ks = np.arange(depth)
        ks[: depth // 2 * 2] ^= 1
        left, right = np.ascontiguousarray(left[..., ks]), right[:, ks]
    right = padded(right, np.float64)
    order = mac.ORDERS.index(rule.order)
    return lambda i, c, d, lo, hi, n, e: step_counts.mac(
        left[i], item(right, i), c, d, lo, hi, order, group, rounded, p, f, rule.negative_zero, n, e
    )


def _fits_float32(a: QTensor, b: QTensor, c: NDArray[Any]) -> bool:
    """Whether float32 holds every product, and no sum can be infinite or subnormal."""
    (finite_a, low_a, high_a), (finite_b, low_b, high_b) = _extent(a), _extent(b)
    finite_c, low_c, high_c = _extent_of(c)
    widths = [{"float": q.fmt.precision, "integer": q.fmt.bits}.get(q.fmt.kind, 24)
              for q in (a, b)]  # fmt: skip
    low = min(low_a + low_b, low_c)
    high = max(high_a + high_b + a.shape[-1].bit_length(), high_c)
    return finite_a and finite_b and finite_c and sum(widths) <= 24 and low >= -126 and high <= 124


def _fma(a: QTensor, b: QTensor) -> Rows:
    left, right = batched(decoded(a)).astype(np.float32), padded(batched(decoded(b)), np.float32)
    return lambda i, c, d, lo, hi, n, e: step_counts.fma(
        left[i], item(right, i), c, d, lo, hi, n, e
    )


def _integer(x: Chain) -> Work | None:
    """Count sums that fit 62 bits, in int32 where they fit that."""
    check_width(x)
    rule, (a, b) = x.rule, (x.a, x.b)
    if _narrow(x) or rule.overflow == "raise":  # the definition says where
        return None
    begin = start(x, np.int64)
    bound = largest(a) * largest(b)
    total = bound * max(a.shape[-1], 2) + max(int(begin.max()), -int(begin.min()))
    odd = rule.pair_bits is not None and rule.group % 2
    if odd or total >= _INT64 or rule.acc_bits > 62:
        return None
    word, most = (np.int32, _INT32 - 1) if total < _INT32 else (np.int64, _INT64 - 1)
    high = min((1 << (rule.acc_bits - 1)) - 1, most)
    pair = min((1 << (rule.pair_bits - 1)) - 1, most) if rule.pair_bits else 0
    left, right = batched(a.codes).astype(word), padded(batched(b.codes), word)
    saturate = rule.overflow == "saturate"

    def rows(
        i: int, c: NDArray[Any], d: NDArray[Any], lo: int, hi: int, n: NDArray[Any], e: NDArray[Any]
    ) -> None:
        step_counts.integer(
            left[i], item(right, i), c, d, lo, hi, -high - 1, high, saturate, rule.group, pair, n, e
        )

    return _work(x, rows, begin, lambda values: wrapped(values, rule.acc_bits))


def _extent(q: QTensor) -> tuple[bool, int, int]:
    """Return whether values are finite; they are multiples of 2**low and below 2**high."""
    if surveyed(q.fmt):
        return survey(q).extent
    found: tuple[bool, int, int] = kept(q, "extent", lambda: _extent_of(decoded(q)))
    return found


def _extent_of(values: NDArray[Any]) -> tuple[bool, int, int]:
    """`_extent` of an array of values that float32 holds; (0, 0) without any but zeros."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return extent(bits.reshape(-1))


def _exact(x: Chain) -> Work | None:
    """Count sums of which float64 holds every part."""
    rule, a, b, out = x.rule, x.a, x.b, x.out
    wide = np.float64 in (a.fmt.value_dtype, b.fmt.value_dtype)
    plain = Exact(rule.group, outputs=rule.outputs, nan=rule.nan)
    if _narrow(x) or rule != plain or wide:
        return None
    begin, step = start(x, np.float64), quantum(a.fmt) * quantum(b.fmt)
    (finite_a, low_a, high_a), (finite_b, low_b, high_b) = _extent(a), _extent(b)
    low, high = low_a + low_b, high_a + high_b + a.shape[-1].bit_length()
    finite_c, low_c, high_c = _extent_of(begin)
    if low_c < high_c:
        low, high = min(low, low_c), max(high, high_c) + 1
    depth = a.shape[-1]
    group = min(rule.group or depth, depth)
    if group < depth:  # sums of sums that were rounded, and are finite
        high += 2  # each rounding adds one part in 2**precision at most
        if depth // group >= 1 << out.precision or high > out.emax:
            return None
    if not (finite_a and finite_b and finite_c) or high - low > 53:
        return None
    left, right = as_float64(batched(decoded(a))), padded(batched(decoded(b)), np.float64)

    def count(
        i: int, c: NDArray[Any], d: NDArray[Any], lo: int, hi: int, n: NDArray[Any], e: NDArray[Any]
    ) -> None:
        rows, columns = left[i], item(right, i)
        d[lo:hi] = c[lo:hi]
        for k in range(0, depth, group):
            before = d[lo:hi].copy()
            part = np.ascontiguousarray(rows[:, k : k + group])
            step_counts.exact(part, columns[k : k + group], d, d, lo, hi, e)
            after = d[lo:hi] + 0.0
            old, new = (round_to(x + 0.0, out) for x in (before, after))
            code = np.dtype(f"u{new.dtype.itemsize}")
            same = (after != before) & (old.view(code) == new.view(code))
            d[lo:hi] = new
            n[lo:hi, counts.STEPS] += d.shape[1]
            n[lo:hi, counts.SWAMPED] += same.sum(1)
            n[lo:hi, counts.OVERFLOWS] += np.isinf(d[lo:hi]).sum(1)
        ends = (Fraction(float(v)) / step for v in (e[lo:hi, 0].min(), e[lo:hi, 1].max()))
        n[lo, counts.BITS] = signed_bits(*ends)

    return _work(x, count, begin, lambda values: round_to(values, out, rule))


def _fused(x: Chain) -> Work | None:
    rule = x.rule
    if rule.align == "floor" or rule.rounding is not None:
        return None
    work = _aligned(x, fused.block_of(x.rule, x.a.fmt, x.b.fmt, x.out))
    if work is None or rule.accumulator == "joins":
        return work
    counting = work

    def both() -> NDArray[Any]:
        d = counting.run()  # an infinite lane stops; the unit may add the opposite infinity
        return d if np.isfinite(d).all() else fast_fused.uncounted(x)

    return counting._replace(run=both)


def _two_stage(x: Chain) -> Work | None:
    if x.rule.align_bits > x.rule.sum_bits:
        return None
    return _aligned(x, two_stage.block_of(x.rule, x.a.fmt, x.b.fmt))


def _aligned(x: Chain, block: Block) -> Work | None:
    """Finite operands whose significands' products, and cut products, fit int32."""
    a, b = x.a, x.b
    if _narrow(x) or block.align_bits > 25 or a.fmt.precision + b.fmt.precision > 24:
        return None
    left = planes(a, False)
    sig, exp, cls = (batched_columns(p) for p in planes(b, True))
    if left[2].any() or cls.any():
        return None
    high = sum(int(q[1].max(where=q[0] != 0, initial=-1000)) for q in (left, (sig, exp)))
    if block.product_limit and high + 1 >= block.product_limit:
        return None
    if not block.zero_products:
        exp = np.where(sig == 0, np.int32(align_counts.NO_TERM), exp)
    sig, exp = padded(sig, np.int32), padded(exp, np.int32)
    narrow = block.group << (block.align_bits + 2) <= _INT32
    word = np.int32 if narrow else np.int64

    def count(
        i: int, c: NDArray[Any], d: NDArray[Any], lo: int, hi: int, n: NDArray[Any], e: NDArray[Any]
    ) -> None:
        totals = np.empty((2, step_counts.TILE), word)
        align_counts.fused(
            left[0][i], left[1][i], item(sig, i), item(exp, i), c, d, totals, lo, hi, block, n, e
        )

    return _work(
        x, count, start(x, np.float64), lambda values: store(values, x.out, x.rule)
    )  # fmt: skip


def batched_columns(plane: NDArray[Any]) -> NDArray[Any]:
    """[batch, N, K] -> [batch, K, N]."""
    return np.ascontiguousarray(plane.transpose(0, 2, 1))


MAC: Ways = (_mac,)
EXACT: Ways = (_exact,)
INTEGER: Ways = (_integer,)
FUSED: Ways = (_fused,)
TWO_STAGE: Ways = (_two_stage,)
