"""One chain of a unit, the ways in which kernels run it, and how results are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.convert import encode
from numsim.formats import Format
from numsim.kernels.rules import fused as fused_kernel
from numsim.quant import QTensor
from numsim.targets.types import Fused, Rule, ScaledFp4

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


class Chain(NamedTuple):
    """One chain of a unit: a [..., M, K] by b [..., K, N] from c [count, M, N]."""

    rule: Any
    a: QTensor
    b: QTensor
    c: NDArray[Any] | None
    out: Format
    name: str  # of the unit, for messages


class Work(NamedTuple):
    """A kernel that covers a chain: what it is called, and what runs it."""

    kernel: str
    run: Callable[[], NDArray[Any]]


Way = Callable[[Chain], Work | None]  # None: the kernel does not cover the chain
Ways = tuple[Way, ...]  # the first that covers a chain; the last is the definition


def shape(x: Chain) -> tuple[int, int, int]:
    """Return [count, M, N] of a chain's results."""
    return math.prod(x.a.shape[:-2]), x.a.shape[-2], x.b.shape[-1]


def item(array: NDArray[Any], i: int) -> NDArray[Any]:
    """Return item i of a batch, or the only one."""
    item: NDArray[Any] = array[min(i, len(array) - 1)]
    return item


def one_nan(sums: NDArray[Any], rule: Rule) -> NDArray[Any]:
    """Give NaN among float32 sums made here the bits of the unit's, in place: not the host's."""
    with np.errstate(over="ignore", invalid="ignore"):
        some = np.isnan(sums.sum())  # no large temporary where there is none
    if some:
        ones = isinstance(rule, ScaledFp4) or (isinstance(rule, Fused) and rule.nan == "ones")
        sums.view(np.uint32)[np.isnan(sums)] = 0x7FFFFFFF if ones else 0x7FC00000
    return sums


def round_to(values: NDArray[Any], out: Format, rule: Rule | None = None) -> NDArray[Any]:
    """Round numbers to the output format (nearest even) in its NumPy type; NaN as the unit's."""
    dtype = DTYPES[out.name]
    codes: NDArray[Any] = encode(values, out, overflow="special")
    ones = isinstance(rule, Fused) and rule.nan == "ones"  # its narrow results are float16
    codes[np.isnan(values)] = 0x7FFF if ones else out.nan_code  # the sign of NaN is the host's
    typed: NDArray[Any] = codes.view(dtype)
    return typed


def store(values: NDArray[Any], out: Format, rule: Fused | ScaledFp4) -> NDArray[Any]:
    """Write results with the NaN pattern of a rule, NVIDIA's unless it says otherwise."""
    quiet = isinstance(rule, Fused) and rule.nan == "quiet"
    if out.name == "float32":
        bits = np.empty(values.shape, np.uint32)
        fused_kernel.store_float32(values.reshape(-1), bits.reshape(-1))
        if quiet:
            bits[np.isnan(values)] = 0x7FC00000
        return bits.view(np.float32)
    halves = values.astype(np.float16)
    halves.view(np.uint16)[np.isnan(values)] = 0x7E00 if quiet else 0x7FFF
    return halves
