"""What training takes: inputs, targets and numbers, checked before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.arguments import as_array, check_truths, is_integer, is_word
from numsim.errors import NumsimError
from numsim.nn.losses import LOSSES
from numsim.train.optimizers import SGD, Adam
from numsim.train.scaling import LossScale

DECAYS = (None, "linear")


Array = NDArray[Any]


def check_finite(x: Array, step: int, tensor: str, operator: str) -> None:
    """Raise NotFiniteError for a value that is not: the step, the tensor, the operator."""
    bad = int((~np.isfinite(x)).sum())
    if bad:
        first = np.unravel_index(int(np.argmax(~np.isfinite(x))), x.shape)
        of = "" if operator == "backward" else " of the network's output"
        raise NumsimError(
            f"step {step}, {tensor}, {operator}: values are finite; {bad} of {x.size}{of} are not, "
            f"the first at index {tuple(int(i) for i in first)}; a lower lr, or a loss_scale, may "
            "help"
        )


def aligned(y: Array, target: Array, loss: str) -> tuple[Array, Array]:
    """Return prediction and target as `nn.loss` takes them."""
    if loss == "cross_entropy":
        return y.reshape(-1, y.shape[-1]), target.reshape(-1)
    if y.shape != target.shape and y.shape[-1:] == (1,) and y.shape[:-1] == target.shape:
        return y.reshape(target.shape), target
    return y, target


def check_data(pair: Any, what: str, loss: str) -> tuple[Array, Array]:
    """Return inputs and targets as arrays, or raise for what cannot be trained on."""
    if not is_word(loss, LOSSES):
        raise NumsimError(f"train: loss is one of {', '.join(LOSSES)}; got {loss!r:.60}")
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise NumsimError(f"train.fit: {what} is a pair (inputs, targets); got {pair!r:.60}")
    inputs, targets = (as_array(f"train.fit: {what}", part) for part in pair)
    for name, array in (("inputs", inputs), ("targets", targets)):
        if array.dtype.kind not in "iuf" or array.ndim < 1:
            raise NumsimError(
                f"train.fit: {name} of {what} are a rectangular array of numbers; got "
                f"{array.dtype} {list(array.shape)}; pad sequences to one length"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))
            raise NumsimError(
                f"train.fit: {name} of {what} are finite; {len(bad)} of {array.size} are not, the "
                f"first at index {tuple(int(i) for i in bad[0])}"
            )
    if len(inputs) != len(targets) or not len(inputs):
        raise NumsimError(
            f"train.fit: {what} has a target for each input; got {len(inputs)} and {len(targets)}"
        )
    if loss != "cross_entropy":
        targets = targets.astype(np.float64)
    return inputs, targets


def check_numbers(
    count: int, steps: int, batch: int, every: int, decay: str | None, optimizer: Any,
    watch: int | None,
) -> None:  # fmt: skip
    """Raise NumsimError for numbers with which no step can be done."""
    for name, value in (("steps", steps), ("batch", batch), ("every", every)):
        if not is_integer(value) or not 1 <= value < 1 << 40:
            raise NumsimError(f"train.fit: {name} is an integer from 1; got {value!r}")
    if watch is not None and (not is_integer(watch) or watch < 1):
        raise NumsimError(f"train.fit: watch is an integer from 1 or None; got {watch!r}")
    if batch > count:
        raise NumsimError(f"train.fit: a batch of {batch} needs so many examples; got {count}")
    if not is_word(decay, DECAYS):
        raise NumsimError(f"train.fit: decay is linear or None; got {decay!r}")
    if not isinstance(optimizer, SGD | Adam):
        raise NumsimError(
            f"train.fit: optimizer is SGD, Adam or AdamW; got {type(optimizer).__name__}"
        )


def check_more(
    seed: Any, loss_scale: Any, checkpoint: Any, progress: Any, resume: Any
) -> None:  # fmt: skip
    """Raise NumsimError for other arguments of `fit` that are none."""
    check_truths("train.fit", resume=resume)
    if not is_integer(seed) or not 0 <= seed < 1 << 64:
        raise NumsimError(f"train.fit: seed is an integer from 0 to 2**64 - 1; got {seed!r:.60}")
    if loss_scale is not None and not isinstance(loss_scale, LossScale):
        raise NumsimError(f"train.fit: loss_scale is a LossScale or None; got {loss_scale!r:.60}")
    folder = isinstance(checkpoint, str | Path) and "\0" not in str(checkpoint)
    if checkpoint is not None and not folder:
        raise NumsimError(f"train.fit: checkpoint is a folder or None; got {checkpoint!r:.60}")
    if progress is not None and not callable(progress):
        raise NumsimError(f"train.fit: progress is a function or None; got {progress!r:.60}")
