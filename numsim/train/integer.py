"""A training step without floats: INT32 sums become INT8 codes by shifts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats

LIMIT = 127


def _integers(who: str, x: ArrayLike) -> NDArray[np.int64]:
    array = as_array(who, x)
    if array.dtype.kind not in "iu":
        raise NumsimError(f"{who}: holds integers; got {array.dtype}; integer units return them")
    if array.size and not -(1 << 62) < int(array.min()) <= int(array.max()) < 1 << 62:
        raise NumsimError(
            f"{who}: integers lie within 2**62; got {array.min()} to {array.max()}; sums are INT32"
        )
    return array.astype(np.int64)


def _shift(acc: NDArray[np.int64], bits: int) -> int:
    """Return the shift that brings the largest magnitude to `bits` bits, 0 at least."""
    most = max(int(acc.max(initial=0)), -int(acc.min(initial=0)))
    return max(0, most.bit_length() - bits)


def _check_bits(who: str, bits: object) -> int:
    if not is_integer(bits) or not 1 <= bits <= 62:  # type: ignore[operator]
        raise NumsimError(f"{who}: bits is an integer from 1 to 62; got {bits!r}")
    return int(bits)  # type: ignore[call-overload, no-any-return]


def _random(who: str, random: ArrayLike, shape: tuple[int, ...], shift: int) -> NDArray[np.int64]:
    r = as_array(f"{who}: random", random)
    if r.dtype.kind not in "iu":
        raise NumsimError(f"{who}: random holds integers; got {r.dtype}")
    r = r.astype(np.int64)  # of uint64 the lowest bits stay
    if r.shape != shape:
        raise NumsimError(f"{who}: random has the shape of acc, {shape}; got {r.shape}")
    low: NDArray[np.int64] = r & ((1 << shift) - 1)  # of wider integers the lowest bits
    return low


def _divided(
    acc: NDArray[np.int64], shift: int, random: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Return acc / 2**shift: to nearest even, or away from zero where rest + random carries."""
    if shift == 0:
        return acc
    magnitude, one = np.abs(acc), np.int64(1) << np.int64(shift)
    whole, rest = magnitude >> shift, magnitude & (one - 1)
    if random is None:
        half = one >> 1
        up = (rest > half) | ((rest == half) & (whole & 1 == 1))
    else:
        up = rest + random >= one
    divided: NDArray[np.int64] = np.sign(acc) * (whole + up)
    return divided


@known_floats
def to_int8(
    acc: ArrayLike, *, bits: int = 7, random: ArrayLike | None = None
) -> tuple[NDArray[np.int8], int]:
    """Return the INT8 codes of an accumulator under a block exponent.

    Parameters
    ----------
    acc
        Integer array of any shape, the sums of one tensor.
    bits
        The largest magnitude is brought to so many bits.
    random
        Integers for stochastic rounding, uniform below ``2**shift`` (of wider ones the lowest
        bits count). None: to nearest even.

    Returns
    -------
    codes, shift
        ``acc ~ codes * 2**shift``; codes lie within +-127.

    Raises
    ------
    NumsimError
        For an array that holds no integers, or bits out of range.

    Source
    ------
    Wang et al., NITI: Training Integer Neural Networks Using Integer-Only Arithmetic, 2020.

    Examples
    --------
    >>> to_int8(np.array([1000, -24, 12]))
    (array([125,  -3,   2], dtype=int8), 3)
    """
    array = _integers("to_int8", acc)
    shift = _shift(array, _check_bits("to_int8", bits))
    drawn = None if random is None else _random("to_int8", random, array.shape, shift)
    codes = np.clip(_divided(array, shift, drawn), -LIMIT, LIMIT)
    return codes.astype(np.int8), shift


@known_floats
def integer_update(
    w: ArrayLike, acc: ArrayLike, *, bits: int, random: ArrayLike | None = None
) -> tuple[NDArray[np.int8], int]:
    """Return INT8 weights after a step against an INT32 gradient.

    Parameters
    ----------
    w
        INT8 codes.
    acc
        Sums of the weight gradient, of the same shape.
    bits
        The largest change has so many bits: the learning rate of this scheme.
    random
        As in `to_int8`.

    Returns
    -------
    w, shift
        ``clip(w - round(acc / 2**shift), +-127)``; the exponent of w stays.

    Raises
    ------
    NumsimError
        For shapes that differ, or codes beyond +-127.

    Source
    ------
    NITI, as `to_int8`.

    Examples
    --------
    >>> integer_update(np.array([10, -127], np.int8), np.array([64, 32]), bits=2)
    (array([   8, -127], dtype=int8), 5)
    """
    codes, array = _integers("integer_update: w", w), _integers("integer_update", acc)
    if codes.shape != array.shape:
        raise NumsimError(
            f"integer_update: acc has the shape of w, {codes.shape}; got {array.shape}"
        )
    if codes.size and max(int(codes.max()), -int(codes.min())) > LIMIT:
        raise NumsimError(
            f"integer_update: w lies within +-{LIMIT}; got {codes.min()} to {codes.max()}"
        )
    shift = _shift(array, _check_bits("integer_update", bits))
    drawn = None if random is None else _random("integer_update", random, array.shape, shift)
    changed = np.clip(codes - _divided(array, shift, drawn), -LIMIT, LIMIT)
    return changed.astype(np.int8), shift
