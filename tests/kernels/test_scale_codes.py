"""Scale codes of an operand: the outermost ones, lines with NaN, words of a panel's columns."""

import numpy as np
import pytest

from numsim.kernels.gemm.scales import NONE, by_columns, scales_of

LAYOUTS = [(0, 1, 2), (0, 2, 1), (2, 1, 0)]


@pytest.mark.parametrize("magnitude", [255, 127])  # E8M0, E4M3 with a sign
@pytest.mark.parametrize("axes", LAYOUTS)
def test_the_outermost_codes(axes, magnitude):
    rng = np.random.default_rng(0)
    for size in [(1, 1, 1), (1, 3, 5), (2, 70, 9), (3, 4, 300)]:
        for low, high in [(0, 256), (3, 250), (126, 128), (255, 256), (0, 1)]:
            codes = rng.integers(low, high, size).astype(np.uint8).transpose(axes)
            for own in (codes, codes[:, ::2]):  # with gaps, too
                found, sizes = scales_of(own, 2, magnitude), own & magnitude
                assert found[1:] == (2, magnitude, sizes.min(), sizes.max())
                lines = (sizes == magnitude).any(-1)
                assert found.nan == lines.any()
                np.testing.assert_array_equal(found.nan_lines(), lines)


@pytest.mark.parametrize("place", [0, 17, 31, 32, 99])
def test_one_nan_among_many(place):
    codes = np.full((1, 4, 25), 127, np.uint8)
    assert not scales_of(codes, 1).nan
    codes.reshape(-1)[place] = 255
    assert scales_of(codes, 1).nan
    assert np.flatnonzero(scales_of(codes, 1).nan_lines()).tolist() == [place // 25]


def test_bare_codes_have_scales_of_one():
    assert not NONE.nan
    words = by_columns(NONE, np.arange(256, dtype=np.int32) - 127, (2, 1, 3, 4), 3, 3)
    assert not words.any()


@pytest.mark.parametrize("axes", LAYOUTS)
def test_words_of_columns(axes):
    """A group reads the scale of its block; what is beside columns or behind groups is 0."""
    rng = np.random.default_rng(1)
    table = rng.integers(1, 1000, 256).astype(np.int32)
    for batch, lines, blocks, groups, used in [(1, 5, 2, 1, 2), (2, 16, 3, 2, 5), (3, 9, 1, 4, 3)]:
        shape = np.array((batch, lines, blocks))[np.argsort(axes)]
        codes = rng.integers(0, 256, shape).astype(np.uint8).transpose(axes)
        words = by_columns(scales_of(codes, groups), table, (batch, 2, used + 2, 8), lines, used)
        want = np.zeros((batch, 16, used + 2), np.int32)
        want[:, :lines, :used] = table[codes[:, :, np.arange(used) // groups]]
        want = want.reshape(batch, 2, 8, used + 2).swapaxes(2, 3)
        np.testing.assert_array_equal(words, want)
