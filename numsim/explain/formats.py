"""Formats in words: where one comes from, its limits, its relatives."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np

from numsim.arguments import is_integer
from numsim.decimals import exact_text
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, get_format, list_formats

_INF = {
    "none": "no infinities",
    "ieee": "infinities: largest exponent, zero fraction",
    "top": "infinities: the largest code that is not NaN",
}
_REFUSED = "NaN is refused unless nan='max' or 'zero'"


@known_floats
def bit_string(fmt: str | Format, code: int) -> str:
    """Return a code's bits, split into sign, exponent and fraction.

    Raises
    ------
    NumsimError
        For an unknown format, or a code that is not one of its codes.

    Examples
    --------
    >>> bit_string("float8_e4m3fn", 0x3F)
    '0 0111 111'
    >>> bit_string("q3.4", -8)
    '1 111 1000'
    """
    f = get_format(fmt)
    low = -(1 << (f.bits - 1)) if f.kind == "integer" and f.signed else 0
    if not (is_integer(code) and low <= code < 1 << f.bits):
        raise NumsimError(
            f"bit_string: a code of {f.name} is an integer from {low} to {(1 << f.bits) - 1}; got "
            f"{str(code)[:40]!r} ({type(code).__name__}); encode() makes codes"
        )
    text = f"{int(code) & ((1 << f.bits) - 1):0{f.bits}b}"
    if f.kind == "table":
        return text
    low = f.bias if f.kind == "integer" else f.precision - 1
    cuts = [0, int(f.signed), f.bits - min(low, f.bits - f.signed), f.bits]
    return " ".join(text[a:b] for a, b in pairwise(cuts) if a < b)


@known_floats
def value_rows(fmt: str | Format) -> list[tuple[int, str, float]]:
    """Return (code, bits, value) for every code of a format of at most 16 bits.

    Raises
    ------
    NumsimError
        For a wider format.

    Examples
    --------
    >>> value_rows("float4_e2m1fn")[5]
    (5, '0 10 1', 3.0)
    """
    f = get_format(fmt)
    if f.bits > 16:
        raise NumsimError(
            f"formats: every value is listed up to 16 bits; {f.name} has {f.bits}; "
            "numsim cast VALUE --to NAME shows single ones"
        )
    return [(c, bit_string(f, c), float(v)) for c, v in enumerate(f.values())]


@known_floats
def explain_format(fmt: str | Format) -> str:
    """Return where a format comes from, its derived limits, and how its relatives differ.

    Raises
    ------
    NumsimError
        For an unknown name.

    Examples
    --------
    >>> print(explain_format("float8_e4m3fn").splitlines()[0])
    float8_e4m3fn: 8-bit float, from OCP 8-bit Floating Point (OFP8) 1.0, table 1
    """
    f = get_format(fmt)
    lines = [f"{f.name}: {f.bits}-bit {_kind(f)}, from {f.source}"]
    lines += [f"  {name:<20} {text}" for name, text in _facts(f)]
    relatives = _relatives(f)
    if relatives:
        lines.append("relatives, and where they differ:")
        lines += [f"  {r.name:<20} {_difference(f, r)}" for r in relatives]
    return "\n".join(lines)


def _kind(f: Format) -> str:
    if f.kind == "integer":
        return "fixed point" if f.bias else "integer"
    return "table of values" if f.kind == "table" else "float"


def _facts(f: Format) -> list[tuple[str, str]]:
    limits = [("largest finite", exact_text(f.max)), ("lowest finite", exact_text(f.min))]
    if f.kind == "integer":
        text = f"saturate, special too, or wrap; {_REFUSED}"
        return [*limits, ("step", _power(f.min_normal)), ("overflow", text)]
    if f.kind == "float":
        facts = _float_facts(f, limits)
    else:
        ties = "nearest value, ties to the even code"
        facts = [*limits, ("smallest positive", _power(f.min_normal)), ("rounding", ties)]
        facts.append(("special values", _nan_text(f)))
    if f.bits <= 16:
        finite = f.values()[np.isfinite(f.values())]
        facts.append(("distinct values", f"{np.unique(finite).size} finite in {1 << f.bits} codes"))
    return [*facts, ("overflow", _overflow(f))]


def _float_facts(f: Format, limits: list[tuple[str, str]]) -> list[tuple[str, str]]:
    fields = f.bits - f.signed - (f.precision - 1)
    normal = not f.zero or f.max_code >> (f.precision - 1) > 0
    exponents = f"2**{f.emin} to 2**{f.emax}"
    step = f"2**{1 - f.precision} of normal numbers; nearest errs by at most 2**{-f.precision}"
    if not f.zero:
        step = "1 of every number; ties go up, and so does all between the two smallest values"
    if not normal:
        exponents = f"no normal numbers: every one is a multiple of {_power(f.min_subnormal)}"
        step = f"none: the step is {_power(f.min_subnormal)} everywhere"
    facts = [
        ("layout", f"{int(f.signed)} sign, {fields} exponent, {f.precision - 1} fraction bits"),
        ("precision", f"{f.precision} bits, the implicit one included"),
        ("exponent bias", str(f.bias)), ("exponents", exponents), *limits,
        ("smallest normal", _power(f.min_normal) if normal else "no normal numbers"),
    ]  # fmt: skip
    if f.has_subnormals:
        facts.append(("smallest subnormal", _power(f.min_subnormal)))
    return [
        *facts, ("relative step", step), ("binades", str(_binades(f))),
        ("special values", f"{_nan_text(f)}; {_INF[f.inf]}"),
        ("zero", _zero(f)),
    ]  # fmt: skip


def _nan_text(f: Format) -> str:
    if f.nan == "none":
        return "no NaN"
    if f.kind == "table":
        return "one NaN (NaR): the sign bit alone set"
    if f.nan == "ieee":
        count = 2 * ((1 << (f.precision - 1)) - 1)
        return f"NaN: largest exponent with a nonzero fraction, {count} codes"
    if f.nan == "minus_zero":
        return "one NaN: the code of -0"
    return "NaN: every bit but the sign set, 2 codes" if f.signed else "one NaN: every bit set"


def _zero(f: Format) -> str:
    if f.zero:
        return "+0 and -0" if f.has_negative_zero else "one"
    special = "special gives NaN" if f.has_nan else "special too"
    return f"none: 0 and negative values become the smallest value, {special}"


def _binades(f: Format) -> int:
    return f.emax - (math.frexp(f.min_subnormal)[1] - 1) + 1


def _overflow(f: Format) -> str:
    if f.kind == "table" and f.has_nan:
        return "always saturates, special too; under special Inf itself gives NaR"
    if f.has_inf:
        return "saturate gives the maximum, special gives Inf"
    if f.has_nan:
        return "saturate gives the maximum, special gives NaN"
    return f"always saturates; {_REFUSED}"


def _power(value: float) -> str:
    mantissa, exponent = math.frexp(value)
    return f"2**{exponent - 1}" if mantissa == 0.5 else exact_text(value)


def _relatives(f: Format) -> list[Format]:
    """Return up to eight formats that share most with `f`, the nearest first."""
    every = [get_format(name) for name in list_formats()]
    near = [g for name in _siblings(f) if (g := _known(name)) and g.name != f.name]
    if f.kind == "float" and not f.name.startswith("p3109"):
        floats = [g for g in every if g.kind == "float" and g.zero >= f.zero]
        near += [g for g in floats if g.bits == f.bits]
        near += [g for g in floats if g.precision == f.precision or g.bias == f.bias]
        near[3:3] = [g for g in every if g.bits == f.bits == 4 and g.kind != "float"]
    elif f.kind == "table":
        near += [g for g in every if g.bits == f.bits and g.kind != "table"]
    return [g for g in {g.name: g for g in near}.values() if g.name != f.name][:8]


def _known(name: str) -> Format | None:
    try:
        return get_format(name)
    except NumsimError:
        return None


def _siblings(f: Format) -> list[str]:
    """Return names near that of `f`; those that do not exist are dropped later."""
    n = f.bits
    if f.kind == "integer":
        u, other = ("", "u") if f.signed else ("u", "")
        whole = n - f.bias - f.signed
        if f.bias == 0:
            return [f"{other}int{n}", f"{u}int{n // 2}", f"{u}int{2 * n}", f"{u}q0.{n - f.signed}"]
        fixed = [f"{u}q{whole + 1}.{f.bias - 1}", f"{u}q{whole - 1}.{f.bias + 1}"]
        return [f"{other}q{whole + (1 if f.signed else -1)}.{f.bias}", *fixed, f"{u}int{n}"]
    if match := re.fullmatch(r"posit(\d+)_es(\d+)", f.name):
        es = int(match[2])
        others = [f"posit{n}_es{e}" for e in range(5) if e != es]
        return [*others[:3], f"posit{n // 2}_es{es}", f"posit{2 * n}_es{es}"]
    if match := re.fullmatch(r"p3109_k(\d+)p(\d+)([su])([ef])", f.name):
        p, sign, domain = int(match[2]), match[3], match[4]
        turned = f"p3109_k{n}p{p}{sign}{'f' if domain == 'e' else 'e'}"
        unsigned = f"p3109_k{n}p{p}{'u' if sign == 's' else 's'}{domain}"
        by_distance = sorted(range(1, n + 1), key=lambda q: (abs(q - p), q))
        return [turned, unsigned, *(f"p3109_k{n}p{q}{sign}{domain}" for q in by_distance)]
    if match := re.fullmatch(r"float_e(\d+)m(\d+)", f.name):
        e, m = int(match[1]), int(match[2])
        return [f"float_e{e + d}m{m - d}" for d in (-1, 1) if e + d >= 1 and m - d >= 0]
    return ["float16", "bfloat16", "tfloat32"] if f.name == "float32" else []


def _difference(f: Format, g: Format) -> str:
    texts = []
    if _kind(g) != _kind(f):
        texts.append(_kind(g))
    if g.bits != f.bits:
        texts.append(f"{g.bits} bits")
    if f.kind == g.kind == "float":
        if g.precision != f.precision:
            texts.append(f"precision {g.precision}")
        if g.bias != f.bias:
            texts.append(f"bias {g.bias}")
    if (g.min < 0) != (f.min < 0):
        texts.append("signed" if g.min < 0 else "unsigned")
    if g.max != f.max:
        texts.append(f"max {exact_text(g.max)}")
    if g.min_subnormal != f.min_subnormal:
        word = "step" if g.kind == "integer" else "smallest"
        texts.append(f"{word} {_power(g.min_subnormal)}")
    if g.nan != f.nan:
        texts.append(_nan_text(g))
    if g.inf != f.inf:
        texts.append(_INF[g.inf])
    return ", ".join(texts) or "the same values"
