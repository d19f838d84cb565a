"""Recipes of training: TOML there and back, digests, what is refused."""

import subprocess
import sys
from dataclasses import replace

import pytest

import numsim as ns
from numsim import nn, train
from numsim.errors import NumsimError, UnsupportedError
from numsim.quant import Quant

LAYER = nn.Sequential(lstm=nn.LSTM(3, 4), last=nn.Last(), head=nn.Linear(4, 1))


@pytest.mark.parametrize("name", train.list_recipes())
def test_toml_there_and_back(tmp_path, name):
    file = tmp_path / "r.toml"
    for changes in ({}, {"seed": 9, "clip_gradient": True, "source": "requantise"},
                    {"gradient_scale": 0.1, "storage": Quant("int8", rounding="sr")}):  # fmt: skip
        recipe = train.recipe(name, **changes)
        file.write_text(recipe.to_toml(), encoding="utf-8")
        again = train.Recipe.from_toml(file)
        assert again == recipe
        assert again.digest() == recipe.digest()
        assert again.to_toml() == recipe.to_toml()


def test_globs_with_any_character_and_a_user_target(tmp_path):
    rule = train.recipe("fp8_hybrid", target="nvidia.hopper.wgmma").rules[0][1]
    globs = ('a"b', "c\\d", "e\nf", "é*", "[ab]?", "")
    recipe = train.Recipe(tuple((glob, rule) for glob in globs))
    (tmp_path / "r.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert train.Recipe.from_toml(tmp_path / "r.toml") == recipe


def test_digests_differ_and_do_not_depend_on_the_process():
    same = {"integer": "int8"}
    digests = {name: train.recipe(name).digest() for name in train.list_recipes()}
    for name, digest in digests.items():
        twins = [n for n, d in digests.items() if d == digest and n != name]
        assert set(twins) <= {same.get(name, ""), *(k for k, v in same.items() if v == name)}
    code = "from numsim import train; print(train.recipe('nvfp4').digest())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == digests["nvfp4"]
    assert digests["fp8_hybrid"] == "d3891704ce19e2f2"
    assert digests["q3.4"] == "f9d976c8de80e9ca"


def test_the_last_rule_that_matches_wins():
    plain, int8 = train.Rule(), train.recipe("int8").rules[0][1]
    recipe = train.Recipe((("*", plain), ("lstm.*", int8), ("lstm.input", plain)))
    found = recipe.resolve(nn.product_names(LAYER))
    assert [r is int8 for _, r in found.rules] == [False, True, False]
    with pytest.raises(NumsimError, match="every glob must name a product"):
        train.Recipe((("*", plain), ("heads", int8))).resolve(nn.product_names(LAYER))
    with pytest.raises(NumsimError, match="every product needs a rule; head"):
        train.Recipe((("lstm.*", plain),)).resolve(nn.product_names(LAYER))


BLOCKS = "forward={}\ndgrad={}\nwgrad={}\n"
BAD = [
    "", "x = 1", "rule = [1]", "rule = ['ab']", "rule = 5", "[[rule]]\n" + BLOCKS,
    "seed = -1\n[[rule]]\nmatch='*'\n" + BLOCKS, "seed = 1.5\n[[rule]]\nmatch='*'\n" + BLOCKS,
    "other = 1\n[[rule]]\nmatch='*'\n" + BLOCKS, "storage = [1]\n[[rule]]\nmatch='*'\n" + BLOCKS,
    "storage = 'int99'\n[[rule]]\nmatch='*'\n" + BLOCKS,
    "[[rule]]\nmatch=5\n" + BLOCKS, "[[rule]]\nmatch='*'\nforward={}\ndgrad={}",
    "[[rule]]\nmatch='*'\nforward={}\nwgrad={}",
    "[[rule]]\nmatch='*'\nforward=1\ndgrad={}\nwgrad={}",
    "[[rule]]\nmatch='*'\nforward={match='x'}\ndgrad={}\nwgrad={}",
    "[[rule]]\nmatch='*'\nforward={target='none'}\ndgrad={}\nwgrad={}",
    "[[rule]]\nmatch='*'\nforward={activations='int99'}\ndgrad={}\nwgrad={}",
    *(f"[[rule]]\nmatch='*'\n{line}\n{BLOCKS}" for line in (
        "clip_gradient='no'", "clip_gradient=1", "hadamard=true", "hadamard=3", "hadamard=-2",
        "gradient_scale='x'", "gradient_scale=0.0", "gradient_scale=nan", "gradient_scale=true",
        "source='low'", "source=5", "delayed=4", "delayed={format='e4m3', history='x'}",
        "delayed={format='e4m3', histori=3}", "delayed={}", "wgrd={}")),
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_bad_toml(tmp_path, text):
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    with pytest.raises(NumsimError):
        train.Recipe.from_toml(tmp_path / "r.toml")


@pytest.mark.parametrize("bad", [
    lambda: train.recipe("fp8"), lambda: train.recipe(5),
    lambda: train.recipe("int8", target="none"),
    lambda: train.recipe("int8", bits=3), lambda: train.recipe("int8", seed=-1),
    lambda: train.Recipe(()), lambda: train.Recipe("x"), lambda: train.Recipe((("*", 5),)),
    lambda: train.Recipe((("*", ns.Rule()),)), lambda: train.Rule(forward="int8"),
    lambda: train.Rule(delayed="e4m3"), lambda: train.Rule(hadamard=2.0),
    lambda: train.recipe("int8").rule(5), lambda: train.recipe("int8").resolve(None),
    lambda: train.recipe("int8").resolve("head"), lambda: train.recipe("int8").resolve(["a", 5]),
    lambda: train.recipe("int8").resolve(["a"], 2),
    lambda: train.Recipe.from_toml(5), lambda: train.Recipe.from_toml("none.toml"),
])  # fmt: skip
def test_bad_recipes(bad):
    with pytest.raises(NumsimError):
        bad()


@pytest.mark.parametrize(
    ("name", "target", "product"),
    [("int8", "x86.vpdpbusd", "forward"), ("fp8_hybrid", "nvidia.ampere.mma", "forward"),
     ("nvfp4", "nvidia.hopper.wgmma", "forward")],
)  # fmt: skip
def test_a_unit_that_cannot_multiply_is_named_before_any_work(name, target, product):
    import numpy as np

    recipe = train.recipe(name, target=target)
    data = (np.ones((4, 2, 3)), np.ones(4))
    with pytest.raises(UnsupportedError, match=f"{product} of lstm.input"):
        train.fit(LAYER, nn.init(LAYER), data, loss="mse", recipe=recipe, steps=1, batch=2,
                  optimizer=train.SGD(0.1))  # fmt: skip


def test_a_product_of_dgrad_alone_that_no_unit_multiplies_is_named():
    import numpy as np

    good = ns.Rule("int8", "int8", "x86.vpdpbusd")
    u8 = ns.Rule("uint8", "int8", "x86.vpdpbusd")
    rule = train.Rule(u8, good, u8)
    with pytest.raises(UnsupportedError, match="dgrad of the product"):
        nn.forward(nn.Linear(3, 2), nn.init(nn.Linear(3, 2)), np.ones((2, 3)),
                   recipe=train.Recipe((("*", rule),)))  # fmt: skip


def test_blocks_along_another_axis_than_the_product_sums():
    import numpy as np

    x, w = (
        np.ones((4, 32), np.float32),
        ns.quantize(np.ones((8, 32), np.float32), "mxfp8_e4m3", axis=0),
    )
    layer = nn.Linear(32, 8, bias=False)
    y, _ = nn.forward(layer, {"weight": w}, x, recipe=train.recipe("mxfp8"))
    want = ns.matmul(ns.quantize(x, "mxfp8_e4m3"), ns.quantize(w.dequantize(), "mxfp8_e4m3").T,
                     target="ideal.fp32")  # fmt: skip
    np.testing.assert_array_equal(y, want)  # stored along N: decoded, and quantised along K


OWN = replace(ns.get_format("e4m3"), bias=10)  # max 56; the table's of that name has 448
TABLE = ns.Format("mine", "table", 2, 1, 0, table=(-1.0, 0.0, 0.5, 1.0))


@pytest.mark.parametrize("own", [OWN, TABLE], ids=str)
def test_a_format_of_ones_own_goes_through_toml_everywhere_in_a_recipe(tmp_path, own):
    tiles = Quant(own, block=(2, 4), rounding="sr")
    product = ns.Rule(own, tiles, "ideal.fp32")
    rule = train.Rule(
        forward=product, dgrad=product, wgrad=product, pointwise=tiles,
        delayed=train.DelayedScaling(own, history=3),
    )  # fmt: skip
    recipe = train.Recipe((("*", rule),), storage=Quant(own))
    (tmp_path / "r.toml").write_text(recipe.to_toml(), encoding="utf-8")
    again = train.Recipe.from_toml(tmp_path / "r.toml")
    assert again == recipe
    assert again.digest() == recipe.digest()
    found = again.rules[0][1]
    kept = (again.storage.fmt, found.pointwise.fmt, found.delayed.format, found.forward.weights.fmt)
    assert kept == (own,) * 4
    assert again != train.Recipe((("*", replace(rule, pointwise="e4m3")),), storage=Quant(own))


def test_a_recipe_of_training_names_files_of_formats_beside_it(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/own.toml").write_text(OWN.to_toml())
    (tmp_path / "a/r.toml").write_text(
        'storage = {format = "own.toml", rounding = "sr"}\n[[rule]]\nmatch = "*"\n'
        'pointwise = "own.toml"\ndelayed = {format = "own.toml"}\n'
        + "".join(f'{p} = {{weights = "own.toml"}}\n' for p in ("forward", "dgrad", "wgrad"))
    )
    monkeypatch.chdir(tmp_path)
    found = train.Recipe.from_toml("a/r.toml")
    rule = found.rules[0][1]
    assert found.storage == Quant(OWN, rounding="sr")
    assert rule.pointwise == rule.wgrad.weights == Quant(OWN)
    assert rule.delayed.format == OWN
    (tmp_path / "a/own.toml").unlink()  # a recipe holds the format, not the name of its file
    state = rule.delayed.init()
    assert rule.delayed.quantize([60.0, -1.0], state)[0].dequantize().tolist() == [56.0, -1.0]
    with pytest.raises(NumsimError, match=r"r\.toml: .*own\.toml"):
        train.Recipe.from_toml("a/r.toml")
