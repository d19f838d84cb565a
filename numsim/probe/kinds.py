"""What is tried of each kind of rule: one table, `WAYS`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from numsim.formats import Format, get_format
from numsim.probe.machine import Machine, changed
from numsim.probe.ways import Seen, Ways, all_groups, by_group, first_groups, itself
from numsim.targets.types import (
    BulkNorm,
    Exact,
    Fused,
    IntSum,
    Mac,
    Mme,
    Rule,
    ScaledFp4,
    TwoStage,
)

_MODES = ("rne", "rtz", "rna", "rup", "rdn", "rto")
_USUAL = (
    "float32", "float16", "bfloat16", "tfloat32", "float8_e4m3fn", "float8_e5m2", "float8_e4m3",
    "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
_NARROW = ("float16", "float8_e5m2", "float8_e4m3", "float8_e4m3fn")  # products may leave them
_WIDTHS = (25, 24, 23, 13, 35, *(n for n in range(1, 35) if n not in (13, 23, 24, 25)))
_ORDERS: tuple[dict[str, Any], ...] = (
    {"order": "sequential"}, {"order": "two_chains", "group": 2}, {"order": "tree", "group": 2},
    {"order": "odd_first"},
)  # fmt: skip
_FLUSHES: tuple[dict[str, Any], ...] = (
    {"flush": False}, {"flush": True, "tiny": "stored"}, {"flush": True, "tiny": "unbounded"},
)  # fmt: skip
_NEAR = 70  # exponents of an accumulator format whose ends products reach


# ideal sums ------------------------------------------------------------------------------------


def _exact(seen: Seen) -> Iterator[Rule]:
    if seen.held(seen.machine.width) and -127 <= seen.power <= 0:
        for group in dict.fromkeys((seen.machine.depths[0], 4)):  # more behind it make +0 of -0
            yield Exact(group=group, lscale=-seen.power)


def _exact_joining(rule: Exact, machine: Machine) -> Iterator[Rule]:
    yield rule
    if machine.out == "float32":
        for flush in (False, True):
            yield changed(rule, accumulator="late", flush=flush)


def _exact_ends(rule: Exact, _: Seen) -> Iterator[Rule]:
    for minus, osm in product((False, True), (False, True)):
        if not (osm and rule.accumulator == "late"):
            yield changed(rule, negative_zero=minus, osm=osm)


# multiply-adds, one rounding a step ------------------------------------------------------------


@lru_cache(maxsize=1)
def accumulators() -> tuple[str, ...]:
    """Return the formats in which a multiply-add may add, the usual ones first."""
    floats = [f"float_e{e}m{m}" for e in range(8, 1, -1) for m in range(23, 0, -1)]
    fixed = [f"q{i}.{f}" for i in range(1, 19) for f in range(20) if 3 <= i + f <= 22]
    seen: dict[Any, str] = {}
    for name in (*_USUAL, *floats, *fixed):
        fmt = get_format(name)
        seen.setdefault((fmt.kind, fmt.precision, fmt.bias, fmt.max, fmt.inf, fmt.nan), name)
    return tuple(seen.values())


def _is_near(fmt: Format) -> bool:
    """Whether the ends of a format are within reach of products."""
    return fmt.emax < _NEAR


def _held_at(fmt: Format, place: int, *, flush: bool = False) -> int:
    """Return how many bits below 2**place a format holds; `flush`: its subnormals are zeros."""
    least = fmt.min_normal if flush else fmt.min_subnormal
    bits = place - (int(np.frexp(float(least))[1]) - 1)
    return bits if fmt.kind == "integer" else min(fmt.precision - 1, bits)


def _mac(seen: Seen) -> Iterator[Rule]:
    out_bits = seen.machine.width
    for name in accumulators():
        fmt = get_format(name)
        wide = name in _USUAL and seen.held(out_bits) and fmt.precision - 1 > out_bits
        usual = name in _USUAL and seen.held(fmt.precision - 1)
        held = _held_at(fmt, seen.place)
        near = _is_near(fmt)
        more = seen.thorough and seen.complete and held > seen.bits and near
        # terms are flushed before they meet: two binades as far apart as the format has
        apart = near and fmt.kind == "float" and _held_at(fmt, seen.place, flush=True) == seen.bits
        if not (held == seen.bits or usual or wide or more or apart):
            continue
        overs = ("ieee", "inf", "saturate") if near else ("ieee",)
        flushes = _FLUSHES if near else _FLUSHES[:1]
        orders, fuses = (
            (_ORDERS, (True, False))
            if near and (more or not seen.complete)
            else (_ORDERS[:1], (True,))
        )
        products: tuple[dict[str, Any], ...] = tuple({"fused": fused} for fused in fuses)
        if seen.thorough:  # products that leave a narrow format are seen here already
            products += tuple({"fused": False, "product_format": p} for p in _NARROW)
        modes = ("rne", "rtz", "rdn") if more else _MODES  # nothing is rounded; rdn makes -0
        for many, how, mode, over, tiny in product(products, orders, modes, overs, flushes):
            known_ones = {"rounding": mode, "overflow": over, **many}
            rule = changed(Mac(acc_format=name), **known_ones, **how, **tiny)
            yield rule
            if rule.rounding == "rdn" or (seen.thorough and rule.order == "tree"):
                yield changed(rule, negative_zero=False)  # of what cancels, too


def _mac_products(rule: Mac, machine: Machine) -> Iterator[Rule]:
    yield rule
    if not rule.fused:
        return
    yield changed(rule, fused=False)
    full = machine.a.precision + machine.b.precision
    for name in accumulators():
        fmt = get_format(name)
        if fmt.precision <= full and fmt.kind == "float" and name != rule.acc_format:
            if fmt.precision == full and _holds_products(fmt, machine):
                continue  # rounds nothing
            yield changed(rule, fused=False, product_format=name)


def _holds_products(fmt: Format, machine: Machine) -> bool:
    """Whether the exponents of every product lie within a format's."""
    a, b = machine.a, machine.b
    least = a.emin - a.precision + b.emin - b.precision + 2
    return fmt.emin - fmt.precision + 1 <= least and a.emax + b.emax + 1 <= fmt.emax


