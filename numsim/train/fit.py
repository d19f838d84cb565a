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
from numsim.errors import NotFiniteError, NumsimError, StoppedError
from numsim.files import digest_of
from numsim.float_state import known_floats
from numsim.kernels.convert.philox import random_words
from numsim.nn.draws import stream_key
from numsim.nn.layers import check_layer, describe
from numsim.nn.products import check_rule
from numsim.nn.run import where_not_finite
from numsim.train.checkpoint import read_checkpoint, write_checkpoint
from numsim.train.inputs import aligned, check_data, check_finite, check_more, check_numbers
from numsim.train.rules import Recipe
from numsim.train.scaling import LossScale, all_finite
from numsim.train.score import evaluate
from numsim.train.table import recipe as named_recipe
from numsim.train.watch import TENSOR_COLUMNS, Lost, Watcher, moved
from numsim.version import __version__

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[Any]
Params = dict[str, Any]
_LEAST_SCALE = 2.0**-64  # of the loss: below it gradients overflow for another reason than it
STEP_COLUMNS = (
    "step", "loss", "lr", "loss_scale", "grad_elements", "grad_lost", "test_loss", "test_accuracy",
)  # fmt: skip


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
        A row for each watched tensor: see `numsim.train.watch.TENSOR_COLUMNS`.
    test_loss, test_accuracy
        Of unseen data after the last step; None without such data, or where accuracy has no
        meaning.
    """

    params: Params
    history: pd.DataFrame
    tensors: pd.DataFrame
    test_loss: float | None = None
    test_accuracy: float | None = None

    def __repr__(self) -> str:
        last = self.history["loss"].iloc[-1] if len(self.history) else float("nan")
        score = "" if self.test_accuracy is None else f", test accuracy {self.test_accuracy:.1%}"
        return f"Fit({len(self.history)} steps, loss {last:.4f}{score})"


@dataclass
class _Run:
    """What a run computes, step by step: everything that a checkpoint keeps."""

    params: Params
    optimizer: Any
    loss_scale: Any
    scaling: dict[str, Any]  # delayed scales, by product and tensor
    step: int = 0
    history: list[tuple[float, ...]] = field(default_factory=list)
    tensors: list[tuple[Any, ...]] = field(default_factory=list)


def permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of `count` examples in an epoch, of a seed and the epoch's number alone.

    >>> sorted(permutation(5, 0, 3).tolist())
    [0, 1, 2, 3, 4]
    """
    words = np.empty(count, np.uint64)
    numbers = np.arange(count, dtype=np.uint64)
    random_words(numbers, stream_key(seed, "epoch", epoch), words)
    return np.argsort(words, kind="stable")


