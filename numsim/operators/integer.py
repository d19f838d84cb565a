"""Operators of integer units: exponentials, softmax, tanh, logistic, norms without floats inside.

Each follows the code of one library, step by step; what a library computes in floats to prepare
(multipliers, tables) is said. Arrays are vectors or rows [..., n] of integers.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.operators.rounded import Values, function, plus, rounding_to, times

Ints = Any  # NDArray[np.int64]: NumPy types the results of its functions as anything
_MAX, _MIN = (1 << 31) - 1, -(1 << 31)
_ONE_THIRD, _EXP_EIGHTH = 715827883, 1895147668  # 1/3 and exp(-1/8), Q0.31
_BARREL = (  # exp(-2**e) in Q0.31
    (-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535),
    (3, 720401), (4, 242),
)  # fmt: skip
_48_OVER_17, _NEG_32_OVER_17 = 1515870810, -1010580540  # Q2.29
_ACCUMULATOR_BITS = 12  # whole bits of TFLite's sum of exponentials


def _integers(x: ArrayLike, name: str) -> Ints:
    array = np.asarray(x)
    if array.dtype.kind not in "iu":
        raise NumsimError(f"{name} takes integers; got {array.dtype}")
    return array.astype(np.int64)


# ------------------------------------------------------------------- fixed point as in gemmlowp


def _trunc(x: Ints, shift: int) -> Ints:
    """X / 2**shift, toward zero."""
    return np.where(x >= 0, x >> shift, -(-x >> shift))


def _high_mul(a: Any, b: Any) -> Ints:
    """SaturatingRoundingDoublingHighMul: (2 a b) / 2**32 rounded half away from zero."""
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    ab = a * b
    nudged = ab + np.where(ab >= 0, 1 << 30, 1 - (1 << 30))
    return np.where((a == b) & (a == _MIN), _MAX, _trunc(nudged, 31))


def _divide_by_pot(x: Ints, exponent: Any) -> Ints:
    """RoundingDivideByPOT: half away from zero."""
    exponent = np.asarray(exponent, np.int64)
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def _multiply_by_pot(x: Ints, exponent: int) -> Ints:
    """SaturatingRoundingMultiplyByPOT."""
    return np.clip(x << exponent, _MIN, _MAX) if exponent >= 0 else _divide_by_pot(x, -exponent)


def _half_sum(a: Ints, b: Any) -> Ints:
    s = a + b
    return _trunc(s + np.where(s >= 0, 1, -1), 1)


def _exp_between_quarter_and_zero(a: Ints) -> Ints:
    x = a + (1 << 28)
    x2 = _high_mul(x, x)
    x3, x4 = _high_mul(x2, x), _high_mul(x2, x2)
    series = _multiply_by_pot(_high_mul(_multiply_by_pot(x4, -2) + x3, _ONE_THIRD) + x2, -1)
    return _EXP_EIGHTH + _high_mul(_EXP_EIGHTH, x + series)


def _exp_on_negative(a: Ints, integer_bits: int) -> Ints:
    fraction = 31 - integer_bits
    quarter = np.int64(1) << (fraction - 2)
    rest = (a & (quarter - 1)) - quarter
    result = _exp_between_quarter_and_zero(_multiply_by_pot(rest, integer_bits))
    remainder = rest - a
    for exponent, multiplier in _BARREL:
        if integer_bits > exponent:
            bit = (remainder >> (fraction + exponent)) & 1
            result = np.where(bit, _high_mul(result, multiplier), result)
    if integer_bits > 5:
        result = np.where(a < -(1 << (36 - integer_bits)), 0, result)
    return np.where(a == 0, _MAX, result)


def _newton(half_denominator: Ints) -> Ints:
    """1 / half_denominator in Q2.29 by three steps of Newton."""
    x = _48_OVER_17 + _high_mul(half_denominator, _NEG_32_OVER_17)
    for _ in range(3):
        rest = (1 << 29) - _high_mul(half_denominator, x)
        x = x + _multiply_by_pot(_high_mul(x, rest), 2)
    return x


def _one_over_one_plus(a: Ints) -> Ints:
    return _multiply_by_pot(_newton(_half_sum(a, _MAX)), 1)


def _tanh_fixed(a: Ints, integer_bits: int) -> Ints:
    n = np.where(a < 0, a, -a)
    e = _exp_on_negative(n, integer_bits + 1)
    t = _multiply_by_pot(_newton(_half_sum(e, _MAX)) - (1 << 29), 2)
    return np.where(a == 0, 0, np.where(a < 0, -t, t))


def _logistic_fixed(a: Ints, integer_bits: int) -> Ints:
    positive = _one_over_one_plus(_exp_on_negative(-np.abs(a), integer_bits))
    return np.where(a == 0, 1 << 30, np.where(a > 0, positive, _MAX - positive))


def _raw(x: ArrayLike, integer_bits: int, name: str) -> Ints:
    if not 0 <= integer_bits <= 29:
        raise NumsimError(f"{name}: integer_bits is 0 to 29; got {integer_bits}")
    a = _integers(x, name)
    if a.size and not _MIN <= a.min() <= a.max() <= _MAX:
        raise NumsimError(f"{name} takes int32; got {a.min()} to {a.max()}")
    return a


def gemmlowp_exp(x: ArrayLike, *, integer_bits: int) -> NDArray[np.int32]:
    """e**x for x of 0 or less in fixed point, by barrel shifters and a polynomial of degree 4.

    Parameters
    ----------
    x
        int32 with 31 - integer_bits fraction bits, not above 0.
    integer_bits
        Whole bits of x.

    Returns
    -------
    numpy.ndarray
        int32 with 31 fraction bits; e**0 is the largest.

    Raises
    ------
    NumsimError
        For values that are no int32, or above 0.

    Notes
    -----
    **Source**: gemmlowp, commit 16e8662, ``fixedpoint/fixedpoint.h``.

    Examples
    --------
    >>> gemmlowp_exp([-(1 << 31), 0], integer_bits=0).tolist()
    [790015308, 2147483647]
    """
    a = _raw(x, integer_bits, "gemmlowp_exp")
    if (a > 0).any():
        raise NumsimError(f"gemmlowp_exp takes numbers of 0 or less; got {a.max()}")
    out: NDArray[np.int32] = _exp_on_negative(a, integer_bits).astype(np.int32)
    return out


def gemmlowp_tanh(x: ArrayLike, *, integer_bits: int) -> NDArray[np.int32]:
    """Tanh in fixed point: int32 with 31 - integer_bits fraction bits to int32 with 31.

    Raises
    ------
    NumsimError
        For values that are no int32.

    Notes
    -----
    **Source**: gemmlowp, commit 16e8662, ``fixedpoint/fixedpoint.h``.

    Examples
    --------
    >>> gemmlowp_tanh([1 << 28], integer_bits=3).tolist()
    [1635510876]
    """
    out: NDArray[np.int32] = _tanh_fixed(
        _raw(x, integer_bits, "gemmlowp_tanh"), integer_bits
    ).astype(np.int32)
    return out


def gemmlowp_logistic(x: ArrayLike, *, integer_bits: int) -> NDArray[np.int32]:
    """1 / (1 + e**-x) in fixed point: int32 with 31 - integer_bits fraction bits to one with 31.

    Raises
    ------
    NumsimError
        For values that are no int32.

    Notes
    -----
    **Source**: gemmlowp, commit 16e8662, ``fixedpoint/fixedpoint.h``.

    Examples
    --------
    >>> gemmlowp_logistic([0], integer_bits=3).tolist()
    [1073741824]
    """
    raw = _raw(x, integer_bits, "gemmlowp_logistic")
    out: NDArray[np.int32] = _logistic_fixed(raw, integer_bits).astype(np.int32)
    return out


# -------------------------------------------------------------------------------- TensorFlow Lite


class Multiplier(NamedTuple):
    """A real factor as TFLite holds it: multiplier / 2**31 * 2**shift."""

    multiplier: int
    shift: int


def _multiplier(real: float) -> Multiplier:
    q, shift = math.frexp(real)
    fixed = math.floor(q * 2.0**31 + 0.5)
    return Multiplier(fixed // 2, shift + 1) if fixed == 1 << 31 else Multiplier(fixed, shift)


def _rescaled(x: Ints, m: Multiplier) -> Ints:
    """MultiplyByQuantizedMultiplier with its two roundings."""
    left, right = max(m.shift, 0), max(-m.shift, 0)
    return _divide_by_pot(_high_mul(x << left, m.multiplier), right)


def _radius(integer_bits: int, shift: int) -> int:
    whole = ((1 << integer_bits) - 1) * (1 << (31 - integer_bits))
    return math.floor(whole / 2.0**shift)


def _scale(value: float, name: str) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise NumsimError(f"{name} is a positive number; got {value!r}")
    return float(value)


@known_floats
def tflite_softmax_int8(
    x: ArrayLike, *, input_scale: float, out_bits: int = 8
) -> NDArray[np.signedinteger[Any]]:
    """Softmax of int8 rows as TFLite computes it: scaled differences Q5.26, a sum in Q12.19.

    Parameters
    ----------
    x
        int8 [..., n].
    input_scale
        Real value of one step of x.
    out_bits
        8: scale 1/256, zero point -128; 16: scale 1/65536, zero point -32768.

    Raises
    ------
    NumsimError
        For another width, values outside int8, or a scale of 0 or below.

    Notes
    -----
    **Source**: tflite-micro, commit 90b983c, ``reference/softmax.h``; gemmlowp, commit 16e8662.

    Examples
    --------
    >>> tflite_softmax_int8([[0, 10, 20]], input_scale=0.1).tolist()
    [[-105, -65, 42]]
    """
    if out_bits not in (8, 16):
        raise NumsimError(f"tflite_softmax_int8: out_bits is 8 or 16; got {out_bits!r}")
    a = _integers(x, "tflite_softmax_int8")
    real = min(_scale(input_scale, "input_scale") * 2.0**26, 2.0**31 - 1)
    m = _multiplier(real)
    least = -_radius(5, m.shift)
    diff = a - a.max(-1, keepdims=True)
    counts = diff >= least
    scaled = _high_mul(np.where(counts, diff, 0) << m.shift, m.multiplier)
    e = _exp_on_negative(scaled, 5)
    total = np.where(counts, _multiply_by_pot(e, -_ACCUMULATOR_BITS), 0).sum(-1, keepdims=True)
    headroom = _leading_zeros(total)
    inverse = _one_over_one_plus((total << headroom) - (1 << 31))
    over = _ACCUMULATOR_BITS - headroom
    y = _divide_by_pot(_high_mul(inverse, e), over + 31 - out_bits) - (1 << (out_bits - 1))
    low, high = -(1 << (out_bits - 1)), (1 << (out_bits - 1)) - 1
    y = np.where(counts, np.clip(y, low, high), low)
    return y.astype(np.int8 if out_bits == 8 else np.int16)


def _leading_zeros(x: Ints) -> Ints:
    """Of 32-bit words above 0."""
    return np.int64(32) - np.frexp(x.astype(np.float64))[1].astype(np.int64)


def _curve8(x: ArrayLike, input_scale: float, zero_point: int, name: str) -> tuple[Ints, Ints, int]:
    a = _integers(x, name) - zero_point
    m = _multiplier(_scale(input_scale, "input_scale") * 2.0**27)
    return a, _rescaled(a, m), _radius(4, m.shift)


@known_floats
def tflite_tanh8(x: ArrayLike, *, input_scale: float, zero_point: int = 0) -> NDArray[np.int8]:
    """Tanh of int8 as TFLite computes it, to int8 of scale 1/128.

    Raises
    ------
    NumsimError
        For values that are no integers, or a scale of 0 or below.

    Notes
    -----
    **Source**: tflite-micro, commit 90b983c, ``reference/integer_ops/tanh.h``.

    Examples
    --------
    >>> tflite_tanh8([-128, 8, 100], input_scale=0.0625).tolist()
    [-128, 59, 127]
    """
    a, q4, radius = _curve8(x, input_scale, zero_point, "tflite_tanh8")
    y = np.clip(_divide_by_pot(_tanh_fixed(q4, 4), 24), -128, 127)
    return np.where(a <= -radius, -128, np.where(a >= radius, 127, y)).astype(np.int8)


@known_floats
def tflite_logistic8(x: ArrayLike, *, input_scale: float, zero_point: int = 0) -> NDArray[np.int8]:
    """1 / (1 + e**-x) of int8 as TFLite computes it, to int8 of scale 1/256, zero point -128.

    Raises
    ------
    NumsimError
        For values that are no integers, or a scale of 0 or below.

    Notes
    -----
    **Source**: tflite-micro, commit 90b983c, ``reference/integer_ops/logistic.h``.

    Examples
    --------
    >>> tflite_logistic8([-128, 0, 100], input_scale=0.0625).tolist()
    [-128, 0, 127]
    """
    a, q4, radius = _curve8(x, input_scale, zero_point, "tflite_logistic8")
    y = np.clip(_divide_by_pot(_logistic_fixed(q4, 4), 23) - 128, -128, 127)
    return np.where(a <= -radius, -128, np.where(a >= radius, 127, y)).astype(np.int8)


def _table16(low: Any, high: Any, curve: Any) -> NDArray[np.int16]:
    """513 samples of a curve at Q0.15, each moved by half the error of the middle: float32."""
    one = np.float32
    start, step = one(low), (one(high) - one(low)) / one(512)
    factor = one(65536) / (one(2.0) / one(65535) * one(65535))
    i = np.arange(512, dtype=np.float32)

    def at(x: Values) -> Any:
        return curve(x) * factor

    value, middle = at(start + i * step), at(start + i * step + step / one(2))
    after = at(start + (i + one(1)) * step)
    between = _round_away((after + _round_away(value)) / one(2))
    bias = _round_away((between - _round_away(middle)) / one(2))
    last = _round_away(at(np.array([high], np.float32)))
    out: NDArray[np.int16] = np.clip(
        np.append(_round_away(value) - bias, last), -32768, 32767
    ).astype(np.int16)
    return out


def _round_away(x: Values) -> Any:
    return np.copysign(np.floor(np.abs(x) + np.float32(0.5)), x)


def _exp_single(x: Values) -> Values:
    return rounding_to("float32")(function("exp", x))


@known_floats
def tflite_lut16() -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return the tables of TFLite's 16-bit softmax: e**x on [-10, 0] and 1 / (1 + x) on [0, 1].

    Notes
    -----
    513 entries at Q0.15, made in float32.

    **Source**: tflite-micro, commit 90b983c, ``internal/common.h``, ``softmax_common.cc``.

    Examples
    --------
    >>> [table[-1].item() for table in tflite_lut16()]
    [32767, 16384]
    """
    one = np.float32
    step = one(10.0) / one(65535)
    exp = _table16(step * one(-32768 - 32767), step * one(0), _exp_single)
    unit = one(1.0) / one(65535)
    inverse = _table16(unit * one(0), unit * one(65535), lambda x: one(1) / (one(1) + x))
    return exp, inverse


