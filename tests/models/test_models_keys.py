"""Keys of published configs, packed checkpoints, the hub's cache: accepted, refused, or said."""

import dataclasses
import json
import math
import pathlib
import shutil

import numpy as np
import pytest

import numsim as ns
from numsim.cli import main
from numsim.data import bundled_model_dir
from numsim.errors import ConfigKeyWarning, NumsimError, UnsupportedError
from numsim.models import load_model, load_text_tools
from numsim.models.families import FAMILIES
from numsim.models.hub import hub_cache
from numsim.models.keys import COMMON_KEYS, SHARED_FIXED, UNUSED_KEYS
from numsim.models.rope_keys import yarn_growth

ORACLE = pathlib.Path(__file__).parents[1] / "data" / "oracle"


def checkpoint(into, family="llama", spelling="config_v4.json", **changes):
    config = json.loads((ORACLE / family / spelling).read_text()) | changes
    into.mkdir(exist_ok=True)
    (into / "config.json").write_text(json.dumps(config))
    shutil.copy(ORACLE / family / "model.safetensors", into)
    return into


# family, keys of a published config that transformers does not read
PUBLISHED = [
    ("llama", {"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}}),  # SmolLM2
    ("llama", {"model_max_length": 4096, "pad_token": "<pad>"}),
    ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 262144}}),  # Qwen2.5-1M
    ("qwen3", {"classifier_from_token": ["no", "yes"], "is_original_qwen3_reranker": True}),
    ("bert", {"sentence_transformers": {"version": "5.0"}}),  # rerankers of 2025
    ("bert", {"matryoshka_dimensions": [384, 128], "transformers.js_config": {}}),
    ("bert", {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}),
    ("gpt2", {"author": "x", "created_date": "2021-04-28", "license": "CC-BY-NC-SA 4.0"}),
    ("gpt_neox", {"custom_pipelines": {"text-generation": {}}}),  # dolly
    ("t5", {"chronos_config": {"context_length": 512}}),
    ("mistral", {"num_steps": 1000, "use_flash_attn": True, "bf16": True}),
]


@pytest.mark.parametrize(("family", "changes"), PUBLISHED)
def test_keys_of_other_software_are_accepted_in_one_warning(tmp_path, family, changes):
    with pytest.warns(ConfigKeyWarning) as caught:
        model = load_model(checkpoint(tmp_path, family, **changes))
    assert len(caught) == 1
    assert all(f"{key} (" in str(caught[0].message) for key in changes)
    assert caught[0].filename == __file__
    assert model.unused_keys == tuple(sorted(changes))
    assert model.arch == load_model(ORACLE / family).arch


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"output_past": True, "xla_device": None, "eos_token_ids": 0}),
        ("bert", {"output_past": True, "num_labels": 2, "gradient_checkpointing": False}),
        ("llama", {"sliding_window": None, "use_sliding_window": False, "hidden_dropout": 0.0}),
        ("qwen2", {"is_causal": True, "use_logn_attn": False, "dropout": 0.0}),
        ("opt", {"learned_embeddings": True, "scale_embeddings": False}),  # Galactica
        ("mistral", {"max_new_tokens": 9, "keys_to_ignore_at_inference": ["past_key_values"]}),
    ],
)
def test_keys_that_transformers_writes_and_reads_nowhere_are_accepted_silently(
    tmp_path, family, changes
):
    assert load_model(checkpoint(tmp_path, family, **changes)).unused_keys == ()


def test_no_key_is_in_two_lists():
    assert not COMMON_KEYS & set(SHARED_FIXED)
    assert not set(UNUSED_KEYS) & (set(SHARED_FIXED) | COMMON_KEYS)
    for family in FAMILIES.values():
        read = {key.name for key in family.keys.values()} | set(family.fixed)
        assert not read & set(UNUSED_KEYS)
        assert not read & COMMON_KEYS - {"decoder_start_token_id", "pad_token_id"}


