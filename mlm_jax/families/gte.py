"""GTE (Zhang et al. 2024): BERT with rotary positions and a feed-forward gated by GELU, without biases in gate and up.

In training, transformers drops out within the feed-forward; ours after it.
"""

from mlm_jax.families.conventions import but
from mlm_jax.families.names import LayerNames, head_rows
from mlm_jax.families.nomic import ROTARY_CONVENTIONS, rotary_family

_LAYER = LayerNames(
    query="attention.qkv_proj",
    key="attention.qkv_proj",
    value="attention.qkv_proj",
    output="attention.o_proj",
    attention_norm="attn_ln",
    gate="mlp.up_gate_proj",
    up="mlp.up_gate_proj",
    gate_is_first=False,
    down="mlp.down_proj",
    feed_forward_norm="mlp_ln",
)
GTE = rotary_family(
    "GTE",
    "gte",
    "Gte",
    "gte.",
    but(ROTARY_CONVENTIONS, "num_segments", activation=("geglu",), feed_forward_biases=("down",)),
    "gelu",
    {"vocab_size": 250_048, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 8192}
    | {"type_vocab_size": 1},
    160_000.0,
    head_rows("lm_head.dense", "lm_head.norm", "lm_head.decoder.weight", "lm_head.decoder.bias"),
    layer=_LAYER,
    embedding_norm="embeddings.LayerNorm",
    absent_classes=("ForQuestionAnswering",),
)
