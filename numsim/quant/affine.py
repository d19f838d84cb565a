"""Scales with a zero point: integers that hold a range which need not be symmetric.

All in float32, as ONNX has it: ``lo = min(0, min x)``, ``hi = max(0, max x)``,
``s = fp32(fp32(hi - lo) / (qmax - qmin))``, ``z = clip(rint(fp32(qmin - fp32(lo / s))))``,
``q = clip(rint(fp32(x / s)) + z)``. Zero is always exact: its code is z.

Source: ONNX DynamicQuantizeLinear and QuantizeLinear, opset 21.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import encode
from numsim.formats import Format
from numsim.quant.rule import Quant

_TINY = np.float32(2.0**-149)
Ints = NDArray[np.int32]


def range_of(fmt: Format) -> tuple[int, int]:
    """Return the least and the largest code of an integer format.

    >>> from numsim.formats import get_format
    >>> range_of(get_format("int4"))
    (-8, 7)
    """
    return int(fmt.min), int(fmt.max)


def scales_and_zeros(
    low: NDArray[Any], high: NDArray[Any], fmt: Format
) -> tuple[NDArray[np.float32], Ints]:
    """Return the scale and the zero point of every range low <= 0 <= high.

    Where the range is empty the scale is 1, where it underflows 2**-149.

    >>> from numsim.formats import get_format
    >>> scales_and_zeros(np.float32([-1.0]), np.float32([4.0]), get_format("uint4"))
    (array([0.33333334], dtype=float32), array([3], dtype=int32))
    """
    least, most = range_of(fmt)
    with np.errstate(over="ignore", under="ignore"):
        span = np.asarray(high - low, np.float32)
        scale = np.asarray(span / np.float32(most - least), np.float32)
        # hi - lo beyond float32: halves are not, and the quotient is held
        half = (np.asarray(high * 0.5 - low * 0.5) / np.float32(most - least)) * 2
        scale = np.where(np.isinf(span), half.astype(np.float32), scale)
        scale = np.where(span == 0, np.float32(1), np.maximum(scale, _TINY))
        place = np.float32(least) - np.asarray(low, np.float32) / scale
    zeros = np.clip(np.rint(place), least, most).astype(np.int32)
    return np.asarray(scale, np.float32), np.asarray(zeros)


def affine_codes(
    quotient: NDArray[Any], zeros: Any, rule: Quant, out: NDArray[Any], how: dict[str, Any]
) -> None:
    """Fill `out` with clip(round(quotient) + zero point)."""
    least, most = range_of(rule.fmt)
    wide = "int16" if rule.fmt.bits <= 8 else "int32"  # holds a code less a zero point
    whole = encode(quotient, wide, **how)
    moved = whole.astype(np.int64 if wide == "int32" else np.int32) + zeros
    np.clip(moved, least, most, out=moved)
    out[...] = moved
