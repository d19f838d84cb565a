"""Our own exp, sin, cos, softmax and norm: accuracy against decimal, bits against plain Python."""

import hashlib
from decimal import Decimal, localcontext

import numba
import numpy as np
import pytest

from numsim.kernels.elementwise import activations, functions
from numsim.kernels.elementwise import rotary as rotary_kernel

PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803"
)


def ulps(got, want):
    """Distance of float `got` from Decimal `want` in float64 steps at `want`."""
    step = Decimal(float(np.spacing(abs(float(want)))))
    return float(abs(Decimal(float(got)) - want) / step)


def series(x, first):
    """Taylor series of sine (first = x) or cosine (first = 1)."""
    x = x % (2 * PI)
    term = total = x if first else Decimal(1)
    k = 1 if first else 0
    while abs(term) > Decimal(10) ** -60:
        term = -term * x * x / ((k + 1) * (k + 2))
        k += 2
        total += term
    return total


def same_bits(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("bounds", [(-0.35, 0.35), (-40, 40), (-708, -600), (650, 709.7)])
def test_exp_is_within_one_ulp(bounds):
    x = np.random.default_rng(1).uniform(*bounds, 2000)
    with localcontext() as context:
        context.prec = 40
        worst = max(
            ulps(y, Decimal(v).exp()) for v, y in zip(x.tolist(), functions.exp(x), strict=True)
        )
    assert worst < 0.9


def test_exp_subnormal_results_are_within_one_step():
    x = np.linspace(-745.1, -708.5, 500)
    with localcontext() as context:
        context.prec = 40
        worst = max(
            ulps(y, Decimal(v).exp()) for v, y in zip(x.tolist(), functions.exp(x), strict=True)
        )
    assert worst < 1


def test_exp_special_values():
    x = np.array([0.0, -0.0, np.inf, -np.inf, 709.8, -746.0, 1e308, -1e308, 2.0**-1074])
    np.testing.assert_array_equal(functions.exp(x), [1, 1, np.inf, 0, np.inf, 0, np.inf, 0, 1])
    assert np.isnan(functions.exp(np.array([np.nan]))).all()
    assert functions.exp(np.float32([89, -104])).tolist() == [np.inf, 0]
    assert functions.exp(np.zeros((0, 3))).shape == (0, 3)


def test_exp_float32_is_the_float64_result_rounded():
    x = np.random.default_rng(2).uniform(-100, 88, 5000).astype(np.float32)
    same_bits(functions.exp(x), functions.exp(x.astype(np.float64)).astype(np.float32))


@pytest.mark.parametrize("scale", [1, 100, 2**19])
def test_sin_and_cos_are_within_one_ulp(scale):
    x = np.random.default_rng(3).uniform(-scale, scale, 500)
    with localcontext() as context:
        context.prec = 85
        exact = [Decimal(v) for v in x.tolist()]
        assert (
            max(ulps(y, series(v, True)) for v, y in zip(exact, rotary_kernel.sin(x), strict=True))
            < 0.8
        )
        assert (
            max(ulps(y, series(v, False)) for v, y in zip(exact, rotary_kernel.cos(x), strict=True))
            < 0.8
        )


def test_sin_near_multiples_of_pi_half():
    x = np.arange(1, 2000, 13) * float(PI / 2)
    with localcontext() as context:
        context.prec = 85
        exact = [Decimal(v) for v in x.tolist()]
        assert (
            max(ulps(y, series(v, True)) for v, y in zip(exact, rotary_kernel.sin(x), strict=True))
            < 1
        )
        assert (
            max(ulps(y, series(v, False)) for v, y in zip(exact, rotary_kernel.cos(x), strict=True))
            < 1
        )


def test_bits_are_the_same_on_every_machine():
    grid = np.arange(-100_000, 100_000) * 2.0**-8
    digest = hashlib.sha256()
    for function in (functions.exp, rotary_kernel.sin, rotary_kernel.cos, activations.silu):
        digest.update(function(grid).tobytes())
    digest.update(functions.softmax(grid.reshape(10, 100, 200), scale=0.125).tobytes())
    digest.update(functions.rms_norm(grid.reshape(-1, 125), np.full(125, 1.1), eps=1e-5).tobytes())
    assert digest.hexdigest() == "ddd471b524130fb57eba3e389f7b4019d97b3451e5680b2eded587c045f60bd7"


def lanes(values):
    """Sum as the kernels document it, in Python floats."""
    s = [0.0] * 8
    for j, v in enumerate(values):
        s[j % 8] += v
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 7, 8, 29])
def test_rms_norm_bits(dtype, width):
    rng = np.random.default_rng(width)
    x = rng.standard_normal((5, width)).astype(dtype)
    w = rng.standard_normal(width).astype(dtype)
    want = np.empty_like(x)
    for i, row in enumerate(x.tolist()):
        inverse = 1.0 / float(np.sqrt(lanes([v * v for v in row]) / width + 1e-5))
        want[i] = [v * inverse * u for v, u in zip(row, w.tolist(), strict=True)]
    same_bits(functions.rms_norm(x, w, eps=1e-5), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax_bits(dtype, masked):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((4, 19, 19)) * 4).astype(dtype)
    first, last = np.maximum(np.arange(19) - 9, 0), np.arange(1, 20)  # a window of 10
    keep = rng.random((2, 19)) < 0.6
    want = np.zeros_like(x)
    for n in range(4):
        for t in range(19):
            seen = [
                float(x[n, t, j]) * 0.3 if keep[n // 2, j] or not masked else -np.inf
                for j in range(first[t], last[t])
            ]
            top = max(seen)
            if top > -np.inf:
                e = functions.exp(np.array([v - top for v in seen])).tolist()
                total = lanes(e)
                want[n, t, first[t] : last[t]] = [v / total for v in e]
    mask = keep if masked else None
    got = functions.softmax(x.reshape(2, 2, 19, 19), scale=0.3, first=first, last=last, keep=mask)
    same_bits(got.reshape(4, 19, 19), want)


def test_softmax_spreads_nan_and_leaves_unseen_rows_empty():
    x = np.array([[0.0, np.nan], [1.0, 2.0]])
    assert np.isnan(functions.softmax(x)[0]).all()
    np.testing.assert_array_equal(functions.softmax(x, keep=np.zeros((1, 2), bool))[1], [0, 0])
    assert np.isnan(functions.softmax(np.full((1, 2), np.nan))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rotary_turns_halves_and_puts_heads_first(dtype):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 5, 3, 10)).astype(dtype)
    angle = rng.standard_normal((5, 4))
    c, s = np.cos(angle), np.sin(angle)
    u, v = x[..., :4].astype(float), x[..., 4:8].astype(float)
    cc, ss = c[:, None], s[:, None]
    want = np.concatenate([u * cc - v * ss, v * cc + u * ss, x[..., 8:]], -1).astype(dtype)
    same_bits(rotary_kernel.rotary(x, c, s), np.ascontiguousarray(want.swapaxes(1, 2)))


