"""How well a model predicts a text: the loss of every token, to be paired between two recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim import metrics
from numsim.errors import NumsimError, UnsupportedError
from numsim.models.arch import Arch
from numsim.models.checks import check_positions, decoder_ids, first_input
from numsim.models.recipe import Recipe


def token_losses(
    a: Arch,
    run: Callable[..., Any],
    tokens: ArrayLike | None,
    recipe: Recipe | None,
    decoder_tokens: ArrayLike | None,
    features: ArrayLike | None,
    batch: int,
) -> NDArray[np.float64]:
    """Return the loss of each next token; `run` is that of the model: see ``Model.nll``."""
    if not a.head:
        raise UnsupportedError(
            f"nll: the model must predict tokens; this {a.family} has no head of the next token; "
            "use run"
        )
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
        raise NumsimError(f"nll: batch must be an integer from 1 on; got {batch!r}; 8 is usual")
    ids, numbers = first_input(a, {"tokens": tokens, "features": features}, np.float64)
    target = decoder_ids(a, decoder_tokens, len(ids))
    scored = ids if target is None else target
    if scored.shape[1] < 2:
        raise NumsimError(
            f"nll: a row must have 2 tokens or more, the first is not scored; got "
            f"{scored.shape[1]}; begin each row with the begin-of-text token"
        )
    check_positions(a, scored.shape[1])
    losses = np.empty((len(ids), scored.shape[1] - 1))
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        given = None if target is None else target[part]
        read = {"tokens": ids[part]} if numbers is None else {"features": numbers[part]}
        done = run(**read, recipe=recipe, decoder_tokens=given)
        losses[part] = metrics.token_nll(done.logits, scored[part])
    return losses
