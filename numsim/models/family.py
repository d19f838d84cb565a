"""What a family of checkpoints is: how its configs spell an Arch, how its tensors are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numsim.models.arch import Arch
from numsim.models.keys import Key
from numsim.models.places import At
from numsim.models.rope_keys import TypeRope

Fields = dict[str, Any]
Config = Mapping[str, Any]
Names = Mapping[str, str | At]


@dataclass(frozen=True, slots=True)
class Head:
    """What follows the layers in one class of transformers."""

    switches: Mapping[str, Any] = field(default_factory=dict)  # fields of Arch
    names: Names = field(default_factory=dict)  # over those of the family
    # fields that hold only where their tensors are stored, and what they are elsewhere
    optional: Mapping[str, Any] = field(default_factory=dict)
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


def names_of(family: Family, head: Head, arch: Arch) -> Names:
    """Return how the tensors of a network are stored."""
    own = {} if family.renamed is None else family.renamed(arch)
    return {**family.names, **own, **head.names}
