"""Stored words of IF4 and HiF4: their values by the definition of the formats, in fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numsim as ns
from numsim.quant.words import BlockWords, block_words, from_block_words

E2M1 = [Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12)]


def numbers(seed, depth):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, (2, depth)) * np.exp2(rng.integers(-6, 6, (2, depth)))
    x[rng.random(x.shape) < 0.2] = 0
    x[0, :16] = rng.integers(-7, 8, min(depth, 16))
    return x.astype(np.float32)


def e4m3(code):
    exponent, fraction = code >> 3, code & 7
    if exponent == 0:
        return Fraction(fraction, 1 << 9)
    return Fraction(8 + fraction, 8) * Fraction(2) ** (exponent - 7)


def if4_value(words, row, k, above):
    code, element = int(words.scales[row, k // 16]), int(words.elements[row, k])
    if code >> 7:
        whole = element - 16 if element & 8 else element
        value = Fraction(whole) * 6 / 7
    else:
        value = E2M1[element & 7] * (-1 if element & 8 else 1)
    return value * e4m3(code & 0x7F) * above


def hif4_value(words, row, k):
    block, at = divmod(k, 64)
    code, element = int(words.scales[row, block]), int(words.elements[row, k])
    twice = int(words.level_2[row, block]) >> (at // 8) & 1
    twice += int(words.level_3[row, block]) >> (at // 4) & 1
    scale = Fraction(4 + (code & 3), 4) * Fraction(2) ** ((code >> 2) - 48)
    return Fraction(element & 7, 4) * (-1 if element & 8 else 1) * 2**twice * scale


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from((1, 16, 63, 64, 130, 192)),
       st.sampled_from(("if4", "hif4")))  # fmt: skip
def test_words_have_the_values_of_the_tensor(seed, depth, recipe):
    q = ns.quantize(numbers(seed, depth), recipe)
    words, got = block_words(q), q.dequantize()
    assert words.elements.shape == (2, depth)
    for row in range(2):
        for k in range(depth):
            if recipe == "if4":
                want = if4_value(words, row, k, Fraction(float(q.tensor_scale)))
            else:
                want = hif4_value(words, row, k)
            # of IF4 one rounding to float32, checked as the nearest by its distance
            near = Fraction(float(abs(np.spacing(got[row, k])))) / 2
            assert abs(Fraction(float(got[row, k])) - want) <= (near if recipe == "if4" else 0)
    back = from_block_words(words, recipe, tensor_scale=q.tensor_scale)
    for name in ("codes", "scale", "scale_codes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(q, name))
    np.testing.assert_array_equal(back.dequantize(), got)


@pytest.mark.parametrize("recipe", ["if4", "hif4"])
def test_words_of_any_axis_lie_along_the_last(recipe):
    x = numbers(5, 128)
    along = block_words(ns.quantize(x, recipe))
    down = block_words(ns.quantize(np.ascontiguousarray(x.T), recipe, axis=0))
    for one, other in zip(along, down, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)


def test_every_set_of_levels_is_told_from_the_codes():
    """Blocks whose largest value asks for level 2, 3, both or neither, beside a 7 of the scale."""
    x = np.zeros((1, 64), np.float32)
    x[0, 0] = 7.0  # the scale is 1: groups of eight from 4 on have level 2, of four from 2 on 3
    x[0, 8], x[0, 16], x[0, 24], x[0, 28], x[0, 36] = 4.0, 2.0, 1.75, 3.5, 1.0
    words = block_words(ns.quantize(x, "hif4"))
    assert words.scales.tolist() == [[192]]
    assert words.level_2.tolist() == [[0b11]]
    assert words.level_3.tolist() == [[0b10010101]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: block_words(ns.quantize(np.ones(16), "nvfp4")), "words are of IF4 and HiF4"),
        (lambda: from_block_words(block_words(ns.quantize(np.ones(16), "if4")), "nvfp4"),
         "recipe is if4 or hif4"),
        (lambda: from_block_words(block_words(ns.quantize(np.ones(64), "if4")), "hif4"),
         "levels 2 and 3"),
        (lambda: from_block_words(BlockWords(np.ones(16, np.uint8), np.ones(2, np.uint8)), "if4"),
         r"shape \(1,\)"),
        (lambda: from_block_words(BlockWords(np.full(4, 16), np.ones(1, np.uint8)), "if4"), "16"),
        (lambda: from_block_words(BlockWords(np.ones(16, np.uint8), np.uint8([127])), "if4"),
         "1 of 1 scales are NaN"),
    ],
)  # fmt: skip
def test_words_that_cannot_be(call, words):
    with pytest.raises(ns.NumsimError, match=words):
        call()
