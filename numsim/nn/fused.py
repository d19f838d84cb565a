"""Which recurrent products need no `quantize` and `matmul` a step, and how they are computed.

A chain of fused multiply-adds, or a sum that is exact: a kernel takes all steps of an LSTM. The
13-bit FP8 sums of Ada and Hopper: a step at a time, by the kernel of `matmul`, weights packed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format, get_format
from numsim.kernels.gemm import fma as gemm_fma
from numsim.kernels.gemm import hopper as gemm_hopper
from numsim.kernels.gemm.recurrent import (
    AS_IT_IS,
    FLOAT,
    INTEGER,
    Rounding,
    product,
    round_to_codes,
)
from numsim.kernels.ir import simd
from numsim.models.gemm import RAW
from numsim.nn.products import ONE_SCALE, Context, Operands
from numsim.quant import QTensor, Quant, as_quant, quantize
from numsim.targets.chain import Chain
from numsim.targets.fast.fused import FP8
from numsim.targets.operands import locked
from numsim.targets.plan import class_for
from numsim.targets.rules import about
from numsim.targets.runs import chosen
from numsim.targets.split_k import restarts
from numsim.targets.tensor import batched, fields

Call = tuple[NDArray[np.float32], bool, Rounding, np.float32, np.float32]
Step = Callable[[NDArray[np.float32]], NDArray[np.float32] | None]
_NOTHING = np.float32(0)


def forward(c: Context, name: str, w: Any, codes: dict[Any, QTensor]) -> Call | None:
    """Return packed w [H, N] and how states are stored, for steps forward; None: not covered."""
    rule = _rule(c, name)
    if rule is None:
        return None
    return _call(c, name, rule, rule.forward, w, codes, gradient=False)


def backward(c: Context, name: str, w: Any, codes: dict[Any, QTensor]) -> Call | None:
    """Return packed w [N, H] and how gradients are stored, for steps back; None: not covered."""
    rule = _rule(c, name)
    if rule is None or rule.clip_gradient:
        return None
    return _call(c, name, rule, rule.dgrad, w, codes, gradient=True)


def forward_step(c: Context, name: str, w: Any, codes: dict[Any, QTensor]) -> Step | None:
    """Return h [B, H] -> h W^T [B, N] or None, which leaves the step; None: not covered."""
    rule = _rule(c, name)
    if rule is None:
        return None
    return _step(c, name, rule, rule.forward, w, codes, np.zeros(2, np.int64), gradient=False)


def backward_step(
    c: Context, name: str, w: Any, codes: dict[Any, QTensor], lost: NDArray[np.int64]
) -> Step | None:
    """Return g [B, N] -> g W [B, H] or None, which leaves the step; None: not covered.

    `lost` [2] counts non-zero elements of the gradients, and those that became 0.
    """
    rule = _rule(c, name)
    if rule is None or rule.clip_gradient:
        return None
    return _step(c, name, rule, rule.dgrad, w, codes, lost, gradient=True)


def count(c: Context, lost: NDArray[np.int64]) -> None:
    """Tell the watch of a pass how many elements of gradients there were and became 0."""
    if c.watch is not None and lost.any():  # a watch of rows takes the general path, which calls it
        c.watch.add(int(lost[0]), int(lost[1]))  # type: ignore[attr-defined]


def _rule(c: Context, name: str) -> Any:
    if c.rules is None or not (c.watch is None or hasattr(c.watch, "add")):
        return None
    rule = c.rule(name)
    return None if rule.delayed is not None else rule


def _call(
    c: Context, name: str, rule: Any, one: Any, w: Any, codes: dict[Any, QTensor], *,
    gradient: bool,
) -> Call | None:  # fmt: skip
    made = _operand(c, name, rule, one, w, codes, gradient=gradient)
    if made is None or not _chain(one.target, made[0], made[1].fmt, made[1].shape[0]):
        return None
    _, right, how, scale = made
    values = np.ascontiguousarray(right.values(), np.float32)
    quantum = np.float32(1.0 / how.unit) if how.kind == INTEGER else np.float32(1)
    panels = gemm_fma.pack_b(values[None]).panels
    return panels, simd.enabled(), how, scale, quantum


def _step(
    c: Context, name: str, rule: Any, one: Any, w: Any, codes: dict[Any, QTensor],
    lost: NDArray[np.int64], *, gradient: bool,
) -> Step | None:  # fmt: skip
    call = _call(c, name, rule, one, w, codes, gradient=gradient)
    if call is not None:
        chained, columns = call, w.shape[1 if gradient else 0]

        def chain(x: NDArray[np.float32]) -> NDArray[np.float32] | None:
            values, y = np.empty_like(x), np.empty((len(x), columns), np.float32)
            return y if product(x, *chained, values, y, lost) else None

        return chain
    made = _operand(c, name, rule, one, w, codes, gradient=gradient)
    if made is None or made[2].kind != FLOAT or made[0].bits != 8 or restarts(one.target):
        return None
    left, right, how, scale = made
    right = locked(right)  # what is kept of its codes stays true
    _, sums = class_for(one.target, left, right.fmt)
    zeros = quantize(np.zeros((1, right.shape[0]), np.float32), left)
    alike = Chain(sums, zeros, right, None, get_format("float32"), one.target.name)
    if chosen(alike).kernel != FP8:
        return None
    group = about(sums).step(sums, right.shape[0])
    packed = gemm_hopper.pack_b(batched(right.codes), group)
    read, read_right = fields(left), fields(right.fmt)

    def fp8(x: NDArray[np.float32]) -> NDArray[np.float32] | None:
        values, patterns = np.empty_like(x), np.empty(x.shape, np.uint8)
        of_x = np.float32(round_to_codes(x, how, values, patterns, lost))
        if of_x < 0:
            return None
        rows = gemm_hopper.pack_a(patterns, read, group)
        y: NDArray[np.float32] = gemm_hopper.gemm_hopper_fp8(rows, packed, read_right)
        y *= of_x * scale
        return y

    return fp8


def _operand(
    c: Context, name: str, rule: Any, one: Any, w: Any, codes: dict[Any, QTensor], *,
    gradient: bool,
) -> tuple[Format, QTensor, Rounding, np.float32] | None:  # fmt: skip
    """Return the format of the left operand, the right one [K, N], how left is rounded, a scale.

    The scale is that of the weights, and of a gradient that is multiplied before it is rounded.
    """
    left, right = (RAW if q is None else as_quant(q) for q in (one.activations, one.weights))
    before = np.float32(rule.gradient_scale if gradient else 1.0)
    how = _rounding(left, before)
    if how is None or right.granularity not in ONE_SCALE or one.out_format != "float32":
        return None
    kept = Operands(c, name, rule, {"w": w}, codes).get("w", right, -1 if not gradient else -2)
    if kept.scale is not None and kept.scale.size != 1:
        return None
    scale = np.float32(1) if kept.scale is None else np.float32(kept.scale.reshape(-1)[0])
    # A scaled gradient stores 1 / before as its scale: two factors, each of them float32.
    scale = np.float32(np.float32(1) / before) * scale
    return left.fmt, kept if gradient else kept.T, how, scale


def _chain(target: Any, a: Format, b: Format, depth: int) -> bool:
    """Return whether a chain of fused multiply-adds in float32 gives the unit's sums."""
    if restarts(target):
        return False
    _, rule = class_for(target, a, b)
    largest = max(a.max, -a.min) * max(b.max, -b.min) * 2.0 ** (a.bias + b.bias) * depth
    return about(rule).is_float32_chain(rule, largest)


