"""Two recipes on equal inputs through one network: which results differ, since when, and why.

Each product runs twice on the inputs that the first recipe's run gives it, so what is compared is
the products alone; how differences grow is seen by two whole runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.metrics import kl_nats, sqnr_db
from numsim.models import Model, Recipe, Rule
from numsim.quant import as_quant
from numsim.targets import Target, get_target

Array = NDArray[Any]
_POWERS = [2**n for n in range(1, 17)]
ULPS = ("0", "1", "2", *(f"{n + 1}-{2 * n}" for n in _POWERS), f"{2 * _POWERS[-1] + 1}-")
_EDGES = np.array([1, 2, *(n + 1 for n in _POWERS), 2 * _POWERS[-1] + 1])
_STORAGE = (
    "activations", "weights", "out_format", "rotate", "outliers",
)  # fmt: skip
_CHAIN = ("promote_every", "split_k", "split_order", "split_tile")


@known_floats
@dataclass(frozen=True)
class Product:
    """How the results of one product differ.

    `differing` is the share of `results`; `ulp_hist` the shares by distance in units of the last
    place, as `ULPS`; `mean_signed_ulp` of second minus first; `first`: no product before differs.
    """

    layer: str
    op: str
    k: int
    results: int
    differing: float
    max_ulp: int
    ulp_hist: tuple[float, ...]
    mean_signed_ulp: float
    sqnr_db: float
    first: bool


@known_floats
@dataclass(frozen=True)
class Cause:
    """What one field explains.

    With `field` alone set to the other's value `in_first` (or second), the share `differing` from
    the other remains; of the results that differed, the share `explains` is restored.
    """

    field: str
    a: str
    b: str
    in_first: bool
    differing: float
    explains: float


@known_floats
@dataclass(frozen=True)
class Depth:
    """How far two whole runs are apart after a block; the last row is the logits."""

    depth: int
    name: str
    sqnr_db: float
    differing: float
    kl_nats: float | None


@known_floats
@dataclass(frozen=True)
class Diff:
    """What `diff` found: names of both sides, one row a product, causes, depth."""

    a: str
    b: str
    products: tuple[Product, ...]
    causes: tuple[Cause, ...]
    depth: tuple[Depth, ...]

    @property
    def results(self) -> int:
        """Results compared."""
        return sum(row.results for row in self.products)

    @property
    def equal(self) -> bool:
        """Whether products on equal inputs and whole runs are equal bit for bit."""
        shares = [*(row.differing for row in self.products), *(row.differing for row in self.depth)]
        return not any(shares)


@known_floats
def diff(
    model: Model, tokens: ArrayLike | Mapping[str, ArrayLike], a: Recipe, b: Recipe, *,
    names: tuple[str, str],
) -> Diff:  # fmt: skip
    """Compare two recipes on one network, product by product.

    Parameters
    ----------
    model
        The network.
    tokens
        Token ids [T] or [B, T]; or arguments of `Model.run`, ``{"pixels": ...}``.
    a, b
        The recipes.
    names
        What to call them.

    Raises
    ------
    NumsimError
        For recipes or tokens that do not fit the network.

    Source
    ------
    Definitions of this page: units of the last place are steps between neighbours of the result's
    format, float32 after the unit.

    Examples
    --------
    >>> from numsim.models import bundled_model
    >>> both = [Recipe.uniform("float8_e4m3fn", target=f"nvidia.{t}") for t in
    ...         ("ada.mma", "hopper.wgmma")]
    >>> found = diff(bundled_model(), [5, 17, 256], *both, names=("ada", "hopper"))
    >>> found.equal, [c.field for c in found.causes]
    (False, ['group', 'group', 'min_exponent', 'min_exponent'])
    """
    every = model.gemm_names()
    rules = [recipe.check(every) for recipe in (a, b)]
    taps = [f"{name}.{end}" for name in every for end in ("in", "operand")]
    taps = [
        t for t in taps if t.endswith(".in") or t.rpartition(".")[0].rpartition(".")[2] in _HEADS
    ]
    given: dict[str, Any] = dict(tokens) if isinstance(tokens, Mapping) else {"tokens": tokens}
    first = model.run(**given, recipe=a, taps=taps)
    inputs = {name: first.taps[f"{name}.in"] for name in every if f"{name}.in" in first.taps}
    parts = [
        name for name in inputs
        if rules[0][name] != rules[1][name] or (a.seed != b.seed and _draws(rules[0][name]))
    ]  # fmt: skip

    def results(name: str, recipe: Recipe) -> Array:
        return model.gemm(name, inputs[name], recipe, operand=first.taps.get(f"{name}.operand"))

    rows, own, other, seen = [], {}, {}, False
    for name in inputs:
        x = results(name, a)
        y = results(name, b) if name in parts else x
        row = _row(model, name, inputs[name].shape[-1], x, y, not seen)
        seen = seen or row.differing > 0
        rows.append(row)
        if name in parts:
            own[name], other[name] = x, y
    causes = tuple(_causes(results, rules, parts, own, other, (a.seed, b.seed))) if seen else ()
    second = model.run(**given, recipe=b)
    return Diff(*names, tuple(rows), causes, tuple(_depth(first, second)))


_HEADS = ("qk", "pv", "cross_qk", "cross_pv")  # products of two activations


def _ordered(values: Array) -> NDArray[np.int64]:
    """Return float32 numbers as integers whose steps are units of the last place."""
    bits = values.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _draws(rule: Rule) -> bool:
    """Return whether an operand of a product is rounded by random integers."""
    sides = (rule.activations, rule.weights)
    return any(as_quant(side).rounding == "sr" for side in sides if side is not None)


def _row(model: Model, name: str, k: int, x: Array, y: Array, unseen: bool) -> Product:
    differ = x.astype(np.float32).view(np.uint32) != y.astype(np.float32).view(np.uint32)
    differ &= ~(np.isnan(x) & np.isnan(y))
    signed = _ordered(y) - _ordered(x)
    known = np.isfinite(x) & np.isfinite(y)
    steps = np.abs(np.where(known, signed, 0))
    hist = np.bincount(np.digitize(steps.ravel(), _EDGES), minlength=len(ULPS)) / max(steps.size, 1)
    head, _, op = name.rpartition(".")
    layer = head.removeprefix("layers.") or "-"
    share = float(differ.mean()) if differ.size else 0.0
    return Product(
        layer, op, k, int(differ.size), share, int(steps.max(initial=0)), tuple(hist.tolist()),
        float(signed[known].mean()) if known.any() else 0.0,
        sqnr_db(x, y) if differ.size else float("inf"), bool(unseen and share > 0),
    )  # fmt: skip


def _causes(
    results: Any, rules: list[dict[str, Rule]], parts: list[str], own: dict[str, Array],
    other: dict[str, Array], seeds: tuple[int, int],
) -> Iterator[Cause]:  # fmt: skip
    """Yield what each field of one rule explains, set to the other's, in both directions."""
    changes: dict[tuple[str, bool], dict[str, Rule]] = {}
    words: dict[str, tuple[set[str], set[str]]] = {}
    for name in parts:
        mine, its = rules[0][name], rules[1][name]
        for field, x, y, one, two in _swaps(mine, its):
            changes.setdefault((field, True), {})[name] = one
            changes.setdefault((field, False), {})[name] = two
            seen = words.setdefault(field, (set(), set()))
            seen[0].add(x)
            seen[1].add(y)
    differed = {name: _differ(own[name], other[name]) for name in parts}
    total = sum(d.size for d in differed.values())
    lost = sum(int(d.sum()) for d in differed.values())
    for (field, in_first), swapped in changes.items():
        goal, seed = (other, seeds[0]) if in_first else (own, seeds[1])
        remain, restored = 0, 0
        for name in parts:
            now = differed[name]
            if name in swapped:
                try:
                    got = results(name, Recipe((("*", swapped[name]),), seed))
                except NumsimError:  # the field cannot have this value beside the others
                    got = None
                if got is not None:
                    now = _differ(got, goal[name])
                    restored += int((differed[name] & ~now).sum())
            remain += int(now.sum())
        x, y = (_listed(side) for side in words[field])
        yield Cause(field, x, y, in_first, remain / max(total, 1), restored / max(lost, 1))


