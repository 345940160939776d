"""Metrics of a run: records and their files, throughput, and checks of the masks. Never blocks the device."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import jax

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.files.atomic import write_atomically
from mlm_jax.files.json_files import json_text
from mlm_jax.run.event_file import EventFile
from mlm_jax.run.records import EVALUATIONS_FILE, METRICS_FILE, append_whole, read_records
from mlm_jax.step.train_step import StepMetrics

TENSORBOARD_FOLDER = "tensorboard"

_CLIPPED_ROWS_ALLOWED = 0.01


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of metrics.jsonl; the fields are its keys, in this order.

    `loss`, `mlm_accuracy` and `masked_tokens` cover all steps since the last line, except those skipped because of a
    non-finite loss or gradient. The rates cover the steps that this process has taken since then, which are fewer in
    the first line after a resume. `grad_norm` and `learning_rate` are those of the step itself.
    """

    step: int
    epoch: float
    loss: float
    """Mean cross-entropy of the masked tokens, in nats; NaN if every step was skipped or no token was masked."""
    mlm_accuracy: float
    masked_tokens: int
    """Number of masked tokens, over which `loss` and `mlm_accuracy` are averaged."""
    grad_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    tokens_per_second: float
    """Includes padding."""
    real_tokens_per_second: float
    sequences_per_second: float
    step_seconds: float
    mfu: float | None
    """Model FLOPs utilization in [0, 1]; None if the chip's peak is unknown."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One line of eval.jsonl; the fields are its keys, in this order."""

    step: int
    epoch: float
    mlm_loss: float
    """Mean cross-entropy over all masked tokens of the evaluation rows, in nats; NaN if there are none."""
    mlm_accuracy: float
    perplexity: float
    masked_tokens: int


@dataclass
class LossWindow:
    """Sums over the steps since the last line of metrics.jsonl, except skipped steps.

    A checkpoint may fall between two lines, so it stores these sums, and a resumed run logs the same means.
    """

    steps: int = 0
    loss: float = 0.0
    """Cross-entropy of the masked tokens, in nats."""
    correct: float = 0.0
    """Number of masked tokens predicted correctly."""
    masked_tokens: float = 0.0

    def add(self, metrics: StepMetrics) -> None:
        """Adds the metrics of one step, as NumPy scalars."""
        if metrics.nonfinite_steps:
            return
        weight = float(metrics.masked_tokens)
        self.steps += 1
        self.loss += weight * float(metrics.loss)
        self.correct += weight * float(metrics.mlm_accuracy)
        self.masked_tokens += weight

    def mean_loss(self) -> float:
        """Returns the loss per masked token; NaN if no token was masked."""
        return self._mean(self.loss)

    def accuracy(self) -> float:
        """Returns the accuracy on masked tokens, in [0, 1]; NaN if no token was masked."""
        return self._mean(self.correct)

    def _mean(self, total: float) -> float:
        return total / self.masked_tokens if self.masked_tokens else math.nan


class MetricsLog:
    """Appends records to `metrics.jsonl` and `eval.jsonl` in a run folder, and scalars to `tensorboard/`.

    Each line or event is written by one system call, so it is complete or absent if the process is killed, and readable
    immediately. NaN and infinity, which JSON lacks, are null in the lines and omitted from TensorBoard. TensorBoard
    tags are the keys of the lines, prefixed with `eval/` for evaluations. Under `jax.distributed`, only process 0 has a
    log.

    Args:
        run_folder: created if missing.
        resume_step: step of the checkpoint that the run resumes from, 0 for a new run. Records of later steps and a
            torn last line are dropped from both files; TensorBoard drops its events of later steps.

    Raises:
        OSError: a line or event could not be written, for instance because the disk is full; no part of it remains.
    """

    def __init__(self, run_folder: Path, *, resume_step: int = 0) -> None:
        """Opens the files; see the class."""
        run_folder.mkdir(parents=True, exist_ok=True)
        for name in (METRICS_FILE, EVALUATIONS_FILE):
            _drop_records_after(run_folder / name, resume_step)
            (run_folder / name).touch()
        self._folder = run_folder
        self._events = EventFile(run_folder / TENSORBOARD_FOLDER, purge_step=resume_step + 1)

    def __enter__(self) -> Self:
        """Returns the log itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the file of events."""
        self.close()

    def log_step(self, record: StepRecord) -> None:
        """Appends one line to metrics.jsonl."""
        self._append(METRICS_FILE, record, prefix="")

    def log_evaluation(self, record: EvaluationRecord) -> None:
        """Appends one line to eval.jsonl."""
        self._append(EVALUATIONS_FILE, record, prefix="eval/")

    def close(self) -> None:
        """Closes the file of events."""
        self._events.close()

    def _append(self, name: str, record: StepRecord | EvaluationRecord, *, prefix: str) -> None:
        values = asdict(record)
        # Opened for each line, because an editor that saves the file replaces it.
        with (self._folder / name).open("ab", buffering=0) as file:
            append_whole(file, json_text(values).encode() + b"\n")
        scalars = {
            prefix + key: value
            for key, value in values.items()
            if key != "step" and value is not None and math.isfinite(value)
        }
        self._events.write_scalars(record.step, scalars)


def _drop_records_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [record for record in read_records(path) if record["step"] <= step]
    write_atomically(path, "".join(json_text(record) + "\n" for record in kept).encode())


