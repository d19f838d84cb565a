"""Operators of inference runtimes: ONNX Runtime's integer softmax, ggml's table of GELU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import real_array
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.operators.integers import positive
from numsim.operators.rounded import function, plus, rounding_to, times


@known_floats
def ort_qlinear_softmax(
    x: ArrayLike, *, x_scale: float, y_scale: float, y_zero_point: int = 0
) -> NDArray[np.integer[Any]]:
    """Softmax of int8 or uint8 rows as ONNX Runtime computes it: a float32 table and sum.

    Parameters
    ----------
    x
        int8 or uint8 [..., n]; the result has its type.
    x_scale, y_scale, y_zero_point
        As in QLinearSoftmax.

    Raises
    ------
    NumsimError
        For another type, or scales of 0 or below.

    Notes
    -----
    **Source**: onnxruntime 1.32.0, ``contrib_ops/cpu/quantization/qlinear_softmax.cc``.

    Examples
    --------
    >>> import numpy as np
    >>> ort_qlinear_softmax(np.uint8([[0, 10, 20]]), x_scale=0.1, y_scale=1 / 256).tolist()
    [[23, 63, 170]]
    """
    a = np.asarray(x)
    if a.dtype not in (np.int8, np.uint8) or a.ndim == 0 or a.shape[-1] == 0:
        raise NumsimError(
            f"ort_qlinear_softmax takes rows of int8 or uint8; got {a.dtype} {list(a.shape)}"
        )
    s, n = float(np.float32(positive(x_scale, "x_scale"))), a.shape[-1]
    largest = float(np.finfo(np.float32).max) / n
    shift = max(0.0, math.log(largest) - 5) / s
    table = rounding_to("float32")(function("exp", (np.arange(256.0) - 255 + shift) * s))
    t = table[a.astype(np.int64) + (255 - a.max(-1, keepdims=True).astype(np.int64))]
    total = t[..., 0]
    for i in range(1, n):
        total = total + t[..., i]
    inverse = np.float32(math.floor(1.0 / float(np.float32(positive(y_scale, "y_scale")))))
    y = np.rint(t * inverse / total[..., None]).astype(np.int64) + y_zero_point
    limits = np.iinfo(a.dtype)
    out: NDArray[np.integer[Any]] = np.clip(y, limits.min, limits.max).astype(a.dtype)
    return out


@known_floats
def ggml_gelu_f16(x: ArrayLike) -> NDArray[np.float32]:
    """GELU with tanh as ggml tabulates it for float16: float32 step by step, then float16.

    Parameters
    ----------
    x
        Values of float16.

    Raises
    ------
    NumsimError
        For what are no real numbers.

    Notes
    -----
    0.5 x (1 + tanh(0.79788456 x (1 + 0.044715 x x))), tanh rounded once, no fused multiply-adds.

    **Source**: ggml, ``ggml_gelu_f32`` and ``ggml_table_gelu_f16`` as its ports have them.

    Examples
    --------
    >>> ggml_gelu_f16([-1.0, 0.5]).tolist()
    [-0.1588134765625, 0.345703125]
    """
    single, one = rounding_to("float32", overflow="special"), np.float32
    v = real_array("ggml_gelu_f16", x, np.float16).astype(np.float32)
    inner = single(times(single(times(one(0.044715), v)), v))
    inner = single(times(single(times(one(0.79788456), v)), single(plus(one(1), inner))))
    t = single(plus(one(1), single(function("tanh", inner))))
    return rounding_to("float16", overflow="special")(times(single(times(one(0.5), v)), t))
