"""The loop, read from top to bottom: data, program, state, steps, end."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlm_jax.config import TrainConfig
from mlm_jax.config.model import WEIGHT_COMPATIBLE_SETTINGS, BertConfig
from mlm_jax.config.settings import flatten
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.sources import RunData, open_run_data, resolve_masking, tokenize_run_data
from mlm_jax.errors import InputError, RunError
from mlm_jax.formats.model_folder import with_padded_rows
from mlm_jax.parallel.sharding import local_rows, make_mesh
from mlm_jax.run.host_memory import keep_freed_memory
from mlm_jax.run.reporting import Reporter, describe_start, say
from mlm_jax.run.signals import StopRequest
from mlm_jax.run.watchdog import Watchdog
from mlm_jax.step.evaluation import evaluate_rows
from mlm_jax.step.program import Program, build_program
from mlm_jax.step.update import TrainState
from mlm_jax.store.checkpoint import Checkpointer
from mlm_jax.store.loading import load_model
from mlm_jax.store.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    config_changes,
    read_config,
    write_run,
)
from mlm_jax.text.tokenizer import Tokenizer


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
    on_step: Callable[[int], None] | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Train, or go on training, the run of `config.output_dir`.

    The data are the prepared folders that `config.data` names or, where `documents` are given, those strings,
    tokenised in memory with `tokenizer`. A run folder with checkpoints is resumed from the newest whole one; one
    that has all its steps is left as it is. `on_step` is called with the number of every step that was begun. `stop` is
    a request that the caller listens for already; by default SIGTERM and Ctrl-C are listened for as long as this lasts.

    Raises:
        InputError: a setting, the data or the run folder is not usable; says which and what would be right.
        RunError: the run cannot go on: a checkpoint or a file could not be written, or the loss is no longer
            finite. The checkpoints written before are intact.
    """
    keep_freed_memory()
    folder = Path(config.output_dir)
    listening = StopRequest() if stop is None else contextlib.nullcontext(stop)
    with listening as request, Watchdog(config.distributed.timeout_seconds) as watchdog:
        # Data.
        sources = _open(config, documents, eval_documents, tokenizer)
        watchdog.require_same(_facts(config, sources))

        # Program.
        _use_compilation_cache(config.compilation_cache_dir)
        program = _program(config, sources)

        with Checkpointer(folder / CHECKPOINTS_FOLDER, keep_newest=config.keep_checkpoints) as checkpointer:
            run = _Run(config, folder, sources, program, checkpointer, request, watchdog, on_step)

            # State.
            state, batches = run.start()
            start = batches.sizes.first_step
            if start >= config.num_steps:
                say(
                    f"{folder}: finished, at step {start:,} of {config.num_steps:,}; "
                    "a larger num_steps goes on"
                )
                return TrainResult(folder, start, finished=True)

            # Steps.
            try:
                step = run.steps(state, batches)
            except OSError as error:
                raise RunError(
                    f"{error.filename or folder}: {error.strerror or error}; "
                    "the checkpoints written before are intact"
                ) from error

    # End.
    if step < config.num_steps:
        signal = request.name or "a signal to another process"
        say(f"{folder}: stopped by {signal} at step {step:,}, saved; the same command goes on from here")
        return TrainResult(folder, step, finished=False)
    say(f"{folder}: finished {step:,} steps")
    return TrainResult(folder, step, finished=True)


def check_run(config: TrainConfig) -> RunData:
    """Open the prepared data and trace the shapes: a look at what `train` would refuse before its first step.

    Returns the data.

    Raises:
        InputError: as `train`, but of the run folder, which is not looked at.
    """
    # JAX asks for the folder once, when it first compiles whatever it may be.
    _use_compilation_cache(config.compilation_cache_dir)
    sources = _open(config, None, None, None)
    _program(config, sources)
    if config.init_from is not None:
        _params_to_start_from(config.init_from, config.model, sources.tokenizer)
    return sources


