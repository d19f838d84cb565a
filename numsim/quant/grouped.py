"""A tensor as rows of the values that share a scale."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Group(NamedTuple):
    """Rows [count, size] of values, and where they and their scales belong."""

    rows: Array
    where: tuple[slice, ...]  # of the tensor
    scales: tuple[slice, ...]  # of the scales
    shape: tuple[int, ...]  # of those scales
    folded: tuple[int, ...]  # the part's shape with every axis as (blocks, size of a block)

    def put(self, rows: Array, out: Array) -> None:
        """Write rows back to where they came from."""
        n = len(self.shape)
        each = (*self.folded[::2], *self.folded[1::2])
        turned = rows.reshape(each).transpose([i // 2 + n * (i % 2) for i in range(2 * n)])
        part = out[self.where]
        part[...] = turned.reshape(part.shape)


def groups(values: Array, sizes: tuple[int, ...]) -> Iterator[Group]:
    """Cut a tensor into blocks of `sizes`: whole ones in one group, short ones in others.

    >>> [(g.rows.tolist(), g.scales) for g in groups(np.arange(5), (2,))]
    [([[0, 1], [2, 3]], (slice(0, 2, None),)), ([[4]], (slice(2, 3, None),))]
    """
    spans = []
    for n, size in zip(values.shape, sizes, strict=True):
        whole = n // size * size
        spans.append([(a, b) for a, b in ((0, whole), (whole, n)) if a < b])
    n = values.ndim
    for span in itertools.product(*spans):
        where = tuple(slice(a, b) for a, b in span)
        each = [min(size, b - a) for size, (a, b) in zip(sizes, span, strict=True)]
        shape = tuple((b - a) // e for (a, b), e in zip(span, each, strict=True))
        folded = tuple(itertools.chain(*zip(shape, each, strict=True)))
        part = values[where].reshape(folded)
        rows = part.transpose([*range(0, 2 * n, 2), *range(1, 2 * n, 2)])
        scales = tuple(
            slice(a // size, -(-b // size)) for size, (a, b) in zip(sizes, span, strict=True)
        )
        count = int(np.prod(shape, dtype=np.int64))
        yield Group(np.ascontiguousarray(rows).reshape(count, -1), where, scales, shape, folded)


def shared_by(
    shape: tuple[int, ...], granularity: str, blocks: tuple[int, ...] | None, axis: int
) -> tuple[int, ...]:
    """Return the size along every axis of what shares a scale, in any granularity.

    >>> shared_by((4, 6), "per_token", None, -1), shared_by((4, 6), "per_tensor", None, -1)
    ((1, 6), (4, 6))
    """
    if blocks is not None:
        return blocks
    if granularity == "per_tensor":
        return tuple(max(n, 1) for n in shape)
    sizes = [1] * len(shape)
    sizes[axis] = max(shape[axis], 1)
    return tuple(sizes)
