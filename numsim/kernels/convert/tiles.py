"""Blocks of numbers in the first cache: tiles of words, read from memory along or down.

A tile is the float32 words of a few blocks. Those down the columns of memory are copied line by
line, those along its rows may be turned, so that blocks stand side by side, one a lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.instructions import wide_vectors
from numsim.kernels.ir.block_codes import block_tops, same_or
from numsim.kernels.jit import inline

Array = Any
SINGLE, HALF, BRAIN = 0, 1, 2  # what words of x are: float32, float16, bfloat16
MAGNITUDE = np.uint32(0x7FFFFFFF)  # of a float32 word
_COLUMNS, _LINES = 256, 8192  # of a piece whose blocks run down columns: its width and size
_ACROSS, _WORDS = 128, 4096  # of a tile that is turned


@inline
def singles(x: Array, kind: int, out: Array) -> None:
    """Fill `out` with the float32 bits of numbers, given as bits."""
    wide_vectors()
    x, out = x[:], out[: x.size]
    if kind == SINGLE:
        for i in range(x.size):
            out[i] = x[i]
    elif kind == BRAIN:
        for i in range(x.size):
            out[i] = np.uint32(np.uint32(x[i]) << np.uint32(16))
    else:
        binade = np.uint32(113 << 23).view(np.float32)  # of subnormals: 2**-14 and its fraction
        for i in range(x.size):
            word = np.uint32(x[i])
            a = np.uint32(np.uint32(word & np.uint32(0x7FFF)) << np.uint32(13))
            small = np.uint32(a + np.uint32(113 << 23)).view(np.float32) - binade
            normal = np.uint32(a + np.uint32(112 << 23))
            beyond = np.uint32(a + np.uint32(224 << 23))  # Inf and NaN
            size = normal if a >= np.uint32(1 << 23) else np.float32(small).view(np.uint32)
            size = beyond if a >= np.uint32(31 << 23) else size
            sign = np.uint32(np.uint32(word & np.uint32(0x8000)) << np.uint32(16))
            out[i] = np.uint32(size | sign)


@inline
def words_of(x: Array, kind: int, room: Array) -> Any:
    """Return the float32 bits of numbers, given as bits: x itself, or `room`, filled."""
    if kind != SINGLE:
        singles(x, kind, room)
    return same_or(x, room[: x.size])


@inline
def tops_along(bits: Array, size: int, tops: Array) -> None:
    """Fill tops with the bits of the largest magnitude of each block of `size` words."""
    done = 0
    if size % 16 == 0:
        runs = tops.size // 16
        block_tops(bits, size // 16, runs, tops)
        done = 16 * runs
    for block in range(done, tops.size):
        row, most = bits[block * size : (block + 1) * size], np.uint32(0)
        for i in range(row.size):
            a = np.uint32(row[i] & MAGNITUDE)
            most = a if a > most else most
        tops[block] = most


@inline
def magnitude(word: Any) -> Any:
    """Return the size of a float32 number, given as bits."""
    return np.uint32(word & MAGNITUDE).view(np.float32)


@inline
def columns_of(block: int) -> int:
    """Return how many columns pass together, so that their numbers stay in the cache."""
    return int(max(min(_COLUMNS, _LINES // block), 16))


@inline
def together(size: int) -> int:
    """Return how many blocks of `size` numbers stand side by side in the first cache."""
    return int(max(min(_WORDS // size, _ACROSS), 16))


@inline
def turned(rows: Array, size: int, tile: Array) -> None:
    """Copy blocks of `size` words that follow each other to lines of as many as there are."""
    width = rows.size // size
    for block in range(width):
        for i in range(size):
            tile[i * width + block] = rows[block * size + i]


@inline
def turned_back(codes: Array, out: Array) -> None:
    """Copy a tile of codes to blocks [width, size]."""
    width, size = out.shape
    for block in range(width):
        for i in range(size):
            out[block, i] = codes[i * width + block]


@inline
def taken(x: Array, kind: int, at: int, width: int, tile: Array) -> None:
    """Copy columns at:at + width of x [size, inner] to a tile."""
    for row in range(x.shape[0]):
        singles(x[row, at : at + width], kind, tile[row * width : (row + 1) * width])


@inline
def given(codes: Array, out: Array, at: int, width: int) -> None:
    """Copy a tile of codes to columns at:at + width of out [size, inner]."""
    for row in range(out.shape[0]):
        out[row, at : at + width] = codes[row * width : (row + 1) * width]
