"""Texts become numbers: cleaning, a vocabulary, labelled messages from files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError
from numsim.files import check_regular
from numsim.float_state import known_floats

PADDING, UNKNOWN = 0, 1  # the first two ids of every vocabulary
_MOST_BYTES = 1 << 30  # of an unpacked file of messages

# Words that carry grammar, not meaning. Source: the function words of English (articles,
# pronouns, prepositions, conjunctions, auxiliaries) as any grammar lists them.
_STOP = """a an the and or but nor so yet if then than because while although though as of at by
for with about against between into through during before after above below to from up down in out
on off over under again further once i me my mine myself we us our ours ourselves you your yours
yourself yourselves he him his himself she her hers herself it its itself they them their theirs
themselves this that these those who whom whose which what where when why how all any both each few
more most other some such no not only own same too very am is are was were be been being have has
had having do does did doing will would shall should can could may might must"""
STOP_WORDS = frozenset(_STOP.split())


@known_floats
def clean(
    text: str,
    *,
    lower: bool = True,
    marks: str = "!?$%",
    numbers: bool = False,
    stop_words: bool | Iterable[str] = False,
) -> list[str]:
    """Return the words of a text.

    A word is a run of letters, with apostrophes inside it. Everything else is dropped, but for
    what the options keep; a text that was cleaned so before comes back unchanged.

    Parameters
    ----------
    text
        Any text.
    lower
        Lower case.
    marks
        Punctuation that stays, each mark a word of its own: ``"!?$%"`` tell spam from ham.
    numbers
        Keep runs of digits as words.
    stop_words
        True drops `STOP_WORDS`; a collection of words drops those, in either case.

    Returns
    -------
    list of str

    Raises
    ------
    NumsimError
        For anything but a text.

    Source
    ------
    The usual steps of text classification; the marks that stay are those of the shipped messages.

    Examples
    --------
    >>> clean("WIN $1,000 now!! Don't miss it.")
    ['win', '$', 'now', '!', '!', "don't", 'miss', 'it']
    >>> clean("WIN $1,000 now!!", lower=False, marks="", numbers=True, stop_words=["now"])
    ['WIN', '1,000']
    """
    if not isinstance(text, str):
        raise NumsimError(f"clean: a text is a str; got {type(text).__name__}; decode it first")
    if not isinstance(marks, str):
        raise NumsimError(f"clean: marks are a text of punctuation; got {marks!r:.60}")
    plain = text.replace("\u2019", "'")  # lower case first: it makes two characters of some letters
    words = _pattern(marks, numbers).findall(plain.lower() if lower else plain)
    if stop_words is False:
        return words
    if stop_words is True:
        stop_words = STOP_WORDS
    if not _collection(stop_words):
        raise NumsimError(
            f"clean: stop_words is True, False or a collection of words; got {stop_words!r:.60}"
        )
    words_out = list(stop_words)
    if not all(isinstance(word, str) for word in words_out):
        raise NumsimError(f"clean: stop_words are words; got {words_out!r:.60}")
    dropped = {word.lower() for word in words_out}
    return [word for word in words if word.lower() not in dropped]


def _collection(value: Any) -> TypeGuard[Iterable[Any]]:
    """Whether a value can be gone through: no text, and no array without an axis."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return several and getattr(value, "ndim", 1) != 0


def _pattern(marks: str, numbers: bool) -> re.Pattern[str]:
    parts = [r"[^\W\d_]+(?:'[^\W\d_]+)*"]
    if numbers:
        parts.append(r"\d+(?:[.,]\d+)*")
    if marks:
        parts.append("[" + re.escape(marks) + "]")
    return re.compile("|".join(parts))


