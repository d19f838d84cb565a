"""The rounding of a thread's float instructions, on processors where it is not their own."""

from __future__ import annotations

from collections.abc import Iterator
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
