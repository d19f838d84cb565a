"""How parameters start: torch's distributions, from a counter-based stream of our own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.arguments import is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.convert.philox import random_words
from numsim.kernels.elementwise.logarithm import log
from numsim.nn import layers
from numsim.nn.draws import stream_key

# Peter Wichura's inverse of the normal distribution (AS 241, 1988): near the middle, and in tails.
_MIDDLE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_TAIL = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177,
     1.27045825245236838258, 3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959,
     1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966,
     0.14810397642748007459, 0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187,
     1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386,
     0.026532189526576123093, 0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699,
     6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5,
     7.868691311456132591e-4, 0.0148753612908506148525, 0.13692988092273580531,
     0.59983220655588793769, 1.0),
)  # fmt: skip


def uniform(count: int, *parts: object) -> NDArray[np.float64]:
    """Return `count` numbers of (0, 1), odd multiples of 2**-54, of the stream of `parts`.

    >>> bool(np.all((uniform(1000, 7) > 0) & (uniform(1000, 7) < 1)))
    True
    """
    words = np.empty(count, np.uint64)
    random_words(np.arange(count, dtype=np.uint64), stream_key(*parts), words)
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(count: int, *parts: object) -> NDArray[np.float64]:
    """Return `count` standard normal numbers of the stream of `parts`.

    Source: P. Wichura, Algorithm AS 241, Applied Statistics 37 (1988), PPND16.

    >>> x = normal(100_000, 7)
    >>> round(float(x.mean()), 2), round(float(x.std()), 2)
    (0.0, 1.0)
    """
    u = uniform(count, *parts)
    q = u - 0.5
    r = 0.180625 - q * q
    middle = q * _ratio(_MIDDLE, np.maximum(r, 0.0))
    root = np.sqrt(-log(np.where(q < 0, u, 1.0 - u)))
    tail = np.where(root <= 5.0, _ratio(_TAIL, root - 1.6), _ratio(_FAR, root - 5.0))
    return np.where(np.abs(q) <= 0.425, middle, np.where(q < 0, -tail, tail))


def _ratio(
    coefficients: tuple[tuple[float, ...], tuple[float, ...]], r: NDArray[np.float64]
) -> NDArray[np.float64]:
    top, bottom = np.zeros_like(r), np.zeros_like(r)
    for a, b in zip(*coefficients, strict=True):
        top, bottom = top * r + a, bottom * r + b
    return top / bottom


@known_floats
def init(layer: Any, *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return parameters to start from, float32.

    Linear, convolution: uniform within 1 / sqrt(inputs of a sum); Embedding: normal, its row of
    padding 0; LSTM, GRU: uniform within 1 / sqrt(hidden); norms: weight 1, bias 0. A parameter
    depends on `seed` and its name alone.

    Parameters
    ----------
    layer
        A layer; networks of `from_model` start every matrix normal with deviation 0.02.
    seed
        0 to 2**32 - 1.

    Raises
    ------
    NumsimError
        For something that is no layer, or a seed out of range.

    Source
    ------
    torch.nn's defaults; 0.02: the initializer_range of GPT-2 and its successors.

    Examples
    --------
    >>> {name: p.shape for name, p in init(layers.LSTM(4, 8)).items()}
    {'weight_ih': (32, 4), 'weight_hh': (32, 8), 'bias_ih': (32,), 'bias_hh': (32,)}
    """
    layers.check_layer(layer, "nn.init")
    if not is_integer(seed) or not 0 <= seed < 1 << 32:
        raise NumsimError(f"nn.init: seed is an integer from 0 to 2**32 - 1; got {seed!r}")
    return _start(layer, "", int(seed))


def _start(layer: Any, prefix: str, seed: int) -> dict[str, NDArray[np.float32]]:
    if isinstance(layer, layers.Sequential):
        found: dict[str, NDArray[np.float32]] = {}
        for name, part in layer.layers:
            found |= _start(part, f"{prefix}{name}.", seed)
        return found
    shapes = layers.param_shapes(layer, prefix)
    return {name: _values(layer, name, shape, seed) for name, shape in shapes.items()}


def _values(layer: Any, name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    count = int(np.prod(shape))
    if isinstance(layer, layers.LayerNorm | layers.RMSNorm):
        return np.full(shape, 1.0 if name.endswith("weight") else 0.0, np.float32)
    if isinstance(layer, layers.Embedding):
        table = normal(count, seed, name).astype(np.float32).reshape(shape)
        if layer.padding_idx is not None:
            table[layer.padding_idx] = 0
        return table
    if hasattr(layer, "arch"):
        if len(shape) == 1:
            ones = "norm" in name and name.endswith("weight") and not layer.adds_one
            return np.full(shape, 1.0 if ones else 0.0, np.float32)
        return (0.02 * normal(count, seed, name)).astype(np.float32).reshape(shape)
    if isinstance(layer, layers.LSTM | layers.GRU):
        terms = layer.hidden
    elif isinstance(layer, layers.Linear):
        terms = layer.inputs
    else:
        terms = int(np.prod(layers.param_shapes(layer)["weight"][1:]))
    spread = 1.0 / np.sqrt(np.float64(terms))
    start: NDArray[np.float64] = (2.0 * uniform(count, seed, name) - 1.0) * spread
    return start.astype(np.float32).reshape(shape)
