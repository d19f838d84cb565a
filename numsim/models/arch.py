"""What a network is: sizes and switches; its tensors and its matrix products follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: the base, how many elements of a head turn, and how angles are scaled."""

    theta: float
    width: int  # elements of a head that turn
    interleaved: bool = False  # pairs (2j, 2j + 1), else (j, width / 2 + j)
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    factor: float = 1.0
    longest: int = 0  # dynamic: the length beyond which the base grows; llama3, yarn: the original
    slow: float = 1.0  # llama3: low_freq_factor, yarn: beta_slow
    fast: float = 1.0  # llama3: high_freq_factor, yarn: beta_fast
    amplitude: float = 1.0  # yarn: multiplies sine and cosine
    truncate: bool = True  # yarn: whole dimensions as edges of the ramp


@dataclass(frozen=True, slots=True)
class Moe:
    """Experts in place of the MLP, from layer `first` on."""

    experts: int
    top_k: int
    intermediate: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    correction: bool = False  # a learned bias that counts for the choice only
    shared: int = 0  # intermediate size of the shared expert, 0: none
    first: int = 0


@dataclass(frozen=True, slots=True)
class Mla:
    """Latent attention: queries, keys and values come from narrow projections."""

    q_rank: int | None
    kv_rank: int
    nope: int  # elements of a query head without position
    rope: int  # elements with position, shared by all key heads


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
    # norms and residual stream
    norm: Literal["rms", "rms_plus_one", "layer", "layer_plain"] = "rms"
    residual: Literal["pre", "post", "sandwich", "parallel", "parallel_shared"] = "pre"
    final_norm: bool = True
    qk_norm: Literal["rms", "layer"] | None = None
    latent_eps: float = 1e-6  # norms of the latent projections
    # positions
    rope: Rope | None = None
    positions: int = 0  # rows of a learned table, 0: none
    position_offset: int = 0
    masked_positions: bool = False  # positions count kept tokens only
    buckets: int = 0  # of a relative position bias, 0: none
    bucket_distance: int = 0
    # attention
    causal: bool = True
    windows: tuple[int | None, ...] = ()  # per layer; empty: none anywhere
    attn_cap: float | None = None
    scale_by_layer: bool = False  # attention scale divided by layer + 1
    qkv_bias: bool = False
    o_bias: bool = False
    mla: Mla | None = None
    # MLP
    gated: bool = True
    mlp_bias: bool = False
    moe: Moe | None = None
    # both ends
    embed_dim: int = 0  # width of the embedding where it is not `hidden`, 0: the same
    embed_scale: float = 1.0
    embed_norm: bool = False
    token_types: int = 0
    tied: bool = False
    head: bool = True  # False: no logits of the next token
    head_bias: bool = False
    head_scale: float = 1.0
    head_cap: float | None = None
    pooler: bool = False
    labels: int = 0  # scores of a classifier, from the pooler's output or the last token; 0: none
    label_bias: bool = False
    pad: int | None = None  # the id that a classifier of the last token reads over
    # encoder-decoder
    decoder_layers: int = 0  # 0: one stack
    decoder_start: int | None = None


class Stack(NamedTuple):
    """A run of layers: the whole network, or an encoder or decoder."""

    prefix: str
    layers: int
    causal: bool
    cross: bool  # attends to the encoder's output


class Product(NamedTuple):
    """A matrix product of a layer: [out, in] and bias of its stored matrix; qk and pv have none."""

    name: str
    shape: tuple[int, int] | None = None
    bias: bool = False


def stacks(arch: Arch) -> tuple[Stack, ...]:
    """Return the stacks of layers in the order they run."""
    if not arch.decoder_layers:
        return (Stack("", arch.layers, arch.causal, False),)
    encoder = Stack("encoder.", arch.layers, False, False)
    return encoder, Stack("decoder.", arch.decoder_layers, True, True)


def has_experts(arch: Arch, layer: int) -> bool:
    """Return whether the layer routes to experts."""
    return arch.moe is not None and layer >= arch.moe.first


def _attention(a: Arch, cross: str = "") -> Iterator[Product]:
    h, q, kv = a.hidden, a.heads * a.head_dim, a.kv_heads * a.head_dim
    if a.mla is None:
        yield Product(f"{cross}q_proj", (q, h), a.qkv_bias)
        yield Product(f"{cross}k_proj", (kv, h), a.qkv_bias)
        yield Product(f"{cross}v_proj", (a.kv_heads * a.v_head_dim, h), a.qkv_bias)
    else:
        m = a.mla
        if m.q_rank is None:
            yield Product("q_proj", (q, h))
        else:
            yield Product("q_a_proj", (m.q_rank, h), a.qkv_bias)
            yield Product("q_b_proj", (q, m.q_rank))
        yield Product("kv_a_proj", (m.kv_rank + m.rope, h), a.qkv_bias)
        yield Product("kv_b_proj", (a.heads * (m.nope + a.v_head_dim), m.kv_rank))
    yield Product(f"{cross}qk")  # queries times keys
    yield Product(f"{cross}pv")  # attention weights times values
    yield Product(f"{cross}o_proj", (h, a.heads * a.v_head_dim), a.o_bias)


