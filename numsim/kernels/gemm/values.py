"""Chains of fused multiply-adds whose right operand stays codes (`gemm.fma` takes values).

The left operand is float32 or float64 values [batch, M, K], packed by rows of a tile; the right one
codes of 8 or 16 bits [1 or batch, K, N], packed by columns of a panel and decoded a cache-sized
piece at a time, by a table or by arithmetic. Proof: ``tests/targets/test_fast_units.py`` compares
every bit with the same chains over values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.np.numpy_support import from_dtype

from numsim.kernels.convert.decode import Codes
from numsim.kernels.gemm.codes import (
    BLOCK,
    Fields,
    PackedCodes,
    as_halves,
    codes_at,
    codes_types,
    cover_codes,
    nibble_table,
    pack_codes,
    power_in_halves,
    run_codes,
    scratch_words,
    type_of,
    undecoded,
    values_of_floats,
    values_of_integers,
)
from numsim.kernels.gemm.fma import fma_narrow, fma_wide, pack_rows
from numsim.kernels.ir import simd
from numsim.kernels.ir.blocks import scaled_chain_of_codes
from numsim.kernels.ir.codes import (
    chain_of_codes,
    chain_of_shorts,
    looked_up_values,
    short_values,
)
from numsim.kernels.ir.float16 import scaled_chains_by_halves
from numsim.kernels.jit import expanded, inline, kernel

Array = npt.NDArray[Any]
Decode = Codes | Fields | tuple[np.uint32, np.float32] | Array
_BLOCK = BLOCK // 2
NEAR = 32  # k of a panel that are float16 at a time: the next are read while these are added
# Rows up to which it pays to read codes for each anew, by path; with AVX2 they are float16 by then
FEW = {"avx512": 3, "avx2": 6, "plain": 0}


@inline
def values_of_bytes(
    b: Array, batch: int, panel: int, k: int, count: int, values: Array, table: Array
) -> Array:
    """Look up the values of codes of one byte."""
    codes = codes_at(b, batch, panel, k, count)
    runs = codes.size // 64
    looked_up_values(codes, runs, values, table)
    for i in range(64 * runs, codes.size):
        high, low = np.uint32(table[codes[i]]), np.uint32(table[256 + codes[i]])
        values[i] = np.uint32(high << np.uint32(24) | low << np.uint32(16)).view(np.float32)
    return values


@inline
def values_of_shorts(
    b: Array, batch: int, panel: int, k: int, count: int, values: Array, f: Fields
) -> Array:
    """Make values of codes of one byte by 16-bit lanes, with AVX2."""
    codes = codes_at(b, batch, panel, k, count)
    short_values(codes, codes.size // 16, values, f)
    return values


@expanded
def _run(
    micro: Callable[..., int], decode: Callable[..., Array], out: Array, a: Array, b: Array,
    steps: int, block: int, group: int, start: int, stop: int, how: Any,
) -> None:  # fmt: skip
    scratch = scratch_words(block * simd.FMA_BYTES // 4).view(a.dtype)
    cover_codes(micro, decode, out, a, b, scratch, steps, block, group, start, stop, 0, how)


@kernel
def _bytes_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    table: Array,
) -> None:  # fmt: skip
    _run(fma_wide, values_of_bytes, out, a, b, steps, block, group, start, stop, table)


@inline
def _one_row(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, table: Array,
) -> int:  # fmt: skip
    chain_of_codes(0, table, a, a_at, b, b_at, out, out_at, stride, steps)
    return 1


@inline
def _one_row_of_doubles(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, table: Array,
) -> int:  # fmt: skip
    chain_of_codes(1, table, a, a_at, b, b_at, out, out_at, stride, steps)
    return 1


@kernel
def _bytes_row(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    table: Array,
) -> None:  # fmt: skip
    cover_codes(
        _one_row, undecoded, out, a, b, a.reshape(-1), steps, block, group, start, stop,
        table, table,
    )  # fmt: skip


@kernel
def _doubles_row(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    table: Array,
) -> None:  # fmt: skip
    cover_codes(
        _one_row_of_doubles, undecoded, out, a, b, a.reshape(-1), steps, block, group,
        start, stop, table, table,
    )  # fmt: skip


@inline
def _one_row_of_shorts(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, how: Fields,
) -> int:  # fmt: skip
    chain_of_shorts(a, a_at, b, b_at, out, out_at, stride, steps, how)
    return 1


@kernel
def _shorts_row(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    cover_codes(
        _one_row_of_shorts, undecoded, out, a, b, a.reshape(-1), steps, block, group,
        start, stop, how, how,
    )  # fmt: skip


@kernel
def _floats_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    _run(fma_wide, values_of_floats, out, a, b, steps, block, group, start, stop, how)


@kernel
def _floats_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    _run(fma_narrow, values_of_floats, out, a, b, steps, block, group, start, stop, how)


@kernel
def _integers_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    _run(fma_wide, values_of_integers, out, a, b, steps, block, group, start, stop, how)


@kernel
def _integers_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    _run(fma_narrow, values_of_integers, out, a, b, steps, block, group, start, stop, how)


@kernel
def _shorts_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    _run(fma_narrow, values_of_shorts, out, a, b, steps, block, group, start, stop, how)


@inline
def half_tables(table: Array) -> Array:
    """Return what `ir.fp8_codes.ByTables` reads, of a mirrored table."""
    tables = np.zeros(512, np.uint8)  # high bytes of values, and low ones, are the last two of four
    tables[256:384], tables[384:] = table[:128], table[256:384]
    return tables


@inline
def _one_mirrored_row(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, tables: Array,
) -> int:  # fmt: skip
    scaled_chain_of_codes(1, tables, None, a, a_at, b, b_at, out, out_at, stride, steps)
    return 1


@kernel
def _mirrored_row(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    table: Array,
) -> None:  # fmt: skip
    tables = half_tables(table)
    cover_codes(
        _one_mirrored_row, undecoded, out, a, b, a.reshape(-1), steps, block, group, start, stop,
        tables, table,
    )  # fmt: skip


@inline
def _some_halves(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    how, words = rule
    scaled_chains_by_halves(
        how, words, NEAR, None, left, a, a_at, b, b_at, out, out_at, stride, steps
    )  # fmt: skip
    return left


@kernel
def _halves_few(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    words = scratch_words(NEAR * b.shape[3] // 2)
    cover_codes(
        _some_halves, undecoded, out, a, b, words, steps, block, group, start, stop, (how, words),
        how, True,
    )  # fmt: skip


def halves(how: Decode, a: Array) -> tuple[Any, float] | None:
    """Return how kernels of few rows read codes by way of float16, and what a is multiplied by.

    None where they do not, or float32 has too few bits of an exponent for that.
    """
    if not isinstance(how, Fields):
        return None
    read = how if as_halves(how) else nibble_table(how)
    size, up = np.abs(a), -power_in_halves(how)
    fits = (size == 0) | ((size > 2.0**-90) & (size < 2.0**90))
    return (read, 2.0**up) if read is not None and abs(up) <= 30 and fits.all() else None


def mirrored(table: Array) -> bool:
    """Whether a byte table's codes from 128 on are those below with a sign.

    Or the codes have fewer bits, and those from 128 on are negative integers, sign-extended: their
    seven lowest bits say all. NaN of any sign comes out as one.
    """
    return _is_mirrored(table.tobytes())


@cache
def _is_mirrored(table: bytes) -> bool:
    high, low = np.frombuffer(table, np.uint8)[:512].reshape(2, 2, 128).astype(np.int32)
    words = high << 8 | low
    nan = ((words & 0x7FFF) > 0x7F80).all(0)
    sign = words[0] ^ words[1]
    return bool((nan | (sign == 0x8000) & (words[0] < 0x8000)).all() or (sign == 0).all())


def _kernel(how: Decode, double: bool, row: bool) -> Any:
    if isinstance(how, Codes):
        return _floats_wide if simd.enabled() else _floats_narrow
    if isinstance(how, Fields):
        return _shorts_row if row else _shorts_narrow
    if isinstance(how, tuple):
        return _integers_wide if simd.enabled() else _integers_narrow
    if not row:
        return _bytes_wide
    return _doubles_row if double and how.size == 1024 else _bytes_row


@cache
def _runner(
    chosen: Any, dtype: np.dtype[Any], codes: np.dtype[Any], how: Any
) -> Callable[..., Any]:
    element = from_dtype(dtype)
    return simd.compiled(chosen, *codes_types(element, codes, element), how)


def pack_b(codes: Array, dtype: npt.DTypeLike) -> PackedCodes:
    """Pack codes [1 or batch, K, N] of at most 16 bits, for sums in float32 or float64."""
    width = simd.FMA_BYTES // np.dtype(dtype).itemsize
    return pack_codes(codes, width, np.zeros(1, np.int64), 1)


def integer_codes(itemsize: int, signed: bool, quantum: float) -> Decode:
    """Return how integer codes, stored in `itemsize` bytes, are read."""
    return np.uint32(1 << (8 * itemsize - 1) if signed else 0), np.float32(quantum)


def byte_table(values: Array) -> Decode | None:
    """Return how codes of one byte are read by a table of their float32 values [256].

    None where there are no tables, or a value has more bits than two bytes hold.
    """
    bits, wide = values.view(np.uint32), values.astype(np.float64).view(np.uint64)
    if not (simd.enabled() and simd.HAVE_BYTE_TABLES) or (bits & 0xFFFF).any():
        return None
    parts = [bits >> 24, bits >> 16 & 255]
    if not (wide & ((1 << 48) - 1)).any():
        parts += [wide >> 56, wide >> 48 & 255]
    return np.concatenate(parts).astype(np.uint8)


def gemm_values(
    a: Array, b: PackedCodes, how: Decode, *, c: Array | None = None, in_halves: bool = False
) -> Array:
    """Do `gemm.fma.gemm_fma` with the values of b's codes.

    Parameters: a [batch, M, K] float32 or float64; b packed for that type; `how` its codes are
    read; c [batch, M, N]; `in_halves`: no exponent field of the codes is above 30.
    """
    batch, m, depth = a.shape
    shape = (1, batch * m, b.lines) if len(b.panels) == 1 else (batch, m, b.lines)
    out = np.zeros(shape, a.dtype) if c is None else np.array(c, order="C").reshape(shape)
    if out.size:
        a, width = a.reshape(*shape[:2], depth), max(depth, 1)
        single = a.dtype == np.float32 and shape[1] <= FEW[simd.path()]
        by_sign = single and isinstance(how, np.ndarray) and depth % 2 == 0 and mirrored(how)
        read = halves(how, a) if single and in_halves else None
        row = isinstance(how, np.ndarray | Fields) and shape[1] == 1
        if read is not None:
            how, power = read
            rows = np.multiply(a, np.float32(power), order="C").reshape(*a.shape, 1, 1)
            chosen, block = _halves_few, width
        elif by_sign or row:
            rows = np.ascontiguousarray(a).reshape(*a.shape, 1, 1)
            chosen, block = _mirrored_row if by_sign else _kernel(how, not single, True), width
        else:
            rows, chosen, block = pack_rows(a), _kernel(how, False, False), _BLOCK
        entry = _runner(chosen, a.dtype, b.panels.dtype, type_of(how))
        run_codes(entry, out, rows, b, block, how)
    return out.reshape(batch, m, b.lines)
