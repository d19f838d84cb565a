"""The cases of a sweep: every combination of its axes, each with all that decides its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from numsim.cost import load_costs, scaled
from numsim.errors import NumsimError, SkippedWarning, UnsupportedError, near_names, warn
from numsim.files import check_regular
from numsim.models import Recipe
from numsim.models.gemm import fitting_rules, probe
from numsim.quant import Quant
from numsim.sweep.costs import Machine
from numsim.sweep.grid import (
    DEFAULT_FORMATS,
    Entry,
    Products,
    Storage,
    check_granularities,
    takes,
)  # fmt: skip
from numsim.sweep.recipes import NamedRecipe
from numsim.sweep.spec import SweepSpec
from numsim.sweep.units import units_of
from numsim.targets import Target
from numsim.version import __version__


@dataclass(frozen=True)
class Case:
    """One combination of a sweep: everything that decides its numbers."""

    model: str
    model_hash: str
    text: str
    text_hash: str
    format: str
    granularity: str
    target: str
    limit_tokens: int | None
    window: int
    batch: int
    seed: int
    rounding: str = "rne"
    digest: str = ""  # of its recipe, where the words above do not say it
    window_start: str = "bos"
    ignored_keys: tuple[str, ...] = ()  # of config.json
    settings: tuple[tuple[str, str], ...] = field(default=(), compare=False)  # others, as asked
    own: Target | None = field(default=None, compare=False, repr=False)  # the unit, of a grid
    given: Recipe | None = field(default=None, compare=False, repr=False)
    recipe_name: str = field(default="", compare=False)
    stats: bool = field(default=False, compare=False)  # count what accumulators lose

    @property
    def case_id(self) -> str:
        """Twelve hexadecimal digits that name the case."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        values |= {"unit": "", "storage": "", "version": __version__}  # parts of the digest now
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def called(self) -> str:
        """What the user asked for: a format, a storage rule, the name of a recipe."""
        return self.recipe_name or self.format

    @property
    def label(self) -> str:
        """What a person calls the case."""
        if self.recipe_name:
            return f"recipe {self.recipe_name}"
        rounding = "" if self.rounding == "rne" else f" {self.rounding}"
        more = "".join(f" {name}={value}" for name, value in self.settings)
        return f"{self.format} {self.granularity} {self.target}{rounding}{more}"

    @property
    def quants(self) -> tuple[Quant, Quant]:
        """Storage of weights and of activations, of a case of the grid that stores both."""
        rule = self.recipe().rules[1][1]
        return rule.weights, rule.activations  # type: ignore[return-value]  # Quant by then

    def recipe(self) -> Recipe:
        """Return the recipe: a rule for every product.

        Raises
        ------
        NumsimError
            A case that was put together without one.
        """
        if self.given is None:
            raise NumsimError("sweep: a case has a recipe; got none; take cases from a spec")
        return self.given


def machine_of(spec: SweepSpec) -> Machine:
    """Return what a sweep prices its products by.

    Raises
    ------
    NumsimError
        Rows of cost, or a factor between nodes, that are wrong.
    """
    if (spec.scale_node is None) != (spec.scale_source is None):
        raise NumsimError(
            "sweep: scale_node and scale_source go together, a factor and where it comes from; got "
            f"{spec.scale_node!r} and {spec.scale_source!r}"
        )
    rows = load_costs(spec.cost)
    if spec.scale_node is not None and spec.scale_source is not None:
        rows = scaled(rows, spec.scale_node, spec.scale_source)
    return Machine(rows, spec.bandwidth_gb_s, spec.peak_tmac_s or {})


