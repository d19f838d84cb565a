"""forward and backward of any layer, and its parameters checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, is_integer
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.freed import keep_freed
from numsim.nn import layers
from numsim.nn.kinds import run_layer
from numsim.nn.products import Context, Watch
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
    if scaling is not None and not isinstance(scaling, dict):
        raise NumsimError(
            f"nn.forward: scaling is a dict of delayed scales or None; got {type(scaling).__name__}"
        )
    if watch is not None and not callable(watch):
        raise NumsimError(f"nn.forward: watch is a function or None; got {watch!r:.60}")
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
        outputs = run_layer(r, layer, "", values)
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
