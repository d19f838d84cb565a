"""The families of networks: tables of names and switches, one entry each."""

from __future__ import annotations

import difflib

from numsim.errors import UnsupportedError
from numsim.models.families.alibi import ALIBI
from numsim.models.families.decoders import DECODERS
from numsim.models.families.encoder_decoders import ENCODER_DECODERS
from numsim.models.families.encoders import ENCODERS
from numsim.models.families.experts import EXPERTS
from numsim.models.families.latent import LATENT
from numsim.models.families.pictures import PICTURES
from numsim.models.families.plain_decoders import PLAIN_DECODERS
from numsim.models.family import Family
from numsim.models.keys import shown
from numsim.models.multimodal import WRAPPERS

_CAUSAL = DECODERS | PLAIN_DECODERS | EXPERTS | LATENT | ALIBI
FAMILIES: dict[str, Family] = _CAUSAL | ENCODERS | PICTURES | ENCODER_DECODERS


def get_family(model_type: object, classes: object = None) -> Family:
    """Return the family of a ``model_type``; `classes`: what `architectures` says beside it.

    Raises
    ------
    UnsupportedError
        No family of that name.

    Examples
    --------
    >>> list(get_family("qwen2").classes)
    ['Qwen2ForCausalLM', 'Qwen2Model', 'Qwen2ForSequenceClassification']
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedError(
            f"config.json: model_type must be one of {', '.join([*FAMILIES, *WRAPPERS])}; got "
            f"{shown(model_type)}{_hint(str(model_type), classes)}; other families are not "
            "implemented"
        )
    return FAMILIES[model_type]


_KINDS = {  # ends of classes -> the families that have such
    ("ForCausalLM", "LMHeadModel"): tuple(_CAUSAL),
    ("ForMaskedLM", "ForPreTraining"): tuple(ENCODERS),
    ("ForConditionalGeneration",): (*ENCODER_DECODERS, *WRAPPERS),
}


def _hint(model_type: str, classes: object) -> str:
    """Return the families that a name can stand for: those of its class, else near ones.

    Near ones are of the same kind, as the class says, and never without any likeness.

    >>> _hint("lama", ["LlamaModel"]), _hint("xlm_roberta", None), _hint("mamba", None)
    ('; LlamaModel is a class of llama', '; near names: xlm-roberta', '')
    >>> _hint("qwen3_next", ["Qwen3NextForCausalLM"])
    '; near names of the same kind: qwen3_moe'
    """
    names = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    for name in names:
        found = [family for family, entry in FAMILIES.items() if name in entry.classes]
        if found:
            return f"; {name} is a class of {' and '.join(found)}"
    kind = next((k for ends, k in _KINDS.items() if any(n.endswith(ends) for n in names)), ())
    known, same = (kind, " of the same kind") if kind else ((*FAMILIES, *WRAPPERS), "")
    near = difflib.get_close_matches(model_type, known, n=2, cutoff=0.7 if kind else 0.8)
    return f"; near names{same}: {', '.join(near)}" if near else ""


def current_name(stored: str, family: Family) -> str:
    """Return today's spelling of a stored name.

    >>> current_name("embeddings.LayerNorm.gamma", FAMILIES["bert"])
    'embeddings.LayerNorm.weight'
    """
    for old, new in family.older_names.items():
        if stored.endswith(old):
            return stored.removesuffix(old) + new
    return stored