def test_silu_values():
    x = np.array([-np.inf, -800.0, 0.0, 2.0, 1000.0])
    with np.errstate(invalid="ignore"):
        y = activations.silu(x)
    assert np.isnan(y[0])
    np.testing.assert_allclose(y[1:], [0, 0, 2 / (1 + np.exp(-2)), 1000], rtol=1e-15)


def test_results_do_not_depend_on_threads():
    rng = np.random.default_rng(7)
    x = rng.standard_normal((8, 100, 100)).astype(np.float32)
    w = np.ones(100, np.float32)
    before = numba.get_num_threads()
    results = []
    try:
        for count in (1, before):
            numba.set_num_threads(count)
            results.append(
                [functions.softmax(x), functions.rms_norm(x, w, eps=1e-6), activations.silu(x)]
            )
    finally:
        numba.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        same_bits(one, many)


def erfc(a):
    """Complementary error function of a Decimal >= 0: Taylor series, then continued fraction."""
    if a < 5:
        term = total = a
        n = 0
        while abs(term) > Decimal(10) ** -70:
            n += 1
            term = -term * a * a / n
            total += term / (2 * n + 1)
        return 1 - 2 / PI.sqrt() * total
    fraction = Decimal(0)
    for k in range(160, 0, -1):
        fraction = Decimal(k) / 2 / (a + fraction)
    return (-a * a).exp() / PI.sqrt() / (a + fraction)


def true_gelu(x):
    half = erfc(abs(x) / Decimal(2).sqrt()) / 2
    return x * (1 - half if x > 0 else half)


def true_tanh(x):
    e = (-2 * abs(x)).exp()
    return ((1 - e) / (1 + e)).copy_sign(x)


def true_gelu_tanh(x):
    u = (2 / PI).sqrt() * (x + Decimal("0.044715") * x**3)
    return x / (1 + (-2 * u).exp())


def relative(function, exact, x):
    """Largest relative error of a vector function over float64 inputs."""
    with localcontext() as context:
        context.prec = 70
        worst = Decimal(0)
        for v, y in zip(x.tolist(), function(x).tolist(), strict=True):
            want = exact(Decimal(v))
            worst = max(worst, abs(Decimal(y) / want - 1))
        return float(worst)


@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "bound"),
    [
        (activations.tanh, true_tanh, -20, 20, 2 * 2.0**-53),
        (activations.tanh, true_tanh, -1e-3, 1e-3, 2 * 2.0**-53),
        (activations.sigmoid, lambda x: 1 / (1 + (-x).exp()), -40, 40, 3 * 2.0**-53),
        (activations.silu, lambda x: x / (1 + (-x).exp()), -40, 40, 3 * 2.0**-53),
        (activations.gelu, true_gelu, -3, 3, 2.0**-49),
        (activations.gelu, true_gelu, -37, 37, 2.0**-42),
        (activations.gelu_tanh, true_gelu_tanh, -3, 3, 2.0**-48),
        (activations.gelu_tanh, true_gelu_tanh, -20, 20, 2.0**-41),
        (
            activations.quick_gelu,
            lambda x: x / (1 + (Decimal("-1.702") * x).exp()),
            -400,
            400,
            2.0**-42,
        ),
    ],
)
def test_activation_error_bounds(function, exact, low, high, bound):
    x = np.random.default_rng(8).uniform(low, high, 1500)
    assert relative(function, exact, x) < bound


