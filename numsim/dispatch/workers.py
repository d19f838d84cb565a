"""How a worker walks over an array: block by block, whatever its type and layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numsim.kernels import jit

Worker = Callable[[NDArray[Any], NDArray[Any], int, NDArray[np.uint64]], tuple[int, int]]
GRAIN = 1 << 18  # elements of a thread, at least: fewer are done before a second one has begun
BLOCK = 1 << 13  # elements of a copied block
_PIECE = 1 << 16  # quotients at a time
NO_RANDOM = np.empty(0, np.uint64)
NONE = (0, -1)


class Plan(NamedTuple):
    """Everything that decides a code besides the format and the number."""

    mode: int
    overflow: int
    bits: int  # random bits, 64: all
    variant: int
    seed: int
    offset: int
    nan_code: int  # -1: NaN is refused
    nan_sign: int = 0  # sign bit that a NaN keeps
    nan_drop: int = 52  # how many of its 52 float64 fraction bits a NaN loses


def of_quotient(worker: Worker, by: np.float32) -> Worker:
    """Divide piece by piece: quotients stay in the second cache until they are codes."""

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if x.size > _PIECE:
            return in_blocks(work, x, out, start, random, _PIECE)
        return worker(np.divide(x, by), out, start, random)

    return work


def over_blocks(
    x: NDArray[Any], dtype: DTypeLike, out: NDArray[Any], worker: Worker,
    random: NDArray[Any] | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Run `worker` over all of `x` as `dtype`, in C order and on every thread; add its counts."""
    found: list[tuple[int, int]] = []
    if x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned and random is None:
        flat = x.reshape(-1)
        if 0 < x.size <= GRAIN:
            return worker(flat, out, 0, NO_RANDOM)
        jit.over_range(
            lambda i, j: found.append(worker(flat[i:j], out[i:j], i, NO_RANDOM)),
            x.size, grain=GRAIN,
        )  # fmt: skip
    else:
        arrays = [x] if random is None else [x, random]
        types = [np.dtype(dtype), np.dtype(np.uint64)][: len(arrays)]
        jit.over_range(
            lambda i, j: found.extend(_copied(arrays, types, out, worker, i, j)),
            x.size, grain=GRAIN,
        )  # fmt: skip
    places = [first for count, first in found if count]
    return sum(count for count, _ in found), min(places, default=-1)


def _copied(
    arrays: list[NDArray[Any]], types: list[np.dtype[Any]], out: NDArray[Any], worker: Worker,
    start: int, stop: int,
) -> list[tuple[int, int]]:  # fmt: skip
    options: list[Any] = [["readonly", "contig", "aligned", "nbo"]] * len(arrays)
    walk = np.nditer(
        arrays, ["external_loop", "buffered", "ranged"], options, types, order="C",
        casting="unsafe", buffersize=BLOCK,
    )  # fmt: skip
    walk.iterrange = (start, stop)  # type: ignore[misc]  # NumPy's stub forgets the setter
    found = []
    with np.errstate(all="ignore"):  # signalling NaN
        for blocks in walk:
            block, random = blocks if isinstance(blocks, tuple) else (blocks, NO_RANDOM)
            end = start + block.size
            found.append(worker(block, out[start:end], start, random))
            start = end
    return found


def in_blocks(
    work: Worker, x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64],
    size: int = BLOCK,
) -> tuple[int, int]:  # fmt: skip
    """Cut a big piece up: the worker's temporaries stay small."""
    cuts = [slice(i, i + size) for i in range(0, x.size, size)]
    parts = [work(x[c], out[c], start + c.start, random[c]) for c in cuts]
    return sum(n for n, _ in parts), min((at for n, at in parts if n), default=-1)
