"""Derivatives of elementwise functions and of row reductions.

What is computed: for an array of any shape (elementwise) or rows [R, H], what `functions` and
`activations` compute forward, differentiated. Float64 inside, one rounding to the type of the
input, its exp and its eight lanes for every sum along a row; sums over rows (weights,
biases) are float64 in the order of the rows. Proof: ``tests/nn`` compares each with central
differences and with recorded gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.activations import (
    SQRT_HALF,
    SQRT_TWO_OVER_PI,
    erfc_of,
    sigmoid_of,
)
from numsim.kernels.elementwise.functions import GRAIN, FloatArray, add_to_lanes, combine, exp64
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import inline, kernel, over_range

_INVERSE_SQRT_TWO_PI = float.fromhex("0x1.9884533d43651p-2")


# ------------------------------------------------------------------------------ activations


@inline
def _slope(s: float, v: float, by: float) -> float:
    """S + v s (1 - s) by: the derivative of v sigmoid(...), without 0 x Inf at its ends."""
    bend = s * (1.0 - s)
    return s if bend == 0.0 else s + v * bend * by


@kernel
def _silu(x: FloatArray, g: FloatArray, out: FloatArray) -> None:
    wide_vectors()
    for i in range(out.size):
        v = np.float64(x[i])
        out[i] = np.float64(g[i]) * _slope(sigmoid_of(v), v, 1.0)


@kernel
def _quick_gelu(x: FloatArray, g: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        v = np.float64(x[i])
        out[i] = np.float64(g[i]) * _slope(sigmoid_of(1.702 * v), v, 1.702)


@kernel
def _gelu_tanh(x: FloatArray, g: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        v = np.float64(x[i])
        u = SQRT_TWO_OVER_PI * (v + 0.044715 * (v * v * v))
        by = 2.0 * SQRT_TWO_OVER_PI * (1.0 + 0.134145 * (v * v))
        out[i] = np.float64(g[i]) * _slope(sigmoid_of(2.0 * u), v, by)


@kernel
def _gelu(x: FloatArray, g: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        v = np.float64(x[i])
        a = v if v > 0.0 else -v
        square = v * v * 0.5
        half = 0.5 * erfc_of(a * SQRT_HALF, square)
        below = 1.0 - half if v > 0.0 else half
        density = exp64(-square)
        if density > 0.0:
            below += v * (density * _INVERSE_SQRT_TWO_PI)
        out[i] = np.float64(g[i]) * below


@inline
def _sech2(v: float) -> float:
    """1 - tanh(v)**2."""
    e = exp64(-2.0 * (v if v > 0.0 else -v))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@kernel
def _tanh_slope(x: FloatArray, g: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        out[i] = np.float64(g[i]) * _sech2(np.float64(x[i]))


@kernel
def _sigmoid_slope(x: FloatArray, g: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        v = np.float64(x[i])
        e = exp64(-(v if v > 0.0 else -v))
        out[i] = np.float64(g[i]) * (e / ((1.0 + e) * (1.0 + e)))


@kernel
def _softcap_slope(x: FloatArray, g: FloatArray, out: FloatArray, scale: float, cap: float) -> None:
    for i in range(out.size):
        out[i] = np.float64(g[i]) * (scale * _sech2(np.float64(x[i]) * scale / cap))


def _with_gradient(work: Any, x: FloatArray, g: FloatArray, *numbers: float) -> FloatArray:
    flat, up = (np.ascontiguousarray(v).reshape(-1) for v in (x, g))
    out = np.empty_like(flat)
    over_range(lambda a, b: work(flat[a:b], up[a:b], out[a:b], *numbers), flat.size, grain=GRAIN)
    return out.reshape(x.shape)


def _relu(x: FloatArray, g: FloatArray) -> FloatArray:
    return np.where(x > 0, g, g.dtype.type(0))


def _elementwise(work: Any) -> Callable[[FloatArray, FloatArray], FloatArray]:
    return lambda x, g: _with_gradient(work, x, g)


# What an activation is called in `vector_act.ACTIVATIONS` by its function's name -> (x, g) -> dx.
SLOPES: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "silu": _elementwise(_silu),
    "quick_gelu": _elementwise(_quick_gelu),
    "gelu_tanh": _elementwise(_gelu_tanh),
    "gelu": _elementwise(_gelu),
    "tanh": _elementwise(_tanh_slope),
    "sigmoid": _elementwise(_sigmoid_slope),
    "relu": _relu,
}


def softcap_backward(x: FloatArray, g: FloatArray, *, scale: float, cap: float) -> FloatArray:
    """Return the gradient of ``cap * tanh(scale * x / cap)``."""
    return _with_gradient(_softcap_slope, x, g, scale, cap)


# -------------------------------------------------------------------------- rows and columns


@kernel
def _softmax_rows(
    p: FloatArray, g: FloatArray, out: FloatArray, scale: float, start: int, stop: int
) -> None:
    wide_vectors()
    width = p.shape[1]
    terms, lanes = np.empty(width), np.empty(8)
    for row in range(start, stop):
        lanes[:] = 0.0
        for j in range(width):
            terms[j] = np.float64(p[row, j]) * np.float64(g[row, j])
        add_to_lanes(terms, lanes)
        total = combine(lanes)
        for j in range(width):
            v = np.float64(p[row, j])
            out[row, j] = v * (np.float64(g[row, j]) - total) * scale if v != 0.0 else 0.0


def softmax_backward(p: FloatArray, g: FloatArray, *, scale: float = 1.0) -> FloatArray:
    """Return the gradient of the scores x of ``p = softmax(scale x)`` [..., S].

    >>> softmax_backward(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]))
    array([[ 0.25, -0.25]])
    """
    rows, up = (np.ascontiguousarray(v).reshape(-1, p.shape[-1]) for v in (p, g))
    out = np.empty_like(rows)
    over_range(
        lambda a, b: _softmax_rows(rows, up, out, scale, a, b), len(rows),
        grain=max(1, GRAIN // max(1, p.shape[-1])),
    )  # fmt: skip
    return out.reshape(p.shape)


@kernel
def _norm_rows(
    x: FloatArray, weight: FloatArray, g: FloatArray, out: FloatArray, means: FloatArray,
    inverses: FloatArray, eps: float, offset: float, centre: bool, start: int, stop: int,
) -> None:  # fmt: skip
    """Rows start..stop of dx; their mean (0 for RMS) and 1 / root are kept for the columns."""
    wide_vectors()
    width = x.shape[1]
    lanes, along = np.empty(8), np.empty(8)
    terms, normed = np.empty(width), np.empty(width)
    for row in range(start, stop):
        mean, values, up = 0.0, x[row], g[row]
        if centre:
            lanes[:] = 0.0
            for j in range(width):
                terms[j] = np.float64(values[j])
            add_to_lanes(terms, lanes)
            mean = combine(lanes) / width
        lanes[:] = 0.0
        for j in range(width):
            v = np.float64(values[j]) - mean
            terms[j] = v * v
        add_to_lanes(terms, lanes)
        inverse = 1.0 / np.sqrt(combine(lanes) / width + eps)
        means[row], inverses[row] = mean, inverse
        lanes[:] = 0.0
        along[:] = 0.0
        for j in range(width):
            u = np.float64(up[j]) * (offset + np.float64(weight[j]))
            terms[j] = u
            normed[j] = u * ((np.float64(values[j]) - mean) * inverse)
        add_to_lanes(terms, lanes)
        add_to_lanes(normed, along)
        shift = combine(lanes) / width if centre else 0.0
        slope = combine(along) / width
        to = out[row]
        for j in range(width):
            at = (np.float64(values[j]) - mean) * inverse
            to[j] = ((terms[j] - shift) - at * slope) * inverse


@kernel
def _norm_columns(
    x: FloatArray, g: FloatArray, means: FloatArray, inverses: FloatArray, dweight: FloatArray,
    dbias: FloatArray, start: int, stop: int,
) -> None:  # fmt: skip
    wide_vectors()
    n = stop - start
    weight, bias = np.zeros(n), np.zeros(n)
    for row in range(x.shape[0]):
        values, up = x[row, start:stop], g[row, start:stop]
        mean, inverse = means[row], inverses[row]
        for j in range(n):
            u = np.float64(up[j])
            weight[j] += u * ((np.float64(values[j]) - mean) * inverse)
            bias[j] += u
    for j in range(n):
        dweight[start + j], dbias[start + j] = weight[j], bias[j]


def norm_backward(
    x: FloatArray, weight: FloatArray, g: FloatArray, *, eps: float, offset: float = 0.0,
    centre: bool,
) -> tuple[FloatArray, FloatArray, FloatArray]:  # fmt: skip
    """Return the gradients of x [..., H], of the weight [H] and of the bias [H].

    `centre`: layer norm, whose mean is taken off; else RMS norm, of ``offset + weight``.
    """
    width = x.shape[-1]
    rows, up = (np.ascontiguousarray(v).reshape(-1, width) for v in (x, g))
    out = np.empty_like(rows)
    means, inverses = np.empty(len(rows)), np.empty(len(rows))
    over_range(
        lambda a, b: _norm_rows(
            rows, weight, up, out, means, inverses, eps, offset, centre, a, b
        ),
        len(rows), grain=max(1, GRAIN // max(1, width)),
    )  # fmt: skip
    dweight, dbias = np.empty(width, x.dtype), np.empty(width, x.dtype)
    over_range(
        lambda a, b: _norm_columns(rows, up, means, inverses, dweight, dbias, a, b), width, grain=16
    )
    return out.reshape(x.shape), dweight, dbias


@kernel
def _column_sums(x: FloatArray, out: FloatArray, start: int, stop: int) -> None:
    n, rows = stop - start, x.shape[0]
    total, to = np.zeros(n), out[start:stop]
    fours = rows // 4 * 4
    for row in range(0, fours, 4):  # four rows at a time: the totals are read and written less
        a, b = x[row, start:stop], x[row + 1, start:stop]
        c, d = x[row + 2, start:stop], x[row + 3, start:stop]
        for j in range(n):
            total[j] = total[j] + a[j] + b[j] + c[j] + d[j]
    for row in range(fours, rows):
        a = x[row, start:stop]
        for j in range(n):
            total[j] += a[j]
    for j in range(n):
        to[j] = total[j]


def column_sums(x: FloatArray) -> FloatArray:
    """Return sums over all but the last axis, [..., H] -> [H]: float64 in order, rounded once.

    >>> column_sums(np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([4., 6.])
    """
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty(x.shape[-1], x.dtype)
    over_range(lambda a, b: _column_sums(rows, out, a, b), x.shape[-1], grain=256)
    return out


@kernel
def _sums_of_steps(x: FloatArray, out: FloatArray, start: int, stop: int) -> None:
    n, steps = stop - start, x.shape[0]
    total, to = np.zeros(n), out[start:stop]
    fours = steps // 4 * 4
    for b in range(x.shape[1]):
        for t in range(0, fours, 4):
            one, two = x[t, b, start:stop], x[t + 1, b, start:stop]
            three, four = x[t + 2, b, start:stop], x[t + 3, b, start:stop]
            for j in range(n):
                total[j] = total[j] + one[j] + two[j] + three[j] + four[j]
        for t in range(fours, steps):
            one = x[t, b, start:stop]
            for j in range(n):
                total[j] += one[j]
    for j in range(n):
        to[j] = total[j]


def sums_of_steps(x: FloatArray) -> FloatArray:
    """Return the `column_sums` of [B, T, H] for x [T, B, H].

    >>> sums_of_steps(np.array([[[1.0, 2.0]], [[3.0, 4.0]]]))
    array([4., 6.])
    """
    out = np.empty(x.shape[-1], x.dtype)
    over_range(lambda a, b: _sums_of_steps(x, out, a, b), x.shape[-1], grain=256)
    return out


@kernel
def _add_rows(out: FloatArray, ids: NDArray[np.int64], g: FloatArray) -> None:
    for row in range(ids.size):
        for j in range(out.shape[1]):
            out[ids[row], j] += np.float64(g[row, j])


def add_rows(ids: NDArray[np.int64], g: FloatArray, rows: int) -> FloatArray:
    """Return [rows, H]: each row of g [R, H] added to row ``ids[r]``, in order; rounded once.

    >>> add_rows(np.array([1, 1]), np.array([[1.0], [2.0]]), 3)
    array([[0.],
           [3.],
           [0.]])
    """
    out = np.zeros((rows, g.shape[-1]))
    _add_rows(out, np.ascontiguousarray(ids).reshape(-1), np.ascontiguousarray(g))
    return out.astype(g.dtype, copy=False)
