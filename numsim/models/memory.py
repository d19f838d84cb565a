"""What a model keeps in memory: packed weights within a limit, and few pages of mapped files."""

from __future__ import annotations

import mmap
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.quant import QTensor

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmg]i?b|)", re.IGNORECASE | re.ASCII)
_PIECE = 1 << 20  # elements
_ROWS = 8


def as_bytes(size: int | str) -> int:
    """Return a number of bytes from itself or from text.

    Raises
    ------
    NumsimError
        For anything else than a positive size.

    Examples
    --------
    >>> as_bytes("4GB"), as_bytes("1.5 GiB"), as_bytes(1000)
    (4000000000, 1610612736, 1000)
    """
    whole = isinstance(size, str | int | np.integer)
    found = _SIZE.fullmatch(_short(size, str).strip()) if whole else None
    count = int(Fraction(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if not 0 < count < 1 << 63 or isinstance(size, bool):
        raise NumsimError(
            "memory_limit: a positive number of bytes below 2**63, or text such as 4GB or 512MiB; "
            f"got {_short(size, repr)}"
        )
    return count


def _short(size: object, write: Callable[[object], str]) -> str:
    """Write what may have thousands of digits, which Python does not print."""
    if isinstance(size, int) and abs(size) >= 1 << 99:
        return "a number of 100 bits or more"
    text = write(size)
    return text if len(text) <= 60 else f"{text[:60]}... ({len(text)} characters)"


def half_of_memory() -> int:
    """Return half of the machine's memory, 4 GiB where it cannot be asked for."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 4 << 30


@dataclass(slots=True, eq=False)
class OperandCache:
    """Weights converted, packed or quantised; the least recently used make room.

    `items`: value, bytes, and what a tensor kept when they were counted, -1 if they were not.
    `limit_bytes`: what they may take together; None: half of the machine's memory, and one block
    may take more.
    """

    limit_bytes: int | None = None
    used_bytes: int = 0
    items: OrderedDict[object, tuple[Any, int, int]] = field(default_factory=OrderedDict)

    def get(self, key: object, room: Callable[[], int], make: Callable[[], Any]) -> Any:
        """Return what `make` returned for `key`; it will take about `room()` bytes."""
        found = self.items.get(key)
        if found is not None:
            self.items.move_to_end(key)
            return found[0]
        size = room()
        self._make_room(size)
        self.items[key] = (make(), size, -1)
        self.used_bytes += size
        return self.items[key][0]

    def latest(
        self, key: object, of: NDArray[Any], make: Callable[[], NDArray[Any]]
    ) -> NDArray[Any]:
        """Return the array that `make` returned for `of`; a key keeps the last one, read-only.

        One that exceeds the limit is not kept.
        """
        found = self.items.get(key)
        if found is not None and np.array_equal(found[0][0], of):
            with suppress(KeyError):  # another thread may have put others in its place
                self.items.move_to_end(key)
            rows: NDArray[Any] = found[0][1]
            return rows
        made = make()
        made.flags.writeable = False
        new = (of.copy(), made), of.nbytes + made.nbytes, -1
        _, freed, _ = self.items.pop(key, (None, 0, 0))
        self.used_bytes -= freed
        if new[1] <= self._limit():
            self._make_room(new[1])
            self.items[key] = new
            self.used_bytes += new[1]
        return made

    def measure(self, key: object) -> None:
        """Count what `key` takes now that `get` has found it and it was used, and so packed."""
        value, before, parts = self.items[key]
        found = len(value.packed) if isinstance(value, QTensor) else -1
        if found == parts >= 0:
            return  # nothing more is kept since
        now = held_bytes(value)
        self.used_bytes += now - before
        self.items[key] = (value, now, found)
        self._make_room(0, spare=1)

    def _limit(self) -> int:
        return half_of_memory() if self.limit_bytes is None else self.limit_bytes

    def _make_room(self, size: int, *, spare: int = 0) -> None:
        limit = self._limit()
        while self.used_bytes + size > limit and len(self.items) > spare:
            _, (_, freed, _) = self.items.popitem(last=False)
            self.used_bytes -= freed


def held_bytes(value: object) -> int:
    """Return the bytes of all arrays that a value holds, shared memory counted once.

    >>> held_bytes((np.zeros(3), {"a": np.zeros(2, np.int8)}))
    26
    """
    return sum(array.nbytes for array in {id(a): a for a in _owners(value)}.values())


def _owners(value: object) -> Iterator[NDArray[Any]]:
    """Yield the arrays whose memory the arrays within a value use."""
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        yield value
    elif isinstance(value, QTensor):
        yield from _owners((value.codes, value.scale, value.scale_codes, value.packed))
    elif isinstance(value, tuple | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _owners(part)


def release(array: NDArray[Any]) -> None:
    """Give back the pages of the file that an array is mapped from; the next use reads them again.

    All of them, since reading a page maps its neighbours.
    """
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    mapped = getattr(owner.base, "obj", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def rows_of(table: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[Any]:
    """Return rows of a mapped table, a few at a time: each may map a megabyte around it."""
    rows = np.empty((ids.size, table.shape[1]), table.dtype)
    for i in range(0, ids.size, _ROWS):
        rows[i : i + _ROWS] = table[ids.reshape(-1)[i : i + _ROWS]]
        release(table)
    return rows.reshape(*ids.shape, table.shape[1])


def count_unusable(array: NDArray[Any]) -> int:
    """Return how many weights are NaN or Inf, looking at a few at a time."""
    flat, bad = array.reshape(-1), 0
    for i in range(0, flat.size, _PIECE):
        bad += int(np.count_nonzero(~np.isfinite(flat[i : i + _PIECE])))
        release(array)
    return bad


def check_blocks(needs: Mapping[str, int], limit: int) -> None:
    """Refuse a limit that the packed weights of one block exceed; `needs`: bytes by product.

    Raises
    ------
    NumsimError
        A block does not fit; the message says how much it needs.
    """
    blocks = block_bytes(needs)
    largest = max(blocks, key=blocks.__getitem__)
    if blocks[largest] > limit:
        raise NumsimError(
            f"memory_limit: the packed weights of one block must fit; {largest} needs about "
            f"{blocks[largest]:,} bytes; got {limit:,}; raise the limit"
        )


def block_bytes(needs: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of each layer, of each expert, and of each product outside the layers.

    >>> block_bytes({"layers.0.q_proj": 70, "layers.0.k_proj": 30, "lm_head": 100})
    {'layers.0': 100, 'lm_head': 100}
    >>> block_bytes({"layers.0.router": 1, "layers.0.experts.7.up_proj": 9})
    {'layers.0': 1, 'layers.0.experts.7': 9}
    """
    blocks: dict[str, int] = {}
    for name, size in needs.items():
        found = re.match(r"(.*layers\.\d+(?:\.experts\.\d+)?)\.", name)
        block = found[1] if found else name
        blocks[block] = blocks.get(block, 0) + size
    return blocks
