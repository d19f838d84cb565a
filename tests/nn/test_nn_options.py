"""Options of layers that torch's modules have: groups, dilation, masks, scale, dropout, weights."""

from itertools import product

import numpy as np
import pytest

import numsim as ns
from numsim import nn, train


def _numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def gradcheck(layer, params, *inputs):
    """Central differences of a weighted sum of all outputs, for each input and parameter."""
    names = list(params)
    arrays = [*inputs, *params.values()]

    def total(arrays):
        own = dict(zip(names, arrays[len(inputs) :], strict=True))
        y, tape = nn.forward(layer, own, *arrays[: len(inputs)])
        many = y if isinstance(y, tuple) else (y,)
        ups = [_numbers(*part.shape, seed=7 + at) for at, part in enumerate(many)]
        return sum(float((g * part).sum()) for g, part in zip(ups, many, strict=True)), tape, ups

    _, tape, ups = total(arrays)
    dx, dp = nn.backward(tape, *ups)
    for at, g in enumerate([*dx, *dp.values()]):
        if g is None:
            continue
        near = np.empty_like(arrays[at])
        for index in np.ndindex(near.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() if i == at else a for i, a in enumerate(arrays)]
                moved[at][index] += step
                ends.append(total(moved)[0])
            near[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(g, near, rtol=1e-6, atol=1e-8)


def convolved(x, w, *, stride, padding, dilation, groups):
    """A convolution in loops."""
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)))
    outputs, part, *kernel = w.shape
    sizes = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    y = np.zeros((len(x), outputs, *sizes))
    for b, o in product(range(len(x)), range(outputs)):
        first = o // (outputs // groups) * part
        for at in product(*map(range, sizes)):
            for c, tap in product(range(part), product(*map(range, kernel))):
                place = tuple(
                    i * s + k * d for i, s, k, d in zip(at, stride, tap, dilation, strict=True)
                )
                y[(b, o, *at)] += x[(b, first + c, *place)] * w[(o, c, *tap)]
    return y


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_with_groups_and_dilation(groups):
    x, w = _numbers(2, 4, 7, 6), _numbers(8, 4 // groups, 2, 3, seed=1)
    how = {"stride": (2, 1), "padding": (1, 0), "dilation": (3, 2)}
    layer = nn.Conv2d(4, 8, (2, 3), bias=False, groups=groups, **how)
    y, _ = nn.forward(layer, {"weight": w}, x)
    np.testing.assert_allclose(y, convolved(x, w, groups=groups, **how), rtol=1e-13, atol=1e-13)
    layer = nn.Conv1d(4, 8, 3, 2, 1, bias=False, dilation=2, groups=groups)
    y, _ = nn.forward(layer, {"weight": w[:, :, 0]}, x[..., 0])
    want = convolved(x[..., 0], w[:, :, 0], stride=(2,), padding=(1,), dilation=(2,), groups=groups)
    np.testing.assert_allclose(y, want, rtol=1e-13, atol=1e-13)


def test_gradients_of_groups_and_dilation():
    layer = nn.Conv1d(4, 6, 2, stride=2, padding=1, dilation=2, groups=2)
    gradcheck(layer, {"weight": _numbers(6, 2, 2), "bias": _numbers(6)}, _numbers(2, 4, 6, seed=3))


@pytest.mark.parametrize("name", ["fp8_hybrid", "int8", "mxfp8", "nvfp4"])
def test_groups_are_one_batched_product(name):
    """The patches of each group times its kernels, under the scales of the whole tensors."""
    recipe = train.recipe(name)
    x = _numbers(3, 4, 5).astype(np.float32)
    w = _numbers(6, 2, 5, seed=1).astype(np.float32)
    y, _ = nn.forward(nn.Conv1d(4, 6, 5, bias=False, groups=2), {"weight": w}, x, recipe=recipe)
    rule = recipe.rule("").forward
    a = ns.quantize(x.reshape(3, 2, 10).swapaxes(0, 1).copy(), rule.activations)
    b = ns.quantize(w.reshape(2, 3, 10), rule.weights)
    want = ns.matmul(a, b.T, target=rule.target)  # [groups, B, outputs of a group]
    assert np.array_equal(y[..., 0], want.swapaxes(0, 1).reshape(3, 6))


def test_stored_kernels_of_groups():
    w = ns.quantize(_numbers(6, 2, 3).astype(np.float32), "e4m3")
    x = _numbers(2, 4, 7, seed=1).astype(np.float32)
    layer = nn.Conv1d(4, 6, 3, bias=False, groups=2)
    recipe = train.recipe("fp8_hybrid")
    got, tape = nn.forward(layer, {"weight": w}, x, recipe=recipe)
    want, other = nn.forward(layer, {"weight": w.dequantize()}, x, recipe=recipe)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    g = np.ones_like(got)
    assert nn.backward(tape, g)[1]["weight"].shape == nn.backward(other, g)[1]["weight"].shape


def attended(q, k, v, *, scale, shift, factor):
    """Attention in NumPy, float64."""
    groups = q.shape[1] // k.shape[1]
    scores = scale * q @ np.repeat(k, groups, 1).swapaxes(-1, -2) + shift
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True) * factor
    return p @ np.repeat(v, groups, 1), p


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (1, 4, 3, 5), (2, 1, 1, 5), (3, 5), (5,)])
def test_masks_dropout_and_weights_of_attention(shape):
    q, k, v = _numbers(2, 4, 3, 6), _numbers(2, 2, 5, 6, seed=1), _numbers(2, 2, 5, 7, seed=2)
    factor = np.random.default_rng(3).integers(0, 2, (2, 4, 3, 5)) * 2.0
    keep = np.random.default_rng(4).integers(0, 2, shape)
    keep[..., 1] = 1  # a key for each row
    shift = _numbers(*shape, seed=5)
    layer = nn.Attention(scale=0.3, dropout=True, weights=True)
    for mask, added in ((keep, np.where(keep, 0.0, -np.inf)), (shift, shift)):
        y, p = nn.forward(layer, {}, q, k, v, mask, factor)[0]
        want = attended(q, k, v, scale=0.3, shift=added, factor=factor)
        np.testing.assert_allclose(y, want[0], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(p, want[1], rtol=1e-12, atol=1e-13)
        assert (p[np.broadcast_to(keep, p.shape) == 0] == 0).all() or mask is shift


@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (2, 1, 1, 4), (3, 4), (1, 2, 3, 1)])
def test_gradients_of_masks_dropout_and_weights(shape):
    q, k, v = _numbers(2, 2, 3, 2), _numbers(2, 1, 4, 2, seed=1), _numbers(2, 1, 4, 2, seed=2)
    factor = _numbers(2, 2, 3, 4, seed=3)
    layer = nn.Attention(scale=0.7, dropout=True, weights=True)
    gradcheck(layer, {}, q, k, v, _numbers(*shape, seed=4), factor)


