"""One rounding, step by step."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from numsim.convert import decode, encode
from numsim.decimals import exact_text, nearest_text
from numsim.dispatch import draw
from numsim.errors import NumsimError
from numsim.explain.formats import bit_string
from numsim.float_state import known_floats
from numsim.formats import STOCHASTIC, Format, get_format
from numsim.vocabulary import SR_VARIANTS

_RULES = {
    "rne": "nearest, ties to even", "rna": "nearest, ties away from zero", "rtz": "toward zero",
    "rup": "toward +infinity", "rdn": "toward -infinity", "rto": "to odd", "sr": "stochastic",
}  # fmt: skip
_HALF = Fraction(1, 2)


@dataclass(frozen=True)
class _How:
    rounding: str
    overflow: str
    bits: int  # random bits, 64: all
    variant: str
    seed: int
    offset: int


@known_floats
def parse_number(text: str, what: str = "cast: VALUE") -> float | int:
    """Return the number that a command line names: integers stay exact.

    Parameters
    ----------
    text
        A number as Python writes it, a hexadecimal one, ``inf`` or ``nan``.
    what
        How a message calls it.

    Raises
    ------
    NumsimError
        For text that is no number.

    Examples
    --------
    >>> parse_number("0x20000000000001"), parse_number("-0"), parse_number("1e9")
    (9007199254740993, -0.0, 1000000000.0)
    """
    value: float | int | None = None
    for kind in (lambda t: int(t, 0), float.fromhex if "0x" in text.lower() else float):
        try:
            value = kind(text)
            break
        except (ValueError, OverflowError):
            continue
    beyond = isinstance(value, float) and math.isinf(value) and "inf" not in text.lower()
    digits = text.lower().partition("p" if "0x" in text.lower() else "e")[0].replace("0x", "")
    beyond = beyond or (value == 0 and any(d in "123456789abcdef" for d in digits))
    if value is None or beyond:
        raise NumsimError(
            f"{what} is a float64 number such as 17, -0.3, 0x1F, 1e9, inf or nan; got {text[:60]!r}"
        )
    return -0.0 if value == 0 and text.strip().startswith("-") else value


@known_floats
def explain_cast(
    value: float, fmt: str | Format, *, rounding: str = "rne", overflow: str = "saturate",
    random_bits: int | None = None, sr: str = "truncate", seed: int = 0, offset: int = 0,
    nan: str | None = None,
) -> str:  # fmt: skip
    """Return every step from a number to its code: fields, cut, guard and sticky bits, decision.

    Parameters
    ----------
    value
        A float, or an integer from -2**63 to 2**64 - 1.
    fmt
        Format or its name.
    rounding, overflow, random_bits, sr, seed, offset, nan
        As `encode`; ``rounding="sr"`` shows the odds and the draw that decides. Element i of a
        call of `encode` is explained with ``offset + i``.

    Notes
    -----
    E8M0 under ``rne`` follows ml_dtypes: ties round up, and everything strictly between 2**-127
    and 2**-126 rounds up. Posits never give NaR for finite overflow, not under ``special``
    either: they saturate. Other formats with one bit of precision take ties to the even code.

    Raises
    ------
    NumsimError
        As `encode`, and for a value that is not one number.

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
    number = one_number(value)
    options: dict[str, Any] = {"random_bits": random_bits, "sr": sr, "seed": seed}
    options |= {"offset": offset, "nan": nan}
    code = encode(number, f, rounding=rounding, overflow=overflow, **options).item()  # type: ignore[arg-type]
    x = number.item()
    result = decode(np.array(code, f.code_dtype), f).item()
    unit = STOCHASTIC.get(sr)
    bits = unit.bits_for(f) if unit else int(random_bits or 64)
    how = _How(rounding, overflow, bits, unit.variant if unit else sr, int(seed), int(offset))
    detail = f", {sr}, {'all' if bits == 64 else bits} random bits" if rounding == "sr" else ""
    lines = [f"{_text(x)} to {f.name}, {_RULES[rounding]}{detail}, overflow {overflow}"]
    if isinstance(x, float) and not math.isfinite(x):
        lines += _special_steps(x, f, how, nan, result)
    elif not f.zero and x <= 0:
        words = "negative values" if x < 0 else "zero"
        text = f"the format has no {words}: {_outcome(f, how, result, unsigned=True)}"
        lines += [f"  input         {_text(x)}", f"  decision      {text}"]
    elif x == 0 and result == 0:
        lines += _zero_steps(x, result)
    elif f.kind == "table" or not f.zero:
        lines += _neighbour_steps(Fraction(x), f, how, result)
    else:
        lines += _rounding_steps(Fraction(x), f, how, code, result)
    pattern = f"{code & ((1 << f.bits) - 1):#0{2 + -(-f.bits // 4)}x}"
    lines.append(f"  code          {pattern} = {bit_string(f, code)}")
    lines.append(f"  value         {result!r}")
    return "\n".join(lines)


