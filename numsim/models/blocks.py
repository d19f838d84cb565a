"""The parts of a network as pure functions, the same for the reference and every emulation.

B sequences, T tokens, S keys, H hidden, N query heads, G key heads, D elements of a query or key
head, E of a value head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise import activations, functions
from numsim.kernels.elementwise import rotary as rotary_kernel
from numsim.models.arch import Arch, Moe, has_experts
from numsim.models.gemm import Array, Gemm, Ints

Bools = NDArray[np.bool_]


@dataclass(slots=True, eq=False)
class Past:
    """Keys and values of the tokens a model has seen; `Model.run` reads and extends it."""

    length: int = 0
    keep: Bools | None = None  # [B, length]
    kept: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    memory: Array | None = None  # output of the encoder [B, S, H]
    memory_keep: Bools | None = None

    def __repr__(self) -> str:
        return f"Past({self.length} tokens, {len(self.kept)} pairs of keys and values)"

    def extend(self, name: str, k: Array, v: Array) -> tuple[Array, Array]:
        """Return all keys and values [B, G, S, ...] of a layer, the new ones last."""
        if name in self.kept:
            old_k, old_v = self.kept[name]
            k, v = np.concatenate([old_k, k], axis=2), np.concatenate([old_v, v], axis=2)
        self.kept[name] = (k, v)
        return k, v

    def update(self, other: Past) -> None:
        """Become `other`."""
        for f in fields(self):
            setattr(self, f.name, getattr(other, f.name))


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a block needs beside its input; `gemm` and `dtype` are all that differs between runs.

    ``gemm(name, x, operand, positions)`` multiplies x [..., M, K] by the stored matrix named
    `operand` or by the array `operand` [..., K, N]. ``weight(name)`` is a stored vector in `dtype`,
    ``rows(name, ids)`` rows of a stored table.
    """

    arch: Arch
    dtype: type
    gemm: Gemm
    weight: Callable[[str], Array]
    rows: Callable[[str, Ints], Array]
    keep_tap: Callable[[str, Array], None]
    causal: bool
    positions: Ints  # [T] of the tokens among the keys
    keep: Bools | None  # [B, S], padding mask
    turn: tuple[NDArray[np.float64], NDArray[np.float64]] | None  # cos, sin [T, R/2]
    bias: NDArray[np.float64] | None  # [N, T, S], of relative positions
    past: Past | None
    memory: Array | None = None  # output of the encoder [B, S, H]
    memory_keep: Bools | None = None


def linear(name: str, x: Array, c: Context, *, bias: bool) -> Array:
    """``x W^T + b``: the bias is added after the unit, in the dtype of the run."""
    y = c.gemm(name, x, f"{name}.weight", c.positions)  # [B, T, in] -> [B, T, out]
    if bias:
        y = y + c.weight(f"{name}.bias")
        c.keep_tap(f"{name}.biased", y)
    return y


def norm(name: str, x: Array, c: Context, *, kind: str = "", eps: float | None = None) -> Array:
    """Norm over the last axis: RMS, RMS with weight 1 + w, or layer norm."""
    kind, eps = kind or c.arch.norm, c.arch.norm_eps if eps is None else eps
    if kind == "layer":
        weight, bias = c.weight(f"{name}.weight"), c.weight(f"{name}.bias")
        y = functions.layer_norm(x, weight, bias, eps=eps)
    elif kind == "layer_plain":
        width = x.shape[-1]
        y = functions.layer_norm(x, np.ones(width, c.dtype), np.zeros(width, c.dtype), eps=eps)
    else:
        offset = 1.0 if kind == "rms_plus_one" else 0.0
        y = functions.rms_norm(x, c.weight(f"{name}.weight"), eps=eps, offset=offset)
    c.keep_tap(f"{name}.out", y)
    return y


def embed(ids: Ints, positions: Ints, types: Ints | None, c: Context) -> Array:
    """Rows of the tables for tokens [B, T], positions [B or 1, T] and segments [B, T]."""
    a = c.arch
    x = c.rows("embed.weight", ids)  # [B, T, H] or its narrower width
    if a.embed_dim:
        x = c.gemm("project_in", x, "project_in.weight", c.positions)  # [B, T, H]
    if a.embed_scale != 1.0:
        x = x * c.dtype(a.embed_scale)
    if types is not None:
        x = x + c.rows("token_type.weight", types)
    if a.positions:
        x = x + c.rows("position.weight", positions + a.position_offset)
    if a.embed_norm:
        x = norm("embed_norm", x, c)
    c.keep_tap("embed.out", x)
    return x


def _split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1)  # [B, T, N*D] -> [B, T, N, D]


