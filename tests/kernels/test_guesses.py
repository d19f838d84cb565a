"""Results by way of guesses have the bits of the definition, and guesses are as near as said."""

from decimal import Decimal, localcontext

import numba
import numpy as np
import pytest

from numsim.data import bundled_model_dir
from numsim.kernels.elementwise import activations, functions, guesses
from numsim.kernels.ir import simd
from numsim.models import Recipe, Rule, load_model

FUNCTIONS = {
    "sigmoid": (activations.sigmoid, lambda v: 1 / (1 + (-v).exp())),
    "silu": (activations.silu, lambda v: v / (1 + (-v).exp())),
    "quick_gelu": (activations.quick_gelu, lambda v: v / (1 + (Decimal("-1.702") * v).exp())),
    "gelu_tanh": (
        activations.gelu_tanh,
        lambda v: (
            v / (1 + (-2 * Decimal(2 / np.pi).sqrt() * (v + Decimal("0.044715") * v**3)).exp())
        ),
    ),
}
FAST = [path for path in simd.PATHS if path != "plain"]
SPECIALS = [
    np.inf, -np.inf, np.nan, 0.0, -0.0, 80, -80, 87, -87.3, 88.8, -88.8, 103.9, -103.9, -104, 700,
    -700, 710, -746, 3.4e38, -3.4e38, 1e-45, -1e-45, 1.2e-38, -1.2e-38,
]  # fmt: skip


@numba.njit(error_model="numpy")
def guess_all(x, out):
    for i in range(x.size):
        out[i] = guesses.exp_guess(x[i])


@numba.njit(error_model="numpy")
def doubts(x):
    """Count elements whose SiLU no guess decides."""
    met = 0
    for i in range(x.size):
        met += guesses.differ(activations.silu_guess(np.float64(x[i])))
    return met


def plainly(function, *args, **how):
    with simd.force("plain"), np.errstate(all="ignore"):
        return function(*args, **how)


def check(got, want, what=""):
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32), what)


def test_a_guess_is_as_near_as_said():
    rng = np.random.default_rng(0)
    x = [rng.uniform(-reach, reach, 500) for reach in (1e-9, 0.4, 3, 100, 700)]
    x = np.concatenate([*x, [0.0, 700.0, -700.0]])
    near = np.empty_like(x)
    guess_all(x, near)
    with localcontext() as context:
        context.prec = 60
        for value, guess in zip(x, near, strict=True):
            true = Decimal(float(value)).exp()
            assert abs(Decimal(float(guess)) / true - 1) < Decimal(2) ** -42


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_bits_of_its_definition(path, name):
    function, _ = FUNCTIONS[name]
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32)
    usual = rng.standard_normal(1 << 18).astype(np.float32) * 4
    alone = [np.float32([v]) for v in SPECIALS]  # none beside it is in doubt
    some = (patterns.view(np.float32), usual, usual * 20, np.float32(SPECIALS), usual[:3], *alone)
    for x in some:
        want = plainly(function, x)
        with simd.force(path), np.errstate(all="ignore"):
            check(function(x), want)
    if name == "silu":
        assert 0 < doubts(usual) < 100  # so both ways were gone


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_the_true_one_rounded(name):
    function, true = FUNCTIONS[name]
    x = np.random.default_rng(2).uniform(-20, 20, 300).astype(np.float32)
    with localcontext() as context:
        context.prec = 60
        for v, got in zip(x, function(x), strict=True):
            want = true(Decimal(float(v)))
            assert (
                abs(Decimal(float(got)) - want)
                <= Decimal(float(np.spacing(np.abs(got)))) * 51 / 100
            )


