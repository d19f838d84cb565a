"""From the ``config.json`` of a checkpoint to an Arch.

Every key of a config is read, fixed to one value, or ignored by name; anything else is an error,
since a key that is not understood may change what the network computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numsim.errors import NumsimError, UnsupportedError, near_names
from numsim.kernels.vector_act import ACTIVATIONS
from numsim.models.arch import Arch, Rope
from numsim.models.rope import check_rope

REQUIRED = object()
REMEDY = "take the config.json that came with the weights"


@dataclass(frozen=True, slots=True)
class Key:
    """A config key that sets a field: its name, its type, and the default the family has."""

    name: str
    kind: type
    default: object = REQUIRED  # a function gets the fields read so far
    least: float = 1  # of an int; a float is above 0
    nullable: bool | Callable[[Mapping[str, Any]], object] = False
    # null means None even where the default is a value, or what a function of the fields says

    def read(self, config: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
        """Return the checked value; an absent key means the default.

        So does null where the default is none, off, or follows from other keys, not where it is
        a number or a word of the family, which nobody who writes null has said.
        """
        if self.nullable and self.name in config and config[self.name] is None:
            return self.nullable(fields) if callable(self.nullable) else None
        value: Any = config.get(self.name)
        if value is None:
            if self.default is REQUIRED:
                raise NumsimError(
                    f"config.json: {self.name} is required; it is absent or null; {REMEDY}"
                )
            if callable(self.default):
                return self.default(fields)
            if self.name in config and self.default is not None and self.default is not False:
                raise null(self.name, self.default)
            return self.default
        if type(value) is not self.kind and (self.kind, type(value)) != (float, int):
            raise wrong(self.name, f"of type {self.kind.__name__}", value)
        if self.kind is float and not 0 < value < 2**31:
            raise wrong(self.name, "above 0 and below 2**31", value)
        if self.kind is int and not self.least <= value < 2**31:
            low = "above 0" if self.least == 1 else f"{self.least} or more"
            raise wrong(self.name, f"{low} and below 2**31", value)
        return self.kind(value)


class At(NamedTuple):
    """Where a tensor of ours is stored, {p} {i} {e} = prefix, layer, expert."""

    name: str
    turned: bool = False  # stored [in, out]
    part: int = 0  # which of
    parts: int = 1  # so many tensors stored as one, along the outputs
    by_head: bool = False  # the parts alternate head by head, else they follow each other


@dataclass(frozen=True, slots=True)
class Family:
    """How checkpoints of one ``model_type`` spell an Arch and name its tensors."""

    architectures: tuple[str, ...]
    keys: Mapping[str, Key]  # field of Arch (or of `finish`) -> config key, in reading order
    names: Mapping[str, str | At]  # our tensor or module -> theirs
    switches: Mapping[str, Any] = field(default_factory=dict)  # fields every checkpoint shares
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)  # key -> computed values
    ignored: str = ""  # config keys that change no result
    prefixes: tuple[str, ...] = ("model.", "")  # of stored names, the usual one first
    ignored_tensors: tuple[str, ...] = ()  # globs of stored tensors that no computation needs
    optional: tuple[str, ...] = ()  # fields of Arch that hold only where their tensors are stored
    older_names: Mapping[str, str] = field(default_factory=dict)  # ends of stored names -> today's
    gated_names: Mapping[str, str] = field(default_factory=dict)  # override `names` where gated
    rope: Mapping[str, object] | None = None  # defaults of the rotary keys; None: no rotary
    rope_keys: str = ""  # older keys that `rope_settings` knows
    windows: Callable[[Mapping[str, Any], int], bool] | None = None  # does a layer slide
    all_slide: bool = False  # where one slides; `layer_types` cannot say otherwise
    window_default: int | None = None
    window_switch: str = ""  # a key without which no layer slides
    finish: Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None


WIDEST = 2**16
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings")
WINDOW_KEYS = ("sliding_window", "layer_types")


def wrong(key: str, rule: str, value: object) -> NumsimError:
    """Return the error of a config value."""
    return NumsimError(f"config.json: {key} must be {rule}; got {value!r}; {REMEDY}")


def null(key: str, default: object) -> NumsimError:
    """Return the error of a null that would hide the default of a family."""
    return NumsimError(
        f"config.json: {key} must have a value; got null; write it, or drop the key to have "
        f"the default of the family, {default!r}"
    )


def read_arch(config: Mapping[str, Any], family: Family) -> Arch:
    """Turn a parsed ``config.json`` into an Arch.

    Raises
    ------
    NumsimError
        A key is missing, of the wrong type, or known to no list of the family; sizes contradict.
    UnsupportedError
        A key asks for something that is not implemented.
    """
    _check_keys(config, family)
    fields: dict[str, Any] = {"family": config["model_type"], **family.switches}
    for name, entry in family.keys.items():
        fields[name] = entry.read(config, fields)
    if family.finish is not None:
        fields = family.finish(fields, config)
    heads, hidden = fields["heads"], fields["hidden"]
    fields.setdefault("kv_heads", heads)
    if fields.get("head_dim") is None:
        fields["head_dim"] = _head_dim(hidden, heads)
    fields.setdefault("v_head_dim", fields["head_dim"])
    fields.setdefault("attn_scale", 1.0 / math.sqrt(fields["head_dim"]))
    if heads % fields["kv_heads"]:
        raise NumsimError(
            "config.json: num_attention_heads must be a multiple of num_key_value_heads; "
            f"got {heads} and {fields['kv_heads']}; {REMEDY}"
        )
    if fields["activation"] not in ACTIVATIONS:
        raise UnsupportedError(
            f"config.json: the activation must be one of {', '.join(ACTIVATIONS)}; "
            f"got {fields['activation']!r}{near_names(fields['activation'], ACTIVATIONS)}; "
            "other activations are not implemented"
        )
    if family.rope is not None:
        fields["rope"] = read_rope(config, family.rope, fields)
        fields.pop("interleaved", None)
    if family.windows is not None:
        fields["windows"] = read_windows(config, family, fields["layers"])
    return Arch(**fields)


def _check_keys(config: Mapping[str, Any], family: Family) -> None:
    classes = config.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise wrong("architectures", "a list of names", classes)
    if classes and not set(classes) & set(family.architectures):
        raise UnsupportedError(
            f"config.json: architectures must name one of {', '.join(family.architectures)}; "
            f"got {classes}; load the language model, not another head"
        )
    if config.get("quantization_config") is not None:
        raise UnsupportedError(
            "config.json: weights must be stored as float32, float16 or bfloat16; got a "
            f"quantization_config ({config['quantization_config']!r:.80}); dequantise the "
            "checkpoint and save it again, numsim quantises by recipe"
        )
    fixed = SHARED_FIXED | dict(family.fixed)
    for key, values in fixed.items():
        if key in config and config[key] not in values:
            raise UnsupportedError(
                f"config.json: {key} must be {' or '.join(map(repr, values))} for "
                f"{config['model_type']}; got {config[key]!r}; other values are not implemented"
            )
    spelt = {key.name for key in family.keys.values()}
    if family.rope is not None:
        spelt |= {*ROPE_KEYS, *family.rope_keys.split()}
    if family.windows is not None:
        spelt |= {*WINDOW_KEYS, family.window_switch}
    unknown = sorted(set(config) - spelt - set(fixed) - set(family.ignored.split()) - COMMON_KEYS)
    if unknown:
        hints = "".join(near_names(key, spelt, limit=1) for key in unknown[:1])
        raise NumsimError(
            f"config.json: every key must be one that {config['model_type']} is known to have; "
            f"unknown: {', '.join(unknown)}{hints}; remove a key only if it changes no result"
        )


def _head_dim(hidden: int, heads: int) -> int:
    if hidden % heads:
        raise NumsimError(
            "config.json: without head_dim, hidden_size must be a multiple of "
            f"num_attention_heads; got {hidden} and {heads}; add head_dim"
        )
    return hidden // heads


SCALINGS = {  # rope_type -> its keys, required ones first, then optional
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
    ),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
            "mscale", "mscale_all_dim", "truncate",
        ),
    ),
}  # fmt: skip


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all rotary keys of a config in the newer spelling; both spellings must agree.

    Newer configs hold ``rope_parameters: {rope_theta, rope_type, partial_rotary_factor, ...}``;
    older ones ``rope_theta`` beside ``rope_scaling: {type | rope_type, ...}`` or null.
    """
    seen: dict[str, Any] = {}
    nulls: dict[str, str] = {}

    def put(key: str, value: Any, where: str) -> None:
        if value is None:
            nulls[key] = where
        elif seen.setdefault(key, value) != value:
            raise wrong(where, f"{seen[key]!r} as beside it", value)

    for theirs, ours in (
        ("rope_theta", "rope_theta"),
        ("rotary_emb_base", "rope_theta"),
        ("rotary_pct", "partial_rotary_factor"),
        ("partial_rotary_factor", "partial_rotary_factor"),
    ):
        if theirs in config:
            put(ours, config[theirs], theirs)
    for group in ("rope_parameters", "rope_scaling"):
        inner = config.get(group)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise wrong(group, "a table or null", inner)
        for key, value in inner.items():
            put("rope_type" if key == "type" else key, value, f"{group}.{key}")
    for key in ("rope_theta", "partial_rotary_factor"):  # no default of theirs is none
        if key in nulls and key not in seen:
            raise wrong(nulls[key], "a number", None)
    return seen


