"""TextClassifier: loading, fine-tuning, prediction, evaluation and saving of a text classifier or regression."""

import math
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mlm_jax.config import BertConfig
from mlm_jax.config.training_record import TrainingRecord
from mlm_jax.corpus.progress import progress_bar
from mlm_jax.errors import InputError
from mlm_jax.files.atomic import new_folder
from mlm_jax.files.targets import target_path
from mlm_jax.formats.model_folder import (
    ProblemType,
    StoredModel,
    check_model,
    random_classifier,
    write_model_folder,
)
from mlm_jax.model.classifier import BertClassifier
from mlm_jax.model.layers import split_model
from mlm_jax.model.loss import LossSums
from mlm_jax.parallel.weights import declared_weights
from mlm_jax.run.reporting import say
from mlm_jax.step.update import make_update_rule, state_of
from mlm_jax.store.loading import load_model
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.descriptions import TrainedLength, shape_of, trained_on
from mlm_jax.use.fine_tuning import FitResult, Tuner, fit_settings
from mlm_jax.use.inference import finite
from mlm_jax.use.labeled_batches import LabeledBatch, Row, labeled_batches, labeled_rows
from mlm_jax.use.labeled_text import Text
from mlm_jax.use.labels import Where, check_count, class_names, kind_of, listed, shown
from mlm_jax.use.objectives import (
    OBJECTIVES,
    Objective,
    check_problem_type,
    check_trained_head,
    num_outputs_of,
    problem_of,
    rank_of,
)
from mlm_jax.use.packed_texts import layouts


@dataclass(frozen=True)
class ClassifierEvaluation:
    """Evaluation metrics of a classifier."""

    loss: float
    """Mean loss: cross-entropy in nats, or squared error."""
    examples: int
    metrics: Mapping[str, float | None]
    """`accuracy`; for several labels a text `micro_f1` and `accuracy`; for a regression `pearson`, `spearman` and
    `rmse`. None if undefined, such as a correlation with equal values."""

    @property
    def accuracy(self) -> float | None:
        """Share of right texts; None for a regression."""
        return self.metrics.get("accuracy")


