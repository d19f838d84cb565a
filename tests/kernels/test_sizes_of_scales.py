"""What conditions ask of scales, against NumPy."""

import numpy as np
import pytest

from numsim.kernels.gemm.blocks import sizes

SOME = [1.0, 0.5, 3.0, 2.0**-149, 2.0**127, 2.0**60, 2.0**-60, -2.0, -(2.0**-140), 0.0, -0.0]


@pytest.mark.parametrize("last", [*SOME, np.inf, -np.inf, np.nan, -np.nan])
def test_sizes(last):
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 7, 33, 100):
        for values in (SOME[:3], SOME, [0.0, -0.0], [-1.0, -3.0, 0.0]):
            scales = np.array([*rng.choice(values, count), last], np.float32)
            scales = np.roll(scales, rng.integers(count + 1))
            some = scales[scales != 0]
            finite, least, most, found = sizes(scales)
            assert (finite, found) == (np.isfinite(some).all(), some.size)
            if finite:
                assert least == some.min(initial=np.inf)
                assert most == max(some.max(initial=0), 0)


def test_no_scales():
    assert sizes(np.empty(0, np.float32)) == (True, np.inf, 0.0, 0)
