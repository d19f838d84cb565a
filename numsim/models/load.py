"""From a folder in the Hugging Face layout to a Model; never pickle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.errors import ConfigKeyWarning, LeftOutWarning, NumsimError, UnsupportedError, warn
from numsim.float_state import known_floats
from numsim.models.arch import Arch, tensor_shapes
from numsim.models.config import head_of, read_arch, unused_keys, used_keys
from numsim.models.families import current_name, get_family
from numsim.models.family import Family, Head, names_of
from numsim.models.hub import find_folder, model_name
from numsim.models.keys import asked_keys, listing, say_unused, set_aside, shown
from numsim.models.memory import OperandCache, as_bytes, count_unusable, release
from numsim.models.multimodal import say_left_out, text_config, text_names
from numsim.models.packed import packed_by
from numsim.models.places import Place, find_place
from numsim.models.rope_keys import choose_readings, keys_in_tables
from numsim.models.run import Model
from numsim.models.stored import DTYPES, Tensor, map_file, read_json, stored_tensors, view

COUNTS = ("layers", "decoder_layers", "experts", "local_experts")
MANY = 20_000  # layers times experts


@known_floats
def load_model(
    directory: str | Path,
    *,
    memory_limit: int | str | None = None,
    ignore_keys: Iterable[str] = (),
) -> Model:
    """Read a network from ``config.json`` and ``*.safetensors``, sharded or not.

    Weights stay as stored (float64, float32, float16, bfloat16), mapped from the files.

    Parameters
    ----------
    directory : str or Path
        Folder in the Hugging Face layout, or ``org/name`` of a model in the hub's local cache.
    memory_limit : int or str, optional
        Bytes, or text such as ``"4GB"``, for converted, quantised and packed weights. The least
        recently used make room and are made again when they are needed: a model that is larger
        runs block by block, with the same bits. A run whose largest block alone does not fit is an
        error. None: half of the machine's memory, and a block may take more.
    ignore_keys : iterable of str, optional
        Keys of config.json to read over, as if it lacked them: ``A``, or ``rope_scaling.A``. Only
        those that the network does not read otherwise; `Model.ignored_keys` has those it had.
        ``rope_scaling.attn_factor=vllm`` multiplies sine and cosine by that key, as vLLM does.

    Returns
    -------
    Model

    Raises
    ------
    NumsimError
        The folder, a file, a config key or a tensor is missing, damaged or not as the config
        says; missing, misshapen and surplus tensors are listed together.
    UnsupportedError
        The network needs something that is not implemented, or its weights are packed.

    Warns
    -----
    ConfigKeyWarning
        Keys of config.json that only other software reads; `Model.unused_keys` has them.
    LeftOutWarning
        The checkpoint reads pictures too: its text model runs, `Model.left_out` has the rest.

    Source
    ------
    safetensors format, https://huggingface.co/docs/safetensors.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> load_model(bundled_model_dir()).arch.layers
    5
    """
    if not isinstance(directory, str | Path):
        raise NumsimError(
            f"load_model: a folder is a str or a Path; got {type(directory).__name__}"
        )
    folder = find_folder(directory)
    config, is_part = text_config(read_json(folder / "config.json"))
    family = get_family(config.get("model_type"), config.get("architectures"))
    config, asked, chosen = choose_readings(config, asked_keys(ignore_keys))
    used = used_keys(config, family)
    if family.rope is not None or family.ropes:
        used |= keys_in_tables(config)
    config, ignored = set_aside(config, asked, used)
    _check_packed(config, folder)
    _check_counts(config, family, folder)
    arch = read_arch(config, family)
    as_stored = stored_tensors(folder)
    _check_packed(config, folder, as_stored)
    left_out: dict[str, int] = {}
    if is_part:
        names, left_out = text_names(as_stored)
        as_stored = {names[name]: tensor for name, tensor in as_stored.items() if name in names}
        arch = replace(arch, tied="lm_head.weight" not in as_stored)
    # an older name beside today's is surplus, and reported
    stored = {}
    for name, tensor in as_stored.items():
        new = current_name(name, family)
        stored[name if new in as_stored else new] = tensor
    arch, places = _match(arch, family, head_of(config, family), stored, folder)
    limit = None if memory_limit is None else as_bytes(memory_limit)
    maps = {file: map_file(file) for file in {t.file for t in stored.values()}}
    whole = {at.name: view(maps, stored[at.name]) for at in places.values()}
    for their, array in whole.items():
        bad = count_unusable(array)
        if bad:
            raise NumsimError(
                f"load_model: weights must be finite; {their} has {bad} NaN or Inf; "
                "download the checkpoint again or repair it"
            )
    arrays = {our: place.take(whole[place.name]) for our, place in places.items()}
    if arch.tied:
        arch = _tie(arch, family, arrays, places)
    for data in maps.values():
        release(data)  # read for the comparison, and for parts that had to be copied
    unused = unused_keys(config, family)
    if unused:
        warn(say_unused(unused), ConfigKeyWarning)
    if left_out:
        warn(say_left_out(left_out), LeftOutWarning)
    return Model(
        arch, arrays, model_name(folder), OperandCache(limit), places, unused, ignored + chosen,
        folder, tuple(left_out),
    )  # fmt: skip


def _check_packed(
    config: Mapping[str, Any], folder: Path, stored: Mapping[str, Tensor] | None = None
) -> None:
    """Raise where weights are packed by a quantiser, which `packed_by` names."""
    dtypes = {name: tensor.dtype for name, tensor in (stored or {}).items()}
    says = packed_by(config, folder, dtypes, DTYPES)
    if says is not None:
        raise UnsupportedError(
            f"load_model: weights must be stored as float32, float16 or bfloat16; those of "
            f"{folder.name} are packed: {says}; load the one that was quantised, numsim "
            "quantises by recipe, or dequantise the checkpoint and save it again"
        )


def _check_counts(config: Mapping[str, Any], family: Family, folder: Path) -> None:
    """Raise where a config counts more layers or experts than tensors are stored.

    Later steps make lists of that length, so only usual counts go on unseen.
    """
    keys = {name: family.keys[name].name for name in COUNTS if name in family.keys}
    given = {key: config.get(key) for key in keys.values()}
    counts = [count for count in given.values() if isinstance(count, int)]
    if math.prod(max(count, 1) for count in counts) <= MANY:
        return
    stored = len(stored_tensors(folder))
    for key, count in given.items():
        if isinstance(count, int) and count > stored:
            raise NumsimError(
                f"load_model: each layer and each expert has a tensor; config.json says "
                f"{key} {shown(count)}, {folder.name} holds {stored} tensors; "
                "correct the one of the two that is wrong"
            )


def _match(
    arch: Arch, family: Family, head: Head, stored: Mapping[str, Tensor], folder: Path
) -> tuple[Arch, dict[str, Place]]:
    """Return where each tensor of ours is, or raise with everything that does not fit.

    Optional parts whose tensors are all absent are switched off in the Arch.
    """
    names = names_of(family, head, arch)
    if family.stored_head and "lm_head.weight" not in stored:
        arch = replace(arch, tied=arch.head)
    shapes = tensor_shapes(arch)
    head_shape = {"lm_head.weight": shapes["embed.weight"]} if arch.tied else {}

    def find(our: str, prefix: str) -> Place:
        return find_place(our, names, prefix, shapes | head_shape, arch)

    embed = {p: find("embed.weight", p).name for p in family.prefixes}
    prefix = next((p for p, name in embed.items() if name in stored), family.prefixes[0])
    for part, value in head.optional.items():
        off: dict[str, Any] = {part: value}
        without = replace(arch, **off)
        own = set(shapes) - set(tensor_shapes(without))
        arch = arch if any(find(our, prefix).name in stored for our in own) else without
    shapes = tensor_shapes(arch)
    if head_shape and find("lm_head.weight", prefix).name in stored:
        shapes |= head_shape
    places = {our: find_place(our, names, prefix, shapes, arch) for our in shapes}
    problems: dict[str, None] = {}  # in order, each once: parts of one tensor share theirs
    for our, at in places.items():
        shape = at.stored_shape(shapes[our])
        if at.name not in stored:
            problems[f"missing {at.name} {list(shape)}"] = None
            continue
        t = stored[at.name]
        if t.shape != shape:
            problems[f"{at.name} has shape {list(t.shape)}, expected {list(shape)}"] = None
        if t.dtype not in DTYPES:
            text = f"{at.name} is stored as {t.dtype}, readable are {', '.join(DTYPES)}"
            problems[text] = None
    ignored = [glob.replace("{layers}", str(arch.layers)) for glob in family.ignored_tensors]
    ignored += () if arch.head or arch.masked else family.head_tensors
    for their in sorted(set(stored) - {at.name for at in places.values()}):
        if not any(fnmatchcase(their, glob) for glob in ignored):
            problems[f"surplus {listing([their])} {list(stored[their].shape)}"] = None
    if problems:
        lines = "\n  ".join(list(problems)[:40])
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise NumsimError(
            f"load_model: {folder.name} must hold the tensors its config.json implies; "
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  {lines}{more}\n"
            "if both are as published, this layout is not implemented, else download both again"
        )
    return arch, places


def _tie(
    arch: Arch, family: Family, arrays: dict[str, NDArray[Any]], places: Mapping[str, Place]
) -> Arch:
    """Make the embedding the output head; return the Arch, where a stored head counts untied."""
    head = arrays.get("lm_head.weight")
    if head is not None and not np.array_equal(head, arrays["embed.weight"]):
        if family.stored_head:
            return replace(arch, tied=False)
        raise UnsupportedError(
            "load_model: with tie_word_embeddings the output head is "
            f"{places['embed.weight'].name}; got another {places['lm_head.weight'].name}; "
            "set tie_word_embeddings to false or drop it"
        )
    arrays["lm_head.weight"] = arrays["embed.weight"]
    return arch
