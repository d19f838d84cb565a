"""The floating-point state of a thread: everything public computes under one that is known.

Processors keep a rounding direction and two switches for subnormals, flush results to zero (FTZ)
and read inputs as zero (DAZ), in a register of each thread, and any library may change it:
``torch.set_flush_denormal(True)`` does. Python, NumPy and compiled code obey the register, so bits
would depend on who ran before.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar

import llvmlite.binding as llvm

from numsim.errors import NumsimError

T = TypeVar("T", bound=Callable[..., Any])

# Special methods that a class with `known_floats` has covered, besides its public names.
ENTRIES = frozenset({
    "__init__", "__repr__", "__str__", "__eq__", "__len__", "__getitem__",
    "__array__", "__matmul__", "__rmatmul__", "__call__",
})  # fmt: skip

# Properties that hand on what is there: small calls ask for them again and again.
PLAIN = frozenset({"shape", "ndim", "fmt", "is_plain"})


class State(NamedTuple):
    """How one kind of processor reads and sets the state of the calling thread."""

    unknown: Callable[[], int]  # the state as a number, or -1 where it is the known one
    settle: Callable[[], object]  # make it the known one
    put: Callable[[int], object]  # make it what `unknown` returned


# MXCSR: 0x1F80 masks every exception; with FTZ (0x8000), DAZ (0x40) and the rounding direction
# (0x6000) that leaves 0xFFC0 to compare. The lowest six bits only record what happened.
_X86 = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define i64 @unknown() {
  %place = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %place)
  %word = load i32, ptr %place
  %control = and i32 %word, 65472
  %known = icmp eq i32 %control, 8064
  %number = zext i32 %word to i64
  %result = select i1 %known, i64 -1, i64 %number
  ret i64 %result
}
define void @put(i64 %number) {
  %place = alloca i32
  %word = trunc i64 %number to i32
  store i32 %word, ptr %place
  call void @llvm.x86.sse.ldmxcsr(ptr %place)
  ret void
}
define void @settle() {
  call void @put(i64 8064)
  ret void
}
"""
# FPCR: zero is round to nearest, subnormals kept (of float16 too), NaNs propagated, no traps.
_AARCH64 = """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define i64 @unknown() {
  %word = call i64 @llvm.aarch64.get.fpcr()
  %known = icmp eq i64 %word, 0
  %result = select i1 %known, i64 -1, i64 %word
  ret i64 %result
}
define void @put(i64 %word) {
  call void @llvm.aarch64.set.fpcr(i64 %word)
  ret void
}
define void @settle() {
  call void @llvm.aarch64.set.fpcr(i64 0)
  ret void
}
"""
PROGRAMS = {"x86_64": _X86, "aarch64": _AARCH64, "arm64": _AARCH64}

_LEAST, _HALF, _ONE, _NEXT, _TIE = 2.0**-1022, 0.5, 1.0, 1.0 + 2.0**-52, 2.0**-53


def probe() -> int:
    """Return -1 where arithmetic of this thread is as it must be, else 0.

    The product is subnormal; one tie goes down to the even neighbour, the other up.
    """
    kept = _LEAST * _HALF * 2.0 == _LEAST
    return -1 if kept and _ONE + _TIE == _ONE and _NEXT + _TIE > _NEXT else 0


def _refuse() -> None:
    raise NumsimError(
        "this thread flushes subnormal numbers to zero or does not round to nearest, and numsim "
        "cannot change that on this processor; undo it, as with torch.set_flush_denormal(False)"
    )


def _state() -> tuple[State, object]:
    """Return the functions of this processor, and what must live as long as they."""
    program = PROGRAMS.get(llvm.get_process_triple().partition("-")[0])
    if program is None:
        return State(probe, _refuse, lambda state: None), None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(program), machine)
    engine.finalize_object()
    find = engine.get_function_address
    # PYFUNCTYPE keeps Python's lock: no other thread can run in between
    return State(
        ctypes.PYFUNCTYPE(ctypes.c_int64)(find("unknown")),
        ctypes.PYFUNCTYPE(None)(find("settle")),
        ctypes.PYFUNCTYPE(None, ctypes.c_int64)(find("put")),
    ), engine


_NOW, _ENGINE = _state()
_unknown = _NOW.unknown


@contextmanager
def known_state() -> Iterator[None]:
    """Compute inside with rounding to nearest and subnormals; afterwards all is as it was.

    Raises
    ------
    NumsimError
        The thread's arithmetic is another, on a processor whose state numsim cannot set.
    """
    before = _NOW.unknown()
    if before < 0:
        yield
        return
    try:
        _NOW.settle()
        yield
    finally:
        _NOW.put(before)


def known_floats(item: T) -> T:
    """Run a function, or whatever a class offers, under the known state: a decorator.

    Calls from within cost a quarter of a microsecond each. A class has its public names covered,
    and the special methods in `ENTRIES`.

    Raises
    ------
    TypeError
        For a generator: it hands the thread back to its caller in the middle.
    """
    if inspect.isclass(item):
        _cover(item)
        return item
    if inspect.isgeneratorfunction(item) or inspect.iscoroutinefunction(item):
        raise TypeError(f"{item.__qualname__} is a generator; decorate what it calls")

    @wraps(item)
    def known(*args: Any, **kwargs: Any) -> Any:
        if _unknown() < 0:
            return item(*args, **kwargs)
        with known_state():
            return item(*args, **kwargs)

    return known  # type: ignore[return-value]


def _cover(cls: type) -> None:
    for name, item in list(vars(cls).items()):
        if (name.startswith("_") and name not in ENTRIES) or name in PLAIN:
            continue
        if inspect.isfunction(item):
            setattr(cls, name, known_floats(item))
        elif isinstance(item, (classmethod, staticmethod)):
            setattr(cls, name, type(item)(known_floats(item.__func__)))
        elif isinstance(item, property) and item.fget is not None:
            setattr(cls, name, item.getter(known_floats(item.fget)))
        elif isinstance(item, cached_property):
            item.func = known_floats(item.func)
