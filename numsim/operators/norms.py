"""Layer norm and RMS norm as chains of operations, each rounded to a format on its own.

Shapes, and what the notes' formulas say, are those of `numsim.operators.chains`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from numsim.arguments import choice
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.operators.rounded import (
    Rounding,
    Values,
    beside,
    function,
    leaving,
    minus,
    over,
    plus,
    rounding_or_none,
    rounding_to,
    rows_of,
    times,
    total,
)


def _mean(x: Values, order: str, how: str, r: Rounding, inner: Rounding | None) -> Values:
    choice("mean", how, ("divide", "reciprocal"))
    s = total(x, order, r, inner)[..., None]
    n = x.shape[-1]
    return r(over(s, float(n))) if how == "divide" else r(times(s, r.constant(1.0 / n)))


def _inverse_root(v: Values, eps: float, place: str, how: str, r: Rounding) -> Values:
    choice("eps_place", place, ("inside", "outside"))
    choice("inv", how, ("rsqrt", "sqrt_recip"))
    number = isinstance(eps, int | float | np.floating) and not isinstance(eps, bool)
    if not (number and 0 <= eps < np.inf):
        raise NumsimError(f"eps is a number of 0 or more; got {eps!r:.40}")
    e = r.constant(eps)
    if place == "outside":
        return r(over(1.0, r(plus(r(function("sqrt", v)), e))))
    t = r(plus(v, e))
    if how == "rsqrt":
        return r(function("rsqrt", t))
    return r(over(1.0, r(function("sqrt", t))))


@known_floats
def layernorm(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None,
    *,
    format: FormatLike,
    rounding: str = "rne",
    sum: str = "sequential",
    mean: str = "divide",
    eps: float = 1e-5,
    eps_place: str = "inside",
    inv: str = "rsqrt",
    sum_format: FormatLike | None = None,
    sum_rounding: str = "rne",
    out_format: FormatLike | None = None,
    out_rounding: str = "rne",
) -> Values:
    """LayerNorm of rows, every intermediate rounded to a format.

    Parameters
    ----------
    x, w, b
        Values [..., n]; weight and bias [n], no bias: None.
    format, rounding, sum, sum_format, sum_rounding, out_format, out_rounding
        As in `softmax`.
    mean
        ``divide``: the sum by n; ``reciprocal``: times 1/n.
    eps, eps_place
        ``inside`` the root, or added to the root: ``outside``.
    inv
        ``rsqrt``: one rounding of 1/sqrt; ``sqrt_recip``: the root is rounded, then its reciprocal.

    Raises
    ------
    NumsimError
        As in `softmax`.

    Notes
    -----
    mu -> mean(x); d -> x - mu; v -> mean(-> d d); i as `inv` says; y -> d i; y -> y w; y -> y + b.

    **Source**: the definition; the steps are those of microxcaling (commit 7bc4195).

    Examples
    --------
    >>> layernorm([[1.0, 2.0, 4.0]], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], format="bfloat16").tolist()
    [[-1.0625, -0.263671875, 1.3359375]]
    """
    r = rounding_to(format, rounding)
    inner = rounding_or_none(sum_format, sum_rounding)
    x = rows_of("layernorm", x)
    weight = beside("layernorm", x, w)
    bias = None if b is None else beside("layernorm", x, b)
    d = r(minus(x, _mean(x, sum, mean, r, inner)))
    v = _mean(r(times(d, d)), sum, mean, r, inner)
    y = r(times(d, _inverse_root(v, eps, eps_place, inv, r)))
    y = r(times(y, weight))
    if bias is not None:
        y = r(plus(y, bias))
    return leaving(y, out_format, out_rounding)


@known_floats
def rmsnorm(
    x: ArrayLike,
    w: ArrayLike,
    *,
    format: FormatLike,
    rounding: str = "rne",
    sum: str = "sequential",
    mean: str = "divide",
    eps: float = 1e-6,
    eps_place: str = "inside",
    inv: str = "rsqrt",
    unit_offset: bool = False,
    sum_format: FormatLike | None = None,
    sum_rounding: str = "rne",
    weight_format: FormatLike | None = None,
    weight_rounding: str = "rne",
    out_format: FormatLike | None = None,
    out_rounding: str = "rne",
) -> Values:
    """RMSNorm of rows, every intermediate rounded to a format.

    Parameters
    ----------
    x, w
        Values [..., n]; weight [n].
    unit_offset
        The weight is 1 + w, rounded (Gemma).
    weight_format, weight_rounding
        The normalised values are rounded to it, and their product with the weight (Llama).
    format, rounding, sum, mean, eps, eps_place, inv, sum_format, sum_rounding, out_format, \
out_rounding
        As in `layernorm`.

    Raises
    ------
    NumsimError
        As in `softmax`.

    Notes
    -----
    v -> mean(-> x x); i as `inv` says; y -> x i; y -> y w.

    **Source**: the definition; the steps are those of microxcaling (commit 7bc4195).

    Examples
    --------
    >>> rmsnorm([[1.0, 2.0, 4.0]], [1.0, 1.0, 0.5], format="bfloat16").tolist()
    [[0.37890625, 0.7578125, 0.7578125]]
    """
    r = rounding_to(format, rounding)
    inner = rounding_or_none(sum_format, sum_rounding)
    x = rows_of("rmsnorm", x)
    weight = beside("rmsnorm", x, w)
    v = _mean(r(times(x, x)), sum, mean, r, inner)
    y = r(times(x, _inverse_root(v, eps, eps_place, inv, r)))
    if unit_offset:
        weight = r(plus(1.0, weight))
    if weight_format is not None:
        r = rounding_to(weight_format, weight_rounding)
        y = r(y)
    y = r(times(y, weight))
    return leaving(y, out_format, out_rounding)
