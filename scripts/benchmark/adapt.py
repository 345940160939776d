"""Continued pretraining with `mlm-jax train --from`, compared with transformers' Trainer on the same rows."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, Literal

import jax
import numpy as np

from mlm_jax.config import BertConfig, DataConfig
from mlm_jax.corpus.documents import read_documents
from mlm_jax.data.sources import open_run_data
from mlm_jax.errors import RunError
from mlm_jax.formats import hugging_face as hugging_face_format
from mlm_jax.formats.model_folder import random_model
from mlm_jax.preparation.prepare import EVALUATION_FOLDER, prepare
from mlm_jax.text.tokenizer import Tokenizer
from scripts.benchmark.contest import Contestant, compete
from scripts.benchmark.corpus import text_files
from scripts.benchmark.peers import hugging_face
from scripts.benchmark.table import Table

_HEAD_DIM = 64
_HELD_OUT = 0.05
_OURS = "mlm_jax"


@dataclass(frozen=True)
class AdaptWork:
    """A model of one family, and the settings with which all contestants continue it."""

    family: Literal["roberta", "modernbert"]
    num_layers: int
    hidden_dim: int
    vocabulary_size: int
    sequence_length: int
    batch_size: int
    num_steps: int
    learning_rate: float
    dtype: Literal["float32", "bfloat16"] = "float32"
    weight_decay: float = 0.01

    @property
    def warmup_steps(self) -> int:
        """A sixteenth of the steps."""
        return self.num_steps // 16

    @property
    def log_every(self) -> int:
        """Steps between measurements of speed."""
        return max(1, self.num_steps // 20)

    def model(self, tokenizer: Tokenizer) -> BertConfig:
        """Returns the config of the model: RoBERTa's conventions with dropout, or ModernBERT's, which has none."""
        shared: dict[str, Any] = {
            "model_type": self.family,
            "vocabulary_size": tokenizer.vocabulary_size,
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.hidden_dim // _HEAD_DIM,
            "max_sequence_length": self.sequence_length,
            "layer_norm_epsilon": 1e-5,
            "head_layer_norm_epsilon": 1e-5,
            "pooler": False,
        }
        if self.family == "roberta":
            return BertConfig(
                **shared,
                intermediate_dim=4 * self.hidden_dim,
                num_segments=1,
                position_offset=tokenizer.pad_token_id + 1,
            )
        return BertConfig(
            **shared,
            intermediate_dim=3 * self.hidden_dim // 2,
            num_segments=0,
            positions="rotary",
            rotary_base=160_000.0,
            local_rotary_base=10_000.0,
            local_attention_window=self.sequence_length // 2,
            global_attention_every=min(3, self.num_layers),
            norm_placement="pre",
            first_attention_norm=False,
            biases=False,
            activation="geglu",
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
        )


@dataclass(frozen=True)
class Outcome:
    """Result of one run."""

    loss: float
    """Evaluation loss of the exported model, in nats per masked token."""
    tokens_per_second: float
    """Real tokens, without start, compilation and the first fifth of the steps."""
    peak_memory: float
    """GiB: of the accelerator, or else of the process."""
    seconds: float
    """Time of the whole process: start, compilation, steps, and the stored model."""


def measure_adapt(
    works: Sequence[AdaptWork], texts: tuple[Path, ...], *, seeds: int, peers: bool
) -> list[Table]:
    """Returns a table per work; contestants take turns, each with the device to itself.

    All of them start from one Hugging Face folder with random weights, and are evaluated by `mlm-jax evaluate` on the
    folders that they export.

    Raises:
        InputError: a text cannot be read.
        RunError: a contestant or a command fails.
    """
    # This process draws the weights, and must not occupy an accelerator that its children use.
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory(prefix="mlm_jax_benchmark_") as name:
        folder, paths = Path(name), text_files(texts)
        tokenizer = Tokenizer.train(read_documents(paths), works[0].vocabulary_size, kind="byte-bpe")
        prepare(paths, tokenizer, folder / "data", eval_share=_HELD_OUT)
        return [_measure(work, tokenizer, folder, seeds, peers) for work in works]


def _measure(work: AdaptWork, tokenizer: Tokenizer, folder: Path, seeds: int, peers: bool) -> Table:
    data, source = folder / "data", folder / work.family
    write_source(work, tokenizer, source)
    write_rows(work, data, folder / "rows.npy")
    before = _loss(work, source, data)
    outcomes: dict[str, list[Outcome]] = {}
    versions: dict[str, str] = {}
    for seed in range(seeds):
        settings = settings_of(work, folder, seed)
        contestants = [Contestant(_OURS, "scripts.benchmark.ours.adapt", settings)]
        contestants += hugging_face("adapt", settings) if peers else []
        for contestant in contestants:
            start = time.perf_counter()
            about = compete([contestant], rounds=0)[0].about
            seconds = time.perf_counter() - start
            exported = about["trained"]
            if contestant.name == _OURS:
                exported = f"{about['trained']}-exported"
                _command("convert", about["trained"], exported, "--to", "hugging_face")
            versions[contestant.name] = about["version"]
            outcome = Outcome(
                _loss(work, exported, data), about["tokens_per_second"], about["peak_memory"], seconds
            )
            outcomes.setdefault(contestant.name, []).append(outcome)
            print(f"{work.family}, {contestant.name}, seed {seed}: {outcome}", file=sys.stderr, flush=True)
    return adapt_table(work, before, versions, outcomes)


def settings_of(work: AdaptWork, folder: Path, seed: int) -> dict[str, Any]:
    """Returns the settings passed to a contestant."""
    return asdict(work) | {
        "warmup_steps": work.warmup_steps,
        "log_every": work.log_every,
        "source": str(folder / work.family),
        "data": str(folder / "data"),
        "rows": str(folder / "rows.npy"),
        "output": str(folder / f"{work.family}-{seed}"),
        "seed": seed,
    }


def write_source(work: AdaptWork, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a model with random weights as a Hugging Face folder."""
    folder.mkdir()
    hugging_face_format.write(random_model(work.model(tokenizer), tokenizer, seed=0), folder)


