"""Every derivative against central differences in float64, every family against Model.run."""

import pathlib

import numpy as np
import pytest

from numsim import nn
from numsim.errors import NumsimError
from numsim.kernels.elementwise.activations import ACTIVATIONS
from numsim.models import load_model

ORACLE = pathlib.Path(__file__).parents[1] / "data" / "oracle"
FAMILIES = sorted(p.name for p in ORACLE.iterdir())


def rng_of(*seed):
    return np.random.default_rng(seed)


def outputs(layer, params, inputs):
    y, tape = nn.forward(layer, params, *inputs)
    return (y if isinstance(y, tuple) else (y,)), tape


def gradcheck(layer, inputs, *, params=None, seed=0, step=1e-6, tolerance=1e-7):
    """Compare every component of every gradient with a central difference."""
    rng = rng_of(seed)
    if params is None:
        params = {k: rng.normal(size=s) for k, s in nn.param_shapes(layer).items()}
    ys, tape = outputs(layer, params, inputs)
    ups = [rng.normal(size=y.shape) for y in ys]
    dx, dp = nn.backward(tape, *ups)

    def value(inputs, params):
        return sum(float((u * y).sum()) for u, y in zip(ups, outputs(layer, params, inputs)[0],
                                                        strict=True))  # fmt: skip

    def check(what, x, gradient, put):
        assert gradient.shape == x.shape
        for at in np.ndindex(x.shape):
            high, low = x.copy(), x.copy()
            high[at] += step
            low[at] -= step
            slope = (value(*put(high)) - value(*put(low))) / (2 * step)
            size = max(1.0, float(np.abs(gradient).max()))
            assert abs(slope - gradient[at]) <= tolerance * size, (what, at, slope, gradient[at])

    for i, x in enumerate(inputs):
        if x.dtype.kind != "f":
            assert dx[i] is None
            continue
        check(i, x, dx[i], lambda new, i=i: ([*inputs[:i], new, *inputs[i + 1 :]], params))
    assert list(dp) == list(params)
    for name, p in params.items():
        check(name, p, dp[name], lambda new, name=name: (inputs, params | {name: new}))


def normal(*shape, seed=1):
    return rng_of(seed, *shape).normal(size=shape)


