"""matmul: the one place that turns (QTensor, QTensor, Target) into kernel calls."""

from __future__ import annotations

import warnings
from math import gcd
from typing import Any, Literal, overload

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.convert import cast
from numsim.errors import NumsimError, UnsupportedError, UnvalidatedWarning
from numsim.formats import Format, get_format
from numsim.quant import QTensor
from numsim.targets import units
from numsim.targets.chains import Engine, bare, chained, k_slice
from numsim.targets.stats import Counter, MacStats
from numsim.targets.table import get_target
from numsim.targets.types import CLASSES, Fused, IntSum, Mac, Rule, ScaledFp4, Target

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
_FP4_SCALES = (("float8_e8m0fnu", 32), ("float8_e8m0fnu", 16), ("float8_e4m3fn", 16))
_WARNED: set[str] = set()


@overload
def matmul(
    a: QTensor, b: QTensor, *, target: str | Target, c: ArrayLike | None = None,
    out_format: str | Format | None = None, stats: Literal[False] = False,
) -> NDArray[Any]: ...  # fmt: skip


@overload
def matmul(
    a: QTensor, b: QTensor, *, target: str | Target, c: ArrayLike | None = None,
    out_format: str | Format | None = None, stats: Literal[True],
) -> tuple[NDArray[Any], MacStats]: ...  # fmt: skip


