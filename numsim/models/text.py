"""Text to tokens: the tokenizer of a model folder and what a window of its text looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from numsim.errors import NumsimError


class TextTools(NamedTuple):
    """The tokenizer of a checkpoint, its begin-of-text token and its longest sequence."""

    tokenizer: Tokenizer | None  # None: a folder without, whose texts are token ids
    begin: int | None
    max_positions: int | None
    truncation: int | None = None  # the length the tokenizer of the checkpoint cuts to
    begin_key: str = "bos_token_id"  # of config.json, where `begin` stands
    vocab: int | None = None

    def __repr__(self) -> str:
        own = self.tokenizer
        words = "no tokenizer" if own is None else f"tokenizer of {own.get_vocab_size():,}"
        return f"TextTools({words}, begin={self.begin}, max_positions={self.max_positions})"

    def ids(self, text: str) -> NDArray[np.int64]:
        """Return the token ids of `text`, without special tokens."""
        return np.array(self._own().encode(text, add_special_tokens=False).ids, np.int64)

    def _own(self) -> Tokenizer:
        if self.tokenizer is None:
            raise NumsimError(
                "a text needs a tokenizer, and the folder has no tokenizer.json; add it (in "
                "transformers, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes it), "
                "or give token ids, as a .npy file of integers [tokens], of an encoder [sentences, "
                "tokens]"
            )
        return self.tokenizer

    def windows(
        self, text: str | NDArray[Any], window: int, *, limit: int | None = None
    ) -> NDArray[np.int64]:
        """Cut a text into windows [count, T] without overlap, each begun by the begin token.

        Parameters
        ----------
        text : str or int array [tokens]
        window : int
            Tokens of a window, the first included; cut to the positions the model has.
        limit : int, optional
            Use only so many tokens of the text.

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
        ids = (self.ids(text) if isinstance(text, str) else text.astype(np.int64))[:limit]
        if not ids.size:
            raise NumsimError("windows: the text gives no tokens; give a text with words in it")
        if self.begin is None:
            raise NumsimError(
                "windows: config.json names no bos_token_id, which begins every window; add it"
            )
        if self.vocab is not None and not 0 <= self.begin < self.vocab:
            raise NumsimError(
                f"windows: {self.begin_key}, which begins every window, must be below vocab_size "
                f"{self.vocab}; config.json has {self.begin}; correct it"
            )
        longest = window if self.max_positions is None else self.max_positions
        if longest < 2:
            raise NumsimError(
                f"windows: max_position_embeddings is 2 or more; config.json has {longest}"
            )
        body = min(min(window, longest) - 1, ids.size)
        count = ids.size // body
        cut = ids[: count * body].reshape(count, body)
        return np.concatenate([np.full((count, 1), self.begin, np.int64), cut], axis=1)

    def sentence(self, text: str, longest: int) -> list[int]:
        """Return the token ids of `text` with special tokens, at most `longest`, not padded."""
        own, tokenizer = self.truncation, self._own()
        tokenizer.enable_truncation(longest if own is None else min(own, longest))
        try:
            return list(tokenizer.encode(text).ids)
        finally:
            tokenizer.no_truncation()


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
    folder = Path(directory)
    path = folder / "tokenizer.json"
    tokenizer, cut = None, None
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise NumsimError(f"{path} is not a readable tokenizer: {error}") from None
        cut = tokenizer.truncation
        tokenizer.no_truncation()
        tokenizer.no_padding()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    begin_key = "bos_token_id"
    if config.get(begin_key) is None:  # T5 begins with what its decoder starts from
        begin_key = "decoder_start_token_id"
    begin, vocab = config.get(begin_key), config.get("vocab_size")
    longest = config.get("max_position_embeddings", config.get("n_positions"))
    return TextTools(
        tokenizer,
        begin if isinstance(begin, int) else None,
        longest if isinstance(longest, int) else None,
        cut["max_length"] if cut else None,
        begin_key,
        vocab if isinstance(vocab, int) else None,
    )
