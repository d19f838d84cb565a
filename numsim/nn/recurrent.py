"""LSTM and GRU over all steps: one input product, one recurrent product a step.

Both weight gradients are one product over all steps each. Gates, states and biases are float32
(float64 without a recipe), each operation rounded once, or to the format of the cell's rule
(`rounded_cells`). What is kept of the steps is [T, B, ...]: a step lies in one piece of memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.elementwise import cells
from numsim.kernels.elementwise.derivatives import sums_of_steps
from numsim.kernels.gemm import recurrent as kernel
from numsim.kernels.jit import threads, using_threads
from numsim.nn import fused, rounded_cells
from numsim.nn.products import (
    Context,
    Operands,
    backward_product,
    backward_products,
    forward_product,
)
from numsim.nn.rows import Codes, codes_by_rows
from numsim.nn.tape import Recorder
from numsim.quant import QTensor

Array = NDArray[Any]


SMALL = 1 << 23  # multiply-adds of a step below which a second thread costs more than it gives


def _alone(batch: int, weight_h: Any) -> bool:
    """Return whether one thread does the steps: results do not depend on it, their time does."""
    return threads() == 1 or batch * weight_h.shape[0] * weight_h.shape[1] < SMALL


def _threads(batch: int, weight_h: Any) -> Any:
    return using_threads(1 if _alone(batch, weight_h) else threads())


def _begin(
    r: Recorder, prefix: str, x: Array, params: list[int]
) -> tuple[Array, tuple[Any, ...], Any, Array, Array]:
    """Return the input product of all steps [T, B, rows], what its way back needs, and the rest.

    The rest: the recurrent weight and both biases, zeros where the cell has none.
    """
    weight_x, weight_h = (r.values[p] for p in params[:2])
    zeros = np.zeros(weight_h.shape[0], r.context.dtype)
    bias_x, bias_h = (
        (np.ascontiguousarray(r.array(p), r.context.dtype) for p in params[2:])
        if len(params) == 4
        else (zeros, zeros)
    )  # a kernel reads them as memory
    flat = np.ascontiguousarray(x).reshape(-1, x.shape[-1])
    xw, saved = forward_product(
        r.context, f"{prefix}input", flat, weight_x, small=True, turned=x.shape[:2]
    )
    return xw, saved, weight_h, bias_x, bias_h


def lstm(r: Recorder, prefix: str, x: int, h0: int, c0: int, params: list[int]) -> tuple[int, ...]:
    """Return y [B, T, H], h, c of an LSTM; x [B, T, K], states [B, H]; gates in rows i, f, g, o.

    `params`: weight_ih [4H, K], weight_hh [4H, H] and, with biases, bias_ih, bias_hh [4H].
    """
    c, values = r.context, r.array(x)
    batch, steps, _ = values.shape
    xw, saved_x, weight_h, bias_x, bias_h = _begin(r, prefix, values, params)
    hidden = weight_h.shape[1]
    h = np.empty((batch, steps, hidden), c.dtype)
    before_c, before_h, squashed = (np.empty((steps, batch, hidden), c.dtype) for _ in range(3))
    gates = xw  # in the same memory: of each step all is read before it is written
    last_h, last_c = (np.array(r.array(i), order="C") for i in (h0, c0))
    recurrent: list[Any] = []
    codes: dict[Any, QTensor] = {}  # of weight_h: made once for all steps
    name = f"{prefix}recurrent"
    rounded = rounded_cells.Keep.of(c, f"{prefix}cell")
    call = fused.forward(c, name, weight_h, codes) if _alone(batch, weight_h) else None
    step, done = None, 0
    if call is not None and rounded is None:
        states = kernel.Forward(
            xw, bias_x, bias_h, last_h, last_c, gates, before_h, before_c, squashed, h
        )
        done = kernel.FORWARD[call.unit](call.weights, states)
        recurrent = [None] * done
    else:
        step = fused.one_step(call, 4 * hidden, np.zeros(2, np.int64))
    with _threads(batch, weight_h):
        for t in range(done, steps):
            hw, saved = _forward(c, name, step, t, last_h, weight_h, codes)
            recurrent.append(saved)
            before_h[t], before_c[t] = last_h, last_c
            new_c, new_h = np.empty_like(last_c), np.empty_like(last_h)
            each = (xw[t], hw, bias_x, bias_h, last_c, gates[t], new_c, squashed[t], new_h)
            if rounded is None:
                cells.lstm_cell(*each, 0, batch)
            else:
                rounded_cells.lstm_cell(rounded, t, *each)
            h[:, t], last_h, last_c = new_h, new_h, new_c
    kept = (
        saved_x, recurrent, gates, before_c, before_h, squashed, weight_h, prefix, len(params),
        codes,
    )  # fmt: skip
    return r.apply_many(_lstm_back, (x, h0, c0, *params), (h, last_h, last_c), *kept, chooses=True)


def _lstm_back(
    c: Context, saved: Any, dy: Array, dh_last: Array, dc_last: Array, *, wanted: tuple[bool, ...]
) -> Any:
    saved_x, recurrent, gates, before_c, before_h, squashed, weight_h, prefix, count, codes = saved
    steps, batch, _ = gates.shape
    dgates = np.empty_like(gates)
    dh, dc = (np.array(g, order="C") for g in (dh_last, dc_last))
    name = f"{prefix}recurrent"
    call = fused.backward(c, name, weight_h, codes) if _alone(batch, weight_h) else None
    done = 0
    if call is not None:
        lost = np.zeros(2, np.int64)
        states = kernel.Backward(
            np.ascontiguousarray(dy), gates, before_c, squashed, dh, dc, dgates, lost
        )
        done = kernel.BACKWARD[call.unit](call.weights, states)
        fused.count(c, lost)
    with _threads(batch, weight_h):
        for t in reversed(range(steps - done)):
            dh = dh + dy[:, t]
            cells.lstm_cell_backward(
                dh, dc, gates[t], before_c[t], squashed[t], dgates[t], 0, batch
            )
            dh = _through(c, name, None, t, recurrent[t], before_h[t], weight_h, codes, dgates[t])
    return _all_steps(c, saved_x, before_h, weight_h, dgates, dgates, prefix, count, wanted, dh, dc)


def _forward(
    c: Context, name: str, step: fused.Step | None, t: int, h: Array, weight_h: Any,
    codes: dict[Any, QTensor],
) -> tuple[Array, Any]:  # fmt: skip
    """Return the product of step `t`, and what its way back needs; None: `step` did it."""
    hw = None if step is None else step(h)
    return forward_product(c, name, h, weight_h, codes, (t,)) if hw is None else (hw, None)


def _through(
    c: Context, name: str, step: fused.Step | None, t: int, saved: Any, h: Array, weight_h: Any,
    codes: dict[Any, QTensor], g: Array,
) -> Array:  # fmt: skip
    """Return the gradient of the state before step `t`; `saved` of its product, None: fused."""
    done = None if step is None else step(g)
    if done is not None:
        return done
    if saved is None:
        sources = {"x": np.ascontiguousarray(h), "w": weight_h}
        saved = (Operands(c, name, c.rule(name), sources, codes, at=(t,)),)
    dh, _ = backward_product(c, saved, g, weights=False)
    assert dh is not None
    return dh


def _all_steps(
    c: Context, saved_x: Any, before_h: Array, weight_h: Any, dx_gates: Array, dh_gates: Array,
    prefix: str, count: int, wanted: tuple[bool, ...], *states: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """Gradients of x, the states, both weights and both biases, from those of all steps."""
    first = 1 + len(states)  # among the inputs: x, states, weight_ih, weight_hh, biases
    weights = wanted[first : first + 2]
    name, alike = f"{prefix}recurrent", dh_gates is dx_gates
    of_g, of_h = _codes_of_steps(c, f"{prefix}input", name, dx_gates, before_h) if alike else (
        None, None
    )  # fmt: skip
    flat_x = dx_gates if of_g else _rows(dx_gates)
    all_h = before_h if of_h else _rows(before_h)  # arrays whose codes are there are not read
    saved_h = _all_states(c, name, all_h, weight_h, of_h)
    if alike:
        dx, (dw_x, dw_h) = backward_products(
            c, [saved_x, saved_h], flat_x, inputs=wanted[0], weights=weights, small=True, codes=of_g
        )
    else:
        flat_h = _rows(dh_gates)
        dx, dw_x = backward_product(c, saved_x, flat_x, inputs=wanted[0], weights=weights[0])
        _, dw_h = backward_product(c, saved_h, flat_h, inputs=False, weights=weights[1])
    db_x = sums_of_steps(dx_gates)
    db_h = db_x.copy() if alike else sums_of_steps(dh_gates)
    dx = None if dx is None else dx.reshape(*before_h.shape[1::-1], -1)
    return dx, *states, *(dw_x, dw_h, db_x, db_h)[:count]


def _rows(steps: Array) -> Array:
    """Return [T, B, N] as rows [B T, N]: the order in which sums over all steps run."""
    return np.ascontiguousarray(steps.swapaxes(0, 1)).reshape(-1, steps.shape[-1])


def _codes_of_steps(
    c: Context, name_x: str, name_h: str, g: Array, h: Array
) -> tuple[Codes | None, Codes | None]:
    """Return the codes of all rows of gradients and states for the products of all steps.

    (None, None) where a rule asks for more than the codes of one scale each, to nearest.
    """
    rules = c.rule(name_x), c.rule(name_h)
    if None in rules or c.watch is not None:
        return None, None
    for rule in rules:
        more = rule.delayed or rule.hadamard or rule.clip_gradient or rule.source == "requantise"
        if more or rule.gradient_scale != 1:
            return None, None
    one, other = rules
    of_g = codes_by_rows(g, (one.dgrad.activations, one.wgrad.activations, other.wgrad.activations))
    of_h = codes_by_rows(h, (other.wgrad.weights,)) if of_g else None
    return (of_g, of_h) if of_h else (None, None)


def _all_states(
    c: Context, name: str, h: Array, w: Any, codes: Codes | None = None
) -> tuple[Any, ...]:
    """Return what the weights' gradient needs: all states under one scale, not one a step."""
    rule = c.rule(name)
    if rule is None:
        return h, w
    shared = {} if codes is None else {"x": codes}
    return (Operands(c, name, rule, {"x": h, "w": w}, shared=shared),)


