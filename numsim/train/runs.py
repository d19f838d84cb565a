"""Recipes x seeds, each trained the same way: the rows of ``numsim train``."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from numsim import nn
from numsim.data import bundled_messages, bundled_model_dir, bundled_text
from numsim.errors import NumsimError, StoppedError
from numsim.files import check_apart, check_regular, escape_cell
from numsim.models import load_model, load_text_tools
from numsim.nn.products import check_rule
from numsim.processes import in_processes
from numsim.train.checkpoint import FILE as CHECKPOINT
from numsim.train.classifier import BATCH, LR, STEPS, classifier, classify, read_corpus
from numsim.train.fit import Fit, fit
from numsim.train.optimizers import SGD, AdamW
from numsim.train.rules import Recipe
from numsim.train.scaling import LossScale
from numsim.train.table import list_recipes
from numsim.train.table import recipe as named_recipe
from numsim.train.text import clean
from numsim.version import __version__

CURVE_COLUMNS = (
    "recipe", "seed", "step", "loss", "lr", "loss_scale", "test_loss", "test_accuracy",
    "test_perplexity", "grad_elements", "grad_lost", "recipe_digest", "model", "data",
    "numsim_version", "error",
)  # fmt: skip
CLASSIFIER_RECIPES = (
    "float32", "mxfp8", "fp8_hybrid", "int8", "q3.4_forward", "q3.4", "q3.4_scale4096",
    "fp8_stored_rne", "fp8_stored_sr", "int8_stored_rne", "int8_stored_sr", "q3.4_stored_rne",
    "q3.4_stored_sr",
)  # fmt: skip
LANGUAGE_RECIPES = ("float32", "fp8_hybrid", "int8", "fp8_stored_rne", "fp8_stored_sr")
WINDOW, LANGUAGE_BATCH, LANGUAGE_STEPS, LANGUAGE_LR = 256, 8, 40, 1e-4
UNSEEN = 8  # every eighth window of a text is not trained on

Tell = Callable[[str, int, int, int, float], object]  # recipe, seed, step, steps, loss


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


@dataclass
class Outcome:
    """The rows of one run, of its tensors too, and why it ended early."""

    recipe: str
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    classes: tuple[str, ...] = ()  # names of labels that are words, by number


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


def cases(plan: Plan) -> list[tuple[str, int]]:
    """Return (recipe, seed) of every run, recipe after recipe."""
    return [(name, seed) for name in plan.names() for seed in range(plan.seeds)]


def runs(plan: Plan, tell: Tell = lambda *_: None) -> Iterator[Outcome]:
    """Yield the outcome of every run as it ends, in `jobs` processes.

    Raises
    ------
    NumsimError
        As `check`, and for files that cannot be read.
    """
    check(plan)
    todo = cases(plan)
    shared = _prepare(plan)
    layer = shared[0] if plan.language else classifier()
    products = nn.product_names(layer)
    for name in plan.names():
        recipe = find_recipe(name, target=plan.target, seed=0)
        recipe = recipe.resolve(products, nn.pointwise_names(layer))
        for product in products:
            check_rule(product, recipe.rule(product))
    if plan.jobs == 1 or len(todo) == 1:
        for name, seed in todo:
            yield run(plan, name, seed, shared, tell)
        return
    made = in_processes(_start, plan, _work, todo, jobs=plan.jobs, who="train")
    with closing(made) as outcomes:  # an interrupt waits for no run
        for outcome in outcomes:
            last = outcome.rows[-1]["step"] if outcome.rows else 0
            tell(outcome.recipe, outcome.seed, last, last, math.nan)
            yield outcome


def _start(plan: Plan) -> tuple[Plan, Any]:
    """Return what a process needs for every run."""
    return plan, _prepare(plan)


def _work(state: tuple[Plan, Any], case: tuple[str, int]) -> Outcome:
    plan, shared = state
    return run(plan, *case, shared, lambda *_: None)


def _prepare(plan: Plan) -> Any:
    """Return what all runs share: the texts as numbers, or the network and its windows."""
    if not plan.language:
        how: dict[str, Any] = {}
        if plan.tokens == "subwords":
            how["tools"] = load_text_tools(plan.model or bundled_model_dir())
        return read_corpus(
            plan.data, plan.test,
            prepare=lambda text: clean(
                text, lower=plan.lower, marks=plan.marks, numbers=plan.numbers,
                stop_words=plan.stop_words,
            ), **how,
        )  # fmt: skip
    folder = plan.model or bundled_model_dir()
    model = load_model(folder)
    if model.arch.decoder_layers or not model.arch.head:
        raise NumsimError(
            f"train: --model is a decoder with a head; {model.name} is a {model.arch.family}"
        )
    layer, params = nn.from_model(model)
    if plan.text is None:
        text = bundled_text()
    else:
        check_regular(plan.text, "train: cannot read the text")
        try:
            text = plan.text.read_bytes().decode("utf-8")
        except (OSError, ValueError) as error:
            raise NumsimError(f"train: cannot read the text {plan.text}: {error}") from None
    windows = load_text_tools(folder).windows(text, WINDOW)
    unseen = np.arange(len(windows)) % UNSEEN == UNSEEN - 1
    if not unseen.any():
        raise NumsimError(
            f"train: a text of {UNSEEN} windows of {WINDOW - 1} tokens or more, an eighth of them "
            f"unseen; got {len(windows)}"
        )
    return layer, params, windows[~unseen], windows[unseen], model.name


def run(plan: Plan, name: str, seed: int, shared: Any, tell: Tell) -> Outcome:
    """Train one recipe from one seed."""
    outcome = Outcome(name, seed)
    if not plan.language and not shared.names[0].isdecimal():
        outcome.classes = shared.names
    recipe = find_recipe(name, target=plan.target, seed=seed)
    folder = None if plan.checkpoint is None else _folder(plan.checkpoint, name, seed)
    common: dict[str, Any] = {
        "checkpoint": folder, "resume": plan.resume, "every": plan.every, "watch": plan.watch,
        "loss_scale": None if plan.loss_scale is None else LossScale(plan.loss_scale),
        "progress": lambda step, steps, loss: tell(name, seed, step, steps, loss),
    }  # fmt: skip
    try:
        made = (_language if plan.language else _messages)(plan, recipe, seed, shared, common)
    except StoppedError as error:
        outcome.error = str(error)
        outcome.rows = [_row(outcome, recipe, {}, plan, shared)]
        return outcome
    for record in _records(made.history):
        outcome.rows.append(_row(outcome, recipe, record, plan, shared))
    for record in _records(made.tensors):
        outcome.tensors.append({"recipe": label(name), "seed": seed, **record})
    return outcome


def _records(frame: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return rows


def _messages(plan: Plan, recipe: Recipe, seed: int, shared: Any, common: dict[str, Any]) -> Fit:
    return classify(
        recipe=recipe, seed=seed, steps=plan.steps or STEPS, loss=plan.loss,
        optimizer=plan.optimizer, lr=plan.lr or LR, texts=shared, batch=plan.batch or BATCH,
        **common,
    )  # fmt: skip


def _language(plan: Plan, recipe: Recipe, seed: int, shared: Any, common: dict[str, Any]) -> Fit:
    layer, params, windows, unseen, _ = shared
    lr = plan.lr or (LANGUAGE_LR * 10 if plan.scratch else LANGUAGE_LR)
    rule = AdamW(lr, seed=seed) if plan.optimizer == "adam" else SGD(lr, momentum=0.9, seed=seed)
    return fit(
        layer, nn.init(layer, seed=seed) if plan.scratch else params,
        (windows[:, :-1], windows[:, 1:]), loss="cross_entropy", recipe=recipe, optimizer=rule,
        steps=plan.steps or LANGUAGE_STEPS, batch=plan.batch or LANGUAGE_BATCH, seed=seed,
        decay="linear", test=(unseen[:, :-1], unseen[:, 1:]), **common,
    )  # fmt: skip


def _row(
    outcome: Outcome, recipe: Recipe, record: dict[str, Any], plan: Plan, shared: Any
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(CURVE_COLUMNS, "")
    for key, value in record.items():
        row[key] = "" if isinstance(value, float) and math.isnan(value) else value
    if plan.language and row["test_loss"] != "":
        row["test_perplexity"] = math.exp(min(float(row["test_loss"]), 700.0))
    data = plan.text or "course.rst" if plan.language else plan.data or bundled_messages()
    return row | {
        "recipe": label(outcome.recipe), "seed": outcome.seed,
        "recipe_digest": recipe.digest(), "error": outcome.error,
        "model": shared[4] if plan.language else "classifier", "data": Path(data).name,
        "numsim_version": __version__,
    }  # fmt: skip


def check_writable(path: Path, *, replace: bool) -> None:
    """Raise where a file cannot be written, before the work that fills it.

    A pipe or a device is refused: a file moved to its name would end it for the whole machine.

    Raises
    ------
    NumsimError
        Names the file; also one that exists, where `replace` is false.
    """
    check_regular(path, f"train: cannot write {path}")
    try:
        if path.is_dir():
            raise NumsimError(f"train: --out is a file; {path} is a folder")
        if path.exists() and path.stat().st_size and not replace:
            raise NumsimError(
                f"train: {path} exists and is not replaced unasked; give --force to replace it, "
                "--resume to go on from --checkpoint, or another --out"
            )
        probe = path.with_name(f".{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from None


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
        kept = _folder(plan.checkpoint, name, seed) / CHECKPOINT
        if kept.exists():
            raise NumsimError(
                f"train: {kept} is the checkpoint of an earlier run and is not replaced unasked; "
                "give --resume to go on from it, --force to begin anew, or another --checkpoint"
            )


def _folder(checkpoints: Path, name: str, seed: int) -> Path:
    return checkpoints / f"{label(name)}-{seed}"


def _cannot_write(path: Path, error: OSError) -> NumsimError:
    return NumsimError(
        f"train: cannot write {path}: {error.strerror}; name a file in a folder you may write to"
    )


def write_csv(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Write rows beside their place, then move them there in a single step.

    Raises
    ------
    NumsimError
        Where the folder cannot be written.
    """
    check_regular(path, "train: cannot write the curves")
    path = Path(os.path.realpath(path))  # a link stays one
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({key: _cell(v) for key, v in row.items()} for row in rows)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            part.unlink()


def _cell(value: Any) -> Any:
    return escape_cell(value) if isinstance(value, str) else value
