"""Scales from amax: float32, powers of two by four rules, E4M3 under a tensor scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import cast, decode, encode
from numsim.errors import NumsimError
from numsim.formats import Format
from numsim.quant.types import POW2_FORMATS, Quant

_TINY = np.float32(2.0**-149)
_WIDE = 63  # from this emax on, products of two maxima leave the range of float32


def block_shape(quant: Quant, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the block's size along every axis of a tensor.

    Raises
    ------
    NumsimError
        For tiles of a tensor that has one axis, or an axis that it has not.
    """
    sizes = [1] * len(shape)
    if isinstance(quant.block, tuple):
        if len(shape) < 2:
            raise NumsimError(f"quantize: (rows, columns) blocks need two axes; got {shape}")
        sizes[-2:] = quant.block
    else:
        sizes[axis] = quant.block or 1
    return tuple(sizes)


def block_amax(values: NDArray[Any], sizes: tuple[int, ...]) -> NDArray[Any]:
    """Return the largest magnitude of every block, short blocks at the end included."""
    amax: NDArray[Any] = np.abs(values)
    for axis, size in enumerate(sizes):
        if size > 1:
            starts = np.arange(0, amax.shape[axis], size)
            amax = np.maximum.reduceat(amax, starts, axis=axis) if amax.size else amax
    return amax


def scales_from_amax(amax: NDArray[Any], quant: Quant) -> NDArray[np.float32]:
    """Return one scale for each amax by the quant's format and rule (not for E4M3 scales)."""
    fmt = quant.fmt
    if quant.scale_format in POW2_FORMATS:
        exponent = _pow2_exponent(np.asarray(amax, np.float64), fmt, str(quant.scale_rule))
        with np.errstate(over="ignore"):  # beyond 2**127: infinite, and refused by quantize
            scale = np.ldexp(1.0, np.maximum(exponent, -127)).astype(np.float32)
        return np.asarray(scale)
    if fmt.emax >= _WIDE:
        return np.ones(np.shape(amax), np.float32)
    with np.errstate(under="ignore", over="ignore"):
        scale = (np.asarray(amax, np.float64) / fmt.max).astype(np.float32)
    if quant.scale_format == "bfloat16":
        scale = cast(scale, "bfloat16")
    scale = np.where(np.asarray(amax) == 0, np.float32(1.0), np.maximum(scale, _TINY))
    return np.asarray(scale, np.float32)


def _pow2_exponent(amax: NDArray[np.float64], fmt: Format, rule: str) -> NDArray[np.int64]:
    """Return the scale's exponent; -127 for a block of zeros."""
    fraction, exponent = np.frexp(amax)  # amax = fraction * 2**exponent, 0.5 <= fraction < 1
    floor = exponent.astype(np.int64) - 1
    if rule == "floor":
        result = floor - fmt.emax
    elif rule == "ceil":
        result = floor + (fraction > 0.5) - fmt.emax
    elif rule == "even":
        # adding half an ulp of the element's precision carries into the next binade or does not
        carries = fraction >= 1.0 - 2.0 ** -(fmt.precision + 1)
        result = floor + carries - fmt.emax
    else:  # rceil: the smallest power of two with amax / scale <= max
        top, top_exponent = np.frexp(fmt.max)
        result = exponent.astype(np.int64) - int(top_exponent) + (fraction > top)
    return np.where(amax == 0, np.int64(-127), result)


def two_level_scales(
    amax: NDArray[Any], quant: Quant
) -> tuple[NDArray[Any], NDArray[np.float32], np.float32]:
    """Return (codes, values) of E4M3 block scales and the float32 tensor scale above them.

    The tensor scale maps the largest block to the largest element times the largest scale.
    """
    top = np.float64(np.max(amax, initial=0.0))
    with np.errstate(under="ignore", over="ignore"):
        above = np.float32(top / (quant.fmt.max * 448.0))
    above = np.float32(1.0) if top == 0 else np.maximum(above, _TINY)
    wanted = np.asarray(amax, np.float64) / quant.fmt.max / np.float64(above)
    codes = np.maximum(encode(wanted, "float8_e4m3fn"), np.uint8(1))  # never a scale of zero
    return codes, decode(codes, "float8_e4m3fn"), above
