"""What a network computes with: its matrix products, norms and tensors, by the names they have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from numsim.models.arch import Arch, has_experts, stack_arch, stacks


class Product(NamedTuple):
    """A matrix product of a layer: [out, in] and bias of its stored matrix; qk and pv have none."""

    name: str
    shape: tuple[int, int] | None = None
    bias: bool = False


def _attention(a: Arch, cross: str = "") -> Iterator[Product]:
    h, q, kv = a.hidden, a.heads * a.head_dim, a.kv_heads * a.head_dim
    if a.mla is None:
        yield Product(f"{cross}q_proj", (q, h), a.qkv_bias)
        yield Product(f"{cross}k_proj", (kv, h), a.qkv_bias and a.key_bias)
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


def _mlp(a: Arch, prefix: str, width: int, *, bias: bool) -> Iterator[Product]:
    if a.gated:
        yield Product(f"{prefix}gate_proj", (width, a.hidden), bias)
    yield Product(f"{prefix}up_proj", (width, a.hidden), bias)
    yield Product(f"{prefix}down_proj", (a.hidden, width), bias)


def layer_products(a: Arch, layer: int, *, cross: bool) -> Iterator[Product]:
    """Yield the matrix products of a layer, in the order they run."""
    yield from _attention(a)
    if cross:
        yield from _attention(a, "cross_")
    if a.moe is None or not has_experts(a, layer):
        yield from _mlp(a, "", a.intermediate, bias=a.mlp_bias)
        return
    yield Product("router", (a.moe.experts, a.hidden), a.moe.router_bias)
    for e in range(a.moe.experts):
        yield from _mlp(a, f"experts.{e}.", a.moe.intermediate, bias=a.moe.bias)
    if a.moe.shared:
        yield from _mlp(a, "shared.", a.moe.shared, bias=a.mlp_bias)
    if a.moe.shared_gate:
        yield Product("shared_gate", (1, a.hidden))


def layer_norms(a: Arch, layer: int, *, cross: bool) -> dict[str, tuple[int, ...]]:
    """Return the norms of a layer that have weights, and the shapes of these."""
    hidden = (a.hidden,)
    norms: dict[str, tuple[int, ...]] = {}
    if a.residual != "after" and (layer or a.first_attn_norm):
        norms["attn_norm"] = hidden
    if a.residual in ("sandwich", "after"):
        norms["attn_post_norm"] = norms["mlp_post_norm"] = hidden
    if cross:
        norms["cross_norm"] = hidden
    if a.residual not in ("parallel_shared", "after"):
        norms["mlp_norm"] = hidden
    if a.qk_norm and a.qk_norm != "l2":
        for name, heads in (("q_norm", a.heads), ("k_norm", a.kv_heads)):
            wide = {"rms_wide": (heads * a.head_dim,), "layer_by_head": (heads, a.head_dim)}
            norms[name] = wide.get(a.qk_norm, (a.head_dim,))
    if a.mla is not None:
        norms["kv_a_norm"] = (a.mla.kv_rank,)
        if a.mla.q_rank is not None:
            norms["q_a_norm"] = (a.mla.q_rank,)
    return norms


def tensor_shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Return the tensors the network has, by our names, with their shapes ([out, in] matrices)."""
    a = arch
    width = a.embed_dim or a.hidden
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (a.vocab, width)} if a.vocab else {}
    for conv in a.convs:
        name = f"{stacks(a)[0].prefix}{conv.name}"
        shapes[f"{name}.weight"] = (conv.outputs, conv.inputs * math.prod(conv.kernel))
        shapes[f"{name}.bias"] = (conv.outputs,)
    if a.class_token:
        shapes["class_token.weight"] = (1, a.hidden)

    def norm(name: str, shape: tuple[int, ...]) -> None:
        if a.norm != "layer_plain":
            shapes[f"{name}.weight"] = shape
        if a.norm == "layer":
            shapes[f"{name}.bias"] = shape

    if a.token_types:
        shapes["token_type.weight"] = (a.token_types, a.hidden)
    for stack in stacks(a):
        if a.positions:
            rows = stack_arch(a, stack).positions + a.position_offset
            shapes[f"{stack.prefix}position.weight"] = (rows, a.hidden)
        if a.embed_norm:
            norm(f"{stack.prefix}embed_norm", (a.hidden,))
    for stack in stacks(a):
        own = stack_arch(a, stack)
        table = (a.bucket_rows or a.buckets, own.heads)
        for i in range(stack.layers):
            layer = f"{stack.prefix}layers.{i}"
            for name, shape in layer_norms(own, i, cross=stack.cross).items():
                norm(f"{layer}.{name}", shape)
            for product in layer_products(own, i, cross=stack.cross):
                if product.shape is not None:
                    shapes[f"{layer}.{product.name}.weight"] = product.shape
                if product.bias and product.shape is not None:
                    shapes[f"{layer}.{product.name}.bias"] = product.shape[:1]
            if a.moe is not None and a.moe.correction and has_experts(a, i):
                shapes[f"{layer}.router.correction"] = (a.moe.experts,)
            if a.sinks:
                shapes[f"{layer}.sinks"] = (own.heads,)
            if a.buckets and a.bucket_by_layer:
                shapes[f"{layer}.relative.weight"] = table
        if a.buckets and not a.bucket_by_layer:
            shapes[f"{stack.prefix}relative.weight"] = table
        if a.final_norm:
            norm(f"{stack.prefix}final_norm", (a.hidden,))
    if a.embed_dim:
        shapes["project_in.weight"] = (a.hidden, width)
        shapes["project_out.weight"] = (width, a.hidden)
    if a.pooler:
        shapes["pooler.weight"], shapes["pooler.bias"] = (a.hidden, a.hidden), (a.hidden,)
    if a.transform:
        shapes["transform.weight"] = (a.hidden, a.hidden)
        if a.transform_bias:
            shapes["transform.bias"] = (a.hidden,)
        norm("transform_norm", (a.hidden,))
    if a.labels:
        shapes["classifier.weight"] = (a.labels, width)
    if a.label_bias:
        shapes["classifier.bias"] = (a.labels,)
    if (a.head or a.masked) and not a.tied:
        shapes["lm_head.weight"] = (a.vocab, width)
    if a.head_bias:
        shapes["lm_head.bias"] = (a.vocab,)
    return shapes


@lru_cache(maxsize=8)  # of thousands of experts it takes long
def gemm_names(arch: Arch) -> tuple[str, ...]:
    """Return the names of all matrix products of the network, in the order they run."""
    names = [f"{stacks(arch)[0].prefix}{conv.name}" for conv in arch.convs]
    names += ["project_in"] if arch.embed_dim else []
    for stack in stacks(arch):
        own = stack_arch(arch, stack)
        for i in range(stack.layers):
            names += [
                f"{stack.prefix}layers.{i}.{product.name}"
                for product in layer_products(own, i, cross=stack.cross)
            ]
    ends = {
        "project_out": arch.embed_dim, "pooler": arch.pooler, "transform": arch.transform,
        "classifier": arch.labels, "lm_head": arch.head or arch.masked,
    }  # fmt: skip
    return (*names, *(name for name, there in ends.items() if there))
