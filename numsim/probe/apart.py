"""Where two units part: the fewest products on which their results differ, as RTL vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.convert import encode
from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import FormatLike, get_format
from numsim.probe.inputs import first_round, random_sums
from numsim.probe.machine import (
    Batch,
    Machine,
    bits_of,
    factors_of,
    held,
    laid_out,
    operand,
    plain_nan,
    rule_in,
)
from numsim.probe.probe import machine_for
from numsim.quant import QTensor
from numsim.targets import Target, export_vectors, get_target

FORMATS = (
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float16", "bfloat16", "tfloat32", "float32", "float6_e3m2fn", "float4_e2m1fn",
    "int8", "uint8", "int16", "int4",
)  # fmt: skip
_MIXED = (("uint8", "int8"), ("float8_e4m3fn", "float8_e5m2"))
_SCALED = (
    *((f, "float8_e8m0fnu/32") for f in (
        "float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "float4_e2m1fn", "q1.6")),
    ("float4_e2m1fn", "float8_e8m0fnu/16"), ("float4_e2m1fn", "float8_e4m3fn/16"),
)  # fmt: skip
_DEPTHS = (64, 512)


@known_floats
@dataclass(frozen=True, eq=False)
class Apart:
    """Products on which two units differ.

    Parameters
    ----------
    units
        The two units.
    a, b, c
        Operands [1, K] and [K, 1], accumulator input [1, 1].
    d
        What each unit returns, [1, 1].
    products
        How many products are not zero: none of them can be left out.
    nan
        Whether the results differ only in the bits of a NaN.
    """

    units: tuple[Target, Target]
    a: QTensor
    b: QTensor
    c: NDArray[Any]
    d: tuple[NDArray[Any], NDArray[Any]]
    products: int
    nan: bool

    def __str__(self) -> str:
        left, right = (q.dequantize().ravel() for q in (self.a, self.b))
        terms = [
            f"{float(x)!r}*{float(y)!r}"
            for x, y in zip(left, right, strict=True)
            if x != 0 and y != 0
        ]
        some = ", ".join(terms[:8]) + (f" and {len(terms) - 8} more" if len(terms) > 8 else "")
        results = " against ".join(
            f"{d.ravel()[0]!s} ({int(bits_of(d).ravel()[0]):#x})" for d in self.d
        )
        return (
            f"{self.a.fmt.label} by {self.b.fmt.label}, K = {self.a.shape[-1]}, c = "
            f"{self.c.ravel()[0]!s}, products {some or 'all zero'}: {results}"
        )

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the products and what each unit makes of them as `export_vectors` does.

        One folder a unit, ``a`` and ``b``, below `folder`.
        """
        machine = _machine(self)
        files: list[Path] = []
        for name, unit in zip("ab", self.units, strict=True):
            rule = rule_in(unit, machine)
            files += export_vectors(
                Path(folder) / name, self.a, self.b, target=unit, c=held(self.c, unit, rule),
                out_format=_named(machine),
            )  # fmt: skip
        return tuple(files)


@known_floats
def tell_apart(
    a: str | Target,
    b: str | Target,
    *,
    formats: FormatLike | tuple[FormatLike, FormatLike] | None = None,
    out_format: FormatLike | None = None,
    blocks: str | None = None,
) -> Apart | None:
    """Return the fewest products found on which two units differ, None where none was.

    Parameters
    ----------
    a, b
        Two units.
    formats, out_format, blocks
        Of operands and result, as for `probe`. None: each that both units take, until one tells.

    Raises
    ------
    NumsimError
        For units that have no operands in common, or not these.

    Source
    ------
    The stimuli of `probe`, and random sums; then products are left out as long as the results
    differ.

    Examples
    --------
    >>> print(tell_apart("nvidia.ampere.mma", "nvidia.hopper.wgmma", formats="float16"))
    float16 by float16, K = ..., c = ...
    >>> tell_apart("x86.tdpbssd", "arm.sdot") is None  # the same rule
    True
    """
    units = get_target(a), get_target(b)
    machines = list(shared(*units)) if formats is None else []
    if formats is not None:
        machines = [machine_for(formats, out_format, True, _DEPTHS, blocks)]
    if not machines:
        raise NumsimError(
            f"tell_apart: two units that multiply the same formats; {units[0].name} and "
            f"{units[1].name} have none in common; numsim targets lists what each takes"
        )
    found: list[Apart] = []
    for machine in machines:
        one = _in(machine, units)
        if one is not None:
            found.append(one)
            if one.products <= 2 and not one.nan:
                break
    return min(found, key=lambda x: (x.nan, x.products), default=None)


def shared(first: Target, second: Target) -> Iterator[Machine]:
    """Yield operands and results that two units have in common."""
    pairs = [*((f, f) for f in FORMATS), *_MIXED]
    for pair, out in product(pairs, (None, "float16")):
        integer = all(get_format(f).kind == "integer" for f in pair)
        if integer and out:
            continue
        machine = machine_for(pair, out, True, _DEPTHS)
        if takes(first, machine) and takes(second, machine):
            yield machine
    for fmt, blocks in _SCALED:
        machine = machine_for(fmt, None, True, _DEPTHS, blocks)
        if takes(first, machine) and takes(second, machine):
            yield machine


