"""What a run is given, checked before any computation: tokens, masks, segments, taps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.models.arch import (
    Arch,
    every_rope,
    gemm_names,
    has_experts,
    layer_rope,
    stack_arch,
    stacks,
    tensor_shapes,
)
from numsim.models.context import Bools, Past
from numsim.models.gemm import Array, Ints
from numsim.models.rope import turns_anew
from numsim.models.weights import Stored, shape_of
from numsim.operators.rules import Op, Ops, ops_for

MOST_TOKENS = 2**20  # to generate, where no table or rotary angle ends earlier


def array(given: object, what: str) -> NDArray[Any]:
    """Return `given` as an array, or say that `what` is none."""
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        masked = int(np.sum(np.ma.getmaskarray(given)))
        raise NumsimError(
            f"{what} must be an array without masked values, as the mask would be lost; got "
            f"{masked} masked; pass .filled(value)"
        )
    try:
        return np.asarray(given)
    except (ValueError, TypeError) as error:
        raise NumsimError(
            f"{what} must be a rectangular array of numbers; {error}; pad rows to one length"
        ) from None


def real_numbers(given: object, what: str, dtype: type) -> NDArray[Any]:
    """Return `given` as an array of `dtype`, or say that `what` holds no real numbers."""
    values = array(given, what)
    kind, name = values.dtype.kind, values.dtype.name
    narrow = kind == "V" and hasattr(ml_dtypes, name)  # bfloat16, int4 ...
    if not (kind in "iuf" or narrow) or values.itemsize > 8:
        raise NumsimError(
            f"{what} must be a rectangular array of real numbers of 64 bits at most; got {name}; "
            "convert it first"
        )
    return values.astype(dtype, copy=False)


def token_ids(tokens: ArrayLike, what: str, limit: int, table: str = "vocabulary") -> Ints:
    """Return ids [B, T] from 0 to below `limit`, rows of a table, or say what is wrong."""
    ids = array(tokens, f"run: {what}")
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or not ids.size:
        raise NumsimError(
            f"run: {what} must be a non-empty integer array [T] or [B, T]; got {ids.dtype} "
            f"{list(ids.shape)}; encode the text with the tokenizer of the model"
        )
    outside = (ids < 0) | (ids >= limit)
    if outside.any():
        raise NumsimError(
            f"run: {what} must be from 0 to {limit - 1}, the {table} of {limit}; got "
            f"{ids[outside][0]} ({np.count_nonzero(outside)} such); use the model's tokenizer"
        )
    return np.atleast_2d(ids).astype(np.int64)


def segment_ids(arch: Arch, given: ArrayLike | None, shape: tuple[int, ...]) -> Ints | None:
    """Return segments [B, T], None for a family without."""
    if not arch.token_types:
        if given is not None:
            raise NumsimError(
                f"run: token_type_ids must be left out for {arch.family}, which has none; "
                f"got {type(given).__name__}"
            )
        return None
    if given is None:
        return np.zeros(shape, np.int64)
    types = token_ids(given, "token_type_ids", arch.token_types, "table of segments")
    if types.shape != shape:
        raise NumsimError(
            f"run: token_type_ids must have the shape of tokens {list(shape)}; got "
            f"{list(types.shape)}; give a segment for each token"
        )
    return types


def decoder_ids(arch: Arch, given: ArrayLike | None, batch: int) -> Ints | None:
    """Return the decoder's ids [B, T], None for a family without a decoder of its own."""
    if (given is not None) != bool(arch.decoder_layers):
        rule = "given for" if given is None else "left out for"
        kind = "an encoder-decoder" if given is None else "which has no decoder of its own"
        raise NumsimError(
            f"run: decoder_tokens must be {rule} {arch.family}, {kind}; got "
            f"{'none' if given is None else type(given).__name__}"
        )
    if given is None:
        return None
    ids = token_ids(given, "decoder_tokens", arch.vocab)
    if len(ids) != batch:
        raise NumsimError(
            f"run: decoder_tokens must have a row for each row of tokens; got {len(ids)} for "
            f"{batch}; pair them"
        )
    return ids


def wanted_taps(arch: Arch, taps: Iterable[str]) -> set[str]:
    """Return the names of the tensors that globs ask for."""
    scalar = isinstance(taps, np.ndarray) and taps.ndim == 0
    listed = isinstance(taps, Iterable) and not scalar
    globs = (taps,) if isinstance(taps, str) else tuple(taps) if listed else ()
    if not listed or not all(isinstance(glob, str) for glob in globs):
        raise NumsimError(
            f"run: taps is an iterable of names or globs, each a str; got {globs or taps!r}; "
            "() keeps no tensor"
        )
    if not globs:
        return set()
    known = tap_names(arch)
    names: set[str] = set()
    for glob in globs:
        found = [name for name in known if fnmatchcase(name, glob)]
        if not found:
            raise NumsimError(
                f"run: every tap must match a tensor; {glob!r} matches none"
                f"{near_names(glob, known)}; see taps in the documentation of Model.run"
            )
        names.update(found)
    return names


