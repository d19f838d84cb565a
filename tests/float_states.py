"""Floating-point states that a caller may have set, and battery.py's results under one of them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm

MACHINE = llvm.get_process_triple().partition("-")[0]
_X86 = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define i32 @get() {
  %p = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %p)
  %v = load i32, ptr %p
  ret i32 %v
}
define void @put(i32 %v) {
  %p = alloca i32
  store i32 %v, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  ret void
}
"""
_ARM = """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define i32 @get() {
  %v = call i64 @llvm.aarch64.get.fpcr()
  %w = trunc i64 %v to i32
  ret i32 %w
}
define void @put(i32 %v) {
  %w = zext i32 %v to i64
  call void @llvm.aarch64.set.fpcr(i64 %w)
  ret void
}
"""
X86 = MACHINE == "x86_64"
KNOWN = MACHINE in ("x86_64", "aarch64", "arm64")
# Intel SDM volume 1, 10.2.3 (MXCSR); Arm ARM, FPCR: RMode 01 up, 10 down, 11 toward zero; FZ
STATES = (
    {
        "ftz": 0x9F80, "daz": 0x1FC0, "ftz_daz": 0x9FC0, "down": 0x3F80, "up": 0x5F80,
        "zero": 0x7F80, "all": 0xDFC0,
    }
    if X86
    else {"ftz": 1 << 24, "up": 1 << 22, "down": 2 << 22, "zero": 3 << 22, "all": 5 << 22}
)  # fmt: skip
_CONTROL = 0xFFC0 if X86 else 0xFFFFFFFF  # without the flags that only record what happened


def _functions() -> tuple[Any, Any, Any]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_X86 if X86 else _ARM), machine)
    engine.finalize_object()
    get = ctypes.PYFUNCTYPE(ctypes.c_uint32)(engine.get_function_address("get"))
    put = ctypes.PYFUNCTYPE(None, ctypes.c_uint32)(engine.get_function_address("put"))
    return get, put, engine


if KNOWN:
    _get, put, _engine = _functions()


def state() -> int:
    """Return the calling thread's state."""
    return _get() & _CONTROL


@contextmanager
def under(word: int) -> Iterator[None]:
    """Set a state inside the ``with`` block."""
    before = _get()
    put(word)
    try:
        yield
    finally:
        put(before)