def _mlp(a: Arch, prefix: str, width: int) -> Iterator[Product]:
    if a.gated:
        yield Product(f"{prefix}gate_proj", (width, a.hidden), a.mlp_bias)
    yield Product(f"{prefix}up_proj", (width, a.hidden), a.mlp_bias)
    yield Product(f"{prefix}down_proj", (a.hidden, width), a.mlp_bias)


def layer_products(a: Arch, layer: int, *, cross: bool) -> Iterator[Product]:
    """Yield the matrix products of a layer, in the order they run."""
    yield from _attention(a)
    if cross:
        yield from _attention(a, "cross_")
    if a.moe is None or not has_experts(a, layer):
        yield from _mlp(a, "", a.intermediate)
        return
    yield Product("router", (a.moe.experts, a.hidden))
    for e in range(a.moe.experts):
        yield from _mlp(a, f"experts.{e}.", a.moe.intermediate)
    if a.moe.shared:
        yield from _mlp(a, "shared.", a.moe.shared)


def layer_norms(a: Arch, *, cross: bool) -> dict[str, int]:
    """Return the norms of a layer and their widths."""
    norms = {"attn_norm": a.hidden}
    if a.residual == "sandwich":
        norms["attn_post_norm"] = norms["mlp_post_norm"] = a.hidden
    if cross:
        norms["cross_norm"] = a.hidden
    if a.residual != "parallel_shared":
        norms["mlp_norm"] = a.hidden
    if a.qk_norm:
        norms["q_norm"] = norms["k_norm"] = a.head_dim
    if a.mla is not None:
        norms["kv_a_norm"] = a.mla.kv_rank
        if a.mla.q_rank is not None:
            norms["q_a_norm"] = a.mla.q_rank
    return norms


def tensor_shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Return the tensors the network has, by our names, with their shapes ([out, in] matrices)."""
    a = arch
    width = a.embed_dim or a.hidden
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (a.vocab, width)}

    def norm(name: str, size: int) -> None:
        if a.norm != "layer_plain":
            shapes[f"{name}.weight"] = (size,)
        if a.norm == "layer":
            shapes[f"{name}.bias"] = (size,)

    if a.positions:
        shapes["position.weight"] = (a.positions + a.position_offset, a.hidden)
    if a.token_types:
        shapes["token_type.weight"] = (a.token_types, a.hidden)
    if a.embed_norm:
        norm("embed_norm", a.hidden)
    for stack in stacks(a):
        for i in range(stack.layers):
            layer = f"{stack.prefix}layers.{i}"
            for name, size in layer_norms(a, cross=stack.cross).items():
                norm(f"{layer}.{name}", size)
            for product in layer_products(a, i, cross=stack.cross):
                if product.shape is not None:
                    shapes[f"{layer}.{product.name}.weight"] = product.shape
                if product.bias and product.shape is not None:
                    shapes[f"{layer}.{product.name}.bias"] = product.shape[:1]
            if a.moe is not None and a.moe.correction and has_experts(a, i):
                shapes[f"{layer}.router.correction"] = (a.moe.experts,)
        if a.buckets:
            shapes[f"{stack.prefix}relative.weight"] = (a.buckets, a.heads)
        if a.final_norm:
            norm(f"{stack.prefix}final_norm", a.hidden)
    if a.embed_dim:
        shapes["project_in.weight"] = (a.hidden, width)
        shapes["project_out.weight"] = (width, a.hidden)
    if a.head and not a.tied:
        shapes["lm_head.weight"] = (a.vocab, width)
    if a.head_bias:
        shapes["lm_head.bias"] = (a.vocab,)
    if a.pooler:
        shapes["pooler.weight"], shapes["pooler.bias"] = (a.hidden, a.hidden), (a.hidden,)
    if a.labels:
        shapes["classifier.weight"] = (a.labels, width)
    if a.label_bias:
        shapes["classifier.bias"] = (a.labels,)
    return shapes


def gemm_names(arch: Arch) -> tuple[str, ...]:
    """Return the names of all matrix products of the network, in the order they run."""
    names = ["project_in"] if arch.embed_dim else []
    for stack in stacks(arch):
        for i in range(stack.layers):
            names += [
                f"{stack.prefix}layers.{i}.{product.name}"
                for product in layer_products(arch, i, cross=stack.cross)
            ]
    if arch.embed_dim:
        names.append("project_out")
    if arch.pooler:
        names.append("pooler")
    if arch.labels:
        names.append("classifier")
    if arch.head:
        names.append("lm_head")
    return tuple(names)
