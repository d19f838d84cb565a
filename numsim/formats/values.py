"""What the codes of a format mean, from the definition: slow, for tables and for limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def ieee_inf(f: Any) -> int:
    """Return the magnitude code of the largest exponent with a fraction of zero, IEEE's Inf."""
    exponent_bits = f.bits - f.signed - (f.precision - 1)
    return int(((1 << exponent_bits) - 1) << (f.precision - 1))


def value_of(f: Any, code: int) -> float:
    """Return the value of one non-negative code of a `Format`; infinities are not known here."""
    if f.kind == "table":
        return float(f.table[code])
    if f.kind == "integer":
        return math.ldexp(code, -f.bias)
    if not f.zero:
        return math.ldexp(1.0, code - f.bias)
    fraction_bits = f.precision - 1
    exponent, fraction = code >> fraction_bits, code & ((1 << fraction_bits) - 1)
    if exponent:
        fraction |= 1 << fraction_bits
    return math.ldexp(fraction, max(exponent, 1) - f.bias - fraction_bits)


def values_of(f: Any, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the values of bit patterns of a `Format`."""
    out: NDArray[np.float64]
    if f.kind == "table":
        table = np.array(f.table)
        if f.has_inf:
            ends = np.abs(table) == np.nanmax(np.abs(table))
            table = np.where(ends, np.copysign(np.inf, table), table)
        return table[codes]
    if f.kind == "integer":
        signed = codes - ((codes >> (f.bits - 1)) << f.bits) if f.signed else codes
        out = np.ldexp(signed.astype(np.float64), -f.bias)
        return out
    if not f.zero:
        out = np.ldexp(np.ones(codes.shape), codes - f.bias)
        out[codes == f.nan_code] = np.nan
        return out
    magnitude = codes & ((1 << (f.bits - f.signed)) - 1)
    exponent = magnitude >> (f.precision - 1)
    hidden = (exponent > 0).astype(np.int64) << (f.precision - 1)
    fraction = (magnitude & ((1 << (f.precision - 1)) - 1)) + hidden
    scale = np.maximum(exponent, 1) - f.bias - (f.precision - 1)
    out = np.ldexp(fraction.astype(np.float64), scale)
    if f.inf != "none":
        out[magnitude == f.inf_code] = np.inf
    if f.nan == "ieee":
        out[magnitude > ieee_inf(f)] = np.nan
    elif f.nan == "all_ones":
        out[magnitude == f.nan_code] = np.nan
    if f.signed:
        np.negative(out, where=(codes >> (f.bits - 1)) != 0, out=out)
    if f.nan == "minus_zero":
        out[codes == f.nan_code] = np.nan
    return out
