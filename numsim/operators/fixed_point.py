"""Fixed point as gemmlowp has it: exponentials, tanh and logistic of int32 without floats.

A number is an int32 with so many whole bits and the rest fraction; results have 31 fraction bits.

Source: gemmlowp, commit 16e8662, ``fixedpoint/fixedpoint.h``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.operators.integers import Ints, integers

_MAX, _MIN = (1 << 31) - 1, -(1 << 31)
_ONE_THIRD, _EXP_EIGHTH = 715827883, 1895147668  # 1/3 and exp(-1/8), Q0.31
_BARREL = (  # exp(-2**e) in Q0.31
    (-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535),
    (3, 720401), (4, 242),
)  # fmt: skip
_48_OVER_17, _NEG_32_OVER_17 = 1515870810, -1010580540  # Q2.29


def _trunc(x: Ints, shift: int) -> Ints:
    """X / 2**shift, toward zero."""
    return np.where(x >= 0, x >> shift, -(-x >> shift))


def high_mul(a: Any, b: Any) -> Ints:
    """SaturatingRoundingDoublingHighMul: (2 a b) / 2**32 rounded half away from zero."""
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    ab = a * b
    nudged = ab + np.where(ab >= 0, 1 << 30, 1 - (1 << 30))
    return np.where((a == b) & (a == _MIN), _MAX, _trunc(nudged, 31))


def divide_by_pot(x: Ints, exponent: Any) -> Ints:
    """RoundingDivideByPOT: half away from zero."""
    exponent = np.asarray(exponent, np.int64)
    mask = (np.int64(1) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def multiply_by_pot(x: Ints, exponent: int) -> Ints:
    """SaturatingRoundingMultiplyByPOT."""
    return np.clip(x << exponent, _MIN, _MAX) if exponent >= 0 else divide_by_pot(x, -exponent)


def _half_sum(a: Ints, b: Any) -> Ints:
    s = a + b
    return _trunc(s + np.where(s >= 0, 1, -1), 1)


def _exp_between_quarter_and_zero(a: Ints) -> Ints:
    x = a + (1 << 28)
    x2 = high_mul(x, x)
    x3, x4 = high_mul(x2, x), high_mul(x2, x2)
    series = multiply_by_pot(high_mul(multiply_by_pot(x4, -2) + x3, _ONE_THIRD) + x2, -1)
    return _EXP_EIGHTH + high_mul(_EXP_EIGHTH, x + series)


def exp_on_negative(a: Ints, integer_bits: int) -> Ints:
    """Return e**a of raw fixed-point numbers of 0 or less."""
    fraction = 31 - integer_bits
    quarter = np.int64(1) << (fraction - 2)
    rest = (a & (quarter - 1)) - quarter
    result = _exp_between_quarter_and_zero(multiply_by_pot(rest, integer_bits))
    remainder = rest - a
    for exponent, multiplier in _BARREL:
        if integer_bits > exponent:
            bit = (remainder >> (fraction + exponent)) & 1
            result = np.where(bit, high_mul(result, multiplier), result)
    if integer_bits > 5:
        result = np.where(a < -(1 << (36 - integer_bits)), 0, result)
    return np.where(a == 0, _MAX, result)


def _newton(half_denominator: Ints) -> Ints:
    """1 / half_denominator in Q2.29 by three steps of Newton."""
    x = _48_OVER_17 + high_mul(half_denominator, _NEG_32_OVER_17)
    for _ in range(3):
        rest = (1 << 29) - high_mul(half_denominator, x)
        x = x + multiply_by_pot(high_mul(x, rest), 2)
    return x


def one_over_one_plus(a: Ints) -> Ints:
    """Return 1 / (1 + a) of raw numbers of 0 to 1 with 31 fraction bits."""
    return multiply_by_pot(_newton(_half_sum(a, _MAX)), 1)


def tanh_fixed(a: Ints, integer_bits: int) -> Ints:
    """Return tanh(a) of raw fixed-point numbers."""
    n = np.where(a < 0, a, -a)
    e = exp_on_negative(n, integer_bits + 1)
    t = multiply_by_pot(_newton(_half_sum(e, _MAX)) - (1 << 29), 2)
    return np.where(a == 0, 0, np.where(a < 0, -t, t))


def logistic_fixed(a: Ints, integer_bits: int) -> Ints:
    """Return 1 / (1 + e**-a) of raw fixed-point numbers."""
    positive = one_over_one_plus(exp_on_negative(-np.abs(a), integer_bits))
    return np.where(a == 0, 1 << 30, np.where(a > 0, positive, _MAX - positive))


def _raw(x: ArrayLike, integer_bits: int, name: str) -> Ints:
    if not is_integer(integer_bits) or not 0 <= integer_bits <= 29:
        raise NumsimError(f"{name}: integer_bits is 0 to 29; got {integer_bits}")
    return integers(x, name)


@known_floats
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
    out: NDArray[np.int32] = exp_on_negative(a, integer_bits).astype(np.int32)
    return out


@known_floats
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
    out: NDArray[np.int32] = tanh_fixed(
        _raw(x, integer_bits, "gemmlowp_tanh"), integer_bits
    ).astype(np.int32)
    return out


@known_floats
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
    out: NDArray[np.int32] = logistic_fixed(raw, integer_bits).astype(np.int32)
    return out
