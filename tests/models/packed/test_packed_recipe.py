"""Recipes that packed checkpoints declare, and what runs do with stored codes."""

import json

import ml_dtypes
import numpy as np
import pytest
from packing import DATA, base, dense32, packed_folder, save, scaled, some_scales
from safetensors.numpy import load_file

import numsim as ns
from numsim.errors import ConfigKeyWarning, NumsimError, UnsupportedError
from numsim.models import Recipe, Rule, load_model
from numsim.quant import QTensor, Quant
from numsim.sweep.dry import dry_lines
from numsim.sweep.grid import Entry
from numsim.sweep.prepare import prepare
from numsim.sweep.spec import as_spec
from numsim.sweep.tensors import tensor_rows

FP8 = "float8_e4m3fn"
IDS = np.arange(1, 14)[None]
Q = "layers.0.q_proj"


def test_a_static_scale_is_the_one_in_the_file():
    """448 times it saturates; the codes of one token do not depend on the others."""
    model = load_model(DATA / "ct_fp8_tensor_static")
    recipe = model.recipe()
    scale = recipe.rule(Q).activations.scale
    stored = QTensor.from_codes([0x7E], FP8, scale=scale).dequantize()
    assert ns.quantize([10.0], recipe.rule(Q).activations).dequantize() == stored
    run = model.run(IDS, recipe, taps=[f"{Q}.in"])
    q = ns.quantize(run.taps[f"{Q}.in"], recipe.rule(Q).activations)
    assert q.scale == np.float32(scale)
    exact = run.taps[f"{Q}.in"].astype(np.float64) / scale
    assert np.max(np.abs(ns.decode(q.codes, FP8) - np.clip(exact, -448, 448))) <= 16
    assert len({recipe.rule(n).activations.scale for n in model.linear_names()}) > 4


def test_the_outer_scale_of_two_levels_divides_in_one_layout_and_multiplies_in_the_other():
    for kind, name in (("ct_nvfp4", "input_global_scale"), ("modelopt_nvfp4", "input_scale")):
        model = load_model(DATA / kind)
        packed, _ = model.tensors.packed[f"{Q}.weight"]
        part = packed.parts["inputs"]
        data = model.tensors.maps[part.file][part.begin : part.end]
        level = data.view(np.float32)[0]
        want = np.float32(1) / level if kind == "ct_nvfp4" else level
        acts = model.recipe().rule(Q).activations
        assert acts.scale == want
        assert packed.layout.inputs == f".{name}"
        x = np.linspace(-3, 3, 64, dtype=np.float32)
        q = ns.quantize(x, acts)
        assert q.tensor_scale == want  # whatever x is
        assert ns.quantize(x / 4, acts).tensor_scale == want


def test_a_unit_multiplies_the_stored_codes():
    """INT8 by rows and tokens on an exact unit: the integers of the file, summed exactly."""
    model = load_model(DATA / "ct_int8_w8a8")
    recipe = Recipe.uniform(
        None, target="ideal.int", weights=Quant("int8", "per_channel"),
        activations=Quant("int8", "per_token"),
    )  # fmt: skip
    run = model.run(IDS, recipe, taps=[f"{Q}.in", f"{Q}.out"])
    a = ns.quantize(run.taps[f"{Q}.in"][0], Quant("int8", "per_token"))
    w = model.tensors[f"{Q}.weight"]
    assert (w.codes == -128).any()  # which rounding anew would not give
    exact = a.codes.astype(np.int64) @ w.codes.astype(np.int64).T
    scale = (a.scale * w.scale.T).astype(np.float32)
    assert np.array_equal(run.taps[f"{Q}.out"][0], exact.astype(np.float32) * scale)


def test_zero_points_go_through_a_unit_exactly():
    model = load_model(DATA / "ct_w4a16_asym")
    stored = Quant("int4", block=32, zero_point=True)
    recipe = Recipe((("*", Rule()), ("*_proj", Rule("int8", stored, "ideal.int"))))
    run = model.run(IDS, recipe, taps=[f"{Q}.in", f"{Q}.out"])
    a = ns.quantize(run.taps[f"{Q}.in"][0], "int8")
    w = model.tensors[f"{Q}.weight"].dequantize().astype(np.float64)
    want = a.dequantize().astype(np.float64) @ w.T
    assert np.max(np.abs(run.taps[f"{Q}.out"][0] - want)) <= 1e-5 * np.max(np.abs(want))


@pytest.mark.parametrize(
    ("kind", "weights", "told"),
    [
        ("awq", "int4", "uint4 per_block of 32 with zero points, and the rule of .* says int4"),
        ("ct_fp8_block", FP8, r"float8_e4m3fn per_block of \(128, 128\)"),
        ("gptq_act_order", Quant("uint4", block=32, zero_point=True), "groups of scattered column"),
        ("bnb_nf4", Quant("nf4", block=32), "nf4 per_block of 64"),
    ],
)  # fmt: skip
def test_codes_are_not_rounded_again(kind, weights, told):
    model = load_model(DATA / kind)
    recipe = Recipe((("*", Rule()), ("*_proj", Rule(None, weights))))
    for act in (lambda: model.run(IDS, recipe), lambda: model.check(recipe)):
        with pytest.raises(NumsimError, match=f"not rounded again; .*{told}.*dequantise=True"):
            act()
    plain = load_model(DATA / kind, dequantise=True)
    assert isinstance(plain.tensors[f"{Q}.weight"], np.ndarray)
    logits = plain.run(IDS, recipe).logits
    assert np.array_equal(model.suited(recipe).run(IDS, recipe).logits, logits)
    assert not np.array_equal(logits, model.run(IDS, Recipe((("*", Rule()),))).logits)