def read_rope(
    config: Mapping[str, Any], defaults: Mapping[str, object], fields: Mapping[str, Any]
) -> Rope:
    """Return the rotary positions a config asks for."""
    seen = dict(defaults) | rope_settings(config)
    kind: Any = seen.pop("rope_type", "default")
    if kind not in tuple(SCALINGS):
        raise UnsupportedError(
            f"config.json: rope_type must be one of {', '.join(SCALINGS)}; got {kind!r}; "
            "other types are not implemented"
        )
    required, optional = SCALINGS[kind]
    known = {*required, *optional, "rope_theta", "partial_rotary_factor"}
    unknown = sorted(set(seen) - known)
    if unknown:
        raise NumsimError(
            f"config.json: rope settings of type {kind!r} are {', '.join(sorted(known))}; "
            f"unknown: {', '.join(unknown)}; {REMEDY}"
        )

    def number(name: str, default: object = REQUIRED) -> float:
        return float(Key(name, float, default).read(seen, {}))

    share = number("partial_rotary_factor", 1.0)
    if share != 1 and "partial_rotary_factor" not in defaults:  # transformers does not read it
        raise wrong("partial_rotary_factor", f"1 for {fields['family']}", share)
    turned = fields["mla"].rope if fields.get("mla") else int(fields["head_dim"] * share)
    if turned % 2 or not 0 < turned <= fields["head_dim"]:
        raise NumsimError(
            f"config.json: rotary positions turn an even number of elements of a head, at most "
            f"head_dim; got {turned} of {fields['head_dim']}; {REMEDY}"
        )
    if turned > WIDEST:  # no list of that length before the tensors have been looked at
        raise wrong("the rotary width of a head", f"at most {WIDEST}", turned)
    positions = Key("max_position_embeddings", int, None).read(config, {}) or 1
    longest = 0.0
    if kind in ("dynamic", "llama3", "yarn"):
        longest = Key("max_position_embeddings", int).read(config, {})
        original = number("original_max_position_embeddings", longest)
        if kind != "dynamic":  # that counts from the length of the config, as transformers does
            longest = original
        if longest < 1:
            raise wrong("original_max_position_embeddings", "1 or more", longest)
    values: dict[str, Any] = {}
    if kind == "llama3":
        values = {"slow": number("low_freq_factor"), "fast": number("high_freq_factor")}
        if values["slow"] >= values["fast"]:
            raise wrong("low_freq_factor", "below high_freq_factor", values["slow"])
    if kind == "yarn":
        values = {
            "slow": number("beta_slow", 1.0),
            "fast": number("beta_fast", 32.0),
            "amplitude": _yarn_amplitude(seen, number),
            "truncate": bool(Key("truncate", bool, True).read(seen, {})),
        }
    rope = Rope(
        theta=number("rope_theta"),
        width=turned,
        interleaved=bool(fields.get("interleaved", False)),
        kind=kind,
        factor=number("factor") if kind != "default" else 1.0,
        longest=int(longest),
        **values,
    )
    check_rope(rope, min(positions, 2**20))  # longer sequences are refused when they come
    return rope


