"""Write a network as a packed checkpoint of compressed-tensors, which its own library reads back.

Source
------
compressed-tensors 0.20: ``compressors/*`` (tensors), ``quantization/quant_args.py`` (config).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError, UnsupportedError
from numsim.float_state import known_floats
from numsim.models.packed.declared import FILES
from numsim.models.packed.words import format_word, input_args, weight_args
from numsim.models.places import put_rows
from numsim.models.recipe import Recipe
from numsim.models.run import Model
from numsim.models.stored import DTYPES, PICKLES, read_json
from numsim.models.streams import stream
from numsim.models.weights import shape_of, wide
from numsim.quant import QTensor, Quant, as_quant, quantize

NAMES = {np.dtype(kind).name: word for word, kind in DTYPES.items()}
VERSION = "0.20.1"
Parts = dict[str, tuple[str, NDArray[Any]]]  # end of the name -> dtype of safetensors, array


class Written(NamedTuple):
    """A module that is written packed: its tensor, how, and what its inputs are rounded to."""

    our: str
    their: str
    weights: Quant
    activations: Quant | None
    seed: int = 0  # of weights that are rounded stochastically, as a run draws them


@known_floats
def pack(model: Model, recipe: Recipe, out: str | Path) -> tuple[str, ...]:
    """Write a network with the weights that a recipe stores, as compressed-tensors.

    Codes and scales are those of `quantize`, scales in float32 (bfloat16 where the rule says so).
    Of NVFP4 the file holds the reciprocal of the tensor's scale: where no float32 has that very
    reciprocal, the nearest scale that some float32 has it of is used. Weights that are packed
    already and that the recipe stores as they are keep their codes. All else is written as it is
    stored, and files beside the weights are copied.

    Parameters
    ----------
    model : Model
        From `load_model`; a folder it was read from.
    recipe : Recipe
        Rules with `weights` are written, their activations declared; units, outputs and `ops`
        are not.
    out : str or Path
        A folder that does not exist, or is empty.

    Returns
    -------
    tuple of str
        The modules that are packed, by their names in the file.

    Raises
    ------
    NumsimError
        No rule stores weights, or `out` holds something.
    UnsupportedError
        What compressed-tensors has no words for: the rule, and what it can say; a folder of which
        only the text model is read.

    Examples
    --------
    >>> import tempfile
    >>> from numsim.data import bundled_model_dir
    >>> from numsim.models import load_model
    >>> recipe = Recipe.uniform(Quant("int4", block=32), target="ideal.fp32", activations=None)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     packed = pack(load_model(bundled_model_dir()), recipe, folder)
    ...     load_model(folder).tensors["layers.0.q_proj.weight"]
    QTensor(int4 [192, 192], scale [192, 6])
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise NumsimError(
            f"pack: the folder must be new or empty; {str(folder)!r} is not; name another"
        )
    source = model.folder
    if source is None:
        raise NumsimError(
            "pack: the model must be read from a folder, whose config.json is written anew; got "
            "one without; use load_model"
        )
    if model.left_out:
        raise UnsupportedError(
            "pack: a folder is written whole, under its own names; of this one only the text model "
            f"is read, without {', '.join(model.left_out)}; pack the folder of a text model"
        )
    model = model.suited(recipe)
    modules = written_modules(model, recipe)
    config = read_json(source / "config.json")
    for key in ("quantization_config", "compression_config", "quantization"):
        config.pop(key, None)
    config["quantization_config"] = _declared(model, modules)
    folder.mkdir(parents=True, exist_ok=True)
    _copy_beside(source, folder)
    _write_tensors(folder / "model.safetensors", model, modules)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tuple(dict.fromkeys(_module(m.their) for m in modules))


