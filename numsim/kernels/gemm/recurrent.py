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

from numsim.kernels.elementwise.activations import sigmoid_of, tanh_of
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
def _cells(s: Forward, t: int, hw: Array, row: Array, act: Array) -> None:
    """Do all but the product of step t; `row` and `act` [4H] are scratch."""
    batch, hidden = s.c.shape
    width = 4 * hidden
    # A loop that writes tanh over its argument has no vectors: each has an array of its own.
    state, tanh = row[:hidden], row[hidden : 2 * hidden]
    for b in range(batch):
        x, gates, h, c, y = s.xw[b, t], s.gates[b, t], s.h[b], s.c[b], s.y[b, t]
        for j in range(hidden):
            s.before_h[b, t, j] = h[j]
            s.before_c[b, t, j] = c[j]
        for j in range(width):
            row[j] = np.float32(x[j] + s.bias_x[j]) + np.float32(hw[b, j] + s.bias_h[j])
        for j in range(2 * hidden):
            act[j] = sigmoid_of(np.float64(row[j]))
        for j in range(2 * hidden, 3 * hidden):
            act[j] = tanh_of(np.float64(row[j]))
        for j in range(3 * hidden, width):
            act[j] = sigmoid_of(np.float64(row[j]))
        for j in range(width):
            gates[j] = act[j]
        for j in range(hidden):
            kept = np.float32(act[hidden + j] * c[j])
            state[j] = kept + np.float32(act[j] * act[2 * hidden + j])
        for j in range(hidden):
            tanh[j] = tanh_of(np.float64(state[j]))
        for j in range(hidden):
            c[j], s.squashed[b, t, j] = state[j], tanh[j]
            h[j] = act[3 * hidden + j] * tanh[j]
            y[j] = h[j]


@expanded
def _forward(
    make_room: Callable[..., Any], step: Callable[..., bool], w: Weights, s: Forward
) -> int:
    batch, steps, width = s.xw.shape
    hw, lost = np.empty((batch, width), np.float32), np.zeros(2, np.int64)
    row, act = np.empty(width, np.float32), np.empty(width, np.float32)
    room = make_room(batch, w)
    done = steps
    for t in range(steps):
        if not step(s.h, w, room, lost, hw):
            done = t
            break
        _cells(s, t, hw, row, act)
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
