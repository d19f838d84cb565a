"""The source article's classifier: Embedding, LSTM, Dense and sigmoid on labelled texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim import nn
from numsim.arguments import is_word
from numsim.data import bundled_messages
from numsim.errors import NumsimError, near_names
from numsim.float_state import known_floats
from numsim.models.text import TextTools
from numsim.nn.losses import LOSSES
from numsim.train.fit import Fit, fit
from numsim.train.optimizers import SGD, Adam
from numsim.train.rules import Recipe
from numsim.train.scaling import LossScale
from numsim.train.table import recipe as named_recipe
from numsim.train.text import PADDING, Message, Vocabulary, clean, read_messages

WORDS, LENGTH, WIDTH, HIDDEN = 2000, 64, 32, 32
BATCH, STEPS, LR = 32, 240, 4e-3
OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts as numbers: ids [N, length] and labels [N], to train on and unseen."""

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    test_inputs: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    rows: int  # of the embedding
    names: tuple[str, ...]  # of the classes, by number

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)


def classifier(
    rows: int = WORDS, width: int = WIDTH, hidden: int = HIDDEN, outputs: int = 1
) -> nn.Sequential:
    """Return Embedding -> LSTM -> its last state -> Linear.

    >>> nn.product_names(classifier())
    ('lstm.input', 'lstm.recurrent', 'head')
    """
    return nn.Sequential(
        embed=nn.Embedding(rows, width, padding_idx=PADDING), lstm=nn.LSTM(width, hidden),
        last=nn.Last(), head=nn.Linear(hidden, outputs),
    )  # fmt: skip


