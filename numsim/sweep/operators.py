"""Rows of single matrix products: alone on exact inputs, and within the emulated run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numsim import metrics
from numsim.kernels.compare import compare_values
from numsim.kernels.jit import over_range
from numsim.models import Model, Recipe, Rule, Run
from numsim.models.gemm import RAW
from numsim.models.weights import Stored, shape_of
from numsim.operators.kv_spec import Spec
from numsim.quant import QUANTS, Quant, as_quant, storage_losses
from numsim.sweep.cases import Case
from numsim.sweep.columns import NAMES
from numsim.sweep.costs import Machine
from numsim.sweep.grid import FAKE_QUANT
from numsim.sweep.inputs import Inputs, same_rows, split_name
from numsim.sweep.overflow import counted, overflow_rate
from numsim.targets import get_target
from numsim.targets.table import label
from numsim.version import __version__

Taps = dict[str, NDArray[Any]]


@dataclass
class Reference:
    """The float64 run of all windows: what every case is compared with.

    Logits, states and taps are kept in float32 (their error, 2**-25, is far below that of any
    case); taps hold the operands and results of all products, for the first batch only.
    """

    inputs: Inputs
    embeddings: NDArray[np.float64]  # [sentences, H], of an encoder
    states: NDArray[np.float32]  # [sentences, length, H], of an encoder: after its last norm
    logits: NDArray[np.float32]  # [windows, window - 1, vocab]
    nll: NDArray[np.float64]  # [windows, window - 1]
    taps: Taps = field(default_factory=dict)  # of the first batch
    local: dict[Any, dict[str, Any]] = field(default_factory=dict)  # (product, rule, seed) -> row
    depth: list[NDArray[np.float32]] = field(default_factory=list)  # hidden states, first batch
    machine: Machine = field(default_factory=Machine)  # what costs are for


def tap_names(names: Iterable[str], ends: tuple[str, ...]) -> list[str]:
    """Return the taps of products, and which rows went to which expert."""
    taps = [f"{name}.{end}" for name in names for end in ends]
    attention = ("qk", "pv")
    taps = [t for t in taps if not t.endswith(".operand") or t.split(".")[-2].endswith(attention)]
    return taps + (["*.experts.*.rows"] if any(".experts." in name for name in taps) else [])


def operands(rule: Rule) -> tuple[Quant, Quant]:
    """Return the storage of the right (weights) and the left operand (activations)."""
    return as_quant(rule.weights or RAW), as_quant(rule.activations or RAW)


def kept_as(recipe: Recipe, name: str) -> Spec | None:
    """Return how a cache of the recipe keeps the right operand of a product, None: it does not."""
    part = _KEPT.get(name.rpartition(".")[2], "")
    return getattr(recipe.kv, part, None)


_KEPT = {"qk": "key", "pv": "value"}  # right operands of self-attention, by its products


def _right_bits(recipe: Recipe, name: str, rule: Rule, shape: tuple[int, ...], k: int) -> float:
    """Return the stored bits of a right operand [..., K, N], or of a stored matrix of a shape."""
    if recipe.kv is None or kept_as(recipe, name) is None:
        return operands(rule)[0].stored_bits(math.prod(shape) // k, k)
    batch, heads, rows, columns = shape
    part = _KEPT[name.rpartition(".")[2]]
    tokens, dim = (columns, rows) if part == "key" else (rows, columns)
    return batch * recipe.kv.stored_bits(part, heads, tokens, dim)


def _kept(recipe: Recipe, name: str, operand: NDArray[Any]) -> NDArray[Any]:
    """Return a right operand as the cache gives it back."""
    assert recipe.kv is not None
    at = list(_KEPT).index(name.rpartition(".")[2])
    tokens = operand.swapaxes(2, 3) if at == 0 else operand  # [B, G, tokens, dim]
    seen = np.stack([recipe.kv.through(*[one] * 2)[at] for one in tokens]).astype(operand.dtype)
    return seen.swapaxes(2, 3) if at == 0 else seen


def operator_row(
    model: Model, recipe: Recipe, rule: Rule, reference: Reference, name: str, taps: Taps, *,
    touched: bool, stats: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Compare one product with the reference: alone on exact inputs, and within the run.

    Of padded sentences only kept tokens count; scales are those of the whole batch, as in the run.
    `stats`: count what the accumulator loses. `touched`: it or a product before it is emulated;
    elsewhere there is no quantisation noise.
    """
    seed = recipe.seed if "sr" in {q.rounding for q in operands(rule)} else 0
    key = (name, rule, seed, kept_as(recipe, name) and recipe.kv)
    if key not in reference.local:  # products that stay float32 are the same in every case
        reference.local[key] = _local(model, recipe, rule, reference, name, stats=stats)
    _, outputs = _counted(reference, name)
    cumulative: dict[str, Any] = {}
    both = same_rows(reference.taps, taps, name)
    if both is not None:
        want, got = both[0][outputs], both[1][outputs]
        whole = figures(want, got)
        cumulative = {
            "sqnr_cumulative_db": ratio_db(whole[0], whole[1]) if touched else None,
            "mse": whole[1] / want.size,
            "max_abs": whole[4],
            "max_ulp": metrics.ulps(whole[4], whole[5]),
            "cosine": cosine(whole[2], whole[0], whole[3]),
        }
    layer, op = split_name(name)
    return {"layer": layer, "op": op} | reference.local[key] | cumulative


