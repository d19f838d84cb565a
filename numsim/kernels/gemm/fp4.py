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
from numsim.kernels.ir import fp4 as simd_fp4
from numsim.kernels.ir import simd
from numsim.kernels.ir.align import NO_TERM
from numsim.kernels.ir.fp4 import (
    A_WORDS,
    B_CODES,
    B_REST,
    B_WORDS,
    COLUMNS,
    LIFT,
    RUNS,
    STEP,
)
from numsim.kernels.jit import PACKED, grain_of, inline, kernel, over_range

Array = npt.NDArray[Any]
_ROWS, RUN = 2, STEP // RUNS
_BLOCK = max(BLOCK // STEP, 1)  # steps of one call
_LEAST = -300  # below the exponents of two scales and of any accumulator
_ORDER = np.arange(STEP)


class ScaleCodes(NamedTuple):
    """Scales of one operand: codes of every run of 16 k, and what each of 256 codes means.

    `codes` [batch, lines, runs] uint8; `exponents`, `significands` [256] int32.
    """

    codes: Array
    exponents: Array
    significands: Array


class PackedFp4(NamedTuple):
    """The right operand, packed once: `scales` [batch, panels, steps, runs of a step, columns].

    `zeros` [batch, panels, steps] uint8: the most that a run of a column has.
    """

    codes: PackedCodes
    scales: Array
    zeros: Array
    exponents: Array
    significands: Array


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
def _planes(b: Array, batch: int, panel: int, k: int, count: int, words: Array, how: Any) -> Array:
    scales, zeros, exponents, significands, twice = how
    simd_fp4.right_fp4(codes_at(b, batch, panel, k, count), count, words, twice)
    each, most = RUNS * COLUMNS, np.int32(0)
    for step in range(count):
        line = scales[batch, panel, k + step]
        at = step * B_WORDS + B_CODES + each
        for i in range(each):
            code = line[i]
            words[at + i] = exponents[code]
            words[at + each + i] = significands[code] * np.int32(0x10001)
        most = max(most, np.int32(zeros[batch, panel, k + step]))
    words[B_REST] = most
    return words


@kernel
def _run(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    scales: Array, zeros: Array, exponents: Array, significands: Array, twice: Array,
    fraction: int, align: int, least: int,
) -> None:  # fmt: skip
    scratch = scratch_words(block * B_WORDS)
    how, rule = (scales, zeros, exponents, significands, twice), (fraction, align, least)
    cover_codes(
        _tile, _planes, out, a, b, scratch, steps, block, group, start, stop, rule, how
    )  # fmt: skip


@kernel
def _left(
    codes: Array, scales: Array, exponents: Array, significands: Array, twice: Array,
    planes: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """Write rows start:stop of codes [M, K] as [tiles, steps, rows of a tile, words]."""
    depth, steps, runs, most = codes.shape[1], planes.shape[1], scales.shape[1], np.int32(0)
    bytes_of = planes.view(np.uint8)
    for row in range(start, stop):
        line, own = codes[row], scales[row]
        for step in range(steps):
            words = planes[row // _ROWS, step, row % _ROWS]
            places = bytes_of[row // _ROWS, step, row % _ROWS]
            first = step * STEP
            for j in range(min(STEP, depth - first)):
                places[j] = twice[line[first + j] & 15]
            for j in range(max(depth - first, 0), STEP):
                places[j] = np.uint8(LIFT)
            for s in range(RUNS):
                run = step * RUNS + s
                code = own[min(run, runs - 1)]
                e = exponents[code] if run < runs else np.int32(NO_TERM)
                words[STEP // 4 + s] = e
                words[STEP // 4 + RUNS + s] = significands[code] * np.int32(0x10001)
            if step % _BLOCK == 0:
                most = np.int32(0)
            for s in range(min(RUNS, runs - step * RUNS)):
                zeros = np.uint8(0)
                for j in range(s * RUN, (s + 1) * RUN):
                    zeros = np.uint8(zeros + np.uint8(places[j] == np.uint8(LIFT)))
                most = max(most, np.int32(zeros))
            planes[row // _ROWS, step - step % _BLOCK, row % _ROWS, A_WORDS - 1] = most


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
def _runner() -> Callable[..., Any]:
    table = simd.contiguous(types.int32, 1)
    return simd.compiled(
        _run, *codes_types(types.int32, np.dtype(np.uint8), types.float32),
        simd.contiguous(types.uint8, 4), simd.contiguous(types.uint8, 3), table, table,
        simd.contiguous(types.int8, 1), *(types.int64,) * 3,
    )  # fmt: skip


@cache
def _left_packer() -> Callable[..., Any]:
    table, codes = simd.contiguous(types.int32, 1), simd.strided(types.uint8, 2)
    return simd.compiled(
        _left, codes, codes, table, table, simd.contiguous(types.uint8, 1),
        simd.contiguous(types.int32, 4), types.int64, types.int64,
    )  # fmt: skip


def pack_b(codes: Array, scales: ScaleCodes) -> PackedFp4:
    """Pack codes [1 or batch, K, N], of any strides; scales of their columns."""
    packed = pack_codes(codes, COLUMNS, _ORDER, STEP, run=4)
    batch, panels, steps = packed.panels.shape[:3]
    lines = np.zeros((batch, panels * COLUMNS, steps * RUNS), np.uint8)
    lines[:, : scales.codes.shape[1], : scales.codes.shape[2]] = scales.codes
    turned = lines.reshape(batch, panels, COLUMNS, steps, RUNS).transpose(0, 1, 3, 4, 2)
    flat = np.ascontiguousarray(turned).reshape(batch, panels, steps, RUNS * COLUMNS)
    zeros = np.empty((batch, panels, steps), np.uint8)
    words = packed.panels.view(np.uint8).reshape(batch, panels, steps, STEP // 4, COLUMNS, 4)
    _most_zeros(words, codes.shape[2], codes.shape[1], zeros)
    return PackedFp4(packed, flat, zeros, scales.exponents, scales.significands)


def gemm_fp4(
    a: Array, scales: ScaleCodes, b: PackedFp4, twice: Array, fraction: int, align: int,
    least: int, *, c: Array | None = None,
) -> Array:  # fmt: skip
    """Return the float32 accumulators [batch, M, N] of a chain over steps of 64 k, from c or +0.

    Parameters: a [batch, M, K] codes, `scales` of their rows; b packed, of one item or as many;
    `twice`: twice the values of the 16 codes, int8; `fraction`, `align`, `least` as in
    `simd_fp4.fp4_tile`; c [batch, M, N] float32. No scale is NaN.
    """
    batch, m, depth = a.shape
    n, steps = b.codes.lines, b.codes.panels.shape[2]
    shape = (1, batch * m, n) if len(b.codes.panels) == 1 else (batch, m, n)
    tiles = -(-shape[1] // _ROWS)
    out = np.zeros((shape[0], tiles * _ROWS, n), np.float32)  # whole tiles of rows
    if c is not None:
        out[:, : shape[1]] = c.reshape(shape)
    if out.size:
        lines = a.view(np.uint8).reshape(*shape[:2], depth)
        own = scales.codes.reshape(*shape[:2], -1)
        planes = np.zeros((shape[0], tiles, steps, _ROWS, A_WORDS), np.int32)
        lifted = (twice.astype(np.int16) + LIFT).astype(np.uint8)
        pack = _left_packer()
        for i in range(shape[0]):

            def rows(start: int, stop: int, i: int = i) -> object:
                return pack(
                    lines[i], own[i], scales.exponents, scales.significands, lifted, planes[i],
                    start, stop,
                )  # fmt: skip

            over_range(rows, shape[1], grain=grain_of(shape[1], PACKED * lines[i].size))
        run_codes(
            _runner(), out, planes, b.codes, _BLOCK, b.scales, b.zeros, b.exponents, b.significands,
            twice, fraction, align, max(least, _LEAST),
        )  # fmt: skip
    return out[:, : shape[1]].reshape(batch, m, n)
