"""Single operations whose result is rounded once to a format: values in, float32 values out.

An operation is computed to float64 and rounded to odd where that is inexact; the rounding to the
format that follows is then the only one. Rows lie along the last axis.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import choice, real_array
from numsim.convert import cast
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, get_format
from numsim.kernels.elementwise import correct
from numsim.quant.odd import quotient_to_odd, to_odd

Floats = NDArray[np.float64]
Values = NDArray[np.float32]
_LIMITS = {  # name: at +inf, at -inf
    "exp": (np.inf, 0.0), "exp2": (np.inf, 0.0), "log": (np.inf, np.nan),
    "reciprocal": (0.0, -0.0), "sqrt": (np.inf, np.nan), "rsqrt": (0.0, np.nan),
    "tanh": (1.0, -1.0), "erf": (1.0, -1.0), "gelu": (np.inf, -0.0), "gelu_tanh": (np.inf, -0.0),
    "silu": (np.inf, -0.0), "sigmoid": (1.0, 0.0), "sin": (np.nan, np.nan), "cos": (np.nan, np.nan),
}  # fmt: skip
FUNCTIONS = tuple(_LIMITS)


class Rounding(NamedTuple):
    """A format and how results are rounded to it."""

    format: Format
    rounding: Any = "rne"
    overflow: Any = "saturate"

    def __call__(self, x: ArrayLike) -> Values:
        """Round numbers, or float64 rounded to odd, once."""
        wide = np.asarray(x, np.float64)
        rounded = cast(wide, self.format, rounding=self.rounding, overflow=self.overflow)
        return np.asarray(rounded, np.float32)

    def constant(self, x: ArrayLike) -> Values:
        """Round a constant, half to even, whatever the operations do."""
        return Rounding(self.format)(x)


def rounding_to(fmt: FormatLike, rounding: str = "rne", overflow: str = "saturate") -> Rounding:
    """Return how to round to a format, which float32 must hold every value of.

    Raises
    ------
    NumsimError
        For an integer format, or one of more than 24 bits of precision.
    """
    f = get_format(fmt)
    if f.kind == "integer" or f.precision > 24:
        raise NumsimError(
            f"operators round to float formats of at most 24 bits of precision; got {f.name}; "
            "integer units have functions of their own: numsim.operators.list_variants()"
        )
    return Rounding(f, rounding, overflow)


def rounding_or_none(fmt: FormatLike | None, rounding: str) -> Rounding | None:
    """Return how to round to a format, None where there is none."""
    return None if fmt is None else rounding_to(fmt, rounding)


def leaving(y: Values, fmt: FormatLike | None, rounding: str) -> Values:
    """Round results to the format they leave in, where there is one."""
    r = rounding_or_none(fmt, rounding)
    return y if r is None else r(y)


def plus(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return a + b rounded to odd."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore"):
        s = a + b
        v = s - a
        return to_odd(s, (a - (s - v)) + (b - v))


def minus(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return a - b rounded to odd."""
    return plus(a, -np.asarray(b, np.float64))


