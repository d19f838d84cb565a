"""Scales from amax: float32, powers of two by rules, narrow floats under a tensor's scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import cast, decode, encode
from numsim.errors import NumsimError
from numsim.formats import Format, get_format
from numsim.kernels.convert import blocks
from numsim.kernels.convert.block_codes import Power
from numsim.quant.odd import quotient_to_odd
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import POW2_FORMATS

_TINY = np.float32(2.0**-149)
WIDE = 63  # from this emax on, products of two maxima leave the range of float32


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
    along = [axis for axis, size in enumerate(sizes) if size > 1]
    if len(along) == 1 and blocks.covers(values, along[0], sizes[along[0]]):
        return blocks.amax(values, along[0], sizes[along[0]])
    return over_blocks(np.abs(values), sizes, np.maximum)


def over_blocks(values: NDArray[Any], sizes: tuple[int, ...], which: np.ufunc) -> NDArray[Any]:
    """Return the largest or least value of every block, short blocks at the end included.

    >>> over_blocks(np.array([1, 5, 2, 4, 3]), (2,), np.maximum)
    array([5, 4, 3])
    """
    if not values.size:
        grid = (-(-n // size) for n, size in zip(values.shape, sizes, strict=True))
        return np.empty(tuple(grid), values.dtype)
    for axis, size in enumerate(sizes):
        if size > 1:
            values = which.reduceat(values, np.arange(0, values.shape[axis], size), axis=axis)
    return values


def amax_scale(amax: NDArray[Any], top: float) -> NDArray[np.float32]:
    """Return fp32(amax / top), 1 where amax is 0, at least 2**-149.

    Where the largest element would leave float32, the next smaller scale.

    >>> amax_scale(np.float32([0.0, 254.0]), 127.0)
    array([1., 2.], dtype=float32)
    """
    exact = np.asarray(amax, np.float64)
    # of numbers of 24 bits float64 keeps enough: 53 bits are more than 2 * 24 + 1 (Figueroa, 1995)
    short = np.float32(top) == top and np.asarray(amax).dtype == np.float32
    with np.errstate(all="ignore"):
        quotient = exact / top if short else quotient_to_odd(exact, top)
        scale = quotient.astype(np.float32)
        scale = np.where(exact == 0, np.float32(1.0), np.maximum(scale, _TINY))
        beyond = np.isinf((scale * np.float64(top)).astype(np.float32)) & np.isfinite(scale)
    return np.asarray(np.where(beyond, np.nextafter(scale, np.float32(0)), scale), np.float32)


def scales_from_amax(amax: NDArray[Any], quant: Quant) -> NDArray[np.float32]:
    """Return one scale for each amax by the quant's format and rule (not under a tensor scale).

    Raises
    ------
    NumsimError
        For a scale beyond its format.
    """
    fmt = quant.fmt
    if quant.scale_format in POW2_FORMATS:
        exponent = _pow2_exponent(np.asarray(amax, np.float64), fmt, str(quant.scale_rule))
        with np.errstate(over="ignore"):  # beyond 2**127: infinite, and refused by quantize
            scale = np.ldexp(1.0, np.maximum(exponent, -127)).astype(np.float32)
        return np.asarray(scale)
    if fmt.emax >= WIDE:
        return np.ones(np.shape(amax), np.float32)
    top = (fmt.max - fmt.min) / 2 if quant.scale_rule == "amax_half" else fmt.max
    return stored_scale(amax_scale(amax, top), amax, quant)


def stored_scale(
    scale: NDArray[np.float32], amax: NDArray[Any], quant: Quant
) -> NDArray[np.float32]:
    """Return float32 scales as a scale format of 16 bits and more holds them: above 0, finite.

    Raises
    ------
    NumsimError
        For a scale beyond its format.
    """
    if quant.scale_format == "float32":
        return scale
    f = get_format(quant.scale_format)
    wide = np.isfinite(scale) & (scale > f.max)
    if wide.any():
        raise NumsimError(
            f"quantize: the scale {float(scale[wide].flat[0]):.3g} is beyond {f.label}, which ends "
            f"at {f.max:.6g}; divide the tensor by a constant first, or use float32 scales"
        )
    kept = np.maximum(cast(scale, f), np.float32(f.min_subnormal)).astype(np.float32)
    kept = np.where(np.asarray(amax) == 0, np.float32(1.0), kept)
    with np.errstate(over="ignore"):
        beyond = np.isinf(kept * np.float32(quant.fmt.max)) & np.isfinite(scale)
    if beyond.any():
        lower = decode(encode(kept, f) - 1, f)
        kept = np.where(beyond, lower, kept)
    return np.asarray(kept, np.float32)


def power_of(fmt: Format, scale_rule: str) -> Power | None:
    """Return a rule of power-of-two scales by amax, None for one that searches.

    Beyond its `most` an integer may leave float32 (`store.keep_finite`).

    >>> power_of(get_format("float4_e2m1fn"), "floor").more
    -2
    """
    top, exponent = math.frexp(fmt.max)
    found = {
        "floor": Power(2.0, -fmt.emax),  # no significand is above 2
        "ceil": Power(1.0, -fmt.emax),
        # rounded to the element's precision it carries into the next binade
        "even": Power(math.nextafter(2.0 - 2.0**-fmt.precision, 0.0), -fmt.emax),
        "rceil": Power(2 * top, 1 - exponent),  # the smallest with amax / scale <= max
        "midmax": Power(top + 1.0, 1 - exponent),  # or nearer to max than to the next power
    }.get(scale_rule)
    if found is None or fmt.kind != "integer":
        return found
    return found._replace(most=min(127, 128 - math.frexp(max(fmt.max, -fmt.min))[1]))


def _pow2_exponent(amax: NDArray[np.float64], fmt: Format, rule: str) -> NDArray[np.int64]:
    """Return the scale's exponent; -127 for a block of zeros.

    At most 127 for an amax of float32, which then saturates.
    """
    power = power_of(fmt, rule)
    if power is None:
        raise NotImplementedError(f"scale_rule {rule} of POW2_RULES has no branch here")
    half, exponent = np.frexp(amax)  # amax = 2 half * 2**(exponent - 1), 1 <= 2 half < 2
    floor = exponent.astype(np.int64) - 1
    result = floor + power.more + (2 * half > power.above)
    result = np.where(floor <= 127, np.minimum(result, 127), result)
    return np.where(amax == 0, np.int64(-127), result)


def largest_scale(quant: Quant) -> float:
    """Return the narrow scale of the block that has the tensor's largest magnitude.

    >>> largest_scale(Quant("e2m1", block=16, scale_format="e4m3", scale_rule="4over6:mse"))
    256.0
    """
    if quant.scale_max is not None:
        return quant.scale_max
    four = str(quant.scale_rule).startswith("4over6")
    return 256.0 if four else get_format(quant.scale_format).max


def scale_above(amax: NDArray[Any], quant: Quant, axis: int) -> NDArray[np.float32]:
    """Return the float32 scale of the whole tensor, or of its rows, above narrow block scales.

    It maps the largest block to the largest element times the largest scale aimed at.
    """
    along = None if quant.above == "per_tensor" or not amax.ndim else axis
    top = np.max(amax, axis=along, keepdims=along is not None, initial=0.0).astype(np.float64)
    most = largest_scale(quant)
    with np.errstate(under="ignore", over="ignore"):
        above = (top / (quant.fmt.max * most)).astype(np.float32)
    return np.asarray(np.where(top == 0, np.float32(1.0), np.maximum(above, _TINY)), np.float32)


def narrow_quotient(amax: NDArray[Any], by: Any) -> NDArray[np.float64]:
    """Return amax / by in float64, which rounds to a few bits as the exact quotient does.

    Beside a tie of two codes a quotient of float32 numbers lies farther from it than float64 errs;
    one of float64 is rounded to odd.
    """
    exact = np.asarray(amax, np.float64)
    if np.asarray(amax).dtype == np.float64:
        return quotient_to_odd(exact, by)
    with np.errstate(over="ignore"):
        return np.asarray(exact / by, np.float64)


def narrow_codes(wanted: NDArray[Any], scale_format: str) -> NDArray[Any]:
    """Return the codes of narrow block scales: nearest, never 0, at most the largest."""
    f = get_format(scale_format)
    codes = encode(wanted, f)
    least = codes.dtype.type(1 if f.zero else 0)
    return np.asarray(np.maximum(codes, least))
