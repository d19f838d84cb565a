"""Single dot products by the definitions of rules: what a search asks for thousands of times.

A rule takes a product as one number. So lines of products meet a column of ones in the kernels of
the definitions: one call gives the results of many lines, and no others. Proof:
``tests/targets/test_dots.py`` compares every bit with `matmul`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.formats import Format, get_format
from numsim.kernels.rules import align
from numsim.kernels.rules import bulk_norm as bulk_norm_kernel
from numsim.kernels.rules import fused as fused_kernel
from numsim.kernels.rules import integer as integer_kernel
from numsim.kernels.rules import mac as mac_kernel
from numsim.kernels.rules import mme as mme_kernel
from numsim.kernels.rules import two_stage as two_stage_kernel
from numsim.quant import QTensor
from numsim.quant.types import decoded
from numsim.targets import runs
from numsim.targets.chain import Chain, round_to, store
from numsim.targets.rules import (
    BulkNorm,
    Exact,
    Fused,
    IntSum,
    Mac,
    Mme,
    Rule,
    TwoStage,
    about,
    adds_integers,
    bulk_norm,
    fused,
    mme,
    two_stage,
)
from numsim.targets.rules.int_sum import check_width, limits, wrapped
from numsim.targets.rules.mac import arithmetics, normals
from numsim.targets.split_k import added_up, chain_positions, restarts
from numsim.targets.tensor import as_float64, planes
from numsim.targets.types import Target
from numsim.vocabulary import ACCUMULATIONS

Lines = tuple[NDArray[Any], ...]  # arrays [S, K]: what a kernel reads of each product
Call = Callable[["Dots", Any, Lines, NDArray[Any] | None, Format], NDArray[Any]]


class Dots:
    """Dot products of the lines of two operands [S, K], block scales along K included.

    The products are kept as each kind of rule reads them.
    """

    def __init__(self, a: QTensor, b: QTensor) -> None:
        self.a, self.b = a, b
        self.kept: dict[Any, Lines] = {}
        self.last: tuple[Any, NDArray[Any]] | None = None  # (rule, out) and its sums from +0

    @cached_property
    def floats(self) -> bool:
        """Whether both operands are floats, of which float32 holds every value."""
        both = self.a.fmt, self.b.fmt
        return all(f.kind == "float" and f.value_dtype == np.float32 for f in both)

    def lines(self, rule: Rule) -> Lines | None:
        """Return the products as a rule reads them; None: its kernel takes no products."""
        way = _WAYS.get(type(rule))
        if way is None or not (self.floats or adds_integers(rule)):
            return None
        key = (type(rule), *way.reads(rule))
        if key not in self.kept:
            found = way.lines(self, rule)
            if found is None:
                return None
            self.kept[key] = found
        return self.kept[key]


def results(dots: Dots, rule: Rule, c: NDArray[Any] | None, out: Format, unit: Target) -> Any:
    """Return what a unit makes of dot products by one of its rules, [S]; None: it has no kernel.

    Parameters: `c` [S] in the type of the result, as the accumulator holds it, or None: +0; `out`
    the format of the result. The rule is one that `Target.check` lets pass.

    Raises
    ------
    NumsimError
        For sums that 64 bits do not hold.
    """
    lines = dots.lines(rule)
    if lines is None:
        return None
    if adds_integers(rule):
        check_width(Chain(rule, dots.a, dots.b, None, out, unit.name))
    if not restarts(unit):
        return _chain(dots, rule, lines, c, out)
    positions = chain_positions(lines[0].shape[1], unit)
    if len(positions) == len(positions[0]) == 1:
        parts = [[_chain(dots, rule, lines, None, out)]]
    else:
        parts = _parts(dots, rule, lines, positions, out)
    start = c
    if c is not None and adds_integers(rule):
        start = c.astype(np.int64)
    return added_up(parts, positions, rule, start, out, unit, runs)


def chain(dots: Dots, rule: Rule, out: Format) -> NDArray[Any] | None:
    """Return the results of one chain of a rule from +0, [S]; None: it has no kernel."""
    lines = dots.lines(rule)
    return None if lines is None else _chain(dots, rule, lines, None, out)


def _chain(
    dots: Dots, rule: Rule, lines: Lines, c: NDArray[Any] | None, out: Format
) -> NDArray[Any]:  # fmt: skip
    """Return the results of whole lines; those from +0 again without asking the kernel."""
    call = _WAYS[type(rule)].call
    if c is not None and (c.any() or np.signbit(c).any()):
        return call(dots, rule, lines, c, out)
    if dots.last is None or dots.last[0][0] is not rule or dots.last[0][1] is not out:
        dots.last = (rule, out), call(dots, rule, lines, None, out)
    return dots.last[1]


def _parts(
    dots: Dots, rule: Rule, lines: Lines, positions: list[list[NDArray[np.int64]]], out: Format
) -> list[list[NDArray[Any]]]:
    """Return the results of chains at `positions` of K, those of one length by one call."""
    call, count = _WAYS[type(rule)].call, len(lines[0])
    flat = [ks for chains in positions for ks in chains]
    found: dict[int, NDArray[Any]] = {}
    for length in {len(ks) for ks in flat}:
        which = [i for i, ks in enumerate(flat) if len(ks) == length]
        at = np.stack([flat[i] for i in which])
        some = tuple(x[:, at].reshape(-1, length) for x in lines)
        d = call(dots, rule, some, None, out).reshape(count, len(which))
        found |= {i: np.ascontiguousarray(d[:, n]) for n, i in enumerate(which)}
    ends = np.cumsum([len(chains) for chains in positions]).tolist()
    return [[found[i] for i in range(stop - len(chains), stop)]
            for stop, chains in zip(ends, positions, strict=True)]  # fmt: skip


class _Way(NamedTuple):
    """How the kernel of a rule is fed with products."""

    reads: Callable[[Any], tuple[Any, ...]]  # what the products depend on
    lines: Callable[[Dots, Any], Lines | None]
    call: Call


def _begin(c: NDArray[Any] | None, count: int, dtype: Any) -> NDArray[Any]:
    if c is None:
        return np.zeros((count, 1), dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return c.astype(dtype)[:, None]


@lru_cache(maxsize=256)
def _ones(length: int, dtype: Any) -> NDArray[Any]:
    return np.ones((1, length), dtype)


@lru_cache(maxsize=256)
def _ones_planes(length: int, dtype: Any) -> Lines:
    """Return the planes of a line of ones, and which are negative: none."""
    zero = np.zeros((1, length), np.int32)
    return np.ones((1, length), dtype), zero, zero.astype(np.uint8), zero.astype(np.bool_)


# multiply-adds -----------------------------------------------------------------------------------


def _mac_reads(rule: Mac) -> tuple[Any, ...]:
    return (rule.flush and rule.flush_inputs,)


def _mac_lines(dots: Dots, rule: Mac) -> Lines:
    left, right = (as_float64(decoded(q)) for q in (dots.a, dots.b))
    if rule.flush and rule.flush_inputs:
        left, right = normals(left, dots.a.fmt), normals(right, dots.b.fmt)
    with np.errstate(invalid="ignore"):
        return (left * right,)


def _mac(
    dots: Dots, rule: Mac, lines: Lines, c: NDArray[Any] | None, out: Format
) -> NDArray[Any]:  # fmt: skip
    count, length = lines[0].shape
    values = np.empty((count, 1))
    p, f = arithmetics(rule)
    order = mac_kernel.ORDERS.index(rule.order)
    mac_kernel.matmul(
        lines[0], _ones(length, np.float64), _begin(c, count, np.float64), values, 0, count,
        order, rule.group or length, rule.product_format is not None or not rule.fused, p, f,
    )  # fmt: skip
    held = get_format(rule.acc_format).value_dtype == np.float32 and out.name == "float32"
    return store(values[:, 0], out, rule) if held else round_to(values[:, 0], out, rule)


# aligned sums ------------------------------------------------------------------------------------


def _nothing(_: Any) -> tuple[Any, ...]:
    return ()


def _joined_planes(left: Any, right: Any) -> Lines:
    """Return significands, exponents and classes of products."""
    wide = int(np.abs(left[0]).max(initial=0)) * int(np.abs(right[0]).max(initial=0)) >= 1 << 31
    sig = left[0].astype(np.int64) * right[0]
    zero = ((left[0] == 0) & (left[2] == 0)) | ((right[0] == 0) & (right[2] == 0))
    special = (left[2] != 0) | (right[2] != 0)
    nan = (left[2] == align.NOT_A_NUMBER) | (right[2] == align.NOT_A_NUMBER) | (special & zero)
    cls = np.where(nan, align.NOT_A_NUMBER, np.where(special, align.INFINITE, align.FINITE))
    kind = np.int64 if wide else np.int32
    return sig.astype(kind), (left[1] + right[1]).astype(np.int32), cls.astype(np.uint8)


_CODED = 20  # bits of the widest format whose codes have a table of their meaning


def _plane_lines(dots: Dots, _: Any) -> Lines | None:
    if max(dots.a.fmt.bits, dots.b.fmt.bits) > _CODED:
        return None  # float32, which no unit aligns
    left, right = ([p[0] for p in planes(q, False)] for q in (dots.a, dots.b))
    return _joined_planes(left, right)


def _any_result(block_of: Callable[..., Any]) -> Callable[..., Any]:
    """Return what gives the blocks of a rule that has one format of results."""
    return lambda rule, a, b, _: block_of(rule, a, b)


def _aligned(kernel: Callable[..., None], block_of: Callable[..., Any], *more: Any) -> Call:
    """Return what calls the kernel of an aligned sum; `more`: its last arguments."""

    def call(
        dots: Dots, rule: Any, lines: Lines, c: NDArray[Any] | None, out: Format
    ) -> NDArray[Any]:
        count, length = lines[0].shape
        ones = _ones_planes(length, lines[0].dtype)[: len(lines)]
        values = np.empty((count, 1))
        block = block_of(rule, dots.a.fmt, dots.b.fmt, out)
        kernel(*lines, *ones, _begin(c, count, np.float64), values, 0, count, block, *more)
        return store(values[:, 0], out, rule)

    return call


def _mme_reads(rule: Mme) -> tuple[Any, ...]:
    return rule.bias_a, rule.bias_b, rule.subnormals


def _mme_lines(dots: Dots, rule: Mme) -> Lines | None:
    if max(dots.a.fmt.bits, dots.b.fmt.bits) > _CODED:
        return None
    as_left = replace(rule, bias_a=rule.bias_b)  # both operands lie by lines
    pairs = ((dots.a, rule), (dots.b, as_left))
    left, right = ([p[0] for p in mme.operand(q, r, transposed=False)] for q, r in pairs)
    return (*_joined_planes(left, right), left[3] != right[3])


# integers and exact sums -------------------------------------------------------------------------


def _int_lines(dots: Dots, _: Any) -> Lines | None:
    if dots.a.scale is not None or dots.b.scale is not None:
        return None
    return (dots.a.codes.astype(np.int64) * dots.b.codes.astype(np.int64),)


def _int_sum(
    dots: Dots, rule: IntSum, lines: Lines, c: NDArray[Any] | None, out: Format
) -> NDArray[Any]:  # fmt: skip
    count, length = lines[0].shape
    low, high = limits(rule.acc_bits)
    pair = limits(rule.pair_bits)[1] if rule.pair_bits else 0
    values, place = np.empty((count, 1), np.int64), np.full(3, -1, np.int64)
    integer_kernel.matmul(
        lines[0], _ones(length, np.int64).reshape(-1, 1), _begin(c, count, np.int64), values, 0,
        count, low, high, ACCUMULATIONS.index(rule.overflow), rule.group, -pair - 1, pair, place,
    )  # fmt: skip
    return wrapped(values[:, 0], rule.acc_bits)


def _exact_lines(dots: Dots, _: Any) -> Lines | None:
    """Return products as float32, where it holds every one."""
    a, b = dots.a.fmt, dots.b.fmt
    held = (
        a.precision + b.precision <= 24
        and a.emin - a.precision + b.emin - b.precision + 2 >= -149
        and a.emax + b.emax + 2 <= 127
    )
    if not held or dots.a.block_shape is not None or dots.b.block_shape is not None:
        return None
    with np.errstate(invalid="ignore"):
        return ((decoded(dots.a) * decoded(dots.b)).view(np.uint32),)


def _exact(
    dots: Dots, rule: Exact, lines: Lines, c: NDArray[Any] | None, out: Format
) -> NDArray[Any]:  # fmt: skip
    single = get_format("float32")
    one = _ones(lines[0].shape[1], np.float32).view(np.uint32).T
    begin = None if c is None else c[None, :, None]
    chain = Chain(rule, QTensor(lines[0], single), QTensor(one, single), begin, out, "")
    d: NDArray[Any] = about(rule).definition(chain).run()[0, :, 0]
    return d


_WAYS: dict[type, _Way] = {
    Mac: _Way(_mac_reads, _mac_lines, _mac),
    Fused: _Way(_nothing, _plane_lines, _aligned(fused_kernel.matmul, fused.block_of)),
    TwoStage: _Way(
        _nothing, _plane_lines,
        _aligned(two_stage_kernel.matmul, _any_result(two_stage.block_of)),
    ),
    BulkNorm: _Way(
        _nothing, _plane_lines,
        _aligned(bulk_norm_kernel.matmul, _any_result(bulk_norm.block_of), bulk_norm.ADDITION),
    ),
    Mme: _Way(
        _mme_reads, _mme_lines,
        _aligned(mme_kernel.matmul, _any_result(mme.block_of), mme.AFTER),
    ),
    IntSum: _Way(_nothing, _int_lines, _int_sum),
    Exact: _Way(_nothing, _exact_lines, _exact),
}  # fmt: skip
