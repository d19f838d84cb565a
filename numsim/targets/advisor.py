"""How wide an accumulator must be: by the formats, by the weights, by the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from numsim.arguments import is_integer
from numsim.errors import NumsimError, UnsupportedError
from numsim.float_state import known_floats
from numsim.formats import Format, get_format
from numsim.quant import QTensor
from numsim.targets.ops import matmul
from numsim.targets.table import get_target
from numsim.targets.tensor import quantum, signed_bits

Operand = QTensor | Format | str
_WIDEST = 1 << 20  # bits of a search that no real unit reaches


@known_floats
@dataclass(frozen=True)
class AccumulatorBits:
    """Bits of a two's-complement accumulator that adds products exactly, sign included.

    Parameters
    ----------
    formats
        Names of the two operand formats.
    k
        Length of the dot product.
    product_quantum
        Power of two that every product is a multiple of (without scales).
    product_bits
        One product of any two finite values fits.
    format_bound
        Any sum of `k` products fits: the data-type bound.
    weight_bound
        Any sum with these weights fits: their largest l1 norm times the largest value of `a`
        (A2Q). None where `b` is a format.
    measured_peak
        Every partial sum of these data, in increasing k, fits. None where `a` or `b` is a format.
        Other data may need more.
    """

    formats: tuple[str, str]
    k: int
    product_quantum: Fraction
    product_bits: int
    format_bound: int
    weight_bound: int | None
    measured_peak: int | None
    _range: tuple[int, int] = field(repr=False, compare=False)

    @property
    def guaranteed(self) -> int:
        """The smaller of the two bounds that hold for any data in `a`."""
        bound = self.weight_bound
        return self.format_bound if bound is None else min(bound, self.format_bound)

    def longest_k(self, bits: int) -> int:
        """Return the longest dot product that an accumulator of `bits` bits never overflows.

        Raises
        ------
        NumsimError
            For a width that is not a positive integer, up to 2**20.

        Examples
        --------
        >>> accumulator_bits("int8", "int8", symmetric=True).longest_k(32)
        133144
        """
        if not is_integer(bits) or not 1 <= bits <= _WIDEST:
            raise NumsimError(f"longest_k: bits is a positive integer; got {bits!r}")
        low, high = self._range
        top = 1 << (int(bits) - 1)
        ends = [(top - 1) // high] if high else []
        return min([*ends, top // -low] if low else ends, default=_WIDEST)


@known_floats
def accumulator_bits(
    a: Operand, b: Operand, *, k: int | None = None, symmetric: bool = False
) -> AccumulatorBits:
    """Return how wide an exact accumulator must be: by formats, by weights, and as measured.

    Parameters
    ----------
    a
        Activations: a QTensor [..., M, K], or a format.
    b
        Weights: a QTensor [..., K, N], or a format. Scales are left out: the accumulator of a
        unit holds sums of unscaled products.
    k
        Length of the dot product. None: that of the QTensors; 1 for two formats.
    symmetric
        True: the most negative integer code (-128 of int8) does not occur.

    Returns
    -------
    AccumulatorBits

    Raises
    ------
    NumsimError
        For a `k` that is not positive or contradicts a QTensor, NaN or Inf in a QTensor.
    UnsupportedError
        For data in formats that `ideal.exact` cannot add (tables wider than float32).

    Source
    ------
    Colbert, Pappalardo and Petri-Koenig, A2Q, ICCV 2023, section 3: data-type and l1 bounds.

    Examples
    --------
    >>> accumulator_bits("float8_e4m3fn", "float8_e4m3fn", k=4096).format_bound
    49
    >>> import numsim as ns
    >>> weights = ns.QTensor.from_codes([[3], [-1], [0], [2]], "int8")
    >>> found = accumulator_bits("int8", weights)
    >>> found.format_bound, found.weight_bound, found.longest_k(16)
    (18, 11, 1)
    """
    fa, fb = _format(a, "a"), _format(b, "b")
    depth = _depth(a, b, k)
    unit = quantum(fa) * quantum(fb)
    ends_a, ends_b = _ends(fa, symmetric=symmetric), _ends(fb, symmetric=symmetric)
    products = [int(x * y / unit) for x in ends_a for y in ends_b]
    low, high = min(products), max(products)
    return AccumulatorBits(
        (fa.label, fb.label), depth, unit, signed_bits(low, high),
        signed_bits(depth * min(low, 0), depth * high),
        _weight_bound(b, max(abs(x) for x in ends_a) / quantum(fa), depth),
        _measured(a, b), (min(low, 0), max(high, 0)),
    )  # fmt: skip


def _format(operand: Operand, name: str) -> Format:
    if not isinstance(operand, QTensor | Format | str):
        raise NumsimError(
            f"accumulator_bits: {name} is a QTensor or a format; got {type(operand).__name__}; "
            "numsim.quantize makes QTensors"
        )
    fmt = operand.fmt if isinstance(operand, QTensor) else get_format(operand)
    if fmt.kind == "float" and not fmt.zero:
        raise UnsupportedError(
            f"accumulator_bits: {name} is an element format; {fmt.label} holds scales"
        )
    return fmt


def _depth(a: Operand, b: Operand, k: int | None) -> int:
    sizes = {
        name: q.shape[axis]
        for name, q, axis in (("a", a, -1), ("b", b, -2))
        if isinstance(q, QTensor) and q.ndim >= 2
    }
    for name, q in (("a", a), ("b", b)):
        if isinstance(q, QTensor) and q.ndim < 2:
            raise NumsimError(
                f"accumulator_bits: a is [..., M, K] and b is [..., K, N]; got {name} {q.shape}"
            )
    if k is not None:
        if not is_integer(k) or k < 1:
            raise NumsimError(f"accumulator_bits: k is a positive integer; got {k!r}")
        sizes["k"] = int(k)
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise NumsimError(f"accumulator_bits: the lengths of K agree; got {named}")
    depth = next(iter(sizes.values()), 1)
    if depth < 1:
        raise NumsimError("accumulator_bits: K is 0; a dot product needs at least one term")
    return depth


def _ends(fmt: Format, *, symmetric: bool) -> tuple[Fraction, Fraction]:
    """Return the lowest and highest finite value."""
    low, high = Fraction(fmt.min), Fraction(fmt.max)
    return (max(low, -high) if symmetric else low), high


def _weight_bound(b: Operand, largest_a: Fraction, depth: int) -> int | None:
    """Return the bits of the largest column's l1 norm times the largest |a|, in quanta."""
    if not isinstance(b, QTensor):
        return None
    values = np.abs(b.values().astype(np.float64))
    if not np.isfinite(values).all():
        raise NumsimError("accumulator_bits: weights are finite; b has NaN or Inf")
    if not values.size:
        return 1
    step = quantum(b.fmt)
    scaled = np.ldexp(values, step.denominator.bit_length() - step.numerator.bit_length())
    top = float(scaled.max())
    if top * depth < 2.0**53:  # whole numbers, so float64 adds them exactly
        norm = int(scaled.sum(-2).max())
    else:
        columns = scaled.swapaxes(-1, -2).reshape(-1, depth)
        norm = max(sum(int(v) for v in column) for column in columns)
    return signed_bits(-math.floor(norm * largest_a), math.floor(norm * largest_a))


def _measured(a: Operand, b: Operand) -> int | None:
    if not (isinstance(a, QTensor) and isinstance(b, QTensor)):
        return None
    for q, name in ((a, "a"), (b, "b")):
        if not np.isfinite(q.values()).all():
            raise NumsimError(f"accumulator_bits: data are finite; {name} has NaN or Inf")
    bare = (QTensor(q.codes, q.fmt) for q in (a, b))
    return matmul(*bare, target=get_target("ideal.exact"), stats=True)[1].peak_bits