def _turn(x: Array, c: Context) -> Array:
    """Heads first, [B, T, N, D] -> [B, N, T, D], turned by position where that is rotary."""
    if c.turn is None or c.arch.rope is None:
        return np.ascontiguousarray(x.swapaxes(1, 2))
    if c.arch.rope.interleaved:
        pairs = x.reshape(*x.shape[:-1], -1, 2)  # [B, T, N, D/2, 2]
        x = np.ascontiguousarray(pairs.swapaxes(-1, -2)).reshape(x.shape)  # evens, then odds
    return rotary_kernel.rotary(x, *c.turn)


def _qkv(layer: str, x: Array, c: Context) -> tuple[Array, Array, Array]:
    """Return queries [B, N, T, D], keys [B, G, T, D], values [B, G, T, E], positions applied."""
    a = c.arch
    q = _split(linear(f"{layer}.q_proj", x, c, bias=a.qkv_bias), a.heads)  # [B, T, N, D]
    k = _split(linear(f"{layer}.k_proj", x, c, bias=a.qkv_bias), a.kv_heads)  # [B, T, G, D]
    v = _split(linear(f"{layer}.v_proj", x, c, bias=a.qkv_bias), a.kv_heads)  # [B, T, G, E]
    if a.qk_norm:
        q = norm(f"{layer}.q_norm", q, c, kind=a.qk_norm)
        k = norm(f"{layer}.k_norm", k, c, kind=a.qk_norm)
    return _turn(q, c), _turn(k, c), v.swapaxes(1, 2)


def _latent_qkv(layer: str, x: Array, c: Context) -> tuple[Array, Array, Array]:
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
    turned = _turn(shared, c)  # [B, 1, T, R]
    turned = np.broadcast_to(turned, (*kv.shape[:3], m.rope))
    k = np.concatenate([kv[..., : m.nope], turned], axis=-1)  # [B, N, T, D]
    q = np.concatenate([q[..., : m.nope].swapaxes(1, 2), _turn(q[..., m.nope :], c)], axis=-1)
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
) -> Array:
    """Softmax(scale q k^T + bias) v with grouped queries; `spans` = first and last key seen."""
    batch, heads, steps, width = q.shape
    groups, seen = k.shape[1:3]
    q = q.reshape(batch, groups, -1, width)  # [B, G, N/G*T, D]
    scores = c.gemm(f"{name}qk", q, k.swapaxes(2, 3), c.positions)  # [B, G, N/G*T, S]
    scores = scores.reshape(batch, heads, steps, seen)
    if c.arch.attn_cap is not None:
        scores, scale = activations.softcap(scores, scale=scale, cap=c.arch.attn_cap), 1.0
    weights = functions.softmax(
        scores, scale=scale, first=spans[0], last=spans[1], keep=keep, bias=bias
    )
    c.keep_tap(f"{name}softmax.out", weights)  # [B, N, T, S]
    weights = weights.reshape(batch, groups, -1, seen)  # [B, G, N/G*T, S]
    mixed = c.gemm(f"{name}pv", weights, v, c.positions)  # [B, G, N/G*T, E]
    mixed = mixed.reshape(batch, heads, steps, -1).swapaxes(1, 2)  # [B, T, N, E]
    return mixed.reshape(batch, steps, -1)  # [B, T, N*E]


def attention(layer: str, index: int, x: Array, c: Context) -> Array:
    """Self-attention of layer number `index`."""
    a = c.arch
    q, k, v = _qkv(layer, x, c) if a.mla is None else _latent_qkv(layer, x, c)
    if a.rope is not None:
        c.keep_tap(f"{layer}.q_rotary.out", q)  # [B, N, T, D]
        c.keep_tap(f"{layer}.k_rotary.out", k)  # [B, G, T, D]
    if c.past is not None:
        k, v = c.past.extend(layer, k, v)
    window = a.windows[index] if a.windows else None
    first = None if window is None else np.maximum(c.positions - (window - 1), 0)
    mixed = attend(
        f"{layer}.", q, k, v, c,
        scale=a.attn_scale / (index + 1) if a.scale_by_layer else a.attn_scale,
        keep=c.keep,
        spans=(first, c.positions + 1 if c.causal else None),
        bias=c.bias,
    )  # fmt: skip
    y = linear(f"{layer}.o_proj", mixed, c, bias=a.o_bias)  # [B, T, H]
    c.keep_tap(f"{layer}.attn.out", y)
    return y


def cross_attention(layer: str, x: Array, c: Context) -> Array:
    """Attention to the output of the encoder, whose keys and values are made once."""
    a, memory = c.arch, c.memory
    q = _split(linear(f"{layer}.cross_q_proj", x, c, bias=a.qkv_bias), a.heads).swapaxes(1, 2)
    if c.past is not None and f"{layer}.cross" in c.past.kept:
        k, v = c.past.kept[f"{layer}.cross"]
    else:
        assert memory is not None
        there = replace(c, positions=np.arange(memory.shape[1]))
        k = _split(linear(f"{layer}.cross_k_proj", memory, there, bias=a.qkv_bias), a.kv_heads)
        v = _split(linear(f"{layer}.cross_v_proj", memory, there, bias=a.qkv_bias), a.kv_heads)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, G, S, D]
        if c.past is not None:
            c.past.kept[f"{layer}.cross"] = (k, v)
    mixed = attend(f"{layer}.cross_", q, k, v, c, scale=a.attn_scale, keep=c.memory_keep)
    y = linear(f"{layer}.cross_o_proj", mixed, c, bias=a.o_bias)  # [B, T, H]
    c.keep_tap(f"{layer}.cross.out", y)
    return y