def times(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return a * b of numbers of at most 26 bits: exact."""
    with np.errstate(invalid="ignore"):
        product: Floats = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        return product


def over(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return a / b rounded to odd."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return quotient_to_odd(np.asarray(a, np.float64), np.asarray(b, np.float64))


def function(name: str, x: ArrayLike) -> Floats:
    """Compute a function of `FUNCTIONS` to float64, rounded to odd; x of at most 24 bits."""
    x = np.ascontiguousarray(x, np.float64)
    out = np.empty(x.shape)
    finite = np.isfinite(x)
    if finite.all():
        return correct.function(name, x.ravel()).reshape(x.shape)
    out[finite] = correct.function(name, x[finite])
    out[np.isposinf(x)], out[np.isneginf(x)] = _LIMITS[name]
    out[np.isnan(x)] = np.nan
    return out


@known_floats
def elementwise(
    name: str,
    x: ArrayLike,
    *,
    format: FormatLike,
    rounding: str = "rne",
    overflow: str = "special",
) -> Values:
    """Return f(x), rounded once to a format.

    Parameters
    ----------
    name
        exp, exp2, log, reciprocal, sqrt, rsqrt, tanh, erf, gelu (with erf), gelu_tanh, silu,
        sigmoid, sin or cos.
    x
        Numbers of any shape, of at most 24 significant bits: values of formats.
    format, rounding, overflow
        As in `numsim.cast`; float formats of at most 24 bits of precision.

    Raises
    ------
    NumsimError
        For an unknown function, a format that float32 does not hold, or numbers of more bits.

    Notes
    -----
    Every result is the exact one, rounded once, on every machine: also where float64 followed by a
    rounding toward zero would be wrong (e**x of a tiny negative number is the number below 1).
    Poles: log of a zero is -inf, 1/0 and 1/sqrt(0) are infinite; below zero log, sqrt and rsqrt are
    NaN. gelu and silu of -inf are -0, their limit.

    **Source**: the definition; Boldo and Melquiond, IEEE Trans. Computers 57, 2008, for the
    rounding to odd in between.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.float32([-1e-30, 1.0, 4.0])
    >>> elementwise("exp", x, format="bfloat16", rounding="rtz").tolist()
    [0.99609375, 2.703125, 54.5]
    """
    choice("operator", name, FUNCTIONS)
    r = rounding_to(format, rounding, overflow)
    return r(function(name, numbers(x)))


def numbers(x: ArrayLike) -> Floats:
    """Return values as float64; refuse what float32 does not hold."""
    wide = real_array("operators", x, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is lost
        lost = ~((wide.astype(np.float32) == wide) | np.isnan(wide))
    if lost.any():
        at = int(np.flatnonzero(lost.ravel())[0])
        raise NumsimError(
            f"operators take values of formats, which float32 holds; got {float(wide.flat[at])!r} "
            f"at flat index {at}; cast to the format first: numsim.cast(x, 'float32')"
        )
    return wide


# ------------------------------------------------------------------------------------------- sums


def total(x: NDArray[Any], order: str, r: Rounding, inner: Rounding | None = None) -> Values:
    """Sum along the last axis in an order, [..., n] -> [...].

    ``sequential`` starts at x_0; ``pairwise`` adds neighbours, an odd last one is carried up;
    ``lanes:w`` adds x_j, x_{j+w} ... in lane j, then lane j + w/2 to lane j, and so on; ``exact``
    is one rounding of the exact sum. `inner` rounds the additions, `r` the result.
    """
    check_order(order)
    step = inner or r
    if order == "exact":
        return r(step(_exact(x)) if inner else _exact(x))
    name, _, count = order.partition(":")
    if name == "lanes":
        x = _lanes(x, int(count), step)
        while x.shape[-1] > 1:
            half = x.shape[-1] // 2
            x = step(plus(x[..., :half], x[..., half:]))
        s = x[..., 0]
    elif order == "pairwise":
        while x.shape[-1] > 1:
            even = x.shape[-1] // 2 * 2
            added = step(plus(x[..., 0:even:2], x[..., 1:even:2]))
            x = np.concatenate([added, x[..., even:]], -1)
        s = x[..., 0]
    else:
        s = x[..., 0]
        for i in range(1, x.shape[-1]):
            s = step(plus(s, x[..., i]))
    return r(s) if inner else s


def check_order(order: object) -> None:
    """Refuse what is no order of a sum.

    Raises
    ------
    NumsimError
        It is said which there are.
    """
    name, _, count = str(order).partition(":")
    width = int(count) if count.isdecimal() else 0
    if name == "lanes" and width and not width & (width - 1):
        return
    if order not in ("sequential", "pairwise", "exact"):
        raise NumsimError(
            f"sum is sequential, pairwise, lanes:w (w a power of two) or exact; got {order!r}"
        )


def _lanes(x: NDArray[Any], width: int, step: Rounding) -> NDArray[Any]:
    missing = -x.shape[-1] % width
    x = np.concatenate([x, np.zeros((*x.shape[:-1], missing), np.float32)], -1)
    parts = x.reshape(*x.shape[:-1], -1, width)
    s = parts[..., 0, :]
    for i in range(1, parts.shape[-2]):
        s = step(plus(s, parts[..., i, :]))
    return s


def _exact(x: NDArray[Any]) -> Floats:
    """Return the exact sums, rounded to odd."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    out = np.empty(len(rows))
    for i, row in enumerate(rows):
        terms = row.tolist()
        if np.isfinite(row).all():
            s = math.fsum(terms)
            out[i] = to_odd(np.array([s]), np.array([math.fsum([*terms, -s])]))[0]
        else:
            with np.errstate(invalid="ignore"):
                out[i] = row.sum()
    return out.reshape(x.shape[:-1])


def as_float32(x: ArrayLike) -> Values:
    """Return numbers as float32."""
    return numbers(x).astype(np.float32)


def rows_of(name: str, x: ArrayLike) -> Values:
    """Return rows [..., n] as float32; without a number there is nothing to add."""
    rows = as_float32(x)
    if rows.ndim == 0 or rows.shape[-1] == 0:
        raise NumsimError(f"{name}: rows hold at least one number, [..., n]; got {rows.shape}")
    return rows


def beside(name: str, x: Values, y: ArrayLike) -> Values:
    """Return what meets `x` element by element, of its shape or one that is repeated to it."""
    other = as_float32(y)
    try:
        fits = np.broadcast_shapes(x.shape, other.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise NumsimError(f"{name}: shapes must fit; got {x.shape} and {other.shape}")
    return other
