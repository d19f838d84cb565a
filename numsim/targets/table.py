"""Every target, one block a unit, one line an operand class."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.targets.rules.limits import OUTPUTS
from numsim.targets.types import (
    BulkNorm,
    Exact,
    Fused,
    IntSum,
    Mac,
    Maturity,
    Mme,
    Rule,
    ScaledFp4,
    Target,
    TwoStage,
)

_MMASIM = "MMA-Sim, arXiv 2511.10909"
_MATLAB = "Khattak and Mikaitis, arXiv 2512.07004"
_PTX = "PTX ISA, mma and wgmma"
_SDM = "Intel 64 and IA-32 SDM, volume 2"
_ARM = "Arm Architecture Reference Manual, A1.5 and instruction pages"
_ACE = "x86 ACE v1 specification, sections 14 and 16.5, as Bochs and a Rust port cite it"
_ACE_READ = "two public re-implementations agree"
_ARM_FP8 = "times 2^-lscale and the accumulator, one rounding: pseudocode FP8DotAddFP"
_RISCV = "RISC-V ldot-bdot extensions, github.com/aswaterman/riscv-misc b38069a"
_BULK_READ = "spike 55b4658, run: 27,000 random sums; group: VLMAX of 128-bit registers"
_GAUDI = "github.com/intel/Intel_Gaudi3_Software e6cef1c, coral-sim"
_LEAST = "least exponent as three models (MMA-Sim, MATLAB-tensor-core, Hawkeye), not recorded"


def _target(
    name: str, maturity: Maturity, evidence: str, source: str, rules: dict[str, Rule], **own: Any
) -> Target:
    return Target(name, tuple(rules.items()), maturity, evidence, source, **own)


_IMMA = IntSum(acc_bits=32, overflow="wrap")


def _single(group: int, align_bits: int) -> Fused:
    """Return the rule of operands for which the unit has no float16 accumulator."""
    return Fused(group, align_bits, outputs=("float32",))


def _arm_fp8(single: int, half: int) -> dict[str, Rule]:
    """Return the rules for float32 and float16 results, of so many products a step."""
    rule = Exact(single, negative_zero=True)
    return {"fp8": rule, "fp8->float16": replace(rule, group=half, outputs=("float16",))}


_ACE_SCALED = Exact(4, accumulator="late", flush=True)
_VOLTA, _AMPERE, _HOPPER = (-131, -19), (-132, -20), (-133, -21)


def _limited(least: tuple[int, int], rules: dict[str, Fused]) -> dict[str, Rule]:
    """Return NVIDIA's rules with the least exponents of an alignment, for float32 and float16."""
    limited: dict[str, Rule] = {}
    for kind, rule in rules.items():
        half = kind.endswith("->float16")
        limited[kind] = replace(rule, min_exponent=least[half])
        if "float16" in rule.outputs and not half:
            own = replace(rule, min_exponent=least[1], outputs=("float16",))
            limited.setdefault(f"{kind}->float16", own)
    return limited