def _looked_up(table: NDArray[np.int16], x: Ints) -> Ints:
    i, offset = 256 + (x >> 7), x & 127
    wide = table.astype(np.int64)
    return wide[i] + (((wide[i + 1] - wide[i]) * offset + 64) >> 7)


@known_floats
def tflite_softmax_int16(x: ArrayLike, *, input_scale: float) -> NDArray[np.int16]:
    """Softmax of int16 rows by TFLite's tables, to int16 of scale 1/32768.

    Parameters
    ----------
    x
        int16 [..., n].
    input_scale
        Real value of one step of x.

    Raises
    ------
    NumsimError
        For values that are no integers, or a scale of 0 or below.

    Notes
    -----
    **Source**: tflite-micro, commit 90b983c, ``reference/softmax.h``.

    Examples
    --------
    >>> tflite_softmax_int16([[0, 1000, 2000]], input_scale=0.001).tolist()
    [[2950, 8019, 21799]]
    """
    a = _integers(x, "tflite_softmax_int16")
    m = _multiplier(_scale(input_scale, "input_scale") / (10.0 / 65535.0))
    exp, inverse = tflite_lut16()
    scaled = _rescaled(a - a.max(-1, keepdims=True), m)
    e = _looked_up(exp, np.clip(scaled + 32767, -32768, 32767))
    total = e.sum(-1, keepdims=True)
    headroom = _leading_zeros(total)
    shifted = ((total << (headroom - 1)) + (1 << 13)) >> 14
    reciprocal = _looked_up(inverse, np.clip(shifted - (1 << 15) - (1 << 16), -32768, 32767))
    right = 31 - headroom
    y = (e * reciprocal + (np.int64(1) << (right - 1))) >> right
    out: NDArray[np.int16] = np.clip(y, 0, 32767).astype(np.int16)
    return out


