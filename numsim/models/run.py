"""Run a network: the float64 reference, or an emulation by recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numsim.errors import NumsimError
from numsim.float_state import known_floats
from numsim.models.arch import Arch
from numsim.models.checks import (
    check_cache,
    check_chunks,
    check_past,
    check_positions,
    decoder_ids,
    first_input,
    padding_mask,
    product_inputs,
    segment_ids,
    token_positions,
)
from numsim.models.context import Past
from numsim.models.forward import Inputs, forward
from numsim.models.gemm import Array, Ints, fitting_rules, make_gemm, packed_bytes, tapped
from numsim.models.generate import greedy
from numsim.models.memory import OperandCache, check_blocks, rows_of
from numsim.models.packed.recipe import check_stored, declared_recipe, stored_otherwise
from numsim.models.places import Place
from numsim.models.products import gemm_names
from numsim.models.recipe import Recipe
from numsim.models.rule import Rule
from numsim.models.score import token_losses
from numsim.models.taps import check_tiles, lowered_operators, wanted_taps
from numsim.models.weights import Stored, Weights, shape_of, wide
from numsim.quant import QTensor


@known_floats
@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Results of one run, float64 for the reference and float32 for an emulation."""

    # [B, T, vocab], of the next token or of a masked one; [B, labels] of a classifier; [B, T, 0]
    # without a head
    logits: Array
    # layers + 1 of [B, T, H]; the last is after the final norm, of a trunk with a `project_out`
    # after that [B, T, embed_dim]
    hidden_states: tuple[Array, ...]
    taps: dict[str, Array]
    encoder_hidden_states: tuple[Array, ...] = ()  # of an encoder-decoder, likewise
    pooled: Array | None = None  # [B, H], of an encoder with a pooler
    recipe: Recipe | None = None  # one rule for each product, as it ran; to_toml, digest

    def __repr__(self) -> str:
        kind = "float64 reference" if self.recipe is None else "emulation"
        states, last = len(self.hidden_states), list(self.hidden_states[-1].shape)
        logits = list(self.logits.shape)
        return f"Run({kind}, logits {logits}, {states} hidden states {last}, {len(self.taps)} taps)"


