"""Attention of a layer; letters of shapes as in `context`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise import activations, functions
from numsim.kernels.elementwise import rotary as rotary_kernel
from numsim.models import lowered
from numsim.models.arch import Growth, Rope, layer_rope
from numsim.models.context import Bools, Context, linear, norm, remembered
from numsim.models.gemm import Array, Ints
from numsim.models.rope import natural_log
from numsim.operators import Op


def _split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1)  # [B, T, N*D] -> [B, T, N, D]


def _turn(layer: str, x: Array, c: Context, rope: Rope | None) -> Array:
    """Heads first, [B, T, N, D] -> [B, N, T, D], turned by position where that is rotary."""
    if rope is None:
        return np.ascontiguousarray(x.swapaxes(1, 2))
    if rope.interleaved:
        turned, rest = x[..., : rope.width], x[..., rope.width :]
        pairs = turned.reshape(*x.shape[:-1], -1, 2)  # [B, T, N, R/2, 2]
        turned = pairs.swapaxes(-1, -2).reshape(turned.shape)  # evens, then odds
        x = np.concatenate([turned, rest], axis=-1)
    op = c.op(f"{layer}.rotary")
    if op is not None:
        turned = lowered.rotary(x, *c.turns[rope], op)
        return np.ascontiguousarray(turned.swapaxes(1, 2))
    return rotary_kernel.rotary(x, *c.turns[rope])


def _heads(name: str, x: Array, c: Context, heads: int) -> Array:
    """Return queries or keys [B, T, N, D] with their norm."""
    a = c.arch
    x = linear(f"{name}_proj", x, c, bias=a.qkv_bias and (a.key_bias or not name.endswith(".k")))
    if a.qk_norm == "rms_wide":
        x = norm(f"{name}_norm", x, c, kind="rms")
    x = _split(x, heads)
    if a.qk_norm in ("rms", "rms_plus_one", "layer", "layer_by_head"):
        x = norm(f"{name}_norm", x, c, kind=a.qk_norm)
    return _clipped(x, a.clip_qkv)


def _clipped(x: Array, limit: float | None) -> Array:
    return x if limit is None else np.clip(x, -limit, limit)


def query_growth(growth: Growth, positions: Ints) -> NDArray[np.float64]:
    """Return the factor of the query at each position.

    >>> query_growth(Growth(every=4, by=0.1), np.array([2, 3])).round(4)
    array([1.    , 1.0693])
    """
    whole = (positions + 1) // growth.every
    return np.array([natural_log(int(w) + 1) for w in whole]) * growth.by + 1.0


def _qkv(layer: str, x: Array, c: Context, rope: Rope | None) -> tuple[Array, Array, Array]:
    """Return queries [B, N, T, D], keys [B, G, T, D], values [B, G, T, E], positions applied."""
    a = c.arch
    q = _heads(f"{layer}.q", x, c, a.heads)  # [B, T, N, D]
    k = _heads(f"{layer}.k", x, c, a.kv_heads)  # [B, T, G, D]
    v = linear(f"{layer}.v_proj", x, c, bias=a.qkv_bias)
    v = _split(_clipped(v, a.clip_qkv), a.kv_heads)  # [B, T, G, E]
    q, k = _turn(layer, q, c, rope), _turn(layer, k, c, rope)
    if rope is not None and a.qk_norm == "l2":
        q = norm(f"{layer}.q_norm", q, c, kind="rms_plain")
        k = norm(f"{layer}.k_norm", k, c, kind="rms_plain")
    if rope is None and a.query_growth is not None:
        factors: Array = query_growth(a.query_growth, c.positions).astype(c.dtype)
        q = q * factors[:, None]
    return q, k, v.swapaxes(1, 2)


def _latent_qkv(layer: str, x: Array, c: Context, rope: Rope | None) -> tuple[Array, Array, Array]:
    """As `_qkv`, from latent projections; the part with position comes last."""
    a, m = c.arch, c.arch.mla
    assert m is not None
    if m.q_rank is None:
        q = linear(f"{layer}.q_proj", x, c, bias=False)  # [B, T, N*D]
    else:
        q = linear(f"{layer}.q_a_proj", x, c, bias=a.qkv_bias)  # [B, T, q rank]
        q = norm(f"{layer}.q_a_norm", q, c, eps=a.latent_eps)
        q = linear(f"{layer}.q_b_proj", q, c, bias=False)  # [B, T, N*D]
    q = _split(q, a.heads)
    kv = linear(f"{layer}.kv_a_proj", x, c, bias=a.qkv_bias)  # [B, T, kv rank + R]
    latent, shared = kv[..., : m.kv_rank], kv[..., None, m.kv_rank :]  # .., [B, T, 1, R]
    latent = norm(f"{layer}.kv_a_norm", latent, c, eps=a.latent_eps)
    kv = _split(linear(f"{layer}.kv_b_proj", latent, c, bias=False), a.heads)  # [B, T, N, nope + E]
    kv = kv.swapaxes(1, 2)  # [B, N, T, nope + E]
    turned = _turn(layer, shared, c, rope)  # [B, 1, T, R]
    turned = np.broadcast_to(turned, (*kv.shape[:3], m.rope))
    k = np.concatenate([kv[..., : m.nope], turned], axis=-1)  # [B, N, T, D]
    plain = q[..., : m.nope].swapaxes(1, 2)
    q = np.concatenate([plain, _turn(layer, q[..., m.nope :], c, rope)], axis=-1)
    return q, k, kv[..., m.nope :]


def attend(
    name: str,
    q: Array,
    k: Array,
    v: Array,
    c: Context,
    *,
    scale: float,
    keep: Bools | None,
    spans: tuple[Ints | None, Ints | None] = (None, None),
    bias: NDArray[np.float64] | None = None,
    sinks: NDArray[np.float64] | None = None,
) -> Array:
    """Softmax(scale q k^T + bias) v with grouped queries; `spans` = first and last key seen."""
    batch, heads, steps, width = q.shape
    groups, seen = k.shape[1:3]
    q = q.reshape(batch, groups, -1, width)  # [B, G, N/G*T, D]
    scores = c.gemm(f"{name}qk", q, k.swapaxes(2, 3), c.positions)  # [B, G, N/G*T, S]
    scores = scores.reshape(batch, heads, steps, seen)
    if c.arch.attn_cap is not None:
        scores, scale = activations.softcap(scores, scale=scale, cap=c.arch.attn_cap), 1.0
    op = c.op(f"{name}softmax")
    if op is not None and op.tile is not None:
        return _by_tiles(name, scores, v, c, op, scale, _seen(spans, keep, seen))
    if op is None:
        weights = functions.softmax(
            scores, scale=scale, first=spans[0], last=spans[1], keep=keep, bias=bias, sinks=sinks
        )
    else:
        shown = _seen(spans, keep, seen)
        weights = lowered.softmax(scores, op, scale=scale, seen=shown, bias=bias, sinks=sinks)
    c.keep_tap(f"{name}softmax.out", weights)  # [B, N, T, S]
    weights = weights.reshape(batch, groups, -1, seen)  # [B, G, N/G*T, S]
    mixed = c.gemm(f"{name}pv", weights, v, c.positions)  # [B, G, N/G*T, E]
    mixed = mixed.reshape(batch, heads, steps, -1).swapaxes(1, 2)  # [B, T, N, E]
    return mixed.reshape(batch, steps, -1)  # [B, T, N*E]


def _by_tiles(
    name: str, scores: Array, v: Array, c: Context, op: Op, scale: float,
    seen: NDArray[np.bool_] | None,
) -> Array:  # fmt: skip
    """Softmax and its product with the values, a tile of keys after the other."""
    batch, heads, steps, _ = scores.shape

    def product(p: Array, keys: slice) -> Array:
        grouped = p.reshape(batch, v.shape[1], -1, p.shape[-1])  # [B, G, N/G*T, tile]
        part = np.ascontiguousarray(v[:, :, keys])
        return c.gemm(f"{name}pv", grouped, part, c.positions).reshape(batch, heads, steps, -1)

    mixed, weights = lowered.attention_by_tiles(scores, op, scale=scale, seen=seen, product=product)
    c.keep_tap(f"{name}softmax.out", weights)
    shape = (batch, v.shape[1], -1)
    whole = {"in": weights.reshape(*shape, weights.shape[-1]), "operand": v,
             "out": mixed.reshape(*shape, mixed.shape[-1])}  # fmt: skip
    for end, tensor in whole.items():  # in place of those of the last tile
        c.keep_tap(f"{name}pv.{end}", tensor)
    return mixed.swapaxes(1, 2).reshape(batch, steps, -1)


def _seen(
    spans: tuple[Ints | None, Ints | None], keep: Bools | None, keys: int
) -> NDArray[np.bool_] | None:
    """Return which keys a row may see, [B or 1, 1, T or 1, S]; None: all."""
    first, last = spans
    at = np.arange(keys)
    seen = np.ones((1, 1, 1, keys), np.bool_)
    if first is not None:
        seen = seen & (at >= first[:, None])
    if last is not None:
        seen = seen & (at < last[:, None])
    if keep is not None:
        seen = seen & keep[:, None, None]
    return None if seen.all() else seen


def relative_bias(name: str, buckets: Ints, c: Context) -> NDArray[np.float64]:
    """Return the bias [N, T, S] that a table [buckets, N] gives to relative positions."""
    table = c.weight(f"{name}.weight").astype(np.float64)
    return np.ascontiguousarray(np.moveaxis(table[buckets], -1, 0))


def spans(c: Context, index: int) -> tuple[Ints | None, Ints | None]:
    """Return the first key that each token sees in a layer, and the one after the last."""
    a, here = c.arch, c.positions
    window = a.windows[index] if a.windows else None
    chunk = a.chunks[index] if a.chunks else None
    first, last = None, here + 1 if c.causal else None
    if chunk is not None:
        first = here // chunk * chunk
    if window is not None:
        first = np.maximum(here - (window - 1), 0)
        if not c.causal:
            last = np.minimum(here + window, len(here))
    return first, last


def attention(layer: str, index: int, x: Array, c: Context) -> Array:
    """Self-attention of layer number `index`."""
    a, rope = c.arch, layer_rope(c.arch, index)
    q, k, v = (_qkv if a.mla is None else _latent_qkv)(layer, x, c, rope)
    if rope is not None:
        c.keep_tap(f"{layer}.q_rotary.out", q)  # [B, N, T, D]
        c.keep_tap(f"{layer}.k_rotary.out", k)  # [B, G, T, D]
    k, v = remembered(layer, k, v, c)
    bias = c.bias
    if a.bucket_by_layer and c.buckets is not None:
        bias = relative_bias(f"{layer}.relative", c.buckets, c)
    mixed = attend(
        f"{layer}.", q, k, v, c,
        scale=a.attn_scale / (index + 1) if a.scale_by_layer else a.attn_scale,
        keep=c.keep,
        spans=spans(c, index),
        bias=bias,
        sinks=c.weight(f"{layer}.sinks").astype(np.float64) if a.sinks else None,
    )  # fmt: skip
    y = linear(f"{layer}.o_proj", mixed, c, bias=a.o_bias)  # [B, T, H]
    c.keep_tap(f"{layer}.attn.out", y)
    return y


def cross_attention(layer: str, x: Array, c: Context) -> Array:
    """Attention to the output of the encoder, whose keys and values are made once."""
    a, memory = c.arch, c.memory
    key_bias = a.qkv_bias and a.key_bias
    q = _split(linear(f"{layer}.cross_q_proj", x, c, bias=a.qkv_bias), a.heads).swapaxes(1, 2)
    if c.past is not None and f"{layer}.cross" in c.past.kept:
        k, v = c.past.kept[f"{layer}.cross"]
    else:
        assert memory is not None
        there = replace(c, positions=np.arange(memory.shape[1]))
        k = _split(linear(f"{layer}.cross_k_proj", memory, there, bias=key_bias), a.kv_heads)
        v = _split(linear(f"{layer}.cross_v_proj", memory, there, bias=a.qkv_bias), a.kv_heads)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, G, S, D]
        if c.past is not None:
            c.past.kept[f"{layer}.cross"] = (k, v)
    mixed = attend(f"{layer}.cross_", q, k, v, c, scale=a.attn_scale, keep=c.memory_keep)
    y = linear(f"{layer}.cross_o_proj", mixed, c, bias=a.o_bias)  # [B, T, H]
    c.keep_tap(f"{layer}.cross.out", y)
    return y