LAYERS = {
    "linear": (nn.Linear(3, 4), [normal(2, 5, 3)]),
    "linear of one row": (nn.Linear(3, 4), [normal(3)]),
    "linear without bias": (nn.Linear(3, 1, bias=False), [normal(2, 3)]),
    "embedding": (nn.Embedding(5, 3), [np.array([[0, 4, 4], [1, 4, 0]])]),
    "lstm": (nn.LSTM(2, 3), [normal(2, 4, 2)]),
    "lstm from states": (nn.LSTM(2, 3), [normal(2, 4, 2), normal(2, 3), normal(2, 3, seed=2)]),
    "lstm without bias": (nn.LSTM(2, 1, bias=False), [normal(1, 1, 2), normal(1, 1)]),
    "gru": (nn.GRU(2, 3), [normal(2, 4, 2)]),
    "gru from a state": (nn.GRU(2, 3), [normal(2, 4, 2), normal(2, 3)]),
    "gru without bias": (nn.GRU(1, 2, bias=False), [normal(1, 3, 1), normal(1, 2)]),
    "layer norm": (nn.LayerNorm(5), [normal(2, 3, 5)]),
    "layer norm of one row": (nn.LayerNorm(9, eps=0.1), [normal(9)]),
    "rms norm": (nn.RMSNorm(5, eps=0.01), [normal(2, 3, 5)]),
    "attention": (nn.Attention(), [normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 3)]),
    "causal attention": (
        nn.Attention(causal=True), [normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)]),
    "grouped attention": (
        nn.Attention(causal=True), [normal(2, 4, 3, 2), normal(2, 2, 3, 2), normal(2, 2, 3, 2)]),
    "last": (nn.Last(), [normal(2, 3, 4)]),
    "flatten": (nn.Flatten(), [normal(2, 3, 4)]),
    "conv1d": (nn.Conv1d(2, 3, 3), [normal(2, 2, 6)]),
    "conv1d with stride": (nn.Conv1d(2, 3, 4, stride=3, padding=2), [normal(2, 2, 7)]),
    "conv2d": (nn.Conv2d(2, 3, 2), [normal(1, 2, 3, 4)]),
    "conv2d with stride": (
        nn.Conv2d(2, 2, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), [normal(2, 2, 5, 4)]),
    "sequence": (
        nn.Sequential(embed=nn.Embedding(6, 2), lstm=nn.LSTM(2, 3), last=nn.Last(),
                      norm=nn.LayerNorm(3), head=nn.Linear(3, 2), act=nn.Activation("silu")),
        [np.array([[1, 2, 5], [5, 0, 1]])]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_central_differences(name):
    layer, inputs = LAYERS[name]
    gradcheck(layer, inputs)


@pytest.mark.parametrize("name", sorted({*ACTIVATIONS, "gelu_tanh"}))
def test_activations(name):
    x = np.concatenate([np.linspace(-9.05, 9.05, 40), [-1e-3, 1e-3]])
    gradcheck(nn.Activation(name), [x], tolerance=3e-8)


@pytest.mark.parametrize("name", sorted({*ACTIVATIONS, "gelu_tanh"}))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_activations_far_out(name, dtype):
    """Beyond +-30 every slope is that of the line it approaches; nothing overflows or is NaN."""
    big = float(np.finfo(dtype).max)
    x = np.array([0.0, -0.0, 800.0, -800.0, 1e6, -1e6, 1e30, -1e30, big, -big])
    recipe = None
    if dtype is np.float32:
        from numsim import train

        recipe = train.recipe("float32")
    y, tape = nn.forward(nn.Activation(name), {}, x.astype(dtype), recipe=recipe)
    (dx,), _ = nn.backward(tape, np.ones(x.shape, dtype))
    assert y.dtype == dx.dtype == dtype
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    tail = {"sigmoid": (0, 0), "tanh": (0, 0)}.get(name, (0, 1))
    np.testing.assert_array_equal(dx[2::2], tail[1])
    np.testing.assert_array_equal(dx[3::2], tail[0])
    middle = {"sigmoid": 0.25, "tanh": 1.0, "relu": 0.0}.get(name, 0.5)
    np.testing.assert_allclose(dx[:2], middle, rtol=1e-15)


@pytest.mark.parametrize("name", ["mse", "bce_with_logits"])
def test_losses_of_numbers(name):
    x, t = normal(3, 4), rng_of(9).uniform(size=(3, 4))
    value, gradient = nn.loss(name, x, t)
    for at in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[at] += 1e-6
        low[at] -= 1e-6
        slope = (nn.loss(name, high, t)[0] - nn.loss(name, low, t)[0]) / 2e-6
        assert abs(slope - gradient[at]) < 1e-9
    if name == "mse":
        assert value == pytest.approx(float(((x - t) ** 2).mean()), rel=1e-14)
    else:
        p = 1 / (1 + np.exp(-x))
        want = -(t * np.log(p) + (1 - t) * np.log1p(-p)).mean()
        assert value == pytest.approx(float(want), rel=1e-13)


def test_cross_entropy():
    x, t = normal(6, 5), np.array([0, 4, -100, 2, -100, 2])
    value, gradient = nn.loss("cross_entropy", x, t)
    kept = t != -100
    soft = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    want = -np.log(soft[kept, t[kept]]).mean()
    assert value == pytest.approx(float(want), rel=1e-14)
    soft[kept, t[kept]] -= 1
    np.testing.assert_allclose(gradient, np.where(kept[:, None], soft, 0) / 4, atol=1e-16)
    other, _ = nn.loss("cross_entropy", x, np.where(kept, t, -1), ignore_index=-1)
    assert other == value


def test_losses_of_extreme_logits():
    value, gradient = nn.loss("bce_with_logits", [1000.0, -1000.0, 0.0], [0.0, 1.0, 0.25])
    assert value == (1000.0 + 1000.0 + float(np.log(2.0))) / 3
    np.testing.assert_allclose(gradient, [1 / 3, -1 / 3, 0.25 / 3], rtol=1e-15)
    value, gradient = nn.loss("cross_entropy", [[1000.0, -1000.0], [0.0, 800.0]], [1, 1])
    assert value == 1000.0
    np.testing.assert_array_equal(gradient, [[0.5, -0.5], [0.0, 0.0]])
    assert nn.loss("mse", [1e200], [-1e200])[0] == np.inf


def ids_of(model):
    o = np.load(ORACLE / model.arch.family / "oracle.npz")
    ids = [o["input_ids"][:, :7].astype(np.int64)]
    if "decoder_input_ids" in o:
        ids.append(o["decoder_input_ids"].astype(np.int64))
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_runs_as_its_model_and_has_its_derivative(family):
    model = load_model(ORACLE / family)
    layer, params = nn.from_model(model)
    wide = {k: v.astype(np.float64) for k, v in params.items()}
    ids = ids_of(model)
    y, tape = nn.forward(layer, wide, *ids)
    given = {"decoder_tokens": ids[1]} if len(ids) > 1 else {}
    ran = model.run(ids[0], **given)
    want = ran.logits if model.arch.head else ran.hidden_states[-1]
    np.testing.assert_array_equal(y, want)
    rng = rng_of(3)
    up = rng.normal(size=y.shape)
    _, grads = nn.backward(tape, up)
    away = {k: rng.normal(size=v.shape) * np.abs(v).mean() for k, v in wide.items()}
    step = 1e-6
    ends = [
        float(
            (up * nn.forward(layer, {k: v + s * away[k] for k, v in wide.items()}, *ids)[0]).sum()
        )
        for s in (step, -step)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    along = sum(float((grads[k] * away[k]).sum()) for k in wide)
    assert abs(slope - along) <= 1e-6 * max(1.0, abs(along))
    for name, value in grads.items():
        assert value.shape == params[name].shape
        assert np.isfinite(value).all()


def test_what_no_output_depends_on_has_gradients_of_zero():
    layer, params = LAYERS["lstm from states"][0], None
    params = nn.init(layer)
    x, h, c = LAYERS["lstm from states"][1]
    (y, last_h, last_c), tape = nn.forward(layer, params, x, h, c)
    zero = [np.zeros_like(v) for v in (y, last_h, last_c)]
    inputs, grads = nn.backward(tape, *zero)
    assert not any(np.any(g) for g in (*inputs, *grads.values()))


def test_the_gradients_of_two_biases_are_two_arrays():
    layer = nn.LSTM(2, 3)
    (y, h, c), tape = nn.forward(layer, nn.init(layer), normal(2, 4, 2))
    _, grads = nn.backward(tape, y, h, c)
    grads["bias_ih"] *= 2
    assert not np.array_equal(grads["bias_ih"], grads["bias_hh"])


@pytest.mark.parametrize(("heads", "groups", "steps", "seen"), [(2, 2, 3, 3), (4, 2, 2, 5)])
def test_causal_attention_by_definition(heads, groups, steps, seen):
    """Queries are the last of the keys: query t sees keys 0 .. seen - steps + t."""
    q, k, v = normal(2, heads, steps, 4), normal(2, groups, seen, 4), normal(2, groups, seen, 3)
    y, _ = nn.forward(nn.Attention(causal=True), {}, q, k, v)
    for b, n, t in np.ndindex(2, heads, steps):
        last = seen - steps + t + 1
        kv = n // (heads // groups)
        scores = np.exp(k[b, kv, :last] @ q[b, n, t] / 2.0)
        want = (scores / scores.sum()) @ v[b, kv, :last]
        np.testing.assert_allclose(y[b, n, t], want, rtol=1e-12)


def test_the_row_of_padding_begins_as_zeros_and_has_no_gradient():
    layer = nn.Embedding(4, 2, padding_idx=1)
    params = nn.init(layer)
    assert not params["weight"][1].any()
    assert params["weight"][[0, 2, 3]].all()
    _, tape = nn.forward(layer, params, np.array([[1, 2, 1, 3]]))
    _, gradients = nn.backward(tape, np.ones((1, 4, 2)))
    assert gradients["weight"].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


@pytest.mark.parametrize("padding_idx", [-1, 4, 1.0, True])
def test_a_row_of_padding_outside_the_table(padding_idx):
    with pytest.raises(NumsimError, match="padding_idx is None or an id from 0 to 3"):
        nn.Embedding(4, 2, padding_idx)
