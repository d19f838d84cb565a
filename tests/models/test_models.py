"""Llama end to end: a NumPy twin, the bundled model, checkpoints that must be refused."""

import json
import pathlib
import shutil

import ml_dtypes
import numba
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from numsim import metrics
from numsim.data import bundled_model_dir, bundled_text
from numsim.errors import NumsimError, UnsupportedError
from numsim.models import Past, Recipe, Rule, load_model, load_text_tools
from numsim.models import run as run_module
from numsim.models.gemm import packed_bytes
from numsim.models.memory import OperandCache, block_bytes, held_bytes, release, rows_of
from numsim.quant import QTensor, Quant, quantize
from numsim.targets import matmul

ORACLE = pathlib.Path(__file__).parents[1] / "data" / "oracle" / "llama"
CONFIG = json.loads((ORACLE / "config_v4.json").read_text())
FP32 = Recipe.uniform(None, target="ideal.fp32")


@pytest.fixture(scope="module")
def bundled():
    return load_model(bundled_model_dir())


@pytest.fixture(scope="module")
def windows():
    ids = Tokenizer.from_file(str(bundled_model_dir() / "tokenizer.json")).encode(
        bundled_text(), add_special_tokens=False
    )
    count = len(ids.ids) // 255
    body = np.array(ids.ids[: count * 255]).reshape(count, 255)
    return np.concatenate([np.zeros((count, 1), np.int64), body], axis=1)


