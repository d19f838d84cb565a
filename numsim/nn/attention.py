"""Attention as operations on a recorder's values (`ops`)."""

from __future__ import annotations

from typing import Any

from numsim.nn import ops
from numsim.nn.tape import Recorder


def attend(
    r: Recorder, name: str, q: int, k: int, v: int, *, scale: float, cap: float | None = None,
    bias: int | None = None, **mask: Any,
) -> int:  # fmt: skip
    """Softmax(scale q k^T + bias) v: q [B, N, T, D], k [B, G, S, D], v [B, G, S, E].

    Query head n reads key head ``n // (N / G)``; products ``{name}qk`` and ``{name}pv``.
    """
    return attend_with_weights(r, name, q, k, v, scale=scale, cap=cap, bias=bias, **mask)[0]


def attend_with_weights(
    r: Recorder, name: str, q: int, k: int, v: int, *, scale: float, cap: float | None = None,
    bias: int | None = None, dropout: int | None = None, **mask: Any,
) -> tuple[int, int]:  # fmt: skip
    """Return what `attend` returns, and the softmax [B, N, T, S], times `dropout` where given."""
    batch, heads, steps, width = r.values[q].shape
    groups, seen = r.values[k].shape[1:3]
    grouped = ops.reshape(r, q, batch, groups, heads // groups * steps, width)
    scores = ops.product(r, f"{name}qk", grouped, k)
    scores = ops.reshape(r, scores, batch, heads, steps, seen)
    if cap is not None:
        scores, scale = ops.softcap(r, scores, scale=scale, cap=cap), 1.0
    if bias is not None and r.values[bias].ndim == 4:
        bias = ops.reshape(r, bias, batch * heads, steps, seen)
    weights = ops.stored(
        r, f"{name}softmax", ops.softmax(r, scores, scale=scale, bias=bias, **mask)
    )
    if dropout is not None:
        weights = ops.multiply(r, weights, dropout)
    flat = ops.reshape(r, weights, batch, groups, heads // groups * steps, seen)
    mixed = ops.product(r, f"{name}pv", flat, ops.transpose(r, v, 0, 1, 3, 2))
    return ops.reshape(r, mixed, batch, heads, steps, r.values[v].shape[-1]), weights
