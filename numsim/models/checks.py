"""What a run is given, checked before any computation: tokens, masks, segments, taps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.models.arch import Arch, every_rope, read_tokens, stack_arch, stacks
from numsim.models.context import Bools, Past
from numsim.models.gemm import Array, Ints
from numsim.models.products import gemm_names
from numsim.models.rope import turns_anew
from numsim.models.weights import Stored, shape_of
from numsim.operators import KV

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
    with np.errstate(over="ignore"):  # Inf, which whoever wants numbers refuses
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


def first_input(arch: Arch, given: Mapping[str, object], dtype: type) -> tuple[Ints, Array | None]:
    """Return the ids [B, T] that a network reads, or zeros and the pictures or spectra it reads.

    `given`: by ``tokens``, ``pixels`` and ``features``, one of which is not None.
    """
    named = [name for name, value in given.items() if value is not None]
    if named != [arch.reads]:
        raise NumsimError(
            f"run: {arch.family} reads {arch.reads}, and nothing else; got "
            f"{' and '.join(named) or 'none'}; write model.run({arch.reads}=...)"
        )
    if arch.reads == "tokens":
        return token_ids(given["tokens"], "tokens", arch.vocab), None  # type: ignore[arg-type]
    values = real_numbers(given[arch.reads], f"run: {arch.reads}", dtype)
    values = values[None] if values.ndim == len(arch.frame) else values
    if values.shape[1:] != arch.frame or not len(values):
        axes = "channels, height, width" if arch.reads == "pixels" else "bins, times"
        raise NumsimError(
            f"run: {arch.reads} of {arch.family} must be [B, {axes}], {list(arch.frame)} each; got "
            f"{list(values.shape)}; resize, or pad, as its processor does"
        )
    if not np.isfinite(values).all():
        raise NumsimError(
            f"run: {arch.reads} must be finite in {np.dtype(dtype)}; got "
            f"{np.count_nonzero(~np.isfinite(values))} that are not; correct them"
        )
    return np.zeros((len(values), read_tokens(arch)), np.int64), values


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


def padding_mask(arch: Arch, mask: ArrayLike | None, shape: tuple[int, ...]) -> Bools | None:
    """Return a mask [B, T], None where all tokens count."""
    if mask is None:
        return None
    if arch.reads != "tokens":
        raise NumsimError(
            f"run: attention_mask must be left out for {arch.family}, which sees all of its "
            f"{arch.reads}; got {type(mask).__name__}"
        )
    values = np.atleast_2d(array(mask, "run: attention_mask"))
    numeric = values.dtype.kind in "biuf"
    if values.shape != shape or not numeric or not np.isin(values, (0, 1)).all():
        found = np.unique(values)[:4] if numeric else values.dtype
        raise NumsimError(
            f"run: attention_mask must hold 0 or 1 for each token {list(shape)}; got shape "
            f"{list(values.shape)}, values {found}; 1 keeps a token"
        )
    return values.astype(np.bool_)


def check_positions(arch: Arch, total: int, *, stack: int = -1) -> None:
    """Raise where a sequence of `total` tokens is longer than a learned table of positions.

    `stack`: of the decoder, or 0 of the encoder before it.
    """
    rows = stack_arch(arch, stacks(arch)[stack]).positions
    if rows and total > rows:
        who = f"the encoder of {arch.family}" if stack == 0 and arch.decoder_layers else arch.family
        raise NumsimError(
            f"run: {who} has a table of {rows} positions; got a sequence of {total}; cut it"
        )


def check_cache(arch: Arch, kv: KV | None) -> None:
    """Raise where a cache does not take the heads of a network."""
    if kv is None:
        return
    stored = replace(kv, residual=0, rule="last")  # the first token too
    for stack in stacks(arch):
        a = stack_arch(arch, stack)
        one = [np.zeros((1, 1, n), np.float32) for n in (a.head_dim, a.v_head_dim)]
        try:
            stored.through(*one)
        except NumsimError as error:
            raise type(error)(
                f"kv: {error}; heads of {arch.family} have {a.head_dim} features of keys and "
                f"{a.v_head_dim} of values; {kv} does not fit them"
            ) from None


def check_past(
    arch: Arch, past: object, batch: int, steps: int, dtype: type, kv: KV | None = None
) -> None:
    """Raise where `past` is neither None nor a Past that so many rows and tokens can follow.

    `kv`: how the run keeps keys and values.
    """
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
    if past.length and past.kv != kv:
        raise NumsimError(
            f"run: past must come from runs that keep keys and values alike; got kv {past.kv!r:.90}"
            f" before and {kv!r:.90} now; start with a new Past()"
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
