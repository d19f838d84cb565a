"""LLM.int8(): columns with outliers stay float, the others are int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.gemm.fma import gemm_fma
from numsim.quant.quantize import quantize
from numsim.quant.rule import Quant
from numsim.quant.transforms.smooth import matrix
from numsim.quant.types import QTensor

_INT8 = Quant("int8", "per_token")


@known_floats
@dataclass(frozen=True)
class LlmInt8:
    """Two operands of a product, in two parts.

    Parameters
    ----------
    outliers
        Which columns stay float, bool [K].
    x, w
        The other columns (those of outliers zero) as int8, one scale a row.
    float_x, float_w
        The columns of outliers, float64 [rows, count] and [N, count].
    """

    outliers: NDArray[np.bool_]
    x: QTensor
    w: QTensor
    float_x: NDArray[np.float64]
    float_w: NDArray[np.float64]

    def matmul(self) -> NDArray[np.float32]:
        """Return x @ w.T: the int32 product times both scales, plus that of the float columns."""
        left, right = (q.codes.astype(np.float64) for q in (self.x, self.w))
        acc = (left @ right.T).astype(np.float32)  # integers below 2**53: exact in any order
        assert self.x.scale is not None
        assert self.w.scale is not None
        with np.errstate(over="ignore", under="ignore"):
            whole = acc * np.asarray(self.x.scale * self.w.scale.T, np.float32)
            if not self.float_x.shape[1]:
                return np.asarray(whole)
            kept = gemm_fma(self.float_x[None], np.ascontiguousarray(self.float_w.T)[None])[0]
            return np.asarray(whole.astype(np.float64) + kept).astype(np.float32)


@known_floats
def llm_int8(x: ArrayLike, w: ArrayLike, *, threshold: float = 6.0) -> LlmInt8:
    """Split a product as LLM.int8() does.

    Columns with any |x| >= threshold stay float; the others: rows of x and rows of w symmetric int8
    (amax / 127, float32).

    Parameters
    ----------
    x
        Activations [rows, K].
    w
        Weights [N, K].
    threshold
        Positive.

    Raises
    ------
    NumsimError
        For matrices that do not match or are not finite, and a threshold that is not positive.

    Source
    ------
    Dettmers et al., LLM.int8(), arXiv 2208.07339.

    Examples
    --------
    >>> parts = llm_int8([[1.0, 60.0]], [[0.5, 0.25]])
    >>> parts.outliers, parts.matmul()
    (array([False,  True]), array([[15.5]], dtype=float32))
    """
    left, right = matrix("llm_int8: x", x, "[rows, K]"), matrix("llm_int8: w", w, "[N, K]")
    if left.shape[1] != right.shape[1]:
        raise NumsimError(f"llm_int8: x is [rows, K], w [N, K]; got {left.shape}, {right.shape}")
    good = isinstance(threshold, int | float) and not isinstance(threshold, bool) and threshold > 0
    if not good:
        raise NumsimError(f"llm_int8: threshold is positive; got {threshold!r:.40}; 6.0 is usual")
    outliers = np.asarray((np.abs(left) >= threshold).any(axis=0))
    of_x, of_w = (
        quantize(np.where(outliers, 0.0, values).astype(np.float32), _INT8)
        for values in (left, right)
    )
    return LlmInt8(outliers, of_x, of_w, left[:, outliers], right[:, outliers])
