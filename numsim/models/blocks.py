"""The parts of a network as pure functions, the same for the reference and every emulation.

Letters of shapes as in `context`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from numsim.kernels.elementwise import activations
from numsim.models import lowered
from numsim.models.arch import Conv, conv_sizes
from numsim.models.attention import attention, cross_attention
from numsim.models.context import Context, linear, norm
from numsim.models.experts import feed_forward
from numsim.models.gemm import Array, Ints


def unfold(x: Array, conv: Conv) -> Array:
    """Return what each place of a convolution reads of x [B, C, ...]: [B, places, C * kernel].

    >>> unfold(np.arange(4.0).reshape(1, 1, 4), Conv("c", 1, 1, (3,), (2,), 1)).tolist()
    [[[0.0, 0.0, 1.0], [1.0, 2.0, 3.0]]]
    """
    axes = tuple(range(2, x.ndim))
    padded = np.pad(x, [(0, 0), (0, 0), *[(conv.padding, conv.padding)] * len(axes)])
    each = np.lib.stride_tricks.sliding_window_view(padded, conv.kernel, axes)
    steps = [slice(None, None, s) for s in conv.stride]
    each = each[(slice(None), slice(None), *steps)]
    each = np.moveaxis(each, 1, 1 + len(axes))  # [B, places ..., C, kernel ...]
    return np.ascontiguousarray(each).reshape(len(x), -1, conv.inputs * math.prod(conv.kernel))


def convolved(x: Array, c: Context) -> Array:
    """Tokens [B, T, H] of pictures [B, C, height, width] or of spectra [B, bins, times]."""
    a = c.arch
    for conv, sizes in zip(a.convs, conv_sizes(a), strict=True):
        name, patches = f"{c.prefix}{conv.name}", unfold(x, conv)
        here = replace(c, positions=np.arange(patches.shape[1]))
        y = linear(name, patches, here, bias=True)  # [B, places, outputs]
        if conv.activation is not None:
            op = c.op(f"{name}.act")
            run = activations.ACTIVATIONS[conv.activation]
            y = run(y) if op is None else lowered.act(conv.activation, y, op)
            c.keep_tap(f"{name}.act.out", y)
        x = y.swapaxes(1, 2).reshape(len(y), conv.outputs, *sizes)
    if a.class_token:
        first = np.broadcast_to(c.rows("class_token.weight", np.zeros(1, np.int64)), y[:, :1].shape)
        y = np.concatenate([first, y], axis=1)
    return y


def embed(
    ids: Ints, positions: Ints, types: Ints | None, c: Context, numbers: Array | None = None
) -> Array:
    """Rows of the tables for tokens [B, T], positions [B or 1, T] and segments [B, T].

    `numbers`: pictures or spectra, which become tokens in place of ids.
    """
    a = c.arch
    # [B, T, H] or its narrower width
    x = c.rows("embed.weight", ids) if numbers is None else convolved(numbers, c)
    if a.embed_dim:
        x = c.gemm("project_in", x, "project_in.weight", c.positions)  # [B, T, H]
    if a.embed_scale != 1.0:
        x = x * c.dtype(a.embed_scale)
    if types is not None:
        x = x + c.rows("token_type.weight", types)
    if a.positions:
        x = x + c.rows(f"{c.prefix}position.weight", positions + a.position_offset)
    if a.embed_norm:
        x = norm(f"{c.prefix}embed_norm", x, c)
    op = c.op(f"{c.prefix}embedding")
    if op is not None:
        x = lowered.rounding_of(op)(x)
    if not x.flags.writeable:  # rows that the next run reads; hidden states are the caller's own
        x = x.copy()
    c.keep_tap(f"{c.prefix}embed.out", x)
    return x


def _plus(layer: str, x: Array, y: Array, c: Context) -> Array:
    """Add to the residual stream."""
    return lowered.total(x, y, c.op(f"{layer}.residual"))


def _scaled(y: Array, c: Context) -> Array:
    return y if c.arch.residual_scale == 1.0 else y * c.dtype(c.arch.residual_scale)


def _reads_memory(layer: str, c: Context) -> bool:
    return c.memory is not None or (c.past is not None and f"{layer}.cross" in c.past.kept)


def _after(layer: str, index: int, x: Array, c: Context) -> Array:
    """Layer whose norms follow the sums."""
    x = norm(f"{layer}.attn_norm", _plus(layer, x, attention(layer, index, x, c), c), c)
    if _reads_memory(layer, c):
        x = norm(f"{layer}.cross_norm", _plus(layer, x, cross_attention(layer, x, c), c), c)
    return norm(f"{layer}.mlp_norm", _plus(layer, x, feed_forward(layer, index, x, c), c), c)


def block(layer: str, index: int, x: Array, c: Context) -> Array:
    """One layer [B, T, H] -> [B, T, H]: attention and MLP around the residual stream."""
    kind = c.arch.residual
    if kind == "post":
        return _after(layer, index, x, c)
    own_norm = kind != "after" and (index or c.arch.first_attn_norm)
    normed = norm(f"{layer}.attn_norm", x, c) if own_norm else x
    y = attention(layer, index, normed, c)
    if kind in ("parallel", "parallel_shared"):
        if kind == "parallel":
            normed = norm(f"{layer}.mlp_norm", x, c)
        return _plus(layer, _plus(layer, y, feed_forward(layer, index, normed, c), c), x, c)
    if kind in ("sandwich", "after"):
        y = norm(f"{layer}.attn_post_norm", y, c)
    x = _plus(layer, normed if kind == "normed" else x, _scaled(y, c), c)
    if _reads_memory(layer, c):
        x = _plus(layer, x, cross_attention(layer, norm(f"{layer}.cross_norm", x, c), c), c)
    normed = norm(f"{layer}.mlp_norm", x, c) if kind != "after" else x
    y = feed_forward(layer, index, normed, c)
    if kind in ("sandwich", "after"):
        y = norm(f"{layer}.mlp_post_norm", y, c)
    return _plus(layer, normed if kind == "normed" else x, _scaled(y, c), c)
