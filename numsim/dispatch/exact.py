"""Workers that follow the definition: every format, rounding, overflow and random integer."""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.dispatch.workers import BLOCK, NONE, Plan, Worker, in_blocks
from numsim.formats import Format
from numsim.kernels.convert import codec
from numsim.kernels.convert.philox import random_words
from numsim.kernels.convert.round import (
    HALF_OFFSET,
    RDN,
    RNA,
    RNE,
    RTO,
    RTZ,
    RUP,
    SPECIAL,
    SR,
    TRUNCATE,
)


def generic(f: Format, how: Plan) -> Worker:
    """Return the worker that follows the definition."""
    common = (f.params, how.mode, how.overflow, how.bits, how.variant)

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        rest = (random, how.seed, np.uint64(how.offset + start), *how[6:])
        if x.dtype == np.float32:
            found = codec.encode_float32(x.view(np.uint32), out, *common, *rest)
        else:
            found = codec.encode_float64(x.view(np.uint64), out, *common, *rest)
        return found[0], found[1] + start

    return work


def from_integers(f: Format, how: Plan) -> Worker:
    """Return the worker of integers, which are never rounded to float first."""
    table = from_table(f, how)
    common = (f.params, how.mode, how.overflow, how.bits, how.variant) if table is None else ()

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if table is not None:
            if x.size > BLOCK:
                return in_blocks(work, x, out, start, random)
            found = table(x.astype(np.float64), out, start, random)
            # what float64 cannot hold is decided again
            wide = (x >= 1 << 53) | (x <= -(1 << 53) if x.dtype.kind == "i" else False)
            _exact(f, how, np.flatnonzero(wide), x, out, start, random)
            return found
        signed = x.dtype.kind == "i"
        rest = (random, how.seed, np.uint64(how.offset + start))
        codec.encode_integer(x.view(np.uint64), out, signed, *common, *rest)
        return NONE

    return work


def from_table(f: Format, how: Plan) -> Worker | None:
    """Return the worker of a table of values, None for other formats."""
    if f.kind != "table":
        return None
    to_inf = f.has_inf and how.overflow == SPECIAL
    values, codes = _sorted_table(f, to_inf)
    common = (values, codes, how.mode, how.overflow, how.bits, how.variant)
    infinite = f.nan_code if f.has_nan else -1, f.nan_code
    if f.has_inf:
        infinite = f.inf_code, int(np.flatnonzero(np.isneginf(f.values()))[0])

    def work(
        x: NDArray[Any], out: NDArray[Any], start: int, random: NDArray[np.uint64]
    ) -> tuple[int, int]:
        if how.mode == SR and x.size > BLOCK:
            return in_blocks(work, x, out, start, random)
        rest = (random, how.seed, np.uint64(how.offset + start), how.nan_code, infinite, to_inf)
        doubtful = np.zeros(x.size if how.mode == SR else 0, np.bool_)
        found = codec.encode_table(x, out, *common, *rest, doubtful)
        _exact(f, how, np.flatnonzero(doubtful), x, out, start, random)
        return found[0], found[1] + start

    return work


def _exact(
    f: Format, how: Plan, where: NDArray[np.intp], x: NDArray[Any], out: NDArray[Any], start: int,
    random: NDArray[np.uint64],
) -> None:  # fmt: skip
    """Round the elements at `where` into a table again, in exact fractions."""
    if not where.size:
        return
    table = _sorted_table(f, f.has_inf and how.overflow == SPECIAL)
    values, codes = (column.tolist() for column in table)
    for i in where.tolist():
        v = x[i].item()
        hi = bisect_left(values, v)
        if hi in (0, len(values)) or values[hi] == v:
            out[i] = codes[min(hi, len(values) - 1)]
            continue
        low, high = Fraction(values[hi - 1]), Fraction(values[hi])
        position = (Fraction(v) - low) / (high - low)
        if how.mode == SR:
            r = int(random[i]) if random.size else draw(how.offset + start + i, how.seed, how.bits)
            up = _carries(position if v > 0 else 1 - position, r, how) == (v > 0)
        else:
            even, half = codes[hi - 1] % 2 == 0, Fraction(1, 2)
            up = {
                RNE: position > half or (position == half and not even),
                RNA: position > half or (position == half and v > 0),
                RTZ: v < 0, RUP: True, RDN: False, RTO: even,
            }[how.mode]  # fmt: skip
        out[i] = codes[hi if up else hi - 1]


def draw(number: int, seed: int, bits: int) -> int:
    """Return the random integer of one number of the stream."""
    word = np.empty(1, np.uint64)
    random_words(np.array([number], np.uint64), seed, word)
    return int(word[0]) >> (64 - bits)


def _carries(fraction: Fraction, r: int, how: Plan) -> bool:
    """Do what `kernels.round.random_carry` does to any fraction."""
    one = 1 << how.bits
    if how.bits == 64 or how.variant == TRUNCATE:
        return fraction * one >= one - r
    if how.variant == HALF_OFFSET:
        return fraction * 2 * one >= 2 * one - 2 * r - 1
    return round(fraction * one) + r >= one  # Python rounds ties to even


@cache
def _sorted_table(f: Format, to_inf: bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return values and their codes, lowest first; `to_inf`: with those that stand for Inf."""
    values = np.array(f.table) if to_inf else f.values()
    codes = np.flatnonzero(np.isfinite(values))
    order = codes[np.argsort(values[codes], kind="stable")]
    return values[order], order
