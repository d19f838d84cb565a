"""Matrix products by Blackwell's block-scaled FP4 rule, with AVX2; `rules.scaled_fp4` defines it.

Operands are FP4 codes with scales of every run of 16 k, E8M0 or E4M3, as significands and
exponents; both are packed by lines, a step of 64 k at a time. Proof:
``tests/targets/test_block_products.py`` compares every bit with the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm.codes import (
    BLOCK,
    PackedCodes,
    codes_at,
    codes_types,
    cover_codes,
    pack_codes,
    run_codes,
    scratch_words,
)
from numsim.kernels.gemm.scales import Scales, by_columns
from numsim.kernels.ir import fp4 as simd_fp4
from numsim.kernels.ir import simd
from numsim.kernels.ir.align import NO_TERM
from numsim.kernels.ir.fp4 import (
    A_WORDS,
    B_CODES,
    B_REST,
    B_WORDS,
    COLUMNS,
    FEW_WORDS,
    LIFT,
    RUNS,
    STEP,
    left_fp4,
)
from numsim.kernels.jit import PACKED, grain_of, inline, kernel, over_range

Array = npt.NDArray[Any]
_ROWS, RUN = 2, STEP // RUNS
FEW = 3  # rows up to which it pays to read codes for each anew
_LONG = 64  # steps of one call for few rows
_BLOCK = max(BLOCK // STEP, 1)  # steps of one call
_LEAST = -300  # below the exponents of two scales and of any accumulator
_ORDER = np.arange(STEP)


class ScaleCodes(NamedTuple):
    """Scales of one operand, of every run of 16 k, and what each of 256 codes means.

    `exponents`, `significands` [256] int32.
    """

    codes: Scales
    exponents: Array
    significands: Array


class PackedFp4(NamedTuple):
    """The right operand, packed once: `scales` [batch, panels, steps, runs x columns] int32.

    A scale is its exponent in the lower 16 bits and its significand in the upper. `zeros` [batch,
    panels, steps] uint8: the most that a run of a column has.
    """

    codes: PackedCodes
    scales: Array
    zeros: Array


@inline
def _tile(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    fraction, align, least = rule
    simd_fp4.fp4_tile(
        _ROWS, a, a_at, b, b_at, out, out_at, stride, steps, fraction, align, least
    )  # fmt: skip
    return _ROWS


@inline
def _most(zeros: Array, k: int, count: int) -> np.int32:
    most = np.int32(0)
    for step in range(k, k + count):
        most = max(most, np.int32(zeros[step]))
    return most


@inline
def _planes(b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any) -> Array:
    scales, zeros, twice = how
    simd_fp4.right_fp4(codes_at(b, batch, panel, k, count), count, words, twice)
    each = RUNS * COLUMNS
    for step in range(count):
        line, at = scales[batch, panel, k + step], step * B_WORDS + B_CODES + each
        for i in range(each):
            scale = line[i]
            words[at + i] = np.int32(np.int16(scale))
            words[at + each + i] = np.int32(scale >> np.int32(16)) * np.int32(0x10001)
    words[B_REST] = _most(zeros[batch, panel], k, count)
    return words


@inline
def _row(
    a: Array, a_at: int, b: Any, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    codes, scales, zeros = b
    fraction, align, least, lifted = rule
    simd_fp4.fp4_row(
        lifted, scales, 0, zeros, a, a_at, codes, b_at, out, out_at, stride, steps, fraction,
        align, least,
    )  # fmt: skip
    return 1


@inline
def _as_they_are(
    b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any
) -> Any:
    scales, zeros = how
    codes = codes_at(b, batch, panel, k, count).view(np.int32)
    return codes, scales[batch, panel, k:].reshape(-1), _most(zeros[batch, panel], k, count)


@kernel
def _run(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    scales: Array, zeros: Array, twice: Array, fraction: int, align: int, least: int,
) -> None:  # fmt: skip
    scratch = scratch_words(block * B_WORDS)
    how, rule = (scales, zeros, twice), (fraction, align, least)
    cover_codes(
        _tile, _planes, out, a, b, scratch, steps, block, group, start, stop, rule, how
    )  # fmt: skip


@kernel
def _run_few(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    scales: Array, zeros: Array, twice: Array, fraction: int, align: int, least: int,
) -> None:  # fmt: skip
    lifted = np.empty(16, np.int8)
    for code in range(16):
        lifted[code] = twice[code] + np.int8(LIFT)
    rule = (fraction, align, least, lifted)
    cover_codes(
        _row, _as_they_are, out, a, b, np.empty(0, np.int32), steps, block, group, start, stop,
        rule, (scales, zeros),
    )  # fmt: skip


@kernel
def _left(
    codes: Array, scales: Array, each: int, exponents: Array, significands: Array, twice: Array,
    planes: Array, block: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Write lines start:stop of codes [batch, M, K] as [batch, tiles, steps, rows, words].

    `twice`: the bytes of the 16 codes; a block of scales has `each` runs. Rows whose words are
    `FEW_WORDS` get their sums too.
    """
    (m, depth), (tiles, steps, tile, size) = codes.shape[1:], planes.shape[1:]
    runs = (depth + RUN - 1) // RUN
    flat, words, bytes_of = codes.reshape(-1), planes.reshape(-1), planes.reshape(-1).view(np.int8)
    room, most = np.zeros(STEP, np.uint8), np.int32(0)
    for line in range(start, stop):
        item, row = line // m, line % m
        own = scales[item, row]
        first = ((item * tiles + row // tile) * steps * tile + row % tile) * size
        for step in range(steps):
            at, place = first + step * tile * size, line * depth + step * STEP
            left = depth - step * STEP
            if left >= STEP:
                zeros = left_fp4(flat, place, words, at, twice)
            else:
                for j in range(STEP):
                    room[j] = flat[place + j] if j < left else np.uint8(0)
                zeros = left_fp4(room, 0, words, at, twice)
            if step % block == 0:
                most = np.int32(0)
            for s in range(RUNS):
                run = step * RUNS + s
                code = own[min(run, runs - 1) // each]
                e = exponents[code] if run < runs else np.int32(NO_TERM)
                words[at + STEP // 4 + s] = e
                words[at + STEP // 4 + RUNS + s] = significands[code] * np.int32(0x10001)
                if run < runs:
                    most = max(most, np.int32(zeros >> np.int32(8 * s)) & np.int32(255))
            if size == FEW_WORDS:
                for s in range(RUNS):
                    low, high = np.int32(0), np.int32(0)
                    for j in range(4 * at + s * RUN, 4 * at + (s + 1) * RUN, 4):
                        low -= np.int32(bytes_of[j]) + np.int32(bytes_of[j + 1])
                        high -= np.int32(bytes_of[j + 2]) + np.int32(bytes_of[j + 3])
                    low, high = np.int32(low * LIFT), np.int32(high * LIFT)
                    both = np.int32(high << np.int32(16)) | np.int32(low & np.int32(0xFFFF))
                    words[at + STEP // 4 + 2 * RUNS + s] = both
            words[first + (step - step % block) * tile * size + size - 1] = most


@kernel
def _most_zeros(codes: Array, n: int, depth: int, zeros: Array) -> None:
    """Count the zeros of packed codes [batch, panels, steps, words, columns, 4]; see `PackedFp4`.

    Columns from `n` on, and runs from `depth` on, are padding, and have none.
    """
    for batch in range(codes.shape[0]):
        for panel in range(codes.shape[1]):
            for step in range(codes.shape[2]):
                most = np.uint8(0)
                for s in range(RUNS):
                    if step * STEP + s * RUN >= depth:
                        break
                    for column in range(min(COLUMNS, n - panel * COLUMNS)):
                        count = np.uint8(0)
                        for word in range(s * RUN // 4, (s + 1) * RUN // 4):
                            for j in range(4):
                                count += np.uint8(
                                    codes[batch, panel, step, word, column, j] & 7 == 0
                                )
                        most = max(most, count)
                zeros[batch, panel, step] = most


@cache
def _runner(few: bool) -> Callable[..., Any]:
    return simd.compiled(
        _run_few if few else _run, *codes_types(types.int32, np.dtype(np.uint8), types.float32),
        simd.contiguous(types.int32, 4), simd.contiguous(types.uint8, 3),
        simd.contiguous(types.int8, 1), *(types.int64,) * 3,
    )  # fmt: skip


@cache
def _left_packer() -> Callable[..., Any]:
    table, i64 = simd.contiguous(types.int32, 1), types.int64
    return simd.compiled(
        _left, simd.contiguous(types.uint8, 3), simd.strided(types.uint8, 3), i64, table, table,
        simd.contiguous(types.uint8, 1), simd.contiguous(types.int32, 5), i64, i64, i64,
    )  # fmt: skip


def pack_b(codes: Array, scales: ScaleCodes) -> PackedFp4:
    """Pack codes [1 or batch, K, N], of any strides; scales of their columns."""
    packed = pack_codes(codes, COLUMNS, _ORDER, STEP, run=4)
    batch, panels, steps = packed.panels.shape[:3]
    words_of = scales.significands << 16 | scales.exponents & 0xFFFF
    shape, runs = (batch, panels, steps * RUNS, COLUMNS), -(-codes.shape[1] // RUN)
    words = by_columns(scales.codes, words_of.astype(np.int32), shape, packed.lines, runs)
    zeros = np.empty((batch, panels, steps), np.uint8)
    bytes_of = packed.panels.view(np.uint8).reshape(batch, panels, steps, STEP // 4, COLUMNS, 4)
    _most_zeros(bytes_of, codes.shape[2], codes.shape[1], zeros)
    return PackedFp4(packed, words.reshape(batch, panels, steps, RUNS * COLUMNS), zeros)


@cache
def _bytes_of(few: bool, twice: bytes) -> Array:
    return (np.frombuffer(twice, np.int8).astype(np.int16) + (0 if few else LIFT)).astype(np.uint8)


def gemm_fp4(
    a: Array, scales: ScaleCodes, b: PackedFp4, twice: Array, fraction: int, align: int,
    least: int, *, c: Array | None = None,
) -> Array:  # fmt: skip
    """Return the float32 accumulators [batch, M, N] of a chain over steps of 64 k, from c or +0.

    Parameters: a [batch, M, K] codes, `scales` of their rows; b packed, of one item or as many;
    `twice`: twice the values of the 16 codes, int8; `fraction`, `align`, `least` as in
    `simd_fp4.fp4_tile`; c [batch, M, N] float32. What overflows stays infinite: NaN comes of c
    alone. A scale that is NaN makes any number.
    """
    batch, m, depth = a.shape
    n, steps, one = b.codes.lines, b.codes.panels.shape[2], len(b.codes.panels) == 1
    shape = (1, batch * m, n) if one else (batch, m, n)
    few = shape[1] <= FEW
    rows_of, words, block = (1, FEW_WORDS, min(steps, _LONG)) if few else (_ROWS, A_WORDS, _BLOCK)
    tiles = -(-shape[1] // rows_of)
    out = np.zeros((shape[0], tiles * rows_of, n), np.float32)  # whole tiles of rows
    if c is not None:
        out[:, : shape[1]] = c.reshape(shape)
    if out.size:
        lines = np.ascontiguousarray(a.view(np.uint8)).reshape(*shape[:2], depth)
        own = scales.codes.joined(batch, m) if one else scales.codes
        planes = np.empty((shape[0], tiles, steps, rows_of, words), np.int32)
        if tiles * rows_of > shape[1]:
            planes[:, -1, :, 1:] = 0
        pack, bytes_, total = _left_packer(), _bytes_of(few, twice.tobytes()), shape[0] * shape[1]
        over_range(
            lambda start, stop: pack(
                lines, own.codes, own.groups, scales.exponents, scales.significands, bytes_,
                planes, block, start, stop,
            ),
            total, grain=grain_of(total, PACKED * a.size),
        )  # fmt: skip
        run_codes(
            _runner(few), out, planes, b.codes, block, b.scales, b.zeros, twice, fraction, align,
            max(least, _LEAST),
        )  # fmt: skip
    return out[:, : shape[1]].reshape(batch, m, n)