def _mac_meetings(rule: Mac, machine: Machine) -> Iterator[Rule]:
    yield changed(rule, order="sequential", group=None)
    yield changed(rule, order="odd_first", group=None)
    for order in ("tree", "two_chains"):
        for n in all_groups(machine):
            if n % 2 == 0 or (n > 1 and order == "tree"):
                yield changed(rule, order=order, group=n)


def _mac_ends(rule: Mac, _: Seen) -> Iterator[Rule]:
    reads = [{"flush_inputs": False, **tiny} for tiny in _FLUSHES[1:]]
    ways = [*_FLUSHES, *reads]
    for tiny, minus, over in product(ways, (True, False), ("ieee", "inf", "saturate")):
        yield changed(rule, negative_zero=minus, overflow=over, **tiny)


# aligned sums ----------------------------------------------------------------------------------


def _fused(seen: Seen) -> Iterator[Rule]:
    single, wide = seen.machine.out == "float32", seen.machine.width
    keeps: Iterable[int] = (23,) if not single else (23, 13) if seen.complete else range(23, 0, -1)
    joins: tuple[str, ...] = ("joins", "late") if single else ("joins", "late", "halves")
    depth, full = seen.machine.depths[0], seen.machine.a.precision + seen.machine.b.precision
    for f, keep in product(_WIDTHS, keeps):
        groups: dict[str, tuple[int, ...]] = {}
        if seen.held(min(f, keep, wide)):
            groups = dict.fromkeys(joins, (depth,))
            groups |= {"late": (depth, 1), "joins": first_groups(seen.machine, f, min(keep, wide))}
        elif seen.held(wide) and min(f, keep) < full and f <= max(full, keep):
            groups = {"late": (1,)}  # two products do not meet: only their own bits show it
        for join, cut, mode in product(groups, ("truncate", "floor"), ("rtz", "rne")):
            for group in groups[join]:
                yield changed(
                    Fused(group, f), keep_bits=keep, accumulator=join, align=cut, rounding=mode
                )


def _fused_ends(rule: Fused, seen: Seen) -> Iterator[Rule]:
    for limit in (None, *sorted(set(seen.limits(rule.align_bits)))):
        for zeros in (False, True):
            yield changed(rule, zero_products=zeros, min_exponent=limit)


def _two_stage(seen: Seen) -> Iterator[Rule]:
    if seen.machine.out != "float32":
        return
    for f, streams in product(_WIDTHS, (1, 2)):
        if not seen.held(min(f, 23)):
            continue
        for group in dict.fromkeys((*first_groups(seen.machine, f, 23), 1)):
            yield TwoStage(group, f, sum_bits=max(f, 32), streams=streams)
    held = 32 if seen.held(23) else seen.bits  # two products that meet only beside the accumulator
    full = seen.machine.a.precision + seen.machine.b.precision
    for f, streams in product(range(1, min(held, full) + 1), (1, 2)):
        yield TwoStage(1, f, sum_bits=held, streams=streams)


def _two_stage_joining(rule: TwoStage, _: Machine) -> Iterator[Rule]:
    for bits in (32, *(n for n in range(rule.align_bits, 41) if n != 32)):
        if bits >= rule.align_bits:
            yield changed(rule, sum_bits=bits)


def _two_stage_ends(rule: TwoStage, _: Seen) -> Iterator[Rule]:
    for zeros in (False, True):
        yield changed(rule, zero_products=zeros)


def _bulk_norm(seen: Seen) -> Iterator[Rule]:
    if seen.machine.out == "float32" and seen.held(23):
        yield BulkNorm(seen.machine.depths[0])


