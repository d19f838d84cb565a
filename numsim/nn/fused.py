"""Which recurrent products the kernel of all steps covers: a chain, or a sum that is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format
from numsim.kernels.recurrent import AS_IT_IS, FLOAT, INTEGER, Rounding
from numsim.models.gemm import RAW
from numsim.nn.products import ONE_SCALE, Context, Operands
from numsim.quant import QTensor, Quant, as_quant
from numsim.targets.chains import restarts
from numsim.targets.ops import class_for
from numsim.targets.types import IntSum, Mac

Call = tuple[NDArray[np.float32], Rounding, np.float32, np.float32]
_NOTHING = np.float32(0)


def forward(c: Context, name: str, w: Any, codes: dict[Any, QTensor]) -> Call | None:
    """Return w [H, N] and how a state is stored, for the forward steps; None: not covered."""
    rule = _rule(c, name)
    if rule is None:
        return None
    made = _call(c, name, rule, rule.forward, w, codes, gradient=False)
    return None if made is None else (np.ascontiguousarray(made[0].T), *made[1:])


def backward(c: Context, name: str, w: Any, codes: dict[Any, QTensor]) -> Call | None:
    """Return w [N, H] and how a gradient is stored, for the steps back; None: not covered."""
    rule = _rule(c, name)
    if rule is None or rule.clip_gradient:
        return None
    return _call(c, name, rule, rule.dgrad, w, codes, gradient=True)


def count(c: Context, lost: NDArray[np.int64]) -> None:
    """Tell the watch of a pass how many elements of gradients there were and became 0."""
    if c.watch is not None:
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
    left, right = (RAW if q is None else as_quant(q) for q in (one.activations, one.weights))
    before = np.float32(rule.gradient_scale if gradient else 1.0)
    how = _rounding(left, before)
    if how is None or right.granularity not in ONE_SCALE or one.out_format != "float32":
        return None
    kept = Operands(c, name, rule, {"w": w}, codes).get("w", right, -1 if not gradient else -2)
    if kept.scale is not None and kept.scale.size != 1:
        return None
    depth = kept.shape[0] if gradient else kept.shape[1]
    unit = _unit(one.target, left.fmt, kept.fmt, depth)
    if unit is None:
        return None
    values = np.asarray(kept.values(), np.float32)
    scale = np.float32(1) if kept.scale is None else np.float32(kept.scale.reshape(-1)[0])
    quantum = np.float32(1.0 / how.unit) if how.kind == INTEGER else np.float32(1)
    # A scaled gradient stores 1 / before as its scale: two factors, each of them float32.
    return values, how, np.float32(np.float32(1) / before) * scale, quantum


def _unit(target: Any, a: Format, b: Format, depth: int) -> bool | None:
    """Return True where a chain of fused multiply-adds in float32 gives the unit's sums."""
    if restarts(target):
        return None
    _, rule = class_for(target, a, b)
    if rule == Mac():
        return True
    if not isinstance(rule, IntSum) or rule.pair_bits is not None or rule.acc_bits < 25:
        return None
    largest = max(a.max, -a.min) * max(b.max, -b.min) * 2.0 ** (a.bias + b.bias) * depth
    return True if largest < 1 << 24 else None


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
