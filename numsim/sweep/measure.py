"""Measure one case against the float64 reference: rows of its products, and of the network."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim import metrics
from numsim.errors import NumsimError
from numsim.kernels.compare import RANK, compare_logits
from numsim.kernels.jit import over_range
from numsim.models import Model, Recipe, Rule
from numsim.sweep.cases import Case
from numsim.sweep.costs import Costs
from numsim.sweep.inputs import Inputs
from numsim.sweep.operators import (
    Reference,
    cosine,
    depth_db,
    describe,
    figures,
    is_emulated,
    operator_row,
    ratio_db,
    stored_bits,
    tap_names,
)  # fmt: skip

Block = Callable[[str, int], object]  # a layer that has run, of how many
FIGURES = RANK + 1  # of a token, by `compare_logits`


def run_reference(
    model: Model, inputs: Inputs, batch: int, tell: Callable[[int], None],
    block: Block = lambda layer, layers: None,
) -> Reference:  # fmt: skip
    """Run the float64 reference over all windows; `block` is told of each layer that has run."""
    count, length = inputs.tokens.shape
    head, labels = model.arch.head, model.arch.labels
    hidden = model.arch.hidden if head or labels else model.arch.embed_dim or model.arch.hidden
    scored = length - 1 if head else min(labels, 1)
    reference = Reference(
        inputs,
        np.empty((count, hidden)),
        np.empty((count, 0 if head else length, hidden), np.float32),
        np.empty((count, scored, max(2, labels) if labels else model.arch.vocab), np.float32),
        np.empty((count, scored)),
    )
    for n, part in enumerate(_batches(count, batch)):
        taps = tap_names(model.gemm_names(), ("in", "operand", "out")) if n == 0 else []
        run = inputs.run(model, part, None, taps, block)
        if n == 0:
            reference.depth = [x.astype(np.float32) for x in run.hidden_states[1:]]
        if labels:
            reference.logits[part] = _answers(run.logits)
        elif scored:
            reference.logits[part] = run.logits[:, :-1]
            reference.nll[part] = metrics.token_nll(run.logits, inputs.tokens[part])
        else:
            states = run.hidden_states[-1]
            reference.states[part, : states.shape[1]] = states
            reference.embeddings[part] = inputs.embeddings(run, part)
        shared = {id(tap): tap for tap in run.taps.values()}  # q, k, v have one input
        narrow = {
            key: tap.astype(np.float32) if tap.dtype == np.float64 else tap
            for key, tap in shared.items()
        }
        reference.taps.update({name: narrow[id(tap)] for name, tap in run.taps.items()})
        tell(n + 1)
    return reference


def case_rows(
    model: Model, case: Case, reference: Reference, tell: Callable[[int], None],
    block: Block = lambda layer, layers: None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield the rows of one case; where it fails, the last one says why in place of figures."""
    began = time.perf_counter()
    recipe = case.recipe()
    model = model.suited(recipe)
    rules = recipe.check(model.gemm_names())
    digest = recipe.resolve(model.gemm_names()).digest()
    emulated = {name: rule for name, rule in rules.items() if is_emulated(recipe, name, rule)}
    whole = describe(case, digest, emulated or rules) | {"layer": "all"}
    whole |= stored_bits(model, recipe, rules, reference) | _of_the_run(model, case, reference)
    try:
        whole |= yield from _run_case(model, case, recipe, rules, digest, reference, tell, block)
    except NumsimError as error:
        whole["error"] = str(error)
    yield whole | {"seconds": round(time.perf_counter() - began, 3)}


def _run_case(
    model: Model, case: Case, recipe: Recipe, rules: dict[str, Rule], digest: str,
    reference: Reference, tell: Callable[[int], None], block: Block,
) -> Generator[dict[str, Any], None, dict[str, Any]]:  # fmt: skip
    """Yield rows of the products, of the first batch; return the figures of the whole network."""
    inputs, lowered = reference.inputs, bool(recipe.ops or recipe.kv)
    names = [name for name in rules if f"{name}.in" in reference.taps]
    compared = np.empty((*reference.nll.shape, FIGURES))
    costs = Costs.of(reference.machine, rules.values())
    cosines = np.empty(len(inputs.tokens))
    errors = []
    for n, part in enumerate(_batches(len(inputs.tokens), case.batch)):
        taps = tap_names(names, ("out",)) if n == 0 else []
        run = inputs.run(model, part, recipe, taps, block)
        if n == 0:
            touched = lowered
            depth = depth_db(reference, run)
            for name in names:
                rule = rules[name]
                touched = touched or not rule.is_plain
                row = operator_row(
                    model,
                    recipe,
                    rule,
                    reference,
                    name,
                    run.taps,
                    touched=touched,
                    stats=case.stats,
                )
                row |= costs.product(rule, row, emulated=is_emulated(recipe, name, rule))
                row["sqnr_depth_db"] = depth.get(row["layer"]) if touched else None
                yield describe(case, digest, {name: rule}) | row
        if model.arch.head:
            targets = inputs.tokens[part, 1:]
            compared[part] = _compare(reference.logits[part], run.logits[:, :-1], targets)
        elif model.arch.labels:
            want = reference.logits[part]
            compared[part] = _compare(want, _answers(run.logits), want.argmax(axis=-1))
        else:
            both = reference.embeddings[part] * inputs.embeddings(run, part)
            cosines[part] = both.sum(axis=1)
            keep = inputs.kept(part)
            states = reference.states[part, : keep.shape[1]]
            errors.append(figures(states[keep], run.hidden_states[-1][keep]))
        tell(n + 1)
    with np.errstate(over="ignore", invalid="ignore"):  # Inf and NaN are figures too
        if model.arch.head:
            found = _language(compared, reference)
        elif model.arch.labels:
            found = _agreement(compared, reference, compared.shape[0] * model.arch.labels)
        else:
            found = _sentences(errors, cosines, _tokens(inputs) * reference.states.shape[-1])
    if not lowered and all(rule.is_plain for rule in rules.values()):
        found["sqnr_cumulative_db"] = None
    return found | costs.whole()


