"""The blocks of a transformer as operations on a recorder: attention, feed-forward, experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from numsim.models.arch import Arch, Moe, has_experts, stacks
from numsim.models.experts import route
from numsim.models.products import layer_norms
from numsim.nn import ops
from numsim.nn.attention import attend
from numsim.nn.tape import Recorder

Ints = NDArray[np.int64]


def _linear(r: Recorder, name: str, x: int, *, bias: bool) -> int:
    y = ops.product(r, name, x, r.param(f"{name}.weight"))
    return ops.add_bias(r, y, r.param(f"{name}.bias")) if bias else y


def norm(r: Recorder, a: Arch, name: str, x: int, kind: str = "", eps: float | None = None) -> int:
    """Record the norm of a name, of the kind of the network or another."""
    kind, eps = kind or a.norm, a.norm_eps if eps is None else eps
    r.owners.append((len(r.steps), name))
    if kind == "layer":
        y = ops.layer_norm(r, x, r.param(f"{name}.weight"), r.param(f"{name}.bias"), eps=eps)
    elif kind == "layer_plain":
        y = ops.layer_norm(r, x, None, None, eps=eps)
    else:
        offset = 1.0 if kind == "rms_plus_one" else 0.0
        y = ops.rms_norm(r, x, r.param(f"{name}.weight"), eps=eps, offset=offset)
    return ops.stored(r, name, y)


def names_between(a: Arch) -> tuple[str, ...]:
    """Return the names of the operations between products, in no order that matters."""
    names = ["embed_norm"] if a.embed_norm else []
    for stack in stacks(a):
        for i in range(stack.layers):
            layer = f"{stack.prefix}layers.{i}"
            names += [f"{layer}.{norm}" for norm in layer_norms(a, i, cross=stack.cross)]
            names += [f"{layer}.softmax"] + [f"{layer}.cross_softmax"] * stack.cross
            if a.moe is None or not has_experts(a, i):
                names.append(f"{layer}.act")
                continue
            names += [f"{layer}.router.scores"]
            names += [f"{layer}.experts.{e}.act" for e in range(a.moe.experts)]
            names += [f"{layer}.shared.act"] * bool(a.moe.shared)
        names += [f"{stack.prefix}final_norm"] * a.final_norm
    return tuple(names)


@dataclass(frozen=True)
class Pass:
    """What the layers of one stack share."""

    arch: Arch
    causal: bool
    positions: Ints
    turn: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    bias: int | None
    memory: int | None = None


def _heads(r: Recorder, x: int, heads: int) -> int:
    """[B, T, N D] -> [B, T, N, D]."""
    batch, steps = r.values[x].shape[:2]
    return ops.reshape(r, x, batch, steps, heads, -1)


def _turn(r: Recorder, p: Pass, x: int) -> int:
    """Heads first, turned by position where that is rotary: [B, T, N, D] -> [B, N, T, D]."""
    if p.turn is None or p.arch.rope is None:
        return ops.transpose(r, x, 0, 2, 1, 3)
    return ops.rotary(r, x, *p.turn, interleaved=p.arch.rope.interleaved)


def _qkv(r: Recorder, p: Pass, layer: str, x: int) -> tuple[int, int, int]:
    a = p.arch
    q = _heads(r, _linear(r, f"{layer}.q_proj", x, bias=a.qkv_bias), a.heads)
    k = _heads(r, _linear(r, f"{layer}.k_proj", x, bias=a.qkv_bias), a.kv_heads)
    v = _heads(r, _linear(r, f"{layer}.v_proj", x, bias=a.qkv_bias), a.kv_heads)
    if a.qk_norm:
        q = norm(r, a, f"{layer}.q_norm", q, a.qk_norm)
        k = norm(r, a, f"{layer}.k_norm", k, a.qk_norm)
    return _turn(r, p, q), _turn(r, p, k), ops.transpose(r, v, 0, 2, 1, 3)


def _latent_qkv(r: Recorder, p: Pass, layer: str, x: int) -> tuple[int, int, int]:
    a, m = p.arch, p.arch.mla
    assert m is not None
    if m.q_rank is None:
        q = _linear(r, f"{layer}.q_proj", x, bias=False)
    else:
        q = _linear(r, f"{layer}.q_a_proj", x, bias=a.qkv_bias)
        q = norm(r, a, f"{layer}.q_a_norm", q, eps=a.latent_eps)
        q = _linear(r, f"{layer}.q_b_proj", q, bias=False)
    q = _heads(r, q, a.heads)
    kv = _linear(r, f"{layer}.kv_a_proj", x, bias=a.qkv_bias)
    latent = ops.last(r, kv, 0, m.kv_rank)
    shared = _heads(r, ops.last(r, kv, m.kv_rank, m.kv_rank + m.rope), 1)
    latent = norm(r, a, f"{layer}.kv_a_norm", latent, eps=a.latent_eps)
    kv = _heads(r, _linear(r, f"{layer}.kv_b_proj", latent, bias=False), a.heads)
    kv = ops.transpose(r, kv, 0, 2, 1, 3)  # [B, N, T, nope + E]
    turned = ops.repeat_heads(r, _turn(r, p, shared), a.heads)
    k = ops.join(r, ops.last(r, kv, 0, m.nope), turned)
    plain = ops.transpose(r, ops.last(r, q, 0, m.nope), 0, 2, 1, 3)
    placed = _turn(r, p, ops.last(r, q, m.nope, m.nope + m.rope))
    return ops.join(r, plain, placed), k, ops.last(r, kv, m.nope, m.nope + a.v_head_dim)


def _merged(r: Recorder, mixed: int) -> int:
    """[B, N, T, E] -> [B, T, N E]."""
    batch, _, steps, _ = r.values[mixed].shape
    return ops.reshape(r, ops.transpose(r, mixed, 0, 2, 1, 3), batch, steps, -1)


def _attention(r: Recorder, p: Pass, layer: str, index: int, x: int) -> int:
    a = p.arch
    q, k, v = (_qkv if a.mla is None else _latent_qkv)(r, p, layer, x)
    window = a.windows[index] if a.windows else None
    first = None if window is None else np.maximum(p.positions - (window - 1), 0)
    mixed = attend(
        r, f"{layer}.", q, k, v, cap=a.attn_cap, bias=p.bias,
        scale=a.attn_scale / (index + 1) if a.scale_by_layer else a.attn_scale,
        first=first, last=p.positions + 1 if p.causal else None,
    )  # fmt: skip
    return _linear(r, f"{layer}.o_proj", _merged(r, mixed), bias=a.o_bias)


def _cross_attention(r: Recorder, p: Pass, layer: str, x: int) -> int:
    a = p.arch
    assert p.memory is not None
    q = _heads(r, _linear(r, f"{layer}.cross_q_proj", x, bias=a.qkv_bias), a.heads)
    k = _heads(r, _linear(r, f"{layer}.cross_k_proj", p.memory, bias=a.qkv_bias), a.kv_heads)
    v = _heads(r, _linear(r, f"{layer}.cross_v_proj", p.memory, bias=a.qkv_bias), a.kv_heads)
    q, k, v = (ops.transpose(r, s, 0, 2, 1, 3) for s in (q, k, v))
    mixed = attend(r, f"{layer}.cross_", q, k, v, scale=a.attn_scale, cap=a.attn_cap)
    return _linear(r, f"{layer}.cross_o_proj", _merged(r, mixed), bias=a.o_bias)


def _mlp(r: Recorder, a: Arch, name: str, x: int) -> int:
    if a.gated:
        gate = _linear(r, f"{name}.gate_proj", x, bias=a.mlp_bias)
        middle = ops.stored(r, f"{name}.act", ops.activation(r, gate, a.activation))
        middle = ops.multiply(r, middle, _linear(r, f"{name}.up_proj", x, bias=a.mlp_bias))
    else:
        up = _linear(r, f"{name}.up_proj", x, bias=a.mlp_bias)
        middle = ops.stored(r, f"{name}.act", ops.activation(r, up, a.activation))
    return _linear(r, f"{name}.down_proj", middle, bias=a.mlp_bias)


def _mixture(r: Recorder, a: Arch, layer: str, x: int, moe: Moe) -> int:
    """Sum of each token's experts; the choice of experts is not differentiated."""
    shape = r.values[x].shape
    flat = ops.reshape(r, x, -1, shape[-1])
    logits = ops.product(r, f"{layer}.router", flat, r.param(f"{layer}.router.weight"))
    soft = moe.score == "softmax"
    scores = (
        ops.softmax(r, ops.reshape(r, logits, 1, -1, moe.experts))
        if soft
        else (ops.activation(r, logits, "sigmoid"))
    )
    scores = ops.stored(r, f"{layer}.router.scores", ops.reshape(r, scores, -1, moe.experts))
    fixed = r.array(r.param(f"{layer}.router.correction")) if moe.correction else None
    chosen, _ = route(r.array(logits), moe, fixed)  # [R, k]
    every = np.arange(len(chosen))[:, None]
    weights = ops.pick(r, scores, (every, chosen))
    if moe.normalise:
        weights = ops.share(r, weights, 0.0 if soft else 1e-20)
    if moe.scale != 1.0:
        weights = ops.scale(r, weights, moe.scale)
    total = r.put(np.zeros_like(r.array(flat)))
    for e in range(moe.experts):
        rows, slot = np.nonzero(chosen == e)
        if rows.size:
            y = _mlp(r, a, f"{layer}.experts.{e}", ops.pick(r, flat, (rows,)))
            y = ops.weighted(r, y, ops.pick(r, weights, (rows, slot)))
            total = ops.add_at(r, total, y, rows)
    y = ops.reshape(r, total, *shape)
    return ops.add(r, y, _mlp(r, a, f"{layer}.shared", x)) if moe.shared else y


