"""Matrix products of units that align products, cut them and add exactly, for finite operands.

The rules are `Fused`, `TwoStage`, `BulkNorm` and `Mme` of `numsim.targets.rules`; the modules of
`rules` of those names define them. The left operand comes as planes of significands and exponents,
packed by rows of a tile; the right one as such planes or as codes of at most 20 bits, packed by
columns of a panel. Accumulators may be infinite or NaN. Proof: ``tests/targets/test_fast_units.py``
compares every bit with the definitions, on every path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from numsim.kernels.gemm.called import address_of, by_address, rows_or_one
from numsim.kernels.gemm.codes import (
    BLOCK,
    Fields,
    PackedCodes,
    aligned_terms,
    codes_types,
    cover_codes,
    pack_codes,
    run_codes,
    scratch_words,
    uint32_tuple,
)
from numsim.kernels.gemm.fma import cover, run_tiles, tile_types
from numsim.kernels.ir import align as simd_align
from numsim.kernels.ir import simd
from numsim.kernels.ir.align import BULK, HALVES, JOINS, LOWEST, NO_TERM, TWO_STREAMS, Flavour
from numsim.kernels.jit import PACKED, borrowing_kernel, called, grain_of, kernel, over_range

Array = npt.NDArray[Any]
_BLOCK = 1024  # products of k for which a panel of b stays in the cache
MOST_JAMMED = 29  # fraction bits of products that are jammed: below 4, so that int32 holds them
_PARTS = (HALVES, TWO_STREAMS)  # kinds whose blocks have two separately aligned sums


class Rule(NamedTuple):
    """What a kernel takes at run time; see `numsim.kernels.rules.align.Block` for the words."""

    kind: int
    group: int
    align_bits: int
    least: int  # the largest exponent is at least this
    emin: int
    emax: int
    keep_bits: int
    truncates: bool  # the rounding of a block: toward zero, or nearest even
    sum_bits: int
    half: bool  # the late addition rounds to float16, not to float32
    fraction: int  # fraction bits of a product

    @property
    def chunk(self) -> int:
        """Products summed in int32 before they go to float64."""
        usual = 8 if -(-self.group // self.parts) % 8 == 0 else 4
        return min(usual, 1 << (MOST_JAMMED - self.align_bits)) if self.kind == BULK else usual

    @property
    def parts(self) -> int:
        """Separately aligned sums in one block."""
        return 2 if self.kind in _PARTS else 1

    @property
    def small(self) -> int:
        """Whether `Flavour.small` kernels do: sums that become float32, cut toward zero."""
        if self.kind != JOINS or not self.truncates:
            return 0
        if (self.keep_bits, self.emin, self.emax) != (23, -126, 127):
            return 0
        products = self.group << self.align_bits + 2  # each is below 4, cut: at least 1 less
        both = products + (2 << self.align_bits)
        return 1 if both <= 1 << 31 else 2 if products <= 1 << 31 else 0

    def slots(self) -> Array:
        """Return, for each packed place of one block, its k, or -1: padding."""
        return _slots(self.kind, self.group, self.chunk)

    def array(self) -> Array:
        """Return the rule as the kernels read it."""
        return _array(self)


@lru_cache(maxsize=256)
def _slots(kind: int, group: int, chunk: int) -> Array:
    k = np.arange(group)
    if kind == HALVES:
        runs = [k[k // 2 % 2 == phase] for phase in (0, 1)]
    elif kind == TWO_STREAMS:
        runs = [k[k % 2 == phase] for phase in (0, 1)]
    else:
        runs = [k]
    length = -(-max(len(run) for run in runs) // chunk) * chunk
    return np.concatenate([np.pad(run, (0, length - len(run)), constant_values=-1)
                           for run in runs])  # fmt: skip


@lru_cache(maxsize=256)
def _array(rule: Rule) -> Array:
    chunks = len(rule.slots()) // rule.parts // rule.chunk
    return np.array(
        [chunks, rule.align_bits, max(rule.least, LOWEST), rule.emin, rule.keep_bits,
         rule.truncates, 2.0 ** (rule.emax + 1), rule.sum_bits, rule.half, rule.fraction]
    )  # fmt: skip


class PackedAlign(NamedTuple):
    """One operand, packed once: `planes` [batch, tiles, blocks, lines per tile, 2 x slots]."""

    planes: Array
    lines: int


@called
def _tile_wide(
    a: Array, b: Array, out: Array, stride: int, steps: int, left: int, rule: Array, flavour: int
) -> int:  # fmt: skip
    """Update four rows of a tile or one; return how many."""
    return rows_or_one(simd_align.align_tile, 4, a, b, out, stride, steps, left, rule, flavour)


@called
def _tile_narrow(
    a: Array, b: Array, out: Array, stride: int, steps: int, left: int, rule: Array, flavour: int
) -> int:  # fmt: skip
    """Update one row of a tile, without AVX-512."""
    simd_align.align_tile(1, flavour, a, 0, b, 0, out, 0, stride, steps, rule)
    return 1


@borrowing_kernel
def _run(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    tile: int, rule: Array,
) -> None:  # fmt: skip
    cover(by_address, out, a, b, steps, block, group, start, stop, (tile, rule))


@kernel
def _run_coded(
    out: Array, a: Array, b: Array, steps: int, block: int, group: int, start: int, stop: int,
    tile: int, rule: Array, how: Fields,
) -> None:  # fmt: skip
    scratch = scratch_words(block * b.shape[4] * 2 * b.shape[3])
    cover_codes(
        by_address, aligned_terms, out, a, b, scratch, steps, block, group, start, stop,
        (tile, rule), how,
    )  # fmt: skip


@kernel
def _pack(
    sig: Array, exp: Array, slots: Array, group: int, scale: int, whole: bool, zeros: bool,
    significands: Array, exponents: Array, start: int, stop: int,
) -> None:  # fmt: skip
    """Lay lines [lines, K] of significands and exponents out as [panels, slots, 2, width].

    A value is sig * 2**(exp + scale). Both outputs are views of one array, as float32 and int32.
    `whole`: write values instead of significands. `zeros`: zeros take part in the largest exponent.
    """
    lines, depth = sig.shape
    width = significands.shape[3]
    count = slots.size
    for panel in range(start, stop):
        for block in range(significands.shape[1] // count):
            for s in range(count):
                k = block * group + slots[s]
                inside = slots[s] >= 0 and k < depth
                at = block * count + s
                for i in range(width):
                    value, exponent = np.float32(0.0), np.int32(NO_TERM)
                    line = panel * width + i
                    if inside and line < lines:
                        m = sig[line, k]
                        e = exp[line, k]
                        power = np.int32(scale) + (e if whole else np.int32(0))
                        if m != 0:  # a zero's power may be none of float32
                            size = np.int32((power + 127) << 23).view(np.float32)
                            value = np.float32(m) * size
                        if m != 0 or zeros:
                            exponent = e
                    significands[panel, at, 0, i] = value
                    exponents[panel, at, 1, i] = exponent


@cache
def _packer() -> Callable[..., Any]:
    planes = (simd.strided(types.int32, 2), simd.strided(types.int32, 2))
    return simd.compiled(
        _pack, *planes, simd.contiguous(types.int64, 1), types.int64, types.int64, types.boolean,
        types.boolean, simd.contiguous(types.float32, 4), simd.contiguous(types.int32, 4),
        types.int64, types.int64,
    )  # fmt: skip


@cache
def _tile(flavour: int, wide: bool) -> int:
    micro = _tile_wide if wide else _tile_narrow
    return address_of(micro, flavour, types.int32, types.int32, types.float32, types.float64)


@cache
def _runner() -> Callable[..., Any]:
    arguments = tile_types(types.int32, types.int32, types.float32)
    return simd.compiled(_run, *arguments, types.int64, simd.contiguous(types.float64, 1))


@cache
def _codes_runner(codes: np.dtype[Any]) -> Callable[..., Any]:
    arguments = codes_types(types.int32, codes, types.float32)
    rule = simd.contiguous(types.float64, 1)
    return simd.compiled(_run_coded, *arguments, types.int64, rule, uint32_tuple(Fields))


def pack_b(codes: Array, rule: Rule) -> PackedCodes:
    """Pack the codes [1 or batch, K, N] of the right operand."""
    return pack_codes(codes, simd_align.ALIGN_COLUMNS, rule.slots(), rule.group)


def pack(
    sig: Array, exp: Array, trailing: int, rule: Rule, *, whole: bool, zeros: bool, right: bool
) -> PackedAlign:
    """Pack an operand from its planes [batch, lines, K] (`targets.tensor.planes`).

    Parameters: `trailing` fraction bits of the significands; `whole`: products of values are exact
    in float32 (`direct` of `gemm.align`); `zeros`: zeros take part in the largest exponent;
    `right`: the operand is b.
    """
    batch, lines, depth = sig.shape
    width = simd_align.ALIGN_COLUMNS if right else simd_align.ALIGN_ROWS
    slots = rule.slots()
    panels, blocks = -(-lines // width), -(-depth // rule.group)
    planes = np.empty((batch, panels, blocks * len(slots), 2, width), np.int32)
    entry = _packer()
    for i in range(batch):
        views = planes[i].view(np.float32), planes[i]

        def piece(start: int, stop: int, i: int = i, views: tuple[Array, Array] = views) -> object:
            return entry(
                sig[i], exp[i], slots, rule.group, -trailing, whole, zeros, *views, start, stop
            )

        over_range(piece, panels, grain=grain_of(panels, PACKED * sig[i].size))
    return PackedAlign(planes.reshape(batch, panels, blocks, width, 2 * len(slots)), lines)


def gemm_align(
    a: PackedAlign, b: PackedAlign | PackedCodes, rule: Rule, *, whole: bool,
    c: Array | None = None, how: Fields | None = None,
) -> Array:  # fmt: skip
    """Return the float32 accumulators [batch, M, N] of a chain over blocks of k, from c or +0.

    Parameters: packed operands of the same K, rule and `whole`; b has one item or as many as a;
    c [batch, M, N] float32; `how` the codes of a b of codes are read.
    """
    shape = (len(a.planes), a.lines, b.lines)
    out: Array = (
        np.zeros(shape, np.float32)
        if c is None
        else np.array(c, np.float32, order="C").reshape(shape)
    )
    if c is not None:
        out[np.isnan(out)] = np.nan  # the positive one, which stays as it is
    if out.size:
        small = 0 if simd.path() == "plain" else rule.small
        tile = _tile(Flavour(rule.kind, rule.chunk, whole, small).code(), simd.enabled())
        if isinstance(b, PackedCodes):
            block = max(BLOCK // rule.group, 1)
            entry = _codes_runner(b.panels.dtype)
            run_codes(entry, out, a.planes, b, block, tile, rule.array(), how)
            return out
        block = max(_BLOCK // rule.group, 1)
        run_tiles(_runner(), out, a.planes, b.planes, block, tile, rule.array())
    return out


@kernel
def survey(sig: Array, exp: Array, cls: Array) -> tuple[bool, int, int]:
    """Return whether all elements are finite, and the range of the nonzero ones' exponents.

    Without any nonzero element the range is (0, 0).
    """
    low, high = np.int32(1 << 20), np.int32(-(1 << 20))
    special = np.uint8(0)
    for i in range(sig.size):
        special |= cls[i]
        some = sig[i] != 0
        low = min(low, exp[i] if some else low)
        high = max(high, exp[i] if some else high)
    if low > high:
        low, high = np.int32(0), np.int32(0)
    return special == 0, int(low), int(high)
