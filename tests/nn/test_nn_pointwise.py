"""Rules that store the results of operations between products: activations, norms, cells."""

import math
import pathlib
from fnmatch import fnmatchcase

import numpy as np
import pytest

import numsim as ns
from numsim import nn, train
from numsim.errors import NumsimError
from numsim.models import load_model
from numsim.nn.products import Context
from numsim.quant import Quant
from tests import oracle

FAMILIES = sorted(p.name for p in (pathlib.Path(__file__).parents[1] / "data/oracle").iterdir())
EXACT = Quant("float32", "none")
PLAIN = ("lstm", "gru")
RNG = np.random.default_rng(5)
NETWORK = nn.Sequential(
    embed=nn.Embedding(20, 6), rms=nn.RMSNorm(6), lstm=nn.LSTM(6, 5), last=nn.Last(),
    act=nn.Activation("silu"), norm=nn.LayerNorm(5), head=nn.Linear(5, 1),
)  # fmt: skip
IDS = RNG.integers(0, 20, (4, 7))


def passes(layer, recipe, *inputs):
    """Return outputs and gradients of a pass with an upstream gradient of ones."""
    params = nn.init(layer, seed=3)
    y, tape = nn.forward(layer, params, *inputs, recipe=recipe, step=2)
    ys = y if isinstance(y, tuple) else (y,)
    given, grads = nn.backward(tape, *(np.ones_like(part) for part in ys))
    return [*ys, *(g for g in given if g is not None), *grads.values()]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", ["float32", "fp8_hybrid", "int8"])
@pytest.mark.parametrize("cell", PLAIN)
def test_a_format_of_all_float32_values_changes_no_bit(name, cell):
    layer = nn.LSTM(6, 5) if cell == "lstm" else nn.GRU(6, 5, bias=False)
    x = RNG.normal(size=(4, 9, 6)).astype(np.float32)
    for one, inputs in ((layer, (x,)), (NETWORK, (IDS,))):
        rounded = train.recipe(name, pointwise=EXACT)
        assert same(passes(one, train.recipe(name), *inputs), passes(one, rounded, *inputs))


def stored(fmt, value):
    """Return a number as a format holds it, by the oracle's integers."""
    return oracle.to_float(oracle.decode(fmt, oracle.encode(fmt, float(np.float32(value)))))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("fmt", ["bfloat16", "float8_e4m3fn", "float16"])
def test_every_operation_of_an_lstm_cell_by_hand(fmt):
    weights = {"weight_ih": [[0.75], [-1.25], [1.5], [0.5]],
               "weight_hh": [[0.5], [1.0], [-0.75], [2.0]],
               "bias_ih": [0.3, -0.1, 0.7, 0.2], "bias_hh": [0.11, 0.45, -0.6, 0.9]}  # fmt: skip
    x = [0.9, -1.3, 2.1]
    rule = train.Rule(pointwise=Quant(fmt, "none"))
    params = {k: np.array(v, np.float32) for k, v in weights.items()}
    (y, h, c), _ = nn.forward(
        nn.LSTM(1, 1), params, np.array(x, np.float32).reshape(1, 3, 1),
        recipe=train.Recipe((("*", rule),)),
    )  # fmt: skip

    def keep(value):
        return stored(fmt, value)

    state, cell = 0.0, 0.0
    for t, value in enumerate(x):
        gates = []
        for row in range(4):
            left = np.float32(np.float32(value) * params["weight_ih"][row, 0])
            right = np.float32(np.float32(state) * params["weight_hh"][row, 0])
            total = keep(
                np.float32(keep(left + params["bias_ih"][row]))
                + np.float32(keep(right + params["bias_hh"][row]))
            )
            gates.append(keep(math.tanh(total) if row == 2 else sigmoid(total)))
        i, f, g, o = gates
        cell = keep(keep(f * cell) + keep(i * g))
        state = keep(o * keep(math.tanh(cell)))
        assert y[0, t, 0] == state
    assert (h[0, 0], c[0, 0]) == (state, cell)


def test_every_operation_of_a_gru_cell_by_hand():
    fmt = "bfloat16"
    params = {"weight_ih": np.float32([[0.75], [-1.25], [1.5]]),
              "weight_hh": np.float32([[0.5], [1.0], [-0.75]]),
              "bias_ih": np.float32([0.3, -0.1, 0.7]),
              "bias_hh": np.float32([0.11, 0.45, -0.6])}  # fmt: skip
    x = np.float32([0.9, -1.3, 2.1])
    rule = train.Rule(pointwise=Quant(fmt, "none"))
    (y, _), _ = nn.forward(
        nn.GRU(1, 1), params, x.reshape(1, 3, 1), recipe=train.Recipe((("*", rule),))
    )

    def keep(value):
        return np.float32(stored(fmt, value))

    state = np.float32(0)
    for t in range(3):
        left = [keep(x[t] * params["weight_ih"][k, 0] + params["bias_ih"][k]) for k in range(3)]
        right = [keep(state * params["weight_hh"][k, 0] + params["bias_hh"][k]) for k in range(3)]
        r, z = (keep(sigmoid(keep(left[k] + right[k]))) for k in range(2))
        n = keep(math.tanh(keep(left[2] + keep(r * right[2]))))
        state = keep(keep(keep(1 - z) * n) + keep(z * state))
        assert y[0, t, 0] == state


