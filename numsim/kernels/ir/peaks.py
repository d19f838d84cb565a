"""The largest exponents of a group's products, found from the codes of eight bits themselves.

A column's magnitude has its exponent above its fraction. Less as much as the row's exponent is
below the group's largest one, and at least 0, its largest over the group tells the largest exponent
in three instructions a product. Subnormals and zeros tell too little, but no more than one above
the row's largest exponent beside the least of the columns: where more is found it is right, and
`Peaks.doubtful` says where it is not.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from numsim.kernels.ir.fp8 import Lanes, declared, field_of, top
from numsim.kernels.ir.simd import I16, broadcast, splat


class Peaks:
    """Emits the search for one group and all rows of a tile, by the `fields` of the columns."""

    def __init__(self, b: Any, v: Lanes, fields: Any) -> None:
        self.b, self.v, width = b, v, v.words.count
        self.mask = field_of(b, fields, 0, v.bytes)
        self.pairs = ir.VectorType(I16, 2 * width)
        self.trailing = field_of(b, fields, 3, self.pairs)
        self.low = b.lshr(splat(v.bytes, -1), field_of(b, fields, 3, v.bytes))
        self.less = declared(b, f"llvm.usub.sat.v{4 * width}i8", *(v.bytes,) * 3)

    def body(self, code: Any, below: list[Any], peaks: list[Any]) -> list[Any]:
        """Return what `peaks` become by a product, whose rows are so much `below`."""
        b = self.b
        size = b.and_(code, self.mask)
        return [
            top(b, peak, b.call(self.less, [size, x])) for x, peak in zip(below, peaks, strict=True)
        ]

    def fields(self, peaks: list[Any], bases: list[Any], floors: list[Any]) -> list[Any]:
        """Return the fields of binades, at least `floors`."""
        b, found = self.b, []
        for peak, base, floor in zip(peaks, bases, floors, strict=True):
            e = b.lshr(b.bitcast(peak, self.pairs), self.trailing)
            e = b.and_(b.bitcast(e, self.v.bytes), self.low)
            found.append(top(b, b.add(base, e), floor))
        return found

    def doubtful(self, fields: list[Any], bases: list[Any]) -> Any:
        """Return whether a field may be too small."""
        b, doubt = self.b, None
        for field, base in zip(fields, bases, strict=True):
            found = b.icmp_unsigned("<=", field, base)
            doubt = found if doubt is None else b.or_(doubt, found)
        bits = ir.IntType(self.v.bytes.count)
        return b.icmp_unsigned("!=", b.bitcast(doubt, bits), ir.Constant(bits, 0))

    def bytes_of(self, word: Any) -> Any:
        """Return a word's bytes for every word of a vector."""
        return self.b.bitcast(broadcast(self.b, word, self.v.words), self.v.bytes)