def _feed_forward(r: Recorder, a: Arch, layer: str, index: int, x: int) -> int:
    if a.moe is not None and has_experts(a, index):
        return _mixture(r, a, layer, x, a.moe)
    return _mlp(r, a, layer, x)


def block(r: Recorder, p: Pass, layer: str, index: int, x: int) -> int:
    """Record a block: attention and feed-forward, each with its norm and residual."""
    a = p.arch
    if a.residual == "post":
        y = ops.add(r, x, _attention(r, p, layer, index, x))
        x = norm(r, a, f"{layer}.attn_norm", y)
        y = ops.add(r, x, _feed_forward(r, a, layer, index, x))
        return norm(r, a, f"{layer}.mlp_norm", y)
    normed = norm(r, a, f"{layer}.attn_norm", x)
    y = _attention(r, p, layer, index, normed)
    if a.residual in ("parallel", "parallel_shared"):
        if a.residual == "parallel":
            normed = norm(r, a, f"{layer}.mlp_norm", x)
        return ops.add(r, ops.add(r, y, _feed_forward(r, a, layer, index, normed)), x)
    if a.residual == "sandwich":
        y = norm(r, a, f"{layer}.attn_post_norm", y)
    x = ops.add(r, x, y)
    if p.memory is not None:
        normed = norm(r, a, f"{layer}.cross_norm", x)
        x = ops.add(r, x, _cross_attention(r, p, layer, normed))
    y = _feed_forward(r, a, layer, index, norm(r, a, f"{layer}.mlp_norm", x))
    if a.residual == "sandwich":
        y = norm(r, a, f"{layer}.mlp_post_norm", y)
    return ops.add(r, x, y)
