"""Caches of keys and values in low precision: prefill and decode, and attention over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import choice, real_array
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.elementwise import functions
from numsim.operators.kv_spec import Spec, Stored, needs_all_tokens, quantised, spec_of
from numsim.operators.rounded import Values, numbers

RULES = ("last", "kivi")


@known_floats
class KVCache:
    """Keys and values of one layer, quantised as they come.

    Parameters
    ----------
    key, value
        `Spec`, its fields as a dict, the name of a recipe or format, or None for float32.
    residual
        Newest tokens that stay unquantised.
    rule
        ``last``: all but the newest `residual` tokens are quantised; ``kivi``: keys in whole runs
        of `residual` tokens, values but the newest `residual`.
    scale
        Given scales [heads, 1, 1] of a static spec, or one number.

    Raises
    ------
    NumsimError
        For unknown fields, or a static spec without scales.

    Notes
    -----
    Prefill (one `append` of all tokens) and decode (one token at a time) end in the same state
    where no scale depends on later tokens. Where it does (per_tensor and per_head from the data, a
    run of per_channel that is not full, NVFP4's tensor scale from the data) a second `append` is
    refused. In KIVI's own decode the step that completes a run of keys still attends to them
    unquantised; here they are quantised by then.

    **Source**: Liu et al., arXiv:2402.02750, commit 876b4d2 (KIVI); ggml (q8_0, q4_0); the
    definition for the rest.

    Examples
    --------
    >>> import numpy as np
    >>> cache = KVCache(key={"format": "int8"}, value={"format": "int8"})
    >>> k = np.float32([[[1.0, 0.5], [2.0, -1.0]]])
    >>> cache.append(k, k)
    >>> cache.key.codes.tolist(), cache.key.scale.ravel().tolist()
    ([[[127, 64], [127, -64]]], [0.007874015718698502, 0.015748031437397003])
    >>> cache.attention(np.float32([[1.0, 0.0]])).shape
    (1, 2)
    """

    def __init__(
        self,
        key: Spec | Mapping[str, Any] | str | None = None,
        value: Spec | Mapping[str, Any] | str | None = None,
        *,
        residual: int = 0,
        rule: str = "last",
        scale: ArrayLike | None = None,
    ) -> None:
        choice("rule", rule, RULES)
        whole = isinstance(residual, int | np.integer) and not isinstance(residual, bool)
        if not whole or residual < (rule == "kivi"):
            raise NumsimError(
                "residual is 0 tokens or more (kivi: 1 or more, a run of keys); got "
                f"{residual!r:.40}"
            )
        self.specs = (spec_of(key, "key"), spec_of(value, "value"))
        self._residual, self._rule = int(residual), rule
        static = any(spec is not None and spec.static for spec in self.specs)
        self._given = None if scale is None else _given_scales(scale)
        if static != (self._given is not None):
            raise NumsimError(
                "a static cache needs scale, [heads, 1, 1] or one number, and others take none; "
                f"got scale {scale!r:.40} {'with' if static else 'without'} a static spec"
            )
        self._tokens: list[Values] = []  # all keys, all values, unquantised
        self._stored: list[Stored | None] = [None, None]

    @property
    def key(self) -> Stored:
        """The quantised keys."""
        return self._part(0)

    @property
    def value(self) -> Stored:
        """The quantised values."""
        return self._part(1)

    def _part(self, which: int) -> Stored:
        stored = self._stored[which]
        if stored is None:
            raise NumsimError("nothing in this cache is quantised yet")
        return stored

    @known_floats
    def append(self, k: ArrayLike, v: ArrayLike) -> None:
        """Add tokens, [heads, tokens, dim] each.

        Raises
        ------
        NumsimError
            For shapes that do not fit, values that are not finite, or scales that would depend on
            tokens which come after others were quantised.
        """
        new = [numbers(x).astype(np.float32) for x in (k, v)]
        shapes = [x.shape for x in new]
        if shapes[0][:2] != shapes[1][:2] or any(len(s) != 3 or 0 in s for s in shapes):
            raise NumsimError(
                "append: keys and values are [heads, tokens, dim], of one number or more; got "
                f"{shapes[0]} and {shapes[1]}"
            )
        for x, name in zip(new, ("keys", "values"), strict=True):
            if not np.isfinite(x).all():
                raise NumsimError(
                    f"append: {name} hold {np.count_nonzero(~np.isfinite(x))} numbers "
                    "that are not finite; they have no code"
                )
        if self._given is not None and self._given.size not in (1, new[0].shape[0]):
            raise NumsimError(
                f"append: scale is one number, or one of each head; got {self._given.size} beside "
                f"{new[0].shape[0]} heads"
            )
        if self._tokens:
            old = [t.shape[::2] for t in self._tokens]
            if old != [x.shape[::2] for x in new]:
                raise NumsimError(f"append: heads and dim are {old}; got {[x.shape for x in new]}")
            tokens = [np.concatenate(p, 1) for p in zip(self._tokens, new, strict=True)]
        else:
            tokens = new
        stored = [self._grown(which, tokens[which]) for which in (0, 1)]
        self._tokens, self._stored = tokens, stored  # only when both went well

    def _grown(self, which: int, tokens: Values) -> Stored | None:
        spec, before = self.specs[which], self._stored[which]
        if spec is None:
            return None
        count = tokens.shape[1]
        until = narrow_tokens(count, self._residual, self._rule, keys=which == 0)
        done = 0 if before is None else before.codes.shape[1]
        if until <= done:
            return before
        if done:
            _refuse_later(spec, done, ("key", "value")[which])
        part = quantised(tokens[:, done:until], spec, self._given)
        return part if before is None else _joined(before, part, spec)

    @known_floats
    def attention(self, q: ArrayLike) -> NDArray[np.float64]:
        """Return float64 attention of one query a head over the cache as it is stored.

        Parameters
        ----------
        q
            [query heads, dim]; query heads are a multiple of the cache's heads, which they share.

        Returns
        -------
        numpy.ndarray
            [query heads, dim of the values].

        Raises
        ------
        NumsimError
            For an empty cache or heads that do not share.
        """
        if not self._tokens:
            raise NumsimError("attention: the cache is empty; append tokens first")
        k, v = self.seen()
        query = real_array("attention: q", q, np.float64)
        if (
            query.ndim != 2
            or not query.size
            or query.shape[0] % k.shape[0]
            or query.shape[1] != k.shape[2]
        ):
            raise NumsimError(
                f"attention: q is [n * {k.shape[0]} heads, {k.shape[2]}]; got {query.shape}"
            )
        share = query.shape[0] // k.shape[0]
        grouped = query.reshape(k.shape[0], share, -1)
        scores = np.einsum("hgd,htd->hgt", grouped, k)
        p = functions.softmax(scores, scale=1 / float(np.sqrt(k.shape[2])))
        out: NDArray[np.float64] = np.einsum("hgt,htd->hgd", p, v).reshape(query.shape[0], -1)
        return out

    def seen(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return keys and values [heads, tokens, dim] as attention reads them."""
        return self._seen(0), self._seen(1)

    def _seen(self, which: int) -> NDArray[np.float64]:
        tokens, stored = self._tokens[which].astype(np.float64), self._stored[which]
        if stored is not None:
            tokens[:, : stored.values.shape[1]] = stored.values
        return tokens


def _given_scales(scale: ArrayLike) -> NDArray[np.float32]:
    """Return given scales as one number or [heads, 1, 1]."""
    try:
        with np.errstate(over="ignore"):
            given = np.asarray(scale, np.float32)
    except (TypeError, ValueError):
        raise NumsimError(f"scale: given scales are numbers; got {scale!r:.60}") from None
    if given.size != 1 and given.shape != (given.size, 1, 1):
        raise NumsimError(f"scale: one number, or [heads, 1, 1]; got shape {given.shape}")
    if given.size == 0 or not (np.isfinite(given) & (given > 0)).all():
        raise NumsimError("scale: given scales are positive, finite numbers of float32")
    return given


def narrow_tokens(count: int, residual: int, rule: str, *, keys: bool) -> int:
    """Return how many of `count` tokens are quantised, from the first.

    >>> narrow_tokens(70, 32, "kivi", keys=True), narrow_tokens(70, 32, "kivi", keys=False)
    (64, 38)
    """
    if keys and rule == "kivi":
        return count // residual * residual
    return max(count - residual, 0)


def _refuse_later(spec: Spec, done: int, name: str) -> None:
    """Refuse tokens that would change scales of tokens that are quantised."""
    why = needs_all_tokens(spec)
    runs = spec.granularity == "per_channel" and not spec.static
    if not why and runs and done % (spec.group or 1):
        why = (
            f"a run of {spec.group} tokens is quantised with {done % (spec.group or 1)} of them; "
            "append whole runs, or keep a residual by the rule kivi"
        )
    if why:
        raise NumsimError(f"append: {name}s cannot be decoded token by token: {why}")


def _joined(a: Stored, b: Stored, spec: Spec) -> Stored:
    shared = spec.static or spec.granularity in ("per_tensor", "per_head")
    fields = []
    for name in ("codes", "scale", "scale_codes", "minimum", "values"):
        one, two = getattr(a, name), getattr(b, name)
        keeps = one is None or (shared and name == "scale")
        fields.append(one if keeps else np.concatenate([one, two], 1))
    return Stored(*fields)
