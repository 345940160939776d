"""Fine-tune a sentence classifier on a model, and keep its best epoch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mlm_jax.commands import cli


@dataclass(frozen=True)
class Arguments:
    """Fine-tune a sentence classifier on a model: an evaluation after every epoch, the best one kept."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    train: Path
    """Tab-separated, with a header that names label and sentence (or sentence1 and sentence2)."""
    dev: Path
    """The same, to evaluate on."""
    output: Path | None = None
    """Folder to make for the classifier of the best epoch."""
    num_epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-5
    layer_rate_decay: float = 1.0
    """What the learning rate is multiplied with from each layer to the one below it."""
    sequence_length: int | None = None
    """Longer texts are cut; by default at what the model takes."""
    dropout_rate: float | None = None
    """By default the model's own."""
    freeze_backbone: bool = False
    """Train the classifier alone."""
    random_weights: bool = False
    """Begin with the model's architecture at random, to see what its weights are worth."""
    seed: int = 0


def main() -> None:
    """Read the arguments, fine-tune, tell."""
    arguments = cli.parse(Arguments)
    # Late, so that a mistyped argument is told before jax starts.
    from mlm_jax.errors import InputError
    from mlm_jax.run.reporting import say
    from mlm_jax.use.fine_tuning import FitResult
    from mlm_jax.use.labelled_text import read_labelled_texts
    from mlm_jax.use.text_classifier import ClassifierEvaluation, TextClassifier

    train, dev = read_labelled_texts(arguments.train), read_labelled_texts(arguments.dev)
    if arguments.output is not None and arguments.output.exists():
        raise InputError(f"{arguments.output}: is there already: must be a folder that does not exist")
    classifier = TextClassifier.from_preset(
        arguments.model,
        labels=sorted(set(train.labels)),
        load_weights=not arguments.random_weights,
        dropout_rate=arguments.dropout_rate,
        seed=arguments.seed,
    )

    classifier.progress = True

    def tell(epoch: int, steps: FitResult, found: ClassifierEvaluation | None) -> None:
        assert found is not None
        loss = sum(steps.losses) / len(steps.losses)
        say(f"epoch {epoch}: loss {loss:.4f}; dev accuracy {found.accuracy:.2%}, loss {found.loss:.4f}")

    evaluations = classifier.fit(
        train.texts,
        train.labels,
        eval_texts=dev.texts,
        eval_labels=dev.labels,
        num_epochs=arguments.num_epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        layer_rate_decay=arguments.layer_rate_decay,
        sequence_length=arguments.sequence_length,
        freeze_backbone=arguments.freeze_backbone,
        seed=arguments.seed,
        on_epoch=tell,
    )
    accuracies = [found.accuracy for found in evaluations]
    if arguments.output is not None:
        classifier.save(arguments.output)
    best = max(accuracies)
    print(
        json.dumps({"dev_accuracy": best, "epoch": accuracies.index(best) + 1, "dev_accuracies": accuracies})
    )


if __name__ == "__main__":
    cli.run(main)
