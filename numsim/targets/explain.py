"""A worked dot product: products, exponents, shifts, what was cut, the sum, the result's bits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from numsim.convert import encode
from numsim.decimals import exact_text
from numsim.errors import NumsimError, UnvalidatedWarning
from numsim.float_state import known_floats
from numsim.formats import Format, format_name, get_format
from numsim.quant import QTensor, quantize
from numsim.quant.table import recipe_name
from numsim.targets import scaling, steps
from numsim.targets.chain import DTYPES
from numsim.targets.plan import plan as how
from numsim.targets.plan import resolve
from numsim.targets.rules import about, adds_integers
from numsim.targets.rules.int_sum import limits
from numsim.targets.rules.limits import is_scaled
from numsim.targets.table import get_target, label
from numsim.targets.trace import Trace, trace
from numsim.targets.types import CLASSES, Target
from numsim.targets.words import rule_words

_SCALED = {"float4_e2m1fn": "mxfp4_e2m1", "q1.6": "mxint8"}  # formats of units with scales only
_OPEN = {"float": "float8_e4m3fn", "number": "float8_e4m3fn", "integer": "int8"}
_FLOATS = ((1.5, 2.0), (-3.0, 0.25), (0.0625, 0.01953125), (12.0, 1.25))
_INTEGERS = ((100, 100), (-7, 3), (127, 127), (1, -128))


@known_floats
def explain_mma(
    target: str | Target,
    *,
    values: Sequence[tuple[float, float]] | None = None,
    c: float | None = None,
    formats: str | Format | tuple[str | Format, str | Format] | None = None,
    out_format: str | Format | None = None,
    plan: bool = False,
) -> str:
    """Work one dot product as a unit does, in words and numbers.

    Parameters
    ----------
    target
        The unit.
    values
        Pairs (a, b) to multiply and add; rounded to the operand formats. None: an example.
    c
        Accumulator input; rounded to the output format.
    formats
        Format of both operands, or (of a, of b); or a storage rule with block scales for both
        (``nvfp4``, ``mxfp8_e4m3``). None: the first that the unit takes.
    out_format
        As for `numsim.matmul`.
    plan
        True: only what `numsim.plan` says of the operands.

    Returns
    -------
    Text whose last line is the result and its bits; they are those of `numsim.matmul`.

    Raises
    ------
    NumsimError
        For no values, values that are not pairs of numbers, or what `numsim.matmul` rejects.

    Source
    ------
    The target's `source`.

    Examples
    --------
    >>> print(explain_mma("ideal.int", values=[(100, 100), (3, -5)]))
    ideal.int: int8 x int8 -> int32, K = 2
    IntSum(acc_bits=32, overflow='wrap', group=1, outer_bits=32)
    definition: two's-complement accumulator of acc_bits bits
    step 1, k = 0: accumulator 0
      k  a    b    product
      0  100  100  10000
      sum 10000, with the accumulator 10000
      accumulator 10000, 0x00002710
    step 2, k = 1: accumulator 10000
      k  a  b   product
      1  3  -5  -15
      sum -15, with the accumulator 9985
      accumulator 9985, 0x00002701
    D = 9985, 0x00002701
    """
    unit = get_target(target)
    a, b = _operands(unit, values, formats, out_format)
    if plan:
        return str(how(unit, a, b, out_format=out_format))
    start = None if c is None else _accumulator(c, unit, a, b, out_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnvalidatedWarning)  # the maturity stands in the text
        found = trace(a, b, unit, start, out_format)
    lines = list(_lines(found, a, b))
    if values is not None and a.scale is None and b.scale is None:
        given = np.array(values, np.float64).T
        stored = np.array([np.ravel(q.values()) for q in (a, b)], np.float64)
        if not np.array_equal(stored, given, equal_nan=True):
            lines.insert(1, "values were rounded to their formats first")
    return "\n".join(lines)


def _operands(
    unit: Target, values: Sequence[tuple[float, float]] | None, formats: Any, out_format: Any
) -> tuple[QTensor, QTensor]:
    both = formats if isinstance(formats, tuple | list) else (formats, formats)
    if len(both) != 2:
        raise NumsimError(f"explain mma: formats is one format, or two: (a, b); got {formats!r}")
    left, right = both
    if left is None or right is None:
        kind, _ = unit.rules[0]
        name = kind.removeprefix("mx:").partition("->")[0]
        first = _OPEN.get(name) or CLASSES.get(name, ("uint8",))[0]
        if is_scaled(kind):
            first = _SCALED.get(first, "mxfp8_e4m3")
        left = left or first
        right = right or ("int8" if name == "u8s8" else first)
    scaled = [recipe_name(f) is not None for f in (left, right)]
    if values is None:
        whole = not any(scaled) and get_format(left).kind == "integer"
        values = _INTEGERS if whole else _FLOATS
        if whole and not get_format(left).signed:
            values = [(abs(x), y) for x, y in values]
    try:
        pairs = np.array(values, np.float64)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise NumsimError(
            f"explain mma: values are pairs (a, b), at least one; got {values!r}; as text: "
            "1.5*2, -3*0.25"
        )
    found = []
    for row, name, blocks, axis in ((0, left, scaled[0], -1), (1, right, scaled[1], 0)):
        x = pairs[None, :, 0] if row == 0 else pairs[:, 1, None]
        if blocks:
            found.append(quantize(x.astype(np.float32), name, axis=axis))
        else:
            fmt = get_format(name)
            if np.isinf(x).any() and not fmt.has_inf:
                raise NumsimError(f"explain mma: {fmt.name} has no Inf; got {x.ravel().tolist()}")
            found.append(QTensor.from_codes(encode(x, fmt, overflow="saturate_finite"), name))
    return found[0], found[1]


def _accumulator(c: float, unit: Target, a: QTensor, b: QTensor, out_format: Any) -> ArrayLike:
    wanted = None if out_format is None else format_name(out_format, "explain mma: out_format")
    plan = resolve(unit, a, b, wanted)
    if isinstance(c, bool) or not isinstance(c, int | float | np.integer | np.floating):
        raise NumsimError(f"explain mma: c is a number; got {c!r}")
    if isinstance(c, int) and c.bit_length() > 1023:
        raise NumsimError(
            "explain mma: c is within float64, of an integer unit within 64 bits; got a whole "
            f"number of {c.bit_length()} bits"
        )
    if adds_integers(plan.rule):
        low, high = limits(64)
        if not (math.isfinite(c) and c == int(c) and low <= int(c) <= high):
            raise NumsimError(
                f"explain mma: c of an integer unit is a whole number of at most 64 bits; got {c!r}"
            )
        return np.array([[int(c)]])
    out = plan.out
    with np.errstate(over="ignore"):
        start = np.array([[c]], np.float64).astype(DTYPES[out.name])
    if math.isfinite(c) and not np.isfinite(start.astype(np.float64)).all():
        raise NumsimError(f"explain mma: c is beyond {out.name}; got {c!r}; write inf for Inf")
    return start


def _lines(found: Trace, a: QTensor, b: QTensor) -> Iterator[str]:
    unit = found.target
    yield f"{label(unit)}: {a.fmt.name} x {b.fmt.name} -> {found.d.dtype}, K = {a.shape[-1]}"
    yield rule_words(found.rule)
    changed = "" if label(unit) == unit.name else " without the changes"
    yield f"{unit.maturity}{changed}: {unit.evidence}"
    number = 0
    for i, chain in enumerate(found.chains):
        if len(found.chains) > 1:
            yield f"chain {i + 1} of {len(found.chains)}, from +0"
        for step in chain:
            number += 1
            yield f"step {number}, k = {_span(step.positions)}: accumulator {_number(step.before)}"
            yield from (f"  {line}" for line in step_lines(found, step))
            yield f"  accumulator {_number(step.after)}, {_bits(step.after, found)}"
    order = "pairwise" if unit.split_order == "pairwise" and unit.split_k > 1 else "in order"
    for total in found.sums:
        yield f"parts added {order}: {_number(total)}, {hex_word(total)}"
    scaled = a.scale is not None or b.scale is not None
    outside = scaled and found.chains[0][0].a.scale_codes is None
    if outside or a.tensor_scale is not None:
        above = scaling.tensor_scale(a, b)
        of = "" if above is None else f": of the whole tensors {_number(above)}"
        yield f"scales applied in float32 after the unit{of}"
    yield f"D = {_number(found.d)}, {hex_word(found.d)}"


def step_lines(found: Trace, step: steps.Step) -> Iterator[str]:
    """Yield what a unit did in one step, of one output.

    Examples
    --------
    >>> a = QTensor.from_codes([[2]], "int8")
    >>> found = trace(a, a, "ideal.int")
    >>> list(step_lines(found, found.chains[0][0]))[-1]
    'sum 4, with the accumulator 4'
    """
    kind = about(found.rule)
    if kind.integers:
        yield from kind.explain(found.rule, step)
        return
    if step.a.scale_codes is not None:
        yield from steps.block_scales(step)
        if not np.isfinite([s for q in (step.a, step.b) for s in steps.element_scales(q)]).all():
            yield "a NaN scale makes the result NaN"
            return
    terms = [*steps.values_of(step.a), *steps.values_of(step.b), float(step.before.item())]
    if np.isfinite(terms).all():
        yield from kind.explain(found.rule, step)
    else:
        yield from steps.products(step)
        yield "NaN or Inf among the operands: the IEEE 754 value of the whole sum"


def _span(positions: Any) -> str:
    first, last = int(positions[0]), int(positions[-1])
    return str(first) if first == last else f"{first} to {last}"


def _number(array: Any) -> str:
    value = np.asarray(array).item()
    return exact_text(value if isinstance(value, int) else float(value))


def _bits(array: Any, found: Trace) -> str:
    if adds_integers(found.rule):
        return f"{int(array.item()) & ((1 << found.bits) - 1):#0{2 + -(-found.bits // 4)}x}"
    if found.accumulator in ("float32", "float16", "bfloat16"):
        return hex_word(array)
    fmt = get_format(found.accumulator)
    code = int(encode(np.asarray(array), fmt, overflow="special").item())
    return f"{code:#0{2 + -(-fmt.bits // 4)}x} of {fmt.label}"


def hex_word(array: Any) -> str:
    """Return the bits of the only element of an array.

    Examples
    --------
    >>> hex_word(np.float32([[1.0]]))
    '0x3f800000'
    """
    raw = np.ascontiguousarray(array).view(f"u{array.itemsize}").item()
    return f"{raw:#0{2 + 2 * array.itemsize}x}"
