"""HiF4: blocks of 64 numbers of four bits under scales of three levels, in one pass over memory.

Proof: ``tests/quant/test_four_bits.py`` compares with the general way of `numsim.quant.four_bits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.convert.tiles import (
    MAGNITUDE,
    columns_of,
    given,
    magnitude,
    singles,
    taken,
    together,
    turned,
    turned_back,
)
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import inline, kernel

Array = Any


@inline
def _hif4(tile: Array, inverse: Array, codes: Array, room: Any) -> None:
    """Store 64 lines of blocks in quarters under three levels of scales, the first given."""
    width = inverse.size
    tops, up, down = room
    for four in range(16):
        line = tops[four, :width]
        part = tile[4 * four * width : 4 * (four + 1) * width]
        a, b = part[:width], part[width : 2 * width]
        c, d = part[2 * width : 3 * width], part[3 * width :]
        for j in range(width):
            one = max(np.uint32(a[j] & MAGNITUDE), np.uint32(b[j] & MAGNITUDE))
            other = max(np.uint32(c[j] & MAGNITUDE), np.uint32(d[j] & MAGNITUDE))
            line[j] = max(one, other)
    for four in range(16):
        own, beside = tops[four, :width], tops[four ^ 1, :width]
        for j in range(width):
            both = np.uint32(max(own[j], beside[j]))
            eight = np.float64(both.view(np.float32)) * inverse[j]
            level = 2.0 if eight >= 4.0 else 1.0
            most = np.float64(np.uint32(own[j]).view(np.float32)) * inverse[j]
            factor = level * (2.0 if most >= 2.0 * level else 1.0)
            up[j], down[j] = inverse[j] * (4.0 / factor), factor  # a power of two: exact
        for i in range(4):
            line = tile[(4 * four + i) * width : (4 * four + i + 1) * width]
            out = codes[(4 * four + i) * width : (4 * four + i + 1) * width]
            for j in range(width):
                m = np.float64(magnitude(line[j]))
                q = np.int32(min(np.floor(m * up[j] + 0.5), 7.0) * down[j])
                out[j] = -q if np.int32(line[j]) < np.int32(0) else q


@inline
def _hif4_room(width: int) -> Any:
    return np.empty((16, width), np.uint32), np.empty(width), np.empty(width)


@kernel
def hif4_along(x: Array, kind: int, inverse: Array, codes: Array, start: int, stop: int) -> None:
    """Store rows start:stop of x [blocks, 64] in quarters."""
    wide_vectors()
    most = together(64)
    bits, tile = np.empty(most * 64, np.uint32), np.empty(most * 64, np.uint32)
    made, room = np.empty(most * 64, codes.dtype), _hif4_room(most)
    for at in range(start, stop, most):
        end = min(at + most, stop)
        n = (end - at) * 64
        singles(x[at:end].reshape(-1), kind, bits[:n])
        turned(bits[:n], 64, tile)
        _hif4(tile[:n], inverse[at:end], made[:n], room)
        turned_back(made[:n], codes[at:end])


@kernel
def hif4_down(x: Array, kind: int, inverse: Array, codes: Array, start: int, stop: int) -> None:
    """Do `hif4_along` for blocks start:stop down the axis A of x [outer, A, inner]."""
    wide_vectors()
    inner, count, most = x.shape[2], inverse.shape[1], columns_of(64)
    tile, made = np.empty(64 * most, np.uint32), np.empty(64 * most, codes.dtype)
    room = _hif4_room(most)
    for piece in range(start, stop):
        plane, first = piece // count, piece % count * 64
        for at in range(0, inner, most):
            width = min(most, inner - at)
            taken(x[plane, first : first + 64], kind, at, width, tile[: 64 * width])
            by = inverse[plane, piece % count, at : at + width]
            _hif4(tile[: 64 * width], by, made[: 64 * width], room)
            given(made[: 64 * width], codes[plane, first : first + 64], at, width)
