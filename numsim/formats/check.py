"""The rules that the fields of a `Format` obey, so that every kernel may rely on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from numsim.errors import NumsimError, near_names
from numsim.vocabulary import CONVERSIONS, INFS, KINDS, NANS


def check_format(f: Any) -> None:
    """Check the fields of a `Format`.

    Raises
    ------
    NumsimError
        For a field of the wrong type, an unknown word, a number outside its range, or special
        values that the layout has no codes for.
    """
    for field in ("name", "kind", "nan", "inf", "conversion", "source"):
        _need(f, isinstance(getattr(f, field), str), f"{field} is a string", getattr(f, field))
    _need(f, bool(f.name.strip()) and f.name.isprintable(), "name is a text on one line", f.name)
    for field in ("signed", "zero"):
        _need(f, isinstance(getattr(f, field), bool), f"{field} is a bool", getattr(f, field))
    for field in ("bits", "precision", "bias"):
        value = getattr(f, field)
        integer = isinstance(value, int) and not isinstance(value, bool)
        _need(f, integer, f"{field} is an int", value)
    for field, known in (
        ("kind", KINDS), ("nan", NANS), ("inf", INFS), ("conversion", CONVERSIONS),
    ):  # fmt: skip
        _word(f, field, known)
    _need(f, 1 <= f.bits <= 32, "bits is 1 to 32", f.bits)
    plain = f.kind == "float" and f.nan in ("minus_zero", "all_ones") and f.inf in ("none", "top")
    rule = "conversion='p3109' is for floats with one NaN, as the report has them"
    _need(f, plain or f.conversion == "ieee", rule, f.conversion)
    {"float": _float, "integer": _integer, "table": _table}[f.kind](f)


def _need(f: Any, holds: bool, rule: str, came: object) -> None:
    if not holds:
        text = repr(came)
        raise NumsimError(f"Format {f.name!r}: {rule}; got {text[:60]}{'...' * (len(text) > 60)}")


def _word(f: Any, field: str, known: Sequence[str]) -> None:
    word = getattr(f, field)
    near = near_names(word, known)
    if word not in known:
        raise NumsimError(
            f"Format {f.name!r}: {field} is one of {', '.join(known)}; got {word!r}{near}"
        )


def _float(f: Any) -> None:
    most = f.bits - f.signed
    rule = f"precision is 1 to {most}: {f.bits} bits with {int(f.signed)} sign, an exponent bit"
    _need(f, 1 <= f.precision <= most, rule, f.precision)
    _need(f, f.table == (), "table belongs to kind='table'", f.table)
    if not f.zero:
        plain = f.precision == 1 and not f.signed and f.inf == "none"
        plain = plain and f.nan in ("none", "all_ones")
        _need(f, plain, "zero=False takes precision 1, no sign, no Inf, NaN all_ones or none", f)
    if f.nan == "ieee":
        _need(f, f.inf == "ieee", "nan='ieee' goes with inf='ieee'", f.inf)
        _need(f, f.precision > 1, "nan='ieee' takes a precision of 2 or more", f.precision)
    elif f.inf == "ieee":
        fits = f.precision == 1 and f.nan != "all_ones"
        _need(f, fits, "inf='ieee' goes with nan='ieee', or with precision 1", f.nan)
    if f.nan == "minus_zero":
        _need(f, f.signed, "nan='minus_zero' takes a sign", f.signed)
    exponents = most - (f.precision - 1)
    top = (1 << exponents) - 1 - f.bias
    bottom = (1 - f.bias if f.zero else -f.bias) - (f.precision - 1)
    rule = "bias keeps every value in the range of float64, 2**-1074 to 2**1024"
    _need(f, bottom >= -1074 and top <= 1023, rule, f.bias)
    if f.zero:
        _need(f, f.max_code >= 1, "some value is finite and positive", f.bits)


def _integer(f: Any) -> None:
    rule = f"precision of an integer is its bits less the sign, {f.bits - f.signed}"
    _need(f, f.precision == f.bits - f.signed, rule, f.precision)
    _need(f, (f.nan, f.inf) == ("none", "none"), "integers have neither NaN nor Inf", f.nan)
    _need(f, f.zero, "integers have a zero", f.zero)
    _need(f, f.table == (), "table belongs to kind='table'", f.table)
    rule = "bias keeps every value in the range of float64, 2**-1074 to 2**1024"
    _need(f, f.bias <= 1074 and f.bits - f.bias <= 1023, rule, f.bias)


def _table(f: Any) -> None:
    _need(f, f.bits <= 16, "a table has at most 16 bits", f.bits)
    _need(f, 1 <= f.precision <= 53, "precision is 1 to 53", f.precision)
    numbers = isinstance(f.table, tuple) and all(type(v) in (float, int) for v in f.table)
    _need(f, numbers, "table is a tuple of Python floats", f.table)
    held = all(isinstance(v, float) or (abs(v) < 1 << 1023 and float(v) == v) for v in f.table)
    _need(f, held, "table holds numbers that float64 has", f.table)
    _need(f, len(f.table) == 1 << f.bits, f"table has 2**bits = {1 << f.bits} values", f.table)
    rule = "a table's Inf is its largest magnitudes, of both signs, under inf='top'"
    _need(f, f.inf in ("none", "top") and not any(map(math.isinf, f.table)), rule, f.inf)
    if f.inf == "top":
        top = max(abs(v) for v in f.table if not math.isnan(v))
        ends = [v for v in f.table if abs(v) == top]
        _need(f, sorted(ends) == [-top, top], rule, ends)
        _need(f, f.nan != "none", "a table with Inf has a NaN", f.nan)
    rule = "nan says whether the table holds NaN, and where"
    _need(f, (f.nan == "none") != any(map(math.isnan, f.table)), rule, f.nan)
    _need(f, f.nan == "none" or math.isnan(f.table[f.nan_code]), rule, f.nan)
    _need(f, any(v > 0 for v in f.table), "some value of a table is positive", f.table)
    _need(f, f.zero, "zero=False belongs to kind='float'", f.zero)
