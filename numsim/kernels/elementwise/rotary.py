"""Sine, cosine and rotary positions, the same bits on every machine: see `functions` for the rules.

Source: range reduction and the sine and cosine polynomials are those of fdlibm 5.3 (Sun
Microsystems, ``k_sin.c``, ``k_cos.c``, ``e_rem_pio2.c``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.functions import GRAIN, MAGIC, FloatArray, elementwise
from numsim.kernels.jit import inline, kernel, over_range

_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
_PIO2_1 = float.fromhex("0x1.921fb544p+0")  # 33 bits
_PIO2_2 = float.fromhex("0x1.0b4611a6p-34")  # the next 33 bits
_PIO2_3 = float.fromhex("0x1.3198a2e037073p-69")  # the rest


@inline
def _sincos(x: float) -> tuple[float, float]:
    """Sine and cosine for abs(x) < 2**20: less than 1 ulp, or 2**-80 where that is more."""
    shifted = x * _TWO_OVER_PI + MAGIC
    n = shifted - MAGIC
    quadrant = np.float64(shifted).view(np.int64) & 3
    first = x - n * _PIO2_1
    w = n * _PIO2_2
    r = first - w
    w = n * _PIO2_3 - ((first - r) - w)
    y = r - w
    tail = (r - y) - w  # x = n pi/2 + y + tail
    z = y * y
    p = 1.58969099521155010221e-10
    p = p * z - 2.50507602534068634195e-08
    p = p * z + 2.75573137070700676789e-06
    p = p * z - 1.98412698298579493134e-04
    p = p * z + 8.33333333332248946124e-03
    v = z * y
    sine = y - ((z * (0.5 * tail - v * p) - tail) - v * -1.66666666666666324348e-01)
    p = -1.13596475577881948265e-11
    p = p * z + 2.08757232129817482790e-09
    p = p * z - 2.75573143513906633035e-07
    p = p * z + 2.48015872894767294178e-05
    p = p * z - 1.38888888888741095749e-03
    p = p * z + 4.16666666666666019037e-02
    h = 0.5 * z
    w = 1.0 - h
    cosine = w + (((1.0 - w) - h) + (z * (z * p) - y * tail))
    s = cosine if quadrant & 1 else sine
    c = sine if quadrant & 1 else cosine
    return -s if quadrant & 2 else s, -c if (quadrant + 1) & 2 else c


@kernel
def _sin_range(x: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        out[i] = _sincos(np.float64(x[i]))[0]


@kernel
def _cos_range(x: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        out[i] = _sincos(np.float64(x[i]))[1]


@kernel
def _rotary_rows(
    x: FloatArray, cos: FloatArray, sin: FloatArray, out: FloatArray, start: int, stop: int
) -> None:
    """Rows start..stop of [B * T]: x [B, T, H, D] -> out [B, H, T, D]."""
    steps, heads, width = x.shape[1], x.shape[2], x.shape[3]
    half = cos.shape[1]
    for row in range(start, stop):
        b, t = row // steps, row % steps
        for h in range(heads):
            for j in range(half):
                u, v = np.float64(x[b, t, h, j]), np.float64(x[b, t, h, half + j])
                out[b, h, t, j] = u * cos[t, j] - v * sin[t, j]
                out[b, h, t, half + j] = v * cos[t, j] + u * sin[t, j]
            for j in range(2 * half, width):
                out[b, h, t, j] = x[b, t, h, j]


def sin(x: FloatArray) -> FloatArray:
    """Sine of a float32 or float64 array of any shape, in radians, for abs(x) < 2**20.

    Error in float64: less than 1 ulp, or 2**-80 where that is more; a float32 result is that
    value rounded once.

    >>> sin(np.array([0.5]))
    array([0.47942554])
    """
    return elementwise(_sin_range, x)


def cos(x: FloatArray) -> FloatArray:
    """Cosine of a float32 or float64 array of any shape, in radians, for abs(x) < 2**20.

    Error in float64: less than 1 ulp, or 2**-80 where that is more; a float32 result is that
    value rounded once.

    >>> cos(np.array([0.5]))
    array([0.87758256])
    """
    return elementwise(_cos_range, x)


def rotary(x: FloatArray, cos: NDArray[np.float64], sin: NDArray[np.float64]) -> FloatArray:
    """Turn element pairs ``(j, R/2 + j)`` of each head by the angle of its position; heads first.

    Parameters
    ----------
    x : float32 or float64 array [B, T, heads, D]
    cos, sin : float64 arrays [T, R/2], R <= D
        Elements from R on pass unchanged.

    Returns
    -------
    array [B, heads, T, D] of the dtype of `x`, rounded once.

    Examples
    --------
    >>> rotary(np.array([[[[1.0, 2.0]]]]), np.array([[0.0]]), np.array([[1.0]]))
    array([[[[-2.,  1.]]]])
    """
    batch, steps, heads, width = x.shape
    x = np.ascontiguousarray(x)
    out = np.empty((batch, heads, steps, width), x.dtype)
    over_range(
        lambda start, stop: _rotary_rows(x, cos, sin, out, start, stop),
        batch * steps,
        grain=max(1, GRAIN // max(1, heads * width)),
    )
    return out