@pytest.mark.parametrize(
    ("family", "changes", "match"),
    [
        ("qwen2", {"is_causal": False}, "is_causal must be True or None"),
        ("llama", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("llama", {"sliding_window": 4096}, "sliding_window must be None for llama"),
        ("qwen2", {"use_logn_attn": True}, "use_logn_attn must be False"),
        ("opt", {"scale_embeddings": True}, "scale_embeddings must be False"),
    ],
)
def test_keys_that_decide_numbers_are_refused_with_their_meaning(tmp_path, family, changes, match):
    with pytest.raises(UnsupportedError, match=match):
        load_model(checkpoint(tmp_path, family, **changes))


def test_an_unknown_key_stops_and_can_be_set_aside_by_name(tmp_path):
    folder = checkpoint(tmp_path, zzz_scale=2.0, **{"a.b": 1})
    with pytest.raises(
        NumsimError, match=r"unknown: a\.b, zzz_scale; .*--ignore-keys a\.b,zzz_sca"
    ):
        load_model(folder)
    with pytest.raises(NumsimError, match=r"unknown: a\.b; "):
        load_model(folder, ignore_keys=["zzz_scale"])
    for asked in (["a.b", "zzz_scale", "not_there"], "a.b, zzz_scale,not_there"):
        model = load_model(folder, ignore_keys=asked)
        assert model.ignored_keys == ("a.b", "zzz_scale")
    with pytest.raises(NumsimError, match="rope_theta decides what the network computes"):
        load_model(folder, ignore_keys="a.b,zzz_scale,rope_theta")
    for bad in (3, [3], [""], b"a", {"a": 1}, None):
        with pytest.raises(NumsimError, match="ignore_keys: names of keys"):
            load_model(folder, ignore_keys=bad)


def test_a_sweep_records_the_keys_it_ignored_and_those_nobody_reads(tmp_path, capsys, monkeypatch):
    shutil.copytree(bundled_model_dir(), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    extra = {"zzz": 1, "license": "mit"}
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    arguments = (
        "numsim sweep --formats int8 --granularity per_tensor --targets ideal.int --limit-tokens 64"
        f" --model {tmp_path / 'm'} --out {tmp_path / 'r.csv'}"
    ).split()
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "--ignore-keys zzz" in capsys.readouterr().err
    spec = {
        "model": tmp_path / "m", "formats": ["int8"], "granularities": ["per_tensor"],
        "targets": ["ideal.int"], "limit_tokens": 64,
    }  # fmt: skip
    with pytest.warns(ConfigKeyWarning, match="license"):
        rows = ns.sweep(spec | {"ignore_keys": ["zzz", "not_there"]})
    assert set(rows.ignored_keys) == {"zzz"}
    assert rows[rows.layer == "all"].unused_keys.tolist() == ["license"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"zzz": 2}))
    with pytest.warns(ConfigKeyWarning, match="license"):
        again = ns.sweep(spec | {"ignore_keys": ["zzz"]})
    assert again.kl_nats.dropna().tolist() == rows.kl_nats.dropna().tolist()


def test_attn_factor_has_two_readings_and_one_is_chosen(tmp_path):
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    plain = load_model(checkpoint(tmp_path, rope_scaling=yarn)).arch.rope
    both = yarn | {"attn_factor": 1.0, "extrapolation_factor": 1, "finetuned": True}
    assert load_model(checkpoint(tmp_path, rope_scaling=both)).arch.rope == plain
    folder = checkpoint(tmp_path, rope_scaling=yarn | {"attn_factor": 0.5})
    value = yarn_growth(4.0) * 0.5
    with pytest.raises(UnsupportedError, match=r"two readings: transformers .*vLLM multipl") as e:
        load_model(folder)
    assert "--ignore-keys rope_scaling.attn_factor or --ignore-keys rope" in str(e.value)
    ignoring = load_model(folder, ignore_keys=["rope_scaling.attn_factor"])
    assert ignoring.arch.rope == plain
    assert ignoring.ignored_keys == ("rope_scaling.attn_factor",)
    theirs = load_model(folder, ignore_keys="rope_scaling.attn_factor=transformers")
    assert (theirs.arch, theirs.ignored_keys) == (ignoring.arch, ignoring.ignored_keys)
    key = "rope_scaling.attn_factor=vllm"
    with_vllm = load_model(folder, ignore_keys=key.replace("vllm", "vLLM"))
    assert with_vllm.arch.rope == dataclasses.replace(plain, amplitude=value)
    assert with_vllm.ignored_keys == (key,)
    assert load_model(folder, ignore_keys=with_vllm.ignored_keys).arch == with_vllm.arch
    newer = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attn_factor": 0.5}
    folder2 = checkpoint(tmp_path, rope_scaling=None, rope_parameters=newer)
    model = load_model(folder2, ignore_keys="rope_parameters.attn_factor=vllm")
    assert model.arch.rope.amplitude == value
    folder = checkpoint(tmp_path, rope_scaling=yarn | {"attn_factor": 0.5})
    with pytest.raises(NumsimError, match="read as transformers or vllm does; got 'sglang'"):
        load_model(folder, ignore_keys="rope_scaling.attn_factor=sglang")
    with pytest.raises(NumsimError, match="attn_factor must be of type float; got 'x'"):
        load_model(checkpoint(tmp_path, rope_scaling=yarn | {"attn_factor": "x"}), ignore_keys=key)
    plain_model = load_model(checkpoint(tmp_path, rope_scaling=yarn), ignore_keys=key)
    assert (plain_model.arch.rope, plain_model.ignored_keys) == (plain, ())
    multiplied = checkpoint(tmp_path, rope_scaling=yarn | {"attention_factor": value})
    assert load_model(multiplied).arch.rope.amplitude == 0.5 * plain.amplitude
    with pytest.raises(NumsimError, match=r"unknown: beta; .*--ignore-keys rope_scaling\.beta "):
        load_model(checkpoint(tmp_path, rope_scaling=yarn | {"beta": 2}))


