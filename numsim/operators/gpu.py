"""How attention kernels of GPUs compute exponentials and softmax, bit for bit, in float32.

Everything is float32 rounded half to even, fused multiply-adds where the source has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from numsim.arguments import choice, is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.operators.rounded import (
    Rounding,
    Values,
    function,
    minus,
    numbers,
    plus,
    rounding_to,
    times,
    total,
)
from numsim.quant.odd import product_to_odd

EXP2_POLYNOMIALS = {  # degree: coefficients, the constant one first
    1: (1.0, 0.922497093677520751953125),
    2: (1.0, 0.6657850742340087890625, 0.330107033252716064453125),
    3: (1.0, 0.695146143436431884765625, 0.227564394474029541015625, 0.077119089663028717041015625),
    4: (1.0, 0.693042695522308349609375, 0.2412912547588348388671875,
        5.2225358784198760986328125e-2, 1.3434938155114650726318359375e-2),
    5: (1.0, 0.693151414394378662109375, 0.24016360938549041748046875,
        5.5802188813686370849609375e-2, 9.01452265679836273193359375e-3,
        1.86810153536498546600341796875e-3),
}  # fmt: skip
_LEAST = np.float32(2.0**-126)


def _single(x: ArrayLike) -> Values:
    """float64 rounded to odd, or exact, to float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(x, np.float64).astype(np.float32)


@known_floats
def exp2_poly(x: ArrayLike, *, degree: int = 3) -> Values:
    """2**x by a polynomial on the fraction, as attention kernels do where exp2 units are short.

    Parameters
    ----------
    x
        float32 of at most 127; below -127 the result is that of -127. NaN and -inf give 0.
    degree
        1 to 5.

    Raises
    ------
    NumsimError
        For another degree, or x above 127, where the exponent would wrap.

    Notes
    -----
    x smaller than 2**-126 in magnitude is 0; k = floor x; f = x - k; Horner's rule in float32 fused
    multiply-adds; then k is added to the exponent bits, and results below 2**-126 are what the bits
    say. The largest relative error is 3.9e-2, 2.1e-3, 8.8e-5, 3.1e-6, 1.5e-7 by degree.

    **Source**: flash-attention, commit 0251105, ``flash_attn/cute/utils.py``.

    Examples
    --------
    >>> exp2_poly([-1.0, -0.5, -200.0]).tolist()
    [0.5, 0.7070519924163818, 0.0]
    """
    if not is_integer(degree) or degree not in EXP2_POLYNOMIALS:
        raise NumsimError(f"exp2_poly: degree is 1 to 5; got {degree!r}")
    x = numbers(x).astype(np.float32)
    if (x > 127).any():
        at = int(np.flatnonzero((x > 127).ravel())[0])
        raise NumsimError(
            f"exp2_poly: x is at most 127, beyond which the exponent wraps; got {x.flat[at]!r} at "
            f"flat index {at}; subtract the row's maximum first"
        )
    x = np.where(x > -127, x, np.float32(-127))  # also NaN
    x = np.where(np.abs(x) < _LEAST, np.float32(0), x)
    k = np.floor(x)
    f = _single(minus(x, k))
    *rest, p = (np.float32(c) for c in EXP2_POLYNOMIALS[degree])
    value = np.full(x.shape, p)
    for c in reversed(rest):
        value = _single(plus(times(value, f), c))
    bits = value.view(np.int32) + (k.astype(np.int32) << 23)
    return bits.view(np.float32)


