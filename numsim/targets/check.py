"""What a unit may not say: fields out of range, and fields that contradict each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from itertools import combinations
from typing import Any, get_args

from numsim.arguments import ROUNDINGS
from numsim.errors import NumsimError, near_names
from numsim.formats import get_format
from numsim.targets.types import (
    CLASSES,
    Exact,
    Fused,
    IntSum,
    Mac,
    Maturity,
    Rule,
    ScaledFp4,
    Target,
    TwoStage,
)

WIDE = ("float", "number", "integer", "u8s8")  # classes beside those of CLASSES
_INTEGERS = ("integer", "int8", "s8", "int4", "int16", "u8s8")
_RANGES: dict[str, tuple[int, int]] = {
    "group": (1, 1 << 20), "align_bits": (1, 35), "keep_bits": (1, 23), "acc_bits": (8, 64),
    "outer_bits": (8, 64), "pair_bits": (8, 62), "sum_bits": (1, 40), "streams": (1, 2),
    "min_exponent": (-1000, 127), "promote_every": (1, 1 << 30), "split_k": (1, 1 << 20),
    "split_tile": (1, 1 << 20),
}  # fmt: skip
_WORDS: dict[str, tuple[str, ...]] = {
    "overflow": ("wrap", "saturate", "raise"),
    "accumulator": ("joins", "late", "halves"),
    "order": ("sequential", "tree", "odd_first", "two_chains", "exact"),
    "rounding": ROUNDINGS[:6],
    "tiny": ("stored", "unbounded"),
    "align": ("truncate", "floor"),
    "nan": ("ones", "quiet"),
    "split_order": ("contiguous", "serial", "pairwise"),
}


def words_of(item: Target | Rule, key: str) -> tuple[str, ...] | None:
    """Return the words that a field can be, None for other fields."""
    if isinstance(item, Mac) and key == "overflow":
        return ("ieee", "inf", "saturate")
    if isinstance(item, Fused) and key == "rounding":
        return ("rtz", "rne")
    return _WORDS.get(key)


def takes(kind: str, rule: Rule, key: str, value: object) -> bool:
    """Whether a field of the rule for an operand class can have this value.

    Examples
    --------
    >>> takes("float", Mac(), "overflow", "wrap"), takes("integer", IntSum(), "overflow", "wrap")
    (False, True)
    """
    if not hasattr(rule, key):
        return False
    if key == "group" and isinstance(rule, Mac):
        return rule.order in ("tree", "two_chains", "exact")
    if key == "order" and value == "exact" and isinstance(rule, Mac):
        return rule.group is not None
    if value == "halves":
        return "->" in kind
    words = words_of(rule, key)
    return words is None or value in words


def key_of(kind: str) -> str:
    """Return an operand class as a TOML key."""
    return kind if kind.replace("_", "").isalnum() else json.dumps(kind)


def check_target(target: Target, said: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise NumsimError for fields out of range or that contradict each other."""
    for key in ("name", "maturity", "evidence", "source"):
        value = getattr(target, key)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise NumsimError(f"{key} is a text on one line; got {value!r}")
    words = get_args(Maturity)
    if target.maturity not in words:
        raise NumsimError(
            f"maturity is one of {', '.join(words)}; got {target.maturity!r}"
            f"{near_names(target.maturity, words)}"
        )
    if not target.rules:
        raise NumsimError(f"{target.name}: a unit has a rule for each operand class; none came")
    _check_fields(target.name, target)
    for _, rule in target.rules:
        _check_fields(target.name, rule)
    for key in ("split_order", "split_tile"):
        if key in said.get("", {}) and target.split_k == 1:
            raise NumsimError(
                f"{target.name}: {key} says how K is split, but split_k is 1; set both"
            )
    for (kind, rule), (other, second) in combinations(target.rules, 2):
        shared = _shared(kind, other)
        if shared and rule != second:
            raise NumsimError(
                f"{target.name}: classes {kind} and {other} both have {', '.join(sorted(shared))}, "
                "with rules that differ; make them equal or drop one"
            )
    for kind, rule in target.rules:
        _check_rule(target, kind, rule, said.get(kind, {}))


