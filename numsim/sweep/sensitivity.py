"""Whose error it is: each part of a network alone in a format, and all but it; a mixed recipe."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from numsim.errors import NumsimError
from numsim.losses import read_losses
from numsim.metrics import paired_difference
from numsim.models import Recipe, Rule
from numsim.models.gemm import RAW
from numsim.models.taps import lowered_operators
from numsim.models.weights import shape_of
from numsim.quant import as_quant
from numsim.sweep.cases import cases
from numsim.sweep.prepare import Prepared, prepare
from numsim.sweep.recipes import NamedRecipe
from numsim.sweep.run import Progress, sweep
from numsim.sweep.spec import SweepSpec, as_spec

COLUMNS = (
    "part", "products", "values", "kl_only_nats", "kl_only_stderr", "share_only",
    "kl_without_nats", "kl_budget_nats", "kl_budget_stderr", "share_budget",
)  # fmt: skip
BY = {"layer": "{stack}layers.{layer}.*", "op": "*.{op}", "product": "{name}"}
ALL, KV = "all", "kv"


def sensitivity(
    plan: SweepSpec, *, by: str, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Return what each part of a network costs: in the format alone, and with all the others.

    Parameters
    ----------
    plan
        A sweep of one case, of a network with logits.
    by
        What is a part: ``layer``, ``op`` (a product in all layers) or ``product``.

    Returns
    -------
    list of dict
        One row a part, and a first one for the whole, ``part="all"``. `kl_only_nats`: only this
        part is emulated. `kl_budget_nats`: KL of the case minus its KL with this part left in
        float32, paired over tokens; the budgets of parts need not add up to the whole. Operators
        and the cache of a recipe are parts too: ``*.softmax``, ``kv``; `products` counts names.

    Raises
    ------
    NumsimError
        More than one case, a network without logits, or unknown words.
    """
    run, recipe = one_case(plan)
    parts = _parts(run, recipe, by)
    whole = [NamedRecipe(name="all", toml=recipe.to_toml())]
    whole += [
        NamedRecipe(name=f"{kind} {glob}", toml=_changed(run, recipe, names, only=kind == "only"))
        for glob, names in parts.items()
        for kind in ("only", "without")
    ]
    with tempfile.TemporaryDirectory(prefix="numsim-") as folder:
        out = Path(folder, "results.csv")
        fields = _fields(plan) | {"recipes": _distinct(whole), "out": out}
        frame = sweep(as_spec(None, **fields), progress=progress)
        rows = frame[frame["layer"] == "all"].set_index("recipe")
        losses = {name: read_losses(out, str(rows.loc[name, "case_id"])) for name in rows.index}
    texts = {one.toml: one.name for one in reversed(whole)}
    first = {one.name: texts[one.toml] for one in whole}  # equal recipes ran once

    def kl(name: str) -> Any:
        found = losses[first[name]]
        if found is None or "kl" not in found:
            raise NumsimError(
                "sensitivity: shares of a KL divergence need logits; the network has none; give a "
                "language model or a classifier"
            )
        return found["kl"].reshape(-1)

    total = kl("all")
    mean = float(total.mean())
    every = _emulated(run, recipe)
    found = [_row(ALL, len(every), _values(run, every), total, None, mean)]
    for glob, names in parts.items():
        only, without = kl(f"only {glob}"), kl(f"without {glob}")
        row = _row(glob, len(names), _values(run, names), only, (total, without), mean)
        found.append(row)
    return found


def _row(
    part: str, products: int, values: int, only: Any, both: tuple[Any, Any] | None, mean: float
) -> dict[str, Any]:
    alone, alone_error = paired_difference(np.zeros_like(only), only)
    row = {
        "part": part, "products": products, "values": values, "kl_only_nats": alone,
        "kl_only_stderr": alone_error, "share_only": alone / mean if mean else None,
    }  # fmt: skip
    if both is not None:
        total, without = both
        budget, error = paired_difference(without, total)
        row |= {
            "kl_without_nats": float(without.mean()), "kl_budget_nats": budget,
            "kl_budget_stderr": error, "share_budget": budget / mean if mean else None,
        }  # fmt: skip
    return row


def one_case(plan: SweepSpec) -> tuple[Prepared, Recipe]:
    """Return the model of a sweep of one case, and the recipe of that case.

    Raises
    ------
    NumsimError
        It has more than one.
    """
    runs = list(prepare(plan))
    if len(runs) != 1 or len(runs[0].cases) != 1:
        labels = [case.label for run in runs for case in run.cases]
        raise NumsimError(
            f"sensitivity: one case is taken apart; the settings stand for {len(labels)}: "
            f"{', '.join(labels[:4])}{' ...' if len(labels) > 4 else ''}; give one format, one "
            "granularity and one unit"
        )
    recipe = runs[0].cases[0].recipe().resolve(runs[0].model.gemm_names())
    return runs[0], recipe


