"""One case for every rule of every unit, and random codes to feed it."""

from __future__ import annotations

import numpy as np
import pytest

import numsim as ns
from numsim.targets.types import CLASSES

OPERANDS = {
    "float": ("float8_e4m3fn", "float16"), "number": ("float8_e4m3fn", "int8"),
    "integer": ("int8", "int4"), "u8s8": ("uint8", "int8"),
}  # fmt: skip


def every_rule():
    """(target, operand formats, output format) for every rule of every target."""
    for name in ns.list_targets():
        for kind, _ in ns.get_target(name).rules:
            if kind.startswith("mx:"):
                continue
            operands, _, out = kind.partition("->")
            formats = OPERANDS.get(operands) or (CLASSES[operands][0], CLASSES[operands][-1])
            yield pytest.param(name, *formats, out or None, id=f"{name}-{kind}")


def random_codes(fmt, shape, rng, *, wild):
    f = ns.get_format(fmt)
    if wild and f.bits <= 16:
        codes = rng.integers(0, 1 << f.bits, shape).astype(f"u{f.code_dtype.itemsize}")
        return ns.QTensor.from_codes(codes.view(f.code_dtype), f) if f.bits >= 8 else None
    if f.kind == "integer":
        return ns.QTensor.from_codes(rng.integers(int(f.min), int(f.max) + 1, shape), f)
    spread = np.exp(rng.normal(size=shape) * 2)
    return ns.QTensor.from_codes(ns.encode(rng.normal(size=shape) * spread, f), f)
