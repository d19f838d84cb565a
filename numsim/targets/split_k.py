"""How K is cut into chains: promotion, split-K, the steps of a unit, and slices of operands."""

from __future__ import annotations

from math import gcd
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numsim.errors import UnsupportedError
from numsim.formats import Format
from numsim.quant import QTensor
from numsim.quant.kept import Key, kept, known
from numsim.targets.chain import round_to
from numsim.targets.levels import Level
from numsim.targets.rules import IntSum, Rule, about, adds_integers
from numsim.targets.rules.int_sum import Overflowed
from numsim.targets.types import Target

_FINITE = Key("finite")


class Engine(Protocol):
    """What runs one chain and adds the parts: the module `runs`, a counter or a tracer."""

    def run(
        self, rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, name: str
    ) -> NDArray[Any]:
        """Run one chain: a [..., M, K] by b [..., K, N] from c, result [count, M, N]."""

    def add_parts(
        self, parts: list[NDArray[Any]], rule: Rule, level: Level | None = None
    ) -> NDArray[Any]:
        """Add the results of promoted or split chains in order, in float32 or as a level does."""

    def add_terms(
        self, acc: NDArray[Any], terms: NDArray[np.int64], rule: IntSum, bits: int, depth: int
    ) -> NDArray[Any]:
        """Add the terms of zero points to sums of codes."""


def chained(
    rule: Rule, a: QTensor, b: QTensor, c: NDArray[Any] | None, out: Format, target: Target,
    engine: Engine,
) -> NDArray[Any]:  # fmt: skip
    """Run the unit over K with promotion and split-K; result [count, M, N]."""
    if not restarts(target):
        return engine.run(rule, a, b, c, out, target.name)
    positions = chain_positions(a.shape[-1], target)
    parts = [[_part(rule, a, b, ks, out, target, engine) for ks in chains] for chains in positions]
    return added_up(parts, positions, rule, c, out, target, engine)


def added_up(
    parts: list[list[NDArray[Any]]], positions: list[list[NDArray[np.int64]]], rule: Rule,
    c: NDArray[Any] | None, out: Format, target: Target, engine: Engine,
) -> NDArray[Any]:  # fmt: skip
    """Add the results of chains at `positions` of K (`chain_positions`), and c."""
    if target.levels:
        total = _through_levels(parts[0], positions[0], rule, target, engine)
        if c is not None:
            ends = [int(positions[0][-1][-1]), 0]
            total = _added([total, c], ends, rule, engine, target.levels[-1])
        if adds_integers(rule) or out.name == "float32":
            return total
        return round_to(total, out, rule)
    sums = [
        _added(some, [int(ks[-1]) for ks in chains], rule, engine)
        for some, chains in zip(parts, positions, strict=True)
    ]
    ends = [int(chains[-1][-1]) for chains in positions]
    if target.split_order == "pairwise":
        sums, ends = _paired(sums, ends, rule, engine)
    if c is not None:
        sums, ends = [c, *sums], [0, *ends]
    total = _added(sums, ends, rule, engine)
    if adds_integers(rule) or out.name == "float32":
        return total
    return round_to(total, out, rule)


def restarts(target: Target) -> bool:
    """Whether a second accumulator adds the parts of K, and C."""
    return target.promote_every is not None or target.split_k > 1 or bool(target.levels)


