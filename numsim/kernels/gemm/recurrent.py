"""All steps of an LSTM in one call, for units whose sums `numsim.kernels.gemm.steps` has.

What is computed: ``forward`` and ``backward`` of ``numsim.nn.recurrent``, the same operations in
the same order. A step whose scale is not an ordinary number ends the call: the general path says
what is wrong. Proof: ``tests/kernels/test_recurrent_kernel.py`` compares every bit with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.gates import sigmoids, tanhs
from numsim.kernels.gemm.steps import (
    Weights,
    room_chain,
    room_fp8,
    step_chain,
    step_half,
    step_wide,
)
from numsim.kernels.jit import expanded, inline, kernel

Array = NDArray[Any]
_PLACE = (0, 1, 3, 2)  # of gates i, f, g, o in scratch: those of the sigmoid first


class Forward(NamedTuple):
    """Arrays of the steps forward: xw [B, T, 4H]; h, c [B, H] end as the last states.

    The others are filled, [B, T, H] and gates [B, T, 4H].
    """

    xw: Array
    bias_x: Array
    bias_h: Array
    h: Array
    c: Array
    gates: Array
    before_h: Array
    before_c: Array
    squashed: Array
    y: Array


class Backward(NamedTuple):
    """Arrays of the steps backward: dh, dc [B, H] end as the gradients of the first states.

    `dgates` [B, T, 4H] is filled. `lost` [2]: non-zero elements of it, and those that became 0.
    """

    dy: Array
    gates: Array
    before_c: Array
    squashed: Array
    dh: Array
    dc: Array
    dgates: Array
    lost: Array


@inline
def _cells(s: Forward, t: int, hw: Array, sums: Array, act: Array) -> None:
    """Do all but the product of step t; `sums` and `act` [4, B, H], by the gate, are scratch."""
    batch, hidden = s.c.shape
    one = batch * hidden
    for b in range(batch):
        x, product = s.xw[b, t], hw[b]
        for n in range(4):
            to, first = sums[_PLACE[n], b], n * hidden
            for j in range(hidden):
                k = first + j
                to[j] = np.float32(x[k] + s.bias_x[k]) + np.float32(product[k] + s.bias_h[k])
    flat, out = sums.reshape(-1), act.reshape(-1)
    sigmoids(flat[: 3 * one], out[: 3 * one])
    tanhs(flat[3 * one :], out[3 * one :])
    state, tanh = sums[0], sums[1]
    for b in range(batch):
        gates, h, c = s.gates[b, t], s.h[b], s.c[b]
        before_h, before_c = s.before_h[b, t], s.before_c[b, t]
        for n in range(4):
            given, first = act[_PLACE[n], b], n * hidden
            for j in range(hidden):
                gates[first + j] = given[j]
        for j in range(hidden):
            before_h[j] = h[j]
            before_c[j] = c[j]
        i, f, g = act[0, b], act[1, b], act[3, b]
        for j in range(hidden):
            kept = np.float32(f[j] * c[j])
            state[b, j] = kept + np.float32(i[j] * g[j])
    tanhs(flat[:one], flat[one : 2 * one])
    for b in range(batch):
        h, c, y, squashed, o = s.h[b], s.c[b], s.y[b, t], s.squashed[b, t], act[2, b]
        for j in range(hidden):
            c[j] = state[b, j]
            squashed[j] = tanh[b, j]
            h[j] = o[j] * tanh[b, j]
            y[j] = h[j]


@expanded
def _forward(
    make_room: Callable[..., Any], step: Callable[..., bool], w: Weights, s: Forward
) -> int:
    batch, steps, width = s.xw.shape
    hw, lost = np.empty((batch, width), np.float32), np.zeros(2, np.int64)
    sums, act = np.empty((4, *s.c.shape), np.float32), np.empty((4, *s.c.shape), np.float32)
    room = make_room(batch, w)
    done = steps
    for t in range(steps):
        if not step(s.h, w, room, lost, hw):
            done = t
            break
        _cells(s, t, hw, sums, act)
    return int(done)


@inline
def _cells_backward(s: Backward, t: int, here: Array, before: Array) -> None:
    """Fill step t's gradients of the sums before the gates [B, 4H], and of the state before it."""
    batch, hidden = s.dc.shape
    one = np.float32(1.0)
    for b in range(batch):
        for j in range(hidden):
            up = np.float32(s.dh[b, j] + s.dy[b, t, j])
            i, f = s.gates[b, t, j], s.gates[b, t, hidden + j]
            g, o = s.gates[b, t, 2 * hidden + j], s.gates[b, t, 3 * hidden + j]
            q = s.squashed[b, t, j]
            through = np.float32(np.float32(up * o) * np.float32(one - np.float32(q * q)))
            whole = np.float32(s.dc[b, j] + through)
            here[b, j] = np.float32(whole * g) * np.float32(i * np.float32(one - i))
            here[b, hidden + j] = np.float32(whole * s.before_c[b, t, j]) * np.float32(
                f * np.float32(one - f)
            )
            here[b, 2 * hidden + j] = np.float32(whole * i) * np.float32(one - np.float32(g * g))
            here[b, 3 * hidden + j] = np.float32(up * q) * np.float32(o * np.float32(one - o))
            before[b, j] = whole * f
        for j in range(4 * hidden):
            s.dgates[b, t, j] = here[b, j]


@expanded
def _backward(
    make_room: Callable[..., Any], step: Callable[..., bool], w: Weights, s: Backward
) -> int:
    batch, steps, width = s.gates.shape
    here, before = np.empty((batch, width), np.float32), np.empty(s.dc.shape, np.float32)
    room = make_room(batch, w)
    done = steps
    for back in range(steps):
        _cells_backward(s, steps - 1 - back, here, before)
        if not step(here, w, room, s.lost, s.dh):
            done = back
            break
        s.dc[:, :] = before
    return int(done)


@kernel
def _forward_chain(w: Weights, s: Forward) -> int:
    return _forward(room_chain, step_chain, w, s)


@kernel
def _forward_wide(w: Weights, s: Forward) -> int:
    return _forward(room_fp8, step_wide, w, s)


@kernel
def _forward_half(w: Weights, s: Forward) -> int:
    return _forward(room_fp8, step_half, w, s)


@kernel
def _backward_chain(w: Weights, s: Backward) -> int:
    return _backward(room_chain, step_chain, w, s)


@kernel
def _backward_wide(w: Weights, s: Backward) -> int:
    return _backward(room_fp8, step_wide, w, s)


@kernel
def _backward_half(w: Weights, s: Backward) -> int:
    return _backward(room_fp8, step_half, w, s)


# By the unit's sums, and for FP8 the path: (weights, arrays) -> how many steps were done, fewer
# than T where a scale is not an ordinary number.
FORWARD = {"chain": _forward_chain, "avx512": _forward_wide, "avx2": _forward_half}
BACKWARD = {"chain": _backward_chain, "avx512": _backward_wide, "avx2": _backward_half}
