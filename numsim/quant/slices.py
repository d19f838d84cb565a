"""Parts of quantised tensors: codes and the scales that belong to them."""

from __future__ import annotations

import operator
from typing import Any

from numpy.typing import NDArray

from numsim.errors import NumsimError


def cut(
    key: Any, shape: tuple[int, ...], scales: tuple[NDArray[Any] | None, ...],
    blocks: tuple[int, ...] | None,
) -> tuple[tuple[int | slice, ...], list[Any], tuple[int, ...] | None]:  # fmt: skip
    """Return (index of codes, scales of the part, its block shape) of ``q[key]``.

    Raises
    ------
    NumsimError
        For an index that is no integer or slice, or that cuts through a block.
    IndexError
        For an index beyond an axis, as NumPy does.
    """
    keys = _keys(key, len(shape))
    parts: list[int | slice] = []
    places: list[int | slice] = []  # of the scales
    for axis, (index, size) in enumerate(zip(keys, shape, strict=True)):
        block = 1 if blocks is None else blocks[axis]
        parts.append(index)
        places.append(index if block == 1 else _of_blocks(index, size, block, axis))
    made = [None if s is None else _scale(s, places, blocks is not None) for s in scales]
    kept = None
    if blocks is not None:
        kept = tuple(b for b, i in zip(blocks, keys, strict=True) if isinstance(i, slice))
    return tuple(parts), made, kept


def _keys(key: Any, ndim: int) -> list[int | slice]:
    """Return one integer or slice for every axis."""
    given = list(key) if isinstance(key, tuple) else [key]
    if sum(k is Ellipsis for k in given) == 1:
        at = next(i for i, k in enumerate(given) if k is Ellipsis)
        given[at : at + 1] = [slice(None)] * (ndim - len(given) + 1)
    if len(given) > ndim:
        raise IndexError(f"a QTensor of {ndim} axes takes at most {ndim} indices; got {len(given)}")
    keys: list[int | slice] = []
    for k in given:
        try:
            keys.append(k if isinstance(k, slice) else operator.index(k))
        except TypeError:
            k = None
        if isinstance(k, bool) or k is None:
            raise NumsimError(
                "QTensor: an index is integers and slices, which keep scales with their codes; got "
                f"{key!r:.60}; np.asarray(q)[...] takes every index of NumPy"
            )
    return keys + [slice(None)] * (ndim - len(keys))


def _of_blocks(index: int | slice, size: int, block: int, axis: int) -> int | slice:
    """Return the place of whole blocks; the last of an axis may be short."""
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        whole = start % block == 0 and (stop % block == 0 or stop == size)
        if step == 1 and (whole or stop <= start):
            return slice(start // block, max(-(-stop // block), start // block))
    raise NumsimError(
        f"QTensor: a slice keeps whole blocks; axis {axis} of {size} has blocks of {block}; got "
        f"{index}; cut at multiples of {block}, or take np.asarray(q)[...]"
    )


def _scale(scale: NDArray[Any], places: list[int | slice], blocked: bool) -> Any:
    full = scale if blocked else scale.reshape((1,) * (len(places) - scale.ndim) + scale.shape)
    if not full.ndim or (not blocked and scale.size == 1):
        return scale.reshape(()) if scale.size == 1 and not blocked else scale
    index = tuple(
        (0 if not isinstance(place, slice) else slice(None))
        if not blocked and full.shape[axis] == 1
        else place
        for axis, place in enumerate(places)
    )
    return full[index]
