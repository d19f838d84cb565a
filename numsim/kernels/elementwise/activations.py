"""Activation functions whose every bit is the same on every machine: see `functions` for the rules.

Source: tanh below 0.625 is the rational function of Cephes (S. Moshier, ``tanh.c``); erfc is
``exp(-a**2) P((a - 2) / (a + 2)) / (1 + 2 a)`` (N. Juffa's form of M. Shepherd and J. Laframboise,
Math. Comp. 36, 1981), P interpolated at 23 Chebyshev nodes in 90 digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.functions import GRAIN, FloatArray, elementwise, exp64
from numsim.kernels.elementwise.guesses import differ, exp_guess, guessed
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import expanded, inline, kernel, over_range

SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
SQRT_TWO_OVER_PI = float.fromhex("0x1.9884533d43651p-1")
_PIECE = 256  # elements computed anew where a guess does not decide one of them


@expanded  # LLVM finds it too long to inline, and a loop of calls has no vectors
def tanh_of(x: float) -> float:
    """tanh(x): less than 2 ulp from the true value."""
    z = x * x
    p = -9.64399179425052238628e-1
    p = p * z - 9.92877231001918586564e1
    p = p * z - 1.61468768441708447952e3
    q = z + 1.12811678491632931402e2
    q = q * z + 2.23548839060100448583e3
    q = q * z + 4.84406305325125486048e3
    near = x + x * (z * (p / q))
    a = x if x > 0.0 else -x
    e = exp64(-2.0 * a)
    far = 1.0 - (e + e) / (1.0 + e)
    far = far if x > 0.0 else -far
    return near if a < 0.625 else far


@inline
def sigmoid_of(x: float) -> float:
    """Return ``1 / (1 + e^-x)`` in float64."""
    return 1.0 / (1.0 + exp64(-x))


@expanded  # as `_tanh`
def erfc_of(a: float, square: float) -> float:
    """erfc(a) for a >= 0, given a**2."""
    b = a if a < 28.0 else 28.0  # beyond, exp gives 0
    q = (b - 2.0) / (b + 2.0)
    p = 3.915275365159061e-08
    p = p * q + 1.2777066233549906e-07
    p = p * q - 5.1886828245198745e-08
    p = p * q - 7.51304802524575e-07
    p = p * q - 9.039938016727442e-07
    p = p * q + 1.3882214563498083e-06
    p = p * q + 5.354247264844784e-06
    p = p * q + 3.7953024747336692e-06
    p = p * q - 1.3546481255724777e-05
    p = p * q - 3.646092986300318e-05
    p = p * q - 1.4951570496272667e-06
    p = p * q + 0.00015104965730469743
    p = p * q + 0.0002063645335154812
    p = p * q - 0.00045434263504071646
    p = p * q - 0.001456813627623531
    p = p * q + 0.0012713391466225917
    p = p * q + 0.008722653851786824
    p = p * q - 0.008034015091737075
    p = p * q - 0.05422000099101933
    p = p * q + 0.16405128003363212
    p = p * q - 0.1660303976153083
    p = p * q - 0.09276382658574671
    p = p * q + 1.2769783815525289
    return exp64(-square) * (p / (1.0 + 2.0 * b))


@kernel
def _tanh_range(x: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        out[i] = tanh_of(np.float64(x[i]))


@inline
def silu_of(v: float) -> float:
    """Return ``v / (1 + e^-v)`` in float64."""
    return v / (1.0 + exp64(-v))


@inline
def _quick_gelu_of(v: float) -> float:
    return v / (1.0 + exp64(-1.702 * v))


@inline
def _inside(v: float) -> float:
    """Return what GELU's form by tanh takes the tanh of."""
    return SQRT_TWO_OVER_PI * (v + 0.044715 * (v * v * v))


@inline
def _gelu_tanh_of(v: float) -> float:
    return v / (1.0 + exp64(-2.0 * _inside(v)))


@inline
def _sigmoid_guess(v: float) -> float:
    return 1.0 / (1.0 + exp_guess(-v))


