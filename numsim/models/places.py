"""Where a checkpoint has the tensors of a network: as families say it, and in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.models.arch import Arch

Shape = tuple[int, ...]


class At(NamedTuple):
    """Where a tensor of ours is stored, {p} {i} {e} = prefix, layer, expert."""

    name: str
    turned: bool | None = False  # stored [in, out]; None: in either order, as its shape says
    parts: tuple[str, ...] = ()  # modules of ours stored as one, along the outputs
    # how the parts alternate: by key head with its queries, or row by row; else one after another
    by: Literal["", "head", "row"] = ""
    stacked: bool = False  # the first dimension counts the experts, or is 1


class Place(NamedTuple):
    """Where a tensor is: rows begin:end of each of `groups` groups of `width` rows."""

    name: str
    width: int
    begin: int
    end: int
    groups: int = 1
    turned: bool = False
    stack: tuple[int, int] | None = None  # which of how many
    kernel: Shape = ()  # of a convolution, stored [out, channels, ...]: its axes after the first
    either: bool = False  # whether `turned` follows from the shape

    @property
    def whole(self) -> bool:
        """Whether the stored tensor holds nothing else."""
        return self.end - self.begin == self.width

    def stored_shape(self, shape: Shape) -> Shape:
        """Return the shape of the stored tensor that holds one of `shape`."""
        whole = (self.groups * self.width, *(self.kernel or shape[1:]))
        whole = whole[::-1] if self.turned else whole
        return whole if self.stack is None else (self.stack[1], *whole)

    def take(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return our [out, in] part of a stored tensor, a view where it can be."""
        if self.stack is not None:
            stored = stored[self.stack[0]]
        if self.turned:
            stored = stored.T
        if self.kernel:
            return stored.reshape(len(stored), -1)
        return stored if self.whole else rows_of_groups(stored, self)


def rows_of_groups(stored: NDArray[Any], place: Place) -> NDArray[Any]:
    """Return the rows of a part, of a stored tensor as [out, in]."""
    rest = stored.shape[1:]
    grouped = stored.reshape(place.groups, place.width, *rest)
    part: NDArray[Any] = grouped[:, place.begin : place.end].reshape(-1, *rest)
    return part


def find_place(
    our: str, names: Mapping[str, str | At], prefix: str, shapes: Mapping[str, Shape], arch: Arch
) -> Place:
    """Return where a checkpoint has our tensor, one of `shapes`.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> from numsim.models import load_model
    >>> arch = load_model(bundled_model_dir()).arch
    >>> names = {"layers.{i}.up_proj": At("h.{i}.w", parts=("gate_proj", "up_proj"))}
    >>> shapes = {"layers.3.up_proj.weight": (8, 4), "layers.3.gate_proj.weight": (8, 4)}
    >>> find_place("layers.3.up_proj.weight", names, "", shapes, arch)[:4]
    ('h.3.w.weight', 16, 8, 16)
    """
    parts = our.split(".")
    numbers = [part for part in parts if part.isdigit()]
    left = iter(("{i}", "{e}"))
    key = [next(left) if part.isdigit() else part for part in parts]
    entry, leaf = names.get(".".join(key)), ""
    if entry is None:
        entry, leaf = names[".".join(key[:-1])], f".{key[-1]}"
    at = entry if isinstance(entry, At) else At(entry)
    name = at.name.format(p=prefix, **dict(zip(("i", "e"), numbers, strict=False))) + leaf
    rows = shapes[our][0]
    stack = None
    if at.stacked:
        has_number = len(numbers) == 2 and arch.moe is not None
        stack = (int(numbers[1]), arch.moe.experts) if has_number and arch.moe else (0, 1)
    if not at.parts:
        conv = next((c for c in arch.convs if parts[-2:] == [c.name, "weight"]), None)
        kernel = () if conv is None else (conv.inputs, *conv.kernel)
        either = at.turned is None
        return Place(name, rows, 0, rows, 1, bool(at.turned), stack, kernel, either)
    own, parent, end = parts[-2], ".".join(parts[:-2]), parts[-1]
    sizes = [shapes[f"{parent}.{part}.{end}".lstrip(".")][0] for part in at.parts]
    groups = {"": 1, "head": arch.kv_heads, "row": rows}[at.by]
    begin = sum(sizes[: at.parts.index(own)]) // groups
    return Place(
        name, sum(sizes) // groups, begin, begin + rows // groups, groups, bool(at.turned), stack,
        either=at.turned is None,
    )  # fmt: skip


def put_rows(out: NDArray[Any], place: Place, part: NDArray[Any]) -> None:
    """Write a part into the [out, in] tensor that holds it."""
    grouped = out.reshape(place.groups, place.width, *out.shape[1:])
    assert np.shares_memory(grouped, out)
    grouped[:, place.begin : place.end] = part.reshape(place.groups, -1, *out.shape[1:])
