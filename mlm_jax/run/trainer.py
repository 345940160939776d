"""Training loop, from top to bottom: data, program, state, steps, end."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import flatten
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.sources import RunData, open_run_data, resolve_masking, tokenize_run_data
from mlm_jax.data.verification import Verification
from mlm_jax.errors import InputError, RunError
from mlm_jax.files.folder_lock import FolderLock, own_folder
from mlm_jax.parallel.sharding import local_rows, make_mesh
from mlm_jax.run.init_from import initial_state, params_to_start_from
from mlm_jax.run.learning import check_masking, require_trained_to_the_end
from mlm_jax.run.metrics import LossWindow
from mlm_jax.run.records import EVALUATIONS_FILE, METRICS_FILE, read_records
from mlm_jax.run.reporting import Reporter, announced_if_slow, describe_start, say
from mlm_jax.run.signals import StopRequest
from mlm_jax.run.stoppable_evaluation import evaluate_unless_stopped, run_stops
from mlm_jax.run.watchdog import Watchdog
from mlm_jax.shards.folders import is_url
from mlm_jax.step.evaluation import Evaluation
from mlm_jax.step.program import Program, build_program
from mlm_jax.step.update import TrainState
from mlm_jax.store.checkpoint import Checkpointer
from mlm_jax.store.checkpoint_manifest import enumerate_some
from mlm_jax.store.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    check_run_target,
    config_changes,
    is_run_folder,
    read_config,
    write_run,
)
from mlm_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TrainResult:
    """Result of `train`."""

    run_folder: Path
    step: int
    finished: bool
    """False if a signal stopped the run; its state is saved, and the same call resumes it."""


def train(
    config: TrainConfig,
    *,
    documents: Iterable[str] | None = None,
    eval_documents: Iterable[str] | None = None,
    tokenizer: Tokenizer | None = None,
    on_step: Callable[[int], None] | None = None,
    stop: StopRequest | None = None,
    from_step: int | None = None,
) -> TrainResult:
    """Trains a model in the run folder `config.output_dir`, or resumes the run.

    The data are the prepared folders of `config.data` or, if given, `documents`, tokenized in memory with `tokenizer`.
    A run folder with checkpoints is resumed from the newest intact one; a finished run is not changed. `on_step` is
    called with the number of each step after it is dispatched. `stop` is a stop request set by the caller; by default,
    Ctrl-C and the signals of `StopRequest` stop the run. `from_step` resumes from an earlier checkpoint, with which the
    same call later resumes whatever followed; later checkpoints are renamed to `STEP.superseded`.

    Process 0 owns the run folder meanwhile (`files/folder_lock.py`).

    In a job of several processes, each process calls this function. If one fails, the others end, too. The failed
    process should end immediately (`os._exit`), because JAX waits at exit for processes that no longer exist.

    Raises:
        InputError: a setting, the data or the run folder is unusable, or another process uses the run folder.
        RunError: the run cannot continue, because a checkpoint or a file could not be written, the run folder was
            removed, or the loss is no longer finite. Earlier checkpoints are intact.
    """
    if not isinstance(config, TrainConfig):
        raise InputError(f"config: found {type(config).__name__}: must be a TrainConfig")
    check_run_target(config.output_dir)
    folder = Path(config.output_dir)
    config = _as_begun(config, folder)
    listening = StopRequest() if stop is None else contextlib.nullcontext(stop)
    with listening as request, Watchdog(config.distributed.timeout_seconds) as watchdog:
        # Data.
        with announced_if_slow("opening the data"):
            sources = _open(config, documents, eval_documents, tokenizer)
        watchdog.require_same(_facts(config, sources))

        # Program.
        _use_compilation_cache(config.compilation_cache_dir)
        program = _program(config, sources)
        config = program.config
        with announced_if_slow("looking for tokens to mask"):
            check_masking(sources, program)

        with (
            # Only now: the watchdog ends the processes of a job whose data differ, and they would leave the folder.
            own_folder(folder) if jax.process_index() == 0 else contextlib.nullcontext() as lock,
            Verification(sources.stores) as verification,
            Checkpointer(folder / CHECKPOINTS_FOLDER, keep_newest=config.keep_checkpoints) as checkpointer,
        ):
            run = _Run(
                config, folder, lock, sources, verification, program, checkpointer, request, watchdog, on_step
            )

            # State.
            state, batches = run.start(from_step)
            start = batches.sizes.first_step
            if start >= config.num_steps and not run.owes_evaluation(start):
                require_trained_to_the_end(start, int(state.nonfinite_steps))
                say(
                    f"{folder}: already finished, at step {start:,} of {config.num_steps:,}; "
                    "a larger num_steps resumes it"
                )
                return TrainResult(folder, start, finished=True)

            # Steps.
            try:
                step, finished = run.steps(state, batches)
            except OSError as error:
                run.confirm_folder()
                raise RunError(
                    f"{error.filename or folder}: {error.strerror or error}; earlier checkpoints are intact"
                ) from error

    # End.
    if not finished:
        signal = request.name or "a signal to another process"
        say(f"{folder}: stopped by {signal} at step {step:,}, saved; rerun the same command to resume")
        return TrainResult(folder, step, finished=False)
    say(f"{folder}: finished {step:,} steps")
    return TrainResult(folder, step, finished=True)


def check_run(config: TrainConfig) -> RunData:
    """Opens the prepared data and traces the shapes, to find errors before training. Returns the data.

    Raises:
        InputError: as `train`, except for the run folder, which is not checked.
    """
    # JAX reads the cache folder once, at the first compilation.
    _use_compilation_cache(config.compilation_cache_dir)
    sources = _open(config, None, None, None)
    check_masking(sources, _program(config, sources))
    if config.init_from is not None:
        params_to_start_from(config.init_from, config.model, sources.tokenizer, config.seed)
    return sources


@dataclass(frozen=True)
class _Run:
    """Everything that the training loop needs."""

    config: TrainConfig
    folder: Path
    lock: FolderLock | None
    """Lock of the run folder, which only process 0 has."""
    sources: RunData
    verification: Verification
    program: Program
    checkpointer: Checkpointer
    stop: StopRequest
    watchdog: Watchdog
    on_step: Callable[[int], None] | None

    @property
    def description(self) -> dict[str, Any]:
        """Identity of the run, saved with its checkpoints and compared when they are restored."""
        config = self.config
        return self.sources.description(config.data) | {"model": asdict(config.model), "seed": config.seed}

    def start(self, from_step: int | None) -> tuple[TrainState, TrainingBatches]:
        """Returns the initial or restored state and the batches that follow, and prints changed settings."""
        config, abstract = self.config, self.program.abstract_state
        with announced_if_slow("restoring the newest checkpoint"):
            restored = self.checkpointer.restore(abstract, self.description, from_step=from_step)
        if restored is None and read_records(self.folder / METRICS_FILE):
            say(f"{self.folder}: has no checkpoint, so the run starts again from step 0")
        with announced_if_slow("initializing the parameters"):
            step, state = restored or (0, initial_state(config, self.program, self.sources.tokenizer))
        self.watchdog.require_same({"newest intact checkpoint": step})
        if from_step is not None:
            again = f"resumed from step {from_step:,} before, and now from step {step:,}"
            say(f"resuming from step {step:,}" if step == from_step else again)
            if later := self.checkpointer.superseded:
                say(f"later checkpoints are renamed to STEP.superseded: {enumerate_some(later)}")
        first_example = self.checkpointer.examples(step) if restored else 0
        batches = TrainingBatches(
            self.sources.train,
            config.batch_sizes(step, first_example),
            config.seed,
            cache(partial(local_rows, self.program.mesh)),
            self.program.setup.masking.words_from_data,
        )
        if (self.folder / CONFIG_FILE).is_file() and step < config.num_steps:
            for change in config_changes(read_config(self.folder), config):
                say(f"changed since the last start: {change}")
            if first_example != config.batch_sizes().examples(step):
                say(
                    f"the batch size was different before: step {step + 1:,} begins at example "
                    f"{first_example:,}, {batches.epoch(step):.2f} epochs"
                )
        return state, batches

    def owes_evaluation(self, step: int) -> bool:
        """Returns True if a signal stopped the evaluation of the checkpoint of `step`, and no start has repeated it."""
        if not step or self.sources.evaluation is None or not self.checkpointer.unevaluated(step):
            return False
        records = read_records(self.folder / EVALUATIONS_FILE)
        for record in (record for record in records if record["step"] == step):
            self.checkpointer.note_eval_loss(step, record["mlm_loss"])
            return False
        return True

    def confirm_folder(self) -> None:
        """Raises RunError if the run folder was removed, moved or replaced."""
        if self.lock is not None:
            self.lock.confirm()

    def steps(self, state: TrainState, batches: TrainingBatches) -> tuple[int, bool]:
        """Trains from the first step of the batches to the last, or to a signal.

        Returns the last step, which is saved, and True if nothing is left to do.

        The host runs ahead of the device: metrics are read one step late, checkpoints are written in the background,
        and any implicit transfer is an error.
        """
        config, program = self.config, self.program
        step = start = batches.sizes.first_step
        stops = False
        self._write(write_run, self.folder, config, self.sources.tokenizer)
        describe_start(config, program, batches.rows)
        # Before the log drops the records of later steps, which a kill before the next save would not bring back.
        self.checkpointer.put_aside()
        losses = LossWindow(**self.checkpointer.log_sums(start)) if start else LossWindow()
        with (
            Reporter(self.folder, program, batches, start, losses) as reporter,
            jax.set_mesh(program.mesh),
            jax.transfer_guard("disallow"),
        ):
            try:
                if self.owes_evaluation(start):
                    evaluation = self._evaluate(step, state, reporter)
                    stops = evaluation is None
                    if evaluation is not None:
                        self.checkpointer.note_eval_loss(step, evaluation.mlm_loss)
                last = start if stops else config.num_steps
                for batch in batches.from_step(start, last, config.data.prefetch_batches):
                    # `step` counts the steps taken, so it is also the number of the next batch, from 0.
                    rows = batches.sizes.size(step)
                    step += 1
                    # Evaluation keeps self.program, whose microbatches are the largest.
                    if rows != program.config.batch_size:
                        program = self._compile(rows, step, reporter)
                    self.watchdog.heartbeat(step)
                    self.verification.check()
                    votes = program.stop_votes(self.stop.name is not None)
                    state, metrics = program.train(state, program.put(batch), votes)
                    reporter.step(step, metrics)
                    if self.on_step is not None:
                        self.on_step(step)
                    if stops := self._evaluate_and_save(step, state, batches.sizes.examples(step), reporter):
                        break
                reporter.flush()
                if step == config.num_steps:
                    masked = start > 0 or reporter.masked_tokens > 0
                    require_trained_to_the_end(step, reporter.nonfinite_steps, masked=masked)
            except RunError:
                # The plot shows how the run diverged. If the disk is full, the first error matters more.
                with contextlib.suppress(OSError):
                    self._write(_draw_losses, self.folder)
                raise
            self.watchdog.pause()
            with announced_if_slow("writing the last checkpoint"):
                self._write(_draw_losses, self.folder)
                # Wait here, because later a signal would end the process before its checkpoint is complete.
                self.checkpointer.wait()
            self.confirm_folder()
        return step, step == config.num_steps and not stops

    def _compile(self, rows: int, step: int, reporter: Reporter) -> Program:
        """Returns the compiled program for steps of `rows` rows."""
        program = self.program.with_batch_size(rows)
        self.watchdog.pause()  # until the next heartbeat
        with reporter.paused(), announced_if_slow(f"compiling the training step for {rows:,} rows"):
            program.compiled_train  # noqa: B018
        say(f"step {step:,}: {rows:,} rows per step from now on")
        return program

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:
        """Calls `write`, only in process 0."""
        if jax.process_index() == 0:
            write(*arguments)

    def _evaluate_and_save(self, step: int, state: TrainState, examples: int, reporter: Reporter) -> bool:
        """Evaluates and saves if due after `step`. Returns True if a signal stops the run, which is then saved."""
        config = self.config
        ends = step == config.num_steps
        evaluates = self.sources.evaluation is not None and (ends or step % config.eval_every == 0)
        saves = ends or step % config.checkpoint_every == 0
        if step % config.log_every == 0:
            self.confirm_folder()
        if not (evaluates or saves or run_stops(reporter, self.stop)):
            return False
        self.watchdog.pause()
        # A run resumed from here does not write earlier lines.
        reporter.flush()
        evaluation = self._evaluate(step, state, reporter) if evaluates else None
        eval_loss = None if evaluation is None else evaluation.mlm_loss
        # The best state is saved even between multiples of checkpoint_every.
        is_best = eval_loss is not None and eval_loss < self.checkpointer.best_eval_loss()
        # Read only once, after the evaluation: a later signal stops the run after the next step.
        stops = run_stops(reporter, self.stop)
        with reporter.paused():
            if saves or is_best or stops:
                self.confirm_folder()
                # A stopped run has no time to wait; its next start compares the rest.
                with announced_if_slow("comparing the data with their checksums"):
                    self.verification.wait(lambda: self.stop.name is not None)
                self.checkpointer.save(
                    step,
                    state,
                    self.description,
                    examples=examples,
                    eval_loss=eval_loss,
                    log_sums=asdict(reporter.losses),
                    unevaluated=evaluates and evaluation is None,
                )
        return evaluates and evaluation is None if ends else stops

    def _evaluate(self, step: int, state: TrainState, reporter: Reporter) -> Evaluation | None:
        """Evaluates `state`, or returns None if a signal stops the evaluation."""
        rows, limit = self.sources.evaluation, self.config.eval_batches
        assert rows is not None
        return evaluate_unless_stopped(self.program, state, step, rows, limit, reporter, self.stop)


def _as_begun(config: TrainConfig, folder: Path) -> TrainConfig:
    """Returns the config of a run that is resumed with the choices it began with in place of automatic ones."""
    if not is_run_folder(folder):
        return config
    begun = read_config(folder).compute
    compute = config.compute
    if compute.dtype == "auto":
        compute = replace(compute, dtype=begun.dtype)
    if compute.scan_unroll is None:
        compute = replace(compute, scan_unroll=begun.scan_unroll)
    return replace(config, compute=compute)


def _facts(config: TrainConfig, sources: RunData) -> dict[str, Any]:
    """Returns the facts that must be equal in all processes. Paths of data may differ, but not their contents."""
    settings = flatten(asdict(config))
    per_process = ("distributed.coordinator", "distributed.process_id", "compilation_cache_dir")
    for name in (*per_process, "data.path", "data.eval_path"):
        del settings[name]
    return settings | {
        "training data": sources.fingerprint,
        "evaluation data": sources.evaluation_fingerprint,
        "version of mlm_jax": version("mlm_jax"),
        "version of jax": jax.__version__,
    }


def _open(
    config: TrainConfig,
    documents: Iterable[str] | None,
    eval_documents: Iterable[str] | None,
    tokenizer: Tokenizer | None,
) -> RunData:
    if documents is None:
        if eval_documents is not None or tokenizer is not None:
            raise InputError("documents: must be given with eval_documents or a tokenizer")
        sources = open_run_data(config.data)
    else:
        if tokenizer is None:
            raise InputError("tokenizer: must be given with documents")
        if config.data.path or config.data.eval_path:
            raise InputError("data.path and data.eval_path: must be empty if documents are given")
        sources = tokenize_run_data(documents, eval_documents, tokenizer, config.data)
    known, needed = config.model.vocabulary_size, sources.tokenizer.vocabulary_size
    if needed > known:
        raise InputError(f"model.vocabulary_size = {known}: must be at least that of the tokenizer, {needed}")
    return sources


def _program(config: TrainConfig, sources: RunData) -> Program:
    masking, eval_masking = (
        resolve_masking(recipe, sources.tokenizer, config.data.sequence_length)
        for recipe in (config.masking, config.eval_masking)
    )
    separator = sources.tokenizer.sep_token_id
    return build_program(config, masking, make_mesh(config.mesh), separator, eval_masking)


def _draw_losses(folder: Path) -> None:
    # Imported late, because matplotlib takes a second to import.
    from mlm_jax.run.plots import plot_losses

    plot_losses(folder)


def _use_compilation_cache(folder: str | None) -> None:
    """Caches all compiled programs on disk, even small ones, so that a restart compiles nothing."""
    if folder is None:
        return
    # `Path` would make a local folder of gs://bucket/cache.
    jax.config.update(
        "jax_compilation_cache_dir", folder if is_url(folder) else str(Path(folder).expanduser())
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
