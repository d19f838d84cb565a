"""Training with integers only: every code by Python integers, and what cannot be trained so."""

import hashlib

import numpy as np
import pytest

from numsim import nn, train
from numsim.errors import NumsimError
from numsim.kernels.convert.philox import random_words
from numsim.train.classifier import read_corpus
from numsim.train.fit import permutation


def clip(v):
    return max(-127, min(127, v))


def halved(v, shift):
    """Return v / 2**shift, to nearest even."""
    return v if shift <= 0 else round_even(abs(v), shift) * (1 if v >= 0 else -1)


def round_even(v, shift):
    whole, rest = divmod(v, 1 << shift)
    half = 1 << (shift - 1)
    return whole + (rest > half or (rest == half and whole % 2 == 1))


def to_codes(rows, exponent, bits=7):
    """Return INT8 codes of a matrix of sums, and their exponent."""
    shift = max(0, max(abs(v) for row in rows for v in row).bit_length() - bits)
    return [[clip(halved(v, shift)) for v in row] for row in rows], exponent + shift


def of_floats(x):
    amax = float(np.abs(x).max())
    exponent = int(np.frexp(amax)[1]) - 7 if amax > 0 else 0
    return [[clip(round(float(v) / 2.0**exponent)) for v in row] for row in x], exponent


def times(a, b):
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in turned(b)]
            for row in a]  # fmt: skip


def turned(a):
    return [list(row) for row in zip(*a, strict=True)]


def updated(w, acc, bits, name, step, seed):
    key = int.from_bytes(
        hashlib.blake2s(f"{seed}:{name}:update:{step}".encode(), digest_size=4).digest(), "little"
    )
    count = len(w) * len(w[0])
    words = np.empty(count, np.uint64)
    random_words(np.arange(count, dtype=np.uint64), key, words)
    shift = max(0, max(abs(v) for row in acc for v in row).bit_length() - bits)
    new, at = [], 0
    for row, sums in zip(w, acc, strict=True):
        new.append([])
        for code, v in zip(row, sums, strict=True):
            drawn = (int(words[at]) >> 33) % (1 << shift)
            whole, rest = divmod(abs(v), 1 << shift)
            step_down = whole + (rest + drawn >= 1 << shift and shift > 0)
            new[-1].append(clip(code - (step_down if v >= 0 else -step_down)))
            at += 1
    return new


def test_a_perceptron_by_python_integers():
    rng = np.random.default_rng(5)
    x = rng.integers(-9, 10, (14, 5))
    labels = (x[:, 0] > x[:, 1]).astype(int)
    net = nn.Sequential(
        a=nn.Linear(5, 7, bias=False), act=nn.Activation("relu"), b=nn.Linear(7, 1, bias=False)
    )
    steps, batch, seed, bits = 9, 4, 3, (6, 4, 2)
    got = train.integer_fit(net, (x, labels), steps=steps, batch=batch, seed=seed, bits=bits)
    weights = {n: of_floats(p) for n, p in nn.init(net, seed=seed).items()}
    losses = []
    for step in range(1, steps + 1):
        epoch, at = divmod(step - 1, len(x) // batch)
        rows = permutation(len(x), seed, epoch)[at * batch : (at + 1) * batch]
        (wa, ea), (wb, eb) = weights["a.weight"], weights["b.weight"]
        given = x[rows].tolist()
        hidden, eh = to_codes(times(given, turned(wa)), ea)
        live = [[max(v, 0) for v in row] for row in hidden]
        sums = times(live, turned(wb))
        logits = np.array(sums, float)[:, 0] * 2.0 ** (eh + eb)
        value, slope = nn.loss("bce_with_logits", logits, labels[rows].astype(float))
        losses.append(value)
        g, eg = of_floats(slope.reshape(-1, 1))
        width = bits[(step - 1) * 3 // steps]
        new_b = updated(wb, times(turned(g), live), width, "b", step, seed)
        back, _ = to_codes(times(g, wb), eg + eb)
        back = [[v if h > 0 else 0 for v, h in zip(*pair, strict=True)]
                for pair in zip(back, hidden, strict=True)]  # fmt: skip
        new_a = updated(wa, times(turned(back), given), width, "a", step, seed)
        weights = {"a.weight": (new_a, ea), "b.weight": (new_b, eb)}
    assert got.history["loss"].tolist() == losses
    for name, (codes, exponent) in weights.items():
        assert got.params[name].codes.tolist() == codes
        assert float(got.params[name].scale) == 2.0**exponent


NET = nn.Sequential(head=nn.Linear(2, 1, bias=False))
WORDS = nn.Sequential(e=nn.Embedding(3, 2), m=nn.Mean(), head=nn.Linear(2, 1, bias=False))
X = np.array([[1, 1], [1, 0]])
BAD = {
    "-128": (NET, np.array([[-128, 1], [1, 1]], np.int8), {}, r"within \+-127"),
    "halves": (NET, X / 2, {}, r"within \+-127"),
    "ids between": (WORDS, X / 2, {}, "ids are integers"),
    "ids beyond": (WORDS, X * 3, {}, "ids lie from 0 to 2"),
    "no words": (WORDS, X[:, :0], {}, "T from 1"),
    "later table": (nn.Sequential(a=NET.layers[0][1], e=nn.Embedding(3, 2)), X, {}, "first layer"),
    "bias": (nn.Sequential(a=nn.Linear(2, 1)), X, {}, "integer form"),
    "steps": (NET, X, {"steps": 10**30}, "steps is an integer from 1"),
    "loss": (NET, X, {"loss": "mse"}, "bce_with_logits or cross_entropy"),
    "unit": (NET, X, {"target": "x86.vpdpbusd"}, "does not multiply int8 by int8"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input(what):
    layer, inputs, more, message = BAD[what]
    with pytest.raises(NumsimError, match=message):
        train.integer_fit(layer, (inputs, [0, 1]), **({"steps": 2, "batch": 2} | more))


@pytest.mark.exhaustive
def test_integers_alone_stay_within_three_points_of_float32_on_the_messages():
    data = read_corpus()
    bags = [np.zeros((len(ids), data.rows), np.int64) for ids in (data.inputs, data.test_inputs)]
    for bag, ids in zip(bags, (data.inputs, data.test_inputs), strict=True):
        for row, words in zip(bag, ids, strict=True):
            np.add.at(row, words[words > 1], 1)
    tail = {"head": nn.Linear(32, 1, bias=False)}
    table = nn.Sequential(e=nn.Embedding(data.rows, 32), m=nn.Mean(), **tail)
    relu = nn.Activation("relu")
    perceptron = nn.Sequential(a=nn.Linear(data.rows, 32, bias=False), r=relu, **tail)
    for net, (x, unseen) in ((table, (data.inputs, data.test_inputs)), (perceptron, bags)):
        how = {"steps": 240, "batch": 32, "test": (unseen, data.test_labels)}
        gaps = []
        for seed in range(5):
            whole = [
                train.integer_fit(net, (x, data.labels), seed=seed, fixed_point=q34, **how)
                for q34 in (False, True)
            ]
            given, scored = (x, unseen) if net is table else (x * 1.0, unseen * 1.0)
            usual = train.fit(
                net, nn.init(net, seed=seed), (given, data.labels), loss="bce_with_logits",
                recipe="float32", optimizer=train.Adam(4e-3), decay="linear", seed=seed, every=240,
                **(how | {"test": (scored, data.test_labels)}),
            )  # fmt: skip
            gaps.append([usual.test_accuracy - one.test_accuracy for one in whole])
        assert (np.mean(gaps, axis=0) < 0.03).all()