@known_floats
@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A network and its weights as stored; made by ``load_model``.

    Names of matrix products, in each layer ``layers.{i}.`` (encoder-decoder:
    ``encoder.layers.{i}.``, ``decoder.layers.{i}.``): ``q_proj k_proj v_proj`` (latent attention:
    ``q_a_proj q_b_proj kv_a_proj kv_b_proj``), ``qk pv o_proj``, the same with ``cross_`` before
    them, ``gate_proj up_proj down_proj`` (plain MLP: ``up_proj down_proj``), with experts
    ``router``, ``experts.{e}.gate_proj`` ..., ``shared.gate_proj`` ..., ``shared_gate``; around the
    layers ``project_in project_out pooler transform classifier lm_head``; convolutions, whose K
    is channels times kernel in this order, ``patches`` of pictures and ``encoder.conv1
    encoder.conv2`` of spectra.
    """

    arch: Arch
    tensors: Mapping[str, Stored]  # our name -> as stored, matrices [out, in]; packed: QTensor
    name: str
    cache: OperandCache
    places: Mapping[str, Place] = field(default_factory=dict)  # our name -> where it was stored
    unused_keys: tuple[str, ...] = ()  # of config.json: only other software reads them
    ignored_keys: tuple[str, ...] = ()  # of config.json: as `ignore_keys` asked
    folder: Path | None = None  # that it was read from
    left_out: tuple[str, ...] = ()  # parts of the checkpoint beside its text model

    def __repr__(self) -> str:
        tied = self.arch.head and self.arch.tied  # one tensor by two names
        names = [n for n in self.tensors if not (tied and n == "lm_head.weight")]
        size = sum(math.prod(shape_of(self.tensors, name)) for name in names)
        return f"Model({self.name!r}, {len(self.tensors)} tensors, {size:,} parameters)"

    def gemm_names(self) -> tuple[str, ...]:
        """Return the names of all matrix products, in the order they run."""
        return gemm_names(self.arch)

    def linear_names(self) -> tuple[str, ...]:
        """Return the names of the block linears: ``*_proj``, the products of stored matrices.

        Routers, heads, poolers and projections of the embedding are not among them.
        """
        return tuple(n for n in self.gemm_names() if n.endswith("_proj"))

    def dequantised(self) -> Model:
        """Return the model with packed weights as float32 numbers, which a recipe rounds anew.

        Itself where nothing is packed. What is kept in memory is shared.
        """
        if not isinstance(self.tensors, Weights):
            return self
        return replace(self, tensors=replace(self.tensors, dequantise=True))

    def suited(self, recipe: Recipe | None) -> Model:
        """Return the model that a recipe runs on: itself, or `dequantised` where that is needed.

        Packed weights are used as stored where the recipe stores them so, or not at all.

        Raises
        ------
        NumsimError
            As `check`, but for weights that are stored in another way.
        """
        if recipe is None:
            return self
        check_tiles(lowered_operators(self.arch, recipe.ops), recipe.check(self.gemm_names()))
        check_cache(self.arch, recipe.kv)
        if not isinstance(self.tensors, Weights):
            return self
        rules = fitting_rules(recipe, self.gemm_names())
        return self if stored_otherwise(self.tensors, rules) is None else self.dequantised()

    def recipe(self, *, kv_cache: bool = False) -> Recipe | None:
        """Return the recipe that a packed checkpoint declares, its static scales included.

        Weights are as stored, activations are rounded as declared, products run on ``ideal.fp32``.

        Parameters
        ----------
        kv_cache : bool
            Round keys and values too, by the scheme that the checkpoint declares for its cache:
            the right operands of ``qk`` and ``pv``, codes that meet the queries and the weights
            in the unit, each layer by its own scale, the newest token's too. `Recipe.kv` is no
            place for them: it has one rule for all layers, and what it keeps is widened before
            the products.

        Returns
        -------
        Recipe or None
            None where nothing is packed or activations stay wide.

        Raises
        ------
        NumsimError
            `kv_cache` without a declared cache.
        UnsupportedError
            Declared activations that no `Quant` says.
        """
        if not isinstance(self.tensors, Weights):
            if kv_cache:
                raise NumsimError(
                    f"recipe: kv_cache=True is for a packed checkpoint that declares a cache; "
                    f"{self.name} is not packed; leave it out"
                )
            return None
        return declared_recipe(self.tensors, self.gemm_names(), cache=kv_cache)

    def run(
        self,
        tokens: ArrayLike | None = None,
        recipe: Recipe | None = None,
        *,
        pixels: ArrayLike | None = None,
        features: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        decoder_tokens: ArrayLike | None = None,
        past: Past | None = None,
        taps: Iterable[str] = (),
        tell: Callable[[str, int], object] = lambda layer, layers: None,
    ) -> Run:
        """Compute logits and hidden states.

        A row of a batch, a token after its `past`, and any number of threads give the same bits
        as the whole sequence alone, as long as no scale is shared between tokens, and but for two
        properties of ``pv``, whose K is the keys. These share a scale:

        - ``per_tensor`` activations, keys and values: one over all rows and tokens of the call;
        - NVFP4 and other formats with two levels of scale: the outer one, likewise;
        - the right operand of ``pv`` (the values) with ``per_token``, ``per_channel`` or
          ``per_block`` scales: they run along K, which is the keys, so a token changes how
          earlier ones are stored and even what they give (prefill is then not causal); use
          granularity ``none`` there where that matters;
        - blocks that span rows, ``block=(rows, columns)``.

        The two of ``pv``, as in hardware that computes whole matrices:

        - a value that is NaN or Inf: masked keys multiply too, by 0, so the NaN of it reaches the
          rows that do not see it;
        - ``split_k``: where K is split depends on the number of keys.

        Parameters
        ----------
        tokens : int array [T] or [B, T]
            Token ids; positions count from 0, or from the length of `past`.
        recipe : Recipe, optional
            None: everything in float64. Else float32 between the products, which run as it says.
        pixels : array [channels, height, width] or [B, channels, height, width]
            In place of `tokens`, of a network that reads pictures (vit), as its processor makes
            them.
        features : array [bins, times] or [B, bins, times]
            In place of `tokens`, of one that reads speech (whisper): log-mel spectra.
        attention_mask : 0/1 array [B, T], optional
            1 = keep. Positions still count from 0 (OPT: kept tokens only), as in transformers; a
            padding token that sees no key gets no attention output.
        token_type_ids : int array [B, T], optional
            Segments, for families that have them; default 0.
        decoder_tokens : int array [T'] or [B, T']
            Required by encoder-decoders; logits and hidden states are the decoder's.
        past : Past, optional
            Keys and values of earlier calls; extended by this one. An encoder-decoder reads
            `tokens` in the first call only. Not for encoders, nor beyond the length from which
            ``dynamic`` rotary scaling turns the kept keys anew: both are errors.
        taps : globs
            Tensors to keep, by name; an expert that no token chose leaves none:

            - ``<product>.in`` [B, T, K]; ``<product>.out`` [B, T, N], before the bias;
              ``<product>.biased``, after it; of ``qk`` and ``pv`` [B, key heads, queries, ...] and
              ``.operand``, the right side [..., K, N];
            - ``embed.out`` (encoder-decoder: ``encoder.embed.out``), ``layers.{i}.attn.out``,
              ``layers.{i}.cross.out``, ``layers.{i}.mlp.out``, ``layers.{i}.out`` and
              ``<norm>.out``, for example ``layers.{i}.attn_norm.out``, ``final_norm.out``
              [B, T, H];
            - ``layers.{i}.q_rotary.out``, ``layers.{i}.k_rotary.out`` [B, heads, T, D], positions
              applied; ``layers.{i}.softmax.out``, ``layers.{i}.cross_softmax.out`` [B, heads, T,
              keys], the attention weights;
            - ``layers.{i}.act.out`` [B, T, I], after the nonlinearity and before the gated product;
              of experts ``layers.{i}.experts.{e}.act.out``, ``layers.{i}.shared.act.out``;
            - ``layers.{i}.router.experts`` and ``.weights`` [B T, k];
              ``layers.{i}.experts.{e}.rows``, which of the B T tokens an expert's tensors hold;
            - ``logits`` [B, T, vocab], or [B, labels], ``pooled`` [B, H].
        tell : callable
            Is told of each layer that has run, by its name, and how many its stack has.

        Returns
        -------
        Run
            Logits [B, T, vocab], layers + 1 hidden states [B, T, H] (last: after the final norm,
            of a trunk with a ``project_out`` its output, as OPTModel returns it), taps. Of a
            classifier logits [B, labels]: of the pooler's output, or of the last token that is not
            ``pad_token_id`` (without one, of the last that `attention_mask` keeps).

        Raises
        ------
        NumsimError
            Wrong tokens, mask, tap or recipe, a memory limit below the largest block, or more
            tokens than positions where the family has a learned table of them (``arch.positions``:
            gpt2, opt, bert, bart). Rotary and relative positions have no such end, whatever
            max_position_embeddings says; rotary angles are refused from 2**20 radians on.

        Examples
        --------
        >>> from numsim.data import bundled_model_dir
        >>> from numsim.models import load_model
        >>> run = load_model(bundled_model_dir()).run([0, 17, 256], taps=["layers.4.down_proj.in"])
        >>> run.logits.shape, run.taps["layers.4.down_proj.in"].shape
        ((1, 3, 2048), (1, 3, 512))
        """
        a = self.arch
        dtype = np.float64 if recipe is None else np.float32
        read = {"tokens": tokens, "pixels": pixels, "features": features}
        ids, numbers = first_input(a, read, dtype)
        keep = padding_mask(a, attention_mask, ids.shape)
        types = segment_ids(a, token_type_ids, ids.shape)
        target = decoder_ids(a, decoder_tokens, len(ids))
        steps = (ids if target is None else target).shape[1]
        rules, kv = self.check(recipe), None if recipe is None else recipe.kv
        check_past(a, past, len(ids), steps, dtype, kv)
        check_positions(a, (0 if past is None else past.length) + steps)
        check_positions(a, ids.shape[1] if target is not None else 0, stack=0)
        check_chunks(a, keep)
        own, past = past, None if past is None else past.apart()
        kept: dict[str, Array] = {}
        wanted = wanted_taps(a, taps)

        def keep_tap(name: str, value: Array) -> None:
            if name in wanted:
                kept[name] = value

        seed = 0 if recipe is None else recipe.seed
        gemm = tapped(make_gemm(self.tensors, self.cache, rules, seed), keep_tap)
        common: dict[str, Any] = {
            "dtype": dtype,
            "gemm": gemm,
            "weight": lambda name: self._weight(name, dtype),
            "rows": lambda name, ids: self._rows(name, ids, dtype),
            "keep_tap": keep_tap,
            "wanted": wanted,
            "tell": tell,
        }
        if recipe is not None:
            common |= {"op": lowered_operators(a, recipe.ops).get, "kv": kv}
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # results, not accidents
            given = Inputs(ids, keep, types, target, numbers)
            states, encoded, (logits, pooled) = forward(a, common, given, past)
        keep_tap("logits", logits)
        if pooled is not None:
            keep_tap("pooled", pooled)
        if own is not None and past is not None:  # only a run that ends leaves its keys
            own.update(replace(past, kv=kv))
        resolved = None if recipe is None else replace(recipe, rules=tuple((rules or {}).items()))
        return Run(logits, states, kept, encoded, pooled, resolved)

    def generate(
        self,
        tokens: ArrayLike | None = None,
        recipe: Recipe | None = None,
        *,
        max_new_tokens: int,
        features: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
    ) -> NDArray[np.int64]:
        """Continue greedily: the token of the largest logit, the lowest id among equals.

        Tokens are decoded one at a time after the prompt, keys and values kept: the same bits as
        a run over everything, with the exceptions that `run` lists. Rotary scaling of kind
        ``dynamic`` turns all earlier keys anew beyond its length, so there each step runs over
        everything.

        Parameters
        ----------
        tokens : int array [T] or [B, T]
            Prompt; of an encoder-decoder the input of the encoder.
        recipe : Recipe, optional
            As in `run`.
        max_new_tokens : int
            How many tokens to add, at most 2**20; an end-of-text token does not stop it.
        features : array [bins, times] or [B, bins, times]
            In place of `tokens`, as in `run`; no token is suppressed.
        attention_mask : 0/1 array [B, T], optional
            1 = keep. Prompts are padded on the left (an encoder's input on either side) and give
            the bits they give without padding: positions count kept tokens only, and rows of one
            length run together, apart from the others.

        Returns
        -------
        int64 array [T + max_new_tokens] or [B, T + max_new_tokens]
            Padding stays where it is. Of an encoder-decoder the decoder's tokens, the start token
            first.

        Raises
        ------
        NumsimError
            Wrong tokens, mask, recipe or `max_new_tokens`, or more tokens than a learned table
            has positions (gpt2, opt; other families have none, see `run`).
        UnsupportedError
            The model has no head that predicts the next token.
        """
        return greedy(self.arch, self.run, tokens, recipe, max_new_tokens, attention_mask, features)

    def nll(
        self,
        tokens: ArrayLike | None = None,
        recipe: Recipe | None = None,
        *,
        decoder_tokens: ArrayLike | None = None,
        features: ArrayLike | None = None,
        batch: int = 8,
    ) -> NDArray[np.float64]:
        """Return the negative log-likelihood of each next token, in nats.

        Rows of two recipes pair token by token: see `metrics.perplexity` and
        `metrics.paired_difference`. Windows of a text: `TextTools.windows`.

        Parameters
        ----------
        tokens : int array [T] or [B, T]
            The first token of a row is not scored; of an encoder-decoder the encoder's input.
        recipe : Recipe, optional
            As in `run`.
        decoder_tokens : int array [T'] or [B, T']
            Required by encoder-decoders; what is scored.
        features : array [bins, times] or [B, bins, times]
            In place of `tokens`, as in `run`.
        batch : int
            How many rows run together; ``per_tensor`` activations take one scale over them.

        Returns
        -------
        float64 array [B, T - 1]

        Raises
        ------
        NumsimError
            Wrong tokens, recipe or `batch`, a row of one token, or more tokens than positions (as
            in `run`).
        UnsupportedError
            The model has no head that predicts the next token.

        Examples
        --------
        >>> from numsim.data import bundled_model_dir, bundled_text
        >>> from numsim.metrics import paired_difference
        >>> from numsim.models import load_model, load_text_tools
        >>> model = load_model(bundled_model_dir())
        >>> tokens = load_text_tools(bundled_model_dir()).windows(bundled_text()[:400], 32)
        >>> reference = model.nll(tokens)
        >>> case = model.nll(tokens, Recipe.uniform("int4", target="ideal.int"))
        >>> reference.shape
        (4, 31)
        >>> mean, stderr = paired_difference(reference, case)
        >>> mean > 3 * stderr
        True
        """
        return token_losses(self.arch, self.run, tokens, recipe, decoder_tokens, features, batch)

    def gemm(
        self,
        name: str,
        x: Array,
        recipe: Recipe | None = None,
        *,
        operand: Array | None = None,
        positions: ArrayLike | None = None,
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
        positions : int array [T], optional
            Positions of the tokens of x, which stochastic rounding draws for (see `Recipe`):
            M = T, or for ``qk`` and ``pv`` query heads per key head times T. Default: from 0 on,
            as in a run without `past`; of experts give ``positions[rows]``.

        Returns
        -------
        array [..., M, N], before any bias

        Raises
        ------
        NumsimError
            No such product, inputs that are masked or no real numbers, an operand missing or not
            wanted, or positions that do not fit x.
        """
        return self.product(name, x, recipe, operand=operand, positions=positions)[0]

    def product(
        self,
        name: str,
        x: Array,
        recipe: Recipe | None = None,
        *,
        operand: Array | None = None,
        positions: ArrayLike | None = None,
    ) -> tuple[Array, QTensor | None]:
        """Do what `gemm` does; return the left operand too, as the recipe stored it, if it did.

        Raises
        ------
        NumsimError
            As `gemm`.
        """
        dtype = np.float64 if recipe is None else np.float32
        left, right = product_inputs(self.arch, self.tensors, name, x, operand, dtype)
        rules = None if recipe is None else self._rules(recipe, name)
        grouped = operand is not None and left.ndim > 2
        heads = self.arch.heads // self.arch.kv_heads if grouped else 1
        ids = token_positions(positions, left.shape[-2], heads)
        seed = 0 if recipe is None else recipe.seed
        stored: list[QTensor] = []
        run = make_gemm(self.tensors, self.cache, rules, seed, stored.append)
        return run(name, left, right, ids), stored[0] if stored else None

    def check(self, recipe: Recipe | None) -> Mapping[str, Rule] | None:
        """Return the rule of every product; what a run would refuse is refused without work.

        Raises
        ------
        NumsimError
            A recipe that does not fit the model, or a memory limit below the largest block.
        """
        rules = None if recipe is None else self._rules(recipe)
        if self.cache.limit_bytes is not None:
            needs = packed_bytes(self.tensors, rules, self.gemm_names())
            check_blocks(needs, self.cache.limit_bytes)
        return rules

    def _rules(self, recipe: Recipe, only: str | None = None) -> Mapping[str, Rule]:
        if not isinstance(recipe, Recipe):
            raise NumsimError(
                f"run: recipe is a Recipe or None; got {type(recipe).__name__}; "
                "Recipe.uniform('int8', target='ideal.int') makes one"
            )
        rules = fitting_rules(recipe, self.gemm_names())
        if only is not None:
            rules = {only: rules[only]}
        check_stored(self.tensors, rules)
        if only is None:
            check_tiles(lowered_operators(self.arch, recipe.ops), rules)
            check_cache(self.arch, recipe.kv)
        return rules

    def _rows(self, name: str, ids: Ints, dtype: type) -> Array:
        """Return rows of a table; cases of a sweep that has one batch read them once."""
        return self.cache.latest(
            (name, dtype, "rows"), ids,
            lambda: rows_of(wide(self.tensors[name]), ids).astype(dtype, copy=False),
        )  # fmt: skip

    def _weight(self, name: str, dtype: type) -> Array:
        copy: Array = self.cache.get(
            (name, dtype),
            lambda: math.prod(shape_of(self.tensors, name)) * 8,
            lambda: np.array(wide(self.tensors[name]), dtype),
        )
        return copy
