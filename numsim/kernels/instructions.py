"""Single instructions that Numba has no word for.

Numba widens ``uint32 >> uint32`` to 64 bits, which halves the lanes; these shifts stay narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD = types.uint32


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    make: Any = intrinsic
    made: Callable[..., Any] = make(function)
    return made


def _shift(instruction: str) -> Callable[[Any, Any], Any]:
    """Return ``value << count`` or ``value >> count`` for uint32 and counts below 32."""

    def shift(typing: Any, value: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(args[0], args[1])

        return _WORD(_WORD, _WORD), codegen

    return _intrinsic(shift)


shl = _shift("shl")
shr = _shift("lshr")


def _wide_vectors() -> Callable[[], None]:
    """Let LLVM fill 512-bit vectors in the kernel that says so; elsewhere it means nothing.

    For Intel cores LLVM prefers half of them, for clock rates that no longer drop: a third to a
    half of a conversion's speed.
    """

    def prefer(typing: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            # llvmlite checks names that are added one by one, and knows no string attributes
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
            return context.get_dummy_value()

        return types.none(), codegen

    return _intrinsic(prefer)


wide_vectors = _wide_vectors()


def _top_bit() -> Callable[[Any], Any]:
    """Return the position of the highest set bit of a nonzero uint64, as int64."""

    def position(typing: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))
            return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)

        return types.int64(types.uint64), codegen

    return _intrinsic(position)


top_bit = _top_bit()


def _multiply_add(name: str, kind: Any, element: Any) -> Callable[[Any, Any, Any], Any]:
    """Return ``a * b + c`` of numbers of one kind, as one of LLVM's intrinsics does it."""

    def made(typing: Any, a: Any, b: Any, c: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            three = ir.FunctionType(element, [element] * 3)
            return builder.call(builder.module.declare_intrinsic(name, (), three), args)

        return kind(kind, kind, kind), codegen

    return _intrinsic(made)


# Rounded once or twice, whichever the processor is quicker at: for what is correct either way, such
# as a guess that is checked.
multiply_add = _multiply_add("llvm.fmuladd.f64", types.float64, ir.DoubleType())
fused = _multiply_add("llvm.fma.f32", types.float32, ir.FloatType())  # rounded once