def _check_fields(name: str, item: Target | Rule) -> None:
    for f in fields(item):
        value = getattr(item, f.name)
        if value is None and f.default is None:
            continue
        if f.name in _RANGES:
            low, high = _RANGES[f.name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise NumsimError(
                    f"{name}: {f.name} is {low} to {high}, a whole number; got {value!r}"
                )
        elif (words := words_of(item, f.name)) is not None:
            if value not in words:
                raise NumsimError(
                    f"{name}: {f.name} is one of {', '.join(words)}; got {value!r}"
                    f"{near_names(str(value), words)}"
                )
        elif f.name in ("fused", "flush", "zero_products", "negative_zero"):
            if not isinstance(value, bool):
                raise NumsimError(f"{name}: {f.name} is True or False; got {value!r}")
        elif f.name in ("acc_format", "product_format"):
            try:
                fmt = get_format(value)
            except NumsimError as error:
                raise NumsimError(f"{name}: {f.name}: {error}") from None
            known = fmt.kind in ("float", "integer") and fmt.signed and fmt.zero
            if not known or not 2 <= fmt.params.p <= 24:
                raise NumsimError(
                    f"{name}: {f.name} is a signed float of 2 to 24 bits of precision, or a signed "
                    f"integer or fixed-point format of at most 23 bits; got {fmt.name}"
                )


def _check_rule(target: Target, kind: str, rule: Rule, given: Mapping[str, Any]) -> None:
    """Raise NumsimError where fields, or the class and the rule, contradict each other."""
    where, name = f"{target.name}: [rules.{key_of(kind)}]", type(rule).__name__
    operands, arrow, _ = kind.removeprefix("mx:").partition("->")
    fits: tuple[type, ...] = (Exact, Mac, Fused, TwoStage)
    if kind.startswith("mx:"):
        fits = (Fused, ScaledFp4) if operands == "fp4" else (Fused,)
    elif arrow:
        fits = (Fused,)
    elif operands in _INTEGERS:
        fits = (IntSum, Exact) if operands == "integer" else (IntSum, Exact, Mac)
    elif operands in WIDE:
        fits = (Exact,) if operands == "number" else (Exact, Mac)
    if not isinstance(rule, fits):
        raise NumsimError(
            f"{where}: operands {kind!r} take {', '.join(f.__name__ for f in fits)}; got {name}"
        )
    problem = ""
    if isinstance(rule, Mac):
        if rule.product_format is not None and given.get("fused"):
            problem = "fused = true leaves products exact, product_format rounds them; keep one"
        elif rule.group is not None and rule.order in ("sequential", "odd_first"):
            problem = f"group cuts K for tree, two_chains and exact; order is {rule.order}"
        elif rule.order == "exact" and (rule.group is None or rule.flush or not _plain(rule)):
            problem = "order = exact has a group, float32, rne, no product_format and no flush"
    elif isinstance(rule, IntSum) and rule.pair_bits is not None and rule.group % 2:
        problem = f"pair_bits adds products in pairs; group is odd ({rule.group})"
    elif isinstance(rule, Fused) and rule.accumulator == "halves" and not arrow:
        problem = f'accumulator = "halves" gives float16: name the class "{kind}->float16"'
    elif isinstance(rule, TwoStage) and rule.sum_bits < rule.align_bits:
        problem = f"sum_bits ({rule.sum_bits}) is at least align_bits ({rule.align_bits})"
    elif isinstance(rule, Fused | TwoStage) and operands in (*WIDE, *_INTEGERS):
        problem = f"{name} aligns floats of one class; {operands} is none"
    elif isinstance(rule, Fused | TwoStage) and _precision(operands) > 16:
        problem = f"{name} multiplies significands of at most 16 bits"
    if problem:
        raise NumsimError(f"{where}: {problem}")


def _plain(rule: Mac) -> bool:
    given = (rule.acc_format, rule.product_format, rule.rounding, rule.overflow)
    return given == ("float32", None, "rne", "ieee")


def _shared(kind: str, other: str) -> set[str]:
    """Return the formats that two operand classes of the same kind and output both take."""

    def split(name: str) -> tuple[bool, str, set[str]]:
        operands, _, out = name.removeprefix("mx:").partition("->")
        formats = ("uint8", "int8") if operands == "u8s8" else CLASSES.get(operands, ())
        return name.startswith("mx:"), out, set(formats)

    (scaled, out, formats), (scaled_2, out_2, formats_2) = split(kind), split(other)
    if kind == other or (scaled, out) != (scaled_2, out_2) or scaled:
        return set()  # block scales say which of two rules it is
    if {"u8s8", "s8"} == {kind, other}:
        return set()  # never the same pair
    return formats & formats_2


def _precision(operands: str) -> int:
    return max((get_format(name).precision for name in CLASSES.get(operands, ())), default=0)