def takes(unit: Target, machine: Machine) -> bool:
    """Whether a unit multiplies a machine's formats into its result."""
    try:
        rule_in(unit, machine)
        zeros = np.zeros((1, _DEPTHS[0]))
        blocks = None if machine.scale is None else np.ones((1, _DEPTHS[0] // machine.block))
        ones = None if blocks is None or machine.scale is None else encode(blocks, machine.scale)
        batch = Batch(
            "", encode(zeros, machine.a), encode(zeros, machine.b), np.zeros(1, machine.dtype),
            ones, ones,
        )  # fmt: skip
        found = results(unit, machine, batch)
    except NumsimError:
        return False
    return found.dtype == machine.dtype


def _named(machine: Machine) -> str | None:
    return None if machine.integer else machine.out


def _machine(found: Apart) -> Machine:
    scale, shape = found.a.scale_format, found.a.block_shape
    block = 0 if shape is None else shape[-1]
    return Machine(
        found.a.fmt, found.b.fmt, found.d[0].dtype.name, True, _DEPTHS, scale, block
    )  # fmt: skip


@lru_cache(maxsize=32)
def pool(machine: Machine) -> tuple[Batch, ...]:
    """Return the sums on which two units are compared: those of few products first."""
    batches = [*first_round(machine), random_sums(machine, machine.depths[0], 500, 77)]
    return tuple(batches)


def results(unit: Target, machine: Machine, batch: Batch) -> NDArray[Any]:
    """Return what a unit makes of a batch, [S]."""
    return laid_out(machine, batch).answers(unit, machine)


@lru_cache(maxsize=4096)  # every pair asks for the same
def _on_pool(unit: Target, machine: Machine, n: int) -> NDArray[Any]:
    return results(unit, machine, pool(machine)[n])


def _in(machine: Machine, units: tuple[Target, Target]) -> Apart | None:
    best: tuple[bool, int, Batch] | None = None
    for n, batch in enumerate(pool(machine)):
        both = [_on_pool(unit, machine, n) for unit in units]
        differ = plain_nan(both[0]) != plain_nan(both[1])
        nan = not differ.any()
        if nan:
            differ = bits_of(both[0]) != bits_of(both[1])
        rows = np.flatnonzero(differ)
        if rows.size:
            counts = _products(machine, batch.rows(rows)).sum(1)
            for row in rows[np.argsort(counts, kind="stable")][:4]:
                small = _smallest(machine, units, batch.rows(slice(row, row + 1)), nan)
                size = int(_products(machine, small).sum())
                if best is None or (nan, size) < best[:2]:
                    best = (nan, size, small)
            if best is not None and best[:2] <= (False, 1):
                break
    if best is None:
        return None
    nan, size, batch = best
    sb = None if batch.sb is None else batch.sb.T.copy()
    a = operand(batch.a, machine.a, batch.sa, machine)
    b = operand(batch.b.T.copy(), machine.b, sb, machine, axis=-2)
    d = tuple(results(unit, machine, batch).reshape(1, 1) for unit in units)
    return Apart(units, a, b, batch.c.reshape(1, 1), (d[0], d[1]), size, nan)


def _products(machine: Machine, batch: Batch) -> NDArray[np.bool_]:
    """Return which products of a batch are not zero."""
    a, b = factors_of(machine, batch)
    return np.asarray((a != 0) & (b != 0))


def _smallest(
    machine: Machine, units: tuple[Target, Target], batch: Batch, nan: bool
) -> Batch:  # fmt: skip
    """Leave out products, c and the end of K while two units still differ."""
    see = bits_of if nan else plain_nan

    def differ(batch: Batch) -> NDArray[np.bool_]:
        one, other = (see(results(unit, machine, batch)) for unit in units)
        return one != other  # type: ignore[no-any-return]

    zero = [
        QTensor.from_codes(np.zeros((1, 1), f.code_dtype), f).codes.ravel()[0]
        for f in (machine.a, machine.b)
    ]
    part = 1 << max(0, int(batch.a.shape[1] - 1).bit_length() - 1)
    while part:
        used = np.flatnonzero((batch.a[0] != zero[0]) | (batch.b[0] != zero[1]))
        runs = [used[i : i + part] for i in range(0, len(used), part)]
        removed = False
        for run in runs:
            a, b = batch.a.copy(), batch.b.copy()
            a[0, run], b[0, run] = zero
            trial = batch._replace(a=a, b=b)
            if len(run) and differ(trial)[0]:
                batch, removed = trial, True
        part = part if removed and part == 1 else part // 2
    without = batch._replace(c=np.zeros_like(batch.c))
    if differ(without)[0]:
        batch = without
    used = np.flatnonzero((batch.a[0] != zero[0]) | (batch.b[0] != zero[1]))
    step = machine.block or 1
    for size in range((int(used[-1]) + 1 if used.size else 1), batch.a.shape[1]):
        if size % step:
            continue
        trial = batch._replace(a=batch.a[:, :size], b=batch.b[:, :size])
        if batch.sa is not None and batch.sb is not None:
            n = size // step
            trial = trial._replace(sa=batch.sa[:, :n], sb=batch.sb[:, :n])
        if differ(trial)[0]:
            return trial
    return batch
