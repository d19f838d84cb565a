"""The product of one step of a recurrent layer: an operand is rounded, then meets packed weights.

Of an operand [B, K] the amax gives a scale; values are rounded to nearest even into the format and
saturate. The weights [K, N] are packed once for all steps and say how a unit sums:

- `Chain`: fused multiply-adds of float32 values of codes. Products of such values are exact, so
  that this is the chain of ``ideal.fp32``; sums of integers below 2**24 are exact in any order.
- `Fp8`: the 13-bit sums of Ada and Hopper, by the kernels of `numsim.kernels.gemm.hopper_paths`.

A scale that is not an ordinary number ends a step: the general path says what is wrong.
Proof: ``tests/kernels/test_recurrent_kernel.py`` compares every bit with the general path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.gemm import hopper_left, hopper_paths
from numsim.kernels.gemm.codes import GROUP, Fields
from numsim.kernels.gemm.fma import pack_rows_of_words, run_narrow, run_wide
from numsim.kernels.instructions import shl, shr, wide_vectors
from numsim.kernels.ir import fp8
from numsim.kernels.ir.simd import FMA_ROWS
from numsim.kernels.jit import expanded, inline, kernel

Array = NDArray[Any]

FLOAT, INTEGER, AS_IT_IS = 0, 1, 2
_ORDINARY = (np.float32(2.0**-100), np.float32(2.0**100))  # scales that divide without surprises
_RUN_WIDE = hopper_paths.RUN["avx512", hopper_paths.MANY, False]
_RUN_HALF = hopper_paths.RUN["avx2", hopper_paths.MANY, False]


class Rounding(NamedTuple):
    """How an operand becomes values of a format.

    `unit`: codes of fixed point count 1 / unit. `shift`: float32 fraction bits that a normal value
    loses. `magic`: adding it rounds a subnormal. `before`: multiplies the values first.
    """

    kind: int
    scaled: bool  # one scale for the tensor, else 1
    top: np.float32
    low: np.float32
    unit: np.float32
    shift: np.uint32
    least_normal: np.float32
    magic: np.float32
    before: np.float32


class Chain(NamedTuple):
    """Weights as `gemm.fma.pack_b` packs them; `wide`: the processor has AVX-512."""

    panels: Array
    wide: bool


class Fp8(NamedTuple):
    """Weights as `gemm.hopper.pack_b` packs them, not in place; how codes of both sides are read.

    `depth`: K. A panel's groups are multiples of 16 products.
    """

    panels: Array
    depth: int
    left: Fields
    right: Fields


class Weights(NamedTuple):
    """What a step knows: `scale` and `quantum` multiply the sums, as the operand's scale does."""

    packed: Any  # Chain or Fp8
    how: Rounding
    scale: np.float32
    quantum: np.float32


@inline
def rounded(x: Array, out: Array, how: Rounding) -> tuple[np.float32, int, int]:
    """Fill `out` with the values of the codes of x, without the scale; return the scale.

    Also returned: how many elements were 0 and how many are. A scale of -1: not an ordinary number.
    """
    one = np.float32(1.0)
    size = x.size
    source, values = x.reshape(-1), out.reshape(-1)
    bits = source.view(np.uint32)
    top, zeros, left = np.uint32(0), np.int32(0), np.int32(0)
    for i in range(size):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        top = magnitude if magnitude > top else top
        zeros = np.int32(zeros + np.int32(1 if magnitude == np.uint32(0) else 0))
    if top >= np.uint32(0x7F800000):
        return np.float32(-1.0), 0, 0
    scale = one
    if how.kind == AS_IT_IS:
        for i in range(size):
            values[i] = source[i]
        return one, int(zeros), int(zeros)
    if how.scaled:
        amax = np.uint32(top).view(np.float32)
        if amax != np.float32(0.0):
            scale = np.float32(amax / how.top)
            if not (scale >= _ORDINARY[0] and scale <= _ORDINARY[1]):
                return np.float32(-1.0), 0, 0
    elif how.before != one:
        for i in range(size):
            values[i] = source[i] * how.before
        source = values
    if how.kind == INTEGER:
        magic = np.float32(12582912.0)  # 1.5 * 2**23
        for i in range(size):
            v = np.float32(source[i] / scale) * how.unit
            v = v if v < how.top else how.top
            v = v if v > how.low else how.low
            code = np.float32(np.float32(v + magic) - magic)
            left = np.int32(left + np.int32(1 if code == np.float32(0.0) else 0))
            values[i] = code
        return scale, int(zeros), int(left)
    half, mask = np.uint32((1 << how.shift) >> 1) - np.uint32(1), ~np.uint32((1 << how.shift) - 1)
    for i in range(size):
        v = np.float32(source[i] / scale)
        word = np.float32(v).view(np.uint32)
        sign = word & np.uint32(0x80000000)
        a = word & np.uint32(0x7FFFFFFF)
        magnitude = np.uint32(a).view(np.float32)
        odd = np.uint32(shr(a, how.shift) & np.uint32(1))
        normal = np.uint32(np.uint32(a + half + odd) & mask).view(np.float32)
        small = np.float32(np.float32(magnitude + how.magic) - how.magic)
        m = normal if magnitude >= how.least_normal else small
        m = m if m < how.top else how.top
        left = np.int32(left + np.int32(1 if m == np.float32(0.0) else 0))
        values[i] = np.uint32(np.float32(m).view(np.uint32) | sign).view(np.float32)
    return scale, int(zeros), int(left)


