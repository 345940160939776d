"""Contestant: our train step, including masking, compiled as in a run."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import jax
import numpy as np

from mlm_jax.config import ComputeConfig, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.data.batches import Batch
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.run.host_memory import keep_freed_memory
from mlm_jax.step.program import Program, build_program
from scripts.benchmark.contest import Round, Steps, serve
from scripts.benchmark.step_work import StepWork, read_batches


def step_config(work: StepWork) -> TrainConfig:
    """Returns the config of a run that does `work` on one device."""
    return TrainConfig(
        model=work.model,
        data=DataConfig(sequence_length=work.sequence_length),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        mesh=MeshConfig(data=1),
        compute=ComputeConfig(
            dtype=work.dtype, attention=work.attention, remat=work.remat, scan_unroll=work.scan_unroll
        ),
        batch_size=work.batch_size,
        num_steps=1_000_000,
    )


def step_program(work: StepWork, masking: MaskingConfig) -> Program:
    """Returns the program of the run of `step_config`."""
    config = step_config(work)
    return build_program(config, masking, make_mesh(config.mesh, jax.devices()[:1]))


def step_batches(work: StepWork, file: str) -> Iterator[Batch]:
    """Yields the batches in `file` endlessly, as batches of a run."""
    for batch in read_batches(file, work.batch_size):
        example_ids = np.arange(work.batch_size, dtype=np.uint32)
        yield Batch(batch["rows"], example_ids, np.zeros(work.batch_size, np.uint32))


def begin_training(program: Program, batches: Iterator[Batch]) -> Steps:
    """Returns a function that trains a new state on batches that are already on the device."""
    votes = program.stop_votes(False)
    state = program.initial_state()

    def take(steps: int) -> None:
        nonlocal state
        for batch in islice(batches, steps):
            state, metrics = program.train(state, batch, votes)
        jax.block_until_ready((state, metrics))

    return take


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round of `steps` steps; units are sequences."""
    keep_freed_memory()
    work = StepWork(**settings["work"])
    program = step_program(work, work.masking)
    take = begin_training(program, map(program.put, step_batches(work, settings["batches"])))

    def steps() -> float:
        take(work.steps)
        return work.steps * work.batch_size

    return steps, {"version": f"jax {jax.__version__}"}


if __name__ == "__main__":
    serve(prepare)
