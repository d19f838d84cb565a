"""Named storage rules: one line each, accepted wherever a Quant is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from numsim.convert import cast
from numsim.decimals import short_text
from numsim.errors import NumsimError, near_words
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, get_format, is_ambiguous, near_formats
from numsim.quant.rule import Quant
from numsim.quant.scale_rules import POW2_FORMATS, has_two_levels

_MX = {"block": 32, "scale_format": "float8_e8m0fnu", "scale_rule": "floor"}

_NV = {"block": 16, "scale_format": "float8_e4m3fn"}

QUANTS: dict[str, Quant] = {
    "mxfp8_e4m3": Quant("float8_e4m3fn", **_MX),  # type: ignore[arg-type]
    "mxfp8_e5m2": Quant("float8_e5m2", **_MX),  # type: ignore[arg-type]
    "mxfp6_e2m3": Quant("float6_e2m3fn", **_MX),  # type: ignore[arg-type]
    "mxfp6_e3m2": Quant("float6_e3m2fn", **_MX),  # type: ignore[arg-type]
    "mxfp4_e2m1": Quant("float4_e2m1fn", **_MX),  # type: ignore[arg-type]
    "mxint8": Quant("q1.6", **_MX),  # type: ignore[arg-type]  # 8 bits with an implied 2**-6
    "nvfp4": Quant("float4_e2m1fn", **_NV),  # type: ignore[arg-type]
    "nvfp4_row": Quant("float4_e2m1fn", **_NV, tensor_scale="per_token"),  # type: ignore[arg-type]
    "nvfp4_4over6": Quant("float4_e2m1fn", **_NV, scale_rule="4over6:mse"),  # type: ignore[arg-type]
    "if4": Quant("float4_e2m1fn", **_NV, scale_rule="if4"),  # type: ignore[arg-type]
    "hif4": Quant("float4_e1m2fn", block=64, scale_format="float8_ue6m2"),
    "amdfp4": Quant("float4_e2m1fn", block=16, scale_format="float8_ue5m3", tensor_scale=None),
}

_OCP = "OCP Microscaling Formats (MX) 1.0, table 1; scale: section 6.3"
_NVIDIA = "NVIDIA cuBLAS, block scaling with scale mode VEC16_UE4M3"
SOURCES: dict[str, str] = {
    **{name: _OCP for name in QUANTS if name.startswith("mx")},
    "nvfp4": _NVIDIA,
    "nvfp4_row": "TransformerEngine, NVFP4 with one scale a row above its blocks (d0067d0)",
    "nvfp4_4over6": "Cook et al., Four over six, arXiv 2512.02010; fouroversix",
    "if4": "fouroversix, IF4: E2M1 or integers in each block of NVFP4",
    "hif4": "Huawei, HiFloat4, arXiv 2602.11287",
    "amdfp4": "AMD, FP4 with UE5M3 block scales (alto)",
}


ALIASES: dict[str, str] = {"mxfp4": "mxfp4_e2m1"}
_SEVERAL: dict[str, tuple[str, ...]] = {
    head: tuple(name for name in QUANTS if name.startswith(head)) for head in ("mxfp8", "mxfp6")
}


def list_recipes() -> tuple[str, ...]:
    """Return the named storage rules: what `quantize` and sweeps take beside the formats.

    Examples
    --------
    >>> list_recipes()[-2:]
    ('hif4', 'amdfp4')
    """
    return tuple(QUANTS)


def quant_words(quant: Quant) -> str:
    """Return the name of a storage rule, or its element and what shares a scale.

    >>> quant_words(QUANTS["nvfp4"]), quant_words(Quant("int8", block=32))
    ('nvfp4', 'int8 in blocks of 32')
    """
    named = next((name for name, other in QUANTS.items() if other == quant), None)
    shared = str(quant.granularity).replace("_", " ")
    parts = f"in blocks of {quant.block}" if quant.block is not None else shared
    return named or f"{quant.fmt.label} {parts}"


def recipe_name(word: object) -> str | None:
    """Return the name of the storage rule that a word stands for, None for every other word.

    Raises
    ------
    NumsimError
        For a word that several of them go by.

    Examples
    --------
    >>> recipe_name("MXFP4"), recipe_name("int8")
    ('mxfp4_e2m1', None)
    """
    if not isinstance(word, str):
        return None
    key = word.strip().lower()
    if key in _SEVERAL:
        known = (f"{name} (max {short_text(QUANTS[name].fmt.max)})" for name in _SEVERAL[key])
        raise NumsimError(f"{word!r} is the name of several storage rules: {', '.join(known)}")
    key = ALIASES.get(key, key)
    return key if key in QUANTS else None


_SUBNORMAL = "blocks whose scale is subnormal, of few bits, may take another scale and clip"
_AGAIN: dict[str, str] = {
    "hif4": "amax / 7 in bfloat16 moves where the amax was rounded",
    "kl": "what was clipped counts in another bin",
    "amax_half": "the amax comes back half a step smaller",
}


def quantised_again(quant: Quant) -> str:
    """Return why dequantised values, quantised again, may change; nothing where they do not.

    That is so of nearest rounding where scales are normal numbers of float32.

    >>> quantised_again(Quant("int8", "per_token")), quantised_again(QUANTS["mxint8"])
    ('', 'an element of -128 has twice the scale the next time')
    """
    fmt, rule = quant.fmt, str(quant.scale_rule)
    powers, two = quant.scale_format in POW2_FORMATS, has_two_levels(quant.scale_format)
    middle = np.float64((fmt.max / 2.0**fmt.emax + 2) / 2)
    if quant.granularity == "none" or quant.scale is not None:
        return ""
    if quant.rounding != "rne":
        return f"rounding is {quant.rounding}"
    if quant.zero_point:
        return "the range begins and ends at codes the next time, which its zero point moved"
    if rule in _AGAIN:
        return _AGAIN[rule]
    if rule == "mse" and (two or quant.scale_format == "float32"):
        return "values rounded to float32 may fit another scale as well"
    if powers and rule == "floor" and fmt.kind == "integer":
        least = int(fmt.min * 2**fmt.bias)
        return f"an element of {least} has twice the scale the next time"
    if rule == "midmax" and cast(middle, fmt) == middle:
        return f"an amax rounded to {float(middle):g} of a power takes half the scale, and clips"
    return _SUBNORMAL if two else ""


@known_floats
def as_quant(quant: FormatLike | Quant) -> Quant:
    """Return a `Quant`: itself, a named one (``mxfp4_e2m1``), or the default of a format.

    Raises
    ------
    NumsimError
        For a name that is neither, with near names.

    Examples
    --------
    >>> as_quant("int8").granularity
    'per_tensor'
    >>> as_quant("nvfp4").block
    16
    """
    if isinstance(quant, Quant):
        return quant
    if isinstance(quant, Format):
        return _of_format(quant)
    if isinstance(quant, str) and not quant.endswith(".toml"):
        return _of_word(quant)
    return _found(quant)


@lru_cache(maxsize=512)
def _of_format(fmt: Format) -> Quant:
    return Quant(fmt)


@lru_cache(maxsize=512)
def _of_word(word: str) -> Quant:
    return _found(word)


def _found(quant: FormatLike) -> Quant:
    name = recipe_name(quant)
    if name is not None:
        return QUANTS[name]
    try:
        fmt = get_format(quant)
    except NumsimError:
        plain = isinstance(quant, str) and not quant.endswith(".toml")
        near = near_words(str(quant), QUANTS) if plain and not is_ambiguous(str(quant)) else []
        if near:
            hints = ", ".join([*near_formats(str(quant)), *near])
            raise NumsimError(
                f"unknown storage rule or format {quant!r}; did you mean {hints}"
            ) from None
        raise
    return _of_format(fmt)
