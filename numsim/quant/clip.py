"""Scales that clip: of the least squared error, of a percentile, of the least divergence.

``mse``: the scale of the least ``sum (x - s Q(x / s))**2``. Where scales are float32 it is the
minimum over all real s, rounded; where they are of a narrower format (powers of two, E4M3 under
its tensor's scale ...) all of its values are candidates, and of equals the larger is taken.

``percentile:P``: the smallest magnitude with at least P percent of all magnitudes at or below
it (nearest rank); amax where that is 0.

``kl``: magnitudes other than 0 are counted in 2048 bins up to amax. Of the thresholds at the ends
of bins 128, 144 .. 2048, the one with the smallest Kullback-Leibler divergence from the clipped
histogram (all beyond the threshold in its last bin) to the one that the format can tell apart (the
counts of bins whose centres round to the same value, spread evenly over those of them that have
any); of equals the largest.

Source: Wu et al., arXiv 2004.09602, section 3.3 (percentile, entropy); Migacz, 8-bit Inference with
TensorRT, GTC 2017 (2048 bins, thresholds from bin 128; here levels are those of the format, and
every 16th threshold is tried); Kuzmin et al., arXiv 2208.09225 (search for the least error).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import cast
from numsim.errors import NumsimError
from numsim.formats import Format
from numsim.kernels.clip import clip_divergence
from numsim.kernels.convert import block_search
from numsim.kernels.convert.intervals import UNDECIDED, least_squares_near
from numsim.kernels.convert.least_squares import least_squares
from numsim.kernels.convert.long_rows import least_squares_few, least_squares_sorted
from numsim.kernels.jit import grain_of, over_range
from numsim.quant.grouped import groups
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import percentile, rule_name
from numsim.quant.scales import amax_scale

_LONG, _FEW_LEVELS = 1 << 14, 1 << 9  # rows that are sorted, for formats of few levels
_FINE = 256  # steps, or steps an octave
BINS, FIRST_BIN, BIN_STEP = 2048, 128, 16  # of the search by divergence
Floats = NDArray[np.float64]


def clipped_amax(
    values: NDArray[Any], amax: NDArray[Any], quant: Quant, sizes: tuple[int, ...]
) -> NDArray[Any]:
    """Return the magnitude that maps to the format's maximum, one for each scale.

    Parameters
    ----------
    values : float array, any shape
    amax
        The largest magnitude of every part.
    quant : Quant
        With a rule of `THRESHOLDS`.
    sizes
        Of a part that shares a scale, along every axis.

    Examples
    --------
    >>> x = np.array([0.5, 1.0, 1.5, 100.0])
    >>> rule = Quant("int4", "per_tensor", scale_rule="percentile:75")
    >>> float(clipped_amax(x, np.array([100.0]), rule, (4,))[0])
    1.5
    """
    threshold = THRESHOLDS[rule_name(str(quant.scale_rule))]
    grid = tuple(-(-n // size) for n, size in zip(values.shape, sizes, strict=True))
    chosen = np.array(np.broadcast_to(amax.reshape(grid), grid), values.dtype)
    for group in groups(values, sizes):
        part = chosen[group.scales]
        found = threshold(np.abs(group.rows), quant).reshape(part.shape)
        part[...] = np.where(found > 0, found, part)
    return chosen.reshape(amax.shape)


def _nearest_rank(magnitudes: NDArray[Any], quant: Quant) -> NDArray[Any]:
    share = percentile(str(quant.scale_rule)) or 0
    rank = math.ceil(share * magnitudes.shape[1] / 100) - 1
    return np.asarray(np.partition(magnitudes, rank, axis=1)[:, rank])


def _least_divergences(magnitudes: NDArray[Any], quant: Quant) -> NDArray[Any]:
    return np.array([_least_divergence(row, quant) for row in magnitudes])


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
        quotient = (centres[:kept] / amax_scale(threshold, quant.fmt.max)).astype(np.float32)
        found_levels = cast(quotient, quant.fmt, rounding=rounding).astype(np.float64)  # type: ignore[arg-type]
        divergence = clip_divergence(counts, found_levels)
        if divergence < found:
            found, chosen = divergence, float(threshold)
    return chosen


# rules -> the magnitude that maps to the format's maximum, of the magnitudes [parts, values] of
# parts that share a scale; 0 stands for their largest
THRESHOLDS: dict[str, Callable[[NDArray[Any], Quant], NDArray[Any]]] = {
    "kl": _least_divergences,
    "percentile:P": _nearest_rank,
}


@cache
def levels(fmt: Format) -> block_search.Levels:
    """Return the levels of a format.

    Raises
    ------
    NumsimError
        For a format without zero, which no error of a block of small numbers is the least in.
    """
    values = fmt.values()
    values = values[np.isfinite(values)]
    if not (values == 0).any():
        raise NumsimError(
            f"quantize: scale_rule mse searches formats with a zero; {fmt.label} has none; use amax"
        )
    return block_search.levels_of(values)


@cache
def has_halves(fmt: Format) -> bool:
    """Whether half of every level is a level: a scale of twice the size then tells no more apart.

    That is so of integers and floats, up to half of their largest.
    """
    found = levels(fmt)
    sides = ((found.positive, found.positive[-1]), (found.negative, found.negative[-1]))
    return all(bool(np.isin(2 * side[2 * side <= top], side).all()) for side, top in sides)


def least_squares_scale(values: NDArray[Any], fmt: Format, sizes: tuple[int, ...]) -> Floats:
    """Return the real scale of the least squared error of every part, 0 for parts of zeros.

    Examples
    --------
    >>> from numsim.formats import get_format
    >>> least_squares_scale(np.array([1.0, 2.0, -3.0, 10.5]), get_format("int4"), (4,))
    array([1.5])
    """
    found, halves = levels(fmt), has_halves(fmt)
    grid = tuple(-(-n // size) for n, size in zip(values.shape, sizes, strict=True))
    chosen = np.zeros(grid)
    most = max(found.positive_steps.size, found.negative_steps.size)
    for group in groups(values, sizes):
        rows, scales = group.rows, np.full(len(group.rows), UNDECIDED)
        if most <= _FEW_LEVELS and rows.shape[1] >= _LONG:
            over_range(partial(_of_sorted, rows, found, halves, scales), len(scales))
        elif halves and _is_near(fmt):
            over_range(
                partial(least_squares_near, rows, found, scales), len(scales),
                grain=grain_of(len(scales), rows.size * 32),
            )  # fmt: skip
        left = scales == UNDECIDED
        if left.any():
            scales[left] = _one_by_one(rows if left.all() else rows[left], found, halves, most)
        chosen[group.scales] = scales.reshape(group.shape)
    return chosen


@cache
def _is_near(fmt: Format) -> bool:
    """Whether float32 tells errors of a format apart: its levels are a grid that is not too fine.

    >>> from numsim.formats import get_format
    >>> [_is_near(get_format(name)) for name in ("int8", "float8_e4m3fn", "int16")]
    [True, True, False]
    """
    found = levels(fmt)
    top = max(found.positive[-1], found.negative[-1])
    sides = (found.positive_steps, found.negative_steps)
    least = 2 * min(steps[0] for steps in sides if steps.size)
    fine = top / least if np.isinf(found.grid.octaves_from) else found.grid.fine
    return bool(found.grid.known and fine <= _FINE and top <= 2.0**20 and least >= 2.0**-20)


def _one_by_one(rows: NDArray[Any], found: block_search.Levels, halves: bool, most: int) -> Floats:
    """Return scales of rows by ways that take any format."""
    scales = np.empty(len(rows))
    if most <= 8 and rows.shape[1] <= 128:
        signed = not np.array_equal(found.positive, found.negative)
        rows = np.sort(rows if signed else np.abs(rows), axis=1).astype(np.float64)
        positive = np.maximum(rows, 0.0) if signed else rows
        negative = np.maximum(-rows[:, ::-1], 0.0) if signed else np.zeros((len(rows), 1))
        work = partial(least_squares_few, positive, negative, found, halves, scales)
    else:
        work = partial(least_squares, rows.astype(np.float64), found, halves, scales)
    over_range(work, len(scales), grain=grain_of(len(scales), rows.size * 64))
    return scales


def _of_sorted(
    rows: NDArray[Any], found: block_search.Levels, halves: bool, out: Floats, start: int, stop: int
) -> None:
    for i in range(start, stop):
        if np.array_equal(found.positive, found.negative):
            row = np.sort(np.abs(rows[i])).astype(np.float64)
            positive, negative = row[np.searchsorted(row, 0.0, side="right") :], row[:0]
        else:
            row = np.sort(rows[i]).astype(np.float64)
            positive = row[np.searchsorted(row, 0.0, side="right") :]
            negative = -row[: np.searchsorted(row, 0.0)][::-1]
        out[i] = least_squares_sorted(positive, np.ascontiguousarray(negative), found, halves)


def best_candidate(
    values: NDArray[Any], fmt: Format, sizes: tuple[int, ...], candidates: Floats,
    above: NDArray[np.float64], first: NDArray[np.int64], normal: float,
) -> NDArray[np.int64]:  # fmt: skip
    """Return which scale of a rising list has the least squared error for every part.

    `above` and `first` have the shape of the scales: what multiplies a candidate, and the first
    candidate that clips nothing. From `normal` on every candidate's double is one.
    """
    chosen = np.zeros(first.shape, np.int64)
    for group in groups(values, sizes):
        rows = group.rows.astype(np.float64)
        scales = np.empty(len(rows), np.int64)
        over_range(
            partial(
                block_search.best_of, rows, np.ascontiguousarray(above[group.scales]).reshape(-1),
                np.ascontiguousarray(first[group.scales]).reshape(-1), candidates, levels(fmt),
                2 * normal if has_halves(fmt) else np.inf, scales,
            ),
            len(rows),
        )  # fmt: skip
        chosen[group.scales] = scales.reshape(group.shape)
    return chosen
