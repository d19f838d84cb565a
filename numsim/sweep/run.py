"""Run the cases of a sweep against one float64 reference; append each row as it is made."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numsim import metrics
from numsim.data import bundled_model_dir, bundled_text
from numsim.errors import ConfigKeyWarning, NumsimError
from numsim.files import check_apart, check_regular
from numsim.float_state import known_floats
from numsim.kernels.compare import compare_logits
from numsim.kernels.jit import over_range
from numsim.losses import with_losses
from numsim.models import Model, Recipe, Rule, load_model
from numsim.models.hub import find_folder
from numsim.models.memory import OperandCache, as_bytes
from numsim.models.text import TextTools, load_text_tools
from numsim.models.weights import Weights, wide
from numsim.processes import in_processes
from numsim.sweep.cluster import connected, on_cluster
from numsim.sweep.columns import as_frame
from numsim.sweep.csv import ResultsFile
from numsim.sweep.inputs import Inputs, Text, read_inputs
from numsim.sweep.operators import (
    Reference,
    cosine,
    describe,
    figures,
    operator_row,
    ratio_db,
    stored_bits,
    tap_names,
)  # fmt: skip
from numsim.sweep.spec import DECLARED, Case, SweepSpec, as_spec, cases, folder_hash

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str, int, int], None]


@known_floats
def sweep(
    spec: SweepSpec | dict[str, Any] | str | Path | None = None, *,
    progress: Progress | None = None, **fields: Any,
) -> pd.DataFrame:  # fmt: skip
    """Run a model through every format, granularity and target of a grid.

    Parameters
    ----------
    spec
        A `SweepSpec`, a dict of its fields, or a TOML file of them. None: the default grid.
    progress
        Called with (what, done, total) after every batch.
    fields
        Fields of `SweepSpec`, in place of those of `spec`: ``formats=["int8"]``. Models, formats,
        storage rules, units and recipes go by name or file, or as objects.

    Returns
    -------
    DataFrame
        One row per (case, layer, operator) and one ``layer="all"`` row per case; columns and
        units in `numsim.sweep.columns.COLUMNS`. Rows of an operator, one for every matrix product
        of the network, are measured on the first batch of windows (of sentences: on kept tokens,
        with the scales of the padded batch), rows of the network on all of them. What is missing
        is NA in columns of whole numbers, truths and words, NaN in those of other numbers.

    Raises
    ------
    NumsimError
        For anything wrong in the spec, the model folder or the text, before any computation and
        before the output file is touched.
    FailedCases
        Where single cases failed; the others have run, and all are written: see its `rows`.

    Notes
    -----
    Where the rows go to a file `out`, the losses of single tokens go into a folder beside it, so
    that any two cases can be compared in pairs: `numsim.losses.compare_cases`.

    Source
    ------
    Perplexity protocol: windows without overlap, the begin-of-text token before each, loss on all
    other tokens; per-tensor activation scales cover one batch of windows.

    Examples
    --------
    >>> rows = sweep(formats=["int8"], limit_tokens=64, granularities=["per_tensor"])
    >>> rows.query("layer == 'all'")[["format", "target"]].values.tolist()
    [['int8', 'ideal.int']]
    """
    plan = as_spec(spec, **fields)
    if plan.scheduler is not None:
        if "jobs" in plan.model_fields_set:
            raise NumsimError(
                "sweep: cases run in jobs here or on the workers of a scheduler; got both; "
                "leave one out"
            )
        if isinstance(plan.model, Model):
            raise NumsimError(
                "sweep: workers of a scheduler read the model themselves; got a Model in this "
                "process; give its folder"
            )
        with connected(plan.scheduler):
            pass  # what is missing is said before the model is read
    tell = progress or (lambda what, done, total: None)
    read: list[tuple[str, object]] = [("text", plan.text)]
    read += [("format", given) for given in plan.formats or ()]
    read += [("target", given) for given in plan.targets or ()]
    read += [("recipe", given) for given in plan.recipes if given != DECLARED]
    check_apart(plan.out, read, "sweep")
    with ResultsFile(plan.out, resume=plan.resume, force=plan.force) as results:
        return _sweep(plan, results, tell)


def _sweep(plan: SweepSpec, results: ResultsFile, tell: Progress) -> pd.DataFrame:
    if isinstance(plan.model, Path):
        plan = plan.model_copy(update={"model": find_folder(plan.model)})
    model, model_hash = _read_model(plan)
    plan = plan.model_copy(update={"ignore_keys": model.ignored_keys})  # those it has
    text = _read_text(plan.text)
    text_hash = _text_hash(text)
    text_name = plan.text.name if plan.text else "course.rst"
    todo = cases(
        plan, model=model.name, model_hash=model_hash, text=text_name, text_hash=text_hash,
        products=model.gemm_names(), declared=_declared(model, plan),
    )  # fmt: skip
    inputs = read_inputs(model.arch, _text_tools(model), plan, text)
    labels = {case.case_id: case.label for case in todo}
    rows = list(results.kept)
    done = {row["case_id"] for row in rows}
    todo = [case for case in todo if case.case_id not in done]
    plan = plan.model_copy(update={"jobs": max(1, min(plan.jobs, len(todo)))})
    if plan.memory_limit is not None:
        model = replace(model, cache=OperandCache(_share(plan)))
        try:
            for recipe in (None, *(case.recipe() for case in todo)):
                model.suited(recipe).check(recipe)
        except NumsimError as error:
            shared = f"; {plan.jobs} jobs share the limit, fewer need less" if plan.jobs > 1 else ""
            raise NumsimError(f"{error}{shared}") from None
    with closing(_run_cases(plan, model, inputs, todo, tell)) as new:  # ends processes at once
        rows += map(results.write, with_losses(plan.out, done, new))
    frame = as_frame(rows)
    failed = [  # kept rows too: a resumed sweep ends like one that was not interrupted
        f"{labels[row['case_id']]}: {row['error']}"
        for row in rows
        if row["error"] and row["case_id"] in labels
    ]
    if failed:
        raise FailedCases(failed, frame)
    return frame


def _read_model(plan: SweepSpec) -> tuple[Model, str]:
    """Return the network and a hash of all that decides its numbers."""
    if not isinstance(plan.model, Model):
        folder = Path(plan.model or bundled_model_dir())
        model = load_model(folder, memory_limit=plan.memory_limit, ignore_keys=plan.ignore_keys)
        return model, folder_hash(folder)
    if plan.ignore_keys:
        raise NumsimError(
            "sweep: ignore_keys are for reading config.json; got them and a Model, which was read; "
            "give them to load_model"
        )
    model = plan.model  # its tensors may be others than those of its folder, or of its cache
    model = replace(model, cache=OperandCache(model.cache.limit_bytes))
    digest = hashlib.sha256(repr(model.arch).encode())
    for name, stored in sorted(model.tensors.items()):
        tensor = wide(stored)
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return model, digest.hexdigest()[:16]


def _declared(model: Model, plan: SweepSpec) -> Recipe | None:
    """Return the recipe that a packed checkpoint declares, if the sweep asks for it by that word.

    Where activations stay wide: everything in float32, weights as they are stored.
    """
    if DECLARED not in plan.recipes:
        return None
    if not isinstance(model.tensors, Weights):
        raise NumsimError(
            f"sweep: the recipe declared is that of a packed checkpoint; {model.name} is not "
            "packed; leave declared out"
        )
    return model.recipe() or Recipe((("*", Rule()),))


def _text_tools(model: Model) -> TextTools:
    if model.folder is None:
        raise NumsimError(
            "sweep: a Model that was not read from a folder has no tokenizer; give it one with "
            "dataclasses.replace(model, folder=...)"
        )
    return load_text_tools(model.folder)


def _run_cases(
    plan: SweepSpec, model: Model, inputs: Inputs, todo: list[Case], tell: Progress
) -> Generator[dict[str, Any]]:
    """Yield the rows of all cases, run here, in `plan.jobs` processes or on a cluster."""
    batches = math.ceil(len(inputs.tokens) / plan.batch)
    total = batches * (len(todo) + 1)
    if todo and (plan.jobs > 1 or plan.scheduler is not None):
        tell("float64 reference", 0, total)
        sent = [replace(case, given=case.recipe()) for case in todo]  # with units that are files
        if plan.scheduler is None:
            if isinstance(plan.model, Model):  # as it is now, without what it has packed
                given = replace(model, cache=OperandCache(_share(plan)))
                plan = plan.model_copy(update={"model": given})
            results: Iterator[list[dict[str, Any]]] = in_processes(
                _start, plan, _work, sent, jobs=plan.jobs, who="sweep"
            )
        else:
            known = _absolute(plan), todo[0].model_hash, todo[0].text_hash
            results = on_cluster(_start_elsewhere, known, _work, sent, address=plan.scheduler)
        for i, (case, made) in enumerate(zip(todo, results, strict=True), start=2):
            yield from made
            tell(case.label, i * batches, total)
    elif todo:
        reference = run_reference(
            model, inputs, plan.batch, lambda n: tell("float64 reference", n, total)
        )
        for i, case in enumerate(todo, start=1):

            def step(n: int, i: int = i, label: str = case.label) -> None:
                tell(label, i * batches + n, total)

            yield from case_rows(model, case, reference, step)


def _share(plan: SweepSpec) -> int | None:
    """Return the memory limit of each process: they share that of the sweep."""
    return None if plan.memory_limit is None else max(1, as_bytes(plan.memory_limit) // plan.jobs)


def _start(plan: SweepSpec) -> tuple[Model, Reference]:
    """Return what a process needs for every case."""
    model = plan.model
    if not isinstance(model, Model):
        with warnings.catch_warnings():  # said once, by the process that began the sweep
            warnings.simplefilter("ignore", ConfigKeyWarning)
            model = load_model(
                model or bundled_model_dir(), memory_limit=_share(plan),
                ignore_keys=plan.ignore_keys,
            )  # fmt: skip
    inputs = read_inputs(model.arch, _text_tools(model), plan, _read_text(plan.text))
    return model, run_reference(model, inputs, plan.batch, lambda n: None)


def _absolute(plan: SweepSpec) -> SweepSpec:
    paths = {name: getattr(plan, name) for name in ("model", "text")}
    paths = {name: path.absolute() for name, path in paths.items() if isinstance(path, Path)}
    return plan.model_copy(update=paths)


def _start_elsewhere(known: tuple[SweepSpec, str, str]) -> tuple[Model, Reference]:
    """Return what a worker needs, on a machine that may hold other files by the same names."""
    plan, model_hash, text_hash = known
    folder = plan.model if isinstance(plan.model, Path) else Path(bundled_model_dir())
    if (folder_hash(folder), _text_hash(_read_text(plan.text))) != (model_hash, text_hash):
        raise NumsimError(
            f"sweep: a worker must read the same files; {folder} or the text differ there; "
            "put them on a disk that all machines share"
        )
    return _start(plan)


def _text_hash(text: Text) -> str:
    data = text.encode() if isinstance(text, str) else text.tobytes()
    if not isinstance(text, str) and text.ndim > 1:  # the same ids are other sentences
        data += str(text.shape).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def _work(state: tuple[Model, Reference], case: Case) -> list[dict[str, Any]]:
    return list(case_rows(state[0], case, state[1], lambda n: None))


class FailedCases(NumsimError):
    """Some cases failed; all rows are in `rows`, and in the output file.

    Attributes
    ----------
    messages
        One for each case that failed.
    rows
        Of a case that failed those of its products that came before, and a last one without
        figures whose `error` says why.
    """

    def __init__(self, messages: list[str], rows: pd.DataFrame) -> None:
        self.messages, self.rows = messages, rows
        super().__init__(f"sweep: {len(messages)} cases failed: " + "; ".join(messages))


def _read_text(path: Path | None) -> Text:
    if path is None:
        return bundled_text()
    check_regular(path, "sweep: cannot read the text")
    if path.suffix == ".npy":
        return _read_ids(path)
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise NumsimError(f"sweep: cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise NumsimError(f"sweep: the text {path} is not UTF-8 ({error.reason})") from None
    except ValueError:
        raise NumsimError("sweep: a file name has no NUL character; name another text") from None
    except MemoryError:
        raise NumsimError(
            f"sweep: the text {path} is larger than memory; cut it, or give token ids in .npy"
        ) from None


def _read_ids(path: Path) -> NDArray[np.int64]:
    try:
        ids = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever its parts make of it
        raise NumsimError(f"sweep: cannot read the token ids {path}: {error}") from None
    if not isinstance(ids, np.ndarray):
        raise NumsimError(
            f"sweep: token ids are one integer array; {path} holds an archive; save them alone, "
            "with np.save"
        )
    if ids.dtype.kind not in "iu":
        raise NumsimError(
            f"sweep: token ids are an integer array; {path} holds {ids.dtype} {list(ids.shape)}; "
            "save them as integers"
        )
    if ids.size and int(ids.max()) > np.iinfo(np.int64).max:
        raise NumsimError(f"sweep: token ids are below 2**63; {path} holds {ids.max()}")
    return ids.astype(np.int64)


def run_reference(
    model: Model, inputs: Inputs, batch: int, tell: Callable[[int], None]
) -> Reference:
    """Run the float64 reference over all windows."""
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
        run = inputs.run(model, part, None, taps)
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
    model: Model, case: Case, reference: Reference, tell: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one case; where it fails, the last one says why in place of figures."""
    began = time.perf_counter()
    recipe = case.recipe()
    model = model.suited(recipe)
    rules = recipe.check(model.gemm_names())
    digest = Recipe(tuple(rules.items()), recipe.seed).digest()
    emulated = [rule for rule in rules.values() if not rule.is_plain]
    whole = describe(case, digest, emulated or list(rules.values())) | {"layer": "all"}
    whole |= stored_bits(model, rules, reference) | _of_the_run(model, case, reference)
    try:
        whole |= yield from _run_case(model, case, recipe, rules, digest, reference, tell)
    except NumsimError as error:
        whole["error"] = str(error)
    yield whole | {"seconds": round(time.perf_counter() - began, 3)}


