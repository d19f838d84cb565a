"""Integer products added in an integer accumulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError, UnsupportedError
from numsim.formats import Format
from numsim.kernels.jit import over_items
from numsim.kernels.rules import integer as kernel
from numsim.targets.chain import Chain, Work, item, noted, shape, start
from numsim.targets.rules.limits import ANY_GROUP, GROUP, INTEGERS, Adder, Kind
from numsim.targets.steps import Step, table
from numsim.targets.tensor import batched
from numsim.vocabulary import ACCUMULATIONS, Accumulation


@dataclass(frozen=True)
class IntSum:
    """Integer products added in increasing k in `acc_bits` bits, `group` products a step.

    `overflow`: ``wrap`` modulo 2**acc_bits, ``saturate`` after every step, or ``raise``.
    `pair_bits`: the sum of two neighbouring products saturates to so many bits first.
    `outer_bits`: width of the accumulator that adds the parts of a promoted or split sum.
    """

    acc_bits: int = 32
    overflow: Accumulation = "wrap"
    group: int = 1
    pair_bits: int | None = None
    outer_bits: int = 32

    outputs: ClassVar[tuple[str, ...]] = ("int32", "float32")  # the second rounds the sum
    nan: ClassVar[str] = "quiet"  # of a result with a scale that is NaN


def _contradiction(rule: IntSum, kind: str, given: Mapping[str, Any]) -> str:
    if rule.pair_bits is not None and rule.group % 2:
        return f"pair_bits adds products in pairs; group is odd ({rule.group})"
    return ""


@dataclass
class Overflowed(Exception):
    """A sum left an accumulator that must not overflow; `k` counts from the start of the chain."""

    what: str
    place: tuple[int, int, int]
    k: int
    part: int = 0  # which addend of an outer accumulator

    def error(self, name: str, batch: int) -> NumsimError:
        """Return the message for the user of the unit `name`."""
        item, row, column = self.place
        end = f" of batch {item}" if batch > 1 else ""
        return NumsimError(
            f"matmul: {name} with overflow='raise': the {self.what} overflows at row {row}, "
            f"column {column}, k = {self.k}{end}; widen it or choose wrap or saturate"
        )


def limits(bits: int) -> tuple[int, int]:
    """Return the least and largest value of a two's-complement integer.

    Examples
    --------
    >>> limits(8)
    (-128, 127)
    """
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def wrapped(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return values modulo 2**bits as signed integers: int32, or int64 beyond 32 bits.

    Examples
    --------
    >>> wrapped(np.array([128, -129]), 8)
    array([-128,  127], dtype=int32)
    """
    if bits == 32 and values.dtype == np.int32:
        return values
    unused = np.int64(64 - bits)
    cut = (values.astype(np.int64) << unused) >> unused
    return cut.astype(np.int32 if bits <= 32 else np.int64)


def check_width(x: Chain) -> None:
    """Raise UnsupportedError where 64 bits do not hold sums before they are limited."""
    rule, depth, a, b = x.rule, x.a.codes.shape[-1], x.a.fmt, x.b.fmt
    product = 1 << a.bits - a.signed + b.bits - b.signed
    together = 1 if rule.overflow == "wrap" else min(rule.group, depth)
    if rule.pair_bits is not None:
        together = max(together, 2)
    if product * together >= 1 << 63:
        raise UnsupportedError(
            f"matmul: {x.name} adds {together} products of {x.a.fmt.name} and {x.b.fmt.name} "
            "before it limits their sum, which 64 bits do not hold; use group=1, wrap, or "
            "narrower operands"
        )


def _definition(x: Chain) -> Work:
    """Codes added one by one in an accumulator of `acc_bits` bits."""
    check_width(x)
    rule = x.rule

    def work() -> NDArray[Any]:
        left, right = batched(x.a.codes), batched(x.b.codes)
        out, begin = np.empty(shape(x), np.int64), start(x, np.int64)
        low, high = limits(rule.acc_bits)
        pair = limits(rule.pair_bits)[1] if rule.pair_bits else 0
        found: list[tuple[int, NDArray[np.int64]]] = []

        def rows(i: int, lo: int, hi: int) -> None:
            place = np.full(3, -1, np.int64)
            found.append((i, place))
            kernel.matmul(
                left[i], item(right, i), begin[i], out[i], lo, hi, low, high,
                ACCUMULATIONS.index(rule.overflow), rule.group, -pair - 1, pair, place,
                *noted(x, i),
            )  # fmt: skip

        over_items(rows, len(out), out.shape[1])
        places = sorted((i, *(int(v) for v in p)) for i, p in found if p[0] >= 0)
        if places:
            at, row, column, k = places[0]
            raise Overflowed(f"{rule.acc_bits}-bit accumulator", (at, row, column), k)
        return wrapped(out, rule.acc_bits)

    return Work("scalar", work)


def _explain(rule: IntSum, step: Step) -> Iterator[str]:
    a, b = step.a.codes.ravel().tolist(), step.b.codes.ravel().tolist()
    products = [p * q for p, q in zip(a, b, strict=True)]
    rows = [[str(v) for v in row] for row in zip(step.positions, a, b, products, strict=True)]
    yield from table(["k", "a", "b", "product"], rows)
    if rule.pair_bits is not None:
        top = 1 << (rule.pair_bits - 1)
        pairs = [sum(products[i : i + 2]) for i in range(0, len(products), 2)]
        products = [min(max(pair, -top), top - 1) for pair in pairs]
        for pair, clamped in zip(pairs, products, strict=True):
            cut = f", saturates to {clamped}" if clamped != pair else ""
            yield f"pair {pair} in {rule.pair_bits} bits{cut}"
    total, before = sum(products), int(step.before.item())
    after = int(step.after.item())
    word = {"wrap": "wraps modulo", "saturate": "saturates in"}.get(rule.overflow, "")
    end = f", {word} {rule.acc_bits} bits" if after != before + total else ""
    yield f"sum {total}, with the accumulator {before + total}{end}"


def _is_float32_chain(rule: IntSum, largest: float) -> bool:
    return rule.pair_bits is None and rule.acc_bits >= 25 and largest < 1 << 24


def _adder(rule: IntSum, a: Format, b: Format) -> Adder:
    free = rule.overflow == "wrap" and rule.group == 1 and rule.pair_bits is None
    return Adder(ANY_GROUP if free else rule.group, None, rule.acc_bits)


INT_SUM = Kind(
    IntSum,
    "integer products added in an accumulator of acc_bits bits",
    {
        "acc_bits": "bits of the accumulator, two's complement",
        "overflow": "wrap modulo 2**acc_bits, saturate after every step, or raise an error",
        "group": "products in one step; longer dot products chain steps through the accumulator",
        "pair_bits": "the sum of two neighbouring products saturates to so many bits; unset: no",
        "outer_bits": "bits of the accumulator that adds the parts of promote_every and split_k",
    },
    {
        "acc_bits": (8, 64), "overflow": ("wrap", "saturate", "raise"), "group": GROUP,
        "pair_bits": (8, 62), "outer_bits": (8, 64),
    },
    takes=lambda kind: kind in INTEGERS,
    definition=_definition,
    explain=_explain,
    adder=_adder,
    contradiction=_contradiction,
    is_float32_chain=_is_float32_chain,
    integers=True,
)  # fmt: skip
