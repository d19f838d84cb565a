"""Training without floats but in the loss: INT8 codes with block exponents, INT32 sums, shifts.

A tensor is INT8 codes and one exponent. A product is the unit's INT32 sum of codes; `to_int8`
shifts it back into a byte and the shift joins the exponent. relu and sums of embeddings are integer
operations. A weight takes `integer_update` of the INT32 sum of its gradient, rounded at random, and
keeps its exponent for ever. Floats are only: the first weights before they become codes, the loss,
its gradient (which becomes codes with an exponent at once), and scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim import nn
from numsim.arguments import check_truths, is_integer
from numsim.convert import encode
from numsim.errors import NumsimError, UnsupportedError
from numsim.float_state import known_floats
from numsim.kernels.convert.philox import random_words
from numsim.nn.draws import stream_key
from numsim.nn.layers import Activation, Embedding, Linear, Mean, Sequential
from numsim.quant import QTensor
from numsim.targets import Target, get_target, matmul
from numsim.train.fit import Fit, permutation
from numsim.train.inputs import aligned, check_data
from numsim.train.integer import LIMIT, integer_update, to_int8

Codes = NDArray[np.int8]
FIXED_POINT = -4  # exponent of q3.4
# Bits of the largest change of a weight, over equal parts of a run.
BITS, FIXED_POINT_BITS = (6, 4, 2), (3, 2, 1)


@dataclass(frozen=True)
class IntegerTensor:
    """INT8 codes of any shape, each worth ``2**exponent``.

    Examples
    --------
    >>> IntegerTensor.of(np.array([0.5, -1.0])).codes
    array([ 32, -64], dtype=int8)
    """

    codes: Codes
    exponent: int

    @classmethod
    def of(cls, values: ArrayLike, *, exponent: int | None = None) -> IntegerTensor:
        """Return float values as codes: amax gets seven bits, or the exponent is given.

        Source: the first weights and the gradient of the loss come this way, nothing else.
        """
        x = np.asarray(values, np.float64)
        if not np.isfinite(x).all():
            bad = int((~np.isfinite(x)).sum())
            raise NumsimError(f"IntegerTensor.of: values are finite; {bad} of {x.size} are not")
        amax = float(np.abs(x).max(initial=0.0))
        if exponent is None:
            exponent = int(np.frexp(amax)[1]) - 7 if amax > 0 else 0
        return cls(
            np.clip(np.rint(np.ldexp(x, -exponent)), -LIMIT, LIMIT).astype(np.int8), exponent
        )

    def values(self) -> NDArray[np.float64]:
        """Return what the codes are worth."""
        return np.ldexp(self.codes.astype(np.float64), self.exponent)


@known_floats
def integer_fit(
    layer: Sequential,
    data: tuple[ArrayLike, ArrayLike],
    *,
    loss: str = "bce_with_logits",
    steps: int,
    batch: int,
    seed: int = 0,
    target: str | Target = "ideal.int",
    bits: tuple[int, ...] | None = None,
    fixed_point: bool = False,
    test: tuple[ArrayLike, ArrayLike] | None = None,
) -> Fit:
    """Train a network with integers only.

    Parameters
    ----------
    layer
        A Sequential of Linear (without bias), relu, and Embedding followed by Mean.
    data
        Inputs [N, ...] of integers (ids, or counts within +-127) and targets [N].
    loss
        ``bce_with_logits`` or ``cross_entropy``: its value and gradient are float64.
    steps, batch, seed
        As in `fit`.
    target
        The unit of the products: one that multiplies int8 and returns int32.
    bits
        Of the largest change of a weight in a step, a number for each equal part of the run: the
        learning rate of this scheme. None: 6, 4, 2; in q3.4 3, 2, 1.
    fixed_point
        True: weights and activations are q3.4, whose exponent is fixed; gradients keep a block
        exponent.
    test
        Unseen data, scored after the last step.

    Returns
    -------
    Fit
        Its `params` are QTensors of the codes, scale ``2**exponent``.

    Raises
    ------
    NumsimError
        For data or numbers that do not fit.
    UnsupportedError
        For a layer without an integer form.

    Source
    ------
    Wang et al., NITI, 2020, with the rounding rules of `to_int8` and `integer_update`.

    Examples
    --------
    >>> x = np.array([[1, 0], [0, 1]] * 8)
    >>> net = Sequential(head=Linear(2, 1, bias=False))
    >>> integer_fit(net, (x, [0, 1] * 8), steps=20, batch=16, test=(x, [0, 1] * 8)).test_accuracy
    1.0
    """
    import pandas as pd

    parts = _parts(layer)
    check_truths("integer_fit", fixed_point=fixed_point)
    unit = get_target(target)
    inputs, targets = check_data(data, "data", loss)
    if loss == "mse":
        raise NumsimError(f"integer_fit: loss is bce_with_logits or cross_entropy; got {loss!r}")
    for name, number in (("steps", steps), ("batch", batch)):
        if not is_integer(number) or not 1 <= number < 1 << 40:
            raise NumsimError(f"integer_fit: {name} is an integer from 1; got {number!r}")
    if batch > len(inputs):
        raise NumsimError(f"integer_fit: a batch of {batch} needs so many examples")
    bits = (FIXED_POINT_BITS if fixed_point else BITS) if bits is None else bits
    several = isinstance(bits, tuple | list) and len(bits) > 0
    if not several or not all(is_integer(b) and 1 <= b <= 7 for b in bits):
        raise NumsimError(f"integer_fit: bits is a tuple of integers from 1 to 7; got {bits!r:.60}")
    start = nn.init(layer, seed=seed)
    weights = {
        name: _fixed_start(w, seed, name) if fixed_point else IntegerTensor.of(w)
        for name, w in start.items()
    }
    history = []
    whole = len(inputs) // batch
    for step in range(1, steps + 1):
        epoch, at = divmod(step - 1, whole)
        chosen = permutation(len(inputs), seed, epoch)[at * batch : (at + 1) * batch]
        outputs, tape = _forward(parts, weights, inputs[chosen], unit, fixed_point)
        prediction, goal = aligned(outputs.values(), targets[chosen], loss)
        value, gradient = nn.loss(loss, prediction, goal)
        width = bits[min((step - 1) * len(bits) // steps, len(bits) - 1)]
        g = IntegerTensor.of(gradient.reshape(outputs.codes.shape))
        weights = _backward(parts, weights, tape, g, unit, width, seed, step)
        history.append((step, value))
    frame = pd.DataFrame(history, columns=["step", "loss"])
    params = {
        name: QTensor.from_codes(w.codes, "int8", scale=np.float32(2.0**w.exponent))
        for name, w in weights.items()
    }
    score: tuple[float | None, float | None] = (None, None)
    if test is not None:
        unseen, labels = check_data(test, "test", loss)
        outputs, _ = _forward(parts, weights, unseen, unit, fixed_point)
        prediction, goal = aligned(outputs.values(), labels, loss)
        found = prediction.argmax(-1) if loss == "cross_entropy" else prediction > 0
        right = float(np.mean(found == (goal if loss == "cross_entropy" else goal > 0.5)))
        score = (nn.loss(loss, prediction, goal)[0], right)
    return Fit(params, frame, pd.DataFrame(), *score)


def _fixed_start(w: NDArray[Any], seed: int, name: str) -> IntegerTensor:
    """Return first weights as q3.4, rounded at random: most are smaller than half a step."""
    codes = encode(
        np.clip(w, -7.9, 7.9), "q3.4", rounding="sr", seed=stream_key(seed, name, "start")
    )
    return IntegerTensor(codes.astype(np.int8), FIXED_POINT)


def _parts(layer: Any) -> tuple[tuple[str, Any], ...]:
    if not isinstance(layer, Sequential):
        raise NumsimError(f"integer_fit: a Sequential; got {type(layer).__name__}")
    for at, (name, part) in enumerate(layer.layers):
        if at and isinstance(part, Embedding):
            raise NumsimError(f"integer_fit: an Embedding is the first layer; {name} comes later")
        linear = isinstance(part, Linear) and not part.bias
        relu = isinstance(part, Activation) and part.name == "relu"
        if not (linear or relu or isinstance(part, Embedding | Mean)):
            raise UnsupportedError(
                f"integer_fit: {name} is {part!r}; Linear(bias=False), relu, Embedding and Mean "
                "have an integer form"
            )
    return layer.layers


def _product(a: Codes, b: Codes, unit: Target) -> NDArray[np.int64]:
    """Return the unit's INT32 sums of codes a [M, K] and b [K, N]."""
    left, right = QTensor.from_codes(a, "int8"), QTensor.from_codes(b, "int8")
    sums = matmul(left, right, target=unit)
    if sums.dtype.kind != "i":
        raise UnsupportedError(
            f"integer_fit: the unit returns integers; {unit.name} returns {sums.dtype}"
        )
    return sums.astype(np.int64)


