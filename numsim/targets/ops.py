"""matmul: the one place that turns (QTensor, QTensor, Target) into kernel calls."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.arguments import as_array, index_of
from numsim.convert import cast
from numsim.errors import NumsimError, UnsupportedError, UnvalidatedWarning, warn
from numsim.float_state import known_floats
from numsim.formats import FormatLike, format_name
from numsim.quant import QTensor
from numsim.targets import outside, runs, scaling, zeros
from numsim.targets.chain import DTYPES, Chain, round_to
from numsim.targets.operands import locked
from numsim.targets.plan import Plan, resolve, shapes
from numsim.targets.rules import about, adds_integers
from numsim.targets.rules.int_sum import Overflowed, limits
from numsim.targets.split_k import Engine, bare, chained, restarts
from numsim.targets.stats import Counter, MacStats
from numsim.targets.table import checked, get_target
from numsim.targets.types import Target

_WARNED: set[str] = set()


@overload
def matmul(
    a: QTensor, b: QTensor, *, target: str | Target, c: ArrayLike | None = None,
    out_format: FormatLike | None = None, stats: Literal[False] = False,
) -> NDArray[Any]: ...  # fmt: skip


@overload
def matmul(
    a: QTensor, b: QTensor, *, target: str | Target, c: ArrayLike | None = None,
    out_format: FormatLike | None = None, stats: Literal[True],
) -> tuple[NDArray[Any], MacStats]: ...  # fmt: skip


@known_floats
def matmul(
    a: QTensor,
    b: QTensor,
    *,
    target: str | Target,
    c: ArrayLike | None = None,
    out_format: FormatLike | None = None,
    stats: bool = False,
) -> NDArray[Any] | tuple[NDArray[Any], MacStats]:
    """Multiply two quantised tensors as a hardware unit does.

    Parameters
    ----------
    a
        QTensor [..., M, K].
    b
        QTensor [..., K, N]; leading dimensions broadcast as in `numpy.matmul`.
    target
        The unit, by name or as a `Target`.
    c
        Accumulator input [..., M, N] in the NumPy type of the output. None: +0. The unit adds to
        it, so scales after the unit multiply it too; integer units take integers (with
        `promote_every` or `split_k` the outer accumulator adds it, of up to `outer_bits`). There
        c comes first, then each part of `split_k`, which is itself the sum of its promoted
        chains: ``c + ((p0 + p1) + p2)`` with `promote_every` alone. With
        block scales outside the unit it is a float number that joins the float32 sum of scaled
        blocks, unscaled: first, or after a scale of the whole tensor (NVFP4).
    out_format
        Accumulator and output format where the unit has variants: ``float32`` (default),
        ``float16`` (tensor cores: fp16 and FP8 operands); the ideal units also take ``bfloat16``.
        Integer units: ``float32`` rounds the sum.
    stats
        True: also count what was lost; slower, D is the same.

    Returns
    -------
    D, or with `stats` (D, `MacStats`). D [..., M, N] is float32, or the type of `out_format`.
    Integers with zero points: the unit adds codes, the terms of zero points follow in its integer
    accumulator of 32 bits or more (`numsim.targets.zeros`), so the sum is that of
    (code - zero point) products. Scales that are constant along K are applied after the unit,
    ``fp32(acc * fp32(scale_a * scale_b))``, an integer accumulator being rounded to float32
    first (the quantum of fixed point, a power of two, rounds nothing); without any scale an integer
    unit returns its int32 (int64 beyond 32 bits), in units of the operands' quanta. Block scales
    along K go into the unit where it takes them; elsewhere each block is a chain of its own, scaled
    and added in float32 in K order, as software around a unit does it; powers of two (MX) scale
    exactly, also where their product is no float32.

    Raises
    ------
    NumsimError
        For shapes that do not match, K = 0, or a `c` of the wrong shape or type.
    UnsupportedError
        For operand or output formats that the unit does not have, and for scales along the other
        axis: those of a are constant along axis -1 or have blocks there, those of b along axis -2.

    Source
    ------
    The target's `source`; scale order as in cuBLASLt epilogues.

    Examples
    --------
    >>> from numsim.quant import quantize
    >>> a = quantize([[1.0, 2.0]], "float8_e4m3fn")
    >>> b = quantize([[3.0], [-4.0]], "float8_e4m3fn")
    >>> matmul(a, b, target="nvidia.hopper.wgmma")
    array([[-5.1428576]], dtype=float32)
    >>> matmul(a, b, target="nvidia.hopper.wgmma", stats=True)[1].exponent_gap
    1
    """
    if not stats:
        return multiply(a, b, target, c, out_format, runs)
    counter = Counter()
    return multiply(a, b, target, c, out_format, counter), counter.stats()


def multiply(
    a: QTensor, b: QTensor, target: str | Target, c: ArrayLike | None,
    out_format: FormatLike | None, engine: Engine,
) -> NDArray[Any]:  # fmt: skip
    """Do `matmul` with chains run by `engine`."""
    unit = checked(target) if isinstance(target, Target) else get_target(target)
    batch, m, n = shapes(a, b)
    wanted = None if out_format is None else format_name(out_format, "matmul: out_format")
    plan = resolve(unit, a, b, wanted)
    if zeros.has_zero_point(a, b) and not adds_integers(plan.rule):
        a, b = zeros.shifted(a), zeros.shifted(b)
        plan = resolve(unit, a, b, wanted)
    rule, count = plan.rule, math.prod(batch) if batch else 1
    begin = None if c is None else _accumulator(c, plan, (*batch, m, n)).reshape(count, m, n)
    _warn(unit)
    left, right = locked(a), locked(b)
    if batch or left.codes.ndim > 2:
        left = left if left.shape[:-2] == batch else scaling.spread(left, batch)
        right = right if right.shape[:-2] in ((), batch) else scaling.spread(right, batch)
    try:
        d = _result(plan, left, right, begin, engine)
    except Overflowed as found:
        raise found.error(unit.name, count) from None
    if wanted is not None and adds_integers(rule) and d.dtype != wanted:
        if wanted == "int32":
            raise UnsupportedError(
                f"matmul: this product is {d.dtype} (scales, or acc_bits beyond 32); leave "
                "out_format='int32' out"
            )
        d = d.astype(np.float32)
    return d.reshape((*batch, m, n)) if batch or d.ndim != 3 else d[0]


def _result(
    plan: Plan, a: QTensor, b: QTensor, c: NDArray[Any] | None, engine: Engine
) -> NDArray[Any]:
    """Return D [count, M, N]."""
    unit, rule, out, block = plan.target, plan.rule, plan.out, plan.block

    def summed(x: QTensor, y: QTensor, k0: int, start: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the sums of codes without scales, from k0 on, less their zero points."""
        acc = chained(rule, x, y, start, out, unit, engine)
        if not adds_integers(rule) or not zeros.has_zero_point(a, b):
            return acc
        found = zeros.terms(x, y, zeros.at(a, -1, k0), zeros.at(b, -2, k0))
        bits = max(rule.outer_bits if restarts(unit) else rule.acc_bits, 32)
        return engine.add_terms(acc, found.reshape(acc.shape), rule, bits, x.shape[-1])

    if block is not None:

        def at_once(total: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
            plain = engine is runs and not restarts(unit)  # others watch every chain
            return outside.add_blocks(rule, a, b, block, out, total) if plain else None

        total = scaling.blockwise(rule, a, b, block, summed, c, at_once)
        return total if out.name in ("float32", "int32") else round_to(total, out, rule)
    scale: Any = None if plan.inside else scaling.constant_scales(a, b)
    if plan.inside:
        acc = chained(rule, a, b, c, out, unit, engine)
    elif zeros.has_zero_point(a, b):
        acc = summed(bare(a), bare(b), 0, c)
    else:
        if c is None and engine is runs and not restarts(unit):
            once = _scaled_at_once(plan, a, b, scale)
            if once is not None:
                return once
        acc = chained(rule, bare(a), bare(b), c, out, unit, engine)
    above = scaling.tensor_scale(a, b)
    if above is not None:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scale = above if scale is None else scale * above
    if scale is None:
        return acc
    own = c is None and engine is runs  # nobody else holds the accumulators
    if scale.ndim > 1:
        shaped = acc.reshape(*a.shape[:-2], *acc.shape[-2:])
        return scaling.scaled(shaped, scale, rule, a, b, in_place=own).reshape(acc.shape)
    return scaling.scaled(acc, scale, rule, a, b, in_place=own)


def _scaled_at_once(plan: Plan, a: QTensor, b: QTensor, scale: Any) -> NDArray[Any] | None:
    """Return integer sums times one scale, [count, M, N]; None: no kernel does both at once."""
    above = a.tensor_scale is not None or b.tensor_scale is not None
    if scale is None or above or not adds_integers(plan.rule):
        return None
    factor = scaling.one_factor(scale, a, b)
    if factor is None:
        return None
    work = runs.chosen(Chain(plan.rule, bare(a), bare(b), None, plan.out, plan.target.name))
    return None if work.scaled is None else work.scaled(factor)


def _accumulator(c: ArrayLike, plan: Plan, shape: tuple[int, ...]) -> NDArray[Any]:
    rule, target, blocks = plan.rule, plan.target, plan.block is not None
    array = as_array(f"matmul: c has the shape of the result {shape}", c)
    if array.shape != shape:
        raise NumsimError(f"matmul: c has the shape of the result {shape}; got {array.shape}")
    if adds_integers(rule) and not blocks:
        if array.dtype.kind not in "iu":
            raise NumsimError(
                f"matmul: c of an integer unit holds integers; got {array.dtype}; cast it first"
            )
        low, high = limits(rule.outer_bits if restarts(target) else rule.acc_bits)
        if array.size and (int(array.min()) < low or int(array.max()) > high):
            raise NumsimError(
                f"matmul: c fits the accumulator, {low} to {high}; got {int(array.min())} to "
                f"{int(array.max())}"
            )
        return array.astype(np.int64)
    # scaled blocks of integers: float32
    want = np.dtype(DTYPES.get(plan.out.name, np.float32))
    if array.dtype != want:
        raise NumsimError(
            f"matmul: c has the type of the result, {want}; got {array.dtype}; cast it first"
        )
    held = (*about(rule).formats(rule), "float32")[0]
    if not blocks and not restarts(target) and held != "float32":
        wide = array.astype(np.float32)
        kept = cast(wide, held, overflow="special")
        wrong = np.flatnonzero((kept != wide) & ~(np.isnan(kept) & np.isnan(wide)))
        if wrong.size:
            index = index_of(int(wrong[0]), shape)
            raise NumsimError(
                f"matmul: c holds values of the accumulator's format {held}; {wrong.size} of "
                f"{wide.size} are not, the first is {wide[index]!s} at index {index}; cast c to "
                "it first"
            )
    return array


def _warn(target: Target) -> None:
    if target.maturity in ("document", "assumed") and target.name not in _WARNED:
        _WARNED.add(target.name)
        warn(
            f"{target.name}: no hardware recording confirms these rules ({target.evidence})",
            UnvalidatedWarning,
        )
