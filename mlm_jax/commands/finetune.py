"""`mlm-jax finetune`: fine-tune a model as a text classifier or a regression."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mlm_jax.commands.flags import parse, positional, required
from mlm_jax.errors import InputError
from mlm_jax.files.folder_lock import own_name
from mlm_jax.files.json_files import json_text

if TYPE_CHECKING:
    from mlm_jax.use.labeled_text import LabeledTexts
    from mlm_jax.use.text_classifier import TextClassifier


@dataclass(frozen=True)
class Arguments:
    """Fine-tune a model as a text classifier or a regression, evaluating after every epoch and keeping the best."""

    model: str = positional("MODEL")
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    train: Path = required("TSV")
    """Tab-separated file whose header names label and sentence (or sentence1 and sentence2)."""
    dev: Path = required("TSV")
    """File of the same format to evaluate on."""
    output: Path | None = None
    """Folder to create for the classifier of the best epoch."""
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = None
    """Type of the labels; by default the model's, or a regression if labels are numbers with fractions.

    One name, several names separated by commas, or a number."""
    num_epochs: int = 3
    """Number of passes over the training file."""
    batch_size: int = 32
    """Number of texts per step."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    layer_rate_decay: float = 1.0
    """Factor of the learning rate from each layer to the one below."""
    sequence_length: int | None = None
    """Number of tokens to truncate texts to; by default the model's maximum."""
    dropout_rate: float | None = None
    """Dropout rate; by default the model's."""
    freeze_backbone: bool = False
    """Train only the classification head."""
    random_weights: bool = False
    """Start from random weights of the same architecture, to measure the effect of pretraining."""
    seed: int = 0
    """Seed of the head, the order of the texts, and dropout."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Fine-tunes the model, printing one line per epoch and a final line of JSON, with null for infinite values."""
    parsed = parse(Arguments, arguments, prog)
    with own_name(parsed.output) if parsed.output is not None else nullcontext():
        _fine_tune(parsed)


def _fine_tune(parsed: Arguments) -> None:
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.run.reporting import say
    from mlm_jax.use.fine_tuning import FitResult
    from mlm_jax.use.labeled_text import read_labeled_texts
    from mlm_jax.use.objectives import OBJECTIVES, rank_of
    from mlm_jax.use.text_classifier import ClassifierEvaluation

    train, dev = read_labeled_texts(parsed.train), read_labeled_texts(parsed.dev)
    classifier, train, dev = _classifier(parsed, train, dev)
    classifier.progress = True
    objective = OBJECTIVES[classifier.problem]

    def report(epoch: int, steps: FitResult, found: ClassifierEvaluation | None) -> None:
        assert found is not None
        loss = sum(steps.losses) / len(steps.losses)
        metrics = [f"{name} {'undefined' if x is None else f'{x:.4f}'}" for name, x in found.metrics.items()]
        say(f"epoch {epoch}: loss {loss:.4f}; dev loss {found.loss:.4f}, {', '.join(metrics)}")

    evaluations = classifier.fit(
        train.texts,
        train.labels,
        eval_texts=dev.texts,
        eval_labels=dev.labels,
        num_epochs=parsed.num_epochs,
        batch_size=parsed.batch_size,
        learning_rate=parsed.learning_rate,
        layer_rate_decay=parsed.layer_rate_decay,
        sequence_length=parsed.sequence_length,
        freeze_backbone=parsed.freeze_backbone,
        seed=parsed.seed,
        on_epoch=report,
    )
    if parsed.output is not None:
        classifier.save(parsed.output)
    ranks = [rank_of(objective, found.metrics) for found in evaluations]
    best = ranks.index(max(ranks))
    dev_metrics = {f"dev_{name}": value for name, value in evaluations[best].metrics.items()}
    epochs = [{"loss": found.loss, **found.metrics} for found in evaluations]
    print(json_text(dev_metrics | {"epoch": best + 1, "dev_epochs": epochs}))


def _classifier(
    parsed: Arguments, train: "LabeledTexts", dev: "LabeledTexts"
) -> tuple["TextClassifier", "LabeledTexts", "LabeledTexts"]:
    """Returns the classifier to fine-tune, and the labels for it. Reports a choice of the problem type."""
    from mlm_jax.run.reporting import say
    from mlm_jax.store.loading import load_model
    from mlm_jax.use.objectives import problem_of
    from mlm_jax.use.text_classifier import TextClassifier

    stored = load_model(parsed.model, load_weights=not parsed.random_weights, seed=parsed.seed)
    outputs = len(stored.labels) if stored.labels and "classifier" in stored.params else None
    problem_type, fraction = parsed.problem_type, train.first_fraction
    if problem_type is None and outputs is None and fraction is not None:
        problem_type = "regression"
        say(
            f"{train.file}: labels are numbers with fractions, such as {fraction}: fits a regression "
            "(--problem-type single_label_classification reads them as names)"
        )
    known = problem_type or (stored.problem_type if outputs else None)
    problem = problem_of(known, outputs or 2)
    if problem == "single_label_classification" and outputs is None and (doubt := train.doubt):
        say(f"warning: {train.file}: {doubt}")
    train, dev = train.parsed_as(problem, outputs), dev.parsed_as(problem, outputs)
    names: set[str] | None = None
    if problem == "single_label_classification":
        names = set(train.labels)
        if outputs is None and len(names) == 1:
            raise InputError(
                f"{parsed.train}: every label is {train.labels[0]!r}: must have at least two classes"
            )
    elif problem == "multi_label_classification" and outputs is None:
        names = {name for label in train.labels for name in label}
        if not names:
            raise InputError(f"{parsed.train}: no text has a label: must have at least one name")
    classifier = TextClassifier.from_stored(
        parsed.model,
        stored,
        labels=names,
        problem_type=problem_type,
        dropout_rate=parsed.dropout_rate,
        seed=parsed.seed,
    )
    for labeled in (train, dev):
        classifier.targets(labeled.labels, labeled.where)
    return classifier, train, dev
