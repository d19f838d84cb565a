"""What follows the layers: pooler, logits over the vocabulary, scores of a text."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from numsim.kernels.elementwise import activations
from numsim.models import lowered
from numsim.models.context import Bools, Context, linear, norm
from numsim.models.gemm import Array, Ints


class Ends(NamedTuple):
    """What a network gives beside its hidden states."""

    logits: Array  # [B, T, vocab]; [B, labels] of a classifier; [B, T, 0] without a head
    pooled: Array | None  # [B, H]


def ends(x: Array, c: Context, ids: Ints, keep: Bools | None) -> Ends:
    """Return logits and, of an encoder with a pooler, its output; `x` [B, T, H]."""
    a = c.arch
    pooled = None
    begin = replace(c, positions=c.positions[:1])  # draws do not depend on a text's length
    if a.pooler:
        first = np.ascontiguousarray(x[:, :1])  # [B, 1, H]
        act = activations.ACTIVATIONS[a.pooler]
        pooled = act(linear("pooler", first, begin, bias=True))[:, 0]
    if a.labels:
        x = _read_by_classifier(x, c, ids, keep) if pooled is None else pooled[:, None]
        return Ends(linear("classifier", _seen(x, begin), begin, bias=a.label_bias)[:, 0], pooled)
    if not a.head and not a.masked:
        return Ends(np.empty((*x.shape[:2], 0), c.dtype), pooled)
    x = _seen(x, c)  # [B, T, width]
    if a.head_scale != 1.0:
        x = x * c.dtype(a.head_scale)
    logits = linear("lm_head", x, c, bias=a.head_bias)  # [B, T, vocab]
    if a.logit_scale != 1.0:
        logits = logits * c.dtype(a.logit_scale)
    if a.logit_divisor != 1.0:
        logits = logits / c.dtype(a.logit_divisor)
    if a.head_cap is not None:
        logits = activations.softcap(logits, cap=a.head_cap)
    op = c.op("logits")
    if op is not None:
        logits = lowered.rounding_of(op)(logits)
    return Ends(logits, pooled)


def _seen(x: Array, c: Context) -> Array:
    """Return what the last product reads: states, projected or transformed."""
    a = c.arch
    if a.embed_dim:
        x = c.gemm("project_out", x, "project_out.weight", c.positions)
    if a.transform:
        act = activations.ACTIVATIONS[a.transform]
        x = act(linear("transform", x, c, bias=a.transform_bias))
        x = norm("transform_norm", x, c)
    return x


def _read_by_classifier(x: Array, c: Context, ids: Ints, keep: Bools | None) -> Array:
    """Return the state [B, 1, H] of the first or last token, or the mean of all kept ones."""
    pooling = c.arch.pooling
    if pooling == "last":
        return last_state(x, c.arch.pad, ids, keep)
    if pooling == "first":
        return np.ascontiguousarray(x[:, :1])
    counts = np.ones(ids.shape, np.bool_) if keep is None else keep
    total = np.zeros_like(x[:, 0])
    for t in range(x.shape[1]):  # in this order on every machine
        total += x[:, t] * counts[:, t, None]
    mean: Array = total / counts.sum(axis=1, keepdims=True).astype(c.dtype)
    return mean[:, None]


def last_state(x: Array, pad: int | None, ids: Ints, keep: Bools | None) -> Array:
    """Return the state [B, 1, H] of each row's last token that is no padding, else of the first."""
    counts = np.ones(ids.shape, np.bool_) if keep is None else keep
    counts = counts if pad is None else ids != pad
    places = np.where(counts, np.arange(ids.shape[1]), 0).max(axis=1)
    return np.ascontiguousarray(x[np.arange(len(x)), places])[:, None]
