"""What a sweep is asked for, format by format: how it is stored, which unit multiplies it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from numsim.errors import NumsimError, SkippedWarning, UnsupportedError, warn
from numsim.formats import Format, get_format, table_name
from numsim.models import Recipe, Rule
from numsim.quant import QUANTS, Quant, recipe_name
from numsim.targets import Target, get_target, list_targets, rule_for
from numsim.targets.table import label

DEFAULT_FORMATS = (
    "float8_e4m3fn", "float8_e5m2", "int8", "int4", "q3.4", "bfloat16",
    "mxfp8_e4m3", "mxint8", "mxfp4_e2m1", "nvfp4",
)  # fmt: skip
DEFAULT_GRANULARITIES = ("per_tensor", "per_channel+per_token")
FAKE_QUANT = "ideal.fp32"  # the target whose rows are fake quantisation
EXACT_UNITS = ("ideal.int", "nvidia.hopper.wgmma")  # the first that takes a format is its unit
BLOCK_UNITS = ("ideal.int", "nvidia.blackwell.tcgen05")  # of formats with block scales
_WIDE = 63  # formats of float32's range are stored without a scale
BLOCK_SCALES = ("float8_e8m0fnu", "float8_e4m3fn")  # that BLOCK_UNITS apply


def split_granularity(text: str) -> tuple[str, str]:
    """Return (weights, activations) of ``"per_tensor"`` or ``"per_channel+per_token"``.

    Examples
    --------
    >>> split_granularity("per_channel+per_token")
    ('per_channel', 'per_token')
    """
    weights, _, activations = text.partition("+")
    return weights, activations or weights


def default_target(fmt: Format, *, blocks: bool = False) -> str:
    """Return the exact unit of a format, with or without block scales; else ``ideal.fp32``.

    Examples
    --------
    >>> default_target(get_format("q3.4")), default_target(get_format("e3m2"))
    ('ideal.int', 'ideal.fp32')
    """
    units = BLOCK_UNITS if blocks else EXACT_UNITS
    return next((name for name in units if takes(get_target(name), fmt)), FAKE_QUANT)


def default_granularities(fmt: Format) -> tuple[str, ...]:
    """Return the scales that a format is swept with where none are asked for.

    Examples
    --------
    >>> default_granularities(get_format("q3.4")), default_granularities(get_format("bf16"))
    (('none',), ('none',))
    """
    fixed_point = fmt.kind == "integer" and fmt.bias != 0
    return ("none",) if fixed_point or fmt.emax >= _WIDE else DEFAULT_GRANULARITIES


def units_of(targets: Iterable[str | Target]) -> list[tuple[str, str, Target]]:
    """Return what results call each target, a digest where it is no named unit, the unit.

    A unit of a file goes by its own name, by the file where another one of them has that name.
    """
    units = [(target, get_target(target)) for target in targets]
    found = []
    for target, unit in units:
        called = label(unit)
        digest = hashlib.sha256(unit.to_toml().encode()).hexdigest()[:16]
        if any(label(other) == called and other != unit for _, other in units):
            called = target if isinstance(target, str) else f"{called} {digest[:8]}"
        found.append((called, "" if label(unit) in list_targets() else digest, unit))
    return found


@dataclass(frozen=True)
class Storage:
    """One of the `formats` of a sweep.

    Attributes
    ----------
    called
        The name in results.
    fmt
        Its element format.
    rule
        Where it is a storage rule, which brings scales of its own.
    rounding
        That of a `Quant`; named rules and formats are rounded as the sweep says.
    digest
        Of all of it, where `called`, granularity and rounding do not say it.
    """

    called: str
    fmt: Format
    rule: Quant | None = None
    rounding: str | None = None
    digest: str = ""

    @classmethod
    def of(cls, given: str | Quant | Format) -> Storage:
        """Return the storage that a name, a `Quant` or a `Format` stands for."""
        rule = given if isinstance(given, Quant) else None
        named = next((name for name, known in QUANTS.items() if known == rule), recipe_name(given))
        if named is not None:
            return cls(named, QUANTS[named].fmt, QUANTS[named])
        fmt = given.fmt if isinstance(given, Quant) else get_format(given)
        if rule is None:
            return cls(fmt.label, fmt, digest="" if table_name(fmt) else _digest(Quant(fmt)))
        said = rule.block is None and rule == Quant(fmt, rule.granularity, rounding=rule.rounding)
        digest = "" if said and table_name(fmt) else _digest(rule)
        return cls(fmt.label, fmt, rule, rule.rounding, digest)

    @property
    def unit(self) -> str:
        """The unit where the sweep names none."""
        blocks = self.rule is not None and self.rule.scale_format in BLOCK_SCALES
        return default_target(self.fmt, blocks=blocks)

    def granularities(self, asked: tuple[str, ...] | None, rounding: str) -> tuple[str, ...]:
        """Return the scales to sweep, checked."""
        if self.rule is not None:
            return (str(self.rule.granularity),)
        result = default_granularities(self.fmt) if asked is None else asked
        for granularity in result:
            for part in split_granularity(granularity):
                Quant(self.fmt, part, rounding=rounding)
        return result

    def sides(self, granularity: str, rounding: str) -> tuple[Quant, Quant] | None:
        """Return the storage of weights and activations where their names do not say it."""
        if not self.digest:
            return None
        if self.rule is not None:
            return self.rule, self.rule
        weights, activations = (
            Quant(self.fmt, side, rounding=rounding) for side in split_granularity(granularity)
        )
        return weights, activations


def _digest(rule: Quant) -> str:
    return Recipe((("*", Rule(rule, rule)),)).digest()


def check_granularities(entries: list[Storage], asked: tuple[str, ...] | None) -> None:
    """Refuse granularities that no format uses; warn of formats that bring scales of their own."""
    own = {entry.called: entry.rule for entry in entries if entry.rule is not None}
    if not own or asked is None or set(asked) <= {str(rule.granularity) for rule in own.values()}:
        return
    words = ", ".join(f"{called} ({_scales(rule)})" for called, rule in own.items())
    if all(entry.rule is not None for entry in entries):
        raise NumsimError(
            f"sweep: storage rules bring scales of their own: {words}; granularity "
            f"{', '.join(asked)} is for plain formats; leave it out, or add a plain format"
        )
    warn(
        f"sweep: granularity is ignored by storage rules, which bring scales of their own: {words}",
        SkippedWarning,
    )


def _scales(rule: Quant) -> str:
    block = "" if rule.block is None else f" {rule.block}"
    return f"{rule.granularity}{block}"


def takes(target: Target, fmt: Format) -> bool:
    """Return whether the unit multiplies the format by itself."""
    try:
        rule_for(target, fmt, fmt)
    except UnsupportedError:
        return False
    return True