def test_activations_and_norms_are_quantize_of_their_float32_results():
    x = RNG.normal(size=(3, 8)).astype(np.float32)
    for layer in (nn.Activation("gelu"), nn.RMSNorm(8), nn.LayerNorm(8)):
        params = nn.init(layer)
        exact, tape = nn.forward(layer, params, x, recipe=train.recipe("float32"))
        for quant in ("float8_e4m3fn", "mxfp8_e4m3", "int8", Quant("q3.4")):
            recipe = train.recipe("float32", pointwise=quant)
            got, tape = nn.forward(layer, params, x, recipe=recipe)

            assert np.array_equal(got, ns.quantize(exact, quant, axis=-1).dequantize())
            # straight through: the gradient is that of the float32 operation
            one = nn.backward(tape, np.ones_like(x))[0][0]
            _, plain = nn.forward(layer, params, x, recipe=train.recipe("float32"))
            assert np.array_equal(one, nn.backward(plain, np.ones_like(x))[0][0])


def test_a_clipped_gradient_is_zero_where_the_result_saturated():
    x = np.float32([[1.0, 7.9, 9.0, 100.0]])  # q3.4 ends at 7.9375
    recipe = train.recipe("float32", pointwise=Quant("q3.4"), clip_gradient=True)
    y, tape = nn.forward(nn.Activation("relu"), {}, x, recipe=recipe)
    assert y.tolist() == [[1.0, 7.875, 7.9375, 7.9375]]
    assert nn.backward(tape, np.ones_like(x))[0][0].tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_a_rule_names_the_layers_it_stores():
    plain = train.recipe("float32").rules[0][1]
    only = train.Recipe((("*", plain), ("lstm.cell", train.Rule(pointwise="bfloat16"))))
    seen = set()
    nn.forward(NETWORK, nn.init(NETWORK), IDS, recipe=only, watch=lambda *a: seen.add(a[:2]))
    assert {name for name, _ in seen} == {"lstm.cell"}
    assert {role for _, role in seen} == {"input", "recurrent", "sum", "gates", "fc", "ig", "c",
                                          "tanh", "h"}  # fmt: skip
    every = train.recipe("float32", pointwise="bfloat16")
    seen.clear()
    nn.forward(NETWORK, nn.init(NETWORK), IDS, recipe=every, watch=lambda *a: seen.add(a[:2]))
    assert {name for name, _ in seen} == {"rms", "lstm.cell", "act", "norm"}
    assert set(nn.pointwise_names(NETWORK)) == {"rms", "lstm.cell", "act", "norm"}


def test_stochastic_results_depend_on_seed_step_and_time_alone():
    sr = train.recipe("float32", pointwise=Quant("float8_e4m3fn", "none", rounding="sr"))
    x = np.full((2, 6, 6), 0.3, np.float32)
    layer = nn.LSTM(6, 5)
    assert same(passes(layer, sr, x), passes(layer, sr, x))
    params = nn.init(layer, seed=3)
    a = nn.forward(layer, params, x, recipe=sr, step=2)[0][0]
    b = nn.forward(layer, params, x, recipe=sr, step=3)[0][0]
    assert not np.array_equal(a, b)


def test_toml_there_and_back(tmp_path):
    file = tmp_path / "r.toml"
    for quant in ("bfloat16", Quant("float8_e4m3fn", "none", rounding="sr"), "mxfp8_e4m3"):
        recipe = train.recipe("fp8_hybrid", pointwise=quant)
        file.write_text(recipe.to_toml(), encoding="utf-8")
        assert train.Recipe.from_toml(file) == recipe
        assert recipe.digest() != train.recipe("fp8_hybrid").digest()
    file.write_text(file.read_text().replace("pointwise = ", "pointwise = 3 #"))
    with pytest.raises(NumsimError, match=r"rule 1: .*3"):
        train.Recipe.from_toml(file)


def test_bad_rules_are_named():
    with pytest.raises(NumsimError, match=r"train.Rule: pointwise: .*bfloat17"):
        train.Rule(pointwise="bfloat17")
    x, target = RNG.normal(size=(8, 5)), RNG.normal(size=(8, 1))
    layer = nn.Sequential(act=nn.Activation("tanh"), head=nn.Linear(5, 1))
    rule = train.Rule(pointwise="bfloat16")
    how = {"loss": "mse", "optimizer": train.SGD(0.1), "steps": 1, "batch": 8}
    for glob, said in (("head", "no rule with pointwise names an operation .* act"),
                       ("acts", "every glob must name a product; 'acts'")):  # fmt: skip
        recipe = train.Recipe((("*", train.Rule()), (glob, rule)))
        with pytest.raises(NumsimError, match=said):
            train.fit(layer, nn.init(layer), (x, target), recipe=recipe, **how)
    right = train.Recipe((("*", train.Rule()), ("act", rule)))
    train.fit(layer, nn.init(layer), (x, target), recipe=right, **how)
    again = right.resolve(nn.product_names(layer), nn.pointwise_names(layer))
    assert again.pointwise("act") == rule
    assert again.pointwise("head") is None
    assert again.resolve(nn.product_names(layer), nn.pointwise_names(layer)) == again


def test_a_result_that_is_not_finite_is_named():
    with pytest.raises(NumsimError, match=r"step 4, the result of act \(y\): "):
        nn.forward(
            nn.Sequential(act=nn.Activation("relu")), {}, np.float32([[np.inf]]), step=4,
            recipe=train.recipe("float32", pointwise="float8_e4m3fn"),
        )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_of_a_network_are_those_that_a_pass_asks_for(family, monkeypatch):
    model = load_model(pathlib.Path(__file__).parents[1] / "data/oracle" / family)
    layer, params = nn.from_model(model)
    asked = set()

    def ask(self, name):
        asked.add(name)

    monkeypatch.setattr(Context, "pointwise", ask)
    ids = np.random.default_rng(0).integers(0, model.arch.vocab, (1, 6))
    nn.forward(layer, params, *([ids] * (2 if model.arch.decoder_layers else 1)))
    names = set(nn.pointwise_names(layer))
    assert asked <= names
    assert all(fnmatchcase(name, "*.experts.*.act") for name in names - asked)
