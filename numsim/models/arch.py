"""What a network is: sizes and switches, and the stacks of layers that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: the base, how many elements of a head turn, and how angles are scaled."""

    theta: float
    width: int  # elements of a head that turn
    interleaved: bool = False  # pairs (2j, 2j + 1), else (j, width / 2 + j)
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"] = "default"
    factor: float = 1.0
    longest: int = 0  # dynamic: the length beyond which the base grows; others: the original one
    slow: float = 1.0  # llama3: low_freq_factor, yarn: beta_slow
    fast: float = 1.0  # llama3: high_freq_factor, yarn: beta_fast
    amplitude: float = 1.0  # yarn, longrope: multiplies sine and cosine
    truncate: bool = True  # yarn: whole dimensions as edges of the ramp
    short: tuple[float, ...] = ()  # longrope: divide the frequencies, up to the original length
    long: tuple[float, ...] = ()  # longrope: beyond it


@dataclass(frozen=True, slots=True)
class Moe:
    """Experts in place of the MLP, but in the layers that `dense` lists."""

    experts: int
    top_k: int
    intermediate: int
    # softmax over all, or over the chosen ones only
    score: Literal["softmax", "sigmoid", "softmax_chosen"] = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_best: int = 2  # the scores of so many best experts choose a group
    correction: bool = False  # a learned bias that counts for the choice only
    shared: int = 0  # intermediate size of the shared expert, 0: none
    shared_gate: bool = False  # the shared expert times a sigmoid of its own product
    dense: tuple[int, ...] = ()  # layers that keep an MLP
    router_bias: bool = False
    bias: bool = False  # of the experts' matrices
    weighs_input: bool = False  # the score multiplies what an expert reads, not what it gives


@dataclass(frozen=True, slots=True)
class Mla:
    """Latent attention: queries, keys and values come from narrow projections."""

    q_rank: int | None
    kv_rank: int
    nope: int  # elements of a query head without position
    rope: int  # elements with position, shared by all key heads


class Growth(NamedTuple):
    """Queries without rotary positions grow: times ``ln(1 + (position + 1) // every) by + 1``."""

    every: int
    by: float


class Conv(NamedTuple):
    """A convolution before the layers: a product of patches [places, inputs * kernel]."""

    name: str
    inputs: int  # channels
    outputs: int
    kernel: tuple[int, ...]  # of each axis after the channels
    stride: tuple[int, ...]
    padding: int = 0
    activation: str | None = None


