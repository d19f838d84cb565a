"""Products of all steps know of everything that a tensor of one scale may have beside it."""

import numpy as np
import pytest

import numsim as ns
from numsim import train
from numsim.nn import fused, rows
from numsim.nn.products import Context, backward_product, backward_products, forward_product
from numsim.quant import Quant

E4M3, EXACT = "float8_e4m3fn", "ideal.exact"
ONE = {
    "amax": Quant(E4M3), "none": Quant(E4M3, "none"), "zero point": Quant("int8", zero_point=True),
    "two levels": Quant(E4M3, scale_format=E4M3), "bfloat16": Quant(E4M3, scale_format="bfloat16"),
    "fixed": Quant(E4M3, scale=0.0125), "mse": Quant(E4M3, scale_rule="mse"),
}  # fmt: skip


def bits(x):
    return np.ascontiguousarray(x).view(np.uint32)


def context(quant, target=EXACT):
    other = "int8" if quant.zero_point else E4M3
    one = ns.Rule(quant, other, target)
    rule = train.Rule(one, one, ns.Rule(quant, quant, target))
    return Context(np.float32, lambda name: rule)


def values(*shape, seed=0):
    x = np.random.default_rng([*shape, seed]).normal(size=shape).astype(np.float32)
    return x + np.float32(0.5)  # not around zero: a zero point is not 0


@pytest.mark.parametrize("quant", ONE.values(), ids=ONE)
def test_turned_rows_are_worth_what_they_were(quant):
    q = ns.quantize(values(15, 7), quant)
    made = rows.rows_turned(q, (3, 5)).dequantize()
    want = rows.by_steps(q.dequantize(), (3, 5)).reshape(15, 7)
    np.testing.assert_array_equal(bits(made), bits(want))


@pytest.mark.parametrize("quant", ONE.values(), ids=ONE)
def test_a_product_of_steps_is_that_of_rows(quant):
    x, w = values(15, 7), values(6, 7, seed=1)
    made, _ = forward_product(context(quant), "p", x, w, turned=(3, 5))
    want, _ = forward_product(context(quant), "p", x, w)
    np.testing.assert_array_equal(bits(made), bits(rows.by_steps(want, (3, 5))))


@pytest.mark.parametrize("quant", ONE.values(), ids=ONE)
def test_codes_of_steps_are_those_of_rows(quant):
    steps = values(5, 3, 7)
    made = rows.codes_by_rows(steps, [quant])
    assert (made is None) == (quant.scale_rule == "mse")
    if made is not None:
        want = ns.quantize(np.ascontiguousarray(steps.swapaxes(0, 1)).reshape(15, 7), quant)
        (q,) = made.values()
        np.testing.assert_array_equal(q.codes, want.codes)
        np.testing.assert_array_equal(bits(q.dequantize()), bits(want.dequantize()))


@pytest.mark.parametrize("quant", ONE.values(), ids=ONE)
def test_gradients_of_two_weights_are_those_of_each(quant):
    c, g, w = context(quant), values(15, 6), [values(6, n, seed=n) for n in (7, 4)]
    saved = [forward_product(c, "p", values(15, v.shape[1]), v)[1] for v in w]
    dx, both = backward_products(c, saved, g, inputs=True, weights=[True, True])
    each = [backward_product(c, one, g) for one in saved]
    wanted = each[0][0], *(dw for _, dw in each)
    for made, want in zip((dx, *both), wanted, strict=True):
        np.testing.assert_array_equal(bits(made), bits(want))


@pytest.mark.parametrize("quant", ONE.values(), ids=ONE)
def test_which_rules_the_kernels_of_steps_take(quant):
    """They know of one float32 scale by amax, and of none."""
    taken = fused.forward(context(quant, "ideal.fp32"), "p", values(6, 7), {}) is not None
    assert taken == (quant in (Quant(E4M3), Quant(E4M3, "none")))


@pytest.mark.parametrize("quant", [ONE["zero point"], ONE["two levels"]])
def test_weights_of_more_than_one_scale_are_left_to_matmul(quant):
    one = ns.Rule("int8" if quant.zero_point else E4M3, quant, "ideal.fp32")
    c = Context(np.float32, lambda name: train.Rule(one, one, one))
    assert fused.forward(c, "p", values(6, 7), {}) is None
    assert fused.backward(c, "p", values(6, 7), {}) is None
