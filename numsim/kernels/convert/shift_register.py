"""Galois linear-feedback shift registers, as RTL builds them: random integers from one state.

Proof: ``tests/convert/test_convert.py`` walks whole periods.
"""

from __future__ import annotations

import numpy as np

from numsim.kernels.jit import kernel


@kernel
def run_register(out: np.ndarray, state: int, taps: int, steps: int) -> int:
    """Write the state after every `steps` shifts; return the last state."""
    s = np.uint64(state)
    t, one = np.uint64(taps), np.uint64(1)
    for i in range(out.size):
        for _ in range(steps):
            s = (s >> one) ^ (t if s & one else np.uint64(0))
        out[i] = s
    return int(s)
