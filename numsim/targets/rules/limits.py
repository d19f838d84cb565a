"""Operand classes, and what a field of a unit may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numsim.formats import get_format

Limit = tuple[int, int] | tuple[str, ...] | frozenset[str] | type
"""A range of whole numbers, the words of a field, those of a list, `bool`, or `Format`."""

OUTPUTS = ("float32", "float16", "bfloat16")  # formats of results, and NumPy types of them

_FP8 = ("float8_e4m3fn", "float8_e5m2")
_SMALL = ("float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn")

# operand class -> formats that belong to it; a target lists the classes it accepts
CLASSES: dict[str, tuple[str, ...]] = {
    "fp32": ("float32",),
    "tf32": ("tfloat32",),
    "fp16": ("float16",),
    "bf16": ("bfloat16",),
    "fp8": _FP8,
    "fp8_fnuz": ("float8_e4m3fnuz", "float8_e5m2fnuz"),
    "f8f6f4": (*_FP8, *_SMALL),
    "fp4": ("float4_e2m1fn",),
    "int8": ("int8", "uint8"),
    "s8": ("int8",),
    "int4": ("int4", "uint4"),
    "int16": ("int16",),
}

WIDE = ("float", "number", "integer", "u8s8")  # classes beside those of CLASSES
INTEGERS = ("integer", "int8", "s8", "int4", "int16", "u8s8")
GROUP = (1, 1 << 20)
OUTPUT_WORDS = "formats in which the unit can return the sum; the first is usual"


@dataclass(frozen=True)
class Kind:
    """What there is to say about one kind of rule.

    Parameters
    ----------
    rule
        The dataclass of the rule.
    words
        What the rule does, on one line.
    fields
        What each field means, on one line each.
    limits
        What each field may hold.
    takes
        Whether an operand class can have such a rule.
    contradiction
        What is wrong with a rule for a class, given the fields that a user set; "" where nothing.
    """

    rule: type
    words: str
    fields: Mapping[str, str]
    limits: Mapping[str, Limit]
    takes: Callable[[str], bool]
    contradiction: Callable[[Any, str, Mapping[str, Any]], str] = lambda rule, kind, given: ""


def is_scaled(kind: str) -> bool:
    """Whether a class is that of operands with block scales, which the unit applies itself."""
    return kind.startswith("mx:")


def has_output(kind: str) -> bool:
    """Whether a class names an output format, as ``fp8->float16``."""
    return "->" in kind


def operands_of(kind: str) -> str:
    """Return an operand class without block scales and output.

    >>> operands_of("mx:f8f6f4"), operands_of("fp8->float16")
    ('f8f6f4', 'fp8')
    """
    return kind.removeprefix("mx:").partition("->")[0]


def aligns(kind: str) -> str:
    """Return why a rule that aligns floats cannot have a class, "" where it can."""
    operands = operands_of(kind)
    if operands in (*WIDE, *INTEGERS):
        return f"aligns floats of one class; {operands} is none"
    if max((get_format(name).precision for name in CLASSES.get(operands, ())), default=0) > 16:
        return "multiplies significands of at most 16 bits"
    return ""
