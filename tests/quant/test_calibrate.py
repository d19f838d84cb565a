"""Static scales from streams: the same in any pieces, in constant memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from typer.testing import CliRunner

import numsim as ns
from numsim.cli import app
from numsim.data import bundled_model_dir
from numsim.quant.calibrate import Calibration


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
              "--recipe", "w8a8"],
    )  # fmt: skip
    assert "one float32 scale a tensor" in str(again.exception)