def _run_case(
    model: Model, case: Case, recipe: Recipe, rules: dict[str, Rule], digest: str,
    reference: Reference, tell: Callable[[int], None],
) -> Generator[dict[str, Any], None, dict[str, Any]]:  # fmt: skip
    """Yield rows of the products, of the first batch; return the figures of the whole network."""
    inputs = reference.inputs
    names = [name for name in rules if f"{name}.in" in reference.taps]
    compared = np.empty((*reference.nll.shape, 8))
    cosines = np.empty(len(inputs.tokens))
    errors = []
    for n, part in enumerate(_batches(len(inputs.tokens), case.batch)):
        run = inputs.run(model, part, recipe, tap_names(names, ("out",)) if n == 0 else [])
        if n == 0:
            touched = False
            for name in names:
                rule = rules[name]
                touched = touched or not rule.is_plain
                row = operator_row(model, recipe, rule, reference, name, run.taps, touched=touched)
                yield describe(case, digest, [rule]) | row
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
    if all(rule.is_plain for rule in rules.values()):
        found["sqnr_cumulative_db"] = None
    return found


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
    }


def _agreement(
    compared: NDArray[np.float64], reference: Reference, elements: int
) -> dict[str, Any]:
    """Return the figures of logits, of tokens or of labels, `elements` in all."""
    each = compared.reshape(-1, 8)
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
    """Return the eight figures of `compare_logits` for every token, [windows, tokens, 8]."""
    vocab = reference.shape[-1]
    a = np.ascontiguousarray(reference).reshape(-1, vocab)
    b = np.ascontiguousarray(logits).reshape(-1, vocab)
    goal = np.ascontiguousarray(targets).reshape(-1)
    out = np.empty((len(a), 8))
    over_range(lambda lo, hi: compare_logits(a, b, goal, out, lo, hi), len(a), grain=64)
    return out.reshape(*targets.shape, 8)


def _batches(count: int, batch: int) -> Iterator[slice]:
    for start in range(0, count, batch):
        yield slice(start, min(start + batch, count))
