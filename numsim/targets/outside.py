"""Blocks whose scales stand outside the unit, all in one kernel where one covers the case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format
from numsim.kernels.gemm import blocks as gemm_blocks
from numsim.kernels.gemm import chains as gemm_chains
from numsim.kernels.gemm import hopper as gemm_hopper
from numsim.kernels.gemm import integer as gemm_int
from numsim.kernels.gemm import values as gemm_values
from numsim.kernels.ir import simd
from numsim.quant import QTensor
from numsim.quant.kept import kept
from numsim.quant.types import decoded
from numsim.targets.fast.fused import fp8_applies
from numsim.targets.fast.integer import integer_plan
from numsim.targets.rules import Fused, IntSum, Mac, Rule, adds_integers
from numsim.targets.scaling import powers_leave_float32
from numsim.targets.split_k import bare
from numsim.targets.tensor import batched, codes_of, fields, in_halves

_LEAST, _MOST = 2.0**-126, 2.0**127  # scales of products are normal numbers between these


Add = Callable[[NDArray[np.float32], gemm_blocks.Scales], None]  # all blocks, to sums in place
Way = Callable[[Any, QTensor, QTensor, int, Format], Add | None]  # of a rule, bare operands ...


class Blocks(NamedTuple):
    """What adds all blocks of a product, and their scales."""

    add: Add
    scales: gemm_blocks.Scales


def covered(rule: Rule, a: QTensor, b: QTensor, block: int, out: Format) -> Blocks | None:
    """Return what `add_blocks` runs; None: no kernel adds all blocks at once."""
    left, right = bare(a), bare(b)
    way = _WAYS.get(type(rule))
    zeros = a.zero_point is not None or b.zero_point is not None
    if way is None or zeros or not (a.codes.size and b.codes.size):
        return None
    add = way(rule, left, right, block, out)
    if add is None:
        return None
    power = -(left.fmt.bias + right.fmt.bias) if adds_integers(rule) else 0
    scales = _scales(a, b, block, power)
    return None if scales is None else Blocks(add, scales)


def add_blocks(
    rule: Rule, a: QTensor, b: QTensor, block: int, out: Format, total: NDArray[np.float32] | None
) -> NDArray[np.float32] | None:
    """Add all scaled blocks to `total` [count, M, N], else to nothing; None: no kernel does it."""
    found = covered(rule, a, b, block, out)
    if found is None:
        return None
    codes_a, codes_b = batched(a.codes), batched(b.codes)
    shape = len(codes_a), codes_a.shape[1], codes_b.shape[-1]
    # -0 is what leaves every first addend as it is
    sums = np.full(shape, -0.0, np.float32) if total is None else np.array(total, order="C")
    flat = sums.reshape(1, -1, shape[2]) if len(codes_b) == 1 else sums
    rows = found.scales.rows.reshape(*flat.shape[:2], -1)
    found.add(flat, gemm_blocks.Scales(rows, found.scales.columns))
    return sums


def _lines(q: QTensor, out: NDArray[np.float32]) -> NDArray[Any]:
    """Return the codes of a left operand as rows of `out`."""
    return batched(q.codes).reshape(*out.shape[:2], -1)


def _integers(rule: IntSum, a: QTensor, b: QTensor, block: int, out: Format) -> Add | None:
    """Blocks that are sums of signed bytes which no accumulator limits."""
    signed = a.codes.dtype == np.int8 and b.codes.dtype == np.int8
    whole = block % 4 == 0 and rule.acc_bits == 32
    if not (signed and whole and integer_plan(a, b, None, rule) == "int8"):
        return None

    def add(sums: NDArray[np.float32], scales: gemm_blocks.Scales) -> None:
        packed = kept(b, "int8", lambda: gemm_int.pack_b(batched(b.codes)))
        starts = kept(b, "starts", lambda: gemm_int.starts(packed, block // 4), block)
        gemm_blocks.sums(sums, _lines(a, sums), packed, starts, block, scales)

    return add


def _multiply_adds(rule: Mac, a: QTensor, b: QTensor, block: int, out: Format) -> Add | None:
    """Blocks that are chains of fused multiply-adds in float32."""
    how = codes_of(b)
    if rule.steps != Mac() or out.name != "float32" or how is None:
        return None

    def add(sums: NDArray[np.float32], scales: gemm_blocks.Scales) -> None:
        codes = kept(
            b,
            "code panels",
            lambda: gemm_values.pack_b(batched(b.codes), np.float32),
            np.dtype(np.float32),
        )
        values = batched(decoded(a)).reshape(*sums.shape[:2], -1)
        gemm_chains.chains(
            sums, values, codes, how, block, scales, in_halves=in_halves(b.fmt)
        )  # fmt: skip

    return add


def _fp8(rule: Fused, a: QTensor, b: QTensor, block: int, out: Format) -> Add | None:
    """Blocks that are made of groups of Hopper's FP8."""
    group = min(rule.group, block)
    fits = block % group == 0 and (b.shape[-2] % block == 0 or group == block)
    if not (fits and gemm_blocks.fp8_covers() and fp8_applies(a, b, None, out, rule)):
        return None

    def add(sums: NDArray[np.float32], scales: gemm_blocks.Scales) -> None:
        span, how, codes = block // group, fields(b.fmt), batched(b.codes)
        lines = _lines(a, sums)
        packed = kept(
            b,
            "fp8 copied",
            lambda: gemm_hopper.pack_b(codes, group, in_place=False),
            group,
            simd.path(),
        )
        for i in range(len(sums)):
            one = slice(i, i + 1)
            left = gemm_hopper.pack_a(lines[i], fields(a.fmt), group, span)
            right = packed._replace(panels=packed.panels[one])
            columns = scales.columns[one if len(scales.columns) > 1 else slice(1)]
            rows = np.ascontiguousarray(scales.rows[one])
            gemm_blocks.fp8(sums[one], left, right, how, span, gemm_blocks.Scales(rows, columns))

    return add


