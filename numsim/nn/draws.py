"""What training draws: keys of streams, random signs, and the Hadamard rotation by them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.arguments import as_array, real_array
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.convert.philox import random_words

Array = NDArray[Any]


def stream_key(*parts: object) -> int:
    """Return the key of a random stream, a function of its parts alone.

    >>> stream_key(0, "head", "gradient", 3) == stream_key(0, "head", "gradient", 4)
    False
    """
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2s(text, digest_size=4).digest(), "little")


def random_signs(count: int, *parts: object) -> NDArray[np.float32]:
    """Return `count` signs +-1 of the stream of `parts`."""
    words = np.empty(count, np.uint64)
    random_words(np.arange(count, dtype=np.uint64), stream_key(*parts), words)
    return np.where(words >> np.uint64(63), np.float32(-1), np.float32(1))


@known_floats
def hadamard(x: Array, signs: Array) -> Array:
    """Return (x * signs) H / sqrt(n) on groups of n = len(signs) of the last axis.

    Parameters
    ----------
    x
        Array [..., K], K a multiple of n; n a power of two.
    signs
        n numbers +1 or -1.

    Returns
    -------
    Array of the shape and type of `x`. Sums of n = 4^k values of few bits are exact.

    Raises
    ------
    NumsimError
        For an n that is no power of two, or a K that is no multiple of it.

    Source
    ------
    Sylvester's construction; NVIDIA's NVFP4 training recipe uses n = 16 on both operands of wgrad.

    Examples
    --------
    >>> hadamard(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4))
    array([ 5., -1., -2.,  0.])
    """
    values, s = as_array("hadamard", x), as_array("hadamard: signs", signs)
    n = s.size
    if s.ndim != 1 or n < 1 or n & (n - 1):
        raise NumsimError(f"hadamard: signs are 2**k numbers; got shape {s.shape}")
    if not np.isin(s, (-1, 1)).all():
        raise NumsimError("hadamard: signs are +1 or -1")
    if values.ndim < 1 or values.shape[-1] % n:
        raise NumsimError(
            f"hadamard: the last axis is a multiple of {n}; got shape {values.shape}; pad it"
        )
    if values.dtype.kind != "f":
        values = real_array("hadamard", values)
    y = values.reshape(*values.shape[:-1], values.shape[-1] // n, n) * s.astype(values.dtype)
    half = 1
    while half < n:
        pairs = y.reshape(*y.shape[:-1], n // (2 * half), 2, half)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        y = np.stack([low + high, low - high], axis=-2).reshape(y.shape)
        half *= 2
    root = values.dtype.type(1.0 / np.sqrt(n))
    result: Array = (y * root).reshape(values.shape)
    return result
