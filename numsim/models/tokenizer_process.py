"""Run a tokenizer in a process of its own; started by path, so nothing of numsim is imported.

A tokenizer.json is code of a kind: it may panic, end the process, or make terabytes of one letter.
Here that ends nothing but this process. stdin: one JSON request; stdout: one line of JSON, then the
ids of all texts as int64, and where they are asked for the segments of all ids. A text is a string
or a pair of them.
"""

from __future__ import annotations

import array
import contextlib
import json
import sys
from typing import Any

MOST = 64  # tokens of a character, far above any real tokenizer
SPARE = 64  # tokens beyond a limit, so that the cut of the text changes none before it


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin.buffer)
    _limit(request["memory_bytes"])
    try:
        head, numbers = _answer(request)
    except BaseException as error:  # a panic of the library is no Exception
        head, numbers = {"error": str(error)[:500] or type(error).__name__}, array.array("q")
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + numbers.tobytes())
    sys.stdout.buffer.flush()


def _limit(memory_bytes: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has limits
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], array.array[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(request["path"])
    cut = tokenizer.truncation
    tokenizer.no_truncation()
    tokenizer.no_padding()
    head = {"size": tokenizer.get_vocab_size(), "truncation": cut["max_length"] if cut else None}
    if request["longest"] is not None:
        longest = request["longest"] if cut is None else min(cut["max_length"], request["longest"])
        tokenizer.enable_truncation(longest)
    ids, segments, counts = array.array("q"), array.array("q"), []
    for text in request["texts"]:
        if isinstance(text, str):
            new = _encode(tokenizer, text, request["special"], request["limit"])
        else:
            new = _whole(tokenizer, *text, special=request["special"])
        ids.extend(new.ids[: request["limit"]])
        segments.extend(new.type_ids[: request["limit"]])
        counts.append(len(new.ids[: request["limit"]]))
        if request["total"] is not None and len(ids) > request["total"]:
            break  # what follows is not wanted
    return head | {"counts": counts}, ids + segments if request["segments"] else ids


def _whole(tokenizer: Any, *texts: str, special: bool) -> Any:
    """Return the encoding of a text or a pair; that of most tokens a character is an error."""
    found = tokenizer.encode(*texts, add_special_tokens=special)
    characters = sum(map(len, texts))
    if len(found.ids) > MOST * characters + 1024:
        raise ValueError(f"it makes {len(found.ids)} tokens of {characters} characters")
    return found


def _encode(tokenizer: Any, text: str, special: bool, limit: int | None) -> Any:
    """Return the encoding of a text; with a limit, of as much of its beginning as that needs."""
    length = len(text) if limit is None else 4 * (limit + SPARE)
    while True:
        part = text[:length]
        if len(part) < len(text):  # cut before white space, where words end
            part = (
                part[: max(map(part.rfind, " \n\t"))] if any(c in part for c in " \n\t") else part
            )
        found = _whole(tokenizer, part, special=special)
        if limit is None or len(found.ids) >= limit + SPARE or length >= len(text):
            return found
        length *= 2


if __name__ == "__main__":
    main()