@inline
def codes_of(x: Array, codes: Array, how: Rounding) -> tuple[np.float32, int, int]:
    """Fill `codes` [at least B, at least K] with 8-bit floats of x [B, K]; else as `rounded`.

    What is behind the codes of a row stays.
    """
    top, zeros, left = np.uint32(0), np.int32(0), np.int32(0)
    bits = x.reshape(-1).view(np.uint32)
    for i in range(bits.size):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        top = magnitude if magnitude > top else top
        zeros = np.int32(zeros + np.int32(1 if magnitude == np.uint32(0) else 0))
    if top >= np.uint32(0x7F800000):
        return np.float32(-1.0), 0, 0
    scale = np.float32(1.0)
    if how.scaled:
        amax = np.uint32(top).view(np.float32)
        if amax != np.float32(0.0):
            scale = np.float32(amax / how.top)
            if not (scale >= _ORDINARY[0] and scale <= _ORDINARY[1]):
                return np.float32(-1.0), 0, 0
    if codes.shape[1] == x.shape[1]:
        left = _codes(x.reshape(-1), scale, codes.reshape(-1), how)
    else:
        for b in range(x.shape[0]):
            left = np.int32(left + _codes(x[b], scale, codes[b], how))
    return scale, int(zeros), int(left)


@inline
def _codes(x: Array, scale: np.float32, codes: Array, how: Rounding) -> np.int32:
    """Encode numbers over a scale, as `convert.float32.float_rne`; return how many are 0 then."""
    least, cut = np.float32(how.least_normal).view(np.uint32), how.shift
    magic = shl(cut, np.uint32(23))
    base = np.uint32(magic + shr(least, cut))
    clamp = np.float32(how.top).view(np.uint32)
    left = np.int32(0)
    for i in range(x.size):
        v = np.float32(np.float32(x[i] * how.before) / scale)
        word = np.float32(v).view(np.uint32)
        c = min(np.uint32(word & np.uint32(0x7FFFFFFF)), clamp)
        e = max(np.uint32(c & np.uint32(0x7F800000)), least)
        s = np.float32(np.uint32(c).view(np.float32) + np.uint32(e + magic).view(np.float32))
        q = np.uint32(np.uint32(np.uint32(s.view(np.uint32) - e) + shr(e, cut)) - base)
        left = np.int32(left + np.int32(1 if q == np.uint32(0) else 0))
        codes[i] = np.uint8(q | np.uint32(shr(word, np.uint32(24)) & np.uint32(0x80)))
    return left


@inline
def _counted(found: tuple[np.float32, int, int], x: Array, w: Weights, lost: Array) -> np.float32:
    """Return the scale of x, -1 for an unusual one; count elements that are not 0 and lost ones."""
    scale, zeros, left = found
    if scale >= np.float32(0.0) and w.how.kind != AS_IT_IS:
        lost[0] += x.size - zeros
        lost[1] += left - zeros
    return scale


@inline
def _scaled(sums: Array, w: Weights, scale: np.float32, out: Array) -> None:
    factor, quantum = np.float32(scale * w.scale), w.quantum
    for b in range(out.shape[0]):
        line, to = sums[0, b], out[b]
        for n in range(to.size):
            to[n] = np.float32(np.float32(line[n] * quantum) * factor)


# Each unit has two functions: `room` makes the scratch of its steps; a step [B, K] -> `out` [B, N]
# is False for an unusual scale, and then has written nothing.