@pytest.mark.parametrize("path", FAST)
def test_rows_of_scores_have_the_bits_of_the_definition(path):
    rng = np.random.default_rng(3)
    cases = [
        ((2, 3, width), {}) for width in (1, 2, 7, 8, 31, 32, 33, 64, 100)
    ]  # fmt: skip
    cases += [
        ((3, 40, 40), {"last": np.arange(1, 41), "scale": 0.125}),
        ((3, 40, 40), {"first": np.maximum(np.arange(40) - 5, 0), "last": np.arange(1, 41)}),
        ((4, 9, 50), {
            "keep": rng.random((2, 50)) > 0.5, "bias": rng.standard_normal((2, 9, 50)),
            "sinks": rng.standard_normal(4),
        }),
        ((4, 9, 50), {"sinks": np.array([np.nan, np.inf, -np.inf, 900.0])}),
        ((2, 9, 50), {"keep": np.zeros((2, 50), bool)}),
    ]  # fmt: skip
    for shape, how in cases:
        for size in (0.0, 1.0, 30.0, 1e30):
            for odd in (None, np.nan, np.inf, -np.inf):
                x = (rng.standard_normal(shape) * size).astype(np.float32)
                if odd is not None:
                    x[0, :2, :3] = odd
                    x[-1, -1] = odd
                want = plainly(functions.softmax, x, **how)
                with simd.force(path), np.errstate(all="ignore"):
                    check(functions.softmax(x, **how), want, f"{shape} {size} {odd}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("path", simd.PATHS)
def test_a_sink_of_nan_makes_a_row_nan_whatever_it_sees(path, dtype):
    x = np.array([[[0.0, 1.0]], [[-np.inf, -np.inf]]], dtype)
    with simd.force(path):
        for keep in (None, np.zeros((1, 2), bool)):
            assert np.isnan(functions.softmax(x, keep=keep, sinks=np.array([np.nan]))).all()


@pytest.mark.parametrize("path", FAST)
def test_rows_so_long_that_sums_of_guesses_drift_take_the_exact_way(path):
    x = np.full((1, 1, 1 << 18), -1, np.float32)
    x[0, 0, 0] = 0
    scale = 1.4812593314540217  # its guesses' sum is 2**-39 off: every output rounded wrongly
    want = plainly(functions.softmax, x, scale=scale)
    with simd.force(path):
        check(functions.softmax(x, scale=scale), want)


@pytest.mark.parametrize("path", FAST)
def test_a_row_whose_guess_rounds_the_other_way_takes_the_exact_way(path):
    x = np.float32([[[0, float.fromhex("-0x1.2082ep-3")]]])  # one of ten million such rows
    with simd.force(path):
        check(functions.softmax(x), plainly(functions.softmax, x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("path", simd.PATHS)
def test_silu_times_is_silu_and_a_product(path, dtype):
    rng = np.random.default_rng(4)
    for shape in ((0,), (1,), (255,), (3, 257), (2, 5, 700)):
        x, by = (rng.standard_normal(shape).astype(dtype) * 8 for _ in range(2))
        with simd.force(path):
            got = activations.silu_times(x, by)
        np.testing.assert_array_equal(got, plainly(activations.silu, x) * by)
        assert got.dtype == dtype
        assert got.shape == shape


def test_a_tap_of_the_activation_changes_no_bit():
    model, tokens = load_model(bundled_model_dir()), [0, 17, 256, 3, 9]
    recipe = Recipe((("*", Rule("int8", "int8", "ideal.int")),))
    want = model.run(tokens, recipe)
    tapped = model.run(tokens, recipe, taps=["layers.*.act.out", "layers.*.down_proj.in"])
    check(tapped.logits, want.logits)
    assert any(name.endswith("act.out") for name in tapped.taps)


def lanes_of(x):
    lanes = np.zeros(8)
    for j, value in enumerate(x):
        lanes[j % 8] += np.float64(value)
    return lanes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lanes_take_a_row_in_turn(dtype):
    rng = np.random.default_rng(5)

    @numba.njit
    def ways(x, sums, squares, room):
        functions.add_to_lanes(x, sums)
        functions.add_squares_to_lanes(x, squares)
        return functions.largest_of(x, room)

    for width in range(35):
        x = (rng.standard_normal(width) * 10.0 ** rng.integers(-8, 8, width)).astype(dtype)
        sums, squares = np.zeros(8), np.zeros(8)
        top = ways(x, sums, squares, np.empty(8))
        np.testing.assert_array_equal(sums, lanes_of(x))
        np.testing.assert_array_equal(squares, lanes_of(x.astype(np.float64) ** 2))
        assert top == max(x, default=-np.inf)
        x[width // 2 :] = np.nan
        assert ways(x, sums, squares, np.empty(8)) == max(x[: width // 2], default=-np.inf)
