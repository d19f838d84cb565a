"""Fresh random configs of every family against transformers itself, where it is installed.

    pip install -e '.[peers]'

Not needed otherwise: `test_models_families.py` holds its recorded tensors.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from numsim.models import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from make_family import make, redrawn

PEERS = "the test peers are an extra: pip install -e '.[peers]'"
torch = pytest.importorskip("torch", reason=PEERS)
transformers = pytest.importorskip("transformers", reason=PEERS)

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": False}
ORIGINAL = {"original_max_position_embeddings": 16}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DEEPSEEK = SMALL | {
    "moe_intermediate_size": 16, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 3,
    "topk_group": 2, "q_lora_rank": 12, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6, "v_head_dim": 5, "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
OPT = {
    "vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, "word_embed_proj_dim": 32,
}  # fmt: skip
T5 = {
    "vocab_size": 64, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10,
}  # fmt: skip


def rope(kind, **settings):
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, **settings}}


CASES = {
    "Llama": [
        GROUPED | rope("linear", factor=3.0),
        GROUPED | rope("dynamic", factor=2.0),
        GROUPED | rope("dynamic", factor=2.0) | {"max_position_embeddings": 8},
        GROUPED | rope("llama3", **LLAMA3, **ORIGINAL),
        GROUPED | rope("yarn", factor=4.0, **ORIGINAL),
        GROUPED | rope("yarn", factor=4.0, beta_fast=16.0, beta_slow=2.0, attention_factor=0.7,
                       truncate=False, **ORIGINAL),
        GROUPED | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
        GROUPED | {"head_dim": 10, "hidden_act": "gelu", "tie_word_embeddings": True},
    ],
    "Mistral": [GROUPED | {"sliding_window": 3}, GROUPED | {"sliding_window": None, "head_dim": 6}],
    "Qwen2": [
        GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        GROUPED | {"use_sliding_window": False, "sliding_window": 4},
        GROUPED | rope("yarn", factor=4.0, **ORIGINAL),
    ],
    "Qwen3": [
        GROUPED | {"head_dim": 12, "attention_bias": True},
        GROUPED | {"head_dim": 8, "use_sliding_window": True, "sliding_window": 3,
                   "max_window_layers": 0},
    ],
    "Gemma": [
        GROUPED | {"head_dim": 12, "num_key_value_heads": 1, "attention_bias": True},
        GROUPED | {"head_dim": 8, "tie_word_embeddings": True},
    ],
    "Gemma2": [
        GROUPED | {"head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 20},
        GROUPED | {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None,
                   "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3,
                   "hidden_activation": "gelu"},
    ],
    "Phi": [
        GROUPED | {"qk_layernorm": True},
        GROUPED | rope("default", partial_rotary_factor=1.0) | {"hidden_act": "relu"},
        GROUPED | rope("linear", factor=2.0, partial_rotary_factor=0.5),
    ],
    "OPT": [
        OPT | {"do_layer_norm_before": False},
        OPT | {"word_embed_proj_dim": 20, "do_layer_norm_before": False},
        OPT | {"word_embed_proj_dim": 20, "tie_word_embeddings": False},
        OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False,
               "activation_function": "gelu"},
        OPT | {"_remove_final_layer_norm": True},
    ],
    "GPTNeoX": [
        SMALL | {"use_parallel_residual": False, "attention_bias": False},
        SMALL | rope("default", partial_rotary_factor=1.0) | {"hidden_act": "gelu_fast"},
        SMALL | {"tie_word_embeddings": True},
    ],
    "GPT2": [
        GPT2 | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 40},
        GPT2 | {"scale_attn_weights": False, "activation_function": "relu"},
        GPT2 | {"tie_word_embeddings": False, "activation_function": "gelu"},
    ],
    "Mixtral": [
        GROUPED | {"sliding_window": 3, "num_local_experts": 3, "num_experts_per_tok": 1},
        GROUPED | {"head_dim": 6, "num_local_experts": 5, "num_experts_per_tok": 3},
    ],
    "DeepseekV3": [
        DEEPSEEK | {"q_lora_rank": None, "rope_interleave": False},
        DEEPSEEK | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "n_shared_experts": 2},
        DEEPSEEK | {"n_group": 2, "n_routed_experts": 4, "topk_group": 1, "num_hidden_layers": 3},
        DEEPSEEK | {"attention_bias": True, "first_k_dense_replace": 0}
        | rope("yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0, **ORIGINAL),
        DEEPSEEK | {"first_k_dense_replace": 2}
        | rope("yarn", factor=4.0, mscale=0.7, mscale_all_dim=1.2, beta_fast=20.0, **ORIGINAL),
    ],
    "Bert": [
        SMALL | {"hidden_act": "gelu_new", "type_vocab_size": 3},
        SMALL | {"hidden_act": "relu", "layer_norm_eps": 1e-3},
    ],
    "T5": [
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        T5 | {"feed_forward_proj": "gated-silu", "num_decoder_layers": 1},
        T5 | {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    ],
}  # fmt: skip
HEADS = {"Bert": "BertModel", "T5": "T5ForConditionalGeneration", "GPT2": "GPT2LMHeadModel"}


@pytest.mark.parametrize(
    ("family", "index"), [(f, i) for f, cases in CASES.items() for i in range(len(cases))]
)
@pytest.mark.parametrize("length", [1, 23])
def test_random_configs(tmp_path, family, index, length):
    config = getattr(transformers, f"{family}Config")(**CASES[family][index])
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(index)
    with torch.no_grad():
        theirs = getattr(transformers, HEADS.get(family, f"{family}ForCausalLM"))(config)
        theirs = redrawn(theirs.eval(), index)
        theirs.save_pretrained(tmp_path)
        ids = np.random.default_rng(index).integers(0, 64, (2, length))
        keep = np.ones((2, length), int)
        if not CASES[family][index].get("sliding_window"):  # else transformers gives NaN
            keep[1, length - length // 3 :] = 0
        given = {"attention_mask": keep}
        if family == "Bert":
            given["token_type_ids"] = ids % 2
        if family == "T5":
            given["decoder_input_ids"] = ids[:, : length // 2 + 1]
        want = theirs.double()(
            input_ids=torch.tensor(ids),
            output_hidden_states=True,
            use_cache=False,
            **{k: torch.tensor(v) for k, v in given.items()},
        )
    if "decoder_input_ids" in given:
        given["decoder_tokens"] = given.pop("decoder_input_ids")
    run = load_model(tmp_path).run(ids, **given)
    valid = ... if family == "T5" else keep.astype(bool)
    if family == "Bert":
        pairs = [(run.hidden_states[-1], want.last_hidden_state)]
        assert np.abs(run.pooled - want.pooler_output.numpy()).max() < 1e-5
    else:
        pairs = [(run.logits, want.logits)]
    if family != "T5":
        pairs += list(zip(run.hidden_states[:-1], want.hidden_states[:-1], strict=True))
    for got, expected in pairs:
        expected = expected.numpy()
        worst = np.abs(got[valid] - expected[valid]).max()
        assert worst <= 2e-5 * max(1.0, np.abs(expected[valid]).max()), json.dumps(config.to_dict())


@pytest.mark.parametrize("family", sorted(set(CASES) - {"Bert", "T5"}))
def test_prompts_padded_on_the_left(tmp_path, family):
    """In float32: in float64 transformers gives NaN where a padding token sees no key."""
    config = getattr(transformers, f"{family}Config")(**CASES[family][0])
    config._attn_implementation = config._experts_implementation = "eager"
    ids = np.random.default_rng(5).integers(0, 64, (3, 11))
    keep = np.arange(11) >= np.array([[0], [4], [9]])
    with torch.no_grad():
        theirs = getattr(transformers, HEADS.get(family, f"{family}ForCausalLM"))(config)
        theirs = redrawn(theirs.eval(), 5)
        theirs.save_pretrained(tmp_path)
        given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(keep.astype(int))}
        want = theirs(**given, use_cache=False).logits.numpy()
    got = load_model(tmp_path).run(ids, attention_mask=keep).logits
    assert np.abs(got[keep] - want[keep]).max() <= 1e-4 * max(1.0, np.abs(want[keep]).max())


@pytest.mark.parametrize("family", ["phi3", "roberta", "bart"])
def test_folders_are_made_from_their_config(tmp_path, family):
    """A folder made anew holds what numsim computes from it, in both spellings of its config."""
    spelt = Path(__file__).parents[1] / "data" / "families" / family / "config_v4.json"
    folder = tmp_path / family
    folder.mkdir()
    shutil.copy(spelt, folder)
    make(folder)
    with np.load(folder / "oracle.npz") as oracle:
        given = {name: oracle[name] for name in ("attention_mask",) if name in oracle}
        if "decoder_input_ids" in oracle:
            given["decoder_tokens"] = oracle["decoder_input_ids"]
        name = "logits" if "logits" in oracle else "last_hidden_state"
        want, ids = oracle[name], oracle["input_ids"]
    keep = given["attention_mask"].astype(bool) if name != "logits" else ...
    for spelling in ("config.json", "config_v4.json"):
        if spelling != "config.json":
            shutil.copy(folder / spelling, folder / "config.json")
        run = load_model(folder).run(ids, **given)
        got = run.logits if name == "logits" else run.hidden_states[-1]
        assert np.abs(got[keep] - want[keep]).max() <= 2e-5 * max(1.0, np.abs(want).max())
