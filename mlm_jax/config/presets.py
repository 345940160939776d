"""The BERT sizes that Google published, under KerasHub's names."""

from mlm_jax.config import BertConfig


def _bert(num_layers: int, hidden_dim: int, num_heads: int, vocabulary_size: int = 30_522) -> BertConfig:
    return BertConfig(
        vocabulary_size=vocabulary_size,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        num_heads=num_heads,
        intermediate_dim=4 * hidden_dim,
    )


PRESETS: dict[str, BertConfig] = {
    "bert_tiny_en_uncased": _bert(2, 128, 2),
    "bert_small_en_uncased": _bert(4, 512, 8),
    "bert_medium_en_uncased": _bert(8, 512, 8),
    "bert_base_en_uncased": _bert(12, 768, 12),
    "bert_base_en": _bert(12, 768, 12, 28_996),
    "bert_base_zh": _bert(12, 768, 12, 21_128),
    "bert_base_multi": _bert(12, 768, 12, 119_547),
    "bert_large_en_uncased": _bert(24, 1024, 16),
    "bert_large_en": _bert(24, 1024, 16, 28_996),
    # Encoder of a two-class sentence classifier.
    "bert_tiny_en_uncased_sst2": _bert(2, 128, 2),
}