@inline
def room_chain(batch: int, w: Weights) -> tuple[Array, Array, Array]:
    """Return room for values, packed rows and whole panels of sums."""
    panels = w.packed.panels
    depth, columns = panels.shape[2], panels.shape[1] * panels.shape[3]
    tiles = -(-batch // FMA_ROWS)
    rows = np.zeros((1, tiles, depth, FMA_ROWS, 1), np.uint32)
    return (
        np.empty((batch, depth), np.float32), rows, np.empty((1, batch, columns), np.float32),
    )  # fmt: skip


@inline
def step_chain(x: Array, w: Weights, room: Any, lost: Array, out: Array) -> bool:
    """Sum by fused multiply-adds."""
    values, rows, sums = room
    scale = _counted(rounded(x, values, w.how), x, w, lost)
    if scale < np.float32(0.0):
        return False
    panels, wide = w.packed
    tiles, depth = rows.shape[1], rows.shape[2]
    words = values.view(np.uint32).reshape(1, values.shape[0], depth)
    pack_rows_of_words(words, rows, 0, depth // 16 if wide else 0, 0, tiles)
    sums[...] = np.float32(0.0)
    left = rows.view(np.float32)
    if wide:
        run_wide(sums, left, panels, depth, depth, tiles, 0, panels.shape[1])
    else:
        run_narrow(sums, left, panels, depth, depth, tiles, 0, panels.shape[1])
    _scaled(sums, w, scale, out)
    return True


@inline
def _block(group: int) -> int:
    """Return for how many groups the planes of a panel stay in the first cache."""
    return max(fp8.TURNED // group, 1)


@inline
def _room_fp8(batch: int, w: Weights, tables: Array) -> tuple[Array, Array, Array, Array]:
    """Return room for codes, planes of codes and whole panels of sums; what reads the codes."""
    count, groups, columns, group = w.packed.panels.shape[1:]
    tiles, block = -(-batch // fp8.ROWS), _block(group)
    whole, words = -(-groups // block) * block, group // fp8.RUN * fp8.A_WORDS // fp8.ROWS
    return (
        np.zeros((tiles, fp8.ROWS, groups * group), np.uint8),  # rows and k that are not: zero
        np.empty((1, tiles, whole, fp8.ROWS, words), np.int32),
        np.empty((1, batch, count * columns), np.float32),
        tables,
    )


@inline
def room_wide(batch: int, w: Weights) -> tuple[Array, Array, Array, Array]:
    """Return what `step_wide` needs."""
    return _room_fp8(batch, w, hopper_left.left_tables(w.packed.left))


@inline
def room_half(batch: int, w: Weights) -> tuple[Array, Array, Array, Array]:
    """Return what `step_half` needs."""
    return _room_fp8(batch, w, np.empty(0, np.uint8))


@expanded
def _step_fp8(
    write: Callable[..., None], run: Callable[..., None], x: Array, w: Weights, room: Any,
    lost: Array, out: Array,
) -> bool:  # fmt: skip
    codes, planes, sums, tables = room
    scale = _counted(codes_of(x, codes.reshape(-1, codes.shape[2]), w.how), x, w, lost)
    ordinary = bool(scale >= np.float32(0.0))
    if ordinary:
        panels, left, right = w.packed.panels, w.packed.left, w.packed.right
        tiles, groups, runs = codes.shape[0], panels.shape[2], panels.shape[4] // fp8.RUN
        block = _block(panels.shape[4])
        flat = planes.reshape(-1)
        write(codes, flat, block * runs, left, tables, 0, tiles)
        sums[...] = np.float32(0.0)
        rows = -(-tiles // -(-tiles // GROUP))
        pieces = -(-tiles // rows) * panels.shape[1]
        run(sums, planes, panels, groups, block, rows, 0, pieces, runs, right)
        _scaled(sums, w, scale, out)
    return ordinary


@inline
def step_wide(x: Array, w: Weights, room: Any, lost: Array, out: Array) -> bool:
    """Sum as Hopper and Ada do, with AVX-512."""
    return _step_fp8(hopper_left.planes_wide, _RUN_WIDE, x, w, room, lost, out)


@inline
def step_half(x: Array, w: Weights, room: Any, lost: Array, out: Array) -> bool:
    """Sum as Hopper and Ada do, with AVX2."""
    return _step_fp8(hopper_left.planes_half, _RUN_HALF, x, w, room, lost, out)


# ---------------------------------------------------------------- one step as an entry point


@kernel
def _product_chain(x: Array, w: Weights, lost: Array, out: Array) -> bool:
    wide_vectors()
    return step_chain(x, w, room_chain(x.shape[0], w), lost, out)


@kernel
def _product_wide(x: Array, w: Weights, lost: Array, out: Array) -> bool:
    wide_vectors()
    return step_wide(x, w, room_wide(x.shape[0], w), lost, out)


@kernel
def _product_half(x: Array, w: Weights, lost: Array, out: Array) -> bool:
    wide_vectors()
    return step_half(x, w, room_half(x.shape[0], w), lost, out)


# By the unit's sums, and for FP8 the path: (x [B, K], weights, lost [2], out [B, N]) -> whether the
# scale was ordinary. `lost` counts elements of x that are not 0, and those that became 0.
PRODUCT = {"chain": _product_chain, "avx512": _product_wide, "avx2": _product_half}
