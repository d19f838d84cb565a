"""Operators of a network in low precision: what a recipe's `Op` makes of them.

Without an `Op` an operator is float32, computed in float64 and rounded once; `blocks`, `attention`,
`experts` and `context` have those. Letters of shapes as in `context`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim import operators
from numsim.kernels.elementwise import activations
from numsim.models.gemm import Array
from numsim.operators.chains import LOG2_E, exp2_by, silu
from numsim.operators.gpu import inverse_of, rescaled, softmax_tiles
from numsim.operators.rounded import Rounding, function, plus, rounding_to, times
from numsim.operators.rules import VARIANTS, Op
from numsim.quant.odd import product_to_odd

# our activations by function: the operator that rounds them once
_FUNCTIONS: dict[Callable[[Array], Array], str] = {
    activations.gelu: "gelu", activations.gelu_tanh: "gelu_tanh", activations.tanh: "tanh",
    activations.sigmoid: "sigmoid",
}  # fmt: skip


def rounding_of(op: Op) -> Rounding:
    """Return how an operator's results are rounded."""
    return rounding_to(op.format, op.rounding)


def softmax(
    scores: Array,
    op: Op,
    *,
    scale: float,
    seen: NDArray[np.bool_] | None,
    bias: NDArray[np.float64] | None,
    sinks: NDArray[np.float64] | None,
) -> Array:
    """Softmax over the keys of scores [B, N, T, S]; `seen` [B or 1, 1, T or 1, S] masks keys.

    The scaled score is rounded, then its sum with the rounded bias; what `operators.softmax` does
    follows, a sink the last of its columns.
    """
    r = rounding_of(op)
    wide = scores.astype(np.float64)
    x = r(product_to_odd(wide, np.broadcast_to(np.float64(scale), wide.shape)))
    if bias is not None:
        x = r(plus(x, np.broadcast_to(r.constant(bias.reshape(-1, *x.shape[1:])), x.shape)))
    if seen is not None:
        x = np.where(seen, x, np.float32(-np.inf))
    if sinks is not None:
        more = np.broadcast_to(r.constant(sinks)[:, None, None], (*x.shape[:-1], 1))
        x = np.concatenate([x, more], -1)
    nothing = np.isneginf(x.max(-1))
    x[nothing] = 0
    y = operators.softmax(
        x, format=op.format, rounding=op.rounding, sink=sinks is not None, **op.settings()
    )
    y[nothing] = 0
    return y[..., : scores.shape[-1]]


def attention_by_tiles(
    scores: Array,
    op: Op,
    *,
    scale: float,
    seen: NDArray[np.bool_] | None,
    product: Callable[[Array, slice], Array],
) -> tuple[Array, Array]:
    """Return what attention gives [B, N, T, E], and its weights, in the order of flash attention.

    `product` multiplies probabilities [B, N, T, tile] with the values of some keys.
    """
    s = scores if seen is None else np.where(seen, scores, np.float32(-np.inf))
    r = rounding_to(op.out_format or "float32", op.out_rounding or "rne")
    steps = softmax_tiles(
        s.reshape(-1, s.shape[-1]), np.float32(scale * LOG2_E), tile=op.tile or s.shape[-1],
        exp2=exp2_by(op.exp or "exact"), threshold=op.rescale_threshold or 0.0,
    )  # fmt: skip
    weights = np.empty((math.prod(s.shape[:-1]), s.shape[-1]), np.float32)
    out = sums = np.zeros((len(weights), 1), np.float32)
    for step in steps:
        p = r(step.p)
        added = product(p.reshape(*s.shape[:-1], -1), step.keys)
        rows = added.reshape(len(p), -1)
        out = rescaled(np.broadcast_to(out, rows.shape), step.factor, rows)
        weights[:, : step.keys.start] *= step.factor[:, None]
        weights[:, step.keys], sums = p, step.row_sum
    inverse = inverse_of(sums)[:, None]
    return (out * inverse).reshape(added.shape), (weights * inverse).reshape(s.shape)


def norm(x: Array, op: Op, kind: str, eps: float, weight: Any, bias: Any) -> Array:
    """Norm of rows by a kind of `Arch`; weight and bias as it has them, None where it has none."""
    r, settings = rounding_of(op), op.settings()
    ones = np.ones(x.shape[-1], np.float32)
    if kind.startswith("layer"):
        w = ones if weight is None else r.constant(weight)
        b = None if bias is None else r.constant(bias)
        return operators.layernorm(
            r(x), w, b, format=op.format, rounding=op.rounding, eps=eps, **settings
        )
    w = ones if weight is None else r.constant(weight)
    return operators.rmsnorm(
        r(x), w, format=op.format, rounding=op.rounding, eps=eps,
        unit_offset=kind == "rms_plus_one", **settings,
    )  # fmt: skip


def act_forms(name: str) -> tuple[str, ...]:
    """Return the variants that an activation of `ACTIVATIONS` has, ``plain`` where it has no name.

    >>> act_forms("silu"), act_forms("gelu"), act_forms("quick_gelu")
    (('silu', 'sigmoid', 'steps'), ('plain',), ())
    """
    run = activations.ACTIVATIONS[name]
    if run is activations.silu:
        return VARIANTS
    return ("plain",) if run is activations.relu or run in _FUNCTIONS else ()


def act(name: str, x: Array, op: Op) -> Array:
    """Return an activation by its name in `ACTIVATIONS`, one that has a form."""
    r, run = rounding_of(op), activations.ACTIVATIONS[name]
    x = r(x)
    if run is activations.silu:
        return silu(x, r, op.variant or "silu")
    if run is activations.relu:
        return r(run(x))
    return r(function(_FUNCTIONS[run], x))


def product(x: Array, y: Array, op: Op) -> Array:
    """X * y, rounded."""
    r = rounding_of(op)
    return r(times(x, r(y)))


def total(x: Array, y: Array, op: Op | None) -> Array:
    """X + y, rounded; without an `Op` in the type of x."""
    if op is None:
        return x + y
    r = rounding_of(op)
    return r(plus(r(x), r(y)))


def rotary(x: Array, cos: NDArray[np.float64], sin: NDArray[np.float64], op: Op) -> Array:
    """Turn the leading features of x [B, T, N, D]; the tables [T, R/2] are rounded half to even."""
    r, width = rounding_of(op), 2 * cos.shape[-1]
    x = r(x)
    turned = operators.rotary(
        x[..., :width], r.constant(cos)[:, None], r.constant(sin)[:, None], format=op.format,
        rounding=op.rounding, fma=bool(op.fma),
    )  # fmt: skip
    return np.concatenate([turned, x[..., width:]], axis=-1)
