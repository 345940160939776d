"""Measures the speed of mlm_jax and of other installed libraries: python -m scripts.benchmark step --peers."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlm_jax.commands import cli
from mlm_jax.commands.flags import parse, required
from mlm_jax.config.settings import nearest_name
from mlm_jax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Written:
    """Settings of every measurement."""

    json: Path | None = None
    """File to write the results to, in addition to printing them."""


@dataclass(frozen=True, kw_only=True)
class Measurement(Written):
    """A measurement in rounds."""

    rounds: int = 7
    """Number of times each contestant is measured, in turn; results are medians."""


@dataclass(frozen=True, kw_only=True)
class Contest(Measurement):
    """A measurement that can include other libraries."""

    peers: bool = False
    """Also measure other installed libraries (extra `peers`)."""


@dataclass(frozen=True, kw_only=True)
class Step(Contest):
    """Training steps: sequences per second, and speed as a fraction of the machine's matrix products."""

    sizes: tuple[Literal["tiny", "small", "base", "modernbert", "modernbert-short"], ...] = (
        "tiny",
        "small",
        "base",
    )
    """BERT-tiny and -small on 32 rows of 128 tokens, BERT-base on 16; ModernBERT-base on 2 of 1,024 or 16 of 128."""

    def measure(self) -> Any:
        """Returns the tables."""
        from scripts.benchmark.step import SIZES, measure_steps

        return measure_steps([SIZES[size] for size in self.sizes], rounds=self.rounds, peers=self.peers)


@dataclass(frozen=True, kw_only=True)
class Masking(Contest):
    """Masking: rows per second, 77 of 512 tokens masked, in batches of 512 rows."""

    def measure(self) -> Any:
        """Returns the tables."""
        from scripts.benchmark.masking import measure_masking

        return measure_masking(rounds=self.rounds, peers=self.peers)


@dataclass(frozen=True, kw_only=True)
class Data(Measurement):
    """Input pipeline: rows per second, compared with the consumption of a step of BERT-tiny."""

    texts: tuple[Path, ...] = ()
    """Text files in any format that mlm-jax prepare reads; by default the demo's text."""
    sequence_length: int = 128
    """Number of tokens per row."""

    def measure(self) -> Any:
        """Returns the tables."""
        from scripts.benchmark.data import measure_data

        return measure_data(self.texts, sequence_length=self.sequence_length, rounds=self.rounds)


@dataclass(frozen=True, kw_only=True)
class EndToEnd(Contest):
    """From raw text to a trained BERT-tiny: tokens per second, tokenized, packed, masked and trained on."""

    texts: tuple[Path, ...] = ()
    """Text files in any format that mlm-jax prepare reads; by default the demo's text."""
    tokenizer: Path | None = None
    """Tokenizer folder or vocab.txt; by default a tokenizer is trained on the texts."""
    documents: int = 64
    """Number of new documents per round."""

    def measure(self) -> Any:
        """Returns the tables."""
        from scripts.benchmark.end_to_end import measure_end_to_end

        return measure_end_to_end(
            self.texts, self.tokenizer, documents=self.documents, rounds=self.rounds, peers=self.peers
        )


@dataclass(frozen=True, kw_only=True)
class Memory(Measurement):
    """Memory and time of a BERT-large step on rows of 512 tokens, for each rematerialization policy."""

    rounds: int = 3
    """Number of times each contestant is measured, in turn; results are medians."""

    def measure(self) -> Any:
        """Returns the tables."""
        from scripts.benchmark.memory import measure_memory

        return measure_memory(rounds=self.rounds)


@dataclass(frozen=True, kw_only=True)
class Gpu(Measurement):
    """Training steps of BERT-base and BERT-large that fill one NVIDIA GPU, compared with transformers."""

    rounds: int = 5
    """Number of times each contestant is measured; results are medians."""
    minutes: float = 8
    """Time limit. The most informative contestants come first; those that do not start in time have no results."""

    def measure(self) -> Any:
        """Returns the tables."""
        from scripts.benchmark.gpu import measure_gpu

        return measure_gpu(minutes=self.minutes, rounds=self.rounds)


@dataclass(frozen=True, kw_only=True)
class Texts(Measurement):
    """Features, predictions and fine-tuning of texts of different lengths: real tokens per second."""

    texts: Path = required("FILE")
    """Labeled texts as mlm-jax finetune reads them, or pairs of texts."""
    tokenizer: Path = required("TOKENIZER")
    """Tokenizer folder or vocab.txt."""
    preset: str = "bert_tiny_en_uncased"
    """Shape of the model, whose weights are random."""
    num_texts: int = 1024
    """Number of texts, from the start of the file."""

    def measure(self) -> Any:
        """Returns the tables."""
        from scripts.benchmark.texts import measure_texts

        return measure_texts(
            self.texts, self.tokenizer, self.preset, num_texts=self.num_texts, rounds=self.rounds
        )


