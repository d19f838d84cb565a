"""The named steps after a unit: scale, bias and output rounding; integer requantisation."""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, index_of
from numsim.convert import encode
from numsim.errors import NumsimError, UnsupportedError
from numsim.float_state import known_floats
from numsim.formats import Format, get_format, table_name
from numsim.targets.chain import round_to

_TYPES = [np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16)]


@known_floats
def epilogue(
    acc: ArrayLike,
    *,
    alpha: float | np.float32,
    out_format: str | Format,
    scale_result: float | np.float32 | None = None,
    bias: ArrayLike | None = None,
    zero_point: int = 0,
) -> NDArray[Any]:
    """Scale an accumulator, add a bias, round to the output format, as cuBLASLt does.

    ``y = fma(acc, alpha, +0)`` in float32, then ``y + bias`` in float32. float16 and bfloat16
    are rounded from that float32 (nearest even). FP8: ``y * scale_result`` in float32, clamped to
    the format's range (Inf too), nearest even. NaN becomes 0x7FFFFFFF, 0x7FFF, or 0x7F. Integers:
    ``clip(rint(y * scale_result) + zero_point)``, as ONNX QuantizeLinear of y with the scale
    1 / scale_result where that is a power of two; NaN is an error.

    Parameters
    ----------
    acc
        float32, float16, bfloat16 or integer accumulator, any shape; Python numbers as float32.
    alpha
        fp32(scale_a * scale_b).
    out_format
        ``float32``, ``float16``, ``bfloat16``, ``float8_e4m3fn``, ``float8_e5m2``, or an integer
        of up to 16 bits.
    scale_result
        Factor before an 8-bit or integer output; None: 1.
    zero_point
        Of an integer output.
    bias
        As `acc`; broadcasts against it.

    Returns
    -------
    Values in the NumPy type of the format; codes (uint8) for 8-bit formats.

    Raises
    ------
    UnsupportedError
        For another output format.
    NumsimError
        For arrays of other types (float64 would be rounded twice), and a bias that does not
        broadcast to the shape of `acc`; a zero point that the output does not hold, or of another
        output than integers; NaN for an integer output.

    Source
    ------
    cuBLASLt 12.8 as reproduced by mmaemu 0.1.0, model/epilogue.py.

    Examples
    --------
    >>> epilogue(np.float32([1000.0]), alpha=0.5, out_format="float8_e4m3fn")
    array([126], dtype=uint8)
    """
    out = get_format(out_format)
    known = table_name(out)  # "" for a Format of one's own
    total = _numbers(acc, "acc")
    factor = _scalar(alpha, "alpha")
    after = _scalar(1.0 if scale_result is None else scale_result, "scale_result")
    whole = out.kind == "integer" and out.bits <= 16 and not out.bias
    held = isinstance(zero_point, int | np.integer) and not isinstance(zero_point, bool)
    if not held or (zero_point and not whole) or not out.min <= zero_point <= out.max:
        raise NumsimError(
            f"epilogue: zero_point is a code of an integer out_format; got {zero_point!r:.40} for "
            f"{out.label}"
        )
    added = None if bias is None else _numbers(bias, "bias")
    if added is not None and not _fits(added.shape, total.shape):
        raise NumsimError(
            f"epilogue: bias broadcasts to the shape of acc {total.shape}; got {added.shape}"
        )
    with np.errstate(all="ignore"):
        # the product is exact in float64: -0 becomes +0, what underflows keeps its sign
        y = (total.astype(np.float64) * np.float64(factor) + 0.0).astype(np.float32)
        if added is not None:
            y = y + added
        if known == "float32":
            y = np.asarray(y)
            y.view(np.uint32)[np.isnan(y)] = 0x7FFFFFFF
            return y
        if known in ("float16", "bfloat16"):
            rounded = round_to(np.asarray(y), out)
            rounded.view(np.uint16)[np.isnan(y)] = 0x7FFF
            return rounded
        if whole:
            return _whole(np.asarray(y * after, np.float32), out, int(zero_point))
        if known not in ("float8_e4m3fn", "float8_e5m2"):
            raise UnsupportedError(
                "epilogue: out_format is float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 "
                f"or an integer; got {out.label}"
            )
        y = np.asarray(y * after, np.float32)
    codes = encode(np.where(np.isnan(y), np.float32(0.0), y), out)
    return np.where(np.isnan(y), np.uint8(0x7F), codes)


def _whole(y: NDArray[np.float32], out: Format, zero_point: int) -> NDArray[Any]:
    """Return codes of an integer output."""
    nans = np.flatnonzero(np.isnan(y))
    if nans.size:
        raise NumsimError(
            f"epilogue: {out.label} has no NaN; {nans.size} of {y.size} results are NaN, the first "
            f"at index {index_of(int(nans[0]), y.shape)}"
        )
    codes = np.clip(np.rint(y.astype(np.float64)) + zero_point, out.min, out.max)
    return np.asarray(codes, out.code_dtype)


