"""Recipes x seeds, each trained the same way: the rows of ``numsim train``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from numsim import nn
from numsim.data import bundled_messages, bundled_model_dir, bundled_text
from numsim.errors import NumsimError, StoppedError
from numsim.files import check_regular
from numsim.models import load_model, load_text_tools
from numsim.nn.products import check_rule
from numsim.processes import in_processes
from numsim.train.classifier import BATCH, LR, STEPS, classifier, classify, read_corpus
from numsim.train.fit import Fit, fit
from numsim.train.optimizers import SGD, AdamW
from numsim.train.plan import Plan, cases, check, checkpoint_folder, find_recipe, label
from numsim.train.rules import Recipe
from numsim.train.scaling import LossScale
from numsim.train.text import clean
from numsim.version import __version__

CURVE_COLUMNS = (
    "recipe", "seed", "step", "loss", "lr", "loss_scale", "test_loss", "test_accuracy",
    "test_perplexity", "grad_elements", "grad_lost", "recipe_digest", "model", "data",
    "numsim_version", "error",
)  # fmt: skip
WINDOW, LANGUAGE_BATCH, LANGUAGE_STEPS, LANGUAGE_LR = 256, 8, 40, 1e-4
UNSEEN = 8  # every eighth window of a text is not trained on

Tell = Callable[[str, int, int, int, float], object]  # recipe, seed, step, steps, loss


@dataclass
class Outcome:
    """The rows of one run, of its tensors too, and why it ended early."""

    recipe: str
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    tensors: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    classes: tuple[str, ...] = ()  # names of labels that are words, by number


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
            "train: --model is a decoder that ends in logits of the next token; "
            f"{model.name} ({model.arch.family}) is none; name another folder"
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
    tools = load_text_tools(folder)
    if tools.tokenizer is None:
        raise NumsimError(
            f"train: {model.name} has no tokenizer.json, which cuts the text into tokens; add it "
            "(in transformers, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes it)"
        )
    if tools.begin is None:
        raise NumsimError(
            f"train: config.json of {model.name} names no bos_token_id, which begins every window "
            "of the text; add it, with the token that the network was trained with"
        )
    windows = tools.windows(text, WINDOW)
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
    folder = None if plan.checkpoint is None else checkpoint_folder(plan.checkpoint, name, seed)
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
