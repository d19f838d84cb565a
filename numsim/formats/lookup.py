"""From what a user writes to a `Format`: names, spellings, dtypes, files."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

from numsim.decimals import short_text
from numsim.errors import NumsimError, UnsupportedError, near_words
from numsim.float_state import known_floats
from numsim.formats.label import known_name
from numsim.formats.names import ALIASES, HINTS, Dtype, canonical, of_dtype, several
from numsim.formats.table import TABLE, found_fields
from numsim.formats.types import Format, named_format

FormatLike = str | Path | Format | Dtype


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
    found = named_format(name)
    if found is not None:
        return found
    found_fields(key)  # says which part of a parsed name is out of range
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


def describe(name: str) -> str:
    """Return a format's name with what tells it from its relatives.

    Examples
    --------
    >>> describe("float8_e4m3"), describe("e4m3")
    ('float8_e4m3 (max 240, has Inf)', 'e4m3 (float8_e4m3fn, max 448)')
    """
    f = get_format(name)
    words = [f"max {short_text(f.max)}", *(["has Inf"] if f.has_inf else [])]
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
    for near in near_words(word, [*TABLE, *HINTS], limit=12):
        first.setdefault(ALIASES.get(near, near), near)
    return [describe(near) for near in [*first.values()][:4]]


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
    return known_name(f)


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
    return tuple(TABLE)
