"""The parts of a network as pure functions, the same for the reference and every emulation.

B sequences, T tokens, H hidden, N query heads, G query heads a key head, D elements a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels import vector
from numsim.models.arch import Arch

Array = NDArray[Any]
Gemm = Callable[[str, Array, "str | Array"], Array]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a block needs beside its input; `gemm` and `dtype` are all that differs between runs.

    ``gemm(name, x, operand)`` multiplies x [..., M, K] by the stored matrix named `operand` or by
    the array `operand` [..., K, N]. ``weight(name)`` is a stored vector or table in `dtype`.
    """

    arch: Arch
    dtype: type
    gemm: Gemm
    weight: Callable[[str], Array]
    cos: NDArray[np.float64]  # [T, D/2]
    sin: NDArray[np.float64]  # [T, D/2]
    last: NDArray[np.int64]  # [T], keys a token sees end here
    keep: NDArray[np.bool_] | None  # [B, T], padding mask
    keep_tap: Callable[[str, Array], None]


def rotary_tables(arch: Arch, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return cosine and sine [T, D/2] of position * theta**(-2 j / D), all in float64.

    The frequencies are rounded once, from 40 decimal digits.
    """
    with localcontext() as context:
        context.prec = 40
        base, width = Decimal(arch.rope_theta), Decimal(arch.head_dim)
        frequencies = [float(base ** (-2 * j / width)) for j in range(arch.head_dim // 2)]
    angles = np.arange(steps, dtype=np.float64)[:, None] * np.array(frequencies)  # [T, D/2]
    return vector.cos(angles), vector.sin(angles)


def linear(name: str, x: Array, c: Context, *, bias: bool) -> Array:
    """``x W^T + b``: the bias is added after the unit, in the dtype of the run."""
    y = c.gemm(name, x, f"{name}.weight")  # [B, T, in] -> [B, T, out]
    return y + c.weight(f"{name}.bias") if bias else y


def norm(name: str, x: Array, c: Context) -> Array:
    """RMS norm over the hidden elements [B, T, H]."""
    return vector.rms_norm(x, c.weight(f"{name}.weight"), eps=c.arch.norm_eps)


def attention(layer: str, x: Array, c: Context) -> Array:
    """Causal attention with grouped queries."""
    a = c.arch
    batch, steps, _ = x.shape
    group = a.heads // a.kv_heads
    q = linear(f"{layer}.q_proj", x, c, bias=a.qkv_bias)  # [B, T, N*D]
    k = linear(f"{layer}.k_proj", x, c, bias=a.qkv_bias)  # [B, T, N/G*D]
    v = linear(f"{layer}.v_proj", x, c, bias=a.qkv_bias)  # [B, T, N/G*D]
    q = vector.rotary(q.reshape(batch, steps, a.heads, a.head_dim), c.cos, c.sin)  # [B, N, T, D]
    k = vector.rotary(k.reshape(batch, steps, a.kv_heads, a.head_dim), c.cos, c.sin)
    v = v.reshape(batch, steps, a.kv_heads, a.head_dim).swapaxes(1, 2)  # [B, N/G, T, D]
    q = q.reshape(batch, a.kv_heads, group * steps, a.head_dim)  # [B, N/G, G*T, D]
    scores = c.gemm(f"{layer}.qk", q, k.swapaxes(2, 3))  # [B, N/G, G*T, T]
    weights = vector.softmax(
        scores.reshape(batch, a.heads, steps, steps),  # [B, N, T, T]
        scale=1.0 / sqrt(a.head_dim),
        last=c.last,
        keep=c.keep,
    )
    weights = weights.reshape(batch, a.kv_heads, group * steps, steps)  # [B, N/G, G*T, T]
    mixed = c.gemm(f"{layer}.pv", weights, v)  # [B, N/G, G*T, D]
    mixed = mixed.reshape(batch, a.heads, steps, a.head_dim).swapaxes(1, 2)  # [B, T, N, D]
    mixed = mixed.reshape(batch, steps, a.heads * a.head_dim)  # [B, T, N*D]
    return linear(f"{layer}.o_proj", mixed, c, bias=a.o_bias)  # [B, T, H]


def gated_mlp(layer: str, x: Array, c: Context) -> Array:
    """``down(act(gate(x)) * up(x))``."""
    bias = c.arch.mlp_bias
    gate = linear(f"{layer}.gate_proj", x, c, bias=bias)  # [B, T, I]
    up = linear(f"{layer}.up_proj", x, c, bias=bias)  # [B, T, I]
    return linear(f"{layer}.down_proj", vector.silu(gate) * up, c, bias=bias)  # [B, T, H]


def block(layer: str, x: Array, c: Context) -> Array:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""
    a = attention(layer, norm(f"{layer}.attn_norm", x, c), c)  # [B, T, H]
    c.keep_tap(f"{layer}.attn.out", a)
    x = x + a
    m = gated_mlp(layer, norm(f"{layer}.mlp_norm", x, c), c)  # [B, T, H]
    c.keep_tap(f"{layer}.mlp.out", m)
    return x + m
