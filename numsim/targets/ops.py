"""matmul: the one place that turns (QTensor, QTensor, Target) into kernel calls."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.convert import encode
from numsim.errors import NumsimError, UnsupportedError
from numsim.formats import Format, get_format
from numsim.quant import QTensor
from numsim.targets import units
from numsim.targets.table import get_target
from numsim.targets.types import CLASSES, Exact, Fma, Fused, IntSum, Rule, Target

_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


def matmul(
    a: QTensor,
    b: QTensor,
    *,
    target: str | Target,
    c: ArrayLike | None = None,
    out_format: str | Format | None = None,
) -> NDArray[Any]:
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

    Returns
    -------
    D [..., M, N]: float32, or the type of `out_format`. Scales are applied after the unit,
    ``fp32(acc * fp32(scale_a * scale_b))``, an integer accumulator being rounded to float32
    first; without any scale an integer unit returns its int32 (int64 beyond 32 bits), in units of
    the operands' quanta.

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
    array([[-4.979...]], dtype=float32)
    """
    unit = get_target(target)
    for operand, name in ((a, "a"), (b, "b")):
        if not isinstance(operand, QTensor):
            raise NumsimError(
                f"matmul: {name} is a QTensor; got {type(operand).__name__}; use numsim.quantize "
                "or QTensor.from_codes"
            )
    batch, m, n = _shapes(a, b)
    rule = rule_for(unit, a.fmt, b.fmt)
    out = _output_format(unit, rule, out_format)
    start = _accumulator(c, rule, out, (*batch, m, n))
    scale = _scales(a, b)
    acc = _run(rule, a, b, start, out, batch, unit)
    if scale is None:
        return acc
    quantum = 1.0
    if isinstance(rule, IntSum):  # the accumulator counts products of the operands' quanta
        quantum = 2.0 ** -(a.fmt.bias + b.fmt.bias)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scaled = acc.astype(np.float32) * (scale * np.float32(quantum))
    return scaled if out.name == "float32" or isinstance(rule, IntSum) else scaled.astype(acc.dtype)


def rule_for(target: Target, a: Format, b: Format) -> Rule:
    """Return the rule by which `target` multiplies formats `a` and `b`.

    Raises
    ------
    UnsupportedError
        Where the unit has no such operands; the message says which it has.

    Examples
    --------
    >>> from numsim.formats import get_format
    >>> rule_for(get_target("ideal.int"), get_format("int8"), get_format("int4"))
    IntSum(acc_bits=32, overflow='wrap')
    """
    for kind, rule in target.rules:
        if _belongs(a, kind) and _belongs(b, kind):
            return rule
        if isinstance(rule, Exact | Fma) and _in_float32(a) and _in_float32(b):
            return rule
    has = "; ".join(f"{kind}: {', '.join(CLASSES.get(kind, (kind,)))}" for kind, _ in target.rules)
    raise UnsupportedError(
        f"matmul: {target.name} does not multiply {a.name} by {b.name}; it has {has}"
    )


def _belongs(fmt: Format, kind: str) -> bool:
    if kind == "integer":
        return fmt.kind == "integer"
    if kind == "float":
        return _in_float32(fmt)
    return fmt.name in CLASSES[kind]


def _in_float32(fmt: Format) -> bool:
    return fmt.value_dtype == np.float32


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


def _output_format(target: Target, rule: Rule, out_format: str | Format | None) -> Format:
    if isinstance(rule, IntSum):
        if out_format is not None and get_format(out_format).name not in ("int32", "float32"):
            raise UnsupportedError(
                f"matmul: {target.name} accumulates integers; leave out_format out"
            )
        return get_format("int32")
    name = get_format(out_format or "float32").name
    allowed = ("float32", "float16") if isinstance(rule, Fused) else tuple(_DTYPES)
    if name not in allowed:
        raise UnsupportedError(f"matmul: {target.name} returns {', '.join(allowed)}; got {name}")
    return get_format(name)


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
    want = np.dtype(_DTYPES[out.name])
    if array.dtype != want:
        raise NumsimError(
            f"matmul: c has the type of the result, {want}; got {array.dtype}; cast it first"
        )
    return array


def _scales(a: QTensor, b: QTensor) -> NDArray[np.float32] | None:
    """Return fp32(scale_a * scale_b) broadcastable to D, None without scales."""
    if a.scale is None and b.scale is None:
        return None
    parts = []
    for q, contracted in ((a, -1), (b, -2)):
        scale = np.float32(1.0) if q.scale is None else q.scale
        scale = np.asarray(scale, np.float32)
        if scale.ndim >= -contracted and scale.shape[contracted] != 1:
            raise UnsupportedError(
                f"matmul: a scale is constant along K; got scale {scale.shape} for a tensor "
                f"{q.shape}; quantize a along axis -1 and b along axis -2"
            )
        parts.append(scale)
    with np.errstate(over="ignore", under="ignore"):
        product: NDArray[np.float32] = np.asarray(parts[0] * parts[1], np.float32)
    return product


def _run(
    rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format,
    batch: tuple[int, ...], target: Target,
) -> NDArray[Any]:  # fmt: skip
    """Call the unit on [batch, M, K] by [batch or 1, K, N]; result [*batch, M, N]."""
    m, n = a.shape[-2], b.shape[-1]
    count = int(np.prod(batch, dtype=np.int64))
    left = a if a.shape[:-2] == batch else _broadcast(a, batch)
    right = b if b.ndim == 2 or b.shape[:-2] == batch else _broadcast(b, batch)
    start = None if c is None else c.reshape(count, m, n)
    if isinstance(rule, Fma):
        acc = units.fma(left, right, None if start is None else _as_float32(start))
        acc = acc if out.name == "float32" else _round_to(acc, out)
    elif isinstance(rule, Exact):
        acc = units.exact(left, right, start, out)
    elif isinstance(rule, IntSum):
        acc = units.integer(left, right, start, rule, target.name)
    else:
        acc = units.fused(left, right, start, out, rule)
    return acc.reshape(*batch, m, n)


def _broadcast(q: QTensor, batch: tuple[int, ...]) -> QTensor:
    return QTensor(np.broadcast_to(q.codes, (*batch, *q.shape[-2:])), q.fmt)


def _as_float32(c: NDArray[Any]) -> NDArray[np.float32]:
    return c.astype(np.float32)


def _round_to(values: NDArray[np.float32], out: Format) -> NDArray[Any]:
    codes = encode(values, out, overflow="special")
    return codes.view(_DTYPES[out.name])