_WAYS: dict[type, Way] = {IntSum: _integers, Mac: _multiply_adds, Fused: _fp8}


class _Ends(NamedTuple):
    """Of scales: whether all that are not 0 are finite, the least of these, the largest, or 1.

    `held`: all are numbers whose products with others such float32 holds.
    """

    finite: bool
    least: float
    most: float
    held: bool


def _ends(scales: NDArray[np.float32]) -> _Ends:
    finite, least, most, count = gemm_blocks.sizes(np.ravel(scales))
    held = finite and count == scales.size and least >= 2.0**-60 and most <= 2.0**60
    return _Ends(finite, least, max(most, 1.0), held)


def _scales(a: QTensor, b: QTensor, block: int, power: int) -> gemm_blocks.Scales | None:
    """Return the scales of blocks, rows times 2**power; None where a product may not be held.

    With `power` the unit counts in quanta, and a product of scales must be exact before it. Without
    it products of powers of two are exact, also beyond float32.
    """
    rows = _of_blocks(a, -1, block)

    def measured() -> tuple[NDArray[np.float32], _Ends]:
        scales = _of_blocks(b, -2, block)
        return scales, _ends(scales)

    columns, other = kept(b, "scales of blocks", measured, block)
    own = _ends(rows)
    if power:
        if not (own.finite and other.finite):
            return None
        low, high = min(own.least, 1.0) * min(other.least, 1.0), own.most * other.most
        least = min(low, own.least, other.least)
        if not (
            low > 0
            and min(least, least * 2.0**power) >= _LEAST
            and high * 2.0 ** abs(power) < _MOST
        ):
            return None
        rows = rows * np.float32(2.0**power)
    elif not (own.held and other.held) and powers_leave_float32(rows, columns):
        return None
    if len(columns) == 1:
        return gemm_blocks.Scales(np.ascontiguousarray(rows), columns)
    return gemm_blocks.Scales(np.ascontiguousarray(rows), np.ascontiguousarray(columns))


def _of_blocks(q: QTensor, axis: int, block: int) -> NDArray[np.float32]:
    """Return the scales [count, M, blocks] or [count, blocks, N] of an operand, float32."""
    depth = q.shape[axis]
    blocks = -(-depth // block)
    scale, shape = q.scale, [*q.shape]
    shape[axis] = blocks
    if scale is None:
        return batched(np.ones(shape, np.float32))
    per_element = (
        q.block_shape is None or q.block_shape[axis] != block or scale.shape != tuple(shape)
    )
    if per_element:
        whole = q.element_scale()
        assert whole is not None
        whole = whole.reshape((1,) * (q.ndim - whole.ndim) + whole.shape)
        if whole.shape[axis] != 1:
            at = np.arange(0, depth, block)
            whole = np.take(whole, at, axis)
        scale = np.broadcast_to(whole, shape)
    return batched(np.ascontiguousarray(scale, np.float32))
