"""Words and numbers of results as people read them, on screen and in reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numsim.errors import printable

# the rule that a scale of this format has unless somebody asked for another
_USUAL_RULES = {"": "", "float32": "amax", "float8_e8m0fnu": "floor", "float8_e4m3fn": "amax"}
LONGEST_K = 4096  # of the products of larger networks; shorter ones leave accumulators untested


def with_error(value: float, error: float | None, sign: str = "", *, brackets: bool = False) -> str:
    """Return a number and its standard error, whose first digit ends both.

    `brackets`: the shorter form of metrology, the error counts units of the last digit.

    Examples
    --------
    >>> with_error(0.0025213, 0.0000312), with_error(0.8009, 0.0121, "+")
    ('0.00252±0.00003', '+0.80±0.01')
    >>> with_error(7.2132e-06, 1.4e-07), with_error(12345.6, 210.0), with_error(0.5, 0.0)
    ('7.2e-6±1e-7', '12300±200', '0.5±0')
    >>> [with_error(x, e, brackets=True) for x, e in ((0.00252, 3.1e-5), (7.2e-6, 1e-7), (99, 20))]
    ['0.00252(3)', '7.2(1)e-6', '100(20)']
    """
    if error is None or not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:{sign}.3g}"
    if error == 0:
        return f"{value:{sign}.6g}{'(0)' if brackets else '±0'}"
    digit, _, exponent = f"{error:.0e}".partition("e")
    power = int(exponent)
    if power < -5 and abs(value) < 1e-3:
        digits = max(0, int(f"{value:.0e}".partition("e")[2]) - power)
        head, _, tail = f"{value:{sign}.{digits}e}".partition("e")
        tail = f"e{int(tail)}"
        return f"{head}({digit}){tail}" if brackets else f"{head}{tail}±{digit}e{power}"
    text = f"{round(value, -power):{sign}.{max(0, -power)}f}"
    error = float(f"{error:.0e}")
    if brackets:
        return f"{text}({digit if power < 0 else f'{error:.0f}'})"
    return f"{text}±{error:.{max(0, -power)}f}"


def unusual_settings(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what a case does that its format and its scales do not say.

    Nearest-even rounding, float32 scales by the largest magnitude and the scales of a named storage
    rule are what a reader expects; everything else changes numbers and must stand beside them.

    >>> unusual_settings({"format": "int8", "rounding": "sr", "scale_format": "float32",
    ...                   "scale_rule": "mse"})
    {'rounding': 'sr', 'scale_rule': 'mse'}
    >>> unusual_settings({"format": "mxfp4_e2m1", "weight_format": "float4_e2m1fn",
    ...                   "scale_format": "float8_e8m0fnu", "scale_rule": "floor"})
    {}
    """
    cells = {name: row.get(name) or "" for name in ("rounding", "scale_format", "scale_rule")}
    found = {}
    if cells["rounding"] not in ("", "rne"):
        found["rounding"] = cells["rounding"]
    named = row.get("format") != row.get("weight_format", row.get("format"))
    if not named and cells["scale_format"] not in ("", "float32"):
        found["scale_format"] = cells["scale_format"]
    for name, usual in (("products", "linears"), ("kv_format", "")):
        word = row.get(name)
        if isinstance(word, str) and word not in ("", usual):
            found[name] = word
    if cells["scale_rule"] not in ("", _USUAL_RULES.get(cells["scale_format"])):
        found["scale_rule"] = cells["scale_rule"]
    return found


def k_tested(lengths: Sequence[int]) -> str:
    """Return a sentence about the lengths K of the dot products that were emulated.

    >>> k_tested([64])[:64]
    'K tested: 64. The error of an accumulator grows with K: longer d'
    """
    shown = [f"{k:,}" for k in lengths]
    if len(shown) > 8:
        shown = [*shown[:4], "...", *shown[-3:]]
    text = f"K tested: {', '.join(shown)}. The error of an accumulator grows with K: longer dot "
    text += "products are left open"
    if lengths[-1] < LONGEST_K:
        text += f" (larger networks have {LONGEST_K:,} and more), so a unit that shows no error "
        text += "here may show one there"
    return text


def shorten(word: object, longest: int) -> str:
    """Return printable text of at most `longest` characters: its begin and its end.

    >>> shorten("a name that is far too long", 16)
    'a name that …ong'
    """
    text = printable(word)
    return text if len(text) <= longest else f"{text[: longest - 4]}…{text[-3:]}"
