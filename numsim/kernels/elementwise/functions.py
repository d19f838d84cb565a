"""Elementwise functions and row reductions whose every bit is the same on every machine.

Only ``+ - * /`` and the IEEE square root of float64 are used, in a fixed order, with no fastmath,
no fused multiply-add and no libm. A float32 input is computed in float64 and rounded once; where a
guess decides what that gives, `guesses` are quicker and the bits the same.

Sums run in eight interleaved float64 lanes: element ``j`` of a row is added to lane ``j mod 8`` in
increasing ``j``; then ``((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))``. Threads share rows,
never a sum.

Source: exp is the Taylor series to degree 13 after a two-part reduction by ln 2, as in fdlibm 5.3
(Sun Microsystems, ``e_exp.c``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.guesses import LONGEST, differ, exp_guess, guessed
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.ir.lanes import MOST, SQUARES, SUM, to_lanes
from numsim.kernels.jit import expanded, inline, kernel, over_range

FloatArray = NDArray[Any]

GRAIN = 4096  # elements a thread takes at least
_WHOLE = 32  # a row of scores is filled up to vectors, of which LLVM takes four at a time
MAGIC = 1.5 * 2.0**52  # adding it rounds to an integer, found in the low bits
MAGIC_BITS = 0x4338000000000000
_LOG2E = float.fromhex("0x1.71547652b82fep+0")
_LN2_HI = float.fromhex("0x1.62e42feep-1")  # 33 bits: n * _LN2_HI is exact
_LN2_LO = float.fromhex("0x1.a39ef35793c76p-33")


@inline
def exp64(x: float) -> float:
    """e**x: less than 1 ulp from the true value, 1 subnormal step below 2**-1022."""
    z = x if x > -746.0 else -746.0  # below: 0; NaN comes here too and is put back at the end
    z = z if z < 710.0 else 710.0  # above: Inf
    shifted = z * _LOG2E + MAGIC
    n = shifted - MAGIC  # nearest integer to z / ln 2
    half = n * 0.5 + MAGIC
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
    k = np.float64(shifted).view(np.int64) - MAGIC_BITS
    k1 = np.float64(half).view(np.int64) - MAGIC_BITS
    scale1 = np.int64((k1 + 1023) << 52).view(np.float64)
    scale2 = np.int64((k - k1 + 1023) << 52).view(np.float64)
    y = (y * scale1) * scale2  # in two steps, so that a subnormal result is rounded once
    return x if x != x else y


@inline
def combine(s: FloatArray) -> float:
    """Return the sum of eight partial sums, pairwise."""
    total: float = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
    return total


@inline
def add_to_lanes(terms: FloatArray, lanes: FloatArray) -> None:
    """Add term j to the float64 of lane j % 8, in order."""
    whole = terms.size // 8 * 8
    to_lanes(SUM, terms, 0, terms.size // 8, lanes)
    for k in range(terms.size - whole):
        lanes[k] += np.float64(terms[whole + k])


@inline
def add_squares_to_lanes(values: FloatArray, lanes: FloatArray) -> None:
    """Add the square of value j to the float64 of lane j % 8, in order."""
    whole = values.size // 8 * 8
    to_lanes(SQUARES, values, 0, values.size // 8, lanes)
    for k in range(values.size - whole):
        v = np.float64(values[whole + k])
        lanes[k] += v * v


@inline
def largest_of(values: FloatArray, lanes: FloatArray) -> float:
    """Return the largest number, as float64; -Inf where there are NaN only. `lanes`: room for 8."""
    whole = values.size // 8 * 8
    for k in range(8):
        lanes[k] = -np.inf
    to_lanes(MOST, values, 0, values.size // 8, lanes)
    top = -np.inf
    for k in range(8):
        top = lanes[k] if lanes[k] > top else top
    for k in range(values.size - whole):
        v = np.float64(values[whole + k])
        top = v if v > top else top
    return top


@kernel
def _exp_range(x: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        out[i] = exp64(np.float64(x[i]))


@expanded
def _guess_row(
    e: FloatArray, top: float, more: float, near: FloatArray, lanes: FloatArray, out: FloatArray
) -> bool:
    """Write e**(e - top) over their sum and `more`; return whether guesses decide all of them."""
    lanes[:] = 0.0
    for j in range(e.size):
        near[j] = exp_guess(e[j] - top)
    add_to_lanes(near, lanes)
    inverse = 1.0 / (combine(lanes) + more)
    doubt = np.int32(0)
    for j in range(e.size):
        y = near[j] * inverse
        doubt = np.int32(doubt | (np.int32(1) if differ(y) else np.int32(0)))
        out[j] = y
    return bool(doubt == np.int32(0))


@kernel
def _softmax_rows(
    x: FloatArray,
    out: FloatArray,
    scale: float,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    keep: NDArray[np.bool_],
    masked: bool,
    bias: NDArray[np.float64],
    sinks: NDArray[np.float64],
    guess: bool,
    start: int,
    stop: int,
) -> None:
    """Rows start..stop of x [N, T, S]; row (n, t) sees keys first[t] <= j < last[t] of keep[n'].

    `bias` [heads, T, S] is added to the scaled scores; no heads: none. `sinks` [heads] likewise.
    `guess`: try `_guess_row` first.
    """
    wide_vectors()
    steps, width = x.shape[1], x.shape[2]
    per_keep = x.shape[0] // keep.shape[0]
    heads = bias.shape[0]
    most = width + _WHOLE
    room, near, single = np.empty(most), np.empty(most), np.empty(most, np.float32)
    lanes = np.empty(8)
    for row in range(start, stop):
        n, t = row // steps, row % steps
        lo, hi = first[t], last[t]
        line, to = x[n, t, lo:hi], out[n, t, lo:hi]  # slices: LLVM knows that no index is negative
        e = room[: (line.size + _WHOLE - 1) // _WHOLE * _WHOLE]
        for j in range(line.size):
            e[j] = np.float64(line[j]) * scale
        if heads > 0:
            shift = bias[n % heads, t, lo:hi]
            for j in range(line.size):
                e[j] += shift[j]
        if masked:
            seen = keep[n // per_keep, lo:hi]
            for j in range(line.size):
                if not seen[j]:
                    e[j] = -np.inf
        for j in range(line.size, e.size):
            e[j] = -np.inf
        top = largest_of(e, lanes)
        if sinks.size > 0:
            sink = sinks[n % sinks.size]
            top = top if top >= sink else sink  # NaN too: then all are NaN
        if top == -np.inf:  # no key, or NaN scores only
            for j in range(to.size):
                to[j] = 0.0 if e[j] == e[j] else e[j]
        else:
            more = exp64(sinks[n % sinks.size] - top) if sinks.size > 0 else 0.0
            done = False
            if guess and e.size <= LONGEST:
                done = _guess_row(e, top, more, near[: e.size], lanes, single[: e.size])
            if done:
                for j in range(to.size):
                    to[j] = single[j]
            else:
                for j in range(e.size):
                    e[j] = exp64(e[j] - top)
                lanes[:] = 0.0
                add_to_lanes(e, lanes)
                total = combine(lanes) + more
                for j in range(to.size):
                    to[j] = e[j] / total
        out[n, t, :lo] = 0.0
        out[n, t, hi:] = 0.0


@kernel
def _rms_norm_rows(
    x: FloatArray,
    weight: FloatArray,
    out: FloatArray,
    eps: float,
    offset: float,
    start: int,
    stop: int,
) -> None:
    """Rows start..stop of x [R, H]."""
    wide_vectors()
    width = x.shape[1]
    lanes = np.empty(8)
    for row in range(start, stop):
        values, to = x[row], out[row]
        lanes[:] = 0.0
        add_squares_to_lanes(values, lanes)
        inverse = 1.0 / np.sqrt(combine(lanes) / width + eps)
        for j in range(width):
            to[j] = (np.float64(values[j]) * inverse) * (offset + np.float64(weight[j]))


@kernel
def _layer_norm_rows(
    x: FloatArray,
    weight: FloatArray,
    bias: FloatArray,
    out: FloatArray,
    eps: float,
    start: int,
    stop: int,
) -> None:
    """Rows start..stop of x [R, H]; mean first, then the variance of the differences."""
    wide_vectors()
    width = x.shape[1]
    lanes = np.empty(8)
    centred = np.empty(width)
    for row in range(start, stop):
        values, to = x[row], out[row]
        lanes[:] = 0.0
        add_to_lanes(values, lanes)
        mean = combine(lanes) / width
        for j in range(width):
            centred[j] = np.float64(values[j]) - mean
        lanes[:] = 0.0
        add_squares_to_lanes(centred, lanes)
        inverse = 1.0 / np.sqrt(combine(lanes) / width + eps)
        for j in range(width):
            to[j] = (centred[j] * inverse) * np.float64(weight[j]) + np.float64(bias[j])


def elementwise(work: Any, x: FloatArray, *numbers: float) -> FloatArray:
    """Call ``work(x, out, *numbers)`` on pieces of the flat array, on all threads.

    Kernels loop over whole arrays: from a `start`, which might be negative, LLVM makes no vectors.
    """
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    over_range(lambda a, b: work(flat[a:b], out[a:b], *numbers), flat.size, grain=GRAIN)
    return out.reshape(x.shape)


def exp(x: FloatArray) -> FloatArray:
    """``e**x`` of a float32 or float64 array of any shape.

    Less than 1 ulp off in float64 (0.8 measured); one more rounding for float32. -Inf gives 0,
    overflow gives Inf, NaN stays.

    >>> exp(np.array([0.0, 1.0, -np.inf]))
    array([1.        , 2.71828183, 0.        ])
    """
    return elementwise(_exp_range, x)


def softmax(
    x: FloatArray,
    *,
    scale: float = 1.0,
    first: NDArray[np.int64] | None = None,
    last: NDArray[np.int64] | None = None,
    keep: NDArray[np.bool_] | None = None,
    bias: NDArray[np.float64] | None = None,
    sinks: NDArray[np.float64] | None = None,
) -> FloatArray:
    """Softmax of ``scale * x + bias`` along the last axis, over the keys each row may see.

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
    bias : float64 array [heads, T, S], optional
        Added in float64; matrix ``n`` of the leading dimensions takes ``bias[n % heads]``.
    sinks : float64 array [heads], optional
        One more score of each row, neither scaled nor returned; ``n`` as for `bias`.

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
    shift = np.empty((0, 0, 0)) if bias is None else bias
    more = np.empty(0) if sinks is None else sinks
    guess = guessed(x.dtype)
    over_range(
        lambda a, b: _softmax_rows(
            rows, out, scale, low, high, mask, masked, shift, more, guess, a, b
        ),
        rows.shape[0] * steps,
        grain=max(1, GRAIN // max(1, width)),
    )
    return out.reshape(x.shape)


def rms_norm(x: FloatArray, weight: FloatArray, *, eps: float, offset: float = 0.0) -> FloatArray:
    """``x / sqrt(mean(x**2) + eps) * (offset + weight)`` along the last axis, rounded once.

    In float64 before that rounding: relative error below ``(H / 8 + 12) * 2**-53``.

    Parameters
    ----------
    x : float32 or float64 array [..., H]
    weight : array [H] of the same dtype
    eps, offset : float

    Examples
    --------
    >>> rms_norm(np.array([[3.0, 4.0]]), np.ones(2), eps=0.0)
    array([[0.84852814, 1.13137085]])
    """
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    over_range(
        lambda start, stop: _rms_norm_rows(rows, weight, out, eps, offset, start, stop),
        rows.shape[0],
        grain=max(1, GRAIN // max(1, x.shape[-1])),
    )
    return out.reshape(x.shape)


def layer_norm(x: FloatArray, weight: FloatArray, bias: FloatArray, *, eps: float) -> FloatArray:
    """``(x - m) / sqrt(mean((x - m)**2) + eps) * weight + bias``, m = mean(x), rounded once.

    In float64 before that rounding: error below ``(H / 8 + 20) * 2**-53`` of the largest
    ``abs(x)`` over the standard deviation, times ``abs(weight)``, plus ``abs(bias)``.

    Parameters
    ----------
    x : float32 or float64 array [..., H]
    weight, bias : arrays [H] of the same dtype
    eps : float

    Examples
    --------
    >>> layer_norm(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), eps=0.0)
    array([[-1.,  1.]])
    """
    rows = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    over_range(
        lambda start, stop: _layer_norm_rows(rows, weight, bias, out, eps, start, stop),
        rows.shape[0],
        grain=max(1, GRAIN // max(1, x.shape[-1])),
    )
    return out.reshape(x.shape)
