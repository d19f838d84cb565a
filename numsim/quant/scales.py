"""Scales from amax: float32, powers of two by four rules, E4M3 under a tensor scale."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import cast, decode, encode
from numsim.errors import NumsimError
from numsim.formats import Format
from numsim.kernels.clip import clip_divergence
from numsim.kernels.compare import compare_values
from numsim.kernels.convert import blocks
from numsim.kernels.jit import over_range
from numsim.quant.odd import quotient_to_odd
from numsim.quant.rule import POW2_FORMATS, Quant, percentile

_TINY = np.float32(2.0**-149)
THRESHOLDS = 64  # of the search by squared error
BINS, FIRST_BIN, BIN_STEP = 2048, 128, 16  # of the search by divergence
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
    along = [axis for axis, size in enumerate(sizes) if size > 1]
    if len(along) == 1 and blocks.covers(values, along[0], sizes[along[0]]):
        return blocks.amax(values, along[0], sizes[along[0]])
    return over_blocks(np.abs(values), sizes, np.maximum)


def over_blocks(values: NDArray[Any], sizes: tuple[int, ...], which: np.ufunc) -> NDArray[Any]:
    """Return the largest or least value of every block, short blocks at the end included.

    >>> over_blocks(np.array([1, 5, 2, 4, 3]), (2,), np.maximum)
    array([5, 4, 3])
    """
    for axis, size in enumerate(sizes):
        if size > 1:
            starts = np.arange(0, values.shape[axis], size)
            values = which.reduceat(values, starts, axis=axis) if values.size else values
    return values


def clipped_amax(values: NDArray[Any], quant: Quant, axis: int = -1) -> NDArray[Any]:
    """Return the magnitude that maps to the format's maximum, one for each scale.

    ``percentile:P``: the smallest magnitude with at least P percent of all magnitudes at or below
    it (nearest rank); amax where that is 0.

    ``mse``: of the thresholds amax k / 64, k = 1 .. 64, the one with the smallest sum of
    ``(x - dequantize(quantize(x)))**2``; of equals the largest. (Stochastic rounding searches with
    ties to even.)

    ``kl``: magnitudes other than 0 are counted in 2048 bins up to amax. Of the thresholds at the
    ends of bins 128, 144 .. 2048, the one with the smallest Kullback-Leibler divergence from the
    clipped histogram (all beyond the threshold in its last bin) to the one that the format can
    tell apart (the counts of bins whose centres round to the same value, spread evenly over those
    of them that have any); of equals the largest.

    Parameters
    ----------
    values : float array, any shape
    quant : Quant
        Per tensor, channel or token.
    axis : int
        The axis along which values share a scale (not used by per_tensor).

    Returns
    -------
    array of shape (), or of `values` with length 1 along `axis`

    Source
    ------
    Wu et al., arXiv 2004.09602, section 3.3 (percentile, entropy); Migacz, 8-bit Inference with
    TensorRT, GTC 2017 (2048 bins, thresholds from bin 128; here levels are those of the format, and
    every 16th threshold is tried); Kuzmin et al., arXiv 2208.09225 (search for the least error).

    Examples
    --------
    >>> x = np.array([0.5, 1.0, 1.5, 100.0])
    >>> float(clipped_amax(x, Quant("int4", "per_tensor", scale_rule="percentile:75")))
    1.5
    """
    whole = quant.granularity == "per_tensor"
    moved = values if whole else np.moveaxis(values, axis, -1)
    count = 1 if whole else math.prod(moved.shape[:-1])  # -1 is no number where x is empty
    rows = np.ascontiguousarray(moved).reshape(count, moved.size // count if count else 0)
    magnitudes = np.abs(rows)
    amax = np.max(magnitudes, axis=1, initial=0.0)  # [rows]
    share = percentile(str(quant.scale_rule))
    if not rows.size or quant.fmt.emax >= _WIDE:
        chosen = amax
    elif share is not None:
        rank = math.ceil(share * rows.shape[1] / 100) - 1
        ranked = np.partition(magnitudes, rank, axis=1)[:, rank]
        chosen = np.where(ranked > 0, ranked, amax)
    elif quant.scale_rule == "mse":
        chosen = _least_error(rows, amax, quant)
    else:
        chosen = np.array([_least_divergence(m, quant) for m in magnitudes])
    chosen = chosen.astype(values.dtype)
    return chosen[0] if whole else np.moveaxis(chosen.reshape(*moved.shape[:-1], 1), -1, axis)


def _least_error(rows: NDArray[Any], amax: NDArray[Any], quant: Quant) -> NDArray[np.float64]:
    rounding = "rne" if quant.rounding == "sr" else quant.rounding
    found, chosen = np.full(len(rows), np.inf), amax.astype(np.float64)
    compared = np.empty((len(rows), 6))
    for k in range(THRESHOLDS, 0, -1):
        threshold = (amax * np.float64(k / THRESHOLDS)).astype(rows.dtype)
        scale = scales_from_amax(threshold, quant)[:, None]
        with np.errstate(over="ignore", under="ignore"):
            kept = cast(rows / scale, quant.fmt, rounding=rounding, overflow=quant.overflow)  # type: ignore[arg-type]
            kept = (kept.astype(np.float64) * scale.astype(np.float64)).astype(np.float32)
        over_range(partial(compare_values, rows, kept, compared), len(rows))
        better = compared[:, 1] < found
        found[better], chosen[better] = compared[better, 1], threshold[better]
    return chosen


def _least_divergence(magnitudes: NDArray[Any], quant: Quant) -> float:
    top = float(magnitudes.max(initial=0.0))
    width = top / BINS
    if width == 0:
        return top
    rounding = "rne" if quant.rounding == "sr" else quant.rounding
    nonzero = magnitudes[magnitudes > 0].astype(np.float64)
    counts = np.bincount(np.minimum((nonzero / width).astype(np.int64), BINS - 1), minlength=BINS)
    centres = (np.arange(BINS) + 0.5) * width
    found, chosen = np.inf, top
    for kept in range(BINS, FIRST_BIN - 1, -BIN_STEP):
        threshold = np.asarray(width * kept, magnitudes.dtype)
        quotient = (centres[:kept] / scales_from_amax(threshold, quant)).astype(np.float32)
        levels = cast(quotient, quant.fmt, rounding=rounding).astype(np.float64)  # type: ignore[arg-type]
        divergence = clip_divergence(counts, levels)
        if divergence < found:
            found, chosen = divergence, float(threshold)
    return chosen


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
    exact = np.asarray(amax, np.float64)
    # of numbers of 24 bits float64 keeps enough: 53 bits are more than 2 * 24 + 1 (Figueroa, 1995)
    short = np.float32(fmt.max) == fmt.max and np.asarray(amax).dtype == np.float32
    with np.errstate(all="ignore"):
        quotient = exact / fmt.max if short else quotient_to_odd(exact, fmt.max)
        scale = quotient.astype(np.float32)
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
