"""Rules of single families that no oracle shows, each worked out by hand."""

import json
import pathlib

import numpy as np
from safetensors.numpy import load_file, save_file

from numsim.models import load_model
from numsim.models.arch import Moe
from numsim.models.blocks import route

ORACLE = pathlib.Path(__file__).parent / "data" / "oracle"


def test_attention_of_gpt2_is_scaled_down_by_the_number_of_the_layer(tmp_path):
    """Layer 1 of two by 2, as if its queries were half as long: the same bits."""
    config = json.loads((ORACLE / "gpt2" / "config.json").read_text())
    tensors = load_file(ORACLE / "gpt2" / "model.safetensors")
    by_layer = config | {"scale_attn_by_inverse_layer_idx": True}
    (tmp_path / "config.json").write_text(json.dumps(by_layer))
    save_file(tensors, tmp_path / "model.safetensors")
    got = load_model(tmp_path).run([5, 1, 7]).logits
    for name in ("weight", "bias"):
        key = f"transformer.h.1.attn.c_attn.{name}"
        tensors[key] = tensors[key].copy()
        tensors[key][..., : config["n_embd"]] /= 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    assert np.array_equal(load_model(tmp_path).run([5, 1, 7]).logits, got)
    assert not np.array_equal(load_model(ORACLE / "gpt2").run([5, 1, 7]).logits, got)
    (tmp_path / "config.json").write_text(json.dumps(config | {"scale_attn_weights": False}))
    assert load_model(tmp_path).arch.attn_scale == 1.0


def test_of_equal_experts_the_lowest_are_chosen():
    for score in ("softmax", "sigmoid"):
        chosen, weights = route(np.zeros((1, 6)), Moe(6, 3, 8, score), None)
        assert chosen.tolist() == [[0, 1, 2]]
        assert np.allclose(weights, 1 / 3)
    chosen, _ = route(np.array([[1.0, 2.0, 2.0, 1.0]]), Moe(4, 3, 8), None)
    assert chosen.tolist() == [[1, 2, 0]]
    groups = Moe(6, 2, 8, "sigmoid", groups=3, top_groups=1)
    assert route(np.zeros((1, 6)), groups, None)[0].tolist() == [[0, 1]]


def test_norms_of_latents_have_an_epsilon_of_their_own(tmp_path):
    """1e-6, whatever rms_norm_eps says."""
    config = json.loads((ORACLE / "deepseek_v3" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.25}))
    save_file(
        load_file(ORACLE / "deepseek_v3" / "model.safetensors"), tmp_path / "model.safetensors"
    )
    model = load_model(tmp_path)
    run = model.run([5, 1, 7], taps=["layers.0.*"])
    width = model.arch.mla.kv_rank
    latent = run.taps[
        "layers.0.kv_a_proj.biased" if model.arch.qkv_bias else "layers.0.kv_a_proj.out"
    ]
    latent = latent[..., :width]
    weight = model.tensors["layers.0.kv_a_norm.weight"].astype(np.float64)
    want = latent / np.sqrt((latent**2).mean(axis=-1, keepdims=True) + 1e-6) * weight
    assert np.allclose(run.taps["layers.0.kv_a_norm.out"], want, rtol=1e-12, atol=1e-14)
    states = run.hidden_states[0]
    weight = model.tensors["layers.0.attn_norm.weight"].astype(np.float64)
    want = states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + 0.25) * weight
    assert np.allclose(run.taps["layers.0.attn_norm.out"], want, rtol=1e-12, atol=1e-14)


def test_positions_of_opt_count_kept_tokens_and_padding_has_the_one_before_the_first():
    model = load_model(ORACLE / "opt")
    run = model.run([[5, 6, 7, 8, 9]], attention_mask=[[0, 1, 1, 0, 1]], taps=["embed.out"])
    table = model.tensors["position.weight"].astype(np.float64)
    bare = model.tensors["embed.weight"].astype(np.float64)[[5, 6, 7, 8, 9]]
    if model.arch.embed_dim:
        bare = bare @ model.tensors["project_in.weight"].T.astype(np.float64)
    want = bare + table[[1, 2, 3, 1, 4]]  # two more than the position
    assert np.allclose(run.taps["embed.out"][0], want, rtol=1e-12, atol=1e-14)
