"""Loss and accuracy of a network on data that it is not trained on."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from numsim import nn
from numsim.arguments import is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.train.inputs import aligned, check_data
from numsim.train.rules import Recipe
from numsim.train.table import recipe as named_recipe

Params = dict[str, Any]


@known_floats
def evaluate(
    layer: Any, params: Params, data: tuple[ArrayLike, ArrayLike], *, loss: str,
    recipe: Recipe | str | None = None, batch: int = 256, scaling: dict[str, Any] | None = None,
) -> tuple[float, float | None]:  # fmt: skip
    """Return the mean loss and the accuracy on data, under the recipe.

    Parameters
    ----------
    layer, params, data, loss, recipe
        As `fit`.
    batch
        Examples that run together: scales of whole tensors cover them.
    scaling
        Delayed scales of training, which each batch begins with and leaves as they are.

    Returns
    -------
    loss, accuracy
        Accuracy of ``bce_with_logits`` at 0, of ``cross_entropy`` of the largest logit, of ``mse``
        at one half where every target is 0 or 1; None for other targets of ``mse``.

    Raises
    ------
    NumsimError
        As `fit`.
    """
    if isinstance(recipe, str):
        recipe = named_recipe(recipe)
    if not is_integer(batch) or batch < 1:
        raise NumsimError(f"train.evaluate: batch is an integer from 1; got {batch!r:.60}")
    inputs, targets = check_data(data, "data", loss)
    scored = loss != "mse" or bool(((targets == 0) | (targets == 1)).all())
    total, right, count, rows = 0.0, 0, 0, 0
    for start in range(0, len(inputs), batch):
        part = slice(start, start + batch)
        y, _ = nn.forward(layer, params, inputs[part], recipe=recipe, scaling=dict(scaling or {}))
        y = y[0] if isinstance(y, tuple) else y
        prediction, goal = aligned(y, targets[part], loss)
        last = start + batch >= len(inputs)
        if loss == "cross_entropy" and (goal == -100).all() and not (last and not count):
            continue  # no row of this batch counts, but some of another
        value, _ = nn.loss(loss, prediction, goal)
        weight = len(goal) if loss == "cross_entropy" else goal.size
        if loss == "cross_entropy":
            counted = goal != -100
            weight = int(counted.sum())
            right += int((prediction.argmax(axis=-1) == goal)[counted].sum())
        elif loss == "bce_with_logits":
            right += int(((prediction > 0) == (goal > 0.5)).sum())
        elif scored:
            right += int(((prediction > 0.5) == (goal > 0.5)).sum())
        total, count, rows = total + value * weight, count + weight, rows + weight
    return total / max(count, 1), right / max(rows, 1) if scored else None
