"""Text classification on the pooled vector, as Devlin et al. (2018) fine-tune BERT.

B batch, L length, C classes.
"""

import jax
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mlm_jax.config import BertConfig
from mlm_jax.model.bert import BertEncoder
from mlm_jax.model.layers import Linear, dropout


class BertClassifier(nnx.Module):
    """Encoder with pooler, dropout on the pooled vector, and a linear map to the classes."""

    def __init__(self, config: BertConfig, num_classes: int, *, key: Key[Array, ""]) -> None:
        encoder_key, classifier_key = jax.random.split(key)
        width, stddev = (config.hidden_dim,), config.initializer_stddev
        self.dropout_rate = config.dropout_rate
        self.encoder = BertEncoder(config, key=encoder_key)
        axes = ("embed", "classes")
        self.classifier = Linear(width, (num_classes,), axes, stddev=stddev, key=classifier_key)

    def __call__(
        self,
        token_ids: Int[Array, "B L"],
        padding_mask: Bool[Array, "B L"],
        segment_ids: Int[Array, "B L"] | None,
        *,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B C"]:
        """Returns the logits, float32; without a `dropout_key` there is no dropout."""
        keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))
        hidden = self.encoder(token_ids, padding_mask, segment_ids, dropout_key=keys[0])
        pooled = self.encoder.pool(hidden, padding_mask)
        return self.classifier(dropout(pooled, self.dropout_rate, keys[1]))
