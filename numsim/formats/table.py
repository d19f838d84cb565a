"""Every named format, one line each with its spec; the aliases; names that are parsed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache

from numsim.errors import NumsimError
from numsim.formats.fields import Fields
from numsim.formats.names import canonical
from numsim.vocabulary import Inf, Nan

_OCP8 = "OCP 8-bit Floating Point (OFP8) 1.0"
_OCPMX = "OCP Microscaling Formats (MX) 1.0"
_BF16 = "Google Brain float, upper half of binary32"
_IEEE = "IEEE 754-2019"
_LLVM = "LLVM APFloat semantics / ml_dtypes"
_FNUZ = "Noune et al., 8-bit numerical formats for deep neural networks, 2022 / LLVM APFloat"
_QLORA = "Dettmers et al., QLoRA, 2023, appendix E"
_P3109 = "IEEE P3109 interim report 4.0, value tables; 4.7.4 to 4.7.6 (conversion)"
_HIF8 = "Luo et al., Ascend HiFloat8, arXiv 2409.16626, table 1; codes: en_dtypes 0.0.4"
_UE5M3 = "AMD, FP4 with UE5M3 block scales (alto): max 114688"
_UE4M3 = "NVIDIA PTX ISA, .ue4m3: E4M3 of OCP without its sign"
_HIF4 = "Huawei, HiFloat4, arXiv 2602.11287: scale E6M2 of 64 values"
_POSIT = "Posit Standard 2022 (values; numbers round to the nearest of them, ties to the even code)"


def _float(
    name: str, bits: int, precision: int, bias: int, nan: Nan, inf: Inf, source: str,
    *, signed: bool = True, zero: bool = True,
) -> Fields:  # fmt: skip
    return Fields(
        name, "float", bits, precision, bias, signed=signed, nan=nan, inf=inf, zero=zero,
        source=source,
    )  # fmt: skip


def _integer(name: str, bits: int, fraction: int, *, signed: bool, source: str) -> Fields:
    return Fields(name, "integer", bits, bits - signed, fraction, signed=signed, source=source)


# NF4: quantiles of a normal distribution, normalised to [-1, 1], rounded to float32.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def _hifloat8(code: int) -> float:
    """Return the value of a code: sign, a prefix, exponent and fraction as long as it says."""
    if code == 0x80:
        return math.nan
    sign, body = -1.0 if code >> 7 else 1.0, f"{code & 0x7F:07b}"
    for prefix, exponent_bits in (("11", 4), ("10", 3), ("01", 2), ("001", 1), ("0001", 0)):
        if body.startswith(prefix):
            field = body[len(prefix) :][:exponent_bits]
            fraction = body[len(prefix) + exponent_bits :]
            # the first bit is the exponent's sign, an implied 1 leads the rest
            size = int("1" + field[1:], 2) if field else 0
            exponent = -size if field.startswith("1") else size
            return sign * math.ldexp(int("1" + fraction, 2), exponent - len(fraction))
    tiny = int(body[4:], 2)
    return sign * math.ldexp(1.0, tiny - 23) if tiny else 0.0


# the last magnitudes, 2**15 * 1.5, stand for Inf
_HIFLOAT8 = tuple(_hifloat8(code) for code in range(256))
_UE6M2 = (*(math.ldexp(4 + code % 4, code // 4 - 50) for code in range(255)), math.nan)

_TABLE = [
    #      name                 bits  p   bias  nan           inf     source
    _float("float32",            32, 24,  127, "ieee",       "ieee", f"{_IEEE} binary32"),
    _float("float16",            16, 11,   15, "ieee",       "ieee", f"{_IEEE} binary16"),
    _float("bfloat16",           16,  8,  127, "ieee",       "ieee", _BF16),
    _float("tfloat32",           19, 11,  127, "ieee",       "ieee", "NVIDIA A100 whitepaper"),
    _float("float8_e4m3fn",       8,  4,    7, "all_ones",   "none", f"{_OCP8}, table 1"),
    _float("float8_e4m3",         8,  4,    7, "ieee",       "ieee", f"{_LLVM} Float8E4M3"),
    _float("float8_e4m3fnuz",     8,  4,    8, "minus_zero", "none", _FNUZ),
    _float("float8_e4m3b11fnuz",  8,  4,   11, "minus_zero", "none", f"{_LLVM} Float8E4M3B11FNUZ"),
    _float("float8_e5m2",         8,  3,   15, "ieee",       "ieee", f"{_OCP8}, table 2"),
    _float("float8_e5m2fnuz",     8,  3,   16, "minus_zero", "none", _FNUZ),
    _float("float8_e3m4",         8,  5,    3, "ieee",       "ieee", f"{_LLVM} Float8E3M4"),
    _float("float8_e8m0fnu",      8,  1,  127, "all_ones",   "none", f"{_OCPMX}, section 5.4.1",
           signed=False, zero=False),
    _float("float6_e2m3fn",       6,  4,    1, "none",       "none", f"{_OCPMX}, table 3"),
    _float("float6_e3m2fn",       6,  3,    3, "none",       "none", f"{_OCPMX}, table 2"),
    _float("float4_e2m1fn",       4,  2,    1, "none",       "none", f"{_OCPMX}, table 4"),
    _float("float4_e1m2fn",       4,  3,    1, "none",       "none", _HIF4),
    _float("float4_e3m0fn",       4,  1,    3, "none",       "none", "E2M1's relatives, bias 3"),
    _float("float8_ue4m3",        7,  4,    7, "all_ones",   "none", _UE4M3, signed=False),
    _float("float8_ue5m3",        8,  4,   15, "all_ones",   "none", _UE5M3, signed=False),
    Fields("float8_ue6m2", "table", 8, 3, 0, signed=False, nan="all_ones", table=_UE6M2,
           source=_HIF4),
    Fields("hifloat8", "table", 8, 4, 0, nan="minus_zero", inf="top", table=_HIFLOAT8,
           source=_HIF8),
    *(_integer(f"int{n}", n, 0, signed=True, source="two's complement") for n in range(1, 33)),
    *(_integer(f"uint{n}", n, 0, signed=False, source="unsigned binary") for n in range(1, 17)),
    Fields("nf4", "table", 4, 4, 0, table=_NF4, source=_QLORA),
]  # fmt: skip

TABLE: dict[str, Fields] = {f.name: f for f in _TABLE}


def found_fields(key: str) -> Fields | None:
    """Return the fields of the table or of a parsed name; the latter may be out of range."""
    if key in TABLE:
        return TABLE[key]
    for pattern, build in _PARSED:
        match = re.fullmatch(pattern, key, re.ASCII)
        if match:
            return build(key, *match.groups())
    return None


@cache
def named_fields(name: str) -> Fields | None:
    """Return the fields that a name stands for in the table or by its parts, None for no name.

    Examples
    --------
    >>> named_fields("q3.4").bits, named_fields("mine")
    (8, None)
    """
    try:
        return found_fields(canonical(name))
    except NumsimError:
        return None


def _fixed(name: str, unsigned: str, integer: str, fraction: str) -> Fields:
    i, f, signed = int(integer), int(fraction), not unsigned
    bits = i + f + signed
    if not 2 <= bits <= 32:
        raise NumsimError(f"{name}: fixed point has 2 to 32 bits in all; got {bits}")
    source = "two's-complement fixed point: sign, integer and fraction bits"
    return _integer(f"{'u' if unsigned else ''}q{i}.{f}", bits, f, signed=signed, source=source)


def _ieee_like(name: str, exponent: str, fraction: str) -> Fields:
    e, m = int(exponent), int(fraction)
    if not (1 <= e <= 8 and 0 <= m <= 23 and e + m >= 2):
        raise NumsimError(
            f"{name}: exponent bits are 1 to 8, fraction bits 0 to 23, together 2 or more"
        )
    nan: Nan = "ieee" if m else "none"
    source = f"{_IEEE} encoding with {e} exponent and {m} fraction bits"
    return _float(f"float_e{e}m{m}", 1 + e + m, m + 1, (1 << (e - 1)) - 1, nan, "ieee", source)


def _p3109(name: str, width: str, precision: str, sign: str, domain: str) -> Fields:
    k, p, signed = int(width), int(precision), sign == "s"
    if not (2 <= k <= 16 and 1 <= p <= k - signed):
        raise NumsimError(f"{name}: K is 2 to 16, P is 1 to K - 1 (signed) or K (unsigned)")
    if (k, sign, domain) == (2, "s", "e"):
        raise NumsimError(f"{name}: 0 is its only finite value; p3109_k2p1sf or K from 3 have more")
    bias = 1 << (k - p - signed)
    if bias > 1024:
        raise NumsimError(
            f"{name}: its values pass the range of float64 (its bias is {bias}), in which they are "
            f"computed here; from P = {k - 10 - signed} on a format of K = {k} fits"
        )
    return Fields(
        f"p3109_k{k}p{p}{sign}{domain}",
        "float",
        k,
        p,
        bias,
        signed=signed,
        nan="minus_zero" if signed else "all_ones",
        inf="top" if domain == "e" else "none",
        conversion="p3109",
        source=_P3109,
    )


def _posit(name: str, width: str, exponent: str) -> Fields:
    n, es = int(width), int(exponent)
    if not (2 <= n <= 16 and 0 <= es <= 4 and (n - 2) << es <= 1000):
        raise NumsimError(f"{name}: posits have 2 to 16 bits, es 0 to 4, maxpos below 2**1000")
    table = tuple(_posit_value(code, n, es) for code in range(1 << n))
    return Fields(
        f"posit{n}_es{es}", "table", n, max(n - 2 - es, 1), 0, nan="minus_zero", table=table,
        source=_POSIT,
    )  # fmt: skip


def _posit_value(code: int, n: int, es: int) -> float:
    if code == 0:
        return 0.0
    if code == 1 << (n - 1):
        return math.nan
    if code >> (n - 1):
        return -_posit_value((1 << n) - code, n, es)
    body = f"{code:0{n}b}"[1:]
    run = len(body) - len(body.lstrip(body[0]))
    regime = run - 1 if body[0] == "1" else -run
    tail = body[run + 1 :]
    exponent = int(tail[:es].ljust(es, "0") or "0", 2)
    fraction = tail[es:]
    significand = int("1" + fraction, 2)
    return math.ldexp(significand, (regime << es) + exponent - len(fraction))


_PARSED: list[tuple[str, Callable[..., Fields]]] = [
    (r"(u?)q(\d{1,4})\.(\d{1,4})", _fixed),
    (r"float_e(\d{1,4})m(\d{1,4})", _ieee_like),
    (r"p3109_k(\d{1,4})p(\d{1,4})([su])([ef])", _p3109),
    (r"posit(\d{1,4})_es(\d{1,4})", _posit),
]