def random_tensors(config, seed=0):
    """Random weights for a config, by the names of transformers; written apart from numsim."""
    rng = np.random.default_rng(seed)
    h, inter = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv, d = config.get("num_key_value_heads", heads), config.get("head_dim") or h // heads
    t = {"model.embed_tokens.weight": (config["vocab_size"], h), "model.norm.weight": (h,)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        t |= {p + "input_layernorm.weight": (h,), p + "post_attention_layernorm.weight": (h,)}
        for name, out, into in (
            ("self_attn.q_proj", heads * d, h), ("self_attn.k_proj", kv * d, h),
            ("self_attn.v_proj", kv * d, h), ("self_attn.o_proj", h, heads * d),
            ("mlp.gate_proj", inter, h), ("mlp.up_proj", inter, h), ("mlp.down_proj", h, inter),
        ):  # fmt: skip
            t[f"{p}{name}.weight"] = (out, into)
            if config["attention_bias" if "attn" in name else "mlp_bias"]:
                t[f"{p}{name}.bias"] = (out,)
    if not config["tie_word_embeddings"]:
        t["lm_head.weight"] = (config["vocab_size"], h)
    return {k: (rng.standard_normal(s) / 3).astype(np.float32) for k, s in t.items()}


def checkpoint(folder, tensors=None, **changes):
    config = {k: v for k, v in (CONFIG | changes).items() if v != "absent"}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(config) if tensors is None else tensors
    save_file(tensors, folder / "model.safetensors")
    return folder


def twin(config, w, ids, keep=None):
    """A Llama in plain NumPy float64, one sequence."""
    w = {k: v.astype(np.float64) for k, v in w.items()}
    heads = config["num_attention_heads"]
    kv = config.get("num_key_value_heads") or heads
    d = config.get("head_dim") or config["hidden_size"] // heads
    n = len(ids)
    angle = np.outer(np.arange(n), config["rope_theta"] ** (-np.arange(0, d, 2) / d))
    cos, sin = np.cos(np.hstack([angle] * 2)), np.sin(np.hstack([angle] * 2))
    seen = np.tril(np.ones((n, n), bool)) & (True if keep is None else np.asarray(keep, bool))

    def norm(x, g):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * w[g]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    def split(x, count):
        return x.reshape(n, count, d).swapaxes(0, 1)

    def turn(x):
        return x * cos + np.concatenate([-x[..., d // 2 :], x[..., : d // 2]], -1) * sin

    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        y = norm(x, p + "input_layernorm.weight")
        q, k, v = (linear(y, f"{p}self_attn.{s}_proj") for s in "qkv")
        q, k = turn(split(q, heads)), turn(split(k, kv)).repeat(heads // kv, 0)
        s = np.where(seen, q @ k.swapaxes(1, 2) / np.sqrt(d), -1e300)
        e = np.exp(s - s.max(-1, keepdims=True)) * seen
        a = e / np.maximum(e.sum(-1, keepdims=True), 1e-300) @ split(v, kv).repeat(heads // kv, 0)
        x = x + linear(a.swapaxes(0, 1).reshape(n, -1), p + "self_attn.o_proj")
        y = norm(x, p + "post_attention_layernorm.weight")
        g = linear(y, p + "mlp.gate_proj")
        x = x + linear(g / (1 + np.exp(-g)) * linear(y, p + "mlp.up_proj"), p + "mlp.down_proj")
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, "model.norm.weight") @ head.T


def close(got, want, tolerance=2e-5):
    want = np.asarray(want)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"mlp_bias": True, "tie_word_embeddings": True},
        {"head_dim": "absent"},
        {"head_dim": None, "num_key_value_heads": "absent"},
        {"head_dim": 10, "rope_theta": 500000.0, "rms_norm_eps": 1e-2},
        {"num_key_value_heads": 6, "architectures": "absent"},
    ],
)
def test_every_switch_against_the_numpy_twin(tmp_path, changes):
    folder = checkpoint(tmp_path, **changes)
    config = json.loads((folder / "config.json").read_text())
    ids = np.arange(11) * 7 % 96
    got = load_model(folder).run(ids).logits
    close(got, twin(config, random_tensors(config), ids)[None], 1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_stored_types(tmp_path, dtype):
    tensors = {k: v.astype(dtype) for k, v in random_tensors(CONFIG).items()}
    model = load_model(checkpoint(tmp_path, tensors))
    assert model.tensors["layers.1.q_proj.weight"].dtype == dtype
    close(model.run([1, 2, 3]).logits, twin(CONFIG, tensors, [1, 2, 3])[None], 1e-12)


def test_padding_mask(tmp_path):
    model = load_model(checkpoint(tmp_path))
    ids = np.arange(20).reshape(2, 10)
    keep = np.ones((2, 10), int)
    keep[0, 7:], keep[1, :3] = 0, 0
    got = model.run(ids, attention_mask=keep).logits
    for row in range(2):
        want = twin(CONFIG, random_tensors(CONFIG), ids[row], keep[row])
        close(got[row][keep[row] == 1], want[keep[row] == 1], 1e-12)
    assert np.array_equal(got[0, :7], model.run(ids[0, :7]).logits[0])
    for bad in (np.ones((1, 10)), np.full((2, 10), 2)):
        with pytest.raises(NumsimError, match="attention_mask"):
            model.run(ids, attention_mask=bad)


def test_bundled_perplexity(bundled, windows):
    """The first 16 of 64 windows; figures of an independent NumPy float64 Llama."""
    assert windows.shape == (64, 256)
    reference, plain = [], []
    for start in (0, 8):
        part = windows[start : start + 8]
        reference.append(metrics.token_nll(bundled.run(part).logits, part))
        plain.append(metrics.token_nll(bundled.run(part, FP32).logits, part))
    assert metrics.perplexity(reference) == pytest.approx(38.32102824863949, rel=1e-6)
    assert np.abs(np.array(reference) - plain).max() < 5e-5


def test_token_losses_pair_between_recipes(bundled, windows):
    tools = load_text_tools(bundled_model_dir())
    assert np.array_equal(tools.windows(bundled_text(), 256), windows)
    assert tools.windows("one two", 256).shape == (1, 1 + len(tools.ids("one two")))
    assert tools.windows(bundled_text(), 16, limit=31).shape == (2, 16)
    part, recipe = windows[:5, :24], Recipe.uniform("int8", target="ideal.int")
    reference, case = bundled.nll(part), bundled.nll(part, recipe, batch=2)
    assert (reference.shape, reference.dtype) == ((5, 23), np.float64)
    assert np.array_equal(reference, metrics.token_nll(bundled.run(part).logits, part))
    for start in (0, 2, 4):  # one scale for a batch
        rows = part[start : start + 2]
        want = metrics.token_nll(bundled.run(rows, recipe).logits, rows)
        assert np.array_equal(case[start : start + 2], want)
    mean, stderr = metrics.paired_difference(reference, case)
    assert mean == pytest.approx(case.mean() - reference.mean())
    assert 0 < stderr < 0.3 * reference.std() / np.sqrt(reference.size)
    for call, match in (
        (lambda: bundled.nll([0]), "2 tokens or more"),
        (lambda: bundled.nll([0, 2048]), "vocabulary"),
        (lambda: bundled.nll([0, 1], batch=0), "batch"),
        (lambda: bundled.nll([0, 1], decoder_tokens=[1]), "left out"),
        (lambda: tools.windows("", 8), "no tokens"),
        (lambda: tools.windows("one", 1), "2 tokens or more"),
        (lambda: tools.windows("one", "8"), "2 tokens or more"),
        (lambda: tools.windows(b"one", 8), "text is a str"),
        (lambda: tools.windows("one", 8, limit=0), "limit"),
        (lambda: load_text_tools(3), "folder is a str or Path"),
        (lambda: Recipe.from_toml(3), "file is a str or Path"),
        (lambda: metrics.paired_difference([1.0], [1.0, 2.0]), "one shape"),
    ):
        with pytest.raises(NumsimError, match=match):
            call()


def test_runs_do_not_depend_on_threads_or_batch(bundled, windows):
    part = windows[:3, :40]
    recipe = Recipe.uniform(Quant("int8", "per_token"), target="ideal.fp32")
    before = numba.get_num_threads()
    for how in (None, FP32, recipe):
        whole = bundled.run(part, how).logits
        assert np.array_equal(whole[1:2], bundled.run(part[1], how).logits)
        try:
            numba.set_num_threads(1)
            assert np.array_equal(whole, bundled.run(part, how).logits)
        finally:
            numba.set_num_threads(before)


def test_quantised_run_uses_the_recipe(bundled, windows):
    part = windows[:1, :24]
    recipe = Recipe.uniform("float8_e4m3fn", target="ideal.fp32")
    run = bundled.run(part, recipe, taps=["*.in", "*.operand", "*.out"])
    assert run.logits.dtype == np.float32
    kept = len(bundled.cache.items)
    x = run.taps["layers.2.down_proj.in"]
    weight = bundled.tensors["layers.2.down_proj.weight"].astype(np.float32)
    quant = Quant("float8_e4m3fn")
    want = matmul(quantize(x[0], quant), quantize(weight, quant).T, target="ideal.fp32")
    assert np.array_equal(run.taps["layers.2.down_proj.out"][0], want)
    for name in ("layers.2.down_proj", "lm_head"):
        assert np.array_equal(
            bundled.gemm(name, run.taps[f"{name}.in"], recipe), run.taps[f"{name}.out"]
        )
    for name in ("layers.0.qk", "layers.4.pv"):
        operand = run.taps[f"{name}.operand"]
        y = bundled.gemm(name, run.taps[f"{name}.in"], recipe, operand=operand)
        assert np.array_equal(y, run.taps[f"{name}.out"])
    assert len(bundled.cache.items) == kept
    bundled.run(part, recipe)
    assert len(bundled.cache.items) == kept


def test_attention_products_can_be_quantised(bundled, windows):
    recipe = Recipe((("*", Rule()), ("*.qk", Rule("int8", "int8")), ("*.pv", Rule("e5m2", None))))
    part = windows[:1, :32]
    exact, got = bundled.run(part).logits, bundled.run(part, recipe).logits
    assert 5 < metrics.sqnr_db(exact, got) < 60


def test_what_holds_arrays_prints_as_one_line(bundled):
    past = Past()
    run = bundled.run([0, 17], past=past, taps=["embed.out"])
    assert (
        repr(run) == "Run(float64 reference, logits [1, 2, 2048], 6 hidden states [1, 2, 192], "
        "1 taps)"
    )
    assert repr(bundled.run([0], Recipe((("*", Rule()),)))).startswith("Run(emulation, logits [1,")
    assert repr(past) == "Past(2 tokens, 5 pairs of keys and values)"
    tools = load_text_tools(bundled_model_dir())
    assert repr(tools) == "TextTools(tokenizer of 2,048, begin=0, max_positions=512)"
    assert repr(tools._replace(tokenizer=None)).startswith("TextTools(no tokenizer, ")
    rows = quantize(np.ones((4, 8)), Quant("int8", "per_token"))
    assert repr(rows) == "QTensor(int8 [4, 8], scale [4, 1])"


def test_names(bundled):
    assert len(bundled.linear_names()) == 35
    assert bundled.linear_names()[:2] == ("layers.0.q_proj", "layers.0.k_proj")
    assert bundled.gemm_names()[3] == "layers.0.qk"
    assert bundled.gemm_names()[-1] == "lm_head"


def block_limit(model, recipe=None):
    """Return the bytes of the largest block: the least that a memory limit can be."""
    rules = None if recipe is None else recipe.check(model.gemm_names())
    return max(block_bytes(packed_bytes(model.tensors, rules, model.gemm_names())).values())


@pytest.mark.parametrize(
    "recipe",
    [
        None,
        Recipe((("*", Rule()),)),
        Recipe((("*", Rule("float8_e4m3fn", "float8_e4m3fn", "nvidia.hopper.wgmma")),)),
        Recipe.uniform("mxfp4_e2m1", target="ideal.fp32"),
    ],
    ids=["float64", "float32", "fp8", "mxfp4"],
)
def test_a_memory_limit_gives_the_same_bits(bundled, recipe):
    """Weights of earlier layers make room, and are made again in the next run."""
    least = block_limit(bundled, recipe)
    limit = least + least // 50  # `needs` leaves out a few kilobytes
    model = load_model(bundled_model_dir(), memory_limit=limit)
    want = bundled.run([0, 5, 9], recipe).logits
    for _ in range(2):
        assert np.array_equal(model.run([0, 5, 9], recipe).logits, want)
        assert model.cache.used_bytes <= limit
        kept = {key[0] for key in model.cache.items}
        assert "lm_head.weight" in kept
        assert "layers.0.q_proj.weight" not in kept
    small = load_model(bundled_model_dir(), memory_limit=least - 1)
    with pytest.raises(NumsimError, match=f"needs about {least:,} bytes; got {least - 1:,}"):
        small.run([0, 5, 9], recipe)


def test_the_cache_counts_what_it_holds(bundled):
    """FP8 weights take one byte, a code as stored, or another one as the unit reads it."""
    model = load_model(bundled_model_dir())
    model.run([0, 5, 9], Recipe.uniform("float8_e4m3fn", target="nvidia.hopper.wgmma"))
    for key, (value, size, _) in model.cache.items.items():
        if isinstance(value, QTensor):
            weights = model.tensors[key[0]].size
            assert weights <= size == held_bytes(value) <= 2 * weights + 4096
    assert model.cache.used_bytes == sum(size for _, size, _ in model.cache.items.values())


def test_rows_of_the_same_tokens_are_read_once(bundled, monkeypatch):
    """A sweep runs the same tokens in every case; others are read anew and take their place."""
    model, read = load_model(bundled_model_dir()), []
    monkeypatch.setattr(run_module, "rows_of", lambda t, ids: read.append(ids) or rows_of(t, ids))
    first = model.run([0, 5, 9]).logits
    assert np.array_equal(model.run([0, 5, 9]).logits, first)
    tables = len(read)
    other = model.run([0, 5, 8]).logits
    assert np.array_equal(other, load_model(bundled_model_dir()).run([0, 5, 8]).logits)
    assert np.array_equal(model.run([0, 5, 9]).logits, first)
    assert 0 < tables < len(read)
    assert model.cache.used_bytes == sum(size for _, size, _ in model.cache.items.values())


def test_hidden_states_are_the_callers_own(bundled):
    """Rows of the embedding are kept for the next run: what it gives, no caller can change."""
    model = load_model(bundled_model_dir())
    first = model.run([0, 5, 9], taps=["embed.out"])
    want = [state.copy() for state in first.hidden_states]
    for state in (*first.hidden_states, first.taps["embed.out"]):
        state[...] = 7
    again = model.run([0, 5, 9]).hidden_states
    assert all(np.array_equal(x, y) for x, y in zip(again, want, strict=True))


def test_rows_that_cannot_be_read_leave_the_count_right():
    cache, ids = OperandCache(), np.arange(3)
    cache.latest("rows", ids, lambda: np.ones(4))
    cache.get("other", lambda: 8, lambda: 1)
    cache.latest("rows", ids, lambda: np.zeros(4))
    assert list(cache.items) == ["other", "rows"], "what was used last makes room last"

    def broken():
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        cache.latest("rows", ids + 1, broken)
    assert cache.used_bytes == sum(size for _, size, _ in cache.items.values())


def test_the_last_array_of_a_key_is_kept_read_only():
    cache, one, two = OperandCache(limit_bytes=100), np.arange(3), np.arange(3) + 1
    kept = cache.latest("rows", one, lambda: np.ones(4))
    assert cache.latest("rows", one.copy(), lambda: np.zeros(4)) is kept
    assert not kept.flags.writeable
    assert cache.used_bytes == kept.nbytes + one.nbytes
    assert cache.latest("rows", two, lambda: np.zeros(4)).sum() == 0
    assert cache.latest("rows", one, lambda: np.zeros(40)).size == 40
    assert (cache.used_bytes, len(cache.items)) == (0, 0), "one beyond the limit is not kept"


@pytest.mark.parametrize("limit", [0, -1, True, 2.5, "4 TB", "many", "", "0.1"])
def test_a_memory_limit_is_a_size(limit):
    with pytest.raises(NumsimError, match="memory_limit: a positive number of bytes"):
        load_model(bundled_model_dir(), memory_limit=limit)


def test_rows_of_a_table():
    table, ids = np.arange(60).reshape(20, 3), np.arange(20).reshape(2, 10)[::-1]
    assert np.array_equal(rows_of(table, ids), table[ids])


def test_given_back_pages_are_read_again():
    model = load_model(bundled_model_dir())
    for tensor in model.tensors.values():
        before = tensor.copy()
        release(tensor)
        assert not tensor.flags.writeable
        assert np.array_equal(tensor, before)
    release(np.zeros(100_000))  # not mapped: nothing to give back


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m.run([0, 2048]), "vocabulary of 2048; got 2048"),
        (lambda m: m.run([-1]), "from 0 to 2047, the vocabulary of 2048; got -1"),
        (lambda m: m.run([0.5]), "integer"),
        (lambda m: m.run([]), "non-empty"),
        (lambda m: m.run([[[0]]]), r"\[1, 1, 1\]"),
        (lambda m: m.run([0], token_type_ids=[0]), "token_type_ids"),
        (lambda m: m.run([0], decoder_tokens=[0]), "decoder_tokens"),
        (lambda m: m.run([0], taps=["layers.0.q_prj.in"]), "did you mean layers.0.q_proj.in"),
        (lambda m: m.generate([0], max_new_tokens=-1), "max_new_tokens"),
        (lambda m: m.gemm("layers.0.q", np.zeros((1, 192))), "did you mean"),
        (lambda m: m.gemm("layers.0.qk", np.zeros((1, 32))), "operand"),
        (lambda m: m.gemm("lm_head", np.zeros((1, 192)), operand=np.zeros((192, 2))), "leave out"),
        (lambda m: m.gemm("lm_head", np.zeros((1, 191))), "192 elements"),
        (
            lambda m: m.gemm("layers.0.qk", np.zeros((2, 3, 4)), operand=np.zeros((3, 4, 5))),
            "leading dimensions",
        ),
        (lambda m: m.run([[0, 1], [2]]), "tokens must be a rectangular array"),
        (lambda m: m.run([0], attention_mask=[[1], [1, 0]]), "attention_mask must be a rectang"),
        (lambda m: m.run([0], attention_mask=["x"]), "0 or 1"),
        (lambda m: m.run([0], token_type_ids=[[1], [1, 0]]), "token_type_ids"),
        (lambda m: m.run([0], decoder_tokens=[[1], [1, 0]]), "decoder_tokens"),
        (lambda m: m.run([0], taps=[3]), "taps is an iterable of names"),
        (lambda m: m.run([0], taps=None), "taps is an iterable of names"),
        (lambda m: m.run([0], past={}), "past is a numsim.models.Past"),
        (lambda m: m.run([0], "int8"), "recipe is a Recipe"),
        (lambda m: m.generate([0], max_new_tokens=1.5), "max_new_tokens"),
        (lambda m: m.generate([0], max_new_tokens="3"), "max_new_tokens"),
        (lambda m: m.generate([0], max_new_tokens=True), "max_new_tokens"),
        (lambda m: m.gemm(3, np.zeros((1, 192))), "name must be"),
        (lambda m: m.gemm("lm_head", "a"), "x must be a rectangular array"),
        (lambda m: m.gemm("lm_head", [[1.0], [1.0, 2.0]]), "x must be a rectangular array"),
        (lambda m: m.gemm("lm_head", np.ones((1, 192), complex)), "real numbers .* got complex128"),
        (lambda m: m.gemm("lm_head", [["1"] * 192]), "real numbers .* got str"),
        (lambda m: m.gemm("lm_head", np.ones((1, 192), object)), "real numbers .* got object"),
        (lambda m: m.gemm("lm_head", np.ones((1, 192), bool)), "real numbers .* got bool"),
        (
            lambda m: m.gemm("layers.0.qk", np.ones((1, 2)), operand=np.ones((2, 3), complex)),
            "operand must be a rectangular array of real numbers",
        ),
        (lambda m: m.gemm("layers.0.qk", np.ones((1, 0)), operand=np.ones((0, 3))), "K above 0"),
        (lambda m: m.gemm("layers.0.qk", np.zeros((1, 32)), operand=3), "operand must be"),
        (lambda m: m.gemm("layers.0.qk", np.zeros((1, 2)), operand=[[1], []]), "operand must be"),
        (lambda m: m.run([0], Recipe((("layers.*", Rule()),))), "lm_head matches no glob"),
        (lambda m: m.run([0], Recipe((("*", Rule()), ("layer.*", Rule())))), "matches none"),
    ],
)
def test_wrong_calls(bundled, call, match):
    with pytest.raises(NumsimError, match=match):
        call(bundled)


