"""Encoders: one table entry each, with their masked-language and classifier heads."""

from __future__ import annotations

from typing import Any

from numsim.models.arch import Arch
from numsim.models.families.shared import (
    ENCODER,
    GATE_UP,
    LAYER_NORM_MLP,
    NO_POOLER,
    QKV,
    all_biases,
    as_one,
    classifier,
    one_bias,
    plain_keys,
    trunk,
)
from numsim.models.family import Config, Family, Fields, Head, Names
from numsim.models.keys import Key, wrong
from numsim.models.places import At
from numsim.models.rope_keys import TypeRope

_NO_HEAD = {"masked": False, "transform": None, "head_bias": False, "tied": False}
_ENCODER: dict[str, Any] = {
    "residual": "post", "final_norm": False, "embed_norm": True, "causal": False, "head": False,
}  # fmt: skip
_ABSOLUTE: dict[str, tuple[object, ...]] = {"position_embedding_type": ("absolute",)}
_BERT_NAMES: dict[str, str | At] = {
    "embed": "{p}embeddings.word_embeddings",
    "position": "{p}embeddings.position_embeddings",
    "token_type": "{p}embeddings.token_type_embeddings",
    "embed_norm": "{p}embeddings.LayerNorm",
    "layers.{i}.q_proj": "{p}encoder.layer.{i}.attention.self.query",
    "layers.{i}.k_proj": "{p}encoder.layer.{i}.attention.self.key",
    "layers.{i}.v_proj": "{p}encoder.layer.{i}.attention.self.value",
    "layers.{i}.o_proj": "{p}encoder.layer.{i}.attention.output.dense",
    "layers.{i}.attn_norm": "{p}encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.up_proj": "{p}encoder.layer.{i}.intermediate.dense",
    "layers.{i}.down_proj": "{p}encoder.layer.{i}.output.dense",
    "layers.{i}.mlp_norm": "{p}encoder.layer.{i}.output.LayerNorm",
    "pooler": "{p}pooler.dense",
    "classifier": "classifier",
}
_LM_HEAD: dict[str, str | At] = {
    "transform": "lm_head.dense",
    "transform_norm": "lm_head.layer_norm",
    "lm_head.weight": "lm_head.decoder.weight",
}
_DENSE_OUT: dict[str, str | At] = {
    "pooler": "classifier.dense",
    "classifier": "classifier.out_proj",
}
_OLDER_NORMS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_POSITION_IDS = "*embeddings.position_ids"
# the bias of a tied head is stored twice, that of another one counts beside the product
_BIASES = ("lm_head.decoder.bias", "lm_head.bias")


def _masked(names: dict[str, str | At], act: str = "", pooler: str | None = "tanh") -> Head:
    """Return a masked-language head; `act`: of its own, else the network's.

    Without its tensors the class is that of a trunk, whose pooler may be stored.
    """

    def finish(f: Fields, config: Config) -> Fields:
        return f | {"transform": act or f["activation"]}

    switches = {"masked": True, "head_bias": True, "pooler": pooler}
    return Head(switches, names, (_NO_HEAD, NO_POOLER), finish=finish)


_BERT_HEAD: dict[str, str | At] = {
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "lm_head.weight": "cls.predictions.decoder.weight",
}
_BERT_BIASES = ("cls.predictions.decoder.bias", "cls.predictions.bias")


def _roberta_bias(arch: Arch) -> Names:
    return {"lm_head.bias": _BIASES[arch.tied]}


def _bert_bias(arch: Arch) -> Names:
    return {"lm_head.bias": _BERT_BIASES[arch.tied]}


def _encoder(f: Fields, config: Config) -> Fields:
    return all_biases(f)


def _roberta(f: Fields, config: Config) -> Fields:
    """Positions of tokens that are no padding count from the pad id + 1."""
    offset = f["pad"] + 1
    rows = f["positions"]
    if rows <= offset:
        raise wrong("max_position_embeddings", f"above pad_token_id + 1, {offset}", rows)
    return all_biases(f) | {
        "positions": rows - offset,
        "position_offset": offset,
        "position_count": "not_pad",
    }


def _roberta_family(stem: str) -> Family:
    return Family(
        classes={
            f"{stem}Model": Head(trunk(pooler="tanh").switches, optional=(NO_POOLER,)),
            f"{stem}ForMaskedLM": _masked(_LM_HEAD, "gelu"),
            f"{stem}ForSequenceClassification": classifier(_DENSE_OUT, pooler="tanh"),
        },
        keys=plain_keys(
            activation=Key("hidden_act", str, "gelu"),
            norm_eps=Key("layer_norm_eps", float, 1e-12),
            positions=Key("max_position_embeddings", int, 512),
            token_types=Key("type_vocab_size", int, 2),
            tied=Key("tie_word_embeddings", bool, True),
            pad=Key("pad_token_id", int, 1, least=0),
        ),
        names=_BERT_NAMES,
        switches=LAYER_NORM_MLP | _ENCODER,
        fixed=ENCODER | _ABSOLUTE,
        prefixes=("", "roberta."),
        older_names=_OLDER_NORMS,
        ignored_tensors=(_POSITION_IDS, *_BIASES),
        renamed=_roberta_bias,
        finish=_roberta,
    )


