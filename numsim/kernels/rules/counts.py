"""The columns of counts, one row of them for each row of results, and the range of accumulators.

A kernel of `numsim.kernels.rules` takes `counts` [M, COLUMNS] int64 and `extremes` [M, 2], both in
place, or None for both: then Numba leaves out what counts. The kernels of `numsim.kernels.counts`,
which compute and count many outputs at once, take the same two. A step whose operands or
accumulator are not finite counts nothing but itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numsim.kernels.jit import inline

OVERFLOWS, SATURATIONS, WRAPS, SWAMPED, CUT, GAP, BITS, STEPS = range(8)
COLUMNS = 8


@inline
def row(array: Any, i: int) -> Any:
    """Return row i of counts or extremes, None where nothing is counted."""
    if array is None:
        return None
    return array[i]


@inline
def note_peak(value: Any, extremes: Any) -> None:
    """Widen the range of accumulator values."""
    if extremes is not None and np.isfinite(value):
        extremes[0] = min(extremes[0], value)
        extremes[1] = max(extremes[1], value)
