"""The largest magnitudes of the parts that share a scale, and numbers that no scale stores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.arguments import index_of
from numsim.dispatch.blocks import as_type
from numsim.errors import NumsimError
from numsim.formats import Format
from numsim.kernels.convert import blocks
from numsim.kernels.convert.float32 import largest
from numsim.quant.rule import Quant
from numsim.quant.scales import block_amax, over_blocks
from numsim.quant.table import quant_words

PIECE = 1 << 18  # elements: what is made of a large tensor on the way stays small
PART = 1 << 21  # those whose blocks get their scales together
WIDE_ROW = 1 << 20  # from here on a row of blocks is cut across


def pieces_of(
    shape: tuple[int, ...], blocks: tuple[int, ...] | None, size: int | None = None
) -> list[Any]:
    """Return slices of the first axis, whole blocks each, of about `size` elements (`PIECE`)."""
    if not shape:
        return [...]
    step = max((size or PIECE) // max(math.prod(shape[1:]), 1), 1)
    if blocks is not None:
        step = -(-step // blocks[0]) * blocks[0]
    return [slice(i, min(i + step, shape[0])) for i in range(0, max(shape[0], 1), step)]


class Panel(NamedTuple):
    """Slices of every axis of a tensor, and those of its scales."""

    where: tuple[slice, ...]
    scales: tuple[slice, ...]


def panels_of(shape: tuple[int, ...], sizes: tuple[int, ...]) -> list[Panel]:
    """Cut a tensor in all axes into parts of whole blocks, of about 2 `PIECE` elements.

    >>> panels_of((2, 1 << 20), (2, 16))[1].where
    (slice(0, 2, None), slice(262144, 524288, None))
    """
    blocks = [(-(-n // size), min(n, size)) for n, size in zip(shape, sizes, strict=True)]
    left = 2 * PIECE // max(math.prod(size for _, size in blocks), 1)
    cuts: list[list[tuple[slice, slice]]] = []
    for n, size, (count, _) in reversed(list(zip(shape, sizes, blocks, strict=True))):
        step = max(min(left, count), 1)
        left //= step
        starts = range(0, max(count, 1), step)
        ends = [min(i + step, count) for i in starts]
        cuts.append(
            [
                (slice(i * size, min(j * size, n)), slice(i, j))
                for i, j in zip(starts, ends, strict=True)
            ]
        )
    parts = itertools.product(*reversed(cuts))
    return [Panel(*(tuple(x) for x in zip(*part, strict=True))) for part in parts]


def amax_of(
    values: NDArray[Any], wide: Any, pieces: list[Any], rule: Quant, sizes: tuple[int, ...] | None,
    axis: int, done: Callable[[], object],
) -> NDArray[Any]:  # fmt: skip
    """Return the largest magnitude of every part that shares a scale."""
    found: list[Any] = []
    joins = rule.granularity == "per_tensor" or (sizes is None and axis % values.ndim == 0)
    for piece in pieces:
        done()
        if joins:
            found = _joined(found, np.maximum)
        part = as_type(values[piece], wide)
        if sizes is not None:
            one = block_amax(part, sizes)
            if len(pieces) == 1:
                return one
            if not found:  # filled in place: of small blocks there are many
                found.append(np.empty((-(-len(values) // sizes[0]), *one.shape[1:]), one.dtype))
            found[0][piece.start // sizes[0] :][: len(one)] = one
            continue
        along = None if rule.granularity == "per_tensor" else axis
        if along is None and wide is np.float32 and part.flags.c_contiguous and part.flags.aligned:
            found.append(np.uint32(largest(part.reshape(-1).view(np.uint32))).view(np.float32))
            continue
        if along is not None and blocks.covers(part, along, part.shape[along]):
            found.append(blocks.amax(part, along, part.shape[along]))
            continue
        high = np.max(part, axis=along, keepdims=along is not None, initial=0.0)
        low = np.min(part, axis=along, keepdims=along is not None, initial=0.0)
        found.append(np.abs(np.maximum(high, -low)))  # without the sign of a zero
    if joins:
        return np.asarray(_joined(found, np.maximum)[0])
    return found[0] if len(found) == 1 else np.concatenate(found)


def extreme_of(
    values: NDArray[Any], wide: Any, pieces: list[Any], rule: Quant, sizes: tuple[int, ...] | None,
    axis: int, done: Callable[[], object], which: np.ufunc,
) -> NDArray[Any]:  # fmt: skip
    """Return the least (np.minimum) or largest value of every part, zero included."""
    found: list[Any] = []
    joins = rule.granularity == "per_tensor" or (sizes is None and axis % values.ndim == 0)
    for piece in pieces:
        done()
        if joins:
            found = _joined(found, which)
        part = which(as_type(values[piece], wide), wide(0))
        if sizes is not None:
            found.append(over_blocks(part, sizes, which))
        else:
            along = None if rule.granularity == "per_tensor" else axis
            kept = along is not None
            found.append(np.asarray(which.reduce(part, axis=along, keepdims=kept, initial=0.0)))
    if joins:
        return np.asarray(_joined(found, which)[0])
    return found[0] if len(found) == 1 else np.concatenate(found)


def _joined(found: list[Any], which: np.ufunc) -> list[Any]:
    """Return extremes of the same parts as one: of a wide tensor each is large."""
    return [which(*found)] if len(found) == 2 else found


def computed_in(dtype: np.dtype[Any]) -> Any:
    """Return the type that holds the numbers of another: float32, or float64."""
    named = dtype.kind == "V" and hasattr(ml_dtypes, dtype.name)  # bfloat16 and relatives
    if not (dtype.kind in "iuf" or named) or dtype.itemsize > 8:
        raise NumsimError(
            f"quantize: inputs are float16, bfloat16, float32, float64 or integers; got "
            f"{dtype}; convert the array first"
        )
    return (
        np.float64
        if dtype == np.float64 or (dtype.kind in "iu" and dtype.itemsize > 2)
        else (np.float32)
    )


def check_signs(values: NDArray[Any], fmt: Format) -> None:
    """Refuse negative numbers in a format that has none: they would all become its lowest."""
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero(values < 0)
    if wrong.size:
        raise NumsimError(
            f"quantize: {fmt.label} has no negative numbers; {wrong.size} of {values.size} values "
            f"({100 * wrong.size / values.size:.3g} %) are negative, the first at index "
            f"{index_of(int(wrong[0]), values.shape)}; use a signed format, or clip them first: "
            "np.maximum(x, 0)"
        )


def check_finite(amax: Any, values: NDArray[Any], rule: Quant) -> None:
    """Raise NumsimError where a largest magnitude is not finite: how many, where, of which rule."""
    if not np.isfinite(amax).all():
        bad = ~np.isfinite(values.astype(np.float64))
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise NumsimError(
            f"quantize: the scales of {quant_words(rule)} need finite values; {int(bad.sum())} of "
            f"{values.size} are not, the first at index {index}; clip them, or use "
            "granularity='none'"
        )
