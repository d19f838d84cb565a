"""backward(wanted=...): the same gradients as all of them, without the work of the others."""

import numpy as np
import pytest

import numsim as ns
from numsim import nn, train
from numsim.errors import NumsimError
from numsim.nn import products
from numsim.quant import Quant

SEQUENCE = nn.Sequential(
    embed=nn.Embedding(20, 6), lstm=nn.LSTM(6, 5), gru=nn.GRU(5, 7), norm=nn.LayerNorm(7),
    last=nn.Last(), hidden=nn.Linear(7, 4), act=nn.Activation("gelu"), head=nn.Linear(4, 1),
)  # fmt: skip
IMAGE = nn.Sequential(
    conv=nn.Conv2d(2, 4, 3, padding=1, groups=2), act=nn.Activation("relu"), flat=nn.Flatten(),
    head=nn.Linear(4 * 5 * 5, 3),
)  # fmt: skip


def drawn_int8():
    """Gradients rounded at random under one scale: two products read the same codes."""
    forward = ns.Rule("int8", "int8", "ideal.int")
    back = ns.Rule(Quant("int8", rounding="sr"), "int8", "ideal.int")
    return train.Recipe((("*", train.Rule(forward, back, back)),))


RECIPES = {"float64": None, "drawn": drawn_int8()} | {
    name: train.recipe(name) for name in ("fp8_hybrid", "fp8_delayed", "mxfp8", "nvfp4")
}


def passed(net, recipe):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 20, (3, 6)) if net is SEQUENCE else rng.normal(size=(3, 2, 5, 5))
    y, tape = nn.forward(net, nn.init(net), x, recipe=recipe, step=2, scaling={})
    return tape, rng.normal(size=y.shape)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("net", [SEQUENCE, IMAGE], ids=["sequence", "image"])
def test_each_gradient_alone_has_the_bits_it_has_among_all(net, recipe):
    names = list(nn.layers.param_shapes(net))
    tape, up = passed(net, RECIPES[recipe])
    every = nn.backward(tape, up)
    for wanted in (*names, 0):
        tape, up = passed(net, RECIPES[recipe])
        (dx,), grads = nn.backward(tape, up, wanted=[wanted])
        if wanted == 0:
            assert not grads
            assert (dx is None) == (every[0][0] is None)
            np.testing.assert_array_equal(dx, every[0][0])
        else:
            assert dx is None
            assert list(grads) == [wanted]
            np.testing.assert_array_equal(grads[wanted], every[1][wanted])


@pytest.mark.parametrize(
    ("wanted", "count"),
    [(None, 2 + 2 + 9 + 9), ([], 0), (["head.weight"], 1), (["head.bias"], 0),
     (["hidden.weight"], 1 + 1), (["gru.weight_ih"], 2 + 6 + 1), (["lstm.bias_hh"], 2 + 7 + 6),
     (["embed.weight"], 2 + 7 + 7)],
)  # fmt: skip
def test_frozen_weights_cost_no_product(wanted, count, monkeypatch):
    """A Linear has two; a cell three, and one for each of six steps a gradient goes through."""
    tape, up = passed(SEQUENCE, None)
    made = []
    real = products.chains
    monkeypatch.setattr(products, "chains", lambda *a: made.append(1) or real(*a))
    nn.backward(tape, up, wanted=wanted)
    assert len(made) == count


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_a_watch_sees_what_it_saw_of_all_gradients_and_counts_each_once(cell):
    """Of a cell's gradients: those of the input product, and one row for each step."""
    layer, x = cell(3, 5), np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    seen = []
    y, tape = nn.forward(
        layer, nn.init(layer), x, recipe=train.recipe("int8"),
        watch=lambda name, tensor, values, q: seen.append((name, tensor)),
    )  # fmt: skip
    seen.clear()
    nn.backward(tape, *(np.ones_like(part) for part in y))
    assert [row for row in seen if row[1] == "g"] == [("recurrent", "g")] * 4 + [("input", "g")]
    assert seen.count(("recurrent", "gT")) == 1


def test_requantise_decodes_the_forward_copy_for_a_format_of_one_scale_too():
    one = ns.Rule("mxfp8_e4m3", "mxfp8_e4m3")
    other = ns.Rule("float8_e5m2", "float8_e5m2")
    layer, rng = nn.Linear(40, 3, bias=False), np.random.default_rng(0)
    w, x = (rng.normal(size=s).astype(np.float32) for s in ((3, 40), (2, 40)))
    recipe = train.Recipe((("*", train.Rule(one, other, other, source="requantise")),))
    _, tape = nn.forward(layer, {"weight": w}, x, recipe=recipe)
    (dx,), _ = nn.backward(tape, np.ones((2, 3)))
    g = ns.quantize(np.ones((2, 3), np.float32), "float8_e5m2")
    coarse = ns.quantize(w, "mxfp8_e4m3").dequantize()
    want = ns.matmul(g, ns.quantize(coarse, "float8_e5m2"), target="ideal.fp32")
    np.testing.assert_array_equal(dx, want)
    assert not np.array_equal(
        want, ns.matmul(g, ns.quantize(w, "float8_e5m2"), target="ideal.fp32")
    )


@pytest.mark.parametrize("wanted", ["weight", ["head.weigth"], [1], [-1], [True], 3, [None]])
def test_unknown_names_and_places(wanted):
    tape, up = passed(SEQUENCE, None)
    with pytest.raises(NumsimError, match="wanted holds names of parameters and places of 1"):
        nn.backward(tape, up, wanted=wanted)
