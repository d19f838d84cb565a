"""What a sweep feeds a network: windows of a text, halves of them, or sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numsim.errors import NumsimError, UnsupportedError
from numsim.models import Arch, Model, Recipe, Run
from numsim.models.checks import token_ids
from numsim.models.text import TextTools
from numsim.sweep.spec import SweepSpec

Text = str | NDArray[np.int64]  # or its token ids [tokens], of an encoder [sentences, tokens]
SHORTEST = 150  # characters of a paragraph that counts as a sentence of its own
PAIRS = (  # what published files call the two texts of a pair; a text alone is `text`
    ("text", "text_pair"), ("query", "passage"), ("query", "document"),
    ("sentence1", "sentence2"), ("premise", "hypothesis"),
)  # fmt: skip


class Inputs(NamedTuple):
    """Token ids of all windows or sentences."""

    tokens: NDArray[np.int64]  # [count, length]: what is scored, or the sentences
    keep: NDArray[np.bool_] | None = None  # [count, length], of sentences
    source: NDArray[np.int64] | None = None  # [count, length'], of an encoder-decoder
    last: bool = False  # the last token of a sentence stands for it, not the mean
    types: NDArray[np.int64] | None = None  # [count, length], segments of sentences

    def run(
        self, model: Model, part: slice, recipe: Recipe | None, taps: list[str],
        tell: Callable[[str, int], object] = lambda layer, layers: None,
    ) -> Run:  # fmt: skip
        """Run the rows of `part`; sentences are cut to the longest of them."""
        tokens = self.tokens[part]
        more: dict[str, Any] = {"taps": taps, "tell": tell}
        if self.keep is not None:
            keep = self.kept(part)
            types = None if self.types is None else self.types[part, : keep.shape[1]]
            tokens = tokens[:, : keep.shape[1]]
            return model.run(tokens, recipe, attention_mask=keep, token_type_ids=types, **more)
        if self.source is not None:
            return model.run(self.source[part], recipe, decoder_tokens=tokens, **more)
        return model.run(tokens, recipe, **more)

    def kept(self, part: slice) -> NDArray[np.bool_]:
        """Return which tokens of `part` count, [B, length of the longest sentence]."""
        if self.keep is None:
            raise NumsimError("sweep: only sentences have embeddings; give an encoder")
        keep = self.keep[part]
        return keep[:, : int(keep.sum(axis=1).max())]

    def embeddings(self, run: Run, part: slice) -> NDArray[np.float64]:
        """Return one unit vector a sentence, of the last hidden states of its kept tokens.

        Their mean; of a network whose tokens see only earlier ones, the state of the last.
        """
        states = run.hidden_states[-1].astype(np.float64)  # [B, T, H]
        keep = self.kept(part)[..., None]  # [B, T, 1]
        if self.last:
            keep = keep & (np.cumsum(keep, axis=1) == keep.sum(axis=1, keepdims=True))
        mean = np.where(keep, states, 0.0).sum(axis=1) / keep.sum(axis=1)
        unit: NDArray[np.float64] = mean / np.sqrt((mean * mean).sum(axis=1, keepdims=True))
        return unit


def read_inputs(arch: Arch, tools: TextTools, spec: SweepSpec, text: Text) -> Inputs:
    """Cut a text as the network needs it.

    Decoders get windows without overlap, each begun by the begin-of-text token, or as
    `window_start` says. Of an encoder-decoder the encoder reads the first half of a window and the
    decoder is scored on the second. Encoders, trunks and classifiers get sentences: see
    `sentences`; their token ids are [sentences, tokens], of any other network [tokens].

    Raises
    ------
    NumsimError
        The text gives nothing to run, token ids have another shape, the model has no begin-of-text
        token, or the tokenizer gives ids that the model does not have.
    UnsupportedError
        An encoder-decoder without its head, for which there is no text task.
    """
    if arch.reads != "tokens":
        raise UnsupportedError(
            f"sweep: a network reads texts; {arch.family} reads {arch.reads}; compare recipes on "
            f"{arch.reads} of your own: model.run({arch.reads}=..., recipe=...) and numsim.metrics"
        )
    if arch.decoder_layers and not arch.head:
        raise UnsupportedError(
            f"sweep: an encoder-decoder is scored by the tokens it predicts; this {arch.family} "
            "has no head of the next token; name the class with its head in architectures, if its "
            "tensors are stored"
        )
    if not isinstance(text, str) and text.ndim != (1 if arch.head else 2):
        rule = "which reads texts one by one, are an integer array [sentences, tokens]"
        change = "reshape them, one sentence is ids[None]"
        if arch.head:
            rule = "which reads running text, are an integer array [tokens]"
            change = "join them with ids.reshape(-1)"
        raise NumsimError(
            f"sweep: token ids for {arch.family}, {rule}; {spec.text} holds {text.dtype} "
            f"{list(text.shape)}; {change}"
        )
    if not arch.head:
        if spec.window_start != "bos":
            raise NumsimError(
                f"sweep: window_start begins windows of a running text; got "
                f"{spec.window_start} for {arch.family}, which reads texts one by one; leave it out"
            )
        inputs = sentences(tools, spec, text, pad=arch.pad or 0)
        token_ids(inputs.tokens, "tokens", arch.vocab)
        return inputs._replace(last=arch.causal)
    if (
        spec.one_text is not None and spec.one_text.suffix == ".jsonl"
    ):  # its braces would be scored too
        raise NumsimError(
            f"sweep: {arch.family} reads running text; {spec.text} has a text in each line, as "
            "encoders and classifiers read them; write the texts alone into a .txt file"
        )
    tokens = windows(tools, spec, text)
    token_ids(tokens, "tokens", arch.vocab)  # all of them, before the first is run
    if not arch.decoder_layers:
        return Inputs(tokens)
    if spec.window_start == "none":
        raise NumsimError(
            "sweep: a decoder that reads an encoder's output begins with a token; got window_start "
            "'none'; bos or eos"
        )
    half = tokens.shape[1] // 2
    if half < 1 or tokens.shape[1] - half < 2:
        raise NumsimError("sweep: an encoder-decoder needs windows of 3 tokens; give more text")
    scored = np.concatenate([tokens[:, :1], tokens[:, 1 + half :]], axis=1)
    return Inputs(scored, source=tokens[:, 1 : 1 + half])


def windows(tools: TextTools, spec: SweepSpec, text: Text) -> NDArray[np.int64]:
    """Cut a text into windows [count, window], each begun as `window_start` says.

    Raises
    ------
    NumsimError
        Where the text gives no token, or the model has no such token to begin with.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> from numsim.models.text import load_text_tools
    >>> tools = load_text_tools(bundled_model_dir())
    >>> windows(tools, SweepSpec(window=4), "one two three four").shape
    (2, 4)
    """
    return tools.windows(text, spec.window, limit=spec.limit_tokens, start=spec.window_start)


def sentences(tools: TextTools, spec: SweepSpec, text: Text, *, pad: int = 0) -> Inputs:
    """Tokenise the paragraphs of a text, with special tokens, padded to the longest with `pad`.

    Paragraphs end at an empty line and count from 150 characters on; each is cut to the window,
    the longest sequence of the model and the length its tokenizer truncates to. `limit_tokens`
    keeps whole paragraphs, at least one. A ``.jsonl`` file has a text or a pair of texts in each
    line, of any length: see `json_texts`. Token ids [sentences, tokens] are sentences as they are,
    cut and limited likewise.

    Raises
    ------
    NumsimError
        No paragraph is long enough, or a line that holds no text.
    """
    longest = min(spec.window, tools.max_positions or spec.window)
    if not isinstance(text, str):
        given = text[:, :longest]
        if spec.limit_tokens is not None and given.size:
            given = given[: max(1, spec.limit_tokens // given.shape[1])]
        return Inputs(given, np.ones(given.shape, np.bool_))
    if spec.one_text is not None and spec.one_text.suffix == ".jsonl":
        usable = json_texts(text, spec.one_text.name)
    else:
        paragraphs = [p.strip().replace("\n", " ") for p in re.split(r"\n\s*\n", text)]
        usable = [paragraph for paragraph in paragraphs if len(paragraph) >= SHORTEST]
    if not usable:
        raise NumsimError(
            f"sweep: a network that reads texts one by one needs a paragraph of {SHORTEST} "
            "characters or more, or a .jsonl file with a text or a pair of texts in each line; the "
            "text has none; give another text"
        )
    rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    total = 0
    for row in tools.rows(usable, longest, total=spec.limit_tokens):
        if rows and spec.limit_tokens is not None and total + len(row[0]) > spec.limit_tokens:
            break
        total += len(row[0])
        rows.append(row)
    made = tools._replace(pad=pad).padded(rows)
    keep = made["attention_mask"].astype(np.bool_)
    return Inputs(made["tokens"], keep, types=made.get("token_type_ids"))


def json_texts(text: str, name: str) -> list[str | tuple[str, str]]:
    r"""Return the texts and pairs of texts of JSON lines.

    A line is a text, a list of two, or an object: a text is its ``text``, a pair ``text`` and
    ``text_pair``, or two of the names in `PAIRS`; other fields are not read.

    Raises
    ------
    NumsimError
        A line is something else.

    Examples
    --------
    >>> json_texts('["who?", "me"]\n{"text": "hm", "label": 1}', "t.jsonl")
    [('who?', 'me'), 'hm']
    """
    found = []
    for at, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise NumsimError(
                f"sweep: {name}, line {at}: not JSON ({error}); write one text or pair a line"
            ) from None
        one = _texts_of(value)
        if one is None:
            names = ", ".join("/".join(pair) for pair in PAIRS)
            raise NumsimError(
                f"sweep: {name}, line {at}: a line is a text, a list of two texts, or an object "
                f"with the field text or a pair of {names}; got {line.strip():.60}; rename its "
                "fields"
            )
        found.append(one)
    return found


def _texts_of(value: object) -> str | tuple[str, str] | None:
    if isinstance(value, dict):
        pair = next((pair for pair in PAIRS if set(pair) <= set(value)), None)
        value = value.get("text") if pair is None else [value[part] for part in pair]
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value):
        return value[0], value[1]
    return value if isinstance(value, str) else None


def split_name(name: str) -> tuple[str, str]:
    """Return (layer, operator) of a matrix product; those around the layers are ``outer``.

    >>> split_name("layers.3.experts.1.up_proj"), split_name("encoder.layers.0.q_proj")
    (('3', 'experts.1.up_proj'), ('encoder.0', 'q_proj'))
    >>> split_name("lm_head")
    ('outer', 'lm_head')
    """
    if "layers." not in name:
        return "outer", name
    stack, _, rest = name.partition("layers.")
    number, _, op = rest.partition(".")
    return stack + number, op


def same_rows(
    reference: dict[str, NDArray[Any]], taps: dict[str, NDArray[Any]], name: str
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return a product's output in both runs; of an expert, for the tokens both sent to it."""
    want, got = reference[f"{name}.out"], taps.get(f"{name}.out")
    if got is None:
        return None
    if ".experts." not in name:
        return want, got
    rows = f"{name.rpartition('.')[0]}.rows"
    _, i, j = np.intersect1d(reference[rows], taps[rows], return_indices=True)
    return (want[i], got[j]) if len(i) else None
