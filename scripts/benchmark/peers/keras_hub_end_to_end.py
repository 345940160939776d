"""Contestant: KerasHub's BertMaskedLM, `fit` on strings, with its own tokenizer and masking in tf.data."""

from typing import Any

import keras
import keras_hub
import numpy as np

from scripts.benchmark.contest import Round, serve
from scripts.benchmark.corpus import document_slices, passages
from scripts.benchmark.peers.keras_hub_step import keras_hub_model
from scripts.benchmark.step_work import StepWork


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round whose units are real tokens of the rows of passages. KerasHub truncates long passages."""
    work = StepWork(**settings["work"])
    tokenizer = keras_hub.models.BertTokenizer(
        vocabulary=f"{settings['tokenizer']}/vocab.txt", lowercase=True
    )
    preprocessor = keras_hub.models.BertMaskedLMPreprocessor(
        tokenizer,
        sequence_length=work.sequence_length,
        mask_selection_rate=work.masking.mask_selection_rate,
        mask_selection_length=work.masked,
    )
    model = keras_hub_model(work, preprocessor)
    slices = document_slices(settings["texts"], settings["documents"])
    real_tokens: list[float] = []

    def epoch() -> float:
        texts = passages(next(slices))
        whole = texts[: len(texts) // work.batch_size * work.batch_size]
        model.fit(whole, batch_size=work.batch_size, verbose=0)
        return len(whole) * mean_real_tokens(whole)

    def mean_real_tokens(texts: list[str]) -> float:
        """Returns the mean number of real tokens per row, counted once because it is not part of the work."""
        if not real_tokens:
            inputs, _, _ = preprocessor(texts[:512])
            real_tokens.append(float(np.mean(np.sum(np.asarray(inputs["padding_mask"]), axis=1))))
        return real_tokens[0]

    return epoch, {"version": f"keras-hub {keras_hub.__version__} on {keras.backend.backend()}"}


if __name__ == "__main__":
    serve(prepare)
