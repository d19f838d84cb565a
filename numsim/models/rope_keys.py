"""Rotary positions from a ``config.json``, in any of its spellings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from numsim.errors import NumsimError, UnsupportedError
from numsim.models.arch import Rope
from numsim.models.keys import REMEDY, REQUIRED, Key, listing, offer, shown, wrong
from numsim.models.rope import check_rope

WIDEST = 2**16  # elements of a head
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings")
LAYER_TYPES = ("full_attention", "sliding_attention")  # a table may hold one table for each
ORIGINAL = "original_max_position_embeddings"
OLDER_TYPES = {"su": "longrope"}  # of the first files of Phi-3
METADATA = ("finetuned",)  # of a table of rotary keys: read by nobody
READINGS = ("transformers", "vllm")  # of attn_factor
NEUTRAL = ("attn_factor", "extrapolation_factor")  # of vLLM: 1 is what transformers computes
SCALINGS = {  # rope_type -> its keys, required ones first, then optional
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
    ),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
            "mscale", "mscale_all_dim", "truncate",
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor"),
        ("original_max_position_embeddings", "factor", "attention_factor"),
    ),
}  # fmt: skip


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all rotary keys of a config in the newer spelling; both spellings must agree.

    Newer configs hold ``rope_parameters: {rope_theta, rope_type, partial_rotary_factor, ...}``;
    older ones ``rope_theta`` beside ``rope_scaling: {type | rope_type, ...}`` or null.
    """
    seen: dict[str, Any] = {}
    nulls: dict[str, str] = {}

    def put(key: str, value: Any, where: str) -> None:
        if key == "rope_type" and isinstance(value, str):
            value = OLDER_TYPES.get(value, value)
        if value is None:
            nulls[key] = where
        elif seen.setdefault(key, value) != value:
            raise wrong(where, f"{seen[key]!r} as beside it", value)

    for theirs, ours in (
        ("rope_theta", "rope_theta"),
        ("rotary_emb_base", "rope_theta"),
        ("rotary_pct", "partial_rotary_factor"),
        ("partial_rotary_factor", "partial_rotary_factor"),
    ):
        if theirs in config:
            put(ours, config[theirs], theirs)
    for group in ("rope_parameters", "rope_scaling"):
        inner = config.get(group)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise wrong(group, "a table or null", inner)
        for key, value in inner.items():
            put("rope_type" if key == "type" else key, value, f"{group}.{key}")
    for key in ("rope_theta", "partial_rotary_factor"):  # no default of theirs is none
        if key in nulls and key not in seen:
            raise wrong(nulls[key], "a number", None)
    return seen


def keys_in_tables(config: Mapping[str, Any]) -> set[str]:
    """Return the keys of the rotary tables that decide numbers, with the names of their tables.

    Examples
    --------
    >>> sorted(keys_in_tables({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}))
    ['rope_scaling.factor', 'rope_scaling.type']
    """
    tables = {name: config.get(name) for name in ("rope_parameters", "rope_scaling")}
    found = {name: table for name, table in tables.items() if isinstance(table, Mapping)}
    read = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *LAYER_TYPES}
    for table in found.values():
        for kind in (table.get("rope_type"), table.get("type")):
            kind = OLDER_TYPES.get(str(kind), kind)
            if kind in tuple(SCALINGS):
                required, optional = SCALINGS[str(kind)]
                read |= {*required, *optional}
    return {f"{name}.{key}" for name, table in found.items() for key in read & set(table)}


