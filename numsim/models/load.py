"""From a folder in the Hugging Face layout to a Model; never pickle."""

from __future__ import annotations

import json
import math
import mmap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.models.arch import Arch, tensor_shapes
from numsim.models.config import At, Family, read_arch
from numsim.models.families import current_name, get_family, stored_at
from numsim.models.memory import OperandCache, as_bytes, count_unusable, release
from numsim.models.run import Model

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
COUNTS = ("layers", "decoder_layers", "experts")
MANY = 20_000  # layers times experts
INDEX = "model.safetensors.index.json"


class Tensor(NamedTuple):
    """Where a stored tensor is: its bytes begin:end of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def load_model(directory: str | Path, *, memory_limit: int | str | None = None) -> Model:
    """Read a network from ``config.json`` and ``*.safetensors``, sharded or not.

    Weights stay as stored (float64, float32, float16, bfloat16), mapped from the files.

    Parameters
    ----------
    directory : str or Path
        Folder in the Hugging Face layout.
    memory_limit : int or str, optional
        Bytes, or text such as ``"4GB"``, for converted, quantised and packed weights. The least
        recently used make room and are made again when they are needed: a model that is larger
        runs block by block, with the same bits. A run whose largest block alone does not fit is an
        error. None: half of the machine's memory, and a block may take more.

    Returns
    -------
    Model

    Raises
    ------
    NumsimError
        The folder, a file, a config key or a tensor is missing, damaged or not as the config
        says; missing, misshapen and surplus tensors are listed together.
    UnsupportedError
        The network needs something that is not implemented.

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
    folder = Path(directory)
    if not _exists(folder, Path.is_dir):
        beside = (
            [p.name for p in folder.parent.iterdir()] if _exists(folder.parent, Path.is_dir) else []
        )
        raise NumsimError(
            f"load_model: directory must be a folder with config.json and *.safetensors; "
            f"got {str(folder)!r}, which is not a folder{near_names(folder.name, beside)}"
        )
    config = _read_json(folder / "config.json")
    family = get_family(config.get("model_type"))
    _check_counts(config, family, folder)
    arch = read_arch(config, family)
    as_stored = _stored(folder)
    # an older name beside today's is surplus, and reported
    stored = {}
    for name, tensor in as_stored.items():
        new = current_name(name, family)
        stored[name if new in as_stored else new] = tensor
    arch, places = _match(arch, family, stored, folder)
    limit = None if memory_limit is None else as_bytes(memory_limit)
    maps = {file: _map(file) for file in {t.file for t in stored.values()}}
    whole = {at.name: _view(maps, stored[at.name]) for at in places.values()}
    for their, array in whole.items():
        bad = count_unusable(array)
        if bad:
            raise NumsimError(
                f"load_model: weights must be finite; {their} has {bad} NaN or Inf; "
                "download the checkpoint again or repair it"
            )
    arrays = {our: _take(whole[at.name], at, arch.heads) for our, at in places.items()}
    if arch.head and arch.tied:
        _check_tied(arrays, places)
        arrays["lm_head.weight"] = arrays["embed.weight"]
    for data in maps.values():
        release(data)  # read for the comparison, and for parts that had to be copied
    return Model(arch, arrays, folder.name, OperandCache(limit), folder)