def written_modules(model: Model, recipe: Recipe) -> list[Written]:
    """Return the modules that a recipe stores, checked before anything is computed.

    Raises
    ------
    NumsimError
        No rule stores weights.
    UnsupportedError
        A tensor or rule that compressed-tensors has no words for.
    """
    rules = recipe.check(model.gemm_names())
    if recipe.kv is not None:
        raise UnsupportedError(
            "pack: a file of weights says nothing of how keys and values are kept; got kv = "
            f"{recipe.kv}; leave it out, and run what is packed by a recipe with it"
        )
    made = []
    for name, rule in rules.items():
        our = f"{name}.weight"
        for step in ("rotate", "outliers"):
            if getattr(rule, step) is not None:
                raise UnsupportedError(
                    f"pack: {recipe.place(name)}: compressed-tensors stores weights as they are "
                    f"multiplied; got {step} = {getattr(rule, step)}, a step of each product; "
                    "leave it out"
                )
        if rule.weights is None and rule.activations is None:
            continue
        if rule.weights is None or our not in model.tensors:
            raise UnsupportedError(
                f"pack: {recipe.place(name)}: compressed-tensors rounds the inputs of stored "
                "weights; got activations without weights, or keys and values; leave them out"
            )
        at = model.places.get(our)  # a tied head has none
        other = at is None or at.turned or at.kernel or at.stack or not at.name.endswith(".weight")
        if at is None or other:
            raise UnsupportedError(
                f"pack: {recipe.place(name)}: a weight must be one matrix [out, in] of its own, or "
                f"rows of one, in the file; got {'a tied one' if at is None else at.name}, which "
                "is not; leave it out of the recipe"
            )
        acts = None if rule.activations is None else as_quant(rule.activations)
        weights = as_quant(rule.weights)
        seed = stream(recipe.seed, name, "right") if weights.rounding == "sr" else 0
        written = Written(our, at.name, weights, acts, seed)
        _check(written, recipe.place(name), shape_of(model.tensors, our)[-1])
        made.append(written)
    if not made:
        raise NumsimError(
            "pack: a recipe must store some weights; got none; give weights to a rule, as in "
            "Recipe.uniform('int8', target='ideal.int')"
        )
    for m in made:
        if not model.places[m.our].whole:
            _check_shared(model, m, made, recipe)
    return made


def _check_shared(model: Model, m: Written, made: list[Written], recipe: Recipe) -> None:
    """Refuse a matrix that several products have rows of, unless one rule scales rows apart."""
    parts = [our for our, at in model.places.items() if at.name == m.their]
    same = [o.our for o in made if (o.their, o.weights, o.activations) == (m.their, *m[2:4])]
    rows = m.weights.granularity in ("per_channel", "per_token", "per_block")
    if same == parts and rows and not isinstance(m.weights.block, tuple) and not m.weights.above:
        return
    raise UnsupportedError(
        f"pack: {recipe.place(_module(m.our))}: {m.their} holds {', '.join(parts)}, which are "
        "written together, by one rule that scales rows apart: per_channel, or blocks along K; got "
        f"{'others' if same != parts else m.weights}; change the rules, or leave them all out"
    )


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _check(m: Written, place: str, depth: int) -> None:
    block = m.weights.block if isinstance(m.weights.block, int) else 1
    if depth % block:
        raise UnsupportedError(
            f"pack: {place}: compressed-tensors stores whole groups; got K = {depth} in groups of "
            f"{block}; choose a length that divides K, or leave it out of the recipe"
        )
    try:
        format_word(m.weights)
        weight_args(m.weights)
        if m.activations is not None:
            input_args(m.activations)
    except UnsupportedError as error:
        raise UnsupportedError(f"pack: {place}: {error}") from None


