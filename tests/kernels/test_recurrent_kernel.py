"""All steps of an LSTM in one call give every bit of the general path, or leave it the step."""

import contextlib

import numba
import numpy as np
import pytest

import numsim as ns
from numsim import nn, train
from numsim.errors import NumsimError
from numsim.kernels.gemm import steps
from numsim.kernels.ir import simd
from numsim.kernels.jit import using_threads
from numsim.nn import fused
from numsim.train.watch import Lost

FUSED = ("float32", "fp8_hybrid", "fp8_e4m3", "fp8_e5m2", "int8", "q3.4_forward", "q3.4",
         "q3.4_scale4096")  # fmt: skip
GENERAL = ("fp8_delayed", "mxfp8", "nvfp4")


def bits(x):
    x = np.ascontiguousarray(x)
    return x.view(np.uint32 if x.dtype == np.float32 else np.uint64)


@numba.njit
def codes_of(x, codes, how):
    return steps.codes_of(x, codes, how)


@numba.njit
def rounded(x, out, how):
    return steps.rounded(x, out, how)


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(bits(a), bits(b))


@contextlib.contextmanager
def general_path():
    """Compute without the kernel of all steps, and without those of one."""
    ways = "forward", "backward"
    before = [getattr(fused, way) for way in ways]
    for way in ways:
        setattr(fused, way, lambda *_: None)
    try:
        yield
    finally:
        for way, work in zip(ways, before, strict=True):
            setattr(fused, way, work)


def case(batch, steps, inputs, hidden, *, seed=0, scale=1.0, cell=nn.LSTM):
    rng = np.random.default_rng([batch, steps, inputs, hidden, seed])
    layer = cell(inputs, hidden)
    params = {k: v * np.float32(scale) for k, v in nn.init(layer, seed=seed).items()}
    x = rng.normal(size=(batch, steps, inputs)).astype(np.float32)
    count = 2 if cell is nn.LSTM else 1
    states = [rng.normal(size=(batch, hidden)).astype(np.float32) for _ in range(count)]
    up = [rng.normal(size=s).astype(np.float32) for s in
          ((batch, steps, hidden), *[(batch, hidden)] * count)]  # fmt: skip
    return layer, params, x, states, up


def pass_of(layer, params, x, states, up, recipe, **more):
    """Return every array of a pass, and how many gradient elements there were and were lost."""
    lost = Lost()
    y, tape = nn.forward(layer, params, x, *states, recipe=recipe, watch=lost, **more)
    inputs, found = nn.backward(tape, *up)
    return [*y, *inputs, *found.values()], (lost.elements, lost.zeroed)


def both(layer, params, x, states, up, recipe):
    found = []
    for way in (contextlib.nullcontext, general_path):
        with way():
            try:
                found.append(pass_of(layer, params, x, states, up, recipe))
            except NumsimError as error:
                found.append(([], str(error)))
    (one, counted), (other, counted_there) = found
    same(one, other)
    assert counted == counted_there
    return one


def covered(recipe, hidden=17):
    """Return whether the kernel takes the forward and the backward steps."""
    layer, params, x, states, up = case(1, 2, 3, hidden)
    taken = []
    before = fused.forward, fused.backward

    def spy(work):
        def call(*given):
            made = work(*given)
            taken.append(made is not None)
            return made

        return call

    fused.forward, fused.backward = (spy(work) for work in before)
    try:
        pass_of(layer, params, x, states, up, recipe)
    finally:
        fused.forward, fused.backward = before
    return tuple(taken)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 3), (3, 4, 17, 17), (5, 7, 1, 3)])
def test_every_bit_is_that_of_the_general_path(name, shape):
    both(*case(*shape), train.recipe(name))


@pytest.mark.parametrize("name", FUSED)
def test_the_kernel_does_take_these_recipes(name):
    assert covered(train.recipe(name)) == (True, True)


@pytest.mark.parametrize("name", GENERAL)
def test_other_recipes_go_the_general_way(name):
    assert covered(train.recipe(name)) == (False, False)


