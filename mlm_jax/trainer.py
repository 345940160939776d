"""The loop, read from top to bottom: data, program, state, steps, end."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax

from mlm_jax.checkpoint import Checkpointer
from mlm_jax.config import TrainConfig
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.sources import Sources, open_sources, resolve_masking, tokenise_sources
from mlm_jax.data.tokenizer import Tokenizer
from mlm_jax.errors import InputError, RunError
from mlm_jax.evaluation import evaluate_rows
from mlm_jax.program import Program, build_program
from mlm_jax.reporting import Reporter, describe_start, say
from mlm_jax.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    config_changes,
    load_params,
    read_config,
    write_run,
)
from mlm_jax.sharding import make_mesh
from mlm_jax.signals import StopRequest
from mlm_jax.train_step import TrainState


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended."""

    run_folder: Path
    step: int
    finished: bool
    """False where a signal stopped the run: its state is saved, and the same call goes on from there."""


def train(
    config: TrainConfig,
    *,
    documents: Iterable[str] | None = None,
    eval_documents: Iterable[str] | None = None,
    tokenizer: Tokenizer | None = None,
) -> TrainResult:
    """Train, or go on training, the run of `config.output_dir`.

    The data are the prepared folders that `config.data` names or, where `documents` are given, those strings,
    tokenised in memory with `tokenizer`. A run folder with checkpoints is resumed from the newest whole one; one
    that has all its steps is left as it is.

    Raises:
        InputError: a setting, the data or the run folder is not usable; says which and what would be right.
        RunError: the run cannot go on: a checkpoint could not be written, or the loss is no longer finite. The
            checkpoints written before are intact.
    """
    # Data.
    if documents is None:
        sources = open_sources(config.data)
    elif tokenizer is None:
        raise InputError("tokenizer: must be given with documents")
    else:
        sources = tokenise_sources(documents, eval_documents, tokenizer, config.data)
    if sources.tokenizer.vocabulary_size > config.model.vocabulary_size:
        raise InputError(
            f"model.vocabulary_size = {config.model.vocabulary_size}: must be at least the tokenizer's "
            f"{sources.tokenizer.vocabulary_size}"
        )

    # Program.
    _use_compilation_cache(config.compilation_cache_dir)
    masking = resolve_masking(config.masking, sources.tokenizer, config.data.sequence_length)
    program = build_program(config, masking, make_mesh(config.mesh))

    # State.
    folder = Path(config.output_dir)
    description = sources.description(config.data) | {
        "model": asdict(config.model),
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    with Checkpointer(folder / CHECKPOINTS_FOLDER, keep_newest=config.keep_checkpoints) as checkpointer:
        restored = checkpointer.restore(program.abstract_state, description)
        start, state = restored or (0, _initial_state(config, program))
        if start >= config.num_steps:
            say(f"{folder}: finished, at step {start:,} of {config.num_steps:,}; a larger num_steps goes on")
            return TrainResult(folder, start, finished=True)
        if (folder / CONFIG_FILE).is_file():
            for change in config_changes(read_config(folder), config):
                say(f"changed since this run last started: {change}")

        # Steps.
        run = _Run(config, sources, program, checkpointer, description)
        try:
            write_run(folder, config, sources.tokenizer)
            step, stopped_by = run.steps(folder, state, start)
        except OSError as error:
            raise RunError(
                f"{error.filename or folder}: {error.strerror or error}; the checkpoints written before are intact"
            ) from error

    # End.
    # Late, because importing matplotlib takes a second.
    from mlm_jax.plots import plot_losses

    plot_losses(folder)
    if stopped_by and step < config.num_steps:
        say(f"{folder}: stopped by {stopped_by} at step {step:,}, saved; the same command goes on from here")
        return TrainResult(folder, step, finished=False)
    say(f"{folder}: finished {step:,} steps")
    return TrainResult(folder, step, finished=True)


@dataclass(frozen=True)
class _Run:
    """What the loop needs at every step."""

    config: TrainConfig
    sources: Sources
    program: Program
    checkpointer: Checkpointer
    description: dict[str, Any]

    def steps(self, folder: Path, state: TrainState, start: int) -> tuple[int, str | None]:
        """Train from step `start` to the last, or to a signal; returns the step reached and the signal's name.

        The host runs ahead of the device: metrics are read a step late, checkpoints are written in the
        background, and any transfer that nobody asked for is an error.
        """
        config, program = self.config, self.program
        rows = self.sources.train
        batches = TrainingBatches(
            rows, config.batch_size, config.seed, jax.process_index(), jax.process_count()
        )
        describe_start(config, program, rows)
        step = start
        with (
            StopRequest() as stop,
            Reporter(folder, program, batches, start) as reporter,
            jax.set_mesh(program.mesh),
            jax.transfer_guard("disallow"),
        ):
            for batch in batches.from_step(start, config.num_steps, config.data.prefetch_batches):
                state, metrics = program.train(state, program.put(batch))
                step += 1
                reporter.step(step, metrics)
                ends = step == config.num_steps or stop.name is not None
                self._evaluate_and_save(step, state, reporter, ends)
                if ends:
                    break
            reporter.flush()
            # While a signal is still a request: the default would end the process before its checkpoint is whole.
            self.checkpointer.wait()
        return step, stop.name

    def _evaluate_and_save(self, step: int, state: TrainState, reporter: Reporter, ends: bool) -> None:
        config, rows = self.config, self.sources.evaluation
        evaluates = rows is not None and (step % config.eval_every == 0 or step == config.num_steps)
        saves = step % config.checkpoint_every == 0 or ends
        if not evaluates and not saves:
            return
        # A run that goes on from here never writes the lines before it.
        reporter.flush()
        eval_loss = None
        with reporter.paused():
            if rows is not None and evaluates:
                evaluation = evaluate_rows(self.program, state.params, rows, config.eval_batches)
                reporter.evaluation(step, evaluation)
                eval_loss = evaluation.mlm_loss
            if saves:
                self.checkpointer.save(step, state, self.description, eval_loss=eval_loss)


def _initial_state(config: TrainConfig, program: Program) -> TrainState:
    state = program.initial_state()
    if config.init_from is None:
        return state
    return replace(state, params=load_params(Path(config.init_from), program.abstract_state.params))


def _use_compilation_cache(folder: str | None) -> None:
    """Keep every compiled program on disk, however small: a second start then compiles nothing."""
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