# ------------------------------------------------------------------------------------ ONNX Runtime


@known_floats
def ort_qlinear_softmax(
    x: ArrayLike, *, x_scale: float, y_scale: float, y_zero_point: int = 0
) -> NDArray[np.integer[Any]]:
    """Softmax of int8 or uint8 rows as ONNX Runtime computes it: a float32 table and sum.

    Parameters
    ----------
    x
        int8 or uint8 [..., n]; the result has its type.
    x_scale, y_scale, y_zero_point
        As in QLinearSoftmax.

    Raises
    ------
    NumsimError
        For another type, or scales of 0 or below.

    Notes
    -----
    **Source**: onnxruntime 1.32.0, ``contrib_ops/cpu/quantization/qlinear_softmax.cc``.

    Examples
    --------
    >>> import numpy as np
    >>> ort_qlinear_softmax(np.uint8([[0, 10, 20]]), x_scale=0.1, y_scale=1 / 256).tolist()
    [[23, 63, 170]]
    """
    a = np.asarray(x)
    if a.dtype not in (np.int8, np.uint8):
        raise NumsimError(f"ort_qlinear_softmax takes int8 or uint8; got {a.dtype}")
    s, n = float(np.float32(_scale(x_scale, "x_scale"))), a.shape[-1]
    largest = float(np.finfo(np.float32).max) / n
    shift = max(0.0, math.log(largest) - 5) / s
    table = rounding_to("float32")(function("exp", (np.arange(256.0) - 255 + shift) * s))
    t = table[a.astype(np.int64) + (255 - a.max(-1, keepdims=True).astype(np.int64))]
    total = t[..., 0]
    for i in range(1, n):
        total = total + t[..., i]
    inverse = np.float32(math.floor(1.0 / float(np.float32(_scale(y_scale, "y_scale")))))
    y = np.rint(t * inverse / total[..., None]).astype(np.int64) + y_zero_point
    limits = np.iinfo(a.dtype)
    out: NDArray[np.integer[Any]] = np.clip(y, limits.min, limits.max).astype(a.dtype)
    return out


