"""Rules of single families that no vector shows, each worked out by hand or by another path."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from numsim.errors import NumsimError, UnsupportedError
from numsim.kernels.elementwise import functions
from numsim.models import Past, load_model
from numsim.models.arch import Growth, Moe, Rope
from numsim.models.attention import query_growth
from numsim.models.config import read_arch
from numsim.models.experts import route
from numsim.models.families import FAMILIES
from numsim.models.places import At, find_place
from numsim.models.rope import alibi_bias, alibi_slopes, rotary_frequencies, turns_anew
from numsim.sweep import sweep

DATA = pathlib.Path(__file__).parents[1] / "data"
PUBLISHED = DATA / "families"


def changed(name, into, drop=(), extra=None, **changes):
    """Load a published folder with changed keys and tensors."""
    config = json.loads((PUBLISHED / name / "config_v4.json").read_text()) | changes
    config = {k: v for k, v in config.items() if v != "absent"}
    (into / "config.json").write_text(json.dumps(config))
    tensors = load_file(PUBLISHED / name / "model.safetensors") | (extra or {})
    save_file({k: v for k, v in tensors.items() if k not in drop}, into / "model.safetensors")
    return load_model(into)


def read(name, **changes):
    config = json.loads((PUBLISHED / name / "config_v4.json").read_text()) | changes
    config = {k: v for k, v in config.items() if v != "absent"}
    return read_arch(config, FAMILIES[config["model_type"]])


def test_slopes_of_six_heads_are_those_of_four_and_then_every_second_of_eight():
    assert alibi_slopes(4) == (2**-2, 2**-4, 2**-6, 2**-8)
    assert alibi_slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)
    assert alibi_slopes(1) == (2**-8,)
    assert np.allclose(alibi_slopes(16), 2.0 ** (-np.arange(1, 17) / 2), rtol=1e-15)


def test_a_linear_bias_of_keys_is_one_of_distances():
    """Softmax does not see what all keys of a row share."""
    scores = np.random.default_rng(1).normal(size=(2, 5, 5))
    slopes, keys, last = (0.5, 0.125), np.arange(5), np.arange(1, 6)
    got = functions.softmax(scores, bias=alibi_bias(slopes, keys, 5), last=last)
    distance = -np.abs(keys[None] - keys[:, None]) * np.array(slopes)[:, None, None]
    want = functions.softmax(scores, bias=distance, last=last)
    assert np.allclose(got, want, rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "counts_kept"), [("bloom", True), ("falcon_rw", True), ("mpt", False)]
)
def test_a_gap_in_the_mask_moves_the_bias_where_positions_count_kept_tokens(name, counts_kept):
    """Bloom and Falcon number kept tokens; MPT numbers all."""
    model = load_model(PUBLISHED / name)
    ids = np.array([[5, 9, 11, 7]])
    gap = model.run(ids, attention_mask=[[1, 0, 1, 1]]).logits[0, -1]
    alone = model.run(ids[:, [0, 2, 3]]).logits[0, -1]
    assert np.allclose(gap, alone, rtol=1e-12) == counts_kept
    if counts_kept:  # and padding on the left changes nothing
        left = model.run([[3, 5, 11, 7]], attention_mask=[[0, 1, 1, 1]]).logits[0, 1:]
        assert np.allclose(left, model.run([[5, 11, 7]]).logits[0], rtol=1e-12)


def test_a_sink_is_one_more_score_without_a_key():
    x = np.array([[[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]] * 2)
    sinks, last = np.array([0.25, -4.0]), np.array([2, 3])
    got = functions.softmax(x, scale=0.5, sinks=sinks, last=last)
    for head in range(2):
        for t in range(2):
            e = np.exp(np.append(x[head, t, : last[t]] * 0.5, sinks[head]))
            assert np.allclose(got[head, t, : last[t]], e[:-1] / e.sum(), rtol=1e-14)
    none = functions.softmax(x, sinks=np.full(2, -np.inf))
    assert np.array_equal(none, functions.softmax(x))
    unseen = functions.softmax(x, sinks=sinks, keep=np.zeros((1, 3), bool))
    assert np.array_equal(unseen, np.zeros_like(x))  # all weight is the sink's


def test_queries_grow_with_the_logarithm_of_whole_stretches():
    got = query_growth(Growth(every=4, by=0.1), np.array([0, 2, 3, 6, 7, 11]))
    want = 1 + 0.1 * np.log([1, 1, 2, 2, 3, 4])
    assert np.allclose(got, want, rtol=1e-15)


def masks(model, ids, **given):
    """Return which keys each token sees in each layer, [layers, T, S]."""
    run = model.run(ids, taps=["layers.*.softmax.out"], **given)
    return [run.taps[f"layers.{i}.softmax.out"][0, 0] > 0 for i in range(model.arch.layers)]


def test_chunks_windows_and_windows_to_both_sides():
    t = np.arange(13)
    before, distance = t[None] <= t[:, None], t[:, None] - t[None]
    llama4 = masks(load_model(PUBLISHED / "llama4_text"), t[None] + 5)
    for i in range(3):
        assert np.array_equal(llama4[i], before & (t[None] // 5 == t[:, None] // 5))
    assert np.array_equal(llama4[3], before)
    modern = masks(load_model(PUBLISHED / "modernbert"), t[None] + 5)
    assert modern[0].all()
    assert np.array_equal(modern[1], np.abs(distance) <= 4)  # half of local_attention
    gemma = masks(load_model(PUBLISHED / "gemma3_text"), t[None] + 5)
    assert np.array_equal(gemma[0], before & (distance < 4))
    assert np.array_equal(gemma[1], before)


def test_chunks_count_from_the_first_token_so_padding_on_the_left_is_refused():
    model = load_model(PUBLISHED / "llama4_text")
    with pytest.raises(UnsupportedError, match="chunks of attention count from it"):
        model.run([[5, 6, 7]], attention_mask=[[0, 1, 1]])
    model.run([[5, 6, 7]], attention_mask=[[1, 1, 0]])


def test_longrope_divides_by_its_short_list_up_to_the_original_length():
    rope = Rope(1e4, 4, kind="longrope", longest=8, short=(1.0, 2.0), long=(4.0, 5.0))
    assert np.allclose(rotary_frequencies(rope, 8), [1, 0.01 / 2], rtol=1e-15)
    assert np.allclose(rotary_frequencies(rope, 9), [1 / 4, 0.01 / 5], rtol=1e-15)
    assert not turns_anew(rope, 0, 20)
    assert turns_anew(rope, 8, 9)
    assert not turns_anew(rope, 9, 10)


def test_longrope_reads_its_original_length_beside_the_table():
    table = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = read("phi3_longrope_long", rope_scaling=table).rope
    assert (rope.longest, rope.short, rope.long) == (8, (1.0,) * 4, (2.0,) * 4)
    assert np.isclose(rope.amplitude, np.sqrt(1 + np.log(512 / 8) / np.log(8)), rtol=1e-15)
    early = read("phi3_longrope_long", rope_scaling=table | {"type": "su"}).rope
    assert early == rope
    told = read("phi3_longrope_long", rope_scaling=table | {"attention_factor": 0.75}).rope
    assert told.amplitude == 0.75
    for wrong in ([1.0] * 3, [1.0] * 3 + [0.0], "x", [1.0] * 3 + ["x"]):
        with pytest.raises(NumsimError, match="long_factor must be 4 numbers above 0"):
            read("phi3_longrope_long", rope_scaling=table | {"long_factor": wrong})


def test_a_sequence_that_grows_beyond_the_original_length_turns_every_key_anew(tmp_path):
    """Generation runs over everything there; a past across it is an error."""
    model = load_model(PUBLISHED / "phi3_longrope_long")
    ids = [5, 9, 11, 7, 20, 31]  # 6 of at most 8
    got = model.generate(ids, max_new_tokens=6)
    whole = list(ids)
    for _ in range(6):
        whole.append(int(model.run([whole]).logits[0, -1].argmax()))
    assert got.tolist() == whole
    past = Past()
    model.run([ids], past=past)
    with pytest.raises(NumsimError, match="longrope rotary scaling turns all keys anew beyond 8"):
        model.run([[1, 2, 3]], past=past)


def test_groups_of_deepseek_v2_count_by_their_best_expert_and_those_of_v3_by_two():
    logits = np.log([[0.5, 0.01, 0.3, 0.29]])  # groups {0, 1} and {2, 3}
    shared = {"normalise": False, "groups": 2, "top_groups": 1}
    best = Moe(4, 1, 8, group_best=1, **shared)
    assert route(logits, best, None)[0].tolist() == [[0]]
    assert route(logits, Moe(4, 1, 8, **shared), None)[0].tolist() == [[2]]
    greedy = read("deepseek_v2", n_group=3, topk_group=1)
    assert greedy.moe.groups == 1  # topk_method says greedy
    limited = read("deepseek_v2", n_group=3, topk_group=2, topk_method="group_limited_greedy")
    assert (limited.moe.groups, limited.moe.top_groups) == (3, 2)
    with pytest.raises(NumsimError, match="topk_method must be greedy or group_limited_greedy"):
        read("deepseek_v2", topk_method="noaux_tc")


def test_softmax_over_the_chosen_is_not_that_over_all():
    chosen, weights = route(np.log([[4.0, 1.0, 3.0]]), Moe(3, 2, 8, "softmax_chosen"), None)
    assert chosen.tolist() == [[0, 2]]
    assert np.allclose(weights, [[4 / 7, 3 / 7]], rtol=1e-15)


def test_two_experts_with_a_score_of_one_are_told_apart_by_their_logits():
    moe = Moe(3, 1, 8, "sigmoid", normalise=False, weighs_input=True)
    assert route(np.array([[40.0, 60.0, 1.0]]), moe, None)[0].tolist() == [[1]]


def test_which_layers_have_experts():
    four = {"num_hidden_layers": 4}
    assert read("qwen3_moe", **four, decoder_sparse_step=2).moe.dense == (0, 2)
    assert read("qwen3_moe", **four, mlp_only_layers=[1, 9]).moe.dense == (1,)
    assert read("llama4_text", moe_layers=[0]).moe.dense == (1, 2, 3)
    assert read("llama4_text", interleave_moe_layer_step=1).moe.dense == ()
    with pytest.raises(NumsimError, match="mlp_only_layers must be a list of layers"):
        read("qwen3_moe", mlp_only_layers=["1"])


def test_layers_without_rotary_positions():
    """A 1 in no_rope_layers means with them; the list wins over the interval."""

    def turned(arch):
        return [rope is not None for rope in arch.layer_ropes] or [True] * arch.layers

    assert turned(read("smollm3", no_rope_layers=[0, 1, 0, 1])) == [False, True, False, True]
    interval = {"no_rope_layers": "absent", "no_rope_layer_interval": 2}
    assert turned(read("smollm3", **interval)) == [True, False, True, False]
    assert turned(read("cohere2")) == [True, True, False]  # the third sees everything
    with pytest.raises(NumsimError, match="no_rope_layers must be a 1"):
        read("smollm3", no_rope_layers=[1, 1])


def test_two_bases_and_which_of_them_is_scaled():
    linear = {"type": "linear", "factor": 8.0}
    local, full = read("gemma3_text", rope_scaling=linear).layer_ropes[:2]
    assert (local.theta, local.kind, full.theta, full.kind) == (1e4, "default", 1e6, "linear")
    local, full = read("olmo3", rope_scaling=linear, rope_theta=77.0).layer_ropes
    # transformers gives the older key to the layers that see everything, and no other
    assert (local.theta, local.kind, full.theta, full.kind) == (5e5, "default", 77.0, "linear")
    full, local = read("modernbert", rope_scaling=linear).layer_ropes[:2]
    assert (local.theta, local.kind, full.theta, full.kind) == (1e4, "linear", 16e4, "linear")
    with pytest.raises(NumsimError, match="rope_parameters must be a table for each of"):
        read("gemma3_text", rope_parameters={"rope_theta": 5.0})


def test_positions_of_roberta_begin_behind_the_pad_id_and_those_of_mpnet_at_two(tmp_path):
    ids = [[5, 1, 3, 1]]
    model = changed("roberta", tmp_path, pad_token_id=3)
    table = model.tensors["position.weight"].astype(np.float64)
    assert model.arch.positions == 34 - 4
    got = embedded(model, ids)
    assert np.allclose(got, table[[4, 5, 3, 6]], atol=1e-12)  # the pad has the row of its id
    mpnet = changed("mpnet", tmp_path, pad_token_id=3)  # not read: padding is 1
    table = mpnet.tensors["position.weight"].astype(np.float64)
    assert np.allclose(embedded(mpnet, ids), table[[2, 1, 3, 1]], atol=1e-12)
    with pytest.raises(NumsimError, match="max_position_embeddings must be above pad_token_id"):
        changed("roberta", tmp_path, pad_token_id=40)


def embedded(model, ids):
    """Return what positions add, [T, H]: the norm after the sum is undone by its own inputs."""
    weights = {k: model.tensors[k].astype(np.float64) for k in model.tensors if "layers" not in k}
    want = weights["embed.weight"][ids[0]]
    if "token_type.weight" in weights:
        want = want + weights["token_type.weight"][0]
    out = model.run(ids, taps=["embed.out"]).taps["embed.out"][0]
    table = weights["position.weight"]
    rows = []
    for t in range(len(ids[0])):
        x = want[t] + table  # every row that could have been added
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + model.arch.norm_eps)
        y = y * weights["embed_norm.weight"] + weights["embed_norm.bias"]
        rows.append(table[np.abs(y - out[t]).max(-1).argmin()])
    return np.array(rows)


def test_an_untied_masked_head_reads_the_bias_of_its_own_product(tmp_path):
    stored = load_file(PUBLISHED / "roberta_mlm" / "model.safetensors")
    own = {
        "lm_head.decoder.weight": stored["roberta.embeddings.word_embeddings.weight"],
        "lm_head.decoder.bias": stored["lm_head.bias"] + 1,
    }
    tied = load_model(PUBLISHED / "roberta_mlm").run([[5, 6]]).logits
    assert np.array_equal(changed("roberta_mlm", tmp_path, extra=own).run([[5, 6]]).logits, tied)
    untied = changed("roberta_mlm", tmp_path, extra=own, tie_word_embeddings=False)
    assert np.allclose(untied.run([[5, 6]]).logits, tied + 1, atol=2e-3)  # float16 rounds the 1


def test_what_predicts_masked_tokens_predicts_no_next_one():
    model = load_model(PUBLISHED / "bert_mlm")
    assert model.run([[5, 6]]).logits.shape == (1, 2, 64)
    for call in (lambda: model.nll([5, 6]), lambda: model.generate([5], max_new_tokens=1)):
        with pytest.raises(UnsupportedError, match="bert has no head of the next token"):
            call()


def test_three_layouts_of_falcon_are_one_entry():
    """[group: queries, key, value], in one group, in two, and in one for each head."""
    names = FAMILIES["falcon"].names
    for folder, groups, width in (
        ("falcon_7b", 1, 48),
        ("falcon_40b", 2, 32),
        ("falcon_rw", 4, 24),
    ):
        model = load_model(PUBLISHED / folder)
        whole = load_file(PUBLISHED / folder / "model.safetensors")
        fused = whole["transformer.h.0.self_attention.query_key_value.weight"].astype(np.float64)
        grouped = fused.reshape(groups, width // 8, 8, 32)
        for part, at in (("q", slice(0, -2)), ("k", slice(-2, -1)), ("v", slice(-1, None))):
            got = model.tensors[f"layers.0.{part}_proj.weight"].astype(np.float64)
            assert np.array_equal(got, grouped[:, at].reshape(-1, 32)), (folder, part)
    assert names["layers.{i}.q_proj"].by == "head"
    with pytest.raises(NumsimError, match="parallel_attn must be true"):
        read("falcon_40b", parallel_attn=False)
    with pytest.raises(NumsimError, match="num_ln_in_parallel_attn must be 1 or null"):
        read("falcon_7b", num_ln_in_parallel_attn=2)


def test_gate_and_up_of_gpt_oss_alternate_and_experts_are_stored_turned():
    model = load_model(PUBLISHED / "gpt_oss")
    whole = load_file(PUBLISHED / "gpt_oss" / "model.safetensors")
    fused = whole["model.layers.1.mlp.experts.gate_up_proj"]  # [experts, in, 2 out]
    biases = whole["model.layers.1.mlp.experts.gate_up_proj_bias"]
    for part, first in (("gate_proj", 0), ("up_proj", 1)):
        name = f"layers.1.experts.2.{part}"
        assert np.array_equal(model.tensors[f"{name}.weight"], fused[2, :, first::2].T)
        assert np.array_equal(model.tensors[f"{name}.bias"], biases[2, first::2])
        assert model.tensors[f"{name}.weight"].base is not None  # mapped, not copied


def test_parts_of_one_tensor_are_rows_of_its_groups():
    arch = read("falcon_40b")
    shapes = {f"layers.0.{p}_proj.weight": (n, 32) for p, n in (("q", 32), ("k", 16), ("v", 16))}
    names = {f"layers.{{i}}.{p}_proj": At("{p}w.{i}", parts=("q_proj", "k_proj", "v_proj"),
                                          by="head") for p in "qkv"}  # fmt: skip
    place = find_place("layers.0.k_proj.weight", names, "x.", shapes, arch)
    assert place[:5] == ("x.w.0.weight", 32, 16, 24, 2)
    assert place.stored_shape((16, 32)) == (64, 32)
    assert np.array_equal(place.take(np.arange(64)), [*range(16, 24), *range(48, 56)])


def test_a_stored_head_of_t5_counts_whatever_the_config_says_of_ties(tmp_path):
    """transformers 5 writes tie_word_embeddings true for all of them."""
    model = load_model(PUBLISHED / "mt5")
    assert not model.arch.tied
    assert model.arch.head_scale == 1.0
    given = {"decoder_tokens": [[0, 5]]}
    tied = changed("mt5", tmp_path, drop=["lm_head.weight"])
    assert tied.arch.tied
    assert not np.array_equal(
        tied.run([[5, 6]], **given).logits, model.run([[5, 6]], **given).logits
    )


def test_missing_experts_and_layers_are_listed(tmp_path):
    lost = "model.layers.1.mlp.experts.3.up_proj.weight"
    with pytest.raises(NumsimError, match=rf"1 problem:\n  missing {lost} \[24, 32\]"):
        changed("qwen3_moe", tmp_path, drop=[lost])
    with pytest.raises(NumsimError, match=r"problems:\n  missing model\.layers\.2\."):
        changed("qwen3_moe", tmp_path, num_hidden_layers=3)
    with pytest.raises(NumsimError, match=r"gate_up_proj has shape \[4, 32, 64\], expected \[5,"):
        changed("gpt_oss", tmp_path, num_local_experts=5)


def test_a_table_of_mpt_says_what_is_computed(tmp_path):
    table = {"alibi": True, "clip_qkv": 0.5, "softmax_scale": 0.25, "alibi_bias_max": 16}
    arch = read("mpt", attn_config=table)
    assert (arch.clip_qkv, arch.attn_scale, arch.alibi) == (0.5, 0.25, 1.0)
    assert read("mpt", attn_config=table | {"clip_qkv": 0}).clip_qkv is None
    for key, value in (("alibi", False), ("qk_ln", True), ("prefix_lm", True)):
        with pytest.raises(UnsupportedError, match=f"attn_config.{key} must be"):
            read("mpt", attn_config=table | {key: value})
    with pytest.raises(NumsimError, match=r"attn_config must .*unknown: zzz"):
        read("mpt", attn_config=table | {"zzz": 1})


def test_gpt_oss_without_a_rotary_table_has_that_of_the_family():
    rope = read("gpt_oss", rope_scaling="absent", rope_theta="absent").rope
    assert (rope.kind, rope.theta, rope.factor, rope.longest) == ("yarn", 150000.0, 32.0, 4096)
    assert not rope.truncate


def test_the_clamp_of_gpt_oss_is_one_sided_for_the_gate(tmp_path):
    """By NumPy, on what the products of one expert gave."""
    model = changed("gpt_oss", tmp_path, swiglu_limit=0.25, swiglu_alpha=1.5)
    run = model.run(np.arange(5, 14)[None], taps=["layers.0.experts.*"])
    e = next(n.split(".")[3] for n in run.taps)
    gate, up, down = (run.taps[f"layers.0.experts.{e}.{p}_proj.{end}"] for p, end in (
        ("gate", "biased"), ("up", "biased"), ("down", "in")))  # fmt: skip
    assert gate.max() > 0.25
    assert gate.min() < -0.25
    assert np.abs(up).max() > 0.25
    g = np.minimum(gate, 0.25)
    want = g / (1 + np.exp(-1.5 * g)) * (np.clip(up, -0.25, 0.25) + 1)
    assert np.allclose(down, want, rtol=1e-13)


def test_an_encoder_decoder_without_its_head_has_no_text_task(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(4, 40))
    with pytest.raises(UnsupportedError, match="this bart has no head of the next token"):
        sweep({"model": DATA / "twins" / "bart_1", "text": tmp_path / "ids.npy",
               "formats": ["int8"], "targets": ["ideal.int"]})  # fmt: skip


@pytest.mark.parametrize("name", ["bert_mlm", "roberta_mlm", "mpnet", "modernbert"])
def test_an_encoder_is_swept_by_the_embeddings_of_its_texts(tmp_path, name):
    """Also one with a masked-language head."""
    np.save(tmp_path / "ids.npy", np.arange(4, 28).reshape(4, 6))
    rows = sweep({"model": PUBLISHED / name, "text": tmp_path / "ids.npy", "formats": ["int8"],
                  "targets": ["ideal.int"], "granularities": ["per_tensor"]})  # fmt: skip
    whole = rows[rows.layer == "all"]
    assert 0.99 < whole.embedding_cosine.item() < 1


@pytest.mark.parametrize(("name", "head"), [("roberta_mlm", "lm_head."), ("bert_mlm", "cls.")])
def test_a_masked_class_without_its_head_is_a_trunk_with_its_pooler(tmp_path, name, head):
    """As all-distilroberta-v1 and its like are stored."""
    whole = load_model(PUBLISHED / name)
    lost = [k for k in load_file(PUBLISHED / name / "model.safetensors") if k.startswith(head)]
    prefix = name.partition("_")[0]
    pooler = {
        f"{prefix}.pooler.dense.weight": np.eye(32, dtype=np.float32),
        f"{prefix}.pooler.dense.bias": np.ones(32, np.float32),
    }
    model = changed(name, tmp_path, drop=lost, extra=pooler)
    run, want = model.run([[5, 6, 7]]), whole.run([[5, 6, 7]])
    assert run.logits.shape == (1, 3, 0)
    assert np.array_equal(run.hidden_states[-1], want.hidden_states[-1])
    assert np.allclose(run.pooled, np.tanh(want.hidden_states[-1][:, 0] + 1), rtol=1e-13)
    both = changed(name, tmp_path, extra=pooler).run([[5, 6, 7]])
    assert np.array_equal(both.logits, want.logits)
    assert np.array_equal(both.pooled, run.pooled)
    one = [k for k in lost if "dense.weight" in k]
    with pytest.raises(NumsimError, match=rf"1 problem:\n  missing {one[0]}"):
        changed(name, tmp_path, drop=one)
