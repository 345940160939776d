"""Contestant: features, predictions or fine-tuning of texts, which share rows or have one each."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlm_jax.config.presets import PRESETS
from mlm_jax.data.permutation import permute
from mlm_jax.formats.model_folder import random_classifier, random_model
from mlm_jax.parallel.weights import declared_weights
from mlm_jax.step.update import make_update_rule, state_of
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use import labeled_batches, packed_texts
from mlm_jax.use.fine_tuning import Tuner, fit_settings
from mlm_jax.use.labeled_text import read_labeled_texts
from mlm_jax.use.masked_lm import MaskedLM
from mlm_jax.use.text_classifier import TextClassifier, abstract_classifier
from scripts.benchmark.contest import Round, serve

_BATCH_SIZE = 32
# What padding needs to be small without shared rows: batches whose texts have similar lengths.
_WINDOW = 64 * _BATCH_SIZE


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round of `task` on the first `num_texts` texts; units are real tokens."""
    tokenizer = Tokenizer.load(settings["tokenizer"])
    texts = read_labeled_texts(Path(settings["texts"])).texts[: settings["num_texts"]]
    config = replace(PRESETS[settings["preset"]], vocabulary_size=tokenizer.vocabulary_size)
    layouts: list[packed_texts.Layout] = []
    _watch(layouts)
    if settings["task"] == "features":
        stored = random_model(replace(config, pooler=False), tokenizer, 0)
        model = MaskedLM(stored.config, stored.params, tokenizer)
        parts = [part for text in texts for part in ((text,) if isinstance(text, str) else text)]
        rows = model.encode(parts, truncate=True)
        lengths = [len(row) for row in rows]

        def work() -> object:
            return model.features_of_rows(rows, pooling="mean")
    else:
        params = random_classifier(config, 2, 0)
        classifier = TextClassifier(config, params, tokenizer, ["0", "1"])
        labeled = labeled_batches.labeled_rows(texts, config, tokenizer, None)
        lengths = [len(token_ids) for token_ids, _ in labeled]
        work = _fit(classifier, labeled) if settings["task"] == "fit" else lambda: classifier._scores(labeled)
    if not settings["packed"]:
        _give_each_text_a_row(lengths)
    work()
    shapes = [(len(layout.starts), layout.length) for layout in layouts]
    about = {
        "version": f"jax {jax.__version__}",
        "real_share": sum(lengths) / sum(rows * length for rows, length in shapes),
        "shapes": len(set(shapes)),
    }

    def measured() -> float:
        work()
        return float(sum(lengths))

    return measured, about


def _fit(classifier: TextClassifier, rows: Sequence[labeled_batches.Row]) -> Any:
    """Returns a function that takes the steps of the first epoch, always from the same parameters."""
    steps = -(-len(rows) // _BATCH_SIZE)
    settings = fit_settings(
        classifier.config, num_steps=steps, batch_size=_BATCH_SIZE, seed=0, freeze_backbone=False
    )
    rule = make_update_rule(settings, declared_weights(abstract_classifier(classifier.config, 2)))
    tuner = Tuner(rule, classifier._summed_loss, settings, jax.local_device_count())
    state, targets = state_of(rule, classifier.params), np.arange(len(rows), dtype=np.int32) % 2
    return lambda: tuner.train(state, classifier._batches(rows, targets, _BATCH_SIZE, (0, 0)), steps)


def _watch(layouts: list[packed_texts.Layout]) -> None:
    """Notes the layout of each batch."""
    fill = packed_texts.Layout.fill

    def watched(self: packed_texts.Layout, texts: Sequence[np.ndarray], padding: int) -> np.ndarray:
        # Called twice for a batch with segments.
        if not layouts or layouts[-1] is not self:
            layouts.append(self)
        return fill(self, texts, padding)

    packed_texts.Layout.fill = watched  # type: ignore[method-assign]


def _give_each_text_a_row(lengths: Sequence[int]) -> None:
    """Pads each text to a multiple of 32 tokens or, in a batch of fine-tuning, to the next 16 above the longest."""

    def in_batches(places: np.ndarray, count: int, *order: int) -> np.ndarray:
        by_window = [permute(places, count, *order)[at : at + _WINDOW] for at in range(0, count, _WINDOW)]
        by_length = [own[np.argsort(np.take(lengths, own), kind="stable")] for own in by_window]
        batches = [own[at : at + _BATCH_SIZE] for own in by_length for at in range(0, len(own), _BATCH_SIZE)]
        return np.concatenate(batches)

    def alone(lengths: Sequence[int], longest: int, shortest: int = 32) -> list[tuple[int, list[int]]]:
        return [(max(shortest, -(-length // 32) * 32), [index]) for index, length in enumerate(lengths)]

    def rounded_up(number: int, least: int) -> int:
        return -(-number // 16) * 16

    packed_texts.packed_rows = alone
    for name, function in (("packed_rows", alone), ("permute", in_batches), ("rounded_up", rounded_up)):
        setattr(labeled_batches, name, function)


if __name__ == "__main__":
    serve(prepare)
