"""What other libraries call the formats, and what a word with several meanings is answered."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

import numsim as ns
from numsim.formats.names import ALIASES, EXACT_CASE, HINTS, MEANINGS, SENTENCES

OF_OTHERS = {
    "float8_e4m3fn": "F8_E4M3 torch.float8_e4m3fn float8e4m3fn FLOAT8E4M3FN fp8e4m3 hf8 fp8e4nv "
    "TensorProto.FLOAT8E4M3FN f8E4M3FN CUDA_R_8F_E4M3 __nv_fp8_e4m3 tl.float8e4nv e4m3 fp8_e4m3",
    "float8_e5m2": "F8_E5M2 torch.float8_e5m2 FLOAT8E5M2 fp8e5m2 f8E5M2 fp8e5 __nv_fp8_e5m2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ torch.float8_e4m3fnuz FLOAT8E4M3FNUZ fp8e4b8 "
    "__hip_fp8_e4m3_fnuz",
    "float8_e5m2fnuz": "torch.float8_e5m2fnuz FLOAT8E5M2FNUZ fp8e5b16",
    "float8_e4m3": "float8_e4m3 ml_dtypes.float8_e4m3",
    "float8_e8m0fnu": "F8_E8M0 torch.float8_e8m0fnu FLOAT8E8M0 ue8m0 e8m0 CUDA_R_8F_UE8M0",
    "float4_e2m1fn": "F4 torch.float4_e2m1fn_x2 FLOAT4E2M1 f4E2M1FN e2m1 fp4",
    "float6_e2m3fn": "F6_E2M3 fp6_e2m3 f6E2M3FN CUDA_R_6F_E2M3",
    "bfloat16": "BF16 bf16 torch.bfloat16 CUDA_R_16BF np.bfloat16",
    "float16": "F16 half torch.half torch.float16 CUDA_R_16F",
    "float32": "F32 fp32 torch.float torch.float32 single TensorProto.FLOAT",
    "int8": "I8 s8 torch.int8 CUDA_R_8I si8",
    "uint8": "U8 torch.uint8 ui8",
}


@pytest.mark.parametrize(
    ("word", "name"), [(w, name) for name, words in OF_OTHERS.items() for w in words.split()]
)
def test_a_word_of_one_meaning_is_an_alias(word, name):
    assert ns.get_format(word).name == name
    assert ns.Quant(word).format == name


@pytest.mark.parametrize(
    ("word", "all_of"),
    [
        ("fp8", ("float8_e4m3fn (max 448", "float8_e5m2 (max 57344", "float8_e4m3fnuz (max 240")),
        ("F8", ("float8_e4m3fn", "float8_e5m2")),
        ("bf8", ("float8_e5m2 (max 57344, has Inf", "float8_e5m2fnuz (max 57344")),
        ("fp6", ("float6_e2m3fn (max 7.5", "float6_e3m2fn (max 28")),
        ("float8e4m3", ("float8_e4m3fn (max 448", "float8_e4m3 (max 240")),
        ("f8E4M3", ("float8_e4m3fn (max 448", "float8_e4m3 (max 240")),
        ("f4", ("float32", "float4_e2m1fn")),
        ("i8", ("int64", "int8")),
        ("float", ("float64", "float32")),
        ("torch.float64", ("float64", "end at float32")),
        ("int64", ("end at int32",)),
    ],
)
def test_a_word_of_several_meanings_lists_them(word, all_of):
    for call in (ns.get_format, ns.Quant, lambda w: ns.quantize([1.0], w)):
        with pytest.raises(ns.NumsimError) as caught:
            call(word)
        for part in all_of:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def test_words_without_a_format_say_what_to_write():
    for word, said in (
        ("posit8", "write posit8_es2 (the standard of 2022) or posit8_es0"),
        ("Posit16", "posit16_es2 (the standard of 2022) or posit16_es1"),
        ("torch.bool", "real numbers"),
        ("float_e20m3", "exponent bits are 1 to 8, fraction bits 0 to 23, together 2 or more"),
    ):
        with pytest.raises(ns.NumsimError) as caught:
            ns.get_format(word)
        assert said in str(caught.value)
        for name in re.findall(r"write (\w+)|or (posit\w+)", said):
            assert ns.get_format(name[0] or name[1]).bits in (8, 16)


def test_no_word_has_two_entries():
    words = [*ALIASES, *MEANINGS, *SENTENCES]
    assert len(words) == len(set(words))
    assert not {w for w in words if w in ns.list_formats()}
    assert set(ALIASES.values()) | set(EXACT_CASE.values()) <= set(ns.list_formats())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint16, np.intc])
def test_dtypes_of_numpy(dtype):
    assert ns.get_format(dtype).name == np.dtype(dtype).name
    assert ns.get_format(np.dtype(dtype).newbyteorder()).name == np.dtype(dtype).name


@pytest.mark.parametrize(
    "name", [n for n in ns.list_formats() if isinstance(getattr(ml_dtypes, n, None), type)]
)
def test_dtypes_of_ml_dtypes(name):
    assert ns.get_format(getattr(ml_dtypes, name)).name == name
    assert ns.get_format(np.dtype(getattr(ml_dtypes, name))).name == name


def test_dtypes_of_torch_by_what_they_print():
    dtype = type("dtype", (), {"__repr__": lambda self: "torch.float8_e4m3fn"})
    assert ns.get_format(dtype()).name == "float8_e4m3fn"
    other = type("dtype", (), {"__repr__": lambda self: "paddle.float8_e4m3fn"})
    with pytest.raises(ns.NumsimError, match="a format is a name"):
        ns.get_format(other())


@pytest.mark.parametrize("dtype", [np.float64, np.dtype("complex64"), np.dtype("U3"), np.floating])
def test_dtypes_that_are_no_formats(dtype):
    with pytest.raises(ns.NumsimError, match="format '"):
        ns.get_format(dtype)


@pytest.mark.parametrize("word", ["float8_e4m4", "e4m33", "e5m3", "flaot16", "fp8_e4m3fm"])
def test_a_hint_says_what_its_format_holds(word):
    with pytest.raises(ns.NumsimError) as caught:
        ns.get_format(word)
    hints = str(caught.value).partition("did you mean ")[2].partition("). ")[0] + ")"
    for hint in hints.split("), "):
        name = hint.partition(" (")[0]
        held = re.search(r"max ([^,)]+)", hint)
        assert np.float32(held[1]) == ns.get_format(name).max
        assert name in HINTS or name in ns.list_formats()


def test_storage_rules_by_their_words():
    for word in ("mxfp4", "MXFP4", "mxfp4_e2m1", "MXFP4_E2M1"):
        assert ns.quantize(np.ones(32), word).quant == ns.quant.as_quant("mxfp4_e2m1")
    assert ns.quant.as_quant("NVFP4").block == 16
    with pytest.raises(ns.NumsimError, match=r"mxfp8_e4m3 \(max 448\), mxfp8_e5m2 \(max 57344\)"):
        ns.quant.as_quant("MXFP8")
    with pytest.raises(ns.NumsimError, match="Recipes of blocks"):
        ns.get_format("mxfp4")
    assert ns.list_recipes()[: len(ns.quant.QUANTS)] == tuple(ns.quant.QUANTS)
    for name in ns.quant.QUANTS:
        assert ns.quant.as_quant(name).granularity == "per_block"


def test_scale_formats_by_their_words():
    quant = ns.Quant("e2m1", block=32, scale_format="E8M0")
    assert quant == ns.Quant("float4_e2m1fn", block=32, scale_format="float8_e8m0fnu")
    assert ns.Quant("e4m3", scale_format="bf16").scale_format == "bfloat16"


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("hopper", ("nvidia.hopper.wgmma", "nvidia.hopper.mma")),
        ("Hopper", ("nvidia.hopper.wgmma", "nvidia.hopper.mma")),
        ("wgmma", ("nvidia.hopper.wgmma",)),
        ("cdna", ("amd.cdna1.mfma", "amd.cdna2.mfma", "amd.cdna3.mfma")),
    ],
)
def test_part_of_a_name_lists_the_units_that_have_it(part, found):
    with pytest.raises(ns.NumsimError) as caught:
        ns.get_target(part)
    assert f"did you mean {', '.join(found)}. " in str(caught.value)


def test_the_top_has_what_a_newcomer_looks_for():
    assert ns.bundled_model().name == "tiny_llama"
    assert ns.metrics.mse([1.0, 2.0], [1.0, 4.0]) == 2.0
