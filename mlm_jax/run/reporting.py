"""Progress, metrics and warnings of a run, and the error that ends a diverged run."""

import math
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.batches import Rows, TrainingBatches
from mlm_jax.errors import RunError
from mlm_jax.model.bert import count_parameters
from mlm_jax.run.metrics import (
    EvaluationRecord,
    LossWindow,
    MetricsLog,
    OneBehind,
    StepRecord,
    ThroughputMeter,
    masking_warnings,
)
from mlm_jax.step.chips import peak_flops
from mlm_jax.step.evaluation import Evaluation
from mlm_jax.step.flops import mfu, train_flops_per_sequence
from mlm_jax.step.program import Program
from mlm_jax.step.train_step import StepMetrics

_SLOW_SECONDS = 2.0


def say(message: str) -> None:
    """Prints a line on stderr, above the progress bar if there is one. Only process 0 prints."""
    if jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)


@contextmanager
def announced_if_slow(work: str) -> Iterator[None]:
    """Prints the line `work` if the context takes longer than two seconds."""
    timer = threading.Timer(_SLOW_SECONDS, say, [work])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Reporter:
    """Reports device metrics, one step late: progress bar, files and warnings.

    On a terminal, a bar shows loss, tokens/s and the time left; otherwise, each logged step prints a line. Only process
    0 writes; the others read the same metrics and make the same decisions.
    """

    def __init__(
        self, folder: Path, program: Program, batches: TrainingBatches, start: int, losses: LossWindow
    ) -> None:
        """Opens the files of the run and drops records after step `start`.

        `losses` has the sums over the steps up to `start` that are not yet logged.
        """
        self._program, self._config, self._batches = program, program.config, batches
        self._log = MetricsLog(folder, resume_step=start) if jax.process_index() == 0 else None
        self._behind = OneBehind()
        self._meter = ThroughputMeter()
        self._warned: set[str] = set()
        self._window = _MaskCounts()
        self.losses = losses
        """Sums over the steps reported since the last line."""
        self.nonfinite_steps = 0
        """Number of consecutive skipped steps up to the last reported one."""
        self.masked_tokens = 0.0
        """Number of masked tokens in the steps reported so far."""
        self._first_step = start + 1
        self._interactive = sys.stderr.isatty() and self._log is not None
        self.stop_voted = False
        """True if a process has voted to stop, according to the metrics reported so far."""
        self._bar = tqdm(
            initial=start,
            total=self._config.num_steps,
            unit="step",
            dynamic_ncols=True,
            disable=not self._interactive,
            # Omits tqdm's estimate, which assumes that all steps have the same size.
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )

    def __enter__(self) -> "Reporter":
        """Returns the reporter itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the bar and the files."""
        self._bar.close()
        if self._log is not None:
            self._log.close()

    def step(self, step: int, metrics: StepMetrics) -> None:
        """Holds the device metrics of `step` (from 1) and reports those of the previous step.

        Raises:
            RunError: too many consecutive steps were non-finite.
        """
        self._report(self._behind.push(step, metrics))

    def flush(self) -> None:
        """Waits for the device and reports the last step."""
        self._report(self._behind.flush())

    def paused(self) -> AbstractContextManager[None]:
        """Excludes the time within the context from the throughput."""
        return self._meter.paused()

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Logs an evaluation after `step` steps."""
        if self._log is not None:
            self._log.log_evaluation(
                EvaluationRecord(step=step, epoch=self._batches.epoch(step), **asdict(evaluation))
            )
        if evaluation.masked_tokens == 0:
            say(f"warning: step {step:,}: no token of the evaluation data was masked, so they have no loss")
            return
        say(
            f"step {step:,}: evaluation loss {evaluation.mlm_loss:.4f}, accuracy {evaluation.mlm_accuracy:.1%}"
        )

    def _report(self, held: tuple[int, Any] | None) -> None:
        if held is None:
            return
        step, metrics = held
        sizes, length = self._batches.sizes, self._config.data.sequence_length
        rows = sizes.size(step - 1)
        self._meter.add_step(sequences=rows, tokens=rows * length, real_tokens=float(metrics.real_tokens))
        self._window.add(rows, self._config.masking.rate_at(step - 1, self._config.num_steps), metrics)
        self.losses.add(metrics)
        self.nonfinite_steps = int(metrics.nonfinite_steps)
        self.masked_tokens += float(metrics.masked_tokens)
        self.stop_voted |= bool(metrics.stop_votes)
        self._bar.update()
        if metrics.nonfinite_steps:
            self._warn_of_nonfinite(step, metrics)
        if step == self._first_step:
            rate = float(metrics.masked_tokens) / max(float(metrics.selectable_tokens), 1.0)
            loss = f"{metrics.loss:.4f}" if metrics.masked_tokens else "none"
            say(f"step {step:,}: loss {loss}, {rate:.2%} of the selectable tokens masked")
        is_logged = step % self._config.log_every == 0 or step == self._config.num_steps
        if is_logged:
            self._log_step(step, metrics)
        # Once, because the counts start again: none of no tokens is masked.
        if is_logged or step == self._first_step:
            self._warn_of_masking()

    def _log_step(self, step: int, metrics: StepMetrics) -> None:
        rates, losses = self._meter.read(), self.losses
        self.losses = LossWindow()
        record = StepRecord(
            step=step,
            epoch=self._batches.epoch(step),
            loss=losses.mean_loss(),
            mlm_accuracy=losses.accuracy(),
            masked_tokens=round(losses.masked_tokens),
            grad_norm=float(metrics.grad_norm),
            learning_rate=float(metrics.learning_rate),
            **asdict(rates),
            mfu=self._mfu(rates.sequences_per_second),
        )
        if self._log is not None:
            self._log.log_step(record)
        examples = self._batches.sizes.examples
        seconds = (examples(self._config.num_steps) - examples(step)) / record.sequences_per_second
        speed, left = f"{record.tokens_per_second:,.0f} tokens/s", f"{tqdm.format_interval(seconds)} left"
        self._bar.set_postfix_str(f"{left}, loss {record.loss:.3f}, {speed}")
        if not self._interactive:
            say(f"step {step:,}/{self._config.num_steps:,}: loss {record.loss:.4f}, {speed}, {left}")

    def _mfu(self, sequences_per_second: float) -> float | None:
        config, mesh = self._config, self._program.mesh
        flops = train_flops_per_sequence(
            config.model,
            length=config.data.sequence_length,
            masked=self._program.setup.masking.selection_length(config.data.sequence_length),
        )
        return mfu(
            flops_per_sequence=flops,
            sequences_per_second=sequences_per_second,
            num_devices=mesh.size,
            peak=peak_flops(mesh.devices.flat[0].device_kind, config.compute.dtype),
        )

    def _warn_of_masking(self) -> None:
        for kind, warning in masking_warnings(self._program.setup.masking, **self._window.take()).items():
            if kind not in self._warned:
                self._warned.add(kind)
                say(f"warning: {warning}")

    def _warn_of_nonfinite(self, step: int, metrics: StepMetrics) -> None:
        consecutive, limit = self.nonfinite_steps, self._config.max_nonfinite_steps
        why = f"loss {metrics.loss}, gradient norm {metrics.grad_norm}"
        if math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm):
            why = "its update is not finite"
        say(f"warning: step {step:,} was skipped: {why}")
        if consecutive >= limit:
            raise RunError(
                f"step {step:,}: {consecutive} consecutive steps had a non-finite loss, gradient or update "
                "(max_nonfinite_steps); try a lower optimizer.learning_rate or a longer warmup first"
            )


class _MaskCounts:
    """Sums of the mask counts over the steps since the last check."""

    _NAMES = ("real_tokens", "selectable_tokens", "masked_tokens", "clipped_rows")

    def __init__(self) -> None:
        self._clear()

    def add(self, rows: int, rate: float, metrics: StepMetrics) -> None:
        self._steps += 1
        self._rates += rate
        self._counts["rows"] += rows
        for name in self._NAMES:
            self._counts[name] += round(float(getattr(metrics, name)))

    def take(self) -> dict[str, Any]:
        """Returns the counts and the mean rate, and resets them. Assumes steps of about equally many tokens."""
        taken = {"rate": self._rates / max(self._steps, 1)} | self._counts
        self._clear()
        return taken

    def _clear(self) -> None:
        self._counts = dict.fromkeys(("rows", *self._NAMES), 0)
        self._steps, self._rates = 0, 0.0


def describe_start(config: TrainConfig, program: Program, rows: Rows) -> None:
    """Prints a summary of the run, compiles the training step, and prints its memory."""
    count = count_parameters(config.model, pooler=config.model.pooler, mlm_head=True)
    shape = ", ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    device = program.mesh.devices.flat[0].device_kind
    steps = rows.num_rows / config.batch_size
    say(f"model: {count:,} parameters; mesh: {shape} of {device}")
    say(f"data: {rows.num_rows:,} rows of {config.data.sequence_length} tokens, {steps:,.1f} steps per epoch")
    if config.initial_batch_size is not None:
        stages = config.batch_sizes().stages
        say(
            f"batch size: {config.initial_batch_size:,} rows, growing to {config.batch_size:,} at step "
            f"{stages[-1].first_step + 1:,}; {len(stages)} sizes, each compiled when it is first needed"
        )
    say(
        f"masking: {_describe_masking(config.masking)}, at most {program.setup.masking.mask_selection_length} per row"
    )
    say(f"compute: {program.compute}")
    say("compiling the training step")
    say(f"memory per device: {program.memory_report()}")


def _describe_masking(recipe: MaskingRecipe) -> str:
    units = {
        "token": "the tokens",
        "whole_word": "the tokens, by whole words",
        "span": "the tokens, by spans of words",
    }
    rate, final = recipe.mask_selection_rate, recipe.final_mask_selection_rate
    towards = "" if final is None else f" to {final:.0%}, {recipe.rate_schedule},"
    of = " of each document" if recipe.quota == "document" else ""
    return f"{rate:.0%}{towards} of {units[recipe.unit]}{of}"
