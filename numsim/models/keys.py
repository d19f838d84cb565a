"""Keys of a ``config.json``: how one is read, and which ones change no number.

A key that decides numbers in transformers is used or refused with its meaning. One that only other
software reads is accepted, and said. Any other stops, since it may change what the network
computes, unless the user sets it aside by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numsim.errors import NumsimError, UnsupportedError, near_names

REQUIRED = object()
LARGEST_FLOAT = 3.4028234663852886e38  # of float32, which an emulation computes in
LARGEST_INT = 2**63 - 1  # of positions and counts
REMEDY = "correct it if the file was edited, else report the checkpoint: it is not implemented"


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
        if self.kind is float and not 0 < value <= LARGEST_FLOAT:
            raise wrong(self.name, "above 0 and within float32", value)
        if self.kind is int and not self.least <= value <= LARGEST_INT:
            low = "above 0" if self.least == 1 else f"{self.least} or more"
            raise wrong(self.name, f"{low} and below 2**63", value)
        return self.kind(value)


def shown(value: object) -> str:
    """Return a value for a message: no digits, letters or control characters without end.

    >>> shown("relu"), shown(10**400), shown("x" * 90)
    ("'relu'", 'a number of 1329 bits', "'xxx...xxx...")
    """
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except RecursionError:  # what JSON could just read, at a lower stack
        return f"a {type(value).__name__} of very many levels"
    return text if len(text) <= 63 else f"{text[:60]}..."


def listing(keys: Iterable[str]) -> str:
    """Return keys for a message, as many as a sentence can hold."""
    listed = [key if key.isprintable() and len(key) <= 60 else shown(key) for key in keys]
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(listed[:10]) + more


def wrong(key: str, rule: str, value: object) -> NumsimError:
    """Return the error of a config value."""
    return NumsimError(f"config.json: {key} must be {rule}; got {shown(value)}; {REMEDY}")


def null(key: str, default: object) -> NumsimError:
    """Return the error of a null that would hide the default of a family."""
    return NumsimError(
        f"config.json: {key} must have a value; got null; write it, or drop the key to have "
        f"the default of the family, {default!r}"
    )


# What no checkpoint of any family may ask for.
SHARED_FIXED: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "chunk_size_feed_forward": (0,),
    "use_bidirectional_attention": (None, False),
    "quantization_config": (None,),  # what else it says is read by `packed`
    "use_logn_attn": (False,),
    "use_dynamic_ntk": (False,),
}

# Keys that transformers writes and that change no result of a forward pass: said to nobody.
COMMON_KEYS = frozenset(
    """
    architectures model_type transformers_version dtype torch_dtype _name_or_path name_or_path
    _attn_implementation_autoset _attn_implementation _experts_implementation _commit_hash auto_map
    unsloth_version unsloth_fixed task_specific_params keys_to_ignore_at_inference output_past
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id
    eos_token_ids decoder_start_token_id tokenizer_class xla_device
    use_cache return_dict return_dict_in_generate output_hidden_states output_attentions
    output_scores torchscript id2label label2id problem_type finetuning_task prefix
    initializer_range initializer_factor init_std
    max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    suppress_tokens exponential_decay_length_penalty begin_suppress_tokens use_bfloat16
    tf_legacy_loss gradient_checkpointing _num_labels num_labels cache_implementation
    attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob dropout
    dropout_rate classifier_dropout activation_dropout layerdrop embd_pdrop resid_pdrop attn_pdrop
    """.split()  # noqa: SIM905
)

# Who reads keys of published configs that transformers does not: accepted, in a warning.
READERS = {
    "transformers.js": "transformers.js_config",
    "vLLM, which computes longer texts otherwise": "dual_chunk_attention_config",
    "vLLM": "classifier_from_token is_original_qwen3_reranker is_matryoshka",
    "sentence-transformers": """
        sentence_transformers sbert_ce_default_activation_function matryoshka_dimensions
        matryoshka_dims pooling pooling_mode""",
    "pipelines around the network": "chronos_config custom_pipeline custom_pipelines",
    "exporters": "openvino_config onnx_config",
    "the model card": """
        author authors created_date date license language model_name name tags base_model dataset
        datasets description""",
    "how to compute, not what": """
        attn_implementation use_flash_attention use_flash_attention_2 use_flash_attn flash_attn
        _flash_attn_2_enabled use_sdpa fp16 bf16 fp32 gradient_checkpointing_kwargs""",
    "the longest text, of servers and tokenizers": """
        model_max_length max_seq_len max_seq_length seq_length max_sequence_length""",
    "training": """
        num_steps steps step max_steps train_steps num_train_steps num_train_epochs epochs
        train_batch_size batch_size learning_rate warmup_steps weight_decay seed
        neftune_noise_alpha label_smoothing z_loss_coefficient training_args""",
    "tokenizers": """
        tokenizer_name tokenizer_file tokenizer_type bos_token eos_token pad_token unk_token
        mask_token cls_token sep_token chat_template""",
}
UNUSED_KEYS = {key: reader for reader, words in READERS.items() for key in words.split()}


def sort_keys(
    config: Mapping[str, Any],
    family: str,
    used: Iterable[str],
    fixed: Mapping[str, tuple[object, ...]],
    silent: Iterable[str],
) -> tuple[str, ...]:
    """Return the keys that only other software reads; raise where one is fixed or unknown.

    `used`: what `family` reads; `fixed`: the values that are computed; `silent`: what it writes
    without reading.

    Raises
    ------
    NumsimError
        A key that no list has.
    UnsupportedError
        A key of `fixed` with another value.
    """
    fixed = SHARED_FIXED | dict(fixed)
    for key, values in fixed.items():
        if key in config and config[key] not in values:
            raise UnsupportedError(
                f"config.json: {key} must be {' or '.join(map(repr, values))} for {family}; got "
                f"{shown(config[key])}; other values are not implemented"
            )
    used = set(used)
    rest = sorted(set(config) - used - set(fixed) - set(silent) - COMMON_KEYS)
    unknown = [key for key in rest if key not in UNUSED_KEYS]
    if unknown:
        hints = "".join(near_names(key, used, limit=1) for key in unknown[:1])
        raise NumsimError(
            f"config.json: every key must be one that {family} is known to have; unknown: "
            f"{listing(unknown)}{hints}; {offer(unknown)}"
        )
    return tuple(rest)


def offer(keys: Iterable[str]) -> str:
    """Return how to go on without some keys."""
    listed = ",".join(key if key.isprintable() else shown(key) for key in keys)
    return (
        f"where they change no result, set them aside with --ignore-keys {listed[:200]} "
        "(ignore_keys=), which the results record"
    )


def say_unused(keys: Iterable[str]) -> str:
    """Return the warning about keys that only other software reads.

    >>> say_unused(["license"])
    'config.json: transformers reads none of these keys, and they change nothing: license (...)'
    """
    listed = [f"{key} ({UNUSED_KEYS[key]})" for key in keys]
    return (
        "config.json: transformers reads none of these keys, and they change nothing: "
        f"{', '.join(listed)}"
    )


def asked_keys(ignore: object) -> tuple[str, ...]:
    """Return the names in a list, or in a text with commas."""
    if isinstance(ignore, str):
        ignore = [part.strip() for part in ignore.split(",") if part.strip()]
    listed = isinstance(ignore, Iterable) and not isinstance(ignore, bytes | Mapping)
    keys: tuple[Any, ...] = tuple(ignore) if listed else (ignore,)  # type: ignore[arg-type]
    if not all(isinstance(key, str) and key for key in keys):
        raise NumsimError(
            f"ignore_keys: names of keys of config.json, as A,B or a list; got {shown(ignore)}; "
            "rope_scaling.A is a key of that table"
        )
    return keys


def set_aside(
    config: Mapping[str, Any], ignore: Iterable[str], used: Iterable[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a config without some of its keys, and which of them it had.

    Raises
    ------
    NumsimError
        The family reads such a key.

    Examples
    --------
    >>> set_aside({"a": 1, "b": {"c": 2}}, ["a", "b.c", "d"], [])
    ({'b': {}}, ('a', 'b.c'))
    """
    left, gone, used = dict(config), [], set(used)
    for key in ignore:
        group, _, inner = key.partition(".")
        if key in used:
            raise NumsimError(
                f"ignore_keys: {key} decides what the network computes, and it is read; got it to "
                "be ignored; leave it out, or change config.json"
            )
        if key in left:
            del left[key]
        elif isinstance(left.get(group), Mapping) and inner in left[group]:
            left[group] = {k: v for k, v in left[group].items() if k != inner}
        else:
            continue
        gone.append(key)
    return left, tuple(gone)
