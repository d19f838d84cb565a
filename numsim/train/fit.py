"""The training loop: batches, forward, loss, backward, step; watched, checkpointed, resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim import nn
from numsim.errors import NumsimError
from numsim.kernels.philox import random_words
from numsim.quant import QTensor
from numsim.train.checkpoint import read_checkpoint, write_checkpoint
from numsim.train.rules import Recipe
from numsim.train.scaling import LossScale
from numsim.version import __version__

if TYPE_CHECKING:
    import pandas as pd

Params = dict[str, Any]
LOSSES = ("mse", "cross_entropy", "bce_with_logits")
DECAYS = (None, "linear")


@dataclass(frozen=True, eq=False)
class Fit:
    """What training made.

    Attributes
    ----------
    params
        Parameters after the last step; those of a recipe that stores them are QTensors.
    history
        A row for each step: step, loss, lr, loss_scale, grad_elements, grad_lost (non-zero
        elements of gradients, and those of them that became 0 in the operands of dgrad); and
        test_loss, test_accuracy where unseen data were scored.
    tensors
        A row for each watched tensor: step, name, role, format, amax, saturation_rate,
        underflow_rate, zero_rate, moved_rate.
    test_loss, test_accuracy
        Of unseen data after the last step; None without such data.
    """

    params: Params
    history: pd.DataFrame
    tensors: pd.DataFrame
    test_loss: float | None = None
    test_accuracy: float | None = None


@dataclass
class _Run:
    """What a run computes, step by step: everything that a checkpoint keeps."""

    step: int
    params: Params
    optimizer: Any
    scaling: Any  # of delayed scales, by product and tensor
    loss_scale: Any
    history: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def fit(
    layer: Any,
    params: Params,
    data: tuple[ArrayLike, ArrayLike],
    *,
    loss: str,
    recipe: Recipe | str | None = None,
    optimizer: Any,
    steps: int,
    batch: int,
    seed: int = 0,
    decay: str | None = None,
    loss_scale: LossScale | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    every: int = 20,
    test: tuple[ArrayLike, ArrayLike] | None = None,
    watch: int | None = None,
    progress: Callable[[int, int, float], object] | None = None,
) -> Fit:
    """Train a network.

    Parameters
    ----------
    layer, params
        As `numsim.nn.forward` takes them.
    data
        Inputs [N, ...] and targets [N, ...]. Each epoch is a permutation of the N drawn from
        `seed` and its number alone; a short rest is dropped.
    loss
        ``mse``, ``cross_entropy`` or ``bce_with_logits``, a mean over the batch.
    recipe
        Formats and units of the three products of every GEMM; None: float64.
    optimizer
        `SGD`, `Adam` or `AdamW`.
    steps, batch
        Updates, and examples for each.
    seed
        Of the permutations.
    decay
        ``linear``: step k has ``lr (1 - (k - 1) / steps)``. None: lr stays.
    loss_scale
        A `LossScale`: gradients are computed of the loss times its scale; a step whose gradients
        are not finite is skipped. Without one such a step ends the run.
    checkpoint, resume, every
        Folder of a checkpoint, written after each `every` steps, after the last, and before an
        error is raised; `resume` goes on from it. Every later bit is then the same as without the
        interruption.
    test
        Unseen inputs and targets, scored after each `every` steps and after the last.
    watch
        Watch the tensors of each `watch`-th step (`Fit.tensors`); None: none.
    progress
        Called with (step, steps, loss) after each step.

    Returns
    -------
    Fit

    Raises
    ------
    NumsimError
        For data that do not fit the network, a checkpoint of another run, and the first value
        that is not finite: its step, tensor and operator.
    """
