"""The words of scales in a `Quant`: what formats they have, and what rules choose them."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from typing import Any

from numsim.errors import NumsimError, near_names
from numsim.formats import Format, format_name, get_format

POW2_FORMATS = ("pow2", "float8_e8m0fnu")
POW2_RULES = ("floor", "ceil", "even", "rceil", "midmax", "mse")
CLIP_RULES = ("mse", "kl", "percentile:P")  # all but mse: entries of THRESHOLDS in clip.py
# rules that choose between two ways to store a block; their scales are E4M3
CHOICE_RULES = ("4over6:mae", "4over6:mse", "if4")


def scale_bits(scale_format: str) -> int:
    """Return the bits of one stored scale.

    >>> scale_bits("float32"), scale_bits("pow2"), scale_bits("float8_ue4m3")
    (32, 8, 8)
    """
    return 8 if scale_format == "pow2" else -(-get_format(scale_format).bits // 8) * 8


def has_two_levels(scale_format: str) -> bool:
    """Whether block scales of a format are so narrow that a float32 scale stands above them.

    >>> has_two_levels("float8_e4m3fn"), has_two_levels("float8_e8m0fnu"), has_two_levels("float16")
    (True, False, False)
    """
    return scale_format not in POW2_FORMATS and get_format(scale_format).bits < 16


def check_scale_format(name: Any) -> None:
    """Refuse what is no format of scales.

    Raises
    ------
    NumsimError
        For another word, or a format that scales do not have.
    """
    known = name in ("pow2", "float32")
    if not known:
        try:
            f = get_format(name)
        except NumsimError as error:
            raise NumsimError(
                f"Quant: scale_format is float32, pow2 or a float format such as bfloat16, "
                f"float8_e8m0fnu, float8_e4m3fn; got {name!r:.60}"
                f"{near_names(str(name), ('float32', 'bfloat16', 'pow2', 'float8_e8m0fnu', 'float8_e4m3fn'))}"  # noqa: E501
            ) from error
        known = (f.kind == "float" or f.name == "float8_ue6m2") and f.bits <= 16 and f.max >= 1
    if not known:
        raise NumsimError(
            "Quant: scale_format is float32, pow2 or a float format of up to 16 bits; got "
            f"{name!r:.60}"
        )


def rules_of(scale_format: str, fmt: Format) -> tuple[str, ...]:
    """Return the scale rules that a scale format has for an element format."""
    if scale_format in POW2_FORMATS:
        return POW2_RULES
    if scale_format == "float8_ue6m2":
        return ("hif4",) if fmt.name == "float4_e1m2fn" else ()
    rules: tuple[str, ...] = ("amax", *CLIP_RULES)
    if not has_two_levels(scale_format):
        rules = (*rules, "amax:BOUND")
        return (*rules, "amax_half") if fmt.kind == "integer" else rules
    e4m3 = scale_format in ("float8_e4m3fn", "float8_ue4m3")
    return (*rules, *CHOICE_RULES) if e4m3 and fmt.name == "float4_e2m1fn" else rules


def scale_format_name(word: Any) -> Any:
    """Return the canonical name of a scale format; other words, which `Quant` refuses, as they are.

    Examples
    --------
    >>> scale_format_name("e8m0"), scale_format_name("pow2")
    ('float8_e8m0fnu', 'pow2')
    """
    if isinstance(word, Format):  # one of one's own has no name that says what it is
        return format_name(word, "Quant: scale_format")
    with suppress(NumsimError):
        return format_name(word, "Quant: scale_format")
    return word


def rule_name(rule: str) -> str:
    """Return a scale rule as tables have it, without its number.

    Examples
    --------
    >>> [rule_name(rule) for rule in ("percentile:99.9", "amax:1200", "kl", "percentile:0")]
    ['percentile:P', 'amax:BOUND', 'kl', 'percentile:0']
    """
    if percentile(rule) is not None:
        return "percentile:P"
    return "amax:BOUND" if amax_bound(rule) is not None else rule


def percentile(rule: str) -> Fraction | None:
    """Return P of ``percentile:P``, 0 < P <= 100; None for another rule.

    Examples
    --------
    >>> percentile("percentile:99.9"), percentile("percentile:0"), percentile("amax")
    (Fraction(999, 10), None, None)
    """
    head, _, text = str(rule).partition(":")
    if head != "percentile" or not text.replace(".", "", 1).isdecimal() or not text.isascii():
        return None
    value = Fraction(text)
    return value if 0 < value <= 100 else None


def amax_bound(rule: str) -> float | None:
    """Return BOUND of ``amax:BOUND``, above 0 and within float32; None for another rule.

    Examples
    --------
    >>> amax_bound("amax:1200"), amax_bound("amax:-1"), amax_bound("amax")
    (1200.0, None, None)
    """
    head, _, text = str(rule).partition(":")
    if head != "amax" or not text.isascii() or len(text) > 40:
        return None
    with suppress(ValueError):
        value = float(text)
        return value if 1e-30 <= value <= 3e38 else None
    return None