def tap_names(arch: Arch) -> list[str]:
    """Return the names of all tensors a run can keep.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> from numsim.models import load_model
    >>> tap_names(load_model(bundled_model_dir()).arch)[:2]
    ['embed.out', 'layers.0.q_proj.in']
    """
    known = ["embed.out"]
    for name in gemm_names(arch):
        known += [f"{name}.in", f"{name}.out"]
        if name.endswith(("qk", "pv")):
            known.append(f"{name}.operand")
    every_norm = tensor_shapes(replace(arch, norm="rms"))  # those without a weight, too
    known += [
        f"{name.removesuffix('.weight')}.out" for name in every_norm if name.endswith("norm.weight")
    ]
    products = set(gemm_names(arch))
    biases = [name.removesuffix(".bias") for name in tensor_shapes(arch) if name.endswith(".bias")]
    known += [f"{name}.biased" for name in biases if name in products]
    for stack in stacks(arch):
        for i in range(stack.layers):
            layer = f"{stack.prefix}layers.{i}"
            parts = ["attn.out", "mlp.out", "out", "softmax.out"]
            parts += ["cross.out", "cross_softmax.out"] if stack.cross else []
            if layer_rope(arch, i) is not None:
                parts += ["q_rotary.out", "k_rotary.out"]
                parts += ["q_norm.out", "k_norm.out"] if arch.qk_norm == "l2" else []
            if arch.moe is not None and has_experts(arch, i):
                parts += ["router.experts", "router.weights"]
                parts += ["shared.act.out"] if arch.moe.shared else []
                for e in range(arch.moe.experts):
                    parts += [f"experts.{e}.rows", f"experts.{e}.act.out"]
            else:
                parts.append("act.out")
            known += [f"{layer}.{part}" for part in parts]
    if arch.head or arch.labels or arch.masked:
        known.append("logits")
    if arch.pooler:
        known.append("pooled")
    return known


def op_names(arch: Arch) -> list[str]:
    """Return the names of the operators outside the products, which recipes may lower.

    Examples
    --------
    >>> from numsim.data import bundled_model_dir
    >>> from numsim.models import load_model
    >>> op_names(load_model(bundled_model_dir()).arch)[::8]
    ['embedding', 'layers.1.attn_norm', 'final_norm', 'layers.2.rotary', 'logits']
    """
    known: list[str] = []
    for stack in stacks(arch):
        known.append(f"{stack.prefix}embedding")
        known += [f"{stack.prefix}layers.{i}.residual" for i in range(stack.layers)]
    for tap in tap_names(arch):
        name = tap.removesuffix(".out").replace("q_rotary", "rotary")
        if tap.endswith(("norm.out", "softmax.out", "q_rotary.out", ".act.out")):
            known.append(name)
    return [*known, "logits"] if arch.head or arch.masked else known


@lru_cache(maxsize=16)
def lowered_operators(arch: Arch, ops: Ops) -> Mapping[str, Op]:
    """Return what a recipe says of each operator of a network that it names.

    Raises
    ------
    NumsimError
        For a glob that names no operator, or settings that one does not have.
    """
    return ops_for(ops, op_names(arch)) if ops else {}


def padding_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Bools | None:
    """Return a mask [B, T], None where all tokens count."""
    if mask is None:
        return None
    values = np.atleast_2d(array(mask, "run: attention_mask"))
    numeric = values.dtype.kind in "biuf"
    if values.shape != shape or not numeric or not np.isin(values, (0, 1)).all():
        found = np.unique(values)[:4] if numeric else values.dtype
        raise NumsimError(
            f"run: attention_mask must hold 0 or 1 for each token {list(shape)}; got shape "
            f"{list(values.shape)}, values {found}; 1 keeps a token"
        )
    return values.astype(np.bool_)


def check_positions(arch: Arch, total: int) -> None:
    """Raise where a sequence of `total` tokens is longer than a learned table of positions."""
    if arch.positions and total > arch.positions:
        raise NumsimError(
            f"run: {arch.family} has a table of {arch.positions} positions; got a sequence of "
            f"{total}; cut it"
        )


def check_past(arch: Arch, past: object, batch: int, steps: int, dtype: type) -> None:
    """Raise where `past` is neither None nor a Past that so many rows and tokens can follow."""
    if past is None:
        return
    if not arch.causal:
        raise NumsimError(
            f"run: past must be left out for {arch.family}, whose tokens see later ones; got "
            f"{type(past).__name__}; run the whole sequence"
        )
    if not isinstance(past, Past):
        raise NumsimError(
            f"run: past is a numsim.models.Past or None; got {type(past).__name__}; "
            "start with Past()"
        )
    if any(len(k) != batch for k, _ in past.kept.values()):
        raise NumsimError(
            f"run: past must come from a batch of the same size; got {batch} rows of tokens; "
            "start with a new Past()"
        )
    if not _fits(arch, past, batch, dtype):
        raise NumsimError(
            f"run: past must come from runs of the same model, all emulated or all reference; got "
            f"other keys and values than {arch.family} has; start with a new Past()"
        )
    total = past.length + steps
    for rope in every_rope(arch):
        if turns_anew(rope, past.length, total):
            raise NumsimError(
                f"run: {rope.kind} rotary scaling turns all keys anew beyond {rope.longest} "
                f"tokens, kept ones too; got {total} with past; run the whole sequence, as "
                "generate does"
            )