def _exists(path: Path, kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """Return whether there is such a file; names that no file can have are none."""
    try:
        return kind(path)
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NumsimError(
            f"load_model: the folder must hold {path.name}; {str(path)!r} does not exist; "
            "point to the folder of a checkpoint in the Hugging Face layout"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is not part of it
        value = json.loads(text, object_pairs_hook=_table)
    except (ValueError, RecursionError) as error:
        raise NumsimError(
            f"load_model: {path.name} must be JSON; {error}; download it again"
        ) from None
    if not isinstance(value, dict):
        raise NumsimError(
            f"load_model: {path.name} must hold a table; got {type(value).__name__}; "
            "download it again"
        )
    return value


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, each of whose keys must occur once."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return table


def _check_counts(config: Mapping[str, Any], family: Family, folder: Path) -> None:
    """Raise where a config counts more layers or experts than tensors are stored.

    Later steps make lists of that length, so only usual counts go on unseen.
    """
    keys = {name: family.keys[name].name for name in COUNTS if name in family.keys}
    given = {key: config.get(key) for key in keys.values()}
    counts = [count for count in given.values() if isinstance(count, int)]
    if math.prod(max(count, 1) for count in counts) <= MANY:
        return
    stored = len(_stored(folder))
    for key, count in given.items():
        if isinstance(count, int) and count > stored:
            raise NumsimError(
                f"load_model: each layer and each expert has a tensor; config.json says "
                f"{key} {count}, {folder.name} holds {stored} tensors; "
                "take config.json and weights from the same checkpoint"
            )


def _stored(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the checkpoint; where shards repeat one, the index decides."""
    single = _single_file(folder)
    if single is not None:
        return _header(single)
    weight_map = _weight_map(folder)
    stored: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        header = _header(folder / file)
        own = {name: t for name, t in header.items() if weight_map.get(name, file) == file}
        twice = sorted(set(own) & set(stored))
        if twice:
            raise NumsimError(
                f"load_model: the index must say where a repeated tensor is; {twice[0]} is in "
                f"{stored[twice[0]].file.name} and {file}, and not in {INDEX}; download it again"
            )
        stored |= own
    lacking = sorted(set(weight_map) - set(stored))
    if lacking:
        raise NumsimError(
            f"load_model: a shard must hold what the index says; {lacking[0]} is not in "
            f"{weight_map[lacking[0]]} ({len(lacking)} such); download the files again"
        )
    return stored


def _single_file(folder: Path) -> Path | None:
    """Return the file of an unsharded checkpoint, None for a sharded one."""
    preferred = folder / "model.safetensors"
    if preferred.is_file():
        return preferred
    if (folder / INDEX).is_file():
        return None
    found = sorted(folder.glob("*.safetensors"))
    for path in found:
        if not path.is_file():
            raise NumsimError(
                f"load_model: weights must be files; {path.name} is a folder, a link to nothing or "
                "a device; download it again"
            )
    if len(found) == 1:
        return found[0]
    if found:
        raise NumsimError(
            f"load_model: several *.safetensors need {INDEX}; got {len(found)} files without it; "
            "download the index"
        )
    pickles = sorted(p.name for glob in PICKLES for p in folder.glob(glob))
    if pickles:
        raise NumsimError(
            f"load_model: weights must be *.safetensors; {folder.name} has only {pickles[0]}, a "
            "pickle, which can run any code when read; convert it where you trust it, with "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise NumsimError(
        f"load_model: the folder must hold *.safetensors; {str(folder)!r} has none; "
        "point to the folder of a checkpoint in the Hugging Face layout"
    )


def _weight_map(folder: Path) -> dict[str, str]:
    """Return stored name -> file name of a sharded checkpoint."""
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise NumsimError(
            f"load_model: {INDEX} must have a weight_map; it has none; download it again"
        )
    for name, file in weight_map.items():
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\:"):
            raise NumsimError(
                f"load_model: the index must name files of its own folder; {name} is said to be "
                f"in {file!r}; do not trust this checkpoint"
            )
        if not file.endswith(".safetensors"):
            raise NumsimError(
                f"load_model: the index must name *.safetensors; {name} is said to be in {file!r}; "
                "never pickle: save the checkpoint again with safe_serialization=True"
            )
        if not _exists(folder / file):
            raise NumsimError(
                f"load_model: every shard of the index must be there; {file} is missing; "
                "download it"
            )
    return dict(weight_map)


def _header(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file after the safetensors library has accepted it."""
    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise NumsimError(
            f"load_model: {file.name} must be a whole safetensors file; {error}; download it again"
        ) from None
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return {
        name: Tensor(
            file, t["dtype"], tuple(t["shape"]), *(8 + size + x for x in t["data_offsets"])
        )
        for name, t in header.items()
    }


def _match(
    arch: Arch, family: Family, stored: Mapping[str, Tensor], folder: Path
) -> tuple[Arch, dict[str, At]]:
    """Return where each tensor of ours is, or raise with everything that does not fit.

    Optional parts whose tensors are all absent are switched off in the Arch.
    """
    embed = {p: stored_at("embed.weight", family, p, gated=False).name for p in family.prefixes}
    prefix = next((p for p, name in embed.items() if name in stored), family.prefixes[0])

    def place(our: str) -> At:
        return stored_at(our, family, prefix, gated=arch.gated)

    for part in family.optional:
        off: dict[str, Any] = {part: False}
        without = replace(arch, **off)
        own = set(tensor_shapes(arch)) - set(tensor_shapes(without))
        arch = arch if any(place(our).name in stored for our in own) else without
    shapes = tensor_shapes(arch)
    if arch.head and arch.tied and place("lm_head.weight").name in stored:
        shapes["lm_head.weight"] = shapes["embed.weight"]
    places = {our: place(our) for our in shapes}
    problems: dict[str, None] = {}  # in order, each once: parts of one tensor share theirs
    for our, at in places.items():
        shape = _stored_shape(shapes[our], at)
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
    for their in sorted(set(stored) - {at.name for at in places.values()}):
        if not any(fnmatchcase(their, glob) for glob in ignored):
            problems[f"surplus {their} {list(stored[their].shape)}"] = None
    if problems:
        shown = "\n  ".join(list(problems)[:40])
        more = f"\n  and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise NumsimError(
            f"load_model: {folder.name} must hold the tensors its config.json implies; "
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  {shown}{more}\n"
            "take config.json and weights from the same checkpoint"
        )
    return arch, places


def _stored_shape(shape: tuple[int, ...], at: At) -> tuple[int, ...]:
    whole = (shape[0] * at.parts, *shape[1:])
    return whole[::-1] if at.turned else whole


def _take(array: NDArray[Any], at: At, heads: int) -> NDArray[Any]:
    """Return our [out, in] part of a stored tensor, a view where it can be."""
    array = array.T if at.turned else array
    if at.parts == 1:
        return array
    rows = array.shape[0] // at.parts
    if not at.by_head:
        return array[at.part * rows : (at.part + 1) * rows]
    by_head = array.reshape(heads, at.parts, -1, *array.shape[1:])  # [N, parts, D, in]
    return np.ascontiguousarray(by_head[:, at.part]).reshape(rows, *array.shape[1:])


def _map(file: Path) -> NDArray[np.uint8]:
    """Map a file read-only: its pages may be given back and read again at any time."""
    with file.open("rb") as stream:
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _view(maps: Mapping[Path, NDArray[np.uint8]], t: Tensor) -> NDArray[Any]:
    """Return a tensor of a mapped file, not copied."""
    data = maps[t.file][t.begin : t.end]
    array: NDArray[Any] = data.view(DTYPES[t.dtype]).reshape(t.shape)
    return array


def _check_tied(arrays: Mapping[str, NDArray[Any]], places: Mapping[str, At]) -> None:
    head = arrays.get("lm_head.weight")
    if head is not None and not np.array_equal(head, arrays["embed.weight"]):
        raise UnsupportedError(
            "load_model: with tie_word_embeddings the output head is "
            f"{places['embed.weight'].name}; got another {places['lm_head.weight'].name}; "
            "set tie_word_embeddings to false or drop it"
        )
