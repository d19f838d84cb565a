"""Every field of a unit in a few words, for the command line; the classes say it at length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from numsim.targets.types import Maturity, Rule, Target

MATURITIES: dict[Maturity, str] = {
    "definition": "an ideal unit: its rules are its definition",
    "silicon": "equal to recordings of hardware, bit for bit",
    "model": "equal to an independent model that was validated on hardware",
    "document": "written from the vendor's text; no recording confirms it (warns once when used)",
    "assumed": "parts are not public and were assumed (warns once when used)",
}

RULES: dict[str, str] = {
    "Exact": "exact sums, rounded once to nearest even",
    "Mac": "multiply-adds with a rounding at every step",
    "IntSum": "integer products added in an accumulator of acc_bits bits",
    "Fused": "align to the largest exponent, cut, add exactly, round once (tensor cores)",
    "TwoStage": "the products' aligned sum first, then the accumulator, one rounding (CDNA3)",
    "ScaledFp4": "block-scaled FP4: exact runs of 16, scaled, aligned, cut, rounded once",
}

# class.field -> words; a field of several classes that means the same in all stands without class
FIELDS: dict[str, str] = {
    "name": "what messages and results call the unit",
    "rules": "operand class -> rule, a table [rules.CLASS] each",
    "maturity": "how well the rules are known: " + ", ".join(MATURITIES),
    "evidence": "what the rules were compared with",
    "source": "where the rules are described",
    "promote_every": "restart from +0 every so many k, add the parts in an outer accumulator",
    "split_k": "parts of K that are summed apart and added afterwards",
    "split_order": "contiguous runs of tiles; or tiles dealt out in turn, added serial or pairwise",
    "split_tile": "width of those tiles in k",
    "group": "products in one step; longer dot products chain steps through the accumulator",
    "Exact.group": "products in one exact sum, the next takes it as its accumulator; unset: all",
    "Exact.negative_zero": "a sum of nothing but -0 is -0; false: every zero is +0",
    "acc_format": "format of the accumulator and of every sum",
    "product_format": "format to which products are rounded first; unset: exact products",
    "fused": "true: a product is not rounded before it is added",
    "Mac.rounding": "of every step: rne, rna, rtz, rup, rdn or rto",
    "order": "sequential, tree, odd_first, two_chains, or exact (a group and the accumulator)",
    "Mac.group": "k of one tree, pair of chains or exact sum; unset: all",
    "flush": "subnormal inputs and results become zeros",
    "tiny": "what flush takes: stored (rounded) subnormals, or those of an unbounded exponent",
    "Mac.negative_zero": "false: the sum of a tree loses the sign of a zero",
    "Mac.overflow": "ieee: Inf or the largest value by the rounding; inf: always; saturate: never",
    "acc_bits": "bits of the accumulator, two's complement",
    "IntSum.overflow": "wrap modulo 2**acc_bits, saturate after every step, or raise an error",
    "pair_bits": "the sum of two neighbouring products saturates to so many bits; unset: no",
    "outer_bits": "bits of the accumulator that adds the parts of promote_every and split_k",
    "align_bits": "fraction bits kept below the largest exponent",
    "keep_bits": "fraction bits of a float32 result: 23, or fewer",
    "accumulator": "joins the alignment; late: added to the rounded sum; halves: float16 in two",
    "zero_products": "a product with a zero factor counts for the largest exponent (models differ)",
    "min_exponent": "lower limit of the largest exponent; unset: none (models differ)",
    "align": "how addends are cut: truncate toward zero, or floor",
    "Fused.rounding": "rtz or rne; unset: float32 toward zero, float16 to nearest even",
    "nan": "bits of NaN results: ones 0x7FFFFFFF, quiet 0x7FC00000",
    "sum_bits": "fraction bits of the products' sum beside the accumulator",
    "streams": "2: even and odd k are aligned apart",
}  # fmt: skip


def field_words(item: Target | Rule | type, name: str) -> str:
    """Return what a field means.

    Examples
    --------
    >>> from numsim.targets.types import IntSum, Mac
    >>> field_words(IntSum(), "overflow")
    'wrap modulo 2**acc_bits, saturate after every step, or raise an error'
    """
    kind = item if isinstance(item, type) else type(item)
    return FIELDS.get(f"{kind.__name__}.{name}") or FIELDS[name]


def explained(unit: Target) -> Iterator[tuple[str, str]]:
    """Yield (heading, words) of each kind of rule that a unit has, and below it of its fields."""
    for kind in dict.fromkeys(type(rule) for _, rule in unit.rules):
        yield kind.__name__, RULES[kind.__name__]
        for f in fields(kind):
            yield f"  {f.name}", field_words(kind, f.name)
    yield "Target", "fields of whole dot products"
    for name in ("promote_every", "split_k", "split_order", "split_tile"):
        yield f"  {name}", field_words(Target, name)