def _listed(words: set[str]) -> str:
    """Return what products have in a field: all of it, or of many values the ends."""
    found = sorted(words)
    return " or ".join(found) if len(found) <= 3 else f"{len(found)} values, {found[0]} ..."


def _differ(x: Array, y: Array) -> NDArray[np.bool_]:
    one, two = (np.ascontiguousarray(v, np.float32) for v in (x, y))
    found = (one.view(np.uint32) != two.view(np.uint32)) & ~(np.isnan(one) & np.isnan(two))
    return np.asarray(found)


def _swaps(mine: Rule, its: Rule) -> Iterator[tuple[str, str, str, Rule, Rule]]:
    """Yield (field, its words, first with the second's value, second with the first's)."""
    yield from _storage_swaps(mine, its)
    a, b = get_target(mine.target), get_target(its.target)
    for field, x, y, one, two in _target_swaps(a, b, mine, its):
        try:
            yield field, x, y, replace(mine, target=one), replace(its, target=two)
        except NumsimError:  # the field cannot have this value beside the others
            continue


def _storage_swaps(mine: Rule, its: Rule) -> Iterator[tuple[str, str, str, Rule, Rule]]:
    """Yield swaps of what a rule says beside its unit; fields that cannot differ alone together."""
    differ = [name for name in _STORAGE if getattr(mine, name) != getattr(its, name)]
    bound = []
    for name in differ:
        try:
            yield _swapped(mine, its, [name])
        except NumsimError:  # a static scale without its storage, outliers beside another
            bound.append(name)
    if bound:
        try:
            yield _swapped(mine, its, bound)
        except NumsimError:
            yield _swapped(mine, its, differ)


