"""Quotients by multiplications have the bits of a division, and integers those of its rounding."""

import numba
import numpy as np
import pytest

from numsim.kernels.convert import quotients

HARD = [0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x3FFFFFFE, 0x3FAAAAAB, 0x3FB504F3, 0x3F8CCCCD]


@numba.njit(error_model="numpy")
def differing(by, exponent):
    """Return of how many of all significands the quotient differs from the division's."""
    inverse, found = np.float32(np.float32(1) / by), 0
    for fraction in range(1 << 23):
        bits = np.uint32(np.uint32(exponent << 23) | np.uint32(fraction))
        x = bits.view(np.float32)
        made = np.float32(quotients.quotient(x, by, inverse)).view(np.uint32)
        found += made != np.float32(x / by).view(np.uint32)
    return found


@pytest.mark.parametrize("bits", HARD)
def test_every_significand_by_hard_divisors(bits):
    by = np.array(bits, np.uint32).view(np.float32)[()]
    assert differing(by, 127) == 0


@pytest.mark.parametrize("power", [-59, -30, 30, 59])
def test_every_significand_far_from_one(power):
    by = np.float32(np.ldexp(np.float32(1.9999999), power))
    for shift in (-20, 0, 7, 31):
        assert differing(by, 127 + power + shift) == 0


def test_every_significand_of_the_least_quotient_by_the_least_divisor():
    """The remainder has its last place at 2**-146; below 2**-149 float32 has no place for it."""
    by = np.float32(np.ldexp(np.float32(1.9999999), -60))
    assert differing(by, 127 - 60 - 39) == 0  # quotients from 2**-40 on


@pytest.mark.parametrize("code", [np.int8, np.int16])
@pytest.mark.parametrize("quantum", [1.0, 16.0])
def test_integers_are_those_of_the_rounded_quotient(code, quantum):
    rng = np.random.default_rng(0)
    low, high = np.float32(-np.iinfo(code).max), np.float32(np.iinfo(code).max)
    scales = [2.0**-140, 2.0**-61, 2.0**-60, 2.0**-59.5, 0.01, 1.0, 3.7, 2.0**59.9, 2.0**60, 1e30]
    specials = [0.0, -0.0, 1e-45, -1e-45, 1e-38, np.inf, -np.inf, 3.4e38, -3.4e38]
    for by in np.float32(scales):
        ties = (rng.integers(-200, 200, 999) + 0.5).astype(np.float32) * by
        normal = rng.standard_normal(1001).astype(np.float32) * 60 * by
        for x in (ties, normal, np.float32(specials), np.append(normal, np.float32(np.inf))):
            got = np.empty(x.shape, code)
            met = quotients.quotients_to_integers(x, by, got, np.float32(quantum), low, high)
            with np.errstate(all="ignore"):
                want = np.clip(np.rint(x / by * np.float32(quantum)), low, high).astype(code)
            assert not met
            np.testing.assert_array_equal(got, want)
    assert quotients.quotients_to_integers(
        np.float32([1, np.nan]), np.float32(1), np.empty(2, code), np.float32(1), low, high
    )