_TABLE = [
    # ideal units: definitions
    _target("ideal.exact", "definition", "one rounding of the exact sum (Kulisch accumulator)",
            "Kulisch, Computer Arithmetic and Validity, 2013; IEEE 754-2019 section 9.4",
            {"number": Exact(outputs=OUTPUTS)}),
    _target("ideal.fp32", "definition", "sequential IEEE 754 fusedMultiplyAdd in binary32",
            "IEEE 754-2019 section 5.4.1",
            {"float": Mac(outputs=OUTPUTS)}),
    _target("ideal.mac", "definition", "one rounding a step; Berkeley TestFloat for single steps",
            "IEEE 754-2019 section 5.4.1",
            {"float": Mac(outputs=OUTPUTS)}),
    _target("ideal.int", "definition", "two's-complement accumulator of acc_bits bits",
            "two's-complement arithmetic",
            {"integer": IntSum()}),
    _target("generic.systolic", "definition", "weight-stationary column of promote_every rows, "
            "partial sums added in order", "Kung and Leiserson, 1978",
            {"float": Mac(outputs=OUTPUTS), "integer": IntSum()}, promote_every=128),

    # NVIDIA
    _target("nvidia.volta.mma", "silicon", f"V100 recordings; MMA-Sim; {_LEAST}",
            f"{_MATLAB}; {_MMASIM}",
            _limited(_VOLTA, {"fp16": Fused(4, 23)})),
    _target("nvidia.turing.mma", "model", f"MMA-Sim; {_LEAST}", _MMASIM,
            _limited(_AMPERE, {"fp16": Fused(8, 24)}) | {"int8": _IMMA, "int4": _IMMA}),
    _target("nvidia.ampere.mma", "silicon", f"A100 and A2 recordings; MMA-Sim; {_LEAST}",
            f"{_MATLAB}; {_MMASIM}",
            _limited(_AMPERE, {
                "fp16": Fused(8, 24), "bf16": _single(8, 24), "tf32": _single(4, 24)})
            | {"int8": _IMMA, "int4": _IMMA}),
    _target("nvidia.ada.mma", "silicon",
            f"L40S and RTX 1000 recordings; mmaemu (RTX 4060); MMA-Sim; {_LEAST}",
            f"{_MATLAB}; {_MMASIM}",
            _limited(_AMPERE, {
                "fp16": Fused(8, 24), "bf16": _single(8, 24), "tf32": _single(4, 24),
                "fp8": Fused(16, 13, 13)})
            | {"int8": _IMMA, "int4": _IMMA}, split_tile=64),
    _target("nvidia.hopper.wgmma", "silicon",
            "FP8, fp16, bf16 and tf32 recordings on H100 and H200; MMA-Sim; mmaemu (FP8 with C); "
            + _LEAST, f"{_MATLAB}; {_MMASIM}; {_PTX}",
            _limited(_HOPPER, {
                "fp8": Fused(32, 13, 13), "fp16": Fused(16, 25), "bf16": _single(16, 25),
                "tf32": _single(8, 25)}) | {"int8": _IMMA}),
    _target("nvidia.hopper.mma", "silicon",
            "H100 and H200 recordings (FP8: float16 output; its float32 output is assumed to be "
            f"B200's); MMA-Sim; {_LEAST}", f"{_MATLAB}; {_MMASIM}; {_PTX}",
            _limited(_HOPPER, {
                "fp8": Fused(32, 25, accumulator="late"),
                "fp8->float16": Fused(32, 25, accumulator="halves", outputs=("float16",)),
                "fp16": Fused(16, 25), "bf16": _single(16, 25), "tf32": _single(8, 25)})
            | {"int8": _IMMA}),
    _target("nvidia.blackwell.tcgen05", "model",
            f"MMA-Sim; fp16, bf16, tf32 as recorded through mma.sync on B200; {_LEAST}",
            f"{_MMASIM}; {_PTX}",
            _limited(_HOPPER, {
                "fp8": Fused(32, 25), "f8f6f4": Fused(32, 25), "fp16": Fused(16, 25),
                "bf16": _single(16, 25), "tf32": _single(8, 25)})
            | {"int8": _IMMA, "mx:fp4": ScaledFp4()}
            | _limited(_HOPPER, {"mx:f8f6f4": _single(32, 25)})),
    _target("nvidia.blackwell.mma", "silicon", f"B200 recordings; {_LEAST}", _MATLAB,
            _limited(_HOPPER, {
                "fp8": Fused(32, 25, accumulator="late"),
                "fp8->float16": Fused(32, 25, accumulator="halves", outputs=("float16",)),
                "fp16": Fused(16, 25), "bf16": _single(16, 25), "tf32": _single(8, 25)})
            | {"int8": _IMMA}),
    _target("nvidia.rtx_blackwell.mma", "model", f"MMA-Sim; {_LEAST}", _MMASIM,
            _limited(_HOPPER, {
                "fp8": Fused(32, 25), "f8f6f4": Fused(32, 25), "fp16": Fused(16, 25),
                "bf16": _single(16, 25), "tf32": _single(8, 25)})
            | {"int8": _IMMA, "mx:fp4": ScaledFp4()}
            | _limited(_HOPPER, {"mx:f8f6f4": _single(32, 25)})),

    # AMD
    _target("amd.cdna1.mfma", "model", "MMA-Sim and MATLAB-tensor-core agree; not recorded",
            f"{_MMASIM}; {_MATLAB}",
            {"fp16": Mac(fused=False, order="exact", group=4, negative_zero=False),
             "bf16": Mac(fused=False, order="exact", group=2, negative_zero=False),
             "fp32": Mac(), "s8": _IMMA}),
    _target("amd.cdna2.mfma", "model", "MMA-Sim and MATLAB-tensor-core agree",
            f"{_MMASIM}; {_MATLAB}",
            {"fp16": Mac(fused=False, order="tree", group=4, flush=True,
                         negative_zero=False),
             "bf16": Mac(fused=False, order="tree", group=4, flush=True,
                         negative_zero=False),
             "fp32": Mac(), "s8": _IMMA}),
    _target("amd.cdna3.mfma", "model", "MMA-Sim; MATLAB-tensor-core has the same two stages; "
            "not recorded", f"{_MMASIM}; {_MATLAB}",
            {"fp16": TwoStage(8), "bf16": TwoStage(8), "tf32": TwoStage(4),
             "fp8_fnuz": TwoStage(16, streams=2), "fp32": Mac(), "s8": _IMMA}),

    # x86
    _target("x86.vpdpbusd", "silicon", "recorded on AMD EPYC, family 25 model 17", _SDM,
            {"u8s8": IntSum(group=4)}),
    _target("x86.vpdpbusds", "silicon", "recorded on AMD EPYC, family 25 model 17", _SDM,
            {"u8s8": IntSum(group=4, overflow="saturate")}),
    _target("x86.vpmaddubsw", "silicon", "recorded on AMD EPYC, family 25 model 17",
            f"{_SDM}; oneDNN, Nuances of int8 computations",
            {"u8s8": IntSum(group=4, pair_bits=16)}),
    _target("x86.vpdpwssd", "silicon", "recorded on AMD EPYC, family 25 model 17", _SDM,
            {"int16": IntSum(group=2)}),
    _target("x86.vpdpwssds", "silicon", "recorded on AMD EPYC, family 25 model 17", _SDM,
            {"int16": IntSum(group=2, overflow="saturate")}),
    _target("x86.vdpbf16ps", "silicon", "recorded on AMD EPYC, family 25 model 17", _SDM,
            {"bf16": Mac(order="odd_first", flush=True, tiny="unbounded")}),
    _target("x86.tdpbssd", "document", "pseudocode: no saturation", _SDM,
            {"s8": IntSum(group=4)}),
    _target("x86.tdpbf16ps", "document", "pseudocode of the SDM (the Intrinsics Guide differs)",
            _SDM, {"bf16": Mac(order="two_chains", group=32, flush=True, tiny="unbounded")}),
    _target("x86.tdpfp16ps", "document", "pseudocode of the SDM", _SDM,
            {"fp16": Mac(order="two_chains", group=32, flush=True, tiny="unbounded",
                         flush_inputs=False)}),
    _target("x86.top4mxbf8ps", "document", _ACE_READ, _ACE, {"mx:fp8": _ACE_SCALED}),
    _target("x86.top4mxbssps", "document", _ACE_READ, _ACE, {"mx:mxint8": _ACE_SCALED}),
    _target("x86.top2bf16ps", "document", f"{_ACE_READ} and differ outside the normal numbers",
            _ACE, {"bf16": Mac(order="tree", group=2, flush=True, tiny="unbounded")}),
    _target("x86.top4bssd", "document", _ACE_READ, _ACE, {"int8": IntSum(group=4)}),

    # Arm
    _target("arm.sdot", "document", "integer dot product, no saturation", _ARM,
            {"int8": IntSum(group=4)}),
    _target("arm.smmla", "document", "eight products a step, no saturation", _ARM,
            {"int8": IntSum(group=8)}),
    _target("arm.bfdot", "document", "FPCR.EBF = 0: every step rounded to odd", _ARM,
            {"bf16": Mac(fused=False, rounding="rto", order="tree", group=2, flush=True,
                         overflow="inf")}),
    _target("arm.fdot_fp8", "document", f"4 products (float16: 2) {_ARM_FP8}", _ARM,
            _arm_fp8(4, 2)),
    _target("arm.fmlal_fp8", "document", f"1 product {_ARM_FP8}", _ARM, _arm_fp8(1, 1)),
    _target("arm.fmmla_fp8", "document", f"8 products (float16: 4) {_ARM_FP8}", _ARM,
            _arm_fp8(8, 4)),
    _target("arm.fmopa_fp8", "document", f"4 products (float16: 2) {_ARM_FP8}", _ARM,
            _arm_fp8(4, 2)),

    # RISC-V
    _target("riscv.zvfwdota16bf", "document", _BULK_READ, _RISCV, {"bf16": BulkNorm(8)}),
    _target("riscv.zvfqwdota8f", "document", _BULK_READ, _RISCV, {"fp8": BulkNorm(16)}),

    # Intel
    _target("intel.gaudi3.mme", "model", "the vendor's C++ model, run: 43,200 random sums", _GAUDI,
            {"fp8_gaudi": Mme(8, 24, min_exponent=-132),
             "bf16": Mme(8, 24, subnormals="kept", min_exponent=-132)}),
    _target("intel.gaudi2.mme", "model", "the vendor's C++ model, run: 30,000 random sums (bf16: "
            "its plain path; a faster one normalises products first)", _GAUDI,
            {"e4m3": Mme(16, 24, "after", "half", biases=(3, 7, 11, 15)),
             "e5m2": Mme(16, 24, "after", "half", biases=(15,)),
             "bf16": Mme(8, 46, "after", "flushed")}),

    # Google
    _target("tpu.mxu_int8", "assumed", "32-bit accumulation; the rest is not public",
            "Jouppi et al., ISCA 2017", {"s8": _IMMA}, promote_every=None),
    _target("tpu.mxu_bf16", "assumed", "exact products, float32 down a column of 128; rounding, "
            "alignment and order of the adders are not public", "Google Cloud TPU documentation",
            {"bf16": Mac()}, promote_every=128),
]  # fmt: skip

