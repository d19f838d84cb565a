"""Area of a unit in gate equivalents: a count of cells, for units that nobody has published.

It is no synthesis. Against 25 published ratios its median error is 12 %, its worst 48 %: 8-bit
units and widths of accumulators compare to about 20 %, 4-bit block formats are not to be ranked.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.formats import Format, FormatLike, get_format

# gate equivalents of textbook cells, 1 = one NAND2
CONSTANTS = MappingProxyType(
    {"full_adder": 6.0, "and": 1.33, "mux": 2.33, "xor": 2.33, "flip_flop": 5.5}
)
_FA, _AND, _MUX, _XOR, _FF = CONSTANTS.values()
_ACCUMULATOR = 27  # bits of a float32 sum with guard, round and sticky
_ACCUMULATOR_EXPONENT = 9  # bits of the difference of exponents of product and accumulator
_LONGEST = 64  # span of exponents above which no one builds a fixed-point product


@dataclass(frozen=True)
class Unit:
    """What decides the area of a unit that adds `products` products in a step.

    Parameters
    ----------
    formats
        Of the two operands.
    products
        Products added in one step, over which everything that they share is divided.
    align_bits
        Fraction bits that the alignment of floats keeps; None: all of them.
    acc_bits
        Width of an integer accumulator; None: a float32 one.
    scale_format, block
        Of block scales that the unit applies itself: ``float8_e8m0fnu`` or ``float8_e4m3fn``.
    """

    formats: tuple[FormatLike, FormatLike]
    products: int = 32
    align_bits: int | None = 25
    acc_bits: int | None = None
    scale_format: str | None = None
    block: int | None = None


@known_floats
def area_ge(unit: Unit) -> float:
    """Return the area of a unit for each product, in gate equivalents (NAND2).

    Parameters
    ----------
    unit
        Integer or float operands; tables (posits, NF4) and wider exponents are not modelled.

    Returns
    -------
    float

    Raises
    ------
    NumsimError
        The model does not cover such operands.

    Source
    ------
    A count of cells of a textbook datapath: multipliers, alignment, adder tree, accumulator. Its
    constants are not fitted to anything.

    Examples
    --------
    >>> e4m3 = ("float8_e4m3fn", "float8_e4m3fn")
    >>> [round(area_ge(Unit(e4m3, align_bits=bits))) for bits in (8, 13, 25)]
    [522, 610, 900]
    >>> round(area_ge(Unit(("int8", "int8"), acc_bits=32)))
    624
    """
    a, b = (get_format(name) for name in unit.formats)
    n = unit.products
    if n < 1:
        raise NumsimError(f"area_ge: products in a step are 1 or more; got {n}; give their number")
    kinds = {a.kind, b.kind}
    if kinds == {"integer"}:
        p_a, p_b = a.bits, b.bits
        width = p_a + p_b  # of a product, sign included
        total = 0.0
    elif kinds == {"float"}:
        p_a, p_b = a.precision, b.precision
        total, width = _float_products(unit, a, b)
    else:
        raise NumsimError(
            f"area_ge: the model covers two integer or two float formats; got {a.label} and "
            f"{b.label}; leave the area of this unit empty"
        )
    total += n * (p_a * p_b * _AND + (p_a - 1) * p_b * _FA)  # multipliers
    total += n * (a.bits + b.bits) * _FF  # registers of the operands
    total += _tree(width, n)
    if unit.acc_bits is not None:
        total += unit.acc_bits * (_FA + _FF)
    else:
        total += _float_accumulator(width, n)
    return (total + _scales(unit, width)) / n


def _float_products(unit: Unit, a: Format, b: Format) -> tuple[float, int]:
    """Return the area of exponents and alignment of all products, and bits of an aligned one."""
    n, exponent = unit.products, max(_exponent_bits(a), _exponent_bits(b))
    span = a.emax + b.emax - a.emin - b.emin
    exact = span + a.precision + b.precision
    if unit.align_bits is None and span > _LONGEST:
        raise NumsimError(
            f"area_ge: exact products of {a.label} and {b.label} span {exact} bits, beyond the "
            "model; give align_bits"
        )
    kept = exact if unit.align_bits is None else min(exact, unit.align_bits + 2)
    area = n * (exponent + 1) * _FA  # sum of the exponents
    if exact > kept:  # who is largest, and by how much
        area += (n - 1) * (exponent + 1) * (_FA + _MUX) + n * (exponent + 1) * _FA
    area += n * kept * _stages(min(span, kept)) * _MUX  # shifters
    area += n * (kept + 1) * _XOR  # signs
    return area, kept + 1


def _exponent_bits(fmt: Format) -> int:
    return fmt.bits - fmt.signed - (fmt.precision - 1)


def _stages(distance: int) -> int:
    """Return the stages of a shifter by up to `distance`: ceil(log2(distance + 1)).

    >>> _stages(0), _stages(1), _stages(15), _stages(16)
    (0, 1, 4, 5)
    """
    return distance.bit_length()


def _tree(width: int, n: int) -> float:
    """Return the area of a tree of adders over n products, each level one bit wider."""
    area, level = 0.0, 1
    while n > 1:
        area += n // 2 * (width + level) * _FA
        level, n = level + 1, n - n // 2
    return area


def _float_accumulator(width: int, n: int) -> float:
    """Return the area of alignment, addition, normalisation and register of a float32 sum."""
    w = max(width + _stages(n - 1), _ACCUMULATOR)
    stages = _stages(w - 1)
    normaliser = w * stages * (_MUX + _AND)
    aligner = w * stages * _MUX + _ACCUMULATOR_EXPONENT * _FA
    return normaliser + aligner + w * _FA + w * stages * _MUX + 32 * _FF


def _scales(unit: Unit, width: int) -> float:
    """Return the area of what applies the scales of all blocks of a step."""
    if unit.block is None:
        return 0.0
    blocks = max(1.0, unit.products / unit.block)
    if unit.scale_format == "float8_e4m3fn":
        wide = width + _stages(unit.block - 1)
        area = 4 * 4 * _AND + 3 * 4 * _FA + 5 * _FA + wide * 8 * _AND + (wide - 1) * 8 * _FA
    else:
        area = 17 * _FA
    shift = _ACCUMULATOR * _stages(_ACCUMULATOR - 1) * _MUX if blocks > 1 else 0.0
    return blocks * (area + shift)