def _rounding(quant: Quant, before: np.float32) -> Rounding | None:
    f, scaled = quant.fmt, quant.granularity == "per_tensor"
    if quant == RAW:
        one = np.float32(1)
        return None if before != one else Rounding(
            AS_IT_IS, False, _NOTHING, _NOTHING, one, np.uint32(0), _NOTHING, _NOTHING, one
        )  # fmt: skip
    usual = quant.rounding == "rne" and quant.overflow == "saturate" and quant.scale_rule == "amax"
    if not usual or quant.granularity not in ONE_SCALE or quant.scale_format != "float32":
        return None
    if f.bits > 8 or not f.signed or (scaled and before != 1):
        return None
    if f.kind == "integer":
        unit = np.float32(2.0**f.bias)
        if scaled and unit != 1:
            return None
        top, low = np.float32(f.max) * unit, np.float32(f.min) * unit
        return Rounding(INTEGER, scaled, top, low, unit, np.uint32(0), _NOTHING, _NOTHING, before)
    if f.kind != "float" or f.precision < 2 or not f.zero or f.emax > 60 or f.emin < -60:
        return None
    magic = np.float32(2.0 ** (f.emin - (f.precision - 1) + 23))
    return Rounding(
        FLOAT, scaled, np.float32(f.max), np.float32(f.min), np.float32(1),
        np.uint32(24 - f.precision), np.float32(f.min_normal), magic, before,
    )  # fmt: skip