def check_chunks(arch: Arch, keep: Bools | None) -> None:
    """Raise where chunks of attention would count from a padded token."""
    if arch.chunks and keep is not None and not keep[:, 0].all():
        raise UnsupportedError(
            f"run: attention_mask must keep the first token of a row for {arch.family}, whose "
            "chunks of attention count from it; got a row padded on its left; run it alone, or pad "
            "on the right"
        )


def new_tokens(count: object) -> int:
    """Return how many tokens to add, a whole number up to `MOST_TOKENS`."""
    if (
        isinstance(count, bool)
        or not isinstance(count, int | np.integer)
        or not 0 <= count <= MOST_TOKENS
    ):
        raise NumsimError(
            f"generate: max_new_tokens must be an integer from 0 to {MOST_TOKENS}; got {count!r}; "
            "give a count in that range"
        )
    return int(count)


def _fits(arch: Arch, past: Past, batch: int, dtype: type) -> bool:
    """Return whether a past holds the keys and values of its length, and nothing else."""
    stack, length = stacks(arch)[-1], past.length
    names = [f"{stack.prefix}layers.{i}" for i in range(stack.layers)] if length else []
    wanted = dict.fromkeys(names, length)
    if length and stack.cross:
        if past.memory is None:
            return False
        wanted |= {f"{name}.cross": past.memory.shape[1] for name in names}
    shapes = {
        name: (k.shape, v.shape, k.dtype.type, v.dtype.type) for name, (k, v) in past.kept.items()
    }
    own = stack_arch(arch, stack)
    heads = (batch, own.kv_heads)
    expected = {
        name: ((*heads, n, own.head_dim), (*heads, n, own.v_head_dim), dtype, dtype)
        for name, n in wanted.items()
    }
    return shapes == expected and (past.keep is None or past.keep.shape == (batch, length))


def product_inputs(
    arch: Arch,
    tensors: Mapping[str, Stored],
    name: str,
    x: object,
    operand: object,
    dtype: type,
) -> tuple[Array, str | Array]:
    """Return both sides of the product `name`, the right one an array or a stored name."""
    names = gemm_names(arch)
    if not isinstance(name, str) or name not in names:
        raise NumsimError(
            f"gemm: name must be a matrix product of the model; got {name!r}"
            f"{near_names(str(name), names)}; see gemm_names()"
        )
    stored = f"{name}.weight"
    if (operand is None) != (stored in tensors):
        raise NumsimError(
            f"gemm: operand must be given for qk and pv and for them only; got "
            f"{'none' if operand is None else 'one'} for {name}; "
            f"{'give' if operand is None else 'leave out'} operand"
        )
    left = real_numbers(x, "gemm: x", dtype)
    right = None if operand is None else real_numbers(operand, "gemm: operand", dtype)
    if right is not None and (right.ndim < 2 or not right.shape[-2]):
        raise NumsimError(
            f"gemm: operand must be [..., K, N], K above 0; got shape {list(right.shape)}; pass "
            f"what a tap {name}.operand holds"
        )
    depth = shape_of(tensors, stored)[1] if right is None else right.shape[-2]
    if left.ndim < 2 or left.shape[-1] != depth:
        raise NumsimError(
            f"gemm: x must be [..., M, K], {depth} elements a row for {name}; got "
            f"{list(left.shape)}; pass what a tap {name}.in holds"
        )
    if right is not None and left.shape[:-2] != right.shape[:-2]:
        raise NumsimError(
            f"gemm: x and operand must agree in their leading dimensions; got "
            f"{list(left.shape)} and {list(right.shape)}; pass what the taps hold"
        )
    return left, stored if right is None else right


def token_positions(given: ArrayLike | None, rows: int, heads: int) -> Ints:
    """Return the positions [T] of the tokens of a left operand of ``rows = heads * T`` rows."""
    if given is None:
        return np.arange(rows // heads if rows % heads == 0 else rows)
    ids = array(given, "gemm: positions")
    if ids.dtype.kind not in "iu" or ids.shape != (rows // heads,) or (ids < 0).any():
        raise NumsimError(
            f"gemm: positions must hold an integer from 0 on for each of {rows // heads} tokens; "
            f"got {ids.dtype} {list(ids.shape)}; see the shape of x"
        )
    return ids.astype(np.int64)