def _swapped(mine: Rule, its: Rule, names: list[str]) -> tuple[str, str, str, Rule, Rule]:
    x, y = ({name: getattr(rule, name) for name in names} for rule in (mine, its))
    one, two = (
        " ".join(_stored(side[name], other[name]) for name in names)
        for side, other in ((x, y), (y, x))
    )
    return "+".join(names), one, two, replace(mine, **y), replace(its, **x)


def _stored(quant: Any, other: Any) -> str:
    """Return how an operand is stored: its format, and what is otherwise beside another's."""
    if isinstance(quant, int | float) or isinstance(other, int | float):
        return "none" if quant is None else f"{quant:.6g}"
    if quant is None or isinstance(quant, str):
        return quant or "float32"
    fmt = getattr(quant.format, "name", quant.format)
    if other is None:
        return str(fmt)
    more = [
        f"{f.name}={getattr(quant, f.name)}"
        for f in fields(quant)
        if f.name != "format" and getattr(quant, f.name) != getattr(other, f.name)
    ]
    return " ".join([str(fmt), *more])


def _target_swaps(
    a: Target, b: Target, mine: Rule, its: Rule
) -> Iterator[tuple[str, str, str, Target, Target]]:
    for name in _CHAIN:
        x, y = getattr(a, name), getattr(b, name)
        idle = name in ("split_order", "split_tile") and a.split_k == b.split_k == 1
        if x != y and not idle:
            yield name, str(x), str(y), replace(a, **{name: y}), replace(b, **{name: x})
    (kind_a, rule_a), (kind_b, rule_b) = (_used(t, r) for t, r in ((a, mine), (b, its)))
    if type(rule_a) is not type(rule_b):
        yield (
            "rule", type(rule_a).__name__, type(rule_b).__name__, _with(a, kind_b, rule_b),
            _with(b, kind_a, rule_a),
        )  # fmt: skip
        return
    for f in fields(rule_a):
        x, y = getattr(rule_a, f.name), getattr(rule_b, f.name)
        if x != y and f.name != "outputs":
            one, two = replace(rule_a, **{f.name: y}), replace(rule_b, **{f.name: x})
            yield f.name, str(x), str(y), _with(a, kind_a, one), _with(b, kind_b, two)


def _used(unit: Target, rule: Rule) -> tuple[str, Any]:
    """Return the operand class and rule by which a unit multiplies what a recipe gives it."""
    from numsim.models.gemm import RAW
    from numsim.quant import as_quant, quantize
    from numsim.targets import plan

    left, right = as_quant(rule.activations or RAW), as_quant(rule.weights or RAW)
    zeros = np.zeros((64, 256), np.float32)
    a, b = quantize(zeros[:1], left, axis=-1), quantize(zeros, right, axis=-1).T
    found = plan(unit, a, b, out_format=rule.out_format)
    return found.operands, dict(unit.rules)[found.operands]


def _with(unit: Target, kind: str, rule: Any) -> Target:
    """Return a unit with one rule, of an operand class."""
    return replace(unit, name=f"{unit.name} changed", rules=((kind, rule),))


def _depth(first: Any, second: Any) -> Iterator[Depth]:
    states = list(zip(first.hidden_states, second.hidden_states, strict=True))
    for n, (x, y) in enumerate(states):
        yield Depth(n, "embedding" if n == 0 else f"block {n}", sqnr_db(x, y),
                    float(_differ(x, y).mean()), None)  # fmt: skip
    if first.logits.size:
        x, y = first.logits, second.logits
        yield Depth(
            len(states), "logits", sqnr_db(x, y), float(_differ(x, y).mean()), kl_nats(x, y)
        )


def recipes(
    targets: Iterable[str | Target], formats: str, out_format: str = "float32"
) -> Mapping[str, Recipe]:
    """Return one recipe a unit, all with the same formats, by the unit's name."""
    return {
        get_target(target).name: Recipe.uniform(formats, target=target, out_format=out_format)
        for target in targets
    }


__all__ = ["ULPS", "Cause", "Depth", "Diff", "Product", "diff", "recipes"]
