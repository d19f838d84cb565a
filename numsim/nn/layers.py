"""Layers as frozen data: sizes and switches. `run` computes them, `start` begins them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from numsim.arguments import is_integer
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.kernels.elementwise.activations import ACTIVATIONS

Shapes = dict[str, tuple[int, ...]]
MOST = 1 << 30  # of a size: what no memory holds is refused where it is written


def _sizes(layer: Any, *names: str, least: int = 1) -> None:
    for name in names:
        value = getattr(layer, name)
        if not is_integer(value) or not least <= value <= MOST:
            raise NumsimError(
                f"nn.{type(layer).__name__}: {name} is an integer from {least} to 2**30; got "
                f"{value!r:.60}"
            )


def _check_groups(layer: Any) -> None:
    if layer.inputs % layer.groups or layer.outputs % layer.groups:
        raise NumsimError(
            f"nn.{type(layer).__name__}: groups divides inputs and outputs; got {layer.groups} for "
            f"{layer.inputs} and {layer.outputs}"
        )


def _eps(layer: Any) -> None:
    eps = layer.eps
    number = isinstance(eps, int | float | np.floating) and not isinstance(eps, bool)
    if not number or not 0 <= eps < np.inf:
        raise NumsimError(f"nn.{type(layer).__name__}: eps is a number from 0; got {eps!r:.60}")


@dataclass(frozen=True)
class Linear:
    """``y = x W^T + b``: x [..., inputs] -> [..., outputs]; weight [outputs, inputs], bias."""

    inputs: int
    outputs: int
    bias: bool = True

    def __post_init__(self) -> None:
        _sizes(self, "inputs", "outputs")


@dataclass(frozen=True)
class Embedding:
    """Rows of a table: ids [...] -> [..., width]; weight [rows, width].

    `padding_idx`: the row of that id begins as zeros and has no gradient, as torch's.
    """

    rows: int
    width: int
    padding_idx: int | None = None

    def __post_init__(self) -> None:
        _sizes(self, "rows", "width")
        at = self.padding_idx
        if at is not None and (not is_integer(at) or not 0 <= at < self.rows):
            raise NumsimError(
                f"nn.Embedding: padding_idx is None or an id from 0 to {self.rows - 1}; got {at!r}"
            )


@dataclass(frozen=True)
class LSTM:
    """x [B, T, inputs], h0, c0 [B, hidden] (zeros) -> y [B, T, hidden], h, c; gates i f g o."""

    inputs: int
    hidden: int
    bias: bool = True

    def __post_init__(self) -> None:
        _sizes(self, "inputs", "hidden")


@dataclass(frozen=True)
class GRU:
    """x [B, T, inputs], h0 [B, hidden] (zeros) -> y [B, T, hidden], h; gates r z n."""

    inputs: int
    hidden: int
    bias: bool = True

    def __post_init__(self) -> None:
        _sizes(self, "inputs", "hidden")


@dataclass(frozen=True)
class LayerNorm:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` along the last axis."""

    width: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        _sizes(self, "width")
        _eps(self)


@dataclass(frozen=True)
class RMSNorm:
    """``x / sqrt(mean(x**2) + eps) * weight`` along the last axis."""

    width: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        _sizes(self, "width")
        _eps(self)


@dataclass(frozen=True)
class Attention:
    """Softmax(q k^T / sqrt(d)) v: q [B, heads, T, d], k, v [B, kv_heads, S, d]; no parameters.

    A fourth input is a mask that broadcasts to [B, heads, T, S]: numbers are added to the scaled
    scores (-inf hides a key), integers keep a key where they are not 0. `scale` in place of
    1 / sqrt(d). With `dropout` the last input multiplies the softmax, [B, heads, T, S]; with
    `weights` the product is a second output.
    """

    causal: bool = False
    scale: float | None = None
    dropout: bool = False
    weights: bool = False

    def __post_init__(self) -> None:
        s = self.scale
        whole = is_integer(s) and abs(int(s)) < 1 << 64  # type: ignore[arg-type]
        number = isinstance(s, float | np.floating) and np.isfinite(s)
        if s is not None and not (whole or number):
            raise NumsimError(f"nn.Attention: scale is a finite number or None; got {s!r}")