def matmul(
    a: QTensor,
    b: QTensor,
    *,
    target: str | Target,
    c: ArrayLike | None = None,
    out_format: str | Format | None = None,
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
        Accumulator input [..., M, N] in the NumPy type of the output (integer units: integers).
        None: +0.
    out_format
        Accumulator and output format where the unit has variants: ``float32`` (default),
        ``float16``; the ideal units also take ``bfloat16``.
    stats
        True: also count what was lost; slower, D is the same.

    Returns
    -------
    D, or with `stats` (D, `MacStats`). D [..., M, N] is float32, or the type of `out_format`.
    Scales that are constant along K are applied after the unit,
    ``fp32(acc * fp32(scale_a * scale_b))``, an integer accumulator being rounded to float32
    first; without any scale an integer unit returns its int32 (int64 beyond 32 bits), in units of
    the operands' quanta. Block scales along K go into the unit where it takes them; elsewhere
    each block is a chain of its own, scaled and added in float32 in K order.

    Raises
    ------
    NumsimError
        For shapes that do not match, K = 0, or a `c` of the wrong shape or type.
    UnsupportedError
        For operand or output formats that the unit does not have.

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
        return multiply(a, b, target, c, out_format, units)
    counter = Counter()
    return multiply(a, b, target, c, out_format, counter), counter.stats()


def multiply(
    a: QTensor, b: QTensor, target: str | Target, c: ArrayLike | None,
    out_format: str | Format | None, engine: Engine,
) -> NDArray[Any]:  # fmt: skip
    """Do `matmul` with chains run by `engine`."""
    unit = get_target(target)
    for operand, name in ((a, "a"), (b, "b")):
        if not isinstance(operand, QTensor):
            raise NumsimError(
                f"matmul: {name} is a QTensor; got {type(operand).__name__}; use numsim.quantize "
                "or QTensor.from_codes"
            )
    batch, m, n = _shapes(a, b)
    inside = _scaled_rule(unit, a, b)
    wanted = get_format(out_format).name if out_format is not None else None
    rule = inside or rule_for(unit, a.fmt, b.fmt, wanted)
    out = _output_format(unit, rule, wanted)
    start = _accumulator(c, rule, out, (*batch, m, n))
    _warn(unit)
    count = int(np.prod(batch, dtype=np.int64))
    begin = None if start is None else start.reshape(count, m, n)
    left = a if a.shape[:-2] == batch else _broadcast(a, batch)
    right = b if b.ndim == 2 or b.shape[:-2] == batch else _broadcast(b, batch)
    blocks = None if inside is not None else _k_block(a, b)
    scale: Any = None
    if blocks is not None:
        acc = _blockwise(rule, left, right, begin, out, unit, blocks, engine)
    elif inside is not None:
        acc = chained(rule, left, right, begin, out, unit, engine)
    else:
        acc = chained(rule, bare(left), bare(right), begin, out, unit, engine)
        scale = _scales(a, b)
    acc = acc.reshape(*batch, m, n)
    if a.tensor_scale is not None or b.tensor_scale is not None:
        above = np.float32(a.tensor_scale or 1.0) * np.float32(b.tensor_scale or 1.0)
        scale = above if scale is None else scale * above
    if scale is None:
        return acc
    own = start is None and engine is units  # nobody else holds the accumulators
    return _scaled(acc, scale, rule, a, b, in_place=own)


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
    found = None
    for kind, rule in target.rules:
        name, _, result = kind.partition("->")
        if kind.startswith("mx:") or (result and result != out):
            continue
        if _takes(name, a, b) and (found is None or result):
            found = rule
    if found is None:
        has = "; ".join(
            f"{kind}: {', '.join(CLASSES.get(kind, (kind,)))}"
            for kind, _ in target.rules
            if "->" not in kind and not kind.startswith("mx:")
        )
        raise UnsupportedError(
            f"matmul: {target.name} does not multiply {a.name} by {b.name}; it has {has}"
        )
    return found


def _takes(kind: str, a: Format, b: Format) -> bool:
    if kind == "float":
        return a.value_dtype == np.float32 and b.value_dtype == np.float32
    if kind == "integer":
        return a.kind == "integer" and b.kind == "integer"
    if kind == "number":
        return _finite_width(a) and _finite_width(b)
    if kind == "u8s8":
        return a.name == "uint8" and b.name == "int8"
    return a.name in CLASSES[kind] and b.name in CLASSES[kind]


def _finite_width(fmt: Format) -> bool:
    """Whether two float32 numbers hold every value: integers, and what float32 holds."""
    return fmt.kind == "integer" or fmt.value_dtype == np.float32


def _scaled_rule(target: Target, a: QTensor, b: QTensor) -> Rule | None:
    """Return the rule for block scales inside the unit, None where they stay outside."""
    if a.scale_format is None or b.scale_format is None:
        return None
    if a.block_shape is None or b.block_shape is None or a.scale_format != b.scale_format:
        return None
    block = a.block_shape[-1]
    ones_a, ones_b = (*a.block_shape[:-1],), (*b.block_shape[:-2], b.block_shape[-1])
    if b.block_shape[-2] != block or set(ones_a) | set(ones_b) != {1}:
        return None
    for kind, rule in target.rules:
        if not kind.startswith("mx:") or not _takes(kind[3:], a.fmt, b.fmt):
            continue
        scale = a.scale_format.name
        if isinstance(rule, ScaledFp4):
            allowed: tuple[tuple[str, int], ...] = (
                ("float8_e8m0fnu", 32),
                ("float8_e8m0fnu", 16),
                ("float8_e4m3fn", 16),
            )
        else:
            allowed = (("float8_e8m0fnu", 32),)
        if (scale, block) in allowed:
            return rule
    return None


def _shapes(a: QTensor, b: QTensor) -> tuple[tuple[int, ...], int, int]:
    if a.ndim < 2 or b.ndim < 2:
        raise NumsimError(
            f"matmul: a is [..., M, K] and b is [..., K, N]; got {a.shape} and {b.shape}"
        )
    (m, k), (kb, n) = a.shape[-2:], b.shape[-2:]
    if k != kb:
        raise NumsimError(f"matmul: a has K = {k}, b has K = {kb}; shapes {a.shape}, {b.shape}")
    if k == 0:
        raise NumsimError("matmul: K is 0; a dot product needs at least one term")
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise NumsimError(
            f"matmul: leading dimensions broadcast as in numpy.matmul; got {a.shape} and {b.shape}"
        ) from None
    return batch, m, n


def _output_format(target: Target, rule: Rule, name: str | None) -> Format:
    if isinstance(rule, IntSum):
        if name not in (None, "int32", "float32"):
            raise UnsupportedError(
                f"matmul: {target.name} accumulates integers; leave out_format out"
            )
        return get_format("int32")
    allowed = ("float32", "float16") if isinstance(rule, Fused) else tuple(DTYPES)
    if not isinstance(rule, Fused) and not target.name.startswith(("ideal.", "generic.")):
        allowed = ("float32",)
    if (name or "float32") not in allowed:
        raise UnsupportedError(f"matmul: {target.name} returns {', '.join(allowed)}; got {name}")
    return get_format(name or "float32")


def _accumulator(
    c: ArrayLike | None, rule: Rule, out: Format, shape: tuple[int, ...]
) -> NDArray[Any] | None:
    if c is None:
        return None
    array = np.asarray(c)
    if array.shape != shape:
        raise NumsimError(f"matmul: c has the shape of the result {shape}; got {array.shape}")
    if isinstance(rule, IntSum):
        if array.dtype.kind not in "iu":
            raise NumsimError(f"matmul: c of an integer unit holds integers; got {array.dtype}")
        low, high = -(1 << (rule.acc_bits - 1)), (1 << (rule.acc_bits - 1)) - 1
        if array.size and (int(array.min()) < low or int(array.max()) > high):
            raise NumsimError(
                f"matmul: c fits the accumulator, {low} to {high}; got {int(array.min())} to "
                f"{int(array.max())}"
            )
        return array.astype(np.int64)
    want = np.dtype(DTYPES[out.name])
    if array.dtype != want:
        raise NumsimError(
            f"matmul: c has the type of the result, {want}; got {array.dtype}; cast it first"
        )
    if isinstance(rule, Mac) and rule.acc_format != "float32":
        wide = array.astype(np.float32)
        kept = cast(wide, rule.acc_format, overflow="special")
        if not np.array_equal(kept, wide, equal_nan=True):
            raise NumsimError(
                f"matmul: c holds values of the accumulator's format {rule.acc_format}; some are "
                "not; cast c to it first"
            )
    return array


def _scales(a: QTensor, b: QTensor) -> NDArray[np.float32] | None:
    """Return fp32(scale_a * scale_b) broadcastable to D, None without scales."""
    if a.scale is None and b.scale is None:
        return None
    parts = []
    for q, contracted in ((a, -1), (b, -2)):
        scale = np.asarray(1.0 if q.scale is None else q.element_scale(), np.float32)
        if scale.ndim >= -contracted and scale.shape[contracted] != 1:
            if q.block_shape is None:
                raise UnsupportedError(
                    f"matmul: a scale is constant along K, or has blocks; got scale {scale.shape} "
                    f"for a tensor {q.shape}; quantize a along axis -1 and b along axis -2"
                )
            scale = np.take(scale, [0], contracted)
        parts.append(scale)
    with np.errstate(over="ignore", under="ignore"):
        product: NDArray[np.float32] = np.asarray(parts[0] * parts[1], np.float32)
    return product


def _along_k(q: QTensor, axis: int) -> int:
    """Return the block size along K; 0 where a scale is constant along K."""
    block = q.block_shape[axis] if q.block_shape is not None else 0
    if q.block_shape is not None and q.scale is not None and q.scale.shape[axis] == 1:
        return 0
    return block


def _k_block(a: QTensor, b: QTensor) -> int | None:
    """Return the run of k in which both scales are constant, None where they always are."""
    block = gcd(_along_k(a, -1), _along_k(b, -2))
    return block or None


def _blockwise(
    rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, target: Target,
    block: int, engine: Engine,
) -> NDArray[Any]:  # fmt: skip
    """Every block of K a chain from +0, scaled and added in float32, in K order."""
    k = a.shape[-1]
    total: NDArray[Any] | None = None if c is None else c.astype(np.float32)
    scale_a, scale_b = _or_one(a), _or_one(b)
    codes_a, codes_b = bare(a), bare(b)
    for k0 in range(0, k, block):
        stop = min(k0 + block, k)
        left, right = k_slice(codes_a, -1, k0, stop), k_slice(codes_b, -2, k0, stop)
        acc = chained(rule, left, right, None, out, target, engine)
        sa = np.take(scale_a, [k0], -1) if _along_k(a, -1) else np.take(scale_a, [0], -1)
        sb = np.take(scale_b, [k0], -2) if _along_k(b, -2) else np.take(scale_b, [0], -2)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scale = np.asarray(sa * sb, np.float32)
            scaled = _scaled(acc.reshape(*_lead(acc, a, b), *acc.shape[-2:]), scale, rule, a, b)
            scaled = scaled.reshape(acc.shape).astype(np.float32)
            total = scaled if total is None else total + scaled
    assert total is not None
    return total if out.name in ("float32", "int32") else units.round_to(total, out)


def _lead(acc: NDArray[Any], a: QTensor, b: QTensor) -> tuple[int, ...]:
    return a.shape[:-2] if a.ndim >= b.ndim else b.shape[:-2]


def _or_one(q: QTensor) -> NDArray[np.float32]:
    scale = q.element_scale()
    scale = np.ones((1, 1), np.float32) if scale is None else scale
    return scale if scale.ndim >= 2 else np.reshape(scale, (1, 1))


def _broadcast(q: QTensor, batch: tuple[int, ...]) -> QTensor:
    if q.block_shape is not None:
        raise UnsupportedError(
            "matmul: tensors with block scales do not broadcast; give both the same leading axes"
        )
    return QTensor(np.broadcast_to(q.codes, (*batch, *q.shape[-2:])), q.fmt)


def _scaled(
    acc: NDArray[Any], scale: Any, rule: Rule, a: QTensor, b: QTensor, *, in_place: bool = False
) -> NDArray[Any]:
    """Return fp32(acc * scale) in the type of a float accumulator, float32 for an integer one."""
    if isinstance(rule, IntSum):  # the accumulator counts products of the operands' quanta
        scale = scale * np.float32(2.0 ** -(a.fmt.bias + b.fmt.bias))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = acc.astype(np.float32, copy=False)
        out = single if in_place or single is not acc else None
        scaled: NDArray[Any] = np.multiply(single, scale, out=out)
    if isinstance(rule, IntSum) or acc.dtype == np.float32:
        return scaled
    name = next(name for name, dtype in DTYPES.items() if np.dtype(dtype) == acc.dtype)
    return units.round_to(scaled, get_format(name))


def _warn(target: Target) -> None:
    if target.maturity in ("document", "assumed") and target.name not in _WARNED:
        _WARNED.add(target.name)
        warnings.warn(
            f"{target.name}: no hardware recording confirms these rules ({target.evidence})",
            UnvalidatedWarning,
            stacklevel=4,
        )
