"""Chains of rounded operations against the same chain written in Python's fractions."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import oracle
import pytest

import numsim as ns
from numsim import operators


class R:
    """Rounding of fractions to a format, by the oracle."""

    def __init__(self, fmt: str, rounding: str = "rne") -> None:
        self.fmt, self.rounding = fmt, rounding

    def __call__(self, x: Fraction) -> Fraction:
        code = oracle.encode(self.fmt, Fraction(x), self.rounding, "saturate")
        return Fraction(float(ns.decode(np.asarray([code]), self.fmt)[0]))

    def exp(self, x: Fraction) -> Fraction:
        with localcontext(prec=120):
            return self(Fraction((Decimal(x.numerator) / Decimal(x.denominator)).exp()))

    def root(self, x: Fraction, *, inverse: bool) -> Fraction:
        with localcontext(prec=120):
            y = (Decimal(x.numerator) / Decimal(x.denominator)).sqrt()
            return self(Fraction(1 / y if inverse else y))


def added(terms: list[Fraction], order: str, r: R) -> Fraction:
    if order == "exact":
        return r(sum(terms, Fraction(0)))
    if order == "sequential":
        total = terms[0]
        for t in terms[1:]:
            total = r(total + t)
        return total
    if order == "pairwise":
        while len(terms) > 1:
            odd = terms[-1:] if len(terms) % 2 else []
            terms = [r(a + b) for a, b in zip(terms[::2], terms[1::2], strict=False)] + odd
        return terms[0]
    width = int(order.partition(":")[2])
    lanes = [Fraction(0)] * width
    for j in range(width):
        mine = terms[j::width]
        lanes[j] = mine[0] if mine else Fraction(0)
        for t in mine[1:]:
            lanes[j] = r(lanes[j] + t)
    while width > 1:
        width //= 2
        lanes = [r(lanes[j] + lanes[j + width]) for j in range(width)]
    return lanes[0]


ORDERS = ("sequential", "pairwise", "lanes:4", "exact")


def rows(fmt: str, seed: int, shape=(3, 11)) -> np.ndarray:
    return ns.cast(np.random.default_rng(seed).normal(size=shape) * 3, fmt)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rounding", ["rne", "rtz"])
@pytest.mark.parametrize("divide", ["divide", "reciprocal"])
@pytest.mark.parametrize("fmt", ["bfloat16", "float16", "float32"])
def test_softmax(order, rounding, divide, fmt):
    x, r = rows(fmt, 1), R(fmt, rounding)
    got = operators.softmax(x, format=fmt, rounding=rounding, sum=order, divide=divide)
    for row, found in zip(x.tolist(), got.tolist(), strict=True):
        e = [r.exp(r(Fraction(v) - Fraction(max(row)))) for v in row]
        s = added(e, order, r)
        want = [r(v / s) if divide == "divide" else r(v * r(1 / s)) for v in e]
        assert found == [float(v) for v in want]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("inv", ["rsqrt", "sqrt_recip"])
@pytest.mark.parametrize("mean", ["divide", "reciprocal"])
def test_layernorm_and_rmsnorm(order, place, inv, mean):
    fmt, n = "bfloat16", 11
    x, w, b = rows(fmt, 2), rows(fmt, 3)[0], rows(fmt, 4)[0]
    r = R(fmt)
    eps = r(Fraction("1e-3"))
    settings = {"sum": order, "eps": 1e-3, "eps_place": place, "inv": inv, "mean": mean}

    def average(terms):
        s = added(terms, order, r)
        return r(s / n) if mean == "divide" else r(s * r(Fraction(1, n)))

    def inverse(v):
        if place == "outside":
            return r(1 / r(r.root(v, inverse=False) + eps))
        t = r(v + eps)
        return r.root(t, inverse=True) if inv == "rsqrt" else r(1 / r.root(t, inverse=False))

    normed = operators.layernorm(x, w, b, format=fmt, **settings)
    rms = operators.rmsnorm(x, w, format=fmt, unit_offset=True, weight_format="float16", **settings)
    half = R("float16")
    for i, row in enumerate(x.tolist()):
        values = [Fraction(v) for v in row]
        mu = average(values)
        d = [r(v - mu) for v in values]
        by = inverse(average([r(v * v) for v in d]))
        want = [
            r(r(r(v * by) * Fraction(float(s))) + Fraction(float(t)))
            for v, s, t in zip(d, w, b, strict=True)
        ]
        assert normed[i].tolist() == [float(v) for v in want]
        by = inverse(average([r(v * v) for v in values]))
        want = [
            half(half(r(v * by)) * r(1 + Fraction(float(s))))
            for v, s in zip(values, w, strict=True)
        ]
        assert rms[i].tolist() == [float(v) for v in want]


@pytest.mark.parametrize("fma", [False, True])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotary(fma, layout):
    fmt, r = "float16", R("float16", "rtz")
    x = rows(fmt, 5, (2, 6))
    cos, sin = operators.rotary_tables([3, 9], 6, theta=100.0, format=fmt)
    got = operators.rotary(x, cos, sin, format=fmt, rounding="rtz", layout=layout, fma=fma)
    for t in range(2):
        for i in range(3):
            at = (i, i + 3) if layout == "half" else (2 * i, 2 * i + 1)
            a, b = (Fraction(float(x[t, k])) for k in at)
            c, s = Fraction(float(cos[t, i])), Fraction(float(sin[t, i]))
            keep = (lambda v: v) if fma else r
            assert got[t, at[0]] == float(r(keep(a * c) - r(b * s)))
            assert got[t, at[1]] == float(r(keep(b * c) + r(a * s)))


def test_tables_of_an_exact_angle_differ_from_those_of_a_float32_one():
    exact = operators.rotary_tables([100_000], 64, theta=10000.0, format="float32", angle="exact")
    single = operators.rotary_tables([100_000], 64, theta=10000.0, format="float32")
    angle = np.float32(100_000) * np.float32(10000.0 ** (-np.arange(32) / 32))
    np.testing.assert_allclose(single[0][0], np.cos(angle.astype(np.float64)), atol=1e-7)
    assert 1e-5 < np.abs(exact[0] - single[0]).max() < 1e-2


def test_the_published_share_of_wrong_bfloat16_values():
    """flash-attention issue 2263: about 1 % of exp2 by the polynomial of degree 3."""
    x = -np.random.default_rng(0).uniform(0, 8, 400_000).astype(np.float32)
    wrong = {}
    for degree in (2, 3, 4):
        got = ns.encode(operators.exp2_poly(x, degree=degree), "bfloat16")
        right = operators.elementwise("exp2", x, format="bfloat16")
        wrong[degree] = 100 * np.mean(got != ns.encode(right, "bfloat16"))
    assert wrong[2] == pytest.approx(24, abs=1)
    assert wrong[3] == pytest.approx(1.02, abs=0.06)
    assert wrong[4] == pytest.approx(0.03, abs=0.02)


def inputs_of(fmt, low=-126.0, high=127.0):
    """Return every number of a format of 16 bits in a range."""
    x = np.asarray(ns.decode(np.arange(1 << 16, dtype=np.uint16), fmt), np.float32)
    return x[(x >= low) & (x <= high)]


@pytest.mark.parametrize("fmt", ["float16", "bfloat16"])
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
def test_every_16_bit_input_of_a_polynomial_stays_within_its_bound(degree, fmt):
    x = inputs_of(fmt)
    bound = next(v for v in operators.list_variants() if v.name == f"exp2_poly:{degree}").error
    got = operators.exp2_poly(x, degree=degree).astype(np.float64)
    error = np.abs(got / np.exp2(x.astype(np.float64)) - 1).max()
    assert error <= float(bound.partition(" ")[0]) * 1.01 + 2.0**-23


@pytest.mark.parametrize("fmt", ["float16", "bfloat16"])
@pytest.mark.parametrize(("table", "p"), [("float16", 11), ("bfloat16", 8), ("float32", 24)])
@pytest.mark.parametrize("entries", [1, 3, 16, 64, 256])
def test_every_16_bit_input_of_a_table_stays_within_its_bound(entries, table, p, fmt):
    x = inputs_of(fmt)
    said = next(v for v in operators.list_variants() if v.name == "exp2_lut").error
    linear = float(said.partition(" ")[0]) / entries**2
    for interpolation, bound in (("linear", linear), ("none", 2 ** (1 / entries) - 1)):
        got = operators.exp2_lut(
            x, entries=entries, table_format=table, interpolation=interpolation
        )
        error = np.abs(got.astype(float) / np.exp2(x.astype(float)) - 1).max()
        most = bound + 2.0**-p + 2.0**-24  # the result is float32
        assert error <= most
        assert error > most / 8


def test_softmax_of_integers_stays_within_its_steps():
    rng = np.random.default_rng(0)
    for n in (2, 3, 8, 64, 500):
        x = rng.integers(-32768, 32768, (200, n))
        for scale in (3e-4, 1e-3, 1e-2, 1.0):
            want = float_softmax(x * float(np.float32(scale)))
            steps = np.abs(operators.tflite_softmax_int16(x, input_scale=scale) - want * 2**15)
            assert steps.max() <= 2 * n
        x = np.round(rng.normal(size=(200, n)) * 1500).astype(int)
        for scale in (1e-5, 1e-4, 1e-3):
            want = float_softmax(x * float(np.float32(scale)))
            assert np.abs(operators.ibert_softmax(x, scale=scale) - want * 2**8).max() <= 2


def float_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", [v.name for v in operators.list_variants() if not v.bit_exact])
def test_a_drawn_error_stays_within_the_documented_bound(name):
    from numsim.operators.variants import _BOUNDS  # the numbers behind the words

    bound = _BOUNDS[name]
    fmt = ns.get_format(bound.format)
    codes = np.arange(0, 1 << fmt.bits, 1 if fmt.bits == 16 else 9973).astype(fmt.code_dtype)
    x = np.asarray(ns.decode(codes, fmt), np.float32)
    made_for = next(v for v in operators.list_variants() if v.name == name)
    x = x[(x >= made_for.low) & (x <= made_for.high)]  # all of them, of a format of 16 bits
    got = operators.approximate(name, x, seed=3).astype(np.float64)
    x = np.where((np.abs(x) < fmt.min_normal) & bound.flushes, np.copysign(0, x), x)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        right = {"exp2": np.exp2, "reciprocal": lambda v: 1 / v, "sqrt": np.sqrt,
                 "rsqrt": lambda v: 1 / np.sqrt(v), "sin": np.sin, "cos": np.cos,
                 "tanh": np.tanh}[bound.function](wide)  # fmt: skip
        ulp = np.ldexp(1.0, np.frexp(right)[1] - fmt.precision)
        allowed = np.maximum(np.abs(right) * bound.relative, bound.absolute) + bound.ulps * ulp
        normal = np.isfinite(right) & (np.abs(right) >= fmt.min_normal) & (np.abs(right) < fmt.max)
    assert (np.abs(got[normal] - right[normal]) <= (allowed * (1 + 1e-6))[normal]).all()
    assert (operators.approximate(name, x, seed=4) != got)[normal].mean() > 0.05
    np.testing.assert_array_equal(operators.approximate(name, x, seed=3), got)


def tabled(x, entries, fmt):
    """2**x between entries of a table, exactly."""
    t = Fraction(x)
    k = t.numerator // t.denominator
    place = (t - k) * entries
    i = place.numerator // place.denominator
    with localcontext(prec=80):
        below, above = (R(fmt)(Fraction(Decimal(2) ** (Decimal(i + j) / entries))) for j in (0, 1))
    return (below + (place - i) * (above - below)) * Fraction(2) ** k


@pytest.mark.parametrize("rounding", ["rne", "rtz"])
@pytest.mark.parametrize(("entries", "fmt"), [(1, "float16"), (16, "float16"), (100, "float32")])
def test_a_table_is_read_exactly_and_rounded_once(entries, fmt, rounding):
    """Just below a whole number 1 - 2**-60 was 1 in float64: toward zero one step too large."""
    rng = np.random.default_rng(entries)
    x = np.concatenate([-rng.random(20) * 8, -(2.0 ** -rng.uniform(5, 60, 40)), rng.random(9) * 3])
    x = x.astype(np.float32)
    got = operators.exp2_lut(x, entries=entries, table_format=fmt, rounding=rounding)
    r = R("float32", rounding)
    assert got.tolist() == [float(r(tabled(float(v), entries, fmt))) for v in x]


def test_a_sink_is_added_to_the_sum_of_the_others():
    x = np.float32([[0.5, -1.0, 0.25, 2.0, 1.5, 0.75]])
    for order in ("pairwise", "lanes:4"):
        r = R("bfloat16")
        e = [r.exp(r(Fraction(float(v)) - 2)) for v in x[0]]
        s = r(added(e[:-1], order, r) + e[-1])
        got = operators.softmax(x, format="bfloat16", sum=order, sink=True)
        assert got[0].tolist() == [float(r(v / s)) for v in e]


def test_the_bounds_of_integer_variants_hold_for_the_scales_they_name():
    """They were said of every scale: at 0.05 the exponential is 4e-3 off."""
    said = {v.name: v.error.split() for v in operators.list_variants()}
    for name, low, high in (("ibert_exp", -8.0, 0.0), ("ibert_gelu", -5.0, 5.0)):
        bound, scale = float(said[name][0]), float(said[name][-1])
        step = float(np.float32(scale))
        codes = np.arange(int(low / scale), int(high / scale) + 1, 7)
        x = codes * step
        if name == "ibert_exp":
            got = operators.ibert_exp(codes, scale=scale).astype(float) * 0.35815147 * step**2
            error = np.abs(got / 2**30 - np.exp(x)).max()
        else:
            got = operators.ibert_gelu(codes, scale=scale) * (step / 1.4142) ** 2 * -0.2888 * 2**13
            erf = ns.operators.elementwise("erf", np.float32(x / np.sqrt(2)), format="float32")
            error = np.abs(got * step - x * 0.5 * (1 + erf)).max()
        assert bound / 2 < error <= bound


ROWS = np.ones((2, 3), np.float32)
REFUSED = [
    (lambda o: o.softmax("a"), "holds real numbers"),
    (lambda o: o.softmax(ROWS.astype(complex)), "holds real numbers"),
    (lambda o: o.softmax(ROWS[:, :0]), r"at least one number, .*got \(2, 0\)"),
    (
        lambda o: o.rmsnorm(ROWS, [1, 1], format="float32"),
        r"rmsnorm: shapes must fit",
    ),
    (lambda o: o.layernorm(ROWS, [1, 1, 1], [1, 1], format="float32"), "layernorm: shapes must"),
    (lambda o: o.rmsnorm(ROWS, [1, 1, 1], format="float32", eps=float("nan")), "eps is a number"),
    (lambda o: o.silu_gate([1, 2], [1, 2, 3], format="float32"), "silu_gate: shapes must fit"),
    (lambda o: o.residual([1, 2], [1, 2, 3], format="float32"), "residual: shapes must fit"),
    (lambda o: o.rotary(ROWS, [1], [1], format="float32"), "an even number"),
    (lambda o: o.rotary(ROWS.T, [1, 1, 1], [1], format="float32"), r"tables are \[\.\.\., 1\]"),
    (lambda o: o.rotary_tables([0], 4.5, theta=2.0, format="float32"), "dim is an even number"),
    (lambda o: o.rotary_tables([0], 4, theta="x", format="float32"), "theta is a number above 1"),
    (lambda o: o.exp2_lut(0.5, entries=2.5), "entries is 1 or more"),
    (lambda o: o.exp2_poly(0.5, degree=[]), "degree is 1 to 5"),
    (lambda o: o.approximate("ex2.approx.f32", 1.0, seed="a"), "seed is an integer"),
    (lambda o: o.online_softmax(ROWS, ROWS, tile=2, scale_log2=1.0), "K > 0"),
    (lambda o: o.online_softmax(ROWS, ROWS.T, tile=1.5, scale_log2=1.0), "tile is 1 or more"),
    (lambda o: o.online_softmax(ROWS, ROWS.T, tile=2, scale_log2="a"), "scale_log2 is a finite"),
    (lambda o: o.tflite_softmax_int8([300], input_scale=0.1), "integers of 8 bits; got 300"),
    (lambda o: o.tflite_softmax_int16([1 << 15], input_scale=0.1), "integers of 16 bits"),
    (lambda o: o.tflite_tanh8([1], input_scale=0.1, zero_point=1.5), "zero_point is an int8"),
    (lambda o: o.tflite_tanh8([1], input_scale=1e-300), "positive number of float32"),
    (lambda o: o.ibert_gelu([10**9], scale=1e-9), "integers of 64 bits"),
    (lambda o: o.ibert_norm([[2**31 - 1, -(2**31)]]), "sum of squares is an integer of 64 bits"),
    (lambda o: o.ibert_sqrt(np.uint64([2**64 - 1])), "takes integers of 64 bits"),
    (
        lambda o: o.ort_qlinear_softmax(np.int8([[]]), x_scale=1.0, y_scale=1.0),
        "takes rows of",
    ),
    (lambda o: o.ggml_gelu_f16("a"), "holds real numbers"),
]


@pytest.mark.parametrize(("made", "message"), REFUSED)
def test_what_no_operator_takes_is_refused_in_words(made, message):
    with pytest.raises(ns.NumsimError, match=message):
        made(operators)
