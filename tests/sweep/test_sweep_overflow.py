"""The share of accumulation steps that overflow: proven to be none, or counted."""

import numpy as np
import pytest

import numsim as ns
from numsim.models import Rule
from numsim.sweep.overflow import COUNTED, overflow_rate

RNG = np.random.default_rng(8)
X = RNG.standard_normal((2, 5, 96)).astype(np.float32)
W = RNG.standard_normal((7, 96)).astype(np.float32)
WIDE = ns.Quant("bfloat16", "none")


def counted(rule, x, weight):
    a, b = (
        ns.quantize(x.reshape(-1, x.shape[-1]), rule.activations),
        ns.quantize(weight, rule.weights),
    )
    stats = ns.matmul(a, b.T, target=rule.target, out_format=rule.out_format, stats=True)[1]
    return (stats.overflows + stats.saturations + stats.wraps) / stats.steps


def narrow(bits, **more):
    return ns.get_target("ideal.int", acc_bits=bits, **more)


@pytest.mark.parametrize(
    ("rule", "some"),
    [
        (Rule("int8", "int8", narrow(14)), True),
        (Rule("int8", "int8", narrow(16, overflow="saturate")), True),
        (Rule("int8", "int8", narrow(32)), False),
        (Rule("int4", "int8", narrow(18)), False),
        (Rule(ns.Quant("e4m3", "per_token"), "e4m3", "nvidia.hopper.wgmma", "float16"), True),
        (Rule("e4m3", "e4m3", out_format="float16"), False),  # accumulates in float32
        (Rule("e4m3", "e4m3", "nvidia.hopper.wgmma"), False),
        (Rule("mxfp8_e4m3", "mxfp8_e4m3"), False),
        (Rule("nvfp4", "nvfp4"), False),
        (Rule(WIDE, WIDE), False),
    ],
    ids=lambda value: value.target.name if isinstance(value, Rule) else str(value),
)
def test_the_rate_is_what_stats_count(rule, some):
    rate = overflow_rate(rule, X, None, W)
    assert (rate > 0) == some
    assert rate == counted(rule, X, W)


def test_wide_formats_overflow_where_values_are_large():
    rule = Rule(WIDE, WIDE)
    x, weight = X * np.float32(2.0**70), W * np.float32(2.0**60)
    rate = overflow_rate(rule, x, None, weight)
    assert 0 < rate == counted(rule, x, weight)


def test_only_the_first_rows_are_counted():
    rule = Rule(ns.Quant("int8", "per_token"), "int8", narrow(14))
    x = np.tile(X[0, :1], (3 * COUNTED // W.size, 1))
    x[COUNTED // W.size :] = 0
    assert overflow_rate(rule, x, None, W) == counted(rule, X[0, :1], W)
    assert overflow_rate(rule, x[::-1], None, W) == 0


def test_what_needs_another_run_is_empty():
    q, k = (RNG.standard_normal((1, 2, 4, 8)).astype(np.float32) for _ in range(2))
    assert overflow_rate(Rule("int8", "int8", narrow(8)), q, k.swapaxes(2, 3), None) is None
    assert overflow_rate(Rule("int8", "int8", narrow(32)), q, k.swapaxes(2, 3), None) == 0
    sr = ns.Quant("int8", rounding="sr")
    assert overflow_rate(Rule(sr, "int8", narrow(14)), X, None, W) is None
    tiles = ns.Quant("int8", block=(2, 32))
    assert overflow_rate(Rule(tiles, "int8", narrow(14)), X, None, W) is None
