"""Which quantiser packed the weights of a checkpoint, and what it says of them; never guessed at.

The words of each method are read by `numsim.models.packed.methods`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from numsim.errors import NumsimError, UnsupportedError
from numsim.models.keys import listing, shown
from numsim.models.packed.methods import METHODS
from numsim.models.packed.types import Declared, Scheme, Words

FILES = {  # beside config.json -> method, who writes it
    "hf_quant_config.json": ("modelopt", "ModelOpt"),
    "quantize_config.json": ("gptq", "AutoGPTQ"),
    "quant_config.json": ("awq", "AutoAWQ"),
}
CONFIG_KEYS = {"quantization_config": "", "compression_config": "", "quantization": ", of MLX,"}
# ends of stored names -> who writes them; the first that occurs names the method
ENDINGS = {
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "block FP8, as DeepSeek-V3",
    ".weight_scale_2": "ModelOpt NVFP4",
    "_blocks": "MXFP4, as gpt-oss",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes NF4",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes FP4",
    ".SCB": "bitsandbytes LLM.int8()",
    "_weight_qdata": "torchao",
    ".g_idx": "GPTQ",
    ".qweight": "GPTQ or AWQ",
    ".weight_scale": "FP8 or INT8 with scales",
}
DETAILS = ("quant_type", "quant_algo", "format", "fmt", "bits", "bnb_4bit_quant_type")


def check_method(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a method of ``config.json`` that is not read, before any tensor is looked at.

    Raises
    ------
    UnsupportedError
        With what the table says of itself.
    """
    for key, who in CONFIG_KEYS.items():
        table = config.get(key)
        if table is not None and _method_of(table) not in METHODS:
            raise _unread(folder, f"{key} of config.json{who} says {describe(table)}")


def find_declared(
    config: Mapping[str, Any], folder: Path, dtypes: Mapping[str, str], plain: Iterable[str],
    said: Mapping[str, str],
) -> Declared | None:  # fmt: skip
    """Return what a checkpoint says of its packed weights; None where nothing is packed.

    Parameters
    ----------
    config, folder
        ``config.json``, and where it is.
    dtypes
        Of each stored tensor.
    plain
        The dtypes that a network is stored in.
    said
        The metadata of the files of tensors.

    Raises
    ------
    NumsimError
        Two methods at once, or a table that is damaged or does not fit the tensors.
    UnsupportedError
        A method, or a setting of one, that is not read.
    """
    endings = [(end, who) for end, who in ENDINGS.items() if any(n.endswith(end) for n in dtypes)]
    narrow = sorted(
        {d for n, d in dtypes.items() if d not in plain and (n.endswith("weight") or d[:2] == "F8")}
    )
    packed = bool(endings or narrow)
    tables = [
        (f"{key} of config.json{who}", config[key], _method_of(config[key]))
        for key, who in CONFIG_KEYS.items()
        if config.get(key) is not None
    ]
    for name, (method, who) in FILES.items() if packed else ():  # left over beside plain weights
        if (folder / name).is_file():
            tables.append((f"{name}, of {who},", _table(folder / name), method))
    if not tables and not packed:
        return None
    where = f"load_model: {folder.name}"
    if not tables:
        what = f"its tensors *{endings[0][0]} are those of {endings[0][1]}" if endings else ""
        raise _unread(folder, what or f"its weights are stored as {listing(narrow)}")
    if len({method for _, _, method in tables}) > 1:
        told = " and ".join(f"{name} says {describe(table)}" for name, table, _ in tables)
        raise NumsimError(
            f"{where}: weights are packed by one method; got two at once: {told}; remove the table "
            "that is left over"
        )
    name, table, method = tables[0]
    says = f"{name} says {describe(table)}"
    if method not in METHODS or not isinstance(table, Mapping):
        raise _unread(folder, says)
    if not packed:
        raise NumsimError(
            f"{where}: a checkpoint that declares packed weights must hold some; {says}, and all "
            f"tensors are {listing(sorted(set(dtypes.values())))}; drop the table, or set it aside "
            f"with ignore_keys ({name.split()[0]})"
        )
    return METHODS[method](Words(name.split(",")[0], table, dtypes, said))


def scheme_finder(declared: Declared) -> Callable[[str], Scheme | None]:
    """Return what says how a module's weight is stored, None where nothing is said of it.

    Names come before patterns and all, which are in order.
    """
    named = dict(reversed(declared.schemes))
    rest = [(t, s) for t, s in declared.schemes if t == "*" or t.startswith("re:")]

    def find(module: str) -> Scheme | None:
        if module in named:
            return named[module]
        fits = (s for t, s in rest if t == "*" or re.match(t.removeprefix("re:"), module))
        return next(fits, None)

    return find


def _unread(folder: Path, says: str) -> UnsupportedError:
    return UnsupportedError(
        "load_model: packed weights must be of a method that is read and declared: "
        f"{', '.join(METHODS)}; those of {folder.name} are packed: {says}; load the one that was "
        "quantised, numsim quantises by recipe, or dequantise the checkpoint and save it again"
    )


def _method_of(table: Any) -> str:
    """Return the method a table names, by its usual word."""
    if not isinstance(table, Mapping):
        return ""
    word = str(table.get("quant_method", "")).lower()
    if not word and "quantization_status" in table:  # older compressed-tensors
        return "compressed-tensors"
    if not word and isinstance(table.get("quantization"), Mapping):
        return "modelopt"
    return {"modelopt_fp4": "modelopt", "compressed_tensors": "compressed-tensors"}.get(word, word)


def describe(table: Any) -> str:
    """Return the words by which a table names its method.

    >>> describe({"quant_method": "gptq", "bits": 4}), describe({"group_size": 64, "bits": 4})
    ("quant_method 'gptq', bits 4", 'bits 4')
    """
    if not isinstance(table, Mapping):
        return shown(table)
    inner = table.get("quantization")  # of ModelOpt
    if isinstance(inner, Mapping):
        table = inner
    words = [
        f"{key} {shown(table[key])}"
        for key in ("quant_method", *DETAILS)
        if isinstance(table.get(key), str | int)
    ]
    words += [key for key in ("load_in_8bit", "load_in_4bit") if table.get(key) is True]
    return ", ".join(words) or f"keys {listing(sorted(table)) or 'none'}"


def _table(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError) as error:
        raise NumsimError(
            f"load_model: {path.name} must be JSON; {error}; repair it or download it again"
        ) from None