def _narrowed(acc: NDArray[np.int64], exponent: int, fixed: bool) -> IntegerTensor:
    """Return sums as codes: under a block exponent, or q3.4's."""
    if not fixed:
        codes, shift = to_int8(acc)
        return IntegerTensor(codes, exponent + shift)
    shift = FIXED_POINT - exponent
    if shift <= 0:
        return IntegerTensor(np.clip(acc << -shift, -LIMIT, LIMIT).astype(np.int8), FIXED_POINT)
    half = np.int64(1) << np.int64(shift - 1)
    whole, rest = np.abs(acc) >> shift, np.abs(acc) & ((half << 1) - 1)
    up = (rest > half) | ((rest == half) & (whole & 1 == 1))
    codes = np.clip(np.sign(acc) * (whole + up), -LIMIT, LIMIT).astype(np.int8)
    return IntegerTensor(codes, FIXED_POINT)


def _forward(
    parts: tuple[tuple[str, Any], ...], weights: dict[str, IntegerTensor], inputs: NDArray[Any],
    unit: Target, fixed: bool,
) -> tuple[IntegerTensor, list[Any]]:  # fmt: skip
    """Return the outputs and what each layer keeps."""
    tape: list[Any] = []
    whole = bool((inputs == np.rint(inputs)).all())
    if isinstance(parts[0][1], Embedding):
        if not whole:
            raise NumsimError("integer_fit: ids are integers; got numbers between them")
        x: Any = inputs.astype(np.int64)
    else:
        if not whole or inputs.max(initial=0) > LIMIT or inputs.min(initial=0) < -LIMIT:
            raise NumsimError(f"integer_fit: inputs are integers within +-{LIMIT}")
        x = IntegerTensor(inputs.astype(np.int8), 0)
    for at, (name, part) in enumerate(parts):
        tape.append(x)
        if isinstance(part, Embedding):
            w = weights[f"{name}.weight"]
            if x.min(initial=0) < 0 or x.max(initial=0) >= part.rows:
                raise NumsimError(f"integer_fit: ids lie from 0 to {part.rows - 1}")
            x = IntegerTensor(w.codes[x], w.exponent)
        elif isinstance(part, Mean):
            if x.codes.ndim != 3 or not x.codes.shape[1]:
                raise NumsimError(
                    f"integer_fit: {name} is the mean over steps of [B, T, H], T from 1; got "
                    f"{list(x.codes.shape)}"
                )
            sums = x.codes.astype(np.int64).sum(axis=1)
            log = (x.codes.shape[1] - 1).bit_length()
            x = _narrowed(sums, x.exponent - log, fixed)  # by the next power of two
        elif isinstance(part, Linear):
            w = weights[f"{name}.weight"]
            acc = _product(x.codes, w.codes.T, unit)
            last = at == len(parts) - 1  # the loss reads the sums themselves
            exponent = x.exponent + w.exponent
            x = _Sums(acc, exponent) if last else _narrowed(acc, exponent, fixed)
        else:
            x = IntegerTensor(np.maximum(x.codes, 0), x.exponent)
    return x, tape


