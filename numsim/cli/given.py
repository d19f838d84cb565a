"""What diff and calibrate run a network on: a text, its token ids, or arrays of its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from numsim.errors import NumsimError
from numsim.files import check_regular
from numsim.models import Model
from numsim.models.text import TextTools

ARRAYS = (
    "tokens", "pixels", "features", "decoder_tokens", "attention_mask", "token_type_ids",
)  # fmt: skip
Given = dict[str, Any]  # arguments of Model.run


def read(who: str, path: Path) -> Any:
    """Return a text, token ids of a ``.npy`` file, or the arrays of an ``.npz`` file by name.

    Raises
    ------
    NumsimError
        For a file that cannot be read, and arrays that no network takes.
    """
    check_regular(path, who)
    if path.suffix not in (".npy", ".npz"):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise NumsimError(
                f"{who}: cannot read {path}: {error}; give a text in UTF-8, token ids in .npy, or "
                "inputs in .npz"
            ) from None
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return _ids(who, path, found)
        with found:
            arrays = {key: found[key] for key in found.files}
    except NumsimError:
        raise
    except Exception as error:  # a damaged header raises whatever its parts make of it
        raise NumsimError(f"{who}: cannot read the arrays of {path}: {error}") from None
    unknown = sorted(set(arrays) - set(ARRAYS))
    if unknown or not arrays:
        raise NumsimError(
            f"{who}: {path} has arrays that a network takes, of {', '.join(ARRAYS)}; got "
            f"{', '.join(unknown) or 'none'}"
        )
    return arrays


def _ids(who: str, path: Path, found: Any) -> Any:
    if found.dtype.kind in "iu" and found.ndim in (1, 2) and found.size:
        return found
    raise NumsimError(
        f"{who}: {path} must hold token ids, integers [tokens] or [B, tokens]; got {found.dtype} "
        f"{list(found.shape)}; arrays of other inputs go into .npz, by their names"
    )


def _rows(who: str, network: Model, given: Given) -> Given:
    """Return arrays with a row for each input, as many of each."""
    frame = len(network.arch.frame)
    one = {name: frame if name in ("pixels", "features") else 1 for name in given}
    rows = {k: v[None] if v.ndim == one[k] else v for k, v in given.items()}
    counts = {k: len(v) if v.ndim else 0 for k, v in rows.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise NumsimError(
            f"{who}: arrays of inputs have a row for each input, as many of each; got "
            f"{', '.join(f'{k} {list(v.shape)}' for k, v in given.items())}"
        )
    return rows


def _check_reads(who: str, network: Model, given: Any) -> None:
    """Refuse a text for a network that reads none."""
    reads = network.arch.reads
    if isinstance(given, dict) or reads == "tokens":
        return
    more = " and decoder_tokens" if network.arch.decoder_layers else ""
    raise NumsimError(
        f"{who}: {network.arch.family} reads {reads}, not a text; give --text INPUTS.npz with "
        f"arrays {reads}{more}, as for Model.run (np.savez writes it)"
    )


def some_tokens(who: str, network: Model, tools: TextTools, given: Any, count: int) -> Given:
    """Return what a network runs on: arrays as they are, or `count` tokens of a text.

    The encoder of an encoder-decoder reads their first half, its decoder the second.
    """
    _check_reads(who, network, given)
    if isinstance(given, dict):
        return _rows(who, network, given)
    if isinstance(given, str):
        ids = tools.ids(given, limit=count)[:count]
        if len(ids) == 0:
            raise NumsimError(f"{who}: a text has at least one token; this one has none")
    else:
        ids = given[..., :count]
    return _halves(who, network, tools, np.atleast_2d(ids))


def windows(
    who: str, network: Model, tools: TextTools, given: Any, length: int, count: int
) -> list[Given]:
    """Return what a network runs on, one of at most `count` windows after the other.

    Windows of a text begin with the begin-of-text token where config.json names one. Arrays are
    taken row by row.
    """
    _check_reads(who, network, given)
    if isinstance(given, dict):
        rows = _rows(who, network, given)
        each = range(min(len(next(iter(rows.values()))), count))
        return [{k: v[i : i + 1] for k, v in rows.items()} for i in each]
    own = tools.begin is None or network.arch.decoder_layers  # where the decoder begins alone
    start = "none" if own else "bos"
    if isinstance(given, str) or given.ndim == 1:
        cut = tools.windows(given, length, limit=length * count, start=start)
    else:
        cut = given[:, :length]
    return [_halves(who, network, tools, one[None]) for one in cut[:count]]


def _halves(who: str, network: Model, tools: TextTools, ids: Any) -> Given:
    arch = network.arch
    if not arch.decoder_layers:
        return {"tokens": ids}
    if ids.shape[1] < 2:
        raise NumsimError(f"{who}: an encoder-decoder needs 2 tokens or more; give more text")
    half = ids.shape[1] // 2
    start = arch.decoder_start if arch.decoder_start is not None else tools.begin or 0
    first = np.full((len(ids), 1), start, ids.dtype)
    return {"tokens": ids[:, :half], "decoder_tokens": np.concatenate([first, ids[:, half:]], 1)}
