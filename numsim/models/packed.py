"""Which quantiser packed the weights of a checkpoint: said in one sentence, never guessed at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numsim.errors import NumsimError
from numsim.models.keys import listing, shown

FILES = {
    "hf_quant_config.json": "ModelOpt",
    "quantize_config.json": "AutoGPTQ",
    "quant_config.json": "AutoAWQ",
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


def packed_by(
    config: Mapping[str, Any], folder: Path, dtypes: Mapping[str, str], plain: Iterable[str]
) -> str | None:
    """Return what says that weights are packed, and by which method; None where nothing does.

    `dtypes`: of each stored tensor; `plain`: those a network is stored in.
    """
    for key, who in CONFIG_KEYS.items():
        if config.get(key) is not None:
            return f"{key} of config.json{who} says {_method(config[key])}"
    endings = [(end, who) for end, who in ENDINGS.items() if any(n.endswith(end) for n in dtypes)]
    narrow = sorted({d for n, d in dtypes.items() if d not in plain and n.endswith("weight")})
    if not endings and not narrow:
        return None  # a table beside plain weights is left over
    for name, who in FILES.items():
        path = folder / name
        if path.is_file():
            return f"{name}, of {who}, says {_method(_table(path))}"
    if endings:
        return f"its tensors *{endings[0][0]} are those of {endings[0][1]}"
    return f"its weights are stored as {listing(narrow)}"


def _method(table: Any) -> str:
    """Return the words by which a table names its method.

    >>> _method({"quant_method": "gptq", "bits": 4}), _method({"group_size": 64, "bits": 4})
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
