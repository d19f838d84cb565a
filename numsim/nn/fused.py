"""Which recurrent products need no `quantize` and `matmul` a step: those that kernels know.

A chain of fused multiply-adds, a sum that is exact, or the 13-bit FP8 sums of Ada and Hopper; one
scale for the tensor or none; rounding to nearest even. Weights are rounded and packed once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format
from numsim.kernels.gemm import fma as gemm_fma
from numsim.kernels.gemm import hopper as gemm_hopper
from numsim.kernels.gemm.steps import (
    AS_IT_IS,
    FLOAT,
    INTEGER,
    PRODUCT,
    Chain,
    Fp8,
    Rounding,
    Weights,
)
from numsim.kernels.ir import simd
from numsim.models.gemm import RAW
from numsim.nn.direct import group_of
from numsim.nn.products import Context, Operands
from numsim.nn.rows import ONE_SCALE
from numsim.quant import QTensor, Quant, as_quant
from numsim.targets.operands import locked
from numsim.targets.plan import class_for
from numsim.targets.rules import about
from numsim.targets.split_k import restarts
from numsim.targets.tensor import batched, fields, finite

Step = Callable[[NDArray[np.float32]], NDArray[np.float32] | None]
_NOTHING = np.float32(0)


class Call(NamedTuple):
    """Which of the kernels is called (`kernels.gemm.steps.PRODUCT`), and with which weights."""

    unit: str
    weights: Weights


def forward(c: Context, name: str, w: Any, codes: dict[Any, QTensor]) -> Call | None:
    """Return W^T [H, N] packed for steps forward; None: not covered."""
    rule = _rule(c, name)
    if rule is None:
        return None
    return _call(c, name, rule, rule.forward, w, codes, gradient=False)


def backward(c: Context, name: str, w: Any, codes: dict[Any, QTensor]) -> Call | None:
    """Return W [N, H] packed for steps back; None: not covered."""
    rule = _rule(c, name)
    if rule is None or rule.clip_gradient:
        return None
    return _call(c, name, rule, rule.dgrad, w, codes, gradient=True)


def one_step(call: Call | None, columns: int, lost: NDArray[np.int64]) -> Step | None:
    """Return x [B, K] -> x by the weights [B, columns], or None, which leaves the step.

    `lost` [2] counts non-zero elements of x, and those that became 0.
    """
    if call is None:
        return None

    def step(x: NDArray[np.float32]) -> NDArray[np.float32] | None:
        y = np.empty((len(x), columns), np.float32)
        return y if PRODUCT[call.unit](x, call.weights, lost, y) else None

    return step


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
    if made is None or restarts(one.target):
        return None
    left, right, how, scale = made
    quantum = np.float32(1.0 / how.unit) if how.kind == INTEGER else np.float32(1)
    if _chain(one.target, left, right.fmt, right.shape[0]):
        values = np.ascontiguousarray(right.values(), np.float32)
        chain = Chain(gemm_fma.pack_b(values[None]).panels, simd.enabled())
        return Call("chain", Weights(chain, how, scale, quantum))
    fp8 = _fp8(one.target, left, right) if how.kind == FLOAT else None
    return None if fp8 is None else Call(simd.path(), Weights(fp8, how, scale, quantum))


def _fp8(target: Any, left: Format, right: QTensor) -> Fp8 | None:
    """Return weights of the 13-bit FP8 sums, None where the unit has others."""
    group = group_of(target, left, right.fmt, right.shape[0])
    right = locked(right)  # what is kept of its codes stays true
    if simd.path() == "plain" or group is None or group % 16 or left.bits != 8:
        return None
    if not finite(right):
        return None
    packed = gemm_hopper.pack_b(batched(right.codes), group, in_place=False)
    return Fp8(packed.panels, right.shape[0], fields(left), fields(right.fmt))


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
    if kept.zero_point is not None or kept.tensor_scale is not None:
        return None
    scale = np.float32(1) if kept.scale is None else np.float32(kept.scale.reshape(-1)[0])
    # A scaled gradient stores 1 / before as its scale: two factors, each of them float32.
    scale = np.float32(np.float32(1) / before) * scale
    return left.fmt, kept if gradient else kept.T, how, scale


@lru_cache(maxsize=256)
def _chain(target: Any, a: Format, b: Format, depth: int) -> bool:
    """Return whether a chain of fused multiply-adds in float32 gives the unit's sums."""
    _, rule = class_for(target, a, b)
    largest = max(a.max, -a.min) * max(b.max, -b.min) * 2.0 ** (a.bias + b.bias) * depth
    return about(rule).is_float32_chain(rule, largest)


@lru_cache(maxsize=256)
def _rounding(quant: Quant, before: np.float32) -> Rounding | None:
    f, scaled = quant.fmt, quant.granularity == "per_tensor"
    if quant == RAW:
        one = np.float32(1)
        return None if before != one else Rounding(
            AS_IT_IS, False, _NOTHING, _NOTHING, one, np.uint32(0), _NOTHING, _NOTHING, one
        )  # fmt: skip
    if quant.granularity not in ONE_SCALE or quant != Quant(quant.format, quant.granularity):
        return None  # a zero point, a scale of its own: all that is not said is usual
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
