"""Read what a sweep asks for, and check all of it, before any work."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim.data import bundled_model_dir, bundled_text
from numsim.errors import ConfigKeyWarning, NumsimError
from numsim.files import check_regular
from numsim.models import Model, load_model
from numsim.models.hub import find_folder, model_name
from numsim.models.memory import OperandCache, as_bytes
from numsim.models.text import TextTools, load_text_tools
from numsim.models.weights import wide
from numsim.sweep.cases import Case, cases, folder_hash
from numsim.sweep.inputs import Inputs, Text, read_inputs
from numsim.sweep.recipes import DECLARED, declared_recipe
from numsim.sweep.spec import SweepSpec


@dataclass(frozen=True)
class Prepared:
    """One model on one text, and the cases to measure there.

    Attributes
    ----------
    plan
        The settings of the sweep, with this model and text alone.
    """

    plan: SweepSpec
    model: Model
    inputs: Inputs
    cases: list[Case]


def prepare(plan: SweepSpec) -> Iterator[Prepared]:
    """Yield every model on every text, with its cases.

    Raises
    ------
    NumsimError
        A model, a text, a format, a unit or a recipe that cannot be.
    """
    models = [
        find_folder(model) if isinstance(model, Path) else model
        for model in dict.fromkeys(several(plan.model))
    ]
    texts = list(dict.fromkeys(several(plan.text)))
    called = names_apart("models", [_model_name(model) for model in models], models)
    named = names_apart("texts", [path.name if path else "course.rst" for path in texts], texts)
    for model, model_called in zip(models, called, strict=True):
        one = plan.model_copy(update={"model": model, "text": texts[0]})
        read, model_hash = read_model(one)
        read = replace(read, name=model_called)
        for path, text_called in zip(texts, named, strict=True):
            text = read_text(path)
            recipes = tuple(r if r != DECLARED else declared_recipe(read) for r in plan.recipes)
            known: dict[str, object] = {"model": model, "text": path, "recipes": recipes}
            known |= {"ignore_keys": read.ignored_keys}  # keys that it has
            one = plan.model_copy(update=known)
            todo = cases(
                one, model=model_called, model_hash=model_hash,
                text=text_called, text_hash=text_hash(text), products=read.gemm_names(),
            )  # fmt: skip
            _check_operators(read, todo)
            yield Prepared(one, read, read_inputs(read.arch, text_tools(read), one, text), todo)


def _check_operators(model: Model, todo: Sequence[Case]) -> None:
    """Raise for names and settings that the network does not have, before any case runs."""
    for case in todo:
        recipe = case.recipe()
        try:
            if recipe.ops or recipe.kv:
                model.suited(recipe)
        except NumsimError as error:
            raise type(error)(f"sweep: {case.label}: {error}") from None


def several(value: Any) -> tuple[Any, ...]:
    """Return one, or several, of a spec as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def _model_name(model: Model | Path | None) -> str:
    return model.name if isinstance(model, Model) else model_name(model or bundled_model_dir())


def names_apart(what: str, names: Sequence[str], places: Sequence[object]) -> list[str]:
    """Return what results call models or texts: where two have one name, folders before it.

    Raises
    ------
    NumsimError
        Two have one name, and no folder to tell them apart.

    Examples
    --------
    >>> names_apart("texts", ["a.txt", "b.txt", "a.txt"], [Path(p) for p in ("x/a.txt", "b.txt",
    ...     "y/a.txt")])
    ['x/a.txt', 'b.txt', 'y/a.txt']
    """
    found, depth = list(names), 1
    while len(set(found)) < len(found):
        depth += 1
        for i in [i for i, name in enumerate(found) if found.count(name) > 1]:
            place = places[i]
            parts = place.absolute().parts if isinstance(place, Path) else ()
            if len(parts) < depth:
                raise NumsimError(
                    f"sweep: {what} of one sweep have names of their own; got {found[i]} twice; "
                    "rename one, a Model with dataclasses.replace(model, name=...)"
                )
            found[i] = "/".join(parts[-depth:])
    return found