SR = Quant("int8", "per_token", rounding="sr")


@pytest.mark.parametrize(
    "rule",
    [
        None,
        Rule(),
        Rule("int8", "int8", "ideal.int"),
        Rule(SR, SR, "ideal.int"),
        Rule("float8_e4m3fn", "float8_e4m3fn", "nvidia.hopper.wgmma"),
        Rule("nvfp4", "nvfp4", "ideal.fp32"),
    ],
)
def test_products_of_no_rows_or_columns_are_empty(bundled, rule):
    recipe = None if rule is None else Recipe((("*", rule),))
    for shape in ((0, 192), (2, 0, 192), (0, 3, 192)):
        y = bundled.gemm("lm_head", np.ones(shape), recipe)
        assert (y.shape, y.dtype.itemsize) == ((*shape[:-1], 2048), 8 if rule is None else 4)
    for left, right in (
        ((0, 16), (16, 5)),
        ((3, 16), (16, 0)),
        ((2, 0, 16), (2, 16, 5)),
        ((0, 3, 16), (0, 16, 5)),
    ):
        y = bundled.gemm("layers.0.pv", np.ones(left), recipe, operand=np.ones(right))
        assert y.shape == (*left[:-1], right[-1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.int4, np.uint8, ">f4"])
def test_products_take_every_real_type(bundled, dtype):
    x = np.arange(192).reshape(1, 192) % 7
    want = bundled.gemm("lm_head", x)
    assert np.array_equal(bundled.gemm("lm_head", x.astype(dtype)), want)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"model_type": "lama"}, UnsupportedError, "LlamaForCausalLM is a class of llama"),
        ({"model_type": None}, UnsupportedError, "model_type"),
        ({"sliding_window": 5}, UnsupportedError, "sliding_window must be None for llama; got 5"),
        ({"quantization_config": {}}, NumsimError, "quantization_config"),
        ({"hidden_act": "gelu_nwe"}, UnsupportedError, "did you mean gelu_new"),
        ({"hidden_size": "absent"}, NumsimError, "hidden_size is required"),
        ({"hidden_size": "48"}, NumsimError, "of type int; got '48'"),
        ({"hidden_size": True}, NumsimError, "of type int"),
        ({"num_hidden_layers": 0}, NumsimError, "above 0"),
        ({"rms_norm_eps": float("nan")}, NumsimError, "rms_norm_eps"),
        ({"attention_bias": 1}, NumsimError, "of type bool"),
        ({"head_dim": None, "num_attention_heads": 7}, NumsimError, "multiple"),
        ({"head_dim": 7}, NumsimError, "even number"),
        ({"num_key_value_heads": 4}, NumsimError, "multiple"),
        ({"rope_scaling": {"type": "longer", "factor": 2.0}}, UnsupportedError, "longer"),
        ({"rope_scaling": {"type": "linear"}}, NumsimError, "factor is required"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, NumsimError, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2}}, NumsimError, "factor"),
        ({"rope_parameters": {"rope_theta": 5.0}}, NumsimError, "rope_theta"),
        ({"rope_parameters": {"full": {}}}, NumsimError, "full"),
        ({"rope_scaling": "linear"}, NumsimError, "table"),
        ({"architectures": ["LlamaForTokenClassification"]}, UnsupportedError, "other heads"),
        ({"is_encoder_decoder": True}, UnsupportedError, "is_encoder_decoder"),
        ({"architectures": 5}, NumsimError, "a list of names; got 5"),
        ({"architectures": [["x"]]}, NumsimError, "a list of names"),
        ({"max_position_embeddings": "x"}, NumsimError, "max_position_embeddings"),
        ({"rope_scaling": {"type": "yarn", "factor": "x"}}, NumsimError, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": "x"}}, NumsimError, "mscale"),
        (
            {"rope_theta": 1.0, "rope_scaling": {"type": "yarn", "factor": 2.0}},
            NumsimError,
            "rope_theta above 1",
        ),
        (
            {"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            NumsimError,
            "more than 2 elements",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 1e-6}}, NumsimError, "radians"),
        ({"rope_theta": 1e-300}, NumsimError, "radians"),
    ],
)
def test_wrong_configs(tmp_path, changes, error, match):
    config = {k: v for k, v in (CONFIG | changes).items() if v != "absent"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=match):
        load_model(tmp_path)


