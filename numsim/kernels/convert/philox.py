"""Philox-2x32-7 (Salmon, Moraes, Dror, Shaw, SC 2011): a counter and a key to random bits.

Seven rounds is the fewest for which the paper reports BigCrush passed ("Crush-resistant"). There
is no state: number n takes word ``n % 2`` of block ``n // 2`` as its upper 32 bits and the
block's other word as its lower 32, which only a tie of the upper ones brings into play.
"""

from __future__ import annotations

import numpy as np

from numsim.kernels.instructions import wide_vectors
from numsim.kernels.jit import inline, kernel

ROUNDS = 7
_MULTIPLIER = np.uint64(0xD256D193)
_WEYL = np.uint64(0x9E3779B9)
_LOW = np.uint64(0xFFFFFFFF)


@inline
def philox_block(block: np.uint64, key: np.uint32) -> np.uint64:
    """Return a block's 64 bits, word 0 at the bottom, for the 64-bit counter `block`.

    Words stay in 64-bit lanes (the upper halves are never read), which saves narrowing each round.
    """
    low, high, weyl = block, np.uint64(block >> np.uint64(32)), np.uint64(key)
    for _ in range(ROUNDS):
        product = np.uint64(_MULTIPLIER * np.uint64(low & _LOW))
        low = np.uint64(np.uint64(np.uint64(product >> np.uint64(32)) ^ weyl) ^ high)
        high = product
        weyl = np.uint64(np.uint64(weyl + _WEYL) & _LOW)
    return np.uint64(np.uint64(low & _LOW) | np.uint64(high << np.uint64(32)))


@inline
def random64(number: np.uint64, key: np.uint32) -> np.uint64:
    """Return the 64 random bits of one number of the stream."""
    bits = philox_block(number >> np.uint64(1), key)
    if number & np.uint64(1):
        return bits
    return np.uint64(bits << np.uint64(32)) | np.uint64(bits >> np.uint64(32))


@kernel
def random_words(numbers: np.ndarray, key: int, out: np.ndarray) -> None:
    """Fill `out` with the 64 random bits of each of `numbers`, uint64 [n]."""
    for i in range(numbers.size):
        out[i] = random64(numbers[i], np.uint32(key))


@inline
def fill_words(words: np.ndarray, number: np.uint64, key: np.uint32) -> None:
    """Fill uint64 blocks that, seen as uint32, hold the upper words from an even number on."""
    wide_vectors()
    first = number >> np.uint64(1)
    for i in range(words.size):
        words[i] = philox_block(np.uint64(first + np.uint64(i)), key)