def _declared(model: Model, modules: list[Written]) -> dict[str, Any]:
    """Return the ``quantization_config``."""
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for m in modules:
        args = {
            "format": format_word(m.weights),
            "input_activations": None if m.activations is None else input_args(m.activations),
            "output_activations": None,
            "weights": weight_args(m.weights),
        }
        same = next((names for table, names in groups if table == args), None)
        if same is None:
            groups.append((args, same := []))
        if _module(m.their) not in same[-1:]:
            same.append(_module(m.their))
    packed = {m.our for m in modules}
    stored = [f"{n}.weight" for n in model.gemm_names() if f"{n}.weight" in model.places]
    left = dict.fromkeys(_module(model.places[our].name) for our in stored if our not in packed)
    if model.arch.tied:  # a module without a tensor, for which readers would seek packed codes
        left["proj_out" if model.arch.family == "whisper" else "lm_head"] = None
    single = len(groups) == 1
    formats = {table["format"] for table, _ in groups}
    return {
        "config_groups": {
            f"group_{i}": {"targets": ["Linear"] if single else names} | table
            for i, (table, names) in enumerate(groups)
        },
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "ignore": list(left),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "version": VERSION,
    }


def _stored(model: Model, m: Written) -> QTensor:
    """Return codes and scales of a weight: as they are stored, or quantised now."""
    tensor = model.tensors[m.our]
    if isinstance(tensor, QTensor):
        return tensor
    numbers = wide(tensor)
    numbers = numbers if numbers.itemsize <= 4 else numbers.astype(np.float32)
    made = quantize(numbers, m.weights, seed=m.seed)
    if made.tensor_scale is None:
        return made
    scale = np.float32(1) / reciprocal(made.tensor_scale)
    if scale == made.tensor_scale:
        return made
    return quantize(numbers, replace(m.weights, scale=float(scale)), seed=m.seed)


def _stacked(model: Model, parts: list[Written]) -> QTensor:
    """Return codes and scales of a matrix of the file from those of its rows."""
    made = [_stored(model, m) for m in parts]
    if len(made) == 1:
        return made[0]
    places = [model.places[m.our] for m in parts]

    def rows(name: str) -> Any:
        arrays = [getattr(q, name) for q in made]
        if arrays[0] is None:
            return None
        whole = np.empty(
            (places[0].groups * places[0].width, *arrays[0].shape[1:]), arrays[0].dtype
        )
        for place, array in zip(places, arrays, strict=True):
            put_rows(whole, place, array)
        return whole

    names = ("codes", "scale", "scale_codes", "zero_point")
    return replace(made[0], **{name: rows(name) for name in names})


def reciprocal(scale: np.float32) -> np.float32:
    """Return the float32 whose own reciprocal is `scale`, or is nearest to it."""
    usual = np.float32(1) / np.float32(scale)
    near = (usual, np.nextafter(usual, np.float32(0)), np.nextafter(usual, np.float32(np.inf)))
    return next((n for n in near if np.float32(1) / n == scale), usual)


def parts_of(m: Written, q: QTensor) -> Parts:
    """Return the tensors of a module by the ends of their names."""
    word, bits = format_word(m.weights), q.fmt.bits
    middle = 1 << (bits - 1)  # signed integers are packed from 0 on
    assert q.scale is not None
    parts: Parts = {}
    if word in ("float-quantized", "mxfp8-quantized"):
        parts[".weight"] = ("F8_E4M3", q.codes)
    elif word == "int-quantized":
        parts[".weight"] = ("I8", q.codes.astype(np.int8))
    elif word == "pack-quantized":
        parts[".weight_packed"] = (
            "I32",
            _words(q.codes.astype(np.int64) + middle, bits),
        )
        parts[".weight_shape"] = ("I64", np.array(q.shape, np.int64))
    else:
        parts[".weight_packed"] = ("U8", _words(q.codes.astype(np.int64), bits, np.uint8))
    scale = q.scale.reshape(1) if q.scale.ndim == 0 else q.scale
    if q.tensor_scale is not None:
        parts[".weight_scale"] = ("F8_E4M3", np.asarray(q.scale_codes))
        parts[".weight_global_scale"] = ("F32", reciprocal(q.tensor_scale).reshape(1))
    elif word.startswith("mx"):
        parts[".weight_scale"] = ("U8", np.asarray(q.scale_codes))
    elif m.weights.scale_format == "bfloat16":
        parts[".weight_scale"] = ("BF16", scale.astype(DTYPES["BF16"]))
    else:
        parts[".weight_scale"] = ("F32", scale)
    if q.zero_point is not None:
        zero = q.zero_point.reshape(scale.shape)
        if word == "pack-quantized" and zero.ndim == 2:
            each = np.ascontiguousarray(zero.T.astype(np.int64) + middle)
            parts[".weight_zero_point"] = ("I32", np.ascontiguousarray(_words(each, bits).T))
        else:
            parts[".weight_zero_point"] = ("I8", zero.astype(np.int8))
    if m.activations is not None and m.activations.scale is not None:
        level = np.float32(m.activations.scale)
        two = m.activations.scale_format == "float8_e4m3fn"
        end = ".input_global_scale" if two else ".input_scale"
        parts[end] = ("F32", (reciprocal(level) if two else level).reshape(1))
    return parts


