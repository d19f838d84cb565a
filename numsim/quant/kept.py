"""What is kept with a tensor: its codes read in another way, facts about them, packed operands.

A key says what was made and all that it depends on besides the tensor itself: a group of products,
an element type, the path of the processor. Made once, it serves every product with the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, Protocol

Made = Literal[
    # of the tensor: a view of its codes that kernels take, whether it is read-only, its values
    "codes", "locked", "values",
    # facts about its values
    "finite", "survey", "extent", "squares", "largest", "survey of planes", "planes", "signs",
    "ends of rows",
    # other tensors of the same codes
    "bare", "slice", "normal", "without zero points",
    # of a slice: how many codes the tensor has that it is a part of
    "whole",
    # sums of codes, for zero points and signed bytes
    "sums of rows", "sums of columns", "starts", "scales of blocks", "columns",
    # operands packed for a kernel
    "int8", "int8 rows", "saturate", "float64", "code panels", "value panels", "mac", "two chains",
    "exact", "exact codes", "fp8", "fp8 rows", "fp8 copied", "double", "two streams", "align codes",
    "align", "fp4",
]  # fmt: skip


class Key(NamedTuple):
    """What was made of a tensor, and what it depends on besides."""

    made: Made
    of: tuple[Hashable, ...] = ()


class Keeps(Protocol):
    """A tensor that keeps what is made of it."""

    @property
    def packed(self) -> dict[Key, Any]:
        """What was made so far."""


def kept(q: Keeps, made: Made, make: Callable[[], Any], *of: Hashable) -> Any:
    """Return what is kept under a key, made once.

    Examples
    --------
    >>> from numsim.quant.types import QTensor
    >>> q = QTensor.from_codes([1, 2], "int8")
    >>> kept(q, "largest", lambda: 2), kept(q, "largest", lambda: 3)
    (2, 2)
    """
    store: dict[Any, Any] = q.packed
    try:
        return store[made, of]  # equals the key, and is sooner made
    except KeyError:
        pass
    return store.setdefault(Key(made, of), make())


def has(q: Keeps, made: Made) -> bool:
    """Return whether something that depends on nothing else is kept."""
    return known(q, made) is not None


def known(q: Keeps, made: Made) -> Any:
    """Return what is kept and depends on nothing else, None where nothing is."""
    store: dict[Any, Any] = q.packed
    return store.get((made, ()))
