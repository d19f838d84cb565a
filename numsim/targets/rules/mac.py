"""Multiply-adds with a rounding at every step: CPU vector units, and arrays of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from numsim.decimals import exact_text
from numsim.errors import NumsimError
from numsim.formats import Format, get_format, kept_format
from numsim.kernels.jit import over_items
from numsim.kernels.rules import mac as kernel
from numsim.quant.kept import kept
from numsim.quant.types import decoded
from numsim.targets.chain import Chain, Work, item, mode, noted, round_to, shape, start
from numsim.targets.rules.exact import Exact
from numsim.targets.rules.limits import (
    GROUP,
    NAN_WORDS,
    NANS,
    OUTPUT_WORDS,
    OUTPUTS,
    Adder,
    Kind,
    has_output,
    is_scaled,
)
from numsim.targets.steps import Step, products, values_of
from numsim.targets.tensor import as_float64, batched
from numsim.vocabulary import ROUNDINGS

ORDERS = ("sequential", "tree", "odd_first", "two_chains", "exact")


@dataclass(frozen=True)
class Mac:
    """Multiply-adds with one rounding a step.

    Parameters
    ----------
    acc_format
        Format of the accumulator, and of every sum: any signed float, integer or fixed-point
        format whose steps are exact before the rounding (floats of 2 to 24 bits of precision,
        the others of at most 23 bits in all).
    product_format
        Format to which products are rounded first; None: exact products, a fused multiply-add.
    fused
        False rounds products to `product_format`, or to `acc_format` where that is None.
    rounding
        Of every step (``rne rna rtz rup rdn rto``).
    order
        ``sequential``: one chain in increasing k from the accumulator. ``tree``: neighbours
        pairwise within each `group` (None: all of K), then the accumulator. ``odd_first``: a
        chain that takes k + 1 before k. ``two_chains``: even and odd k of a group from zero,
        their sum, then the accumulator. ``exact``: the products of a `group` and the accumulator
        exactly, one rounding to the output (the rule is `Exact`).
    flush
        Subnormal inputs and results become zeros of their sign; formats that are no floats have
        none.
    flush_inputs
        False: subnormal operands are kept; `flush` is of accumulators and results.
    tiny
        Which results that flushes: ``stored``, those whose rounding is subnormal; ``unbounded``,
        those that an unbounded exponent would leave below the smallest normal number (x86).
    negative_zero
        False: the sign of a zero is lost before the sum of a tree is added to the accumulator.
    overflow
        ``ieee``: Inf (NaN where the format has no Inf) or the largest finite value, by the
        rounding; ``inf``: always Inf; ``saturate``: the largest finite value, for Inf too, as
        formats without Inf and NaN always do.
    outputs
        Formats in which the unit can return the sum.
    nan
        As in `Fused`.
    """

    acc_format: str | Format = "float32"
    product_format: str | Format | None = None
    fused: bool = True
    rounding: str = "rne"
    order: str = "sequential"
    group: int | None = None
    flush: bool = False
    tiny: Literal["stored", "unbounded"] = "stored"
    negative_zero: bool = True
    overflow: Literal["ieee", "inf", "saturate"] = "ieee"
    outputs: tuple[str, ...] = ("float32",)
    nan: Literal["ones", "quiet"] = "quiet"
    flush_inputs: bool = True

    def __post_init__(self) -> None:  # a Format of the table by its name, one's own as it is
        for key in ("acc_format", "product_format"):
            value = getattr(self, key)
            if not isinstance(value, str | None) or str(value).endswith(".toml"):
                with suppress(NumsimError):  # `check` names the unit
                    object.__setattr__(self, key, kept_format(value))

    @cached_property
    def steps(self) -> Mac:
        """The rule without the formats of its results: how each sum is rounded."""
        return replace(self, outputs=Mac.outputs)


def _contradiction(rule: Mac, kind: str, given: Mapping[str, Any]) -> str:
    if rule.product_format is not None and given.get("fused"):
        return "fused = true leaves products exact, product_format rounds them; keep one"
    if rule.group is not None and rule.order in ("sequential", "odd_first"):
        return f"group cuts K for tree, two_chains and exact; order is {rule.order}"
    usual = (rule.acc_format, rule.product_format, rule.rounding, rule.overflow)
    plain = usual == ("float32", None, "rne", "ieee") and not rule.flush
    if not (rule.flush or rule.flush_inputs):
        return "flush_inputs = false keeps operands that flush = true takes; flush is false"
    if rule.order == "exact" and (rule.group is None or not plain):
        return "order = exact has a group, float32, rne, no product_format and no flush"
    return ""


def arithmetic(rule: Mac, fmt: Format) -> kernel.Arithmetic:
    """Return how a rule rounds to a format."""
    return _arithmetic(
        fmt, rule.rounding, rule.overflow, rule.flush, rule.tiny, rule.negative_zero
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _arithmetic(
    fmt: Format, rounding: str, overflow: str, flush: bool, tiny: str, negative_zero: bool
) -> kernel.Arithmetic:
    parameters, beyond = fmt.params, kernel.INFINITE
    flush = flush and fmt.kind == "float"  # other formats have no subnormals
    if overflow == "saturate" or not (fmt.has_inf or fmt.has_nan):
        beyond = kernel.LARGEST
    elif not fmt.has_inf:
        beyond = kernel.NOT_A_NUMBER
    return kernel.Arithmetic(
        parameters.p, parameters.emin, fmt.emax, mode(rounding), flush, overflow == "inf",
        float(fmt.max), -float(fmt.min), beyond, fmt.has_negative_zero, tiny == "unbounded",
        negative_zero,
    )  # fmt: skip


def arithmetics(rule: Mac) -> tuple[kernel.Arithmetic, kernel.Arithmetic]:
    """Return how products and sums are rounded."""
    both = rule.product_format or rule.acc_format, rule.acc_format
    p, f = (arithmetic(rule, get_format(name)) for name in both)
    return p, f


def flushed(values: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Return values, those below `least` in magnitude as zeros of their sign."""
    return np.where(np.abs(values) < least, np.copysign(0.0, values), values)