# ------------------------------------------------------------------------------------------ I-BERT


def _rational(scale: float) -> Fraction:
    return Fraction(float(np.float32(_scale(scale, "scale"))))


def ibert_exp(x: ArrayLike, *, scale: float) -> NDArray[Any]:
    """e**(x scale) of integers of 0 or less by I-BERT's quadratic, in exact integers.

    Parameters
    ----------
    x
        Integers of 0 or less.
    scale
        Real value of one step, a float32.

    Returns
    -------
    numpy.ndarray
        Python integers (they need up to 64 bits), in steps of 0.35815147 scale**2 / 2**30.

    Raises
    ------
    NumsimError
        For values that are no integers or above 0, or a scale of 0 or below.

    Notes
    -----
    **Source**: Kim et al., arXiv:2101.01321, algorithm 2; I-BERT, commit 1b09c75.

    Examples
    --------
    >>> ibert_exp([-20, 0], scale=0.05).tolist()
    [444529115136, 1198295875584]
    """
    a = _integers(x, "ibert_exp")
    if (a > 0).any():
        raise NumsimError(f"ibert_exp takes integers of 0 or less; got {a.max()}")
    s = _rational(scale)
    first = math.floor(Fraction("-0.6931") / s)
    b = math.floor(Fraction("0.96963238") / Fraction("0.35815147") / s)
    c = math.floor(1 / Fraction("0.35815147") / s**2)
    out = np.empty(a.shape, object)
    for i, value in enumerate(a.ravel().tolist()):
        value = max(value, 30 * first)
        q = value // first
        r = value - first * q
        out.flat[i] = max((r * (r + b) + c) << (30 - q), 0)
    return out


