"""What to sweep: a validated `SweepSpec`, and the cases it stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    field_validator,
)

from numsim.errors import NumsimError, SkippedWarning, UnsupportedError, near_names, warn
from numsim.files import check_regular, read_toml
from numsim.formats import Format, get_format
from numsim.models import Model, Recipe
from numsim.models.gemm import fitting_rules
from numsim.quant import QUANTS, Quant
from numsim.sweep.grid import (
    DEFAULT_FORMATS,
    Storage,
    check_granularities,
    split_granularity,
    takes,
    units_of,
)  # fmt: skip
from numsim.targets import Target
from numsim.version import __version__
from numsim.words import shorten

DECLARED = Path("declared")  # in place of a file: the recipe of a packed checkpoint


class SweepSpec(BaseModel):
    """Model, text and grid of a sweep.

    Parameters
    ----------
    model, text
        A Hugging Face folder, ``org/name`` in the hub's local cache or a `Model`, and a UTF-8 file
        or token ids in a ``.npy`` file (for folders without tokenizer.json), an integer array
        [tokens], of an encoder, a trunk or a classifier [sentences, tokens]; these read a
        ``.jsonl`` file too, a text or a pair of texts (query and passage of a reranker) in each
        line: ``{"text": ..., "text_pair": ...}``, ``["...", "..."]`` or ``"..."``. None: the
        bundled ones. Of an encoder-decoder the encoder reads the first half of each window and the
        decoder is scored on the second, so about half of the ids count as `tokens`.
    formats
        Element formats of weights and activations (names, TOML files of `numsim.Format`, or
        `Format`), and storage rules: named ones (``mxfp4_e2m1``) and `Quant`, which bring scales
        and rounding of their own. None: ten formats, or none where there are `recipes`.
    recipes
        `Recipe` or TOML files of them, a case each beside those of the grid: overrides by glob.
        ``declared``: what a packed checkpoint says of itself, its codes as they are stored. Cases
        that store weights in another way round the numbers that those codes stand for.
    granularities
        ``per_tensor``, ``none``, or ``WEIGHTS+ACTIVATIONS`` as in ``per_channel+per_token``.
        None: per_tensor and per_channel+per_token; for fixed point, which with a scale is an
        integer format, and for bfloat16 and its like, which need none, ``none``.
    targets
        Units, by name or TOML file, or `Target`. None: for each format its exact unit, where there
        is one (integers and fixed point ``ideal.int``, other block scales
        ``nvidia.blackwell.tcgen05``, else ``nvidia.hopper.wgmma``); where not, ``ideal.fp32``,
        fake quantisation.
    rounding
        Of the conversions of the grid, as in `numsim.encode`; ``sr`` draws by `seed`.
    limit_tokens
        Use only so many tokens of the text.
    window, batch
        Tokens in a window, windows run together.
    window_start
        What begins each window: ``bos``, the begin-of-text token; ``eos``, the end-of-text token,
        where config.json names no other; ``none``, the text itself.
    ignore_keys
        Keys of config.json to read over, or to read as another program does, as in `load_model`;
        the results name them.
    seed
        Seed of stochastic rounding, of recipes too whose own is 0 (none). Other cases do not use
        it.
    jobs
        Processes that share the cases; each runs the reference itself and keeps it. Same rows.
    memory_limit
        Bytes, or text such as ``4GB``, for packed weights, as in `load_model`: a larger model runs
        block by block. `jobs` share it equally; each worker of a scheduler has it for itself.
    scheduler
        Address of a dask scheduler, ``tcp://HOST:8786``, whose workers run the cases in place of
        `jobs`: the same rows. Each loads the model once and must see the same files. Needs
        ``pip install 'numsim[cluster]'``.
    out
        CSV file, or None. One sweep writes it at a time.
    resume
        Keep the finished cases of `out` and compute the others.
    force
        Replace `out`, which is an error where it exists and neither is given.

    Examples
    --------
    >>> spec = SweepSpec(formats=["int8"], targets=["ideal.int"])
    >>> [case.granularity for case in cases(spec, model="m", text="t", text_hash="")]
    ['per_tensor', 'per_channel+per_token']
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: InstanceOf[Model] | Path | None = None
    text: Path | None = None
    formats: tuple[str | InstanceOf[Quant] | InstanceOf[Format], ...] | None = None
    recipes: tuple[InstanceOf[Recipe] | Path, ...] = ()
    granularities: tuple[str, ...] | None = None
    targets: tuple[str | InstanceOf[Target], ...] | None = None
    rounding: str = "rne"
    limit_tokens: int | None = Field(default=None, ge=1, lt=1 << 63)
    window: int = Field(default=256, ge=2, lt=1 << 63)
    window_start: Literal["bos", "eos", "none"] = "bos"
    ignore_keys: tuple[str, ...] = ()
    batch: int = Field(default=8, ge=1, lt=1 << 63)
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    jobs: int = Field(default=1, ge=1, le=1024)
    scheduler: str | None = None
    memory_limit: int | str | None = None
    out: Path | None = None
    resume: bool = False
    force: bool = False

    # of validators before, the last written is the first that runs
    @field_validator("formats", mode="before")
    @classmethod
    def _dtypes_are_formats(cls, value: object) -> object:
        """Take dtypes of NumPy, ml_dtypes and torch as the formats they are."""
        if not isinstance(value, list | tuple):
            return value
        known = str, Quant, Format
        return [one if isinstance(one, known) else get_format(one).name for one in value]

    @field_validator("formats", "recipes", "granularities", "targets", "ignore_keys", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        """Take one thing, or a text with commas as on the command line, as a list of them."""
        if isinstance(value, str):
            return [word.strip() for word in value.split(",") if word.strip()]
        return value if value is None or isinstance(value, Iterable) else [value]


_RULES = {  # of fields that take more than one kind of value
    "model": "a folder, org/name of the local hub cache, or a Model",
    "text": "the path of a UTF-8 file or of token ids in .npy",
    "out": "the path of a file, or None",
    "formats": "a format or a list of them: names, Quant, Format, dtypes",
    "recipes": "a Recipe or a list of them, or of TOML files",
    "targets": "a unit or a list of them: names, TOML files, Target",
    "granularities": "a word or a list of them, such as per_tensor",
    "ignore_keys": "a key of config.json or a list of them",
    "scheduler": "an address, tcp://HOST:8786",
    "memory_limit": "bytes, or text such as 4GB",
}


def as_spec(spec: SweepSpec | dict[str, Any] | str | Path | None, **more: Any) -> SweepSpec:
    """Return a `SweepSpec` from itself, a dict of its fields, or a TOML file of them.

    `more`: fields in place of those of `spec`.

    Raises
    ------
    NumsimError
        For an unreadable file, an unknown field or a value out of range.

    Examples
    --------
    >>> as_spec({"formats": ["int8"], "limit_tokens": 512}, seed=3).limit_tokens
    512
    """
    if isinstance(spec, SweepSpec):
        fields = {name: getattr(spec, name) for name in spec.model_fields_set}
    else:
        given = {} if spec is None else spec
        fields = read_toml(given, "sweep") if isinstance(given, str | Path) else given
    if not isinstance(fields, dict):
        raise NumsimError(
            f"sweep: a spec is a SweepSpec, a dict or a TOML path; got {type(spec).__name__}; "
            "fields go by name, as in sweep(formats=[...])"
        )
    try:
        return SweepSpec.model_validate(fields | more)
    except ValidationError as error:
        first = error.errors()[0]
        name, *at = (str(part) for part in first["loc"] if not str(part).startswith("is-instance"))
        if isinstance(first.get("ctx", {}).get("error"), NumsimError):
            raise NumsimError(f"sweep: {name}: {first['ctx']['error']}") from None
        got = first["input"]
        digits = isinstance(got, int) and abs(got) >= 1 << 1000  # Python prints no thousands
        shown = "a number of hundreds of digits" if digits else shorten(repr(got), 80)
        known = SweepSpec.model_fields
        if first["type"] == "extra_forbidden":
            near = f"{near_names(name, known, limit=1)}; fields are {', '.join(known)}"
            raise NumsimError(f"sweep: {name!r} is no field; got it as {shown}{near}") from None
        where = ".".join([name, *(part for part in at if part.isdecimal())])
        words = _RULES.get(name) or first["msg"].replace("Input should be", "must be")
        raise NumsimError(f"sweep: {where}: {words}; got {shown}") from None


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
    digest: str = ""  # of a recipe, resolved for every product
    unit: str = ""  # digest of a unit that has no name of its own among the targets
    storage: str = ""  # digest of a Quant or Format that was given as an object
    own: Target | None = field(default=None, compare=False, repr=False)  # that unit
    stored: tuple[Quant, Quant] | None = field(default=None, compare=False, repr=False)  # as given
    given: Recipe | None = field(default=None, compare=False, repr=False)
    recipe_name: str = field(default="", compare=False)
    window_start: str = "bos"
    ignored_keys: tuple[str, ...] = ()  # of config.json

    @property
    def case_id(self) -> str:
        """Twelve hexadecimal digits that name the case."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        text = json.dumps(values | {"version": __version__}, sort_keys=True)
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
        return f"{self.format} {self.granularity} {self.target}{rounding}"

    @property
    def quants(self) -> tuple[Quant, Quant]:
        """Storage of weights and of activations, of a case of the grid."""
        if self.stored is not None:
            return self.stored
        if self.format in QUANTS:
            named = replace(QUANTS[self.format], rounding=self.rounding)
            return named, named
        weights, activations = (
            Quant(self.format, side, rounding=self.rounding)
            for side in split_granularity(self.granularity)
        )
        return weights, activations

    def recipe(self) -> Recipe:
        """Return the recipe; of the grid: every block linear so, everything else float32."""
        if self.given is not None:
            return self.given
        weights, activations = self.quants
        return Recipe.uniform(
            weights, target=self.own or self.target, weights=weights, activations=activations,
            seed=self.seed,
        )  # fmt: skip


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
    products: Iterable[str] = (), declared: Recipe | None = None,
) -> list[Case]:  # fmt: skip
    """Return the cases of a sweep in order; every name is checked here, before any work.

    `products`: names of the matrix products of the network, for which recipes are resolved.
    `declared`: what the word ``declared`` among the recipes stands for.

    Raises
    ------
    NumsimError
        For an unknown format, granularity or target, fields of a grid that nothing in it uses, or
        a recipe that does not fit the network.
    UnsupportedError
        Where none of the targets takes a format.

    Warns
    -----
    SkippedWarning
        Where some of the targets do not take a format, or some of the formats no granularity.
    """
    result: list[Case] = []
    skipped: list[str] = []
    case = partial(
        Case, model, model_hash, text, text_hash, limit_tokens=spec.limit_tokens,
        window=spec.window, batch=spec.batch, seed=spec.seed, rounding=spec.rounding,
        window_start=spec.window_start, ignored_keys=tuple(sorted(set(spec.ignore_keys))),
    )  # fmt: skip
    formats: tuple[str | Quant | Format, ...] | None = spec.formats
    if formats is None and spec.recipes:
        unused = [f for f in ("targets", "granularities") if getattr(spec, f)]
        unused += ["rounding"] * (spec.rounding != "rne")
        if unused:
            raise NumsimError(
                f"sweep: {' and '.join(unused)} of a grid without formats: recipes name their own; "
                f"add formats, to sweep them too, or leave {' and '.join(unused)} out"
            )
        formats = ()
    elif formats is None:
        formats = DEFAULT_FORMATS
    entries = [Storage.of(given) for given in formats]
    check_granularities(entries, spec.granularities)
    for entry in entries:
        chosen = spec.targets if spec.targets is not None else (entry.unit,)
        units = units_of(chosen)
        taken = [unit for unit in units if takes(unit[2], entry.fmt)]
        skipped += [f"{entry.called} on {unit[0]}" for unit in units if unit not in taken]
        if chosen and not taken:
            raise UnsupportedError(
                f"sweep: none of the targets {', '.join(called for called, _, _ in units)} "
                f"multiplies {entry.fmt.label}; add ideal.fp32, or leave the format out"
            )
        rounding = entry.rounding or spec.rounding
        for granularity in entry.granularities(spec.granularities, rounding):
            result += [
                case(
                    format=entry.called, granularity=granularity, target=called, unit=digest,
                    rounding=rounding, storage=entry.digest,
                    stored=entry.sides(granularity, rounding), own=unit if digest else None,
                )
                for called, digest, unit in taken
            ]  # fmt: skip
    if skipped:
        warn(
            "sweep: left out, since the unit does not multiply the format: " + ", ".join(skipped),
            SkippedWarning,
        )
    for given in spec.recipes:
        asked = declared if given == DECLARED else None
        recipe = given if isinstance(given, Recipe) else asked or Recipe.from_toml(given)
        where = "a recipe" if isinstance(given, Recipe) else str(given)
        try:
            rules = fitting_rules(recipe, products)
        except NumsimError as error:
            raise type(error)(f"sweep: {where}: {error}") from None
        recipe = Recipe(tuple(rules.items()), recipe.seed or spec.seed)
        digest = recipe.digest()
        name = f"recipe_{digest[:8]}" if isinstance(given, Recipe) else given.stem
        twin = next((c for c in result if c.digest == digest), None)
        if twin is not None:
            raise NumsimError(
                f"sweep: recipes {twin.recipe_name} and {name} name the same rules and seed "
                "for this model; give one of them"
            )
        result.append(
            case(
                format="", granularity="", target="", digest=digest, given=recipe,
                recipe_name=name,
            )
        )  # fmt: skip
    if not result:
        raise NumsimError("sweep: the grid is empty; give at least one format and one target")
    return list(dict.fromkeys(result))
