"""What products learn of their operands before they choose a kernel."""

import numpy as np
import pytest

import numsim as ns
from numsim.targets.tensor import finite


@pytest.mark.parametrize("name", [f for f in ns.list_formats() if ns.get_format(f).bits <= 8])
def test_finite_is_told_of_every_code_of_a_byte(name):
    fmt = ns.get_format(name)
    first = -(1 << (fmt.bits - 1)) if fmt.code_dtype == np.int8 else 0
    for pattern in range(1 << fmt.bits):
        code = np.array([first + pattern] * 3, fmt.code_dtype)
        code[:2] = 0
        q = ns.QTensor.from_codes(code, fmt)
        assert finite(q) == np.isfinite(ns.decode(code, fmt).astype(np.float64)).all()
