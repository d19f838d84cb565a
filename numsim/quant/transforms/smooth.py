"""SmoothQuant: factors that move the range of activations into weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.powers import power64

LEAST = 1e-5  # of a factor


@known_floats
def smooth(amax_x: ArrayLike, amax_w: ArrayLike, *, alpha: float = 0.5) -> NDArray[np.float64]:
    """Return the factors s of SmoothQuant: ``x / s`` and ``w * s`` have the product of x and w.

    ``s = amax_x**alpha / amax_w**(1 - alpha)``, at least 1e-5, and 1 where either is 0.

    Parameters
    ----------
    amax_x
        Largest magnitude of every column of the activations, [K].
    amax_w
        Largest magnitude of every column of the weight [N, K], [K].
    alpha
        0 to 1: how much of the range moves.

    Returns
    -------
    float64 array [K]

    Raises
    ------
    NumsimError
        For arrays of other shapes, negative or not finite, or an alpha out of range.

    Source
    ------
    Xiao et al., SmoothQuant, arXiv 2211.10438, equation 4; its 1e-5.

    Examples
    --------
    >>> smooth([4.0, 0.0], [0.25, 1.0])
    array([4., 1.])
    """
    x, w = (magnitudes(f"smooth: {n}", a) for n, a in (("amax_x", amax_x), ("amax_w", amax_w)))
    if x.shape != w.shape or x.ndim != 1:
        raise NumsimError(
            f"smooth: amax_x and amax_w hold one number a column, [K]; got {x.shape} and {w.shape}"
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise NumsimError(f"smooth: alpha is 0 to 1; got {alpha!r:.40}; 0.5 is usual")
    used = (x > 0) & (w > 0)
    factors = np.ones(len(x))
    quotient = power64(x[used], float(alpha)) / power64(w[used], 1.0 - float(alpha))
    factors[used] = np.maximum(quotient, LEAST)
    return factors


def magnitudes(who: str, given: ArrayLike) -> NDArray[Any]:
    """Return finite numbers that are not negative, as float64.

    Raises
    ------
    NumsimError
        For anything else.
    """
    array = as_array(who, given)
    if array.dtype.kind not in "iuf":
        raise NumsimError(f"{who} holds real numbers; got {array.dtype}")
    values = array.astype(np.float64)
    wrong = np.flatnonzero(~((values >= 0) & np.isfinite(values)))
    if wrong.size:
        raise NumsimError(
            f"{who} is finite and not negative; {wrong.size} of {values.size} are not, the first "
            f"is {values.flat[wrong[0]]!s} at index {int(wrong[0])}"
        )
    return values


def matrix(who: str, given: ArrayLike, shape: str) -> NDArray[np.float64]:
    """Return a finite matrix as float64.

    Raises
    ------
    NumsimError
        For another number of axes, no numbers, NaN or Inf (with the count and the first index).
    """
    array = as_array(who, given)
    if array.dtype.kind not in "iufV" or array.ndim != 2 or not array.size:
        raise NumsimError(
            f"{who} is a matrix {shape} of real numbers; got {array.dtype} of shape {array.shape}"
        )
    values = array.astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise NumsimError(
            f"{who} is finite; {int(bad.sum())} of {values.size} values are not, the first at "
            f"index {index}"
        )
    return values
