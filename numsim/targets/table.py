"""Every target, one block a unit, one line an operand class."""

from __future__ import annotations

from typing import Any

from numsim.errors import NumsimError, near_names
from numsim.targets.types import Exact, Fma, Fused, IntSum, Rule, Target


def _target(name: str, maturity: str, evidence: str, source: str, **rules: Rule) -> Target:
    return Target(name, tuple(rules.items()), maturity, evidence, source)


_TABLE = [
    _target(
        "ideal.exact", "definition", "one rounding of the exact sum (Kulisch accumulator)",
        "Kulisch, Computer Arithmetic and Validity, 2013; IEEE 754-2019 section 9.4",
        float=Exact(), integer=Exact(),
    ),
    _target(
        "ideal.fp32", "definition", "sequential IEEE 754 fusedMultiplyAdd in binary32",
        "IEEE 754-2019 section 5.4.1",
        float=Fma(), integer=Fma(),
    ),
    _target(
        "ideal.int", "definition", "two's-complement accumulator of acc_bits bits",
        "two's-complement arithmetic",
        integer=IntSum(acc_bits=32, overflow="wrap"),
    ),
    _target(
        "nvidia.hopper.wgmma", "silicon",
        "FP8, fp16, bf16 and tf32 recordings on H100 and H200; MMA-Sim; mmaemu (FP8 with C)",
        "Khattak and Mikaitis, arXiv 2512.07004; MMA-Sim, arXiv 2511.10909; PTX ISA, wgmma",
        fp8=Fused(group=32, align_bits=13, keep_bits=13),
        fp16=Fused(group=16, align_bits=25),
        bf16=Fused(group=16, align_bits=25),
        tf32=Fused(group=8, align_bits=25),
    ),
]  # fmt: skip

TARGETS: dict[str, Target] = {t.name: t for t in _TABLE}


def get_target(name: str | Target, **changes: Any) -> Target:
    """Return the target called `name`, with fields of its rules replaced by `changes`.

    Raises
    ------
    NumsimError
        For an unknown name (with near names) or a field the unit does not have.

    Examples
    --------
    >>> get_target("ideal.int", acc_bits=24, overflow="saturate").rule("integer")
    IntSum(acc_bits=24, overflow='saturate')
    """
    if isinstance(name, Target):
        target = name
    elif isinstance(name, str):
        if name not in TARGETS:
            raise NumsimError(
                f"unknown target {name!r}{near_names(name, TARGETS)} "
                f"Targets are {', '.join(TARGETS)}"
            )
        target = TARGETS[name]
    else:
        raise NumsimError(f"a target is a name or a Target; got {type(name).__name__}")
    return target.changed(**changes) if changes else target


def list_targets() -> tuple[str, ...]:
    """Return the names of all targets.

    Examples
    --------
    >>> "nvidia.hopper.wgmma" in list_targets()
    True
    """
    return tuple(TARGETS)
