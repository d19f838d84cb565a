"""What a checkpoint is, from its config and the headers of its files: no weight is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from numsim.float_state import known_floats
from numsim.models.arch import (
    Arch,
    Rope,
    Stack,
    every_rope,
    read_tokens,
    stack_arch,
    stacks,
)
from numsim.models.config import head_of, read_arch, unused_keys
from numsim.models.families import get_family
from numsim.models.family import with_stored_parts
from numsim.models.hub import find_folder, model_name
from numsim.models.load import check_counts
from numsim.models.multimodal import text_config, text_names
from numsim.models.packed import Declared, find_declared
from numsim.models.packed.declared import CONFIG_KEYS
from numsim.models.products import layer_products, tensor_shapes
from numsim.models.stored import DTYPES, Tensor, metadata, read_json, stored_tensors
from numsim.quant import Quant


class ProductSize(NamedTuple):
    """Matrix products of one kind; * stands for the number of a layer or an expert."""

    name: str
    k: int | None  # None: the number of keys
    n: int | None
    times: int


class StoredType(NamedTuple):
    """Tensors of one type in the files."""

    dtype: str
    tensors: int
    bytes: int


@known_floats
@dataclass(frozen=True, slots=True)
class Description:
    """What `describe_model` found."""

    name: str
    arch: Arch
    classes: tuple[str, ...]  # `architectures` of config.json
    parameters: int
    active: int  # of them, for one token: all but the experts it does not choose
    products: tuple[ProductSize, ...]
    stored: tuple[StoredType, ...]
    declares: tuple[str, ...]  # of packed weights, a line each
    left_out: Mapping[str, int]  # other parts of the checkpoint -> their tensors
    unused_keys: tuple[str, ...]  # of config.json: only other software reads them


@known_floats
def describe_model(directory: str | Path) -> Description:
    """Say what a checkpoint is before any of it is run.

    Parameters
    ----------
    directory : str or Path
        As in `load_model`.

    Returns
    -------
    Description

    Raises
    ------
    NumsimError
        The folder, its config or the header of a file is missing, damaged or unknown, as in
        `load_model`; tensors are not compared with the config.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> found = describe_model(bundled_model_dir())
    >>> found.parameters, found.products[0]
    (2361408, ProductSize(name='layers.*.q_proj', k=192, n=192, times=5))
    """
    folder = find_folder(directory)
    whole = read_json(folder / "config.json")
    config, is_part = text_config(whole)
    family = get_family(config.get("model_type"), config.get("architectures"))
    network = {key: value for key, value in config.items() if key not in CONFIG_KEYS}
    check_counts(network, family, folder)
    arch = read_arch(network, family)
    stored = stored_tensors(folder)
    dtypes = {name: tensor.dtype for name, tensor in stored.items()}
    files = {tensor.file for tensor in stored.values()}
    declared = find_declared(config, folder, dtypes, DTYPES, metadata(files))
    names, left_out = text_names(stored)
    own = {*names.values(), *(f"{name.rpartition('.')[0]}.weight" for name in names.values())}
    arch, _ = with_stored_parts(arch, family, head_of(config, family), own)  # also of packed ones
    if is_part or family.stored_head:
        arch = replace(arch, tied=arch.head and "lm_head.weight" not in own)
    every, idle = _parameters(arch)
    return Description(
        model_name(folder), arch, tuple(whole.get("architectures") or ()), every, every - idle,
        tuple(_products(arch)), tuple(_types(stored)), tuple(dict.fromkeys(_declares(declared))),
        left_out, unused_keys(network, family),
    )  # fmt: skip


def _parameters(arch: Arch) -> tuple[int, int]:
    """Return how many parameters there are, and how many of experts that a token leaves out."""
    shapes = tensor_shapes(arch)
    every = sum(math.prod(shape) for shape in shapes.values())
    experts = sum(math.prod(shape) for name, shape in shapes.items() if ".experts." in name)
    if arch.moe is None:
        return every, 0
    return every, experts - experts // arch.moe.experts * min(arch.moe.top_k, arch.moe.experts)


def _products(arch: Arch) -> Iterator[ProductSize]:
    """Yield the kinds of products, in the order they first run."""
    width = arch.embed_dim or arch.hidden
    counts: Counter[tuple[str, int | None, int | None]] = Counter()
    for conv in arch.convs:
        name = f"{stacks(arch)[0].prefix}{conv.name}"
        counts[name, conv.inputs * math.prod(conv.kernel), conv.outputs] += 1
    if arch.embed_dim:
        counts["project_in", width, arch.hidden] += 1
    for stack in stacks(arch):
        for name, k, n in _of_layers(stack_arch(arch, stack), stack):
            counts[name, k, n] += 1
    ends = {
        "project_out": (arch.hidden, arch.embed_dim), "pooler": (arch.hidden, arch.pooler),
        "transform": (arch.hidden, arch.transform), "classifier": (width, arch.labels),
    }  # fmt: skip
    for name, (k, there) in ends.items():
        if there:
            counts[name, k, there if isinstance(there, int) else arch.hidden] += 1
    if arch.head or arch.masked:
        counts["lm_head", width, arch.vocab] += 1
    for (name, k, n), count in counts.items():
        yield ProductSize(name, k, n, count)


def _of_layers(a: Arch, stack: Stack) -> Iterator[tuple[str, int | None, int | None]]:
    for i in range(stack.layers):
        for product in layer_products(a, i, cross=stack.cross):
            name = re.sub(r"\.\d+", ".*", f"{stack.prefix}layers.{i}.{product.name}")
            if product.shape is not None:
                yield name, product.shape[1], product.shape[0]
            elif product.name.endswith("qk"):
                yield name, a.head_dim, None
            else:
                yield name, None, a.v_head_dim


def _types(stored: Mapping[str, Tensor]) -> Iterator[StoredType]:
    for dtype in sorted({tensor.dtype for tensor in stored.values()}):
        those = [tensor for tensor in stored.values() if tensor.dtype == dtype]
        yield StoredType(dtype, len(those), sum(t.end - t.begin for t in those))


def _declares(declared: Declared | None) -> Iterator[str]:
    if declared is None:
        return
    yield f"{declared.method}, in {declared.file}"
    for modules, scheme in declared.schemes:
        reads = "wide" if scheme.activations is None else _quant(scheme.activations)
        static = ", static" if scheme.static else ""
        unsaid = f"; {scheme.unsaid}" if scheme.unsaid else ""
        yield f"{modules}: weights {_quant(scheme.weights)}; inputs {reads}{static}{unsaid}"
    if declared.cache is not None:
        yield f"keys and values {_quant(declared.cache)}"


def _quant(quant: Quant) -> str:
    """Return a rule of storage as words."""
    block = "" if quant.block is None else f" of {quant.block}"
    scale = "" if quant.scale_format is None else f", scales {quant.scale_format}"
    return f"{quant.fmt} {quant.granularity}{block}{scale}"


def description_rows(found: Description) -> list[tuple[str, str]]:
    """Return what a checkpoint is, as pairs of a word and a sentence.

    >>> from numsim.data import bundled_model_dir
    >>> description_rows(describe_model(bundled_model_dir()))[0]
    ('family', 'llama (LlamaForCausalLM): a decoder that predicts the next token')
    """
    a = found.arch
    vocabulary = f", vocabulary {a.vocab:,}" if a.vocab else ""
    rows = [
        ("family", f"{a.family} ({', '.join(found.classes) or 'no class named'}): {_kind(a)}"),
        ("parameters", _count(found.parameters)),
        ("layers", _layers(a)),
        ("width", f"{a.hidden}{vocabulary}{', head tied' if a.tied else ''}"),
        ("attention", _attention(a)),
        ("positions", _positions(a)),
    ]
    if a.frame:
        axes = "channels, height, width" if a.reads == "pixels" else "bins, times"
        rows.insert(2, ("reads", f"{a.reads} [{axes}] of {list(a.frame)}: {read_tokens(a)} tokens"))
    if found.active != found.parameters:
        rows[1] = ("parameters", f"{_count(found.parameters)}, {_count(found.active)} for a token")
    if a.moe is not None:
        shared = f", a shared one of {a.moe.shared}" if a.moe.shared else ""
        rows.append(
            ("experts", f"{a.moe.experts} of {a.moe.intermediate}, {a.moe.top_k} a token{shared}")
        )
    rows += [
        ("stored", f"{t.dtype}: {t.tensors:,} tensors, {t.bytes / 1e6:,.1f} MB")
        for t in found.stored
    ]
    rows += [("declares", line) for line in found.declares]
    rows += [("left out", f"{name}: {count:,} tensors") for name, count in found.left_out.items()]
    if found.unused_keys:
        rows.append(("unused keys", ", ".join(found.unused_keys)))
    return rows


def _count(number: int) -> str:
    return f"{number:,}"


def _kind(a: Arch) -> str:
    kind = "an encoder-decoder" if a.decoder_layers else "a decoder" if a.causal else "an encoder"
    gives = "that predicts the next token" if a.head else "that gives states"
    gives = "that predicts masked tokens" if a.masked else gives
    return f"{kind} {f'that gives {a.labels} scores' if a.labels else gives}"


def _layers(a: Arch) -> str:
    """Return how many layers there are, and how far they see."""
    seen = Counter(a.windows or a.chunks or (None,) * a.layers)
    whole, parts = seen.pop(None, 0), sorted((width or 0, n) for width, n in seen.items())
    word = "chunks" if a.chunks else "windows"
    text = ", ".join(f"{n} in {word} of {width}" for width, n in parts)
    text = f"{a.layers}" + (f": {text}, {whole} that see all" if parts else "")
    dense = len(a.moe.dense) if a.moe is not None else 0
    text += f", {dense} without experts" if dense else ""
    return text + (f" and {a.decoder_layers} of the decoder" if a.decoder_layers else "")


def _attention(a: Arch) -> str:
    heads = f"{a.heads} heads of {a.head_dim}"
    if a.mla is not None:
        return f"{heads}, latent: keys and values from {a.mla.kv_rank} numbers a token"
    return heads + (f", {a.kv_heads} of keys and values" if a.kv_heads != a.heads else "")


def _positions(a: Arch) -> str:
    told = [_rope(rope) for rope in every_rope(a)]
    if a.layer_ropes and None in a.layer_ropes:
        told.append(f"none in {a.layer_ropes.count(None)} layers")
    told += [f"a table of {a.positions}"] if a.positions else []
    told += [f"one of {a.decoder_positions} in the decoder"] if a.decoder_positions else []
    told += [f"{a.buckets} buckets of distance"] if a.buckets else []
    told += ["a linear bias (ALiBi)"] if a.alibi else []
    return "; ".join(told) or "none"


def _rope(rope: Rope) -> str:
    kind = "" if rope.kind == "default" else f", {rope.kind} from {rope.longest} tokens"
    if rope.kind == "linear":
        kind = f", angles divided by {rope.factor:g}"
    return f"rotary, base {rope.theta:g}, {rope.width} elements of a head{kind}"


def product_cells(found: Description) -> list[tuple[str, str, str, str]]:
    """Return a table of the products: name, K, N, how many."""
    rows = [("product", "K", "N", "count")]
    for product in found.products:
        k, n = ("keys" if size is None else f"{size:,}" for size in (product.k, product.n))
        rows.append((product.name, k, n, f"{product.times:,}"))
    return rows
