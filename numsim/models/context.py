"""What the parts of a network share in a run: the context, kept keys, linears and norms.

B sequences, T tokens, S keys, H hidden, N query heads, G key heads, D elements of a query or key
head, E of a value head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise import functions
from numsim.models import lowered
from numsim.models.arch import Arch, Rope
from numsim.models.gemm import Array, Gemm, Ints
from numsim.operators import KV, KVCache, Op

Bools = NDArray[np.bool_]
Angles = tuple[NDArray[np.float64], NDArray[np.float64]]  # cosine, sine [T, R/2]


@dataclass(slots=True, eq=False)
class Past:
    """Keys and values of the tokens a model has seen; `Model.run` reads and extends it."""

    length: int = 0
    keep: Bools | None = None  # [B, length]
    kept: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    memory: Array | None = None  # output of the encoder [B, S, H]
    memory_keep: Bools | None = None
    caches: dict[str, tuple[KVCache, ...]] = field(default_factory=dict)  # one a row, by `kv`
    kv: KV | None = None  # of the recipe of its runs

    def __repr__(self) -> str:
        return f"Past({self.length} tokens, {len(self.kept)} pairs of keys and values)"

    def extend(self, name: str, k: Array, v: Array) -> tuple[Array, Array]:
        """Return all keys and values [B, G, S, ...] of a layer, the new ones last."""
        if name in self.kept:
            old_k, old_v = self.kept[name]
            k, v = np.concatenate([old_k, k], axis=2), np.concatenate([old_v, v], axis=2)
        self.kept[name] = (k, v)
        return k, v

    def apart(self) -> Past:
        """Return a copy that grows without this one."""
        return replace(self, kept=dict(self.kept), caches=dict(self.caches))

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

    arch: Arch  # of the stack
    prefix: str  # of the stack's names
    dtype: type
    gemm: Gemm
    weight: Callable[[str], Array]
    rows: Callable[[str, Ints], Array]
    keep_tap: Callable[[str, Array], None]
    wanted: Collection[str]  # the taps that it keeps
    tell: Callable[[str, int], object]  # is told of each layer that has run, and of how many
    causal: bool
    positions: Ints  # [T] of the tokens among the keys
    keep: Bools | None  # [B, S], padding mask
    turns: Mapping[Rope, Angles]
    buckets: Ints | None  # [T, S], of relative positions
    bias: NDArray[np.float64] | None  # [N or B N, T, S], of all layers
    past: Past | None
    memory: Array | None = None  # output of the encoder [B, S, H]
    memory_keep: Bools | None = None
    op: Callable[[str], Op | None] = lambda name: None  # what a recipe says of an operator
    kv: KV | None = None  # and of keys and values


def remembered(layer: str, k: Array, v: Array, c: Context) -> tuple[Array, Array]:
    """Return the keys and values [B, G, S, ...] that a layer attends to, the new ones last."""
    if c.kv is None:
        return (k, v) if c.past is None else c.past.extend(layer, k, v)
    known = () if c.past is None else c.past.caches.get(layer, ())
    caches = tuple(map(copy, known)) or tuple(c.kv.cache() for _ in k)
    for cache, new_k, new_v in zip(caches, k, v, strict=True):
        cache.append(new_k, new_v)
    if c.past is not None:
        c.past.caches[layer] = caches
        c.past.extend(layer, k, v)
    seen = [cache.seen() for cache in caches]
    return tuple(np.stack(part).astype(c.dtype) for part in zip(*seen, strict=True))  # type: ignore[return-value]


def linear(name: str, x: Array, c: Context, *, bias: bool) -> Array:
    """``x W^T + b``: the bias is added after the unit, in the dtype of the run."""
    y = c.gemm(name, x, f"{name}.weight", c.positions)  # [B, T, in] -> [B, T, out]
    if bias:
        y = y + c.weight(f"{name}.bias")
        c.keep_tap(f"{name}.biased", y)
    return y


def norm(name: str, x: Array, c: Context, *, kind: str = "", eps: float | None = None) -> Array:
    """Norm over the last axis; `kind` as in `Arch`, or ``rms_plain``, which has no weights."""
    kind, eps = kind or c.arch.norm, c.arch.norm_eps if eps is None else eps
    zeros: Array = np.zeros(x.shape[-1], c.dtype)
    op = c.op(name)
    if op is not None:
        y = _lowered_norm(name, x, c, op, kind, eps)
    elif kind == "layer":
        weight, bias = c.weight(f"{name}.weight"), c.weight(f"{name}.bias")
        y = functions.layer_norm(x, weight, bias, eps=eps)
    elif kind == "layer_weight":
        y = functions.layer_norm(x, c.weight(f"{name}.weight"), zeros, eps=eps)
    elif kind == "layer_by_head":
        weights = c.weight(f"{name}.weight")  # [N, D], of x [B, T, N, D]
        heads = [
            functions.layer_norm(x[:, :, n], weight, zeros, eps=eps)
            for n, weight in enumerate(weights)
        ]
        y = np.stack(heads, axis=2)
    elif kind == "layer_plain":
        y = functions.layer_norm(x, zeros + c.dtype(1), zeros, eps=eps)
    elif kind == "rms_plain":
        y = functions.rms_norm(x, zeros, eps=eps, offset=1.0)
    else:
        offset = 1.0 if kind == "rms_plus_one" else 0.0
        y = functions.rms_norm(x, c.weight(f"{name}.weight"), eps=eps, offset=offset)
    c.keep_tap(f"{name}.out", y)
    return y


def _lowered_norm(name: str, x: Array, c: Context, op: Op, kind: str, eps: float) -> Array:
    plain = kind in ("layer_plain", "rms_plain")
    weight = None if plain else c.weight(f"{name}.weight")
    if kind == "layer_by_head":
        assert weight is not None
        heads = [
            lowered.norm(x[:, :, n], op, kind, eps, w, None)  # [N, D], of x [B, T, N, D]
            for n, w in enumerate(weight)
        ]
        return np.stack(heads, axis=2)
    bias = c.weight(f"{name}.bias") if kind == "layer" else None
    return lowered.norm(x, op, kind, eps, weight, bias)
