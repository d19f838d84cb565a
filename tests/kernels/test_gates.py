"""sigmoid and tanh by a guess have the bits of the definition; the guess is as close as said."""

import numba
import numpy as np
import pytest

from numsim.kernels.elementwise import activations
from numsim.kernels.gemm import recurrent
from numsim.kernels.ir import gates


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
    first, last = gates.LOW | sign, gates.HIGH | sign
    found, doubtful, *worst = wrong(first, last, 997)
    assert found == 0
    assert 0 < doubtful < (last - first) // 997 * 2**-12
    assert max(worst) < 2**11  # half of what `unsure` allows for


@numba.njit
def cells(states, product):
    recurrent._cells(states, 0, product)


def step(sums, c):
    """Do a step whose sums before the gates are given [B, 4H], from c [B, H]."""
    batch, hidden = c.shape
    before_h, before_c, squashed = (np.empty((1, batch, hidden), np.float32) for _ in range(3))
    y = np.empty((batch, 1, hidden), np.float32)
    zeros = np.zeros(4 * hidden, np.float32)
    gates_of = np.empty((1, batch, 4 * hidden), np.float32)
    states = recurrent.Forward(
        sums.reshape(gates_of.shape).copy(), zeros, zeros, np.full_like(c, 7), c.copy(), gates_of,
        before_h, before_c, squashed, y,
    )  # fmt: skip
    cells(states, np.zeros_like(sums))
    return states


def check(sums, c):
    """Compare every array of a step with the definition."""
    hidden = c.shape[1]
    found = step(sums, c)
    total = sums + np.float32(0)
    i, f, o = (activations.sigmoid(total[:, n * hidden : (n + 1) * hidden]) for n in (0, 1, 3))
    g = activations.tanh(np.ascontiguousarray(total[:, 2 * hidden : 3 * hidden]))
    with np.errstate(all="ignore"):
        new_c = f * c + i * g
        squashed = activations.tanh(new_c)
        h = o * squashed
    want = (np.concatenate([i, f, g, o], axis=1), new_c, squashed, h, h, c, np.full_like(c, 7))
    got = (found.gates[0], found.c, found.squashed[0], found.h, found.y[:, 0],
           found.before_c[0], found.before_h[0])  # fmt: skip
    for one, other in zip(got, want, strict=True):
        nan = np.isnan(other)
        np.testing.assert_array_equal(np.isnan(one), nan)
        np.testing.assert_array_equal(one[~nan].view(np.uint32), other[~nan].view(np.uint32))


def test_any_numbers_in_a_step_give_the_bits_of_the_definition():
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-39, 2.0**-100, 80.0, -80.0, -87.5,
               -103.9, 120.0, 3e38]  # fmt: skip
    for batch, hidden in ((1, 1), (2, 7), (3, 8), (2, 9), (1, 16), (4, 37)):
        sums, c = (
            (rng.normal(size=(batch, n)) * 2.0 ** rng.integers(-30, 6, (batch, n))).astype(
                np.float32
            )
            for n in (4 * hidden, hidden)
        )
        check(sums, c)
        for value in special:
            for place in rng.integers(0, 4 * hidden, 6):
                given = sums.copy()
                given[0, place] = value
                check(given, c)
            given = c.copy()
            given[-1, rng.integers(hidden)] = value
            check(sums, given)


def test_numbers_on_whose_middle_a_guess_falls_are_computed_again():
    """Some 30 of the float32 between 1/2 and 1 have a tanh that close to a middle."""
    x = np.arange(0x3F000000, 0x3F800000, dtype=np.uint32).view(np.float32)
    a = activations.tanh(x.astype(np.float64))
    doubtful = np.abs((a.view(np.int64) & ((1 << 29) - 1)) - (1 << 28)) < 1 << 10
    assert doubtful.any()
    x = x[doubtful]
    sums = np.ones((1, 4 * x.size), np.float32)
    sums[0, 2 * x.size : 3 * x.size] = x
    check(sums, np.zeros((1, x.size), np.float32))
    sums[0, : x.size] = 200.0  # then c is x
    sums[0, x.size :] = -1e3
    check(np.where(sums < 0, np.float32(200), sums), np.float32(x[None] - 1))
