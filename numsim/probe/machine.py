"""A machine seen from outside: what it takes, how stimuli are put to it, how our units answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from numsim.convert import cast, decode, encode
from numsim.errors import NumsimError
from numsim.formats import Format, get_format
from numsim.quant import QTensor
from numsim.targets import Target, matmul
from numsim.targets.rules import CLASSES, RULES, Rule, about, adds_integers

Answers = NDArray[Any]
Run = Callable[..., Any]  # (a, b, c) -> d; with block scales (a, b, c, scale_a, scale_b) -> d

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int32": np.dtype(np.int32),
}
WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # bytes of a result -> its bits


class Machine(NamedTuple):
    """What is known of a machine before it is asked.

    `depths`: K of a usual stimulus, and of the long ones that show how long sums are cut. `scale`,
    `block`: format and length of block scales that it takes; None and 0 where it takes none.
    """

    a: Format
    b: Format
    out: str
    has_c: bool
    depths: tuple[int, ...]
    scale: Format | None = None
    block: int = 0

    @property
    def blocks(self) -> str:
        """Its block scales as a rule names them, format/length; "" for none."""
        return "" if self.scale is None else f"{self.scale.name}/{self.block}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy type of results and of c."""
        found: np.dtype[Any] = DTYPES[self.out]
        return found

    @property
    def width(self) -> int:
        """Fraction bits of a float result."""
        return get_format(self.out).precision - 1

    @property
    def integer(self) -> bool:
        """Whether it adds integers."""
        return self.out == "int32"


class Batch(NamedTuple):
    """Dot products: codes a, b [S, K], accumulator inputs c [S]; `name` says what they are for.

    `sa`, `sb`: codes of block scales [S, K / block], where the machine takes such.
    """

    name: str
    a: NDArray[Any]
    b: NDArray[Any]
    c: NDArray[Any]
    sa: NDArray[Any] | None = None
    sb: NDArray[Any] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what it holds by name."""
        every = zip(self._fields[1:], self[1:], strict=True)
        return {name: x for name, x in every if x is not None}

    def rows(self, which: Any) -> Batch:
        """Return some of the dot products."""
        arrays: dict[str, Any] = {name: x[which] for name, x in self.arrays().items()}
        return self._replace(**arrays)


def joined(batches: Iterable[Batch]) -> Batch:
    """Return all dot products of batches of one K as one, under the name of the first."""
    parts = list(batches)
    names = parts[0].arrays()
    arrays: dict[str, Any] = {n: np.concatenate([p.arrays()[n] for p in parts]) for n in names}
    return parts[0]._replace(**arrays)


def factors_of(machine: Machine, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the numbers that the operands of a batch mean, with their scales, [S, K]."""
    found = []
    for codes, fmt, scales in ((batch.a, machine.a, batch.sa), (batch.b, machine.b, batch.sb)):
        values = decode(codes, fmt).astype(np.float64)
        if scales is not None and machine.scale is not None:
            many = np.abs(decode(scales, machine.scale).astype(np.float64))
            values = values * np.repeat(many, machine.block, axis=1)
        found.append(values)
    return found[0], found[1]


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a NumPy type is a float; bfloat16 is one too."""
    return dtype.kind not in "iu"


def bits_of(values: NDArray[Any]) -> NDArray[Any]:
    """Return results as bit patterns."""
    array = np.ascontiguousarray(values)
    return array.view(WORDS[array.itemsize])


def plain_nan(values: NDArray[Any]) -> NDArray[Any]:
    """Return bit patterns with one pattern for every NaN: a machine's may be its host's."""
    bits = bits_of(values).copy()
    if is_float(values.dtype):
        bits[np.isnan(values)] = bits_of(np.array([np.nan], values.dtype))[0]
    return bits


def tiles(batch: Batch, size: int) -> Iterator[tuple[NDArray[np.int64], tuple[Any, ...]]]:
    """Yield (which dot products, (a [size, K], b [K, size], c [size, size])), each twice.

    With block scales those of a [size, K / block] and b [K / block, size] come after c. The dot
    products stand on the diagonal. The second time they come in the opposite order, so at another
    place: a machine that answers twice alike does not look at the place.
    """
    count = len(batch.a)
    order = np.arange(count)
    order = np.concatenate([order, order[::-1]])
    for start in range(0, len(order), size):
        which = order[start : start + size]
        full = np.resize(which, size)  # the last tile is filled with some of its own
        c = np.repeat(batch.c[full][:, None], size, axis=1)
        tile: tuple[Any, ...] = (batch.a[full], np.ascontiguousarray(batch.b[full].T), c)
        if batch.sa is not None and batch.sb is not None:
            tile += (batch.sa[full], np.ascontiguousarray(batch.sb[full].T))
        yield which, tile


class Doubt(NumsimError):
    """A machine's answer cannot be used; the message names the stimulus."""