@dataclass(frozen=True)
class _Sums:
    """The sums that the loss reads."""

    codes: NDArray[np.int64]
    exponent: int

    def values(self) -> NDArray[np.float64]:
        return np.ldexp(self.codes.astype(np.float64), self.exponent)


def _backward(
    parts: tuple[tuple[str, Any], ...], weights: dict[str, IntegerTensor], tape: list[Any],
    g: IntegerTensor, unit: Target, bits: int, seed: int, step: int,
) -> dict[str, IntegerTensor]:  # fmt: skip
    """Return the weights after a step against the codes of the gradient."""
    new = dict(weights)
    for at in reversed(range(len(parts))):
        name, part = parts[at]
        x = tape[at]
        if isinstance(part, Linear):
            w = weights[f"{name}.weight"]
            acc = _product(np.ascontiguousarray(g.codes.T), x.codes, unit)
            new[f"{name}.weight"] = _updated(w, acc, bits, seed, name, step)
            if at:
                dx = _product(g.codes, w.codes, unit)
                codes, shift = to_int8(dx)
                g = IntegerTensor(codes, g.exponent + w.exponent + shift)
        elif isinstance(part, Activation):
            g = IntegerTensor(np.where(x.codes > 0, g.codes, np.int8(0)), g.exponent)
        elif isinstance(part, Mean):
            steps = x.codes.shape[1]
            wide = np.broadcast_to(g.codes[:, None], (len(g.codes), steps, g.codes.shape[-1]))
            g = IntegerTensor(np.ascontiguousarray(wide), g.exponent)
        else:
            w = weights[f"{name}.weight"]
            acc = np.zeros(w.codes.shape, np.int64)
            np.add.at(acc, x.reshape(-1), g.codes.reshape(-1, w.codes.shape[1]).astype(np.int64))
            if part.padding_idx is not None:
                acc[part.padding_idx] = 0
            new[f"{name}.weight"] = _updated(w, acc, bits, seed, name, step)
    return new


def _updated(
    w: IntegerTensor, acc: NDArray[np.int64], bits: int, seed: int, name: str, step: int
) -> IntegerTensor:
    """Return a weight after its update; its random integers are those of (seed, name, step)."""
    words = np.empty(acc.size, np.uint64)
    random_words(
        np.arange(acc.size, dtype=np.uint64), stream_key(seed, name, "update", step), words
    )
    random = (words >> np.uint64(33)).astype(np.int64).reshape(acc.shape)
    codes, _ = integer_update(w.codes, acc, bits=bits, random=random)
    return IntegerTensor(codes, w.exponent)
