"""From a folder in the Hugging Face layout to a Model; never pickle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from numsim.errors import ConfigKeyWarning, LeftOutWarning, NumsimError, UnsupportedError, warn
from numsim.float_state import known_floats
from numsim.models.arch import Arch
from numsim.models.config import head_of, read_arch, unused_keys, used_keys
from numsim.models.families import current_name, get_family
from numsim.models.family import Family, Head, names_of, with_stored_parts
from numsim.models.hub import find_folder, model_name
from numsim.models.keys import asked_keys, listing, say_unused, set_aside, shown
from numsim.models.memory import OperandCache, as_bytes, count_unusable, release
from numsim.models.multimodal import say_left_out, text_config, text_names
from numsim.models.packed import Declared, Packed, check_values, find_declared, unpacked_names
from numsim.models.packed.declared import CONFIG_KEYS, check_method
from numsim.models.places import Place, find_place
from numsim.models.products import tensor_shapes
from numsim.models.rope_keys import choose_readings, keys_in_tables
from numsim.models.run import Model
from numsim.models.stored import (
    DTYPES,
    Maps,
    Tensor,
    map_file,
    metadata,
    read_json,
    stored_tensors,
    view,
)
from numsim.models.weights import Mapped, Stored, Weights, wide

COUNTS = ("layers", "decoder_layers", "experts", "local_experts")
MANY = 20_000  # layers times experts


@known_floats
def load_model(
    directory: str | Path,
    *,
    memory_limit: int | str | None = None,
    ignore_keys: Iterable[str] = (),
    dequantise: bool = False,
) -> Model:
    """Read a network from ``config.json`` and ``*.safetensors``, sharded or not.

    Weights stay as stored (float64, float32, float16, bfloat16), mapped from the files. Packed ones
    (compressed-tensors, FP8 of DeepSeek and FBGEMM, ModelOpt, GPTQ, AWQ, MXFP4 of gpt-oss,
    bitsandbytes, torchao) stay packed: `Model.tensors` gives codes and scales, `Model.recipe` what
    the checkpoint declares, and no code is rounded again.

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
    dequantise : bool
        Packed weights become float32 numbers, scale times code, for recipes that round them anew.

    Returns
    -------
    Model

    Raises
    ------
    NumsimError
        The folder, a file, a config key or a tensor is missing, damaged or not as the config
        says; missing, misshapen and surplus tensors are listed together.
    UnsupportedError
        The network needs something that is not implemented, or its weights are packed by a method
        that is not read.

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
    check_method(config, folder)
    network = {key: value for key, value in config.items() if key not in CONFIG_KEYS}
    check_counts(network, family, folder)
    arch = read_arch(network, family)
    maps = {file: map_file(file) for file in {t.file for t in stored_tensors(folder).values()}}
    as_stored, declared, cache_scales = _unpacked(config, folder, maps)
    left_out: dict[str, int] = {}
    if is_part:
        names, left_out = text_names(as_stored)
        as_stored = {names[name]: tensor for name, tensor in as_stored.items() if name in names}
        arch = replace(arch, tied="lm_head.weight" not in as_stored)
    # an older name beside today's is surplus, and reported
    stored: dict[str, Tensor | Packed] = {}
    for name, tensor in as_stored.items():
        new = current_name(name, family)
        stored[name if new in as_stored else new] = tensor
    arch, places = _match(arch, family, head_of(config, family), stored, folder)
    limit = None if memory_limit is None else as_bytes(memory_limit)
    plain = {at.name: stored[at.name] for at in places.values()}
    whole = {their: view(maps, t) for their, t in plain.items() if isinstance(t, Tensor)}
    for their, array in whole.items():
        bad = count_unusable(array)
        if bad:
            raise NumsimError(
                f"load_model: weights must be finite; {their} has {bad} NaN or Inf; "
                "download the checkpoint again or repair it"
            )
    packed = {their: t for their, t in plain.items() if isinstance(t, Packed)}
    for weight in packed.values():
        check_values(weight, maps)
        release(maps[weight.parts["codes"].file])
    mapped = {our: place for our, place in places.items() if place.name in whole}
    shapes = tensor_shapes(arch)
    if "embed.weight" in shapes:
        shapes["lm_head.weight"] = shapes["embed.weight"]
    arrays = Mapped(whole, mapped, shapes)
    parts = {our: (packed[p.name], p) for our, p in places.items() if p.name in packed}
    tensors: Mapping[str, Stored] = arrays
    if declared is not None:
        tensors = Weights(arrays, parts, maps, declared, cache_scales, dequantise)
    if arch.tied:
        arch = _tie(arch, family, tensors, places)
    if arch.tied and "embed.weight" in mapped:
        mapped["lm_head.weight"] = mapped["embed.weight"]
    elif arch.tied:
        parts["lm_head.weight"] = parts["embed.weight"]
    for data in maps.values():
        release(data)  # read for the comparison, and for parts that had to be copied
    unused = unused_keys(network, family)
    if unused:
        warn(say_unused(unused), ConfigKeyWarning)
    if left_out:
        warn(say_left_out(left_out), LeftOutWarning)
    return Model(
        arch, tensors, model_name(folder), OperandCache(limit), places, unused, ignored + chosen,
        folder, tuple(left_out),
    )  # fmt: skip


