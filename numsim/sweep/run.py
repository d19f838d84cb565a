"""Run the cases of a sweep: prepare them, run them, write each as it is done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numsim.data import bundled_model_dir
from numsim.errors import NumsimError
from numsim.files import check_apart
from numsim.float_state import known_floats
from numsim.losses import with_losses
from numsim.models import Model
from numsim.models.memory import OperandCache
from numsim.processes import in_processes
from numsim.progress import sweep_progress
from numsim.sweep.cases import Case, folder_hash, machine_of
from numsim.sweep.cluster import connected, on_cluster
from numsim.sweep.costs import Machine
from numsim.sweep.csv import ResultsFile
from numsim.sweep.manifest import Manifest, record_of
from numsim.sweep.measure import case_rows, run_reference
from numsim.sweep.operators import Reference
from numsim.sweep.prepare import (
    Prepared,
    prepare,
    read_again,
    read_text,
    several,
    share,
    text_hash,
)  # fmt: skip
from numsim.sweep.recipes import DECLARED
from numsim.sweep.shards import other_logs, own_part, shard_path
from numsim.sweep.spec import SweepSpec, as_spec
from numsim.sweep.stats import write_stats

if TYPE_CHECKING:
    from numsim.sweep.frames import Rows

Progress = Callable[[str, int, int], None]
BLOCK_EVERY = 1.0  # seconds between words about blocks


@known_floats
def sweep(
    spec: SweepSpec | dict[str, Any] | str | Path | None = None, *,
    progress: Progress | bool | None = None, **fields: Any,
) -> Rows:  # fmt: skip
    """Run a model through every format, granularity and target of a grid.

    Parameters
    ----------
    spec
        A `SweepSpec`, a dict of its fields, or a TOML file of them. None: the default grid.
    progress
        Called with (what, done, total) after every batch, and after a block of the network where
        the last call is a second old. True: a bar on a terminal or in a
        notebook, lines in a log, on stderr.
    fields
        Fields of `SweepSpec`, in place of those of `spec`: ``formats=["int8"]``. Models, formats,
        storage rules, units and recipes go by name or file, or as objects.

    Returns
    -------
    Rows
        A DataFrame, with `cases`, `products` and `glossary`. One row per (case, layer, operator)
        and one ``layer="all"`` row per case; columns and units in `numsim.sweep.columns.COLUMNS`.
        Rows of an operator, one for every matrix product of the network, are measured on the first
        batch of windows (of sentences: on kept tokens, with the scales of the padded batch), rows
        of the network on all of them. What is missing is NA in columns of whole numbers, truths
        and words, NaN in those of other numbers.

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
    plan, record = as_spec(spec, **fields), record_of(spec)
    if plan.scheduler is not None:
        if "jobs" in plan.model_fields_set:
            raise NumsimError(
                "sweep: cases run in jobs here or on the workers of a scheduler; got both; "
                "leave one out"
            )
        if any(isinstance(model, Model) for model in several(plan.model)):
            raise NumsimError(
                "sweep: workers of a scheduler read the model themselves; got a Model in this "
                "process; give its folder"
            )
        with connected(plan.scheduler):
            pass  # what is missing is said before the model is read
    read: list[tuple[str, object]] = [("text", text) for text in several(plan.text)]
    read += [("format", given) for given in plan.formats or ()]
    read += [("target", given) for given in plan.targets or ()]
    read += [("recipe", given) for given in plan.recipes if given != DECLARED]
    read += [("rows of cost", plan.cost)]
    check_apart(plan.out, read, "sweep")
    place = shard_path(plan.out, plan.shard)
    others = other_logs(plan)
    results = ResultsFile(place, resume=plan.resume, force=plan.force, others=others)
    if progress is True:
        with sweep_progress() as tell, results:
            return _sweep(plan, results, tell, record)
    with results:
        return _sweep(plan, results, progress or (lambda what, done, total: None), record)