@known_floats
def exp2_lut(
    x: ArrayLike,
    *,
    entries: int,
    interpolation: str = "linear",
    table_format: FormatLike = "float16",
    format: FormatLike = "float32",
    rounding: str = "rne",
) -> Values:
    """2**x by a table of the fraction: 2**(j / entries) rounded to a format.

    Parameters
    ----------
    x
        Values of a format.
    entries
        Steps of the table from 1 to 2, 2**20 at most.
    interpolation
        ``none``: the entry below; ``linear``: between it and the next one, exactly.
    table_format
        Format of the entries, half to even.
    format, rounding
        Of the result: rounded once.

    Raises
    ------
    NumsimError
        For no entry or more than 2**20, or an unknown word or format.

    Notes
    -----
    **Source**: the definition.

    Examples
    --------
    >>> exp2_lut([-0.5, 3.25], entries=16, format="bfloat16").tolist()
    [0.70703125, 9.5]
    """
    choice("interpolation", interpolation, ("none", "linear"))
    if not is_integer(entries) or not 1 <= entries <= 2**20:
        raise NumsimError(f"exp2_lut: entries is 1 or more, to 2**20; got {entries!r:.40}")
    r, table_rounding = rounding_to(format, rounding), rounding_to(table_format)
    table = table_rounding(function("exp2", np.arange(entries + 1) / entries)).astype(np.float64)
    x = numbers(x)
    place = np.clip(np.where(np.isfinite(x), x, 0.0), -900, 900) * entries  # exact
    step = np.floor(place)
    k, i = np.divmod(step.astype(np.int64), entries)
    y = table[i]
    if interpolation == "linear":
        # from the entry above, where a place below 0 is closer to it than float64 can say from -1
        above = (place > -1) & (place < 0)
        start, part = np.where(above, table[i + 1], y), np.where(above, place, place - step)
        y = plus(start, product_to_odd(part, table[i + 1] - y))
    y = np.ldexp(y, k)
    y = np.where(np.isfinite(x), y, np.where(np.isneginf(x), 0.0, x))
    return r(y)


@known_floats
def online_softmax(
    scores: ArrayLike,
    v: ArrayLike,
    *,
    tile: int,
    exp2: str = "exact",
    rescale_threshold: float = 0.0,
    p_format: FormatLike = "bfloat16",
    scale_log2: float,
) -> tuple[Values, Values, Values]:
    """Attention of rows of scores by tiles of keys, as flash attention orders its steps.

    Parameters
    ----------
    scores
        Products of queries and keys [M, K], or [K] of one query, float32.
    v
        Values [K, D].
    tile
        Keys in a tile.
    exp2
        ``exact``: 2**x rounded once; ``poly1`` to ``poly5``: `exp2_poly`, for probabilities only.
    rescale_threshold
        Of log2: a new maximum that is at most so much larger does not rescale; 0: always.
    p_format
        What probabilities are rounded to before they meet the values.
    scale_log2
        Scale of the scores times log2 e.

    Returns
    -------
    tuple
        out [M, D], the sums of rows [M], and their last maxima [M], float32.

    Raises
    ------
    NumsimError
        For shapes that do not fit, a tile below 1, or an unknown word.

    Notes
    -----
    For each tile, with c the scale and fl the rounding to float32: m' = max(m, tile);
    z = fl(fl(m - m') c); a = fl(2**z), 0 in the first tile; if z is at least -threshold, m' = m and
    a = 1; p = exp2(fl(s c - fl(m' c))), one fused multiply-add; l = fl(l a), then p is added in
    order; O = fl(fl(O a) + fl(exact sum of p v)). In the end O fl(1 / l).

    **Source**: flash-attention, commit 0251105, ``flash_attn/cute``, for the steps and the
    threshold; the order of a row's sum and the one rounding of the product are ours.

    Examples
    --------
    >>> out, row_sum, row_max = online_softmax(
    ...     [[0.0, 1.0, 2.0]], [[1.0], [2.0], [3.0]], tile=2, scale_log2=1.4426950408889634)
    >>> round(float(out[0, 0]), 4), row_max.tolist()
    (2.575, [2.0])
    """
    s, values = numbers(scores).astype(np.float32), numbers(v).astype(np.float32)
    fits = s.ndim in (1, 2) and values.ndim == 2 and s.shape[-1] == values.shape[0] > 0
    if not fits:
        raise NumsimError(
            f"online_softmax: scores are [M, K] or [K], and v [K, D], K > 0; got {s.shape} and "
            f"{values.shape}"
        )
    rows, s = s.shape[:-1], s.reshape(-1, s.shape[-1])
    if not is_integer(tile) or tile < 1:
        raise NumsimError(f"online_softmax: tile is 1 or more; got {tile!r:.40}")
    for name, given in (("scale_log2", scale_log2), ("rescale_threshold", rescale_threshold)):
        number = isinstance(given, int | float | np.floating) and not isinstance(given, bool)
        if not (number and np.isfinite(given)):
            raise NumsimError(f"online_softmax: {name} is a finite number; got {given!r:.40}")
    words = ("exact", *(f"poly{n}" for n in EXP2_POLYNOMIALS))
    choice("exp2", exp2, words)
    r, once = rounding_to(p_format), rounding_to("float32")
    out = np.zeros((len(s), values.shape[1]), np.float32)
    steps = softmax_tiles(
        s, np.float32(scale_log2), tile=tile, threshold=rescale_threshold,
        exp2=partial(function, "exp2")
        if exp2 == "exact"
        else partial(exp2_poly, degree=int(exp2[4:])),
    )  # fmt: skip
    row_sum = m = np.empty(0, np.float32)
    for step in steps:
        added = _sum_of_products(r(step.p), values[step.keys], once)
        out, row_sum, m = rescaled(out, step.factor, added), step.row_sum, step.row_max
    out = _single(times(out, inverse_of(row_sum)[:, None]))
    return out.reshape(*rows, -1), row_sum.reshape(rows), m.reshape(rows)