def mlp(name: str, x: Array, c: Context) -> Array:
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` where nothing gates."""
    act, bias = activations.ACTIVATIONS[c.arch.activation], c.arch.mlp_bias
    if c.arch.gated:
        middle = act(linear(f"{name}.gate_proj", x, c, bias=bias))  # [B, T, I]
        c.keep_tap(f"{name}.act.out", middle)
        middle = middle * linear(f"{name}.up_proj", x, c, bias=bias)
    else:
        middle = act(linear(f"{name}.up_proj", x, c, bias=bias))  # [B, T, I]
        c.keep_tap(f"{name}.act.out", middle)
    return linear(f"{name}.down_proj", middle, c, bias=bias)  # [B, T, H]


def route(logits: Array, moe: Moe, correction: Array | None) -> tuple[Ints, Array]:
    """Return experts and weights [R, k] of each row; equal scores: the lowest expert first."""
    soft = moe.score == "softmax"
    scores = functions.softmax(logits) if soft else activations.sigmoid(logits)  # [R, experts]
    choice = scores if correction is None else scores + correction
    if moe.groups > 1:
        groups = choice.reshape(len(choice), moe.groups, -1)  # [R, groups, experts / groups]
        best = -np.sort(-groups, axis=-1)
        order = np.argsort(-(best[..., 0] + best[..., 1]), axis=-1, kind="stable")
        open_ = np.zeros(groups.shape[:2], np.bool_)
        np.put_along_axis(open_, order[:, : moe.top_groups], True, axis=1)
        # -Inf, not 0: with negative corrections every open expert can be below 0
        choice = np.where(open_[..., None], groups, -np.inf).reshape(choice.shape)
    chosen = np.argsort(-choice, axis=-1, kind="stable")[:, : moe.top_k]
    weights = np.take_along_axis(scores, chosen, axis=1)
    if moe.normalise:
        total = np.zeros(len(weights), weights.dtype)
        for j in range(moe.top_k):  # in this order on every machine
            total = total + weights[:, j]
        weights = weights / total[:, None] if soft else weights / (total + 1e-20)[:, None]
    return chosen, weights * moe.scale if moe.scale != 1.0 else weights


def mixture(layer: str, x: Array, c: Context, moe: Moe) -> Array:
    """Sum of each token's experts, weighted, in increasing expert, then the shared expert."""
    flat = x.reshape(-1, x.shape[-1])  # [R, H], R = B*T
    logits = c.gemm(f"{layer}.router", x, f"{layer}.router.weight", c.positions)  # [B, T, experts]
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
            y = mlp(f"{layer}.experts.{e}", flat[rows], here)  # [rows, H]
            total[rows] += y * weights[rows, slot][:, None]
    y = total.reshape(x.shape)
    return y + mlp(f"{layer}.shared", x, c) if moe.shared else y


def feed_forward(layer: str, index: int, x: Array, c: Context) -> Array:
    """Run the MLP or the experts of layer number `index`."""
    moe = c.arch.moe
    if moe is not None and has_experts(c.arch, index):
        y = mixture(layer, x, c, moe)
    else:
        y = mlp(layer, x, c)
    c.keep_tap(f"{layer}.mlp.out", y)
    return y


def block(layer: str, index: int, x: Array, c: Context) -> Array:
    """One layer [B, T, H] -> [B, T, H]: attention and MLP around the residual stream."""
    kind = c.arch.residual
    if kind == "post":
        x = norm(f"{layer}.attn_norm", x + attention(layer, index, x, c), c)
        return norm(f"{layer}.mlp_norm", x + feed_forward(layer, index, x, c), c)
    normed = norm(f"{layer}.attn_norm", x, c)
    y = attention(layer, index, normed, c)
    if kind in ("parallel", "parallel_shared"):
        if kind == "parallel":
            normed = norm(f"{layer}.mlp_norm", x, c)
        return (y + feed_forward(layer, index, normed, c)) + x
    if kind == "sandwich":
        y = norm(f"{layer}.attn_post_norm", y, c)
    x = x + y
    if c.memory is not None or (c.past is not None and f"{layer}.cross" in c.past.kept):
        x = x + cross_attention(layer, norm(f"{layer}.cross_norm", x, c), c)
    y = feed_forward(layer, index, norm(f"{layer}.mlp_norm", x, c), c)
    if kind == "sandwich":
        y = norm(f"{layer}.mlp_post_norm", y, c)
    return x + y
