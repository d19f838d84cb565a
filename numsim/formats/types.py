"""What a code means: `Format` is data, and every limit is derived from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.files import read_toml
from numsim.float_state import known_floats
from numsim.formats.check import check_format
from numsim.formats.fields import meaning_of
from numsim.formats.label import labelled, written
from numsim.formats.params import Params, params_of
from numsim.formats.table import named_fields
from numsim.formats.toml import fields_from_table, format_to_toml
from numsim.formats.values import ieee_inf, value_of, values_of
from numsim.vocabulary import Conversion, Inf, Kind, Nan


@known_floats
@dataclass(frozen=True)
class Format:
    """A number format: what each code of `bits` bits means.

    Parameters
    ----------
    name
        Canonical name.
    kind
        ``"float"``: sign, biased exponent, trailing significand. ``"integer"``: two's complement
        (or unsigned) multiples of ``2**-bias``, which makes fixed point an integer with a bias.
        ``"table"``: an explicit list of values (posit, NF4).
    bits
        Width of a code.
    precision
        Bits of the significand, the implicit bit included.
    bias
        Exponent bias; for integers the number of fraction bits.
    signed
        Whether negative values exist.
    nan
        Which codes are NaN: ``"none"``, ``"ieee"`` (largest exponent, nonzero fraction),
        ``"all_ones"`` (every bit but the sign set) or ``"minus_zero"`` (the code of -0).
    inf
        ``"none"``, ``"ieee"`` (largest exponent, zero fraction) or ``"top"`` (the largest
        magnitude code that is not NaN).
    zero
        Whether the format has a zero (E8M0 has none).
    table
        Values by code for ``kind="table"``. With ``inf="top"`` its largest magnitudes stand for
        infinities: numbers round to them as to those values.
    conversion
        Whose rules decide what numbers out of range become: ``"ieee"`` (IEEE 754, OCP, ml_dtypes)
        or ``"p3109"``, see `numsim.encode`.
    source
        Where the format is specified; no part of what it means, so `==` leaves it out.

    Raises
    ------
    NumsimError
        For fields that make no format: unknown words, sizes outside their range, a table of
        another length than ``2**bits``, values beyond float64.

    Examples
    --------
    >>> from numsim.formats import get_format
    >>> f = get_format("float8_e4m3fn")
    >>> f.bits, f.precision, f.max, f.min_normal == 2**-6, f.min_subnormal == 2**-9
    (8, 4, 448.0, True, True)
    """

    name: str
    kind: Kind
    bits: int
    precision: int
    bias: int
    signed: bool = True
    nan: Nan = "none"
    inf: Inf = "none"
    zero: bool = True
    table: tuple[float, ...] = ()
    conversion: Conversion = "ieee"
    source: str = ""

    def __post_init__(self) -> None:
        check_format(self)
        # without the table: 65,536 values for a 16-bit posit
        key = hash((self.name, self.kind, self.bits, self.precision, self.bias))
        object.__setattr__(self, "_hash", key)

    def __repr__(self) -> str:
        return written(self)

    def __str__(self) -> str:
        return self.label

    def __hash__(self) -> int:  # look-ups by format are in every small call
        return self._hash  # type: ignore[attr-defined,no-any-return]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Format):
            return NotImplemented
        return self is other or (self.name == other.name and self.meaning == other.meaning)

    def __reduce__(self) -> tuple[object, ...]:
        if named_format(self.name) is self:  # shared: caches know it
            return named_format, (self.name,)
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    # what it is called ---------------------------------------------------------------------

    @cached_property
    def meaning(self) -> tuple[Any, ...]:
        """Everything but name and source: equal where every code means the same, bit for bit."""
        return meaning_of(self)

    @cached_property
    def label(self) -> str:
        """What results call the format: its canonical name, or a name and what it means.

        Examples
        --------
        >>> from dataclasses import replace
        >>> from numsim.formats import get_format
        >>> get_format("e4m3").label, replace(get_format("e4m3"), bias=10).label
        ('float8_e4m3fn', 'float8_e4m3fn (bias=10)')
        >>> Format("mine", "float", 6, 3, 3).label
        'mine (kind=float, bits=6, precision=3, bias=3)'
        """
        return labelled(self)

    @classmethod
    def from_toml(cls, path: str | Path) -> Format:
        """Read a format from a TOML file of its fields.

        Parameters
        ----------
        path
            File with ``name``, ``kind``, ``bits``, ``precision``, ``bias``, and optionally
            ``signed``, ``nan``, ``inf``, ``zero``, ``table`` and ``source``.

        Raises
        ------
        NumsimError
            For a file that cannot be read, and a field that is missing, unknown, out of range or
            contradicts another one.

        Examples
        --------
        >>> import tempfile
        >>> from dataclasses import replace
        >>> from numsim.formats import get_format
        >>> own = replace(get_format("e4m3"), name="mine", bias=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.toml"
        ...     _ = path.write_text(own.to_toml(), encoding="utf-8")
        ...     Format.from_toml(path) == own
        True
        """
        table = read_toml(path, "Format.from_toml")
        try:
            return cls(**fields_from_table(table))
        except NumsimError as error:
            raise NumsimError(f"{path}: {error}") from None

    def to_toml(self) -> str:
        """Return the format as TOML text that `from_toml` reads back.

        Examples
        --------
        >>> print(Format("mine", "float", 6, 3, 3).to_toml())
        name = "mine"
        kind = "float"
        bits = 6
        precision = 3
        bias = 3
        """
        return format_to_toml(self)

    # magnitude codes -----------------------------------------------------------------------

    @cached_property
    def inf_code(self) -> int:
        """Magnitude code of infinity, -1 where there is none."""
        if self.inf == "ieee":
            return ieee_inf(self)
        if self.kind == "table" and self.has_inf:
            return int(np.flatnonzero(np.isposinf(self._values))[0])
        if self.inf == "top":
            return (1 << (self.bits - self.signed)) - 1 - (self.nan == "all_ones")
        return -1

    @cached_property
    def nan_code(self) -> int:
        """Code of the canonical (quiet, positive) NaN, -1 where there is none."""
        if self.nan == "ieee":
            return ieee_inf(self) | (1 << max(self.precision - 2, 0))
        if self.nan == "all_ones":
            return (1 << (self.bits - self.signed)) - 1
        if self.nan == "minus_zero":
            return 1 << (self.bits - 1)
        return -1

    @cached_property
    def max_code(self) -> int:
        """Magnitude code of the largest finite value."""
        if self.kind == "table":
            finite = self._values
            return int(np.argmax(np.where(np.isfinite(finite), finite, -np.inf)))
        top = (1 << (self.bits - self.signed)) - 1
        if "ieee" in (self.inf, self.nan):
            return ieee_inf(self) - 1
        return top - (self.inf != "none") - (self.nan == "all_ones")

    # what users ask for --------------------------------------------------------------------

    @cached_property
    def has_inf(self) -> bool:
        """Whether the format encodes infinities."""
        return self.inf != "none"

    @cached_property
    def has_nan(self) -> bool:
        """Whether the format encodes NaN."""
        return self.nan != "none"

    @cached_property
    def has_negative_zero(self) -> bool:
        """Whether zero has two codes."""
        return self.kind == "float" and self.signed and self.zero and self.nan != "minus_zero"

    @cached_property
    def has_subnormals(self) -> bool:
        """Whether values below the smallest normal number exist."""
        return self.kind == "float" and self.precision > 1 and self.zero

    @cached_property
    def emin(self) -> int:
        """Exponent (floor of log2) of the smallest normal number."""
        if self.kind == "float":
            return 1 - self.bias if self.zero else -self.bias
        return _exponent(self.min_normal)

    @cached_property
    def emax(self) -> int:
        """Exponent (floor of log2) of the largest finite number."""
        return _exponent(self.max)

    @cached_property
    def max(self) -> float:
        """Largest finite value."""
        return value_of(self, self.max_code)

    @cached_property
    def value_after_max(self) -> float:
        """Value that the code after `max_code` would have; infinite beyond float64."""
        try:
            return value_of(self, self.max_code + 1)
        except OverflowError:
            return math.inf

    @cached_property
    def min(self) -> float:
        """Lowest finite value (most negative, or smallest where the format is unsigned)."""
        if self.kind == "table":
            return float(np.min(self._values[np.isfinite(self._values)]))
        if not self.signed:
            return value_of(self, 0)
        if self.kind == "integer":
            return -math.ldexp(1.0, self.bits - 1 - self.bias)
        return -self.max

    @cached_property
    def min_normal(self) -> float:
        """Smallest positive normal value.

        Integers and tables: the smallest positive value. Where no number is normal: `max`.
        """
        if self.kind == "table":
            return min(v for v in self.table if v > 0)  # an Inf is never the smallest
        if self.kind == "integer":
            return math.ldexp(1.0, -self.bias)
        return math.ldexp(1.0, self.emin) if self.max_code >> (self.precision - 1) else self.max

    @cached_property
    def min_subnormal(self) -> float:
        """Smallest positive value."""
        if not self.has_subnormals:
            return self.min_normal
        return math.ldexp(1.0, self.emin - (self.precision - 1))

    @cached_property
    def code_dtype(self) -> np.dtype[np.unsignedinteger] | np.dtype[np.signedinteger]:
        """NumPy type of codes: bit patterns are unsigned, integers keep their sign."""
        size = 1 if self.bits <= 8 else 2 if self.bits <= 16 else 4
        return np.dtype(f"{'i' if self.kind == 'integer' and self.signed else 'u'}{size}")

    @cached_property
    def value_dtype(self) -> np.dtype[np.floating]:
        """float32, or float64 where float32 cannot hold every value."""
        if self.kind != "table":
            single = self.precision <= 24 and self.min_subnormal >= 2.0**-149
            single = single and max(self.max, -self.min) < 2.0**128
            return np.dtype(np.float32 if single else np.float64)
        table = self._values
        with np.errstate(over="ignore", under="ignore"):
            same = (table == table.astype(np.float32)) | np.isnan(table)
        return np.dtype(np.float32 if same.all() else np.float64)

    @cached_property
    def params(self) -> Params:
        """The scalars that kernels take."""
        return params_of(self)

    def values(self) -> NDArray[np.float64]:
        """Return every value, indexed by the code's bit pattern.

        Returns
        -------
        float64 array [2**bits]

        Raises
        ------
        NumsimError
            For formats wider than 24 bits, whose table would not fit in memory.

        Examples
        --------
        >>> from numsim.formats import get_format
        >>> get_format("float4_e2m1fn").values()[:8]
        array([0. , 0.5, 1. , 1.5, 2. , 3. , 4. , 6. ])
        >>> get_format("int2").values()
        array([ 0.,  1., -2., -1.])
        """
        if self.bits > 24:
            raise NumsimError(
                f"values(): {self.name} has 2**{self.bits} codes, tables stop at 24 bits; "
                "decode the codes you need instead"
            )
        return self._values.copy()

    @cached_property
    def _values(self) -> NDArray[np.float64]:
        return self.decode_bits(np.arange(1 << self.bits, dtype=np.int64))

    def decode_bits(self, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the values of bit patterns, from the definition (slow: `decode` is the API)."""
        return values_of(self, codes)


def _exponent(value: float) -> int:
    return math.frexp(value)[1] - 1


@cache
def named_format(name: str) -> Format | None:
    """Return the format that a name stands for in the table or by its parts, None for no name.

    Examples
    --------
    >>> named_format("q3.4"), named_format("mine")
    (Format('q3.4'), None)
    """
    found = named_fields(name)
    if found is None:
        return None
    return Format(*found) if found.name == name else named_format(found.name)