@dataclass(frozen=True)
class _Run:
    """What the loop needs at every step."""

    config: TrainConfig
    folder: Path
    sources: RunData
    program: Program
    checkpointer: Checkpointer
    stop: StopRequest
    watchdog: Watchdog
    on_step: Callable[[int], None] | None

    @property
    def description(self) -> dict[str, Any]:
        """What a checkpoint of this run belongs to."""
        config = self.config
        return self.sources.description(config.data) | {"model": asdict(config.model), "seed": config.seed}

    def start(self) -> tuple[TrainState, TrainingBatches]:
        """The state to go on from and the batches from there; tells what is no longer as it was."""
        config = self.config
        restored = self.checkpointer.restore(self.program.abstract_state, self.description)
        step, state = restored or (0, _initial_state(config, self.program, self.sources.tokenizer))
        self.watchdog.require_same({"newest whole checkpoint": step})
        first_example = self.checkpointer.examples(step) if restored else 0
        batches = TrainingBatches(
            self.sources.train,
            config.batch_sizes(step, first_example),
            config.seed,
            cache(partial(local_rows, self.program.mesh)),
        )
        if (self.folder / CONFIG_FILE).is_file() and step < config.num_steps:
            for change in config_changes(read_config(self.folder), config):
                say(f"changed since this run last started: {change}")
            if first_example != config.batch_sizes().examples(step):
                say(
                    f"batches had another size before: step {step + 1:,} begins at example "
                    f"{first_example:,}, {batches.epoch(step):.2f} epochs"
                )
        return state, batches

    def steps(self, state: TrainState, batches: TrainingBatches) -> int:
        """Train from the batches' first step to the last, or to a signal; returns the step reached, which is saved.

        The host runs ahead of the device: metrics are read a step late, checkpoints are written in the
        background, and any transfer that nobody asked for is an error.
        """
        config, program = self.config, self.program
        step = start = batches.sizes.first_step
        self._write(write_run, self.folder, config, self.sources.tokenizer)
        describe_start(config, program, batches.rows)
        with (
            Reporter(self.folder, program, batches, start) as reporter,
            jax.set_mesh(program.mesh),
            jax.transfer_guard("disallow"),
        ):
            try:
                for batch in batches.from_step(start, config.num_steps, config.data.prefetch_batches):
                    rows = batches.sizes.size(step)
                    step += 1
                    if rows != program.config.batch_size:
                        program = self._compile(rows, step, reporter)
                    self.watchdog.heartbeat(step)
                    votes = program.stop_votes(self.stop.name is not None)
                    state, metrics = program.train(state, program.put(batch), votes)
                    reporter.step(step, metrics)
                    if self.on_step is not None:
                        self.on_step(step)
                    if self._evaluate_and_save(step, state, batches.sizes.examples(step), reporter):
                        break
                reporter.flush()
            except RunError:
                # Of a run that diverged, the curve is what its user wants to see; of a full disk, the reason.
                with contextlib.suppress(OSError):
                    self._write(_draw_losses, self.folder)
                raise
            self.watchdog.pause()
            self._write(_draw_losses, self.folder)
            # While a signal is still a request: the default would end the process before its checkpoint is whole.
            self.checkpointer.wait()
        return step

    def _compile(self, rows: int, step: int, reporter: Reporter) -> Program:
        """The program for steps of `rows` rows, compiled."""
        program = self.program.with_batch_size(rows)
        self.watchdog.pause()
        with reporter.paused():
            program.compiled_train  # noqa: B018
        say(f"step {step:,}: {rows:,} rows a step from here on")
        return program

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:
        """The first process writes for all."""
        if jax.process_index() == 0:
            write(*arguments)

    def _evaluate_and_save(self, step: int, state: TrainState, examples: int, reporter: Reporter) -> bool:
        """What is due after `step`; True where the run is to stop here for a signal, with its state saved."""
        config, rows = self.config, self.sources.evaluation
        ends = step == config.num_steps
        evaluates = rows is not None and (ends or step % config.eval_every == 0)
        saves = ends or step % config.checkpoint_every == 0
        if not (evaluates or saves or self._stops(reporter)):
            return False
        self.watchdog.pause()
        # A run that goes on from here never writes the lines before it.
        reporter.flush()
        eval_loss = None
        with reporter.paused():
            if rows is not None and evaluates:
                evaluation = evaluate_rows(self.program, state.params, rows, config.eval_batches)
                reporter.evaluation(step, evaluation)
                eval_loss = evaluation.mlm_loss
            # The best state is kept wherever it was seen.
            is_best = eval_loss is not None and eval_loss < self.checkpointer.best_eval_loss()
            # Read once, after the evaluation: a signal that comes later than this stops the next step instead.
            stops = self._stops(reporter)
            if saves or is_best or stops:
                self.checkpointer.save(step, state, self.description, examples=examples, eval_loss=eval_loss)
        return stops

    def _stops(self, reporter: Reporter) -> bool:
        """Whether to stop now: of many processes, when all know that one has a signal, which is a step later."""
        return reporter.stop_voted if jax.process_count() > 1 else self.stop.name is not None