def yarn_growth(factor: float, weight: float = 1.0) -> float:
    """Return ``0.1 weight ln(factor) + 1``, 1 for factors up to 1.

    >>> yarn_growth(1.0)
    1.0
    """
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_amplitude(seen: Mapping[str, Any], number: Callable[..., float]) -> float:
    factor = number("factor")
    given = [key for key in ("mscale", "mscale_all_dim") if seen.get(key) not in (None, 0)]
    weights = [number(key) for key in given]
    if seen.get("attention_factor") is not None:
        return number("attention_factor")
    if len(weights) == 2:
        return yarn_growth(factor, weights[0]) / yarn_growth(factor, weights[1])
    return yarn_growth(factor)


def read_windows(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    """Return the sliding window of each layer, from either spelling; () where none slides."""
    default, switch = family.window_default, family.window_switch
    window = Key("sliding_window", int, default, nullable=True).read(config, {})
    if switch and not Key(switch, bool, False).read(config, {}):
        window = None
    types = config.get("layer_types")
    if types is None and window is None:
        return ()
    if types is None:
        slides = [family.windows is None or family.windows(config, i) for i in range(layers)]
    else:
        allowed = ("full_attention", "sliding_attention")
        listed = isinstance(types, list) and all(isinstance(word, str) for word in types)
        if not listed or len(types) != layers or set(types) - set(allowed):
            raise wrong("layer_types", f"{layers} words of {', '.join(allowed)}", types)
        slides = [word == "sliding_attention" for word in types]
        if family.all_slide and window is not None and not all(slides):
            rule = f"sliding_attention in every layer, as transformers runs {config['model_type']}"
            raise wrong("layer_types", rule, types)
        if any(slides) and window is None:
            raise wrong("sliding_window", "a number where a layer slides", window)
    if window is None or not any(slides):
        return ()
    return tuple(window if slide else None for slide in slides)


# What no checkpoint of any family may ask for.
SHARED_FIXED: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "chunk_size_feed_forward": (0,),
    "use_bidirectional_attention": (None, False),
    "quantization_config": (None,),
}

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
    gradient_checkpointing _num_labels
    """.split()  # noqa: SIM905
)
