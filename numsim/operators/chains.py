"""Operators of networks as chains of operations, each rounded to a format on its own.

Shapes are [..., n]: reductions run along the last axis. What follows each arrow of a formula in the
notes is rounded once; constants (eps, 1/n, log2 e) are rounded to the format half to even.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from numsim.arguments import choice
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike
from numsim.operators.gpu import EXP2_POLYNOMIALS, exp2_lut, exp2_poly
from numsim.operators.rounded import (
    Floats,
    Rounding,
    Values,
    as_float32,
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
from numsim.operators.variants import EX2, approximate

LOG2_E = float.fromhex("0x1.71547652b82fep+0")


@known_floats
def softmax(
    x: ArrayLike,
    *,
    format: FormatLike = "float32",
    rounding: str = "rne",
    sum: str = "sequential",
    divide: str = "divide",
    base: str = "e",
    exp: str = "exact",
    sum_format: FormatLike | None = None,
    sum_rounding: str = "rne",
    out_format: FormatLike | None = None,
    out_rounding: str = "rne",
    sink: bool = False,
) -> Values:
    """Softmax of rows, every intermediate rounded to a format.

    Parameters
    ----------
    x
        Scores [..., n], values of a format; -inf takes no part.
    format, rounding
        Of every step.
    sum
        ``sequential``, ``pairwise``, ``lanes:w`` or ``exact``.
    divide
        ``divide``: e / s; ``reciprocal``: e times the rounded 1 / s.
    base
        ``e``, or ``2``: the difference is multiplied with log2 e first, as GPUs do.
    exp
        ``exact``: rounded once; with base 2 ``exp2_poly:3`` or ``exp2_lut:16``, of the degree or
        the entries after the colon, or ``ex2.approx.ftz.f32`` and its like, whose errors are drawn
        inside the documented bound (`approximate`); and then rounded.
    sum_format, sum_rounding
        Of the additions; their total is then rounded to `format`.
    out_format, out_rounding
        Of the results, after their rounding to `format`.
    sink
        The last score is of no key (gpt-oss): it is added when the sum of the others, in any order,
        is there, so that its place does not depend on how many they are.

    Raises
    ------
    NumsimError
        For an unknown word, a format that operators do not round to, or shapes that do not fit.

    Notes
    -----
    m = max; d -> x - m; e -> exp d (base 2: t -> d c, e -> 2**t); s -> sum; y -> e / s.

    **Source**: the definition; the steps are those of microxcaling (commit 7bc4195).

    Examples
    --------
    >>> softmax([[0.0, 1.0, 2.0]], format="bfloat16").tolist()
    [[0.09033203125, 0.2451171875, 0.66796875]]
    """
    choice("divide", divide, ("divide", "reciprocal"))
    choice("base", str(base), ("e", "2"))
    r = rounding_to(format, rounding)
    inner = rounding_or_none(sum_format, sum_rounding)
    x = rows_of("softmax", x)
    top = x.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        d = r(np.where(np.isneginf(x), -np.inf, minus(x, top)))
    if exp != "exact" or str(base) == "2":
        e = r(exp2_by(exp)(r(times(d, r.constant(LOG2_E)))))
    else:
        e = r(function("exp", d))
    if sink and sum != "exact":
        step = inner or r
        s = r(step(plus(total(e[..., :-1], sum, step), e[..., -1])))[..., None]
    else:
        s = total(e, sum, r, inner)[..., None]
    y = r(over(e, s)) if divide == "divide" else r(times(e, r(over(1.0, s))))
    return leaving(y, out_format, out_rounding)


def exp2_by(name: str) -> Callable[[ArrayLike], Values | Floats]:
    """Return what computes 2**x of float32: float32, or of ``exact`` float64 rounded to odd.

    Raises
    ------
    NumsimError
        As `exp2_variant`.
    """
    kind, number = exp2_variant(name)
    if kind == "exact":
        return partial(function, "exp2")
    if kind == "exp2_poly":
        return partial(exp2_poly, degree=number)
    if kind == "exp2_lut":
        return partial(exp2_lut, entries=number)
    narrow = rounding_to(EX2[kind], overflow="special")
    return lambda x: approximate(kind, narrow(x))


def exp2_variant(name: str) -> tuple[str, int]:
    """Return which exponential a word names, and its degree or entries.

    Raises
    ------
    NumsimError
        For an unknown word, degree or size of a table.

    Examples
    --------
    >>> exp2_variant("exp2_poly:3"), exp2_variant("exact")
    (('exp2_poly', 3), ('exact', 0))
    """
    kind, _, setting = str(name).partition(":")
    number = int(setting) if setting.isdecimal() and len(setting) < 7 else 0
    known = kind == "exp2_poly" and number in EXP2_POLYNOMIALS
    if name == "exact" or name in EX2 or known or (kind == "exp2_lut" and number >= 1):
        return kind, number
    raise NumsimError(
        "softmax: exp is exact, exp2_poly:DEGREE (1 to 5), exp2_lut:ENTRIES (to 999999) or one of "
        f"{', '.join(EX2)}; got {name!r}"
    )


@known_floats
def silu_gate(
    gate: ArrayLike,
    up: ArrayLike,
    *,
    format: FormatLike,
    rounding: str = "rne",
    variant: str = "silu",
) -> Values:
    """silu(gate) * up, every intermediate rounded to a format.

    Parameters
    ----------
    gate, up
        Values of one shape.
    format, rounding
        Of every step.
    variant
        ``silu``: u -> silu(g); ``sigmoid``: u -> g times the rounded sigmoid(g); ``steps``:
        t -> exp(-g), u -> g times the rounded 1 / (-> 1 + t). Then u -> u up.

    Raises
    ------
    NumsimError
        As in `softmax`.

    Notes
    -----
    **Source**: the definition.

    Examples
    --------
    >>> silu_gate([1.0], [3.0], format="bfloat16", variant="steps").tolist()
    [2.1875]
    """
    r = rounding_to(format, rounding)
    g = as_float32(gate)
    return r(times(silu(g, r, variant), beside("silu_gate", g, up)))


def silu(g: Values, r: Rounding, variant: str = "silu") -> Values:
    """Return silu(g) by a variant of `silu_gate`."""
    choice("variant", variant, ("silu", "sigmoid", "steps"))
    if variant == "silu":
        return r(function("silu", g))
    if variant == "sigmoid":
        return r(times(g, r(function("sigmoid", g))))
    t = r(function("exp", -g))
    return r(times(g, r(over(1.0, r(plus(1.0, t))))))


@known_floats
def residual(
    h: ArrayLike,
    *xs: ArrayLike,
    format: FormatLike,
    rounding: str = "rne",
) -> Values:
    """H + x_0 + x_1 ... in order, each sum rounded to a format.

    Raises
    ------
    NumsimError
        As in `softmax`.

    Notes
    -----
    **Source**: the definition.

    Examples
    --------
    >>> residual([256.0], [1.0], [1.0], format="bfloat16").tolist()
    [256.0]
    """
    r = rounding_to(format, rounding)
    total_ = as_float32(h)
    for x in xs:
        total_ = r(plus(total_, beside("residual", total_, x)))
    return total_
