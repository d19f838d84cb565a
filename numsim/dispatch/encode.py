"""Which worker encodes an array: by its type, the format and the rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.dispatch.branch_free import branch_free, by_addition, integer_limits, scalars_of
from numsim.dispatch.exact import from_integers, from_table, generic
from numsim.dispatch.halves import (
    LOOKUP_FROM,
    by_code,
    by_odd,
    from_half,
    kept_singles,
    singles,
    with_payloads,
)
from numsim.dispatch.workers import GRAIN, Plan, Worker, of_quotient, over_blocks
from numsim.formats import Format
from numsim.kernels import jit
from numsim.kernels.convert import float32 as fast
from numsim.kernels.convert import quotients
from numsim.kernels.convert.round import (
    RNE,
    SATURATE,
    SR,
)
from numsim.kernels.ir import simd

_SINGLE = np.dtype(np.float32)
_LONG_ROW = 256  # elements; a row of fewer is not worth a call


def encode_array(
    f: Format, x: NDArray[Any], out: NDArray[Any], how: Plan, random: NDArray[Any] | None,
    by: np.float32 | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Encode any real array into `out` (C order); return (NaNs refused, flat index of one).

    `by` divides float32 numbers first, rounded once.
    """
    if by is not None and how.mode == SR and random is None:
        divides = branch_free(f, how, by)
        if divides is not None:
            return over_blocks(x, np.float32, out.reshape(-1), divides)
    dtype, worker = _encoder(f, x, how, random is not None)
    if by is not None:
        worker = of_quotient(worker, by)
    return over_blocks(x, dtype, out.reshape(-1), worker, random)


def encode_quotients(
    f: Format, x: NDArray[np.float32], by: NDArray[np.float32], out: NDArray[Any]
) -> bool:
    """Write the codes of ``fp32(x / by)``, to nearest and saturated, in one pass over memory.

    `by` is of one element, or of one for each row of x along its last axis. Returns False, with
    `out` undefined, where no kernel does it: arrays that are not contiguous, most formats, NaN.
    """
    works = _of_quotients(f, simd.enabled())
    if works is None or not (x.flags.c_contiguous and out.flags.c_contiguous and x.flags.aligned):
        return False
    met: list[bool] = []
    if by.size == 1:
        source, codes, one = x.reshape(-1), out.reshape(-1), np.float32(by.item())
        jit.over_range(
            lambda i, j: met.append(works[0](source[i:j], one, codes[i:j])), x.size, grain=GRAIN
        )
        return not any(met)
    if by.shape != (*x.shape[:-1], 1) or x.shape[-1] < _LONG_ROW:
        return False
    rows, found, each = (array.reshape(by.size, -1) for array in (x, out, by))
    each = np.ascontiguousarray(each[:, 0])
    jit.over_range(
        lambda i, j: met.append(works[1](rows[i:j], each[i:j], found[i:j])),
        by.size, grain=max(GRAIN // max(x.shape[-1], 1), 1),
    )  # fmt: skip
    return not any(met)


def encode_by_amax(
    f: Format, x: NDArray[np.float32], top: np.float32, out: NDArray[Any]
) -> np.float32 | None:
    """Write the codes of ``fp32(x / scale)``, to nearest and saturated; return the scale.

    It is fp32(amax / top), 1 where amax or `top` is 0. Returns None, with `out` undefined, where no
    kernel does it: arrays that are not contiguous, formats that no float addition rounds into,
    numbers that are not finite, unusual scales.
    """
    found = _of_amax(f, simd.enabled())
    if found is None or not (x.flags.c_contiguous and out.flags.c_contiguous and x.flags.aligned):
        return None
    kernel, how = found
    source, codes = x.reshape(-1), out.reshape(-1)
    if x.size > GRAIN and jit.threads() > 1:
        works, each = _of_quotients(f, simd.enabled()), list[int]()
        if works is None:
            return None
        bits = source.view(np.uint32)
        jit.over_range(lambda i, j: each.append(int(fast.largest(bits[i:j]))), x.size, grain=GRAIN)
        scale = quotients.scale_by(max(each), top)
        if scale > 0:
            one = np.float32(scale)
            jit.over_range(lambda i, j: works[0](source[i:j], one, codes[i:j]), x.size, grain=GRAIN)
    else:
        scale = kernel(source, top, codes, how)
    return None if scale < 0 else np.float32(scale)


@cache
def _of_amax(f: Format, wide: bool) -> tuple[Callable[..., np.float32], Any] | None:
    """Return the kernel of one scale by amax, and how it encodes."""
    limits = integer_limits(f)
    if limits is not None:
        return quotients.by_amax(np.dtype(f.code_dtype), "integers"), limits
    if f.kind != "float" or f.bits > 16:
        return None
    scalars = scalars_of(f, RNE, SATURATE, f.nan_code)
    if scalars is None or not by_addition(f, scalars):
        return None
    to: Literal["bytes", "floats"] = "floats" if _of_quotients(f, wide) is None else "bytes"
    return quotients.by_amax(np.dtype(f.code_dtype), to), scalars


@cache
def _of_quotients(f: Format, wide: bool) -> tuple[Callable[..., bool], Callable[..., bool]] | None:
    """Return the kernels of one scale and of a scale for each row."""
    limits = integer_limits(f)
    if limits is not None:
        return (
            lambda x, by, out: quotients.quotients_to_integers(x, by, out, *limits),
            lambda x, by, out: quotients.rows_to_integers(x, by, out, *limits),
        )
    if not (wide and simd.HAVE_BYTE_TABLES and f.kind == "float" and f.bits == 8 and f.zero):
        return None
    scalars = scalars_of(f, RNE, SATURATE, f.nan_code)
    if scalars is None or not (by_addition(f, scalars) and fast.takes_bytes(scalars)):
        return None
    return (
        lambda x, by, out: quotients.quotients_to_bytes(x, by, out, scalars),
        lambda x, by, out: quotients.rows_to_bytes(x, by, out, scalars),
    )


def _encoder(f: Format, x: NDArray[Any], how: Plan, supplied: bool) -> tuple[np.dtype[Any], Worker]:
    if x.dtype is _SINGLE and how.nan_drop == 52 and how.mode != SR:  # most small calls
        return _SINGLE, kept_singles(f, how, supplied)
    dtype = x.dtype.newbyteorder("=")  # np.dtype(">f8") == np.float64 is False
    if dtype.kind in "iu":
        return np.dtype(np.uint64 if dtype == np.uint64 else np.int64), from_integers(f, how)
    half = dtype in (np.float16, ml_dtypes.bfloat16)
    if half and how.mode != SR and x.size >= LOOKUP_FROM:
        return dtype, from_half(f, dtype, how)
    if dtype == np.float64:
        odd = None if supplied else by_odd(f, how)
        return dtype, odd or from_table(f, how) or generic(f, how)
    # plans of stochastic rounding are as many as tensors, all others few
    worker = (singles if how.mode == SR else kept_singles)(f, how, supplied)
    if how.nan_drop < 52 and (single := with_payloads(dtype)) is not None:
        return dtype, by_code(single, worker)
    return np.dtype(np.float32), worker
