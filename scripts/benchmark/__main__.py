"""Measure speed, beside other libraries where they are installed: benchmark.py step --peers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mlm_jax.commands import cli


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What every measurement takes."""

    rounds: int = 7
    """How often each contestant is measured, in turns; the figures are medians."""
    json: Path | None = None
    """Write the figures here, too."""


@dataclass(frozen=True, kw_only=True)
class Contest(Measurement):
    """A measurement that others take part in."""

    peers: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Measure the other libraries as well that are installed (extra `peers`)."""


@dataclass(frozen=True, kw_only=True)
class Step(Contest):
    """Training steps: sequences a second, and how much of the machine's matrix-product speed they use."""

    sizes: tuple[Literal["tiny", "small", "base"], ...] = ("tiny", "small", "base")
    """BERT-tiny and BERT-small on 32 rows of 128 tokens, BERT-base on 16."""

    def measure(self) -> Any:
        """The tables."""
        from scripts.benchmark.step import SIZES, measure_steps

        return measure_steps([SIZES[size] for size in self.sizes], rounds=self.rounds, peers=self.peers)


@dataclass(frozen=True, kw_only=True)
class Masking(Contest):
    """Rows masked a second: 77 of 512 tokens, in batches of 512."""

    def measure(self) -> Any:
        """The tables."""
        from scripts.benchmark.masking import measure_masking

        return measure_masking(rounds=self.rounds, peers=self.peers)


@dataclass(frozen=True, kw_only=True)
class Data(Measurement):
    """Rows that the input pipeline reads a second, beside what a step of BERT-tiny takes."""

    texts: tuple[Path, ...] = ()
    """Text files, as prepare_data.py takes them; by default the demo's text."""
    sequence_length: int = 128

    def measure(self) -> Any:
        """The tables."""
        from scripts.benchmark.data import measure_data

        return measure_data(self.texts, sequence_length=self.sequence_length, rounds=self.rounds)


@dataclass(frozen=True, kw_only=True)
class EndToEnd(Contest):
    """Real tokens learned a second from raw text on: tokenised, packed, masked and trained, by BERT-tiny."""

    texts: tuple[Path, ...] = ()
    """Text files, as prepare_data.py takes them; by default the demo's text."""
    tokenizer: Path | None = None
    """Folder of a tokenizer or a vocab.txt; by default one is trained on the texts."""
    documents: int = 64
    """How many new documents a round."""

    def measure(self) -> Any:
        """The tables."""
        from scripts.benchmark.end_to_end import measure_end_to_end

        return measure_end_to_end(
            self.texts, self.tokenizer, documents=self.documents, rounds=self.rounds, peers=self.peers
        )


@dataclass(frozen=True, kw_only=True)
class Memory(Measurement):
    """Memory of a step of BERT-large on rows of 512 tokens, and its time, for each policy of rematerialisation."""

    rounds: int = 3
    """How often each contestant is measured, in turns; the figures are medians."""

    def measure(self) -> Any:
        """The tables."""
        from scripts.benchmark.memory import measure_memory

        return measure_memory(rounds=self.rounds)


@dataclass(frozen=True, kw_only=True)
class Gpu(Measurement):
    """Training steps of BERT-base and BERT-large that fill one NVIDIA GPU, beside those of transformers."""

    rounds: int = 5
    """How often each contestant is measured; the figures are medians."""
    minutes: float = 8
    """What has no time left then has no figures; those that tell most are measured first."""

    def measure(self) -> Any:
        """The tables."""
        from scripts.benchmark.gpu import measure_gpu

        return measure_gpu(minutes=self.minutes, rounds=self.rounds)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    arguments: Any = cli.parse(Step | Masking | Data | EndToEnd | Memory | Gpu)  # type: ignore[arg-type]
    tables = arguments.measure()
    # Late, so that a mistyped flag is told before jax starts.
    from mlm_jax.run.machine import this_machine
    from scripts.benchmark.table import report

    machine = this_machine()
    print(f"{machine.as_markdown()}\n")
    print("\n\n".join(table.as_markdown() for table in tables))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report(tables, machine), indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
