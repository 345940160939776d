"""Tokenizer classes of transformers 5: the way in which each builds its tokenizer, and the class of each model type."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlm_jax.vocabulary.roles import ALBERT_ROLES, BERT_ROLES, ESM_ROLES, MPNET_ROLES, ROBERTA_ROLES, Roles

Kind = Literal["word_piece", "byte_level", "unigram", "characters", "as_it_is"]


@dataclass(frozen=True)
class TokenizerClass:
    """A class that builds its tokenizer from a vocabulary and settings, whatever else a `tokenizer.json` states."""

    kind: Kind
    roles: Roles
    """Names of the special tokens that no file need state."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Its other defaults for special tokens, named as in a `tokenizer_config.json`."""
    mask_takes_space: bool = False
    """True if the mask also stands for the space before it, even if the files only name it."""
    separators: int = 2
    """Number of separators between two texts."""
    second_segment: int = 0
    """Segment of the second text."""

    @property
    def special_tokens(self) -> dict[str, Any]:
        """Special tokens by their keys in a `tokenizer_config.json`, for a folder that states none."""
        return {**self.roles.settings, **self.defaults}


_ENDS = {"bos_token": "<s>", "eos_token": "</s>"}
_BERT = TokenizerClass("word_piece", BERT_ROLES, separators=1, second_segment=1)
_NOT_USED = [f"{name}NOTUSED" for name in ("<s>", "</s>", "<unk>")]

CLASSES: dict[str, TokenizerClass] = {
    **{
        f"{name}Tokenizer": _BERT
        for name in ("Bert", "DistilBert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "SqueezeBert")
    },
    "MPNetTokenizer": TokenizerClass("word_piece", MPNET_ROLES, _ENDS, mask_takes_space=True),
    "RobertaTokenizer": TokenizerClass("byte_level", ROBERTA_ROLES, _ENDS),
    "XLMRobertaTokenizer": TokenizerClass("unigram", ROBERTA_ROLES, _ENDS),
    "CamembertTokenizer": TokenizerClass(
        "unigram", ROBERTA_ROLES, _ENDS | {"additional_special_tokens": _NOT_USED}, mask_takes_space=True
    ),
    "AlbertTokenizer": TokenizerClass(
        "unigram",
        ALBERT_ROLES,
        {"bos_token": "[CLS]", "eos_token": "[SEP]"},
        separators=1,
        second_segment=1,
    ),
    "EsmTokenizer": TokenizerClass("characters", ESM_ROLES, {"eos_token": "<eos>"}, separators=1),
    **{
        name: TokenizerClass("as_it_is", BERT_ROLES)
        for name in ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
    },
}
"""Supported classes by their names without "Fast"."""

MODEL_TYPES: dict[str, str] = {
    **dict.fromkeys(
        (
            *("bert", "convbert", "distilbert", "electra", "ernie", "flava", "layoutlm", "lxmert"),
            *("megatron-bert", "mobilebert", "nomic_bert", "squeezebert", "visual_bert"),
        ),
        "BertTokenizer",
    ),
    **dict.fromkeys(
        ("data2vec-text", "ibert", "longformer", "mra", "roberta", "roberta-prelayernorm"), "RobertaTokenizer"
    ),
    **dict.fromkeys(("gte", "jina_embeddings_v3", "xlm-roberta", "xmod"), "XLMRobertaTokenizer"),
    **dict.fromkeys(("albert", "yoso"), "AlbertTokenizer"),
    **dict.fromkeys(("nystromformer", "xlm-roberta-xl"), "TokenizersBackend"),
    "camembert": "CamembertTokenizer",
    "esm": "EsmTokenizer",
    "mpnet": "MPNetTokenizer",
}
"""Class of the tokenizer of a model type if no file names it."""

# Model types for which transformers ignores the class that a file names.
_AS_IT_IS = ("modernbert", "modernbert-decoder", "nystromformer", "xlm-roberta-xl")


def class_of(tokenizer_config: Mapping[str, Any], model_config: Mapping[str, Any]) -> str | None:
    """Returns the name of the class that a folder names, without "Fast"; None if it names none.

    Args:
        tokenizer_config: content of `tokenizer_config.json`.
        model_config: content of `config.json`.
    """
    model_type = str(model_config.get("model_type") or "")
    if model_type in _AS_IT_IS:
        return "TokenizersBackend"
    name = tokenizer_config.get("tokenizer_class") or model_config.get("tokenizer_class")
    if not name and model_type:
        name = MODEL_TYPES.get(model_type, f"the tokenizer of {model_type!r}")
    return str(name).removesuffix("Fast") if name else None