@inline
def silu_guess(v: float) -> float:
    """Return what `silu_of` does, near enough for `guesses.differ`."""
    return v / (1.0 + exp_guess(-v))


@inline
def _quick_gelu_guess(v: float) -> float:
    return v / (1.0 + exp_guess(-1.702 * v))


@inline
def _gelu_tanh_guess(v: float) -> float:
    return v / (1.0 + exp_guess(-2.0 * _inside(v)))


@expanded
def _exactly(
    guess: Callable[[float], float], exact: Callable[[float], float], x: FloatArray, out: FloatArray
) -> None:
    """Write exact(x) rounded to float32: what a guess does not decide is computed, by pieces."""
    wide_vectors()
    for first in range(0, x.size, _PIECE):
        part, to = x[first : first + _PIECE], out[first : first + _PIECE]
        doubt = np.int32(0)
        for i in range(to.size):
            v = np.float64(part[i])
            y = guess(v)
            unsure = differ(y) | (v == -np.inf)  # whose e**x no guess knows
            doubt = np.int32(doubt | (np.int32(1) if unsure else np.int32(0)))
            to[i] = y
        if doubt != np.int32(0):
            for i in range(to.size):
                to[i] = exact(np.float64(part[i]))


@expanded
def _by_each(exact: Callable[[float], float], x: FloatArray, out: FloatArray) -> None:
    """Write exact(x), rounded to the type of `out`."""
    wide_vectors()
    for i in range(out.size):
        out[i] = exact(np.float64(x[i]))


@kernel
def _sigmoid_range(x: FloatArray, out: FloatArray) -> None:
    _by_each(sigmoid_of, x, out)


@kernel
def _sigmoid_guessed(x: FloatArray, out: FloatArray) -> None:
    _exactly(_sigmoid_guess, sigmoid_of, x, out)


@kernel
def _silu_range(x: FloatArray, out: FloatArray) -> None:
    _by_each(silu_of, x, out)


@kernel
def _silu_guessed(x: FloatArray, out: FloatArray) -> None:
    _exactly(silu_guess, silu_of, x, out)


@kernel
def _silu_times(x: FloatArray, by: FloatArray, out: FloatArray, guess: bool) -> None:
    """Write silu(x), rounded to the type of `out`, times `by`, by pieces that stay near."""
    wide_vectors()
    for first in range(0, x.size, _PIECE):
        part, to = x[first : first + _PIECE], out[first : first + _PIECE]
        if guess:
            _exactly(silu_guess, silu_of, part, to)
        else:
            _by_each(silu_of, part, to)
        factors = by[first : first + _PIECE]
        for i in range(to.size):
            to[i] = to[i] * factors[i]


@kernel
def _quick_gelu_range(x: FloatArray, out: FloatArray) -> None:
    _by_each(_quick_gelu_of, x, out)


@kernel
def _quick_gelu_guessed(x: FloatArray, out: FloatArray) -> None:
    _exactly(_quick_gelu_guess, _quick_gelu_of, x, out)


@kernel
def _gelu_tanh_range(x: FloatArray, out: FloatArray) -> None:
    _by_each(_gelu_tanh_of, x, out)


@kernel
def _gelu_tanh_guessed(x: FloatArray, out: FloatArray) -> None:
    _exactly(_gelu_tanh_guess, _gelu_tanh_of, x, out)


