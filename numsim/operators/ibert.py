"""I-BERT's operators: exponentials, GELU, softmax and norms by quadratics, in exact integers.

Scales are float32 numbers taken as fractions; constants are the decimals of the paper.

Source: Kim et al., arXiv:2101.01321; I-BERT, commit 1b09c75.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.operators.integers import Ints, integers, positive


def _rational(scale: float) -> Fraction:
    return Fraction(float(np.float32(positive(scale, "scale"))))


@known_floats
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
    a = integers(x, "ibert_exp", 64)
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


@known_floats
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
        For values that are no integers, a scale of 0 or below, or results beyond 64 bits.

    Notes
    -----
    **Source**: Kim et al., arXiv:2101.01321, algorithm 3; I-BERT, commit 1b09c75.

    Examples
    --------
    >>> ibert_gelu([-20, 0, 20], scale=0.05).tolist()
    [20, 0, -40]
    """
    a = integers(x, "ibert_gelu")
    s = _rational(scale) / Fraction("1.4142")
    factor = Fraction("-0.2888")
    b, c = math.floor(Fraction("-1.769") / s), math.floor(1 / factor / s**2)
    out_scale = s**2 * factor * 2**14
    shift = math.floor(1 / out_scale)
    most = b * b + abs(c)
    widest = int(np.abs(a).max()) * ((most >> 14) + abs(shift) + 1)
    if max(most, widest) >= 1 << 63:
        raise NumsimError(
            f"ibert_gelu: results are integers of 64 bits; got {int(np.abs(a).max())} at scale "
            f"{scale}; use a larger scale"
        )
    y = (np.minimum(np.abs(a), -b) + b) ** 2 + c
    return a * (((np.sign(a) * y) >> 14) + shift)


@known_floats
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
    a = integers(x, "ibert_softmax")
    e = ibert_exp(a - a.max(-1, keepdims=True), scale=scale)
    one = ibert_exp([0], scale=scale)[0]
    short = np.array([round(Fraction(v * 32767, one)) for v in e.ravel()], np.int64)
    short = short.reshape(a.shape)
    factor = (1 << 32) // short.sum(-1, keepdims=True)
    out: NDArray[np.int32] = ((short * factor) >> (32 - out_bits)).astype(np.int32)
    return out


@known_floats
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
    a = integers(x, "ibert_sqrt", 64)
    if (a < 0).any():
        raise NumsimError(f"ibert_sqrt takes integers of 0 or more; got {a.min()}")
    return np.array([math.isqrt(v) for v in a.ravel().tolist()], np.int64).reshape(a.shape)


@known_floats
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
        For values that are no integers, a negative shift, or a sum of squares beyond 64 bits.

    Notes
    -----
    **Source**: Kim et al., arXiv:2101.01321, section 3.6; I-BERT, commit 1b09c75.

    Examples
    --------
    >>> ibert_norm([[0, 10, 20, 30]]).tolist()
    [[-732096698, -244032233, 244032232, 732096697]]
    """
    a = integers(x, "ibert_norm")
    if not is_integer(shift) or shift < 0 or a.ndim == 0:
        raise NumsimError(
            f"ibert_norm: rows [..., n] and a shift of 0 or more; got {a.shape} and {shift!r:.40}"
        )
    n = a.shape[-1]
    means = [round(Fraction(int(v), n)) for v in a.sum(-1).ravel()]
    y = a - np.array(means, np.int64).reshape(*a.shape[:-1], 1)
    if n * (int(np.abs(y).max()) >> shift) ** 2 >= 1 << 63:
        raise NumsimError(
            "ibert_norm: the sum of squares is an integer of 64 bits; got up to "
            f"{int(np.abs(y).max())} in rows of {n} at shift {shift}; use a larger shift"
        )
    std = ibert_sqrt(((y >> shift) ** 2).sum(-1, keepdims=True)) << shift
    return (y * ((1 << 31) // np.maximum(std, 1))) >> 1