@pytest.mark.filterwarnings("ignore::numsim.errors.UnvalidatedWarning")
@pytest.mark.parametrize(
    ("name", "target"),
    [("int8", "ideal.int"), ("int8", "x86.tdpbssd"), ("fp8_hybrid", "nvidia.hopper.wgmma"),
     ("fp8_hybrid", "ideal.exact"), ("q3.4", "ideal.int"), ("float32", "ideal.exact")],
)  # fmt: skip
def test_units(name, target):
    both(*case(2, 3, 5, 17), train.recipe(name, target=target))


HOPPER = "nvidia.hopper.wgmma"
STEPS = [("fp8_hybrid", HOPPER), ("fp8_e4m3", HOPPER), ("fp8_e5m2", "nvidia.ada.mma"),
         ("fp8_hybrid", "ideal.fp32"), ("int8", "ideal.int"), ("float32", "ideal.fp32"),
         ("q3.4_scale4096", "ideal.int"), ("mxfp8", "ideal.fp32")]  # fmt: skip


@pytest.mark.filterwarnings("ignore::numsim.errors.UnvalidatedWarning")
@pytest.mark.parametrize("path", simd.PATHS)
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(("name", "target"), STEPS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 3), (5, 3, 7, 70), (32, 2, 64, 64)])
def test_products_of_a_step_give_every_bit_of_the_general_path(shape, name, target, cell, path):
    with simd.force(path):
        both(*case(*shape, cell=cell), train.recipe(name, target=target))


@pytest.mark.filterwarnings("ignore::numsim.errors.UnvalidatedWarning")
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("name", ["fp8_hybrid", "fp8_e5m2"])
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-6, 1e6, 1e18, 1e30, 1e38])
def test_huge_tiny_and_zero_numbers_in_products_of_a_step(name, size, cell):
    recipe = train.recipe(name, target=HOPPER)
    layer, params, x, states, up = case(2, 3, 3, 5, cell=cell)
    with np.errstate(over="ignore"):
        small = [[v * np.float32(size) for v in part] for part in (states, up)]
    both(layer, params, x, small[0], up, recipe)
    both(layer, params, x, states, small[1], recipe)
    if size <= 1e6:
        both(*case(2, 3, 3, 5, scale=size, cell=cell), recipe)


@pytest.mark.filterwarnings("ignore::numsim.errors.UnvalidatedWarning")
@pytest.mark.parametrize(("name", "takes"), [("fp8_hybrid", True), ("fp8_delayed", False)])
@pytest.mark.parametrize("path", simd.PATHS)
def test_which_fp8_steps_are_taken(path, name, takes):
    """The portable path has no kernel of FP8 steps."""
    with simd.force(path):
        expected = takes and path != "plain"
        assert covered(train.recipe(name, target=HOPPER)) == (expected, expected)


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2"])
def test_codes_of_a_step_are_those_of_quantize(fmt):
    every = ns.QTensor.from_codes(np.arange(256).astype(np.uint8), fmt).dequantize()
    finite = np.unique(every[np.isfinite(every)])
    ties = (finite[1:] + finite[:-1]) / 2
    x = np.concatenate([finite, ties, np.nextafter(ties, 1e9, dtype=np.float32), -ties, [-0.0]])
    x = x.astype(np.float32).reshape(1, -1)
    for quant in (ns.Quant(fmt, "none"), ns.Quant(fmt)):
        how = fused._rounding(quant, np.float32(1))
        codes = np.empty(x.shape, np.uint8)
        scale, zeros, left = codes_of(x, codes, how)
        want = ns.quantize(x, quant)
        np.testing.assert_array_equal(codes, want.codes.view(np.uint8))
        assert scale == (1 if want.scale is None else want.scale.reshape(-1)[0])
        assert (zeros, left) == (np.count_nonzero(x == 0), np.count_nonzero(want.dequantize() == 0))


@pytest.mark.parametrize("name", ["float32", "fp8_hybrid", "int8", "q3.4"])
@pytest.mark.parametrize("steps_by", [0.0, 1e-44, 1e-30, 1e-6, 1e6, 1e18, 1e30, 1e38])
def test_huge_tiny_and_zero_states_and_gradients(name, steps_by):
    layer, params, x, states, up = case(2, 3, 3, 5)
    with np.errstate(over="ignore"):
        small = [[v * np.float32(steps_by) for v in part] for part in (states, up)]
    for given in (small[0], states):
        for gradient in (small[1], up):
            both(layer, params, x, given, gradient, train.recipe(name))


