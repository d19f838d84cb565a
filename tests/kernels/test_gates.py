"""sigmoid and tanh by a guess have the bits of the definition; the guess is as close as said."""

import numba
import numpy as np
import pytest

from numsim.kernels.elementwise import activations, gates


@numba.njit(error_model="numpy")
def wrong(first, last, step):
    """Count float32 patterns in [first, last) for which a sure guess is not the definition's bits.

    Also returned: how many guesses were not sure, and the largest relative errors, in 2**-52.
    """
    found, doubtful, worst_s, worst_t = 0, 0, 0.0, 0.0
    for pattern in range(first, last, step):
        x = np.float64(np.uint32(pattern).view(np.float32))
        guess, want = gates.sigmoid_guess(x), activations.sigmoid_of(x)
        worst_s = max(worst_s, abs(guess - want) / want)
        if gates.unsure(guess):
            doubtful += 1
        elif np.float32(guess) != np.float32(want):
            found += 1
        if x > 0:
            guess, want = gates.tanh_guess(x), activations.tanh_of(x)
            worst_t = max(worst_t, abs(guess - want) / want)
            if gates.unsure(guess):
                doubtful += 1
            elif np.float32(guess) != np.float32(want):
                found += 1
    return found, doubtful, worst_s * 2.0**52, worst_t * 2.0**52


@pytest.mark.parametrize("sign", [0, 1 << 31])
def test_a_guess_that_is_sure_rounds_as_the_definition_does(sign):
    first, last = int(gates._LOW) | sign, int(gates._HIGH) | sign
    found, doubtful, *worst = wrong(first, last, 997)
    assert found == 0
    assert 0 < doubtful < (last - first) // 997 * 2**-12
    assert max(worst) < 2**11  # half of what `unsure` allows for


@numba.njit
def both(x, sigmoid, tanh):
    gates.sigmoids(x, sigmoid)
    gates.tanhs(x, tanh)


def test_any_numbers_in_a_piece_give_the_bits_of_the_definition():
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-39, 2.0**-100, 80.0, -80.0, -87.5,
               -103.9, 120.0, 3e38]  # fmt: skip
    for size in (1, 7, 255, 256, 257, 1000):
        x = (rng.normal(size=size) * 2.0 ** rng.integers(-30, 6, size)).astype(np.float32)
        for place in (None, 0, size - 1):
            for value in special if place is not None else [0.5]:
                if place is not None:
                    x[place] = value
                got = np.empty_like(x), np.empty_like(x)
                both(x, *got)
                for one, work in zip(got, (activations.sigmoid, activations.tanh), strict=True):
                    np.testing.assert_array_equal(one.view(np.uint32), work(x).view(np.uint32))


def test_numbers_on_whose_middle_a_guess_falls_are_computed_again():
    """Some 30 of the float32 between 1/2 and 1 have a tanh that close to a middle."""
    x = np.arange(0x3F000000, 0x3F800000, dtype=np.uint32).view(np.float32)
    a = activations.tanh(x.astype(np.float64))
    doubtful = np.abs((a.view(np.int64) & ((1 << 29) - 1)) - (1 << 28)) < 1 << 10
    assert doubtful.any()
    x = x[doubtful]
    got = np.empty_like(x), np.empty_like(x)
    both(x, *got)
    np.testing.assert_array_equal(got[1].view(np.uint32), activations.tanh(x).view(np.uint32))
