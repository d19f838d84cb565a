"""Workers of `kernels.convert.float32`: which formats and roundings need no branch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.dispatch.exact import generic
from numsim.dispatch.workers import NONE, Plan, Worker, of_quotient
from numsim.formats import Format, get_format
from numsim.kernels.convert import float32 as fast
from numsim.kernels.convert import float32_stochastic as stochastic
from numsim.kernels.convert.round import (
    HALF_OFFSET,
    RNE,
    SATURATE,
    SPECIAL,
    SR,
    TRUNCATE,
    WRAP,
)
from numsim.kernels.ir import simd


def by_addition(f: Format, scalars: fast.Fast) -> bool:
    """Whether float32 additions round to nearest into a format (`kernels.convert.float32`)."""
    nearest = f.kind == "float" and f.signed and f.precision > 1
    return nearest and int(scalars.clamp >> np.uint32(23)) + 24 - f.precision < 255


def integer_limits(f: Format) -> tuple[np.float32, np.float32, np.float32] | None:
    """Return what `integer_rne` multiplies by and its limits, None for a format that it leaves."""
    if f.kind != "integer" or f.bits > 16 or f.bias > 120:
        return None
    unit = 2.0**f.bias
    return np.float32(unit), np.float32(f.min * unit), np.float32(f.max * unit)


def branch_free(f: Format, how: Plan, by: np.float32 | None = None) -> Worker | None:
    """Return a branch-free worker from float32 where one applies; `by` divides (stochastic)."""
    if f == get_format("float32"):
        return _as_it_is(f, how)
    if f.bits > 16 or f.kind == "table" or how.overflow == WRAP:
        return None
    again = generic(f, how) if by is None else of_quotient(generic(f, how), by)
    limits = integer_limits(f)
    if limits is not None and how.mode == RNE:

        def integer(
            x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
        ) -> tuple[int, int]:
            met = fast.integer_rne(x, out, *limits)
            return again(x, out, start, random) if met else NONE

        return integer
    if not f.zero and how.mode == RNE and (f.bits, f.bias) == (8, 127) and f.has_nan:
        return _scale(f, how)
    scalars = scalars_of(f, how.mode, how.overflow, how.nan_code, how.nan_sign)
    slow_nan = how.nan_code < 0 or how.nan_drop < 52  # refused, or with its payload
    if scalars is None:
        return None
    if how.mode == SR:
        return _stochastic(f, scalars, how, again, by)
    adds = how.mode == RNE and by_addition(f, scalars)
    kernel = fast.float_rne if adds else fast.float_any
    eight = adds and fast.takes_bytes(scalars) and simd.HAVE_BYTE_TABLES

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        entry = fast.byte_rne if eight and simd.enabled() else kernel
        met = entry(x.view(np.uint32), out, scalars)
        return again(x, out, start, random) if met and slow_nan else NONE

    return work


def _as_it_is(f: Format, how: Plan) -> Worker:
    """Return the worker of float32 into float32: only NaN and, by the overflow, Inf can change."""
    again = generic(f, how)

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if not np.isfinite(x).all():
            return again(x, out, start, random)
        np.copyto(out, x.view(np.uint32))
        return NONE

    return work


def _scale(f: Format, how: Plan) -> Worker:
    """Return the worker of E8M0."""
    top, nan = f.max_code, f.nan_code
    special = how.overflow == SPECIAL
    inf = top if how.overflow == SATURATE else nan
    codes = (nan if special else top, inf, nan if special else 0, 0 if inf == top else nan)
    limits = [np.uint32(code) for code in (*codes, how.nan_code)]

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        fast.scale_rne(x.view(np.uint32), out, *limits)
        return NONE

    return work


def _stochastic(
    f: Format, scalars: fast.Fast, how: Plan, again: Worker, by: np.float32 | None
) -> Worker | None:
    narrow = how.variant == TRUNCATE or (how.variant == HALF_OFFSET and how.bits < 32)
    if how.bits != 64 and not (narrow and how.bits <= 32):
        return None
    half_offset = how.bits < 32 and how.variant == HALF_OFFSET
    noise = stochastic.noise(how.bits, half_offset, how.seed)
    point = 31 - f.precision  # fraction bits of a subnormal in `float_sr_narrow`
    scale = point - (f.emin - f.precision + 1)
    narrow = f.kind == "float" and point >= stochastic.SUB_BITS and scale < 128
    slow_nan = how.nan_code < 0 or how.nan_drop < 52
    eight = fast.takes_bytes(scalars) and simd.HAVE_BYTE_TABLES

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        number = np.uint64(how.offset + start)
        bits = x.view(np.uint32)
        if narrow:
            to_fixed = np.float32(2.0**scale)
            kernel = (
                stochastic.byte_sr_narrow
                if eight and simd.enabled()
                else stochastic.float_sr_narrow
            )
            met, lower = kernel(bits, by, out, scalars, noise, to_fixed, number)
        else:
            met, lower = stochastic.float_sr(bits, by, out, scalars, noise, number)
        return again(x, out, start, random) if lower or (met and slow_nan) else NONE

    return work


@cache
def scalars_of(
    f: Format, mode: int, overflow: int, nan_code: int, nan_sign: int = 0
) -> fast.Fast | None:
    """Return what the kernels derive from a format and a rounding, None where they do not apply."""
    limit = f.max
    if f.kind == "float" and overflow == SPECIAL and (f.has_inf or f.has_nan) and f.zero:
        limit = f.value_after_max
    bits = int(np.array(limit, np.float32).view(np.uint32)) if limit < 2.0**128 else 0x7F800000
    return fast.fast_scalars(tuple(f.params), mode, overflow, (nan_code, nan_sign), bits)
