"""forward and backward: what each kind of layer computes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, is_integer
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.freed import keep_freed
from numsim.nn import layers, ops
from numsim.nn.convolution import convolution
from numsim.nn.products import Context, Watch
from numsim.nn.recurrent import gru, lstm
from numsim.nn.tape import Recorder, Tape, run_back
from numsim.quant import QTensor

Array = NDArray[Any]
Params = dict[str, Any]


@known_floats
def forward(
    layer: Any,
    params: Params,
    *inputs: ArrayLike,
    recipe: Any = None,
    step: int = 0,
    scaling: dict[str, Any] | None = None,
    watch: Watch | None = None,
) -> tuple[Any, Tape]:
    """Compute a layer or a network, and what its gradient needs.

    Parameters
    ----------
    layer
        A layer of `numsim.nn`, or what `from_model` returns.
    params
        Arrays by torch's names (`init`); QTensors where they are stored in a format.
    inputs
        Arrays in the shapes that the layer says; initial states may be left out.
    recipe
        A `numsim.train.Recipe`: float32, products as it says. None: float64 throughout.
    step
        Number of the update, for stochastic rounding: its random bits are a function of the
        recipe's seed, product, tensor, update, step of the sequence (LSTM, GRU) and element alone.
    scaling
        Delayed scales by product and tensor, read and extended by this call and by `backward`.
        None: new ones.
    watch
        Called with (product, tensor, values, stored) for each operand that a recipe quantises;
        ``x`` the input, ``w`` the weight, ``g`` the gradient; ``xT`` ... quantised along rows.
        Also for each result of an operation between products that a rule stores (`pointwise`).

    Returns
    -------
    y, tape
        y is a tuple where the layer has several outputs; float64 or float32.

    Raises
    ------
    NumsimError
        For inputs or parameters that do not fit, ids beyond a table, or a recipe that leaves a
        product undefined; `UnsupportedError` where a unit cannot multiply its formats.

    Examples
    --------
    >>> y, tape = forward(layers.Linear(2, 1, bias=False), {"weight": [[1.0, 2.0]]}, [[3.0, 4.0]])
    >>> y
    array([[11.]])
    >>> backward(tape, [[1.0]])
    ((array([[1., 2.]]),), {'weight': array([[3., 4.]])})
    """
    layers.check_layer(layer, "nn.forward")
    if recipe is not None and not hasattr(recipe, "rule"):
        raise NumsimError(
            f"nn.forward: recipe is a Recipe of numsim.train or None; got {type(recipe).__name__}; "
            "numsim.train.recipe(name) makes one"
        )
    if not is_integer(step) or step < 0:
        raise NumsimError(f"nn.forward: step is an integer from 0; got {step!r}")
    keep_freed()
    r, slots, outputs = _recorded(layer, params, inputs, recipe, int(step), scaling, watch)
    y = tuple(r.array(slot) for slot in outputs)
    return (y if len(y) > 1 else y[0]), r.finish(slots, outputs)


@known_floats
def backward(
    tape: Tape, *upstream: ArrayLike, wanted: Collection[int | str] | None = None
) -> tuple[tuple[Array | None, ...], Params]:
    """Return the gradients of inputs and parameters.

    Parameters
    ----------
    tape
        Of `forward`.
    upstream
        The gradient that arrives at each output, of its shape.
    wanted
        Names of parameters and places of inputs whose gradients are computed, and nothing that
        only others need; None: all. So frozen weights cost no product.

    Returns
    -------
    inputs, params
        A tuple in the order of the inputs, None for integers and what is not wanted; a dict by
        parameter, of the wanted ones. Parameters that the outputs do not depend on have zeros.

    Raises
    ------
    NumsimError
        For another number of gradients than outputs, another shape, or an unknown name.

    Examples
    --------
    >>> layer = layers.Linear(2, 1, bias=False)
    >>> _, tape = forward(layer, {"weight": [[1.0, 2.0]]}, [[3.0, 4.0]])
    >>> backward(tape, [[1.0]], wanted=["weight"])
    ((None,), {'weight': array([[3., 4.]])})
    """
    if not isinstance(tape, Tape):
        raise NumsimError(f"nn.backward: the tape of nn.forward; got {type(tape).__name__}")
    if len(upstream) != len(tape.outputs):
        raise NumsimError(
            f"nn.backward: one gradient for each of {len(tape.outputs)} outputs; got "
            f"{len(upstream)}"
        )
    names = [name for name, _, _ in tape.params]
    chosen: Any = (*range(len(tape.inputs)), *names) if wanted is None else wanted
    if isinstance(chosen, str) or not isinstance(chosen, list | tuple | set | frozenset | dict):
        chosen = (chosen,)
    places = range(len(tape.inputs))
    unknown = [
        one for one in chosen
        if not (one in names if isinstance(one, str) else is_integer(one) and one in places)
    ]  # fmt: skip
    if unknown:
        raise NumsimError(
            f"nn.backward: wanted holds names of parameters and places of {len(tape.inputs)} "
            f"inputs; got {unknown[0]!r:.60}{near_names(str(unknown[0]), names)}"
        )
    params = [row for row in tape.params if row[0] in chosen]
    inputs = [slot if at in chosen else None for at, slot in enumerate(tape.inputs)]
    slots = {slot for slot in (*inputs, *(slot for _, slot, _ in params)) if slot is not None}
    found = run_back(tape, upstream, slots)

    def gradient(slot: int | None, shape: tuple[int, ...]) -> Array:
        g = None if slot is None else found[slot]
        return np.zeros(shape, tape.context.dtype) if g is None else g

    given = tuple(None if s is None else gradient(s, tape.shapes[s]) for s in inputs)
    return given, {name: gradient(slot, shape) for name, slot, shape in params}


def where_not_finite(layer: Any, params: Params, *inputs: ArrayLike, **how: Any) -> str | None:
    """Return what made the first value of a pass that is not finite; see `forward` for the rest."""
    r, _, _ = _recorded(
        layer, params, inputs, how.get("recipe"), how.get("step", 0), how.get("scaling"), None
    )
    return r.first_not_finite()


def _recorded(
    layer: Any, params: Params, inputs: tuple[ArrayLike, ...], recipe: Any, step: int,
    scaling: dict[str, Any] | None, watch: Watch | None,
) -> tuple[Recorder, list[int | None], tuple[int, ...]]:  # fmt: skip
    """Return all values of a pass, the numbers of inputs and those of outputs."""
    context = Context(
        np.float64 if recipe is None else np.float32,
        None if recipe is None else recipe.rule,
        0 if recipe is None else recipe.seed,
        step,
        {} if scaling is None else scaling,
        watch,
        getattr(recipe, "pointwise", None),
    )
    check_params(layer, params)
    r = Recorder(context, params)
    slots: list[int | None] = []
    values: list[Any] = []
    for at, given in enumerate(inputs):
        array = as_array(f"nn.forward: input {at}", given)
        if array.dtype.kind in "iu":
            slots.append(None)
            values.append(array.astype(np.int64))
            continue
        if array.dtype.kind == "f":
            with np.errstate(over="ignore", under="ignore"):
                array = array.astype(context.dtype, copy=False)
        else:
            raise NumsimError(
                f"nn.forward: input {at} holds numbers or ids; got {array.dtype}; convert it"
            )
        slots.append(r.put(array))
        values.append(slots[-1])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        outputs = _run(r, layer, "", values)
    return r, slots, outputs


def check_params(layer: Any, params: Params) -> None:
    """Raise where parameters are missing, surplus or of another shape.

    Raises
    ------
    NumsimError
        With the names.
    """
    if not isinstance(params, dict):
        raise NumsimError(f"nn: parameters are a dict of arrays; got {type(params).__name__}")
    wanted = layers.param_shapes(layer)
    for name, shape in wanted.items():
        if name not in params:
            near = near_names(name, params)
            raise NumsimError(f"nn: the parameter {name} {list(shape)} is missing{near}")
        value = params[name]
        if not isinstance(value, QTensor):
            value = as_array(f"nn: the parameter {name}", value)
            if value.dtype.kind not in "iufV":
                raise NumsimError(
                    f"nn: the parameter {name} holds numbers; got {value.dtype}; convert it"
                )
        came = value.shape
        if came != shape:
            raise NumsimError(f"nn: the parameter {name} is {list(shape)}; got {list(came)}")
    surplus = sorted(set(params) - set(wanted))
    if surplus:
        raise NumsimError(
            f"nn: the layer has no parameter {surplus[0]}{near_names(surplus[0], wanted)}"
        )


# ------------------------------------------------------------------------- what layers compute


def _run(r: Recorder, layer: Any, prefix: str, inputs: list[Any]) -> tuple[int, ...]:
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
    y, p = ops.attend_with_weights(r, prefix, q, k, v, scale=scale, **how)
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
        outputs = _run(r, part, f"{prefix}{name}.", inputs if at == 0 else [outputs[0]])
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
