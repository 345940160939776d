"""TextClassifier: loading, fine-tuning, prediction, evaluation and saving of a text classifier."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mlm_jax.config import BertConfig
from mlm_jax.data.permutation import permute
from mlm_jax.errors import InputError
from mlm_jax.files.atomic import new_folder
from mlm_jax.formats.model_folder import StoredModel, write_model_folder
from mlm_jax.keys import Purpose, purpose_key
from mlm_jax.model.classifier import BertClassifier
from mlm_jax.model.layers import split_model
from mlm_jax.model.loss import LossSums
from mlm_jax.parallel.weights import declared_weights
from mlm_jax.run.reporting import say
from mlm_jax.step.update import make_update_rule, state_of
from mlm_jax.store.loading import load_model
from mlm_jax.text.progress import progress_bar
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.fine_tuning import FitResult, Tuner, fit_settings
from mlm_jax.use.labeled_text import Text
from mlm_jax.use.progress import counted

_LENGTH_BUCKET = 16
# Number of batches within which rows are sorted by length, to reduce padding.
_WINDOW_BATCHES = 64


class LabeledBatch(NamedTuple):
    """Rows of one step."""

    token_ids: Any
    """int32 [B, L]"""
    segment_ids: Any
    """int32 [B, L]"""
    labels: Any
    """int32 [B]"""
    weights: Any
    """float32 [B]: 0 for rows that only complete the batch."""


@dataclass(frozen=True)
class ClassifierEvaluation:
    """Evaluation metrics of a classifier."""

    accuracy: float
    loss: float
    """Mean cross-entropy, in nats."""
    examples: int


class TextClassifier:
    """A text classifier: its config, parameters (encoder and classifier), tokenizer and class names.

    If `progress` is True, evaluations and predictions that take longer than two seconds show a progress bar on
    stderr if it is a terminal.
    """

    progress = False

    def __init__(self, config: BertConfig, params: Any, tokenizer: Tokenizer, labels: Sequence[str]) -> None:
        self.config = replace(config, pooler=True)
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        self.tokenizer = tokenizer
        self.labels = tuple(labels)
        self._graph, _ = split_model(_abstract(self.config, len(self.labels)))

    @classmethod
    def from_preset(
        cls,
        model: str | Path,
        *,
        num_classes: int | None = None,
        labels: Sequence[str] | None = None,
        load_weights: bool = True,
        dropout_rate: float | None = None,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
    ) -> Self:
        """Loads a classifier, or adds a new one to the encoder of `model`; see `MaskedLM.from_preset` for names.

        A new classifier has the classes `labels`, or `num_classes` classes named 0, 1, … (by default 2). A message on
        stderr lists the random parts: the classifier, and the pooler if the encoder has none. `dropout_rate` replaces
        the model's own, also in attention, because models may be pretrained without dropout.

        Raises:
            InputError: there is no such model, or it does not have the requested classes.
        """
        stored = load_model(model, load_weights=load_weights, tokenizer=tokenizer, seed=seed)
        if dropout_rate is not None:
            config = replace(stored.config, dropout_rate=dropout_rate, attention_dropout_rate=dropout_rate)
            stored = replace(stored, config=config)
        if labels is not None and num_classes not in (None, len(labels)):
            raise InputError(f"num_classes = {num_classes}: must be the number of labels, {len(labels)}")
        wanted = len(labels) if labels is not None else num_classes
        if "classifier" in stored.params and stored.labels:
            if wanted not in (None, len(stored.labels)):
                raise InputError(
                    f"{model}: has {len(stored.labels)} classes: must have the requested {wanted}"
                )
            parts = {part: stored.params[part] for part in ("encoder", "classifier")}
            return cls(stored.config, parts, stored.tokenizer, labels or stored.labels)
        wanted = 2 if wanted is None else wanted
        if wanted < 2:
            raise InputError(f"num_classes = {wanted}: must be at least 2")
        config = replace(stored.config, pooler=True)
        fresh = _fresh(config, wanted, seed)
        encoder = stored.params["encoder"]
        if load_weights:
            random_parts = "classifier has" if "pooler" in encoder else "classifier and the pooler have"
            say(f"{model}: the {random_parts} random weights and must be fine-tuned")
        params = {"encoder": fresh["encoder"] | encoder, "classifier": fresh["classifier"]}
        return cls(config, params, stored.tokenizer, labels or [str(index) for index in range(wanted)])

    def save(self, folder: str | Path) -> None:
        """Writes the classifier atomically to a new folder. Raises InputError if the folder exists."""
        with new_folder(Path(folder)) as partial_folder:
            params = jax.tree.map(np.asarray, self.params)
            write_model_folder(partial_folder, StoredModel(self.config, params, self.tokenizer, self.labels))

    def fit(
        self,
        texts: Sequence[Text],
        labels: Sequence[int | str],
        *,
        batch_size: int = 32,
        num_epochs: int = 3,
        learning_rate: float = 5e-5,
        eval_texts: Sequence[Text] | None = None,
        eval_labels: Sequence[int | str] | None = None,
        sequence_length: int | None = None,
        layer_rate_decay: float = 1.0,
        freeze_backbone: bool = False,
        seed: int = 0,
        on_epoch: Callable[[int, FitResult, ClassifierEvaluation | None], None] | None = None,
    ) -> list[ClassifierEvaluation]:
        """Fine-tunes for `num_epochs` epochs of AdamW, with warm-up over a tenth of the steps and linear decay to 0.

        With `eval_texts`, evaluates every epoch, keeps the parameters of the best epoch (the first of equals), and
        returns the evaluations. Texts are strings or pairs of strings; labels are numbers or names. `layer_rate_decay`
        is as in `OptimizerConfig`: below 1, the first layers learn more slowly than the last. `on_epoch` is called with
        the number of the epoch, from 1, its step metrics and its evaluation.

        Raises:
            InputError: a text, a label or a setting is invalid.
            RunError: the loss is no longer finite; the model is unchanged.
        """
        rows, targets = self._rows(texts, sequence_length), self._targets(labels, len(texts))
        if (eval_texts is None) != (eval_labels is None):
            raise InputError("eval_texts and eval_labels: must be given together")
        if num_epochs < 1:
            raise InputError(f"num_epochs = {num_epochs}: must be at least 1")
        steps = -(-len(rows) // batch_size)
        settings = fit_settings(
            self.config,
            num_steps=steps * num_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=steps * num_epochs // 10,
            layer_rate_decay=layer_rate_decay,
            freeze_backbone=freeze_backbone,
            seed=seed,
        )
        rule = make_update_rule(settings, declared_weights(_abstract(self.config, len(self.labels))))
        tuner = Tuner(rule, self._summed_loss, settings, batch_size)
        evaluations: list[ClassifierEvaluation] = []
        best, state = self.params, state_of(rule, self.params)
        before, finished = self.params, False
        try:
            for epoch in range(num_epochs):
                batches = self._batches(rows, targets, batch_size, order=(seed, epoch))
                state, result = tuner.train(state, batches, steps)
                self.params = state.params
                found = None
                if eval_texts is not None and eval_labels is not None:
                    found = self.evaluate(eval_texts, eval_labels, sequence_length=sequence_length)
                    if not evaluations or found.accuracy > max(e.accuracy for e in evaluations):
                        best = jax.tree.map(jnp.copy, self.params)
                    evaluations.append(found)
                if on_epoch is not None:
                    on_epoch(epoch + 1, result, found)
            finished = True
        finally:
            if not finished:
                self.params = before
        if evaluations:
            self.params = best
        return evaluations

    def predict(self, texts: Sequence[Text], *, batch_size: int = 64) -> np.ndarray:
        """Returns int [texts]: the index in `labels` of the most probable class."""
        return np.argmax(self.predict_probabilities(texts, batch_size=batch_size), axis=1)

    def predict_probabilities(self, texts: Sequence[Text], *, batch_size: int = 64) -> np.ndarray:
        """Returns the probabilities of the classes, float32 [texts, classes]."""
        rows = self._rows(texts, None)
        numbers = np.arange(len(rows), dtype=np.int32)
        probabilities = np.empty((len(rows), len(self.labels)), np.float32)
        # The labels of the batches hold the indices of the rows, because batches are sorted by length.
        with progress_bar(len(rows), "text", shown=self.progress) as bar:
            for batch in self._batches(rows, numbers, batch_size):
                real = batch.weights > 0
                logits = self._logits(self.params, batch.token_ids, batch.segment_ids)
                probabilities[batch.labels[real]] = np.asarray(jax.nn.softmax(logits))[real]
                bar.update(int(real.sum()))
        return probabilities

    def evaluate(
        self,
        texts: Sequence[Text],
        labels: Sequence[int | str],
        *,
        batch_size: int = 64,
        sequence_length: int | None = None,
    ) -> ClassifierEvaluation:
        """Returns accuracy and loss on labeled texts."""
        rows, targets = self._rows(texts, sequence_length), self._targets(labels, len(texts))
        with progress_bar(len(rows), "text", shown=self.progress) as bar:
            batches = self._batches(rows, targets, batch_size)
            sums = list(counted((self._sums(self.params, batch) for batch in batches), bar, batch_size))
        loss, correct, weight = np.sum(np.asarray(jax.device_get(sums), np.float64), axis=0)
        return ClassifierEvaluation(float(correct / weight), float(loss / weight), round(weight))

    @cached_property
    def _logits(self) -> Any:
        return jax.jit(partial(self._compute_logits, dropout_key=None))

    @cached_property
    def _sums(self) -> Any:
        return jax.jit(partial(self._summed_loss, dropout_key=None))

    def _compute_logits(
        self, params: Any, token_ids: Array, segment_ids: Array, dropout_key: Array | None
    ) -> Array:
        padding_mask = token_ids != self.tokenizer.pad_token_id
        model = nnx.merge(self._graph, params)
        # `_rows` rejects pairs of texts for models without segments.
        segments = segment_ids if self.config.num_segments else None
        return model(token_ids, padding_mask, segments, dropout_key=dropout_key)

    def _summed_loss(self, params: Any, batch: LabeledBatch, dropout_key: Array | None) -> LossSums:
        logits = self._compute_logits(params, batch.token_ids, batch.segment_ids, dropout_key)
        chances = jax.nn.log_softmax(logits)
        losses = -jnp.take_along_axis(chances, batch.labels[:, None], axis=1)[:, 0]
        right = jnp.argmax(logits, axis=1) == batch.labels
        return LossSums(
            loss=jnp.sum(batch.weights * losses),
            correct=jnp.sum(batch.weights * right),
            weight=jnp.sum(batch.weights),
        )

    def _rows(
        self, texts: Sequence[Text], sequence_length: int | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the token ids and segment ids of each text. Truncates long texts, or the longer part of a pair."""
        if isinstance(texts, str) or not len(texts):
            raise InputError("texts: must be a list of at least one string or pair of strings")
        longest = self.config.max_sequence_length
        limit = longest if sequence_length is None else sequence_length
        if not 5 <= limit <= longest:
            raise InputError(f"sequence_length = {limit}: must be in [5, {longest}]")
        parts = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        for index, part in enumerate(parts):
            if len(part) not in (1, 2) or not all(isinstance(text, str) for text in part):
                raise InputError(f"text {index}: must be a string or a pair of strings")
        if max(map(len, parts)) == 2 and self.config.num_segments < 2:
            raise InputError("pairs of texts: must have a model with two segments")
        encoded = iter(self.tokenizer.encode_batch([text for part in parts for text in part]))
        ends = np.array([self.tokenizer.sep_token_id], np.int32)
        rows, cut = [], 0
        for part in parts:
            bodies = [next(encoded) for _ in part]
            room = limit - 1 - len(bodies)
            cut += sum(map(len, bodies)) > room
            while sum(map(len, bodies)) > room:
                index = int(np.argmax([len(body) for body in bodies]))
                others = sum(map(len, bodies)) - len(bodies[index])
                bodies[index] = bodies[index][: max(room - others, len(bodies[index]) // 2, 1)]
            pieces = [np.concatenate([body, ends]) for body in bodies]
            token_ids = np.concatenate([[self.tokenizer.cls_token_id], *pieces]).astype(np.int32)
            segment_ids = np.zeros(len(token_ids), np.int32)
            if len(pieces) == 2:
                segment_ids[1 + len(pieces[0]) :] = 1
            rows.append((token_ids, segment_ids))
        if cut:
            say(f"{cut:,} of {len(rows):,} texts are longer than {limit} tokens and were truncated")
        return rows

    def _targets(self, labels: Sequence[int | str], count: int) -> np.ndarray:
        if len(labels) != count:
            raise InputError(f"{len(labels)} labels: must be one for each of {count} texts")
        numbers: dict[int | str, int] = {label: number for number, label in enumerate(self.labels)}
        numbers |= {number: number for number in range(len(self.labels))}
        targets = np.empty(count, np.int32)
        for index, label in enumerate(labels):
            key = label if isinstance(label, str) else int(label)
            if key not in numbers:
                raise InputError(
                    f"label {index}: {label!r}: must be a number below {len(self.labels)} or one of {self.labels}"
                )
            targets[index] = numbers[key]
        return targets

    def _batches(
        self,
        rows: Sequence[tuple[np.ndarray, np.ndarray]],
        targets: np.ndarray,
        batch_size: int,
        order: tuple[int, int] | None = None,
    ) -> Iterator[LabeledBatch]:
        """Yields every row once, sorted by length, or in random order if `order` is (seed, epoch).

        In random order, permuted rows are sorted by length within windows of many batches, and the batches of a window
        are then permuted.
        """
        places = np.arange(len(rows))
        if order is not None:
            places = permute(places, len(rows), *order)
        lengths = np.array([len(token_ids) for token_ids, _ in rows])
        window = _WINDOW_BATCHES * batch_size if order is not None else len(rows)
        for first in range(0, len(rows), window):
            chosen = places[first : first + window]
            chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
            starts = np.arange(0, len(chosen), batch_size)
            if order is not None:
                starts = starts[permute(np.arange(len(starts)), len(starts), *order)]
            for start in starts:
                yield self._batch(rows, targets, chosen[start : start + batch_size], batch_size)

    def _batch(
        self,
        rows: Sequence[tuple[np.ndarray, np.ndarray]],
        targets: np.ndarray,
        chosen: np.ndarray,
        batch_size: int,
    ) -> LabeledBatch:
        longest = max(len(rows[index][0]) for index in chosen)
        length = min(-(-longest // _LENGTH_BUCKET) * _LENGTH_BUCKET, self.config.max_sequence_length)
        token_ids = np.full((batch_size, length), self.tokenizer.pad_token_id, np.int32)
        segment_ids = np.zeros((batch_size, length), np.int32)
        for place, index in enumerate(chosen):
            for array, values in zip((token_ids, segment_ids), rows[index], strict=True):
                array[place, : len(values)] = values
        labels, weights = np.zeros(batch_size, np.int32), np.zeros(batch_size, np.float32)
        labels[: len(chosen)], weights[: len(chosen)] = targets[chosen], 1.0
        return LabeledBatch(token_ids, segment_ids, labels, weights)


def _abstract(config: BertConfig, num_classes: int) -> BertClassifier:
    return nnx.eval_shape(lambda: BertClassifier(config, num_classes, key=jax.random.key(0)))


def _fresh(config: BertConfig, num_classes: int, seed: int) -> dict[str, Any]:
    key = purpose_key(seed, Purpose.CLASSIFIER)
    return split_model(BertClassifier(config, num_classes, key=key))[1]
