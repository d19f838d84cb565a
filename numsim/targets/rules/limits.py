"""Operand classes, and what a field of a unit may hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from numsim.formats import Format, get_format
from numsim.targets.chain import Chain, Work
from numsim.targets.steps import Step

Limit = tuple[int, int] | tuple[str, ...] | frozenset[str] | frozenset[int] | type
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
    "fp8_gaudi": ("float8_e4m3", *_FP8),
    "e4m3": ("float8_e4m3",),
    "e5m2": ("float8_e5m2",),
    "f8f6f4": (*_FP8, *_SMALL),
    "fp4": ("float4_e2m1fn",),
    "int8": ("int8", "uint8"),
    "s8": ("int8",),
    "int4": ("int4", "uint4"),
    "int16": ("int16",),
    "mxint8": ("q1.6",),
}

# PTX names of products with block scales -> operand class, and the scales that each takes
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mxf8f6f4": ("mx:f8f6f4", ("float8_e8m0fnu/32",)),
    "mxf4": ("mx:fp4", ("float8_e8m0fnu/32",)),
    "mxf4nvf4": ("mx:fp4", ("float8_e8m0fnu/32", "float8_e8m0fnu/16", "float8_e4m3fn/16")),
}

WIDE = ("float", "number", "integer", "u8s8")  # classes beside those of CLASSES
INTEGERS = ("integer", "int8", "s8", "int4", "int16", "u8s8", "mxint8")
GROUP = (1, 1 << 20)
NANS = ("ones", "quiet")
NAN_WORDS = "bits of NaN results: ones 0x7FFFFFFF, quiet 0x7FC00000"
E8M0_BLOCKS = frozenset(f"float8_e8m0fnu/{length}" for length in (16, 32, 64, 128))
BLOCK_WORDS = "scales that a class mx: applies inside the unit, as format/length; unset: MX"
OUTPUT_WORDS = "formats in which the unit can return the sum; the first is usual"


class Adder(NamedTuple):
    """What decides how large the hardware of a rule is; see `numsim.cost.area.Unit`."""

    products: int  # added in a step
    align_bits: int | None  # fraction bits that the alignment of floats keeps; None: all
    acc_bits: int | None = None  # of an accumulator of integers or exact sums; None: float32


ANY_GROUP = 32  # products of a step whose sum does not depend on how many they are


def _its_group(rule: Any, depth: int) -> int:
    return rule.group or depth


@dataclass(frozen=True)
class Kind:
    """What there is to say about one kind of rule; a new rule is one of these and a kernel.

    A rule's dataclass has `outputs`, the formats in which it returns sums, and `nan`, ``ones`` or
    ``quiet``: as fields, or as constants of the class where all such units agree.

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
    definition
        Runs any chain, one output at a time, and counts what it loses where the chain has a tally.
    explain
        Yields the lines of `numsim explain mma` about one step of a rule.
    contradiction
        What is wrong with a rule for a class, given the fields that a user set; "" where nothing.
    changes
        Whether a change of a unit's field to a value means the rule that it has for a class.
    step
        How many k of a chain the unit takes before it writes its accumulator.
    formats
        Formats in which the unit holds its accumulator and what it adds to it; (): the output's.
    adder
        How large the hardware is, for the formats of two operands; None: no model says.
    is_float32_chain
        Whether fused multiply-adds of float32 in increasing k give the sums of a rule, where their
        products add up to at most so many quanta.
    means
        The rule that this one is another spelling of.
    integers
        Sums are integers: the rule has the fields of `IntSum`.
    run_of_k
        What chains are multiples of: the k that share a scale inside the unit.
    """

    rule: type
    words: str
    fields: Mapping[str, str]
    limits: Mapping[str, Limit]
    takes: Callable[[str], bool]
    definition: Callable[[Chain], Work]
    explain: Callable[[Any, Step], Iterator[str]]
    contradiction: Callable[[Any, str, Mapping[str, Any]], str] = lambda rule, kind, given: ""
    changes: Callable[[Any, str, str, object], bool] = lambda rule, kind, key, value: True
    step: Callable[[Any, int], int] = _its_group
    formats: Callable[[Any], tuple[str | Format, ...]] = lambda rule: ()
    means: Callable[[Any], Any] = lambda rule: rule
    adder: Callable[[Any, Format, Format], Adder | None] = lambda rule, a, b: None
    is_float32_chain: Callable[[Any, float], bool] = lambda rule, largest: False
    integers: bool = False
    run_of_k: int = 1


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


def blocks_of(rule: Any) -> tuple[tuple[str, int], ...]:
    """Return the formats and lengths of blocks whose scales a unit applies itself.

    >>> from numsim.targets.rules import ScaledFp4
    >>> blocks_of(ScaledFp4())[0]
    ('float8_e8m0fnu', 32)
    """
    pairs = (text.split("/") for text in rule.blocks or ("float8_e8m0fnu/32",))
    return tuple((name, int(length)) for name, length in pairs)


def no_blocks(rule: Any, kind: str, given: Mapping[str, Any]) -> str:
    """Return what is wrong where a class without block scales says which they are."""
    if "blocks" in given and rule.blocks and not is_scaled(kind):
        return f'blocks are scales inside the unit: name the class "mx:{kind}"'
    return ""


def aligns(kind: str) -> str:
    """Return why a rule that aligns floats cannot have a class, "" where it can."""
    operands = operands_of(kind)
    if operands in (*WIDE, *INTEGERS):
        return f"aligns floats of one class; {operands} is none"
    if max((get_format(name).precision for name in CLASSES.get(operands, ())), default=0) > 16:
        return "multiplies significands of at most 16 bits"
    return ""
