"""The cells of LSTM and GRU and their derivatives, one step of a batch.

For gates [B, 4H] or [B, 3H] and states [B, H] each operation is rounded once to the type of the
arrays. Proof: ``tests/nn`` compares each with central differences and with recorded gradients.
"""

from __future__ import annotations

import numpy as np

from numsim.kernels.elementwise.activations import (
    sigmoid_of,
    tanh_of,
)
from numsim.kernels.elementwise.functions import FloatArray
from numsim.kernels.jit import kernel


@kernel
def lstm_cell(
    xw: FloatArray, hw: FloatArray, bias_x: FloatArray, bias_h: FloatArray, c: FloatArray,
    gates: FloatArray, new_c: FloatArray, squashed: FloatArray, h: FloatArray,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Rows start..stop of a step: products xw, hw [B, 4H] and the state c [B, H].

    Fills gates i, f, g, o [B, 4H], the new state, its tanh and the output [B, H].
    """
    hidden = c.shape[1]
    # A loop has vectors if its strides are 1, and tanh only if it does not write over its argument.
    row, act = np.empty(4 * hidden, c.dtype), np.empty(4 * hidden, c.dtype)
    state, tanh = np.empty(hidden, c.dtype), np.empty(hidden, c.dtype)
    for b in range(start, stop):
        for j in range(4 * hidden):
            row[j] = (xw[b, j] + bias_x[j]) + (hw[b, j] + bias_h[j])
        for j in range(2 * hidden):
            act[j] = sigmoid_of(np.float64(row[j]))
        for j in range(2 * hidden, 3 * hidden):
            act[j] = tanh_of(np.float64(row[j]))
        for j in range(3 * hidden, 4 * hidden):
            act[j] = sigmoid_of(np.float64(row[j]))
        for j in range(4 * hidden):
            gates[b, j] = act[j]
        for j in range(hidden):
            kept = act[hidden + j] * c[b, j]
            state[j] = kept + act[j] * act[2 * hidden + j]
            new_c[b, j] = state[j]
        for j in range(hidden):
            tanh[j] = tanh_of(np.float64(state[j]))
        for j in range(hidden):
            squashed[b, j] = tanh[j]
            h[b, j] = act[3 * hidden + j] * tanh[j]


@kernel
def lstm_cell_backward(
    dh: FloatArray, dc: FloatArray, gates: FloatArray, c: FloatArray, squashed: FloatArray,
    dgates: FloatArray, start: int, stop: int,
) -> None:  # fmt: skip
    """Rows start..stop: the gradient of the sums before the gates; dc becomes that of c."""
    hidden = c.shape[1]
    one = c.dtype.type(1.0)
    for b in range(start, stop):
        for j in range(hidden):
            i, f = gates[b, j], gates[b, hidden + j]
            g, o = gates[b, 2 * hidden + j], gates[b, 3 * hidden + j]
            t = squashed[b, j]
            whole = dc[b, j] + (dh[b, j] * o) * (one - t * t)
            dgates[b, j] = (whole * g) * (i * (one - i))
            dgates[b, hidden + j] = (whole * c[b, j]) * (f * (one - f))
            dgates[b, 2 * hidden + j] = (whole * i) * (one - g * g)
            dgates[b, 3 * hidden + j] = (dh[b, j] * t) * (o * (one - o))
            dc[b, j] = whole * f


@kernel
def gru_cell(
    xw: FloatArray, hw: FloatArray, bias_x: FloatArray, bias_h: FloatArray, h: FloatArray,
    gates: FloatArray, inner: FloatArray, new_h: FloatArray, start: int, stop: int,
) -> None:  # fmt: skip
    """Rows start..stop of a step: gates r, z, n [B, 3H]; inner = W_hn h + b_hn [B, H]."""
    hidden = h.shape[1]
    one = h.dtype.type(1.0)
    row, act = np.empty(3 * hidden, h.dtype), np.empty(3 * hidden, h.dtype)  # as in `lstm_cell`
    for b in range(start, stop):
        for j in range(2 * hidden):
            row[j] = (xw[b, j] + bias_x[j]) + (hw[b, j] + bias_h[j])
        for j in range(2 * hidden):
            act[j] = sigmoid_of(np.float64(row[j]))
        for j in range(hidden):
            at = 2 * hidden + j
            inner[b, j] = hw[b, at] + bias_h[at]
            row[at] = (xw[b, at] + bias_x[at]) + act[j] * inner[b, j]
        for j in range(2 * hidden, 3 * hidden):
            act[j] = tanh_of(np.float64(row[j]))
        for j in range(3 * hidden):
            gates[b, j] = act[j]
        for j in range(hidden):
            z = act[hidden + j]
            new_h[b, j] = (one - z) * act[2 * hidden + j] + z * h[b, j]


@kernel
def gru_cell_backward(
    dh: FloatArray, gates: FloatArray, inner: FloatArray, h: FloatArray, dx: FloatArray,
    dhw: FloatArray, start: int, stop: int,
) -> None:  # fmt: skip
    """Rows start..stop: gradients of both products [B, 3H]; dh becomes the direct part of h's."""
    hidden = h.shape[1]
    one = h.dtype.type(1.0)
    for b in range(start, stop):
        for j in range(hidden):
            r, z, n = gates[b, j], gates[b, hidden + j], gates[b, 2 * hidden + j]
            dn = (dh[b, j] * (one - z)) * (one - n * n)
            dz = (dh[b, j] * (h[b, j] - n)) * (z * (one - z))
            dr = (dn * inner[b, j]) * (r * (one - r))
            dx[b, j], dx[b, hidden + j], dx[b, 2 * hidden + j] = dr, dz, dn
            dhw[b, j], dhw[b, hidden + j], dhw[b, 2 * hidden + j] = dr, dz, dn * r
            dh[b, j] = dh[b, j] * z
