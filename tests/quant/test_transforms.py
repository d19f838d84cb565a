"""Outlier methods: against plain loops, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

import numsim as ns
from numsim.quant.transforms import (
    awq,
    bias_correction,
    clip_search,
    gptq,
    hadamard,
    hadamard_order,
    llm_int8,
    rotate,
    smooth,
)

RNG = np.random.default_rng(29)


@pytest.mark.parametrize("block", [1, 2, 8, 16, 64, 12, 20, 28, 36, 44, 48, 72])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rotation_is_the_product_with_the_matrix(block, dtype):
    x = RNG.standard_normal((3, 2 * block)).astype(dtype)
    signs = RNG.integers(0, 2, 2 * block) * 2 - 1
    want = (x * signs).reshape(3, 2, block).astype(np.float64) @ hadamard(block)
    got = rotate(x, block=block, signs=signs)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want.reshape(x.shape), atol=2e-6 if dtype == np.float32
                               else 1e-14)  # fmt: skip
    np.testing.assert_allclose(rotate(got, block=block, signs=signs, inverse=True), x, atol=3e-6)


def plain_gptq(w, x, quant, group):
    """Solve the remaining least-squares problem anew after every column, scales as they come."""
    h = 2 * x.T @ x / len(x)
    h += 0.01 * np.diag(h).mean() * np.eye(len(h))
    w, codes = w.copy(), np.zeros(w.shape, int)
    for i in range(w.shape[1]):
        if i % group == 0:
            scale = ns.quantize(w[:, i : i + group], quant, axis=-1).scale[:, 0].astype(float)
        codes[:, i] = np.clip(np.rint(w[:, i] / scale), -8, 7)
        error = w[:, i] - codes[:, i] * scale
        rest = np.arange(i + 1, w.shape[1])
        if rest.size:  # the other columns make up for the error as well as they can
            w[:, rest] += np.outer(error, np.linalg.solve(h[np.ix_(rest, rest)], h[rest, i]))
    return codes


@pytest.mark.parametrize(("depth", "group"), [(40, 8), (300, 100), (200, 200)])
def test_gptq_solves_what_remains_at_every_column(depth, group):
    """Depths beyond a block of 128 columns, groups that lie across its end."""
    w = RNG.standard_normal((5, depth))
    x = RNG.standard_normal((400, depth)) * np.linspace(0.5, 2, depth)
    quant = ns.Quant("int4", block=group)
    np.testing.assert_array_equal(gptq(w, x, quant).codes, plain_gptq(w, x, quant, group))


@pytest.mark.parametrize(
    "quant",
    ["nvfp4", "mxfp4_e2m1", "int4", ns.Quant("nf4", block=32), ns.Quant("e4m3", "per_channel"),
     ns.Quant("uint4", block=32, zero_point=True), "nvfp4_row", "amdfp4", "nvfp4_4over6", "if4",
     "hif4", ns.Quant("int8", scale=0.04),
     ns.Quant("e2m1", block=16, scale_format="e4m3", scale=0.002)],
    ids=str,
)  # fmt: skip
def test_gptq_of_any_format_is_nearer_in_the_output(quant):
    w, x = (
        RNG.standard_normal((16, 96)),
        RNG.standard_normal((64, 96)) @ RNG.standard_normal((96, 96)),
    )
    losses = []
    for q in (ns.quantize(w, quant), gptq(w, x, quant), gptq(w, x, quant, act_order=True)):
        assert q.bits_per_value() == ns.quantize(w, quant).bits_per_value()
        losses.append(float(((x @ (w - q.dequantize()).T) ** 2).mean()))
    assert losses[1] < losses[0]
    assert losses[2] < losses[0]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("quant", [*ns.quant.QUANTS, "int4", "nf4"])
def test_gptq_of_inputs_that_are_apart_is_plain_rounding(quant, act_order):
    """Under a diagonal H no column makes up for another, whatever a block decides at once."""
    w = np.random.default_rng(4).standard_t(3, (6, 200))
    x = np.diag(np.random.default_rng(5).permutation(np.linspace(0.5, 2, 200)))
    got, want = gptq(w, x, quant, act_order=act_order), ns.quantize(w, quant)
    for name in ("codes", "scale", "scale_codes"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_a_dead_column_becomes_zero():
    w, x = RNG.standard_normal((4, 16)), RNG.standard_normal((32, 16))
    x[:, 5] = 0
    assert not gptq(w, x, ns.Quant("int4", "per_channel")).dequantize()[:, 5].any()


def test_clipping_never_loses_against_none():
    w, x = RNG.standard_t(2, (8, 64)), RNG.standard_normal((50, 64))
    quant = ns.Quant("int4", block=16)
    best = clip_search(w, x, quant)
    amax = np.abs(w).reshape(8, 4, 16).max(-1)
    edge = np.repeat(amax * best, 16, axis=1)
    clipped = ns.quantize(np.clip(w, -edge, edge), quant).dequantize()
    for g in range(4):
        part = slice(16 * g, 16 * g + 16)
        lost = [((x[:, part] @ (w - v)[:, part].T) ** 2).mean(0)
                for v in (clipped, ns.quantize(w, quant).dequantize())]  # fmt: skip
        assert (lost[0] <= lost[1] * (1 + 1e-12)).all()


def test_a_corrected_bias_keeps_the_mean_output():
    w, x = RNG.standard_normal((6, 32)), RNG.standard_normal((40, 32)) + 3
    q = ns.quantize(w, "int4")
    y = x @ q.dequantize().astype(np.float64).T + bias_correction(w, q, x)
    np.testing.assert_allclose(y.mean(0), (x @ w.T).mean(0), atol=1e-12)


def test_smoothed_operands_have_the_same_product():
    w, x = RNG.standard_normal((6, 32)), RNG.standard_normal((40, 32)) * np.geomspace(0.1, 50, 32)
    s = smooth(np.abs(x).max(0), np.abs(w).max(0))
    np.testing.assert_allclose((x / s) @ (w * s).T, x @ w.T, atol=1e-10)
    np.testing.assert_allclose(np.abs(x / s).max(0), np.abs(w * s).max(0))  # alpha 1/2


MATRIX = np.ones((4, 8))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hadamard(22), "use 20 or 24"),
        (lambda: hadamard(0), "sizes are 2"),
        (lambda: hadamard(1 << 40), r"rotate\(x, block=1099511627776\) needs none"),
        (lambda: rotate(np.ones(10), block=4), "4 does not divide 10"),
        (lambda: rotate(np.ones(8), signs=np.zeros(8)), "signs are"),
        (lambda: gptq(MATRIX, MATRIX, "int4", damp=0), "singular at column"),
        (lambda: gptq(MATRIX, np.ones((4, 7)), "int4"), r"x is \[rows, K\]"),
        (lambda: gptq(MATRIX, MATRIX, ns.Quant("int4", block=(2, 2))), "one column after another"),
        (lambda: gptq(np.full((2, 2), np.nan), np.eye(2), "int4"), r"4 of 4 .* index \(0, 0\)"),
        (lambda: awq(MATRIX, MATRIX, "int4", grid=0), "grid is an integer"),
        (lambda: clip_search(MATRIX, MATRIX, "int4"), "clips rows"),
        (lambda: llm_int8(MATRIX, MATRIX, threshold=0), "threshold is positive"),
        (lambda: llm_int8(MATRIX, np.ones((3, 3))), r"w \[N, K\]"),
        (lambda: smooth([1.0], [1.0, 2.0]), "one number a column"),
        (lambda: smooth([-1.0], [1.0]), "not negative; 1 of 1"),
        (lambda: smooth([1.0], [1.0], alpha=2), "alpha is 0 to 1"),
        (lambda: bias_correction(MATRIX, MATRIX, MATRIX), "stored is w as a QTensor"),
    ],
)
def test_what_no_method_takes(call, words):
    with pytest.raises(ns.NumsimError, match=words):
        call()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 8, 12, 16, 32, 64, 96, 128, 512, 2048])
def test_a_rotation_adds_in_the_order_of_its_definition(size, dtype):
    """Sums and differences of values 1, 2, 4 .. apart (of m: m, 2 m ..), then the matrix of m."""
    two, m = hadamard_order(size)
    x = np.random.default_rng(size).normal(size=(5, size)).astype(dtype)
    want, step = x.copy(), m
    while step < size:
        pairs = want.reshape(5, -1, 2, step)
        want = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        want, step = want.reshape(5, size), 2 * step
    factor = dtype(1 / np.sqrt(np.float64(size)))
    if m > 1:
        signs = (hadamard(m) * np.sqrt(m)).round().astype(dtype)
        runs, total = want.reshape(5, two, m), np.zeros((5, two, m), dtype)
        for j in range(m):
            total += runs[:, :, j, None] * signs[j]
        want = total.reshape(5, size)
    before = x.tobytes()
    assert rotate(x).tobytes() == (want * factor).tobytes()
    assert x.tobytes() == before
