"""`numsim pack`: what it writes reads back, here and by the library whose format it is."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import numsim as ns
from numsim.cli import main
from numsim.data import bundled_model_dir
from numsim.errors import LeftOutWarning, NumsimError, UnsupportedError
from numsim.models import Recipe, Rule, load_model, pack
from numsim.quant import Quant

FP8, FP4 = "float8_e4m3fn", "float4_e2m1fn"
FAMILIES = Path(__file__).parents[2] / "data" / "families"
IDS = (np.arange(24)[None] * 7) % 2048
MX = {"block": 32, "scale_format": "float8_e8m0fnu"}
NVFP4 = Quant(FP4, block=16, scale_format=FP8)

# name -> weights, activations (None: wide), format of compressed-tensors
CASES = {
    "fp8 tensor": (Quant(FP8), Quant(FP8), "float-quantized"),
    "fp8 static": (Quant(FP8), Quant(FP8, scale=0.02), "float-quantized"),
    "fp8 channel": (Quant(FP8, "per_channel"), Quant(FP8, "per_token"), "float-quantized"),
    "fp8 blocks": (Quant(FP8, block=(128, 128)), Quant(FP8, block=128), "float-quantized"),
    "int8": (Quant("int8", "per_channel"), Quant("int8", "per_token"), "int-quantized"),
    "int8 zeros": (
        Quant("int8", "per_channel", zero_point=True),
        Quant("int8", "per_token", zero_point=True), "int-quantized",
    ),
    "int4": (Quant("int4", block=32), None, "pack-quantized"),
    "int4 rows": (Quant("int4", "per_channel"), Quant("int8", "per_token"), "pack-quantized"),
    "int4 zeros": (Quant("int4", block=32, zero_point=True), None, "pack-quantized"),
    "int3": (Quant("int3", block=64, scale_format="bfloat16"), None, "pack-quantized"),
    "mxfp4": (Quant(FP4, **MX), Quant(FP4, **MX, scale_rule="even"), "mxfp4-pack-quantized"),
    "mxfp6": (Quant("float6_e2m3fn", **MX), None, "mxfp6-pack-quantized"),
    "mxfp8": (Quant(FP8, **MX), Quant(FP8, **MX, scale_rule="even"), "mxfp8-quantized"),
    "nvfp4": (NVFP4, NVFP4, "nvfp4-pack-quantized"),
}  # fmt: skip


def uniform(weights, activations=None):
    return Recipe.uniform(None, target="ideal.fp32", weights=weights, activations=activations)


@pytest.fixture(scope="module")
def bundled():
    return load_model(bundled_model_dir())


@pytest.fixture(scope="module")
def written(bundled, tmp_path_factory):
    """Return a folder for each case, written once."""
    folders = {}
    for name, (weights, activations, _) in CASES.items():
        folders[name] = tmp_path_factory.mktemp("packed") / name.replace(" ", "_")
        pack(bundled, uniform(weights, activations), folders[name])
    return folders


@pytest.mark.parametrize("name", CASES)
def test_what_is_packed_is_what_the_recipe_stores(bundled, written, name):
    weights, activations, word = CASES[name]
    model, recipe = load_model(written[name]), uniform(weights, activations)
    table = json.loads((written[name] / "config.json").read_text())["quantization_config"]
    assert table["format"] == word
    for product in bundled.linear_names():
        got = model.tensors[f"{product}.weight"]
        above = None if got.tensor_scale is None else float(got.tensor_scale)
        tensor = bundled.tensors[f"{product}.weight"]
        want = ns.quantize(tensor, dataclasses.replace(weights, scale=above))
        assert np.array_equal(got.codes, want.codes)
        assert np.array_equal(got.scale, want.scale)
        assert np.array_equal(got.dequantize(), want.dequantize())
        if above is not None:  # the file holds its reciprocal
            own = ns.quantize(tensor, weights).tensor_scale
            assert abs(got.tensor_scale - own) <= np.spacing(own)
    if activations is not None and word != "nvfp4-pack-quantized":
        logits = bundled.run(IDS, recipe).logits
        assert np.array_equal(model.run(IDS, model.recipe()).logits, logits)
    assert (model.recipe() is None) == (activations is None)


def test_stochastic_weights_are_drawn_as_in_a_run(bundled, tmp_path):
    """A run on what is packed gives the bits of a run that rounds: the same draws."""
    recipe = Recipe.uniform(
        None, target="ideal.fp32", weights=Quant("int4", block=32, rounding="sr"), seed=3
    )
    pack(bundled, recipe, tmp_path / "m")
    stored = uniform(Quant("int4", block=32))
    logits = load_model(tmp_path / "m").run(IDS, stored).logits
    assert np.array_equal(logits, bundled.run(IDS, recipe).logits)


def test_files_beside_the_weights_are_copied_and_old_tables_are_not(written):
    names = {path.name for path in written["int4"].iterdir()}
    beside = {p.name for p in bundled_model_dir().iterdir() if p.suffix != ".safetensors"}
    assert names == beside | {"model.safetensors"}


def test_a_packed_checkpoint_keeps_its_codes_when_it_is_packed_again(written, tmp_path):
    model = load_model(written["int4 zeros"])
    pack(model, uniform(Quant("int4", block=32, zero_point=True)), tmp_path / "again")
    again = load_model(tmp_path / "again")
    for name in model.linear_names():
        first, second = (m.tensors[f"{name}.weight"] for m in (model, again))
        assert np.array_equal(first.codes, second.codes)
        assert np.array_equal(first.zero_point, second.zero_point)
    pack(model, uniform(Quant("int8", "per_channel")), tmp_path / "other")
    other = load_model(tmp_path / "other").tensors["layers.0.q_proj.weight"]
    plain = model.tensors["layers.0.q_proj.weight"].dequantize()
    assert np.array_equal(other.codes, ns.quantize(plain, Quant("int8", "per_channel")).codes)


def test_rules_of_their_own_become_groups_of_modules(bundled, tmp_path):
    four, eight = Quant("int4", block=32), Quant(FP8, "per_channel")
    recipe = Recipe((
        ("*", Rule()), ("layers.*_proj", Rule(None, four)),
        ("layers.1.*_proj", Rule(Quant(FP8, "per_token"), eight)),
    ))  # fmt: skip
    packed = pack(bundled, recipe, tmp_path / "m")
    assert len(packed) == 35
    model = load_model(tmp_path / "m")
    assert model.recipe().rule("layers.1.q_proj") == Rule(Quant(FP8, "per_token"), eight)
    assert model.recipe().rule("layers.2.q_proj") == Rule(None, four)
    assert model.recipe().rule("lm_head").is_plain
    assert np.array_equal(model.run(IDS, model.recipe()).logits, bundled.run(IDS, recipe).logits)


REFUSED = [
    (uniform("float8_e5m2"), "compressed-tensors stores int2 to int8, float8_e4m3fn"),
    (uniform(Quant("int8", "none")), "stores a scale; got granularity 'none'"),
    (uniform("uint4"), "stores int2 to int8"),
    (uniform("q3.4"), "stores int2 to int8"),
    (uniform(Quant(FP4, block=16)), "blocks of 32 and E8M0 scales, and NVFP4"),
    (uniform("nvfp4_row"), "NVFP4 with one scale a tensor .*tensor_scale='per_token'"),
    (uniform("if4"), "NVFP4 with one scale a tensor .*scale_rule='if4'"),
    (uniform("nvfp4", "nvfp4_4over6"), "or to NVFP4, to nearest"),
    (uniform("int8", Quant(FP4, **MX)), "to MX by the scale rule 'even'"),
    (uniform("int8", Quant("int8", "per_token", rounding="rtz")), "to nearest even"),
    (uniform("int8", Quant("int8", block=(8, 8))), "by tensor, token or group"),
    (Recipe((("*", Rule()), ("*.qk", Rule("int8", "int8")))), "keys and values; leave them out"),
    (Recipe((("*", Rule()), ("*_proj", Rule("int8")))), "activations without weights"),
    (Recipe((("*", Rule()), ("lm_head", Rule(None, "int8")))), "one matrix .* got a tied one"),
]


@pytest.mark.parametrize(("recipe", "words"), REFUSED)
def test_what_compressed_tensors_has_no_words_for_is_refused(bundled, tmp_path, recipe, words):
    with pytest.raises(UnsupportedError, match=words):
        pack(bundled, recipe, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_recipe_without_weights_and_a_folder_in_use_are_refused(bundled, tmp_path):
    with pytest.raises(NumsimError, match="must store some weights"):
        pack(bundled, Recipe((("*", Rule()),)), tmp_path / "m")
    (tmp_path / "file").touch()
    for used in (tmp_path, tmp_path / "file"):
        with pytest.raises(NumsimError, match="must be new or empty"):
            pack(bundled, uniform("int8"), used)


def peer_numbers(folder, module):
    """Return the weight that compressed-tensors decompresses, in the dtype it does so."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    table = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(table)
    scheme = config.config_groups["group_0"]
    stored = {
        name.removeprefix(f"{module}."): t
        for name, t in load_file(folder / "model.safetensors").items()
        if name.startswith(f"{module}.")
    }
    kind = BaseCompressor.get_value_from_registry(scheme.format)
    made = kind.decompress(stored, scheme)["weight"]
    assert made.dtype in (torch.float32, torch.bfloat16)
    return made.to(torch.float32).numpy(), made.dtype == torch.bfloat16