def _facts(config: TrainConfig, sources: RunData) -> dict[str, Any]:
    """What all processes of a run must have in common; where the data lie may differ, not what they are."""
    settings = flatten(asdict(config))
    of_one_process = ("distributed.coordinator", "distributed.process_id", "compilation_cache_dir")
    for name in (*of_one_process, "data.path", "data.eval_path"):
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
            raise InputError("documents: must be given where eval_documents or a tokenizer is")
        sources = open_run_data(config.data)
    else:
        if tokenizer is None:
            raise InputError("tokenizer: must be given with documents")
        if config.data.path or config.data.eval_path:
            raise InputError("data.path and data.eval_path: must be empty where documents are given")
        sources = tokenize_run_data(documents, eval_documents, tokenizer, config.data)
    known, needed = config.model.vocabulary_size, sources.tokenizer.vocabulary_size
    if needed > known:
        raise InputError(f"model.vocabulary_size = {known}: must be at least the tokenizer's {needed}")
    return sources


def _program(config: TrainConfig, sources: RunData) -> Program:
    masking, eval_masking = (
        resolve_masking(recipe, sources.tokenizer, config.data.sequence_length)
        for recipe in (config.masking, config.eval_masking)
    )
    separator = sources.tokenizer.sep_token_id
    return build_program(config, masking, make_mesh(config.mesh), separator, eval_masking)


def _initial_state(config: TrainConfig, program: Program, tokenizer: Tokenizer) -> TrainState:
    state = program.initial_state()
    if config.init_from is None:
        return state
    params = _params_to_start_from(config.init_from, config.model, tokenizer)

    def place(leaf: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, like.sharding, lambda index: leaf[index])

    return replace(state, params=jax.tree.map(place, params, program.abstract_state.params))


def _params_to_start_from(name: str, wanted: BertConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Float32 parameters of the stored model `name`, as the model of a run takes them."""
    model = load_model(name)
    if model.tokenizer.fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"init_from = {name!r}: made with tokenizer {model.tokenizer.fingerprint[:12]}: "
            f"must be that of the data, {tokenizer.fingerprint[:12]}"
        )
    # How much is dropped and how wide the table is padded may change; what a weight means may not.
    for setting, value in asdict(wanted).items():
        theirs = getattr(model.config, setting)
        without_pooler = setting == "pooler" and theirs and not value
        if value != theirs and setting not in WEIGHT_COMPATIBLE_SETTINGS and not without_pooler:
            raise InputError(f"init_from = {name!r}: has model.{setting} = {theirs!r}: the run has {value!r}")
    if "head" not in model.params:
        raise InputError(f"init_from = {name!r}: has no masked-LM head: must have one")
    params = with_padded_rows(wanted, {part: model.params[part] for part in ("encoder", "head")})
    if not wanted.pooler:
        params["encoder"] = {key: leaf for key, leaf in params["encoder"].items() if key != "pooler"}
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), params)


def _draw_losses(folder: Path) -> None:
    # Late, because importing matplotlib takes a second.
    from mlm_jax.run.plots import plot_losses

    plot_losses(folder)


def _use_compilation_cache(folder: str | None) -> None:
    """Keep every compiled program on disk, however small: a second start then compiles nothing."""
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
