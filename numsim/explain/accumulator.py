"""An accumulator described in a few words: what the words can mean, as units of one's own."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, NamedTuple

from numsim.decimals import exact_text
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.quant import quantize
from numsim.targets.ops import matmul
from numsim.targets.rules import Fused, IntSum, Mac, Rule
from numsim.targets.toml import toml_value
from numsim.targets.types import Target

_BITS = re.compile(r"(\d+)[\s-]*bits?\b", re.IGNORECASE)
_ROUNDINGS = (  # what a description can say, and numsim's word
    (r"trunc|chop|toward[s]? zero|\brtz\b|\bcut", "rtz"),
    (r"floor|\brdn\b|toward[s]? minus", "rdn"),
    (r"ceil|\brup\b|toward[s]? plus", "rup"),
    (r"round[\s-]*to[\s-]*odd|\brto\b|\bjam", "rto"),
    (r"ties[\s-]*away|\brna\b", "rna"),
    (r"nearest|\brne\b|ties[\s-]*to[\s-]*even", "rne"),
)
_OVERFLOWS = ((r"saturat|clamp|clip", "saturate"), (r"wrap|modulo", "wrap"))
_LEAST, _MOST = 8, 23  # bits that every reading can have


class Reading(NamedTuple):
    """One meaning of a description: what it is, and a unit that adds so."""

    words: str
    unit: Target


@known_floats
def is_accumulator(text: str) -> bool:
    """Whether a text describes an accumulator: it says how many bits.

    Examples
    --------
    >>> is_accumulator("22 bits with truncation"), is_accumulator("float8_e4m3fn")
    (True, False)
    """
    return _BITS.search(text) is not None


@known_floats
def accumulator_readings(text: str) -> tuple[Reading, ...]:
    """Return what the description of an accumulator can mean.

    Parameters
    ----------
    text
        Says how many bits, 8 to 23, and perhaps how they are rounded or overflow: ``22 bits with
        truncation``. Without a word the rounding is nearest even, and integers wrap.

    Raises
    ------
    NumsimError
        For a text that names no width, two widths, or one out of range.

    Source
    ------
    Each reading is a rule of `numsim.targets.rules`.

    Examples
    --------
    >>> [r.words.partition(":")[0] for r in accumulator_readings("22 bits with truncation")]
    ['a 22-bit float', '22 fraction bits, aligned', 'a 22-bit fixed point', 'a 22-bit integer']
    """
    bits = _width(text)
    rounding = _word(text, _ROUNDINGS) or "rne"
    overflow: Any = _word(text, _OVERFLOWS) or "wrap"
    exponent = 8 if bits >= 12 else 5
    fraction = bits - 1 - exponent
    left = bits // 2 - 1
    cut: Any = "floor" if rounding == "rdn" else "truncate"
    down = rounding in ("rtz", "rdn")
    rules: tuple[tuple[str, str, Rule], ...] = (
        (f"a {bits}-bit float: a sign, {exponent} bits of exponent, {fraction} of fraction; every "
         "sum is rounded to it", "float",
         Mac(acc_format=f"float_e{exponent}m{fraction}", rounding=rounding)),
        (f"{bits} fraction bits, aligned: terms are cut to them below the largest exponent", "bf16",
         Fused(8, bits, align=cut, rounding="rtz" if down else "rne", outputs=("float32",))),
        (f"a {bits}-bit fixed point: a sign, {left} bits before the point, {bits - 1 - left} "
         "behind it; every sum is rounded to it", "float",
         Mac(acc_format=f"q{left}.{bits - 1 - left}", rounding=rounding, overflow="saturate")),
        (f"a {bits}-bit integer: sums of whole products, which round nothing", "integer",
         IntSum(acc_bits=bits, overflow=overflow)),
    )  # fmt: skip
    if rounding not in ("rne", "rtz", "rdn"):  # what aligned sums are not known to do
        rules = (rules[0], *rules[2:])
    return tuple(
        Reading(words, Target("my.unit", ((kind, rule),), "definition", "a reading", "its words"))
        for words, kind, rule in rules
    )


@known_floats
def explain_accumulator(text: str) -> str:
    """Return the readings of an accumulator's description, with the fields of each.

    Raises
    ------
    NumsimError
        As `accumulator_readings`.

    Examples
    --------
    >>> print(explain_accumulator("22 bits with truncation").partition("or ")[0])
    22 bits with truncation can be
      a 22-bit float: a sign, 8 bits of exponent, 13 of fraction; every sum is rounded to it
        [rules.float]
        kind = "Mac"
        acc_format = "float_e8m13"
        rounding = "rtz"
        512 + 0.00469970703125 - 512 = 0
    <BLANKLINE>
    """
    lines, bits = [f"{text} can be"], _width(text)
    for i, (words, unit) in enumerate(accumulator_readings(text)):
        kind, rule = unit.rules[0]
        lines.append(("  or " if i else "  ") + words)
        lines += [f"    [rules.{kind}]", f'    kind = "{type(rule).__name__}"']
        lines += [
            f"    {f.name} = {toml_value(getattr(rule, f.name))}"
            for f in fields(rule)
            if getattr(rule, f.name) != f.default
        ]
        if kind != "integer":
            lines.append(f"    {_example(unit, bits)}")
    if _word(text, _ROUNDINGS) is None:
        lines.append("the text names no rounding: nearest even is taken")
    lines.append("a unit of one's own: these lines in a file, as numsim targets --toml prints one")
    return "\n".join(lines)


def _word(text: str, table: tuple[tuple[str, str], ...]) -> str | None:
    found = (word for pattern, word in table if re.search(pattern, text, re.IGNORECASE))
    return next(found, None)


def _width(text: str) -> int:
    widths = {int(n) for n in _BITS.findall(text)}
    if len(widths) != 1 or not _LEAST <= min(widths) <= _MOST:
        raise NumsimError(
            f"explain: an accumulator in words has one width of {_LEAST} to {_MOST} bits; got "
            f'{text[:60]!r}; as in "22 bits with truncation"'
        )
    return widths.pop()


def _example(unit: Target, bits: int) -> str:
    """Return a sum in which a large term leaves again, and what is left of the small one."""
    large = 2.0 ** (bits // 2 - 2)
    small = 77.0 * 2.0 ** (bits // 2 - 3 - bits)
    a = quantize([[large, small, -large]], "bfloat16")  # which holds them
    total = matmul(a, quantize([[1.0]] * 3, "bfloat16"), target=unit)[0, 0]
    one, other, left = (exact_text(float(x)) for x in (large, small, total))
    return f"{one} + {other} - {one} = {left}"
