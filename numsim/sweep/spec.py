"""What to sweep: a validated `SweepSpec`, from Python, TOML and the command line alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    field_validator,
)

from numsim.errors import NumsimError, near_names
from numsim.files import read_toml
from numsim.formats import Format, get_format
from numsim.formats.toml import fields_from_table
from numsim.models import Model, Recipe
from numsim.models.rule import quant_from_table, rule_from_table
from numsim.quant import Quant
from numsim.sweep.grid import Entry
from numsim.sweep.recipes import NamedRecipe
from numsim.sweep.units import split_targets, units_of
from numsim.targets import Target
from numsim.words import shorten

Storable = str | InstanceOf[Quant] | InstanceOf[Format]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]


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
        and rounding of their own. None: twelve formats, or none where there are `recipes`.
    weights, activations
        The same apart: every pair of them is a case; ``float32`` is an operand as it is. One pair
        among `formats` is ``int4+int8``, weights first.
    recipes
        `Recipe`, TOML files of them, or tables of a `NamedRecipe`, a case each beside those of the
        grid: overrides by glob. ``declared``: what a packed checkpoint says of itself, its codes as
        they are stored; cases that store weights in another way round the numbers of those codes.
    granularities
        ``per_tensor``, ``none``, ``per_block:128``, tiles ``per_block:128x128``, or
        ``WEIGHTS+ACTIVATIONS`` as in ``per_channel+per_token``.
        None: per_tensor and per_channel+per_token; for fixed point, which with a scale is an
        integer format, and for bfloat16 and its like, which need none, ``none``.
    scale_formats, scale_rules
        Of plain formats and of named storage rules, as in `numsim.Quant`. None: their own.
    targets
        Units, by name or TOML file, or `Target`; with fields, ``ideal.int:acc_bits=16,20``, one
        for each value, or a table ``{name = "ideal.int", acc_bits = [16, 20]}``. None: for each
        format its exact unit, where there is one (integers and fixed point ``ideal.int``, other
        block scales ``nvidia.blackwell.tcgen05``, else ``nvidia.hopper.wgmma``); where not,
        ``ideal.fp32``, fake quantisation.
    rounding
        One or several, of the conversions of the grid, as in `numsim.encode`; ``sr`` draws by
        `seed`.
    products
        What is emulated: names joined by + and -, of ``linears qk pv router lm_head all`` and
        globs: ``linears+qk+pv``, ``all-lm_head``.
    kv
        Formats of keys and values, the right operands of ``qk`` and ``pv``; where `products` leaves
        those out, they are read back and multiplied in float32.
    exclude
        Globs of cases to leave out, found anywhere in what a case is called.
    max_cases
        More cases than that are refused.
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
        One or several: seed of stochastic rounding, of recipes too whose own is 0 (none). Other
        cases do not use it.
    jobs
        Processes that share the cases; each runs the reference itself and keeps it. Same rows.
    stats
        Also count what accumulators lose, and write ``tensors.csv``, ``accumulators.csv`` and
        ``positions.csv`` beside `out`.
    shard
        ``2/4``: every fourth case from the second on, into ``NAME.2of4.csv``; a sweep of the whole
        that resumes joins such files. For arrays of jobs.
    memory_limit
        Bytes, or text such as ``4GB``, for packed weights, as in `load_model`: a larger model runs
        block by block. `jobs` share it equally; each worker of a scheduler has it for itself.
    scheduler
        Address of a dask scheduler, ``tcp://HOST:8786``, whose workers run the cases in place of
        `jobs`: the same rows. Each loads the model once and must see the same files. Needs
        ``pip install 'numsim[cluster]'``.
    cost
        TOML file of rows of cost beside the bundled ones, see `numsim.cost.load_costs`.
    scale_node, scale_source
        ``45nm:7nm=0.2``, a factor between nodes, and where it comes from. None: none is scaled.
    bandwidth_gb_s, peak_tmac_s
        Memory bandwidth in 10**9 bytes a second, and peak in 10**12 multiply-adds a second, by
        format (``{"float16": 495, "float8_e4m3fn": 989}``) or one for all: what times and
        speed-ups of a roofline need.
    out
        CSV file, or None. One sweep writes it at a time.
    resume
        Keep the finished cases of `out` and compute the others.
    force
        Replace `out`, which is an error where it exists and neither is given.

    Examples
    --------
    >>> SweepSpec(formats="int8,e4m3", targets="ideal.int:acc_bits=16,20").targets
    ('ideal.int:acc_bits=16,20',)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: InstanceOf[Model] | Path | tuple[InstanceOf[Model] | Path, ...] | None = None
    text: Path | tuple[Path, ...] | None = None
    formats: tuple[Storable, ...] | None = None
    weights: tuple[Storable, ...] | None = None
    activations: tuple[Storable, ...] | None = None
    recipes: tuple[InstanceOf[Recipe] | Path | NamedRecipe, ...] = ()
    granularities: tuple[str, ...] | None = None
    scale_formats: tuple[str, ...] | None = None
    scale_rules: tuple[str, ...] | None = None
    targets: tuple[str | InstanceOf[Target], ...] | None = None
    rounding: str | tuple[str, ...] = "rne"
    products: tuple[str, ...] = ("linears",)
    kv: tuple[Storable, ...] | None = None
    exclude: tuple[str, ...] = ()
    max_cases: int = Field(default=10_000, ge=1)
    limit_tokens: int | None = Field(default=None, ge=1, lt=1 << 63)
    window: int = Field(default=256, ge=2, lt=1 << 63)
    window_start: Literal["bos", "eos", "none"] = "bos"
    ignore_keys: tuple[str, ...] = ()
    batch: int = Field(default=8, ge=1, lt=1 << 63)
    seed: Seed | tuple[Seed, ...] = 0
    stats: bool = False
    jobs: int = Field(default=1, ge=1, le=1024)
    shard: str | None = None
    scheduler: str | None = None
    memory_limit: int | str | None = None
    cost: Path | None = None
    scale_node: str | None = None
    scale_source: str | None = None
    bandwidth_gb_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    peak_tmac_s: dict[str, Positive] | None = None
    out: Path | None = None
    resume: bool = False
    force: bool = False

    @property
    def one_model(self) -> Model | Path | None:
        """The model of a spec that names one, as those of a prepared run do."""
        return None if isinstance(self.model, tuple) else self.model

    @property
    def one_text(self) -> Path | None:
        """The text of a spec that names one."""
        return None if isinstance(self.text, tuple) else self.text

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds."""
        return self.seed if isinstance(self.seed, tuple) else (self.seed,)

    @property
    def roundings(self) -> tuple[str, ...]:
        """All roundings of the grid."""
        return self.rounding if isinstance(self.rounding, tuple) else (self.rounding,)

    # of validators before, the last written is the first that runs
    @field_validator("formats", "weights", "activations", "kv", mode="before")
    @classmethod
    def _dtypes_are_formats(cls, value: object) -> object:
        """Take dtypes of NumPy, ml_dtypes and torch as the formats they are, tables as `Quant`."""
        if not isinstance(value, list | tuple):
            return value
        return [_storable(one) for one in value]

    @field_validator("peak_tmac_s", mode="before")
    @classmethod
    def _peaks_by_format(cls, value: object) -> object:
        """Take one number for all formats, and ``float16=495,int8=989`` as on the command line."""
        if isinstance(value, str):
            parts = [part.strip() for part in value.split(",") if part.strip()]
            value = {name.strip(): peak for name, _, peak in (p.rpartition("=") for p in parts)}
        elif isinstance(value, int | float):
            value = {"": value}
        if not isinstance(value, dict):
            return value
        return {name and get_format(name).label: peak for name, peak in value.items()}

    @field_validator("model", "text", "rounding", "seed", mode="before")
    @classmethod
    def _one_stays_one(cls, value: object) -> object:
        """Take a list of one as the one."""
        if isinstance(value, list | tuple) and len(value) == 1:
            return value[0]
        if isinstance(value, str) and "," in value and not Path(value).exists():
            return [word.strip() for word in value.split(",") if word.strip()]
        return value

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_have_fields(cls, value: object) -> object:
        """Take a text with commas as a list of units, and tables of units as units."""
        if isinstance(value, str):
            return split_targets(value)
        value = value if value is None or isinstance(value, Iterable) else [value]
        return [_unit(one) for one in value] if isinstance(value, list | tuple) else value

    @field_validator(
        "formats", "weights", "activations", "kv", "recipes", "granularities", "scale_formats",
        "scale_rules", "products", "exclude", "ignore_keys", mode="before",
    )  # fmt: skip
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        """Take one thing, or a text with commas as on the command line, as a list of them."""
        if isinstance(value, str):
            return [word.strip() for word in value.split(",") if word.strip()]
        if isinstance(value, Mapping):
            return [value]
        return value if value is None or isinstance(value, Iterable) else [value]


