"""All steps of an LSTM in one call, where a chain of fused multiply-adds gives the unit's sums.

What is computed: ``forward`` and ``backward`` of ``numsim.nn.recurrent``, the same operations in
the same order. Of a step's operand [B, K] the amax gives a scale, values are rounded to nearest
even into the format and saturate, and multiply weights [K, N] that are float32 values of their
codes. Products of such values are exact, so that a fused multiply-add is the chain of
``ideal.fp32``; sums of integers below 2**24 are exact in float32 whatever the order.

A step whose scale is not an ordinary number ends the call: the general path says what is wrong.
Proof: ``tests/nn/test_recurrent_kernel.py`` compares every bit with the general path.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from numsim.kernels.jit import inline, kernel
from numsim.kernels.vector_act import sigmoid_of, tanh_of

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


@intrinsic
def _fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c`` of float32, rounded once."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        single = ir.FloatType()
        kind = ir.FunctionType(single, [single] * 3)
        name = builder.module.declare_intrinsic("llvm.fma", [single], kind)
        return builder.call(name, args)

    return types.float32(types.float32, types.float32, types.float32), emit


fma: Any = _fma  # its first argument is the compiler's


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
def _times(a: Array, w: Array, scale: np.float32, quantum: np.float32, out: Array) -> None:
    """Return a [B, K] by w [K, N]: chains in increasing k, times the scale, times the quantum."""
    rows, depth, width = a.shape[0], a.shape[1], w.shape[1]
    both = np.float32(scale)
    for b in range(rows):
        for n in range(width):
            out[b, n] = np.float32(0.0)
        for k in range(depth):
            x = a[b, k]
            for n in range(width):
                out[b, n] = fma(x, w[k, n], out[b, n])
        for n in range(width):
            out[b, n] = np.float32(np.float32(out[b, n] * quantum) * both)


@kernel
def lstm_forward(
    xw: Array, w: Array, how: Rounding, scale_w: np.float32, quantum: np.float32, bias_x: Array,
    bias_h: Array, h: Array, c: Array, gates: Array, before_h: Array, before_c: Array,
    squashed: Array, y: Array,
) -> int:  # fmt: skip
    """Run all steps: xw [B, T, 4H], w [H, 4H]; h, c [B, H] end as the last states.

    Returns how many steps were done: fewer than T where a scale is not an ordinary number.
    """
    batch, steps, width = xw.shape
    hidden = c.shape[1]
    codes, hw = np.empty((batch, hidden), np.float32), np.empty((batch, width), np.float32)
    row = np.empty(width, np.float32)
    for t in range(steps):
        scale, _ = _rounded(h, codes, how)
        if scale < np.float32(0.0):
            return int(t)
        _times(codes, w, np.float32(scale * scale_w), quantum, hw)
        for b in range(batch):
            for j in range(hidden):
                before_h[b, t, j] = h[b, j]
                before_c[b, t, j] = c[b, j]
            for j in range(width):
                row[j] = np.float32(xw[b, t, j] + bias_x[j]) + np.float32(hw[b, j] + bias_h[j])
            for j in range(2 * hidden):
                row[j] = sigmoid_of(np.float64(row[j]))
            for j in range(2 * hidden, 3 * hidden):
                row[j] = tanh_of(np.float64(row[j]))
            for j in range(3 * hidden, width):
                row[j] = sigmoid_of(np.float64(row[j]))
            for j in range(width):
                gates[b, t, j] = row[j]
            for j in range(hidden):
                kept = np.float32(row[hidden + j] * c[b, j])
                c[b, j] = kept + np.float32(row[j] * row[2 * hidden + j])
            for j in range(hidden):
                squashed[b, t, j] = tanh_of(np.float64(c[b, j]))
            for j in range(hidden):
                h[b, j] = row[3 * hidden + j] * squashed[b, t, j]
                y[b, t, j] = h[b, j]
    return int(steps)


@kernel
def product(
    x: Array, w: Array, how: Rounding, scale_w: np.float32, quantum: np.float32, values: Array,
    out: Array, lost: Array,
) -> bool:  # fmt: skip
    """One step's product: x [B, K] by w [K, N]; False, and nothing done, for an unusual scale.

    `values` [B, K] is scratch. `lost` as for `lstm_backward`.
    """
    scale, zeroed = _rounded(x, values, how)
    if scale < np.float32(0.0):
        return False
    _count(x, zeroed, how, lost)
    _times(values, w, np.float32(scale * scale_w), quantum, out)
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
    dy: Array, w: Array, how: Rounding, scale_w: np.float32, quantum: np.float32, gates: Array,
    before_c: Array, squashed: Array, dh: Array, dc: Array, dgates: Array, lost: Array,
) -> int:  # fmt: skip
    """Run all steps backward: w [4H, H]; dh, dc [B, H] end as gradients of the first states.

    `lost` [2]: non-zero elements of the gates' gradients, and those that became 0. Returns how
    many steps were done.
    """
    batch, steps, width = gates.shape
    hidden = dc.shape[1]
    one = np.float32(1.0)
    here, codes = np.empty((batch, width), np.float32), np.empty((batch, width), np.float32)
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
        _times(codes, w, np.float32(scale * scale_w), quantum, dh)
    return int(steps)
