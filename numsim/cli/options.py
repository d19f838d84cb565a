"""Numbers that say what is wrong with them, names to complete, and options of several commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from numsim.errors import NumsimError
from numsim.explain import parse_number
from numsim.formats import STOCHASTIC, list_formats
from numsim.formats.names import ALIASES
from numsim.quant import QUANTS
from numsim.targets import list_targets
from numsim.vocabulary import SR_VARIANTS
from numsim.words import shorten

_LONGEST = 40  # of a number, and of one in a message


def whole(text: str | int) -> int:
    """Return the whole number that an option names.

    Examples
    --------
    >>> whole("-12")
    -12
    >>> whole("1e3")
    Traceback (most recent call last):
    typer...BadParameter: expected a whole number such as 12; got '1e3'
    """
    try:
        return int(text if len(str(text)) <= _LONGEST else "")
    except ValueError:
        digits = f" of at most {_LONGEST} digits" if len(str(text)) > _LONGEST else ""
        raise typer.BadParameter(
            f"expected a whole number{digits} such as 12; got {shorten(text, _LONGEST)!r}"
        ) from None


def number(text: str | float) -> float | int:
    """Return the number that an option names: integers stay exact.

    Examples
    --------
    >>> number("0x20000000000001"), number("-2.5")
    (9007199254740993, -2.5)
    """
    try:
        return parse_number(text) if isinstance(text, str) else text
    except NumsimError:
        raise typer.BadParameter(
            "expected a number within float64 such as 17, -0.3, 1e9, inf or nan; got "
            f"{shorten(text, _LONGEST)!r}"
        ) from None


def split(text: str | None) -> tuple[str, ...] | None:
    """Return the names of a list with commas.

    Examples
    --------
    >>> split("e4m3, int8,")
    ('e4m3', 'int8')
    """
    if text is None:
        return None
    return tuple(part.strip() for part in text.split(",") if part.strip())


def matching(part: str, known: Iterable[str]) -> list[str]:
    """Return the names that have a text anywhere in them, case aside.

    Examples
    --------
    >>> matching("Hopper", list_targets())
    ['nvidia.hopper.wgmma', 'nvidia.hopper.mma']
    """
    key = part.strip().lower()
    return [name for name in known if key and key in name.lower()]


def matching_formats(part: str) -> list[str]:
    """Return the formats and recipes that have a text in their names, short ones too.

    Examples
    --------
    >>> matching_formats("e2m1")
    ['float4_e2m1fn', 'mxfp4_e2m1']
    """
    known = (*FORMATS, *RECIPES)
    found = {ALIASES.get(name, name) for name in matching(part, known)}
    found |= {*matching(re.sub(r"^\s*fp(?=\d)", "float", part), known)}
    return [name for name in (*list_formats(), *RECIPES) if name in found]


FORMATS = (*list_formats(), *ALIASES)
RECIPES = tuple(QUANTS)
TARGETS = list_targets()
STOCHASTICS = (*SR_VARIANTS, *STOCHASTIC)


def completes(*names: str) -> Callable[[str], list[str]]:
    """Return what completes a word to these names, or the last one of a list with commas.

    Examples
    --------
    >>> completes(*TARGETS)("ideal.int,ideal.f")
    ['ideal.int,ideal.fp32']
    """

    def complete(incomplete: str) -> list[str]:
        done, comma, word = incomplete.rpartition(",")
        return [done + comma + name for name in names if name.startswith(word.lower())]

    return complete


ANY_FORMAT = completes(*FORMATS, *RECIPES)
ANY_TARGET = completes(*TARGETS)
_GRANULARITIES = completes(
    "per_tensor", "per_channel+per_token", "none", "per_block:", "per_block:128x128"
)
Model = Annotated[
    str | None,
    typer.Option(
        help="Hugging Face folder, or ORG/NAME in its cache, or several, comma separated; default: "
        "the bundled tiny Llama."
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        help="UTF-8 text, or token ids in .npy, integers [tokens], of an encoder [sentences, "
        "tokens]; of an encoder or classifier .jsonl too, a text or a pair in each line; T5 "
        "reads half of each window and is scored on the rest; default: the bundled course."
    ),
]
Formats = Annotated[
    str | None,
    typer.Option(
        help="Formats, comma separated: e4m3,int8,q3.4,nvfp4,mine.toml; int4+int8: weights and "
        "activations; default: twelve.",
        autocompletion=ANY_FORMAT,
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(
        help="Units, comma separated: ideal.fp32,nvidia.hopper.wgmma,mine.toml; fields: "
        "ideal.int:acc_bits=16,20; default: the exact unit of each format.",
        autocompletion=ANY_TARGET,
    ),
]
Granularity = Annotated[
    str | None,
    typer.Option(
        help="Scales, comma separated: per_tensor,per_channel+per_token,none,per_block:128,"
        "per_block:128x128; default: the first two; none for bfloat16 and fixed point.",
        autocompletion=_GRANULARITIES,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Use only the first tokens of the text.", parser=whole, metavar="N"),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
