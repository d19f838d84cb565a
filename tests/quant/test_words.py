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


@pytest.mark.parametrize("recipe", ["if4", "hif4"])
def test_words_of_no_rows_and_of_no_columns(recipe):
    for shape in ((0, 64), (3, 0), (0, 0)):
        q = ns.quantize(np.zeros(shape, np.float32), recipe)
        assert q.scale.shape == (shape[0], -(-shape[1] // q.block_shape[1]))
        words = block_words(q)
        assert words.elements.shape == shape
        assert from_block_words(words, recipe).shape == shape


def test_words_of_blocks_of_one_stay_where_they_are():
    rule = ns.Quant(
        "e2m1", block=1, scale_format="e4m3", scale_rule="if4", tensor_scale="per_token"
    )
    q = ns.quantize(numbers(5, 7), rule)
    words = block_words(q)
    assert words.elements.shape == words.scales.shape == (2, 7)
    back = from_block_words(words, rule, tensor_scale=q.tensor_scale)
    np.testing.assert_array_equal(back.dequantize(), q.dequantize())


IF4, HIF4 = (block_words(ns.quantize(numbers(1, 64), name)) for name in ("if4", "hif4"))
WIDE = {name: getattr(HIF4, name).astype(np.int64) for name in ("scales", "level_2", "level_3")}


@pytest.mark.parametrize(("words", "recipe"), [
    (HIF4._replace(**{name: words + beyond}), "hif4")
    for name, words in WIDE.items() for beyond in (1 << 16, -(1 << 16), 0.5)
] + [
    (IF4._replace(elements=IF4.elements + np.uint8(16)), "if4"),
    (IF4._replace(scales="abc"), "if4"),
])  # fmt: skip
def test_words_with_bits_that_they_have_not_are_refused(words, recipe):
    with pytest.raises(ns.NumsimError, match="bits, without a sign; got"):
        from_block_words(words, recipe)


def test_words_may_be_lists():
    lists = BlockWords(*(x.tolist() for x in HIF4))
    back = from_block_words(lists, "hif4")
    np.testing.assert_array_equal(back.codes, from_block_words(HIF4, "hif4").codes)


@pytest.mark.parametrize("scale", [0, -1.0, np.nan, np.inf, 1e60, "x", 1j, [1, 2], np.ones((2, 1))])
def test_a_tensor_scale_of_words_is_one_positive_number(scale):
    with pytest.raises(ns.NumsimError, match=r"^from_block_words: tensor_scale"):
        from_block_words(IF4, "if4", tensor_scale=scale)


def test_hif4_has_no_tensor_scale():
    with pytest.raises(ns.NumsimError, match="no scale stands above the blocks of hif4"):
        from_block_words(HIF4, "hif4", tensor_scale=2.0)


def test_words_are_of_tensors():
    with pytest.raises(ns.NumsimError, match="words are of IF4 and HiF4"):
        block_words(np.ones(4))
