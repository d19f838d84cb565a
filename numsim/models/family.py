"""What a family of checkpoints is: how its configs spell an Arch, how its tensors are called."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numsim.models.arch import Arch
from numsim.models.keys import Key
from numsim.models.places import At, find_place
from numsim.models.products import tensor_shapes
from numsim.models.rope_keys import TypeRope

Fields = dict[str, Any]
Config = Mapping[str, Any]
Names = Mapping[str, str | At]


@dataclass(frozen=True, slots=True)
class Head:
    """What follows the layers in one class of transformers."""

    switches: Mapping[str, Any] = field(default_factory=dict)  # fields of Arch
    names: Names = field(default_factory=dict)  # over those of the family
    # fields that hold only where a tensor of theirs is stored, and what they are elsewhere
    optional: tuple[Mapping[str, Any], ...] = ()
    counts_labels: bool = False  # scores of a text, as many as the config has labels
    finish: Callable[[Fields, Config], Fields] | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """How checkpoints of one ``model_type`` spell an Arch and name its tensors."""

    classes: Mapping[str, Head]  # by their names in `architectures`, the usual one first
    keys: Mapping[str, Key]  # field of Arch (or of `finish`) -> config key, in reading order
    names: Names  # our tensor or module -> theirs
    switches: Mapping[str, Any] = field(default_factory=dict)  # fields every checkpoint shares
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)  # key -> computed values
    ignored: str = ""  # config keys that change no result
    read: str = ""  # keys beside `keys` that decide numbers
    prefixes: tuple[str, ...] = ("model.", "")  # of stored names, the usual one first
    ignored_tensors: tuple[str, ...] = ()  # globs of stored tensors that no computation needs
    older_names: Mapping[str, str] = field(default_factory=dict)  # ends of stored names -> today's
    renamed: Callable[[Arch], Names] | None = None  # over `names`, by what the network has
    rope: Mapping[str, object] | None = None  # defaults of the rotary keys; None: no rotary
    rope_table: Mapping[str, object] = field(default_factory=dict)  # where a config has no table
    ropes: Mapping[str, TypeRope] = field(default_factory=dict)  # where types of layers differ
    windows: Callable[[Config, int], bool] | None = None  # does a layer see a part only
    window_key: str = "sliding_window"  # of how far it sees
    all_slide: bool = False  # where one slides; `layer_types` cannot say otherwise
    window_default: int | None = None
    window_switch: str = ""  # a key without which no layer slides
    finish: Callable[[Fields, Config], Fields] | None = None
    head_tensors: tuple[str, ...] = ("lm_head.*",)  # globs: not needed where that head is not run
    stored_head: bool = False  # tied where no head is stored, whatever the config says


def with_stored_parts(
    arch: Arch, family: Family, head: Head, stored: Container[str]
) -> tuple[Arch, str]:
    """Return the network without the optional parts that are not stored, and the names' prefix.

    A class of a masked-language model may hold its trunk alone, as those of many embeddings do.
    """
    if family.stored_head and "lm_head.weight" not in stored:
        arch = replace(arch, tied=arch.head)
    shapes, names = tensor_shapes(arch), names_of(family, head, arch)

    def at(our: str, prefix: str) -> str:
        return find_place(our, names, prefix, shapes, arch).name

    every, first = family.prefixes, next(iter(shapes))
    prefix = next((p for p in every if at(first, p) in stored), every[0])
    for part in head.optional:
        without = replace(arch, **part)
        own = set(tensor_shapes(arch)) - set(tensor_shapes(without))
        arch = arch if any(at(our, prefix) in stored for our in own) else without
    return arch, prefix


def names_of(family: Family, head: Head, arch: Arch) -> Names:
    """Return how the tensors of a network are stored."""
    own = {} if family.renamed is None else family.renamed(arch)
    return {**family.names, **own, **head.names}