def test_numbers_are_limited_by_what_they_mean(tmp_path):
    rope = load_model(checkpoint(tmp_path, rope_theta=3580165449)).arch.rope  # published
    assert rope.theta == 3580165449.0
    windowed = checkpoint(tmp_path, "mistral", sliding_window=2**40)
    assert load_model(windowed).arch.windows == (2**40,) * 2
    run, whole = (
        load_model(windowed),
        load_model(checkpoint(tmp_path, "mistral", sliding_window=99)),
    )
    assert np.array_equal(run.run([1, 2, 3]).logits, whole.run([1, 2, 3]).logits)
    for key, bad in (
        ("rope_theta", math.inf), ("rope_theta", math.nan), ("rope_theta", 0), ("rope_theta", -1.0),
        ("rope_theta", 10**400), ("rms_norm_eps", 1e39), ("rms_norm_eps", -1e-6),
        ("rms_norm_eps", 10**400), ("intermediate_size", 2**63), ("intermediate_size", 10**4000),
        ("num_attention_heads", 10**400), ("vocab_size", -(10**400)), ("hidden_size", 1e300),
        ("max_position_embeddings", 10**400), ("num_hidden_layers", 10**4000),
    ):  # fmt: skip
        with pytest.raises(NumsimError, match=key) as caught:
            load_model(checkpoint(tmp_path, **{key: bad}))
        assert len(str(caught.value)) < 400


def test_no_message_tells_a_user_to_take_the_file_he_has(tmp_path):
    for changes in ({"rope_theta": -1}, {"num_hidden_layers": 3}, {"hidden_act": 3}):
        with pytest.raises(NumsimError) as caught:
            load_model(checkpoint(tmp_path, **changes))
        assert "came with the weights" not in str(caught.value)
        assert "from the same checkpoint" not in str(caught.value)