@dataclass(frozen=True)
class Activation:
    """An elementwise function: gelu, gelu_tanh, silu, tanh, sigmoid, relu."""

    name: str

    def __post_init__(self) -> None:
        known = ("gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "relu", "quick_gelu")
        word = isinstance(self.name, str)
        if not word or (self.name not in known and self.name not in ACTIVATIONS):
            raise NumsimError(
                f"nn.Activation: one of {', '.join(known)}; got {self.name!r}"
                f"{near_names(str(self.name), known)}"
            )


@dataclass(frozen=True)
class Last:
    """The last step: [B, T, H] -> [B, H]."""


@dataclass(frozen=True)
class Mean:
    """The mean over steps: [B, T, H] -> [B, H]."""


@dataclass(frozen=True)
class Flatten:
    """All axes but the first as one: [B, ...] -> [B, H]."""


@dataclass(frozen=True)
class Conv1d:
    """x [B, inputs, T] -> [B, outputs, T']: a Linear over patches, K = (channel, kernel).

    Each of `groups` equal parts of the inputs makes one of the outputs, in one product.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = True
    dilation: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        _sizes(self, "inputs", "outputs", "kernel", "stride", "dilation", "groups")
        _sizes(self, "padding", least=0)
        _check_groups(self)


@dataclass(frozen=True)
class Conv2d:
    """x [B, inputs, Y, X] -> [B, outputs, Y', X']: a Linear over patches, K = (channel, y, x).

    `groups` as in `Conv1d`.
    """

    inputs: int
    outputs: int
    kernel: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    bias: bool = True
    dilation: int | tuple[int, int] = 1
    groups: int = 1

    def __post_init__(self) -> None:
        _sizes(self, "inputs", "outputs", "groups")
        _check_groups(self)
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            both = tuple(value) if isinstance(value, tuple | list) else (value, value)
            if len(both) != 2 or not all(is_integer(v) and v >= least for v in both):
                raise NumsimError(
                    f"nn.Conv2d: {name} is an integer from {least} or a pair; got {value!r}"
                )
            object.__setattr__(self, name, (int(both[0]), int(both[1])))


@dataclass(frozen=True, init=False)
class Sequential:
    """Named layers, one after the other; of a layer with several outputs the first goes on.

    Examples
    --------
    >>> Sequential(hidden=Linear(4, 8), act=Activation("relu"), head=Linear(8, 1)).names
    ('hidden', 'act', 'head')
    """

    layers: tuple[tuple[str, Any], ...]

    def __init__(self, **layers: Any) -> None:
        if not layers:
            raise NumsimError("nn.Sequential: one layer or more, name=layer; got none")
        for name, layer in layers.items():
            check_layer(layer, f"nn.Sequential: {name}")
        object.__setattr__(self, "layers", tuple(layers.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(name for name, _ in self.layers)


KINDS: tuple[type, ...] = (
    Linear, Embedding, LSTM, GRU, LayerNorm, RMSNorm, Attention, Activation, Last, Mean, Flatten,
    Conv1d, Conv2d, Sequential,
)  # fmt: skip


def check_layer(layer: Any, where: str = "nn") -> None:
    """Raise where something is no layer.

    Raises
    ------
    NumsimError
        With the kinds of layers.
    """
    if not isinstance(layer, KINDS) and not hasattr(layer, "arch"):
        names = ", ".join(kind.__name__ for kind in KINDS)
        raise NumsimError(f"{where}: a layer is one of {names}, from_model; got {layer!r:.60}")


@known_floats
def param_shapes(layer: Any, prefix: str = "") -> Shapes:
    """Return the parameters of a layer and their shapes, by torch's names.

    Examples
    --------
    >>> param_shapes(Sequential(head=Linear(8, 1)))
    {'head.weight': (1, 8), 'head.bias': (1,)}
    """
    if isinstance(layer, Sequential):
        return {
            name: shape
            for inner, part in layer.layers
            for name, shape in param_shapes(part, f"{prefix}{inner}.").items()
        }
    if isinstance(layer, Linear):
        own: Shapes = {"weight": (layer.outputs, layer.inputs)}
        own |= {"bias": (layer.outputs,)} if layer.bias else {}
    elif isinstance(layer, Conv1d | Conv2d):
        kernel = (layer.kernel,) if isinstance(layer, Conv1d) else layer.kernel
        part = layer.inputs // layer.groups
        own = {"weight": (layer.outputs, part, *kernel)}  # type: ignore[misc]
        own |= {"bias": (layer.outputs,)} if layer.bias else {}
    elif isinstance(layer, Embedding):
        own = {"weight": (layer.rows, layer.width)}
    elif isinstance(layer, LSTM | GRU):
        rows = (4 if isinstance(layer, LSTM) else 3) * layer.hidden
        own = {"weight_ih": (rows, layer.inputs), "weight_hh": (rows, layer.hidden)}
        own |= {"bias_ih": (rows,), "bias_hh": (rows,)} if layer.bias else {}
    elif isinstance(layer, LayerNorm):
        own = {"weight": (layer.width,), "bias": (layer.width,)}
    elif isinstance(layer, RMSNorm):
        own = {"weight": (layer.width,)}
    elif hasattr(layer, "arch"):
        own = layer.shapes()
    else:
        own = {}
    return {prefix + name: shape for name, shape in own.items()}


@known_floats
def product_names(layer: Any, prefix: str = "") -> tuple[str, ...]:
    """Return the names of the matrix products of a layer, in the order they run.

    A Linear or convolution has the name of the layer; an LSTM or GRU has ``.input`` and
    ``.recurrent``, attention ``.qk`` and ``.pv``.

    Examples
    --------
    >>> product_names(Sequential(lstm=LSTM(4, 8), last=Last(), head=Linear(8, 1)))
    ('lstm.input', 'lstm.recurrent', 'head')
    """
    if isinstance(layer, Sequential):
        return tuple(
            product
            for name, part in layer.layers
            for product in product_names(part, f"{prefix}{name}.")
        )
    if isinstance(layer, Linear | Conv1d | Conv2d):
        return (prefix.removesuffix("."),)
    if isinstance(layer, LSTM | GRU):
        return (f"{prefix}input", f"{prefix}recurrent")
    if isinstance(layer, Attention):
        return (f"{prefix}qk", f"{prefix}pv")
    if hasattr(layer, "arch"):
        return tuple(prefix + name for name in layer.products())
    return ()


@known_floats
def pointwise_names(layer: Any, prefix: str = "") -> tuple[str, ...]:
    """Return the names of the operations between products whose results a rule may store.

    An activation or norm has the name of the layer, the cell of an LSTM or GRU ``.cell``, attention
    ``.softmax``; a network of `from_model` ``layers.0.attn_norm``, ``.act``, ``.softmax``. Sums of
    residuals, biases outside of a cell, rotary positions and the loss are not among them.

    Examples
    --------
    >>> pointwise_names(Sequential(lstm=LSTM(4, 8), last=Last(), act=Activation("relu")))
    ('lstm.cell', 'act')
    """
    if isinstance(layer, Sequential):
        return tuple(
            operation
            for name, part in layer.layers
            for operation in pointwise_names(part, f"{prefix}{name}.")
        )
    if isinstance(layer, LSTM | GRU):
        return (f"{prefix}cell",)
    if isinstance(layer, Attention):
        return (f"{prefix}softmax",)
    if isinstance(layer, Activation | LayerNorm | RMSNorm):
        return (prefix.removesuffix("."),)
    if hasattr(layer, "arch"):
        return tuple(prefix + name for name in layer.between())
    return ()


def describe(layer: Any) -> str:
    """Return a layer as one line that decides its numbers."""
    if isinstance(layer, Sequential):
        return "; ".join(f"{name}={describe(part)}" for name, part in layer.layers)
    values = ", ".join(f"{f.name}={getattr(layer, f.name)!r}" for f in fields(layer))
    return f"{type(layer).__name__}({values})"
