"""A pass through a network: its stacks of layers, then what follows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from numsim.models.arch import Arch, Stack, every_rope, stack_arch, stacks
from numsim.models.attention import relative_bias
from numsim.models.blocks import block, embed
from numsim.models.context import Bools, Context, Past, norm
from numsim.models.gemm import Array, Ints
from numsim.models.heads import Ends, ends
from numsim.models.rope import alibi_bias, alibi_slopes, relative_buckets, rotary_tables

States = tuple[Array, ...]  # layers + 1 of [B, T, H]


class Inputs(NamedTuple):
    """What a network is given, checked."""

    ids: Ints  # [B, T], of an encoder-decoder those of the encoder; zeros beside `numbers`
    keep: Bools | None  # [B, T]
    types: Ints | None  # [B, T], segments
    target: Ints | None  # [B, T'], of the decoder
    numbers: Array | None = None  # pictures or spectra [B, ...] in place of ids


def forward(
    a: Arch, common: Mapping[str, Any], given: Inputs, past: Past | None
) -> tuple[States, States, Ends]:
    """Return hidden states, those of an encoder before it, and what the network gives.

    `common`: fields of every `Context` of the run.
    """
    encoded: States = ()
    if given.target is None:
        states, c = _stack(a, stacks(a)[0], common, given, past)
        return states, encoded, ends(states[-1], c, given.ids, given.keep)
    encoder, decoder = stacks(a)
    memory = None if past is None else past.memory
    if memory is None:
        encoded, _ = _stack(a, encoder, common, given, None)
        memory = encoded[-1]
        if past is not None:
            past.memory, past.memory_keep = memory, given.keep
    keep = past.memory_keep if past else given.keep
    common = {**common, "memory": memory, "memory_keep": keep}
    states, c = _stack(a, decoder, common, Inputs(given.target, None, None, None), past)
    return states, encoded, ends(states[-1], c, given.ids, given.keep)


def _stack(
    whole: Arch, stack: Stack, common: Mapping[str, Any], given: Inputs, past: Past | None
) -> tuple[States, Context]:
    """Run the layers of a stack; return its hidden states and the context they ran in."""
    a, ids, keep = stack_arch(whole, stack), given.ids, given.keep
    batch, steps = ids.shape
    start = 0 if past is None else past.length
    if past is not None:
        keep = _extend_mask(past, keep, batch, steps)
    positions = np.arange(start, start + steps)
    keys = np.arange(start + steps)
    buckets = None
    if a.buckets:
        buckets = relative_buckets(a, positions, keys, causal=stack.causal)  # [T, S]
    c = Context(
        **common,
        arch=a,
        prefix=stack.prefix,
        causal=stack.causal,
        positions=positions,
        keep=keep,
        turns={rope: rotary_tables(rope, start, start + steps) for rope in every_rope(a)},
        buckets=buckets,
        bias=None,
        past=past,
    )
    if a.alibi:
        told = keep is not None and a.position_count == "kept"
        counted = _counted(a, keep, ids) if told else keys
        slopes = tuple(slope * a.alibi for slope in alibi_slopes(a.heads))
        c = replace(c, bias=alibi_bias(slopes, counted, steps))
    elif buckets is not None and not a.bucket_by_layer:
        c = replace(c, bias=relative_bias(f"{stack.prefix}relative", buckets, c))
    places = _counted(a, keep, ids, start)
    x = embed(ids, places, given.types, c, given.numbers)  # [B, T, H]
    states = [x]
    for i in range(stack.layers):
        x = block(f"{stack.prefix}layers.{i}", i, x, c)  # [B, T, H]
        c.keep_tap(f"{stack.prefix}layers.{i}.out", x)
        states.append(x)
        c.tell(f"{stack.prefix}layers.{i}", stack.layers)
    if a.final_norm:
        states[-1] = norm(f"{stack.prefix}final_norm", x, c)
    if a.embed_dim and not a.head and not a.labels:  # a trunk gives what its head would read
        states[-1] = c.gemm("project_out", states[-1], "project_out.weight", c.positions)
    if past is not None:
        past.length += steps
    return tuple(states), c


def _counted(a: Arch, keep: Bools | None, ids: Ints, start: int = 0) -> Ints:
    """Return the position of each token from `start` on, [1 or B, T]; padding: -1 where told."""
    if a.position_count == "all" or (a.position_count == "kept" and keep is None):
        return np.arange(start, start + ids.shape[1])[None]
    counts = ids != a.pad if a.position_count == "not_pad" else keep
    assert counts is not None
    counted: Ints = np.cumsum(counts, axis=1) * counts - 1  # [B, S]
    return counted[:, start:]


def _extend_mask(past: Past, keep: Bools | None, batch: int, steps: int) -> Bools | None:
    """Return the mask of all keys [B, S], and keep it; None where all count."""
    if keep is None and past.keep is None:
        return None
    before = np.ones((batch, past.length), np.bool_) if past.keep is None else past.keep
    now = np.ones((batch, steps), np.bool_) if keep is None else keep
    past.keep = np.concatenate([before, now], axis=1)
    return past.keep