def normals(values: NDArray[np.float64], f: Format) -> NDArray[np.float64]:
    """Return numbers of a format as a unit that flushes reads them: subnormal ones are zeros."""
    some = f.kind != "float" or f.max_code >> (f.precision - 1) > 0
    return flushed(values, f.min_normal if some else np.inf)


def _definition(x: Chain) -> Work:
    """Multiply-adds one by one."""
    rule = x.rule
    p, f = arithmetics(rule)
    rounds = rule.product_format is not None or not rule.fused

    def work() -> NDArray[Any]:
        left = as_float64(batched(decoded(x.a)))
        right = kept(
            x.b, "columns",
            lambda: np.ascontiguousarray(as_float64(batched(decoded(x.b)).transpose(0, 2, 1))),
        )  # fmt: skip
        if rule.flush and rule.flush_inputs:
            left, right = normals(left, x.a.fmt), normals(right, x.b.fmt)
        begin, values = start(x, np.float64), np.empty(shape(x))
        order, group = kernel.ORDERS.index(rule.order), rule.group or left.shape[-1]
        over_items(
            lambda i, lo, hi: kernel.matmul(
                left[i], item(right, i), begin[i], values[i], lo, hi, order, group, rounds, p, f,
                *noted(x, i),
            ),
            *values.shape[:2],
        )  # fmt: skip
        return round_to(values, x.out, rule)

    return Work("scalar", work)


def _explain(rule: Mac, step: Step) -> Iterator[str]:
    rounded = rule.product_format or ("" if rule.fused else rule.acc_format)
    yield from products(step)
    if rule.flush:
        of = "operands, accumulators" if rule.flush_inputs else "accumulators"
        yield f"subnormal {of} and results become zero"
    if rounded:
        yield f"products rounded to {rounded} ({rule.rounding})"
    after = float(step.after.item())
    x, y = values_of(step.a), values_of(step.b)
    if len(x) == 1 and not rounded:
        total = Fraction(x[0]) * Fraction(y[0]) + Fraction(float(step.before.item()))
        lost = f", off by {exact_text(Fraction(after) - total)}" if np.isfinite(after) else ""
        yield f"sum {exact_text(total)}, rounded to {rule.acc_format} ({rule.rounding}){lost}"
    else:
        how = {
            "sequential": "added to the accumulator",
            "odd_first": "added to the accumulator, odd k first",
            "tree": "added pairwise, then the accumulator",
            "two_chains": "even and odd k in two chains from zero, their sum, then the accumulator",
        }[rule.order]
        yield f"{how}; every sum rounded to {rule.acc_format} ({rule.rounding})"


def _changes(rule: Mac, kind: str, key: str, value: object) -> bool:
    if key == "group":
        return rule.order in ("tree", "two_chains", "exact")
    return key != "order" or value in ("sequential", "odd_first") or rule.group is not None


def _means(rule: Mac) -> Mac | Exact:
    if rule.order != "exact":
        return rule
    return Exact(rule.group, rule.negative_zero, rule.outputs, rule.nan)


def _step(rule: Mac, depth: int) -> int:
    return {"sequential": 1, "odd_first": 2}.get(rule.order) or rule.group or depth


def _adder(rule: Mac, a: Format, b: Format) -> Adder | None:
    accumulator = get_format(rule.acc_format)
    if accumulator.kind != "float":
        return None
    tree = rule.order in ("tree", "two_chains") and rule.group is not None
    return Adder(rule.group if tree and rule.group else 1, accumulator.precision + 1)


MAC = Kind(
    Mac,
    "multiply-adds with a rounding at every step",
    {
        "acc_format": "format of the accumulator and of every sum",
        "product_format": "format to which products are rounded first; unset: exact products",
        "fused": "true: a product is not rounded before it is added",
        "rounding": "of every step: rne, rna, rtz, rup, rdn or rto",
        "order": "sequential, tree, odd_first, two_chains, or exact (a group and the accumulator)",
        "group": "k of one tree, pair of chains or exact sum; unset: all",
        "flush": "subnormal inputs and results become zeros",
        "tiny": "what flush takes: stored (rounded) subnormals, or those of an unbounded exponent",
        "negative_zero": "false: the sum of a tree loses the sign of a zero",
        "overflow": "ieee: Inf or the largest value by the rounding; inf: always; saturate: never",
        "outputs": OUTPUT_WORDS,
        "nan": NAN_WORDS,
        "flush_inputs": "false: flush keeps subnormal operands",
    },
    {
        "acc_format": Format, "product_format": Format, "fused": bool, "rounding": ROUNDINGS[:6],
        "order": ORDERS, "group": GROUP, "flush": bool, "tiny": ("stored", "unbounded"),
        "negative_zero": bool, "overflow": ("ieee", "inf", "saturate"),
        "outputs": frozenset(OUTPUTS), "nan": NANS, "flush_inputs": bool,
    },
    takes=lambda kind: not is_scaled(kind) and not has_output(kind)
    and kind not in ("integer", "number"),
    definition=_definition,
    explain=_explain,
    contradiction=_contradiction,
    changes=_changes,
    adder=_adder,
    step=_step,
    formats=lambda rule: (rule.acc_format, rule.product_format or rule.acc_format),
    is_float32_chain=lambda rule, largest: rule.steps == Mac(),
    means=_means,
)  # fmt: skip
