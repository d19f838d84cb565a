"""Random bits of stochastic rounding inside a network: a function of what an element is.

The draw of an element depends on the seed of the recipe, the name of the product, the side of the
operand, and where the element stands in the network: of an activation its token position, head
and feature, of a weight its index in the matrix. It depends on nothing else, so prefill and
decoding, a row alone and in a batch, any number of threads, and a product run alone on tapped
inputs draw the same bits. Rows of a batch at one position draw alike.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from numsim.kernels.convert.philox import random_words

WIDEST = 2**24  # features of a head, or keys, that one position may have


def stream(seed: int, name: str, side: str) -> int:
    """Return the key of the stream of an operand: ``left`` or ``right`` of the product `name`.

    >>> stream(0, "layers.0.q_proj", "left") == stream(1, "layers.0.q_proj", "left")
    False
    """
    text = f"{seed}:{name}:{side}".encode()
    return int.from_bytes(hashlib.blake2s(text, digest_size=4).digest(), "little")


def draws(
    key: int, positions: NDArray[np.int64], width: int, *, groups: int = 1, heads: int = 1
) -> NDArray[np.uint64]:
    """Return the random bits [groups, heads * T, width] of a sequence's elements.

    Element (g, h, t, j) has number ``((positions[t] groups + g) heads + h) 2**24 + j``.

    >>> both = draws(7, np.arange(2), 3)
    >>> np.array_equal(draws(7, np.array([1]), 3)[0], both[0, 1:])
    True
    """
    t = positions[None, None, :].astype(np.uint64)
    g, h = np.arange(groups, dtype=np.uint64), np.arange(heads, dtype=np.uint64)
    rows = (t * np.uint64(groups) + g[:, None, None]) * np.uint64(heads) + h[:, None]
    numbers = rows[..., None] * np.uint64(WIDEST) + np.arange(width, dtype=np.uint64)
    out = np.empty(numbers.size, np.uint64)
    random_words(numbers.reshape(-1), key, out)
    return out.reshape(groups, heads * len(positions), width)
