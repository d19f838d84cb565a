"""One chain of a unit, what may run it, what it lost, and how its results are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.convert import encode
from numsim.formats import Format
from numsim.kernels.rules import align as align_kernel
from numsim.kernels.rules.counts import COLUMNS
from numsim.quant import QTensor
from numsim.vocabulary import ROUNDINGS

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


class Tally(NamedTuple):
    """What a chain lost: a row of counts and the range of the accumulator for each row of D."""

    counts: NDArray[np.int64]  # [batch, M, COLUMNS], columns of `numsim.kernels.rules.counts`
    extremes: NDArray[Any]  # [batch, M, 2], in float64, of integer units in int64


class Chain(NamedTuple):
    """One chain of a unit: a [..., M, K] by b [..., K, N] from c [count, M, N]."""

    rule: Any
    a: QTensor
    b: QTensor
    c: NDArray[Any] | None
    out: Format
    name: str  # of the unit, for messages
    tally: Tally | None = None  # where what is lost is counted; None: it is not


class Work(NamedTuple):
    """A kernel that covers a chain: what it is called, and what runs it.

    `scaled` runs it and multiplies its sums by a finite scale, fp32(fp32(sum) * scale), at once.
    """

    kernel: str
    run: Callable[[], NDArray[Any]]
    scaled: Callable[[np.float32], NDArray[np.float32]] | None = None


Way = Callable[[Chain], Work | None]  # None: the kernel does not cover the chain
Ways = tuple[Way, ...]  # the first that covers a chain runs it


def shape(x: Chain) -> tuple[int, int, int]:
    """Return [count, M, N] of a chain's results."""
    return math.prod(x.a.shape[:-2]), x.a.shape[-2], x.b.shape[-1]


def start(x: Chain, dtype: Any) -> NDArray[Any]:
    """Return the accumulators that a chain begins with, [count, M, N] in a type."""
    if x.c is None:
        return np.zeros(shape(x), dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return x.c.astype(dtype)


def new_tally(x: Chain, dtype: Any) -> Tally:
    """Return room for what a chain loses; `dtype`: of its accumulators."""
    count, m, _ = shape(x)
    return Tally(np.zeros((count, m, COLUMNS), np.int64), np.zeros((count, m, 2), dtype))


def noted(x: Chain, i: int) -> tuple[NDArray[Any], ...]:
    """Return where a kernel counts item i of a batch, as its last arguments; none: nowhere."""
    return () if x.tally is None else (x.tally.counts[i], x.tally.extremes[i])


def item(array: NDArray[Any], i: int) -> NDArray[Any]:
    """Return item i of a batch, or the only one."""
    item: NDArray[Any] = array[min(i, len(array) - 1)]
    return item


def mode(rounding: str) -> int:
    """Return the number by which kernels know a rounding.

    >>> mode("rne"), mode("rto")
    (0, 5)
    """
    return ROUNDINGS.index(rounding)


def nan_code(out: Format, rule: Any) -> int:
    """Return the code of NaN results of a rule, that of the format where it is None."""
    ones = rule is not None and rule.nan == "ones"
    return (1 << (out.bits - 1)) - 1 if ones else out.nan_code


def one_nan(sums: NDArray[Any], rule: Any) -> NDArray[Any]:
    """Give NaN among float32 sums made here the bits of the unit's, in place: not the host's."""
    nan, bits = 0x7FFFFFFF if rule.nan == "ones" else 0x7FC00000, sums.view(np.uint32)
    if sums.flags.c_contiguous:
        align_kernel.name_nan(bits.reshape(-1), nan)
    else:
        bits[np.isnan(sums)] = nan
    return sums


def round_to(values: NDArray[Any], out: Format, rule: Any = None) -> NDArray[Any]:
    """Round numbers to the output format (nearest even) in its NumPy type; NaN as the unit's."""
    codes: NDArray[Any] = encode(values, out, overflow="special")
    codes[np.isnan(values)] = nan_code(out, rule)  # the sign of NaN is the host's
    typed: NDArray[Any] = codes.view(DTYPES[out.name])
    return typed


def store(values: NDArray[Any], out: Format, rule: Any) -> NDArray[Any]:
    """Write float64 results that the output format holds, with the NaN pattern of a rule."""
    nan = nan_code(out, rule)
    if out.name == "float32":
        bits = np.empty(values.shape, np.uint32)
        align_kernel.store_float32(values.reshape(-1), bits.reshape(-1), nan)
        return bits.view(np.float32)
    halves: NDArray[Any] = values.astype(DTYPES[out.name])
    halves.view(np.uint16)[np.isnan(values)] = nan
    return halves