def _through_levels(
    parts: list[NDArray[Any]], positions: list[NDArray[np.int64]], rule: Rule, target: Target,
    engine: Engine,
) -> NDArray[Any]:  # fmt: skip
    """Add chains, which are cut where every level restarts, level by level."""
    ends = [int(ks[-1]) for ks in positions]
    for level, above in zip(target.levels, (*target.levels[1:], None), strict=True):
        place = [0 if above is None else k // above.every for k in ends]
        heads = [i for i, k in enumerate(place) if i == 0 or k != place[i - 1]]
        runs = [slice(i, j) for i, j in zip(heads, [*heads[1:], len(parts)], strict=True)]
        parts = [_added(parts[run], ends[run], rule, engine, level) for run in runs]
        ends = [ends[run][-1] for run in runs]
    return parts[0]


def _part(
    rule: Rule, a: QTensor, b: QTensor, ks: NDArray[np.int64], out: Format, target: Target,
    engine: Engine,
) -> NDArray[Any]:  # fmt: skip
    try:
        run = about(rule).run_of_k
        left, right = k_pick(a, -1, ks, run), k_pick(b, -2, ks, run)
        return engine.run(rule, left, right, None, out, target.name)
    except Overflowed as found:
        found.k = int(ks[found.k])
        raise


def _paired(
    sums: list[NDArray[Any]], ends: list[int], rule: Rule, engine: Engine
) -> tuple[list[NDArray[Any]], list[int]]:
    """Return what ``pairwise`` adds in order: the last part, then the others two by two.

    With S parts and h = ceil(S / 2), part i meets part i + h where that is not the last part:
    ``((p4 + (p0 + p3)) + p1) + p2`` for five.
    """
    *rest, last = sums
    half = (len(sums) + 1) // 2
    pairs = [[i, i + half] if i + half < len(rest) else [i] for i in range(min(half, len(rest)))]
    slots = [
        _added([rest[i] for i in pair], [ends[i] for i in pair], rule, engine)
        if len(pair) > 1
        else rest[pair[0]]
        for pair in pairs
    ]
    return [last, *slots], [ends[-1], *(ends[pair[-1]] for pair in pairs)]


def _added(
    parts: list[NDArray[Any]], ends: list[int], rule: Rule, engine: Engine,
    level: Level | None = None,
) -> NDArray[Any]:  # fmt: skip
    """Add parts whose last k are `ends`."""
    try:
        return engine.add_parts(parts, rule, level)
    except Overflowed as found:
        found.k = ends[found.part]
        raise


def chain_positions(k: int, target: Target) -> list[list[NDArray[np.int64]]]:
    """Return the k of every chain of every part of a split-K product (none is empty).

    Examples
    --------
    >>> from numsim.targets import get_target
    >>> chain_positions(6, get_target("ideal.fp32", promote_every=4))
    [[array([0, 1, 2, 3]), array([4, 5])]]
    """
    if target.levels:
        cuts = sorted({k0 for level in target.levels for k0 in range(level.every, k, level.every)})
        return [np.split(np.arange(k), cuts)]
    return [_promoted(part, target.promote_every) for part in _splits(k, target)]


def step_length(rule: Rule, depth: int) -> int:
    """Return how many k of a chain the unit takes before it writes its accumulator.

    Examples
    --------
    >>> from numsim.targets.rules import Mac, ScaledFp4
    >>> step_length(Mac(), 100), step_length(ScaledFp4(), 128)
    (1, 64)
    """
    return about(rule).step(rule, depth)


def _splits(k: int, target: Target) -> list[NDArray[np.int64]]:
    every = np.arange(k)
    if target.split_k == 1:
        return [every]
    tiles = [every[t : t + target.split_tile] for t in range(0, k, target.split_tile)]
    if target.split_order == "contiguous":
        run = -(-len(tiles) // target.split_k)
        groups = [tiles[s : s + run] for s in range(0, len(tiles), run)]
    else:
        groups = [tiles[s :: target.split_k] for s in range(target.split_k)]
    return [np.concatenate(group) for group in groups if group]


def _promoted(ks: NDArray[np.int64], every: int | None) -> list[NDArray[np.int64]]:
    step = every or len(ks)
    return [ks[i : i + step] for i in range(0, len(ks), step)]


def bare(q: QTensor) -> QTensor:
    """Return the codes without scales, kept with the tensor so that they are packed once."""
    if q.scale is None and q.zero_point is None:
        return q

    def make() -> QTensor:
        codes = QTensor(q.codes, q.fmt)
        if _FINITE in q.packed:
            codes.packed[_FINITE] = q.packed[_FINITE]
        return codes

    made: QTensor = kept(q, "bare", make)
    return made


def k_slice(q: QTensor, axis: int, start: int, stop: int, run: int = 1) -> QTensor:
    """Return one run of k with its scale codes, kept with the tensor so that it is packed once."""
    if (start, stop) == (0, q.shape[axis]):
        return q

    def cut() -> QTensor:
        made = cut_out(q, axis, np.arange(start, stop), slice(start, stop), run)
        made.packed[Key("whole")] = known(q, "whole") or q.codes.size
        return made

    part: QTensor = kept(q, "slice", cut, start, stop, axis)  # one tensor may be a and b
    return part


def k_pick(q: QTensor, axis: int, ks: NDArray[np.int64], run: int = 1) -> QTensor:
    """Return the part of an operand at positions `ks` of K, in that order; see `cut_out`."""
    if len(ks) == ks[-1] - ks[0] + 1:
        return k_slice(q, axis, int(ks[0]), int(ks[-1]) + 1, run)
    return cut_out(q, axis, ks, ks, run)


def cut_out(
    q: QTensor, axis: int, ks: NDArray[np.int64], where: slice | NDArray[np.int64], run: int = 1
) -> QTensor:
    """Return the codes at `ks` of K (`where`: the same as an index) with their scale codes.

    `run`: of how many k the unit takes one scale; those of each block that is left are a multiple.
    """
    cut = (..., where) if axis == -1 else (..., where, slice(None))
    if q.scale_codes is None or q.block_shape is None:
        return QTensor(q.codes[cut], q.fmt)
    # scales inside the unit: blocks as long as the old blocks and the runs of k allow
    block = q.block_shape[axis]
    edges = np.flatnonzero(np.diff(ks) != 1) + 1
    length = gcd(block, *(int(k) for k in ks[np.r_[0, edges]]), *(int(e) for e in edges))
    assert q.scale_format is not None
    if length % run:
        raise UnsupportedError(
            f"matmul: the unit scales runs of {run} of K; promote_every and split_tile are "
            f"multiples of {run}; got runs of {length}"
        )
    blocks = ks[::length] // block
    shape = list(q.block_shape)
    shape[axis] = length
    return QTensor(
        q.codes[cut], q.fmt, scale=None if q.scale is None else np.take(q.scale, blocks, axis),
        block_shape=tuple(shape), scale_codes=np.take(q.scale_codes, blocks, axis),
        scale_format=q.scale_format,
    )  # fmt: skip