def _sweep(plan: SweepSpec, results: ResultsFile, tell: Progress, record: dict[str, Any]) -> Rows:
    machine_of(plan)  # rows of cost that are wrong are said before the model is read
    runs = list(prepare(plan))
    every = [case for run in runs for case in run.cases]
    manifest = Manifest.of(plan, runs)
    manifest.compare(record)
    manifest.check(results)
    mine = set(own_part([case.case_id for case in every], plan.shard))
    done = {row["case_id"] for row in results.kept}
    left = [
        replace(run, cases=[c for c in run.cases if c.case_id in mine and c.case_id not in done])
        for run in runs
    ]
    left = [_ready(run) for run in left if run.cases]
    rows = list(results.kept)
    if left:
        results.before_first = manifest.write
    with closing(_run_all(left, tell)) as new:  # ends processes at once
        rows += map(results.write, with_losses(results.path, done, new))
    rows = results.finish(rows, [case.case_id for case in every])
    if manifest.path is not None and not manifest.path.exists():  # of parts that were all there
        manifest.write()
    if plan.stats and results.path is not None:
        tell("tensors and accumulators", 0, 1)
        write_stats(plan, runs, results.path, rows)
    from numsim.sweep.frames import as_frame  # with pandas, 30 MB that a worker does without

    frame = as_frame(rows)
    labels = {case.case_id: case.label for case in every}
    failed = [  # kept rows too: a resumed sweep ends like one that was not interrupted
        f"{labels[row['case_id']]}: {row['error']}"
        for row in rows
        if row["error"] and row["case_id"] in labels
    ]
    if failed:
        raise FailedCases(failed, frame)
    return frame


def _ready(run: Prepared) -> Prepared:
    """Return a run whose processes and memory fit its cases.

    Raises
    ------
    NumsimError
        A memory limit below what a case needs.
    """
    plan = run.plan.model_copy(update={"jobs": max(1, min(run.plan.jobs, len(run.cases)))})
    if plan.memory_limit is None:
        return replace(run, plan=plan)
    model = replace(run.model, cache=OperandCache(share(plan)))
    try:
        for recipe in (None, *(case.recipe() for case in run.cases)):
            model.suited(recipe).check(recipe)
    except NumsimError as error:
        shared = f"; {plan.jobs} jobs share the limit, fewer need less" if plan.jobs > 1 else ""
        raise NumsimError(f"{error}{shared}") from None
    return replace(run, plan=plan, model=model)


def _run_all(runs: list[Prepared], tell: Progress) -> Generator[dict[str, Any]]:
    """Yield the rows of all cases, those of a case together."""
    steps = [math.ceil(len(run.inputs.tokens) / run.plan.batch) for run in runs]
    count, total = (
        sum(len(run.cases) for run in runs),
        sum(n * (len(run.cases) + 1) for n, run in zip(steps, runs, strict=True)),
    )
    done, before, words = 0, 0, _Words(tell, count, total)
    for run, batches in zip(runs, steps, strict=True):
        words.begin(before, done)
        cases = _in_turn if run.plan.jobs == 1 and run.plan.scheduler is None else _elsewhere
        for row in cases(run, batches, words):
            words.note(row)
            yield row
        done += batches * (len(run.cases) + 1)
        before += len(run.cases)


