"""The numbers that kernels have for words are the places of the words in their lists."""

import pytest

from numsim import vocabulary
from numsim.kernels.convert import round as numbers


@pytest.mark.parametrize(
    ("words", "last"),
    [("ROUNDINGS", "SR"), ("OVERFLOWS", "WRAP"), ("SR_VARIANTS", "RNE_FIRST")],
)
def test_a_kernel_knows_a_word_by_its_place(words, last):
    words = getattr(vocabulary, words)
    assert [getattr(numbers, word.upper()) for word in words] == list(range(len(words)))
    assert words[-1].upper() == last
