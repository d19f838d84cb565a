"""What a recipe says of operators: frozen data, checked when it is made.

An operator's name is ``layers.0.softmax``, ``layers.3.attn_norm``, ``layers.1.act``,
``layers.0.rotary``, ``layers.0.residual``, ``embedding`` or ``logits``. Its kind is what the last
part ends with; a kind has settings of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from numsim.arguments import choice
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.formats import FormatLike, get_format
from numsim.operators.chains import exp2_variant
from numsim.operators.rounded import check_order, rounding_to
from numsim.vocabulary import ROUNDINGS

VARIANTS = ("silu", "sigmoid", "steps")  # of silu
_SUM = ("sum", "sum_format", "sum_rounding", "out_format", "out_rounding")
SETTINGS = {  # kind of operator: what it has beside format and rounding
    "softmax": (*_SUM, "divide", "base", "exp", "tile", "rescale_threshold"),
    "norm": (*_SUM, "mean", "eps_place", "inv", "weight_format", "weight_rounding"),
    "act": ("variant",),
    "rotary": ("fma",),
    "residual": (),
    "embedding": (),
    "logits": (),
}
_WORDS = {
    "divide": ("divide", "reciprocal"), "mean": ("divide", "reciprocal"), "base": ("e", "2"),
    "eps_place": ("inside", "outside"), "inv": ("rsqrt", "sqrt_recip"),
    "variant": VARIANTS,
}  # fmt: skip
_FORMATS = ("format", "sum_format", "out_format", "weight_format")


@known_floats
@dataclass(frozen=True, slots=True)
class Op:
    """How an operator outside the matrix products computes.

    Parameters
    ----------
    format, rounding
        Every intermediate is rounded to it, what goes in as well.
    sum, sum_format, sum_rounding, out_format, out_rounding
        Of softmax and norms, see `numsim.operators.softmax`; None: its default.
    divide, base
        Of softmax.
    exp
        Of softmax: ``exact``, or with base 2 ``exp2_poly:3``, ``exp2_lut:16``,
        ``ex2.approx.ftz.f32`` and its like: see `numsim.operators.softmax`.
    tile
        Of softmax: keys in a tile of `numsim.operators.online_softmax`, which attends as flash
        attention does: probabilities of a tile meet its values, in the unit of the product ``pv``,
        before the sum is known. The steps are float32, those that rescale exact, and `out_format`
        is what probabilities are rounded to before they meet the values; what `pv`
        stores of these has scales of its tile.
    rescale_threshold
        Beside `tile`: of log2, a new maximum at most so much larger does not rescale; None: always.
    mean, eps_place, inv, weight_format, weight_rounding
        Of norms, see `numsim.operators.layernorm` and ``rmsnorm``.
    variant
        Of activations that are silu: ``silu``, ``sigmoid`` or ``steps``.
    fma
        Of rotary positions.

    Raises
    ------
    NumsimError
        For an unknown word, or a format that operators do not round to.

    Examples
    --------
    >>> Op("bfloat16", sum="lanes:8").settings()
    {'sum': 'lanes:8'}
    """

    format: FormatLike = "float32"
    rounding: str = "rne"
    sum: str | None = None
    sum_format: FormatLike | None = None
    sum_rounding: str | None = None
    out_format: FormatLike | None = None
    out_rounding: str | None = None
    divide: str | None = None
    base: str | None = None
    exp: str | None = None
    tile: int | None = None
    rescale_threshold: float | None = None
    mean: str | None = None
    eps_place: str | None = None
    inv: str | None = None
    weight_format: FormatLike | None = None
    weight_rounding: str | None = None
    variant: str | None = None
    fma: bool | None = None

    def __post_init__(self) -> None:
        for name in _FORMATS:
            value = getattr(self, name)
            if value is not None:
                rounding_to(value)
                object.__setattr__(self, name, _name(value))
        for name in ("rounding", "sum_rounding", "out_rounding", "weight_rounding"):
            if getattr(self, name) is not None:
                choice(name, getattr(self, name), tuple(r for r in ROUNDINGS if r != "sr"))
        for name, words in _WORDS.items():
            if getattr(self, name) is not None:
                choice(name, str(getattr(self, name)), words)
        self._check_words()

    def _check_words(self) -> None:
        """Refuse what a run would only find where it gets there, or would not look at."""
        if self.sum is not None:
            check_order(self.sum)
        kind = "exact" if self.exp is None else exp2_variant(self.exp)[0]
        if kind != "exact" and self.base is not None and str(self.base) == "e":
            raise NumsimError(f"ops: {self.exp} computes 2**x; got base 'e'; leave base out")
        for part in ("sum", "out", "weight"):
            given = getattr(self, f"{part}_rounding")
            if given is not None and getattr(self, f"{part}_format") is None:
                raise NumsimError(
                    f"ops: {part}_rounding is of {part}_format; got {given!r} without one; give it"
                )
        if not isinstance(self.fma, bool | None):
            raise NumsimError(f"ops: fma is true or false; got {self.fma!r:.40}")
        if self.tile is None and self.rescale_threshold is None:
            return
        whole = isinstance(self.tile, int) and not isinstance(self.tile, bool) and self.tile >= 1
        if not whole:
            raise NumsimError(
                f"ops: tile is a number of keys, 1 or more; got {self.tile!r:.40}; 128 is usual"
            )
        limit = self.rescale_threshold
        number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if limit is not None and not (number and 0 <= limit <= 64):
            raise NumsimError(f"ops: rescale_threshold is 0 to 64; got {limit!r:.40}; 8 is usual")
        has = ("tile", "rescale_threshold", "exp", "out_format", "out_rounding")
        more = [key for key in self.settings() if key not in has]
        if self.format != "float32" or self.rounding != "rne" or more:
            raise NumsimError(
                "ops: a softmax by tiles has float32 steps and a sequential sum; got "
                f"{self.table()!r:.160}; beside tile give {', '.join(has[1:])} only"
            )

    def settings(self) -> dict[str, Any]:
        """Return what is set beside format and rounding."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in given.items() if v is not None and k not in ("format", "rounding")}

    def table(self) -> dict[str, Any]:
        """Return the fields of a TOML table that `op_from_table` reads back."""
        plain = {} if self.rounding == "rne" else {"rounding": self.rounding}
        return {"format": self.format} | plain | self.settings()


