"""Packed checkpoints: read as their quantisers wrote them, codes never rounded again."""

from numsim.models.packed.declared import find_declared
from numsim.models.packed.group import unpacked_names
from numsim.models.packed.types import Declared, Packed
from numsim.models.packed.unpack import check_values, read

__all__ = ["Declared", "Packed", "check_values", "find_declared", "read", "unpacked_names"]