def _storable(value: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(value.get("format"), Mapping) and len(value) == 1:
        return Format(**fields_from_table(value["format"]))  # its scales are those of the grid
    if isinstance(value, Mapping):
        return quant_from_table(value)
    return value if isinstance(value, str | Quant | Format) else get_format(value).name


def _unit(value: Any) -> Any:
    """Return a table of a unit as a rule of a recipe has it: its TOML, or name and fields."""
    if not isinstance(value, Mapping):
        return value
    table = dict(value)
    if set(table) != {"unit"} and any(isinstance(v, list) for v in table.values()):
        words = [
            f"{key}={','.join(str(v) for v in values)}"
            for key, values in ((k, v if isinstance(v, list) else [v]) for k, v in table.items())
            if key != "name"
        ]
        return ":".join([str(table.get("name", "")), *words])
    _, rule = rule_from_table({"match": "*", "target": table})
    return rule.target


TABLE = "manifest"  # in a file of settings: what was measured, not what to measure
_RULES = {  # of fields that take more than one kind of value
    "model": "a folder, org/name of the local hub cache, or a Model",
    "text": "the path of a UTF-8 file or of token ids in .npy",
    "out": "the path of a file, or None",
    "formats": "a format or a list of them: names, Quant, Format, dtypes",
    "recipes": "a Recipe or a list of them, of TOML files, or of tables with a name",
    "targets": "a unit or a list of them: names, TOML files, Target",
    "granularities": "a word or a list of them, such as per_tensor",
    "weights": "a format or a list of them: names, Quant, Format, dtypes",
    "activations": "a format or a list of them: names, Quant, Format, dtypes",
    "kv": "a format or a list of them: names, Quant, Format, dtypes",
    "rounding": "a rounding or a list of them, such as rne",
    "seed": "a whole number from 0 to 2**32 - 1, or a list of them",
    "ignore_keys": "a key of config.json or a list of them",
    "shard": "a part such as 2/4",
    "scheduler": "an address, tcp://HOST:8786",
    "memory_limit": "bytes, or text such as 4GB",
    "cost": "the path of a TOML file of rows of cost",
    "peak_tmac_s": "10**12 multiply-adds a second above 0, one number or one by format",
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
        if isinstance(fields, dict):  # a manifest also says what it measured
            fields = {name: value for name, value in fields.items() if name != TABLE}
    if not isinstance(fields, dict):
        raise NumsimError(
            f"sweep: a spec is a SweepSpec, a dict or a TOML path; got {type(spec).__name__}; "
            "fields go by name, as in sweep(formats=[...])"
        )
    file = spec if isinstance(spec, str | Path) else None
    try:
        plan = SweepSpec.model_validate(fields | more)
    except ValidationError as error:
        raise NumsimError(_sentence(error, file, more)) from None
    if file is not None:
        _check_names(plan, file, more)
    return plan


def _check_names(plan: SweepSpec, file: str | Path, more: Mapping[str, Any]) -> None:
    """Raise the error of a name in a file that is none, with the file and the key before it."""
    looks: dict[str, Callable[[Any], object]] = {
        **dict.fromkeys(("formats", "weights", "activations", "kv"), Entry.of),
        "targets": lambda given: units_of((given,)),
    }
    for key, look in looks.items():
        for given in () if key in more else getattr(plan, key) or ():
            try:
                look(given)
            except NumsimError as error:
                words = str(error).removeprefix("sweep: ").removeprefix(f"{key}: ")
                raise type(error)(f"sweep: {file}: {key}: {words}") from None


def _sentence(error: ValidationError, file: str | Path | None, more: Mapping[str, Any]) -> str:
    """Return the first error as a sentence that names the key, and the file it stands in."""
    every = error.errors()
    first = next((one for one in every if "NamedRecipe" in one["loc"]), every[0])
    name, *at = (str(part) for part in first["loc"] if not str(part).startswith("is-instance"))
    who = "sweep: " if file is None or name in more else f"sweep: {file}: "
    if isinstance(first.get("ctx", {}).get("error"), NumsimError):
        return f"{who}{name}: {first['ctx']['error']}"
    got = first["input"]
    digits = isinstance(got, int) and abs(got) >= 1 << 1000  # Python prints no thousands
    shown = "a number of hundreds of digits" if digits else shorten(repr(got), 80)
    where = ".".join([name, *(part for part in at if part.isdecimal())])
    if first["type"] == "extra_forbidden":
        inside = name == "recipes" and len(at) > 1
        known = NamedRecipe.model_fields if inside else SweepSpec.model_fields
        key = at[-1] if inside else name
        near = f"{near_names(key, known, limit=1)}; fields are {', '.join(known)}"
        return f"{who}{f'{where}: ' if inside else ''}{key!r} is no field; got it as {shown}{near}"
    words = _RULES.get(name) or first["msg"].replace("Input should be", "must be")
    return f"{who}{where}: {words}; got {shown}"