def read_rope(
    config: Mapping[str, Any], defaults: Mapping[str, object], fields: Mapping[str, Any]
) -> Rope:
    """Return the rotary positions a config asks for."""
    seen = dict(defaults) | rope_settings(config)
    kind: Any = seen.pop("rope_type", "default")
    if ORIGINAL in defaults:  # the family reads it beside its table, and over that in it
        outside = Key(ORIGINAL, int, defaults[ORIGINAL]).read(config, {})
        seen.pop(ORIGINAL)
        if kind in ("llama3", "yarn", "longrope"):
            seen[ORIGINAL] = outside
    if kind not in tuple(SCALINGS):
        raise UnsupportedError(
            f"config.json: rope_type must be one of {', '.join(SCALINGS)}; got {shown(kind)}; "
            "other types are not implemented"
        )
    required, optional = SCALINGS[kind]
    known = {*required, *optional, "rope_theta", "partial_rotary_factor"}
    for key in (*METADATA, *NEUTRAL):
        if key in METADATA or seen.get(key) == 1:
            seen.pop(key, None)

    def where(key: str) -> str:
        group = (
            "rope_parameters" if key in (config.get("rope_parameters") or {}) else "rope_scaling"
        )
        return f"{group}.{key}"

    def number(name: str, default: object = REQUIRED) -> float:
        return float(Key(name, float, default).read(seen, {}))

    if kind == "yarn" and "attn_factor" in seen:
        raise _two_readings(where("attn_factor"), number("attn_factor"))
    unknown = sorted(set(seen) - known)
    if unknown:
        raise NumsimError(
            f"config.json: rope settings of type {kind!r} are {', '.join(sorted(known))}; "
            f"unknown: {listing(unknown)}; {offer(map(where, unknown))}"
        )
    share = number("partial_rotary_factor", 1.0)
    if share != 1 and "partial_rotary_factor" not in defaults:  # transformers does not read it
        raise wrong("partial_rotary_factor", f"1 for {fields['family']}", share)
    turned = fields["mla"].rope if fields.get("mla") else int(fields["head_dim"] * share)
    if turned % 2 or not 0 < turned <= fields["head_dim"]:
        raise NumsimError(
            f"config.json: rotary positions turn an even number of elements of a head, at most "
            f"head_dim; got {turned} of {fields['head_dim']}; {REMEDY}"
        )
    if turned > WIDEST:  # no list of that length before the tensors have been looked at
        raise wrong("the rotary width of a head", f"at most {WIDEST}", turned)
    positions = Key("max_position_embeddings", int, None).read(config, {}) or 1
    longest = 0.0
    if kind in ("dynamic", "llama3", "yarn"):
        longest = Key("max_position_embeddings", int).read(config, {})
        original = number("original_max_position_embeddings", longest)
        if kind != "dynamic":  # that counts from the length of the config, as transformers does
            longest = original
        if longest < 1:
            raise wrong("original_max_position_embeddings", "1 or more", longest)
    values: dict[str, Any] = {}
    if kind == "longrope":
        longest = number(ORIGINAL, positions)
        values = _longrope(seen, positions / longest, longest, turned)
    if kind == "llama3":
        values = {"slow": number("low_freq_factor"), "fast": number("high_freq_factor")}
        if values["slow"] >= values["fast"]:
            raise wrong("low_freq_factor", "below high_freq_factor", values["slow"])
    if kind == "yarn":
        values = {
            "slow": number("beta_slow", 1.0),
            "fast": number("beta_fast", 32.0),
            "amplitude": _amplitude(seen, number),
            "truncate": bool(Key("truncate", bool, True).read(seen, {})),
        }
    rope = Rope(
        theta=number("rope_theta"),
        width=turned,
        interleaved=bool(fields.get("interleaved", False)),
        kind=kind,
        factor=number("factor", 1.0 if kind in ("default", "longrope") else REQUIRED),
        longest=int(longest),
        **values,
    )
    check_rope(rope, min(positions, 2**20))  # longer sequences are refused when they come
    return rope


def _longrope(
    seen: Mapping[str, Any], stretch: float, original: float, turned: int
) -> dict[str, Any]:
    """Return both lists of divisors and the amplitude; `stretch`: where no factor says it."""
    values: dict[str, Any] = {}
    for key, name in (("short_factor", "short"), ("long_factor", "long")):
        listed: Any = seen.get(key)
        numbers = isinstance(listed, list) and all(type(x) in (int, float) for x in listed)
        if not numbers or len(listed) != turned // 2 or not min(listed) > 0:
            raise wrong(key, f"{turned // 2} numbers above 0, one for each pair that turns", listed)
        values[name] = tuple(map(float, listed))
    factor = Key("factor", float, stretch).read(seen, {})
    growth = 1.0
    if factor > 1:
        if original <= 1:
            raise wrong(ORIGINAL, "above 1", original)
        growth = math.sqrt(1 + math.log(factor) / math.log(original))
    return values | {"amplitude": Key("attention_factor", float, growth).read(seen, {})}


