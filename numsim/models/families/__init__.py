"""The families of networks: tables of names and switches, one entry each."""

from __future__ import annotations

from numsim.errors import UnsupportedError, near_names
from numsim.models.families.alibi import ALIBI
from numsim.models.families.decoders import DECODERS
from numsim.models.families.encoder_decoders import ENCODER_DECODERS
from numsim.models.families.encoders import ENCODERS
from numsim.models.families.experts import EXPERTS
from numsim.models.family import Family
from numsim.models.keys import shown

FAMILIES: dict[str, Family] = DECODERS | EXPERTS | ALIBI | ENCODERS | ENCODER_DECODERS


def get_family(model_type: object) -> Family:
    """Return the family of a ``model_type``.

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
            f"config.json: model_type must be one of {', '.join(FAMILIES)}; got {shown(model_type)}"
            f"{near_names(str(model_type), FAMILIES)}; other families are not implemented"
        )
    return FAMILIES[model_type]


def current_name(stored: str, family: Family) -> str:
    """Return today's spelling of a stored name.

    >>> current_name("embeddings.LayerNorm.gamma", FAMILIES["bert"])
    'embeddings.LayerNorm.weight'
    """
    for old, new in family.older_names.items():
        if stored.endswith(old):
            return stored.removesuffix(old) + new
    return stored