@dataclass(frozen=True, kw_only=True)
class Extension(Measurement):
    """Loss per byte of unseen text with new words and without, before and after training (`mlm-jax extend`)."""

    model: str = required("MODEL")
    """Model to extend: a run folder, another model's folder, a built-in name or hf://user/model."""
    texts: tuple[Path, ...] = required("FILE")
    """Text files in any format that mlm-jax prepare reads; one document in 20 is held out."""
    num_tokens: int = 5000
    """Number of new words."""
    tokenizer: Path | None = None
    """Also measure the model moved to this tokenizer, a file or folder."""
    models: tuple[Literal["unextended", "extended", "random-rows", "piece-biases"], ...] = (
        *("unextended", "extended", "random-rows", "piece-biases"),
    )
    """Models to compare; the last two have random rows, or biases of pieces instead of those of counts."""
    num_steps: int = 500
    """Number of training steps."""
    batch_size: int = 32
    """Number of rows per step."""
    sequence_length: int = 64
    """Number of tokens per row."""
    learning_rate: float = 5e-4
    """Peak learning rate, after a warm-up of a tenth of the steps."""
    passages: int = 400
    """Number of passages of unseen text to evaluate on."""
    rounds: int = 3
    """Number of seeds of training; results are means and standard deviations. 0 measures the models before it."""

    def measure(self) -> Any:
        """Returns the tables."""
        from scripts.benchmark.extension import Training, measure_extension

        training = Training(self.num_steps, self.batch_size, self.sequence_length, self.learning_rate)
        return measure_extension(
            self.model,
            self.texts,
            training,
            num_tokens=self.num_tokens,
            tokenizer=self.tokenizer,
            kinds=self.models,
            num_passages=self.passages,
            rounds=self.rounds,
        )


@dataclass(frozen=True, kw_only=True)
class Adapt(Written):
    """Continued pretraining of a model on text: loss, real tokens per second and memory, also of transformers."""

    texts: tuple[Path, ...] = ()
    """Text files in any format that mlm-jax prepare reads; by default the demo's text."""
    families: tuple[Literal["roberta", "modernbert"], ...] = ("roberta", "modernbert")
    """Families of the models, whose first weights are random and the same for all."""
    seeds: int = 3
    """Number of runs of each library; losses are means over them, and ratios medians."""
    steps: int = 300
    """Number of training steps."""
    layers: int = 4
    """Number of layers."""
    width: int = 128
    """Width of the hidden states, in heads of 64."""
    vocabulary_size: int = 8192
    """Size of the byte-level BPE that is trained on the texts."""
    sequence_length: int = 128
    """Number of tokens per row."""
    batch_size: int = 32
    """Rows per step."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of activations."""
    peers: bool = False
    """Also measure transformers' Trainer, if it is installed (extra `peers`)."""

    def measure(self) -> Any:
        """Returns the tables."""
        from scripts.benchmark.adapt import AdaptWork, measure_adapt

        works = [
            AdaptWork(
                family,
                num_layers=self.layers,
                hidden_dim=self.width,
                vocabulary_size=self.vocabulary_size,
                sequence_length=self.sequence_length,
                batch_size=self.batch_size,
                num_steps=self.steps,
                learning_rate=self.learning_rate,
                dtype=self.dtype,
            )
            for family in self.families
        ]
        return measure_adapt(works, self.texts, seeds=self.seeds, peers=self.peers)


MEASUREMENTS: dict[str, type] = {
    "step": Step,
    "masking": Masking,
    "data": Data,
    "end-to-end": EndToEnd,
    "memory": Memory,
    "gpu": Gpu,
    "texts": Texts,
    "extension": Extension,
    "adapt": Adapt,
}


def main() -> None:
    """Measures, prints the tables and writes the JSON file."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print("usage: python -m scripts.benchmark MEASUREMENT [--help]\n")
        for each, measurement in MEASUREMENTS.items():
            print(f"  {each:<12}{measurement.__doc__}")
        return
    if name not in MEASUREMENTS:
        raise InputError(
            f"measurement {name!r}: must be one of {', '.join(MEASUREMENTS)}{nearest_name(name, MEASUREMENTS)}"
        )
    arguments: Any = parse(MEASUREMENTS[name], sys.argv[2:], f"python -m scripts.benchmark {name}")
    tables = arguments.measure()
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.run.machine import this_machine
    from scripts.benchmark.table import report

    machine = this_machine()
    print(f"{machine.as_markdown()}\n")
    print("\n\n".join(table.as_markdown() for table in tables))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report(tables, machine), indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