def start(layer: nn.Sequential, *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return the classifier's first parameters.

    Embedding normal with deviation 0.5, LSTM and head uniform within 1 / sqrt(hidden), biases
    of the forget gate 1 together.
    """
    params = nn.init(layer, seed=seed)
    params["embed.weight"] = params["embed.weight"] * np.float32(0.5)
    hidden = params["lstm.weight_hh"].shape[1]
    params["lstm.bias_ih"][hidden : 2 * hidden] = 1.0
    params["lstm.bias_hh"][hidden : 2 * hidden] = 0.0
    return params


def corpus(
    train: Sequence[Message], test: Sequence[Message], *, words: int = WORDS, length: int = LENGTH,
    prepare: Callable[[str], list[str]] = clean, tools: TextTools | None = None,
) -> Corpus:  # fmt: skip
    """Return texts as ids: words of a vocabulary of the training texts, or a model's sub-words.

    Parameters
    ----------
    train, test
        Labelled texts. Labels that are words are numbered in alphabetical order: `Corpus.names`.
    words, length
        Rows of the table, and words of a text that count (padded on the left).
    prepare
        Makes words of a text.
    tools
        Of a folder whose tokenizer cuts texts into sub-words; in place of the vocabulary.

    Raises
    ------
    NumsimError
        For a text without a word (by its place), one class only, labels that skip a number, or
        numbers beside words.
    """
    labels, unseen, names = _numbered(train, test)
    if tools is not None:
        texts = tools.all_ids([m.text for m in (*train, *test)])
        assert tools.tokenizer is not None  # all_ids says where there is none
        ids = np.zeros((len(texts), length), np.int64)
        for at, text in enumerate(texts):
            if not len(text):
                raise NumsimError(f"train: every text has a token; text {at} has none")
            numbers = text[:length] + 2  # after padding and unknown
            ids[at, length - len(numbers) :] = numbers
        rows = int(tools.tokenizer.size) + 2
        return Corpus(ids[: len(train)], labels, ids[len(train) :], unseen, rows, names)
    cleaned, later = ([prepare(m.text) for m in part] for part in (train, test))
    for kind, texts_of, words_of in (("training", train, cleaned), ("unseen", test, later)):
        empty = [at for at, found in enumerate(words_of) if not found]
        if empty:
            came = texts_of[empty[0]].text
            raise NumsimError(
                f"train: every text has a word; the {kind} text {empty[0] + 1}, {came!r:.60}, has "
                "none after cleaning; leave it out, or keep its numbers or marks"
            )
    vocabulary = Vocabulary.build(cleaned, words)
    return Corpus(
        vocabulary.encode(cleaned, length), labels, vocabulary.encode(later, length), unseen,
        words, names,
    )  # fmt: skip


def _numbered(
    train: Sequence[Message], test: Sequence[Message]
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Return the labels of both as numbers, and the names of the classes."""
    found = {m.label for m in train}
    numbers = sorted(label for label in found if isinstance(label, int))
    if len({type(m.label) for m in (*train, *test)}) > 1:
        one, other = (
            next(m.label for m in (*train, *test) if isinstance(m.label, kind))
            for kind in (int, str)
        )
        raise NumsimError(
            f"train: labels are all numbers or all words; got {one} and {other!r:.60}; rename one"
        )
    if len(found) < 2:
        raise NumsimError(
            f"train: the training texts have one class only, {list(found)}; give texts of two "
            "or more"
        )
    if numbers and numbers[-1] >= len(numbers):
        lacking = next(at for at, number in enumerate(numbers) if at != number)
        raise NumsimError(
            f"train: labels count from 0; no training text has label {lacking}; number the "
            "classes from 0 without a gap"
        )
    words = sorted(label for label in found if isinstance(label, str))
    order: Sequence[int | str] = numbers or words
    at = {label: number for number, label in enumerate(order)}
    strange = next((m.label for m in test if m.label not in at), None)
    if strange is not None:
        among = f"lie from 0 to {len(at) - 1}" if numbers else f"are {', '.join(map(str, at))}"
        raise NumsimError(
            f"train: labels {among:.200}, as in the training texts; an unseen text has "
            f"{strange!r:.60}"
        )
    labels, unseen = (np.array([at[m.label] for m in part], np.int64) for part in (train, test))
    return labels, unseen, tuple(map(str, at))


@known_floats
def classify(
    train_file: str | Path | None = None,
    test_file: str | Path | None = None,
    *,
    recipe: Recipe | str | None = "float32",
    seed: int = 0,
    steps: int = STEPS,
    loss: str = "bce_with_logits",
    optimizer: str = "adam",
    lr: float = LR,
    loss_scale: LossScale | None = None,
    target: str | None = None,
    texts: Corpus | None = None,
    batch: int = BATCH,
    **more: Any,
) -> Fit:
    """Train the article's classifier on labelled texts and score it on unseen ones.

    Parameters
    ----------
    train_file
        Messages (`read_messages`); those of split ``train``, or all where none has a split. None:
        the bundled ones.
    test_file
        Rows of any split but ``train`` are scored. None: those of `train_file`.
    recipe
        A recipe of training, or its name; None: float64.
    seed
        Of the first parameters, the order of the texts and stochastic rounding.
    steps
        Updates; lr falls linearly to 0.
    loss
        ``bce_with_logits`` (two classes), ``mse`` of the logit against 0 and 1, or
        ``cross_entropy`` with one output a class.
    optimizer, lr
        ``adam`` or ``sgd``.
    loss_scale
        As in `fit`.
    target
        Unit of a named recipe's products.
    texts
        A `Corpus` in place of files.
    batch
        Texts of an update.
    more
        Passed to `fit`: checkpoint, resume, every, watch, progress.

    Returns
    -------
    Fit

    Raises
    ------
    NumsimError
        For files or texts that cannot be used, and as `fit`.

    Examples
    --------
    >>> classify(recipe="fp8_hybrid", steps=2).history["step"].tolist()
    [1, 2]
    """
    if isinstance(recipe, str):
        recipe = named_recipe(recipe, target=target, seed=seed)
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise NumsimError(f"classify: optimizer is adam or sgd; got {optimizer!r:.60}")
    if not is_word(loss, LOSSES):
        raise NumsimError(
            f"classify: loss is one of {', '.join(LOSSES)}; got {loss!r:.60}"
            f"{near_names(str(loss), LOSSES)}"
        )
    data = read_corpus(train_file, test_file) if texts is None else texts
    if loss != "cross_entropy" and data.classes > 2:
        raise NumsimError(
            f"classify: {loss} is for two classes; the texts have {data.classes}; use cross_entropy"
        )
    outputs = data.classes if loss == "cross_entropy" else 1
    layer = classifier(data.rows, outputs=outputs)
    rule = Adam(lr, seed=seed) if optimizer == "adam" else SGD(lr, momentum=0.9, seed=seed)
    return fit(
        layer, start(layer, seed=seed), (data.inputs, data.labels), loss=loss, recipe=recipe,
        optimizer=rule, steps=steps, batch=batch, seed=seed, decay="linear",
        loss_scale=loss_scale,
        test=(data.test_inputs, data.test_labels) if data.test_labels.size else None, **more,
    )  # fmt: skip


def read_corpus(
    train_file: str | Path | None = None, test_file: str | Path | None = None, **how: Any
) -> Corpus:
    """Return the texts of files as numbers; see `classify` for the files and `corpus` for the rest.

    Raises
    ------
    NumsimError
        Where no text is left to train on.
    """
    messages = read_messages(bundled_messages() if train_file is None else train_file)
    train = [m for m in messages if m.split == "train"]
    if not train and not any(m.split for m in messages):
        train = messages
    if not train:
        raise NumsimError(
            'train: no message has the split "train"; say which are to be trained on, or leave '
            "split out everywhere"
        )
    later = messages if test_file is None else read_messages(test_file)
    test = [m for m in later if m.split != "train"]
    if test_file is None and train is messages:
        test = []
    return corpus(train, test, **how)