def one_number(value: object) -> np.ndarray[Any, Any]:
    """Return one number as a 0-d array that holds it exactly."""
    plain = isinstance(value, int | float | np.integer | np.floating)
    if not plain or isinstance(value, bool | np.longdouble):
        came = " ".join(repr(value).split())
        raise NumsimError(
            f"explain_cast: value is one int or float; got {came:.60} ({type(value).__name__}); "
            "pass float(x), or one element of an array"
        )
    if isinstance(value, int | np.integer):
        exact = int(value)
        if not -(1 << 63) <= exact < 1 << 64:
            raise NumsimError(
                "explain_cast: integers lie from -2**63 to 2**64 - 1; got one of "
                f"{exact.bit_length()} bits; pass a float, such as 1e20"
            )
        return np.array(exact, np.int64 if exact < 1 << 63 else np.uint64)
    return np.array(value, np.float64)


def _text(x: float) -> str:
    return "-nan" if x != x and math.copysign(1, x) < 0 else repr(x)


def _outcome(f: Format, how: _How, result: float, *, unsigned: bool = False) -> str:
    """Say what became of a number that no code holds."""
    if math.isnan(result):
        why = "" if unsigned else ", the format has no Inf"
        return f"{how.overflow} gives NaN{why}"
    if math.isinf(result):
        return f"{how.overflow} gives {'-' if result < 0 else ''}Inf"
    why = ""
    if how.overflow == "special" and not unsigned:
        if not (f.has_inf or f.has_nan):
            why = ", the format has neither Inf nor NaN"
        elif f.kind == "table":
            why = ", special too: only Inf gives NaR"
        else:
            why = f": {_RULES[how.rounding]} stops at the largest finite value"
    return f"saturates to {result!r}{why}"


def _special_steps(x: float, f: Format, how: _How, nan: str | None, result: float) -> list[str]:
    if not math.isnan(x):
        words = "the format has no negative values: " if x < 0 and f.min >= 0 else ""
        kept = math.isinf(result)
        text = "Inf is kept" if kept else words + _outcome(f, how, result, unsigned=bool(words))
        return [f"  input         {x!r}: infinite, nothing is rounded", f"  decision      {text}"]
    sign = "set" if math.copysign(1, x) < 0 else "clear"
    if nan in ("max", "zero"):
        text = f"the format has no NaN: nan={nan!r} gives {result!r}"
    elif nan == "canonical":
        text = "the one positive NaN, whatever the sign"
    elif f.params.nan_signed:
        text = "NaN is kept with its sign" + (" and its upper bits" if nan == "payload" else "")
    else:
        text = "NaN is kept; the format has one, without a sign"
    return [f"  input         {_text(x)}: NaN, sign bit {sign}", f"  decision      {text}"]


def _zero_steps(x: float, result: float) -> list[str]:
    lost = math.copysign(1, x) != math.copysign(1, result)
    text = "exact: the format has one zero, the sign is lost" if lost else "exact: stays"
    return [f"  input         {x!r}: zero, nothing is rounded", f"  decision      {text}"]