def _mpnet(f: Fields, config: Config) -> Fields:
    rows = f.pop("rows")
    if rows < 32:
        raise wrong("relative_attention_num_buckets", "32 or more, which are computed", rows)
    return _roberta(f, config) | {"bucket_rows": rows if rows > 32 else 0}


def _modernbert(f: Fields, config: Config) -> Fields:
    """Tokens see half of local_attention on each side."""
    norm = "layer" if f.pop("norm_bias") else "layer_weight"
    windows = tuple(w if w is None else w // 2 + 1 for w in f["windows"])
    return one_bias(f, config) | {"norm": norm, "windows": windows}


def _modernbert_head(f: Fields, config: Config) -> Fields:
    return f | {
        "transform": Key("classifier_activation", str, "gelu").read(config, {}),
        "transform_bias": Key("classifier_bias", bool, False).read(config, {}),
    }


def _modernbert_masked(f: Fields, config: Config) -> Fields:
    bias = Key("decoder_bias", bool, True).read(config, {})
    return _modernbert_head(f, config) | {"head_bias": bias}


def _modernbert_scores(f: Fields, config: Config) -> Fields:
    pooling = {"cls": "first", "mean": "mean"}
    word = Key("classifier_pooling", str, "cls").read(config, {})
    if word not in pooling:
        raise wrong("classifier_pooling", "cls or mean", word)
    return _modernbert_head(f, config) | {"pooling": pooling[word]}


_MODERN_HEAD: dict[str, str | At] = {
    "transform": "head.dense", "transform_norm": "head.norm", "lm_head": "decoder",
    "classifier": "classifier",
}  # fmt: skip

ENCODERS: dict[str, Family] = {
    "bert": Family(
        classes={
            "BertModel": Head(trunk(pooler="tanh").switches, optional=(NO_POOLER,)),
            "BertForMaskedLM": _masked(_BERT_HEAD),
            "BertForPreTraining": _masked(_BERT_HEAD),
            "BertForSequenceClassification": classifier(pooler="tanh"),
        },
        head_tensors=("cls.*",),
        keys=plain_keys(
            activation=Key("hidden_act", str, "gelu"),
            norm_eps=Key("layer_norm_eps", float, 1e-12),
            positions=Key("max_position_embeddings", int, 512),
            token_types=Key("type_vocab_size", int, 2),
            tied=Key("tie_word_embeddings", bool, True),
        ),
        names=_BERT_NAMES,
        switches=LAYER_NORM_MLP | _ENCODER,
        fixed=ENCODER | _ABSOLUTE,
        ignored="directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
        "pooler_size_per_head pooler_type",
        prefixes=("", "bert."),
        older_names=_OLDER_NORMS,
        ignored_tensors=(_POSITION_IDS, *_BERT_BIASES, "cls.seq_relationship.*"),
        renamed=_bert_bias,
        finish=_encoder,
    ),
    "roberta": _roberta_family("Roberta"),
    "xlm-roberta": _roberta_family("XLMRoberta"),
    "distilbert": Family(
        classes={
            "DistilBertModel": trunk(),
            "DistilBertForMaskedLM": _masked(
                {
                    "transform": "vocab_transform",
                    "transform_norm": "vocab_layer_norm",
                    "lm_head": "vocab_projector",
                },
                pooler=None,
            ),
            "DistilBertForSequenceClassification": classifier(
                {"pooler": "pre_classifier"}, pooler="relu"
            ),
        },
        head_tensors=("vocab_*",),
        keys={
            "vocab": Key("vocab_size", int),
            "hidden": Key("dim", int),
            "layers": Key("n_layers", int),
            "heads": Key("n_heads", int),
            "intermediate": Key("hidden_dim", int),
            "positions": Key("max_position_embeddings", int, 512),
            "activation": Key("activation", str, "gelu"),
            "tied": Key("tie_word_embeddings", bool, True),
        },
        names={
            "embed": "{p}embeddings.word_embeddings",
            "position": "{p}embeddings.position_embeddings",
            "embed_norm": "{p}embeddings.LayerNorm",
            "layers.{i}.q_proj": "{p}transformer.layer.{i}.attention.q_lin",
            "layers.{i}.k_proj": "{p}transformer.layer.{i}.attention.k_lin",
            "layers.{i}.v_proj": "{p}transformer.layer.{i}.attention.v_lin",
            "layers.{i}.o_proj": "{p}transformer.layer.{i}.attention.out_lin",
            "layers.{i}.attn_norm": "{p}transformer.layer.{i}.sa_layer_norm",
            "layers.{i}.up_proj": "{p}transformer.layer.{i}.ffn.lin1",
            "layers.{i}.down_proj": "{p}transformer.layer.{i}.ffn.lin2",
            "layers.{i}.mlp_norm": "{p}transformer.layer.{i}.output_layer_norm",
            "classifier": "classifier",
        },
        switches=LAYER_NORM_MLP | _ENCODER | {"norm_eps": 1e-12},
        fixed=ENCODER,
        # a sine table is stored like any other; ties are tie_word_embeddings
        ignored="sinusoidal_pos_embds tie_weights_ qa_dropout seq_classif_dropout",
        prefixes=("", "distilbert."),
        ignored_tensors=(_POSITION_IDS,),
        finish=_encoder,
    ),
    "mpnet": Family(
        classes={
            "MPNetModel": Head(trunk(pooler="tanh").switches, optional=(NO_POOLER,)),
            "MPNetForMaskedLM": _masked(_LM_HEAD, "gelu"),
            "MPNetForSequenceClassification": classifier(_DENSE_OUT, pooler="tanh"),
        },
        keys=plain_keys(
            activation=Key("hidden_act", str, "gelu"),
            norm_eps=Key("layer_norm_eps", float, 1e-12),
            positions=Key("max_position_embeddings", int, 512),
            tied=Key("tie_word_embeddings", bool, True),
            rows=Key("relative_attention_num_buckets", int, 32),
        ),
        names={name: at for name, at in _BERT_NAMES.items() if name != "token_type"}
        | {
            **{
                f"layers.{{i}}.{letter}_proj": f"{{p}}encoder.layer.{{i}}.attention.attn.{letter}"
                for letter in "qkvo"
            },
            "layers.{i}.attn_norm": "{p}encoder.layer.{i}.attention.LayerNorm",
            "relative": "{p}encoder.relative_attention_bias",
        },
        # padding is 1, whatever pad_token_id says
        switches=LAYER_NORM_MLP | _ENCODER | {"buckets": 32, "bucket_distance": 128, "pad": 1},
        fixed=ENCODER,
        prefixes=("", "mpnet."),
        ignored_tensors=(_POSITION_IDS, *_BIASES),
        renamed=_roberta_bias,
        finish=_mpnet,
    ),
    "modernbert": Family(
        classes={
            "ModernBertModel": trunk(),
            "ModernBertForMaskedLM": Head(
                {"masked": True}, _MODERN_HEAD, (_NO_HEAD,), finish=_modernbert_masked
            ),
            "ModernBertForSequenceClassification": Head(
                classifier().switches, _MODERN_HEAD, counts_labels=True, finish=_modernbert_scores
            ),
        },
        head_tensors=("head.*", "decoder.*"),
        keys=plain_keys(
            activation=Key("hidden_activation", str, "gelu"),
            norm_eps=Key("norm_eps", float, 1e-5),
            norm_bias=Key("norm_bias", bool, False),
            qkv_bias=Key("attention_bias", bool, False),
            mlp_bias=Key("mlp_bias", bool, False),
            tied=Key("tie_word_embeddings", bool, True),
        ),
        names={
            "embed": "{p}embeddings.tok_embeddings",
            "embed_norm": "{p}embeddings.norm",
            "layers.{i}.attn_norm": "{p}layers.{i}.attn_norm",
            **as_one("{p}layers.{i}.attn.Wqkv", QKV),
            "layers.{i}.o_proj": "{p}layers.{i}.attn.Wo",
            "layers.{i}.mlp_norm": "{p}layers.{i}.mlp_norm",
            **as_one("{p}layers.{i}.mlp.Wi", GATE_UP),
            "layers.{i}.down_proj": "{p}layers.{i}.mlp.Wo",
            "final_norm": "{p}final_norm",
        },
        switches=_ENCODER | {"residual": "pre", "final_norm": True, "first_attn_norm": False},
        fixed=ENCODER,
        ignored="layer_norm_eps deterministic_flash_attn embedding_dropout mlp_dropout"
        " position_embedding_type initializer_cutoff_factor sparse_prediction"
        " sparse_pred_ignore_index reference_compile repad_logits_with_grad",
        read="global_attn_every_n_layers classifier_activation classifier_bias classifier_pooling"
        " decoder_bias",
        ropes={
            "full_attention": TypeRope("global_rope_theta", 160000.0, scaled=True),
            "sliding_attention": TypeRope("local_rope_theta", 10000.0, scaled=True),
        },
        windows=lambda config, layer: bool(
            layer % Key("global_attn_every_n_layers", int, 3).read(config, {})
        ),
        window_key="local_attention",
        window_default=128,
        finish=_modernbert,
    ),
}
