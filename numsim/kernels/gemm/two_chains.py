"""Even and odd k of a group in two chains of fused multiply-adds, their sum to the accumulator.

AMX's bfloat16 and float16 instructions work so (`Mac` with ``order="two_chains"``, which
`rules.mac` defines); float32 throughout, nothing flushed. The left operand is values, the right one
codes of at most 16 bits; both are packed with the even k of a group before the odd ones. Proof:
``tests/targets/test_fast_units.py`` and ``test_few_rows.py`` compare every bit with the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.convert.decode import Codes
from numsim.kernels.gemm import values as gemm_values
from numsim.kernels.gemm.codes import (
    BLOCK,
    PackedCodes,
    codes_types,
    cover_codes,
    pack_codes,
    run_codes,
    scratch_words,
    type_of,
    undecoded,
    values_of_floats,
)
from numsim.kernels.gemm.fma import fma_narrow, fma_wide, pack_rows, tile_rows
from numsim.kernels.ir import simd
from numsim.kernels.ir.blocks import two_chains_of_words
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
FEW = {"avx512": 10, "avx2": 16, "plain": 1}  # rows up to which it pays to read codes for each anew


@expanded
def _cover(
    micro: Callable[..., int], out: Array, a: Array, b: Array, steps: int, block: int, group: int,
    start: int, stop: int, half: int, how: Any,
) -> None:  # fmt: skip
    """Do what `gemm.codes.cover_codes` does; a group is `half` k of one chain, then of the other.

    `block`, the k that are decoded at a time, are whole groups, and so are all.
    """
    m, n = out.shape[1], out.shape[2]
    tiles, panels, rows, width = a.shape[1], b.shape[1], a.shape[3], b.shape[3]
    groups = (tiles + group - 1) // group
    scratch = scratch_words(block * width).view(np.float32)
    even = scratch_words(rows * width).view(np.float32)
    odd = scratch_words(rows * width).view(np.float32)
    flat = out.reshape(-1)
    for piece in range(start, stop):
        panel = piece % panels
        batch = piece // panels // groups
        first = piece // panels % groups * group
        shared = batch if b.shape[0] > 1 else 0
        for k in range(0, steps, block):
            count = min(block, steps - k)
            near = values_of_floats(b, shared, panel, k, count, scratch, how)
            for t in range(first, min(first + group, tiles)):
                left = min(rows, m - t * rows)
                for s in range(0, count, 2 * half):
                    even[:], odd[:] = 0, 0
                    at = ((batch * tiles + t) * steps + k + s) * rows
                    tile_rows(micro, a, at, near, s * width, even, 0, width, left, half, 0)
                    at, s_odd = at + half * rows, (s + half) * width
                    tile_rows(micro, a, at, near, s_odd, odd, 0, width, left, half, 0)
                    for r in range(left):
                        at = (batch * m + t * rows + r) * n + panel * width
                        totals = flat[at : at + width]
                        x = even[r * width : (r + 1) * width]
                        y = odd[r * width : (r + 1) * width]
                        for c in range(width):
                            totals[c] += np.float32(x[c] + y[c])


@kernel
def _run_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    half: int, how: Any,
) -> None:  # fmt: skip
    _cover(fma_wide, out, a, b, steps, block, group, start, stop, half, how)


@kernel
def _run_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    half: int, how: Any,
) -> None:  # fmt: skip
    _cover(fma_narrow, out, a, b, steps, block, group, start, stop, half, how)


@inline
def _one_row(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, half: int,
) -> int:  # fmt: skip
    two_chains_of_words(0, half, a, a_at, b, b_at, out, out_at, stride, steps)
    return 1


@inline
def _one_row_of_float16(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, half: int,
) -> int:  # fmt: skip
    two_chains_of_words(1, half, a, a_at, b, b_at, out, out_at, stride, steps)
    return 1


@kernel
def _run_row(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    half: int, how: Any,
) -> None:  # fmt: skip
    cover_codes(
        _one_row, undecoded, out, a, b, a.reshape(-1), steps, block, group, start, stop, half, how
    )


@kernel
def _run_row_of_float16(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    half: int, how: Any,
) -> None:  # fmt: skip
    cover_codes(
        _one_row_of_float16, undecoded, out, a, b, a.reshape(-1), steps, block, group, start, stop,
        half, how,
    )  # fmt: skip


def _row_kernel(how: Codes) -> Any:
    """Return what reads such codes for each row anew, None where nothing does."""
    places = int(how.magnitude), int(how.sign_up), int(how.up), int(how.rebias)
    if places == (0x7FFF, 16, 16, 0):  # the high halves of float32
        return _run_row
    half = places == (0x7FFF, 16, 13, 112 << 23) and int(how.inf) == 0x7C00
    converts = half and simd.path() != "plain"
    return _run_row_of_float16 if converts else None


@cache
def _runner(codes: np.dtype[Any], how: Any, chosen: Any) -> Callable[..., Any]:
    arguments = codes_types(types.float32, codes, types.float32)
    return simd.compiled(chosen, *arguments, types.int64, how)


def _places(group: int) -> Array:
    k = np.arange(group)
    return np.concatenate([k[::2], k[1::2]])


def pack_b(codes: Array, group: int) -> PackedCodes:
    """Pack the codes [1 or batch, K, N] of the right operand, for groups of an even length."""
    packed = pack_codes(codes, simd.FMA_BYTES // 4, _places(group), group)
    batch, panels, blocks, width, _ = packed.panels.shape
    return PackedCodes(packed.panels.reshape(batch, panels, blocks * group, width, 1), packed.lines)


def gemm_two_chains(
    a: Array, b: PackedCodes, how: gemm_values.Decode, group: int, *, c: Array | None = None
) -> Array:
    """Return the float32 accumulators [batch, M, N] of a chain over groups of k, from c or +0.

    Parameters: a [batch, M, K] float32; b packed for the same even group, of one item or as many
    as a; `how` its codes, those of a float, are read; c [batch, M, N] float32.
    """
    if not isinstance(how, Codes):
        raise TypeError(f"how is Codes; got {type(how).__name__}")
    batch, m, depth = a.shape
    steps = b.panels.shape[2]
    shape = (1, batch * m, b.lines) if len(b.panels) == 1 else (batch, m, b.lines)
    out = np.zeros(shape, np.float32) if c is None else np.array(c, order="C").reshape(shape)
    if out.size:
        whole = np.zeros((batch, m, steps), np.float32)
        whole[..., :depth] = a
        turned = whole.reshape(*shape[:2], steps // group, group)[..., _places(group)]
        lines = np.ascontiguousarray(turned).reshape(*shape[:2], steps)
        few = shape[1] <= FEW[simd.path()] and b.panels.itemsize == 2
        row = _row_kernel(how) if few else None
        rows = lines.reshape(*lines.shape, 1, 1) if row else pack_rows(lines)
        chosen = row or (_run_wide if simd.enabled() else _run_narrow)
        entry = _runner(b.panels.dtype, type_of(how), chosen)
        block = steps if row else max(BLOCK // 2 // group, 1) * group
        run_codes(entry, out, rows, b, block, group // 2, how)
    return out.reshape(batch, m, b.lines)
