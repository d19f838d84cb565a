"""How often accumulators overflow: never, where a bound proves it; else counted step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format, get_format
from numsim.models import Rule
from numsim.models.gemm import RAW
from numsim.models.weights import Stored, wide
from numsim.quant import QTensor, Quant, as_quant, quantize
from numsim.targets import MacStats, get_target, matmul
from numsim.targets.rules import about, adds_integers

COUNTED = 1 << 22  # products that are counted one by one, a fraction of a second
_WIDE = 63  # formats of float32's range are stored without a scale


def overflow_rate(
    rule: Rule, x: NDArray[Any], operand: NDArray[Any] | None, stored: Stored | None
) -> float | None:
    """Return the share of accumulation steps that overflowed, saturated or wrapped.

    0 where K times the largest products of the formats stays inside the accumulator, whatever the
    order of the sum. Otherwise the leading rows of `x` (one, or up to `COUNTED` products) are
    counted by `numsim.matmul` with ``stats=True``. None, because counting would need another run:
    ``qk`` and ``pv`` (they have `operand`), tiles of activations, stochastic rounding.

    Parameters
    ----------
    x
        Left operand [..., K].
    operand, stored
        Right operand [..., K, N], or a stored matrix [N, K]; the other is None.
    """
    left, right = as_quant(rule.activations or RAW), as_quant(rule.weights or RAW)
    numbers = None if stored is None else wide(stored)
    other = operand if numbers is None else numbers
    assert other is not None
    if _proven(rule, left, right, x, other):
        return 0.0
    stats = counted(rule, x, stored)
    if stats is None:
        return None
    return (stats.overflows + stats.saturations + stats.wraps) / max(stats.steps, 1)


def counted(rule: Rule, x: NDArray[Any], stored: Stored | None) -> MacStats | None:
    """Return what the leading rows of a product lose; None where counting needs another run."""
    left, right = as_quant(rule.activations or RAW), as_quant(rule.weights or RAW)
    numbers = None if stored is None else wide(stored)
    stochastic = "sr" in (left.rounding, right.rounding)
    if numbers is None or stochastic or isinstance(left.block, tuple):
        return None
    rows = max(1, COUNTED // numbers.size)
    a = _leading(quantize(x.reshape(-1, x.shape[-1]), left), rows)
    if isinstance(stored, QTensor) and rule.weights is not None:  # of a packed checkpoint
        b = stored.T
    else:
        b = quantize(numbers.astype(np.float32), right).T
    return matmul(a, b, target=rule.target, out_format=rule.out_format, stats=True)[1]


def _proven(rule: Rule, left: Quant, right: Quant, x: NDArray[Any], other: NDArray[Any]) -> bool:
    depth = x.shape[-1]
    rules = [r for _, r in get_target(rule.target).rules]
    integers = [r for r in rules if adds_integers(r)]
    if integers and left.fmt.kind == right.fmt.kind == "integer":
        pair = _code_bound(left) * _code_bound(right)
        return all(
            pair * depth <= 2.0 ** (min(r.acc_bits, r.outer_bits) - 1) - 1
            and (r.pair_bits is None or 2 * pair <= 2.0 ** (r.pair_bits - 1) - 1)
            for r in integers
        )
    names: set[str | Format] = {rule.out_format, "float32"}
    for r in rules:
        names.update(about(r).formats(r))
    limit = min(get_format(name).max for name in names) / 2  # room for the roundings of the sum
    values = depth * _amax(x) * _amax(other)  # with scales
    codes = depth * _value_bound(left, x) * _value_bound(right, other)  # without them
    return bool(max(values, codes) <= limit)


def _code_bound(quant: Quant) -> float:
    fmt = quant.fmt
    most = fmt.max - fmt.min if quant.zero_point else max(-fmt.min, fmt.max)  # less a zero point
    return float(most) * 2.0**fmt.bias


def _value_bound(quant: Quant, x: NDArray[Any]) -> float:
    """Return a bound of the decoded codes, times block scales that go into the unit."""
    if quant.granularity == "none" or quant.fmt.emax >= _WIDE:
        return min(_amax(x), float(quant.fmt.max))
    inside = 448.0 if quant.scale_format == "float8_e4m3fn" else 1.0
    return float(max(-quant.fmt.min, quant.fmt.max)) * inside


def _amax(x: NDArray[Any]) -> float:
    """Return twice the largest magnitude: storage rounds up by less than that."""
    return 2 * float(np.max(np.abs(x.astype(np.float32, copy=False)), initial=0.0))


def _leading(q: QTensor, rows: int) -> QTensor:
    """Return the first rows of a matrix with the scales they have in it."""

    def cut(scales: Any) -> Any:
        return scales[:rows] if np.ndim(scales) == 2 and len(scales) > 1 else scales

    return replace(
        q, codes=q.codes[:rows], scale=cut(q.scale), scale_codes=cut(q.scale_codes), packed={}
    )
