"""What each kind of layer computes: its inputs checked, its operations recorded (`ops`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numsim.errors import NumsimError
from numsim.nn import layers, ops
from numsim.nn.attention import attend_with_weights
from numsim.nn.convolution import convolution
from numsim.nn.recurrent import gru, lstm
from numsim.nn.tape import Recorder


def run_layer(r: Recorder, layer: Any, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
    """Record what a layer of any kind computes; return its outputs."""
    if hasattr(layer, "arch"):
        found: tuple[int, ...] = layer.run(r, inputs)
        return found
    if not isinstance(layer, layers.Sequential):
        name = prefix.removesuffix(".")
        r.owners.append((len(r.steps), f"{name} ({type(layer).__name__})".lstrip()))
    return RUN[type(layer)](r, layer, prefix, inputs)


def _float(r: Recorder, layer: Any, inputs: list[Any], at: int, *shape: int | None) -> int:
    """Return input `at`, an array whose axes are as said; None: any length."""
    name = f"nn.{type(layer).__name__}"
    if at >= len(inputs) or not isinstance(inputs[at], int | np.integer):
        raise NumsimError(f"{name}: input {at} is an array of numbers; got ids or nothing")
    slot = int(inputs[at])
    came = np.shape(r.values[slot])
    tail = came[len(came) - len(shape) :] if len(came) >= len(shape) else None
    fits = tail is not None and all(w in (None, c) for w, c in zip(shape, tail, strict=True))
    if not fits:
        want = ", ".join("any" if w is None else str(w) for w in shape)
        raise NumsimError(f"{name}: input {at} has last axes [{want}]; got shape {list(came)}")
    return slot


def _count(layer: Any, inputs: list[Any], least: int, most: int) -> None:
    if not least <= len(inputs) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise NumsimError(f"nn.{type(layer).__name__}: takes {wanted} inputs; got {len(inputs)}")


def _linear(r: Recorder, layer: layers.Linear, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    x = _float(r, layer, inputs, 0, layer.inputs)
    y = ops.product(r, prefix.removesuffix("."), x, r.param(f"{prefix}weight"))
    return (ops.add_bias(r, y, r.param(f"{prefix}bias")) if layer.bias else y,)


def _embedding(
    r: Recorder, layer: layers.Embedding, prefix: str, inputs: list[Any]
) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    ids = inputs[0]
    if not isinstance(ids, np.ndarray):
        raise NumsimError("nn.Embedding: the input is an integer array of ids; got numbers")
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < layer.rows):
        worst = int(ids.max()) if int(ids.max()) >= layer.rows else int(ids.min())
        raise NumsimError(
            f"nn.Embedding: ids lie from 0 to {layer.rows - 1}; got {worst}; encode the text with "
            "the vocabulary of the table"
        )
    return (ops.rows(r, r.param(f"{prefix}weight"), ids, layer.padding_idx),)


def _states(r: Recorder, layer: Any, inputs: list[Any], batch: int, count: int) -> list[int]:
    states = []
    for at in range(1, 1 + count):
        if at < len(inputs):
            slot = _float(r, layer, inputs, at, batch, layer.hidden)
            if np.ndim(r.values[slot]) != 2:
                raise NumsimError(
                    f"nn.{type(layer).__name__}: states are [B, H] = [{batch}, {layer.hidden}]; "
                    f"got {list(np.shape(r.values[slot]))}"
                )
            states.append(slot)
        else:
            states.append(r.put(np.zeros((batch, layer.hidden), r.context.dtype)))
    return states


def _cell_params(r: Recorder, layer: Any, prefix: str) -> list[int]:
    names = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if layer.bias else [])
    return [r.param(prefix + name) for name in names]


def _sequence(r: Recorder, layer: Any, inputs: list[Any]) -> tuple[int, int]:
    x = _float(r, layer, inputs, 0, None, None, layer.inputs)
    shape = np.shape(r.values[x])
    if len(shape) != 3 or 0 in shape:
        raise NumsimError(
            f"nn.{type(layer).__name__}: x is [B, T, {layer.inputs}], none of them 0; got "
            f"{list(shape)}"
        )
    return x, shape[0]


def _lstm(r: Recorder, layer: layers.LSTM, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
    _count(layer, inputs, 1, 3)
    x, batch = _sequence(r, layer, inputs)
    h0, c0 = _states(r, layer, inputs, batch, 2)
    return lstm(r, prefix, x, h0, c0, _cell_params(r, layer, prefix))


def _gru(r: Recorder, layer: layers.GRU, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
    _count(layer, inputs, 1, 2)
    x, batch = _sequence(r, layer, inputs)
    (h0,) = _states(r, layer, inputs, batch, 1)
    return gru(r, prefix, x, h0, _cell_params(r, layer, prefix))


def _layer_norm(
    r: Recorder, layer: layers.LayerNorm, prefix: str, inputs: list[Any]
) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    x = _float(r, layer, inputs, 0, layer.width)
    weight, bias = r.param(f"{prefix}weight"), r.param(f"{prefix}bias")
    y = ops.layer_norm(r, x, weight, bias, eps=layer.eps)
    return (ops.stored(r, prefix.removesuffix("."), y),)


def _rms_norm(
    r: Recorder, layer: layers.RMSNorm, prefix: str, inputs: list[Any]
) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    x = _float(r, layer, inputs, 0, layer.width)
    y = ops.rms_norm(r, x, r.param(f"{prefix}weight"), eps=layer.eps)
    return (ops.stored(r, prefix.removesuffix("."), y),)


def _attention(
    r: Recorder, layer: layers.Attention, prefix: str, inputs: list[Any]
) -> tuple[int, ...]:
    _count(layer, inputs, 3 + layer.dropout, 4 + layer.dropout)
    q, k, v = (_float(r, layer, inputs, at, None, None, None, None) for at in range(3))
    (b, heads, steps, width), (bk, groups, seen, wk), vs = (
        np.shape(r.values[s]) for s in (q, k, v)
    )
    fits = b == bk and width == wk and vs[:3] == (bk, groups, seen) and heads % max(groups, 1) == 0
    if not fits or 0 in (heads, groups, seen, width):
        raise NumsimError(
            "nn.Attention: q is [B, heads, T, d], k and v [B, kv_heads, S, d], heads a multiple of "
            f"kv_heads; got {[list(np.shape(r.values[s])) for s in (q, k, v)]}"
        )
    how: dict[str, Any] = {}
    if layer.causal:
        if steps > seen:
            raise NumsimError(
                "nn.Attention: causal queries are the last of the keys, T <= S; got "
                f"{steps}, {seen}"
            )
        how["last"] = np.arange(seen - steps + 1, seen + 1)
    shape = (b, heads, steps, seen)
    if layer.dropout:
        how["dropout"] = _float(r, layer, inputs[-1:], 0, *shape)
    if len(inputs) == 4 + layer.dropout:
        how["bias"] = _mask(r, inputs[3], shape)
    scale = 1.0 / float(np.sqrt(np.float64(width))) if layer.scale is None else float(layer.scale)
    y, p = attend_with_weights(r, prefix, q, k, v, scale=scale, **how)
    return (y, p) if layer.weights else (y,)


def _mask(r: Recorder, given: Any, shape: tuple[int, ...]) -> int:
    """Return the slot of what is added to scores of `shape`."""
    if isinstance(given, np.ndarray):  # integers
        given = r.put(np.where(given != 0, 0.0, -np.inf).astype(r.context.dtype))
    came = np.shape(r.values[given])
    try:
        fits = np.broadcast_shapes(came, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise NumsimError(
            f"nn.Attention: a mask broadcasts to [B, heads, T, S] = {list(shape)}; got {list(came)}"
        )
    return ops.broadcast(r, given, *shape)


def _activation(
    r: Recorder, layer: layers.Activation, prefix: str, inputs: list[Any]
) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    name = "gelu_new" if layer.name == "gelu_tanh" else layer.name
    y = ops.activation(r, _float(r, layer, inputs, 0), name)
    return (ops.stored(r, prefix.removesuffix("."), y),)


def _last(r: Recorder, layer: layers.Last, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    x = _float(r, layer, inputs, 0, None, None, None)
    return (ops.pick(r, x, (slice(None), -1)),)


def _mean(r: Recorder, layer: layers.Mean, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    return (ops.mean(r, _float(r, layer, inputs, 0, None, None, None)),)


def _flatten(r: Recorder, layer: layers.Flatten, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    x = _float(r, layer, inputs, 0, None)
    return (ops.reshape(r, x, np.shape(r.values[x])[0], -1),)


def _conv1d(r: Recorder, layer: layers.Conv1d, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    x = _float(r, layer, inputs, 0, None, layer.inputs, None)
    sizes = ((layer.kernel, layer.stride, layer.padding, layer.dilation),)
    return (convolution(r, prefix, x, layer, sizes),)


def _conv2d(r: Recorder, layer: layers.Conv2d, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
    _count(layer, inputs, 1, 1)
    x = _float(r, layer, inputs, 0, None, layer.inputs, None, None)
    spatial: Any = (layer.kernel, layer.stride, layer.padding, layer.dilation)
    each = zip(*spatial, strict=True)
    return (convolution(r, prefix, x, layer, tuple(each)),)


def _sequential(
    r: Recorder, layer: layers.Sequential, prefix: str, inputs: list[Any]
) -> tuple[int, ...]:
    outputs: tuple[int, ...] = ()
    for at, (name, part) in enumerate(layer.layers):
        outputs = run_layer(r, part, f"{prefix}{name}.", inputs if at == 0 else [outputs[0]])
    return outputs


RUN: dict[type, Callable[[Recorder, Any, str, list[Any]], tuple[int, ...]]] = {
    layers.Linear: _linear,
    layers.Embedding: _embedding,
    layers.LSTM: _lstm,
    layers.GRU: _gru,
    layers.LayerNorm: _layer_norm,
    layers.RMSNorm: _rms_norm,
    layers.Attention: _attention,
    layers.Activation: _activation,
    layers.Last: _last,
    layers.Mean: _mean,
    layers.Flatten: _flatten,
    layers.Conv1d: _conv1d,
    layers.Conv2d: _conv2d,
    layers.Sequential: _sequential,
}