def _neighbour_steps(x: Fraction, f: Format, how: _How, result: float) -> list[str]:
    """Return the steps of formats whose values are a list: posits, codebooks, E8M0."""
    table = f.values()
    pairs = sorted((v, c) for c, v in enumerate(table.tolist()) if math.isfinite(v))
    if not f.zero and f.emax < 1023:  # a rounding up out of the range is one that overflows
        pairs.append((f.value_after_max, f.max_code + 1))
    values = [v for v, _ in pairs]
    at = bisect_left(values, x)
    if at < len(values) and values[at] == x and pairs[at][1] <= f.max_code:
        return [f"  neighbours    {values[at]!r} is a value", "  decision      exact: stays"]
    top = at == len(values) or (pairs[at][1] > f.max_code and x >= values[at])
    if at == 0 or top:
        if at:
            text = f"beyond the largest value, {f.max!r}: {_outcome(f, how, result)}"
        else:
            text = f"below the lowest value, {f.min!r}: "
            text += _outcome(f, how, result) if f.zero else f"becomes {result!r}"
        return [f"  decision      {text}"]
    (low, low_code), (high, high_code) = pairs[at - 1 : at + 1]
    fraction = (x - Fraction(low)) / (Fraction(high) - Fraction(low))
    near_zero, away = (low, high) if x > 0 else (high, low)
    lines = [
        f"  neighbours    {low!r} and {high!r}, codes {low_code:#x} and {high_code:#x}",
        f"  distances     {exact_text(x - Fraction(low))} and {exact_text(Fraction(high) - x)}",
    ]
    even, odd = (low, high) if low_code % 2 == 0 else (high, low)
    if how.rounding == "sr":
        steps, goes, why = _draw(fraction if x > 0 else 1 - fraction, how, f"to {away!r}")
        lines += steps
        chosen = away if goes else near_zero
    elif how.rounding == "rne" and not f.zero and low == f.min:
        chosen, why = high, "all between the two smallest values rounds up, as in ml_dtypes"
    elif how.rounding in ("rne", "rna") and fraction != _HALF:
        chosen, why = (high if fraction > _HALF else low), "the nearer"
    elif how.rounding == "rne":
        chosen, why = (even, "a tie, its code is even") if f.zero else (high, "a tie, ties go up")
    elif how.rounding == "rna":
        chosen, why = away, "a tie, away from zero" if x else "a tie at zero, the lower"
    elif how.rounding == "rto":
        chosen, why = odd, "inexact, its code is odd"
    else:
        chosen = {"rtz": near_zero if x else low, "rup": high, "rdn": low}[how.rounding]
        why = f"inexact, {_RULES[how.rounding]}"
        why = "zero lies between, the lower" if how.rounding == "rtz" and not x else why
    lines.append(f"  decision      {chosen!r}: {why}")
    if chosen > f.max:
        lines.append(f"  overflow      the largest is {f.max!r}: {_outcome(f, how, result)}")
    return lines


def _draw(fraction: Fraction, how: _How, where: str) -> tuple[list[str], bool, str]:
    """Return the odds and the draw, whether it carries away from zero, and the sum that says so."""
    r, bits = draw(how.offset, how.seed, how.bits), how.bits
    rule, scaled, addend = f"floor(f 2**{bits}) + R", math.floor(fraction * (1 << bits)), r
    if bits < 64 and how.variant == SR_VARIANTS[1]:
        bits += 1
        rule, scaled = f"floor(f 2**{bits}) + 2 R + 1", math.floor(fraction * (1 << bits))
        addend = 2 * r + 1
    elif bits < 64 and how.variant == SR_VARIANTS[2]:
        rule, scaled = f"round(f 2**{bits}) + R", round(fraction * (1 << bits))  # ties to even
    total, away = scaled + addend, scaled + addend >= 1 << bits
    lines = [
        f"  odds          {where} with probability {_probability(fraction, how)}",
        f"  draw          R = {r:#x} of {how.bits} bits: Philox-2x32-7, seed {how.seed}, counter "
        f"{how.offset}",
    ]
    sign = ">=" if away else "<"
    return lines, away, f"{rule} = {scaled:#x} + {addend:#x} = {total:#x} {sign} 2**{bits}"


