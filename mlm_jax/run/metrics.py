"""What a run reports about itself: metrics that never block the device, throughput, FLOPs and MFU."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

import jax

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.files import write_atomically
from mlm_jax.run.event_file import EventFile
from mlm_jax.run.records import EVALUATIONS_FILE, METRICS_FILE, append_whole, read_records
from mlm_jax.step.train_step import StepMetrics

TENSORBOARD_FOLDER = "tensorboard"

_CLIPPED_ROWS_ALLOWED = 0.01


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of metrics.jsonl; the fields are its keys, in this order.

    `loss`, `mlm_accuracy` and `masked_tokens` are over all steps since the last line, without those that were skipped
    because their loss or gradient was not finite. The rates are over the steps that this process has taken since then,
    which are fewer in the first line after a resume. `grad_norm` and `learning_rate` are those of the step itself.
    """

    step: int
    epoch: float
    loss: float
    """Mean cross-entropy of the masked tokens, in nats; NaN if every step was skipped."""
    mlm_accuracy: float
    masked_tokens: int
    """Number of tokens that `loss` and `mlm_accuracy` are means of: their sum over the steps."""
    grad_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    tokens_per_second: float
    """Positions of all rows, including padding."""
    real_tokens_per_second: float
    sequences_per_second: float
    step_seconds: float
    mfu: float | None
    """Model FLOPs utilisation in [0, 1]; None where the chip's peak is unknown."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One line of eval.jsonl; the fields are its keys, in this order."""

    step: int
    epoch: float
    mlm_loss: float
    """Mean cross-entropy of all masked tokens of the evaluation rows, in nats."""
    mlm_accuracy: float
    perplexity: float
    masked_tokens: int


@dataclass
class LossWindow:
    """Sums over the steps since the last line of metrics.jsonl, skipped ones left out.

    A checkpoint may fall between two lines, so it holds these sums: a resumed run logs the same means.
    """

    steps: int = 0
    loss: float = 0.0
    """Cross-entropy of the masked tokens, in nats."""
    correct: float = 0.0
    """Masked tokens predicted correctly."""
    masked_tokens: float = 0.0

    def add(self, metrics: StepMetrics) -> None:
        """Add the metrics of one step, as numpy scalars."""
        if metrics.nonfinite_steps:
            return
        weight = float(metrics.masked_tokens)
        self.steps += 1
        self.loss += weight * float(metrics.loss)
        self.correct += weight * float(metrics.mlm_accuracy)
        self.masked_tokens += weight

    def mean_loss(self) -> float:
        """Loss per masked token: 0 if no token was masked, NaN without a step."""
        return self._mean(self.loss)

    def accuracy(self) -> float:
        """Share of the masked tokens predicted correctly, in [0, 1]: 0 if none was masked, NaN without a step."""
        return self._mean(self.correct)

    def _mean(self, total: float) -> float:
        return total / max(self.masked_tokens, 1.0) if self.steps else math.nan


class MetricsLog:
    """Appends records to `metrics.jsonl` and `eval.jsonl` in a run folder, and scalars to `tensorboard/`.

    A line or event is written by one system call: it is there or not, whenever the process is killed, and
    can be read at once. JSON has no NaN and no infinity: they are null there, and left out of TensorBoard.
    TensorBoard tags are the keys of the lines, for evaluations with `eval/` before. Under `jax.distributed`,
    process 0 alone makes a log.

    Args:
        run_folder: made where it is missing.
        resume_step: the step of the checkpoint that the run goes on from, 0 for a new run. Records of later
            steps are dropped from both files, a torn last line too; TensorBoard is told to purge them.

    Raises:
        OSError: a line or event could not be written, for instance because the disk is full; nothing of it is
            left.
    """

    def __init__(self, run_folder: Path, *, resume_step: int = 0) -> None:
        """Open the files of a run; see the class."""
        run_folder.mkdir(parents=True, exist_ok=True)
        for name in (METRICS_FILE, EVALUATIONS_FILE):
            _drop_records_after(run_folder / name, resume_step)
        self._steps = (run_folder / METRICS_FILE).open("ab", buffering=0)
        self._evaluations = (run_folder / EVALUATIONS_FILE).open("ab", buffering=0)
        self._events = EventFile(run_folder / TENSORBOARD_FOLDER, purge_step=resume_step + 1)

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """`close`."""
        self.close()

    def log_step(self, record: StepRecord) -> None:
        """Append one line to metrics.jsonl."""
        self._append(self._steps, record, prefix="")

    def log_evaluation(self, record: EvaluationRecord) -> None:
        """Append one line to eval.jsonl."""
        self._append(self._evaluations, record, prefix="eval/")

    def close(self) -> None:
        """Close the files."""
        self._steps.close()
        self._evaluations.close()
        self._events.close()

    def _append(self, file: FileIO, record: StepRecord | EvaluationRecord, *, prefix: str) -> None:
        values = finite_values(record)
        append_whole(file, json.dumps(values, allow_nan=False).encode() + b"\n")
        scalars = {
            prefix + key: value for key, value in values.items() if key != "step" and value is not None
        }
        self._events.write_scalars(record.step, scalars)


