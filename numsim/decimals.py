"""Numbers as text that says which number it is: no digit is cut."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np

_LONGEST = 30  # digits of a decimal; beyond, an integer times a power of two is shorter


def exact_text(value: Fraction | float) -> str:
    """Return the shortest decimal that float64 reads as the number; all digits of one beyond it.

    Fractions are those of binary arithmetic: their denominators are powers of two.

    Examples
    --------
    >>> exact_text(17.251220703125), exact_text(Fraction(4)), exact_text(-0.0)
    ('17.251220703125', '4', '-0')
    >>> exact_text(Fraction(2**60 + 1, 2**8)), exact_text(1 + Fraction(1, 2**150))
    ('4503599627370496.00390625', '1427247692705959881058285969449495136382746625 * 2**-150')
    """
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Fraction):
        single = _single(value)
        if single is None:
            return _digits(value)
        value = single
    return repr(float(value)).removesuffix(".0")


def short_text(value: float) -> str:
    """Return the shortest decimal that float32 reads as the number; where none does, float64.

    The values of nearly every format are float32 numbers, whose decimals have nine digits, not 17.

    Examples
    --------
    >>> short_text(2.0**-9), short_text(float(np.finfo(np.float32).max)), short_text(448)
    ('0.001953125', '3.4028235e+38', '448')
    >>> short_text(2.0**27 - 1), short_text(2.0**-160)
    ('134217727', '6.842277657836021e-49')
    """
    with np.errstate(over="ignore", under="ignore"):
        single = np.float32(value)
    if float(single) != value:
        return exact_text(float(value))
    return str(single).removesuffix(".0")


def _single(value: Fraction) -> float | None:
    """Return a float64 that is the number, None where there is none."""
    try:
        single = float(value)
    except OverflowError:
        return None
    return single if Fraction(single) == value else None


def _digits(value: Fraction) -> str:
    places = value.denominator.bit_length() - 1
    if value.denominator != 1 << places:
        return str(value)
    text = str(value.numerator * 5**places)  # times 10**-places
    if len(text.lstrip("-")) <= _LONGEST:
        return str(Decimal(f"{text}e-{places}")).replace("E", "e")
    twos = (value.numerator & -value.numerator).bit_length() - 1 - places
    whole = value / Fraction(2) ** twos
    return f"{whole.numerator} * 2**{twos}"


def nearest_text(value: Fraction) -> str:
    """Return a number as `exact_text`; one beyond float64 as the nearest, which says so.

    Examples
    --------
    >>> nearest_text(Fraction(3, 4)), nearest_text(Fraction(2**64 // 3, 2**64))
    ('0.75', 'about 0.3333333333333333')
    """
    single = _single(value)
    return f"about {float(value)!r}" if single is None else exact_text(single)
