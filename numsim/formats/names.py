"""What others call the formats: aliases where a word has one meaning, sentences where it has not.

Spellings of safetensors, torch, ONNX, MLIR, Triton, CUDA and HIP; case does not matter, but in the
words of `EXACT_CASE`, which NumPy uses in lower case for other types.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

_TAILS: dict[str, tuple[str, ...]] = {  # after float8, fp8, f8, with or without a line, or alone
    "float8_e4m3fn": ("e4m3fn", "e4m3_fn"),
    "float8_e4m3fnuz": ("e4m3fnuz", "e4m3_fnuz"),
    "float8_e4m3b11fnuz": ("e4m3b11fnuz", "e4m3b11_fnuz", "e4m3b11"),
    "float8_e5m2": ("e5m2",),
    "float8_e5m2fnuz": ("e5m2fnuz", "e5m2_fnuz"),
    "float8_e3m4": ("e3m4",),
    "float8_e8m0fnu": ("e8m0fnu", "e8m0", "ue8m0"),
    "float6_e2m3fn": ("e2m3fn", "e2m3"),
    "float6_e3m2fn": ("e3m2fn", "e3m2"),
    "float4_e2m1fn": ("e2m1fn", "e2m1", "e2m1fn_x2", "e2m1_x2"),  # x2: two to a byte
    "float4_e1m2fn": ("e1m2fn", "e1m2"),
    "float4_e3m0fn": ("e3m0fn", "e3m0"),
    "float8_ue4m3": ("ue4m3", "ue4m3fn"),
    "float8_ue5m3": ("ue5m3", "ue5m3fn"),
    "float8_ue6m2": ("ue6m2",),
}


def _spellings() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, tails in _TAILS.items():
        heads = [f"{word}{name[5]}{line}" for word in ("float", "fp", "f") for line in ("_", "")]
        found |= {f"{head}{tail}": name for tail in tails for head in ("", *heads)}
    return {spelling: name for spelling, name in found.items() if spelling != name}


ALIASES: dict[str, str] = {
    "fp32": "float32", "f32": "float32", "single": "float32",
    "fp16": "float16", "f16": "float16", "half": "float16",
    "bf16": "bfloat16", "tf32": "tfloat32",
    # E4M3 without a word about its specials is that of OCP; float8_e4m3 is another (ml_dtypes)
    "e4m3": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8e4m3": "float8_e4m3fn",
    "f8_e4m3": "float8_e4m3fn", "hf8": "float8_e4m3fn",
    **_spellings(), "fp4": "float4_e2m1fn", "hif8": "hifloat8", "cuda_r_8f_ue4m3": "float8_ue4m3",
    # Triton: bits of the exponent, its bias, nv for OCP's
    "fp8e4nv": "float8_e4m3fn", "float8e4nv": "float8_e4m3fn",
    "fp8e5": "float8_e5m2", "float8e5": "float8_e5m2",
    "fp8e4b8": "float8_e4m3fnuz", "float8e4b8": "float8_e4m3fnuz",
    "fp8e5b16": "float8_e5m2fnuz", "float8e5b16": "float8_e5m2fnuz",
    # PTX, XLA and MLIR
    **{f"{head}{n}": f"int{n}" for head in ("s", "si") for n in (2, 4, 8, 16, 32)},
    **{f"ui{n}": f"uint{n}" for n in (2, 4, 8, 16)}, "i16": "int16", "i32": "int32",
    "u16": "uint16",
    # CUDA
    "cuda_r_32f": "float32", "cuda_r_16f": "float16", "cuda_r_16bf": "bfloat16",
    "cuda_r_8f_e4m3": "float8_e4m3fn", "cuda_r_8f_e5m2": "float8_e5m2",
    "cuda_r_8f_ue8m0": "float8_e8m0fnu", "cuda_r_6f_e2m3": "float6_e2m3fn",
    "cuda_r_6f_e3m2": "float6_e3m2fn", "cuda_r_4f_e2m1": "float4_e2m1fn",
    **{f"cuda_r_{n}{sign}": f"{name}{n}" for n in (4, 8, 16) for sign, name in
       (("i", "int"), ("u", "uint"))}, "cuda_r_32i": "int32",
}  # fmt: skip

HINTS: tuple[str, ...] = tuple(  # the aliases that a hint offers: those of people, not of enums
    word for word in ALIASES if re.fullmatch(r"e\dm\d\w*|fp\d_\w+|[a-z]+\d*", word)
)

EXACT_CASE: dict[str, str] = {  # safetensors; NumPy's lower case counts bytes
    "F4": "float4_e2m1fn", "I8": "int8", "U8": "uint8",
}  # fmt: skip

_IN_LIBRARIES: dict[str, str] = {  # words that mean something else alone
    "torch.float": "float32", "torch.int": "int32", "torch.short": "int16",
    "tensorproto.float": "float32",
}  # fmt: skip

_OCP_E4M3 = ("float8_e4m3fn", "OCP, as NVIDIA, Intel, Arm, AMD CDNA4")
_IEEE_E4M3 = ("float8_e4m3", "ml_dtypes and MLIR, with Inf")
_OCP_E5M2 = ("float8_e5m2", "OCP, as NVIDIA, Intel, Arm, AMD CDNA4")
_FNUZ_E4M3 = ("float8_e4m3fnuz", "AMD CDNA3")
_FNUZ_E5M2 = ("float8_e5m2fnuz", "AMD CDNA3")
_FP8 = (_OCP_E4M3, _OCP_E5M2, _FNUZ_E4M3, _FNUZ_E5M2)
_FP6 = (("float6_e2m3fn", "OCP MX"), ("float6_e3m2fn", "OCP MX"))

MEANINGS: dict[str, tuple[tuple[str, str], ...]] = {  # (format, whose word it is)
    **dict.fromkeys(("fp8", "float8", "f8", "cuda_r_8f"), _FP8),
    **dict.fromkeys(("fp8_fnuz", "float8_fnuz"), (_FNUZ_E4M3, _FNUZ_E5M2)),
    "bf8": (_OCP_E5M2, _FNUZ_E5M2),
    **dict.fromkeys(("float8e4m3", "f8e4m3"), (_OCP_E4M3, _IEEE_E4M3)),
    **dict.fromkeys(("fp6", "float6", "f6"), _FP6),
}

_DOUBLE = "float64 is what references are computed in; the emulated formats end at float32"
_WIDE = "integer formats end at int32 and uint16; use int32, or a name such as int16"

SENTENCES: dict[str, str] = {
    **dict.fromkeys(("float64", "fp64", "f64", "double"), _DOUBLE),
    "float": "float is float64 for Python and NumPy, float32 for C, torch and ONNX; write float32",
    **dict.fromkeys(("int64", "i64", "s64", "uint64", "u64", "uint32", "u32", "long"), _WIDE),
    "f4": "f4 is float32 for NumPy (bytes), float4_e2m1fn for MLIR (bits); write one of them",
    **{f"{head}{n}": f"{head}{n} is {name}{8 * n} for NumPy (bytes), {name}{n} for MLIR (bits); "
       "write the long name" for head, name in (("i", "int"), ("u", "uint")) for n in (2, 4, 8)},
    **{f"posit{n}": f"a posit is written with its exponent bits; write posit{n}_es2 (the standard "
       f"of 2022) or posit{n}_es{n // 8 - 1} (the draft before it)" for n in (8, 16)},
    **dict.fromkeys(("bool", "complex64", "complex128"), "formats are of real numbers"),
    "fp8e4b15": "Triton's E4M3 of bias 15 has no name here; Format(name, 'float', 8, 4, 15, ...) "
                "makes one",
}  # fmt: skip

_PREFIX = re.compile(
    r"(torch|np|numpy|ml_dtypes|jnp|jax\.numpy|tl|triton\.language|(onnx\.)?tensorproto)\."
    r"|__(nv|hip)_"
)


def canonical(word: str) -> str:
    """Return the canonical name of a spelling, or the spelling in lower case.

    Examples
    --------
    >>> [canonical(word) for word in ("torch.float8_e4m3fn", "F8_E5M2", "__nv_fp8_e4m3", "q3.4")]
    ['float8_e4m3fn', 'float8_e5m2', 'float8_e4m3fn', 'q3.4']
    """
    word = word.strip()
    if word in EXACT_CASE:
        return EXACT_CASE[word]
    key = word.lower()
    if key.startswith("onnx."):
        key = key.removeprefix("onnx.")
    if key in _IN_LIBRARIES:
        return _IN_LIBRARIES[key]
    key = _PREFIX.sub("", key, count=1) if _PREFIX.match(key) else key
    return ALIASES.get(key, key)


def of_dtype(x: object) -> str | None:
    """Return the name of a dtype of NumPy, ml_dtypes or torch (never imported), else None.

    Examples
    --------
    >>> of_dtype(np.dtype("<f4")), of_dtype(np.float16), of_dtype(1.0)
    ('float32', 'float16', None)
    """
    if isinstance(x, np.dtype):
        return x.name
    if isinstance(x, type):
        return x.__name__ if issubclass(x, np.generic) else None
    named = type(x).__name__ == "dtype" and str(x).startswith("torch.")
    return str(x) if named else None


def several(word: str, describe: Callable[[str], str]) -> str | None:
    """Return the sentence for a word that is not one format, None for every other word."""
    if word in MEANINGS:
        listed = ", ".join(f"{describe(name)[:-1]}; {whose})" for name, whose in MEANINGS[word])
        return f"{word} is the name of several formats; write one of {listed}"
    return SENTENCES.get(word)


Dtype = np.dtype[Any] | type[np.generic]
