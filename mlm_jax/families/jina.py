"""Jina Embeddings 3 (Sturua et al. 2024): BERT with rotary positions and RoBERTa's heads."""

from mlm_jax.families.conventions import but
from mlm_jax.families.names import head_rows
from mlm_jax.families.nomic import NOMIC_LAYER, ROTARY_CONVENTIONS, rotary_family

_JINA_LAYER = NOMIC_LAYER._replace(
    query="mixer.Wqkv",
    key="mixer.Wqkv",
    value="mixer.Wqkv",
    output="mixer.out_proj",
    gate="",
    up="mlp.fc1",
)
JINA_EMBEDDINGS_V3 = rotary_family(
    "Jina Embeddings 3",
    "jina_embeddings_v3",
    "JinaEmbeddingsV3",
    "roberta.",
    but(ROTARY_CONVENTIONS, activation=("gelu",)),
    "gelu",
    {"vocab_size": 250_002, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    | {"intermediate_size": 4096, "max_position_embeddings": 8194, "type_vocab_size": 1}
    | {"layer_norm_eps": 1e-5},
    20_000.0,
    head_rows("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight", "lm_head.bias"),
    layer=_JINA_LAYER,
    classifier="classifier.out_proj",
)
