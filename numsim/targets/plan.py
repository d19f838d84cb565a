"""What a product will be, decided before it runs: its rule, its output, where its scales go."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from numsim.errors import NumsimError, UnsupportedError
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, format_name, get_format, table_name
from numsim.quant import QTensor
from numsim.targets import outside, scaling
from numsim.targets.chain import Chain
from numsim.targets.operands import locked
from numsim.targets.rules import CLASSES, Rule, about, adds_integers
from numsim.targets.rules.limits import KINDS, blocks_of, is_scaled, operands_of
from numsim.targets.runs import chosen
from numsim.targets.split_k import bare, chain_positions, k_pick, restarts
from numsim.targets.table import get_target
from numsim.targets.types import Target
from numsim.targets.words import rule_words

_WIDE_WORDS = {
    "float": "every format that float32 holds",
    "number": "every format that float32 holds, every integer of its range",
    "integer": "every integer and fixed-point format",
    "u8s8": "a uint8, b int8",
}
_BEYOND_FLOAT32 = 2.0**128 - 2.0**103  # the least number that rounds to infinity


@known_floats
class Plan(NamedTuple):
    """How a unit multiplies two tensors.

    Parameters
    ----------
    target
        The unit.
    operands
        Its class of operands: ``fp8``, ``integer``, ``mx:fp4`` (with scales inside) ...
    rule
        By which it multiplies and adds.
    out
        Format of the accumulator, and of the result without scales.
    inside
        Whether block scales go into the unit.
    block
        Run of k with scales of its own that software applies around the unit; None: no such.
    scales
        Where scales are applied. Empty until `plan` has looked.
    kernel
        What runs a chain here and now: it depends on the values (Inf, NaN) and the processor, the
        result does not. ``scalar`` is the rule's definition. Empty until `plan` has looked.
    """

    target: Target
    operands: str
    rule: Rule
    out: Format
    inside: bool
    block: int | None
    scales: str = ""
    kernel: str = ""

    def __str__(self) -> str:
        rows = (
            ("unit", self.target.name), ("operands", self.operands),
            ("rule", rule_words(self.rule, short=True)), ("accumulator", self.out.name),
            ("scales", self.scales), ("kernel", self.kernel),
        )  # fmt: skip
        return "\n".join(f"{name:<12} {value}" for name, value in rows if value)


@known_floats
def plan(
    target: str | Target, a: QTensor, b: QTensor, *, out_format: FormatLike | None = None
) -> Plan:
    """Return how `numsim.matmul` will multiply two tensors, without multiplying them.

    Parameters
    ----------
    target
        The unit, by name or as a `Target`.
    a
        QTensor [..., M, K].
    b
        QTensor [..., K, N].
    out_format
        As for `numsim.matmul`.

    Raises
    ------
    UnsupportedError
        For formats or scales that the unit does not take.

    Source
    ------
    The target's `source`.

    Examples
    --------
    >>> from numsim.quant import quantize
    >>> a = quantize([[1.0, 2.0]], "float8_e4m3fn")
    >>> print(plan("nvidia.hopper.wgmma", a, a.T))
    unit         nvidia.hopper.wgmma
    operands     fp8
    rule         Fused(group=32, align_bits=13, keep_bits=13, min_exponent=-133)
    accumulator  float32
    scales       after the unit, in float32
    kernel       FP8 with 13 fraction bits
    """
    shapes(a, b, "plan")
    wanted = None if out_format is None else format_name(out_format, "plan: out_format")
    found = resolve(get_target(target), a, b, wanted)
    scales = "none"
    if found.inside:
        scales = "of blocks, inside the unit"
    elif found.block is not None:
        depth = a.shape[-1]
        every = f"every {found.block} k" if found.block < depth else f"one block of all {depth} k"
        scales = f"of blocks, around the unit in float32, {every}"
    elif a.scale is not None or b.scale is not None:
        scales = "after the unit, in float32"
    return found._replace(scales=scales, kernel=_kernel(found, locked(a), locked(b)))


def _kernel(found: Plan, a: QTensor, b: QTensor) -> str:
    unit, rule, out, depth = found.target, found.rule, found.out, a.shape[-1]
    if found.inside:
        return chosen(Chain(rule, a, b, None, out, unit.name)).kernel
    left, right = bare(a), bare(b)
    together = found.block is not None and not restarts(unit)
    if together and outside.covered(rule, a, b, found.block or 0, out) is not None:
        return "all blocks at once"
    first = chain_positions(found.block or depth, unit)[0][0]
    left, right = k_pick(left, -1, first), k_pick(right, -2, first)
    return chosen(Chain(rule, left, right, None, out, unit.name)).kernel


def shapes(a: QTensor, b: QTensor, who: str = "matmul") -> tuple[tuple[int, ...], int, int]:
    """Return the leading dimensions, M and N of a product.

    Raises
    ------
    NumsimError
        For operands that are no QTensors, or whose shapes do not match.
    """
    if type(a) is type(b) is QTensor:
        left, right = a.codes.shape, b.codes.shape
        if len(left) == len(right) == 2 and left[1] == right[0] > 0:
            return (), left[0], right[1]
    for operand, name in ((a, "a"), (b, "b")):
        if not isinstance(operand, QTensor):
            raise NumsimError(
                f"{who}: {name} is a QTensor; got {type(operand).__name__}; use numsim.quantize "
                "or QTensor.from_codes"
            )
    if a.ndim < 2 or b.ndim < 2:
        raise NumsimError(
            f"{who}: a is [..., M, K] and b is [..., K, N]; got {a.shape} and {b.shape}"
        )
    (m, k), (kb, n) = a.shape[-2:], b.shape[-2:]
    if k != kb:
        raise NumsimError(f"{who}: a has K = {k}, b has K = {kb}; shapes {a.shape}, {b.shape}")
    if k == 0:
        raise NumsimError(f"{who}: K is 0; a dot product needs at least one term")
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise NumsimError(
            f"{who}: leading dimensions broadcast as in numpy.matmul; got {a.shape} and {b.shape}"
        ) from None
    return batch, m, n


def resolve(target: Target, a: QTensor, b: QTensor, out: str | None) -> Plan:
    """Return the plan for operands and the name of an output format, None: the usual one.

    Raises
    ------
    UnsupportedError
        For formats or scales that the unit does not take.
    """
    if a.block_shape is None and b.block_shape is None:
        return _without_blocks(target, a.fmt, b.fmt, out)
    if a.scale_format is not None and a.scale_format == b.scale_format:
        left, right = _operand(a), _operand(b)
        found = _with_blocks_inside(target, left, right, a.scale_format, out)
        if found is not None:
            return found
    class_for(target, a.fmt, b.fmt, out)  # refuses formats first, then blocks, the output last
    block = scaling.k_block(a, b)
    return _without_blocks(target, a.fmt, b.fmt, out)._replace(block=block)


@lru_cache(maxsize=1024)
def _without_blocks(target: Target, a: Format, b: Format, out: str | None) -> Plan:
    kind, rule = class_for(target, a, b, out)
    return Plan(target, kind, rule, _output_format(target, kind, rule, out), False, None)


class _Operand(NamedTuple):
    """What of an operand says whether its block scales, of a format, go into a unit."""

    fmt: Format
    block: tuple[int, ...]


def _operand(q: QTensor) -> _Operand:
    return _Operand(q.fmt, tuple(q.block_shape or ()))


def rule_for(target: Target, a: Format, b: Format, out: str | None = None) -> Rule:
    """Return the rule by which `target` multiplies formats `a` and `b` into format `out`.

    Raises
    ------
    UnsupportedError
        Where the unit has no such operands; the message says which it has.

    Examples
    --------
    >>> from numsim.formats import get_format
    >>> rule_for(get_target("ideal.int"), get_format("int8"), get_format("int4"))
    IntSum(acc_bits=32, overflow='wrap', ...)
    """
    return class_for(target, a, b, out)[1]


@lru_cache(maxsize=1024)
def class_for(target: Target, a: Format, b: Format, out: str | None = None) -> tuple[str, Rule]:
    """Return the operand class and rule of `rule_for`."""
    if target.kind is not None:
        formats = ", ".join(CLASSES[operands_of(KINDS[target.kind][0])])
        raise UnsupportedError(
            f"matmul: {target.name} with kind {target.kind!r} multiplies {formats} with scales "
            f"{', '.join(KINDS[target.kind][1])} of both operands along K; got {a.label} by "
            f"{b.label} with other scales or none; quantise them so, or leave kind unset"
        )
    found = None
    for kind, rule in target.rules:
        name, _, result = kind.partition("->")
        if kind.startswith("mx:") or (result and result != out):
            continue
        wide = found is not None and found[0] in ("float", "number")  # take integers too
        own = bool(result) and found is not None and "->" not in found[0]
        if _takes(name, a, b) and (found is None or own or (wide and name == "integer")):
            found = kind, rule
    if found is None:
        has = (
            "; ".join(
                f"{kind}: {', '.join(CLASSES.get(kind) or (_WIDE_WORDS[kind],))}"
                for kind, _ in target.rules
                if "->" not in kind and not kind.startswith("mx:")
            )
            or f"only {', '.join(kind for kind, _ in target.rules)} (mx: with block scales)"
        )
        raise UnsupportedError(
            f"matmul: {target.name} does not multiply {a.label} by {b.label}; it has {has}; "
            "quantise a and b to formats of one class, or choose another target"
        )
    return found[0], about(found[1]).means(found[1])


def _takes(kind: str, a: Format, b: Format) -> bool:
    if kind == "float":
        return a.value_dtype == np.float32 and b.value_dtype == np.float32
    if kind == "integer":
        return a.kind == "integer" and b.kind == "integer"
    if kind == "number":
        return _finite_width(a) and _finite_width(b)
    names = table_name(a), table_name(b)  # "" for a Format of one's own, whatever its name
    if kind == "u8s8":
        return names == ("uint8", "int8")
    return names[0] in CLASSES[kind] and names[1] in CLASSES[kind]


def _finite_width(fmt: Format) -> bool:
    """Whether two float32 numbers hold every value: integers, and what float32 holds."""
    if fmt.value_dtype == np.float32:
        return True
    return fmt.kind == "integer" and fmt.min_normal >= 2.0**-149 and fmt.max < _BEYOND_FLOAT32


@lru_cache(maxsize=1024)
def _with_blocks_inside(
    target: Target, a: _Operand, b: _Operand, scales: Format, out: str | None
) -> Plan | None:
    """Return the plan for block scales of a format inside the unit, None: they stay outside."""
    if not (a.block and b.block) or b.block[-2] != a.block[-1]:
        return None
    block = a.block[-1]
    if {*a.block[:-1], *b.block[:-2], b.block[-1]} != {1}:
        return None
    form, named = table_name(scales), KINDS.get(target.kind or "")
    for kind, rule in target.rules:
        if named is not None and not (kind == named[0] and f"{form}/{block}" in named[1]):
            continue
        taken = is_scaled(kind) and _takes(kind[3:], a.fmt, b.fmt)
        if taken and (form, block) in blocks_of(rule):
            return Plan(target, kind, rule, _output_format(target, kind, rule, out), True, None)
    return None


def _output_format(target: Target, kind: str, rule: Rule, name: str | None) -> Format:
    if adds_integers(rule):
        if name not in (None, *rule.outputs):
            raise UnsupportedError(
                f"matmul: {target.name} accumulates integers; out_format is int32 or float32 "
                f"(rounded from the sum), or left out; got {name}"
            )
        return get_format("int32")
    if name is None or name in rule.outputs:
        return get_format(name or "float32")
    raise UnsupportedError(
        f"matmul: {target.name} returns {', '.join(rule.outputs)} for operands {kind}; got {name}"
    )