class Tile(NamedTuple):
    """What one tile of keys adds to rows of an online softmax, all float32."""

    keys: slice
    p: Values  # [M, tile], not divided by the sum
    factor: Values  # [M], of what earlier tiles have added
    row_sum: Values  # [M], with this tile
    row_max: Values  # [M]


def softmax_tiles(
    s: Values, c: np.float32, *, tile: int, exp2: Callable[[Values], ArrayLike], threshold: float,
) -> Iterator[Tile]:  # fmt: skip
    """Yield the tiles of an online softmax of rows [M, K]: see `online_softmax`.

    `exp2` computes probabilities, which are then rounded to float32. A score of -inf takes no part,
    and a tile that has no other for a row leaves that row as it is.
    """
    once = rounding_to("float32")
    m = np.full(len(s), -np.inf, np.float32)
    row_sum = np.zeros(len(s), np.float32)
    for at in range(0, s.shape[1], tile):
        part = s[:, at : at + tile]
        new = np.maximum(m, part.max(1))
        none = np.isneginf(new)  # so far
        a = np.zeros(len(s), np.float32)
        if at:
            with np.errstate(invalid="ignore"):
                z = _single(times(_single(minus(np.where(none, 0, m), np.where(none, 0, new))), c))
            a = once(function("exp2", z))
            keeps = (threshold > 0) & (z >= -threshold)
            new, a = np.where(keeps, m, new), np.where(keeps, np.float32(1), a)
        m = new
        top = np.where(none, np.float32(0), m)
        t = _single(minus(times(part, c), _single(times(top, c))[:, None]))
        p = once(exp2(t))
        row_sum = _single(times(row_sum, a))
        for j in range(p.shape[1]):
            row_sum = _single(plus(row_sum, p[:, j]))
        yield Tile(slice(at, at + tile), p, a, row_sum, m)


def rescaled(out: Values, factor: Values, added: Values) -> Values:
    """Return fl(fl(out factor) + added), a factor a row."""
    return _single(plus(_single(times(out, factor[:, None])), added))


def inverse_of(row_sum: Values) -> Values:
    """Return fl(1 / sum) of rows, 0 of a row without a key."""
    inverse = _single(function("reciprocal", row_sum))
    return np.where(row_sum == 0, np.float32(0), inverse)


def _sum_of_products(p: Values, v: Values, once: Rounding) -> Values:
    """Exact sums of p v, each rounded once: [M, T] and [T, D] to [M, D]."""
    products = times(p[:, :, None], v[None]).swapaxes(1, 2)
    return total(products, "exact", once)
