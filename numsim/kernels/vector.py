"""Elementwise functions and row reductions whose every bit is the same on every machine.

Only ``+ - * /`` and the IEEE square root of float64 are used, in a fixed order, with no fastmath,
no fused multiply-add and no libm. A float32 input is computed in float64 and rounded once.

Sums run in eight interleaved float64 lanes: element ``j`` of a row is added to lane ``j mod 8`` in
increasing ``j``; then ``((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))``. Threads share rows,
never a sum.

Source: range reduction and the sine and cosine polynomials are those of fdlibm 5.3 (Sun
Microsystems, ``k_sin.c``, ``k_cos.c``, ``e_rem_pio2.c``); exp is the Taylor series to degree 13.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.jit import inline, kernel, over_range

FloatArray = NDArray[Any]

_GRAIN = 4096  # elements a thread takes at least
_MAGIC = 1.5 * 2.0**52  # adding it rounds to an integer, found in the low bits
_MAGIC_BITS = 0x4338000000000000
_LOG2E = float.fromhex("0x1.71547652b82fep+0")
_LN2_HI = float.fromhex("0x1.62e42feep-1")  # 33 bits: n * _LN2_HI is exact
_LN2_LO = float.fromhex("0x1.a39ef35793c76p-33")
_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
_PIO2_1 = float.fromhex("0x1.921fb544p+0")  # 33 bits
_PIO2_2 = float.fromhex("0x1.0b4611a6p-34")  # the next 33 bits
_PIO2_3 = float.fromhex("0x1.3198a2e037073p-69")  # the rest


@inline
def exp64(x: float) -> float:
    """e**x: less than 1 ulp from the true value, 1 subnormal step below 2**-1022."""
    z = x if x > -746.0 else -746.0  # below: 0; NaN comes here too and is put back at the end
    z = z if z < 710.0 else 710.0  # above: Inf
    shifted = z * _LOG2E + _MAGIC
    n = shifted - _MAGIC  # nearest integer to z / ln 2
    half = n * 0.5 + _MAGIC
    high = z - n * _LN2_HI  # exact
    low = n * _LN2_LO
    r = high - low
    tail = (high - r) - low  # z = n ln2 + r + tail
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    y = 1.0 + (r + (tail + r * (tail + r * p)))
    k = np.float64(shifted).view(np.int64) - _MAGIC_BITS
    k1 = np.float64(half).view(np.int64) - _MAGIC_BITS
    scale1 = np.int64((k1 + 1023) << 52).view(np.float64)
    scale2 = np.int64((k - k1 + 1023) << 52).view(np.float64)
    y = (y * scale1) * scale2  # in two steps, so that a subnormal result is rounded once
    return x if x != x else y


@inline
def _sincos(x: float) -> tuple[float, float]:
    """Sine and cosine for abs(x) < 2**20: less than 1 ulp, or 2**-80 where that is more."""
    shifted = x * _TWO_OVER_PI + _MAGIC
    n = shifted - _MAGIC
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


@inline
def _combine(s: FloatArray) -> float:
    total: float = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
    return total


@kernel
def _exp_range(x: FloatArray, out: FloatArray, start: int, stop: int) -> None:
    for i in range(start, stop):
        out[i] = exp64(np.float64(x[i]))


@kernel
def _silu_range(x: FloatArray, out: FloatArray, start: int, stop: int) -> None:
    for i in range(start, stop):
        v = np.float64(x[i])
        out[i] = v / (1.0 + exp64(-v))


@kernel
def _sin_range(x: FloatArray, out: FloatArray, start: int, stop: int) -> None:
    for i in range(start, stop):
        out[i] = _sincos(np.float64(x[i]))[0]


@kernel
def _cos_range(x: FloatArray, out: FloatArray, start: int, stop: int) -> None:
    for i in range(start, stop):
        out[i] = _sincos(np.float64(x[i]))[1]


@kernel
def _softmax_rows(
    x: FloatArray,
    out: FloatArray,
    scale: float,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    keep: NDArray[np.bool_],
    masked: bool,
    start: int,
    stop: int,
) -> None:
    """Rows start..stop of x [N, T, S]; row (n, t) sees keys first[t] <= j < last[t] of keep[n']."""
    steps, width = x.shape[1], x.shape[2]
    per_keep = x.shape[0] // keep.shape[0]
    e = np.empty(width + 8)
    lanes = np.empty(8)
    for row in range(start, stop):
        n, t = row // steps, row % steps
        lo, count = first[t], last[t] - first[t]
        padded = (count + 7) // 8 * 8
        for j in range(count):
            e[j] = np.float64(x[n, t, lo + j]) * scale
        if masked:
            for j in range(count):
                if not keep[n // per_keep, lo + j]:
                    e[j] = -np.inf
        for j in range(count, padded):
            e[j] = -np.inf
        for k in range(8):
            lanes[k] = -np.inf
        for j in range(0, padded, 8):
            for k in range(8):
                lanes[k] = e[j + k] if e[j + k] > lanes[k] else lanes[k]
        top = -np.inf
        for k in range(8):
            top = lanes[k] if lanes[k] > top else top
            lanes[k] = 0.0
        if top == -np.inf:  # no key, or NaN scores only
            for j in range(count):
                if e[j] == e[j]:
                    e[j] = 0.0
            for j in range(count):
                out[n, t, lo + j] = e[j]
        else:
            for j in range(padded):
                e[j] = exp64(e[j] - top)
            for j in range(0, padded, 8):
                for k in range(8):
                    lanes[k] += e[j + k]
            total = _combine(lanes)
            for j in range(count):
                out[n, t, lo + j] = e[j] / total
        for j in range(lo):
            out[n, t, j] = 0.0
        for j in range(lo + count, width):
            out[n, t, j] = 0.0


@kernel
def _rms_norm_rows(
    x: FloatArray, weight: FloatArray, out: FloatArray, eps: float, start: int, stop: int
) -> None:
    """Rows start..stop of x [R, H]."""
    width = x.shape[1]
    whole = width // 8 * 8
    lanes = np.empty(8)
    for row in range(start, stop):
        for k in range(8):
            lanes[k] = 0.0
        for j in range(0, whole, 8):
            for k in range(8):
                v = np.float64(x[row, j + k])
                lanes[k] += v * v
        for j in range(whole, width):
            v = np.float64(x[row, j])
            lanes[j - whole] += v * v
        inverse = 1.0 / np.sqrt(_combine(lanes) / width + eps)
        for j in range(width):
            out[row, j] = (np.float64(x[row, j]) * inverse) * np.float64(weight[j])


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


def _elementwise(work: Any, x: FloatArray) -> FloatArray:
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    over_range(lambda start, stop: work(flat, out, start, stop), flat.size, grain=_GRAIN)
    return out.reshape(x.shape)


def exp(x: FloatArray) -> FloatArray:
    """``e**x`` of a float32 or float64 array of any shape.

    Less than 1 ulp off in float64 (0.8 measured); one more rounding for float32. -Inf gives 0,
    overflow gives Inf, NaN stays.

    >>> exp(np.array([0.0, 1.0, -np.inf]))
    array([1.        , 2.71828183, 0.        ])
    """
    return _elementwise(_exp_range, x)


def silu(x: FloatArray) -> FloatArray:
    """``x / (1 + e**-x)`` of a float32 or float64 array of any shape.

    >>> silu(np.array([0.0, 1.0], np.float32))
    array([0.       , 0.7310586], dtype=float32)
    """
    return _elementwise(_silu_range, x)


def sin(x: FloatArray) -> FloatArray:
    """Sine of a float32 or float64 array of any shape, in radians, for abs(x) < 2**20.

    >>> sin(np.array([0.5]))
    array([0.47942554])
    """
    return _elementwise(_sin_range, x)


def cos(x: FloatArray) -> FloatArray:
    """Cosine of a float32 or float64 array of any shape, in radians, for abs(x) < 2**20.

    >>> cos(np.array([0.5]))
    array([0.87758256])
    """
    return _elementwise(_cos_range, x)


def softmax(
    x: FloatArray,
    *,
    scale: float = 1.0,
    first: NDArray[np.int64] | None = None,
    last: NDArray[np.int64] | None = None,
    keep: NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Softmax of ``scale * x`` along the last axis, over the keys each row may see.

    Parameters
    ----------
    x : float32 or float64 array [..., T, S]
        Scores.
    scale : float
        Multiplies the scores in float64, before the one rounding of the result.
    first, last : int64 arrays [T], optional
        Row ``t`` sees keys ``first[t] <= j < last[t]``; causal: ``last = arange(1, T + 1)``.
    keep : bool array [B, S], optional
        Keys that count, for each of B equal groups of the leading dimensions (padding mask).

    Returns
    -------
    array [..., T, S] of the dtype of `x`
        Keys not seen get 0; a row that sees no key is all 0.

    Examples
    --------
    >>> softmax(np.zeros((2, 2), np.float32), last=np.array([1, 2]))
    array([[1. , 0. ],
           [0.5, 0.5]], dtype=float32)
    """
    steps, width = x.shape[-2:]
    rows = np.ascontiguousarray(x).reshape(-1, steps, width)  # [N, T, S]
    out = np.empty_like(rows)
    low = np.zeros(steps, np.int64) if first is None else first
    high = np.full(steps, width, np.int64) if last is None else last
    mask = np.ones((1, 1), np.bool_) if keep is None else keep
    masked = keep is not None
    over_range(
        lambda a, b: _softmax_rows(rows, out, scale, low, high, mask, masked, a, b),
        rows.shape[0] * steps,
        grain=max(1, _GRAIN // max(1, width)),
    )
    return out.reshape(x.shape)


def rms_norm(x: FloatArray, weight: FloatArray, *, eps: float) -> FloatArray:
    """``x / sqrt(mean(x**2) + eps) * weight`` along the last axis, rounded once.

    Parameters
    ----------
    x : float32 or float64 array [..., H]
    weight : array [H] of the same dtype
    eps : float

    Examples
    --------
    >>> rms_norm(np.array([[3.0, 4.0]]), np.ones(2), eps=0.0)
    array([[0.84852814, 1.13137085]])
    """
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    over_range(
        lambda start, stop: _rms_norm_rows(rows, weight, out, eps, start, stop),
        rows.shape[0],
        grain=max(1, _GRAIN // max(1, x.shape[-1])),
    )
    return out.reshape(x.shape)


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
        grain=max(1, _GRAIN // max(1, heads * width)),
    )
    return out