def _bulk_norm_meetings(rule: BulkNorm, machine: Machine) -> Iterator[Rule]:
    """Yield every set of a short K, and wider ones: the bits kept grow with them."""
    yield from by_group(rule, machine)
    wide = 1 << (machine.depths[0] - 1).bit_length()
    for n in range(1, 11):
        if wide << n <= 1 << 16:
            yield changed(rule, group=wide << n)


def _bulk_norm_longer(rule: BulkNorm, machine: Machine) -> Iterator[Rule]:
    yield rule
    if rule.group >= machine.depths[0]:
        bits = (rule.group - 1).bit_length()
        first = max(machine.depths[0], (1 << bits >> 1) + 1)
        for n in range(first, min(1 << bits, machine.depths[-1] + 1)):
            yield changed(rule, group=n)


def _mme(seen: Seen) -> Iterator[Rule]:
    """Yield Gaudi's rules; one that keeps subnormals in place, unbiased, is a `Fused` too."""
    if seen.machine.out != "float32":
        return
    widths = (24, 46, *(n for n in (*_WIDTHS, *range(36, 46)) if n != 24))
    depth = seen.machine.depths[0]
    for join, small in product(("joins", "after"), ("normalised", "half", "kept", "flushed")):
        for biases in _biases(seen, every=small == "half"):
            for f in (n for n in widths if seen.held(min(n, 23))):
                after = (min(depth, 1 << (51 - f)), 1)  # as many as its sums have room for
                for group in after if join == "after" else first_groups(seen.machine, f, 23):
                    yield changed(Mme(group, f), accumulator=join, subnormals=small, **biases)


def _biases(seen: Seen, *, every: bool) -> Iterator[dict[str, int]]:
    """Yield biases that make products ``2**power`` times as large; `every`: in every split."""
    a, b = seen.machine.a, seen.machine.b
    if not seen.power or max(a.bits, b.bits) > 8:
        yield {}
        return
    total = a.bias + b.bias - seen.power
    splits = [x for x in range(63) if 0 <= total - x <= 62]
    splits.sort(key=lambda x: abs(x - (total - x)))
    for x in splits if every else splits[:1]:
        yield {"bias_a": x, "bias_b": total - x}


def _mme_ends(rule: Mme, seen: Seen) -> Iterator[Rule]:
    for limit in (None, *sorted(set(seen.limits(rule.align_bits)))):
        yield changed(rule, min_exponent=limit)


def _scaled_fp4(seen: Seen) -> Iterator[Rule]:
    for f in _WIDTHS:
        if seen.held(min(f, 23)):
            yield ScaledFp4(f)


def _scaled_fp4_ends(rule: ScaledFp4, seen: Seen) -> Iterator[Rule]:
    for limit in (rule.min_exponent, *sorted(set(seen.limits(rule.align_bits)))):
        yield changed(rule, min_exponent=limit)


# integers --------------------------------------------------------------------------------------


def _int_sum(seen: Seen) -> Iterator[Rule]:
    for bits, over in product(range(32, 7, -1), ("wrap", "saturate")):
        yield changed(IntSum(), acc_bits=bits, overflow=over)
        for pair in range(8, 34) if seen.thorough else ():  # so few that one product shows them
            yield changed(IntSum(), acc_bits=bits, overflow=over, pair_bits=pair, group=2)


def _int_products(rule: IntSum, machine: Machine) -> Iterator[Rule]:
    groups = dict.fromkeys((1, 2, 4, machine.depths[0]))
    for n in groups if rule.overflow == "saturate" else (rule.group,):
        if not (rule.pair_bits and n % 2):
            yield changed(rule, group=n)
    for bits, n in product(range(8, 34), (n for n in groups if n % 2 == 0)):
        if n == 2 or rule.overflow == "saturate":
            yield changed(rule, pair_bits=bits, group=n)


def _int_meetings(rule: IntSum, machine: Machine) -> Iterator[Rule]:
    if rule.overflow == "wrap" and not rule.pair_bits:
        yield changed(rule, group=1)  # any grouping wraps to the same bits
        return
    step = 2 if rule.pair_bits else 1
    for n in range(step, machine.depths[0] + 1, step):
        yield changed(rule, group=n)


WAYS: Mapping[type, Ways] = {
    Exact: Ways(_exact, joining=_exact_joining, ends=_exact_ends),
    Mac: Ways(
        _mac, _mac_products, meetings=_mac_meetings, ends=_mac_ends,
        outer=lambda rule: _is_near(get_format(rule.acc_format)),
    ),
    Fused: Ways(_fused, ends=_fused_ends),
    TwoStage: Ways(_two_stage, joining=_two_stage_joining, ends=_two_stage_ends),
    BulkNorm: Ways(_bulk_norm, meetings=_bulk_norm_meetings, longer=_bulk_norm_longer),
    Mme: Ways(_mme, ends=_mme_ends),
    ScaledFp4: Ways(_scaled_fp4, meetings=itself, ends=_scaled_fp4_ends),
    IntSum: Ways(_int_sum, _int_products, meetings=_int_meetings),
}  # fmt: skip
