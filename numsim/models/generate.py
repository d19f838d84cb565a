"""Greedy continuation of prompts of one or several lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError, UnsupportedError
from numsim.models.arch import Arch, every_rope
from numsim.models.checks import check_positions, first_input, new_tokens, padding_mask
from numsim.models.context import Past
from numsim.models.gemm import Ints
from numsim.models.recipe import Recipe
from numsim.models.rope import check_rope, turns_anew


def greedy(
    a: Arch, run: Callable[..., Any], tokens: ArrayLike | None, recipe: Recipe | None, count: int,
    mask: ArrayLike | None, features: ArrayLike | None = None,
) -> NDArray[np.int64]:  # fmt: skip
    """Continue prompts by `count` tokens; `run` is that of the model: see ``Model.generate``."""
    count = new_tokens(count)
    if not a.head:
        raise UnsupportedError(
            f"generate: the model must predict tokens; this {a.family} has no head of the next "
            "token; use run"
        )
    if a.decoder_layers and a.decoder_start is None:
        raise NumsimError(
            "generate: config.json must name decoder_start_token_id; it does not; add it"
        )
    ids, numbers = first_input(a, {"tokens": tokens, "features": features}, np.float64)
    single = features is not None and np.ndim(features) == len(a.frame)
    single = single or (tokens is not None and np.ndim(tokens) == 1)
    spans = _spans(padding_mask(a, mask, ids.shape), ids.shape, left=not a.decoder_layers)
    longest = 1 if a.decoder_layers else max(stop - start for start, stop in spans)
    if count:  # the last token is not fed back
        check_positions(a, longest + count - 1)
        for rope in every_rope(a):
            check_rope(rope, longest + count - 1)
    added = np.empty((len(ids), count), np.int64)
    for length in sorted({stop - start for start, stop in spans}):
        rows = [i for i, (start, stop) in enumerate(spans) if stop - start == length]
        prompts = np.stack([ids[i, slice(*spans[i])] for i in rows])  # [rows, length]
        read = {"tokens": prompts} if numbers is None else {"features": numbers[rows]}
        added[rows] = _continue(a, run, prompts, read, recipe, count)
    if a.decoder_layers:
        ids = np.full((len(ids), 1), a.decoder_start, np.int64)
    whole = np.concatenate([ids, added], axis=1)
    return whole[0] if single else whole


def _spans(
    keep: NDArray[np.bool_] | None, shape: tuple[int, ...], *, left: bool
) -> list[tuple[int, int]]:
    """Return the first and the end of the kept tokens of each row."""
    if keep is None:
        return [(0, shape[1])] * shape[0]
    spans = []
    for row, kept in enumerate(keep):
        places = np.flatnonzero(kept)
        whole = places.size and places.size == places[-1] - places[0] + 1
        if not whole or (left and not kept[-1]):
            side = "with padding on its left" if left else "without a gap"
            raise NumsimError(
                f"generate: attention_mask must keep one run of tokens a row, {side}; row {row} "
                f"is {kept.astype(int).tolist()[:20]}; pad the prompts anew"
            )
        spans.append((int(places[0]), int(places[-1]) + 1))
    return spans


def _continue(
    a: Arch, run: Callable[..., Any], prompts: Ints, read: Mapping[str, Any],
    recipe: Recipe | None, count: int,
) -> Ints:  # fmt: skip
    """Return the next `count` tokens [B, count] of prompts [B, T]; an encoder reads `read`."""
    ids = np.full((len(prompts), 1), a.decoder_start) if a.decoder_layers else prompts
    first = ids.shape[1]
    whole = any(turns_anew(rope, first, first + count - 1) for rope in every_rope(a))
    past = None if whole else Past()
    fresh = ids
    for _ in range(count):
        if a.decoder_layers:
            done = run(**read, recipe=recipe, decoder_tokens=fresh, past=past)
        else:
            done = run(fresh, recipe, past=past)
        best = np.argmax(done.logits[:, -1], axis=-1)[:, None]  # [B, 1], the lowest among equals
        ids = np.concatenate([ids, best], axis=1)
        fresh = ids if past is None else best
    return ids[:, first:]