def _probability(fraction: Fraction, how: _How) -> str:
    """Return how many of the random integers carry, out of all."""
    one = 1 << how.bits
    scaled = fraction * one
    carries = math.floor(scaled)
    if how.bits < 64 and how.variant == SR_VARIANTS[1]:
        carries = (math.floor(2 * scaled) + 1) // 2
    elif how.bits < 64 and how.variant == SR_VARIANTS[2]:
        carries = round(scaled)  # Python rounds ties to even
    every = one if how.bits < 64 else "2**64"
    return f"{nearest_text(Fraction(carries, one))} ({carries} of {every} random integers)"


def _rounding_steps(x: Fraction, f: Format, how: _How, code: int, result: float) -> list[str]:
    magnitude = abs(x)
    binade = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    digits = f"{magnitude.numerator:b}".rstrip("0")
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
    guard, sticky = int(rest >= _HALF), int(rest not in (0, _HALF))
    # with one bit of precision every significand is 1, so the code's last bit decides
    by_code = f.kind == "float" and f.precision == 1 and binade >= f.emin
    odd = (kept + (binade - f.emin if by_code else 0)) % 2 == 1
    part = str(rest) if rest.denominator <= 1 << 16 else exact_text(rest)
    steps: list[str] = []
    if how.rounding == "sr" and rest:
        steps, away, total = _draw(rest, how, "away from zero")
        decision = f"{total}: {_stays(kept, away)}"
    else:
        what = "its code" if by_code else str(kept)
        decision, away = _decision(rest, kept, odd, x < 0, how.rounding, what)
    lines = [
        f"  input         {sign}{digits[0]}.{digits[1:] or '0'} (binary) x 2**{binade}",
        f"  quantum       2**{step}: {why}",
        f"  kept bits     {kept:b} = {kept} quanta",
        f"  guard, sticky {guard}, {sticky}: the discarded part is {part} of a quantum",
        *steps,
        f"  decision      {decision}",
    ]
    limit = Fraction(f.max) if x > 0 else -Fraction(f.min)
    quantum = Fraction(2) ** step
    if (kept + away) * quantum > limit:
        if how.overflow == "wrap":
            text = f"{sign}{kept + away} modulo 2**{f.bits}: the residue is {code}"
        elif x < 0 and not f.signed:
            text = f"the format has no negative values: {_outcome(f, how, result, unsigned=True)}"
        else:
            text = f"the largest finite magnitude is {exact_text(limit)}: "
            text += _outcome(f, how, result)
        lines.append(f"  overflow      {text}")
    return lines


def _stays(kept: int, away: bool) -> str:
    return f"one more, {kept + 1}" if away else "stays"


def _decision(
    rest: Fraction, kept: int, odd: bool, negative: bool, rounding: str, what: str
) -> tuple[str, bool]:
    """Return the decision in words, and whether it is away from zero."""
    if rest == 0:
        return "exact: stays", False
    parity = "odd" if odd else "even"
    if rounding in ("rne", "rna"):
        if rest == _HALF:
            away = rounding == "rna" or odd
            reason = "a tie" if rounding == "rna" else f"a tie, {what} is {parity}"
        else:
            away, reason = rest > _HALF, f"{'more' if rest > _HALF else 'less'} than half"
    elif rounding == "rto":
        away, reason = not odd, f"inexact, {what} is {parity}"
    else:
        away = rounding == ("rdn" if negative else "rup")
        reason = f"inexact, {_RULES[rounding]}"
    return f"{reason}: {_stays(kept, away)}", away
