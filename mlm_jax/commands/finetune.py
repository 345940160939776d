"""`mlm-jax finetune`: fine-tune a model as a text classifier."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from mlm_jax.commands.flags import parse, positional, required
from mlm_jax.files.folder_lock import own_name


@dataclass(frozen=True)
class Arguments:
    """Fine-tune a model as a text classifier, evaluating after every epoch and keeping the best."""

    model: str = positional("MODEL")
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    train: Path = required("TSV")
    """Tab-separated file whose header names label and sentence (or sentence1 and sentence2)."""
    dev: Path = required("TSV")
    """File of the same format to evaluate on."""
    output: Path | None = None
    """Folder to create for the classifier of the best epoch."""
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
    """Fine-tunes the model, printing one line per epoch and a final line of JSON."""
    parsed = parse(Arguments, arguments, prog)
    with own_name(parsed.output) if parsed.output is not None else nullcontext():
        _fine_tune(parsed)


def _fine_tune(parsed: Arguments) -> None:
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.run.reporting import say
    from mlm_jax.use.fine_tuning import FitResult
    from mlm_jax.use.labeled_text import read_labeled_texts
    from mlm_jax.use.text_classifier import ClassifierEvaluation, TextClassifier

    train, dev = read_labeled_texts(parsed.train), read_labeled_texts(parsed.dev)
    classifier = TextClassifier.from_preset(
        parsed.model,
        labels=sorted(set(train.labels)),
        load_weights=not parsed.random_weights,
        dropout_rate=parsed.dropout_rate,
        seed=parsed.seed,
    )
    classifier.progress = True

    def report(epoch: int, steps: FitResult, found: ClassifierEvaluation | None) -> None:
        assert found is not None
        loss = sum(steps.losses) / len(steps.losses)
        say(f"epoch {epoch}: loss {loss:.4f}; dev accuracy {found.accuracy:.2%}, loss {found.loss:.4f}")

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
    accuracies = [found.accuracy for found in evaluations]
    if parsed.output is not None:
        classifier.save(parsed.output)
    best = max(accuracies)
    print(
        json.dumps({"dev_accuracy": best, "epoch": accuracies.index(best) + 1, "dev_accuracies": accuracies})
    )
