"""Chains of fused multiply-adds whose right operand stays codes (`gemm_fma` takes values)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.np.numpy_support import from_dtype

from numsim.kernels import simd
from numsim.kernels.fast_decode import Codes
from numsim.kernels.gemm_codes import (
    BLOCK,
    PackedCodes,
    codes_types,
    cover_codes,
    pack_codes,
    run_codes,
    scratch_words,
    values_of_floats,
    values_of_integers,
)
from numsim.kernels.gemm_fma import fma_narrow, fma_wide, pack_rows
from numsim.kernels.jit import kernel

Array = npt.NDArray[Any]
Decode = Codes | tuple[np.uint32, np.float32]
_BLOCK = BLOCK // 2


@kernel
def _floats_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    scratch = scratch_words(block * simd.FMA_BYTES // 4).view(a.dtype)
    cover_codes(
        fma_wide, values_of_floats, out, a, b, scratch, steps, block, group, start, stop, 0, how
    )


@kernel
def _floats_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    scratch = scratch_words(block * simd.FMA_BYTES // 4).view(a.dtype)
    cover_codes(
        fma_narrow, values_of_floats, out, a, b, scratch, steps, block, group, start, stop, 0, how
    )


@kernel
def _integers_wide(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    scratch = scratch_words(block * simd.FMA_BYTES // 4).view(a.dtype)
    cover_codes(
        fma_wide, values_of_integers, out, a, b, scratch, steps, block, group, start, stop, 0, how
    )


@kernel
def _integers_narrow(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    how: Any,
) -> None:  # fmt: skip
    scratch = scratch_words(block * simd.FMA_BYTES // 4).view(a.dtype)
    cover_codes(
        fma_narrow, values_of_integers, out, a, b, scratch, steps, block, group, start, stop, 0, how
    )


_KERNELS: dict[tuple[bool, bool], Any] = {
    (True, True): _floats_wide, (True, False): _floats_narrow,
    (False, True): _integers_wide, (False, False): _integers_narrow,
}  # fmt: skip


@cache
def _runner(
    dtype: np.dtype[Any], codes: np.dtype[Any], how: Any, floats: bool, wide: bool
) -> Callable[..., Any]:
    element = from_dtype(dtype)
    return simd.compiled(_KERNELS[floats, wide], *codes_types(element, codes, element), how)


def pack_b(codes: Array, dtype: npt.DTypeLike) -> PackedCodes:
    """Pack codes [1 or batch, K, N] of at most 16 bits, for sums in float32 or float64."""
    width = simd.FMA_BYTES // np.dtype(dtype).itemsize
    return pack_codes(codes, width, np.zeros(1, np.int64), 1)


def integer_codes(itemsize: int, signed: bool, quantum: float) -> Decode:
    """Return how integer codes, stored in `itemsize` bytes, are read."""
    return np.uint32(1 << (8 * itemsize - 1) if signed else 0), np.float32(quantum)


def gemm_values(a: Array, b: PackedCodes, how: Decode, *, c: Array | None = None) -> Array:
    """Do `gemm_fma.gemm_fma` with the values of b's codes.

    Parameters: a [batch, M, K] float32 or float64; b packed for that type; `how` its codes are
    read; c [batch, M, N].
    """
    batch, m, depth = a.shape
    shape = (1, batch * m, b.lines) if len(b.panels) == 1 else (batch, m, b.lines)
    out = np.zeros(shape, a.dtype) if c is None else np.array(c, order="C").reshape(shape)
    if out.size:
        rows = pack_rows(a.reshape(*shape[:2], depth))
        typeof: Any = numba.typeof
        floats = isinstance(how, Codes)
        entry = _runner(a.dtype, b.panels.dtype, typeof(how), floats, simd.enabled())
        run_codes(entry, out, rows, b, _BLOCK, how)
    return out.reshape(batch, m, b.lines)