def _numbers(x: ArrayLike, name: str) -> NDArray[np.float32]:
    array = as_array(f"epilogue: {name}", x)
    plain = array.dtype == np.float64 and not hasattr(x, "dtype")  # lists of Python's numbers
    if array.dtype.kind not in "iu" and array.dtype.newbyteorder("=") not in _TYPES and not plain:
        raise NumsimError(
            f"epilogue: {name} holds float32, float16, bfloat16 or integers; got {array.dtype}; "
            "pass what numsim.matmul returns"
        )
    with np.errstate(all="ignore"):
        return array.astype(np.float32)


def _scalar(x: object, name: str) -> np.float32:
    if isinstance(x, bool) or not isinstance(x, int | float | np.integer | np.floating):
        raise NumsimError(f"epilogue: {name} is a number; got {' '.join(repr(x).split()):.60}")
    try:
        with np.errstate(all="ignore"):
            return np.float32(x)
    except OverflowError:
        raise NumsimError(
            f"epilogue: {name} is a number of float64's range; got {x!r:.40}"
        ) from None


def _fits(shape: tuple[int, ...], into: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to the shape `into`."""
    try:
        return np.broadcast_shapes(shape, into) == into
    except ValueError:
        return False


@known_floats
def requantize(
    acc: ArrayLike,
    *,
    multiplier: ArrayLike,
    shift: ArrayLike,
    zero_point: int = 0,
    rounding: Literal["single", "double"] = "single",
    out_format: str | Format = "int8",
) -> NDArray[Any]:
    """Turn an int32 accumulator into narrow integers by a fixed-point multiplier.

    The result is ``acc * multiplier * 2**(shift - 31)``, rounded, plus `zero_point`, saturated.
    ``single``: one rounding of the 64-bit product, ties upward. ``double``: the high half of the
    doubled product is rounded first (ties upward), then shifted with a second rounding, ties away
    from zero, as
    gemmlowp and older TFLite kernels do.

    Parameters
    ----------
    acc
        Integers that fit int32, [..., N].
    multiplier
        0 to 2**31 - 1: one, or one a channel [N].
    shift
        -31 to 30, as `multiplier`; positive shifts left before the multiplication.
    zero_point
        An integer that fits int32.

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
    x = _integers(acc, "acc", -(1 << 31), (1 << 31) - 1)
    factor = _integers(multiplier, "multiplier", 0, (1 << 31) - 1)
    moved = _integers(shift, "shift", -31, 30)
    zero = _integers(zero_point, "zero_point", -(1 << 31), (1 << 31) - 1)
    if zero.ndim or not (_fits(factor.shape, x.shape) and _fits(moved.shape, x.shape)):
        raise NumsimError(
            f"requantize: multiplier and shift are one number or [N], zero_point one number, for "
            f"acc {x.shape}; got {factor.shape}, {moved.shape}, {zero.shape}"
        )
    if rounding not in ("single", "double"):
        raise NumsimError(f"requantize: rounding is single or double; got {rounding!r}")
    if rounding == "single":
        total = 31 - moved
        y = (x * factor + (np.int64(1) << (total - 1))) >> total
    else:
        left, right = np.maximum(moved, 0), np.maximum(-moved, 0)
        x = np.clip(x << left, -(1 << 31), (1 << 31) - 1)
        doubled = x * factor
        nudge = np.where(doubled >= 0, 1 << 30, 1 - (1 << 30))
        high = (doubled + nudge) // (1 << 31)
        high = np.where((doubled + nudge) < 0, -((-(doubled + nudge)) // (1 << 31)), high)
        mask = (np.int64(1) << right) - 1
        remainder = high & mask
        threshold = (mask >> 1) + (high < 0)
        y = (high >> right) + (remainder > threshold)
    y = y + zero
    top = 1 << (out.bits - out.signed)
    codes: NDArray[Any] = np.clip(y, -top if out.signed else 0, top - 1).astype(out.code_dtype)
    return codes


def _integers(x: ArrayLike, name: str, low: int, high: int) -> NDArray[np.int64]:
    array = as_array(f"requantize: {name}", x)
    rule = f"requantize: {name} is integers of {low} to {high}"
    if array.dtype.kind not in "iu":
        raise NumsimError(f"{rule}; got {array.dtype}; round to integers first")
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        info = np.iinfo(array.dtype)
        wrong = np.flatnonzero((array < max(low, info.min)) | (array > min(high, info.max)))
        index = index_of(int(wrong[0]), array.shape)
        raise NumsimError(
            f"{rule}; {wrong.size} of {array.size} are not, the first is {int(array[index])} at "
            f"index {index}; clip them first"
        )
    return array.astype(np.int64)
