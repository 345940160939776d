"""Contestant: KerasHub's BertMaskedLM in `fit`, on Keras' jax backend, with its own defaults otherwise.

Its rows are masked already: where the library masks, in tf.data, other cores may do so.
"""

from itertools import islice
from typing import Any

import keras
import keras_hub
import numpy as np

from scripts.benchmark.contest import Round, serve
from scripts.benchmark.step_work import StepWork, read_batches


def keras_hub_model(work: StepWork, preprocessor: Any = None) -> keras_hub.models.BertMaskedLM:
    """Returns a new, compiled model of the work's shape."""
    shape = work.model
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=shape.vocabulary_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        hidden_dim=shape.hidden_dim,
        intermediate_dim=shape.intermediate_dim,
        dropout=work.dropout_rate,
        max_sequence_length=shape.max_sequence_length,
    )
    model = keras_hub.models.BertMaskedLM(backbone, preprocessor=preprocessor)
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-4, weight_decay=0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    return model


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round of one epoch of `steps` steps; units are sequences."""
    work = StepWork(**settings["work"])
    model = keras_hub_model(work)
    batches = list(islice(read_batches(settings["batches"], work.batch_size), work.steps))
    rows = np.concatenate([batch["token_ids"] for batch in batches])
    inputs = {
        "token_ids": rows,
        "segment_ids": np.zeros_like(rows),
        "padding_mask": (rows != work.masking.padding_token_id).astype(np.int32),
        "mask_positions": np.concatenate([batch["mask_positions"] for batch in batches]),
    }
    labels = np.concatenate([batch["mask_ids"] for batch in batches])
    weights = np.concatenate([batch["mask_weights"] for batch in batches])

    def epoch() -> float:
        model.fit(inputs, labels, sample_weight=weights, batch_size=work.batch_size, shuffle=False, verbose=0)
        return len(rows)

    return epoch, {"version": f"keras-hub {keras_hub.__version__} on {keras.backend.backend()}"}


if __name__ == "__main__":
    serve(prepare)
