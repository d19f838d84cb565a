"""The three products of a Linear, on operands that are quantised here, bit for bit."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

import numsim as ns
from numsim import nn, train
from numsim.kernels.ir import simd
from numsim.kernels.jit import using_threads
from numsim.nn import products as products_module
from numsim.quant import Quant

M, K, N = 37, 45, 21  # no multiple of a block: the last one is short
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"


def bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def same(got, want):
    np.testing.assert_array_equal(bits(got), bits(want))


def tensors(m=M, k=K, n=N, seed=0, outlier=False):
    rng = np.random.default_rng([m, k, n, seed])
    x, w, g = (rng.normal(size=s).astype(np.float32) for s in ((m, k), (n, k), (m, n)))
    w *= np.float32(0.2)
    g *= np.float32(1e-3)
    if outlier:
        x[1, 2], g[3, :] = 1000.0, 0.0
    return x, w, g


def products(x, w, g, recipe, **more):
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
    y, tape = nn.forward(layer, {"weight": w}, x, recipe=recipe, **more)
    (dx,), grads = nn.backward(tape, g)
    return y, dx, grads["weight"]


def stream(*parts):
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2s(text, digest_size=4).digest(), "little")


def by_hand(x, w, g, formats, targets):
    """One scale a tensor: the same codes serve two products each."""
    xq, wq, gq = (t if f is None else ns.quantize(t, f) for t, f in zip((x, w, g), formats,
                                                                        strict=True))  # fmt: skip
    raw = Quant("float32", "none")
    xq, wq, gq = (ns.quantize(t, raw) if isinstance(t, np.ndarray) else t for t in (xq, wq, gq))
    fwd, dgrad, wgrad = targets
    return (
        ns.matmul(xq, wq.T, target=fwd), ns.matmul(gq, wq, target=dgrad),
        ns.matmul(gq.T, xq, target=wgrad),
    )  # fmt: skip


Q34 = Quant("q3.4", "none")
PER_TENSOR = {
    "float32": ((None, None, None), ("ideal.fp32",) * 3),
    "fp8_hybrid": ((E4M3, E4M3, E5M2), ("ideal.fp32",) * 3),
    "fp8_e4m3": ((E4M3, E4M3, E4M3), ("ideal.fp32",) * 3),
    "fp8_e5m2": ((E5M2, E5M2, E5M2), ("ideal.fp32",) * 3),
    "int8": (("int8", "int8", "int8"), ("ideal.int",) * 3),
    "integer": (("int8", "int8", "int8"), ("ideal.int",) * 3),
    "q3.4_forward": ((Q34, Q34, None), ("ideal.int", "ideal.fp32", "ideal.fp32")),
    "q3.4": ((Q34, Q34, Q34), ("ideal.int",) * 3),
}
STORED = {"fp8": "fp8_hybrid", "int8": "int8", "q3.4": "q3.4_forward"}


def test_every_named_recipe_is_compared_here():
    other = {"q3.4_scale4096", "fp8_delayed", "mxfp8", "nvfp4"}
    stored = {f"{kind}_stored_{r}" for kind in STORED for r in ("rne", "sr")}
    assert set(train.list_recipes()) == {*PER_TENSOR, *other, *stored}


@pytest.mark.parametrize("name", PER_TENSOR)
@pytest.mark.parametrize(
    ("shape", "outlier"),
    [((M, K, N), False), ((M, K, N), True), ((1, 1, 1), False), ((3, 1, 2), False),
     ((1, 70, 5), False)],
)  # fmt: skip
def test_one_scale_a_tensor(name, shape, outlier):
    x, w, g = tensors(*shape, outlier=outlier)
    for got, want in zip(products(x, w, g, train.recipe(name)),
                         by_hand(x, w, g, *PER_TENSOR[name]), strict=True):  # fmt: skip
        same(got, want)


@pytest.mark.filterwarnings("ignore::numsim.errors.UnvalidatedWarning")
@pytest.mark.parametrize(
    ("name", "target"),
    [("fp8_hybrid", "nvidia.hopper.wgmma"), ("fp8_e4m3", "nvidia.ada.mma"),
     ("int8", "x86.tdpbssd"), ("fp8_hybrid", "ideal.exact"), ("q3.4", "ideal.exact")],
)  # fmt: skip
def test_units(name, target):
    x, w, g = tensors()
    formats = PER_TENSOR[name][0]
    for got, want in zip(products(x, w, g, train.recipe(name, target=target)),
                         by_hand(x, w, g, formats, (target,) * 3), strict=True):  # fmt: skip
        same(got, want)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("rounding", ["rne", "sr"])
def test_stored_weights_are_multiplied_as_they_are_stored(kind, rounding):
    x, w, g = tensors()
    recipe = train.recipe(f"{kind}_stored_{rounding}")
    base = STORED[kind]
    formats, targets = PER_TENSOR[base]
    assert recipe.rules == train.recipe(base).rules
    assert recipe.storage.rounding == rounding
    wq = ns.quantize(w, formats[1])
    got = products(x, wq, g, recipe)
    for a, b in zip(got, by_hand(x, w, g, formats, targets), strict=True):
        same(a, b)
    if kind != "q3.4":  # a scale that amax would not give is kept as well
        odd = ns.QTensor.from_codes(wq.codes, wq.fmt, scale=np.float32(wq.scale) * np.float32(1.7))
        xq = ns.quantize(x, formats[0])
        same(products(x, odd, g, recipe)[0], ns.matmul(xq, odd.T, target=targets[0]))


@pytest.mark.parametrize("scale", [4096.0, 7777.7])
def test_scaled_gradients(scale):
    x, w, g = tensors()
    xq, wq = ns.quantize(x, Q34), ns.quantize(w, Q34)
    codes = ns.quantize(g * np.float32(scale), Q34).codes
    gq = ns.QTensor.from_codes(codes, "q3.4", scale=np.float32(1) / np.float32(scale))
    y, dx, dw = products(x, w, g, train.recipe("q3.4_scale4096", gradient_scale=scale))
    same(y, ns.matmul(xq, wq.T, target="ideal.int"))
    same(dx, ns.matmul(gq, wq, target="ideal.int"))
    same(dw, ns.matmul(gq.T, xq, target="ideal.int"))
    assert np.any(dw)


def test_mxfp8_quantises_along_the_axis_that_each_product_sums():
    for outlier in (False, True):
        x, w, g = tensors(outlier=outlier)
        e4, e5 = "mxfp8_e4m3", "mxfp8_e5m2"
        y, dx, dw = products(x, w, g, train.recipe("mxfp8"))
        t = "ideal.fp32"
        same(y, ns.matmul(ns.quantize(x, e4), ns.quantize(w, e4).T, target=t))
        same(dx, ns.matmul(ns.quantize(g, e5), ns.quantize(w, e4, axis=-2), target=t))
        same(dw, ns.matmul(ns.quantize(g, e5, axis=-2).T, ns.quantize(x, e4, axis=-2), target=t))
        # the same, from transposed tensors quantised along their last axis
        wt, gt, xt = (np.ascontiguousarray(v.T) for v in (w, g, x))
        same(dx, ns.matmul(ns.quantize(g, e5), ns.quantize(wt, e4).T, target=t))
        same(dw, ns.matmul(ns.quantize(gt, e5), ns.quantize(xt, e4).T, target=t))


@pytest.mark.parametrize("quant", ["mxfp8_e4m3", "mxint8", "nvfp4"])
def test_whole_blocks_lie_along_the_axis_that_each_product_sums(quant):
    x, w, g = tensors(64, 96, 32)  # whole blocks along both axes: one call stores those of rows
    one = ns.Rule(quant, quant)
    y, dx, dw = products(x, w, g, train.Recipe((("*", train.Rule(one, one, one)),)))

    def q(z, axis=-1):
        return ns.quantize(z, quant, axis=axis)

    same(y, ns.matmul(q(x), q(w).T, target="ideal.fp32"))
    same(dx, ns.matmul(q(g), q(w, -2), target="ideal.fp32"))
    same(dw, ns.matmul(q(g, -2).T, q(x, -2), target="ideal.fp32"))


@pytest.mark.parametrize("target", ["ideal.fp32", "nvidia.blackwell.tcgen05"])
@pytest.mark.parametrize("quant", ["mxfp8_e4m3", "nvfp4"])
def test_the_scale_of_a_gradient_is_divided_where_units_read_codes_of_scales(quant, target):
    x, w, g = tensors(64, 96, 32)
    one = ns.Rule(quant, quant, target)

    def run(scale):
        rule = train.Rule(one, one, one, gradient_scale=scale)
        return products(x, w, g, train.Recipe((("*", rule),)))

    for got, want in zip(run(1024.0), run(1.0), strict=True):
        same(got, want)  # of a power of two every scale is one times it
    gq, wq = ns.quantize(g * np.float32(3), quant), ns.quantize(w, quant, axis=-2)
    above = np.float32(1) if gq.tensor_scale is None else gq.tensor_scale
    gq = replace(gq, tensor_scale=np.asarray(above / np.float32(3)))
    same(run(3.0)[1], ns.matmul(gq, wq, target=target))


def test_requantise_decodes_the_forward_copy_of_weight_and_input_first():
    x, w, g = tensors()
    e4, e5, t = "mxfp8_e4m3", "mxfp8_e5m2", "ideal.fp32"
    y, dx, dw = products(x, w, g, train.recipe("mxfp8", source="requantise"))
    x1, w1 = (ns.quantize(v, e4).dequantize() for v in (x, w))
    same(y, ns.matmul(ns.quantize(x, e4), ns.quantize(w, e4).T, target=t))
    same(dx, ns.matmul(ns.quantize(g, e5), ns.quantize(w1, e4, axis=-2), target=t))
    same(dw, ns.matmul(ns.quantize(g, e5, axis=-2).T, ns.quantize(x1, e4, axis=-2), target=t))
    assert not np.array_equal(dx, products(x, w, g, train.recipe("mxfp8"))[1])


@pytest.mark.parametrize("step", [0, 5])
def test_nvfp4_tiles_random_signs_and_stochastic_gradients(step):
    x, w, g = tensors(m=43)
    rows = Quant("float4_e2m1fn", block=16, scale_format="float8_e4m3fn")
    drawn = Quant("float4_e2m1fn", block=16, scale_format="float8_e4m3fn", rounding="sr")
    tiles = Quant("float4_e2m1fn", block=(16, 16), scale_format="float8_e4m3fn")
    y, dx, dw = products(x, w, g, train.recipe("nvfp4", seed=7), step=step)
    t, name = "ideal.fp32", ""
    wq = ns.quantize(w, tiles)
    same(y, ns.matmul(ns.quantize(x, rows), wq.T, target=t))
    seed = stream(7, name, "g", -1, step)
    same(dx, ns.matmul(ns.quantize(g, drawn, seed=seed), wq, target=t))
    # wgrad: rows filled up to 48 with zeros, turned, times signs, Sylvester's matrix over 4
    words = np.array([
        philox_word(i, stream(7, name, "hadamard", step)) >> 63 for i in range(16)
    ])  # fmt: skip
    signs = np.where(words, -1.0, 1.0)
    assert len(set(signs)) == 2
    sylvester = np.array([[1.0]])
    for _ in range(4):
        sylvester = np.block([[sylvester, sylvester], [sylvester, -sylvester]])

    def turned(v):
        wide = np.zeros((v.shape[1], 48))
        wide[:, :43] = v.T
        groups = wide.reshape(-1, 3, 16) * signs
        return groups @ sylvester / 4, (groups @ sylvester / 4).reshape(-1, 48).astype(np.float32)

    gt, xt = turned(g)[1], turned(x)[1]
    # sums of sixteen float32 are rounded: take numsim's own, which agree to that
    gh, xh = (train.hadamard(np.pad(v.T, ((0, 0), (0, 5))), signs) for v in (g, x))
    np.testing.assert_allclose(gh, gt, atol=1e-9, rtol=1e-4)
    np.testing.assert_allclose(xh, xt, atol=1e-5)
    seed = stream(7, name, "g", -1, "hadamard", step)  # other draws than dgrad's
    gq, xq = ns.quantize(gh, drawn, seed=seed), ns.quantize(xh, rows)
    same(dw, ns.matmul(gq, xq.T, target=t))


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_each_step_of_a_sequence_draws_for_itself(cell):
    """A state that stands still is rounded up here and down there, not the same way each step."""
    drawn = Quant(E4M3, rounding="sr")
    one = ns.Rule(drawn, E4M3)
    recipe = train.Recipe((("*", train.Rule(one, one, one)),), seed=3)
    rows, hidden, steps = 4 if cell is nn.LSTM else 3, 40, 6
    params = {
        "weight_ih": np.zeros((rows * hidden, 2)), "weight_hh": np.zeros((rows * hidden, hidden)),
        "bias_ih": np.zeros(rows * hidden), "bias_hh": np.zeros(rows * hidden),
    }  # fmt: skip
    if cell is nn.LSTM:  # no input, all of the state, an output of one half
        params["bias_ih"][: 2 * hidden] = np.repeat([-500.0, 500.0], hidden)
    else:  # z = 1: h stays
        params["bias_ih"][hidden : 2 * hidden] = 500.0
    params["weight_hh"][-1, -1] = 1e-30
    rng = np.random.default_rng(0)
    h0, c0 = rng.normal(size=(2, 3, hidden)).astype(np.float32)
    if cell is nn.LSTM:
        h0 = np.float32(0.5) * np.tanh(c0).astype(np.float32)
    seen = []
    given = (np.zeros((3, steps, 2)), h0, *([c0] if cell is nn.LSTM else []))
    y, tape = nn.forward(cell(2, hidden), params, *given, recipe=recipe, step=9,
                         watch=lambda *row: seen.append(row))  # fmt: skip
    states = [(v, q) for name, tensor, v, q in seen if (name, tensor) == ("recurrent", "x")]
    assert len(states) == steps
    for t, (values, q) in enumerate(states):
        key = stream(3, "recurrent", "x", -1, t, 9)
        np.testing.assert_array_equal(q.codes, ns.quantize(values, drawn, seed=key).codes)
    assert np.array_equal(states[1][0], states[2][0])
    assert not np.array_equal(states[1][1].codes, states[2][1].codes)
    seen.clear()
    nn.backward(tape, *(np.ones_like(part) for part in y))
    back = [(v, q) for name, tensor, v, q in seen if (name, tensor) == ("recurrent", "g")]
    for t, (values, q) in zip(reversed(range(steps)), back[:steps], strict=True):
        key = stream(3, "recurrent", "g", -1, t, 9)
        np.testing.assert_array_equal(q.codes, ns.quantize(values, drawn, seed=key).codes)


def philox_word(i, key):
    from numsim.kernels.convert.philox import random_words

    out = np.empty(1, np.uint64)
    random_words(np.array([i], np.uint64), key, out)
    return int(out[0])


def test_delayed_scales_by_tensor_and_step():
    """x, w, g each have a history: step after step, one push in forward and one in backward."""
    recipe = train.recipe("fp8_delayed", delayed=train.DelayedScaling("e4m3", history=2))
    rules = {f: train.DelayedScaling(f, history=2) for f in (E4M3, E5M2)}
    states = {"x": rules[E4M3].init(), "w": rules[E4M3].init(), "g": rules[E5M2].init()}
    scaling = {}
    for step in range(4):
        x, w, g = tensors(seed=step)
        x *= np.float32(3.0**step)
        q = {}
        for tensor, values in (("x", x), ("w", w), ("g", g)):
            rule = rules[E5M2 if tensor == "g" else E4M3]
            q[tensor], states[tensor] = rule.quantize(values, states[tensor])
        got = products(x, w, g, recipe, step=step, scaling=scaling)
        t = "ideal.fp32"
        same(got[0], ns.matmul(q["x"], q["w"].T, target=t))
        same(got[1], ns.matmul(q["g"], q["w"], target=t))
        same(got[2], ns.matmul(q["g"].T, q["x"], target=t))


def test_a_tensor_in_two_formats_has_a_delayed_scale_in_each():
    four, five = ns.Rule(E4M3, E4M3), ns.Rule(E5M2, E5M2)
    rule = train.Rule(four, five, five, delayed=train.DelayedScaling("e4m3", history=1))
    recipe, scaling = train.Recipe((("*", rule),)), {}
    x, w, g = tensors()
    for _ in range(3):
        products(x, w, g, recipe, scaling=scaling)
    y, dx, dw = products(x, w, g, recipe, scaling=scaling)

    def q(v, f):
        top = np.float32({E4M3: 448.0, E5M2: 57344.0}[f])
        by = np.float32(top / np.abs(v).max())
        return ns.QTensor.from_codes(ns.encode(v * by, f), f, scale=np.float32(1) / by)

    same(y, ns.matmul(q(x, E4M3), q(w, E4M3).T, target="ideal.fp32"))
    same(dx, ns.matmul(q(g, E5M2), q(w, E5M2), target="ideal.fp32"))
    same(dw, ns.matmul(q(g, E5M2).T, q(x, E5M2), target="ideal.fp32"))


def test_clip_gradient_stops_it_where_storage_saturated():
    x, w, g = tensors()
    x[0, 0], w[1, 1], x[2, 3], w[3, 4] = 9.0, -8.5, 7.9375, -8.0
    straight = products(x, w, g, train.recipe("q3.4_forward"))
    clipped = products(x, w, g, train.recipe("q3.4_forward", clip_gradient=True))
    same(straight[0], clipped[0])
    for at, stopped in ((1, (0, 0)), (2, (1, 1))):
        want = straight[at].copy()
        assert want[stopped] != 0
        want[stopped] = 0
        same(clipped[at], want)


@pytest.mark.parametrize("quant", [E4M3, E5M2, "int8", Quant("int8", "per_token")])
def test_clip_gradient_lets_the_largest_element_of_an_amax_scale_pass(quant):
    """Its scale, rounded down, reaches a little less; nothing is cut off."""
    one = ns.Rule(quant, quant)
    for seed in range(6):
        x, w, g = tensors(seed=seed)
        ways = [
            products(x, w, g, train.Recipe((("*", train.Rule(one, one, one, clip_gradient=c)),)))
            for c in (False, True)
        ]
        for a, b in zip(*ways, strict=True):
            same(a, b)


@pytest.mark.parametrize("size", [1e-3, 1e6])
def test_clip_gradient_counts_the_scale_of_the_whole_tensor(size):
    one = ns.Rule("nvfp4", "nvfp4")
    x, w, g = tensors()
    x = (x * np.float32(size)).astype(np.float32)
    ways = [
        products(x, w, g, train.Recipe((("*", train.Rule(one, one, one, clip_gradient=c)),)))[1]
        for c in (False, True)
    ]
    q = ns.quantize(x, "nvfp4")
    assert q.tensor_scale is not None
    whole = q.element_scale().astype(np.float64) * float(q.tensor_scale)
    outside = np.abs(x) > 6.0 * whole * (1 + 2.0**-20)
    assert 0 < np.count_nonzero(outside) < x.size / 4
    np.testing.assert_array_equal(ways[1], np.where(outside, 0, ways[0]))


@pytest.mark.parametrize("rounding", ["sr", "rtz", "rup"])
def test_delayed_scales_round_as_the_rule_says(rounding):
    drawn = Quant(E4M3, rounding=rounding)
    one = ns.Rule(drawn, E4M3)
    recipe = train.Recipe(
        (("*", train.Rule(one, one, one, delayed=train.DelayedScaling(E4M3, history=2))),), seed=5
    )
    x, w, g = tensors()
    y, dx, _ = products(x, w, g, recipe, step=4)  # the first scale is 1

    def q(v, tensor, axis=-1):
        how = {"seed": stream(5, "", tensor, axis, 4)} if rounding == "sr" else {}
        return ns.QTensor.from_codes(ns.encode(v, E4M3, rounding=rounding, **how), E4M3, scale=1.0)

    wq = ns.QTensor.from_codes(ns.encode(w, E4M3), E4M3, scale=1.0)
    xq, gq = q(x, "x"), q(g, "g")
    same(y, ns.matmul(xq, wq.T, target="ideal.fp32"))
    same(dx, ns.matmul(gq, wq, target="ideal.fp32"))
    nearest = ns.QTensor.from_codes(ns.encode(x, E4M3), E4M3, scale=1.0)
    assert not np.array_equal(y, ns.matmul(nearest, wq.T, target="ideal.fp32"))


def test_leading_dimensions_are_rows_under_one_scale():
    x, w, g = tensors(m=24)
    for name in train.list_recipes():
        recipe = train.recipe(name)
        flat = products(x, w, g, recipe)
        deep = products(x.reshape(2, 3, 4, K), w, g.reshape(2, 3, 4, N), recipe)
        same(deep[0].reshape(24, N), flat[0])
        same(deep[1].reshape(24, K), flat[1])
        same(deep[2], flat[2])


def test_bias_and_its_gradient_are_float32():
    x, w, g = tensors()
    b = np.random.default_rng(1).normal(size=N).astype(np.float32)
    recipe = train.recipe("fp8_hybrid")
    y, tape = nn.forward(nn.Linear(K, N), {"weight": w, "bias": b}, x, recipe=recipe)
    _, grads = nn.backward(tape, g)
    same(y, products(x, w, g, recipe)[0] + b)
    total = np.zeros(N)
    for row in g:
        total += row.astype(np.float64)
    same(grads["bias"], total.astype(np.float32))


@pytest.mark.parametrize("name", [None, "fp8_hybrid", "fp8_delayed", "mxfp8", "nvfp4"])
def test_no_rows_give_no_rows_and_gradients_of_zeros(name):
    recipe, scaling = None if name is None else train.recipe(name), {}
    layer, params = nn.Linear(3, 2), nn.init(nn.Linear(3, 2))
    y, tape = nn.forward(layer, params, np.zeros((4, 0, 3)), recipe=recipe, scaling=scaling)
    assert y.shape == (4, 0, 2)
    (dx,), grads = nn.backward(tape, np.zeros((4, 0, 2)))
    assert dx.shape == (4, 0, 3)
    assert y.dtype == dx.dtype == grads["weight"].dtype
    assert not grads["weight"].any()
    assert not grads["bias"].any()
    assert grads["weight"].shape == (2, 3)
    assert not scaling


def test_convolution_is_a_linear_over_patches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 6, 5)).astype(np.float32)
    layer = nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0))
    params = nn.init(layer)
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    patches = np.array([
        wide[b, :, 2 * i : 2 * i + 3, j : j + 2].reshape(-1)
        for b in range(2) for i in range(3) for j in range(4)
    ])  # fmt: skip
    for name in ("fp8_hybrid", "mxfp8", "int8", "nvfp4"):
        recipe = train.recipe(name)
        y, tape = nn.forward(layer, params, x, recipe=recipe)
        up = rng.normal(size=y.shape).astype(np.float32)
        dx, grads = nn.backward(tape, up)
        g = np.ascontiguousarray(up.transpose(0, 2, 3, 1)).reshape(-1, 4)
        w = params["weight"].reshape(4, -1)
        want = products(patches, w, g, recipe)
        same(y.transpose(0, 2, 3, 1).reshape(-1, 4), want[0] + params["bias"])
        same(grads["weight"].reshape(4, -1), want[2])
        back, at = np.zeros(wide.shape), 0
        for b in range(2):
            for i in range(3):
                for j in range(4):
                    back[b, :, 2 * i : 2 * i + 3, j : j + 2] += want[1][at].reshape(3, 3, 2)
                    at += 1
        np.testing.assert_array_equal(dx[0], back[:, :, 1:-1].astype(np.float32))
        stored = {k: ns.quantize(v, "int8") for k, v in params.items()}
        _, tape = nn.forward(layer, stored, x, recipe=train.recipe("int8"))
        assert nn.backward(tape, up)[1]["weight"].shape == params["weight"].shape


@pytest.mark.parametrize("name", [None, "fp8_hybrid", "mxfp8"])
@pytest.mark.parametrize(
    ("layer", "size"),
    [(nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (9,)),
     (nn.Conv2d(2, 2, (1, 3), stride=(3, 5), padding=2, bias=False), (6, 8)),
     (nn.Conv2d(4, 8, 3, stride=2, padding=3, dilation=(2, 1), groups=4), (7, 9))],
)  # fmt: skip
def test_patches_of_a_convolution_element_by_element(layer, size, name):
    """x, W and g as rows of patches; an element's gradients add from its first patch on."""
    rng = np.random.default_rng(3)
    recipe = None if name is None else train.recipe(name)
    params = nn.init(layer)
    x = (rng.normal(size=(2, layer.inputs, *size)) * 10.0 ** rng.integers(-5, 5, size=size)).astype(
        np.float32
    )
    y, tape = nn.forward(layer, params, x, recipe=recipe)
    up = (rng.normal(size=y.shape) * 10.0 ** rng.integers(-5, 5, size=y.shape)).astype(np.float32)
    (dx,), grads = nn.backward(tape, up)
    pair = [v if isinstance(v, tuple) else (v,) for v in
            (layer.kernel, layer.stride, layer.padding, layer.dilation)]  # fmt: skip
    kernel, stride, padding, dilation = pair
    wide = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    part = layer.inputs // layer.groups
    places = [(b, *at) for b in range(2) for at in np.ndindex(y.shape[2:])]
    taps = [(c, *at) for c in range(part) for at in np.ndindex(kernel)]

    def source(group, place, tap):
        at = (p * s + t * d for p, s, t, d in zip(place[1:], stride, tap[1:], dilation,
                                                  strict=True))  # fmt: skip
        return (place[0], group * part + tap[0], *at)

    x_rows = np.array([
        [[wide[source(j, place, tap)] for tap in taps] for place in places]
        for j in range(layer.groups)
    ])  # fmt: skip
    rows = layer.outputs // layer.groups
    g_rows = np.array([
        [[up[(place[0], j * rows + n, *place[1:])] for n in range(rows)] for place in places]
        for j in range(layer.groups)
    ])  # fmt: skip
    w = params["weight"].reshape(layer.groups, rows, -1)
    if layer.groups == 1:
        x_rows, g_rows, w = x_rows[0], g_rows[0], w[0]
    c = products_module.Context(*((np.float64,) if recipe is None else (np.float32, recipe.rule)))
    as_it = x_rows.astype(c.dtype), w.astype(c.dtype), g_rows.astype(c.dtype)
    want, saved = products_module.forward_product(c, "", *as_it[:2])
    dx_rows, dw = products_module.backward_product(c, saved, as_it[2])
    want = want.reshape(layer.groups, len(places), rows)
    back = np.zeros(wide.shape)
    for j, parts in enumerate(dx_rows.reshape(layer.groups, len(places), -1)):
        for place, row in zip(places, parts, strict=True):
            for tap, g in zip(taps, row, strict=True):
                back[source(j, place, tap)] += g
    inside = tuple(slice(p, n - p) for p, n in zip(padding, wide.shape[2:], strict=True))
    np.testing.assert_array_equal(dx, back[(slice(None), slice(None), *inside)].astype(c.dtype))
    np.testing.assert_array_equal(grads["weight"].reshape(dw.shape), dw)
    bias = params.get("bias", np.zeros(layer.outputs)).astype(c.dtype)
    for at, place in enumerate(places):
        np.testing.assert_array_equal(
            y[(place[0], slice(None), *place[1:])], want[:, at].reshape(-1) + bias
        )


@pytest.mark.parametrize("name", [n for n in train.list_recipes() if "stored" not in n])
def test_threads_and_paths_change_no_bit(name):
    x, w, g = tensors(m=130, k=96, n=64)
    recipe = train.recipe(name)
    with using_threads(1):
        want = products(x, w, g, recipe)
    with using_threads(2) as possible:
        if possible:
            for a, b in zip(products(x, w, g, recipe), want, strict=True):
                same(a, b)
    for path in simd.PATHS:
        with simd.force(path):
            for a, b in zip(products(x, w, g, recipe), want, strict=True):
                same(a, b)