class _Words:
    """Says how far a sweep is: which case of how many, and which was best."""

    def __init__(self, tell: Progress, count: int, total: int) -> None:
        self._tell, self._count, self._total = tell, count, total
        self._before = self._done = 0
        self._best: tuple[float, str] | None = None
        self._words, self._steps, self._told = "", 0, time.monotonic()

    def begin(self, before: int, done: int) -> None:
        """Begin a model on a text, after so many cases and steps."""
        self._before, self._done = before, done
        self._begun("float64 reference", 0)

    def reference(self, batches: int) -> None:
        """Say that the reference has run so many batches."""
        self._begun("float64 reference", batches)
        self._say("")

    def case(self, number: int, label: str, batches: int) -> None:
        """Say that a case of this run has come so far; of all before it too."""
        self.case_begins(number, label, batches)
        self._say("")

    def case_begins(self, number: int, label: str, batches: int) -> None:
        """Take a case for the one that `block` tells of."""
        self._begun(f"{self._before + number} of {self._count}: {label}", batches)

    def block(self, layer: str, layers: int) -> None:
        """Say which block of a batch has run, where the last words are a second old."""
        if time.monotonic() - self._told >= BLOCK_EVERY:
            self._say(f", {layer} of {layers}")

    def _begun(self, words: str, batches: int) -> None:
        self._words, self._steps = words, self._done + batches

    def _say(self, block: str) -> None:
        best = "" if self._best is None or "reference" in self._words else f"; best {self._best[1]}"
        self._told = time.monotonic()
        self._tell(f"{self._words}{block}{best}", self._steps, self._total)

    def note(self, row: dict[str, Any]) -> None:
        """Remember the best case: lowest KL, of an encoder the highest cosine."""
        name, sign = ("kl_nats", 1) if row.get("kl_nats") is not None else ("embedding_cosine", -1)
        value = row.get(name)
        if row["layer"] != "all" or value is None:
            return
        if self._best is None or sign * value < self._best[0]:
            self._best = sign * value, f"{row['format']} ({name.split('_')[0]} {value:.3g})"


def _in_turn(run: Prepared, batches: int, words: _Words) -> Iterator[dict[str, Any]]:
    reference = run_reference(run.model, run.inputs, run.plan.batch, words.reference, words.block)
    reference.machine = machine_of(run.plan)
    for i, case in enumerate(run.cases, start=1):

        def step(n: int, i: int = i, label: str = case.label) -> None:
            words.case(i, label, i * batches + n)

        words.case_begins(i, case.label, i * batches)
        yield from case_rows(run.model, case, reference, step, words.block)


def _elsewhere(run: Prepared, batches: int, words: _Words) -> Iterator[dict[str, Any]]:
    """Run cases in `jobs` processes or on a cluster, in the order in which they are done."""
    words.reference(0)
    plan, labels = run.plan, {case.case_id: case.label for case in run.cases}
    if plan.scheduler is None:
        if isinstance(plan.model, Model):  # as it is now, without what it has packed
            given = replace(run.model, cache=OperandCache(share(plan)))
            plan = plan.model_copy(update={"model": given})
        results: Iterator[list[dict[str, Any]]] = in_processes(
            _start,
            (plan, machine_of(plan)),
            _work,
            run.cases,
            jobs=plan.jobs,
            who="sweep",
            ordered=False,
        )
    else:
        hashes = run.cases[0].model_hash, run.cases[0].text_hash
        known = _absolute(plan), machine_of(plan), *hashes
        results = on_cluster(_start_elsewhere, known, _work, run.cases, address=plan.scheduler)
    for i, made in enumerate(results, start=1):
        yield from made
        words.case(i, labels[made[0]["case_id"]], (i + 1) * batches)


def _start(given: tuple[SweepSpec, Machine]) -> tuple[Model, Reference]:
    """Return what a process needs for every case."""
    plan, machine = given
    model, inputs = read_again(plan)
    reference = run_reference(model, inputs, plan.batch, lambda n: None)
    reference.machine = machine
    return model, reference


def _absolute(plan: SweepSpec) -> SweepSpec:
    paths = {name: getattr(plan, name) for name in ("model", "text")}
    paths = {name: path.absolute() for name, path in paths.items() if isinstance(path, Path)}
    return plan.model_copy(update=paths)


def _start_elsewhere(known: tuple[SweepSpec, Machine, str, str]) -> tuple[Model, Reference]:
    """Return what a worker needs, on a machine that may hold other files by the same names."""
    plan, machine, model_hash, text = known
    folder = plan.model if isinstance(plan.model, Path) else bundled_model_dir()
    if (folder_hash(folder), text_hash(read_text(plan.one_text))) != (model_hash, text):
        raise NumsimError(
            f"sweep: a worker must read the same files; {folder} or the text differ there; "
            "put them on a disk that all machines share"
        )
    return _start((plan, machine))


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

    def __init__(self, messages: list[str], rows: Rows) -> None:
        self.messages, self.rows = messages, rows
        super().__init__(f"sweep: {len(messages)} cases failed: " + "; ".join(messages))