def _name(value: FormatLike) -> str:
    return get_format(value).name


def op_from_table(glob: str, table: Mapping[str, Any]) -> Op:
    """Return the `Op` of a table.

    Raises
    ------
    NumsimError
        For a key that no operator has, and a value that it cannot take.
    """
    known = tuple(f.name for f in fields(Op))
    for key in table:
        if key not in known:
            raise NumsimError(
                f"ops {glob!r}: unknown key {key!r}{near_names(str(key), known)}; known: "
                f"{', '.join(known)}"
            )
    return Op(**table)


def kind_of(name: str) -> str:
    """Return the kind of an operator by its name.

    Examples
    --------
    >>> kind_of("layers.0.attn_norm"), kind_of("decoder.layers.1.cross_softmax")
    ('norm', 'softmax')
    """
    return next(kind for kind in SETTINGS if name.endswith(kind))


def check_op(glob: str, name: str, op: Op) -> None:
    """Refuse settings that the operator of a name does not have.

    Raises
    ------
    NumsimError
        They are named.
    """
    kind = kind_of(name)
    wrong = [key for key in op.settings() if key not in SETTINGS[kind]]
    if wrong:
        raise NumsimError(
            f"ops {glob!r}: {name} is of kind {kind}, which has format, rounding"
            f"{''.join(', ' + key for key in SETTINGS[kind])}; got {', '.join(wrong)}"
        )


Ops = tuple[tuple[str, Op], ...]


def ops_of(given: Any) -> Ops:
    """Return (glob, Op) pairs of a mapping or of pairs; a mapping may stand for an `Op`.

    Raises
    ------
    NumsimError
        For anything else.
    """
    try:
        pairs = given.items() if isinstance(given, Mapping) else given
        listed = [(glob, op) for glob, op in pairs]
    except (TypeError, ValueError):
        listed = [(None, given)]
    made = tuple(
        (glob, op_from_table(str(glob), op) if isinstance(op, Mapping) else op)
        for glob, op in listed
    )
    for glob, op in made:
        if not (isinstance(glob, str) and isinstance(op, Op)):
            raise NumsimError(
                f"Recipe: ops maps globs of operators to Op; got {glob!r}: {op!r:.60}; write "
                'ops={"*.softmax": Op("bfloat16")}'
            )
    return made


def ops_for(ops: Ops, names: Iterable[str]) -> dict[str, Op]:
    """Return the `Op` of each operator that a glob names: the last one wins, as of products.

    A glob without a dot is compared with the last part of a name too.

    Raises
    ------
    NumsimError
        For a glob that names no operator, or settings that one does not have.

    Examples
    --------
    >>> found = ops_for((("*norm", Op()), ("residual", Op("bfloat16"))),
    ...                 ["layers.0.attn_norm", "layers.0.residual", "layers.0.act"])
    >>> {name: op.format for name, op in found.items()}
    {'layers.0.attn_norm': 'float32', 'layers.0.residual': 'bfloat16'}
    """
    known, found = tuple(names), {}
    for glob, op in ops:
        matches = [
            name
            for name in known
            if fnmatchcase(name, glob) or fnmatchcase(name.rpartition(".")[2], glob)
        ]
        if not matches:
            raise NumsimError(
                f"Recipe: every glob of ops must name an operator; {glob!r} names none of "
                f"{', '.join(known[:6])} ...{near_names(glob, known)}"
            )
        for name in matches:
            check_op(glob, name, op)
            found[name] = op
    return found
