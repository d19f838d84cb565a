"""NaN among sums has the bits of the unit, and no other number changes."""

from types import SimpleNamespace

import numpy as np
import pytest

from numsim.targets.chain import one_nan

NUMBERS = [0, 1 << 31, 1, 0x007FFFFF, 0x3F800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000]
NANS = [0x7F800001, 0xFF800001, 0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF]


@pytest.mark.parametrize(("nan", "bits"), [("ones", 0x7FFFFFFF), ("quiet", 0x7FC00000)])
@pytest.mark.parametrize("met", [NUMBERS, *([*NUMBERS, nan] for nan in NANS), [*NUMBERS, *NANS]])
def test_nan_of_sums_is_the_units(nan, bits, met):
    words = np.random.default_rng(0).choice(np.array(met, np.uint32), (2, 18, 10))
    words[0, 0, 0] = words[-1, -1, -1] = met[-1]
    want = np.where(np.isin(words, NANS), np.uint32(bits), words)
    wide = np.zeros((2, 18, 21), np.uint32)
    for place in (
        np.empty_like(words), np.empty_like(words, order="F"), wide[..., 1::2],
        np.empty((18, 2, 10), np.uint32).swapaxes(0, 1),
    ):  # fmt: skip
        place[...] = words
        sums = place.view(np.float32)
        assert one_nan(sums, SimpleNamespace(nan=nan)) is sums
        np.testing.assert_array_equal(place, want)


def test_no_sums():
    assert one_nan(np.empty((2, 0, 3), np.float32), SimpleNamespace(nan="ones")).shape == (2, 0, 3)