def finite_values(record: Any) -> dict[str, Any]:
    """The fields of a dataclass of numbers for JSON: NaN and infinity, which it does not have, are None."""
    return {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in asdict(record).items()
    }


def _drop_records_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [record for record in read_records(path) if record["step"] <= step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


class OneBehind:
    """Reads a step's device metrics after the next step was dispatched, so that the host never waits.

    JAX dispatches asynchronously: `push` returns while the device still computes what it was given, and what
    it returns was ready as soon as the device took up the step after it. See nanodo's `train.py`.
    """

    def __init__(self) -> None:
        """Nothing is held yet."""
        self._held: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> tuple[int, Any] | None:
        """Hold a pytree of device arrays; return what was held before as (step, numpy arrays), if anything.

        The transfer is one explicit `jax.device_get`: `jax_transfer_guard="disallow"` permits it.
        """
        held, self._held = self._held, (step, metrics)
        return None if held is None else (held[0], jax.device_get(held[1]))

    def flush(self) -> tuple[int, Any] | None:
        """What is still held, waiting for the device; nothing is held afterwards.

        At the end, and before a checkpoint: a run that goes on from there never writes the lines before it.
        """
        held, self._held = self._held, None
        return None if held is None else (held[0], jax.device_get(held[1]))


@dataclass(frozen=True)
class Throughput:
    """Rates over a window of steps; NaN where it holds none."""

    tokens_per_second: float
    real_tokens_per_second: float
    sequences_per_second: float
    step_seconds: float


class ThroughputMeter:
    """Counts steps against a clock. Make it when the step is compiled, or the first window holds that too."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start the first window now. `clock` gives seconds."""
        self._clock = clock
        self._start_window()

    def add_step(self, *, sequences: int, tokens: int, real_tokens: float) -> None:
        """Count one finished step: rows, positions of the rows, and those of them that are not padding."""
        self._steps += 1
        self._sequences += sequences
        self._tokens += tokens
        self._real_tokens += real_tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still inside, for evaluations and checkpoints."""
        start = self._clock()
        try:
            yield
        finally:
            self._start += self._clock() - start

    def read(self) -> Throughput:
        """The rates since the last `read`; a new window starts."""
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
    """What is wrong with the masks of some batches, one line by kind; empty where they are as configured.

    The kinds are "clipped", rows were asked for more than they may mask, and "rate", too few or too many
    tokens are masked. A kind stays the same from call to call while the figures in its line change.

    The rate is off where so many masked tokens cannot come from the selection law: `"ceil"` adds up to one a quota,
    `"bert"` rounds by a half and takes at least one, `"bernoulli"` strays by five standard deviations, by ten where
    words are chosen with all their tokens. Words that do not fit may leave one token of a quota over. On top comes 1 %,
    for the rows that may be clipped without a warning.

    Args:
        masking: the configuration in force.
        rate: the mean of the rates of those batches, where it follows a schedule.
        rows: number of rows.
        real_tokens: tokens that are not padding.
        selectable_tokens: tokens that may be chosen.
        masked_tokens: tokens that were chosen.
        clipped_rows: rows in which the law asked for more than `mask_selection_length`.
    """
    warnings = {}
    if clipped_rows > _CLIPPED_ROWS_ALLOWED * rows:
        warnings["clipped"] = (
            f"mask_selection_length = {masking.mask_selection_length} clips {clipped_rows / rows:.1%} "
            "of the rows; a larger one, or none, which derives it from rate and row length, clips fewer"
        )
    words = masking.unit != "token"
    # Each document has tokens that cannot be selected, the one that ends it at least.
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
        realised = masked_tokens / max(selectable_tokens, 1)
        warnings["rate"] = (
            f"{masked_tokens} of {selectable_tokens} selectable tokens are masked, a rate of {realised:.4f}; "
            f"mask_selection_rate = {rate:.6g} asks for {expected:.0f}"
        )
    return warnings
