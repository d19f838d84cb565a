"""Products of FP8 codes on Ada and Hopper by their kernel, without what `matmul` asks before.

A step of a small recurrent layer has three products that take as long as the questions. The kernel
and the scales are those of `matmul`: `tests/nn/test_direct.py` compares every bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format, get_format
from numsim.kernels.elementwise.times import times
from numsim.kernels.gemm import hopper
from numsim.kernels.ir import simd
from numsim.quant import QTensor, quantize
from numsim.quant.types import readable
from numsim.targets.chain import Chain
from numsim.targets.fast.fused import FP8
from numsim.targets.operands import locked
from numsim.targets.plan import class_for
from numsim.targets.rules import about
from numsim.targets.runs import chosen
from numsim.targets.split_k import restarts
from numsim.targets.tensor import fields, finite

Array = NDArray[Any]


def group_of(target: Any, a: Format, b: Format, depth: int) -> int | None:
    """Return the group of the 13-bit FP8 sums by which a unit multiplies finite codes, or None."""
    return _group(target, a, b, depth, simd.path())


@lru_cache(maxsize=256)
def _group(target: Any, a: Format, b: Format, depth: int, path: str) -> int | None:
    if restarts(target) or not depth:
        return None
    _, sums = class_for(target, a, b)
    left, right = (locked(quantize(np.zeros(s, np.float32), f)) for s, f in (
        ((1, depth), a), ((depth, 1), b)
    ))  # fmt: skip
    work = chosen(Chain(sums, left, right, None, get_format("float32"), target.name))
    return about(sums).step(sums, depth) if work.kernel == FP8 else None


def products(a: QTensor, rights: Sequence[QTensor], rule: Any) -> list[Array] | None:
    """Return a [M, K] by each of `rights` [K, N], which have one format; None: `matmul` does it."""
    first = rights[0]
    if rule.out_format != "float32" or not all(_has_one_scale(q) for q in (a, *rights)):
        return None
    if any(b.fmt != first.fmt for b in rights):
        return None
    group = group_of(rule.target, a.fmt, first.fmt, a.shape[1])
    a, rights = locked(a), [locked(b) for b in rights]
    if group is None or not all(finite(q) for q in (a, *rights)):
        return None
    scales = [np.float32(a.scale * b.scale) for b in rights]  # type: ignore[operator]
    if readable(a).flags.c_contiguous or a.shape[0] < sum(b.shape[1] for b in rights):
        rows = hopper.pack_a(readable(a), fields(a.fmt), group)
        sums = [
            hopper.gemm_hopper_fp8(rows, hopper.pack_b(readable(b)[None], group), fields(b.fmt))
            for b in rights
        ]
    else:  # a^T lies in memory: b^T a^T needs less of it turned and decoded
        columns = hopper.pack_b(readable(a).T[None], group)
        sums = []
        for b in rights:
            rows = hopper.pack_a(readable(b).T, fields(b.fmt), group)
            turned = hopper.gemm_hopper_fp8(rows, columns, fields(a.fmt))
            sums.append(np.ascontiguousarray(turned.T))
    made = [times(y, scale, in_place=True) for y, scale in zip(sums, scales, strict=True)]
    return None if any(nan for _, nan in made) else [y for y, _ in made]


def _has_one_scale(q: QTensor) -> bool:
    one = q.scale is not None and q.scale.ndim == 0 and q.tensor_scale is q.zero_point is None
    return one and q.ndim == 2 and q.codes.size > 0
