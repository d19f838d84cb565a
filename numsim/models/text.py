"""Text to tokens: the tokenizer of a model folder and what a window of its text looks like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.models.families import FAMILIES
from numsim.models.hub import find_folder
from numsim.models.multimodal import text_config
from numsim.models.stored import read_json
from numsim.models.tokens import Ids, Text, TokenizerFile, read_tokenizer

STARTS = ("bos", "eos", "none")  # what begins a window


class TextTools(NamedTuple):
    """The tokenizer of a checkpoint, its begin-of-text token and its longest sequence."""

    tokenizer: TokenizerFile | None  # None: a folder without, whose texts are token ids
    begin: int | None
    max_positions: int | None
    begin_key: str = "bos_token_id"  # of config.json, where `begin` stands
    vocab: int | None = None
    end: int | None = None
    pad: int = 0  # what fills shorter texts of a batch, which its mask leaves out
    segments: bool = False  # the network tells the two texts of a pair apart

    def __repr__(self) -> str:
        own = self.tokenizer
        words = "no tokenizer" if own is None else f"tokenizer of {own.size:,}"
        return f"TextTools({words}, begin={self.begin}, max_positions={self.max_positions})"

    def ids(self, text: str, *, limit: int | None = None) -> NDArray[np.int64]:
        """Return the token ids of `text`, without special tokens, of all or of its beginning.

        With a `limit`, only so much of the text is tokenised as gives 64 tokens more, up to white
        space: what comes later has no part in the first ones.
        """
        if not isinstance(text, str):
            raise NumsimError(f"ids: text is a str; got {type(text).__name__}; read the file")
        limit = _count("ids: limit", limit)
        return self._own().encode([text], limit=limit)[0]

    def all_ids(self, texts: Sequence[Text], *, special: bool = False) -> list[Ids]:
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
        limit = _count("windows: limit", limit)
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

    def sentence(self, text: Text, longest: int) -> list[int]:
        """Return the token ids of `text` with special tokens, at most `longest`, not padded."""
        return [int(token) for token in self.sentences([text], longest)[0]]

    def sentences(
        self, texts: Sequence[Text], longest: int, *, total: int | None = None
    ) -> list[Ids]:
        """Return the ids of texts with special tokens, each at most `longest`, not padded.

        With `total`, the texts up to the one with which they have more ids together.
        """
        most = _count("sentences: longest", longest)
        return self._own().encode(texts, special=True, longest=most, total=total)

    def batch(self, texts: Sequence[Text], longest: int | None = None) -> dict[str, Ids]:
        """Return texts, or pairs of texts, as `Model.run` takes them: ``run(**batch(texts))``.

        Parameters
        ----------
        texts : sequence of str, or of pairs (str, str)
            A pair is read as one text: the query and the passage of a reranker.
        longest : int, optional
            Cut each to so many tokens, special ones included: of a pair the longer text first.
            None: to the positions the model has, and the length its tokenizer cuts to.

        Returns
        -------
        dict
            ``tokens`` and ``attention_mask`` [texts, T], shorter ones padded at the end, and
            where the network has segments ``token_type_ids`` [texts, T]: 0, of a second text 1.

        Raises
        ------
        NumsimError
            No text, something else than texts and pairs, or no usable tokenizer.

        Examples
        --------
        >>> from numsim.data import bundled_model_dir
        >>> given = load_text_tools(bundled_model_dir()).batch(["one two", ("one", "two three")])
        >>> given["attention_mask"].sum(axis=1).tolist()
        [3, 7]
        """
        listed = list(texts) if isinstance(texts, Iterable) else []
        if isinstance(texts, str) or not listed or not all(map(_is_text, listed)):
            raise NumsimError(
                f"batch: texts are a list of texts, or of pairs (text, text); got {texts!r:.80}; "
                'one pair is [("query", "passage")]'
            )
        return self.padded(self.rows(listed, longest))

    def rows(
        self, texts: Sequence[Text], longest: int | None = None, *, total: int | None = None
    ) -> list[tuple[Ids, Ids]]:
        """Return the ids and segments of each text, as `sentences` cuts it."""
        given = _count("batch: longest", longest)
        most = self.max_positions if given is None else given
        return self._own().segmented(texts, longest=most, total=total)

    def padded(self, rows: Sequence[tuple[Ids, Ids]]) -> dict[str, Ids]:
        """Return `rows` as arrays, as in `batch`."""
        shape = (len(rows), max(len(ids) for ids, _ in rows))
        tokens, keep = np.full(shape, self.pad, np.int64), np.zeros(shape, np.int64)
        types = np.zeros(shape, np.int64)
        for i, (ids, segments) in enumerate(rows):
            tokens[i, : len(ids)], keep[i, : len(ids)], types[i, : len(ids)] = ids, 1, segments
        given = {"tokens": tokens, "attention_mask": keep}
        return given | {"token_type_ids": types} if self.segments else given


def _count(what: str, count: Any) -> int | None:
    """Return a number of tokens as Python's own, which JSON takes."""
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if count is not None and not (whole and 1 <= count < 1 << 63):
        raise NumsimError(f"{what} is 1 token or more, below 2**63, or None; got {count!r:.40}")
    return None if count is None else int(count)


def _is_text(value: object) -> bool:
    if isinstance(value, list | tuple) and len(value) == 2:
        return all(isinstance(part, str) for part in value)
    return isinstance(value, str)


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
    tokenizer = read_tokenizer(path) if _is_there(path) else None
    config, _ = text_config(read_json(folder / "config.json"))
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
        max(_integer(config.get("pad_token_id")) or 0, 0),
        _reads_segments(folder, config),
    )


def _is_there(path: Path) -> bool:
    """Return whether there is such a file; a link to nothing is not the same as none."""
    if path.is_symlink() and not path.exists():  # of a hub's cache that lost its blob
        raise NumsimError(f"load_text_tools: {path} is a link to nothing; download it again")
    return path.is_file()


def _reads_segments(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return whether the network has segments and its tokenizer gives them, as transformers."""
    family = FAMILIES.get(str(config.get("model_type")))
    path = folder / "tokenizer_config.json"
    names = read_json(path).get("model_input_names") if _is_there(path) else None
    said = not isinstance(names, list) or "token_type_ids" in names
    return said and family is not None and "token_types" in family.keys


def _integer(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None
