"""Rules of single families that no oracle shows, each worked out by hand."""

import json
import math
import pathlib

import numpy as np
from safetensors.numpy import load_file, save_file

from numsim.models import load_model
from numsim.models.arch import Moe
from numsim.models.config import read_arch
from numsim.models.experts import route
from numsim.models.families import FAMILIES

ORACLE = pathlib.Path(__file__).parents[1] / "data" / "oracle"


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


def read(family, **changes):
    """Read the older spelling of an oracle's config with changed keys; "absent" drops one."""
    config = json.loads((ORACLE / family / "config_v4.json").read_text()) | changes
    return read_arch({k: v for k, v in config.items() if v != "absent"}, FAMILIES[family])


def test_which_layers_slide_where_no_list_says_so():
    """Qwen: from max_window_layers on, where use_sliding_window; Gemma 2: the even ones."""
    layers = {"num_hidden_layers": 4, "layer_types": "absent", "sliding_window": 5}
    qwen = layers | {"max_window_layers": 2, "use_sliding_window": True}
    for family in ("qwen2", "qwen3"):
        assert read(family, **qwen).windows == (None, None, 5, 5)
        assert read(family, **qwen | {"max_window_layers": 0}).windows == (5, 5, 5, 5)
        assert read(family, **qwen | {"max_window_layers": 4}).windows == ()
        assert read(family, **qwen | {"use_sliding_window": False}).windows == ()
    assert read("gemma2", **layers).windows == (5, None, 5, None)
    assert read("mistral", **layers).windows == (5, 5, 5, 5)


def test_yarn_scales_the_attention_of_deepseek_twice():
    """By the square of 0.1 mscale_all_dim ln(factor) + 1, once for queries and once for keys."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    plain = read("deepseek_v3", rope_scaling=None).attn_scale
    assert read("deepseek_v3", rope_scaling=yarn | {"mscale": 1.0}).attn_scale == plain
    both = yarn | {"mscale": 1.0, "mscale_all_dim": 0.5}
    growth = 0.05 * math.log(4) + 1
    assert math.isclose(
        read("deepseek_v3", rope_scaling=both).attn_scale, plain * growth**2, rel_tol=1e-15
    )
