"""Run the cases of a sweep against one float64 reference; append each row as it is made."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from numsim import metrics
from numsim.data import bundled_model_dir, bundled_text
from numsim.errors import NumsimError
from numsim.kernels.compare import compare_logits, compare_values
from numsim.kernels.jit import over_range
from numsim.models import Model, Recipe, load_model
from numsim.models.text import load_text_tools
from numsim.quant import storage_losses
from numsim.sweep.columns import NAMES
from numsim.sweep.csv import RowWriter, UnwritableError, check_writable, finished_rows, parse
from numsim.sweep.inputs import Inputs, read_inputs, same_rows, split_name
from numsim.sweep.spec import FAKE_QUANT, Case, SweepSpec, as_spec, cases, folder_hash
from numsim.version import __version__

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str, int, int], None]


@dataclass
class Reference:
    """The float64 run of all windows: what every case is compared with.

    Logits are kept in float32 (their error, 2**-25, is far below that of any case); inputs and
    outputs of the block linears are kept for the first batch only.
    """

    inputs: Inputs
    embeddings: NDArray[np.float64]  # [sentences, H], of an encoder
    logits: NDArray[np.float32]  # [windows, window - 1, vocab]
    nll: NDArray[np.float64]  # [windows, window - 1]
    taps: dict[str, NDArray[Any]] = field(default_factory=dict)  # of the first batch


def sweep(
    spec: SweepSpec | dict[str, Any] | str | Path, *, progress: Progress | None = None
) -> pd.DataFrame:
    """Run a model through every format, granularity and target of a grid.

    Parameters
    ----------
    spec
        A `SweepSpec`, a dict of its fields, or a TOML file of them.
    progress
        Called with (what, done, total) after every batch.

    Returns
    -------
    DataFrame
        One row per (case, layer, operator) and one ``layer="all"`` row per case; columns and
        units in `numsim.sweep.columns.COLUMNS`. Rows of an operator are measured on the first
        batch of windows, rows of the network on all of them.

    Raises
    ------
    NumsimError
        For anything wrong in the spec, the model folder or the text, before any computation and
        before the output file is touched.
    FailedCases
        Where single cases failed; the others have run and are written.

    Source
    ------
    Perplexity protocol: windows without overlap, the begin-of-text token before each, loss on all
    other tokens; per-tensor activation scales cover one batch of windows.

    Examples
    --------
    >>> rows = sweep({"formats": ["int8"], "targets": ["ideal.int"], "limit_tokens": 64,
    ...               "granularities": ["per_tensor"]})
    >>> rows.query("layer == 'all'")[["weight_format", "target"]].values.tolist()
    [['int8', 'ideal.int']]
    """
    plan = as_spec(spec)
    tell = progress or (lambda what, done, total: None)
    if plan.out is not None:
        check_writable(plan.out)
        if plan.text is not None and plan.out.resolve() == plan.text.resolve():
            raise NumsimError(f"sweep: out would replace the text {plan.text}; name another file")
    folder = plan.model or bundled_model_dir()
    model = load_model(folder, memory_limit=plan.memory_limit)
    text = _read_text(plan.text)
    text_hash = hashlib.sha256(text.encode()).hexdigest()[:16]
    text_name = plan.text.name if plan.text else "course.rst"
    todo = cases(
        plan, model=model.name, model_hash=folder_hash(Path(folder)), text=text_name,
        text_hash=text_hash,
    )  # fmt: skip
    inputs = read_inputs(model.arch, load_text_tools(folder), plan, text)
    kept = finished_rows(plan.out) if plan.resume and plan.out else []
    done = {str(row["case_id"]) for row in kept}
    todo = [case for case in todo if case.case_id not in done]
    if plan.memory_limit is not None:
        for recipe in (None, *(case.recipe() for case in todo)):
            model.check(recipe)
    rows = [parse(row) for row in kept]
    failed: list[str] = []
    with RowWriter(plan.out, kept) as writer:
        if todo:
            batches = math.ceil(len(inputs.tokens) / plan.batch)
            total = batches * (len(todo) + 1)
            reference = run_reference(
                model, inputs, plan.batch, lambda n: tell("float64 reference", n, total)
            )
            for i, case in enumerate(todo, start=1):
                label = f"{case.format} {case.granularity} {case.target}"

                def step(n: int, i: int = i, label: str = label) -> None:
                    tell(label, i * batches + n, total)

                try:
                    for row in run_case(model, case, reference, step):
                        writer.write(row)
                        rows.append(row)
                except UnwritableError:
                    raise
                except NumsimError as error:
                    failed.append(f"{label}: {error}")
    import pandas as pd  # 30 MB that a run alone does without

    frame = pd.DataFrame(rows, columns=list(NAMES))
    if failed:
        raise FailedCases(failed, frame)
    return frame


class FailedCases(NumsimError):
    """Some cases failed; the others are in `rows`, and in the output file.

    Attributes
    ----------
    messages
        One for each case that failed.
    rows
        The rows of the others.
    """

    def __init__(self, messages: list[str], rows: pd.DataFrame) -> None:
        self.messages, self.rows = messages, rows
        super().__init__(f"sweep: {len(messages)} cases failed: " + "; ".join(messages))


def _read_text(path: Path | None) -> str:
    if path is None:
        return bundled_text()
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise NumsimError(f"sweep: cannot read the text {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise NumsimError(f"sweep: the text {path} is not UTF-8 ({error.reason})") from None


def run_reference(
    model: Model, inputs: Inputs, batch: int, tell: Callable[[int], None]
) -> Reference:
    """Run the float64 reference over all windows."""
    count, length = inputs.tokens.shape
    scored = length - 1 if model.arch.head else 0
    reference = Reference(
        inputs,
        np.empty((count, model.arch.hidden)),
        np.empty((count, scored, model.arch.vocab), np.float32),
        np.empty((count, scored)),
    )
    names = model.linear_names()
    for n, part in enumerate(_batches(count, batch)):
        taps = [f"{name}.{end}" for name in names for end in ("in", "out")] if n == 0 else []
        run = inputs.run(model, part, None, taps + _expert_rows(model, taps))
        if scored:
            reference.logits[part] = run.logits[:, :-1]
            reference.nll[part] = metrics.token_nll(run.logits, inputs.tokens[part])
        else:
            reference.embeddings[part] = inputs.embeddings(run, part)
        reference.taps.update(run.taps)
        tell(n + 1)
    return reference


def _expert_rows(model: Model, taps: list[str]) -> list[str]:
    return ["*.experts.*.rows"] if taps and model.arch.moe is not None else []


def run_case(
    model: Model, case: Case, reference: Reference, tell: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one case: operators of the first batch, then the whole network."""
    began = time.perf_counter()
    recipe = case.recipe()
    inputs, vocab = reference.inputs, model.arch.vocab
    names = [name for name in model.linear_names() if f"{name}.in" in reference.taps]
    compared = np.empty((*reference.nll.shape, 8))
    cosines = np.empty(len(inputs.tokens))
    for n, part in enumerate(_batches(len(inputs.tokens), case.batch)):
        taps = [f"{name}.out" for name in names] if n == 0 else []
        run = inputs.run(model, part, recipe, taps + _expert_rows(model, taps))
        if n == 0:
            for name in names:
                yield _operator_row(model, case, recipe, reference, name, run.taps)
        if model.arch.head:
            targets = inputs.tokens[part, 1:]
            compared[part] = _compare(reference.logits[part], run.logits[:, :-1], targets)
        else:
            both = reference.embeddings[part] * inputs.embeddings(run, part)
            cosines[part] = both.sum(axis=1)
        tell(n + 1)
    stored = [_weight_shape(model, name) for name in names]
    figures = compared.reshape(-1, 8)
    total = figures.sum(axis=0)
    difference = figures[:, 0] - reference.nll.reshape(-1)
    weights, activations = case.quants
    per_token = sum(k for _, k in stored)
    rows = reference.taps[f"{names[0]}.in"][..., 0].size
    whole = _row(
        case,
        layer="all",
        bits_per_weight=sum(weights.stored_bits(n, k) for n, k in stored)
        / sum(n * k for n, k in stored),
        bits_per_act=sum(activations.stored_bits(rows, k) for _, k in stored) / (rows * per_token),
    )
    if not model.arch.head:
        kept = inputs.tokens if inputs.keep is None else inputs.keep
        yield whole | {
            "embedding_cosine": float(cosines.mean()),
            "embedding_cosine_min": float(cosines.min()),
            "tokens": int(np.count_nonzero(kept)),
            "seconds": round(time.perf_counter() - began, 3),
        }
        return
    yield whole | {
        "sqnr_cumulative_db": _ratio_db(total[3], total[4]),
        "mse": float(total[4]) / (len(figures) * vocab),
        "max_abs": float(figures[:, 7].max()),
        "cosine": _cosine(total[5], total[3], total[6]),
        "kl_nats": float(total[1]) / len(figures),
        "top1_agreement": float(total[2]) / len(figures),
        "perplexity": metrics.perplexity(figures[:, 0]),
        "tokens": len(figures),
        "perplexity_reference": metrics.perplexity(reference.nll),
        "dnll": float(difference.mean()),
        "dnll_stderr": float(difference.std() / math.sqrt(len(figures))),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _operator_row(
    model: Model,
    case: Case,
    recipe: Recipe,
    reference: Reference,
    name: str,
    taps: dict[str, NDArray[Any]],
) -> dict[str, Any]:
    """Compare one product with the reference: alone on exact inputs, and within the run."""
    x, want = reference.taps[f"{name}.in"], reference.taps[f"{name}.out"]
    local = _figures(want, model.gemm(name, x, recipe))
    both = same_rows(reference.taps, taps, name)
    cumulative: dict[str, Any] = {}
    if both is not None:
        whole = _figures(*both)
        cumulative = {
            "sqnr_cumulative_db": _ratio_db(whole[0], whole[1]),
            "mse": whole[1] / both[0].size,
            "max_abs": whole[4],
            "max_ulp": whole[5],
            "cosine": _cosine(whole[2], whole[0], whole[3]),
        }
    lost = storage_losses(x, case.quants[1])
    layer, op = split_name(name)
    n, k = _weight_shape(model, name)
    m = x.size // k
    weights, activations = case.quants
    return _row(
        case,
        layer=layer,
        op=op,
        M=m,
        N=n,
        K=k,
        bits_per_weight=weights.stored_bits(n, k) / (n * k),
        bits_per_act=activations.stored_bits(m, k) / (m * k),
        sqnr_local_db=_ratio_db(local[0], local[1]),
        saturation_rate=lost[0],
        underflow_rate=lost[1],
        **cumulative,
    )


def _row(case: Case, **values: Any) -> dict[str, Any]:
    """Return one CSV row; what is not given stays empty."""
    weights, _ = case.quants
    row: dict[str, Any] = dict.fromkeys(NAMES)
    row |= {
        "case_id": case.case_id,
        "model": case.model,
        "weight_format": weights.fmt.name,
        "act_format": weights.fmt.name,
        "granularity": case.granularity,
        "block": weights.block,
        "scale_format": weights.scale_format if weights.granularity != "none" else None,
        "scale_rule": weights.scale_rule if weights.granularity != "none" else None,
        "rounding": weights.rounding,
        "target": case.target,
        "exact": case.target != FAKE_QUANT,
        "seed": case.seed,
        "numsim_version": __version__,
        "text": case.text,
    }
    return row | values


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


def _figures(reference: NDArray[Any], got: NDArray[Any]) -> list[float]:
    """Return signal, noise, dot, other, max |error|, max ulp of two arrays [..., width]."""
    width = reference.shape[-1]
    a = np.ascontiguousarray(reference).reshape(-1, width)
    b = np.ascontiguousarray(got).reshape(-1, width)
    out = np.empty((len(a), 6))
    over_range(lambda lo, hi: compare_values(a, b, out, lo, hi), len(a), grain=64)
    return [*out[:, :4].sum(axis=0).tolist(), *out[:, 4:].max(axis=0).tolist()]


def _ratio_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise); no noise: inf, no signal: -inf."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal != 0 else -math.inf


def _cosine(dot: float, aa: float, bb: float) -> float:
    return dot / math.sqrt(aa) / math.sqrt(bb) if aa > 0 and bb > 0 else math.nan


def _weight_shape(model: Model, name: str) -> tuple[int, int]:
    rows, columns = model.tensors[f"{name}.weight"].shape
    return rows, columns


def _batches(count: int, batch: int) -> Iterator[slice]:
    for start in range(0, count, batch):
        yield slice(start, min(start + batch, count))
