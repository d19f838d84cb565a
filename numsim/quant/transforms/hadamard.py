"""Hadamard matrices of every order that networks have, and rotations by them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.elementwise import hadamard as kernel

_PALEY = {12: 11, 20: 19, 44: 43}  # order: prime of the form 4 n - 1
_CONFERENCE = {28: 13, 36: 17}  # order: prime of the form 4 n + 1
ODD_PARTS = (1, *sorted((*_PALEY, *_CONFERENCE)))


@cache
def hadamard_order(n: int) -> tuple[int, int]:
    """Return (power of two, order of the matrix that is not Sylvester's) whose product is n.

    Raises
    ------
    NumsimError
        For a size without a matrix here, with near ones.

    Examples
    --------
    >>> hadamard_order(128), hadamard_order(96)
    ((128, 1), (8, 12))
    """
    if is_integer(n) and n >= 1:
        for m in ODD_PARTS:
            if n % m == 0 and (n // m) & (n // m - 1) == 0:
                return n // m, m
    near = [2**k * m for k in range(16) for m in ODD_PARTS]
    least = [c for c in near if is_integer(n) and c < n]
    most = [c for c in near if is_integer(n) and c > n]
    close = [str(f) for f in ([max(least)] if least else []) + ([min(most)] if most else [])]
    raise NumsimError(
        f"hadamard: sizes are 2**k times {', '.join(map(str, ODD_PARTS))}; got {n!r:.40}; "
        f"use {' or '.join(close) or 'an integer from 1'}, or rotate in blocks of such a size"
    )


@known_floats
def hadamard(n: int) -> NDArray[np.float64]:
    """Return an orthonormal Hadamard matrix: entries +-1 over sqrt(n).

    Sylvester's matrix of 2**k, Kronecker product with Paley's of 12, 20, 28, 36 or 44.

    Parameters
    ----------
    n
        Order: 2**k m, m of 1, 12, 20, 28, 36, 44.

    Returns
    -------
    float64 array [n, n]

    Raises
    ------
    NumsimError
        For another order, and one whose matrix takes more than 2 GiB.

    Source
    ------
    Paley, On orthogonal matrices, 1933, constructions I (12, 20, 44) and II (28, 36).

    Examples
    --------
    >>> hadamard(4) * 2
    array([[ 1.,  1.,  1.,  1.],
           [ 1., -1.,  1., -1.],
           [ 1.,  1., -1., -1.],
           [ 1., -1., -1.,  1.]])
    """
    two, m = hadamard_order(n)
    if n > 1 << 14:
        raise NumsimError(
            f"hadamard: a matrix of order {n} takes {8 * n * n / 2**30:.3g} GiB; rotate(x, "
            f"block={n}) needs none"
        )
    whole = np.ones((1, 1), np.int8)
    while len(whole) < two:
        whole = np.block([[whole, whole], [whole, -whole]])
    return np.asarray(np.kron(whole, signs_of(m)) / np.sqrt(np.float64(n)))


@cache
def signs_of(m: int) -> NDArray[np.int8]:
    """Return the +-1 matrix of an order that is no power of two (or 1).

    >>> (signs_of(12) @ signs_of(12).T == 12 * np.eye(12)).all()
    np.True_
    """
    if m == 1:
        return np.ones((1, 1), np.int8)
    q = _PALEY.get(m) or _CONFERENCE[m]
    squares = {i * i % q for i in range(1, q)}
    row = np.array([0 if i == 0 else 1 if i in squares else -1 for i in range(q)], np.int8)
    inner = np.array([np.roll(row, i) for i in range(q)], np.int8)
    edge = np.ones((1, q), np.int8)
    if m in _PALEY:
        skew = np.block([[np.zeros((1, 1), np.int8), edge], [-edge.T, inner]])
        return np.asarray(np.eye(m, dtype=np.int8) + skew, np.int8)
    whole = np.block([[np.zeros((1, 1), np.int8), edge], [edge.T, inner]])
    one, other = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
    return np.asarray(np.kron(whole, one) + np.kron(np.eye(q + 1), other), np.int8)


@known_floats
def rotate(
    x: ArrayLike, *, block: int | None = None, signs: ArrayLike | None = None,
    inverse: bool = False,
) -> NDArray[Any]:  # fmt: skip
    """Rotate the last axis by a Hadamard matrix: outliers spread over all values of a block.

    Each run of `block` values is multiplied by H / sqrt(block); signs multiply first. Two operands
    of a product that are both rotated along K have the same product.

    Parameters
    ----------
    x
        Array [..., K] of real numbers; float64 is computed in float64, all others in float32.
    block
        Values that are rotated together, a size of `hadamard` that divides K. None: all of K.
    signs
        +-1 for each of the K values (random signs of QuaRot), or None.
    inverse
        True: rotate back.

    Returns
    -------
    Array of the shape of `x`, float32 or float64.

    Raises
    ------
    NumsimError
        For a block without a Hadamard matrix or that does not divide K, and signs of other values.

    Source
    ------
    Ashkboos et al., QuaRot, arXiv 2404.00456; Tseng et al., QuIP#, arXiv 2402.04396.

    Examples
    --------
    >>> rotate([4.0, 0.0, 0.0, 0.0])
    array([2., 2., 2., 2.], dtype=float32)
    """
    array = as_array("rotate", x)
    if array.dtype.kind not in "iufV" or not array.ndim:
        raise NumsimError(f"rotate: x is an array of real numbers; got {array.dtype}")
    plain = array.dtype == np.float64 and hasattr(x, "dtype")
    values: NDArray[Any] = array.astype(np.float64 if plain else np.float32, order="C", copy=False)
    values = np.require(values, requirements="A")
    depth = array.shape[-1]
    size = depth if block is None else block
    two, m = hadamard_order(size)
    if depth % size:
        raise NumsimError(
            f"rotate: a block divides the last axis; {size} does not divide {depth}; use a divisor"
        )
    given: Any = None
    if signs is not None:
        given = as_array("rotate: signs", signs)
        if given.shape != (depth,) or not (np.abs(given.astype(np.float64)) == 1).all():
            raise NumsimError(
                f"rotate: signs are +1 and -1, one for each of {depth} values; got shape "
                f"{given.shape}"
            )
        given = given.astype(values.dtype)
    if given is not None and not inverse:
        values = values * given
    odd = signs_of(m).astype(values.dtype)
    values = kernel.rotate(values.reshape(-1, size), two, odd if inverse else odd.T)
    values = values.reshape(array.shape)
    if given is not None and inverse:
        np.multiply(values, given, out=values)
    return values
