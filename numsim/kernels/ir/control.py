"""The rounding of a thread's float instructions where it is not their own, and two ways to go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from numsim.kernels.ir.simd import I32

_TOWARD_ZERO = 0x7F80  # of MXCSR: without exceptions, subnormals kept


@contextmanager
def toward_zero(b: Any) -> Iterator[None]:
    """Emit code whose float32 and float64 arithmetic x86 cuts toward zero; then it is as before.

    What is emitted inside must begin with loads and end with stores, which stay between the two
    changes; arithmetic that depends on neither could be moved out. Nothing inside may call, raise
    or return: a kernel that left in between would leave the thread cutting.
    """
    byte, none = ir.IntType(8).as_pointer(), ir.VoidType()
    make: Any = cgutils.alloca_once  # once a call of the compiled function, not of the kernel
    before, new = make(b, I32), make(b, I32)
    kind = ir.FunctionType(none, [byte])
    store, load = (
        b.module.declare_intrinsic(f"llvm.x86.sse.{name}mxcsr", (), kind) for name in ("st", "ld")
    )
    b.store(ir.Constant(I32, _TOWARD_ZERO), new)
    b.call(store, [b.bitcast(before, byte)])
    b.call(load, [b.bitcast(new, byte)])
    yield
    b.call(load, [b.bitcast(before, byte)])


def any_lane(b: Any, lanes: Any) -> Any:
    """Return whether any lane of an int32 vector is not zero."""
    some = b.icmp_signed("!=", lanes, ir.Constant(lanes.type, [0] * lanes.type.count))
    word = ir.IntType(lanes.type.count)
    return b.icmp_unsigned("!=", b.bitcast(some, word), ir.Constant(word, 0))


def either(
    b: Any, condition: Any, first: Callable[[], list[Any]], second: Callable[[], list[Any]]
) -> list[Any]:
    """Emit ``first() if condition else second()``: values of the same types."""
    places = [b.append_basic_block(name) for name in ("first", "second", "both")]
    b.cbranch(condition, *places[:2])
    made = []
    for place, emit in zip(places[:2], (first, second), strict=True):
        b.position_at_end(place)
        values = emit()
        made.append((b.block, values))
        b.branch(places[2])
    b.position_at_end(places[2])
    phis = []
    for pair in zip(made[0][1], made[1][1], strict=True):
        phi = b.phi(pair[0].type)
        for value, (block, _) in zip(pair, made, strict=True):
            phi.add_incoming(value, block)
        phis.append(phi)
    return phis
