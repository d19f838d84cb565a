"""Blocks whose scales stand outside the unit, all in one kernel where one covers the case."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.convert import decode
from numsim.formats import Format
from numsim.kernels.gemm import blocks as gemm_blocks
from numsim.kernels.gemm import chains as gemm_chains
from numsim.kernels.gemm import hopper as gemm_hopper
from numsim.kernels.gemm import integer as gemm_int
from numsim.kernels.gemm import values as gemm_values
from numsim.quant import QTensor
from numsim.targets.chains import bare
from numsim.targets.runs.fused import fp8_applies
from numsim.targets.runs.integer import integer_plan
from numsim.targets.runs.tensor import batched, codes_of, fields, kept
from numsim.targets.scaling import powers_leave_float32
from numsim.targets.types import Fused, IntSum, Mac, Rule

_LEAST, _MOST = 2.0**-126, 2.0**127  # scales of products are normal numbers between these


class Blocks(NamedTuple):
    """What a kernel of all blocks works on: bare operands, Hopper's rule if it is that, scales."""

    left: QTensor
    right: QTensor
    fp8: Fused | None
    scales: gemm_blocks.Scales


def covered(rule: Rule, a: QTensor, b: QTensor, block: int, out: Format) -> Blocks | None:
    """Return what `add_blocks` works on; None: no kernel adds all blocks at once."""
    left, right = bare(a), bare(b)
    zeros = a.zero_point is not None or b.zero_point is not None
    if zeros or not (a.codes.size and b.codes.size):
        return None
    fp8 = _group(rule, left, right, block, out)
    if isinstance(rule, IntSum):
        if not _whole_bytes(rule, left, right, block):
            return None
    elif fp8 is None:
        chain = isinstance(rule, Mac) and rule.steps == Mac() and out.name == "float32"
        if not chain or codes_of(right) is None:
            return None
    scales = _scales(a, b, block, -(left.fmt.bias + right.fmt.bias) * isinstance(rule, IntSum))
    return None if scales is None else Blocks(left, right, fp8, scales)


def add_blocks(
    rule: Rule, a: QTensor, b: QTensor, block: int, out: Format, total: NDArray[np.float32] | None
) -> NDArray[np.float32] | None:
    """Add all scaled blocks to `total` [count, M, N], else to nothing; None: no kernel does it."""
    found = covered(rule, a, b, block, out)
    if found is None:
        return None
    left, right, fp8, scales = found
    codes_a, codes_b = batched(left.codes), batched(right.codes)
    shape = len(codes_a), codes_a.shape[1], codes_b.shape[-1]
    # -0 is what leaves every first addend as it is
    sums = np.full(shape, -0.0, np.float32) if total is None else np.array(total, order="C")
    one = len(codes_b) == 1
    flat = sums.reshape(1, -1, shape[2]) if one else sums
    rows = scales.rows.reshape(*flat.shape[:2], -1)
    scales = gemm_blocks.Scales(rows, scales.columns)
    if isinstance(rule, IntSum):
        packed = kept(right, "int8", lambda: gemm_int.pack_b(codes_b))
        starts = kept(right, f"starts {block}", lambda: gemm_int.starts(packed, block // 4))
        lines = codes_a.reshape(*flat.shape[:2], -1)
        gemm_blocks.sums(flat, lines, packed, starts, block, scales)
    elif fp8 is not None:
        _fp8(flat, left, right, fp8, block, scales)
    else:
        how = codes_of(right)
        assert how is not None
        codes = kept(right, "codes float32", lambda: gemm_values.pack_b(codes_b, np.float32))
        values = batched(decode(left.codes, left.fmt)).reshape(*flat.shape[:2], -1)
        gemm_chains.chains(flat, values, codes, how, block, scales)
    return sums


def _group(rule: Rule, a: QTensor, b: QTensor, block: int, out: Format) -> Fused | None:
    """Return Hopper's FP8 rule with groups that blocks of k are made of, None for other rules."""
    if not (isinstance(rule, Fused) and gemm_blocks.fp8_covers()):
        return None
    group = min(rule.group, block)
    fits = block % group == 0 and (b.shape[-2] % block == 0 or group == block)
    if not fits or not fp8_applies(a, b, None, out, rule):
        return None
    return Fused(group, 13, 13)


def _whole_bytes(rule: IntSum, a: QTensor, b: QTensor, block: int) -> bool:
    """Whether blocks are sums of signed bytes that no accumulator limits."""
    signed = a.codes.dtype == np.int8 and b.codes.dtype == np.int8
    whole = block % 4 == 0 and rule.acc_bits == 32
    return signed and whole and integer_plan(a, b, None, rule) == "int8"


def _fp8(
    out: NDArray[np.float32], a: QTensor, b: QTensor, rule: Fused, block: int,
    scales: gemm_blocks.Scales,
) -> None:  # fmt: skip
    span, how = block // rule.group, fields(b.fmt)
    codes_a, codes_b = batched(a.codes), batched(b.codes)
    lines = codes_a.reshape(*out.shape[:2], -1)
    key = f"fp8 copied {rule.group}"
    packed = kept(b, key, lambda: gemm_hopper.pack_b(codes_b, rule.group, in_place=False))
    for i in range(len(out)):
        one = slice(i, i + 1)
        left = gemm_hopper.pack_a(lines[i], fields(a.fmt), rule.group, span)
        right = packed._replace(panels=packed.panels[one])
        columns = scales.columns[one if len(scales.columns) > 1 else slice(1)]
        rows = np.ascontiguousarray(scales.rows[one])
        gemm_blocks.fp8(out[one], left, right, how, span, gemm_blocks.Scales(rows, columns))


def _scales(a: QTensor, b: QTensor, block: int, power: int) -> gemm_blocks.Scales | None:
    """Return the scales of blocks, rows times 2**power; None where a product may not be held.

    With `power` the unit counts in quanta, and a product of scales must be exact before it. Without
    it products of powers of two are exact, also beyond float32.
    """
    rows = _of_blocks(a, -1, block)
    columns = kept(b, f"scales of {block}", lambda: _of_blocks(b, -2, block))
    if power:
        sizes = [x[x != 0] for x in (rows, columns)]
        if not all(np.isfinite(x).all() for x in sizes):
            return None
        low, high = (
            float(np.prod([limit(x, initial=1.0) for x in sizes], dtype=np.float64))
            for limit in (np.min, np.max)
        )
        least = min(low, float(min((x.min() for x in sizes if x.size), default=1.0)))
        if not (
            low > 0
            and min(least, least * 2.0**power) >= _LEAST
            and high * 2.0 ** abs(power) < _MOST
        ):
            return None
        rows = rows * np.float32(2.0**power)
    elif powers_leave_float32(rows, columns):
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