@pytest.mark.parametrize("name", activations.ACTIVATIONS)
def test_activations_in_float32_are_rounded_once(name):
    function = activations.ACTIVATIONS[name]
    x = np.random.default_rng(9).standard_normal(3000).astype(np.float32) * 6
    same_bits(function(x), function(x.astype(np.float64)).astype(np.float32))
    ends = np.array([0.0, np.nan, np.inf, 1e30, -1e30])
    y = function(ends)
    assert y[0] == (0.5 if name == "sigmoid" else 0)
    assert np.isnan(y[1])
    bounded = name in ("tanh", "sigmoid")
    assert y[2] == (1 if bounded else np.inf)
    assert y[3] == (1 if bounded else ends[3])
    assert y[4] == (-1 if name == "tanh" else 0)


def test_softcap_bits():
    x = np.linspace(-90, 90, 501)
    same_bits(activations.softcap(x, scale=0.7, cap=30.0), 30.0 * activations.tanh(x * 0.7 / 30.0))


def test_activation_bits_are_the_same_on_every_machine():
    grid = np.arange(-100_000, 100_000) * 2.0**-12
    digest = hashlib.sha256()
    for name in ("tanh", "sigmoid", "gelu", "gelu_new", "quick_gelu"):
        digest.update(activations.ACTIVATIONS[name](grid).tobytes())
    digest.update(activations.softcap(grid, scale=0.3, cap=50.0).tobytes())
    w, b = np.full(125, 1.1), np.full(125, -0.3)
    digest.update(functions.layer_norm(grid.reshape(-1, 125), w, b, eps=1e-5).tobytes())
    digest.update(functions.rms_norm(grid.reshape(-1, 125), b, eps=1e-5, offset=1.0).tobytes())
    bias = np.arange(100.0).reshape(2, 5, 10)
    digest.update(functions.softmax(grid.reshape(-1, 5, 10), scale=0.1, bias=bias).tobytes())
    assert digest.hexdigest() == "7ce8dd361d22a4b9aedf7c2cb33e70c2e172ee166e250395ec352c6a06630a3c"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 7, 8, 29])
def test_layer_norm_bits(dtype, width):
    rng = np.random.default_rng(width)
    x, w, b = (rng.standard_normal(s).astype(dtype) for s in ((5, width), width, width))
    want = np.empty_like(x)
    for i, row in enumerate(x.tolist()):
        mean = lanes(row) / width
        centred = [v - mean for v in row]
        inverse = 1.0 / float(np.sqrt(lanes([v * v for v in centred]) / width + 1e-5))
        want[i] = [
            v * inverse * u + t for v, u, t in zip(centred, w.tolist(), b.tolist(), strict=True)
        ]
    same_bits(functions.layer_norm(x, w, b, eps=1e-5), want)


@pytest.mark.parametrize("width", [5, 48, 1000])
def test_norm_error_bounds(width):
    """Against the same formula in long double with exact sums."""
    rng = np.random.default_rng(width)
    x = rng.standard_normal((20, width)) * 10 + 3
    w, b = rng.standard_normal(width), rng.standard_normal(width)
    t = x.astype(np.longdouble)
    rms = t / np.sqrt((t * t).mean(-1, keepdims=True) + np.longdouble(1e-6)) * w
    got = functions.rms_norm(x, w, eps=1e-6)
    assert (np.abs(got - rms) <= np.abs(rms) * (width / 8 + 12) * 2.0**-53).all()
    centred = t - t.mean(-1, keepdims=True)
    std = np.sqrt((centred * centred).mean(-1, keepdims=True) + np.longdouble(1e-6))
    want = centred / std * w + b
    room = np.abs(x).max(-1, keepdims=True) / std * np.abs(w) + np.abs(b)
    got = functions.layer_norm(x, w, b, eps=1e-6)
    assert (np.abs(got - want) <= room * (width / 8 + 20) * 2.0**-53).all()


def test_softmax_adds_a_bias_for_each_head():
    rng = np.random.default_rng(4)
    x, bias = rng.standard_normal((3, 2, 4, 9)), rng.standard_normal((2, 4, 9))
    same_bits(functions.softmax(x, scale=0.5, bias=bias), functions.softmax(x * 0.5 + bias))


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 2041])
def test_column_sums_add_the_rows_in_order(rows):
    """Order shows: the same numbers in another one give other sums."""
    from numsim.kernels.elementwise.derivatives import column_sums

    rng = np.random.default_rng(rows)
    x = (rng.normal(size=(rows, 5)) * 10.0 ** rng.integers(-9, 9, (rows, 5))).astype(np.float64)
    total = np.zeros(5)
    for row in x:
        total = total + row
    np.testing.assert_array_equal(column_sums(x), total)
