"""float64 rounded to odd: a second rounding, to float32, is then as the only one.

What a product lost is known by Dekker's algorithm, exactly where nothing overflows. Far below
float32's range it may be off, and decides nothing.

Source: Dekker, Numerische Mathematik 18, 1971; Boldo and Melquiond, IEEE Trans. Computers 57, 2008.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def product_to_odd(a: Floats, b: Floats | float) -> Floats:
    """Return a * b, rounded to odd where it is inexact.

    Examples
    --------
    >>> a, b = np.array([1347502757.0]), np.array([16045357.0])  # a tie of float32, and 1 more
    >>> int(product_to_odd(a, b)[0]) - int((a * b)[0]), 1347502757 * 16045357 - int((a * b)[0])
    (4, 1)
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = a * b
        return to_odd(product, _lost(a, b, product))


def quotient_to_odd(a: Floats, b: Floats | float) -> Floats:
    """Return a / b, rounded to odd where it is inexact.

    Examples
    --------
    >>> float(quotient_to_odd(np.array([1.0]), 3.0)[0]).hex()
    '0x1.5555555555555p-2'
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        quotient = a / np.asarray(b, np.float64)
        by = np.broadcast_to(np.asarray(b, np.float64), np.shape(quotient))
        product = quotient * by
        rest = (a - product) - _lost(quotient, by, product)
        return to_odd(quotient, rest * np.sign(by))


def _lost(a: Floats, b: Floats | float, product: Floats) -> Floats:
    """Return a * b less its rounded product."""
    high_a, high_b = (x * 134217729.0 - (x * 134217729.0 - x) for x in (a, b))  # 2**27 + 1
    low_a, low_b = a - high_a, b - high_b
    error: Floats = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    return error


def to_odd(nearest: Floats, lost: Floats) -> Floats:
    """Return numbers rounded to odd from those rounded to nearest and what is left of them."""
    bits = np.array(nearest).view(np.int64)
    inexact = np.isfinite(lost) & (lost != 0.0) & np.isfinite(nearest)
    bits -= inexact & ((lost < 0) != (nearest < 0))  # toward zero first
    bits |= inexact
    return bits.view(np.float64)