def test_stored_and_rounded_weights_do_not_mix_in_one_cache():
    model = load_model(DATA / "ct_int8_w8a8")
    recipe = Recipe((("*", Rule()), ("*_proj", Rule(None, Quant("int8", "per_channel")))))
    stored = model.run(IDS, recipe).logits
    anew = model.dequantised().run(IDS, recipe).logits
    assert not np.array_equal(stored, anew)  # 127 in place of 127.5
    assert np.array_equal(model.run(IDS, recipe).logits, stored)
    assert np.array_equal(
        load_model(DATA / "ct_int8_w8a8", dequantise=True).run(IDS, recipe).logits, anew
    )


def test_a_memory_limit_makes_packed_weights_again_with_the_same_bits():
    whole = load_model(DATA / "ct_nvfp4")
    tight = load_model(DATA / "ct_nvfp4", memory_limit=260_000)
    for recipe in (None, whole.recipe()):
        assert np.array_equal(tight.run(IDS, recipe).logits, whole.run(IDS, recipe).logits)


def with_cache(tmp_path, names, scheme="ct"):
    """Write INT8 weights beside scales of keys and values."""

    def write(rng, out, into):
        codes = rng.integers(-127, 128, (out, into)).astype(np.int8)
        scale = some_scales(rng, (out, 1), np.float32) / 8
        return {".weight": codes, ".weight_scale": scale}, scaled(codes, scale)

    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
    }
    table = {
        "quant_method": "compressed-tensors", "format": "int-quantized",
        "config_groups": {"group_0": group}, "quantization_status": "compressed",
    }  # fmt: skip
    if scheme:
        table["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    folder, _ = packed_folder(tmp_path / "m", write, table)
    config, _, _ = base()
    stored = load_file(folder / "model.safetensors")
    for i in range(2):
        for j, name in enumerate(names):
            stored[f"model.layers.{i}.self_attn.{name}"] = np.array(
                [0.01 * (1 + i + j)], np.float32
            )
    config["quantization_config"] = table
    return save(folder, config, stored)


CACHES = [
    ("k_scale", "v_scale"), ("k_proj.k_scale", "v_proj.v_scale"),
    ("k_proj.output_scale", "v_proj.output_scale"),
]  # fmt: skip


@pytest.mark.parametrize("names", CACHES)
def test_scales_of_the_cache_are_said_and_used_when_asked_for(tmp_path, names):
    with pytest.warns(ConfigKeyWarning, match=r"narrow cache .*recipe\(kv_cache=True\)"):
        model = load_model(with_cache(tmp_path, names))
    assert model.recipe() is None  # activations stay wide
    recipe = model.recipe(kv_cache=True)
    assert recipe.rule("layers.1.qk").weights == Quant(FP8, scale=0.02)
    assert recipe.rule("layers.1.pv").weights == Quant(FP8, scale=0.03)
    taps = model.run(
        IDS, recipe, taps=["layers.1.qk.in", "layers.1.qk.operand", "layers.1.qk.out"]
    ).taps
    keys = ns.quantize(taps["layers.1.qk.operand"], Quant(FP8, scale=0.02)).dequantize()
    want = taps["layers.1.qk.in"].astype(np.float64) @ keys
    assert np.max(np.abs(taps["layers.1.qk.out"] - want)) <= 1e-5 * np.max(np.abs(want))


def test_a_cache_that_is_not_declared_or_has_no_scales(tmp_path):
    with pytest.raises(NumsimError, match=r"declares a cache; quantization_config .* does not"):
        load_model(DATA / "awq").recipe(kv_cache=True)
    with pytest.warns(ConfigKeyWarning), pytest.raises(NumsimError, match="has none of k_proj"):
        load_model(with_cache(tmp_path, ())).recipe(kv_cache=True)


def test_plain_checkpoints_declare_nothing(tmp_path):
    config, tensors, shapes = base()
    tensors |= {f"{n}.weight": np.ones(s, np.float16) for n, s in shapes.items()}
    model = load_model(save(tmp_path / "m", config, tensors))
    assert model.recipe() is None
    assert model.dequantised() is model
    with pytest.raises(NumsimError, match="is not packed"):
        model.recipe(kv_cache=True)


def test_activations_that_no_quant_says_are_an_error_of_the_recipe_only(tmp_path):
    def write(rng, out, into):
        codes = rng.integers(-127, 128, (out, into)).astype(np.int8)
        scale = some_scales(rng, (out, 1), np.float32) / 8
        parts = {".weight": codes, ".weight_scale": scale}
        parts |= {".input_scale": np.ones(1, np.float32), ".input_zero_point": np.ones(1, np.int8)}
        return parts, scaled(codes, scale)

    inputs = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False}
    group = {
        "targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
        "input_activations": inputs,
    }  # fmt: skip
    table = {
        "quant_method": "compressed-tensors", "format": "int-quantized",
        "config_groups": {"group_0": group},
    }  # fmt: skip
    folder, numbers = packed_folder(tmp_path / "m", write, table)
    model = load_model(folder)
    name = next(iter(numbers))
    assert np.array_equal(model.tensors[name].dequantize(), numbers[name])
    with pytest.raises(UnsupportedError, match="input_activations of strategy tensor, not dynamic"):
        model.recipe()