def _local(
    model: Model, recipe: Recipe, rule: Rule, reference: Reference, name: str, *, stats: bool
) -> dict[str, Any]:
    """Return what does not depend on the rest of the network."""
    x, want = reference.taps[f"{name}.in"], reference.taps[f"{name}.out"]
    operand = reference.taps.get(f"{name}.operand")
    rows, outputs = _counted(reference, name)
    _, activations = operands(rule)
    losses, sqnr_db, bias = (0.0, 0.0), None, None
    kept = kept_as(recipe, name) is not None
    if not rule.is_plain or kept:
        positions = None
        right = _kept(recipe, name, operand) if kept and operand is not None else operand
        if ".experts." in name:  # stochastic rounding draws for the token, wherever it went
            layer, expert = name.partition(".experts.")[0], name.rpartition(".")[0]
            length = reference.taps[f"{layer}.router.in"].shape[1]
            positions = reference.taps[f"{expert}.rows"] % length
        got, left = model.product(name, x, recipe, operand=right, positions=positions)
        error = figures(want[outputs], got[outputs])
        sqnr_db = ratio_db(error[0], error[1])
        bias = signed_error(error, want[outputs].size)
        where = True if rows is ... else rows[..., None]
        if left is not None and activations.rounding == "sr":  # the draws of the run
            counted = np.broadcast_to(where, x.shape).reshape(left.shape)
            losses = storage_losses(x.reshape(left.shape), activations, where=counted, stored=left)
        else:
            losses = storage_losses(x, activations, where=where)
    k, n = x.shape[-1], want.shape[-1]
    m = x[rows].size // k
    stored = None if operand is not None else model.tensors[f"{name}.weight"]
    shape = (n, k) if operand is None else operand.shape  # of qk and pv all heads have one tensor
    bits, values = _right_bits(recipe, name, rule, shape, k), math.prod(shape)
    return {
        "M": m,
        "N": n,
        "K": k,
        "bits_per_weight": bits / values,
        "bits_per_act": activations.stored_bits(m, k) / (m * k),
        "sqnr_local_db": sqnr_db,
        "saturation_rate": losses[0],
        "underflow_rate": losses[1],
        "acc_overflow_rate": overflow_rate(rule, x, operand, stored),
        "mean_signed_error": bias,
        **(_lost(rule, x, stored) if stats and not rule.is_plain else {}),
        "right_values": values,  # no column: for what they cost
    }


def _lost(rule: Rule, x: NDArray[Any], stored: Stored | None) -> dict[str, Any]:
    found = counted(rule, x, stored)
    if found is None:
        return {}
    rate = found.swamped / max(found.products, 1)
    return {"acc_swamp_rate": rate, "acc_peak_bits": found.peak_bits}