@known_floats
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
        ``mse``, ``cross_entropy`` (logits of the last axis against class numbers) or
        ``bce_with_logits``, a mean over the batch.
    recipe
        Formats and units of the three products of every GEMM, or the name of one; None: float64.
        A recipe with storage keeps the parameters in that format.
    optimizer
        `SGD`, `Adam` or `AdamW`.
    steps, batch
        Updates, and examples for each.
    seed
        Of the permutations.
    decay
        ``linear``: step k has ``lr (1 - (k - 1) / steps)``. None: lr stays.
    loss_scale
        A `LossScale`: gradients are those of the loss times its scale, divided by it in the
        update; a step whose gradients are not finite is skipped. Without one such a step ends the
        run.
    checkpoint, resume, every
        Folder of a checkpoint, written after each `every` steps, after the last, and before an
        error is raised; `resume` goes on from it, or begins where there is none. Every later bit
        is the same as without the interruption.
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

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> layer = nn.Linear(1, 1)
    >>> from numsim.train import SGD
    >>> fit(layer, nn.init(layer), (x, 2 * x), loss="mse", recipe="float32", optimizer=SGD(0.1),
    ...     steps=200, batch=4)
    Fit(200 steps, loss 0.0000)
    """
    check_layer(layer, "train.fit")
    if isinstance(recipe, str):
        recipe = named_recipe(recipe)
    if recipe is not None and not isinstance(recipe, Recipe):
        raise NumsimError(
            f"train.fit: recipe is a Recipe of numsim.train, its name, or None; got {recipe!r:.60}"
        )
    inputs, targets = check_data(data, "data", loss)
    unseen = None if test is None else check_data(test, "test", loss)
    check_numbers(len(inputs), steps, batch, every, decay, optimizer, watch)
    check_more(seed, loss_scale, checkpoint, progress, resume)
    if recipe is not None:
        names = nn.product_names(layer)
        if names:
            # A glob without a product is an error before any work.
            recipe.resolve(names, nn.pointwise_names(layer))
            for name in names:
                check_rule(name, recipe.rule(name))
        if recipe.storage is not None:
            if optimizer.storage is not None and optimizer.storage != recipe.storage:
                raise NumsimError(
                    "train.fit: the recipe and the optimizer store parameters in different "
                    "formats; leave one out"
                )
            optimizer = replace(optimizer, storage=recipe.storage)
    kept = optimizer.start(params)
    run = _Run(
        kept, optimizer.init(kept if not optimizer.master else params),
        None if loss_scale is None else loss_scale.init(), {},
    )  # fmt: skip
    folder = None if checkpoint is None else Path(checkpoint)
    facts = _facts(
        layer, recipe, optimizer, loss, steps, batch, seed, decay, loss_scale,
        (inputs, targets, *(() if unseen is None else unseen)),
    )  # fmt: skip
    if folder is not None and resume and (folder / "checkpoint.safetensors").exists():
        _restore(run, folder, facts)

    def score(p: Params, scaling: dict[str, Any]) -> tuple[float, float | None]:
        return evaluate(layer, p, unseen, loss=loss, recipe=recipe, scaling=scaling)  # type: ignore[arg-type]

    try:
        while run.step < steps:
            _step(
                run, layer, inputs, targets, loss, recipe, optimizer, loss_scale, steps, batch,
                seed, decay, watch, score if unseen is not None
                and ((run.step + 1) % every == 0 or run.step + 1 == steps) else None,
            )  # fmt: skip
            if folder is not None and (run.step % every == 0 or run.step == steps):
                _write(run, folder, facts)
            if progress is not None:
                progress(run.step, steps, run.history[-1][1])
    except NumsimError as error:
        if folder is not None and run.step:
            _write(run, folder, facts)
            raise StoppedError(
                f"{error}; the checkpoint of step {run.step} is in {folder}"
            ) from None
        raise StoppedError(str(error)) from None
    return _fit(run)


def _step(
    run: _Run, layer: Any, inputs: Array, targets: Array, loss: str, recipe: Recipe | None,
    optimizer: Any, loss_scale: LossScale | None, steps: int, batch: int, seed: int,
    decay: str | None, watch: int | None,
    score: Callable[[Params, dict[str, Any]], tuple[float, float | None]] | None,
) -> None:  # fmt: skip
    """Do a step. `run` changes at its end, all at once: what fails leaves it as it was."""
    number = run.step + 1
    whole = len(inputs) // batch
    epoch, at = divmod(run.step, whole)
    chosen = permutation(len(inputs), seed, epoch)[at * batch : (at + 1) * batch]
    factor = 1.0 if decay is None else 1.0 - run.step / steps
    here = replace(optimizer, lr=optimizer.lr * factor)
    watching = watch is not None and number % watch == 0
    watcher = Watcher(number, Lost()) if watching else Lost()
    scaling = dict(run.scaling)
    y, tape = nn.forward(
        layer, run.params, inputs[chosen], recipe=recipe, step=number, scaling=scaling,
        watch=None if recipe is None else watcher,
    )  # fmt: skip
    many = isinstance(y, tuple)
    output = y[0] if many else y
    if not np.isfinite(output).all():
        source = where_not_finite(
            layer, run.params, inputs[chosen], recipe=recipe, step=number,
            scaling=dict(run.scaling),
        )  # fmt: skip
        check_finite(output, number, source or "the output", "forward")
    prediction, goal = aligned(output, targets[chosen], loss)
    value, gradient = nn.loss(loss, prediction, goal)
    scale = 1.0 if run.loss_scale is None else float(run.loss_scale.scale)
    with np.errstate(over="ignore"):
        upstream = gradient.reshape(output.shape) * gradient.dtype.type(scale)
    rest = [np.zeros_like(other) for other in y[1:]] if many else []
    finite = True
    try:
        _, grads = nn.backward(tape, upstream, *rest)
        finite = all_finite(grads)
    except NotFiniteError:
        if loss_scale is None or scale < _LEAST_SCALE:
            raise
        finite = False
    if not finite and (loss_scale is None or scale < _LEAST_SCALE):
        # The way back goes from the last parameter to the first.
        name = next(n for n, g in reversed(grads.items()) if not np.isfinite(g).all())
        check_finite(grads[name], number, f"the gradient of {name}", "backward")
    params, optimizer_state, scale_state = run.params, run.optimizer, run.loss_scale
    if finite:
        if scale != 1.0:
            grads = {n: g / g.dtype.type(scale) for n, g in grads.items()}
        params, optimizer_state = here.step(params, grads, optimizer_state)
    if loss_scale is not None:
        scale_state = loss_scale.update(scale_state, finite=finite)
    lost = watcher.lost if isinstance(watcher, Watcher) else watcher
    nan = float("nan")
    tested = (nan, nan) if score is None else score(params, scaling)
    if isinstance(watcher, Watcher):
        run.tensors += watcher.rows + moved(number, run.params, params)
    run.params, run.optimizer, run.loss_scale = params, optimizer_state, scale_state
    run.scaling = scaling
    run.history.append((
        number, value, here.lr, scale, lost.elements, lost.zeroed, tested[0],
        nan if tested[1] is None else tested[1],
    ))  # fmt: skip
    run.step = number


def _facts(
    layer: Any, recipe: Recipe | None, optimizer: Any, loss: str, steps: int, batch: int,
    seed: int, decay: str | None, loss_scale: LossScale | None, data: Sequence[Array],
) -> dict[str, Any]:  # fmt: skip
    """Return what decides the numbers of a run, as text."""
    return {
        "model": digest_of(describe(layer)),
        "recipe": "float64" if recipe is None else recipe.digest(),
        "optimizer": repr(optimizer), "loss": loss, "steps": int(steps), "batch": int(batch),
        "seed": int(seed), "decay": decay, "loss_scale": repr(loss_scale),
        "data": hashlib.sha256(
            b"".join(
                f"{part.dtype.str} {part.shape}".encode() + np.ascontiguousarray(part).tobytes()
                for part in data
            )
        ).hexdigest()[:16],
        "numsim_version": __version__,
    }  # fmt: skip


_HISTORY = len(STEP_COLUMNS)


def _tree(run: _Run) -> dict[str, Any]:
    return {
        "params": run.params, "optimizer": run.optimizer, "loss_scale": run.loss_scale,
    }  # fmt: skip


def _write(run: _Run, folder: Path, facts: dict[str, Any]) -> None:
    history = np.array(run.history, np.float64).reshape(-1, _HISTORY)
    words = [list(row) for row in run.tensors]
    scaling = {key: state._asdict() for key, state in run.scaling.items()}
    write_checkpoint(
        folder, _tree(run), facts, step=run.step, history=history, words=words, scaling=scaling
    )


def _restore(run: _Run, folder: Path, facts: dict[str, Any]) -> None:
    from numsim.train.scaling import DelayedState

    tree, rest = read_checkpoint(folder, _tree(run), facts)
    run.params, run.optimizer, run.loss_scale = (
        tree["params"], tree["optimizer"], tree["loss_scale"],
    )  # fmt: skip
    run.step = int(rest["step"])
    run.history = [tuple(row) for row in rest["history"].tolist()]
    run.tensors = [tuple(row) for row in rest["words"]]
    run.scaling = {
        key: DelayedState(np.float32(s["multiplier"]), s["window"], int(s["length"]))
        for key, s in rest["scaling"].items()
    }


def _fit(run: _Run) -> Fit:
    import pandas as pd

    history = pd.DataFrame(run.history, columns=list(STEP_COLUMNS))
    for name in ("step", "grad_elements", "grad_lost"):
        history[name] = history[name].astype(np.int64)
    tensors = pd.DataFrame(run.tensors, columns=list(TENSOR_COLUMNS))
    last = history.iloc[-1] if len(history) else None
    tested = last is not None and not np.isnan(last["test_loss"])
    accuracy = float(last["test_accuracy"]) if tested and last is not None else float("nan")
    return Fit(
        run.params, history, tensors,
        float(last["test_loss"]) if tested and last is not None else None,
        None if np.isnan(accuracy) else accuracy,
    )  # fmt: skip
