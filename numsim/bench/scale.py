"""A network of experts larger than memory: write one of random weights, run a text through it.

    python -m numsim.bench.scale FOLDER            # 16.8 GB, 31 B parameters; run, then remove it
    python -m numsim.bench.scale FOLDER --layers 2 # a small one

Weights are MXFP4 as compressed-tensors stores them. A run maps the files, reads an expert when a
token is routed to it, and keeps what `memory_limit` allows: 256 tokens by the recipe that the
folder declares took 4.01 GB at most with a limit of 3 GB, and 141 s beside other work on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numsim.bench.model import peak_bytes
from numsim.models import load_model
from numsim.terminal import say

GROUP = 32  # elements of a row that share a scale
SCALE_CODE = 120  # of E8M0: 2**-7, about 1 / sqrt(2048) with elements of E2M1
LAYERS_A_FILE = 4


@dataclass(frozen=True, slots=True)
class MoeSize:
    """Sizes of a network in the layout of Qwen3-MoE."""

    layers: int = 38
    hidden: int = 2048
    experts: int = 128
    top_k: int = 2
    width: int = 1024
    heads: int = 16
    kv_heads: int = 4
    head_dim: int = 128
    vocab: int = 32768

    def config(self) -> dict[str, object]:
        """Return the ``config.json`` of the network."""
        groups = {
            "num_bits": 4, "type": "float", "strategy": "group", "group_size": GROUP,
            "symmetric": True, "dynamic": False, "scale_dtype": "torch.uint8",
        }  # fmt: skip
        form = "mxfp4-pack-quantized"
        group = {
            "targets": ["Linear"], "weights": groups, "format": form,
            "input_activations": groups | {"dynamic": True},
        }  # fmt: skip
        return {
            "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
            "vocab_size": self.vocab, "hidden_size": self.hidden, "head_dim": self.head_dim,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "intermediate_size": self.width,
            "moe_intermediate_size": self.width, "num_experts": self.experts,
            "num_experts_per_tok": self.top_k, "norm_topk_prob": True, "rope_theta": 1e6,
            "max_position_embeddings": 4096, "tie_word_embeddings": False,
            "quantization_config": {
                "quant_method": "compressed-tensors", "format": form,
                "quantization_status": "compressed", "config_groups": {"group_0": group},
                "ignore": ["lm_head", "re:.*mlp.gate$"],
            },
        }  # fmt: skip


Stored = dict[str, tuple[str, NDArray[np.uint8], tuple[int, ...]]]  # name -> type, bytes, shape


def _wide(
    rng: np.random.Generator, *shape: int, one: bool = False
) -> tuple[str, NDArray[np.uint8], tuple[int, ...]]:
    """Return random numbers of bfloat16, or ones."""
    values = np.ones(shape, np.float32)
    if not one:
        values = rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
    codes = (values.view(np.uint32) >> 16).astype(np.uint16)
    return "BF16", codes.view(np.uint8).reshape(-1), shape


def _packed(rng: np.random.Generator, name: str, rows: int, columns: int) -> Stored:
    """Return random codes of E2M1, two a byte, and scales of E8M0."""
    codes = rng.integers(0, 256, rows * columns // 2, np.uint8)
    scales = rng.integers(SCALE_CODE - 1, SCALE_CODE + 2, rows * columns // GROUP, np.uint8)
    return {
        f"{name}.weight_packed": ("U8", codes, (rows, columns // 2)),
        f"{name}.weight_scale": ("U8", scales, (rows, columns // GROUP)),
    }


def _layer(rng: np.random.Generator, size: MoeSize, i: int) -> Stored:
    layer, h = f"model.layers.{i}", size.hidden
    q, kv = size.heads * size.head_dim, size.kv_heads * size.head_dim
    tensors: Stored = {
        f"{layer}.{name}.weight": _wide(rng, n, one=True)
        for name, n in (
            ("input_layernorm", h), ("post_attention_layernorm", h),
            ("self_attn.q_norm", size.head_dim), ("self_attn.k_norm", size.head_dim),
        )
    }  # fmt: skip
    tensors[f"{layer}.mlp.gate.weight"] = _wide(rng, size.experts, h)
    for name, rows, columns in (("q", q, h), ("k", kv, h), ("v", kv, h), ("o", h, q)):
        tensors |= _packed(rng, f"{layer}.self_attn.{name}_proj", rows, columns)
    for e in range(size.experts):
        for name, rows, columns in (
            ("gate", size.width, h), ("up", size.width, h), ("down", h, size.width)
        ):  # fmt: skip
            tensors |= _packed(rng, f"{layer}.mlp.experts.{e}.{name}_proj", rows, columns)
    return tensors


def _files(size: MoeSize) -> Iterator[Stored]:
    rng = np.random.default_rng(0)
    yield {
        "model.embed_tokens.weight": _wide(rng, size.vocab, size.hidden),
        "lm_head.weight": _wide(rng, size.vocab, size.hidden),
        "model.norm.weight": _wide(rng, size.hidden, one=True),
    }
    for first in range(0, size.layers, LAYERS_A_FILE):
        tensors: Stored = {}
        for i in range(first, min(first + LAYERS_A_FILE, size.layers)):
            tensors |= _layer(rng, size, i)
        yield tensors


def write_moe(folder: Path, size: MoeSize) -> int:
    """Write a network of random weights in several files; return its bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(size.config()), encoding="utf-8")
    places: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(_files(size)):
        header, end = {}, 0
        for name, (dtype, data, shape) in tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end + data.size)}
            end += data.size
        file = f"model-{number:05}.safetensors"
        words = json.dumps(header).encode()
        words += b" " * (-len(words) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(len(words).to_bytes(8, "little") + words)
            for _, data, _ in tensors.values():
                stream.write(data.tobytes())
        places |= dict.fromkeys(tensors, file)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def run_moe(folder: Path, size: MoeSize, tokens: int, limit: str) -> None:
    """Run one text by the recipe that the checkpoint declares, and say how it went."""
    began = time.perf_counter()
    model = load_model(folder, memory_limit=limit)
    say(f"{model!r}: loaded in {time.perf_counter() - began:.0f} s")
    ids = np.random.default_rng(1).integers(0, size.vocab, (1, tokens))
    began = time.perf_counter()

    def tell(layer: str, layers: int) -> None:
        spent = time.perf_counter() - began
        say(f"{layer} of {layers}, {spent:.0f} s, peak {peak_bytes() / 1e9:.2f} GB")

    run = model.run(ids, model.recipe(), tell=tell)
    finite = bool(np.isfinite(run.logits).all())
    say(f"{tokens} tokens, {time.perf_counter() - began:.0f} s, logits finite: {finite}, "
        f"peak {peak_bytes() / 1e9:.2f} GB")  # fmt: skip


def main() -> None:
    """Write a folder, run a text, remove the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=MoeSize().layers)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--limit", default="3GB", help="memory_limit of load_model")
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"the folder must be new; {given.folder} is there")
    size = MoeSize(layers=given.layers)
    try:
        began = time.perf_counter()
        total = write_moe(given.folder, size)
        say(f"wrote {total / 1e9:.1f} GB in {time.perf_counter() - began:.0f} s")
        run_moe(given.folder, size, given.tokens, given.limit)
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