def _unpacked(
    config: Mapping[str, Any], folder: Path, maps: Maps
) -> tuple[Mapping[str, Tensor | Packed], Declared | None, Mapping[str, Tensor]]:
    """Return tensors by the names they have where nothing is packed, and what is declared."""
    stored = stored_tensors(folder)
    dtypes = {name: tensor.dtype for name, tensor in stored.items()}
    declared = find_declared(config, folder, dtypes, DTYPES, metadata(maps))
    if declared is None:
        return stored, None, {}
    made, cache_scales = unpacked_names(stored, declared, maps)
    if cache_scales or declared.cache:
        warn(
            "load_model: the checkpoint declares a narrow cache of keys and values; runs keep it "
            "wide, but for a recipe that rounds it, such as model.recipe(kv_cache=True)",
            ConfigKeyWarning,
        )
    return made, declared, cache_scales


def check_counts(config: Mapping[str, Any], family: Family, folder: Path) -> None:
    """Raise where a config counts more layers or experts than tensors are stored.

    Later steps make lists of that length, so only usual counts go on unseen.

    Raises
    ------
    NumsimError
        With the key, its count, and how many tensors there are.
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
    arch: Arch, family: Family, head: Head, stored: Mapping[str, Tensor | Packed], folder: Path
) -> tuple[Arch, dict[str, Place]]:
    """Return where each tensor of ours is, or raise with everything that does not fit.

    Optional parts whose tensors are all absent are switched off in the Arch.
    """
    arch, prefix = with_stored_parts(arch, family, head, stored)
    names, shapes = names_of(family, head, arch), tensor_shapes(arch)
    if arch.tied:
        with_head = shapes | {"lm_head.weight": shapes["embed.weight"]}
        if find_place("lm_head.weight", names, prefix, with_head, arch).name in stored:
            shapes = with_head
    places = {our: find_place(our, names, prefix, shapes, arch) for our in shapes}
    turned = _lie_turned(places, shapes, stored)
    problems: dict[str, None] = {}  # in order, each once: parts of one tensor share theirs
    for our, at in places.items():
        t = stored.get(at.name)
        if at.either and turned:
            at = places[our] = at._replace(turned=True)
        if isinstance(t, Packed):  # which is [out, in], however it lies in the file
            at = at._replace(turned=False)
        shape = at.stored_shape(shapes[our])
        if t is None:
            problems[f"missing {at.name} {list(shape)}"] = None
            continue
        if t.shape != shape:
            problems[f"{at.name} has shape {list(t.shape)}, expected {list(shape)}"] = None
        if isinstance(t, Tensor) and t.dtype not in DTYPES:
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


def _lie_turned(
    places: Mapping[str, Place], shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, Tensor | Packed],
) -> bool:  # fmt: skip
    """Return whether tensors that occur in either order are stored the other way round.

    One that is square does not tell; all of a checkpoint lie alike.
    """
    for our, at in places.items():
        t = stored.get(at.name)
        if at.either and t is not None:
            here = t.shape == at.stored_shape(shapes[our])
            there = t.shape == at._replace(turned=True).stored_shape(shapes[our])
            if here != there:
                return there
    return False


def _tie(
    arch: Arch, family: Family, tensors: Mapping[str, Stored], places: Mapping[str, Place]
) -> Arch:
    """Return the Arch whose head is the embedding, or where another stored one counts untied."""
    head = tensors.get("lm_head.weight")
    if head is not None and not np.array_equal(wide(head), wide(tensors["embed.weight"])):
        if family.stored_head:
            return replace(arch, tied=False)
        raise UnsupportedError(
            "load_model: with tie_word_embeddings the output head is "
            f"{places['embed.weight'].name}; got another {places['lm_head.weight'].name}; "
            "set tie_word_embeddings to false or drop it"
        )
    return arch
