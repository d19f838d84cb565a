"""The recipe that a checkpoint declares: activations, static scales, the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from numsim.errors import NumsimError, UnsupportedError
from numsim.models.packed.types import Packed
from numsim.models.packed.unpack import groups_of
from numsim.models.recipe import Recipe
from numsim.models.rule import Rule
from numsim.models.stored import Maps, Tensor, view
from numsim.models.weights import Stored, Weights
from numsim.quant import Quant, as_quant

CACHE_NAMES = {  # beside the projection, and in its attention
    "qk": ("k_proj.k_scale", "k_proj.output_scale", "k_scale", "attn.k_scale", "kv_scale"),
    "pv": ("v_proj.v_scale", "v_proj.output_scale", "v_scale", "attn.v_scale", "kv_scale"),
}


def stored_as(packed: Packed, maps: Maps) -> Quant | None:
    """Return how a weight is stored; None where no `Quant` says it: groups of scattered columns."""
    quant = packed.scheme.weights
    if packed.layout.order == "high_first":
        block = quant.block
        return quant if isinstance(block, int) and packed.shape[-1] % block == 0 else None
    groups = packed.parts.get("groups")
    scattered = groups is not None and groups_of(packed, {"groups": view(maps, groups)}) is not None
    return None if scattered else quant


def declared_recipe(tensors: Weights, names: Iterable[str], *, cache: bool) -> Recipe | None:
    """Return what a checkpoint declares of the products `names`; None where nothing is rounded.

    Raises
    ------
    UnsupportedError
        Activations that no `Quant` says.
    NumsimError
        `cache`, where no cache is declared, or a scale of it is missing.
    """
    rules: dict[str, Rule] = {}
    for name in names:
        if name.endswith((".qk", ".pv")):
            if cache:
                rules[name] = Rule(weights=_cache_quant(tensors, name))
        elif f"{name}.weight" in tensors.packed:
            packed, _ = tensors.packed[f"{name}.weight"]
            rules[name] = _rule(packed, tensors.maps)
    if all(r.activations is None for n, r in rules.items() if not n.endswith((".qk", ".pv"))):
        rules = {n: r for n, r in rules.items() if n.endswith((".qk", ".pv"))}
        if not rules:
            return None
    return Recipe(tuple(_short(rules, tuple(names)).items()))


def _rule(packed: Packed, maps: Maps) -> Rule:
    scheme = packed.scheme
    if scheme.unsaid:
        raise UnsupportedError(
            f"recipe: what the checkpoint declares must be what a Quant can say; {packed.name} has "
            f"{scheme.unsaid}; write a recipe of your own"
        )
    acts = scheme.activations
    if acts is not None and scheme.static:
        level = np.float32(view(maps, packed.parts["inputs"]).astype(np.float32).reshape(-1)[0])
        scale = np.float32(1) / level if packed.layout.above_divides else level
        acts = replace(acts, scale=float(scale))
    return Rule(acts, stored_as(packed, maps))


def _cache_quant(tensors: Weights, name: str) -> Quant:
    """Return how the keys (``qk``) or values (``pv``) of a layer are stored."""
    quant, layer = tensors.declared.cache, name.rpartition(".")[0]
    if quant is None:
        raise NumsimError(
            f"recipe: kv_cache=True is for a checkpoint that declares a cache; "
            f"{tensors.declared.file} does not; leave it out"
        )
    if not tensors.declared.cache_static:
        return quant
    _, at = tensors.packed[f"{layer}.q_proj.weight"]
    attention = at.name.removesuffix(".weight").rpartition(".")[0]
    ends = CACHE_NAMES[name.rpartition(".")[2]]
    names = [f"{attention}.{end}" for end in ends]
    found = next((name for name in names if name in tensors.cache_scales), None)
    if found is None:
        raise NumsimError(
            f"recipe: a static cache has a scale in each layer; {attention} has none of "
            f"{', '.join(ends)}; leave kv_cache out"
        )
    return replace(quant, scale=_one(tensors.cache_scales[found], tensors.maps))


def _one(t: Tensor, maps: Maps) -> float:
    return float(view(maps, t).astype(np.float32).reshape(-1)[0])


def _short(rules: Mapping[str, Rule], names: tuple[str, ...]) -> dict[str, Rule]:
    """Return few globs for the rules of products: the rule of most linears, then the others."""
    plain = Rule()
    linears = [name for name in names if name.endswith("_proj")]
    made = {"*": plain}
    counted = Counter(rules.get(name, plain) for name in linears).most_common(1)
    common = counted[0][0] if counted else plain
    if common != plain:
        made["*_proj"] = common
    for name in names:
        usual = common if name.endswith("_proj") else plain
        if rules.get(name, plain) != usual:
            made[name] = rules.get(name, plain)
    return made


def check_stored(tensors: Mapping[str, Stored], rules: Mapping[str, Rule]) -> None:
    """Raise where a rule stores a packed weight in another way than it is stored.

    Raises
    ------
    NumsimError
        With the product, how its weight is stored, and what the rule says.
    """
    found = stored_otherwise(tensors, rules)
    if found is None:
        return
    name, packed, stored, asked = found
    told = "groups of scattered columns" if stored is None else _words(stored)
    raise NumsimError(
        f"Recipe: the codes of a packed checkpoint are not rounded again; {packed.name} is stored "
        f"as {told}, and the rule of {name} says {_words(asked)}; leave weights out of the rule, "
        "or use load_model(..., dequantise=True)"
    )


def stored_otherwise(
    tensors: Mapping[str, Stored], rules: Mapping[str, Rule]
) -> tuple[str, Packed, Quant | None, Quant] | None:
    """Return the first product whose rule stores a packed weight in another way than it is."""
    if not isinstance(tensors, Weights) or tensors.dequantise:
        return None
    for name, rule in rules.items():
        if rule.weights is None or f"{name}.weight" not in tensors.packed:
            continue
        packed, _ = tensors.packed[f"{name}.weight"]
        stored, asked = stored_as(packed, tensors.maps), as_quant(rule.weights)
        if stored is None or _meaning(stored) != _meaning(asked):
            return name, packed, stored, asked
    return None


def _meaning(quant: Quant) -> tuple[object, ...]:
    """Return what decides how codes are read; scales are as they are stored."""
    rows = {"per_token": "per_channel"}.get(str(quant.granularity), quant.granularity)
    return quant.fmt, rows, quant.block, quant.scale_format == "float8_e4m3fn", quant.zero_point


def _words(quant: Quant) -> str:
    block = f" of {quant.block}" if quant.block else ""
    zero = " with zero points" if quant.zero_point else ""
    return f"{quant.fmt.label} {quant.granularity}{block}{zero}"
