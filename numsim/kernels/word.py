"""32-bit shifts that stay 32 bits wide: Numba widens ``uint32 >> uint32`` to 64, halving lanes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, types
from numba.extending import intrinsic

_WORD = types.uint32


def _shift(instruction: str) -> Callable[[Any, Any], Any]:
    """Return ``value << count`` or ``value >> count`` for uint32 and counts below 32."""
    if config.DISABLE_JIT:
        left = instruction == "shl"
        return lambda value, count: np.uint32(value << count if left else value >> count)

    def shift(typing: Any, value: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(args[0], args[1])

        return _WORD(_WORD, _WORD), codegen

    made: Callable[[Any, Any], Any] = intrinsic(shift)
    return made


shl = _shift("shl")
shr = _shift("lshr")
