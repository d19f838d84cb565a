"""All steps of an LSTM in one call, where a chain of fused multiply-adds gives the unit's sums.

What is computed: ``forward`` and ``backward`` of ``numsim.nn.recurrent``, the same operations in
the same order. Of a step's operand [B, K] the amax gives a scale, values are rounded to nearest
even into the format and saturate, and multiply weights [K, N] that are float32 values of their
codes, packed once. Products of such values are exact, so that a fused multiply-add is the chain of
``ideal.fp32``; sums of integers below 2**24 are exact in float32 whatever the order.

A step whose scale is not an ordinary number ends the call: the general path says what is wrong.
Proof: ``tests/kernels/test_recurrent_kernel.py`` compares every bit with the general path.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.activations import sigmoid_of, tanh_of
from numsim.kernels.gemm.fma import pack_rows_of_words, run_narrow, run_wide
from numsim.kernels.ir.simd import FMA_ROWS
from numsim.kernels.jit import inline, kernel

Array = NDArray[Any]

FLOAT, INTEGER, AS_IT_IS = 0, 1, 2
_ORDINARY = (np.float32(2.0**-100), np.float32(2.0**100))  # scales that divide without surprises


class Rounding(NamedTuple):
    """How an operand becomes values of a format.

    `unit`: codes of fixed point count 1 / unit. `shift`: float32 fraction bits that a normal value
    loses. `magic`: adding it rounds a subnormal. `before`: multiplies the values first.
    """

    kind: int
    scaled: bool  # one scale for the tensor, else 1
    top: np.float32
    low: np.float32
    unit: np.float32
    shift: np.uint32
    least_normal: np.float32
    magic: np.float32
    before: np.float32


@inline
def _rounded(x: Array, out: Array, how: Rounding) -> tuple[np.float32, int]:
    """Fill `out` with the values of the codes of x, without the scale; return the scale.

    Also returned: how many non-zero elements became 0. A scale of -1: not an ordinary number.
    """
    one = np.float32(1.0)
    size = x.size
    source, values = x.reshape(-1), out.reshape(-1)
    top = np.uint32(0)
    bits = source.view(np.uint32)
    for i in range(size):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        top = magnitude if magnitude > top else top
    if top >= np.uint32(0x7F800000):
        return np.float32(-1.0), 0
    scale = one
    if how.kind == AS_IT_IS:
        for i in range(size):
            values[i] = source[i]
        return one, 0
    if how.scaled:
        amax = np.uint32(top).view(np.float32)
        if amax != np.float32(0.0):
            scale = np.float32(amax / how.top)
            if not (scale >= _ORDINARY[0] and scale <= _ORDINARY[1]):
                return np.float32(-1.0), 0
    elif how.before != one:
        for i in range(size):
            values[i] = source[i] * how.before
        source = values
    lost = 0
    if how.kind == INTEGER:
        magic = np.float32(12582912.0)  # 1.5 * 2**23
        for i in range(size):
            v = np.float32(source[i] / scale) * how.unit
            v = v if v < how.top else how.top
            v = v if v > how.low else how.low
            code = np.float32(np.float32(v + magic) - magic)
            lost += 1 if code == np.float32(0.0) and bits[i] & np.uint32(0x7FFFFFFF) else 0
            values[i] = code
        return scale, lost
    half, mask = np.uint32((1 << how.shift) >> 1) - np.uint32(1), ~np.uint32((1 << how.shift) - 1)
    for i in range(size):
        v = np.float32(source[i] / scale)
        word = np.float32(v).view(np.uint32)
        sign = word & np.uint32(0x80000000)
        a = word & np.uint32(0x7FFFFFFF)
        magnitude = np.uint32(a).view(np.float32)
        odd = np.uint32(a >> how.shift) & np.uint32(1)
        normal = np.uint32(np.uint32(a + half + odd) & mask).view(np.float32)
        small = np.float32(np.float32(magnitude + how.magic) - how.magic)
        m = normal if magnitude >= how.least_normal else small
        m = m if m < how.top else how.top
        lost += 1 if m == np.float32(0.0) and bits[i] & np.uint32(0x7FFFFFFF) else 0
        values[i] = np.uint32(np.float32(m).view(np.uint32) | sign).view(np.float32)
    return scale, lost


@inline
def _times(
    a: Array, w: Array, wide: bool, scale: np.float32, quantum: np.float32, rows: Array,
    sums: Array, out: Array,
) -> None:  # fmt: skip
    """Return a [B, K] by packed w [1, panels, K, columns, 1]: chains, times the quantum and scale.

    `rows` and `sums` are scratch for a packed and for whole panels: `_scratch`.
    """
    tiles, depth = rows.shape[1], rows.shape[2]
    words = a.view(np.uint32).reshape(1, a.shape[0], depth)
    pack_rows_of_words(words, rows, 0, depth // 16 if wide else 0, 0, tiles)
    sums[...] = np.float32(0.0)
    left = rows.view(np.float32)
    if wide:
        run_wide(sums, left, w, depth, depth, tiles, 0, w.shape[1])
    else:
        run_narrow(sums, left, w, depth, depth, tiles, 0, w.shape[1])
    for b in range(out.shape[0]):
        for n in range(out.shape[1]):
            out[b, n] = np.float32(np.float32(sums[0, b, n] * quantum) * scale)


@inline
def _scratch(batch: int, w: Array) -> tuple[Array, Array]:
    tiles, columns = -(-batch // FMA_ROWS), w.shape[1] * w.shape[3]
    rows = np.zeros((1, tiles, w.shape[2], FMA_ROWS, 1), np.uint32)
    return rows, np.empty((1, batch, columns), np.float32)


@kernel
def lstm_forward(
    xw: Array, w: Array, wide: bool, how: Rounding, scale_w: np.float32, quantum: np.float32,
    bias_x: Array, bias_h: Array, h: Array, c: Array, gates: Array, before_h: Array,
    before_c: Array, squashed: Array, y: Array,
) -> int:  # fmt: skip
    """Run all steps: xw [B, T, 4H], packed w [H, 4H]; h, c [B, H] end as the last states.

    `wide`: the processor has AVX-512. Returns how many steps were done: fewer than T where a scale
    is not an ordinary number.
    """
    batch, steps, width = xw.shape
    hidden = c.shape[1]
    codes, hw = np.empty((batch, hidden), np.float32), np.empty((batch, width), np.float32)
    # A loop that writes tanh over its argument has no vectors: each has an array of its own.
    row, act = np.empty(width, np.float32), np.empty(width, np.float32)
    state, tanh = np.empty(hidden, np.float32), np.empty(hidden, np.float32)
    rows, sums = _scratch(batch, w)
    for t in range(steps):
        scale, _ = _rounded(h, codes, how)
        if scale < np.float32(0.0):
            return int(t)
        _times(codes, w, wide, np.float32(scale * scale_w), quantum, rows, sums, hw)
        for b in range(batch):
            for j in range(hidden):
                before_h[b, t, j] = h[b, j]
                before_c[b, t, j] = c[b, j]
            for j in range(width):
                row[j] = np.float32(xw[b, t, j] + bias_x[j]) + np.float32(hw[b, j] + bias_h[j])
            for j in range(2 * hidden):
                act[j] = sigmoid_of(np.float64(row[j]))
            for j in range(2 * hidden, 3 * hidden):
                act[j] = tanh_of(np.float64(row[j]))
            for j in range(3 * hidden, width):
                act[j] = sigmoid_of(np.float64(row[j]))
            for j in range(width):
                gates[b, t, j] = act[j]
            for j in range(hidden):
                kept = np.float32(act[hidden + j] * c[b, j])
                state[j] = kept + np.float32(act[j] * act[2 * hidden + j])
            for j in range(hidden):
                tanh[j] = tanh_of(np.float64(state[j]))
            for j in range(hidden):
                c[b, j], squashed[b, t, j] = state[j], tanh[j]
                h[b, j] = act[3 * hidden + j] * tanh[j]
                y[b, t, j] = h[b, j]
    return int(steps)


@kernel
def product(
    x: Array, w: Array, wide: bool, how: Rounding, scale_w: np.float32, quantum: np.float32,
    values: Array, out: Array, lost: Array,
) -> bool:  # fmt: skip
    """One step's product: x [B, K] by packed w [K, N]; False for an unusual scale.

    `values` [B, K] is scratch. `lost` as for `lstm_backward`.
    """
    scale, zeroed = _rounded(x, values, how)
    if scale < np.float32(0.0):
        return False
    _count(x, zeroed, how, lost)
    rows, sums = _scratch(x.shape[0], w)
    _times(values, w, wide, np.float32(scale * scale_w), quantum, rows, sums, out)
    return True


@kernel
def round_to_codes(x: Array, how: Rounding, values: Array, codes: Array, lost: Array) -> np.float32:
    """Fill `codes` [B, K] with 8-bit floats of x; return the scale, -1 for an unusual one.

    `values` [B, K] is scratch. `lost` as for `lstm_backward`.
    """
    scale, zeroed = _rounded(x, values, how)
    if scale < np.float32(0.0):
        return scale
    _count(x, zeroed, how, lost)
    least = np.float32(how.least_normal).view(np.uint32)
    first = np.uint32(1) << (np.uint32(23) - how.shift)  # the code of the least normal value
    whole = np.float32(how.magic).view(np.uint32)
    words, bytes_ = values.reshape(-1).view(np.uint32), codes.reshape(-1)
    for i in range(words.size):
        a = words[i] & np.uint32(0x7FFFFFFF)
        normal = np.uint32((a - least) >> how.shift) + first
        magnitude = np.uint32(a).view(np.float32)
        small = np.float32(magnitude + how.magic).view(np.uint32) - whole
        code = normal if a >= least else small
        bytes_[i] = np.uint8(code | (words[i] >> np.uint32(24)) & np.uint32(0x80))
    return scale


@inline
def _count(x: Array, zeroed: int, how: Rounding, lost: Array) -> None:
    if how.kind != AS_IT_IS:
        lost[1] += zeroed
        for v in x.reshape(-1):
            lost[0] += 1 if v != np.float32(0.0) else 0


@kernel
def lstm_backward(
    dy: Array, w: Array, wide: bool, how: Rounding, scale_w: np.float32, quantum: np.float32,
    gates: Array, before_c: Array, squashed: Array, dh: Array, dc: Array, dgates: Array,
    lost: Array,
) -> int:  # fmt: skip
    """Run all steps backward: packed w [4H, H]; dh, dc [B, H] end as gradients of the first states.

    `lost` [2]: non-zero elements of the gates' gradients, and those that became 0. Returns how
    many steps were done.
    """
    batch, steps, width = gates.shape
    hidden = dc.shape[1]
    one = np.float32(1.0)
    here, codes = np.empty((batch, width), np.float32), np.empty((batch, width), np.float32)
    rows, sums = _scratch(batch, w)
    before = np.empty((batch, hidden), np.float32)  # dc, once the step is known to be done here
    for back in range(steps):
        t = steps - 1 - back
        for b in range(batch):
            for j in range(hidden):
                up = np.float32(dh[b, j] + dy[b, t, j])
                i, f = gates[b, t, j], gates[b, t, hidden + j]
                g, o = gates[b, t, 2 * hidden + j], gates[b, t, 3 * hidden + j]
                s = squashed[b, t, j]
                through = np.float32(np.float32(up * o) * np.float32(one - np.float32(s * s)))
                whole = np.float32(dc[b, j] + through)
                here[b, j] = np.float32(whole * g) * np.float32(i * np.float32(one - i))
                here[b, hidden + j] = np.float32(whole * before_c[b, t, j]) * np.float32(
                    f * np.float32(one - f)
                )
                here[b, 2 * hidden + j] = np.float32(whole * i) * np.float32(
                    one - np.float32(g * g)
                )
                here[b, 3 * hidden + j] = np.float32(up * s) * np.float32(o * np.float32(one - o))
                before[b, j] = whole * f
            for j in range(width):
                dgates[b, t, j] = here[b, j]
        scale, zeroed = _rounded(here, codes, how)
        if scale < np.float32(0.0):
            return int(back)
        dc[:, :] = before
        if how.kind != AS_IT_IS:
            lost[1] += zeroed
            for b in range(batch):
                for j in range(width):
                    lost[0] += 1 if here[b, j] != np.float32(0.0) else 0
        _times(codes, w, wide, np.float32(scale * scale_w), quantum, rows, sums, dh)
    return int(steps)