@pytest.mark.parametrize("name", ["fp8_hybrid", "int8", "q3.4"])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e20])
def test_huge_tiny_and_zero_weights(name, size):
    both(*case(2, 3, 3, 5, scale=size), train.recipe(name))


def test_a_state_that_is_zero_at_first_and_a_gradient_of_zeros():
    layer, params, x, _, up = case(2, 3, 3, 5)
    zeros = [np.zeros((2, 5), np.float32)] * 2
    for name in FUSED:
        both(layer, params, x, zeros, [u * np.float32(0) for u in up], train.recipe(name))


@pytest.mark.parametrize("name", ["fp8_hybrid", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named_by_both_ways_alike(name, bad):
    layer, params, x, states, up = case(2, 3, 3, 5)
    states[0][1, 2] = bad
    said = []
    for way in (contextlib.nullcontext, general_path):
        with way(), pytest.raises(NumsimError, match="the input of recurrent") as caught:
            pass_of(layer, params, x, states, up, train.recipe(name))
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["fp8_hybrid", "int8"])
def test_a_gradient_that_is_not_finite_is_named_by_both_ways_alike(name):
    layer, params, x, states, up = case(2, 3, 3, 5)
    up[0][1, 1, 1] = np.inf
    said = []
    for way in (contextlib.nullcontext, general_path):
        with way(), pytest.raises(NumsimError, match="the gradient of recurrent") as caught:
            pass_of(layer, params, x, states, up, train.recipe(name))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_scaled_gradient_beyond_float32():
    layer, params, x, states, up = case(1, 2, 3, 3)
    with np.errstate(over="ignore"):
        assert both(layer, params, x, states, [u * np.float32(1e37) for u in up],
                    train.recipe("q3.4_scale4096"))  # fmt: skip


@pytest.mark.parametrize("name", ["fp8_hybrid", "int8", "q3.4"])
def test_clip_gradient(name):
    both(*case(2, 3, 3, 5, scale=40.0), train.recipe(name, clip_gradient=True))


def test_a_gradient_scale_that_is_no_power_of_two_over_scaled_weights():
    q34, int8 = ns.Quant("q3.4", "none"), ns.Quant("int8")
    product = ns.Rule(q34, int8, "ideal.int")
    rule = train.Rule(
        ns.Rule(q34, int8, "ideal.int"), product, ns.Rule(q34, q34, "ideal.int"),
        gradient_scale=3.7,
    )  # fmt: skip
    both(*case(2, 3, 3, 5), train.Recipe((("*", rule),)))


@pytest.mark.parametrize("storage", ["float8_e4m3fn", "int8", "q3.4"])
def test_stored_parameters(storage):
    layer, params, x, states, up = case(2, 3, 3, 5)
    stored = {name: ns.quantize(p, storage) for name, p in params.items()}
    name = {"float8_e4m3fn": "fp8_hybrid", "int8": "int8", "q3.4": "q3.4_forward"}[storage]
    both(layer, stored, x, states, up, train.recipe(name))


def spread(x):
    """Return an equal array whose neighbours do not lie side by side."""
    room = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.float32(np.nan))[..., ::-2]
    room[...] = x
    return room


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("name", ["float32", "fp8_hybrid", "int8", "mxfp8"])
def test_how_arrays_lie_in_memory_changes_no_bit(name, cell):
    layer, params, x, states, up = case(3, 4, 9, 24, cell=cell)
    recipe = train.recipe(name)
    want = pass_of(layer, params, x, states, up, recipe)
    strided = {key: spread(p) for key, p in params.items()}
    columns = [np.asfortranarray(s) for s in states]
    given = spread(x), columns, [np.asfortranarray(spread(u)) for u in up]
    found = pass_of(layer, strided, *given, recipe)
    same(found[0], want[0])
    assert found[1] == want[1]
    of_one = {key: np.broadcast_to(p[:1], p.shape) if p.ndim == 1 else p
              for key, p in params.items()}  # fmt: skip
    alike = {key: np.array(p) for key, p in of_one.items()}
    same(*(pass_of(layer, p, x, states, up, recipe)[0] for p in (of_one, alike)))


