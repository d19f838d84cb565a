"""Bias correction: what quantised weights shift the mean of an output by, taken back."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.kernels.gemm.fma import gemm_fma
from numsim.quant.transforms.smooth import matrix
from numsim.quant.types import QTensor


@known_floats
def bias_correction(w: ArrayLike, stored: QTensor, x: ArrayLike) -> NDArray[np.float64]:
    """Return what to add to the bias: ``(w - stored) @ mean(x)``.

    Parameters
    ----------
    w
        Weight [N, K].
    stored
        The same weight, quantised.
    x
        Activations of a calibration, [rows, K].

    Returns
    -------
    float64 array [N]

    Raises
    ------
    NumsimError
        For matrices that do not match or are not finite.

    Source
    ------
    Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 3.4.

    Examples
    --------
    >>> from numsim.quant import quantize
    >>> w = np.array([[1.0, 0.3]])
    >>> shift = bias_correction(w, quantize(w, "int2"), [[1.0, 2.0], [3.0, 4.0]])
    >>> np.round(shift, 9)
    array([0.9])
    """
    whole, values = (
        matrix("bias_correction: w", w, "[N, K]"),
        matrix("bias_correction: x", x, "[rows, K]"),
    )
    if not isinstance(stored, QTensor) or stored.shape != whole.shape:
        raise NumsimError(
            f"bias_correction: stored is w as a QTensor of shape {whole.shape}; got {stored!r:.80}"
        )
    if values.shape[1] != whole.shape[1]:
        raise NumsimError(
            f"bias_correction: x is [rows, K] for w [N, K]; got {values.shape}, {whole.shape}"
        )
    mean = values.mean(axis=0)
    lost = whole - stored.dequantize().astype(np.float64)
    return np.asarray(gemm_fma(lost[None], mean[None, :, None])[0, :, 0])
