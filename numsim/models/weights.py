"""The tensors of a network, mapped from its files: copied or unpacked when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.models.memory import release
from numsim.models.packed import Declared, Packed, read
from numsim.models.places import Place, rows_of_groups
from numsim.models.stored import Maps, Tensor
from numsim.quant import QTensor

Stored = NDArray[Any] | QTensor


@dataclass(frozen=True, slots=True, eq=False)
class Mapped(Mapping[str, NDArray[Any]]):
    """Tensors by our names; parts that alternate in a stored one are copied each time.

    So a network whose queries, keys and values alternate takes no memory before it runs either.
    """

    whole: Mapping[str, NDArray[Any]]  # stored name -> as stored
    places: Mapping[str, Place]  # our name -> where
    shapes: Mapping[str, tuple[int, ...]]  # our name -> [out, in]

    def __getitem__(self, name: str) -> NDArray[Any]:
        stored = self.whole[self.places[name].name]
        part = self.places[name].take(stored)
        if not np.may_share_memory(part, stored):
            release(stored)
        return part

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True, slots=True, eq=False)
class Weights(Mapping[str, Stored]):
    """Tensors by our names; packed weights are a `QTensor`, made anew each time.

    A packed weight is also found by its name in the file, whole. With `dequantise` packed weights
    are float32: scale times code, rounded once.
    """

    plain: Mapping[str, NDArray[Any]]  # our name -> as stored
    packed: Mapping[str, tuple[Packed, Place]]  # our name -> a weight, and which part of it
    maps: Maps
    declared: Declared
    cache_scales: Mapping[str, Tensor] = field(default_factory=dict)  # of keys and values
    dequantise: bool = False

    def __getitem__(self, name: str) -> Stored:
        if name in self.plain:
            return self.plain[name]
        if name in self.packed:
            packed, place = self.packed[name]
            made = part_of(packed, place, self.maps)
        else:
            packed = self._whole()[name]
            made = read(packed, self.maps)
        for file in {part.file for part in packed.parts.values()}:
            release(self.maps[file])  # what was made is a copy
        return made.dequantize() if self.dequantise else made

    def __iter__(self) -> Iterator[str]:
        yield from self.plain
        yield from self.packed

    def __len__(self) -> int:
        return len(self.plain) + len(self.packed)

    def __contains__(self, name: object) -> bool:
        return name in self.plain or name in self.packed or name in self._whole()

    def _whole(self) -> dict[str, Packed]:
        return {packed.name: packed for packed, _ in self.packed.values()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of ours without unpacking it."""
        if name in self.plain:
            return shape_of(self.plain, name)
        packed, place = self.packed[name]
        return (place.groups * (place.end - place.begin), packed.shape[-1])


def shape_of(tensors: Mapping[str, Stored], name: str) -> tuple[int, ...]:
    """Return the shape of a tensor without copying or unpacking it."""
    if isinstance(tensors, Mapped):
        return tensors.shapes[name]
    return tensors.shape(name) if isinstance(tensors, Weights) else tensors[name].shape


def wide(stored: Stored) -> NDArray[Any]:
    """Return a tensor as numbers: a packed one as float32, scale times code rounded once."""
    return stored.dequantize() if isinstance(stored, QTensor) else stored


def part_of(packed: Packed, place: Place, maps: Maps) -> QTensor:
    """Return our part [out, in] of a packed weight."""
    whole = read(packed, maps, None if place.stack is None else place.stack[0])
    if place.whole:
        return whole
    return pick_rows(whole, rows_of_groups(np.arange(len(whole)), place))


def pick_rows(q: QTensor, rows: NDArray[np.int64]) -> QTensor:
    """Return some rows of a matrix with their scales; tiles become blocks of one row each."""
    tall = 1 if q.block_shape is None else q.block_shape[0]

    def picked(scale: NDArray[Any] | None) -> Any:
        if scale is None or scale.ndim < 2:
            return scale
        return np.ascontiguousarray(scale[rows // tall])

    blocks = None if q.block_shape is None else (1, *q.block_shape[1:])
    return replace(
        q, codes=np.ascontiguousarray(q.codes[rows]), scale=picked(q.scale),
        scale_codes=picked(q.scale_codes), zero_point=picked(q.zero_point), block_shape=blocks,
    )  # fmt: skip