def _words(codes: NDArray[np.int64], bits: int, word: Any = np.int32) -> NDArray[Any]:
    """Return fields of `bits`, the lowest first, one after the other across the borders of words.

    >>> _words(np.array([[1, 2, 3]]), 4)
    array([[801]], dtype=int32)
    """
    size = 8 * np.dtype(word).itemsize
    single = np.unpackbits(codes.astype(np.uint8)[..., None], axis=-1, bitorder="little")
    row = single[..., :bits].reshape(*codes.shape[:-1], -1)
    rest = -row.shape[-1] % size
    row = np.concatenate([row, np.zeros((*row.shape[:-1], rest), np.uint8)], axis=-1)
    return np.packbits(row, axis=-1, bitorder="little").view(word)


def _copy_beside(source: Path, folder: Path) -> None:
    """Copy what lies beside the weights: the tokenizer, settings of generation, the licence."""
    left = ("config.json", "model.safetensors.index.json", *FILES)
    for path in sorted(source.iterdir()):
        weights = path.suffix == ".safetensors" or any(path.match(glob) for glob in PICKLES)
        if path.is_file() and path.name not in left and not weights:
            shutil.copyfile(path, folder / path.name)


def _tensors(model: Model, modules: list[Written]) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Yield (name, dtype, array) of everything that is written, a module at a time."""
    packed = {m.our: m for m in modules}
    seen: set[str] = set()
    for our, at in model.places.items():
        if at.name in seen:
            continue
        seen.add(at.name)
        if our in packed:
            some = [packed[o] for o, place in model.places.items() if place.name == at.name]
            for end, (dtype, array) in parts_of(packed[our], _stacked(model, some)).items():
                yield _module(at.name) + end, dtype, array
        else:
            array = _whole(model, at.name)
            yield at.name, NAMES[array.dtype.name], array


def _whole(model: Model, name: str) -> NDArray[Any]:
    """Return a tensor of the file from its parts; one that was packed, as numbers."""
    parts = {our: place for our, place in model.places.items() if place.name == name}
    made: NDArray[Any] | None = None
    for our, place in parts.items():
        part = wide(model.tensors[our])
        if made is None:
            rows = (place.groups * place.width, *part.shape[1:])
            made = np.empty(rows if place.stack is None else (place.stack[1], *rows), part.dtype)
        put_rows(made if place.stack is None else made[place.stack[0]], place, part)
    assert made is not None
    first = next(iter(parts.values()))
    if first.kernel:
        return made.reshape(len(made), *first.kernel)
    return np.swapaxes(made, -1, -2) if first.turned else made


def _write_tensors(path: Path, model: Model, modules: list[Written]) -> None:
    """Write a file of safetensors: sizes first, then each tensor as it is made."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    data = path.with_suffix(".data")
    with data.open("wb") as file:
        for name, dtype, array in _tensors(model, modules):
            file.write(np.ascontiguousarray(array).tobytes())
            places = [end, end + array.nbytes]
            header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": places}
            end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as whole, data.open("rb") as file:
        whole.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(file, whole, 1 << 24)
    data.unlink()