@dataclass(frozen=True, slots=True)
class Arch:
    """Sizes and switches of one network."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys
    v_head_dim: int
    intermediate: int
    activation: str
    norm_eps: float
    attn_scale: float
    # norms and residual stream; layer_weight: a layer norm without bias
    norm: Literal["rms", "rms_plus_one", "layer", "layer_weight", "layer_plain"] = "rms"
    # post: norm after the sum; after: of the branch only, before the sum; sandwich: before and
    # after the branch; normed: the branch is added to the norm's output
    residual: Literal[
        "pre", "post", "after", "sandwich", "parallel", "parallel_shared", "normed"
    ] = "pre"
    residual_scale: float = 1.0  # of each branch
    first_attn_norm: bool = True  # False: layer 0 has none
    final_norm: bool = True
    # rms, rms_plus_one, layer: weights of one head; rms_wide: all heads together; layer_by_head:
    # weights of each head; l2: no weights, after the rotary turn
    qk_norm: Literal["rms", "rms_plus_one", "layer", "rms_wide", "layer_by_head", "l2"] | None = (
        None
    )
    latent_eps: float = 1e-6  # norms of the latent projections
    # positions
    rope: Rope | None = None
    layer_ropes: tuple[Rope | None, ...] = ()  # per layer; empty: `rope` everywhere
    positions: int = 0  # rows of a learned table, 0: none
    position_offset: int = 0
    # which tokens positions count: kept by attention_mask, or no `pad`
    position_count: Literal["all", "kept", "not_pad"] = "all"
    alibi: float = 0.0  # what the slopes of ALiBi are multiplied by, 0: none
    buckets: int = 0  # of a relative position bias, 0: none
    bucket_rows: int = 0  # of its table where more than buckets
    bucket_distance: int = 0
    bucket_by_layer: bool = False  # a table in each layer, else one for the stack
    # attention
    causal: bool = True
    # per layer, empty: none anywhere; a token sees itself and the `window - 1` tokens before it,
    # where not causal also those after it
    windows: tuple[int | None, ...] = ()
    chunks: tuple[int | None, ...] = ()  # per layer: tokens see those of their own chunk
    attn_cap: float | None = None
    scale_by_layer: bool = False  # attention scale divided by layer + 1
    query_growth: Growth | None = None
    sinks: bool = False  # one more score of each head, of no key
    clip_qkv: float | None = None
    qkv_bias: bool = False
    key_bias: bool = True  # False: queries and values alone have one
    o_bias: bool = False
    mla: Mla | None = None
    # MLP
    gated: bool = True
    mlp_bias: bool = False
    swiglu_limit: float | None = None  # clamps gate and up, see `blocks.mlp`
    swiglu_alpha: float = 1.702
    moe: Moe | None = None
    # both ends; what the first stack reads: ids, pictures or log-mel spectra
    reads: Literal["tokens", "pixels", "features"] = "tokens"
    frame: tuple[int, ...] = ()  # one picture [channels, height, width], one text [bins, times]
    convs: tuple[Conv, ...] = ()  # make tokens of it
    class_token: bool = False  # a learned one before them
    embed_dim: int = 0  # width of the embedding where it is not `hidden`, 0: the same
    embed_scale: float = 1.0
    embed_norm: bool = False
    token_types: int = 0
    tied: bool = False
    head: bool = True  # False: no logits of the next token
    masked: bool = False  # logits of the token itself
    head_bias: bool = False
    head_scale: float = 1.0  # of what the head reads
    logit_scale: float = 1.0
    logit_divisor: float = 1.0
    head_cap: float | None = None
    transform: str | None = None  # activation of a layer with a norm before the last product
    transform_bias: bool = True
    pooler: Literal["tanh", "relu"] | None = None  # of the first token
    labels: int = 0  # scores of a classifier, 0: none
    label_bias: bool = False
    pooling: Literal["first", "last", "mean"] = "last"  # what a classifier without pooler reads
    pad: int | None = None  # the id that a classifier of the last token reads over
    # encoder-decoder
    decoder_layers: int = 0  # 0: one stack
    decoder_heads: int = 0  # where other than the encoder's
    decoder_intermediate: int = 0
    decoder_positions: int = 0
    decoder_start: int | None = None


class Stack(NamedTuple):
    """A run of layers: the whole network, or an encoder or decoder."""

    prefix: str
    layers: int
    causal: bool
    cross: bool  # attends to the encoder's output


def stacks(arch: Arch) -> tuple[Stack, ...]:
    """Return the stacks of layers in the order they run."""
    if not arch.decoder_layers:
        return (Stack("", arch.layers, arch.causal, False),)
    encoder = Stack("encoder.", arch.layers, False, False)
    return encoder, Stack("decoder.", arch.decoder_layers, True, True)


def stack_arch(arch: Arch, stack: Stack) -> Arch:
    """Return the sizes of a stack: a decoder may have other heads and another MLP."""
    heads = arch.decoder_heads or arch.heads
    width = arch.decoder_intermediate or arch.intermediate
    rows = arch.decoder_positions or arch.positions
    same = (heads, width, rows) == (arch.heads, arch.intermediate, arch.positions)
    if not stack.cross or (same and not arch.convs):
        return arch
    each = arch.heads * arch.head_dim // heads
    scale = arch.attn_scale * (arch.head_dim / each) ** 0.5
    return replace(
        arch, heads=heads, kv_heads=heads, head_dim=each, v_head_dim=each, attn_scale=scale,
        intermediate=width, positions=rows, convs=(),
    )  # fmt: skip


def conv_sizes(arch: Arch) -> tuple[tuple[int, ...], ...]:
    """Return how many places each convolution gives along each axis.

    >>> from numsim.models.families import FAMILIES
    >>> from numsim.models.config import read_arch
    >>> config = {"model_type": "whisper", "vocab_size": 9, "max_source_positions": 50}
    >>> conv_sizes(read_arch(config, FAMILIES["whisper"]))
    ((100,), (50,))
    """
    sizes, found = arch.frame[1:], []
    for conv in arch.convs:
        each = zip(sizes, conv.kernel, conv.stride, strict=True)
        sizes = tuple((n + 2 * conv.padding - k) // s + 1 for n, k, s in each)
        found.append(sizes)
    return tuple(found)


def read_tokens(arch: Arch) -> int:
    """Return how many tokens the first stack has where it reads no ids."""
    return math.prod(conv_sizes(arch)[-1]) + arch.class_token


def has_experts(arch: Arch, layer: int) -> bool:
    """Return whether the layer routes to experts."""
    return arch.moe is not None and layer not in arch.moe.dense


def layer_rope(arch: Arch, layer: int) -> Rope | None:
    """Return the rotary positions of a layer."""
    return arch.layer_ropes[layer] if arch.layer_ropes else arch.rope


def every_rope(arch: Arch) -> tuple[Rope, ...]:
    """Return the different rotary positions of the layers."""
    ropes = arch.layer_ropes or (arch.rope,)
    return tuple(rope for rope in dict.fromkeys(ropes) if rope is not None)
