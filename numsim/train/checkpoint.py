"""Everything a run needs to go on, in one file: safetensors with a JSON header, replaced whole.

A checkpoint is a tree of dicts, tuples, dataclasses, arrays and numbers. Its leaves become tensors
and JSON under the path that leads to them; reading fills the leaves of a tree of the same shape,
which the run makes anew. So a file holds no code, and a file of another run does not fit.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from numsim.errors import NumsimError
from numsim.formats import Format
from numsim.quant import QTensor, Quant

FILE = "checkpoint.safetensors"
_KIND = "numsim training checkpoint 2"
_FIXED = (str, bytes, Quant, Format)  # what a run says, not what it computes

T = TypeVar("T")


def write_checkpoint(folder: Path, tree: Any, facts: dict[str, Any], **rest: Any) -> Path:
    """Replace the checkpoint in `folder` in a single step, on the disk before it is named.

    Parameters
    ----------
    folder
        Made where it is missing.
    tree
        What the run computes.
    facts
        What decides its numbers, as JSON; `read_checkpoint` compares them.
    rest
        Arrays, JSON, and dicts of both, whose shapes change as the run goes on.

    Raises
    ------
    NumsimError
        Where the folder cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    numbers: dict[str, Any] = {}
    _collect(tree, "", arrays, numbers)
    plain = _apart(rest, "rest", arrays)
    head = {"kind": _KIND, "facts": json.dumps(facts), "numbers": json.dumps(numbers)}
    head["rest"] = json.dumps(plain)
    head["sha256"] = _digest(arrays, head)
    data = save(arrays, metadata=head)
    path = folder / FILE
    part = folder / f".{FILE}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise NumsimError(
            f"checkpoint: cannot write {path}: {error.strerror}; name a folder you may write to"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink()
    return path


def read_checkpoint(folder: Path, tree: T, facts: dict[str, Any]) -> tuple[T, dict[str, Any]]:
    """Return `tree` with the leaves that the checkpoint in `folder` holds, and the rest.

    Parameters
    ----------
    folder
        Holds ``checkpoint.safetensors``.
    tree
        A tree of the same shape; its arrays say which types and shapes are expected.
    facts
        As they were written, or the checkpoint is of another run.

    Raises
    ------
    NumsimError
        For a file that is missing, cut, no checkpoint, or of another run: the fact that differs.
    """
    path = folder / FILE
    if not path.is_file():
        raise NumsimError(f"checkpoint: no file {path}; leave resume out to start anew")
    try:
        with safe_open(path, framework="numpy") as file:
            head = file.metadata() or {}
            foreign = head.get("kind") != _KIND
            names = () if foreign else tuple(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
        if not foreign:
            if head["sha256"] != _digest(arrays, head):
                raise ValueError("its contents are not what was written")
            written, numbers = dict(json.loads(head["facts"])), dict(json.loads(head["numbers"]))
            rest = _together(json.loads(head["rest"]), arrays)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise NumsimError(
            f"checkpoint: {path} is damaged ({error}); remove it to start anew"
        ) from None
    if foreign:
        raise NumsimError(
            f"checkpoint: {path} is no checkpoint of numsim train; name another folder"
        )
    for name, here in json.loads(json.dumps(facts)).items():
        there = written.get(name)
        if there != here:
            raise NumsimError(
                f"checkpoint: {path} is of another run: {name} is {there!r:.80} there and "
                f"{here!r:.80} here; name another folder, or leave resume out"
            )
    return _filled(tree, "", arrays, numbers, path), rest


def _digest(arrays: dict[str, NDArray[Any]], head: dict[str, str]) -> str:
    """Return the SHA-256 of all that a checkpoint says: a flipped bit is no other run."""
    found = hashlib.sha256()
    for name in ("facts", "numbers", "rest"):
        found.update(f"{name} {len(head[name])} {head[name]}".encode())
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _apart(value: Any, path: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """Return JSON in which arrays are named by where they are kept."""
    if isinstance(value, dict):
        return {key: _apart(v, f"{path}/{key}", arrays) for key, v in value.items()}
    if isinstance(value, np.ndarray):
        arrays[path] = np.asarray(value, order="C")
        return {"array": path}
    return value.item() if isinstance(value, np.generic) else value


def _together(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array"} and isinstance(value["array"], str):
            return arrays[value["array"]]
        return {key: _together(v, arrays) for key, v in value.items()}
    return value


def _children(tree: Any) -> list[tuple[str, Any]] | None:
    """Return the named parts of a tree, None for a leaf."""
    if isinstance(tree, dict):
        return [(str(key), value) for key, value in tree.items()]
    if hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, tuple | list):
        return [(str(i), value) for i, value in enumerate(tree)]
    if isinstance(tree, QTensor):  # not what products keep with it
        names = ("codes", "scale", "scale_codes", "tensor_scale")
        return [(name, getattr(tree, name)) for name in names]
    if is_dataclass(tree) and not isinstance(tree, type) and not isinstance(tree, _FIXED):
        return [(f.name, getattr(tree, f.name)) for f in fields(tree)]
    return None


def _collect(
    tree: Any, path: str, arrays: dict[str, NDArray[Any]], numbers: dict[str, Any]
) -> None:
    children = _children(tree)
    if children is not None:
        for name, value in children:
            _collect(value, f"{path}/{name}", arrays, numbers)
    elif isinstance(tree, np.ndarray | np.generic):
        arrays[path] = np.asarray(tree, order="C")  # ascontiguousarray adds an axis to a number
    elif not (tree is None or isinstance(tree, _FIXED)):
        numbers[path] = tree


def _filled(
    tree: Any, path: str, arrays: dict[str, NDArray[Any]], numbers: dict[str, Any], file: Path
) -> Any:
    children = _children(tree)
    if children is not None:
        values = {
            name: _filled(value, f"{path}/{name}", arrays, numbers, file)
            for name, value in children
        }
        if isinstance(tree, dict):
            return dict(zip(tree, values.values(), strict=True))
        if hasattr(tree, "_fields"):
            return type(tree)(*values.values())
        if isinstance(tree, tuple | list):
            return type(tree)(values.values())
        return (
            replace(tree, packed={}, **values)
            if isinstance(tree, QTensor)
            else replace(tree, **values)
        )
    if tree is None or isinstance(tree, _FIXED):
        return tree
    if isinstance(tree, np.ndarray | np.generic):
        kept = arrays.get(path)
        if kept is None or kept.dtype != tree.dtype or kept.shape != tree.shape:
            came = "none" if kept is None else f"{kept.dtype} {list(kept.shape)}"
            raise NumsimError(
                f"checkpoint: {file} is of another model: {path} is {came} there and {tree.dtype} "
                f"{list(tree.shape)} here; name another folder, or leave resume out"
            )
        return kept[()] if isinstance(tree, np.generic) else kept
    if path not in numbers:
        raise NumsimError(
            f"checkpoint: {file} is of another run: it lacks {path}; name another folder"
        )
    return type(tree)(numbers[path])