def cached(cache, name="org/tiny", revision="0123abcd", main=True):
    """Put the bundled model into a hub cache, as links to blobs."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for path in bundled_model_dir().iterdir():
        blob = repository / "blobs" / path.name
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
    return repository


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hf" / "hub"


def test_a_name_of_the_hub_is_found_in_the_local_cache(cache):
    cached(cache)
    model = load_model("org/tiny")
    assert model.name == "org/tiny"
    assert model.arch == load_model(bundled_model_dir()).arch
    assert load_text_tools("org/tiny").begin == 0
    rows = ns.sweep(
        {"model": "org/tiny", "formats": ["int8"], "targets": ["ideal.int"], "limit_tokens": 64,
         "granularities": ["per_tensor"]}
    )  # fmt: skip
    assert set(rows.model) == {"org/tiny"}
    cached(cache, "gpt2")
    assert load_model("gpt2").name == "gpt2"


def test_a_folder_of_that_name_comes_before_the_cache(cache):
    cached(cache)
    shutil.copytree(bundled_model_dir(), "org/tiny")
    assert load_model("org/tiny").name == "tiny"


def test_a_name_that_the_cache_lacks_says_how_to_download_it(cache):
    with pytest.raises(
        NumsimError, match=r"holds no model of that name; hf download org/tiny puts"
    ):
        load_model("org/tiny")
    cached(cache)
    with pytest.raises(NumsimError, match="did you mean org/tiny; hf download org/tinny"):
        load_model("org/tinny")
    with pytest.raises(NumsimError, match=r"not a folder, nor cached in .*hub is written ORG/NAME"):
        load_model("tiny")
    shutil.copytree(bundled_model_dir(), "models/tiny")
    with pytest.raises(NumsimError, match="which is not a folder; did you mean tiny"):
        load_model("models/tinny")


def test_the_revision_of_main_is_meant_or_the_only_one(cache):
    repository = cached(cache, main=False)
    assert load_model("org/tiny").arch.layers == 5
    cached(cache, revision="4567", main=False)
    with pytest.raises(NumsimError, match="must say which revision is meant"):
        load_model("org/tiny")
    (repository / "refs").mkdir()
    main = repository / "refs" / "main"
    main.write_text("4567\n")
    assert load_model("org/tiny").name == "org/tiny"
    for bad in ("89ab", "../../..", "", "\udc80".encode(errors="surrogatepass").decode("latin-1")):
        main.write_text(bad)
        with pytest.raises(NumsimError, match="hf download org/tiny repairs the cache"):
            load_model("org/tiny")


def test_the_cache_is_where_huggingface_hub_looks(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_cache() == tmp_path / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert hub_cache() == pathlib.Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert hub_cache() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", "$HOME/old")
    assert hub_cache() == tmp_path / "old"
    monkeypatch.setenv("HF_HUB_CACHE", "/y")
    assert hub_cache() == pathlib.Path("/y")


@pytest.mark.parametrize(
    "key", ["rope_theta", "rope_type", "factor", "beta_fast", "attention_factor", "mscale_all_dim"]
)
def test_no_key_of_a_rotary_table_that_is_read_can_be_ignored(tmp_path, key):
    # without rope_theta 500000 the family's 10000 was computed, and nobody said so
    table = {
        "rope_theta": 500000.0, "rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0,
        "attention_factor": 1.5, "mscale_all_dim": 0.5,
    }  # fmt: skip
    for group, more in (
        ("rope_parameters", {"spelling": "config.json"}), ("rope_scaling", {"rope_theta": 5e5})
    ):  # fmt: skip
        folder = checkpoint(tmp_path, **more, **{group: table})
        assert load_model(folder).arch.rope.theta == 500000.0
        with pytest.raises(NumsimError, match=f"{group}.{key} decides what the network computes"):
            load_model(folder, ignore_keys=[f"{group}.{key}"])
    linear = {"type": "linear", "factor": 2.0, "zzz": 1, "beta_fast": 3.0}
    folder = checkpoint(tmp_path, rope_scaling=linear)  # beta_fast is no key of this type
    model = load_model(folder, ignore_keys="rope_scaling.zzz,rope_scaling.beta_fast")
    assert model.arch.rope.factor == 2.0
    with pytest.raises(NumsimError, match=r"rope_scaling\.type decides"):
        load_model(folder, ignore_keys="rope_scaling.type,rope_scaling.factor")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_link_of_the_cache_is_not_a_missing_file(cache, name):
    # "the folder has no tokenizer.json; add it" of one that has it, cut off from its blob
    folder = cached(cache) / "snapshots" / "0123abcd"
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../../blobs/gone")
    with pytest.raises(NumsimError, match=f"{name} is a link to nothing"):
        load_text_tools("org/tiny")
    assert load_model("org/tiny").name == "org/tiny"


def test_a_damaged_cache_offers_no_model_by_its_own_name(cache):
    repository = cached(cache)
    for revision in ("..", ".", "../..", "-x", ""):
        (repository / "refs" / "main").write_text(revision)
        with pytest.raises(NumsimError, match="repairs the cache"):
            load_model("org/tiny")
    shutil.rmtree(repository / "snapshots")
    with pytest.raises(NumsimError, match="hf download org/tiny puts it there") as found:
        load_model("org/tiny")
    assert "did you mean" not in str(found.value)
