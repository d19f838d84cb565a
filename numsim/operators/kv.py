"""Caches of keys and values in low precision: prefill and decode, and attention over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import choice
from numsim.convert import decode, encode
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import get_format
from numsim.kernels.elementwise import functions
from numsim.operators.rounded import Values, minus, numbers, over, plus, rounding_to, times
from numsim.quant import quantize

GRANULARITIES = ("per_tensor", "per_head", "per_token", "per_token_head", "per_channel")
RULES = ("last", "kivi")
_BLOCK = 32  # elements of a head that share a scale in ggml's formats
_KEYS = (
    "format",
    "granularity",
    "group",
    "static",
    "zero",
    "scale_format",
    "recipe",
    "tensor_scale",
)


@known_floats
@dataclass(frozen=True)
class Spec:
    """How keys or values are stored.

    Parameters
    ----------
    format
        Element format; with `recipe` None.
    granularity
        What shares a scale: ``per_tensor``; ``per_head``; ``per_token``, over heads and features;
        ``per_token_head``; ``per_channel``: a feature of a head over `group` tokens from the first.
    group
        Tokens of a run under per_channel; features of a run under ``per_token`` with minima.
    static
        Scales are given, not taken from the data.
    zero
        None: symmetric; ``minimum``: unsigned steps above the smallest value of a group (KIVI).
    scale_format
        Of scales and minima, and of every step that makes them and the codes, with minima.
    recipe
        In place of all that: ``q8_0`` or ``q4_0`` (ggml), or a recipe of `numsim.quantize`, its
        blocks along the features of a head.
    tensor_scale
        Given upper scale of a recipe that has one.
    """

    format: str | None = None
    granularity: str = "per_token_head"
    group: int | None = None
    static: bool = False
    zero: str | None = None
    scale_format: str = "float32"
    recipe: str | None = None
    tensor_scale: float | None = None


@known_floats
@dataclass(frozen=True)
class Stored:
    """Quantised tokens of a cache, [heads, tokens, dim].

    Parameters
    ----------
    codes
        One a feature.
    scale
        With the axes that share one at 1; None where a recipe has `scale_codes`.
    scale_codes
        Codes of block scales [heads, tokens, blocks], or None.
    minimum
        What codes count from, shaped as `scale`, or None.
    values
        What the codes mean, float32.
    """

    codes: NDArray[Any]
    scale: NDArray[Any] | None
    scale_codes: NDArray[Any] | None
    minimum: NDArray[Any] | None
    values: Values


def spec_of(given: Spec | Mapping[str, Any] | str | None, name: str) -> Spec | None:
    """Return a Spec from its fields, a recipe's name, or None (unquantised).

    Raises
    ------
    NumsimError
        For an unknown field or word, or fields that contradict each other.
    """
    if given is None or isinstance(given, Spec):
        spec = given
    elif isinstance(given, str):
        spec = Spec(recipe=given)
    else:
        for key in given:
            if key not in _KEYS:
                hint = near_names(str(key), _KEYS)
                raise NumsimError(f"{name}: unknown key {key!r}{hint}; known: {', '.join(_KEYS)}")
        spec = Spec(**given)
    if spec is None:
        return None
    if (spec.format is None) == (spec.recipe is None):
        raise NumsimError(f"{name} names a format or a recipe, not both; got {given!r}")
    choice(f"{name}: granularity", spec.granularity, GRANULARITIES)
    if spec.zero not in (None, "minimum"):
        raise NumsimError(f"{name}: zero is None or 'minimum'; got {spec.zero!r}")
    grouped = spec.granularity == "per_channel" or spec.zero is not None
    if grouped and not (isinstance(spec.group, int) and spec.group >= 1):
        raise NumsimError(
            f"{name}: {spec.granularity} runs have a group of 1 or more; got {spec.group!r}"
        )
    if spec.zero is not None and spec.granularity not in ("per_channel", "per_token"):
        raise NumsimError(
            f"{name}: minima stand per_channel (runs of tokens) or per_token (runs of features); "
            f"got {spec.granularity}"
        )
    return spec


@known_floats
class KVCache:
    """Keys and values of one layer, quantised as they come.

    Parameters
    ----------
    key, value
        `Spec`, its fields as a dict, a recipe's name, or None for float32.
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
        if residual < 0 or (rule == "kivi" and residual == 0):
            raise NumsimError(
                f"residual is 0 tokens or more (kivi: 1 or more, a run of keys); got {residual}"
            )
        self.specs = (spec_of(key, "key"), spec_of(value, "value"))
        self._residual, self._rule = residual, rule
        self._given = None if scale is None else np.asarray(scale, np.float32)
        for spec in self.specs:
            if spec is not None and spec.static and self._given is None:
                raise NumsimError("a static cache needs scale, [heads, 1, 1] or one number")
        if self._given is not None and not (np.isfinite(self._given) & (self._given > 0)).all():
            raise NumsimError("scale: given scales are positive, finite numbers")
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
        if new[0].ndim != 3 or new[0].shape[:2] != new[1].shape[:2] or new[1].ndim != 3:
            raise NumsimError(
                f"append: keys and values are [heads, tokens, dim]; got {new[0].shape} and "
                f"{new[1].shape}"
            )
        for x, name in zip(new, ("keys", "values"), strict=True):
            if not np.isfinite(x).all():
                raise NumsimError(
                    f"append: {name} hold {np.count_nonzero(~np.isfinite(x))} numbers "
                    "that are not finite; they have no code"
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
        if self._rule == "kivi" and which == 0:
            until = count // self._residual * self._residual
        else:
            until = max(count - self._residual, 0)
        done = 0 if before is None else before.codes.shape[1]
        if until <= done:
            return before
        if done:
            _refuse_later(spec, done, ("key", "value")[which])
        part = _stored(tokens[:, done:until], spec, self._given)
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
        query = np.asarray(q, np.float64)
        if query.ndim != 2 or query.shape[0] % k.shape[0] or query.shape[1] != k.shape[2]:
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


def _refuse_later(spec: Spec, done: int, name: str) -> None:
    """Refuse tokens that would change scales of tokens that are quantised."""
    why = ""
    if spec.recipe is not None:
        if spec.recipe.startswith("nvfp4") and spec.tensor_scale is None:
            why = "the tensor scale is taken from all tokens; give tensor_scale"
    elif spec.granularity in ("per_tensor", "per_head") and not spec.static:
        why = f"{spec.granularity} scales are taken from all tokens; make them static"
    elif spec.granularity == "per_channel" and done % (spec.group or 1):
        why = (
            f"a run of {spec.group} tokens is quantised with {done % (spec.group or 1)} of them; "
            "append whole runs, or keep a residual by the rule kivi"
        )
    if why:
        raise NumsimError(f"append: {name}s cannot be decoded token by token: {why}")


def _joined(a: Stored, b: Stored, spec: Spec) -> Stored:
    shared = spec.recipe is None and spec.granularity in ("per_tensor", "per_head")
    fields = []
    for name in ("codes", "scale", "scale_codes", "minimum", "values"):
        one, two = getattr(a, name), getattr(b, name)
        keeps = one is None or (shared and name == "scale")
        fields.append(one if keeps else np.concatenate([one, two], 1))
    return Stored(*fields)


def _stored(x: Values, spec: Spec, given: NDArray[np.float32] | None) -> Stored:
    if spec.recipe in ("q8_0", "q4_0"):
        return _ggml(x, spec.recipe)
    if spec.recipe is not None:
        extra: Any = {} if spec.tensor_scale is None else {"tensor_scale": spec.tensor_scale}
        q = quantize(x, spec.recipe, **extra)
        return Stored(q.codes, None, q.scale_codes, None, np.asarray(q.dequantize(), np.float32))
    return _symmetric(x, spec, given) if spec.zero is None else _from_minimum(x, spec)


def _symmetric(x: Values, spec: Spec, given: NDArray[np.float32] | None) -> Stored:
    """S = amax / max, code = Q(x / s), value = code s, each in float32."""
    f = get_format(spec.format or "")
    if spec.static and given is not None:
        scale = np.broadcast_to(given, (x.shape[0], 1, 1)).astype(np.float32)
        each = scale
    else:
        size = np.abs(x)
        if spec.granularity == "per_channel":
            starts = np.arange(0, x.shape[1], spec.group or 1)
            amax = np.maximum.reduceat(size, starts, axis=1)
        else:
            axes = {"per_tensor": (0, 1, 2), "per_head": (1, 2), "per_token": (0, 2)}
            amax = size.max(axes.get(spec.granularity, (2,)), keepdims=True)
        scale = np.where(amax == 0, np.float32(1), amax / np.float32(f.max))
        each = (
            np.repeat(scale, spec.group or 1, 1)[:, : x.shape[1]]
            if spec.granularity == "per_channel"
            else scale
        )
    codes = encode(x / each, f)
    values = np.asarray(decode(codes, f), np.float32) * each
    return Stored(codes, scale, None, None, values)


def _from_minimum(x: Values, spec: Spec) -> Stored:
    """KIVI: unsigned steps above a group's minimum, every operation rounded to `scale_format`."""
    r, f, group = rounding_to(spec.scale_format), get_format(spec.format or ""), spec.group or 1
    x = r(x)
    axis = 1 if spec.granularity == "per_channel" else 2
    starts = np.arange(0, x.shape[axis], group)
    low, high = (op.reduceat(x, starts, axis=axis) for op in (np.minimum, np.maximum))
    scale = r(over(r(minus(high, low)), float((1 << f.bits) - 1)))
    scale = np.where(scale == 0, np.float32(1), scale)

    def spread(y: Values) -> Values:
        return np.repeat(y, group, axis)[tuple(slice(n) for n in x.shape)]

    steps = r(over(r(minus(x, spread(low))), spread(scale)))
    codes = np.rint(np.clip(steps, 0, (1 << f.bits) - 1)).astype(np.uint8)
    values = r(plus(r(times(codes, spread(scale))), spread(low)))
    narrow = np.float16 if spec.scale_format == "float16" else np.float32
    return Stored(codes, scale.astype(narrow), None, low.astype(narrow), values)


def _ggml(x: Values, recipe: str) -> Stored:
    """Blocks of 32 features with a float16 scale: ggml's q8_0 and q4_0."""
    if x.shape[2] % _BLOCK:
        raise NumsimError(f"{recipe}: features of a head are a multiple of 32; got {x.shape[2]}")
    blocks = x.reshape(*x.shape[:2], -1, _BLOCK)
    at = np.abs(blocks).argmax(-1)[..., None]  # the first of equals
    largest = np.take_along_axis(blocks, at, -1)
    scale = np.abs(largest) / np.float32(127) if recipe == "q8_0" else largest / np.float32(-8)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    steps = blocks * inverse
    d = scale.astype(np.float16)
    if recipe == "q8_0":
        codes = np.copysign(np.floor(np.abs(steps) + np.float32(0.5)), steps).astype(np.int8)
        values = codes.astype(np.float32) * d.astype(np.float32)
    else:
        codes = np.minimum(np.trunc(steps + np.float32(8.5)), 15).astype(np.uint8)
        values = (codes.astype(np.float32) - 8) * d.astype(np.float32)
    return Stored(
        codes.reshape(x.shape), d[..., 0], None, None, values.reshape(x.shape).astype(np.float32)
    )
