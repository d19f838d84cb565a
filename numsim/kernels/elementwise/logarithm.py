"""The natural logarithm in float64, by the same operations on every machine.

Proof: ``tests/nn`` compares losses with references, ``tests/operators`` powers with exact ones.
"""

from __future__ import annotations

import numpy as np

from numsim.kernels.elementwise.functions import GRAIN, FloatArray
from numsim.kernels.jit import inline, kernel, over_range

_LN2_HI = float.fromhex("0x1.62e42feep-1")
_LN2_LO = float.fromhex("0x1.a39ef35793c76p-33")


@inline
def log64(x: float) -> float:
    """ln(x) of a positive normal number: less than 1 ulp from the true value.

    Source: fdlibm 5.3 (Sun Microsystems, ``e_log.c``).
    """
    bits = np.float64(x).view(np.int64)
    k = (bits >> 52) - 1023
    fraction = bits & 0xFFFFFFFFFFFFF
    if fraction >= 0x6A09E667F3BCD:  # above sqrt(2): halve
        k += 1
        mantissa = np.int64(fraction | 0x3FE0000000000000).view(np.float64)
    else:
        mantissa = np.int64(fraction | 0x3FF0000000000000).view(np.float64)
    f = mantissa - 1.0
    s = f / (2.0 + f)
    z = s * s
    r = 1.479819860511658591e-01
    r = r * z + 1.531383769920937332e-01
    r = r * z + 1.818357216161805012e-01
    r = r * z + 2.222219843214978396e-01
    r = r * z + 2.857142874366239149e-01
    r = r * z + 3.999999999940941908e-01
    r = r * z + 6.666666666666735130e-01
    r = r * z
    half = 0.5 * f * f
    n = np.float64(k)
    return n * _LN2_HI - ((half - (s * (half + r) + n * _LN2_LO)) - f)


@inline
def log1p64(x: float) -> float:
    """ln(1 + x) for x >= 0."""
    u = 1.0 + x
    return x if u == 1.0 else log64(u) * (x / (u - 1.0))


@kernel
def _log_range(x: FloatArray, out: FloatArray) -> None:
    for i in range(out.size):
        out[i] = log64(np.float64(x[i]))


def log(x: FloatArray) -> FloatArray:
    """Natural logarithm of positive normal numbers, float32 or float64 of any shape.

    >>> log(np.array([1.0, 2.0]))
    array([0.        , 0.69314718])
    """
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    over_range(lambda a, b: _log_range(flat[a:b], out[a:b]), flat.size, grain=GRAIN)
    return out.reshape(x.shape)
