"""sigmoid and tanh of float32 by fewer operations: the bits are those of `activations`.

A guess of 2**-41 or better decides the float32 wherever it is not that close to the middle of two.
A piece in which it is, or which holds what the guess is not made for, is computed as `activations`
does. With s = 2**n, e**x = s (1 + q), and both functions are quotients of sums of 1, s and s q.
Proof: ``tests/kernels/test_gates.py`` compares the guess with the definition.

Source: q / r interpolates (e**r - 1) / r at nine Chebyshev nodes of |r| <= ln 2 / 2, off by less
than 2**-43.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.activations import sigmoid_of, tanh_of
from numsim.kernels.elementwise.functions import MAGIC, MAGIC_BITS
from numsim.kernels.instructions import multiply_add
from numsim.kernels.jit import expanded, inline

Array = NDArray[Any]
_LOG2E, _LN2 = float.fromhex("0x1.71547652b82fep+0"), float.fromhex("0x1.62e42fefa39efp-1")
_LOW, _HIGH = np.uint32(0x0D800000), np.uint32(0x42A00000)  # float32 bits of 2**-100 and 80
# A positive float64 is closer than 2**12 of its last places to the middle of two float32 where its
# 29 lower bits, less _BELOW, are less than _WINDOW.
_BELOW, _WINDOW = np.int64((1 << 28) - (1 << 12)), np.int64(1 << 13)
_LOWER = np.int64((1 << 29) - 1)
_PIECE = 256  # numbers that are computed again if one has to be


@expanded  # LLVM finds them too long to inline, and a loop of calls has no vectors
def exponential(x: float) -> tuple[float, float]:
    """Return s and s q of e**x, |x| <= 160."""
    shifted = multiply_add(x, _LOG2E, MAGIC)
    n = shifted - MAGIC
    r = multiply_add(n, -_LN2, x)
    p = multiply_add(r, 2.7625115548647376e-06, 2.4876178959767158e-05)
    p = multiply_add(p, r, 0.00019841208732635247)
    p = multiply_add(p, r, 0.0013888821650716596)
    p = multiply_add(p, r, 0.008333333353729289)
    p = multiply_add(p, r, 0.0416666668910917)
    p = multiply_add(p, r, 0.1666666666664829)
    p = multiply_add(p, r, 0.49999999999797773)
    p = multiply_add(p, r, 1.0)
    k = np.float64(shifted).view(np.int64) - MAGIC_BITS
    s = np.int64((k + 1023) << 52).view(np.float64)
    return s, s * (p * r)


@expanded
def sigmoid_guess(x: float) -> float:
    """Return sigmoid(x), |x| < 80."""
    s, rest = exponential(-x)
    return 1.0 / (1.0 + s + rest)


@expanded
def tanh_guess(a: float) -> float:
    """Return tanh(a), 2**-100 <= a < 80."""
    s, rest = exponential(-2.0 * a)
    return ((1.0 - s) - rest) / ((1.0 + s) + rest)


@inline
def unsure(guess: float) -> bool:
    """Return whether a guess does not tell which of two float32 a positive number rounds to."""
    bits = np.float64(guess).view(np.int64)
    return bool(np.int64(np.int64(bits - _BELOW) & _LOWER) < _WINDOW)


@inline
def sigmoids(x: Array, out: Array) -> None:
    """Fill `out` with sigmoid(x): float32 [n], which do not overlap."""
    for at in range(0, x.size, _PIECE):
        part, to = x[at : at + _PIECE], out[at : at + _PIECE]
        bits, again = part.view(np.uint32), False
        for i in range(part.size):
            guess = sigmoid_guess(np.float64(part[i]))
            again |= unsure(guess) | ((bits[i] & np.uint32(0x7FFFFFFF)) >= _HIGH)
            to[i] = guess
        if again:
            for i in range(part.size):
                to[i] = sigmoid_of(np.float64(part[i]))


@inline
def tanhs(x: Array, out: Array) -> None:
    """Fill `out` with tanh(x): float32 [n], which do not overlap."""
    for at in range(0, x.size, _PIECE):
        part, to = x[at : at + _PIECE], out[at : at + _PIECE]
        bits, words, again = part.view(np.uint32), to.view(np.uint32), False
        for i in range(part.size):
            a = bits[i] & np.uint32(0x7FFFFFFF)
            guess = tanh_guess(np.float64(np.uint32(a).view(np.float32)))
            again |= unsure(guess) | (a >= _HIGH) | (a < _LOW)
            magnitude = np.float32(guess).view(np.uint32)
            words[i] = magnitude | (bits[i] & np.uint32(0x80000000))
        if again:
            for i in range(part.size):
                to[i] = tanh_of(np.float64(part[i]))