def ibert_gelu(x: ArrayLike, *, scale: float) -> Ints:
    """X (1 + erf(x / sqrt 2)) of integers by I-BERT's quadratic for erf, in exact integers.

    Parameters
    ----------
    x
        Integers.
    scale
        Real value of one step, a float32.

    Raises
    ------
    NumsimError
        For values that are no integers, or a scale of 0 or below.

    Notes
    -----
    **Source**: Kim et al., arXiv:2101.01321, algorithm 3; I-BERT, commit 1b09c75.

    Examples
    --------
    >>> ibert_gelu([-20, 0, 20], scale=0.05).tolist()
    [20, 0, -40]
    """
    a = _integers(x, "ibert_gelu")
    s = _rational(scale) / Fraction("1.4142")
    factor = Fraction("-0.2888")
    b, c = math.floor(Fraction("-1.769") / s), math.floor(1 / factor / s**2)
    out_scale = s**2 * factor * 2**14
    shift = math.floor(1 / out_scale)
    y = (np.minimum(np.abs(a), -b) + b) ** 2 + c
    return a * (((np.sign(a) * y) >> 14) + shift)


def ibert_softmax(x: ArrayLike, *, scale: float, out_bits: int = 8) -> NDArray[np.int32]:
    """Softmax of integer rows by I-BERT: its exponential at 16 bits, then one factor a row.

    Parameters
    ----------
    x
        Integers [..., n].
    scale
        Real value of one step, a float32.
    out_bits
        The result has steps of 2**-out_bits.

    Raises
    ------
    NumsimError
        For values that are no integers, or a scale of 0 or below.

    Notes
    -----
    The original learns the range of the 16 bits; here e**0 is 32767.

    **Source**: Kim et al., arXiv:2101.01321, section 3.5; I-BERT, commit 1b09c75.

    Examples
    --------
    >>> ibert_softmax([[0, 10, 20]], scale=0.05).tolist()
    [[48, 78, 129]]
    """
    a = _integers(x, "ibert_softmax")
    e = ibert_exp(a - a.max(-1, keepdims=True), scale=scale)
    one = ibert_exp([0], scale=scale)[0]
    short = np.array([round(Fraction(v * 32767, one)) for v in e.ravel()], np.int64)
    short = short.reshape(a.shape)
    factor = (1 << 32) // short.sum(-1, keepdims=True)
    out: NDArray[np.int32] = ((short * factor) >> (32 - out_bits)).astype(np.int32)
    return out


