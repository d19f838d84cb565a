"""quantize: choose scales, divide, encode."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.convert import decode, encode
from numsim.errors import NumsimError
from numsim.formats import Format, get_format
from numsim.quant.scales import (
    block_amax,
    block_shape,
    clipped_amax,
    scales_from_amax,
    two_level_scales,
)  # fmt: skip
from numsim.quant.table import as_quant
from numsim.quant.types import POW2_FORMATS, POW2_RULES, QTensor, Quant


def quantize(
    x: ArrayLike,
    quant: str | Format | Quant,
    *,
    axis: int = -1,
    seed: int = 0,
    offset: int = 0,
    random: NDArray[Any] | None = None,
) -> QTensor:
    """Store a tensor as codes and scales.

    The float32 scale is fp32(amax / max); it is 1 where amax is 0, and for formats of float32's
    range (bfloat16, tfloat32), whose largest products no accumulator holds. A code is
    ``encode(fp32(x / scale))``: the quotient is rounded to float32 first, as software on the
    hardware does (float64 input: to float64). Division by a power of two is exact.

    Parameters
    ----------
    x
        Finite float or integer array, any shape.
    quant
        A `Quant`, a named one, or a format name for its default.
    axis
        The axis along which values share a scale (the K axis of a product); not used by
        per_tensor and tiles.
    seed, offset
        Of stochastic rounding, as in `numsim.encode`: give every tensor its own.
    random
        Random integers of stochastic rounding in place of that stream, as in `numsim.encode`.

    Returns
    -------
    QTensor
        Codes of the shape of `x`; scale of shape (), of `x` with length 1 along `axis`, or one
        entry a block.

    Raises
    ------
    NumsimError
        For NaN or Inf under a scale (with the count and the first index), or a bad axis.

    Source
    ------
    Dynamic amax scaling of FP8 and INT8 inference stacks; OCP MX 1.0 section 6.3 for block scales.

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
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise NumsimError("quantize: a masked array would lose its mask; pass x.filled(value)")
    try:
        values = np.asarray(x)
    except ValueError as error:
        raise NumsimError(f"quantize: inputs are rectangular arrays of numbers; {error}") from None
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if not isinstance(axis, int | np.integer):
        raise NumsimError(f"quantize: axis is an integer; got {axis!r}")
    if values.dtype != np.float64:
        values = _as_float32(values)
    if rule.granularity == "none":
        codes = _codes(values, rule, seed, offset, random)
        return QTensor(codes, rule.fmt, np.ones((), np.float32), rule)
    if rule.granularity != "per_tensor" and not -values.ndim <= axis < values.ndim:
        raise NumsimError(f"quantize: axis {axis} is not an axis of shape {values.shape}")
    sizes = None
    if rule.granularity == "per_tensor":
        amax = np.max(np.abs(values), initial=0.0)
    elif rule.granularity == "per_block":
        sizes = block_shape(rule, values.shape, axis)
        amax = block_amax(values, sizes)
    else:
        amax = np.max(np.abs(values), axis=axis, keepdims=True, initial=0.0)
    _check_finite(amax, values)
    if rule.scale_rule is not None and rule.scale_rule not in ("amax", *POW2_RULES):
        amax = clipped_amax(values, rule, axis)
    scale_codes, scale_format, above = None, None, None
    if rule.scale_format == "float8_e4m3fn":
        scale_codes, scale, above = two_level_scales(amax, rule)
        scale_format = get_format("float8_e4m3fn")
    else:
        scale = scales_from_amax(np.asarray(amax), rule)
        if rule.scale_format == "float8_e8m0fnu":
            scale_format = get_format("float8_e8m0fnu")
            scale_codes = encode(scale, scale_format)
    if not (np.isfinite(scale).all() and (above is None or np.isfinite(above))):
        raise NumsimError(
            f"quantize: the scale of values up to {float(np.max(amax)):.3g} in {rule.fmt.name} is "
            "beyond float32; divide the tensor by a constant first"
        )
    q = QTensor(values, rule.fmt, scale, rule, sizes, scale_codes, scale_format, above)
    divisor: Any = q.element_scale()
    if above is not None:
        divisor = np.asarray(divisor, np.float64) * np.float64(above)
    elif rule.scale_format in POW2_FORMATS:
        divisor = np.asarray(divisor, np.float64)  # exact, subnormal quotients included
    with np.errstate(over="ignore", under="ignore"):
        quotient = values / divisor
    return QTensor(
        _codes(quotient, rule, seed, offset, random),
        rule.fmt,
        scale,
        rule,
        sizes,
        scale_codes,
        scale_format,
        above,
    )


