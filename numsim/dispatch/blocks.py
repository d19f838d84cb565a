"""Which kernel stores blocks of numbers in one pass over memory: by type, place and format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.dispatch.rows import kernels_of, power_rows
from numsim.formats import Format
from numsim.kernels.convert import e2m1_blocks, hif4
from numsim.kernels.convert import four_bit_blocks as four_bits
from numsim.kernels.convert.block_codes import Power
from numsim.kernels.convert.blocks import covers, folded
from numsim.kernels.convert.tiles import BRAIN, HALF, SINGLE
from numsim.kernels.ir import simd
from numsim.kernels.jit import grain_of, over_range

Array = NDArray[Any]
_KINDS: dict[np.dtype[Any], tuple[int, Any]] = {
    np.dtype(np.float32): (SINGLE, np.uint32), np.dtype(np.float16): (HALF, np.uint16),
    np.dtype(ml_dtypes.bfloat16): (BRAIN, np.uint16),
}  # fmt: skip
_FEW = 1 << 12  # numbers of 16 bits that NumPy converts as quickly


class Stored(NamedTuple):
    """What is filled: codes, in the shape of the numbers; scales and their codes, one a block."""

    codes: Array
    scales: Array
    scale_codes: Array


def covers_blocks(x: Array, axis: int, block: int) -> bool:
    """Whether kernels take blocks of an array: in C order, whole ones where they lie in rows."""
    return x.flags.aligned and covers(x, axis, block, _KINDS)


def encode_blocks(f: Format, x: Array, axis: int, block: int, power: Power, made: Stored) -> bool:
    """Fill codes of ``fp32(x / scale)``, to nearest even and saturated, and scales 2**n.

    Returns False, with `made` undefined, where no kernel does it: for a format of its own kind,
    numbers that are not finite, a scale beyond float32. `covers_blocks` is asked before.
    """
    works = kernels_of(f, simd.enabled())
    rows = power_rows(f, power, simd.enabled())
    if works is None or rows is None:
        return False
    kind, lines, (scales, bytes_), (codes,), size, count = laid(x, axis, block, made[1:], made[:1])
    if lines.ndim == 2:
        return rows(lines, kind, codes, scales, bytes_) > 0
    good: list[bool] = []
    _over(count, x.size, lambda i, j: good.append(
        works.down(lines, kind, size, power, works.how, scales, bytes_, codes, i, j)
    ))  # fmt: skip
    return all(good)


def encode_e2m1(x: Array, axis: int, block: int, divisors: Array) -> Array:
    """Return codes of E2M1 of x / divisor, float64 of at most 28 bits, one a block.

    `covers_blocks` of the array is asked before.
    """
    made, wide = np.empty(x.shape, np.uint8), simd.enabled()
    kind, lines, (by,), (codes,), size, count = laid(x, axis, block, (divisors,), (made,))
    if lines.ndim == 2:
        _over(count, x.size, lambda i, j: e2m1_blocks.e2m1_along(
            lines, kind, by, wide, codes, i, j
        ))  # fmt: skip
    else:
        _over(count, x.size, lambda i, j: e2m1_blocks.e2m1_down(
            lines, kind, size, by, codes, i, j
        ))  # fmt: skip
    return made


def choose_four(x: Array, axis: int, block: int, six: Array, four: Array, absolute: bool) -> Array:
    """Return which blocks of E2M1 have the smaller error under the second of two scales, float64.

    Errors are squares, or `absolute`. `covers_blocks` of the array is asked before.
    """
    chosen = np.empty(six.shape, np.bool_)
    kind, lines, (one, other, out), _, size, count = laid(x, axis, block, (six, four, chosen))
    if lines.ndim == 2:
        _over(count, x.size, lambda i, j: four_bits.four_over_six_along(
            lines, kind, one, other, absolute, out, i, j
        ))  # fmt: skip
    else:
        _over(count, x.size, lambda i, j: four_bits.four_over_six_down(
            lines, kind, size, one, other, absolute, out, i, j
        ))  # fmt: skip
    return chosen


def encode_if4(x: Array, axis: int, block: int, scales: Array, codes: Array) -> Array:
    """Fill codes of IF4 in half steps under scales, float64; return which blocks hold integers.

    `covers_blocks` of the array is asked before; codes are in C order.
    """
    found = np.empty(scales.shape, np.bool_)
    kind, lines, (by, out), (made,), size, count = laid(x, axis, block, (scales, found), (codes,))
    if lines.ndim == 2:
        _over(count, x.size, lambda i, j: four_bits.if4_along(lines, kind, by, out, made, i, j))
    else:
        _over(count, x.size, lambda i, j: four_bits.if4_down(
            lines, kind, size, by, out, made, i, j
        ))  # fmt: skip
    return found


def encode_hif4(x: Array, axis: int, inverse: Array, codes: Array) -> None:
    """Fill codes of HiF4 in quarters; `inverse` is what whole blocks of 64 are multiplied by.

    `covers_blocks` of the array is asked before; codes are in C order.
    """
    kind, lines, (by,), (made,), _, count = laid(x, axis, 64, (inverse,), (codes,))
    if lines.ndim == 2:
        _over(count, x.size, lambda i, j: hif4.hif4_along(lines, kind, by, made, i, j))
    else:
        _over(count, x.size, lambda i, j: hif4.hif4_down(lines, kind, by, made, i, j))


def laid(
    x: Array, axis: int, block: int, of_blocks: tuple[Array, ...], of_values: tuple[Array, ...] = ()
) -> tuple[int, Array, list[Array], list[Array], int, int]:
    """Return the kind of x, then arrays as kernels of blocks take them, a block's size, pieces.

    Blocks in rows: x and what each value has as [blocks, size], what each block has as [blocks].
    Blocks down columns: all as [outer, A, inner]; room for a whole block is made.
    """
    kind, word = _KINDS[x.dtype]
    lines, *values = (folded(array, axis) for array in (x.view(word), *of_values))
    each = [folded(array, axis) for array in of_blocks]
    if lines.shape[2] == 1:
        lines, *values = (array.reshape(-1, block) for array in (lines, *values))
        return kind, lines, [array.reshape(-1) for array in each], values, block, len(lines)
    pieces = each[0].shape[0] * each[0].shape[1]
    return kind, lines, each, values, min(block, lines.shape[1]), pieces


def as_type(x: Array, dtype: Any) -> Array:
    """Return numbers as float32 or float64, without a copy where they are; of 16 bits by a kernel.

    >>> as_type(np.float16([[0.5, -2.0]]), np.float32)
    array([[ 0.5, -2. ]], dtype=float32)
    """
    kind, word = _KINDS.get(x.dtype, (SINGLE, np.uint32))
    plain = kind == SINGLE or dtype is not np.float32 or x.size < _FEW
    if plain or not (x.flags.c_contiguous and x.flags.aligned):
        return x.astype(dtype, copy=False)
    out = np.empty(x.shape, np.float32)
    source, words = x.view(word).reshape(-1), out.reshape(-1).view(np.uint32)
    _over(x.size, x.size, lambda i, j: e2m1_blocks.widen(source, kind, words, i, j))
    return out


def _over(pieces: int, size: int, work: Callable[[int, int], object]) -> None:
    over_range(work, pieces, grain=grain_of(pieces, size))
