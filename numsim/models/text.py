"""Text to tokens: the tokenizer of a model folder and what a window of its text looks like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.models.hub import find_folder
from numsim.models.stored import read_json
from numsim.models.tokens import TokenizerFile, read_tokenizer

STARTS = ("bos", "eos", "none")  # what begins a window


class TextTools(NamedTuple):
    """The tokenizer of a checkpoint, its begin-of-text token and its longest sequence."""

    tokenizer: TokenizerFile | None  # None: a folder without, whose texts are token ids
    begin: int | None
    max_positions: int | None
    begin_key: str = "bos_token_id"  # of config.json, where `begin` stands
    vocab: int | None = None
    end: int | None = None

    def __repr__(self) -> str:
        own = self.tokenizer
        words = "no tokenizer" if own is None else f"tokenizer of {own.size:,}"
        return f"TextTools({words}, begin={self.begin}, max_positions={self.max_positions})"

    def ids(self, text: str, *, limit: int | None = None) -> NDArray[np.int64]:
        """Return the token ids of `text`, without special tokens, of all or of its beginning.

        With a `limit`, only so much of the text is tokenised as gives 64 tokens more, up to white
        space: what comes later has no part in the first ones.
        """
        return self._own().encode([text], limit=limit)[0]

    def all_ids(self, texts: Sequence[str], *, special: bool = False) -> list[NDArray[np.int64]]:
        """Return the token ids of many texts at once: each call starts a process."""
        return self._own().encode(texts, special=special)

    def _own(self) -> TokenizerFile:
        if self.tokenizer is None:
            raise NumsimError(
                "a text needs a tokenizer, and the folder has no tokenizer.json; add it (in "
                "transformers, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes it), "
                "or give token ids, as a .npy file of integers [tokens], of an encoder [sentences, "
                "tokens]"
            )
        return self.tokenizer

    def windows(
        self,
        text: str | NDArray[Any],
        window: int,
        *,
        limit: int | None = None,
        start: str = "bos",
    ) -> NDArray[np.int64]:
        """Cut a text into windows [count, T] without overlap, each begun by one token.

        Parameters
        ----------
        text : str or int array [tokens]
        window : int
            Tokens of a window, the first included; cut to the positions the model has.
        limit : int, optional
            Use only so many tokens of the text.
        start : str
            What begins each window: ``bos``, the begin-of-text token; ``eos``, the end-of-text
            token, for models trained without the other; ``none``, the text itself.

        Returns
        -------
        int64 array [count, T]
            What remains after the last whole window is left out; a text shorter than a window
            is one.

        Raises
        ------
        NumsimError
            The text gives no token, `window` is below 2, or the model has no begin-of-text token
            or one beyond its vocabulary.

        Examples
        --------
        >>> from numsim.data import bundled_model_dir
        >>> load_text_tools(bundled_model_dir()).windows("one two three four", 4).shape
        (2, 4)
        """
        given = isinstance(text, np.ndarray) and text.dtype.kind in "iu" and text.ndim == 1
        if not isinstance(text, str) and not given:
            raise NumsimError(
                f"windows: text is a str, or its token ids, an integer array [tokens]; got "
                f"{type(text).__name__}; read the file"
            )
        if not isinstance(window, int | np.integer) or window < 2:
            raise NumsimError(
                f"windows: a window is 2 tokens or more; got {window!r}; 256 is usual"
            )
        if limit is not None and (not isinstance(limit, int | np.integer) or limit < 1):
            raise NumsimError(f"windows: limit is 1 token or more, or None; got {limit!r}")
        first = self.first_ids(start)
        ids = (
            self.ids(text, limit=limit) if isinstance(text, str) else text.astype(np.int64)[:limit]
        )
        if ids.size < 2 - first.size:
            raise NumsimError(
                f"windows: the text gives {'1 token' if ids.size else 'no tokens'}, and none that "
                "can be scored; give a text with words in it"
            )
        longest = window if self.max_positions is None else self.max_positions
        if longest < 2:
            raise NumsimError(
                f"windows: max_position_embeddings is 2 or more; config.json has {longest}"
            )
        body = min(min(window, longest) - first.size, ids.size)
        count = ids.size // body
        cut = ids[: count * body].reshape(count, body)
        return np.concatenate([np.tile(first, (count, 1)), cut], axis=1)

    def first_ids(self, start: str) -> NDArray[np.int64]:
        """Return what begins every window, [1] or [0] ids.

        Raises
        ------
        NumsimError
            No such word, or the model has no such token, or one beyond its vocabulary.
        """
        if start not in STARTS:
            raise NumsimError(f"windows: start is one of {', '.join(STARTS)}; got {start!r}")
        if start == "none":
            return np.empty(0, np.int64)
        key, token = (self.begin_key, self.begin) if start == "bos" else ("eos_token_id", self.end)
        if token is None:
            other = f"with eos_token_id {self.end} (eos) or " if self.end is not None else ""
            raise NumsimError(
                f"windows: config.json names no {start}_token_id, which begins every window; begin "
                f"them {other}with nothing (none): --window-start, window_start="
            )
        if self.vocab is not None and not 0 <= token < self.vocab:
            raise NumsimError(
                f"windows: {key}, which begins every window, must be below vocab_size "
                f"{self.vocab}; config.json has {token}; correct it"
            )
        return np.array([token], np.int64)

    def sentence(self, text: str, longest: int) -> list[int]:
        """Return the token ids of `text` with special tokens, at most `longest`, not padded."""
        return [int(token) for token in self.sentences([text], longest)[0]]

    def sentences(
        self, texts: Sequence[str], longest: int, *, total: int | None = None
    ) -> list[NDArray[np.int64]]:
        """Return the ids of texts with special tokens, each at most `longest`, not padded.

        With `total`, the texts up to the one with which they have more ids together.
        """
        return self._own().encode(texts, special=True, longest=longest, total=total)


def load_text_tools(directory: str | Path) -> TextTools:
    """Read ``tokenizer.json`` and the keys of ``config.json`` that windows need.

    Raises
    ------
    NumsimError
        Where tokenizer.json is damaged; where it is missing, only token ids can be cut.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> tools = load_text_tools(bundled_model_dir())
    >>> tools.begin, tools.max_positions
    (0, 512)
    """
    if not isinstance(directory, str | Path):
        raise NumsimError(f"load_text_tools: a folder is a str or Path; got {directory!r}")
    folder = find_folder(directory)
    path = folder / "tokenizer.json"
    tokenizer = read_tokenizer(path) if path.is_file() else None
    config = read_json(folder / "config.json")
    begin_key = "bos_token_id"
    if config.get(begin_key) is None:  # T5 begins with what its decoder starts from
        begin_key = "decoder_start_token_id"
    ends = config.get("eos_token_id")
    longest = config.get("max_position_embeddings", config.get("n_positions"))
    return TextTools(
        tokenizer,
        _integer(config.get(begin_key)),
        _integer(longest),
        begin_key,
        _integer(config.get("vocab_size")),
        _integer(ends[0] if isinstance(ends, list) and ends else ends),
    )


def _integer(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None
