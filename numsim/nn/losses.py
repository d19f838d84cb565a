"""Losses and their gradients: float64 inside, the gradient rounded to the prediction's type."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, is_integer, is_word
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.kernels.elementwise.loss_rows import bce_range, cross_entropy_rows
from numsim.kernels.jit import over_range

LOSSES = ("mse", "cross_entropy", "bce_with_logits")


@known_floats
def loss(
    name: str, prediction: ArrayLike, target: ArrayLike, *, ignore_index: int = -100
) -> tuple[float, NDArray[Any]]:
    """Return a mean loss and its gradient.

    Parameters
    ----------
    name
        ``mse``: mean of (prediction - target)**2. ``cross_entropy``: prediction [N, C] are
        logits, target [N] class numbers. ``bce_with_logits``: targets from 0 to 1 of the
        prediction's shape.
    prediction, target
        Arrays.
    ignore_index
        cross_entropy: rows with this target count neither in the sum nor in the mean.

    Returns
    -------
    value, gradient
        The gradient has the shape and type of the prediction.

    Raises
    ------
    NumsimError
        For shapes that do not match, labels out of range, no row that counts, or NaN.

    Source
    ------
    torch's definitions; bce as max(x, 0) - x t + ln(1 + e**-|x|), which cannot overflow.

    Examples
    --------
    >>> loss("bce_with_logits", [0.0, 1000.0], [1.0, 1.0])
    (0.34657359027997264, array([-0.25,  0.  ]))
    """
    if not is_word(name, LOSSES):
        raise NumsimError(
            f"nn.loss: one of {', '.join(LOSSES)}; got {name!r}{near_names(str(name), LOSSES)}"
        )
    x, t = as_array("nn.loss: prediction", prediction), as_array("nn.loss: target", target)
    for what, array in (("prediction", x), ("target", t)):
        if array.dtype.kind not in "biufV":
            raise NumsimError(f"nn.loss: {what} holds numbers; got {array.dtype}; convert it")
    single = x.dtype.kind == "f" and x.dtype.itemsize == 4
    x = x.astype(np.float32 if single else np.float64, copy=False)  # of either byte order
    if not x.size:
        raise NumsimError(f"nn.loss: a mean needs a prediction; got shape {list(x.shape)}")
    if name == "cross_entropy":
        return _cross_entropy(x, t, ignore_index)
    if t.shape != x.shape:
        raise NumsimError(
            f"nn.loss: target has the shape of the prediction, {list(x.shape)}; got {list(t.shape)}"
        )
    _refuse_nan(t)
    if name == "mse":
        with np.errstate(over="ignore", invalid="ignore"):  # Inf says so: the caller looks
            difference = x.astype(np.float64) - t.astype(np.float64)
            gradient = (difference * 2.0 / x.size).astype(x.dtype)
            return float(_total(difference * difference) / x.size), gradient
    if float(t.min()) < 0 or float(t.max()) > 1:
        wrong = np.flatnonzero((t < 0) | (t > 1))
        raise NumsimError(
            f"nn.loss: targets of bce_with_logits lie from 0 to 1; {wrong.size} of {t.size} do "
            f"not, the first is {t.reshape(-1)[wrong[0]]!s}"
        )
    flat, goal = np.ascontiguousarray(x).reshape(-1), t.astype(np.float64).reshape(-1)
    losses, slope = np.empty(x.size), np.empty_like(flat)
    over_range(
        lambda a, b: bce_range(flat, goal, losses, slope, float(x.size), a, b), x.size, grain=4096
    )
    return float(_total(losses) / x.size), slope.reshape(x.shape)


def _cross_entropy(
    x: NDArray[Any], t: NDArray[Any], ignore_index: int
) -> tuple[float, NDArray[Any]]:
    if x.ndim != 2 or t.shape != x.shape[:1] or t.dtype.kind not in "iu":
        raise NumsimError(
            "nn.loss: cross_entropy takes logits [N, C] and class numbers [N]; got "
            f"{list(x.shape)} and {t.dtype} {list(t.shape)}; reshape(-1, C) and reshape(-1)"
        )
    if not is_integer(ignore_index) or abs(int(ignore_index)) >= 1 << 63:
        raise NumsimError(f"nn.loss: ignore_index is an integer; got {ignore_index!r}")
    labels = t.astype(np.int64)
    counted = labels != ignore_index
    wrong = np.flatnonzero(counted & ((labels < 0) | (labels >= x.shape[1])))
    if wrong.size:
        raise NumsimError(
            f"nn.loss: labels lie from 0 to {x.shape[1] - 1}; {wrong.size} of {t.size} do not, the "
            f"first is {labels[wrong[0]]} at index {wrong[0]}"
        )
    if not counted.any():
        raise NumsimError(f"nn.loss: every label is {ignore_index}, so no row counts")
    rows = np.ascontiguousarray(x)
    losses, slope, count = np.empty(len(x)), np.empty_like(rows), float(counted.sum())
    over_range(
        lambda a, b: cross_entropy_rows(rows, labels, ignore_index, losses, slope, count, a, b),
        len(x), grain=max(1, 4096 // x.shape[1]),
    )  # fmt: skip
    return float(_total(losses) / count), slope


def _refuse_nan(t: NDArray[Any]) -> None:
    if t.dtype.kind == "f" and np.isnan(t).any():
        wrong = np.flatnonzero(np.isnan(t))
        raise NumsimError(
            f"nn.loss: targets are numbers; {wrong.size} of {t.size} are NaN, the first at "
            f"{wrong[0]}"
        )


def _total(values: NDArray[np.float64]) -> float:
    """Return a sum in eight interleaved lanes: the same bits on every machine."""
    flat = values.reshape(-1)
    wide = np.zeros(-(-flat.size // 8) * 8)
    wide[: flat.size] = flat
    lanes = np.add.accumulate(wide.reshape(-1, 8), axis=0)[-1]  # row after row
    return float(
        ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6]))
        + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
    )