@kernel
def _gelu_range(x: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        v = np.float64(x[i])
        a = v if v > 0.0 else -v
        half = 0.5 * erfc_of(a * SQRT_HALF, v * v * 0.5)
        out[i] = v * (1.0 - half if v > 0.0 else half)


@kernel
def _softcap_range(x: FloatArray, out: FloatArray, scale: float, cap: float) -> None:
    for i in range(out.size):
        out[i] = cap * tanh_of(np.float64(x[i]) * scale / cap)


def tanh(x: FloatArray) -> FloatArray:
    """Hyperbolic tangent of a float32 or float64 array of any shape.

    Less than 2 ulp off in float64; one more rounding for float32.

    >>> tanh(np.array([0.0, 0.5, 30.0]))
    array([0.        , 0.46211716, 1.        ])
    """
    return elementwise(_tanh_range, x)


def sigmoid(x: FloatArray) -> FloatArray:
    """``1 / (1 + e**-x)`` of a float32 or float64 array of any shape.

    Less than 3 ulp off in float64 where the result is normal; one more rounding for float32.

    >>> sigmoid(np.array([0.0, 1.0]))
    array([0.5       , 0.73105858])
    """
    return elementwise(_sigmoid_guessed if guessed(x.dtype) else _sigmoid_range, x)


def silu(x: FloatArray) -> FloatArray:
    """``x / (1 + e**-x)`` of a float32 or float64 array of any shape.

    Less than 3 ulp off in float64 where the result is normal; one more rounding for float32.

    >>> silu(np.array([0.0, 1.0], np.float32))
    array([0.       , 0.7310586], dtype=float32)
    """
    return elementwise(_silu_guessed if guessed(x.dtype) else _silu_range, x)


def silu_times(x: FloatArray, by: FloatArray) -> FloatArray:
    """Return ``silu(x) * by`` of arrays of one shape and type, float32 or float64, in one pass.

    >>> silu_times(np.array([0.0, 1.0], np.float32), np.array([2.0, 2.0], np.float32))
    array([0.       , 1.4621172], dtype=float32)
    """
    flat, factors = (np.ascontiguousarray(v).reshape(-1) for v in (x, by))
    out, guess = np.empty_like(flat), guessed(x.dtype)
    over_range(
        lambda a, b: _silu_times(flat[a:b], factors[a:b], out[a:b], guess), flat.size, grain=GRAIN
    )
    return out.reshape(x.shape)


def quick_gelu(x: FloatArray) -> FloatArray:
    """``x / (1 + e**(-1.702 x))`` of a float32 or float64 array of any shape.

    Relative error below 2**-42 where the result is normal; one more rounding for float32.

    >>> quick_gelu(np.array([0.0, 1.0]))
    array([0.        , 0.84579577])
    """
    return elementwise(_quick_gelu_guessed if guessed(x.dtype) else _quick_gelu_range, x)


def gelu(x: FloatArray) -> FloatArray:
    """``x / 2 * erfc(-x / sqrt(2))`` of a float32 or float64 array of any shape.

    Relative error below 2**-42 where the result is normal, also in the far negative tail, where
    ``1 + erf`` would cancel; one more rounding for float32.

    >>> gelu(np.array([-1.0, 0.0, 1.0]))
    array([-0.15865525,  0.        ,  0.84134475])
    """
    return elementwise(_gelu_range, x)


def gelu_tanh(x: FloatArray) -> FloatArray:
    """``x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))`` of an array of any shape.

    Relative error below 2**-41 where the result is normal; one more rounding for float32.

    >>> gelu_tanh(np.array([-1.0, 0.0, 1.0]))
    array([-0.15880801,  0.        ,  0.84119199])
    """
    return elementwise(_gelu_tanh_guessed if guessed(x.dtype) else _gelu_tanh_range, x)


def relu(x: FloatArray) -> FloatArray:
    """``max(x, 0)``, NaN stays.

    >>> relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    y: FloatArray = np.maximum(x, x.dtype.type(0))
    return y


def softcap(x: FloatArray, *, scale: float = 1.0, cap: float) -> FloatArray:
    """``cap * tanh(scale * x / cap)`` of a float32 or float64 array of any shape, rounded once.

    >>> softcap(np.array([1.0, 100.0]), cap=5.0)
    array([0.9868766, 5.       ])
    """
    return elementwise(_softcap_range, x, scale, cap)


# Spelling in a config -> what it computes.
ACTIVATIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "silu": silu,
    "swish": silu,
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "tanh": tanh,
    "sigmoid": sigmoid,
}
