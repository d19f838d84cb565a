"""Figures that are counted: value tables, widths of accumulators, biases of stochastic rounding."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import cast, encode
from numsim.formats import Format, get_format
from numsim.quant import QUANTS, Quant, quantize

# Intel's E3M4 has one NaN and no Inf, which ml_dtypes' has
_E3M4 = Format("e3m4 of Intel", "float", 8, 5, 3, nan="all_ones")
_FORMATS: dict[str, str | Format] = {
    "e3m4": _E3M4, "ue5m3": "float8_ue5m3", "fp16": "float16", "bf16": "bfloat16",
}  # fmt: skip
_VARIANTS = {"srff": "truncate", "srf": "half_offset", "src": "rne_first"}


def figure(name: str) -> float:
    """Return one figure by its id.

    >>> figure("format.e5m2.max"), figure("int16.k"), figure("sr.srff.n3d4")
    (57344.0, 2.0, -0.03125)
    """
    head, *rest = name.split(".")
    if head == "format":
        return _of_format(name, *rest)
    if head == "p3109":
        return _p3109(rest[0])
    if head == "e8m0":
        rule = Quant("float8_e4m3fn", block=1, scale_format="float8_e8m0fnu", scale_rule=rest[1])
        return float(np.asarray(quantize([150.0], rule).scale_codes).item())
    if head == "width":
        return float(_width(get_format(rest[0]), int(rest[1]) if len(rest) > 1 else 1))
    if head in ("int32", "int16"):
        most = (1 << (int(head[3:]) - 1)) - 1
        largest = int(rest[0][1:]) if rest[0][1:] else 127
        return float(most // largest**2)
    if head == "harmonic":
        total, last = _harmonic(str(rest[0]))
        return last if len(rest) > 1 else total
    if head == "sr":
        return _bias(_VARIANTS[rest[0]], *(int(n) for n in rest[1][1:].split("d")))
    return _bits(rest[0])


def _positive(f: Format) -> NDArray[np.float64]:
    values = f.values()
    return values[np.isfinite(values) & (values > 0)]


def _of_format(name: str, *rest: str) -> float:
    if name == "format.e1m2_is_int4":  # magnitudes that are the same in units of the smallest
        one, other = (_positive(get_format(n)) for n in ("float4_e1m2fn", "int4"))
        return float((one / one.min() == other).sum())
    which, what = rest
    f = get_format(_FORMATS.get(which, which))
    positive = _positive(f)
    found: dict[str, Any] = {
        "max": positive.max(), "min_subnormal": positive.min(), "min": positive.min(),
        "count_0_1": (positive < 1).sum(), "count_1_inf": (positive > 1).sum(),
        "binades": len(np.unique(np.frexp(positive)[1])),
        "finite": np.isfinite(f.values()).sum(),
    }  # fmt: skip
    return float(found[what])


def _p3109(what: str) -> float:
    kind, low, high = what.replace("_k", "_").split("_")
    each = [
        (k, p, s, d)
        for k in range(int(low), int(high) + 1)
        for s in "su"
        for p in range(1, k + (s == "u"))
        for d in "ef"
    ]
    return float(len(each) if kind == "tables" else sum(1 << k for k, *_ in each))


def _width(f: Format, count: int) -> int:
    """Bits of a signed integer that counts products in units of the smallest one."""
    unit = f.min_subnormal
    most = int(f.max / unit) ** 2 * count  # exact: both are multiples of the unit
    return most.bit_length() + 1


@cache
def _harmonic(name: str) -> tuple[float, float]:
    """Sum 1 / i, every term and every sum rounded; where it stops to grow, and the last step."""
    f = get_format(_FORMATS.get(name, name))
    terms = cast(1.0 / np.arange(1, 2049), f).astype(np.float64)
    total, last = 0.0, 0
    for i, term in enumerate(terms):
        after = float(cast(np.float64(total + term), f))
        if after != total:
            total, last = after, i + 1
    return total, float(last)


def _bias(variant: str, bits: int, discarded: int) -> float:
    """Mean of the rounded less the number, over all fractions and all random integers."""
    fractions, draws = np.arange(1 << discarded), np.arange(1 << bits)
    x = np.repeat(fractions / (1 << discarded), len(draws))
    random = np.tile(draws, len(fractions)).astype(np.uint64)
    codes = encode(x, "int8", rounding="sr", sr=variant, random_bits=bits, random=random)
    return float((codes - x).mean())


def _bits(what: str) -> float:
    if what == "fp8_128x128":
        return Quant("float8_e4m3fn", block=(128, 128)).stored_bits(128, 128) / 128**2
    if what == "nvfp4_4096":
        return QUANTS["nvfp4"].stored_bits(1, 4096) / 4096
    names = {"mxfp4": "mxfp4_e2m1", "mxfp6": "mxfp6_e2m3", "mxfp8": "mxfp8_e4m3"}
    rule = QUANTS[names.get(what, what)]
    return rule.fmt.bits + rule.bits_of_scale / int(str(rule.block))
