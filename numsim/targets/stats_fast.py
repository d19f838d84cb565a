"""Which cases the vector counting kernels cover: for each rule, a condition and a call.

Results and counts are those of the scalar kernels, `kernels.counts.stats` and `.align`.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format, get_format
from numsim.kernels.counts import align_vector as stats_align_vector
from numsim.kernels.counts import stats as kernels
from numsim.kernels.counts import stats_vector
from numsim.kernels.rules.exact import extent
from numsim.quant import QTensor
from numsim.quant.types import decoded
from numsim.targets.runs.chain import round_to
from numsim.targets.runs.fused import block_of
from numsim.targets.runs.integer import largest
from numsim.targets.runs.mac import ORDER
from numsim.targets.runs.tensor import as_float64, batched, kept, planes, survey, surveyed
from numsim.targets.types import Exact, Fused, IntSum, Mac, Rule, TwoStage

Work = Callable[..., None]
_COLUMNS = 4  # below, most lanes would be padding
_LEAVES = 64  # products of a tree that are held at once
_INT32, _INT64 = 1 << 31, 1 << 62


def work(
    rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any], out: Format, step: Fraction
) -> Work | None:
    """Return what counts rows of a chain from c [batch, M, N], None where only scalars do.

    `step`: the quantum of products. The result is called with (item, start, values, first row,
    last row, counts, extremes).
    """
    if not c.size or c.shape[-1] < _COLUMNS:
        return None
    if isinstance(rule, Mac):
        return _fma(a, b, c) if rule.steps == Mac() and _fits_float32(a, b, c) else _mac(rule, a, b)
    if isinstance(rule, IntSum):
        return _integer(rule, a, b, c)
    if isinstance(rule, Exact):
        return _exact(rule, a, b, c, out, step)
    if isinstance(rule, Fused | TwoStage):
        return _fused(rule, a, b, out)
    return None


def padded(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Return [..., N] in a type, with zeros appended to a multiple of the kernels' lanes."""
    short = -array.shape[-1] % stats_vector.LANES
    wide = np.zeros((*array.shape[:-1], array.shape[-1] + short), dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide[..., : array.shape[-1]] = array
    return wide


def _item(array: NDArray[Any], i: int) -> NDArray[Any]:
    item: NDArray[Any] = array[min(i, len(array) - 1)]
    return item


def _nearest(f: Format) -> stats_vector.Nearest:
    return stats_vector.Nearest(2.0 ** (53 - f.precision), float(f.min_normal), float(f.max))


def _mac(rule: Mac, a: QTensor, b: QTensor) -> Work | None:
    """Count roundings to nearest even without flushes; trees of few products."""
    plain = Mac(rule.acc_format, rule.product_format, rule.fused, order=rule.order,
                group=rule.group, overflow=rule.overflow, negative_zero=rule.negative_zero,
    )  # fmt: skip
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
    order = ORDER[rule.order]
    return lambda i, c, d, lo, hi, n, e: stats_vector.mac(
        left[i], _item(right, i), c, d, lo, hi, order, group, rounded, p, f, n, e
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


def _fma(a: QTensor, b: QTensor, c: NDArray[Any]) -> Work:
    left, right = batched(decoded(a)).astype(np.float32), padded(batched(decoded(b)), np.float32)
    return lambda i, c, d, lo, hi, n, e: stats_vector.fma(
        left[i], _item(right, i), c, d, lo, hi, n, e
    )


def _integer(rule: IntSum, a: QTensor, b: QTensor, c: NDArray[Any]) -> Work | None:
    """Count sums that fit 62 bits, in int32 where they fit that."""
    bound = largest(a) * largest(b)
    total = bound * max(a.shape[-1], 2) + max(int(c.max()), -int(c.min()))
    plain = IntSum(rule.acc_bits, rule.overflow, rule.group, rule.pair_bits, rule.outer_bits)
    odd = rule.pair_bits is not None and rule.group % 2
    if rule != plain or odd or total >= _INT64 or rule.acc_bits > 62:
        return None
    word, most = (np.int32, _INT32 - 1) if total < _INT32 else (np.int64, _INT64 - 1)
    high = min((1 << (rule.acc_bits - 1)) - 1, most)
    pair = min((1 << (rule.pair_bits - 1)) - 1, most) if rule.pair_bits else 0
    left, right = batched(a.codes).astype(word), padded(batched(b.codes), word)
    saturate = rule.overflow == "saturate"
    return lambda i, c, d, lo, hi, n, e: stats_vector.integer(
        left[i], _item(right, i), c, d, lo, hi, -high - 1, high, saturate, rule.group, pair, n, e
    )


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


def _exact(
    rule: Exact, a: QTensor, b: QTensor, c: NDArray[Any], out: Format, step: Fraction
) -> Work | None:
    """Count sums of which float64 holds every part."""
    if rule.negative_zero or np.float64 in (a.fmt.value_dtype, b.fmt.value_dtype):
        return None
    (finite_a, low_a, high_a), (finite_b, low_b, high_b) = _extent(a), _extent(b)
    low, high = low_a + low_b, high_a + high_b + a.shape[-1].bit_length()
    finite_c, low_c, high_c = _extent_of(c)
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
        rows, columns = left[i], _item(right, i)
        d[lo:hi] = c[lo:hi]
        for k in range(0, depth, group):
            before = d[lo:hi].copy()
            part = np.ascontiguousarray(rows[:, k : k + group])
            stats_vector.exact(part, columns[k : k + group], d, d, lo, hi, e)
            after = d[lo:hi] + 0.0
            old, new = (round_to(x + 0.0, out) for x in (before, after))
            code = np.dtype(f"u{new.dtype.itemsize}")
            same = (after != before) & (old.view(code) == new.view(code))
            d[lo:hi] = new
            n[lo:hi, kernels.STEPS] += d.shape[1]
            n[lo:hi, kernels.SWAMPED] += same.sum(1)
            n[lo:hi, kernels.OVERFLOWS] += np.isinf(d[lo:hi]).sum(1)
        ends = (Fraction(float(v)) / step for v in (e[lo:hi, 0].min(), e[lo:hi, 1].max()))
        n[lo, kernels.BITS] = max(signed_width(v.__floor__()) for v in ends)

    return count


def signed_width(value: int) -> int:
    """Return the bits of the narrowest two's-complement register for an integer.

    Examples
    --------
    >>> signed_width(127), signed_width(-128), signed_width(0)
    (8, 8, 1)
    """
    return (value if value >= 0 else ~value).bit_length() + 1


def _fused(rule: Fused | TwoStage, a: QTensor, b: QTensor, out: Format) -> Work | None:
    """Finite operands whose significands' products, and cut products, fit int32."""
    block = block_of(rule, a.fmt, b.fmt, out)
    if block.align_bits > 25 or a.fmt.precision + b.fmt.precision > 24:
        return None
    if isinstance(rule, TwoStage):
        plain: Rule = TwoStage(
            rule.group, rule.align_bits, rule.sum_bits, rule.streams, rule.zero_products
        )
        covered = rule.align_bits <= rule.sum_bits
    else:
        plain = Fused(rule.group, rule.align_bits, rule.keep_bits, rule.accumulator,
                      rule.zero_products, rule.min_exponent)  # fmt: skip
        covered = rule.accumulator != "halves" or rule.min_exponent is None
    left = planes(a, False)
    sig, exp, cls = (batched_columns(p) for p in planes(b, True))
    if rule != plain or not covered or left[2].any() or cls.any():
        return None
    high = sum(int(x[1].max(where=x[0] != 0, initial=-1000)) for x in (left, (sig, exp)))
    if block.product_limit and high + 1 >= block.product_limit:
        return None
    if not block.zero_products:
        exp = np.where(sig == 0, np.int32(stats_align_vector.NO_TERM), exp)
    sig, exp = padded(sig, np.int32), padded(exp, np.int32)
    narrow = block.group << (block.align_bits + 2) <= _INT32
    word = np.int32 if narrow else np.int64

    def count(
        i: int, c: NDArray[Any], d: NDArray[Any], lo: int, hi: int, n: NDArray[Any], e: NDArray[Any]
    ) -> None:
        totals = np.empty((2, stats_vector.TILE), word)
        stats_align_vector.fused(
            left[0][i], left[1][i], _item(sig, i), _item(exp, i), c, d, totals, lo, hi, block, n, e
        )

    return count


def batched_columns(plane: NDArray[Any]) -> NDArray[Any]:
    """[batch, N, K] -> [batch, K, N]."""
    return np.ascontiguousarray(plane.transpose(0, 2, 1))
