"""What a packed checkpoint is made of, as data: layouts, schemes, declarations, packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numsim.errors import NumsimError, UnsupportedError
from numsim.models.keys import shown
from numsim.models.stored import Tensor
from numsim.quant import Quant

# How the codes of a matrix lie in their tensor:
# whole         one code an element, as its dtype says
# dense         fields of b bits, the lowest first, one after the other along the inputs
# awq           words of eight 4-bit fields along the outputs, columns 0 2 4 6 1 3 5 7
# high_first    two 4-bit fields a byte, the high one first, over the flattened matrix
Order = Literal["whole", "dense", "awq", "high_first"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which tensors hold a weight, by the ends of their names, and how its codes lie in them.

    The weight itself goes by the name of the codes with `weight` in place of `codes` at its end.
    """

    codes: str
    scale: str
    order: Order = "whole"
    weight: str = ".weight"
    above: str = ""  # a scale of the whole tensor on top
    above_divides: bool = False  # that one, and the one of the activations, is 1 / scale
    scale_is: float = 1.0  # so many times the factor of a code
    zero: str = ""  # zero points, packed as the codes are, along the outputs
    zero_less: int = 0  # so much is taken off a zero point before it is stored
    groups: str = ""  # which group of scales a column has
    turned: bool = False  # codes, scales and zero points are stored [in, out]

    shape: str = ""  # of the matrix, where packing rounds it up
    inputs: str = ""  # static scale of the activations
    beside: tuple[str, ...] = ()  # what else belongs to a weight and decides nothing


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the weights of some modules are stored, and what their inputs are rounded to."""

    layout: str
    weights: Quant  # what codes and scales mean; nothing is rounded by it
    activations: Quant | None = None
    static: bool = False  # the scale of the activations, or its outer level, is in the file
    unsaid: str = ""  # what is declared of the activations that no `Quant` says
    experts: str = ""  # layout of experts in one tensor
    scattered: bool = False  # a table says which group of scales each column has


@dataclass(frozen=True, slots=True)
class Declared:
    """What a checkpoint says of its own weights: the method, where, and by which modules."""

    method: str
    file: str
    schemes: tuple[tuple[str, Scheme], ...]  # module, ``re:`` pattern or ``*``: the first one wins
    cache: Quant | None = None  # of keys and values
    cache_static: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A weight as a quantiser stored it: where its parts are, and what they mean."""

    name: str
    scheme: Scheme
    layout: Layout
    parts: Mapping[str, Tensor]  # field of `Layout` -> the tensor of that end
    shape: tuple[int, ...]  # [out, in], of experts in one tensor [experts, out, in]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.scheme.weights.fmt.bits


def damaged(file: Path | str, name: str, rule: str, got: object, remedy: str = "") -> NumsimError:
    """Return the error of a packed tensor: its file, its name, the rule, what came, what to do."""
    where = file.name if isinstance(file, Path) else file
    told = got if isinstance(got, str) else shown(got)
    return NumsimError(
        f"load_model: {where}: {name} {rule}; got {told}; "
        f"{remedy or 'download the checkpoint again, or quantise it again'}"
    )


@dataclass(frozen=True, slots=True)
class Words:
    """A table of settings, read word by word: each must be one that is understood."""

    file: str
    table: Mapping[str, Any]
    dtypes: Mapping[str, str]  # of each stored tensor
    said: Mapping[str, str]  # metadata of the files of tensors

    def unread(self, key: str, known: str) -> UnsupportedError:
        """Return the error of a setting that is not read."""
        return UnsupportedError(
            f"load_model: {self.file}: {key} must be {known}; got {shown(self.table.get(key))}; "
            "load the checkpoint that was quantised, or dequantise this one and save it again"
        )

    def one_of(self, key: str, known: tuple[Any, ...]) -> Any:
        """Return a setting that must be one of the known values; absent means None."""
        value = self.table.get(key)
        if not any(value is k or (type(value) is type(k) and value == k) for k in known):
            raise self.unread(key, " or ".join("null" if k is None else str(k) for k in known))
        return value

    def none(self, key: str) -> None:
        """Refuse a setting that must be absent or empty."""
        if self.table.get(key):
            raise self.unread(key, "absent or empty")

    def flag(self, key: str) -> bool:
        """Return a switch; absent means off."""
        return bool(self.one_of(key, (True, False, None)))

    def number(self, key: str, known: tuple[int, ...]) -> int:
        """Return a number that must be one of the known ones."""
        value = self.table.get(key)
        if type(value) is not int or value not in known:
            raise self.unread(key, " or ".join(map(str, known)))
        return value

    def group(self, key: str) -> int | None:
        """Return a group size; -1 means None: one group a row."""
        value = self.table.get(key)
        if type(value) is not int or not (value == -1 or 0 < value < 1 << 31):
            raise self.unread(key, "a number of inputs, or -1")
        return None if value == -1 else value

    def tile(self, key: str) -> tuple[int, int]:
        """Return rows and columns of a block."""
        value: Any = self.table.get(key)
        if isinstance(value, str):  # "128x128", as early files have it
            value = [int(n) if n.isdecimal() else n for n in value.split("x")]
        ok = isinstance(value, list) and len(value) == 2
        if not ok or not all(type(n) is int and 0 < n < 1 << 31 for n in value):
            raise self.unread(key, "two sizes, [rows, columns]")
        return value[0], value[1]

    def positive(self, key: str) -> float | None:
        """Return a number above 0; absent means None."""
        value = self.table.get(key)
        if value is not None and (type(value) not in (int, float) or not 0 < value < 1e38):
            raise self.unread(key, "a number above 0, or null")
        return None if value is None else float(value)
