"""Rotary positions in low precision: tables of sine and cosine, and the turn."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import choice, is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.kernels.elementwise import correct
from numsim.operators.rounded import (
    Values,
    as_float32,
    function,
    minus,
    plus,
    rounding_to,
    times,
)


@known_floats
def rotary_tables(
    positions: ArrayLike,
    dim: int,
    *,
    theta: float,
    format: FormatLike,
    angle: str = "float32",
) -> tuple[Values, Values]:
    """Cosines and sines of rotary positions, rounded half to even.

    Parameters
    ----------
    positions
        Integers [P] of 0 or more, below 2**20.
    dim
        Features of a head that turn, an even number.
    theta
        Base of the frequencies theta**(-2i / dim).
    format
        Of the tables.
    angle
        ``exact``: of position times frequency as it is; ``float32``: the frequency is rounded to
        float32, and its product with the position.

    Returns
    -------
    tuple
        cos and sin [P, dim / 2], values of the format.

    Raises
    ------
    NumsimError
        For an odd dim, a theta of 1 or less, positions that are no integers below 2**20.

    Notes
    -----
    **Source**: Su et al., arXiv:2104.09864; the definition.

    Examples
    --------
    >>> cos, sin = rotary_tables([0, 3], 4, theta=10000.0, format="bfloat16")
    >>> cos.tolist(), sin.tolist()
    ([[1.0, 1.0], [-0.98828125, 1.0]], [[0.0, 0.0], [0.1416015625, 0.030029296875]])
    """
    choice("angle", angle, ("exact", "float32"))
    p = np.asarray(positions)
    if p.ndim != 1 or p.dtype.kind not in "iu" or (p.size and not 0 <= p.min() <= p.max() < 2**20):
        raise NumsimError(f"positions are integers [P] of 0 or more, below 2**20; got {p!r:.80}")
    if not is_integer(dim) or dim < 2 or dim % 2:
        raise NumsimError(f"dim is an even number of features; got {dim!r:.40}")
    number = isinstance(theta, int | float | np.floating) and not isinstance(theta, bool)
    if not (number and 1 < theta < np.inf):
        raise NumsimError(f"theta is a number above 1; got {theta!r:.40}")
    r = rounding_to(format)
    shape = (p.size, dim // 2)
    cos, sin, inverse = np.empty(shape), np.empty(shape), np.empty(dim // 2)
    base = correct.logarithm(float(theta))
    correct.angles(p.astype(np.float64), base, dim, cos, sin, inverse)
    if angle == "float32":
        single = rounding_to("float32")
        turned = single(times(p[:, None], single(inverse)))
        cos, sin = function("cos", turned), function("sin", turned)
    return r(cos), r(sin)


@known_floats
def rotary(
    x: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    *,
    format: FormatLike,
    rounding: str = "rne",
    layout: str = "half",
    fma: bool = False,
) -> Values:
    """Turn pairs of features by their positions, every intermediate rounded to a format.

    Parameters
    ----------
    x
        Values [..., d].
    cos, sin
        Tables [..., d / 2].
    layout
        ``half`` pairs features i and i + d/2, ``interleaved`` 2i and 2i + 1.
    fma
        The first product of each result stays exact: y1 -> x1 c - (-> x2 s).

    Raises
    ------
    NumsimError
        As in `softmax`.

    Notes
    -----
    y1 -> (-> x1 c) - (-> x2 s); y2 -> (-> x2 c) + (-> x1 s).

    **Source**: Su et al., arXiv:2104.09864; the definition.

    Examples
    --------
    >>> rotary([[1.0, 2.0]], [[0.5]], [[0.25]], format="bfloat16").tolist()
    [[0.0, 1.25]]
    """
    choice("layout", layout, ("half", "interleaved"))
    r = rounding_to(format, rounding)
    x, c, s = as_float32(x), as_float32(cos), as_float32(sin)
    if x.ndim == 0 or x.shape[-1] % 2:
        raise NumsimError(f"rotary: features of a head are [..., an even number]; got {x.shape}")
    half = x.shape[-1] // 2
    try:
        fits = np.broadcast_shapes((*x.shape[:-1], half), c.shape, s.shape)[-1] == half
    except ValueError:
        fits = False
    if not fits:
        raise NumsimError(
            f"rotary: tables are [..., {half}] and fit {x.shape}; got {c.shape} and {s.shape}"
        )
    one, two = (x[..., :half], x[..., half:]) if layout == "half" else (x[..., ::2], x[..., 1::2])
    one_c, two_c = times(one, c), times(two, c)
    y1 = r(minus(one_c if fma else r(one_c), r(times(two, s))))
    y2 = r(plus(two_c if fma else r(two_c), r(times(one, s))))
    out: NDArray[np.float32] = np.empty((*y1.shape[:-1], 2 * half), np.float32)
    if layout == "half":
        out[..., :half], out[..., half:] = y1, y2
    else:
        out[..., ::2], out[..., 1::2] = y1, y2
    return out