def _products(recipe: Recipe) -> list[str]:
    return [name for name, rule in recipe.rules if not rule.is_plain]


def _emulated(run: Prepared, recipe: Recipe) -> list[str]:
    """Return what is not float32: products, operators, and the cache of keys and values."""
    lowered = lowered_operators(run.model.arch, recipe.ops)
    return [*_products(recipe), *lowered, *([] if recipe.kv is None else [KV])]


def _parts(run: Prepared, recipe: Recipe, by: str) -> dict[str, list[str]]:
    """Return the names of each part, by what matches them."""
    if by not in BY:
        raise NumsimError(f"sensitivity: parts are by {', '.join(BY)}; got {by!r:.40}")
    found: dict[str, list[str]] = {}
    for name in _emulated(run, recipe):
        stack, _, rest = name.partition("layers.")
        layer, _, op = rest.partition(".")
        glob = BY[by].format(stack=stack, layer=layer, op=op, name=name) if rest else name
        found.setdefault(glob, []).append(name)
    return found


def _changed(run: Prepared, recipe: Recipe, names: Sequence[str], *, only: bool) -> str:
    """Return a recipe of these names alone, or of all others."""

    def stays(name: str) -> bool:
        return (name in names) == only

    rules = tuple((name, rule if stays(name) else Rule()) for name, rule in recipe.rules)
    lowered = lowered_operators(run.model.arch, recipe.ops).items()
    ops = tuple((name, op) for name, op in lowered if stays(name))
    return Recipe(rules, recipe.seed, ops, recipe.kv if stays(KV) else None).to_toml()


def _distinct(recipes: list[NamedRecipe]) -> tuple[NamedRecipe, ...]:
    return tuple({one.toml: one for one in reversed(recipes)}.values())[::-1]


def _fields(plan: SweepSpec) -> dict[str, Any]:
    """Return the settings of a plan that do not stand for cases."""
    grid = {
        "formats", "weights", "activations", "recipes", "granularities", "scale_formats",
        "scale_rules", "targets", "rounding", "products", "kv", "exclude", "out", "resume", "force",
        "stats", "shard",
    }  # fmt: skip
    return {name: getattr(plan, name) for name in plan.model_fields_set - grid}


def _values(run: Prepared, names: Sequence[str]) -> int:
    products = set(run.model.gemm_names())
    return sum(math.prod(s) for s in _shapes(run, (n for n in names if n in products)).values())


def _shapes(run: Prepared, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the [out, in] of the products of stored matrices."""
    tensors = run.model.tensors
    stored = (name for name in names if f"{name}.weight" in tensors)
    return {name: shape_of(tensors, f"{name}.weight") for name in stored}


def mixed_recipe(
    plan: SweepSpec, better: str, rows: Sequence[dict[str, Any]], bits: float
) -> tuple[Recipe, float]:
    """Return the recipe that gives the parts with the largest budgets a better format.

    Greedy: parts get `better` in the order of budget for each bit that it adds, while the mean of
    stored bits for each weight stays within `bits`.

    Parameters
    ----------
    better
        A format or storage rule of more bits than the case's.
    rows
        Of `sensitivity`.
    bits
        Stored bits for each weight, scales included.

    Returns
    -------
    recipe, its bits for each weight

    Raises
    ------
    NumsimError
        The case alone is beyond the budget, or `better` does not cost more.
    """
    run, recipe = one_case(plan)
    names = run.model.gemm_names()
    asked = as_spec(None, formats=(better,), products=plan.products)
    finest = cases(asked, model="", text="", text_hash="", products=names)[-1]  # of its scales
    best = finest.recipe().resolve(names)
    rules = dict(recipe.rules)
    weights = _shapes(run, _products(recipe))
    total = sum(math.prod(shape) for shape in weights.values())
    if not total:
        raise NumsimError("sensitivity: a budget is of weights; the case stores none of them")

    def stored(name: str, rule: Rule) -> float:
        return as_quant(rule.weights or RAW).stored_bits(*weights[name])

    used = sum(stored(name, rules[name]) for name in weights)
    if used / total > bits:
        raise NumsimError(
            f"sensitivity: the case alone stores {used / total:.3f} bits for each weight, above "
            f"the budget {bits:g}; raise it, or begin from a smaller format"
        )
    gains = []
    for row in rows:
        part = [n for n in weights if row["part"] != ALL and fnmatchcase(n, row["part"])]
        added = sum(stored(n, best.rule(n)) - stored(n, rules[n]) for n in part)
        if part and added <= 0:
            raise NumsimError(
                f"sensitivity: {better} stores no more bits than the case; give a better format"
            )
        if part:
            gains.append((row["kl_budget_nats"] / added, added, part))
    for _, added, part in sorted(gains, key=lambda one: -one[0]):
        if (used + added) / total <= bits:
            used += added
            rules |= {name: best.rule(name) for name in part}
    return replace(recipe, rules=tuple(rules.items())), used / total
