"""Blocks along rows, stored under scales that are found on the way: few calls for a whole tensor.

A `Rows` takes numbers as words [blocks, size] and what they are, and fills codes [blocks, size],
scales [blocks] and the codes of scales [blocks]. It returns the scale above those of the blocks, 1
where there is none, or -1, with what was filled undefined, for unusual numbers: not finite, or of
scales that the general way looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.dispatch.branch_free import by_addition, integer_limits, scalars_of
from numsim.dispatch.workers import GRAIN
from numsim.formats import Format, get_format
from numsim.kernels.convert import block_codes, chosen_blocks, e2m1_blocks
from numsim.kernels.convert.block_codes import Integers, Kind, Power
from numsim.kernels.convert.chosen_blocks import Chosen, chosen_kernel
from numsim.kernels.convert.e2m1_blocks import Narrow
from numsim.kernels.convert.float32 import takes_bytes
from numsim.kernels.convert.hif4 import Levels, hif4_kernel
from numsim.kernels.convert.round import RNE, SATURATE
from numsim.kernels.ir import simd
from numsim.kernels.jit import grain_of, over_range, threads

Array = NDArray[Any]
Rows = Callable[[Array, int, Array, Array, Array], float]


class _Kernels(NamedTuple):
    along: Kind
    down: Callable[..., bool]
    how: Any


@cache
def kernels_of(f: Format, wide: bool) -> _Kernels | None:
    """Return which kernels store a format under powers of two; `wide`: with AVX-512."""
    limits = integer_limits(f)
    if limits is not None:
        return _Kernels("integers", block_codes.integers_down, Integers(*limits))
    if f.kind != "float" or f.bits > 16 or not (f.zero and f.signed):
        return None
    scalars = scalars_of(f, RNE, SATURATE, f.nan_code)
    if scalars is None or not by_addition(f, scalars):
        return None
    wide = wide and simd.HAVE_BYTE_TABLES
    eight = wide and f.bits == 8 and takes_bytes(scalars)
    down = block_codes.bytes_down if eight else block_codes.floats_down
    codes = wide and f.bits <= 8 and block_codes.takes_codes(scalars)
    return _Kernels("codes" if codes else "floats", down, scalars)


@lru_cache(maxsize=256)
def power_rows(f: Format, power: Power, wide: bool) -> Rows | None:
    """Return what stores rows under powers of two, with E8M0 codes; None: no kernel does it."""
    works = kernels_of(f, wide)
    if works is None:
        return None
    to, how, code = works.along, works.how, np.dtype(f.code_dtype)

    def store(x: Array, kind: int, codes: Array, scales: Array, bytes_: Array) -> float:
        along = block_codes.along(to, x.dtype, code)
        if x.size <= GRAIN or threads() == 1:
            good = along(x, kind, power, how, scales, bytes_, codes, 0, len(x))
            return 1.0 if good else -1.0
        found: list[bool] = []
        over_range(
            lambda i, j: found.append(along(x, kind, power, how, scales, bytes_, codes, i, j)),
            len(x), grain=grain_of(len(x), x.size),
        )  # fmt: skip
        return 1.0 if all(found) else -1.0

    return store


class NarrowRows(NamedTuple):
    """What stores rows in four bits under scales of few bits, in one call or in parts.

    `largest` returns the largest magnitude of rows, as float32 bits, 0 where nothing follows from
    it, `above` by it the scale above those of blocks or -1, and `under` stores rows under that and
    returns whether they are usual.
    """

    store: Rows
    largest: Callable[[Array, int], int]
    above: Callable[[int], float]
    under: Callable[[Array, int, float, Array, Array, Array], bool]


_WAYS = {
    "4over6:mae": chosen_blocks.MAGNITUDES, "4over6:mse": chosen_blocks.SQUARES,
    "if4": chosen_blocks.INTEGERS,
}  # fmt: skip


@lru_cache(maxsize=256)
def narrow_rows(f: Format, reach: float, scale_rule: str, wide: bool) -> NarrowRows | None:
    """Return what stores rows in E2M1 under scales of format f; None: no kernel does it.

    The scale above is fp32(amax / reach), 1 where amax or `reach` is 0. Scales are by ``amax``, or
    each block is stored in the better of two ways, and a block is whole vectors of 16. `wide`:
    with AVX-512.
    """
    narrow = _narrow_of(f)
    if narrow is None:
        return None
    if scale_rule in _WAYS:
        chosen = Chosen(*narrow, _WAYS[scale_rule])
        return _in_parts(reach, lambda x, kind, above, codes, scales, bytes_, i, j: (
            chosen_kernel(x.dtype)(x, kind, above, chosen, wide, scales, bytes_, codes, i, j)
        ))  # fmt: skip
    parts = _in_parts(reach, lambda x, kind, above, codes, scales, bytes_, i, j: (
        e2m1_blocks.narrow_kernels(x.dtype).along(
            x, kind, above, narrow, wide, scales, bytes_, codes, i, j
        )
    ))  # fmt: skip

    def store(x: Array, kind: int, codes: Array, scales: Array, bytes_: Array) -> float:
        if x.size > GRAIN and threads() > 1:
            return parts.store(x, kind, codes, scales, bytes_)
        whole = e2m1_blocks.narrow_kernels(x.dtype).whole
        return whole(x, kind, reach, narrow, wide, scales, bytes_, codes)  # type: ignore[return-value]

    return parts._replace(store=store)


@cache
def hif4_rows() -> NarrowRows:
    """Return what stores rows in HiF4, in quarters; blocks are of 64, and nothing is above them."""
    values = get_format("float8_ue6m2").values()[:255]  # the last is NaN
    inverses = (1.0 / values.astype(np.float64)).astype(ml_dtypes.bfloat16).astype(np.float64)
    levels = Levels(values.astype(np.float32), inverses)
    return _in_parts(0.0, lambda x, kind, above, codes, scales, bytes_, i, j: (
        hif4_kernel(x.dtype)(x, kind, levels, scales, bytes_, codes, i, j)
    ))  # fmt: skip


def _in_parts(reach: float, along: Callable[..., bool]) -> NarrowRows:
    """Return what stores rows by ``along(x, kind, above, codes, scales, bytes_, start, stop)``."""

    def store(x: Array, kind: int, codes: Array, scales: Array, bytes_: Array) -> float:
        scale = above(largest(x, kind))
        return scale if scale > 0 and under(x, kind, scale, codes, scales, bytes_) else -1.0

    def largest(x: Array, kind: int) -> int:
        if not reach:
            return 0
        found: list[int] = []
        over_range(
            lambda i, j: found.append(int(e2m1_blocks.largest_along(x, kind, i, j))),
            len(x), grain=grain_of(len(x), x.size),
        )  # fmt: skip
        return max(found)

    def above(most: int) -> float:
        return float(e2m1_blocks.above_by(most, reach))

    def under(
        x: Array, kind: int, scale: float, codes: Array, scales: Array, bytes_: Array
    ) -> bool:
        found: list[bool] = []
        over_range(
            lambda i, j: found.append(along(x, kind, scale, codes, scales, bytes_, i, j)),
            len(x), grain=grain_of(len(x), x.size),
        )  # fmt: skip
        return all(found)

    return NarrowRows(store, largest, above, under)


def _narrow_of(f: Format) -> Narrow | None:
    """Return a format of scales as kernels take it: floats of at most eight bits, with zero."""
    scalars = scalars_of(f, RNE, SATURATE, f.nan_code)
    if scalars is None or not (f.kind == "float" and f.zero and f.bits <= 8 and f.precision > 1):
        return None
    if f.min_subnormal < 2.0**-140 or f.max >= 2.0**100:  # rounded to odd float32 in between
        return None
    return Narrow(scalars, f.values()[: f.max_code + 1].astype(np.float32))