TARGETS: dict[str, Target] = {t.name: t for t in _TABLE}

# An instruction of another shape can have the rules of an older unit: Turing's mma.m8n8k4.
_OF_GROUP = {("nvidia.turing.mma", 4): "nvidia.volta.mma"}


@known_floats
def get_target(name: str | Path | Target, /, **changes: Any) -> Target:
    """Return the target called `name`, with fields replaced by `changes`.

    Parameters
    ----------
    name
        One of `list_targets`, the path of a TOML file (``.toml``), or a `Target`.
    changes
        Fields of the unit or its rules, by name; ``rows`` is ``promote_every``. ``group=4`` of
        ``nvidia.turing.mma`` is its m8n8k4, which has Volta's rule.

    Raises
    ------
    NumsimError
        For an unknown name (with near names), a field the unit does not have, or a TOML file that
        `Target.from_toml` rejects.

    Examples
    --------
    >>> get_target("ideal.int", acc_bits=24, overflow="saturate").rule("integer")
    IntSum(acc_bits=24, overflow='saturate', ...)
    >>> get_target("nvidia.hopper.wgmma", promote_every=128).promote_every
    128
    """
    if isinstance(name, Target):
        target = checked(name)
    elif isinstance(name, Path) or (isinstance(name, str) and name.endswith(".toml")):
        target = Target.from_toml(name)
    elif isinstance(name, str):
        if name not in TARGETS:
            raise NumsimError(
                f"unknown target {name!r}{near_names(name, TARGETS)}. "
                f"Targets are {', '.join(TARGETS)}; or give the path of a .toml file"
            )
        target = TARGETS[name]
    else:
        raise NumsimError(
            f"a target is a name, a .toml file or a Target; got {type(name).__name__}"
        )
    if not changes:
        return target
    if "rows" in changes:  # the word of systolic arrays for the length of a column
        if "promote_every" in changes:
            raise NumsimError("get_target: rows and promote_every are the same; give one of them")
        changes["promote_every"] = changes.pop("rows")
    plain = {k: v.item() if isinstance(v, np.integer | np.bool_) else v for k, v in changes.items()}
    if "group" in plain:
        target = _of_group(target, plain["group"])
    return target.changed(**plain) if plain else target


