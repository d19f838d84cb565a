"""What hardware and libraries compute in place of a function: names, sources, bounds, ranges.

Variants with public bits are functions of this package. Of instructions whose tables no vendor
publishes only a bound is known: `approximate` draws an error inside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import choice, is_integer
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.convert.philox import random_words
from numsim.operators.rounded import Values, function, numbers, rounding_to

_PTX = "NVIDIA, PTX ISA 9.1"
_FLASH = "flash-attention, commit 0251105, flash_attn/cute/utils.py"
_TFLITE = "tflite-micro, commit 90b983c; gemmlowp, commit 16e8662"
_IBERT = "Kim et al., arXiv:2101.01321; I-BERT, commit 1b09c75"


@known_floats
class Variant(NamedTuple):
    """One way in which hardware or a library computes a function.

    Parameters
    ----------
    name
        Of the function of `numsim.operators`, with its setting after a colon; of an instruction for
        `approximate`.
    computes
        What it stands for.
    bit_exact
        Whether the bits are the source's; otherwise the bound is all that is known.
    error
        Largest error, in words.
    low, high
        Range of inputs it is made for.
    source
        Where it is written down.
    """

    name: str
    computes: str
    bit_exact: bool
    error: str
    low: float
    high: float
    source: str


class _Bound(NamedTuple):
    """Of an instruction: its function, format, and the largest error of either kind."""

    function: str
    format: str
    relative: float = 0.0
    absolute: float = 0.0
    ulps: float = 0.0
    flushes: bool = False  # subnormal inputs and results are zero


_INF = float("inf")
_BOUNDS = {
    "ex2.approx.f32": _Bound("exp2", "float32", ulps=2),
    "ex2.approx.ftz.f32": _Bound("exp2", "float32", ulps=2, flushes=True),
    "ex2.approx.f16": _Bound("exp2", "float16", relative=2.0**-9.9),
    "ex2.approx.ftz.bf16": _Bound("exp2", "bfloat16", relative=2.0**-7, flushes=True),
    "rcp.approx.f32": _Bound("reciprocal", "float32", ulps=1),
    "rcp.approx.ftz.f32": _Bound("reciprocal", "float32", ulps=1, flushes=True),
    "rsqrt.approx.f32": _Bound("rsqrt", "float32", relative=2.0**-22.9),
    "rsqrt.approx.ftz.f32": _Bound("rsqrt", "float32", relative=2.0**-22.9, flushes=True),
    "sqrt.approx.f32": _Bound("sqrt", "float32", relative=2.0**-23),
    "sin.approx.f32": _Bound("sin", "float32", absolute=2.0**-20.5),
    "cos.approx.f32": _Bound("cos", "float32", absolute=2.0**-20.5),
    "tanh.approx.f32": _Bound("tanh", "float32", relative=2.0**-11),
    "tanh.approx.f16": _Bound("tanh", "float16", absolute=2.0**-10.987),
    "tanh.approx.bf16": _Bound("tanh", "bfloat16", absolute=2.0**-8),
}
_WORDS = {
    "ex2.approx.f16": "2**-9.9 relative", "ex2.approx.ftz.bf16": "2**-7 relative",
    "rsqrt.approx.f32": "2**-22.9 relative", "rsqrt.approx.ftz.f32": "2**-22.9 relative",
    "sqrt.approx.f32": "2**-23 relative", "sin.approx.f32": "2**-20.5 absolute",
    "cos.approx.f32": "2**-20.5 absolute", "tanh.approx.f32": "2**-11 relative",
    "tanh.approx.f16": "2**-10.987 absolute", "tanh.approx.bf16": "2**-8 absolute",
}  # fmt: skip
_RANGES = {"sin": 2 * np.pi, "cos": 2 * np.pi}
_POLYNOMIALS = ("3.9e-2", "2.1e-3", "8.8e-5", "3.1e-6", "1.5e-7")
APPROXIMATE = tuple(_BOUNDS)
EX2 = {name: bound.format for name, bound in _BOUNDS.items() if bound.function == "exp2"}


@known_floats
def list_variants() -> tuple[Variant, ...]:
    """Return every variant, with its source, error bound and input range.

    Examples
    --------
    >>> [(v.name, v.error) for v in list_variants() if v.computes == "2**x"][2:4]
    [('exp2_poly:3', '8.8e-5 relative'), ('exp2_poly:4', '3.1e-6 relative')]
    """
    exact = [
        *(
            Variant(f"exp2_poly:{degree}", "2**x", True, f"{error} relative", -126.0, 127.0, _FLASH)
            for degree, error in enumerate(_POLYNOMIALS, 1)
        ),
        Variant("exp2_lut", "2**x", True, "0.0616 / entries**2 + 2**-p relative, p of "
                "table_format; without interpolation 2**(1 / entries) - 1 + 2**-p", -126.0, 127.0,
                "definition"),
        Variant("online_softmax", "softmax(s) v", True, "by p_format", -_INF, _INF, _FLASH),
        Variant("tflite_softmax_int8", "softmax", True, "1 step of 8 bits", -128, 127, _TFLITE),
        Variant("tflite_softmax_int16", "softmax", True, "2 n steps of 2**-15 in a row of n: its "
                "least exponential is e**-10", -32768, 32767, _TFLITE),
        Variant("tflite_tanh8", "tanh", True, "1 step of 2**-7", -128, 127, _TFLITE),
        Variant("tflite_logistic8", "sigmoid", True, "1 step of 2**-8", -128, 127, _TFLITE),
        Variant("gemmlowp_exp", "e**x", True, "about 2**-28", -_INF, 0, _TFLITE),
        Variant("gemmlowp_tanh", "tanh", True, "about 2**-27", -_INF, _INF, _TFLITE),
        Variant("gemmlowp_logistic", "sigmoid", True, "about 2**-28", -_INF, _INF, _TFLITE),
        Variant("ort_qlinear_softmax", "softmax", True, "1 step of y_scale", -128, 255,
                "onnxruntime 1.32.0, qlinear_softmax.cc"),
        Variant("ibert_exp", "e**x", True, "2e-3 absolute at scales to 1e-3", -_INF, 0, _IBERT),
        Variant("ibert_gelu", "gelu", True, "1.9e-2 absolute at scales to 1e-4", -_INF, _INF,
                _IBERT),
        Variant("ibert_softmax", "softmax", True, "2 steps of 2**-8 at scales to 1e-3", -_INF, _INF,
                _IBERT),
        Variant("ibert_sqrt", "sqrt", True, "floor", 0, _INF, _IBERT),
        Variant("ibert_norm", "layernorm without weights", True, "by shift", -_INF, _INF, _IBERT),
        Variant("ggml_gelu_f16", "gelu_tanh", True, "1 ulp of float16", -65504, 65504, "ggml"),
    ]  # fmt: skip
    bounded = []
    for name, bound in _BOUNDS.items():
        words = _WORDS.get(name) or f"{bound.ulps:g} ulp"
        high = _RANGES.get(bound.function, _INF)
        low = 0.0 if bound.function in ("sqrt", "rsqrt") else -high
        bounded.append(Variant(name, bound.function, False, words, low, high, _PTX))
    return (*exact, *bounded)


@known_floats
def approximate(name: str, x: ArrayLike, *, seed: int = 0) -> Values:
    """Return an instruction's function with an error drawn inside its documented bound.

    Parameters
    ----------
    name
        An instruction: `list_variants` names those that are not bit exact.
    x
        Values of its format.
    seed
        Of the draws: uniform between both ends of the bound, one for each value of x, so that an
        instruction gives equal inputs equal results, wherever they stand.

    Raises
    ------
    NumsimError
        For an unknown name, or numbers that float32 does not hold.

    Notes
    -----
    The vendor's tables are not public, so these are not the bits of any chip: how a network fares
    under the worst that the manual allows.

    **Source**: NVIDIA, PTX ISA 9.1.

    Examples
    --------
    >>> y = approximate("tanh.approx.f32", [0.5, 1.0])
    >>> [round(abs(a / b - 1) * 2**11) <= 1 for a, b in zip(y, (0.46211716, 0.76159416))]
    [True, True]
    """
    bound = _BOUNDS[_known(name)]
    if not is_integer(seed):
        raise NumsimError(f"approximate: seed is an integer; got {seed!r:.40}")
    r = rounding_to(bound.format, overflow="special")
    tiny = float(r.format.min_normal)
    x = numbers(x)
    if bound.flushes:
        x = np.where(np.abs(x) < tiny, np.copysign(0.0, x), x)
    y = function(bound.function, x)
    finite = np.isfinite(y) & (y != 0)
    known = np.where(finite, y, 1.0)
    ulp = np.ldexp(1.0, np.frexp(known)[1] - r.format.precision)
    room = np.maximum(np.abs(known) * bound.relative, bound.absolute) + ulp * bound.ulps
    draws = _draws(x, seed)
    moved = r(np.where(finite, known + draws * np.maximum(room - 0.5 * ulp, 0), y))
    with np.errstate(invalid="ignore"):
        out = np.where(np.abs(moved - y) > room, r(y), moved)  # where steps became twice as wide
    if bound.flushes:
        out = np.where(np.abs(out) < tiny, np.copysign(np.float32(0), out), out)
    return out


def _draws(x: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """Return a number from -1 to 1 for each float32, which depends on its bits alone."""
    bits = np.asarray(x, np.float32).reshape(-1).view(np.uint32).astype(np.uint64)
    words = np.empty(bits.size, np.uint64)
    random_words(bits, seed % 2**32, words)
    unit: NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    return unit.reshape(np.shape(x))


def _known(name: str) -> str:
    """Return the name of an instruction with a documented bound; an error with near names."""
    choice("instruction", name, APPROXIMATE)
    return name