class TypeRope(NamedTuple):
    """How a family spells the rotary positions of one type of its layers."""

    theta: str | None  # the older key of the base, which one type alone can have
    default: float
    scaled: bool  # whether the older rope_scaling holds for it


def read_typed_rope(
    config: Mapping[str, Any], kind: str, spelling: TypeRope, fields: Mapping[str, Any]
) -> Rope:
    """Return the rotary positions of one type of layers, from either spelling."""
    group = config.get("rope_parameters")
    own: dict[str, Any] = {}
    if group is not None:
        known = isinstance(group, Mapping) and set(group) <= set(LAYER_TYPES)
        if not known or not all(isinstance(t, Mapping | None) for t in group.values()):
            raise wrong("rope_parameters", f"a table for each of {', '.join(LAYER_TYPES)}", group)
        own = dict(group.get(kind) or {})
    scaling = config.get("rope_scaling")
    if scaling is not None and not isinstance(scaling, Mapping):
        raise wrong("rope_scaling", "a table or null", scaling)
    if spelling.scaled:
        own |= scaling or {}
    older = config.get(spelling.theta) if spelling.theta else None
    own.setdefault("rope_theta", spelling.default if older is None else older)
    plain = {key: value for key, value in config.items() if key not in ROPE_KEYS[:3]}
    return read_rope(plain | {"rope_parameters": own}, {}, fields)


def yarn_growth(factor: float, weight: float = 1.0) -> float:
    """Return ``0.1 weight ln(factor) + 1``, 1 for factors up to 1.

    >>> yarn_growth(1.0)
    1.0
    """
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _two_readings(key: str, value: float) -> UnsupportedError:
    """Return the error of a key that two programs read differently, with how to choose."""
    return UnsupportedError(
        f"config.json: {key} {value:g} has two readings: transformers does not read it, vLLM "
        f"multiplies sine and cosine by it; choose one with --ignore-keys {key} or --ignore-keys "
        f"{key}=vllm (ignore_keys=), which the results record"
    )


def choose_readings(
    config: Mapping[str, Any], asked: Iterable[str]
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Return a config in which ``attn_factor`` means what was asked for, and what is left to do.

    ``rope_scaling.attn_factor=vllm`` becomes the ``attention_factor`` by which vLLM multiplies
    sine and cosine; ``=transformers`` is to ignore the key, among the keys returned second. Third:
    the readings that the config had a key for.

    Raises
    ------
    NumsimError
        A reading of another program, or a value that is no number.

    Examples
    --------
    >>> table = {"rope_type": "yarn", "factor": 1.0, "attn_factor": 0.5}
    >>> choose_readings({"rope_scaling": table}, ["rope_scaling.attn_factor=vllm", "a"])[0]
    {'rope_scaling': {'rope_type': 'yarn', 'factor': 1.0, 'attention_factor': 0.5}}
    """
    left, keys, chosen = dict(config), [], []
    for word in asked:
        key, is_choice, reader = word.partition("=")
        group, _, inner = key.partition(".")
        if not is_choice or inner != "attn_factor":
            keys.append(word)
            continue
        if reader.lower() not in READINGS:
            raise NumsimError(
                f"ignore_keys: {key} is read as {' or '.join(READINGS)} does; got {shown(reader)}"
            )
        table, seen = left.get(group), rope_settings(left)
        if reader.lower() == "transformers":
            keys.append(key)
        elif isinstance(table, Mapping) and inner in table and seen.get("rope_type") == "yarn":
            left[group] = _as_vllm(table, seen)
            chosen.append(f"{key}=vllm")
    return left, tuple(keys), tuple(chosen)


def _as_vllm(table: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    factor = _amplitude(seen, lambda name: float(Key(name, float).read(seen, {})))
    value = Key("attn_factor", float).read(table, {})
    rest = {key: value for key, value in table.items() if key != "attn_factor"}
    return rest | {"attention_factor": factor * value}


def _amplitude(seen: Mapping[str, Any], number: Callable[..., float]) -> float:
    factor = number("factor")
    given = [key for key in ("mscale", "mscale_all_dim") if seen.get(key) not in (None, 0)]
    weights = [number(key) for key in given]
    if seen.get("attention_factor") is not None:
        return number("attention_factor")
    if len(weights) == 2:
        return yarn_growth(factor, weights[0]) / yarn_growth(factor, weights[1])
    return yarn_growth(factor)