class OneBehind:
    """Reads a step's device metrics after the next step is dispatched, so that the host never waits.

    JAX dispatches asynchronously: `push` returns while the device is still computing the new metrics. It returns the
    previous metrics, which were ready before the device started this step. See nanodo's `train.py`.
    """

    def __init__(self) -> None:
        """Creates an empty holder."""
        self._held: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> tuple[int, Any] | None:
        """Holds a pytree of device arrays and returns the previous one, if any, as (step, NumPy arrays).

        The transfer is one explicit `jax.device_get`, which `jax_transfer_guard="disallow"` permits.
        """
        held, self._held = self._held, (step, metrics)
        return None if held is None else (held[0], jax.device_get(held[1]))

    def flush(self) -> tuple[int, Any] | None:
        """Waits for the device, and returns and forgets the held metrics, if any.

        Call it at the end of a run and before each checkpoint, because a resumed run does not write earlier lines.
        """
        held, self._held = self._held, None
        return None if held is None else (held[0], jax.device_get(held[1]))


@dataclass(frozen=True)
class Throughput:
    """Rates over a window of steps; NaN if it has no steps."""

    tokens_per_second: float
    real_tokens_per_second: float
    sequences_per_second: float
    step_seconds: float


class ThroughputMeter:
    """Measures throughput. Create it after the step is compiled; otherwise, the first window includes compilation."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Starts the first window. `clock` returns seconds."""
        self._clock = clock
        self._start_window()

    def add_step(self, *, sequences: int, tokens: int, real_tokens: float) -> None:
        """Counts one finished step: its rows, their positions, and the positions that are not padding."""
        self._steps += 1
        self._sequences += sequences
        self._tokens += tokens
        self._real_tokens += real_tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time within the context, for evaluations and checkpoints."""
        start = self._clock()
        try:
            yield
        finally:
            self._start += self._clock() - start

    def read(self) -> Throughput:
        """Returns the rates since the last `read` and starts a new window."""
        seconds = self._clock() - self._start if self._steps else math.nan
        throughput = Throughput(
            tokens_per_second=self._tokens / seconds,
            real_tokens_per_second=self._real_tokens / seconds,
            sequences_per_second=self._sequences / seconds,
            step_seconds=seconds / max(self._steps, 1),
        )
        self._start_window()
        return throughput

    def _start_window(self) -> None:
        self._steps = self._sequences = self._tokens = 0
        self._real_tokens = 0.0
        self._start = self._clock()


def masking_warnings(
    masking: MaskingConfig,
    *,
    rate: float,
    rows: int,
    real_tokens: int,
    selectable_tokens: int,
    masked_tokens: int,
    clipped_rows: int,
) -> dict[str, str]:
    """Returns warnings about the masks of some batches, by kind; empty if the masks are as configured.

    The kinds are "none" (no token is masked), "clipped" (rows had more selections than `mask_selection_length`) and
    "rate" (too few or too many tokens are masked). The warnings of a kind differ only in their numbers.

    "rate" is reported if the selection rule cannot mask that many tokens: `"ceil"` adds at most one per quota, `"bert"`
    rounds by at most a half and selects at least one, and `"bernoulli"` deviates by at most five standard deviations,
    ten for whole words and spans. Words that do not fit may leave one token of a quota unused. A tolerance of 1% allows
    for rows that are clipped without a warning.

    Args:
        masking: the configuration in use.
        rate: mean masking rate of the batches, which may follow a schedule.
        rows: number of rows.
        real_tokens: number of tokens that are not padding.
        selectable_tokens: number of tokens that may be selected.
        masked_tokens: number of tokens that were selected.
        clipped_rows: number of rows with more selections than `mask_selection_length`.
    """
    if rows and masked_tokens == 0:
        return {
            "none": f"none of {real_tokens} tokens is masked, so nothing is learned from them; {selectable_tokens} are "
            "selectable, which special and unknown tokens are not"
        }
    warnings = {}
    if clipped_rows > _CLIPPED_ROWS_ALLOWED * rows:
        warnings["clipped"] = (
            f"mask_selection_length = {masking.mask_selection_length} clips {clipped_rows / rows:.1%} "
            "of the rows; set a larger value, or none to derive it from the rate and the row length"
        )
    words = masking.unit != "token"
    # Each document has tokens that cannot be selected, at least the separator at its end.
    quotas = rows if masking.quota == "row" else real_tokens - selectable_tokens
    deviation = (10 if words else 5) * math.sqrt(selectable_tokens * rate * (1 - rate))
    below, above = {
        "ceil": (0.0, quotas),
        "bert": (0.5 * quotas, quotas),
        "bernoulli": (deviation, deviation),
    }[masking.selection]
    below += quotas * words
    expected = rate * (real_tokens if masking.selection == "bert" else selectable_tokens)
    slack = _CLIPPED_ROWS_ALLOWED * expected
    if not expected - below - slack <= masked_tokens <= expected + above + slack:
        realized = masked_tokens / max(selectable_tokens, 1)
        warnings["rate"] = (
            f"{masked_tokens} of {selectable_tokens} selectable tokens are masked, a rate of {realized:.4f}; "
            f"mask_selection_rate = {rate:.6g} gives {expected:.0f}"
        )
    return warnings
