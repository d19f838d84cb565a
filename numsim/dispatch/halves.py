"""Workers of 16-bit and float64 inputs: by a table of all inputs, or by way of float32."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.dispatch.branch_free import branch_free
from numsim.dispatch.exact import from_table, generic
from numsim.dispatch.workers import BLOCK, NONE, Plan, Worker, in_blocks, over_blocks
from numsim.formats import Format, get_format, list_formats
from numsim.kernels.convert import codec
from numsim.kernels.convert import float32 as fast
from numsim.kernels.convert.round import (
    SR,
    WRAP,
)

_ODD = 1 << 15  # float64 numbers that become float32 at a time
LOOKUP_FROM = 1 << 14  # elements from which a table of all 65,536 inputs pays


def singles(f: Format, how: Plan, supplied: bool) -> Worker:
    """Return the worker of float32."""
    return from_table(f, how) or (None if supplied else branch_free(f, how)) or generic(f, how)


kept_singles = lru_cache(maxsize=256)(singles)


def by_odd(f: Format, how: Plan) -> Worker | None:
    """Return the worker of float32 after a rounding to odd, where that decides the same."""
    far = f.min_subnormal >= 2.0**-140 and f.max < 2.0**127
    if how.mode == SR or how.nan_drop < 52 or f.kind == "table" or f.bits > 16 or not far:
        return None
    if how.overflow == WRAP:  # the lowest bits of large numbers count
        return None
    worker = kept_singles(f, how, False)

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if x.size > _ODD:
            return in_blocks(work, x, out, start, random, _ODD)
        rounded = np.empty(x.size, np.uint32)
        fast.odd_singles(x, rounded)
        return worker(rounded.view(np.float32), out, start, random)

    return work


def from_half(f: Format, dtype: np.dtype[Any], how: Plan) -> Worker:
    """Return the worker of a 16-bit type: a table of the codes of all its numbers."""
    table = _half_table(f, dtype, how)
    infinity = np.uint16(0x7C00 if dtype == np.float16 else 0x7F80)

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if codec.encode_lookup(x.view(np.uint16), out, table, infinity) and how.nan_code < 0:
            nan = np.flatnonzero((x.view(np.uint16) & np.uint16(0x7FFF)) > infinity)
            return nan.size, int(nan[0]) + start
        return NONE

    return work


@lru_cache(maxsize=64)
def _half_table(f: Format, dtype: np.dtype[Any], how: Plan) -> NDArray[Any]:
    """Encode all 65,536 numbers of a 16-bit type."""
    with np.errstate(all="ignore"):
        x = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
    out = np.zeros(1 << 16, f.code_dtype)
    over_blocks(x, np.float32, out, kept_singles(f, how, False))
    out.flags.writeable = False
    return out


@cache
def with_payloads(dtype: np.dtype[Any]) -> NDArray[np.float32] | None:
    """Return the values of a float8 type that has NaNs of several fractions, else None.

    ml_dtypes makes one float32 NaN of them all.
    """
    f = get_format(dtype.name if dtype.name in list_formats() else "float32")
    if f.bits != 8 or f.nan != "ieee":
        return None
    codes = np.arange(256, dtype=np.uint32)
    bits = ((codes & 0x80) << 24) | 0x7F800000 | ((codes << (24 - f.precision)) & 0x7FFFFF)
    values = f.values().astype(np.float32)
    return np.where(np.isnan(values), bits.astype(np.uint32).view(np.float32), values)


def by_code(values: NDArray[np.float32], worker: Worker) -> Worker:
    """Return the worker of an 8-bit type, whose numbers are `values`."""

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if x.size > BLOCK:
            return in_blocks(work, x, out, start, random)
        return worker(values[x.view(np.uint8)], out, start, random)

    return work
