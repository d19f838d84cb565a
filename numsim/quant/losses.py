"""How much of a tensor a format saturates, or takes to zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from numsim.arguments import as_array
from numsim.convert import decode
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike
from numsim.quant.quantize import quantize
from numsim.quant.rule import (
    Quant,
)
from numsim.quant.types import QTensor


@known_floats
def storage_losses(
    x: ArrayLike, quant: FormatLike | Quant, *, axis: int = -1, where: ArrayLike = True,
    stored: QTensor | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Return the shares of values that storage clips and that it turns to zero.

    Saturated: beyond the format's range by at least half of its last step. Underflow: not zero,
    stored as zero. Parameters and errors as `quantize`.

    Parameters
    ----------
    where
        Booleans that broadcast against `x`: the values that count. Scales are those of all of `x`.
    stored
        `x` as it was stored, where that cannot be repeated: stochastic rounding.

    Raises
    ------
    NumsimError
        As `quantize`.

    Examples
    --------
    >>> storage_losses([0.01, 0.5, 9.0, -8.5], "q3.4")
    (0.5, 0.25)
    >>> storage_losses([0.01, 0.5, 9.0, -8.5], "q3.4", where=[True, True, False, False])
    (0.0, 0.5)
    """
    q = quantize(x, quant, axis=axis) if stored is None else stored
    values = as_array("storage_losses", x).astype(np.float64)
    scale = np.asarray(q.element_scale(), np.float64)
    if q.tensor_scale is not None:
        scale = scale * np.asarray(q.tensor_scale, np.float64)
    half = _last_step(q.fmt) / 2
    clipped = (values >= (q.fmt.max + half) * scale) | (values <= (q.fmt.min - half) * scale)
    lost = (values != 0) & (decode(q.codes, q.fmt) == 0)
    counted = np.broadcast_to(np.asarray(where, np.bool_), values.shape)
    if not counted.any():
        return 0.0, 0.0
    return float(clipped.mean(where=counted)), float(lost.mean(where=counted))


def _last_step(fmt: Format) -> float:
    """Return the distance of the largest finite value from the one below it."""
    if fmt.kind == "integer":
        return float(2.0**-fmt.bias)
    if fmt.kind == "float":
        return float(2.0 ** (fmt.emax - (fmt.precision - 1)))
    finite = np.unique(fmt.values()[np.isfinite(fmt.values())])
    return float(finite[-1] - finite[-2])
