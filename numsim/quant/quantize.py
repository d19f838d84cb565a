"""quantize: choose scales, divide, encode."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.convert import decode, encode
from numsim.errors import NumsimError
from numsim.formats import Format
from numsim.quant.types import QTensor, Quant, as_quant

_TINY = np.float32(2.0**-149)
_WIDE = 63  # from this emax on, products of two maxima leave the range of float32


def quantize(x: ArrayLike, quant: str | Format | Quant, *, axis: int = -1) -> QTensor:
    """Store a tensor as codes and scales.

    The scale is fp32(amax / max); it is 1 where amax is 0, and for formats of float32's range
    (bfloat16, tfloat32), whose largest products no accumulator holds. A code is
    ``encode(fp32(x / scale))``: the quotient is rounded to float32 first, as software on the
    hardware does (float64 input: to float64).

    Parameters
    ----------
    x
        Finite float or integer array, any shape.
    quant
        A `Quant`, or a format name for its default.
    axis
        For per_channel and per_token: the axis that shares a scale (the K axis of a product).

    Returns
    -------
    QTensor
        Codes of the shape of `x`; scale of shape () or of `x` with length 1 along `axis`.

    Raises
    ------
    NumsimError
        For NaN or Inf under a scale (with the count and the first index), or a bad axis.

    Source
    ------
    Dynamic amax scaling as in FP8 and INT8 inference stacks; published.md-style fake quantisation
    of the tiny-llama figures uses the same rule.

    Examples
    --------
    >>> q = quantize([[1.0, -2.0], [0.5, 0.25]], Quant("int8", "per_token"))
    >>> q.codes
    array([[  64, -127],
           [ 127,   64]], dtype=int8)
    >>> q.scale.shape
    (2, 1)
    """
    rule = as_quant(quant)
    values = np.asarray(x)
    if values.dtype != np.float64:
        values = _as_float32(values)
    if rule.granularity == "none":
        return QTensor(_codes(values, rule), rule.fmt, np.ones((), np.float32), rule)
    scale = _amax_scale(values, rule, axis)
    with np.errstate(over="ignore", under="ignore"):
        quotient = values / (scale if values.dtype == np.float32 else scale.astype(np.float64))
    return QTensor(_codes(quotient, rule), rule.fmt, scale, rule)


def storage_losses(
    x: ArrayLike, quant: str | Format | Quant, *, axis: int = -1
) -> tuple[float, float]:
    """Return the shares of values that storage clips and that it turns to zero.

    Saturated: beyond the format's range by at least half of its last step. Underflow: not zero,
    stored as zero. Parameters and errors as `quantize`.

    Raises
    ------
    NumsimError
        As `quantize`.

    Examples
    --------
    >>> storage_losses([0.01, 0.5, 9.0, -8.5], "q3.4")
    (0.5, 0.25)
    """
    q = quantize(x, quant, axis=axis)
    values = np.asarray(x, np.float64)
    if not values.size:
        return 0.0, 0.0
    scale = np.asarray(q.scale, np.float64)
    steps = np.unique(np.abs(q.fmt.values()))[-3:] if q.fmt.bits <= 8 else np.array([q.fmt.max])
    steps = steps[np.isfinite(steps)]
    half = (steps[-1] - steps[-2]) / 2 if len(steps) > 1 else 0.0
    clipped = (values >= (q.fmt.max + half) * scale) | (values <= (q.fmt.min - half) * scale)
    lost = (values != 0) & (decode(q.codes, q.fmt) == 0)
    return float(clipped.mean()), float(lost.mean())


def _as_float32(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2:
        return values.astype(np.float64)
    if values.dtype.kind in "OUSMmc":
        raise NumsimError(f"quantize: inputs are real numbers; got {values.dtype}")
    return values.astype(np.float32)


def _codes(values: NDArray[Any], rule: Quant) -> NDArray[Any]:
    return encode(values, rule.fmt, rounding=rule.rounding, overflow=rule.overflow)  # type: ignore[arg-type]


def _amax_scale(values: NDArray[Any], rule: Quant, axis: int) -> NDArray[np.float32]:
    if rule.granularity == "per_tensor":
        amax = np.max(np.abs(values), initial=0.0)
    else:
        if not -values.ndim <= axis < values.ndim:
            raise NumsimError(f"quantize: axis {axis} is not an axis of shape {values.shape}")
        amax = np.max(np.abs(values), axis=axis, keepdims=True, initial=0.0)
    if not np.isfinite(amax).all():
        bad = ~np.isfinite(values)
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise NumsimError(
            f"quantize: a scale needs finite values; {int(bad.sum())} of {values.size} are not, "
            f"the first at index {index}; clip them, or use granularity='none'"
        )
    if rule.fmt.emax >= _WIDE:
        return np.ones(np.shape(amax), np.float32)
    limit = rule.fmt.max
    with np.errstate(under="ignore", over="ignore"):
        scale = (np.asarray(amax, np.float64) / limit).astype(np.float32)
    scale = np.where(np.asarray(amax) == 0, np.float32(1.0), np.maximum(scale, _TINY))
    return np.asarray(scale, np.float32)
