"""What a recipe says of a cache of keys and values: frozen data, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from numpy.typing import NDArray

from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.operators.kv import KVCache, narrow_tokens
from numsim.operators.kv_spec import Spec, spec_words, stored_bits
from numsim.operators.rounded import Floats


@known_floats
@dataclass(frozen=True, slots=True)
class KV:
    """How a run keeps keys and values of self-attention.

    Parameters
    ----------
    key, value
        A `numsim.operators.Spec`, its fields as a dict, the name of a recipe or format, or None:
        float32.
    residual, rule
        As in `numsim.operators.KVCache`.

    Raises
    ------
    NumsimError
        As KVCache.

    Notes
    -----
    Within one run every query reads the cache as it is at the end of that run. With a residual of 0
    and scales of single tokens, prefill and decoding give the same bits; with a residual a token of
    a prefill reads keys that were still unquantised in decoding, and the other way round.

    Examples
    --------
    >>> KV(key={"format": "int8"}, value="q8_0").cache().key
    Traceback (most recent call last):
    numsim.errors.NumsimError: nothing in this cache is quantised yet
    """

    key: Spec | Mapping[str, Any] | str | None = None
    value: Spec | Mapping[str, Any] | str | None = None
    residual: int = 0
    rule: str = "last"

    def __post_init__(self) -> None:
        for given in (self.key, self.value):
            fixed = given.get("static") if isinstance(given, Mapping) else given
            if fixed is True or (isinstance(fixed, Spec) and fixed.static):
                raise NumsimError(
                    "kv: a recipe gives its cache no scales, which a static one needs; leave "
                    "static out, or use numsim.operators.KVCache(scale=)"
                )
        for name, spec in zip(("key", "value"), self.cache().specs, strict=True):
            object.__setattr__(self, name, spec)
        object.__setattr__(self, "residual", int(self.residual))

    def cache(self) -> KVCache:
        """Return an empty cache."""
        return KVCache(self.key, self.value, residual=self.residual, rule=self.rule)

    def __str__(self) -> str:
        both: list[Any] = [self.key, self.value]
        words = "+".join(dict.fromkeys(map(spec_words, both)))
        more = f" {self.rule}" if self.rule != "last" else ""
        return f"{words}{more} residual={self.residual}" if self.residual else words

    def through(self, keys: NDArray[Any], values: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return keys and values [heads, tokens, dim] as attention reads them after one `append`.

        Raises
        ------
        NumsimError
            For shapes that a spec does not take.

        Examples
        --------
        >>> import numpy as np
        >>> x = np.float32([[[1.0, 0.3]]])
        >>> [part.round(4).tolist() for part in KV(key="int4").through(x, x)]
        [[[[1.0, 0.2857]]], [[[1.0, 0.3]]]]
        """
        cache = self.cache()
        cache.append(keys, values)
        return cache.seen()

    def stored_bits(self, name: str, heads: int, tokens: int, dim: int) -> float:
        """Return the bits of [heads, tokens, dim], of ``key`` or ``value``.

        Examples
        --------
        >>> KV(key="int4", residual=16).stored_bits("key", 1, 64, 32) / 64
        376.0
        """
        keys = name == "key"
        narrow = narrow_tokens(tokens, self.residual, self.rule, keys=keys)
        spec: Any = getattr(self, name)
        if spec is None or narrow == 0:
            narrow, spec = 0, None
        wide = 32.0 * heads * (tokens - narrow) * dim
        return wide + (stored_bits(spec, heads, narrow, dim) if narrow else 0.0)

    def table(self) -> dict[str, Any]:
        """Return the tables of a TOML file that `kv_from_table` reads back."""
        made: dict[str, Any] = {}
        if self.residual:
            made["residual"] = self.residual
        if self.rule != "last":
            made["rule"] = self.rule
        for name in ("key", "value"):
            spec = getattr(self, name)
            if spec is not None:
                made[name] = {
                    f.name: getattr(spec, f.name)
                    for f in fields(spec)
                    if getattr(spec, f.name) != f.default
                }
        return made


def kv_from_table(table: Mapping[str, Any]) -> KV:
    """Return the `KV` of a table.

    Raises
    ------
    NumsimError
        For an unknown key, and a value that it cannot take.
    """
    known = tuple(f.name for f in fields(KV))
    for key in table:
        if key not in known:
            raise NumsimError(
                f"kv: unknown key {key!r}{near_names(str(key), known)}; known: {', '.join(known)}"
            )
    try:
        return KV(**table)
    except NumsimError as error:
        raise type(error)(f"[kv]: {error}") from None