def checked(found: Any, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """Return what a machine gave as an array, if it is one of the right shape and type.

    Raises
    ------
    Doubt
        For an answer of another shape or type.
    """
    try:
        d = np.asarray(found)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor of torch that wants gradients
        raise Doubt(f"probe: {where}: the machine gives an array; got {error}") from None
    if d.shape != shape:
        raise Doubt(f"probe: {where}: the result has shape {shape}; got {d.shape}")
    if d.dtype != dtype:
        raise Doubt(
            f"probe: {where}: the result has type {dtype}; got {d.dtype}; convert it without "
            "rounding, or name the format with out="
        )
    return d


def merged(batch: Batch, pieces: Iterable[tuple[NDArray[np.int64], NDArray[Any]]]) -> Answers:
    """Return the answers to a batch whose dot products were asked twice.

    Raises
    ------
    Doubt
        Where the two answers to one stimulus differ.
    """
    d: NDArray[Any] | None = None
    seen = np.zeros(len(batch.a), bool)
    for which, found in pieces:
        if d is None:
            d = np.zeros(len(batch.a), found.dtype)
        for i, value in zip(which.tolist(), found, strict=True):
            one = np.array([value, d[i]])
            old, new = bits_of(one)[1], bits_of(one)[0]
            if seen[i] and old != new and not np.isnan(one).all():
                raise Doubt(
                    f"probe: stimulus {batch.name} {i}: the machine answers alike, asked twice at "
                    f"two places; got {int(old):#x}, then {int(new):#x}"
                )
            d[i], seen[i] = value, True
    assert d is not None
    return d


def ask(run: Run, machine: Machine, batch: Batch, size: int) -> tuple[Answers, int]:
    """Put a batch to a machine; return its answers and the number of calls.

    Raises
    ------
    Doubt
        For answers of the wrong shape or type, or that change.
    """

    def put() -> list[tuple[NDArray[np.int64], NDArray[Any]]]:
        pieces = []
        for which, (a, b, c, *scales) in tiles(batch, size):
            found = run(a, b, c if machine.has_c else None, *scales)
            d = checked(found, (size, size), machine.dtype, f"stimulus {batch.name} {which[0]}")
            pieces.append((which, np.diagonal(d)[: len(which)].copy()))
        return pieces

    pieces = put()
    try:
        return merged(batch, pieces), len(pieces)
    except Doubt as doubt:
        same = all((plain_nan(x) == plain_nan(y)).all() for (_, x), (_, y) in zip(
            pieces, put(), strict=True
        ))  # fmt: skip
        why = (
            "; at the same place it repeats itself: the sum depends on its place in the result, "
            "take other rows" if same else "; nor does it repeat itself: ask one that does"
        )  # fmt: skip
        raise Doubt(f"{doubt}{why}") from None


@lru_cache(maxsize=256)
def class_of(rule: Any, machine: Machine) -> str | None:
    """Return the operand class under which a unit has a rule for a machine's formats."""
    names = machine.a.name, machine.b.name
    half = "->float16" if machine.out == "float16" and rule.__name__ == "Fused" else ""
    fits = [k for k, known in CLASSES.items() if set(names) <= set(known)]
    fits += ["u8s8"] if names == ("uint8", "int8") else []
    fits += ["integer"] if machine.a.kind == machine.b.kind == "integer" else []
    floats = [f.value_dtype == np.float32 for f in (machine.a, machine.b)]
    fits += ["float"] if all(floats) else []
    if machine.scale is not None:
        fits = [f"mx:{kind}" for kind in fits if kind in CLASSES]
    for kind in fits:
        if RULES[rule].takes(kind + half):
            return kind + half
    return None


def changed(rule: Any, **values: Any) -> Any:
    """Return a rule of any kind with other fields."""
    return replace(rule, **values)


def unit_of(rule: Rule, machine: Machine, **chain: Any) -> Target | None:
    """Return a unit with one rule for a machine's formats, None where no rule is such."""
    own_kind: Any = type(rule)
    kind = class_of(own_kind, machine)
    if kind is None:
        return None
    own = {f.name for f in fields(rule)}
    if "outputs" in own:
        rule = changed(rule, outputs=(machine.out,))
    if "blocks" in own and machine.scale is not None:
        rule = changed(rule, blocks=(machine.blocks,))
    return Target("probed", ((kind, rule),), "model", "a probe", "its answers", **chain)


def restarts(unit: Target) -> bool:
    """Whether a second accumulator adds the parts of K, and c."""
    return unit.promote_every is not None or unit.split_k > 1


def held(c: NDArray[Any], unit: Target, rule: Any) -> NDArray[Any]:
    """Return c as the unit's accumulator holds it: a register keeps what fits in it."""
    if adds_integers(rule):
        bits = rule.outer_bits if restarts(unit) else rule.acc_bits
        if bits >= 8 * c.itemsize:
            return c
        wrapped = c.astype(np.int64) << (64 - bits) >> (64 - bits)
        return wrapped.astype(c.dtype)
    own = about(rule).formats(rule)
    if own and not restarts(unit) and own[0] != c.dtype.name:
        fmt = get_format(own[0])
        nan: Literal["zero"] | None = None if fmt.has_nan else "zero"
        return cast(c.astype(np.float32), fmt, overflow="special", nan=nan).astype(c.dtype)
    return c


def rule_in(unit: Target, machine: Machine) -> Rule:
    """Return the rule by which a unit multiplies what a machine takes.

    Raises
    ------
    UnsupportedError
        Where the unit has no such operands, scales or results.
    """
    from numsim.targets import rule_for
    from numsim.targets.plan import resolve

    if machine.scale is None:
        return rule_for(unit, machine.a, machine.b, None if machine.integer else machine.out)
    depth = machine.depths[0]
    zero, one = np.zeros((1, depth)), np.ones((1, depth // machine.block))
    one = encode(one, machine.scale)
    a = operand(encode(zero, machine.a), machine.a, one, machine)
    b = operand(encode(zero.T, machine.b), machine.b, one.T, machine, axis=-2)
    found = resolve(unit, a, b, machine.out)
    if not found.inside:
        raise NumsimError(f"probe: {unit.name} applies no scales {machine.blocks} itself")
    return found.rule


def operand(
    codes: NDArray[Any], fmt: Format, scales: NDArray[Any] | None, machine: Machine, axis: int = -1
) -> QTensor:
    """Return codes as an operand, with block scales along `axis` where the machine takes such."""
    if scales is None or machine.scale is None:
        return QTensor.from_codes(codes, fmt)
    return QTensor.from_codes(
        codes, fmt, scale_codes=scales, scale_format=machine.scale, block=machine.block, axis=axis
    )


def answers(unit: Target, machine: Machine, a: QTensor, b: QTensor, c: NDArray[Any]) -> Answers:
    """Return what a unit of ours computes for a [..., M, K], b [..., K, N], c [..., M, N]."""
    if unit.maturity in ("document", "assumed"):  # it is compared, not used: no warning
        unit = replace(unit, maturity="model")
    start = held(c, unit, rule_in(unit, machine)) if machine.has_c else None
    out = None if machine.integer else machine.out
    found: Answers = matmul(a, b, target=unit, c=start, out_format=out)
    return found


class Laid(NamedTuple):
    """Dot products as our units compute them fastest: on the diagonals of small products."""

    a: QTensor
    b: QTensor
    c: NDArray[Any]
    size: int

    def answers(self, unit: Target, machine: Machine) -> Answers:
        """Return what a unit of ours computes, [S]."""
        d = answers(unit, machine, self.a, self.b, self.c)
        diagonal: Answers = np.diagonal(d, axis1=-2, axis2=-1).reshape(-1)[: self.size]
        return diagonal


def laid_out(machine: Machine, batch: Batch) -> Laid:
    """Return the dot products of a batch as small matrix products."""
    count, depth = batch.a.shape
    least = min(count, 512 if depth > 8 else 128)
    size = next((n for n in (1, 4, 8) if n * depth >= least), 32)
    rows = np.resize(np.arange(count), -(-count // size) * size)
    x = {n: v[rows].reshape(-1, size, *v.shape[1:]) for n, v in batch.arrays().items()}
    b, sb = (None if y is None else np.ascontiguousarray(y.transpose(0, 2, 1))
             for y in (x["b"], x.get("sb")))  # fmt: skip
    assert b is not None
    left = operand(x["a"], machine.a, x.get("sa"), machine)
    right = operand(b, machine.b, sb, machine, axis=-2)
    return Laid(left, right, np.repeat(x["c"][:, :, None], size, axis=2), count)


def as_machine(unit: Target, machine: Machine) -> Run:
    """Return one of our units as a black box."""

    def run(
        a: NDArray[Any], b: NDArray[Any], c: NDArray[Any] | None, scale_a: Any = None,
        scale_b: Any = None,
    ) -> Answers:  # fmt: skip
        left = operand(a, machine.a, scale_a, machine)
        right = operand(b, machine.b, scale_b, machine, axis=-2)
        start = np.zeros((len(a), b.shape[1]), machine.dtype) if c is None else c
        return answers(unit, machine, left, right, start)

    return run
