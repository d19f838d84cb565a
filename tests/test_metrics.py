"""Metrics against their formulas."""

import math

import ml_dtypes
import numpy as np
import pytest

from numsim import metrics
from numsim.errors import NumsimError

rng = np.random.default_rng(0)
PAIRED = [metrics.sqnr_db, metrics.mse, metrics.max_abs, metrics.cosine, metrics.max_ulp,
          metrics.kl_nats, metrics.top1_agreement]  # fmt: skip


@pytest.mark.parametrize("metric", PAIRED)
def test_shapes_must_agree(metric):
    with pytest.raises(NumsimError, match="one shape"):
        metric(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(NumsimError, match="one shape"):
        metric(np.zeros((0, 3)), np.zeros((0, 3)))


def test_sqnr():
    assert metrics.sqnr_db([1.0, 2.0], [1.0, 2.0]) == math.inf
    assert metrics.sqnr_db([0.0], [1.0]) == -math.inf
    assert metrics.sqnr_db([100.0], [101.0]) == pytest.approx(40.0)
    assert math.isnan(metrics.sqnr_db([1.0], [math.nan]))


def test_cosine_and_errors():
    a, b = rng.standard_normal((2, 5, 7))
    norm = np.linalg.norm
    assert metrics.cosine(a, b) == pytest.approx((a * b).sum() / norm(a) / norm(b))
    assert metrics.cosine([0.0, 0.0], [0.0, 0.0]) == 1
    assert metrics.cosine([0.0, 0.0], [1.0, 0.0]) == 0
    assert metrics.mse(a, b) == pytest.approx(((a - b) ** 2).mean())
    assert metrics.max_abs(a, b) == np.abs(a - b).max()


def test_max_ulp_is_the_largest_error_in_units_of_the_largest_reference():
    """Steps from value to value would be 2**30 where a reference of 0 got 1."""
    assert metrics.max_ulp([0.0, 1.0], [1.0, 1.0]) == 2**23
    assert metrics.max_ulp([0.0], [-0.0]) == 0
    assert metrics.max_ulp([2.0**-149], [-(2.0**-149)]) == 2
    assert metrics.max_ulp([2.0], [2.0 + 2.0**-22]) == 1
    assert metrics.max_ulp([-2.0, 0.5], [-2.0, 0.5 + 3 * 2.0**-22]) == 3
    assert metrics.max_ulp([1.999], [1.999 + 2.0**-23]) == pytest.approx(1, rel=1e-6)
    assert metrics.max_ulp([1.0], [1.0 + 2.0**-30]) == 2.0**-7  # not rounded to float32 first
    assert metrics.max_ulp([1.0], [np.inf]) == math.inf
    assert math.isnan(metrics.max_ulp([1.0], [math.nan]))


def test_nll_and_perplexity(monkeypatch):
    logits = rng.standard_normal((3, 6, 11)).astype(np.float32)
    tokens = rng.integers(0, 11, (3, 6))
    p = np.exp(logits.astype(float))
    p /= p.sum(-1, keepdims=True)
    want = [[-math.log(p[b, t, tokens[b, t + 1]]) for t in range(5)] for b in range(3)]
    whole = metrics.token_nll(logits, tokens)
    np.testing.assert_allclose(whole, want, rtol=1e-12)
    monkeypatch.setattr(metrics, "_CHUNK", 25)
    np.testing.assert_array_equal(metrics.token_nll(logits, tokens), whole)
    assert metrics.perplexity(whole) == pytest.approx(math.exp(np.mean(want)))


def test_nll_rejects_what_does_not_fit():
    with pytest.raises(NumsimError, match="tokens"):
        metrics.token_nll(np.zeros((3, 4)), [0, 1])
    with pytest.raises(NumsimError, match="0 to 3"):
        metrics.token_nll(np.zeros((3, 4)), [0, 1, 4])
    with pytest.raises(NumsimError, match="at least one"):
        metrics.perplexity([])


def test_kl_and_agreement(monkeypatch):
    a, b = rng.standard_normal((2, 4, 9, 30)) * 3
    p = np.exp(a) / np.exp(a).sum(-1, keepdims=True)
    q = np.exp(b) / np.exp(b).sum(-1, keepdims=True)
    want = (p * np.log(p / q)).sum(-1).mean()
    assert metrics.kl_nats(a, b) == pytest.approx(want)
    monkeypatch.setattr(metrics, "_CHUNK", 100)
    assert metrics.kl_nats(a, b) == pytest.approx(want)
    assert metrics.kl_nats([-np.inf, 0.0], [-np.inf, 0.0]) == 0
    assert metrics.top1_agreement(a, a) == 1
    assert metrics.top1_agreement(a, b) == (a.argmax(-1) == b.argmax(-1)).mean()


def test_large_logits_and_nan_give_no_warning():
    assert metrics.kl_nats([1e30, 0.0], [1e30, 0.0]) == 0
    assert math.isnan(metrics.kl_nats([0.0, 0.0], [np.nan, 0.0]))
    assert math.isnan(metrics.token_nll([[np.inf, np.inf], [0, 0]], [0, 1])[0])


class Grown:
    """What torch gives for a tensor that requires grad: no `__array__` without detach()."""

    dtype = "torch.float32"

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self.values

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad")


HOSTILE = [
    ["a", "b"], "abc", b"abc", {"a": 1}, {1, 2}, None, [1j, 2j], [[1.0], [2.0, 3.0]], [10**400],
    np.zeros(3, "V3"), np.zeros(2, [("a", "f4")]), np.array(["2020-01-01"], "M8[D]"),
    np.ma.array([1.0, 2.0], mask=[False, True]), (i for i in range(2)),
]  # fmt: skip


@pytest.mark.parametrize("given", HOSTILE, ids=lambda x: f"{x!r:.20}")
def test_what_holds_no_real_numbers_is_one_sentence(given):
    # the mask and the imaginary part went without a word, the others were tracebacks of NumPy
    for metric in [*PAIRED, metrics.paired_difference]:
        with pytest.raises(NumsimError, match=f"^{metric.__name__}: "):
            metric(given, given)
    with pytest.raises(NumsimError, match=r"^perplexity: "):
        metrics.perplexity(given)
    with pytest.raises(NumsimError, match=r"^token_nll: "):
        metrics.token_nll(given, given)


def test_tensors_of_other_libraries():
    a, b = np.float32([[0.5, 1.0], [2.0, -1.0]]), np.float32([[0.5, 1.5], [2.0, -1.0]])
    for metric in PAIRED:
        assert metric(Grown(a), Grown(b)) == metric(a, b)
        narrow = (x.astype(ml_dtypes.bfloat16) for x in (a, b))  # exact in bfloat16
        assert metric(*narrow) == metric(a, b)
    assert metrics.perplexity(Grown(a)) == metrics.perplexity(a)
    assert metrics.sqnr_db(np.ma.array(a), b) == metrics.sqnr_db(a, b)  # nothing is masked