def read_model(plan: SweepSpec) -> tuple[Model, str]:
    """Return the network and a hash of all that decides its numbers.

    Raises
    ------
    NumsimError
        It cannot be read, or settings are for another kind of model.
    """
    if not isinstance(plan.one_model, Model):
        folder = Path(plan.one_model or bundled_model_dir())
        model = load_model(folder, memory_limit=plan.memory_limit, ignore_keys=plan.ignore_keys)
        return model, folder_hash(folder)
    if plan.ignore_keys:
        raise NumsimError(
            "sweep: ignore_keys are for reading config.json; got them and a Model, which was read; "
            "give them to load_model"
        )
    model = plan.one_model  # its tensors may be others than those of its folder, or of its cache
    model = replace(model, cache=OperandCache(model.cache.limit_bytes))
    digest = hashlib.sha256(repr(model.arch).encode())
    for name, stored in sorted(model.tensors.items()):
        tensor = wide(stored)
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return model, digest.hexdigest()[:16]


def read_again(plan: SweepSpec) -> tuple[Model, Inputs]:
    """Return the network and its inputs in a process of its own; its share of the memory limit."""
    model = plan.one_model
    if not isinstance(model, Model):
        with warnings.catch_warnings():  # said once, by the process that began the sweep
            warnings.simplefilter("ignore", ConfigKeyWarning)
            model = load_model(
                model or bundled_model_dir(), memory_limit=share(plan),
                ignore_keys=plan.ignore_keys,
            )  # fmt: skip
    text = read_text(plan.one_text)
    return model, read_inputs(model.arch, text_tools(model), plan, text)


def share(plan: SweepSpec) -> int | None:
    """Return the memory limit of each process: they share that of the sweep."""
    return None if plan.memory_limit is None else max(1, as_bytes(plan.memory_limit) // plan.jobs)


def text_tools(model: Model) -> TextTools:
    """Return the tokenizer of a model.

    Raises
    ------
    NumsimError
        It was not read from a folder.
    """
    if model.folder is None:
        raise NumsimError(
            "sweep: a Model that was not read from a folder has no tokenizer; give it one with "
            "dataclasses.replace(model, folder=...)"
        )
    return load_text_tools(model.folder)


def text_hash(text: Text) -> str:
    """Return a hash of a text, or of its token ids and their shape."""
    data = text.encode() if isinstance(text, str) else text.tobytes()
    if not isinstance(text, str) and text.ndim > 1:  # the same ids are other sentences
        data += str(text.shape).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def read_text(path: Path | None) -> Text:
    """Return a text, or the token ids of a ``.npy`` file; None: the bundled text.

    Raises
    ------
    NumsimError
        The file cannot be read, or is neither.
    """
    if path is None:
        return bundled_text()
    check_regular(path, "sweep: cannot read the text")
    if path.suffix == ".npy":
        return _read_ids(path)
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise NumsimError(f"sweep: cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise NumsimError(f"sweep: the text {path} is not UTF-8 ({error.reason})") from None
    except ValueError:
        raise NumsimError("sweep: a file name has no NUL character; name another text") from None
    except MemoryError:
        raise NumsimError(
            f"sweep: the text {path} is larger than memory; cut it, or give token ids in .npy"
        ) from None


def _read_ids(path: Path) -> NDArray[np.int64]:
    try:
        ids = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever its parts make of it
        raise NumsimError(f"sweep: cannot read the token ids {path}: {error}") from None
    if not isinstance(ids, np.ndarray):
        raise NumsimError(
            f"sweep: token ids are one integer array; {path} holds an archive; save them alone, "
            "with np.save"
        )
    if ids.dtype.kind not in "iu":
        raise NumsimError(
            f"sweep: token ids are an integer array; {path} holds {ids.dtype} {list(ids.shape)}; "
            "save them as integers"
        )
    if ids.size and int(ids.max()) > np.iinfo(np.int64).max:
        raise NumsimError(f"sweep: token ids are below 2**63; {path} holds {ids.max()}")
    return ids.astype(np.int64)