def storage_losses(
    x: ArrayLike, quant: str | Format | Quant, *, axis: int = -1, where: ArrayLike = True
) -> tuple[float, float]:
    """Return the shares of values that storage clips and that it turns to zero.

    Saturated: beyond the format's range by at least half of its last step. Underflow: not zero,
    stored as zero. Parameters and errors as `quantize`.

    Parameters
    ----------
    where
        Booleans that broadcast against `x`: the values that count. Scales are those of all of `x`.

    Raises
    ------
    NumsimError
        As `quantize`.

    Examples
    --------
    >>> storage_losses([0.01, 0.5, 9.0, -8.5], "q3.4")
    (0.5, 0.25)
    >>> storage_losses([0.01, 0.5, 9.0, -8.5], "q3.4", where=[True, True, False, False])
    (0.0, 0.5)
    """
    q = quantize(x, quant, axis=axis)
    values = np.asarray(x, np.float64)
    scale = np.asarray(q.element_scale(), np.float64)
    if q.tensor_scale is not None:
        scale = scale * np.float64(q.tensor_scale)
    half = _last_step(q.fmt) / 2
    clipped = (values >= (q.fmt.max + half) * scale) | (values <= (q.fmt.min - half) * scale)
    lost = (values != 0) & (decode(q.codes, q.fmt) == 0)
    counted = np.broadcast_to(np.asarray(where, np.bool_), values.shape)
    if not counted.any():
        return 0.0, 0.0
    return float(clipped.mean(where=counted)), float(lost.mean(where=counted))


def _last_step(fmt: Format) -> float:
    """Return the distance of the largest finite value from the one below it."""
    if fmt.kind == "integer":
        return float(2.0**-fmt.bias)
    if fmt.kind == "float":
        return float(2.0 ** (fmt.emax - (fmt.precision - 1)))
    finite = np.unique(fmt.values()[np.isfinite(fmt.values())])
    return float(finite[-1] - finite[-2])


def _as_float32(values: NDArray[Any]) -> NDArray[Any]:
    named = values.dtype.kind == "V" and values.dtype.names is None  # bfloat16 and relatives
    if not (values.dtype.kind in "iuf" or named) or values.dtype.itemsize > 8:
        raise NumsimError(
            f"quantize: inputs are float16, bfloat16, float32, float64 or integers; got "
            f"{values.dtype}; convert the array first"
        )
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2:
        return values.astype(np.float64)
    return values.astype(np.float32)


def _codes(
    values: NDArray[Any], rule: Quant, seed: int, offset: int, random: NDArray[Any] | None
) -> NDArray[Any]:
    stream: dict[str, Any] = {}
    if random is not None:
        stream["random"] = random
    elif rule.rounding == "sr":
        stream = {"seed": seed, "offset": offset}
    return encode(values, rule.fmt, rounding=rule.rounding, overflow=rule.overflow, **stream)  # type: ignore[arg-type]


def _check_finite(amax: Any, values: NDArray[Any]) -> None:
    if not np.isfinite(amax).all():
        bad = ~np.isfinite(values)
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise NumsimError(
            f"quantize: a scale needs finite values; {int(bad.sum())} of {values.size} are not, "
            f"the first at index {index}; clip them, or use granularity='none'"
        )
