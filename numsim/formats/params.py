"""A format as the numbers that conversion kernels take."""

from __future__ import annotations

from typing import Any, NamedTuple


class Params(NamedTuple):
    """A format as the scalars that the conversion kernels take.

    A magnitude code is the code without its sign. Finite magnitude codes are
    ``m + ((e - emin) << (p - 1)) - offset`` for the significand ``m < 2**p`` of binade ``e``.
    """

    p: int
    emin: int
    offset: int  # 1 where code 0 is the smallest value instead of zero (E8M0)
    max_positive: int  # largest finite magnitude code, per sign
    max_negative: int
    inf: int  # magnitude code of infinity, -1: none
    nan: int  # code of the canonical NaN, -1: none
    nan_signed: bool  # the NaN keeps a sign bit
    sign_bit: int  # 1 << (bits - 1) for sign-magnitude codes, else 0
    minus_zero: bool
    twos_complement: bool
    even_by_code: bool  # ties look at the code, not at the significand
    p3109: bool  # out of range as IEEE P3109 has it


def params_of(f: Any) -> Params:
    """Return the scalars of a `Format`."""
    if f.kind == "integer":
        top = 1 << (f.bits - f.signed)
        return Params(
            p=f.bits + 1, emin=f.bits - f.bias, offset=0,
            max_positive=top - 1, max_negative=top if f.signed else 0,
            inf=-1, nan=-1, nan_signed=False, sign_bit=0, minus_zero=False,
            twos_complement=True, even_by_code=False, p3109=False,
        )  # fmt: skip
    return Params(
        p=f.precision, emin=f.emin, offset=0 if f.zero else 1,
        max_positive=f.max_code, max_negative=f.max_code if f.signed else 0,
        inf=f.inf_code, nan=f.nan_code,
        nan_signed=f.signed and f.nan in ("ieee", "all_ones"),
        sign_bit=1 << (f.bits - 1) if f.signed else 0,
        minus_zero=f.has_negative_zero, twos_complement=False, even_by_code=f.zero,
        p3109=f.conversion == "p3109",
    )  # fmt: skip
