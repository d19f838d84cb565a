"""Files of a checkpoint: JSON tables and the tensors of ``*.safetensors``, mapped; never pickle."""

from __future__ import annotations

import json
import mmap
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from numsim.errors import NumsimError
from numsim.models.hub import exists
from numsim.models.keys import listing, shown

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
# what quantisers store besides; codes of 8-bit floats are read as they are
NARROW: dict[str, Any] = {
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "F8_E8M0": np.uint8,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "BOOL": np.uint8,
}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
INDEX = "model.safetensors.index.json"
LARGEST_JSON = 1 << 26  # bytes; the largest published index has 2**24


Maps = Mapping[Path, NDArray[np.uint8]]


class Tensor(NamedTuple):
    """Where a stored tensor is: its bytes begin:end of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_json(path: Path) -> dict[str, Any]:
    """Return the table in a JSON file of a model folder, each key once.

    Raises
    ------
    NumsimError
        No such file, no file, no JSON, no table, or larger than any published one.
    """
    if not exists(path):
        what = "is not a file" if exists(path, os.path.lexists) else "does not exist"
        raise NumsimError(
            f"load_model: the folder must hold {path.name}; {str(path)!r} {what}; "
            "point to the folder of a checkpoint in the Hugging Face layout"
        )
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_JSON + 1)
        if len(data) > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON} bytes")
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_table)
    except (OSError, ValueError, RecursionError) as error:
        raise NumsimError(
            f"load_model: {path.name} must be JSON; {error!s:.200}; repair it or download it again"
        ) from None
    if not isinstance(value, dict):
        raise NumsimError(
            f"load_model: {path.name} must hold a table; got {type(value).__name__}; "
            "repair it or download it again"
        )
    return value


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, each of whose keys must occur once."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return table


def stored_tensors(folder: Path) -> dict[str, Tensor]:
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
                f"load_model: the index must say where a repeated tensor is; {listing(twice[:1])} "
                f"is in {stored[twice[0]].file.name} and {file}, and not in {INDEX}; repair that, "
                "or download it again"
            )
        stored |= own
    lacking = sorted(set(weight_map) - set(stored))
    if lacking:
        raise NumsimError(
            f"load_model: a shard must hold what the index says; {listing(lacking[:1])} is not in "
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
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise NumsimError(
            f"load_model: {INDEX} must have a weight_map; it has none; download it again"
        )
    for name, file in weight_map.items():
        name = listing([name])
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\:"):
            raise NumsimError(
                f"load_model: the index must name files of its own folder; {name} is said to be "
                f"in {shown(file)}; do not trust this checkpoint"
            )
        if not file.endswith(".safetensors"):
            raise NumsimError(
                f"load_model: the index must name *.safetensors; {name} is said to be in "
                f"{shown(file)}; never pickle: save it again with safe_serialization=True"
            )
        if not exists(folder / file):
            raise NumsimError(
                f"load_model: every shard of the index must be there; {shown(file)} is missing; "
                "download it"
            )
    return dict(weight_map)


def _header(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file after the safetensors library has accepted it."""
    header, size = _read_header(file)
    header.pop("__metadata__", None)
    return {
        name: Tensor(
            file, t["dtype"], tuple(t["shape"]), *(8 + size + x for x in t["data_offsets"])
        )
        for name, t in header.items()
    }


def metadata(files: Iterable[Path]) -> dict[str, str]:
    """Return the words that files of tensors say of themselves."""
    said: dict[str, str] = {}
    for file in sorted(files):
        said |= _read_header(file)[0].get("__metadata__") or {}
    return said


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the JSON before the tensors of a file, and its size."""
    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise NumsimError(
            f"load_model: {file.name} must be a whole safetensors file; {error!s:.200}; repair it "
            "or download it again"
        ) from None
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:  # of a name that comes twice, readers differ in which one counts
            header = json.loads(stream.read(size), object_pairs_hook=_table)
        except ValueError as error:
            raise NumsimError(
                f"load_model: the header of {file.name} must name each tensor once; "
                f"{error!s:.200}; do not trust this file"
            ) from None
    return header, size


def map_file(file: Path) -> NDArray[np.uint8]:
    """Map a file read-only: its pages may be given back and read again at any time."""
    with file.open("rb") as stream:
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def view(maps: Maps, t: Tensor) -> NDArray[Any]:
    """Return a tensor of a mapped file, not copied; codes of 8-bit floats as uint8."""
    data = maps[t.file][t.begin : t.end]
    array: NDArray[Any] = data.view((DTYPES | NARROW)[t.dtype]).reshape(t.shape)
    return array
