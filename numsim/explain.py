"""Formats and casts in words: where a format comes from, its limits, every step of a rounding."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np

from numsim.convert import decode, encode
from numsim.errors import NumsimError
from numsim.formats import Format, get_format, list_formats

_NAN = {
    "none": "no NaN",
    "ieee": "NaN: largest exponent with a nonzero fraction",
    "all_ones": "one NaN: every bit but the sign set",
    "minus_zero": "one NaN: the code of -0",
}
_INF = {
    "none": "no infinities",
    "ieee": "infinities: largest exponent, zero fraction",
    "top": "infinities: the largest code that is not NaN",
}
_RULES = {
    "rne": "nearest, ties to even", "rna": "nearest, ties away from zero", "rtz": "toward zero",
    "rup": "toward +infinity", "rdn": "toward -infinity", "rto": "to odd",
}  # fmt: skip


def bit_string(fmt: str | Format, code: int) -> str:
    """Return a code's bits, split into sign, exponent and fraction.

    Raises
    ------
    NumsimError
        For an unknown format.

    Examples
    --------
    >>> bit_string("float8_e4m3fn", 0x3F)
    '0 0111 111'
    >>> bit_string("q3.4", -8)
    '1 111 1000'
    """
    f = get_format(fmt)
    text = f"{code & ((1 << f.bits) - 1):0{f.bits}b}"
    if f.kind == "table":
        return text
    low = f.bias if f.kind == "integer" else f.precision - 1
    cuts = [0, int(f.signed), f.bits - min(low, f.bits - f.signed), f.bits]
    return " ".join(text[a:b] for a, b in pairwise(cuts) if a < b)


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
    facts = [("largest finite", f"{f.max:.10g}"), ("lowest finite", f"{f.min:.10g}")]
    if f.kind == "integer":
        return [*facts, ("step", _power(f.min_normal)), ("overflow", "saturate or wrap")]
    facts.append(("smallest normal", _power(f.min_normal)))
    if f.has_subnormals:
        facts.append(("smallest subnormal", _power(f.min_subnormal)))
    if f.kind == "float":
        fields = f.bits - f.signed - (f.precision - 1)
        facts = [
            ("layout", f"{int(f.signed)} sign, {fields} exponent, {f.precision - 1} fraction bits"),
            ("precision", f"{f.precision} bits, the implicit one included"),
            ("exponent bias", str(f.bias)), ("exponents", f"2**{f.emin} to 2**{f.emax}"),
            *facts,
            ("relative step", f"2**{1 - f.precision}; nearest errs by at most 2**{-f.precision}"),
            ("binades", str(_binades(f))), ("special values", f"{_NAN[f.nan]}; {_INF[f.inf]}"),
            ("zero", "none" if not f.zero else "+0 and -0" if f.has_negative_zero else "one"),
        ]  # fmt: skip
    if f.bits <= 16:
        finite = f.values()[np.isfinite(f.values())]
        facts.append(("distinct values", f"{np.unique(finite).size} finite in {1 << f.bits} codes"))
    facts.append(("overflow", _overflow(f)))
    return facts


def _binades(f: Format) -> int:
    return f.emax - (math.frexp(f.min_subnormal)[1] - 1) + 1


def _overflow(f: Format) -> str:
    if f.has_inf:
        return "saturate gives the maximum, special gives Inf"
    if f.has_nan:
        return "saturate gives the maximum, special gives NaN"
    return "always saturates; NaN is refused unless nan='max' or 'zero'"


def _power(value: float) -> str:
    mantissa, exponent = math.frexp(value)
    return f"2**{exponent - 1}" if mantissa == 0.5 else f"{value:.10g}"


def _relatives(f: Format) -> list[Format]:
    if f.kind != "float":
        return []
    every = [get_format(name) for name in list_formats()]
    same = [g for g in every if g.kind == "float" and g.bits == f.bits and g.name != f.name]
    return same[:8]


def _difference(f: Format, g: Format) -> str:
    texts = []
    if g.precision != f.precision:
        texts.append(f"precision {g.precision}")
    if g.bias != f.bias:
        texts.append(f"bias {g.bias}")
    if g.max != f.max:
        texts.append(f"max {g.max:.6g}")
    if g.min_subnormal != f.min_subnormal:
        texts.append(f"smallest {_power(g.min_subnormal)}")
    if g.nan != f.nan:
        texts.append(_NAN[g.nan])
    if g.inf != f.inf:
        texts.append(_INF[g.inf])
    return ", ".join(texts) or "the same values"


def explain_cast(
    value: float, fmt: str | Format, *, rounding: str = "rne", overflow: str = "saturate"
) -> str:
    """Return every step from a number to its code: fields, cut, guard and sticky bits, decision.

    Parameters
    ----------
    value
        Any float64 number.
    fmt
        Format or its name.
    rounding, overflow
        As `encode`; ``rounding="sr"`` shows the odds in place of a decision.

    Notes
    -----
    E8M0 under ``rne`` follows ml_dtypes: ties round up, and everything strictly between 2**-127
    and 2**-126 rounds up. Posits never give NaR for finite overflow, not under ``special``
    either: they saturate. Other formats with one bit of precision take ties to the even code.

    Raises
    ------
    NumsimError
        As `encode`.

    Examples
    --------
    >>> print(explain_cast(17.0, "e4m3"))
    17.0 to float8_e4m3fn, nearest, ties to even, overflow saturate
      input         +1.0001 (binary) x 2**4
      quantum       2**1: the binade 2**4 keeps 4 bits
      kept bits     1000 = 8 quanta
      guard, sticky 1, 0: the discarded part is 1/2 of a quantum
      decision      a tie, 8 is even: stays
      code          0x58 = 0 1011 000
      value         16.0
    """
    f = get_format(fmt)
    value = float(value)
    odds = rounding == "sr"
    code = encode(value, f, rounding=rounding, overflow=overflow).item()  # type: ignore[arg-type]
    rule = "stochastic" if odds else _RULES[rounding]
    lines = [f"{value!r} to {f.name}, {rule}, overflow {overflow}"]
    if not math.isfinite(value) or value == 0:
        lines.append(f"  input         {value!r}: a special value, nothing is rounded")
    elif f.kind == "table" or not f.zero:
        lines += _table_steps(value, f)
    else:
        lines += _rounding_steps(Fraction(value), f, rounding, overflow, code)
    result = decode(np.array(code, f.code_dtype), f).item()
    name = "one code" if odds else "code"
    pattern = f"{code & ((1 << f.bits) - 1):#0{2 + -(-f.bits // 4)}x}"
    lines.append(f"  {name:<13} {pattern} = {bit_string(f, code)}")
    lines.append(f"  value         {result!r}")
    return "\n".join(lines)


def _table_steps(value: float, f: Format) -> list[str]:
    values = np.unique(f.values()[np.isfinite(f.values())])
    at = int(np.searchsorted(values, value))
    below, above = float(values[max(at - 1, 0)]), float(values[min(at, values.size - 1)])
    return [
        f"  neighbours    {below!r} and {above!r}",
        f"  distances     {abs(value - below):.6g} and {abs(above - value):.6g}",
    ]


def _rounding_steps(x: Fraction, f: Format, rounding: str, overflow: str, code: int) -> list[str]:
    magnitude = abs(x)
    mantissa, exponent = math.frexp(float(magnitude))
    binade = exponent - 1
    digits = f"{int(mantissa * 2**53):b}".rstrip("0")
    sign = "-" if x < 0 else "+"
    if f.kind == "integer":
        step, why = -f.bias, "the format's step"
    elif binade < f.emin:
        step = f.emin - f.precision + 1
        why = f"2**{binade} lies below the smallest normal, 2**{f.emin}: subnormal"
    else:
        step = binade - f.precision + 1
        why = f"the binade 2**{binade} keeps {f.precision} bits"
    quanta = magnitude / Fraction(2) ** step
    kept = quanta.numerator // quanta.denominator
    rest = quanta - kept
    guard, sticky = int(rest >= Fraction(1, 2)), int(rest not in (0, Fraction(1, 2)))
    # with one bit of precision every significand is 1, so the code's last bit decides
    by_code = f.kind == "float" and f.precision == 1 and binade >= f.emin
    odd = (kept + (binade - f.emin if by_code else 0)) % 2 == 1
    part = str(rest) if rest.denominator <= 1 << 16 else f"{float(rest):.6g}"
    decision, away = _decision(rest, kept, odd, x < 0, rounding)
    lines = [
        f"  input         {sign}{digits[0]}.{digits[1:] or '0'} (binary) x 2**{binade}",
        f"  quantum       2**{step}: {why}",
        f"  kept bits     {kept:b} = {kept} quanta",
        f"  guard, sticky {guard}, {sticky}: the discarded part is {part} of a quantum",
        f"  decision      {decision}",
    ]
    limit = Fraction(f.max) if x > 0 else -Fraction(f.min)
    quantum = Fraction(2) ** step
    if (kept + away) * quantum > limit:
        if overflow == "wrap":
            text = f"{sign}{kept + away} modulo 2**{f.bits}: the residue is {code}"
        elif x < 0 and not f.signed:
            text = "the format has no negative values"
        else:
            text = f"the largest finite magnitude is {float(limit):.10g}"
        lines.append(f"  overflow      {text}")
    elif rounding == "sr" and rest and (kept + 1) * quantum > limit:
        lines.append("  overflow      only away from zero")
    return lines


def _decision(
    rest: Fraction, kept: int, odd: bool, negative: bool, rounding: str
) -> tuple[str, bool]:
    """Return the decision in words, and whether it is away from zero."""
    half = Fraction(1, 2)
    if rest == 0:
        return "exact: stays", False
    if rounding == "sr":
        return f"away from zero with probability {float(rest):.6g}", False
    parity = "odd" if odd else "even"
    if rounding in ("rne", "rna"):
        if rest == half:
            away = rounding == "rna" or odd
            reason = "a tie" if rounding == "rna" else f"a tie, {kept} is {parity}"
        else:
            away, reason = rest > half, f"{'more' if rest > half else 'less'} than half"
    elif rounding == "rto":
        away, reason = not odd, f"inexact, {kept} is {parity}"
    else:
        away = rounding == ("rdn" if negative else "rup")
        reason = f"inexact, {_RULES[rounding]}"
    return f"{reason}: {'one more, ' + str(kept + 1) if away else 'stays'}", away
