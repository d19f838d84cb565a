"""e**x by few operations, for float32 results that the exact way would give too.

A float64 guess off by less than `REACH` decides a float32 wherever all numbers that near to it
round alike; where they do not, the caller computes by `functions.exp64`. Both bits are the same, so
a guess may use whatever the processor is quick at, and a processor without vectors none.
Proof: ``tests/kernels/test_guesses.py`` compares the guess with decimals, and every function with
its definition.

Source: the polynomial of `ir.gates`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.instructions import multiply_add
from numsim.kernels.ir import simd
from numsim.kernels.ir.gates import LN2, LOG2E, MAGIC, MAGIC_BITS, POWERS
from numsim.kernels.jit import inline

REACH = 2.0**-40  # of two guesses, the sum of up to LONGEST of them, and the division
# A sum of n in eight lanes rounds n / 8 + 3 times. It and the exact one differ by twice so many
# 2**-53 at most, which with the 2**-41 of two guesses has to stay below REACH: n < 16288.
LONGEST = 16000
_FURTHEST = 700.0  # beyond, e**x has no float32, nor has 1 + e**x anything but 1 or e**x
_P0, _P1, _P2, _P3, _P4, _P5, _P6, _P7, _P8 = POWERS


def guessed(dtype: np.dtype[Any]) -> bool:
    """Whether results of a type come by way of guesses, on this path.

    >>> guessed(np.dtype(np.float64))
    False
    """
    return dtype == np.float32 and simd.path() != "plain"


@inline
def exp_guess(x: float) -> float:
    """e**x off by less than 2**-42 of it, of x between -700 and 700; NaN stays."""
    z = -_FURTHEST if x < -_FURTHEST else x
    z = _FURTHEST if z > _FURTHEST else z
    shifted = multiply_add(z, LOG2E, MAGIC)
    r = multiply_add(shifted - MAGIC, -LN2, z)
    p = multiply_add(_P0, r, _P1)
    p = multiply_add(p, r, _P2)
    p = multiply_add(p, r, _P3)
    p = multiply_add(p, r, _P4)
    p = multiply_add(p, r, _P5)
    p = multiply_add(p, r, _P6)
    p = multiply_add(p, r, _P7)
    p = multiply_add(p, r, _P8)
    power = np.float64(shifted).view(np.int64) - MAGIC_BITS + 1023
    s = np.int64(power << 52).view(np.float64)
    e: float = multiply_add(p * r, s, s)
    return e


@inline
def differ(guess: float) -> bool:
    """Whether numbers within `REACH` of a guess round to different float32, or it is NaN."""
    low, high = np.float32(guess * (1.0 - REACH)), np.float32(guess * (1.0 + REACH))
    return bool(low != high)