def test_wrong_tensors_are_listed_together(tmp_path):
    tensors = random_tensors(CONFIG)
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
    tensors["model.norm.weight"] = np.zeros(47, np.float32)
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.zeros(8, np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    tensors["model.rotary_emb.other"] = np.zeros(4, np.int8)  # no weight, and so not packed
    with pytest.raises(NumsimError) as caught:
        load_model(checkpoint(tmp_path, tensors))
    text = str(caught.value)
    assert "5 problems" in text
    assert "missing model.layers.1.mlp.up_proj.weight [112, 48]" in text
    assert "missing lm_head.weight" in text
    assert "model.norm.weight has shape [47], expected [48]" in text
    assert "surplus model.layers.0.self_attn.q_norm.weight" in text
    assert "surplus model.rotary_emb.other [4]" in text


def test_ignored_and_tied_tensors(tmp_path):
    tensors = random_tensors(CONFIG)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    load_model(checkpoint(tmp_path, tensors))
    with pytest.raises(UnsupportedError, match="tie_word_embeddings"):
        load_model(checkpoint(tmp_path, tensors, tie_word_embeddings=True))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    load_model(checkpoint(tmp_path, tensors, tie_word_embeddings=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_must_be_finite(tmp_path, bad):
    tensors = random_tensors(CONFIG)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = bad
    with pytest.raises(NumsimError, match=r"layers\.0\.mlp\.up_proj\.weight has 1 NaN or Inf"):
        load_model(checkpoint(tmp_path, tensors))


def test_wrong_folders(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(NumsimError, match="did you mean model"):
        load_model(tmp_path / "modl")
    (tmp_path / "mode.txt").write_text("")
    with pytest.raises(NumsimError, match=r"did you mean model$"):  # a file is no folder
        load_model(tmp_path / "modl")
    with pytest.raises(NumsimError, match=r"is a file; give the folder it lies in$"):
        load_model(tmp_path / "mode.txt")
    with pytest.raises(NumsimError, match=r"must hold config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(NumsimError, match="must be JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(NumsimError, match="must be JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"a":' * 100000)
    with pytest.raises(NumsimError, match="must be JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(NumsimError, match="table"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(NumsimError, match="has none"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(NumsimError, match="safe_serialization"):
        load_model(tmp_path)
    whole = (ORACLE / "model.safetensors").read_bytes()
    for content in (b"", b"\xff" * 16, whole[:9000]):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(NumsimError, match="whole safetensors file"):
            load_model(tmp_path)


def test_unaligned_file(tmp_path):
    raw = (ORACLE / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].rstrip() + b" "
    header += b" " * (3 - len(header) % 4)
    checkpoint(tmp_path)
    data = len(header).to_bytes(8, "little") + header + raw[8 + size :]
    (tmp_path / "model.safetensors").write_bytes(data)
    want = load_model(ORACLE)
    for how in (None, FP32, Recipe.uniform("int8", target="ideal.fp32")):
        assert np.array_equal(
            load_model(tmp_path).run([1, 2], how).logits, want.run([1, 2], how).logits
        )


def test_shards(tmp_path):
    tensors = random_tensors(CONFIG)
    want = load_model(checkpoint(tmp_path / "whole", tensors)).run([3, 1, 4]).logits
    folder = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole", folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, mine in parts.items():
        save_file({k: tensors[k] for k in mine}, folder / file)
    with pytest.raises(NumsimError, match="2 files without it"):
        load_model(folder)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: file for file, mine in parts.items() for name in mine}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert np.array_equal(load_model(folder).run([3, 1, 4]).logits, want)
    for entry, match in (
        ({names[0]: "../whole/model.safetensors"}, "its own folder"),
        ({names[0]: "/etc/passwd"}, "its own folder"),
        ({names[0]: 3}, "its own folder"),
        ({names[0]: "c.safetensors"}, "is missing"),
        ({names[0]: "b.safetensors"}, "is not in b.safetensors"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map | entry}))
        with pytest.raises(NumsimError, match=match):
            load_model(folder)
    index.write_text("{}")
    with pytest.raises(NumsimError, match="weight_map"):
        load_model(folder)
