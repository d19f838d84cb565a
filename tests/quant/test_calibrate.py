"""Static scales from streams: the same in any pieces, in constant memory."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.data import bundled_model_dir
from numsim.models.calibrate import calibrated
from numsim.models.rule import Rule
from numsim.quant.calibrate import Calibration
from numsim.quant.transforms import rotate

DATA = Path(__file__).parents[1] / "data"


def filled(rule, tensors, **how):
    seen = Calibration(rule, **how)
    for x in tensors:
        seen.update(x)
    return seen


@pytest.mark.parametrize("rule", ["amax", "percentile:99", "mse"])
def test_a_stream_in_any_pieces_is_the_same(rule):
    x = np.random.default_rng(1).standard_t(3, 10_000).astype(np.float32)
    whole = filled(rule, [x]).amax("int8")
    assert filled(rule, np.array_split(x[::-1], 7)).amax("int8") == whole


@pytest.mark.parametrize("share", [1, 50, 99, 99.9, 100])
def test_a_percentile_is_that_of_all_values_to_the_width_of_a_counter(share):
    x = np.random.default_rng(2).lognormal(0, 3, 20_000).astype(np.float32)
    exact = np.sort(x)[-(-round(10 * share) * len(x) // 1000) - 1]
    found = filled(f"percentile:{share}", np.array_split(x, 5)).amax("int8")
    assert exact <= found <= exact * (1 + 2.0**-8)


def test_a_moving_average_by_hand():
    seen = filled("moving", [[4.0], [-2.0], [8.0]], momentum=0.5)
    assert seen.amax("int8") == (4 * 0.5 + 2 * 0.5) * 0.5 + 8 * 0.5


def test_the_least_error_clips_what_int4_should():
    x = np.concatenate([np.random.default_rng(3).standard_normal(100_000), [40.0]])
    x = x.astype(np.float32)
    best = ns.quantize(x, ns.Quant("int4", scale_rule="mse"))
    near = ns.quantize(x, "int4", scale=filled("mse", [x]).scale("int4"))
    least, found = (float(((q.dequantize() - x) ** 2).sum()) for q in (best, near))
    assert least <= found <= 1.01 * least
    assert filled("amax", [x]).scale("int4") == np.float32(40 / 7)


@pytest.mark.parametrize(
    "quant", ["int8", "e4m3", "bfloat16", "nvfp4", "nvfp4_4over6", "if4",
              ns.Quant("int4", scale_rule="amax_half")], ids=str,
)  # fmt: skip
def test_the_scale_of_one_tensor_is_that_of_its_quantize(quant):
    """An amax of one tensor: fixed, its scale gives the codes that it gives by itself."""
    x = np.random.default_rng(4).standard_t(3, (4, 64)).astype(np.float32)
    want = ns.quantize(x, quant)
    rule = ns.quant.as_quant(quant)
    fixed = dataclasses.replace(rule, scale=float(filled("amax", [x]).scale(quant)))
    got = ns.quantize(x, fixed)
    for name in ("codes", "scale", "scale_codes", "tensor_scale"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    beside = {"scale": fixed.scale} if rule.above is None else {"tensor_scale": fixed.scale}
    np.testing.assert_array_equal(ns.quantize(x, quant, **beside).codes, want.codes)
    with pytest.raises(ns.NumsimError, match="fixes its scale"):
        ns.quantize(x, fixed, **beside)


def test_scales_that_no_stream_finds():
    for quant in ("nvfp4_row", "mxfp4", ns.Quant("int8", "per_token"),
                  ns.Quant("int8", zero_point=True)):  # fmt: skip
        with pytest.raises(ns.NumsimError, match="one float32 scale of a tensor"):
            filled("amax", [[1.0]]).scale(quant)
    with pytest.raises(ns.NumsimError, match="none below it"):
        filled("mse", [[1.0]]).scale("nvfp4")


def test_streams_that_say_nothing():
    with pytest.raises(ns.NumsimError, match="none came"):
        Calibration().amax("int8")
    with pytest.raises(ns.NumsimError, match=r"1 of 2 are not, the first at index \(1,\)"):
        filled("amax", [[1.0, np.nan]])
    with pytest.raises(ns.NumsimError, match="rule is one of"):
        Calibration("amx")
    with pytest.raises(ns.NumsimError, match="momentum"):
        Calibration("moving", momentum=1)


def test_calibrate_writes_a_recipe_that_runs(tmp_path):
    text, out = tmp_path / "t.txt", tmp_path / "r.toml"
    text.write_text("The first of many words of a text that somebody wrote down. " * 30)
    done = CliRunner().invoke(
        app, ["calibrate", str(bundled_model_dir()), "--text", str(text), "-o", str(out),
              "--rule", "percentile:99.9", "--windows", "2", "--length", "32"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    recipe = ns.Recipe.from_toml(out)
    model = ns.bundled_model()
    scales = [recipe.rule(n).activations.scale for n in model.linear_names()]
    assert all(s > 0 for s in scales)
    assert np.isfinite(model.run(np.arange(5), recipe).logits).all()
    again = CliRunner().invoke(
        app, ["calibrate", str(bundled_model_dir()), "--text", str(text), "-o", str(out),
              "--recipe", "w8a8", "--force"],
    )  # fmt: skip
    assert "one float32 scale a tensor" in str(again.exception)


def calibrate(*words):
    return CliRunner().invoke(app, ["calibrate", *map(str, words)])


def test_calibrate_says_what_it_read_and_replaces_nothing_unasked(tmp_path):
    text, out = tmp_path / "t.txt", tmp_path / "r.toml"
    text.write_text("one two three four five six seven")
    given = (bundled_model_dir(), "--text", text, "-o", out)
    done = calibrate(*given, "--windows", 40, "--length", 6)
    count = int(done.output.split(" of ")[1].split()[0])
    assert 1 < count < 40
    assert "windows of 6 tokens" in done.output
    assert "exists; name another file, or --force" in str(calibrate(*given).exception)
    kept = out.read_bytes()
    assert "1 window of " in calibrate(*given, "--force").output  # shorter than 128 tokens
    assert out.read_bytes() != kept


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-o", "{}/none/r.toml"], "the folder of .*none/r.toml is missing"),
        (["-o", "{}"], "is not a file"),
        (["-o", "{}/t.txt", "--force"], "out would replace the text"),
        (["-o", "{}/r.toml", "--length", "1"], "--length is 2 or more"),
        (["-o", "{}/r.toml", "--text", "{}/n.npz"], "cannot read"),
        (["-o", "{}/r.toml", "--text", "{}/f.npy"], r"must hold token ids.*got float64 \[3\]"),
        (["-o", "{}/r.toml", "--text", "{}/r.npz"], r"got tokens \[2, 3\], attention_mask \[3, "),
        (["-o", "{}/r.toml", "--text", "{}/x.npz"], "of tokens, pixels, .*; got zzz"),
    ],
)
def test_calibrate_refuses_before_the_network_runs(tmp_path, monkeypatch, more, message):
    (tmp_path / "t.txt").write_text("one two three")
    np.savez(tmp_path / "x.npz", zzz=np.ones(3))
    np.save(tmp_path / "f.npy", np.ones(3))
    np.savez(tmp_path / "r.npz", tokens=np.ones((2, 3), int), attention_mask=np.ones((3, 3), int))
    (tmp_path / "n.npz").write_bytes(b"PK nothing")
    monkeypatch.setattr(ns.Model, "run", None)
    words = [word.format(tmp_path) for word in more]
    failed = calibrate(bundled_model_dir(), "--text", tmp_path / "t.txt", *words)
    assert re.search(message, str(failed.exception)), failed.exception
    assert isinstance(failed.exception, ns.NumsimError)


def test_a_folder_without_a_token_to_begin_with_calibrates(tmp_path):
    folder = shutil.copytree(bundled_model_dir(), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": None}))
    ids, out = tmp_path / "ids.npy", tmp_path / "r.toml"
    np.save(ids, np.arange(20))
    done = calibrate(folder, "--text", ids, "-o", out, "--length", 8)
    assert "2 windows of 8 tokens" in done.output
    windows = np.arange(16).reshape(2, 8)
    want = calibrated(ns.bundled_model(), ns.models.named_recipe("te_delayed"), windows)
    assert ns.Recipe.from_toml(out) == want


@pytest.mark.parametrize("name", ["vit_classifier", "whisper"])
def test_pictures_and_speech_calibrate_on_arrays(tmp_path, name):
    folder, out = DATA / "fronts" / name, tmp_path / "r.toml"
    with np.load(folder / "oracle.npz") as o:
        given = {k: o[k] for k in ("pixels", "features", "decoder_tokens") if k in o.files}
    np.savez(tmp_path / "in.npz", **given)
    np.savez(tmp_path / "one.npz", **{k: v[0] for k, v in given.items()})
    recipe = tmp_path / "fp8.toml"
    recipe.write_text(ns.Recipe.uniform("float8_e4m3fn", target="ideal.fp32").to_toml())
    more = (folder, "-o", out, "--recipe", recipe)
    done = calibrate(*more, "--text", tmp_path / "in.npz")
    assert done.exit_code == 0, done.exception
    other = (folder, "-o", tmp_path / "one.toml", "--recipe", recipe)
    assert "1 row of" in calibrate(*other, "--text", tmp_path / "one.npz").output
    rows = len(next(iter(given.values())))
    assert f"{rows} rows of {' and '.join(given)}" in done.output
    model, found = ns.load_model(folder), ns.Recipe.from_toml(out)
    for scaled in ("layers.1.down_proj", "encoder.layers.1.q_proj"):
        if scaled in model.gemm_names():
            x = model.run(**given, taps=[f"{scaled}.in"]).taps[f"{scaled}.in"]
            want = np.float32(np.abs(x).max()) / np.float32(448)
            assert found.rule(scaled).activations.scale == pytest.approx(want, rel=1e-6)
    (tmp_path / "t.txt").write_text("some words")
    reads = "pixels" if "pixels" in given else "features"
    failed = calibrate(*more, "--text", tmp_path / "t.txt", "--force")
    assert f"reads {reads}, not a text; give --text INPUTS.npz" in str(failed.exception)


def test_an_expert_that_no_token_reaches_keeps_its_rule():
    model = ns.load_model(DATA / "families" / "qwen3_moe")
    recipe = ns.Recipe.uniform("float8_e4m3fn", target="ideal.fp32")
    found = calibrated(model, recipe, [[5]])
    scales = {n: found.rule(n).activations.scale for n in model.linear_names()}
    idle = [n for n, scale in scales.items() if scale is None]
    assert {".experts." in n for n in idle} == {True}
    assert sum(".experts." in n for n in scales) > len(idle)
    assert found.rule(idle[0]) == recipe.rule(idle[0])
    with pytest.raises(ns.NumsimError, match="none came"):
        calibrated(model, recipe, [])


def test_an_encoder_decoder_calibrates_on_both_halves_of_a_window(tmp_path):
    out = tmp_path / "r.toml"
    np.save(tmp_path / "ids.npy", np.arange(3, 23))
    recipe = tmp_path / "fp8.toml"
    recipe.write_text(ns.Recipe.uniform("float8_e4m3fn", target="ideal.fp32").to_toml())
    folder = DATA / "families" / "bart"
    done = calibrate(
        folder, "--text", tmp_path / "ids.npy", "-o", out, "--recipe", recipe, "--length", 8
    )
    assert done.exit_code == 0, done.exception
    found = ns.Recipe.from_toml(out)
    assert all(found.rule(n).activations.scale > 0 for n in ns.load_model(folder).linear_names())


def test_static_scales_are_of_what_is_stored_rotated():
    """Rotated activations have another amax: half of it in the first layer of the bundled model."""
    model, ids, name = ns.bundled_model(), np.arange(5, 69), "layers.0.q_proj"
    int8 = {"activations": "int8", "weights": "int8", "target": "ideal.int"}
    rules = (("*", Rule()), ("*_proj", Rule(**int8, rotate=64)))
    found = calibrated(model, ns.Recipe(rules), [ids])
    x = model.run(ids, taps=[f"{name}.in"]).taps[f"{name}.in"]
    want = np.abs(rotate(x, block=64)).max() / 127
    np.testing.assert_allclose(found.rule(name).activations.scale, want, rtol=1e-6)
    assert found.rule(name).activations.scale < 0.6 * np.abs(x).max() / 127


def test_a_stream_is_of_numbers_that_float32_holds():
    seen = Calibration()
    with pytest.raises(ns.NumsimError, match=r"finite in float32; 1 of 3 are not, .* index \(1,\)"):
        seen.update([1.0, -1e300, 2.0])
    with pytest.raises(ns.NumsimError, match="real numbers; got"):
        seen.update(np.zeros(3, [("a", "f4")]))
    assert seen.tensors == 0


def test_delayed_scales_are_of_formats_to_which_something_scales():
    with pytest.raises(ns.NumsimError, match="the largest value of int1 is 0"):
        ns.DelayedScale("int1")
