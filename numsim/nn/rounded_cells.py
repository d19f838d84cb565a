"""Steps of LSTM and GRU whose inside is in a format: each operation's result is stored in it.

The operations of `kernels.elementwise.cells` in the same order, each on the whole batch; a
format of all float32 values gives the same bits. The way back reads what was stored, straight
through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise.activations import sigmoid, tanh
from numsim.nn.products import Context

Array = NDArray[Any]


@dataclass(frozen=True)
class Keep:
    """Stores the results of a cell's operations, as the rule of its name says."""

    context: Context
    name: str
    rule: Any

    @classmethod
    def of(cls, context: Context, name: str) -> Keep | None:
        """Return None where no rule stores them."""
        rule = context.pointwise(name)
        return None if rule is None else cls(context, name, rule)

    def __call__(self, t: int, tensor: str, values: Array) -> Array:
        """Return the result `tensor` of step `t`, rounded."""
        kept = self.context.keep(self.rule, self.name, tensor, np.ascontiguousarray(values), t)
        return kept.dequantize()


def lstm_cell(
    keep: Keep, t: int, xw: Array, hw: Array, bias_x: Array, bias_h: Array, c: Array,
    gates: Array, new_c: Array, squashed: Array, h: Array,
) -> None:  # fmt: skip
    """Fill the gates i, f, g, o [B, 4H], the new state, its tanh and the output [B, H]."""
    hidden = c.shape[1]
    total = keep(t, "sum", keep(t, "input", xw + bias_x) + keep(t, "recurrent", hw + bias_h))
    both = sigmoid(total)
    middle = slice(2 * hidden, 3 * hidden)
    both[:, middle] = tanh(np.ascontiguousarray(total[:, middle]))
    gates[...] = keep(t, "gates", both)
    i, f, g, o = np.split(gates, 4, axis=1)
    kept, added = keep(t, "fc", f * c), keep(t, "ig", i * g)
    new_c[...] = keep(t, "c", kept + added)
    squashed[...] = keep(t, "tanh", tanh(new_c))
    h[...] = keep(t, "h", o * squashed)


def gru_cell(
    keep: Keep, t: int, xw: Array, hw: Array, bias_x: Array, bias_h: Array, h: Array,
    gates: Array, inner: Array, new_h: Array,
) -> None:  # fmt: skip
    """Fill the gates r, z, n [B, 3H], W_hn h + b_hn and the new state [B, H]."""
    hidden = h.shape[1]
    one = h.dtype.type(1)
    left, right = keep(t, "input", xw + bias_x), keep(t, "recurrent", hw + bias_h)
    two = slice(None, 2 * hidden)
    gates[:, two] = keep(t, "gates", sigmoid(keep(t, "sum", left[:, two] + right[:, two])))
    r, z = gates[:, :hidden], gates[:, hidden : 2 * hidden]
    inner[...] = right[:, 2 * hidden :]
    total = keep(t, "sum n", left[:, 2 * hidden :] + keep(t, "rn", r * inner))
    n = keep(t, "n", tanh(total))
    gates[:, 2 * hidden :] = n
    fresh = keep(t, "fresh", keep(t, "1-z", one - z) * n)
    new_h[...] = keep(t, "h", fresh + keep(t, "zh", z * h))
