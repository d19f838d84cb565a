"""A tokenizer.json, asked in a process of its own: what it does there, it cannot do here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.models.memory import half_of_memory

PROGRAM = Path(__file__).with_name("tokenizer_process.py")
START_S = 30.0  # to load the tokenizer
START_BYTES = 1 << 30  # beside 64 bytes for each byte of the file, 4096 for each character
CHARACTERS_PER_S = 20_000  # a slow tokenizer does a million

Ids = NDArray[np.int64]
Text = str | tuple[str, str]  # or a pair, which a reranker reads together


class TokenizerFile(NamedTuple):
    """A readable tokenizer.json: where it is, how many tokens it knows, what length it cuts to."""

    path: Path
    size: int
    truncation: int | None

    def encode(
        self,
        texts: Sequence[Text],
        *,
        special: bool = False,
        longest: int | None = None,
        limit: int | None = None,
        total: int | None = None,
    ) -> list[Ids]:
        """Return the token ids of each text.

        Parameters
        ----------
        texts : sequence of str, or of pairs of str
        special : bool
            Add the special tokens of the tokenizer.
        longest : int, optional
            Cut each text to so many tokens, special ones included, or to the tokenizer's own
            length where that is less.
        limit : int, optional
            The first ids of each text only; no more of it is tokenised than that needs.
        total : int, optional
            Stop after the text with which all together have more ids.

        Returns
        -------
        list of int64 array [tokens]
            As many as `texts`, fewer where `total` is reached.

        Raises
        ------
        NumsimError
            The tokenizer fails, does not end, or needs too much memory.
        """
        asked = {"special": special, "longest": longest, "limit": limit, "total": total}
        head, data = _ask(self.path, list(texts), segments=False, **asked)
        return _split(np.frombuffer(data, np.int64), head["counts"])

    def segmented(
        self, texts: Sequence[Text], *, longest: int | None = None, total: int | None = None
    ) -> list[tuple[Ids, Ids]]:
        """Return the ids of each text with special tokens, and their segments, as in `encode`.

        Segments (token_type_ids) are what the tokenizer says: usually 0, of a second text 1.

        Raises
        ------
        NumsimError
            As `encode`.
        """
        asked = {"special": True, "longest": longest, "limit": None, "total": total}
        head, data = _ask(self.path, list(texts), segments=True, **asked)
        ids, segments = np.frombuffer(data, np.int64).reshape(2, -1)
        counts = head["counts"]
        return list(zip(_split(ids, counts), _split(segments, counts), strict=True))


def _split(numbers: Ids, counts: list[int]) -> list[Ids]:
    return np.split(numbers, np.cumsum(counts)[:-1]) if counts else []


def read_tokenizer(path: Path) -> TokenizerFile:
    """Return a tokenizer that can be read.

    Raises
    ------
    NumsimError
        It cannot.
    """
    head, _ = _ask(path, [], special=False, longest=None, limit=None, total=None, segments=False)
    return TokenizerFile(path, head["size"], head["truncation"])


def _parts(texts: Sequence[Text]) -> Iterator[str]:
    for text in texts:
        yield from (text,) if isinstance(text, str) else text


def _ask(path: Path, texts: list[Text], **asked: Any) -> tuple[dict[str, Any], bytes]:
    try:
        for text in _parts(texts):
            text.encode()
    except UnicodeEncodeError as error:
        raise NumsimError(
            f"a text is Unicode; got half of a surrogate pair at character {error.start}; decode "
            "its bytes anew"
        ) from None
    characters = sum(map(len, _parts(texts)))
    size = path.stat().st_size
    memory = min(max(half_of_memory(), 2 << 30), START_BYTES + 64 * size + 4096 * characters)
    request = {"path": str(path), "texts": texts, "memory_bytes": memory, **asked}
    seconds = START_S + characters / CHARACTERS_PER_S
    try:
        done = subprocess.run(
            [sys.executable or "python3", "-P", str(PROGRAM)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=seconds,
            check=False,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"},
        )
    except subprocess.TimeoutExpired:
        raise _bad(path, f"it did not end within {seconds:.0f} s") from None
    line, _, data = done.stdout.partition(b"\n")
    if done.returncode != 0 or not line:
        raise _bad(path, _end_of(done, memory))
    head = json.loads(line)
    if "error" in head:
        raise _bad(path, head["error"])
    return head, data


def _end_of(done: subprocess.CompletedProcess[bytes], memory: int) -> str:
    """Return how the process ended, and the last words it said."""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    said = [line for line in said if line and not line.startswith("note:")]
    how = f"exit code {done.returncode}"
    if done.returncode < 0:
        how = signal.strsignal(-done.returncode) or f"signal {-done.returncode}"
    words = f", {said[-1]:.200}" if said else ""
    return f"it ended its process ({how}{words}), which may use {memory >> 20} MiB"


def _bad(path: Path, why: str) -> NumsimError:
    return NumsimError(
        f"{path} is not a usable tokenizer: {why}; repair it, download it again, or give token ids "
        "in a .npy file"
    )
