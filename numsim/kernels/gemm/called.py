"""Micro-kernels of many flavours, each compiled alone and called by its address.

What covers an output and decodes codes is the same for every flavour. Compiled into each of them,
it was three quarters of the time that a unit's first product takes; so it is compiled once, and a
flavour is its micro-kernel alone. Proof: that of the kernels that call them, `gemm.align`,
`gemm.mac` and `gemm.saturate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
from numba import types

from numsim.kernels.ir import simd
from numsim.kernels.ir.called import call_tile
from numsim.kernels.jit import expanded

Array = npt.NDArray[Any]


@expanded
def by_address(
    a: Array, a_at: int, b: Array, b_at: int, out: Array, out_at: int, stride: int, steps: int,
    left: int, rule: Any,
) -> int:  # fmt: skip
    """Update rows of a tile by a micro-kernel; `rule` is its address, and what it reads."""
    done: int = call_tile(rule[0], rule[1], a, a_at, b, b_at, out, out_at, stride, steps, left)
    return done


@expanded
def rows_or_one(
    tile: Callable[..., None], rows: int, a: Array, b: Array, out: Array, stride: int, steps: int,
    left: int, rule: Array, flavour: int,
) -> int:  # fmt: skip
    """Update so many rows by a micro-kernel of `ir`, or one where fewer are left; return how many.

    `rows` is written as a number: it is part of what is compiled.
    """
    if left >= rows:
        tile(rows, flavour, a, 0, b, 0, out, 0, stride, steps, rule)
        return rows
    tile(1, flavour, a, 0, b, 0, out, 0, stride, steps, rule)
    return 1


def address_of(
    micro: Any, flavour: int, a: types.Type, b: types.Type, out: types.Type, rule: types.Type
) -> int:
    """Return the address of a micro-kernel of a flavour, for elements of these types.

    Parameters: `micro` (a, b, out, stride, steps, left, rule, flavour), under `called`; the
    operands, the output and the rule are pointers.
    """
    pointer: Any = types.CPointer
    places = (pointer(a), pointer(b), pointer(out))
    signature = (*places, *(types.int64,) * 3, pointer(rule), simd.literal(flavour))
    micro.compile(signature)
    made = micro.overloads[signature]
    return int(made.library.get_pointer_to_function(made.fndesc.llvm_cfunc_wrapper_name))
