"""Run a network: the float64 reference, or an emulation by recipe."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError, near_names
from numsim.kernels.gemm_fma import gemm_fma, pack_b
from numsim.models.arch import Arch, gemm_names
from numsim.models.blocks import Array, Context, Gemm, block, norm, rotary_tables
from numsim.models.recipe import Recipe, Rule
from numsim.quant import Quant, as_quant, quantize
from numsim.targets import matmul

RAW = Quant("float32", granularity="none")  # an operand that is not quantised


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Results of one run, float64 for the reference and float32 for an emulation."""

    logits: Array  # [B, T, vocab]
    hidden_states: tuple[Array, ...]  # layers + 1 of [B, T, H]; the last is after the final norm
    taps: dict[str, Array]


@dataclass(slots=True, eq=False)
class OperandCache:
    """Weights converted, packed or quantised, kept until `limit_bytes`; the oldest go first."""

    limit_bytes: int
    used_bytes: int = 0
    items: OrderedDict[object, tuple[Any, int]] = field(default_factory=OrderedDict)

    def get(self, key: object, size: int, make: Callable[[], Any]) -> Any:
        """Return what `make` returned for `key`, counted as `size` bytes."""
        if key in self.items:
            self.items.move_to_end(key)
            return self.items[key][0]
        value = make()
        self.items[key] = (value, size)
        self.used_bytes += size
        while self.used_bytes > self.limit_bytes and len(self.items) > 1:
            _, (_, freed) = self.items.popitem(last=False)
            self.used_bytes -= freed
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A network and its weights as stored; made by ``load_model``.

    Names of matrix products: ``layers.{i}.q_proj k_proj v_proj qk pv o_proj gate_proj up_proj
    down_proj`` and ``lm_head``.
    """

    arch: Arch
    tensors: Mapping[str, Array]  # our name -> as stored, matrices [out, in]
    name: str
    cache: OperandCache

    def gemm_names(self) -> tuple[str, ...]:
        """Return the names of all matrix products, in the order they run."""
        return gemm_names(self.arch)

    def linear_names(self) -> tuple[str, ...]:
        """Return the names of the block linears: products with a stored matrix, less the head."""
        return tuple(
            n for n in self.gemm_names() if n != "lm_head" and f"{n}.weight" in self.tensors
        )

    def run(
        self,
        tokens: ArrayLike,
        recipe: Recipe | None = None,
        *,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        decoder_tokens: ArrayLike | None = None,
        taps: Iterable[str] = (),
    ) -> Run:
        """Compute logits and hidden states for whole sequences.

        Parameters
        ----------
        tokens : int array [T] or [B, T]
            Token ids; positions count from 0.
        recipe : Recipe, optional
            None: everything in float64. Else float32 between the products, which run as it says.
        attention_mask : 0/1 array [B, T], optional
            1 = keep. Positions still count from 0, as in transformers; a padding token that sees
            no key gets no attention output.
        token_type_ids, decoder_tokens : optional
            For families that have them.
        taps : globs
            Tensors to keep: ``<product>.in`` [B, T, K], ``<product>.out`` [B, T, N] (before the
            bias), for ``qk`` and ``pv`` [B, key heads, queries, ...] also ``.operand`` (the right
            side [..., K, N]); ``layers.{i}.attn.out`` and ``layers.{i}.mlp.out`` [B, T, H].

        Returns
        -------
        Run
            Logits [B, T, vocab], layers + 1 hidden states [B, T, H] (last: after the final norm),
            taps.

        Raises
        ------
        NumsimError
            Wrong tokens, mask, tap or recipe.

        Examples
        --------
        >>> from numsim.data import bundled_model_dir
        >>> from numsim.models import load_model
        >>> run = load_model(bundled_model_dir()).run([0, 17, 256], taps=["layers.4.down_proj.in"])
        >>> run.logits.shape, run.taps["layers.4.down_proj.in"].shape
        ((1, 3, 2048), (1, 3, 512))
        """
        for what, value in (("token_type_ids", token_type_ids), ("decoder_tokens", decoder_tokens)):
            if value is not None:
                raise NumsimError(
                    f"run: {what} must be left out for {self.arch.family}, which has none; "
                    f"got an array of shape {np.shape(value)}"
                )
        ids = self._ids(tokens)
        keep = _mask(attention_mask, ids.shape)
        kept: dict[str, Array] = {}
        wanted = self._tap_names(taps)

        def keep_tap(name: str, value: Array) -> None:
            if name in wanted:
                kept[name] = value

        gemm = tapped(make_gemm(self, recipe), keep_tap)
        dtype = np.float64 if recipe is None else np.float32
        cos, sin = rotary_tables(self.arch, ids.shape[1])
        last = np.arange(1, ids.shape[1] + 1)
        c = Context(
            self.arch, dtype, gemm, lambda n: self._weight(n, dtype), cos, sin, last, keep, keep_tap
        )
        x = np.asarray(self.tensors["embed.weight"][ids], dtype)  # [B, T, H]
        states = [x]
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # results, not accidents
            for i in range(self.arch.layers):
                x = block(f"layers.{i}", x, c)  # [B, T, H]
                states.append(x)
            x = states[-1] = norm("final_norm", x, c)  # [B, T, H]
            logits = gemm("lm_head", x, "lm_head.weight")  # [B, T, vocab]
        return Run(logits, tuple(states), kept)

    def generate(
        self, tokens: ArrayLike, recipe: Recipe | None = None, *, max_new_tokens: int
    ) -> NDArray[np.int64]:
        """Continue greedily: the token of the largest logit, the lowest id among equals.

        Parameters
        ----------
        tokens : int array [T] or [B, T]
            Prompt.
        recipe : Recipe, optional
            As in `run`.
        max_new_tokens : int
            How many tokens to add; an end-of-text token does not stop it.

        Returns
        -------
        int64 array [T + max_new_tokens] or [B, T + max_new_tokens]

        Raises
        ------
        NumsimError
            Wrong tokens or recipe, or a negative `max_new_tokens`.
        """
        if max_new_tokens < 0:
            raise NumsimError(
                f"generate: max_new_tokens must be 0 or more; got {max_new_tokens}; give a count"
            )
        ids = self._ids(tokens)
        for _ in range(max_new_tokens):
            best = np.argmax(self.run(ids, recipe).logits[:, -1], axis=-1)  # [B]
            ids = np.concatenate([ids, best[:, None]], axis=1)
        return ids[0] if np.ndim(tokens) == 1 else ids

    def gemm(
        self, name: str, x: Array, recipe: Recipe | None = None, *, operand: Array | None = None
    ) -> Array:
        """Run one matrix product alone, on given inputs: the local error of a recipe.

        Parameters
        ----------
        name : str
            As in `gemm_names`.
        x : array [..., M, K]
            Left operand, converted to float64 (reference) or float32.
        recipe : Recipe, optional
            As in `run`.
        operand : array [..., K, N]
            Right operand of ``qk`` and ``pv``; other products have their stored matrix.

        Returns
        -------
        array [..., M, N], before any bias

        Raises
        ------
        NumsimError
            No such product, or an operand missing or not wanted.
        """
        if name not in self.gemm_names():
            raise NumsimError(
                f"gemm: name must be a matrix product of the model; got {name!r}"
                f"{near_names(name, self.gemm_names())}; see gemm_names()"
            )
        stored = f"{name}.weight"
        if (operand is None) != (stored in self.tensors):
            raise NumsimError(
                f"gemm: operand must be given for qk and pv and for them only; got "
                f"{'none' if operand is None else 'one'} for {name}; "
                f"{'give' if operand is None else 'leave out'} operand"
            )
        dtype = np.float64 if recipe is None else np.float32
        x = np.asarray(x, dtype)
        depth = self.tensors[stored].shape[1] if operand is None else np.shape(operand)[-2]
        if x.ndim < 2 or x.shape[-1] != depth:
            raise NumsimError(
                f"gemm: x must be [..., M, K], {depth} elements a row for {name}; got "
                f"{list(x.shape)}; pass what a tap {name}.in holds"
            )
        if operand is not None and x.shape[:-2] != np.shape(operand)[:-2]:
            raise NumsimError(
                f"gemm: x and operand must agree in their leading dimensions; got "
                f"{list(x.shape)} and {list(np.shape(operand))}; pass what the taps hold"
            )
        right = stored if operand is None else np.asarray(operand, dtype)
        return make_gemm(self, recipe)(name, x, right)

    def _ids(self, tokens: ArrayLike) -> NDArray[np.int64]:
        ids = np.asarray(tokens)
        if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or not ids.size:
            raise NumsimError(
                f"run: tokens must be a non-empty integer array [T] or [B, T]; got {ids.dtype} "
                f"{list(ids.shape)}; encode the text with the tokenizer of the model"
            )
        outside = (ids < 0) | (ids >= self.arch.vocab)
        if outside.any():
            raise NumsimError(
                f"run: tokens must be below the vocabulary of {self.arch.vocab}; got "
                f"{ids[outside][0]} ({np.count_nonzero(outside)} such); use the model's tokenizer"
            )
        return np.atleast_2d(ids).astype(np.int64)

    def _tap_names(self, taps: Iterable[str]) -> set[str]:
        globs = (taps,) if isinstance(taps, str) else tuple(taps)
        if not globs:
            return set()
        known = [f"{name}.{end}" for name in self.gemm_names() for end in ("in", "out")]
        known += [
            f"{name}.operand" for name in self.gemm_names() if f"{name}.weight" not in self.tensors
        ]
        known += [f"layers.{i}.{s}.out" for i in range(self.arch.layers) for s in ("attn", "mlp")]
        names: set[str] = set()
        for glob in globs:
            found = [name for name in known if fnmatchcase(name, glob)]
            if not found:
                raise NumsimError(
                    f"run: every tap must match a tensor; {glob!r} matches none"
                    f"{near_names(glob, known)}; names end in .in, .out or .operand"
                )
            names.update(found)
        return names

    def _weight(self, name: str, dtype: type) -> Array:
        tensor = self.tensors[name]
        copy: Array = self.cache.get(
            (name, dtype), tensor.size * 8, lambda: np.array(tensor, dtype)
        )
        return copy


def _mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    values = np.atleast_2d(np.asarray(mask))
    if values.shape != shape or not np.isin(values, (0, 1)).all():
        raise NumsimError(
            f"run: attention_mask must hold 0 or 1 for each token {list(shape)}; got shape "
            f"{list(values.shape)}, values {np.unique(values)[:4]}; 1 keeps a token"
        )
    return values.astype(np.bool_)


def tapped(gemm: Gemm, keep_tap: Callable[[str, Array], None]) -> Gemm:
    """Return `gemm` with its operands and results offered to `keep_tap`."""

    def run(name: str, x: Array, operand: str | Array) -> Array:
        keep_tap(f"{name}.in", x)
        if not isinstance(operand, str):
            keep_tap(f"{name}.operand", operand)
        y = gemm(name, x, operand)
        keep_tap(f"{name}.out", y)
        return y

    return run


def make_gemm(model: Model, recipe: Recipe | None) -> Gemm:
    """Return the matrix product of a run: float64, or as the rules of `recipe` say."""
    rules = None if recipe is None else recipe.check(model.gemm_names())
    plain_names = {name for name, rule in (rules or {}).items() if rule.is_plain}
    recent: dict[Quant, tuple[Array, Any]] = {}  # q, k, v and gate, up share their input

    def plain(x: Array, operand: str | Array) -> Array:
        """Chain of fused multiply-adds in the dtype of `x`."""
        if isinstance(operand, str):
            tensor = model.tensors[operand]
            packed = model.cache.get(
                (operand, x.dtype.type, "packed"),
                tensor.size * x.itemsize,
                lambda: pack_b(tensor.astype(x.dtype).T[None]),
            )
            y = gemm_fma(x.reshape(1, -1, x.shape[-1]), packed)
            return y.reshape(*x.shape[:-1], -1)
        y = gemm_fma(x.reshape(-1, *x.shape[-2:]), operand.reshape(-1, *operand.shape[-2:]))
        return y.reshape(*x.shape[:-1], -1)

    def emulated(rule: Rule, x: Array, operand: str | Array) -> Array:
        left, right = as_quant(rule.activations or RAW), as_quant(rule.weights or RAW)
        if isinstance(operand, str):
            tensor = model.tensors[operand]
            x_rows = x.reshape(-1, x.shape[-1])  # [B*T, K]: one scale for the whole batch
            b = model.cache.get(
                (operand, right),
                tensor.size * 8,
                lambda: quantize(tensor.astype(np.float32), right, axis=-1).T,
            )
        else:
            x_rows = x
            b = quantize(operand, right, axis=-2)
        if left not in recent or recent[left][0] is not x:
            recent.clear()
            recent[left] = (x, quantize(x_rows, left, axis=-1))
        y = matmul(recent[left][1], b, target=rule.target, out_format=rule.out_format)
        return np.asarray(y, np.float32).reshape(*x.shape[:-1], -1)

    def gemm(name: str, x: Array, operand: str | Array) -> Array:
        if rules is None or name in plain_names:
            return plain(x, operand)
        return emulated(rules[name], x, operand)

    return gemm