def _of_group(target: Target, group: object) -> Target:
    """Return a unit of the table with the rules that it has for products of so many k."""
    other = _OF_GROUP.get((target.name, group)) if isinstance(group, int) else None
    if other is None or TARGETS.get(target.name) != target:
        return target
    return replace(target, rules=tuple((dict(target.rules) | dict(TARGETS[other].rules)).items()))


def checked(target: Target) -> Target:
    """Return a target that may have been put together by hand, its fields checked once.

    Raises
    ------
    NumsimError
        As `Target.check`.
    """
    if "_checked" not in target.__dict__:
        target.check()
        object.__setattr__(target, "_checked", True)
    return target


def changes_of(target: Target) -> dict[str, Any] | None:
    """Return the fields that make a unit of the named one; None where no such fields do.

    Examples
    --------
    >>> changes_of(get_target("ideal.int", acc_bits=24))
    {'acc_bits': 24}
    """
    base = TARGETS.get(target.name)
    if base is None or base == target:
        return None if base is None else {}
    groups = {getattr(rule, "group", None) for _, rule in target.rules}
    base = next((new for g in groups if (new := _of_group(base, g)) is not base), base)
    pairs: list[tuple[Any, Any]] = [(target, base)]
    pairs += [(new, old) for (_, new), (_, old) in zip(target.rules, base.rules, strict=False)]
    changes = {
        f.name: getattr(new, f.name)
        for new, old in pairs
        for f in fields(new)
        if f.name != "rules"
        and type(new) is type(old)
        and getattr(new, f.name) != getattr(old, f.name)
    }
    try:
        same = get_target(target.name, **changes) == target
    except NumsimError:
        same = False
    return changes if same else None


def label(target: Target) -> str:
    """Return what results call a unit: a named one with changed fields is not that unit.

    Examples
    --------
    >>> label(get_target("ideal.int")), label(get_target("ideal.int", acc_bits=24))
    ('ideal.int', 'ideal.int (acc_bits=24)')
    """
    if TARGETS.get(target.name, target) == target:
        return target.name
    changes = changes_of(target) or {}
    return f"{target.name} ({', '.join(f'{k}={v}' for k, v in changes.items()) or 'changed'})"


@known_floats
def list_targets() -> tuple[str, ...]:
    """Return the names of all targets.

    Examples
    --------
    >>> "nvidia.hopper.wgmma" in list_targets()
    True
    """
    return tuple(TARGETS)