@pytest.mark.parametrize("name", [*FUSED, *GENERAL])
def test_threads_and_paths_change_no_bit(name):
    given = (*case(3, 4, 17, 33), train.recipe(name))
    with using_threads(1):
        want, _ = pass_of(*given)
    with using_threads(2) as possible:
        if possible:
            same(pass_of(*given)[0], want)
    for path in simd.PATHS:
        with simd.force(path):
            same(pass_of(*given)[0], want)


def test_a_tape_can_be_read_twice():
    layer, params, x, states, up = case(2, 3, 3, 5)
    for name in ("fp8_hybrid", "int8", "mxfp8", "nvfp4"):
        _, tape = nn.forward(layer, params, x, *states, recipe=train.recipe(name))
        one, other = nn.backward(tape, *up), nn.backward(tape, *up)
        same([*one[0], *one[1].values()], [*other[0], *other[1].values()])
        halved = nn.backward(tape, *(u / 2 for u in up))
        again = nn.backward(tape, *up)
        same([*one[0], *one[1].values()], [*again[0], *again[1].values()])
        assert not np.array_equal(halved[1]["weight_hh"], one[1]["weight_hh"])


def test_elements_that_underflow_in_the_division_by_the_scale_are_lost_too():
    layer, params, x, states, up = case(2, 1, 3, 3)
    up = [np.zeros_like(u) for u in up]
    up[1][0, 0], up[1][1, 2] = 1e30, 1e-30
    both(layer, params, x, states, up, train.recipe("fp8_hybrid"))


def test_sums_of_integers_that_float32_does_not_hold_go_the_general_way():
    """128 x 128 x 1024 is 2**24: a step back sums over four times the states."""
    assert covered(train.recipe("int8"), 255) == (True, True)
    assert covered(train.recipe("int8"), 256) == (True, False)
    assert covered(train.recipe("int8"), 1024) == (False, False)
    both(*case(1, 2, 2, 300, scale=30.0), train.recipe("int8"))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "q3.4"])
def test_ties_of_the_kernel_go_to_even(name):
    """Every value, every midpoint and their neighbours: random data hold no ties."""
    values = ns.get_format(name).values()
    values = np.unique(values[np.isfinite(values)])
    middle = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    x = np.concatenate(
        [
            values.astype(np.float32),
            middle,
            np.nextafter(middle, np.float32(9)),
            np.nextafter(middle, -np.float32(9)),
        ]
    )
    x, out = x.reshape(1, -1), np.empty((1, x.size), np.float32)
    how = fused._rounding(ns.Quant(name, "none"), np.float32(1))
    rounded(x, out, how)
    np.testing.assert_array_equal(out / how.unit, ns.cast(x, name))


@pytest.mark.filterwarnings("ignore::numsim.errors.UnvalidatedWarning")
def test_codes_that_steps_looked_at_cannot_change_before_a_product():
    layer, params, x, states, up = case(2, 3, 5, 17)
    codes = ns.encode(params["weight_hh"], "float8_e4m3fn")
    weight = ns.QTensor.from_codes(codes, "float8_e4m3fn")
    stored = params | {"weight_hh": weight}
    pass_of(layer, stored, x, states, up, train.recipe("fp8_e4m3", target=HOPPER))
    assert weight.packed  # it was found finite
    with pytest.raises(ValueError, match="read-only"):
        weight.codes[0, 0] = 0x7F


@pytest.mark.parametrize("name", ["fp8_hybrid", "fp8_delayed", "int8", "mxfp8"])
def test_gradients_are_counted_once_where_each_product_stores_them(name):
    """The gates' gradients are rounded for a step's product and for the inputs'.

    Delayed scaling rounds them for both weights too, by each product's own history.
    """
    batch, steps, hidden = 2, 3, 5
    _, (elements, _) = pass_of(*case(batch, steps, 7, hidden), train.recipe(name))
    assert elements == (3 if name == "fp8_delayed" else 2) * batch * steps * 4 * hidden