def ibert_sqrt(x: ArrayLike) -> Ints:
    """Floor of the square root of integers.

    Raises
    ------
    NumsimError
        For values that are no integers, or below 0.

    Notes
    -----
    **Source**: Kim et al., arXiv:2101.01321, algorithm 4.

    Examples
    --------
    >>> ibert_sqrt([15, 16]).tolist()
    [3, 4]
    """
    a = _integers(x, "ibert_sqrt")
    if (a < 0).any():
        raise NumsimError(f"ibert_sqrt takes integers of 0 or more; got {a.min()}")
    return np.array([math.isqrt(v) for v in a.ravel().tolist()], np.int64).reshape(a.shape)


def ibert_norm(x: ArrayLike, *, shift: int = 0) -> Ints:
    """Integer rows less their mean, over their standard deviation, by I-BERT.

    Parameters
    ----------
    x
        Integers [..., n].
    shift
        Bits dropped before squares are added.

    Returns
    -------
    numpy.ndarray
        Integers in steps of sqrt(n) / 2**30; rows of one value give 0.

    Raises
    ------
    NumsimError
        For values that are no integers, or a negative shift.

    Notes
    -----
    **Source**: Kim et al., arXiv:2101.01321, section 3.6; I-BERT, commit 1b09c75.

    Examples
    --------
    >>> ibert_norm([[0, 10, 20, 30]]).tolist()
    [[-732096698, -244032233, 244032232, 732096697]]
    """
    a = _integers(x, "ibert_norm")
    if shift < 0:
        raise NumsimError(f"ibert_norm: shift is 0 or more; got {shift}")
    n = a.shape[-1]
    means = [round(Fraction(int(v), n)) for v in a.sum(-1).ravel()]
    y = a - np.array(means, np.int64).reshape(*a.shape[:-1], 1)
    std = ibert_sqrt(((y >> shift) ** 2).sum(-1, keepdims=True)) << shift
    return (y * ((1 << 31) // np.maximum(std, 1))) >> 1


# -------------------------------------------------------------------------------------------- ggml


@known_floats
def ggml_gelu_f16(x: ArrayLike) -> NDArray[np.float32]:
    """GELU with tanh as ggml tabulates it for float16: float32 step by step, then float16.

    Parameters
    ----------
    x
        Values of float16.

    Notes
    -----
    0.5 x (1 + tanh(0.79788456 x (1 + 0.044715 x x))), tanh rounded once, no fused multiply-adds.

    **Source**: ggml, ``ggml_gelu_f32`` and ``ggml_table_gelu_f16`` as its ports have them.

    Examples
    --------
    >>> ggml_gelu_f16([-1.0, 0.5]).tolist()
    [-0.1588134765625, 0.345703125]
    """
    single, one = rounding_to("float32", overflow="special"), np.float32
    v = np.asarray(x, np.float16).astype(np.float32)
    inner = single(times(single(times(one(0.044715), v)), v))
    inner = single(times(single(times(one(0.79788456), v)), single(plus(one(1), inner))))
    t = single(plus(one(1), single(function("tanh", inner))))
    return rounding_to("float16", overflow="special")(times(single(times(one(0.5), v)), t))
