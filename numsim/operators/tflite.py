"""Softmax, tanh and logistic of TensorFlow Lite: integers in, integers out.

What the library computes in floats to prepare (multipliers, tables) is computed so here.

Source: tflite-micro, commit 90b983c; gemmlowp, commit 16e8662.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.operators.fixed_point import (
    divide_by_pot,
    exp_on_negative,
    high_mul,
    logistic_fixed,
    multiply_by_pot,
    one_over_one_plus,
    tanh_fixed,
)
from numsim.operators.integers import Ints, integers, positive
from numsim.operators.rounded import Values, function, rounding_to

_ACCUMULATOR_BITS = 12  # whole bits of TFLite's sum of exponentials


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
    return divide_by_pot(high_mul(x << left, m.multiplier), right)


def _radius(integer_bits: int, shift: int) -> int:
    whole = ((1 << integer_bits) - 1) * (1 << (31 - integer_bits))
    return math.floor(whole / 2.0**shift)


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
    a = integers(x, "tflite_softmax_int8", 8)
    real = min(positive(input_scale, "input_scale") * 2.0**26, 2.0**31 - 1)
    m = _multiplier(real)
    least = -_radius(5, m.shift)
    diff = a - a.max(-1, keepdims=True)
    counts = diff >= least
    scaled = high_mul(np.where(counts, diff, 0) << m.shift, m.multiplier)
    e = exp_on_negative(scaled, 5)
    total = np.where(counts, multiply_by_pot(e, -_ACCUMULATOR_BITS), 0).sum(-1, keepdims=True)
    headroom = _leading_zeros(total)
    inverse = one_over_one_plus((total << headroom) - (1 << 31))
    over = _ACCUMULATOR_BITS - headroom
    y = divide_by_pot(high_mul(inverse, e), over + 31 - out_bits) - (1 << (out_bits - 1))
    low, high = -(1 << (out_bits - 1)), (1 << (out_bits - 1)) - 1
    y = np.where(counts, np.clip(y, low, high), low)
    return y.astype(np.int8 if out_bits == 8 else np.int16)


def _leading_zeros(x: Ints) -> Ints:
    """Of 32-bit words above 0."""
    return np.int64(32) - np.frexp(x.astype(np.float64))[1].astype(np.int64)


def _curve8(x: ArrayLike, input_scale: float, zero_point: int, name: str) -> tuple[Ints, Ints, int]:
    if not is_integer(zero_point) or not -128 <= zero_point <= 127:
        raise NumsimError(f"{name}: zero_point is an int8; got {zero_point!r:.40}")
    a = integers(x, name, 8) - zero_point
    m = _multiplier(positive(input_scale, "input_scale") * 2.0**27)
    return a, _rescaled(a, m), _radius(4, m.shift)


@known_floats
def tflite_tanh8(x: ArrayLike, *, input_scale: float, zero_point: int = 0) -> NDArray[np.int8]:
    """Tanh of int8 as TFLite computes it, to int8 of scale 1/128.

    Raises
    ------
    NumsimError
        For values outside int8, or a scale of 0 or below.

    Notes
    -----
    **Source**: tflite-micro, commit 90b983c, ``reference/integer_ops/tanh.h``.

    Examples
    --------
    >>> tflite_tanh8([-128, 8, 100], input_scale=0.0625).tolist()
    [-128, 59, 127]
    """
    a, q4, radius = _curve8(x, input_scale, zero_point, "tflite_tanh8")
    y = np.clip(divide_by_pot(tanh_fixed(q4, 4), 24), -128, 127)
    return np.where(a <= -radius, -128, np.where(a >= radius, 127, y)).astype(np.int8)


@known_floats
def tflite_logistic8(x: ArrayLike, *, input_scale: float, zero_point: int = 0) -> NDArray[np.int8]:
    """1 / (1 + e**-x) of int8 as TFLite computes it, to int8 of scale 1/256, zero point -128.

    Raises
    ------
    NumsimError
        For values outside int8, or a scale of 0 or below.

    Notes
    -----
    **Source**: tflite-micro, commit 90b983c, ``reference/integer_ops/logistic.h``.

    Examples
    --------
    >>> tflite_logistic8([-128, 0, 100], input_scale=0.0625).tolist()
    [-128, 0, 127]
    """
    a, q4, radius = _curve8(x, input_scale, zero_point, "tflite_logistic8")
    y = np.clip(divide_by_pot(logistic_fixed(q4, 4), 23) - 128, -128, 127)
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
        For values outside int16, or a scale of 0 or below.

    Notes
    -----
    **Source**: tflite-micro, commit 90b983c, ``reference/softmax.h``.

    Examples
    --------
    >>> tflite_softmax_int16([[0, 1000, 2000]], input_scale=0.001).tolist()
    [[2950, 8019, 21799]]
    """
    a = integers(x, "tflite_softmax_int16", 16)
    m = _multiplier(positive(input_scale, "input_scale") / (10.0 / 65535.0))
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
