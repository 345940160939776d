"""Text classification on the pooled vector, as Devlin et al. (2018) fine-tune BERT.

B batch, L length, S texts of a row, C classes.
"""

import jax
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mlm_jax.config import BertConfig
from mlm_jax.model.bert import BertEncoder
from mlm_jax.model.layers import Linear, dropout
from mlm_jax.model.packed import texts_and_positions


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
        starts: Int[Array, "B S"],
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B S C"]:
        """Returns the logits of each text, float32; without a `dropout_key` there is no dropout.

        `starts` are the columns where the texts of a row start (see `mlm_jax.model.packed`).
        """
        keys = (None, None) if dropout_key is None else tuple(jax.random.split(dropout_key))
        document_ids, position_ids = texts_and_positions(starts, token_ids.shape[1])
        hidden = self.encoder(
            token_ids,
            padding_mask,
            segment_ids,
            document_ids=document_ids,
            position_ids=position_ids,
            dropout_key=keys[0],
        )
        pooled = self.encoder.pooler.pool(hidden, padding_mask, starts)
        return self.classifier(dropout(pooled, self.dropout_rate, keys[1]))