def test_a_row_without_a_key_is_zero_and_has_no_gradient():
    q, k, v = _numbers(1, 1, 2, 3), _numbers(1, 1, 4, 3, seed=1), _numbers(1, 1, 4, 3, seed=2)
    y, tape = nn.forward(nn.Attention(), {}, q, k, v, np.array([[0, 0, 0, 0], [1, 1, 1, 1]]))
    assert (y[0, 0, 0] == 0).all()
    (dq, _, _, none), _ = nn.backward(tape, np.ones_like(y))
    assert (dq[0, 0, 0] == 0).all()
    assert none is None


def test_bad_options():
    x = np.zeros((1, 2, 3, 4))
    for call, message in (
        (lambda: nn.Conv1d(4, 6, 3, groups=3), "groups divides inputs and outputs; got 3"),
        (lambda: nn.Conv2d(4, 6, 3, groups=0), "groups is an integer from 1"),
        (lambda: nn.Conv2d(4, 6, 3, dilation=(1, 0)), "dilation"),
        (lambda: nn.Conv1d(4, 6, 3, dilation=0), "dilation"),
        (lambda: nn.Attention(scale="0.1"), "scale is a finite number or None; got '0.1'"),
        (lambda: nn.Attention(scale=np.inf), "scale is a finite number or None; got inf"),
        (
            lambda: nn.forward(nn.Attention(), {}, x, x, x, np.zeros((4, 3))),
            r"mask broadcasts to \[B, heads, T, S\] = \[1, 2, 3, 3\]; got \[4, 3\]",
        ),
        (lambda: nn.forward(nn.Attention(dropout=True), {}, x, x, x), "takes 4 to 5 inputs"),
    ):
        with pytest.raises(ns.NumsimError, match=message):
            call()