@pytest.mark.parametrize("name", CASES)
def test_the_library_of_the_format_reads_the_same_weights(written, name):
    module = "model.layers.1.mlp.down_proj"
    got, rounded = peer_numbers(written[name], module)
    want = load_model(written[name]).tensors[f"{module}.weight"].dequantize()
    if rounded and name == "nvfp4":  # it rounds scale / global scale to bfloat16 on the way
        assert np.max(np.abs(got - want)) <= 2**-7 * np.max(np.abs(want))
        return
    assert np.array_equal(got, want.astype(ml_dtypes.bfloat16) if rounded else want)


def test_the_command_writes_a_folder_and_refuses_with_exit_2(tmp_path, capsys, monkeypatch):
    def called(*words):
        monkeypatch.setattr("sys.argv", ["numsim", "pack", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr()

    folder, recipe = tmp_path / "out", tmp_path / "r.toml"
    recipe.write_text(uniform(Quant("int4", block=32)).to_toml())
    code, said = called(bundled_model_dir(), "--recipe", recipe, "--out", folder)
    assert (code, said.err) == (0, "")
    assert said.out.startswith("35 weights of ")
    assert load_model(folder).tensors["layers.0.q_proj.weight"].fmt.name == "int4"
    code, said = called(folder, "--recipe", "mxfp4", "--out", tmp_path / "again")
    assert code == 0
    for word in ("e5m2", "int9", "nonsense", "missing.toml"):
        code, said = called(bundled_model_dir(), "--recipe", word, "--out", tmp_path / "no")
        assert (code, said.out) == (2, "")
        assert said.err.count("\n") == 1
        assert not (tmp_path / "no").exists()


def test_groups_that_do_not_divide_k_and_a_tied_head(bundled, tmp_path):
    """The format's own library takes whole groups, and would seek packed codes of a tied head."""
    ragged = Recipe.uniform(Quant("int4", block=50), target="ideal.fp32", activations=None)
    with pytest.raises(NumsimError, match="whole groups; got K = 192 in groups of 50"):
        pack(bundled, ragged, tmp_path / "ragged")
    whole = Recipe.uniform(Quant("int4", block=32), target="ideal.fp32", activations=None)
    pack(bundled, whole, tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]


def test_a_folder_that_reads_pictures_is_not_packed_in_part(tmp_path):
    folder = Path(__file__).parents[2] / "data" / "multimodal" / "llava"
    with pytest.warns(LeftOutWarning):
        model = load_model(folder)
    with pytest.raises(UnsupportedError, match="only the text model is read, without"):
        pack(model, uniform(Quant("int8", "per_channel")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


INT4_ROWS = Quant("int4", block=16, zero_point=True)


@pytest.mark.parametrize("family", ["phi3", "falcon_40b", "modernbert"])
@pytest.mark.parametrize(
    ("weights", "activations"),
    [(INT4_ROWS, None), (Quant("int8", "per_channel"), Quant("int8", "per_token")),
     ("mxfp8_e4m3", None)],
)  # fmt: skip
def test_rows_of_one_matrix_are_packed_together(tmp_path, family, weights, activations):
    """Queries, keys and values, one after the other or head by head."""
    model = load_model(FAMILIES / family)
    recipe = Recipe((("*", Rule()), ("*q_proj", Rule(activations, weights)),
                     ("*k_proj", Rule(activations, weights)),
                     ("*v_proj", Rule(activations, weights))))  # fmt: skip
    names = pack(model, recipe, tmp_path / "m")
    assert len(names) == model.arch.layers  # each once
    again = load_model(tmp_path / "m")
    own = again.recipe() or recipe
    assert own.rule("layers.0.v_proj").weights == recipe.rule("layers.0.v_proj").weights
    ids = np.arange(7)[None] + 4
    for name in ("layers.0.q_proj.weight", "layers.1.v_proj.weight"):
        want = ns.quantize(np.asarray(model.tensors[name], np.float32), weights)
        assert np.array_equal(again.tensors[name].codes, want.codes)
    got, want = again.run(ids, own), model.run(ids, recipe)
    assert np.array_equal(got.hidden_states[-1], want.hidden_states[-1])


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"*q_proj": "int8"}, r"holds layers.0.q_proj.weight, .*v_proj.weight, .*; got others"),
        ({"*[qk]_proj": Quant("int8", "per_channel"), "*v_proj": INT4_ROWS}, "got others"),
        ({"*[qkv]_proj": Quant("int8")}, r"scales rows apart.*granularity='per_tensor'"),
        ({"*[qkv]_proj": Quant(FP8, block=(16, 16))}, "scales rows apart"),
        ({"*[qkv]_proj": "nvfp4"}, "scales rows apart"),
    ],
)
def test_rows_of_one_matrix_by_rules_that_differ_are_refused(tmp_path, rules, words):
    recipe = Recipe((("*", Rule()), *((glob, Rule(None, quant)) for glob, quant in rules.items())))
    with pytest.raises(UnsupportedError, match=words):
        pack(load_model(FAMILIES / "phi3"), recipe, tmp_path / "m")
    assert not (tmp_path / "m").exists()


STEPS = [
    (Recipe((("*", Rule()), ("*_proj", Rule(None, "int8", rotate=64)))), "got rotate = 64"),
    (
        Recipe((("*", Rule()), ("*_proj", Rule(None, "int8")), ("*o_proj", Rule(outliers=6.0)))),
        "for layers.0.o_proj: .* got outliers = 6.0",
    ),
    (
        Recipe((("*", Rule()), ("*_proj", Rule(None, "int8"))), kv=ns.KV(key="int8")),
        "how keys and values are kept; got kv = int8",
    ),
]


@pytest.mark.parametrize(("recipe", "words"), STEPS)
def test_steps_and_caches_that_a_file_cannot_say_are_refused(bundled, tmp_path, recipe, words):
    """They were left out without a word: what was packed was another network than the recipe's."""
    with pytest.raises(UnsupportedError, match=words):
        pack(bundled, recipe, tmp_path / "m")
    assert not (tmp_path / "m").exists()
