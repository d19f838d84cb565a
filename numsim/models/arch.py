"""What a network is: sizes and switches, read from the ``config.json`` of a checkpoint.

Every key of a config is read, fixed to one value, or ignored by name; anything else is an error,
since a key that is not understood may change what the network computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from numsim.errors import NumsimError, UnsupportedError, near_names

REQUIRED = object()
LAYER_GEMMS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "qk",  # queries times keys
    "pv",  # attention weights times values
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


@dataclass(frozen=True, slots=True)
class Arch:
    """Sizes and switches of one network; its tensors and GEMMs follow from them alone."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norm_eps: float
    rope_theta: float
    activation: Literal["silu"] = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """A config key that sets a field: its name, its type, and the default the family has."""

    name: str
    kind: type
    default: object = REQUIRED  # a function gets the fields read so far

    def read(self, config: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
        """Return the checked value; an absent key and null mean the default."""
        value: Any = config.get(self.name)
        if value is None:
            if self.default is REQUIRED:
                raise NumsimError(
                    f"config.json: {self.name} is required; it is absent or null; "
                    "take the config.json that came with the weights"
                )
            return self.default(fields) if callable(self.default) else self.default
        if type(value) is not self.kind and (self.kind, type(value)) != (float, int):
            raise _wrong(self.name, f"of type {self.kind.__name__}", value)
        if self.kind in (int, float) and not 0 < value < 2**31:
            raise _wrong(self.name, "above 0 and below 2**31", value)
        return self.kind(value)


@dataclass(frozen=True, slots=True)
class Family:
    """How checkpoints of one ``model_type`` spell an Arch and name its tensors."""

    architectures: tuple[str, ...]
    keys: Mapping[str, Key]  # field of Arch -> config key, in reading order
    fixed: Mapping[str, tuple[object, ...]]  # config key -> the only values we compute
    ignored: frozenset[str]  # config keys that change no result
    names: Mapping[str, str]  # our tensor name -> theirs, {i} = layer
    ignored_tensors: tuple[str, ...]  # globs of stored tensors that no computation needs
    finish: Callable[[dict[str, Any]], dict[str, Any]]  # last step: fields read -> fields of Arch


def _wrong(key: str, rule: str, value: object) -> NumsimError:
    return NumsimError(
        f"config.json: {key} must be {rule}; got {value!r}; "
        "take the config.json that came with the weights"
    )


def read_arch(config: Mapping[str, Any], family: Family) -> Arch:
    """Turn a parsed ``config.json`` into an Arch.

    Raises
    ------
    NumsimError
        A key is missing, of the wrong type, or known to no list of the family.
    UnsupportedError
        A key asks for something that is not implemented.
    """
    classes = config.get("architectures") or []
    if classes and not set(classes) & set(family.architectures):
        raise UnsupportedError(
            f"config.json: architectures must name one of {', '.join(family.architectures)}; "
            f"got {classes}; load the language model, not another head"
        )
    for key, values in family.fixed.items():
        if key in config and config[key] not in values:
            raise UnsupportedError(
                f"config.json: {key} must be {' or '.join(map(repr, values))} for "
                f"{config['model_type']}; got {config[key]!r}; other values are not implemented"
            )
    spelt = {key.name for key in family.keys.values()}
    known = spelt | set(family.fixed) | family.ignored | COMMON_KEYS
    unknown = sorted(set(config) - known)
    if unknown:
        hints = "".join(near_names(key, spelt, limit=1) for key in unknown[:1])
        raise NumsimError(
            f"config.json: every key must be one that {config['model_type']} is known to have; "
            f"unknown: {', '.join(unknown)}{hints}; remove a key only if it changes no result"
        )
    fields: dict[str, Any] = {"family": config["model_type"]}
    for field, entry in family.keys.items():
        fields[field] = entry.read(config, fields)
    fields["rope_theta"] = read_rope(config)
    return Arch(**family.finish(fields))


def read_rope(config: Mapping[str, Any]) -> float:
    """Return the base of the rotary frequencies, from either spelling of the config.

    Newer configs hold ``rope_parameters: {rope_theta, rope_type}``; older ones ``rope_theta``
    beside ``rope_scaling: {type | rope_type, ...}`` or null.
    """
    seen = {"rope_theta": config["rope_theta"]} if config.get("rope_theta") is not None else {}
    for group in ("rope_parameters", "rope_scaling"):
        inner = config.get(group)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise _wrong(group, "a table or null", inner)
        kinds = {inner[key] for key in ("rope_type", "type") if key in inner}
        if kinds - {"default"}:
            raise UnsupportedError(
                f"config.json: {group} must have rope_type 'default'; "
                f"got {', '.join(sorted(map(str, kinds)))}; other types are not implemented"
            )
        unknown = sorted(set(inner) - {"rope_type", "type", "rope_theta"})
        if unknown:
            raise NumsimError(
                f"config.json: {group} of type 'default' has only rope_theta; "
                f"unknown: {', '.join(unknown)}; take the config.json that came with the weights"
            )
        theta = inner.get("rope_theta", seen.get("rope_theta"))
        if theta != seen.setdefault("rope_theta", theta):
            raise _wrong(f"{group}.rope_theta", f"{seen['rope_theta']!r} as beside it", theta)
    return float(Key("rope_theta", float, 10000.0).read(seen, {}))


def tensor_shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Return the tensors the network has, by our names, with their shapes ([out, in] matrices)."""
    h, q, kv = arch.hidden, arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (arch.vocab, h)}
    linears = {
        "q_proj": (q, h, arch.qkv_bias),
        "k_proj": (kv, h, arch.qkv_bias),
        "v_proj": (kv, h, arch.qkv_bias),
        "o_proj": (h, q, arch.o_bias),
        "gate_proj": (arch.intermediate, h, arch.mlp_bias),
        "up_proj": (arch.intermediate, h, arch.mlp_bias),
        "down_proj": (h, arch.intermediate, arch.mlp_bias),
    }
    for i in range(arch.layers):
        shapes[f"layers.{i}.attn_norm.weight"] = (h,)
        shapes[f"layers.{i}.mlp_norm.weight"] = (h,)
        for name, (rows, columns, biased) in linears.items():
            shapes[f"layers.{i}.{name}.weight"] = (rows, columns)
            if biased:
                shapes[f"layers.{i}.{name}.bias"] = (rows,)
    shapes["final_norm.weight"] = (h,)
    if not arch.tied:
        shapes["lm_head.weight"] = (arch.vocab, h)
    return shapes


def gemm_names(arch: Arch) -> tuple[str, ...]:
    """Return the names of all matrix products of the network, in the order they run."""
    return *(f"layers.{i}.{gemm}" for i in range(arch.layers) for gemm in LAYER_GEMMS), "lm_head"


# Keys any config may have that change no result of a forward pass.
COMMON_KEYS = frozenset(
    """
    architectures model_type transformers_version dtype torch_dtype _name_or_path name_or_path
    _attn_implementation_autoset auto_map unsloth_version unsloth_fixed task_specific_params
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class
    use_cache return_dict return_dict_in_generate output_hidden_states output_attentions
    output_scores torchscript id2label label2id problem_type finetuning_task prefix
    initializer_range max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens
    exponential_decay_length_penalty begin_suppress_tokens use_bfloat16 tf_legacy_loss
    """.split()  # noqa: SIM905
)
