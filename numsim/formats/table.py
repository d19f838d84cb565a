"""Every named format, one line each with its spec; the aliases; names that are parsed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from numsim.errors import NumsimError, UnsupportedError, near_words
from numsim.float_state import known_floats
from numsim.formats.names import ALIASES, HINTS, Dtype, canonical, of_dtype, several
from numsim.formats.types import Format, Inf, Nan

FormatLike = str | Path | Format | Dtype

_OCP8 = "OCP 8-bit Floating Point (OFP8) 1.0"
_OCPMX = "OCP Microscaling Formats (MX) 1.0"
_BF16 = "Google Brain float, upper half of binary32"
_IEEE = "IEEE 754-2019"
_LLVM = "LLVM APFloat semantics / ml_dtypes"
_FNUZ = "Noune et al., 8-bit numerical formats for deep neural networks, 2022 / LLVM APFloat"
_QLORA = "Dettmers et al., QLoRA, 2023, appendix E"
_P3109 = "IEEE P3109 interim report, value tables"
_POSIT = "Posit Standard 2022 (values; numbers round to the nearest of them, ties to the even code)"


def _float(
    name: str, bits: int, precision: int, bias: int, nan: Nan, inf: Inf, source: str,
    *, signed: bool = True, zero: bool = True,
) -> Format:  # fmt: skip
    return Format(
        name, "float", bits, precision, bias, signed=signed, nan=nan, inf=inf, zero=zero,
        source=source,
    )  # fmt: skip


def _integer(name: str, bits: int, fraction: int, *, signed: bool, source: str) -> Format:
    return Format(name, "integer", bits, bits - signed, fraction, signed=signed, source=source)


# NF4: quantiles of a normal distribution, normalised to [-1, 1], rounded to float32.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

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
    *(_integer(f"int{n}", n, 0, signed=True, source="two's complement") for n in range(2, 33)),
    *(_integer(f"uint{n}", n, 0, signed=False, source="unsigned binary") for n in range(2, 17)),
    Format("nf4", "table", 4, 4, 0, table=_NF4, source=_QLORA),
]  # fmt: skip

FORMATS: dict[str, Format] = {f.name: f for f in _TABLE}


@known_floats
def get_format(name: FormatLike) -> Format:
    """Return the format called `name`.

    Parameters
    ----------
    name
        A canonical name (`list_formats`), a spelling of another library (``"e4m3"``, ``"bf16"``,
        ``"F8_E4M3"``, ``"torch.float8_e5m2"``), the path of a format's TOML file (``.toml``), a
        dtype of NumPy, ml_dtypes or torch, or a name that is
        parsed: ``q{I}.{F}`` and ``uq{I}.{F}`` fixed point, ``float_e{E}m{M}`` IEEE-like floats,
        ``p3109_k{K}p{P}{s|u}{e|f}``, ``posit{N}_es{E}``. A `Format` is returned unchanged.

    Raises
    ------
    NumsimError
        For an unknown name, with near names, a word that names several formats, with what it may
        mean, a parsed name out of range, or a file that `Format.from_toml` rejects.

    Examples
    --------
    >>> get_format("e4m3").name
    'float8_e4m3fn'
    >>> get_format("q3.4").max
    7.9375
    >>> get_format("float8_e4m4")
    Traceback (most recent call last):
        ...
    numsim.errors.NumsimError: unknown format 'float8_e4m4'; did you mean float8_e4m3 (max 240, ...
    """
    if isinstance(name, Format):
        return name
    if isinstance(name, Path) or (isinstance(name, str) and name.endswith(".toml")):
        return Format.from_toml(name)
    word = name if isinstance(name, str) else of_dtype(name)
    if word is None:
        raise NumsimError(
            f"a format is a name or a Format; got {' '.join(repr(name).split()):.60} "
            f"({type(name).__name__}); pass a name such as 'float8_e4m3fn' (numsim.list_formats())"
        )
    return _lookup(word)


@cache
def _lookup(name: str) -> Format:
    key = canonical(name)
    found = named_format(name) or _found(key)  # the latter says which part is out of range
    if found is not None:
        return found
    sentence = several(key, describe)
    if sentence is not None:
        raise NumsimError(f"format {name!r}: {sentence}")
    blocks = ""
    if key.startswith(("mx", "nv")):
        blocks = (
            ". Recipes of blocks (mxfp4_e2m1, nvfp4 ...) are no formats: numsim.quantize takes "
            "them, encode their elements (float4_e2m1fn ...)"
        )
    near = "" if blocks else ", ".join(near_formats(key))
    raise NumsimError(
        f"unknown format {name!r}{near and f'; did you mean {near}'}. "
        "Formats are listed by numsim.list_formats(); q3.4, uq0.8, float_e5m6, p3109_k8p4se and "
        "posit8_es2 show the names that are parsed"
        f"{blocks}"
    )


def _found(key: str) -> Format | None:
    """Return the format of the table or of a parsed name; the latter may be out of range."""
    if key in FORMATS:
        return FORMATS[key]
    for pattern, build in _PARSED:
        match = re.fullmatch(pattern, key, re.ASCII)
        if match:
            return build(key, *match.groups())
    return None


def describe(name: str) -> str:
    """Return a format's name with what tells it from its relatives.

    Examples
    --------
    >>> describe("float8_e4m3"), describe("e4m3")
    ('float8_e4m3 (max 240, has Inf)', 'e4m3 (float8_e4m3fn, max 448)')
    """
    f = get_format(name)
    words = [f"max {f.max:.6g}", *(["has Inf"] if f.has_inf else [])]
    return f"{name} ({', '.join([*([f.name] if f.name != name else []), *words])})"


def is_ambiguous(word: str) -> bool:
    """Return whether a word stands for several formats, or for one that is not here.

    >>> is_ambiguous("fp8"), is_ambiguous("e4m3")
    (True, False)
    """
    return several(canonical(word), describe) is not None


@known_floats
def near_formats(word: str) -> list[str]:
    """Return the formats that a misspelt name may mean, each with what it holds.

    >>> near_formats("e4m33")[0]
    'e4m3 (float8_e4m3fn, max 448)'
    """
    first: dict[str, str] = {}  # format -> its nearest spelling
    for near in near_words(word, [*FORMATS, *HINTS], limit=12):
        first.setdefault(ALIASES.get(near, near), near)
    return [describe(near) for near in [*first.values()][:4]]


@cache
def named_format(name: str) -> Format | None:
    """Return the format that a name stands for in the table or by its parts, None for no name.

    Examples
    --------
    >>> named_format("q3.4"), named_format("mine")
    (Format('q3.4'), None)
    """
    try:
        return _found(canonical(name))
    except NumsimError:
        return None


@lru_cache(maxsize=1024)
def table_name(f: Format) -> str:
    """Return the canonical name that stands for a format, "" for a `Format` of one's own.

    A name alone says less than a `Format`, which may carry the name of the table's with other
    fields: what looks a format up by its name asks here.

    Examples
    --------
    >>> from dataclasses import replace
    >>> e4m3 = get_format("e4m3")
    >>> table_name(e4m3), table_name(replace(e4m3, bias=10)), table_name(replace(e4m3, name="mine"))
    ('float8_e4m3fn', '', '')
    """
    known = named_format(f.name)
    return known.name if known is not None and known.meaning == f.meaning else ""


def kept_format(fmt: FormatLike) -> str | Format:
    """Return what stands for a format in data: its canonical name, or a `Format` of one's own.

    Raises
    ------
    NumsimError
        As `get_format`.

    Examples
    --------
    >>> kept_format("e4m3")
    'float8_e4m3fn'
    """
    f = get_format(fmt)
    return table_name(f) or f


def format_name(fmt: FormatLike, what: str) -> str:
    """Return a canonical name where only a name can stand; `what` begins the refusal.

    Raises
    ------
    NumsimError
        As `get_format`, and for a `Format` of one's own.

    Examples
    --------
    >>> format_name("half", "out_format")
    'float16'
    """
    f = get_format(fmt)
    name = table_name(f)
    if not name:
        raise UnsupportedError(
            f"{what} is one of the named formats; got {f.label}, a Format of your own; "
            "name a format of numsim.list_formats()"
        )
    return name


@known_floats
def list_formats() -> tuple[str, ...]:
    """Return the canonical names of the table (parsed names are not listed).

    Examples
    --------
    >>> list_formats()[:3]
    ('float32', 'float16', 'bfloat16')
    """
    return tuple(FORMATS)


def _fixed(name: str, unsigned: str, integer: str, fraction: str) -> Format:
    i, f, signed = int(integer), int(fraction), not unsigned
    bits = i + f + signed
    if not 2 <= bits <= 32:
        raise NumsimError(f"{name}: fixed point has 2 to 32 bits in all; got {bits}")
    source = "two's-complement fixed point: sign, integer and fraction bits"
    return _integer(f"{'u' if unsigned else ''}q{i}.{f}", bits, f, signed=signed, source=source)


def _ieee_like(name: str, exponent: str, fraction: str) -> Format:
    e, m = int(exponent), int(fraction)
    if not (1 <= e <= 8 and 0 <= m <= 23 and e + m >= 2):
        raise NumsimError(f"{name}: exponent bits are 1 to 8, fraction bits 0 to 23, 2 in all")
    nan: Nan = "ieee" if m else "none"
    source = f"{_IEEE} encoding with {e} exponent and {m} fraction bits"
    return _float(f"float_e{e}m{m}", 1 + e + m, m + 1, (1 << (e - 1)) - 1, nan, "ieee", source)


def _p3109(name: str, width: str, precision: str, sign: str, domain: str) -> Format:
    k, p, signed = int(width), int(precision), sign == "s"
    if not (2 <= k <= 8 and 1 <= p <= k - signed):
        raise NumsimError(f"{name}: K is 2 to 8, P is 1 to K - 1 (signed) or K (unsigned)")
    if (k, sign, domain) == (2, "s", "e"):
        raise NumsimError(f"{name}: 0 is its only finite value; p3109_k2p1sf or K from 3 have more")
    bias = 1 << (k - p - signed)
    return _float(
        f"p3109_k{k}p{p}{sign}{domain}", k, p, bias, "minus_zero" if signed else "all_ones",
        "top" if domain == "e" else "none", _P3109, signed=signed,
    )  # fmt: skip


def _posit(name: str, width: str, exponent: str) -> Format:
    n, es = int(width), int(exponent)
    if not (2 <= n <= 16 and 0 <= es <= 4 and (n - 2) << es <= 1000):
        raise NumsimError(f"{name}: posits have 2 to 16 bits, es 0 to 4, maxpos below 2**1000")
    table = tuple(_posit_value(code, n, es) for code in range(1 << n))
    return Format(
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


_PARSED: list[tuple[str, Callable[..., Format]]] = [
    (r"(u?)q(\d{1,4})\.(\d{1,4})", _fixed),
    (r"float_e(\d{1,4})m(\d{1,4})", _ieee_like),
    (r"p3109_k(\d{1,4})p(\d{1,4})([su])([ef])", _p3109),
    (r"posit(\d{1,4})_es(\d{1,4})", _posit),
]
