"""The words of arguments and fields, each list once.

A kernel knows a word by its place in the list; `tests/test_vocabulary.py` compares both sides.
"""

from __future__ import annotations

from typing import Literal, get_args

Rounding = Literal["rne", "rna", "rtz", "rup", "rdn", "rto", "sr"]
Overflow = Literal["saturate", "special", "saturate_finite", "wrap"]  # of a conversion
NanPolicy = Literal["canonical", "payload", "max", "zero"]  # NaN going into a conversion
Variant = Literal["truncate", "half_offset", "rne_first"]  # of rounding by few random bits

ROUNDINGS: tuple[str, ...] = get_args(Rounding)
OVERFLOWS: tuple[str, ...] = get_args(Overflow)
NAN_POLICIES: tuple[str, ...] = get_args(NanPolicy)
SR_VARIANTS: tuple[str, ...] = get_args(Variant)

Kind = Literal["float", "integer", "table"]  # of a format
Nan = Literal["none", "ieee", "all_ones", "minus_zero"]  # which codes of a format are NaN
Inf = Literal["none", "ieee", "top"]  # which are infinite
Conversion = Literal["ieee", "p3109"]  # whose rules a conversion to the format follows

KINDS: tuple[str, ...] = get_args(Kind)
NANS: tuple[str, ...] = get_args(Nan)
INFS: tuple[str, ...] = get_args(Inf)
CONVERSIONS: tuple[str, ...] = get_args(Conversion)

Accumulation = Literal["wrap", "saturate", "raise"]  # what an integer accumulator does at its end
ACCUMULATIONS: tuple[str, ...] = get_args(Accumulation)
