"""The named steps after a unit: scale, bias and output rounding; integer requantisation."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.convert import encode
from numsim.errors import NumsimError, UnsupportedError
from numsim.formats import Format, get_format
from numsim.targets.units import round_to


def epilogue(
    acc: ArrayLike,
    *,
    alpha: float | np.float32,
    out_format: str | Format,
    scale_result: float | np.float32 | None = None,
    bias: ArrayLike | None = None,
) -> NDArray[Any]:
    """Scale an accumulator, add a bias, round to the output format, as cuBLASLt does.

    ``y = fma(acc, alpha, +0)`` in float32, then ``y + bias`` in float32. float16 and bfloat16
    are rounded from that float32 (nearest even). FP8: ``y * scale_result`` in float32, clamped to
    the format's range (Inf too), nearest even. NaN becomes 0x7FFF, or 0x7F.

    Parameters
    ----------
    acc
        float32 or integer accumulator, any shape.
    alpha
        fp32(scale_a * scale_b).
    out_format
        ``float32``, ``float16``, ``bfloat16``, ``float8_e4m3fn`` or ``float8_e5m2``.
    scale_result
        Factor before an 8-bit output; None: 1.
    bias
        float32, broadcasts against `acc`.

    Returns
    -------
    Values in the NumPy type of the format; codes (uint8) for 8-bit formats.

    Raises
    ------
    UnsupportedError
        For another output format.

    Source
    ------
    cuBLASLt 12.8 as reproduced by mmaemu 0.1.0, model/epilogue.py.

    Examples
    --------
    >>> epilogue(np.float32([1000.0]), alpha=0.5, out_format="float8_e4m3fn")
    array([126], dtype=uint8)
    """
    out = get_format(out_format)
    if np.asarray(acc).dtype.kind not in "iuf":
        raise NumsimError(f"epilogue: acc holds numbers; got {np.asarray(acc).dtype}")
    with np.errstate(all="ignore"):
        y = np.asarray(acc).astype(np.float32) * np.float32(alpha) + np.float32(0.0)
        if bias is not None:
            y = y + np.asarray(bias, np.float32)
        if out.name == "float32":
            return np.asarray(y, np.float32)
        if out.name in ("float16", "bfloat16"):
            rounded = round_to(np.asarray(y), out)
            rounded.view(np.uint16)[np.isnan(y)] = 0x7FFF
            return rounded
        if out.name not in ("float8_e4m3fn", "float8_e5m2"):
            raise UnsupportedError(
                "epilogue: out_format is float32, float16, bfloat16, float8_e4m3fn or "
                f"float8_e5m2; got {out.name}"
            )
        y = np.asarray(y * np.float32(1.0 if scale_result is None else scale_result), np.float32)
    codes = encode(np.where(np.isnan(y), np.float32(0.0), y), out)
    return np.where(np.isnan(y), np.uint8(0x7F), codes)


def requantize(
    acc: ArrayLike,
    *,
    multiplier: int,
    shift: int,
    zero_point: int = 0,
    rounding: Literal["single", "double"] = "single",
    out_format: str | Format = "int8",
) -> NDArray[Any]:
    """Turn an int32 accumulator into narrow integers by a fixed-point multiplier.

    The result is ``acc * multiplier * 2**(shift - 31)``, rounded, plus `zero_point`, saturated.
    ``single``: one rounding of the 64-bit product, ties upward. ``double``: the high half of the
    doubled product is rounded first, then shifted with a second rounding, ties away from zero, as
    gemmlowp and older TFLite kernels do.

    Parameters
    ----------
    acc
        Integers that fit int32.
    multiplier
        0 to 2**31 - 1.
    shift
        -31 to 30; positive shifts left before the multiplication.

    Returns
    -------
    Codes of `out_format`.

    Raises
    ------
    NumsimError
        For values out of range.

    Source
    ------
    TensorFlow Lite, MultiplyByQuantizedMultiplier (single and double rounding variants).

    Examples
    --------
    >>> [int(requantize(7984, multiplier=1583594044, shift=-9, rounding=r))
    ...  for r in ("single", "double")]
    [11, 12]
    """
    out = get_format(out_format)
    if out.kind != "integer":
        raise NumsimError(f"requantize: out_format is an integer format; got {out.name}")
    whole = all(isinstance(v, int | np.integer) for v in (multiplier, shift, zero_point))
    if not whole or not 0 <= multiplier < 1 << 31 or not -31 <= shift <= 30:
        raise NumsimError(
            f"requantize: multiplier is 0 to 2**31 - 1 and shift -31 to 30; got {multiplier}, "
            f"{shift}"
        )
    if rounding not in ("single", "double"):
        raise NumsimError(f"requantize: rounding is single or double; got {rounding!r}")
    x = np.asarray(acc)
    if x.dtype.kind not in "iu" or (x.size and (x.min() < -(1 << 31) or x.max() >= 1 << 31)):
        raise NumsimError("requantize: the accumulator holds integers that fit int32")
    x = x.astype(np.int64)
    if rounding == "single":
        total = 31 - shift
        y = (x * multiplier + (np.int64(1) << (total - 1))) >> total
    else:
        left, right = max(shift, 0), max(-shift, 0)
        x = np.clip(x << left, -(1 << 31), (1 << 31) - 1)
        doubled = x * multiplier
        nudge = np.where(doubled >= 0, 1 << 30, 1 - (1 << 30))
        high = (doubled + nudge) // (1 << 31)
        high = np.where((doubled + nudge) < 0, -((-(doubled + nudge)) // (1 << 31)), high)
        mask = (1 << right) - 1
        remainder = high & mask
        threshold = (mask >> 1) + (high < 0)
        y = (high >> right) + (remainder > threshold)
    y = y + zero_point
    low, high_limit = int(out.min * 2.0**out.bias), int(out.max * 2.0**out.bias)
    codes: NDArray[Any] = np.clip(y, low, high_limit).astype(out.code_dtype)
    return codes
