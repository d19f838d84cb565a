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
    room_half,
    room_wide,
    step_chain,
    step_half,
    step_wide,
)
from numsim.kernels.instructions import wide_vectors
from numsim.kernels.ir.gates import LANES, lstm_gates, lstm_outputs
from numsim.kernels.jit import expanded, inline, kernel

Array = NDArray[Any]


class Forward(NamedTuple):
    """Arrays of the steps forward: xw [T, B, 4H]; h, c [B, H] end as the last states.

    The others are filled, [T, B, H] but y [B, T, H], and gates [T, B, 4H], whose memory may be that
    of xw. What a step reads and writes stands together: rows a power of two apart would share a few
    places of the caches.
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

    gates [T, B, 4H], before_c and squashed [T, B, H] are those of `Forward`, dy [B, T, H].
    `dgates` [T, B, 4H] is filled. `lost` [2]: non-zero elements of it, and those that became 0.
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
def _gates(s: Forward, b: int, t: int, j: int) -> None:
    """Do the gates of one cell, whose sums stand there, and the new c by the definition."""
    hidden, gates = s.c.shape[1], s.gates[t, b]
    for n in range(4):
        k = n * hidden + j
        total = np.float64(gates[k])
        gates[k] = tanh_of(total) if n == 2 else sigmoid_of(total)
    kept = np.float32(gates[hidden + j] * s.before_c[t, b, j])
    s.c[b, j] = kept + np.float32(gates[j] * gates[2 * hidden + j])


@inline
def _outputs(s: Forward, b: int, t: int, j: int) -> None:
    """Do tanh(c) and h of one cell by the definition."""
    s.squashed[t, b, j] = tanh_of(np.float64(s.c[b, j]))
    h = np.float32(s.gates[t, b, 3 * s.c.shape[1] + j] * s.squashed[t, b, j])
    s.h[b, j], s.y[b, t, j] = h, h


@inline
def _cells(s: Forward, t: int, hw: Array) -> None:
    """Do all but the product of step t: whole vectors of cells, those that are not sure again."""
    batch, hidden = s.c.shape
    steps, whole = s.xw.shape[0], hidden // LANES * LANES
    for b in range(batch):
        now, kept = b * hidden, (t * batch + b) * hidden
        first, out = 4 * kept, (b * steps + t) * hidden
        for j in range(0, whole, LANES):
            doubtful = lstm_gates(s, hw, first + j, 4 * now + j, j, kept + j, now + j, hidden)
            for lane in range(LANES if doubtful else 0):
                if doubtful >> lane & 1:
                    _gates(s, b, t, j + lane)
        for j in range(whole, hidden):
            s.before_h[t, b, j], s.before_c[t, b, j] = s.h[b, j], s.c[b, j]
            for k in range(j, 4 * hidden, hidden):
                x = np.float32(s.xw[t, b, k] + s.bias_x[k])
                s.gates[t, b, k] = x + np.float32(hw[b, k] + s.bias_h[k])
            _gates(s, b, t, j)
        for j in range(0, whole, LANES):
            doubtful = lstm_outputs(s, hw, first + 3 * hidden + j, kept + j, now + j, out + j)
            for lane in range(LANES if doubtful else 0):
                if doubtful >> lane & 1:
                    _outputs(s, b, t, j + lane)
        for j in range(whole, hidden):
            _outputs(s, b, t, j)


@expanded
def _forward(
    make_room: Callable[..., Any], step: Callable[..., bool], w: Weights, s: Forward
) -> int:
    steps, batch, width = s.xw.shape
    hw, lost = np.empty((batch, width), np.float32), np.zeros(2, np.int64)
    room = make_room(batch, w)
    done = steps
    for t in range(steps):
        if not step(s.h, w, room, lost, hw):
            done = t
            break
        _cells(s, t, hw)
    return int(done)


@inline
def _cells_backward(s: Backward, t: int, dc: Array, before: Array) -> None:
    """Fill step t's gradients of the sums before the gates, and of the c before it: `before`."""
    batch, hidden = s.dc.shape
    one = np.float32(1.0)
    for b in range(batch):
        gates, to = s.gates[t, b], s.dgates[t, b]
        i, f = gates[:hidden], gates[hidden : 2 * hidden]
        g, o = gates[2 * hidden : 3 * hidden], gates[3 * hidden :]
        di, df = to[:hidden], to[hidden : 2 * hidden]
        dg, do = to[2 * hidden : 3 * hidden], to[3 * hidden :]
        dh, dy, now, old = s.dh[b], s.dy[b, t], dc[b], before[b]
        squashed, before_c = s.squashed[t, b], s.before_c[t, b]
        for j in range(hidden):
            up, q = np.float32(dh[j] + dy[j]), squashed[j]
            through = np.float32(np.float32(up * o[j]) * np.float32(one - np.float32(q * q)))
            whole = np.float32(now[j] + through)
            di[j] = np.float32(whole * g[j]) * np.float32(i[j] * np.float32(one - i[j]))
            df[j] = np.float32(whole * before_c[j]) * np.float32(f[j] * np.float32(one - f[j]))
            dg[j] = np.float32(whole * i[j]) * np.float32(one - np.float32(g[j] * g[j]))
            do[j] = np.float32(up * q) * np.float32(o[j] * np.float32(one - o[j]))
            old[j] = whole * f[j]


@expanded
def _backward(
    make_room: Callable[..., Any], step: Callable[..., bool], w: Weights, s: Backward
) -> int:
    steps, batch = s.gates.shape[:2]
    dc, before = s.dc.copy(), np.empty(s.dc.shape, np.float32)
    room = make_room(batch, w)
    done = steps
    for back in range(steps):
        t = steps - 1 - back
        _cells_backward(s, t, dc, before)
        if not step(s.dgates[t], w, room, s.lost, s.dh):
            done = back
            break
        dc, before = before, dc
    s.dc[:, :] = dc
    return int(done)


@kernel
def _forward_chain(w: Weights, s: Forward) -> int:
    wide_vectors()
    return _forward(room_chain, step_chain, w, s)


@kernel
def _forward_wide(w: Weights, s: Forward) -> int:
    wide_vectors()
    return _forward(room_wide, step_wide, w, s)


@kernel
def _forward_half(w: Weights, s: Forward) -> int:
    wide_vectors()
    return _forward(room_half, step_half, w, s)


@kernel
def _backward_chain(w: Weights, s: Backward) -> int:
    wide_vectors()
    return _backward(room_chain, step_chain, w, s)


@kernel
def _backward_wide(w: Weights, s: Backward) -> int:
    wide_vectors()
    return _backward(room_wide, step_wide, w, s)


@kernel
def _backward_half(w: Weights, s: Backward) -> int:
    wide_vectors()
    return _backward(room_half, step_half, w, s)


# By the unit's sums, and for FP8 the path: (weights, arrays) -> how many steps were done, fewer
# than T where a scale is not an ordinary number.
FORWARD = {"chain": _forward_chain, "avx512": _forward_wide, "avx2": _forward_half}
BACKWARD = {"chain": _backward_chain, "avx512": _backward_wide, "avx2": _backward_half}