class TextClassifier:
    """A text classifier or regression: config, parameters (encoder and classifier), tokenizer, names of the outputs.

    `problem_type` is that of transformers, or None if the model does not state it; `mlm_jax.use.objectives` lists
    the loss, predictions and metrics of each type. If `progress` is True, evaluations and predictions that take longer
    than two seconds show a progress bar on stderr if it is a terminal.
    """

    progress = False

    def __init__(
        self,
        config: BertConfig,
        params: Any,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        problem_type: ProblemType | None = None,
        training: TrainingRecord | None = None,
    ) -> None:
        check_problem_type(problem_type)
        if isinstance(labels, Set):
            raise InputError(
                "labels: found a set, which has no order: must be the names of the outputs in order"
            )
        labels = class_names(labels, may_repeat=True)
        self.config = replace(config, pooler=True)
        check_model(self.config, params, tokenizer, len(labels))
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
        self.tokenizer = tokenizer
        self.labels = labels
        self.problem_type = problem_type
        self.training = training
        self._trained_length = TrainedLength(training)
        self._graph, _ = split_model(abstract_classifier(self.config, len(self.labels)))

    def __repr__(self) -> str:
        return (
            f"TextClassifier({shape_of(self.config, self.params)}, {self.problem}, "
            f"labels {shown(self.labels)}, {self.tokenizer!r})"
        )

    @classmethod
    def from_preset(
        cls,
        model: str | Path,
        *,
        num_classes: int | None = None,
        labels: Sequence[Any] | Set[Any] | None = None,
        problem_type: ProblemType | None = None,
        load_weights: bool = True,
        dropout_rate: float | None = None,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
    ) -> Self:
        """Loads a classifier, or adds a new one to the encoder of `model`; see `MaskedLM.from_preset` for names.

        A new classifier has the classes `labels`, or `num_classes` classes named 0, 1, … (by default 2, or 1 value for
        a regression). A set of labels has no order: a new classifier sorts them, and a trained one must have them. A
        message on stderr lists the random parts: the classifier, and the pooler if the encoder has none. A pooler that
        is like the MLM head begins with the weights of that head, if the model has one.
        `dropout_rate` replaces the model's own, also in attention, because models may be pretrained without dropout.

        Raises:
            InputError: there is no such model, or its classifier has other classes or another problem type.
        """
        stored = load_model(model, load_weights=load_weights, tokenizer=tokenizer, seed=seed)
        classifier = cls.from_stored(
            model,
            stored,
            num_classes=num_classes,
            labels=labels,
            problem_type=problem_type,
            dropout_rate=dropout_rate,
            seed=seed,
        )
        if isinstance(labels, Set) and not isinstance(labels, KeysView):
            say(f"labels: a set has no order: the classes are {shown(classifier.labels)}, in this order")
        return classifier

    @classmethod
    def from_stored(
        cls,
        model: str | Path,
        stored: StoredModel,
        *,
        num_classes: int | None = None,
        labels: Sequence[Any] | Set[Any] | None = None,
        problem_type: ProblemType | None = None,
        dropout_rate: float | None = None,
        seed: int = 0,
    ) -> Self:
        """Same as `from_preset` for a loaded model; messages call it `model`."""
        check_problem_type(problem_type)
        # The keys of a dictionary are a set with an order.
        labels = list(labels) if isinstance(labels, KeysView) else labels
        if dropout_rate is not None:
            config = replace(stored.config, dropout_rate=dropout_rate, attention_dropout_rate=dropout_rate)
            stored = replace(stored, config=config)
        names = sorted(class_names(sorted(labels, key=str))) if isinstance(labels, Set) else None
        if labels is not None and names is None:
            names = list(class_names(labels))
        if names is not None and num_classes not in (None, len(names)):
            raise InputError(f"num_classes = {num_classes}: must be the number of labels, {len(names)}")
        if "classifier" in stored.params and stored.labels:
            ordered = not isinstance(labels, Set)
            check_trained_head(model, stored, num_classes, names, problem_type, ordered)
            params = {part: stored.params[part] for part in ("encoder", "classifier")}
            named = stored.labels if names is None or set(names) <= set(stored.labels) else names
            known = problem_type or stored.problem_type
            if len(named) == 1 and known is None:
                say(
                    f"{model}: one output and no problem_type: read as the logit of a probability, as in transformers' "
                    "pipeline; problem_type='regression' reads it as a value"
                )
            return cls(stored.config, params, stored.tokenizer, named, known, stored.training)
        wanted = num_outputs_of(problem_type, len(names) if names is not None else num_classes)
        config = replace(stored.config, pooler=True)
        fresh = random_classifier(config, wanted, seed)
        encoder = stored.params["encoder"]
        if config.pooler_kind == "head" and "pooler" not in encoder and "head" in stored.params:
            # transformers begins with the trained head, too.
            head = stored.params["head"]
            encoder = encoder | {"pooler": head["dense"] | {"norm": head["norm"]}}
        random_parts = "classifier has" if "pooler" in encoder else "classifier and the pooler have"
        say(f"{model}: the {random_parts} random weights and must be fine-tuned")
        params = {"encoder": fresh["encoder"] | encoder, "classifier": fresh["classifier"]}
        named = names if names is not None else [str(index) for index in range(wanted)]
        problem_type = problem_type or "single_label_classification"
        return cls(config, params, stored.tokenizer, named, problem_type, stored.training)

    def save(self, folder: str | Path) -> None:
        """Writes the classifier atomically to a new folder. Raises InputError if the folder exists."""
        with new_folder(target_path(folder)) as partial_folder:
            params = jax.tree.map(np.asarray, self.params)
            stored = StoredModel(
                self.config, params, self.tokenizer, self.labels, self.problem_type, self.training
            )
            write_model_folder(partial_folder, stored)

    def fit(
        self,
        texts: Sequence[Text],
        labels: Sequence[Any],
        *,
        batch_size: int = 32,
        num_epochs: int = 3,
        learning_rate: float = 5e-5,
        eval_texts: Sequence[Text] | None = None,
        eval_labels: Sequence[Any] | None = None,
        sequence_length: int | None = None,
        layer_rate_decay: float = 1.0,
        freeze_backbone: bool = False,
        seed: int = 0,
        on_epoch: Callable[[int, FitResult, ClassifierEvaluation | None], None] | None = None,
    ) -> list[ClassifierEvaluation]:
        """Fine-tunes for `num_epochs` epochs of AdamW, with warm-up over a tenth of the steps and linear decay to 0.

        A step has `batch_size` texts in random order, and its loss is their mean, whichever rows they share.
        With `eval_texts`, evaluates every epoch, keeps the parameters of the best epoch (the first of equals), and
        returns the evaluations. Texts are strings or pairs of strings. A label is the name of a class, a list of names
        or of numbers in [0, 1] if a text has several labels, or the value of a regression; `mlm_jax.use.labels` has the
        rules. `layer_rate_decay` is as in `OptimizerConfig`: below 1, the first layers learn more slowly than the last.
        `on_epoch` is called with the number of the epoch, from 1, its step metrics and its evaluation.

        Raises:
            InputError: a text, a label or a setting is invalid; the message has the index of the text or label.
            RunError: the loss is no longer finite; the model is unchanged.
        """
        rows = self._rows(texts, sequence_length)
        targets = self._targets(labels, len(rows))
        if (eval_texts is None) != (eval_labels is None):
            raise InputError("eval_texts and eval_labels: must be given together")
        check_count("num_epochs", num_epochs)
        check_count("batch_size", batch_size)
        if on_epoch is not None and not callable(on_epoch):
            raise InputError(f"on_epoch: found {kind_of(on_epoch)}: must be a function or None")
        eval_rows, eval_targets = None, None
        if eval_texts is not None:
            eval_rows = self._rows(eval_texts, sequence_length, "eval text")
            eval_targets = self._targets(eval_labels, len(eval_rows), "eval label")
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
        rule = make_update_rule(
            settings, declared_weights(abstract_classifier(self.config, len(self.labels)))
        )
        tuner = Tuner(rule, self._summed_loss, settings, jax.local_device_count())
        evaluations: list[ClassifierEvaluation] = []
        best, best_rank, state = self.params, -math.inf, state_of(rule, self.params)
        before, finished = self.params, False
        try:
            for epoch in range(num_epochs):
                batches = self._batches(rows, targets, batch_size, order=(seed, epoch))
                state, result = tuner.train(state, batches, steps)
                self.params = state.params
                found = None
                if eval_rows is not None and eval_targets is not None:
                    found = self._evaluate(eval_rows, eval_targets)
                    rank = rank_of(self._objective, found.metrics)
                    if not evaluations or rank > best_rank:
                        best, best_rank = jax.tree.map(jnp.copy, self.params), rank
                    evaluations.append(found)
                if on_epoch is not None:
                    on_epoch(epoch + 1, result, found)
            finished = True
        finally:
            if not finished:
                self.params = before
        if evaluations:
            self.params = best
        self.training = trained_on(self.training, max(len(token_ids) for token_ids, _ in rows))
        self._trained_length = TrainedLength(self.training)
        return evaluations

    def predict(self, texts: Sequence[Text]) -> np.ndarray:
        """Returns the index in `labels` of the most probable class, int [texts].

        For several labels a text, returns which probabilities are at least 0.5, bool [texts, labels]; for a regression,
        the values, float32 [texts, outputs]. The last axis is omitted if there is one output.
        """
        found = self._objective.predictions(self._scores(self._rows(texts, None)))
        return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found

    def predict_probabilities(self, texts: Sequence[Text]) -> np.ndarray:
        """Returns the probability of each class or label, float32 [texts, classes].

        Raises:
            InputError: a text is invalid, or the model is a regression.
        """
        if self.problem == "regression":
            raise InputError("predict_probabilities: a regression has none: predict returns its values")
        return self._scores(self._rows(texts, None))

    def evaluate(
        self, texts: Sequence[Text], labels: Sequence[Any], *, sequence_length: int | None = None
    ) -> ClassifierEvaluation:
        """Returns the metrics and the loss on labeled texts."""
        rows = self._rows(texts, sequence_length)
        return self._evaluate(rows, self._targets(labels, len(rows)))

    def targets(self, labels: Sequence[Any], where: Where = "label {}".format) -> np.ndarray:
        """Returns labels as the outputs that training aims at: int32 [labels], or float32 [labels, outputs].

        Raises:
            InputError: a label is of the wrong type or unknown; the message begins with `where` of its index.
        """
        return self._objective.targets(labels, self.labels, where)

    @property
    def problem(self) -> ProblemType:
        """Problem type that the outputs are read by; not None even if `problem_type` is."""
        return problem_of(self.problem_type, len(self.labels))

    @property
    def _objective(self) -> Objective:
        return OBJECTIVES[self.problem]

    @cached_property
    def _logits(self) -> Any:
        return jax.jit(partial(self._compute_logits, dropout_key=None))

    def _compute_logits(
        self, params: Any, token_ids: Array, segment_ids: Array, starts: Array, dropout_key: Array | None
    ) -> Array:
        """Returns the logits of the texts of each row, [B, S, C]."""
        padding_mask = token_ids != self.tokenizer.pad_token_id
        model = nnx.merge(self._graph, params)
        # `labeled_rows` rejects pairs of texts for models without segments.
        segments = segment_ids if self.config.num_segments else None
        return model(token_ids, padding_mask, segments, starts=starts, dropout_key=dropout_key)

    def _summed_loss(self, params: Any, batch: LabeledBatch, dropout_key: Array | None) -> LossSums:
        logits = self._compute_logits(params, batch.token_ids, batch.segment_ids, batch.starts, dropout_key)
        # Flattened to texts, [B · S].
        logits, labels, weights = (
            each.reshape(-1, *each.shape[2:]) for each in (logits, batch.labels, batch.weights)
        )
        return LossSums(
            loss=jnp.sum(weights * self._objective.losses(logits, labels)),
            correct=jnp.sum(weights * self._objective.correct(logits, labels)),
            weight=jnp.sum(weights),
        )

    def _evaluate(self, rows: Sequence[Row], targets: np.ndarray) -> ClassifierEvaluation:
        logits = self._all_logits(rows)
        losses = np.asarray(self._objective.losses(jnp.asarray(logits), jnp.asarray(targets)), np.float64)
        scores = np.asarray(self._objective.scores(jnp.asarray(logits)))
        return ClassifierEvaluation(float(losses.mean()), len(rows), self._objective.metrics(scores, targets))

    def _scores(self, rows: Sequence[Row]) -> np.ndarray:
        return np.array(self._objective.scores(jnp.asarray(self._all_logits(rows))))

    def _all_logits(self, rows: Sequence[Row]) -> np.ndarray:
        """Returns the logits of all texts in their order, float32 [texts, outputs]."""
        logits = np.empty((len(rows), len(self.labels)), np.float32)
        token_ids, segment_ids = zip(*rows, strict=True)
        with progress_bar(len(rows), "text", shown=self.progress) as bar:
            for layout in layouts([len(ids) for ids in token_ids], self.config.max_sequence_length):
                tokens = layout.fill(token_ids, self.tokenizer.pad_token_id)
                found = self._logits(self.params, tokens, layout.fill(segment_ids, 0), layout.starts)
                logits[layout.texts] = finite(np.asarray(found)[layout.rows, layout.slots])
                bar.update(len(layout.texts))
        return logits

    def _rows(self, texts: Any, sequence_length: int | None, what: str = "text") -> list[Row]:
        rows = labeled_rows(texts, self.config, self.tokenizer, sequence_length, what)
        self._trained_length.check([token_ids for token_ids, _ in rows])
        return rows

    def _targets(self, labels: Any, count: int, what: str = "label") -> np.ndarray:
        given = listed(labels, f"{what}s")
        if len(given) != count:
            raise InputError(f"{len(given)} {what}s: must be one for each of {count} texts")
        return self.targets(given, lambda index: f"{what} {index}")

    def _batches(
        self,
        rows: Sequence[Row],
        targets: np.ndarray,
        batch_size: int,
        order: tuple[int, int],
    ) -> Iterator[LabeledBatch]:
        longest = self.config.max_sequence_length
        return labeled_batches(rows, targets, batch_size, self.tokenizer.pad_token_id, longest, order)


def abstract_classifier(config: BertConfig, num_classes: int) -> BertClassifier:
    """Returns the classifier with shapes in place of arrays."""
    return nnx.eval_shape(lambda: BertClassifier(config, num_classes, key=jax.random.key(0)))