def test_a_sweep_compares_what_is_declared_with_other_recipes(tmp_path):
    ids = tmp_path / "ids.npy"
    np.save(ids, np.random.default_rng(0).integers(3, 60, 48))
    asked = {"model": DATA / "ct_fp8_channel_dynamic", "text": ids, "window": 16}
    frame = ns.sweep(
        asked | {"recipes": "declared", "formats": ["int8"], "granularities": ["per_tensor"]}
    )
    whole = frame[frame["layer"] == "all"].set_index("format")
    assert whole["error"].isna().all()
    row = whole.loc["declared"]
    assert (
        row["bits_per_weight"]
        == Quant(FP8, "per_channel", scale_format="bfloat16").stored_bits(48, 48) / (48 * 48)
        or row["bits_per_weight"] < 8.4
    )
    assert 0 < row["kl_nats"] < 0.1
    assert whole.loc["int8", "kl_nats"] > 0
    wide = ns.sweep(asked | {"model": DATA / "awq", "recipes": "declared"})
    assert wide[wide["layer"] == "all"]["kl_nats"].item() < 1e-9  # float32 of the same weights
    with pytest.raises(NumsimError, match="recipe declared is that of a packed checkpoint"):
        ns.sweep(asked | {"model": None, "recipes": "declared"})


def test_modelopt_says_layers_of_their_own_and_config_json_may_say_it_too(tmp_path):
    config, tensors, shapes = base()
    rng = np.random.default_rng(1)
    layers = {}
    for stem, (out, into) in shapes.items():
        codes = rng.integers(0, 0x70, (out, into)).astype(np.uint8)
        if "k_proj" in stem:
            tensors[f"{stem}.weight"] = dense32(codes & 15, 4).view(np.uint8)
            tensors[f"{stem}.weight_scale"] = np.full((out, into // 16), 0x38, np.uint8).view("V1")
            tensors[f"{stem}.weight_scale_2"] = np.float32(0.02)
            tensors[f"{stem}.input_scale"] = np.float32(0.001)
            layers[stem] = {"quant_algo": "NVFP4", "group_size": 16}
        else:
            tensors[f"{stem}.weight"] = codes.view("V1")
            tensors[f"{stem}.weight_scale"] = np.float32(0.001)
            tensors[f"{stem}.input_scale"] = np.float32(0.01)
            layers[stem] = {"quant_algo": "FP8"}
    for name, t in tensors.items():
        if t.dtype.kind == "V" and t.dtype.name == "void8":
            tensors[name] = t.view(ml_dtypes.float8_e4m3fn)
    table = {
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": None,
        "quantized_layers": layers,
    }
    folder = save(tmp_path / "m", config, tensors)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": table}))
    model = load_model(folder)
    assert model.recipe().rule("layers.0.k_proj").activations.block == 16
    assert model.recipe().rule(Q).activations == Quant(FP8, scale=0.01)
    save(folder, config | {"quantization_config": table | {"quant_method": "modelopt"}}, tensors)
    again = load_model(folder)
    assert np.array_equal(again.run(IDS).logits, model.run(IDS).logits)
    assert again.recipe() == model.recipe()


def test_plans_and_statistics_know_the_sizes_of_packed_weights(tmp_path):
    """They read shapes where those do, and each tensor once, whatever memory it comes to lie in."""
    ids = tmp_path / "ids.npy"
    np.save(ids, np.random.default_rng(0).integers(3, 60, 32))
    plan = {"model": DATA / "awq", "text": ids, "window": 16, "formats": ["int8"]}
    assert dry_lines(plan)
    run = next(prepare(as_spec(plan)))
    names = [
        (row["layer"], row["op"])
        for row in tensor_rows(run.model, run.inputs, [Entry.of("int8")], 1)
        if row["role"] == "W" and row["format"] == "int8"
    ]
    assert len(set(names)) == len(run.model.linear_names()) + 1  # and the head


def test_fbgemm_bounds_the_amax_of_a_token():
    acts = load_model(DATA / "fbgemm_fp8").recipe().rule("layers.1.up_proj").activations
    assert acts == Quant(FP8, "per_token", scale_rule="amax:1200.0")
    q = ns.quantize([[4800.0, 1.0]], acts)
    assert q.scale.item() == np.float32(1200) / np.float32(448)
    assert q.dequantize()[0, 0] == np.float32(1200)  # what is beyond it saturates