def folder_hash(folder: Path) -> str:
    """Return a hash of the files of a model folder that decide its numbers.

    Raises
    ------
    NumsimError
        A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(path.name.encode(errors="surrogateescape"))
        check_regular(path, "sweep")
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise NumsimError(f"sweep: cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()[:16]


def cases(
    spec: SweepSpec, *, model: str, model_hash: str = "", text: str, text_hash: str,
    products: Iterable[str] = (),
) -> list[Case]:  # fmt: skip
    """Return the cases of a sweep in order; every name is checked here, before any work.

    `products`: names of the matrix products of the network, for which recipes are resolved.

    Raises
    ------
    NumsimError
        For an unknown format, granularity or target, fields of a grid that nothing in it uses, a
        value of an axis that makes no case, a grid beyond `max_cases`, an exclusion that excludes
        nothing, or a recipe that does not fit the network.
    UnsupportedError
        Where none of the targets takes a format.

    Warns
    -----
    SkippedWarning
        Where some of the targets do not take a format, or some combinations cannot be.
    """
    names = tuple(products)
    first = Case(
        model, model_hash, text, text_hash, "", "", "", limit_tokens=spec.limit_tokens,
        window=spec.window, batch=spec.batch, seed=spec.seeds[0],
        window_start=spec.window_start, ignored_keys=tuple(sorted(set(spec.ignore_keys))),
        stats=spec.stats,
    )  # fmt: skip
    found = [*_of_the_grid(spec, first, names), *_of_recipes(spec, first, names)]
    for glob in spec.exclude:
        left = [case for case in found if not fnmatchcase(case.label, f"*{glob}*")]
        if len(left) == len(found):
            labels = [case.label for case in found]
            raise NumsimError(
                f"sweep: exclude: {glob!r} excludes none of the cases{near_names(glob, labels)}; "
                f"they are called like {labels[0] if labels else 'nothing'}"
            )
        if not left:
            raise NumsimError(
                f"sweep: exclude: {glob!r} excludes all of the cases left, {len(found)}; leave it "
                "out, or name fewer"
            )
        found = left
    if not found:
        raise NumsimError("sweep: the grid is empty; give at least one format and one target")
    _check_count(len(found), spec.max_cases)
    return found


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise NumsimError(
            f"sweep: the grid stands for {count:,} cases, above max_cases {most:,}; leave out "
            "values of an axis, or raise max_cases"
        )


def _of_the_grid(spec: SweepSpec, first: Case, names: tuple[str, ...]) -> list[Case]:
    entries = _entries(spec)
    check_granularities(entries, spec.granularities)
    axes = {
        "granularities": spec.granularities or (), "scale_formats": spec.scale_formats or (),
        "scale_rules": spec.scale_rules or (), "rounding": spec.roundings,
        "products": spec.products, "kv": spec.kv or (), "targets": spec.targets or (),
        "seed": spec.seeds,
    }  # fmt: skip
    # before they are made; some combinations may be no case, or the same as another
    most = len(entries) * prod(max(1, len(values)) for values in axes.values())
    _check_count(most // SPARE, spec.max_cases)
    for one in spec.products:
        Products(one).check(names)
    found: dict[Case, None] = {}
    refused: dict[str, NumsimError] = {}
    made: set[tuple[str, object]] = set()
    skipped: list[str] = []
    for entry in entries:
        chosen = spec.targets if spec.targets is not None else (entry.unit,)
        units = units_of(chosen)
        taken = [unit for unit in units if takes(unit[2], *entry.formats)]
        skipped += [f"{entry.called} on {unit[0]}" for unit in units if unit not in taken]
        if chosen and not taken:
            raise UnsupportedError(
                f"sweep: none of the targets {', '.join(called for called, _, _ in units)} "
                f"multiplies {entry.called}; add ideal.fp32, or leave the format out"
            )
        for point in _points(spec, entry):
            for unit in taken:
                try:
                    for case in _cases_at(spec, first, entry, point, unit):
                        found[case] = None
                        made |= {("formats", entry.called), *point.items()}
                except NumsimError as why:
                    words = " ".join(str(v) for v in point.values() if v is not None)
                    refused[f"{entry.called} {words} {unit[0]}"] = why
    asked: list[tuple[str, object]] = [(axis, one) for axis in _POINT for one in axes[axis]]
    asked = [(a, "+".join(dict.fromkeys(str(v).split("+"))) if a == _POINT[0] else v)
             for a, v in asked]  # fmt: skip
    asked += [("formats", entry.called) for entry in entries]
    idle = [one for one in asked if one not in made and not _is_of_rules(one[0], entries)]
    if refused and idle:  # blame the value that a message names
        named = [
            (a, v, error) for a, v in idle for error in refused.values() if repr(v) in str(error)
        ]
        axis, _, blamed = next(iter(named), (*idle[0], next(iter(refused.values()))))
        words = str(blamed).removeprefix("sweep: ").removeprefix(f"{axis}: ")
        raise type(blamed)(f"sweep: {axis}: {words}")
    if skipped:
        warn(
            "sweep: left out, since the unit does not multiply the format: " + ", ".join(skipped),
            SkippedWarning,
        )
    if refused:
        at, first_error = next(iter(refused.items()))
        warn(
            f"sweep: left out, since they cannot be: {len(refused)} combinations, the first "
            f"{at} ({first_error})",
            SkippedWarning,
        )
    return list(found)


SPARE = 64  # a grid so many times beyond max_cases is refused by the lengths of its axes alone
_POINT = ("granularities", "scale_formats", "scale_rules", "rounding", "products", "kv")


def _is_of_rules(axis: str, entries: list[Entry]) -> bool:
    """Whether an axis is ignored, as a warning said: granularity by rules with scales of theirs."""
    return axis == "granularities" and any(s.rule for entry in entries for s in entry.sides)


def _entries(spec: SweepSpec) -> list[Entry]:
    """Return what is swept, in order: formats, then pairs of weights and activations."""
    pairs = spec.weights is not None or spec.activations is not None
    grid = ["targets", *_POINT]
    if spec.formats is None and not pairs and spec.recipes:
        unused = [name for name in grid if name in spec.model_fields_set and getattr(spec, name)]
        unused = [name for name in unused if (name, spec.roundings) != ("rounding", ("rne",))]
        if unused:
            words = " and ".join(unused)
            raise NumsimError(
                f"sweep: {words} of a grid without formats: recipes name their own; add formats, "
                f"to sweep them too, or leave {words} out"
            )
        return []
    formats = spec.formats
    if formats is None:
        formats = () if pairs else DEFAULT_FORMATS
    entries = [Entry.of(given) for given in formats]
    if pairs:
        both = product(spec.weights or ("float32",), spec.activations or ("float32",))
        entries += [Entry.apart(weights, activations) for weights, activations in both]
    return entries


def _points(spec: SweepSpec, entry: Entry) -> Iterator[dict[str, Any]]:
    """Yield the combinations of everything but formats, units and seeds."""
    axes = (
        entry.granularities(spec.granularities), spec.scale_formats or (None,),
        spec.scale_rules or (None,), spec.roundings, spec.products, spec.kv or (None,),
    )  # fmt: skip
    for values in product(*axes):
        yield dict(zip(_POINT, values, strict=True))


def _cases_at(
    spec: SweepSpec, first: Case, entry: Entry, point: dict[str, Any],
    unit: tuple[str, str, Target],
) -> list[Case]:  # fmt: skip
    """Return the cases of one point: one for each seed, where anything draws."""
    called, unit_digest, target = unit
    rounding, granularity = point["rounding"], point["granularities"]
    how = {"scale_format": point["scale_formats"], "scale_rule": point["scale_rules"]}
    sides = entry.quants(granularity, rounding=rounding, **how)
    kv = None if point["kv"] is None else Storage.of(point["kv"])
    which = Products(point["products"], kv)
    scaled = any(side is not None and side.granularity != "none" for side in sides)
    settings = {k: v for k, v in how.items() if v is not None and scaled}
    if which.called != "linears":
        settings["products"] = which.called
    if kv is not None:
        settings["kv"] = kv.called
    stored = [side for side in sides if side is not None]
    same = entry.weights is entry.activations and not any(s.digest for s in entry.sides)
    named = same and not settings and not unit_digest and ":" not in granularity
    named = named and all(quant.block is None for quant in stored if not _is_rule(entry))
    roundings = {quant.rounding for quant in stored}
    draws = "sr" in roundings or (kv is not None and rounding == "sr")
    result = []
    for seed in spec.seeds if draws else spec.seeds[:1]:
        recipe = which.recipe(*sides, target, rounding, seed)
        if settings or not same:
            for _, rule in recipe.rules:
                probe(rule)
        more = tuple(settings.items())
        if draws and len(spec.seeds) > 1:
            more += (("seed", str(seed)),)
        result.append(
            replace(
                first, format=entry.called, granularity=granularity, target=called, seed=seed,
                rounding=roundings.pop() if len(roundings) == 1 else rounding, own=target,
                digest="" if named else recipe.digest(), given=recipe, settings=more,
            )
        )  # fmt: skip
        roundings = {quant.rounding for quant in stored}
    return result


def _is_rule(entry: Entry) -> bool:
    return all(side.rule is not None for side in entry.sides)


def _of_recipes(spec: SweepSpec, first: Case, names: tuple[str, ...]) -> list[Case]:
    found: list[Case] = []
    called: dict[str, str] = {}  # by digest
    for given in spec.recipes:
        if isinstance(given, NamedRecipe):
            where = f"recipe {given.name}"
            recipe = given.recipe(lambda fields: _base(spec, first, names, fields))
        else:
            recipe = given if isinstance(given, Recipe) else Recipe.from_toml(given)
            where = "a recipe" if isinstance(given, Recipe) else str(given)
        try:
            rules = fitting_rules(recipe, names)
        except NumsimError as error:
            raise type(error)(f"sweep: {where}: {error}") from None
        for seed in (recipe.seed,) if recipe.seed else spec.seeds:
            whole = replace(recipe, rules=tuple(rules.items()), seed=seed)
            draws = any(
                isinstance(quant, Quant) and quant.rounding == "sr"
                for rule in rules.values()
                for quant in (rule.activations, rule.weights)
            )
            digest = whole.digest()
            name = f"recipe_{digest[:8]}"
            if isinstance(given, NamedRecipe | Path):
                name = given.stem if isinstance(given, Path) else given.name or name
            twin = called.setdefault(digest, name)
            if twin is not name:
                raise NumsimError(
                    f"sweep: recipes {twin} and {name} name the same rules and seed "
                    "for this model; give one of them"
                )
            found.append(replace(first, digest=digest, given=whole, recipe_name=name))
            if not draws:
                break
    return found


def _base(spec: SweepSpec, first: Case, names: tuple[str, ...], fields: dict[str, Any]) -> Recipe:
    """Return the recipe of the one case of a grid that a named recipe begins from."""
    one = SweepSpec.model_validate(fields | {"seed": spec.seed})
    found = _of_the_grid(one, first, names)
    if len(found) != 1:
        raise NumsimError(
            f"sweep: a named recipe begins from one case; its fields stand for {len(found)}: "
            f"{', '.join(case.label for case in found[:4])}; give one value of each"
        )
    return found[0].recipe()
