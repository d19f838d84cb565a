"""Packed weights of families that store several matrices in one, or turned, or by experts."""

import json
import pathlib

import numpy as np
import pytest
from packing import E4M3, save, scaled, some_scales
from safetensors.numpy import load_file

from numsim.models import Recipe, Rule, load_model
from numsim.quant import Quant

DATA = pathlib.Path(__file__).parents[2] / "data"
TILE = (20, 12)
FAMILIES = [
    "oracle/gpt_neox", "oracle/mixtral", "oracle/deepseek_v3", "oracle/bert", "oracle/t5",
    "families/phi3", "families/falcon_40b", "families/falcon_rw", "families/glm4",
    "families/qwen3_moe", "families/modernbert_trunk", "families/bloom",
]  # fmt: skip


def sources(folder):
    config = json.loads((folder / "config.json").read_text())
    return config, dict(load_file(folder / "model.safetensors"))


def both(tmp_path, config, tensors, packed, table):
    """Load a network packed and as the numbers its codes stand for; return both and tokens."""
    config = {k: v for k, v in config.items() if k != "quantization_config"}
    numbers = {name: made for name, (_, made) in packed.items()}
    plain = load_model(save(tmp_path / "plain", config, tensors | numbers))
    left = {name: t for name, t in tensors.items() if name not in packed}
    for parts, _ in packed.values():
        left |= parts
    config["quantization_config"] = table
    return load_model(save(tmp_path / "packed", config, left)), plain


def tiled(rng, shape):
    codes = rng.integers(0, 0x60, shape).astype(np.uint8) | (rng.integers(0, 2, shape) << 7).astype(
        np.uint8
    )
    scale = rng.uniform(1e-3, 3e-3, [-(-n // t) for n, t in zip(shape, TILE, strict=True)])
    scale = scale.astype(np.float32)
    rows = np.arange(shape[0]) // TILE[0]
    numbers = scaled(
        codes.view(E4M3).astype(np.float32), scale[rows], 0, np.arange(shape[1]) // TILE[1]
    )
    return codes.view(E4M3), scale, numbers


def agree(packed, plain, recipes):
    ids = np.arange(1, 9)[None]
    more = {"decoder_tokens": ids} if packed.arch.decoder_layers else {}
    for recipe in recipes:
        got, want = (m.run(ids, recipe, **more) for m in (packed, plain))
        assert np.array_equal(got.logits, want.logits)
        for mine, theirs in zip(got.hidden_states, want.hidden_states, strict=True):
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_are_cut_where_a_family_keeps_several_matrices_in_one(tmp_path, family):
    config, tensors = sources(DATA / family)
    rng, packed = np.random.default_rng(5), {}
    model = load_model(DATA / family)
    names = {model.places[f"{n}.weight"].name for n in model.linear_names()}
    for name in sorted(names):
        codes, scale, numbers = tiled(rng, tensors[name].shape)
        packed[name] = {name: codes, f"{name}_scale_inv": scale}, numbers
    table = {"quant_method": "fp8", "weight_block_size": list(TILE)}
    made, plain = both(tmp_path, config, tensors, packed, table)
    assert len({p.name for p, _ in made.tensors.packed.values()}) == len(names)
    for name in made.tensors.packed:
        assert np.array_equal(made.tensors[name].dequantize(), plain.tensors[name])
    acts = Quant("int8", "per_token")
    agree(made, plain, [None, Recipe((("*", Rule()), ("*_proj", Rule(acts))))])


def test_a_module_that_is_stored_turned_is_packed_as_a_linear(tmp_path):
    """GPT-2 stores [in, out]; its packed modules are [out, in], square ones too."""
    config, tensors = sources(DATA / "oracle" / "gpt2")
    model = load_model(DATA / "oracle" / "gpt2")
    rng, packed = np.random.default_rng(6), {}
    for name in {model.places[f"{n}.weight"].name for n in model.linear_names()}:
        into, out = tensors[name].shape
        codes = rng.integers(-127, 128, (out, into)).astype(np.int8)
        amax = some_scales(rng, out, np.float32)
        parts = {name: codes, name.removesuffix("weight") + "SCB": amax}
        packed[name] = parts, scaled(codes, (amax / np.float32(127))[:, None]).T
    table = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    made, plain = both(tmp_path, config, tensors, packed, table)
    agree(made, plain, [None])
    assert made.recipe().rule("layers.0.q_proj").activations == Quant("int8", "per_token")


def test_experts_in_one_tensor_have_scales_of_their_outputs(tmp_path):
    """Llama 4 by FBGEMM: codes [experts, in, out], scales along the outputs."""
    config, tensors = sources(DATA / "families" / "llama4_text")
    rng, packed = np.random.default_rng(7), {}
    for name, t in tensors.items():
        if "experts." not in name or t.ndim != 3:
            continue
        codes = rng.integers(0, 0x60, t.shape).astype(np.uint8)
        scale = rng.uniform(1e-3, 3e-3, (t.shape[0], 1, t.shape[2])).astype(np.float32)
        numbers = (codes.view(E4M3).astype(np.float64) * scale).astype(np.float32)
        stored = scale.swapaxes(1, 2) if name.endswith("down_proj") else scale
        packed[name] = {name: codes.view(E4M3), f"{name}_scale": stored}, numbers
    assert packed
    made, plain = both(tmp_path, config, tensors, packed, {"quant_method": "fbgemm_fp8"})
    agree(made, plain, [None])
    name = next(iter(packed))
    whole = made.tensors[name]  # by its name in the file: [experts, out, in]
    assert np.array_equal(whole.dequantize().swapaxes(1, 2), packed[name][1])


def test_of_experts_in_one_tensor_only_the_one_that_is_asked_for_is_unpacked(monkeypatch):
    from numsim.models import weights as module

    seen = []
    read = module.read

    def watched(packed, maps, expert=None):
        seen.append(expert)
        return read(packed, maps, expert)

    monkeypatch.setattr(module, "read", watched)
    model = load_model(DATA / "packed" / "gpt_oss_mxfp4")
    q = model.tensors["layers.0.experts.2.down_proj.weight"]
    assert seen == [2]
    assert q.shape == (64, 64)
    assert len(model.tensors) == len(list(model.tensors))
    for name in model.tensors.packed:  # gate and up alternate row by row
        assert model.tensors[name].shape == module.shape_of(model.tensors, name)
