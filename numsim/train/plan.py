"""What ``numsim train`` is asked: recipes, seeds, data and files, checked before the first step."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from numsim.errors import NumsimError
from numsim.files import check_apart
from numsim.train.checkpoint import FILE as CHECKPOINT
from numsim.train.rules import Recipe
from numsim.train.table import list_recipes
from numsim.train.table import recipe as named_recipe

CLASSIFIER_RECIPES = (
    "float32", "mxfp8", "fp8_hybrid", "int8", "q3.4_forward", "q3.4", "q3.4_scale4096",
    "fp8_stored_rne", "fp8_stored_sr", "int8_stored_rne", "int8_stored_sr", "q3.4_stored_rne",
    "q3.4_stored_sr",
)  # fmt: skip
CLEANING = (
    ("--keep-case", "lower"), ("--marks", "marks"), ("--numbers", "numbers"),
    ("--drop-stop-words", "stop_words"),
)  # fmt: skip
LANGUAGE_RECIPES = ("float32", "fp8_hybrid", "int8", "fp8_stored_rne", "fp8_stored_sr")


@dataclass(frozen=True)
class Plan:
    """What ``numsim train`` runs.

    `model` None: the article's classifier on messages; else a network on a text. See the options
    of the command for each field.
    """

    recipes: tuple[str, ...] = ()
    seeds: int = 1
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None
    optimizer: str = "adam"
    loss: str = "bce_with_logits"
    target: str | None = None
    loss_scale: float | None = None
    data: Path | None = None
    test: Path | None = None
    model: Path | None = None
    text: Path | None = None
    language: bool = False
    scratch: bool = False
    tokens: str = "words"
    lower: bool = True
    marks: str = "!?$%"
    numbers: bool = False
    stop_words: bool = False
    checkpoint: Path | None = None
    resume: bool = False
    every: int = 20
    watch: int | None = None
    jobs: int = 1

    def names(self) -> tuple[str, ...]:
        """Return the recipes to run."""
        default = LANGUAGE_RECIPES if self.language else CLASSIFIER_RECIPES
        return self.recipes or default


def find_recipe(name: str, *, target: str | None, seed: int) -> Recipe:
    """Return a named recipe, or that of a TOML file.

    Raises
    ------
    NumsimError
        For a name that is neither.
    """
    if name.endswith(".toml"):
        return replace(Recipe.from_toml(name), seed=seed)
    if name not in list_recipes():
        named_recipe(name)  # says which there are
    return named_recipe(name, target=target, seed=seed)


def label(name: str) -> str:
    """Return what a recipe is called in rows and folders; the stem of a TOML file.

    >>> label("q3.4_forward"), label("mine/new.toml")
    ('q3.4_forward', 'new')
    """
    return Path(name).stem if name.endswith(".toml") else name


def check(plan: Plan) -> None:
    """Raise for anything wrong in a plan before any work.

    Raises
    ------
    NumsimError
        Names the option.
    """
    for name in plan.names():
        find_recipe(name, target=plan.target, seed=0)
    twice = [n for n, count in Counter(map(label, plan.names())).items() if count > 1]
    if twice:
        raise NumsimError(
            f"train: recipes have names of their own; {twice[0]} came twice; rename a file, or "
            "leave one out"
        )
    for what, value in (("seeds", plan.seeds), ("every", plan.every), ("jobs", plan.jobs)):
        if not 1 <= value < 1 << 31:
            raise NumsimError(f"train: --{what} is an integer from 1; got {value}")
    for what, number in (("steps", plan.steps), ("batch", plan.batch), ("watch", plan.watch)):
        if number is not None and not 1 <= number < 1 << 31:
            raise NumsimError(f"train: --{what} is an integer from 1; got {number}")
    if plan.lr is not None and not (0 < plan.lr < math.inf):
        raise NumsimError(f"train: --lr is a number above 0; got {plan.lr}")
    if plan.optimizer not in ("adam", "sgd"):
        raise NumsimError(f"train: --optimizer is adam or sgd; got {plan.optimizer!r}")
    if plan.loss not in ("mse", "cross_entropy", "bce_with_logits"):
        raise NumsimError(
            f"train: --loss is mse, cross_entropy or bce_with_logits; got {plan.loss!r}"
        )
    if plan.tokens not in ("words", "subwords"):
        raise NumsimError(f"train: --tokens is words or subwords; got {plan.tokens!r}")
    if plan.resume and plan.checkpoint is None:
        raise NumsimError("train: --resume goes on from --checkpoint DIR; name the folder")
    if plan.language and (plan.data is not None or plan.test is not None):
        raise NumsimError("train: --data and --test are messages; a network reads --text")
    if plan.text is not None and not plan.language:
        raise NumsimError("train: --text is for a network, --model; messages are --data")
    if plan.scratch and not plan.language:
        raise NumsimError("train: --scratch is for a network, --model")
    if plan.language and plan.loss not in (Plan.loss, "cross_entropy"):
        raise NumsimError(
            f"train: a network learns the next token, by cross_entropy; got --loss {plan.loss}; "
            "leave it out"
        )
    _check_cleaning(plan)


def _check_cleaning(plan: Plan) -> None:
    """Raise for options of messages that would change nothing."""
    given = [
        option for option, name in CLEANING if getattr(plan, name) != getattr(Plan, name)
    ]  # fmt: skip
    if plan.language and (given or plan.tokens != Plan.tokens):
        raise NumsimError(
            f"train: {(given or ['--tokens'])[0]} is for messages; a network reads --text by its "
            "own tokenizer; leave it out"
        )
    if given and plan.tokens == "subwords":
        raise NumsimError(
            f"train: {given[0]} cleans words; sub-words are those of the text as it is; leave it "
            "out, or take --tokens words"
        )


def cases(plan: Plan) -> list[tuple[str, int]]:
    """Return (recipe, seed) of every run, recipe after recipe."""
    return [(name, seed) for name in plan.names() for seed in range(plan.seeds)]


def check_inputs_stay(plan: Plan, out: Path) -> None:
    """Raise NumsimError where the curves would replace a file that is read."""
    read = [("messages", plan.data), ("messages", plan.test), ("text", plan.text)]
    check_apart(out, [*read, *(("recipe", name) for name in plan.names())], "train")


def check_checkpoints(plan: Plan) -> None:
    """Raise where a run would begin anew over the checkpoint of an earlier one.

    Raises
    ------
    NumsimError
        Names the first of them.
    """
    if plan.checkpoint is None or plan.resume:
        return
    for name, seed in cases(plan):
        kept = checkpoint_folder(plan.checkpoint, name, seed) / CHECKPOINT
        if kept.exists():
            raise NumsimError(
                f"train: {kept} is the checkpoint of an earlier run and is not replaced unasked; "
                "give --resume to go on from it, --force to begin anew, or another --checkpoint"
            )


def checkpoint_folder(checkpoints: Path, name: str, seed: int) -> Path:
    """Return the folder of one run's checkpoint."""
    return checkpoints / f"{label(name)}-{seed}"
