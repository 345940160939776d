"""Contestant: KerasHub's MaskedLMMaskGenerator, inside tf.data on all cores or called eagerly."""

from typing import Any

import keras_hub
import tensorflow as tf

from scripts.benchmark.contest import Round, serve
from scripts.benchmark.step_work import StepWork, token_rows


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round that masks `batches` batches; units are rows."""
    work = StepWork(**settings["work"])
    masking, rows = work.masking, tf.constant(token_rows(work, work.batch_size))
    generate = keras_hub.layers.MaskedLMMaskGenerator(
        vocabulary_size=masking.vocabulary_size,
        mask_selection_rate=masking.mask_selection_rate,
        mask_token_id=masking.mask_token_id,
        mask_selection_length=masking.mask_selection_length,
        unselectable_token_ids=list(masking.unselectable_token_ids),
    )
    batches = settings["batches"]
    dataset = (
        tf.data.Dataset.from_tensors(rows)
        .repeat(batches)
        .map(generate, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )

    def in_tf_data() -> float:
        # A new iterator per round, because an open one would read ahead during the turns of others.
        for _ in dataset:
            pass
        return batches * work.batch_size

    def eagerly() -> float:
        for _ in range(batches):
            generate(rows)
        return batches * work.batch_size

    about = {"version": f"keras-hub {keras_hub.__version__}, tensorflow {tf.__version__}"}
    return eagerly if settings["eager"] else in_tf_data, about


if __name__ == "__main__":
    serve(prepare)