@known_floats
@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids: `words` [size] in order of id; 0 is padding, 1 any unknown word.

    Examples
    --------
    >>> vocabulary = Vocabulary.build(["to be or not to be", "to do"], 4)
    >>> vocabulary.words
    ('<pad>', '<unk>', 'to', 'be')
    >>> vocabulary.encode(["do be to"], 4)
    array([[0, 1, 3, 2]])
    """

    words: tuple[str, ...]

    @classmethod
    def build(
        cls, texts: Iterable[str | Sequence[str]], size: int, *, never: Iterable[str] = ("unk",)
    ) -> Vocabulary:
        """Return the vocabulary of the most frequent words; equal counts in alphabetical order.

        Parameters
        ----------
        texts
            Texts, split at white space, or lists of words (`clean`).
        size
            Ids in all, padding and unknown included.
        never
            Words that stay unknown: ``unk`` stands for what an earlier cleaning removed.

        Raises
        ------
        NumsimError
            For a size below 3, texts without a word, or `never` that is no collection of words.
        """
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or size < 3:
            raise NumsimError(
                f"Vocabulary.build: size is an integer from 3 (padding, unknown, a word); got "
                f"{size!r}"
            )
        unknown: list[Any] = list(never) if _collection(never) else [None]
        if not all(isinstance(word, str) for word in unknown):
            raise NumsimError(
                f"Vocabulary.build: never is a collection of words; got {never!r:.60}"
            )
        counts = Counter(word for text in _texts(texts) for word in _words(text))
        for word in unknown:
            counts.pop(word, None)
        if not counts:
            raise NumsimError(
                "Vocabulary.build: the texts hold no word; pass texts, or lists of words"
            )
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(("<pad>", "<unk>", *ranked[: int(size) - 2]))

    def encode(self, texts: Iterable[str | Sequence[str]], length: int) -> NDArray[np.int64]:
        """Return ids [N, length]: the first `length` words of each text, padded on the left.

        Raises
        ------
        NumsimError
            For a length below 1, or a text without a word, by its index.
        """
        integer = isinstance(length, int | np.integer) and not isinstance(length, bool)
        if not integer or not 1 <= length <= 1 << 24:
            raise NumsimError(
                f"Vocabulary.encode: length is an integer from 1 to 2**24; got {length!r:.40}"
            )
        known = {word: at for at, word in enumerate(self.words)}
        rows = []
        for at, text in enumerate(_texts(texts)):
            ids = [known.get(word, UNKNOWN) for word in _words(text)[: int(length)]]
            if not ids:
                raise NumsimError(
                    f"Vocabulary.encode: every text has a word; text {at} has none; leave it out"
                )
            rows.append([PADDING] * (int(length) - len(ids)) + ids)
        return np.array(rows, np.int64).reshape(len(rows), int(length))


def _texts(texts: Any) -> Iterable[str | Sequence[str]]:
    if not _collection(texts):
        raise NumsimError(
            f"Vocabulary: texts are a list of texts; got {texts!r:.60}; put one text into a list"
        )
    return texts


def _words(text: str | Sequence[str]) -> list[str]:
    if isinstance(text, str):
        return text.split()
    words = list(text) if isinstance(text, Iterable) else [None]
    if not all(isinstance(word, str) for word in words):
        raise NumsimError(
            f"Vocabulary: a text is a str or a list of words; got {text!r:.60}; clean it first"
        )
    return words


class Message(NamedTuple):
    """A labelled text; the label a number from 0, or a word."""

    label: int | str
    text: str
    split: str = ""


@known_floats
def read_messages(path: str | Path) -> list[Message]:
    """Read labelled texts: JSON lines (``.jsonl``) or CSV (``.csv``), also packed (``.gz``).

    Each line or row has ``label`` (an integer from 0, or a word: ``corpus`` numbers words in
    alphabetical order), ``text``, and may have ``split``.

    Raises
    ------
    NumsimError
        For a file that cannot be read, with the line that is wrong.

    Examples
    --------
    >>> from numsim.data import bundled_messages
    >>> first = read_messages(bundled_messages())[0]
    >>> first.label, first.split, first.text[:20]
    (0, 'train', 'tv sports unk in tro')
    """
    if not isinstance(path, str | Path):
        raise NumsimError(f"read_messages: a file is a str or Path; got {path!r:.60}")
    file = Path(path)
    try:
        check_regular(file, "read_messages")
        there = file.is_file()
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL
        raise NumsimError(f"read_messages: cannot read {str(file)!r:.80}: {error!s:.80}") from None
    if not there:
        raise NumsimError(f"read_messages: no file {file}; name JSON lines or CSV")
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise NumsimError(f"read_messages: cannot read {file}: {error}") from None
    if len(data) > _MOST_BYTES:
        raise NumsimError(f"read_messages: {file} holds more than 1 GiB of text; split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NumsimError(
            f"read_messages: {file} is not UTF-8 (byte {error.start}); convert it first"
        ) from None
    kind = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    rows = _csv_rows(text, file) if kind == ".csv" else _json_rows(text, file)
    messages = [_message(row, f"{file}, line {line}") for line, row in rows]
    if not messages:
        raise NumsimError(f"read_messages: {file} holds no message; write one a line")
    return messages


def _json_rows(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        try:
            value = json.loads(row)
        except (ValueError, RecursionError) as error:
            raise NumsimError(
                f"read_messages: {file}, line {line}: not JSON ({error}); write one object a line"
            ) from None
        if not isinstance(value, dict):
            raise NumsimError(
                f"read_messages: {file}, line {line}: an object with label and text; got {row:.60}"
            )
        yield line, value


def _csv_rows(text: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))  # only line ends end a line
    try:
        names = reader.fieldnames or []
    except csv.Error as error:
        raise NumsimError(f"read_messages: {file}, line 1: {error}") from None
    if not {"label", "text"} <= set(names):
        raise NumsimError(
            f"read_messages: {file}: the first line names the columns label and text; got "
            f"{', '.join(map(str, names)) or 'nothing'}"
        )
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise NumsimError(f"read_messages: {file}, line {reader.line_num}: {error}") from None


def _is_word(label: str) -> bool:
    """Whether a label names a class: printable, at most 80 characters, and no number like -1."""
    try:
        float(label)
    except ValueError:
        return label.isprintable() and len(label) <= 80 and any(map(str.isalpha, label))
    return False


def _message(row: dict[str, Any], where: str) -> Message:
    label, text, split = row.get("label"), row.get("text"), row.get("split") or ""
    if isinstance(label, str):
        label = label.strip()
        if label.isascii() and label.isdecimal() and len(label) <= 19:
            label = int(label)
    if isinstance(label, str):
        good = _is_word(label)
    else:
        good = isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 1 << 31
    if not good or label is None:
        raise NumsimError(
            f"read_messages: {where}: label is an integer from 0, or a word; got {label!r:.40}; "
            "number the classes from 0, or name them"
        )
    if not isinstance(text, str) or not text.strip():
        raise NumsimError(f"read_messages: {where}: text is not empty; got {text!r:.40}")
    if not isinstance(split, str):
        raise NumsimError(f"read_messages: {where}: split is a word; got {split!r:.40}")
    return Message(label, text, split)