def stored_bits(
    model: Model, recipe: Recipe, rules: dict[str, Rule], reference: Reference
) -> dict[str, float]:
    """Return stored bits for each value of the right and of the left operands of a case.

    Over the linears of the blocks; where all of them stay float32, over ``qk`` and ``pv``, whose
    right operands are the cache of keys and values; where those do too, over the products that
    are emulated.
    """
    ran = {n: r for n, r in rules.items() if f"{n}.in" in reference.taps}
    linears = {n: r for n, r in ran.items() if n.endswith("_proj")}
    cache = {n: r for n, r in ran.items() if n.endswith(("qk", "pv"))}
    rest = {n: r for n, r in ran.items() if is_emulated(recipe, n, r)}
    counted = next((some for some in (linears, cache, rest) if set(some) & set(rest)), linears)
    bits = np.zeros(2)
    values = np.zeros(2)
    for name, rule in counted.items():
        x, operand = reference.taps[f"{name}.in"], reference.taps.get(f"{name}.operand")
        k = x.shape[-1]
        shape = shape_of(model.tensors, f"{name}.weight") if operand is None else operand.shape
        size = math.prod(shape)
        stored = _right_bits(recipe, name, rule, tuple(shape), k)
        bits += stored, operands(rule)[1].stored_bits(x.size // k, k)
        values += size, x.size
    per_weight, per_act = (bits / values).tolist()
    return {"bits_per_weight": per_weight, "bits_per_act": per_act}


def is_emulated(recipe: Recipe, name: str, rule: Rule) -> bool:
    """Return whether a product is none of float32 numbers, added as fused multiply-adds do."""
    return not rule.is_plain or kept_as(recipe, name) is not None


def describe(case: Case, digest: str, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return a row with the columns that say what ran; where `rules` differ: ``mixed``.

    `digest`: of the recipe of the case, resolved; `rules` by their products.
    """
    recipe = case.recipe()
    kinds = dict.fromkeys((rule, kept_as(recipe, name)) for name, rule in rules.items())
    described = [_words(case, *kind) for kind in kinds]
    row: dict[str, Any] = dict.fromkeys(NAMES)
    for key in described[0]:
        values = {words[key] for words in described}
        row[key] = values.pop() if len(values) == 1 else "mixed"
    asked = dict(case.settings)
    if "kv" in asked and len(rules) > 1:  # kv_format says how those are stored
        row |= _scales_asked(case, rules)
    row["exact"] = all(words["exact"] for words in described)
    return row | {
        "case_id": case.case_id,
        "model": case.model,
        "seed": recipe.seed,
        "numsim_version": __version__,
        "text": case.text,
        "recipe": case.recipe_name or None,
        "recipe_digest": digest,
        "ignored_keys": " ".join(case.ignored_keys) or None,
        "format": case.called,
        "products": asked.get("products", None if case.recipe_name else "linears"),
        "kv_format": asked.get("kv", None if recipe.kv is None else str(recipe.kv)),
        "emulated": any(is_emulated(recipe, name, rule) for name, rule in rules.items()),
    }


def _scales_asked(case: Case, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return what a case of a grid says of scales: those of its formats, not of its cache."""
    rule = next((rule for _, rule in case.recipe().rules if not rule.is_plain), None)
    if rule is None or rule not in rules.values():
        return {}
    words = _words(case, rule, None)
    return {name: words[name] for name in ("granularity", "block", "scale_format", "scale_rule")}


def _words(case: Case, rule: Rule, kept: Spec | None) -> dict[str, Any]:
    weights, activations = operands(rule)
    if kept is not None and kept.recipe in QUANTS:
        weights = QUANTS[kept.recipe]
    elif kept is not None:
        return _words_of_cache(case, rule, kept)
    sides = dict.fromkeys([str(weights.granularity), str(activations.granularity)])
    scaled = weights if weights.granularity != "none" else activations
    asked = not rule.is_plain and case.own == get_target(rule.target)  # by the user's word for it
    return {
        "weight_format": weights.fmt.label,
        "act_format": activations.fmt.label,
        "granularity": "+".join(sides),
        "block": weights.block or activations.block,
        "scale_format": None if scaled.granularity == "none" else scaled.scale_format,
        "scale_rule": None if scaled.granularity == "none" else scaled.scale_rule,
        "rounding": weights.rounding,
        "target": case.target if asked else _target_name(rule),
        "exact": _target_name(rule) != FAKE_QUANT,
    }


def _words_of_cache(case: Case, rule: Rule, kept: Spec) -> dict[str, Any]:
    """Return what `_words` does where a cache of its own layout has the right operand."""
    found = _words(case, rule, None)
    ggml = kept.recipe is not None  # blocks of 32 with a float16 scale
    own = "per_block" if ggml else kept.granularity
    scales = "float16" if ggml else kept.scale_format
    sides = dict.fromkeys([own, str(operands(rule)[1].granularity)])
    return found | {
        "weight_format": kept.recipe or kept.format,
        "granularity": "+".join(sides),
        "block": 32 if ggml else kept.group,
        "scale_format": None if own == "none" else scales,
        "scale_rule": None if own == "none" else "amax",
        "rounding": "rne",
    }


def _target_name(rule: Rule) -> str:
    return label(get_target(rule.target))


def _counted(reference: Reference, name: str) -> tuple[Any, Any]:
    """Return the indices of what counts among the rows of the left operand, and of the result.

    Everything (``...``), or of padded sentences the kept tokens; of ``qk`` the kept keys too.
    (No encoder has experts, whose rows are picked tokens.)
    """
    x, out = reference.taps[f"{name}.in"], reference.taps[f"{name}.out"]
    if reference.inputs.keep is None:
        return ..., ...
    keep = reference.inputs.kept(slice(0, len(x)))  # [B, T]
    if x.ndim == 3:  # [B, T, K]; the pooler reads the first token alone
        rows = keep[:, : x.shape[1]]
        return rows, rows
    heads = x.shape[2] // keep.shape[1]
    rows = np.broadcast_to(np.tile(keep, heads)[:, None], x.shape[:3])  # [B, G, N/G*T]
    if not name.endswith("qk"):
        return rows, rows
    return rows, np.broadcast_to(rows[..., None] & keep[:, None, None], out.shape)


def figures(reference: NDArray[Any], got: NDArray[Any]) -> list[float]:
    """Return sums and extremes of arrays [..., width].

    Signal, noise, dot, other, max |error|, max |reference|, sum of the signed error.
    """
    width = reference.shape[-1]
    a = np.ascontiguousarray(reference).reshape(-1, width)
    b = np.ascontiguousarray(got).reshape(-1, width)
    out = np.empty((len(a), 7))
    over_range(lambda lo, hi: compare_values(a, b, out, lo, hi), len(a), grain=64)
    ends = out[:, 4:6].max(axis=0).tolist()
    return [*out[:, :4].sum(axis=0).tolist(), *ends, float(out[:, 6].sum())]


def depth_db(reference: Reference, run: Run) -> dict[str, float]:
    """Return the SQNR of the residual stream after each layer, by what rows call the layer.

    Of an encoder-decoder that of the decoder alone, whose layers have a name in front.
    """
    found = {}
    stack = "decoder." if run.encoder_hidden_states else ""
    for layer, (want, got) in enumerate(zip(reference.depth, run.hidden_states[1:], strict=True)):
        keep = ... if reference.inputs.keep is None else reference.inputs.kept(slice(0, len(want)))
        error = figures(want[keep], got[keep])
        found[f"{stack}{layer}"] = ratio_db(error[0], error[1])
    return found


def signed_error(error: list[float], count: int) -> float:
    """Return mean(result - reference) / rms(reference) from what `figures` gave."""
    rms = math.sqrt(error[0] / count)
    return error[6] / count / rms if rms > 0 else math.nan


def ratio_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise); no noise: inf; no signal, or infinite noise: -inf."""
    if noise == 0:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio != 0 else -math.inf


def cosine(dot: float, aa: float, bb: float) -> float:
    """Return the cosine from a dot product and two squared lengths."""
    return dot / math.sqrt(aa) / math.sqrt(bb) if aa > 0 and bb > 0 else math.nan
