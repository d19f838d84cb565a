"""Operators outside the matrix products, in low precision, and caches of keys and values."""

from numsim.operators.chains import (
    layernorm,
    residual,
    rmsnorm,
    rotary,
    rotary_tables,
    silu_gate,
    softmax,
)
from numsim.operators.rounded import elementwise

__all__ = [
    "elementwise", "layernorm", "residual", "rmsnorm", "rotary", "rotary_tables", "silu_gate",
    "softmax",
]  # fmt: skip