def write_rows(work: AdaptWork, data: Path, file: Path) -> None:
    """Writes the rows that a run on `data` trains on, in another order: int32 [num_rows, sequence_length]."""
    rows = open_run_data(DataConfig(path=str(data), sequence_length=work.sequence_length)).train
    np.save(file, rows.read(np.arange(rows.num_rows)))


def _loss(work: AdaptWork, model: str | Path, data: Path) -> float:
    rows = ["--sequence-length", str(work.sequence_length), "--packing", "packed"]
    found = _command("evaluate", str(model), "--data", str(data / EVALUATION_FOLDER), *rows)
    return float(json.loads(found)["mlm_loss"])


def _command(*arguments: str) -> str:
    """Runs a command of mlm-jax in a process of its own, which frees an accelerator, and returns its output."""
    ended = subprocess.run(
        [sys.executable, "-m", "mlm_jax", *arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["nothing was written"])[-1]
        raise RunError(f"mlm-jax {arguments[0]} {arguments[1]}: ended with {ended.returncode}: {last}")
    return ended.stdout


def adapt_table(
    work: AdaptWork, before: float, versions: Mapping[str, str], outcomes: Mapping[str, Sequence[Outcome]]
) -> Table:
    """Returns a row per library, and for each other one the ratios of ours to it: medians over the seeds."""
    ours = outcomes[_OURS]
    rows: list[tuple[Any, ...]] = []
    for name, own in outcomes.items():
        losses = [outcome.loss for outcome in own]
        spread = stdev(losses) if len(losses) > 1 else None
        rates, memory, seconds = (
            median(getattr(outcome, field) for outcome in own)
            for field in ("tokens_per_second", "peak_memory", "seconds")
        )
        rows.append((name, versions[name], mean(losses), spread, rates, memory, seconds))
    for name, theirs in outcomes.items():
        if name != _OURS:
            ratios = [
                median(getattr(a, field) / getattr(b, field) for a, b in zip(ours, theirs, strict=True))
                for field in ("loss", "tokens_per_second", "peak_memory", "seconds")
            ]
            rows.append((f"{_OURS} relative to {name}", None, ratios[0], None, *ratios[1:]))
    return Table(
        f"{work.family}, {work.num_layers} layers of {work.hidden_dim}, {work.num_steps} steps of {work.batch_size} × "
        f"{work.sequence_length} tokens, {work.dtype}, {len(ours)} seeds; loss before {before:.3f}",
        (
            *("library", "version", "evaluation loss", "its standard deviation"),
            *("real tokens/s", "peak memory, GiB", "whole run, s"),
        ),
        rows,
    )
