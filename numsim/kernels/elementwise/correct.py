"""Elementary functions rounded once: float64 rounded to odd, which decides any narrower rounding.

What is computed: f(x) for an array of finite float64 numbers of at most 24 significant bits (what
a format of 32 bits or fewer holds), the result exact where it is a float64, otherwise a neighbour
whose last bit is one. Rounded again, in any direction, to 24 bits or fewer it is f(x) rounded once
(Boldo and Melquiond, IEEE Trans. Computers 57, 2008). Where a function in float64 is at hand it
serves, unless its result lies so near a number of 25 bits that its error could matter. Where a
function is beyond every format, a number beyond every format stands in for it. Proof: as of
`pairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numsim.kernels.elementwise import pairs
from numsim.kernels.elementwise.activations import sigmoid_of, tanh_of
from numsim.kernels.elementwise.functions import exp64
from numsim.kernels.jit import expanded, inline, kernel, over_range

_FAR = 600.0  # e to this power is far beyond all formats of at most 32 bits
_FAR_2 = 800.0
_FAR_ERF = 24.0
_SQRT_HALF = (float.fromhex("0x1.6a09e667f3bcdp-1"), float.fromhex("-0x1.bdd3413b26456p-55"))
_SQRT_TWO_OVER_PI = (float.fromhex("0x1.9884533d43651p-1"), float.fromhex("-0x1.cbc0d30ebfd15p-55"))
_CUBIC = (float.fromhex("0x1.6e4e26d4801f7p-5"), float.fromhex("0x1.441355475a31ap-59"))  # 0.044715
_TINY = 2.0**-30
_LOW, _NEAR = (1 << 28) - 1, 1 << 14  # bits below the 25th of a float64, and what is near its ends
_LEAST = 2.0**-200  # below every format
_ONE = (1.0, 0.0)
_GRAIN = 256  # elements a thread takes at least


@inline
def odd(x: pairs.Pair) -> Any:
    """High + low, the last bit one where low is not zero."""
    if x[1] == 0.0 or x[0] == 0.0:
        return x[0]
    bits = np.float64(x[0]).view(np.int64)
    if (x[1] < 0.0) != (x[0] < 0.0):
        bits -= 1  # toward zero first
    return np.int64(bits | 1).view(np.float64)


@inline
def _decides(y: float) -> Any:
    """Whether y is far from every number of 25 bits: 2**14 units of its last place, 2**-39 y."""
    low = np.float64(y).view(np.int64) & _LOW
    return _NEAR < low < _LOW - _NEAR


@inline
def _marked(y: float) -> Any:
    return np.int64(np.float64(y).view(np.int64) | 1).view(np.float64)


@inline
def _clamped(x: float, far: float) -> Any:
    return min(max(x, -far), far)


@inline
def _exp(x: float) -> Any:
    x = _clamped(x, _FAR)
    y = exp64(x)
    return _marked(y) if _decides(y) else odd(pairs.exp((x, 0.0)))


@inline
def _exp2(x: float) -> Any:
    x = _clamped(x, _FAR_2)
    k = np.floor(x + 0.5)
    y = exp64((x - k) * pairs.LN2[0])
    if _decides(y):
        return _marked(pairs.scaled((y, 0.0), np.int64(k))[0])
    return odd(pairs.scaled(pairs.exp(pairs.times((x - k, 0.0), pairs.LN2)), np.int64(k)))


@inline
def _log(x: float) -> Any:
    return odd(pairs.log(x)) if x > 0.0 else (-np.inf if x == 0.0 else np.nan)


@inline
def _reciprocal(x: float) -> Any:
    return odd(pairs.over(_ONE, (x, 0.0))) if x != 0.0 else np.copysign(np.inf, x)


@inline
def _sqrt(x: float) -> Any:
    if x <= 0.0:
        return x if x == 0.0 else np.nan
    s = np.sqrt(x)
    p, e = pairs.two_product(s, s)
    return odd((s, (x - p) - e))


@inline
def _rsqrt(x: float) -> Any:
    if x <= 0.0:
        return np.copysign(np.inf, x) if x == 0.0 else np.nan
    q = 1.0 / np.sqrt(x)
    p = pairs.times(pairs.two_product(q, q), (x, 0.0))
    rest = pairs.add(_ONE, (-p[0], -p[1]))
    return odd(pairs.two_sum(q, 0.5 * q * rest[0]))


@inline
def _sigmoid_of(x: pairs.Pair) -> pairs.Pair:
    """1 / (1 + e**-x) for |x| below 700, also far below zero, to its own last bits."""
    if x[0] < 0.0:
        e = pairs.exp(x)
        return pairs.over(e, pairs.add(_ONE, e))
    return pairs.over(_ONE, pairs.add(_ONE, pairs.exp((-x[0], -x[1]))))


@inline
def _tanh(x: float) -> Any:
    if abs(x) < _TINY:  # x - x**3 / 3, which is further below x than a pair reaches
        return odd((x, -x * 2.0**-60))
    y = tanh_of(x)
    if _decides(y):
        return _marked(y)
    x = _clamped(x, 0.5 * _FAR)
    if abs(x) < 1.0:
        e = pairs.expm1((2.0 * x, 0.0))
        return odd(pairs.over(e, pairs.add((2.0, 0.0), e)))
    e = pairs.exp((2.0 * abs(x), 0.0))  # 1 - 2 / (e**2x + 1)
    q = pairs.over((2.0, 0.0), pairs.add(e, _ONE))
    y = odd(pairs.add(_ONE, (-q[0], -q[1])))
    return y if x > 0.0 else -y


@inline
def _erf(x: float) -> Any:
    z = min(abs(x), _FAR_ERF)
    square = pairs.two_product(z, z)
    if z < pairs.SERIES_ERF:
        y = pairs.erf((z, 0.0), square)
    else:
        q = pairs.erfc((z, 0.0), square)
        y = pairs.add(_ONE, (-q[0], -q[1]))
    return np.copysign(odd(y), x)


@inline
def _gelu(x: float) -> Any:
    far = min(abs(x), _FAR_ERF)
    z = pairs.times((far, 0.0), _SQRT_HALF)
    square = pairs.two_product(far, far)
    square = (0.5 * square[0], 0.5 * square[1])
    if x < 0.0:
        y = pairs.erfc(z, square)
    elif z[0] < pairs.SERIES_ERF:
        y = pairs.add(_ONE, pairs.erf(z, square))
    else:
        q = pairs.erfc(z, square)
        y = pairs.add((2.0, 0.0), (-q[0], -q[1]))
    return odd(pairs.times((0.5 * x, 0.0), y))


@inline
def _gelu_tanh(x: float) -> Any:
    far = _clamped(x, 30.0)
    cubic = pairs.times(pairs.times(pairs.two_product(far, far), (far, 0.0)), _CUBIC)
    u = pairs.times(_SQRT_TWO_OVER_PI, pairs.add((far, 0.0), cubic))
    u = (2.0 * u[0], 2.0 * u[1])
    if abs(u[0]) > _FAR:
        u = (np.copysign(_FAR, u[0]), 0.0)
    return odd(pairs.times((x, 0.0), _sigmoid_of(u)))


@inline
def _silu(x: float) -> Any:
    y = x * sigmoid_of(_clamped(x, _FAR))
    if _decides(y) and abs(y) > _LEAST:
        return _marked(y)
    return odd(pairs.times((x, 0.0), _sigmoid_of((_clamped(x, _FAR), 0.0))))


@inline
def _sigmoid(x: float) -> Any:
    x = _clamped(x, _FAR)
    y = sigmoid_of(x)
    if _decides(y) and y > _LEAST:
        return _marked(y)
    return odd(_sigmoid_of((x, 0.0)))


@inline
def _sin(x: float) -> Any:
    turns, r = pairs.quarter((abs(x), 0.0))
    return np.copysign(1.0, x) * odd(pairs.sine(turns, r))


@inline
def _cos(x: float) -> Any:
    turns, r = pairs.quarter((abs(x), 0.0))
    return odd(pairs.sine(turns + 1, r))


@expanded
def _over(
    function: Callable[[float], float], x: np.ndarray, out: np.ndarray, start: int, stop: int
) -> None:
    for i in range(start, stop):
        out[i] = function(x[i])


@kernel
def _exp_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_exp, x, out, start, stop)


@kernel
def _exp2_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_exp2, x, out, start, stop)


@kernel
def _log_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_log, x, out, start, stop)


@kernel
def _reciprocal_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_reciprocal, x, out, start, stop)


@kernel
def _sqrt_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_sqrt, x, out, start, stop)


@kernel
def _rsqrt_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_rsqrt, x, out, start, stop)


@kernel
def _tanh_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_tanh, x, out, start, stop)


@kernel
def _erf_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_erf, x, out, start, stop)


@kernel
def _gelu_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_gelu, x, out, start, stop)


@kernel
def _gelu_tanh_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_gelu_tanh, x, out, start, stop)


@kernel
def _silu_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_silu, x, out, start, stop)


@kernel
def _sigmoid_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_sigmoid, x, out, start, stop)


@kernel
def _sin_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_sin, x, out, start, stop)


@kernel
def _cos_range(x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
    _over(_cos, x, out, start, stop)


_RANGES = {
    "exp": _exp_range,
    "exp2": _exp2_range,
    "log": _log_range,
    "reciprocal": _reciprocal_range,
    "sqrt": _sqrt_range,
    "rsqrt": _rsqrt_range,
    "tanh": _tanh_range,
    "erf": _erf_range,
    "gelu": _gelu_range,
    "gelu_tanh": _gelu_tanh_range,
    "silu": _silu_range,
    "sigmoid": _sigmoid_range,
    "sin": _sin_range,
    "cos": _cos_range,
}
FUNCTIONS = tuple(_RANGES)


def function(name: str, x: np.ndarray) -> np.ndarray:
    """Return float64 f(x) rounded to odd: x [n] finite float64, of at most 24 significant bits."""
    out = np.empty_like(x)
    run = _RANGES[name]
    over_range(lambda a, b: run(x, out, a, b), x.size, grain=_GRAIN)
    return out


@kernel
def angles(
    positions: np.ndarray, base: pairs.Pair, width: int, cos: np.ndarray, sin: np.ndarray,
    inverse: np.ndarray,
) -> None:  # fmt: skip
    """Cos and sin of position * base**(-2i / width), and base**(-2i / width), rounded to odd.

    `base`: its logarithm. positions [P] below 2**20; cos, sin [P, width / 2]; inverse [width / 2].
    """
    for i in range(inverse.size):
        e = pairs.over(pairs.times((-2.0 * i, 0.0), base), (np.float64(width), 0.0))
        f = pairs.exp(e)
        inverse[i] = odd(f)
        for p in range(positions.size):
            turns, r = pairs.quarter(pairs.times((positions[p], 0.0), f))
            sin[p, i] = odd(pairs.sine(turns, r))
            cos[p, i] = odd(pairs.sine(turns + 1, r))


@kernel
def logarithm(x: float) -> pairs.Pair:
    """ln(x) as a pair."""
    return pairs.log(x)