def gru(r: Recorder, prefix: str, x: int, h0: int, params: list[int]) -> tuple[int, ...]:
    """Return y [B, T, H] and h of a GRU; gates in rows r, z, n.

    n = tanh(W_in x + b_in + r (W_hn h + b_hn)).

    `params` as for `lstm`, of 3H rows.
    """
    c, values = r.context, r.array(x)
    batch, steps, _ = values.shape
    xw, saved_x, weight_h, bias_x, bias_h = _begin(r, prefix, values, params)
    hidden = weight_h.shape[1]
    h = np.empty((batch, steps, hidden), c.dtype)
    before_h, inner = (np.empty((steps, batch, hidden), c.dtype) for _ in range(2))
    gates = np.empty((steps, batch, 3 * hidden), c.dtype)
    last_h = np.array(r.array(h0), order="C")
    recurrent: list[Any] = []
    codes: dict[Any, QTensor] = {}  # of weight_h: made once for all steps
    name = f"{prefix}recurrent"
    call = fused.forward(c, name, weight_h, codes) if _alone(batch, weight_h) else None
    step = fused.one_step(call, 3 * hidden, np.zeros(2, np.int64))
    rounded = rounded_cells.Keep.of(c, f"{prefix}cell")
    with _threads(batch, weight_h):
        for t in range(steps):
            hw, saved = _forward(c, name, step, t, last_h, weight_h, codes)
            recurrent.append(saved)
            before_h[t] = last_h
            new_h = np.empty_like(last_h)
            each = (xw[t], hw, bias_x, bias_h, last_h, gates[t], inner[t], new_h)
            if rounded is None:
                cells.gru_cell(*each, 0, batch)
            else:
                rounded_cells.gru_cell(rounded, t, *each)
            h[:, t], last_h = new_h, new_h
    kept = (saved_x, recurrent, gates, before_h, inner, weight_h, prefix, len(params), codes)
    return r.apply_many(_gru_back, (x, h0, *params), (h, last_h), *kept, chooses=True)


def _gru_back(
    c: Context, saved: Any, dy: Array, dh_last: Array, *, wanted: tuple[bool, ...]
) -> Any:
    saved_x, recurrent, gates, before_h, inner, weight_h, prefix, count, codes = saved
    steps, batch, _ = gates.shape
    dx_gates, dh_gates = np.empty_like(gates), np.empty_like(gates)
    dh = np.array(dh_last, order="C")
    name, lost = f"{prefix}recurrent", np.zeros(2, np.int64)
    call = fused.backward(c, name, weight_h, codes) if _alone(batch, weight_h) else None
    step = fused.one_step(call, dh.shape[1], lost)
    with _threads(batch, weight_h):
        for t in reversed(range(steps)):
            dh = dh + dy[:, t]
            cells.gru_cell_backward(
                dh, gates[t], inner[t], before_h[t], dx_gates[t], dh_gates[t], 0, batch
            )
            dh = dh + _through(
                c, name, step, t, recurrent[t], before_h[t], weight_h, codes, dh_gates[t]
            )
    fused.count(c, lost)
    return _all_steps(c, saved_x, before_h, weight_h, dx_gates, dh_gates, prefix, count, wanted, dh)
