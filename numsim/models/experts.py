"""The MLP of a layer, and the experts in its place; letters of shapes as in `context`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from numsim.kernels.elementwise import activations, functions
from numsim.models import lowered
from numsim.models.arch import Moe, has_experts
from numsim.models.context import Context, linear
from numsim.models.gemm import Array, Ints
from numsim.operators import Op


def mlp(name: str, x: Array, c: Context, *, bias: bool) -> Array:
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` where nothing gates.

    With `swiglu_limit` the gate is clamped from above and up on both sides, and these are
    ``g sigmoid(alpha g)`` and ``up + 1``.
    """
    a, op = c.arch, c.op(f"{name}.act")
    act = activations.ACTIVATIONS[a.activation]
    if op is not None:
        return _lowered(name, x, c, op, bias=bias)
    if a.swiglu_limit is not None:
        gate = np.minimum(linear(f"{name}.gate_proj", x, c, bias=bias), c.dtype(a.swiglu_limit))
        middle = gate * activations.sigmoid(gate * c.dtype(a.swiglu_alpha))
        c.keep_tap(f"{name}.act.out", middle)
        up = linear(f"{name}.up_proj", x, c, bias=bias)
        middle = middle * (np.clip(up, -a.swiglu_limit, a.swiglu_limit) + c.dtype(1))
    elif a.gated:
        gate = linear(f"{name}.gate_proj", x, c, bias=bias)  # [B, T, I]
        if act is activations.silu and f"{name}.act.out" not in c.wanted:
            middle = activations.silu_times(gate, linear(f"{name}.up_proj", x, c, bias=bias))
        else:
            middle = act(gate)
            c.keep_tap(f"{name}.act.out", middle)
            middle = middle * linear(f"{name}.up_proj", x, c, bias=bias)
    else:
        middle = act(linear(f"{name}.up_proj", x, c, bias=bias))  # [B, T, I]
        c.keep_tap(f"{name}.act.out", middle)
    return linear(f"{name}.down_proj", middle, c, bias=bias)  # [B, T, H]


def _lowered(name: str, x: Array, c: Context, op: Op, *, bias: bool) -> Array:
    """`mlp` with its activation, and the product that gates, in low precision."""
    a = c.arch
    gate = "gate_proj" if a.gated else "up_proj"
    middle = lowered.act(a.activation, linear(f"{name}.{gate}", x, c, bias=bias), op)
    c.keep_tap(f"{name}.act.out", middle)
    if a.gated:
        middle = lowered.product(middle, linear(f"{name}.up_proj", x, c, bias=bias), op)
    return linear(f"{name}.down_proj", middle, c, bias=bias)


def route(logits: Array, moe: Moe, correction: Array | None) -> tuple[Ints, Array]:
    """Return experts and weights [R, k] of each row; equal scores: the lowest expert first."""
    soft = moe.score == "softmax"
    if moe.score == "softmax_chosen":
        chosen = _best(logits, moe.top_k)
        return chosen, functions.softmax(np.take_along_axis(logits, chosen, axis=1))
    scores = functions.softmax(logits) if soft else activations.sigmoid(logits)  # [R, experts]
    choice = scores if correction is None else scores + correction
    if moe.weighs_input:
        choice = logits  # of which two may share a score of 1
    if moe.groups > 1:
        groups = choice.reshape(len(choice), moe.groups, -1)  # [R, groups, experts / groups]
        best = -np.sort(-groups, axis=-1)
        rank = best[..., 0] + best[..., 1] if moe.group_best == 2 else best[..., 0]
        open_ = np.zeros(groups.shape[:2], np.bool_)
        np.put_along_axis(open_, _best(rank, moe.top_groups), True, axis=1)
        # -Inf, not 0: with negative corrections every open expert can be below 0
        choice = np.where(open_[..., None], groups, -np.inf).reshape(choice.shape)
    chosen = _best(choice, moe.top_k)
    weights = np.take_along_axis(scores, chosen, axis=1)
    if moe.normalise:
        total = np.zeros(len(weights), weights.dtype)
        for j in range(moe.top_k):  # in this order on every machine
            total = total + weights[:, j]
        weights = weights / total[:, None] if soft else weights / (total + 1e-20)[:, None]
    return chosen, weights * moe.scale if moe.scale != 1.0 else weights


def _best(scores: Array, count: int) -> Ints:
    return np.argsort(-scores, axis=-1, kind="stable")[:, :count]


def mixture(layer: str, x: Array, c: Context, moe: Moe) -> Array:
    """Sum of each token's experts, weighted, in increasing expert, then the shared expert."""
    flat = x.reshape(-1, x.shape[-1])  # [R, H], R = B*T
    logits = linear(f"{layer}.router", x, c, bias=moe.router_bias)  # [B, T, experts]
    correction = c.weight(f"{layer}.router.correction") if moe.correction else None
    chosen, weights = route(logits.reshape(-1, moe.experts), moe, correction)  # [R, k]
    c.keep_tap(f"{layer}.router.experts", chosen)
    c.keep_tap(f"{layer}.router.weights", weights)
    total = np.zeros_like(flat)
    positions = np.tile(c.positions, len(x))  # [R]
    for e in range(moe.experts):
        rows, slot = np.nonzero(chosen == e)
        if rows.size:
            c.keep_tap(f"{layer}.experts.{e}.rows", rows)
            here = replace(c, positions=positions[rows])
            read, weight = flat[rows], weights[rows, slot][:, None]
            if moe.weighs_input:
                read = read * weight
            y = mlp(f"{layer}.experts.{e}", read, here, bias=moe.bias)  # [rows, H]
            total[rows] += y if moe.weighs_input else y * weight
    y = total.reshape(x.shape)
    if not moe.shared:
        return y
    shared = mlp(f"{layer}.shared", x, c, bias=c.arch.mlp_bias)
    if moe.shared_gate:
        shared = shared * activations.sigmoid(linear(f"{layer}.shared_gate", x, c, bias=False))
    return y + shared


def feed_forward(layer: str, index: int, x: Array, c: Context) -> Array:
    """Run the MLP or the experts of layer number `index`."""
    moe = c.arch.moe
    if moe is not None and has_experts(c.arch, index):
        y = mixture(layer, x, c, moe)
    else:
        y = mlp(layer, x, c, bias=c.arch.mlp_bias)
    c.keep_tap(f"{layer}.mlp.out", y)
    return y