def _of_the_run(model: Model, case: Case, reference: Reference) -> dict[str, Any]:
    """Return what all cases on one text share."""
    shared = {"unused_keys": " ".join(model.unused_keys) or None}
    if not model.arch.head:
        return shared | {"tokens": _tokens(reference.inputs)}
    return shared | {
        "window_start": case.window_start,
        "tokens": reference.nll.size,
        "perplexity_reference": metrics.perplexity(reference.nll),
    }


def _tokens(inputs: Inputs) -> int:
    return inputs.tokens.size if inputs.keep is None else int(inputs.keep.sum())


def _language(compared: NDArray[np.float64], reference: Reference) -> dict[str, Any]:
    """Return the figures of a network with logits."""
    dnll, stderr = metrics.paired_difference(reference.nll, compared[..., 0])
    elements = reference.nll.size * reference.logits.shape[-1]
    return _agreement(compared, reference, elements) | {
        "perplexity": metrics.perplexity(compared[..., 0].reshape(-1)),
        "dnll": dnll,
        "dnll_stderr": stderr,
        "top5_agreement": float((compared[..., RANK] < 5).mean()),
    }


def _agreement(
    compared: NDArray[np.float64], reference: Reference, elements: int
) -> dict[str, Any]:
    """Return the figures of logits, of tokens or of labels, `elements` in all."""
    each = compared.reshape(-1, FIGURES)
    total = each.sum(axis=0)
    largest = max(-float(reference.logits.min()), float(reference.logits.max()))
    return {
        "sqnr_cumulative_db": ratio_db(total[3], total[4]),
        "mse": float(total[4]) / elements,
        "max_abs": float(each[:, 7].max()),
        "max_ulp": metrics.ulps(float(each[:, 7].max()), largest),
        "cosine": cosine(total[5], total[3], total[6]),
        "kl_nats": float(total[1]) / len(each),
        "kl_stderr": _stderr(each[:, 1]),
        "kl_p99_nats": float(np.quantile(each[:, 1], 0.99)),
        "kl_max_nats": float(each[:, 1].max()),
        "top1_agreement": float(total[2]) / len(each),
        "losses": {"nll": compared[..., 0].copy(), "kl": compared[..., 1].copy()},
    }


def _answers(logits: NDArray[Any]) -> NDArray[Any]:
    """Return a classifier's logits as [B, 1, labels]; one alone is that of yes, beside 0 for no."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return logits[:, None]


def _sentences(
    errors: list[list[float]], cosines: NDArray[np.float64], elements: int
) -> dict[str, Any]:
    """Return the figures of an encoder: its last hidden states at kept tokens, its sentences."""
    signal, noise, dot, other = np.sum(errors, axis=0)[:4].tolist()
    largest = max(row[4] for row in errors)
    return {
        "sqnr_cumulative_db": ratio_db(signal, noise),
        "mse": noise / elements,
        "max_abs": largest,
        "max_ulp": metrics.ulps(largest, max(row[5] for row in errors)),
        "cosine": cosine(dot, signal, other),
        "embedding_cosine": float(cosines.mean()),
        "embedding_cosine_min": float(cosines.min()),
        "embedding_cosine_stderr": _stderr(cosines),
        "losses": {"cosine": cosines},
    }


def _stderr(values: NDArray[np.float64]) -> float:
    """Return the standard error of the mean; tokens, or sentences, count as independent."""
    return metrics.paired_difference(np.zeros_like(values), values)[1]


def _compare(
    reference: NDArray[np.float32], logits: NDArray[Any], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the figures of `compare_logits` for every token, [windows, tokens, FIGURES]."""
    vocab = reference.shape[-1]
    a = np.ascontiguousarray(reference).reshape(-1, vocab)
    b = np.ascontiguousarray(logits).reshape(-1, vocab)
    goal = np.ascontiguousarray(targets).reshape(-1)
    out = np.empty((len(a), FIGURES))
    over_range(lambda lo, hi: compare_logits(a, b, goal, out, lo, hi), len(a), grain=64)
    return out.reshape(*targets.shape, FIGURES)


def _batches(count: int, batch: int) -> Iterator[slice]:
    for start in range(0, count, batch):
        yield slice(start, min(start + batch, count))
