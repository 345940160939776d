"""Compiles the steps of a config on a mesh, with the shardings of all arrays."""

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.data.batches import Batch
from mlm_jax.errors import InputError
from mlm_jax.model.bert import abstract_masked_lm
from mlm_jax.model.compute import ComputeChoice, choose_compute
from mlm_jax.parallel.sharding import (
    batch_sharding,
    batch_ways,
    device_sharding,
    local_rows,
    replicated,
)
from mlm_jax.parallel.weights import optimizer_shardings, parameter_shardings
from mlm_jax.step.train_step import (
    StepMetrics,
    StepSetup,
    eval_step,
    initial_state,
    make_setup,
    train_step,
)
from mlm_jax.step.update import Hyperparameters, TrainState, hyperparameters_of


@dataclass(frozen=True)
class Program:
    """Steps of a run, each compiled on first use."""

    config: TrainConfig
    """Config of the run, with the dtype and the unrolling that were chosen."""
    mesh: Mesh
    setup: StepSetup
    abstract_state: TrainState
    """Shape, dtype and sharding of every array of the state."""
    compute: ComputeChoice

    def train(self, state: TrainState, batch: Batch, stop_votes: jax.Array) -> tuple[TrainState, StepMetrics]:
        """Takes a train step; the buffers of `state` are donated."""
        stepped: tuple[TrainState, StepMetrics] = self.compiled_train(
            self._hyperparameters, state, batch, stop_votes
        )
        return stepped

    @cached_property
    def compiled_train(self) -> jax.stages.Compiled:
        """Compiled train step: (hyperparameters, state, batch, stop votes) to (state, metrics)."""
        return self.lowered_train.compile()

    @cached_property
    def lowered_train(self) -> jax.stages.Lowered:
        """Train step, lowered but not compiled."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        step = jax.jit(
            partial(train_step, self.setup),
            out_shardings=(shardings, replicated(self.mesh)),
            donate_argnums=1,
        )
        with jax.set_mesh(self.mesh):
            return step.lower(
                self._abstract_hyperparameters,
                self.abstract_state,
                self._abstract_batch(self.config.batch_size, self.setup.masking),
                jax.ShapeDtypeStruct((self.mesh.size,), jnp.bool_, sharding=device_sharding(self.mesh)),
            )

    @cached_property
    def evaluate(self) -> jax.stages.Compiled:
        """Compiled evaluation step: (params, batch of `evaluation_batch_size` rows) to LossSums."""
        step = jax.jit(partial(eval_step, self.setup), out_shardings=replicated(self.mesh))
        batch = self._abstract_batch(self.evaluation_batch_size, self.setup.eval_masking)
        with jax.set_mesh(self.mesh):
            return step.lower(self.abstract_state.params, batch).compile()

    @property
    def evaluation_batch_size(self) -> int:
        """Number of rows per evaluation batch: the size of a microbatch, so that evaluation needs no more memory."""
        return self.config.batch_size // self.config.accumulation_steps

    def with_batch_size(self, rows: int) -> "Program":
        """Returns the program for steps of `rows` rows; the mesh must divide `rows`.

        Its microbatches are as large as possible but no larger than this program's, so its steps need no more memory.
        Their size is a multiple of the greatest common divisor of `rows` and the microbatch, so their number, and
        therefore dropout, does not depend on the mesh.
        """
        if rows == self.config.batch_size:
            return self
        microbatch = self.config.batch_size // self.config.accumulation_steps
        unit = math.gcd(rows, microbatch)
        count = next(n for n in range(-(-rows // microbatch), rows // unit + 1) if rows % (n * unit) == 0)
        config = replace(
            self.config,
            batch_size=rows,
            accumulation_steps=count,
            initial_batch_size=None,
            batch_size_warmup_examples=0,
        )
        return replace(self, config=config, setup=replace(self.setup, accumulation_steps=count))

    def initial_state(self) -> TrainState:
        """Returns new random parameters, the same on every mesh; each shard is created on its device."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        with jax.set_mesh(self.mesh):
            draw = jax.jit(partial(initial_state, self.config, self.setup), out_shardings=shardings)
            return draw(self._hyperparameters.seed)

    @cached_property
    def _hyperparameters(self) -> Hyperparameters:
        """Hyperparameters, on every device."""
        hyperparameters = hyperparameters_of(self.config, self.setup.masking)
        return jax.tree.map(partial(_put, replicated(self.mesh)), hyperparameters)

    @property
    def _abstract_hyperparameters(self) -> Hyperparameters:
        everywhere = replicated(self.mesh)
        return jax.tree.map(
            lambda number: jax.ShapeDtypeStruct(number.shape, number.dtype, sharding=everywhere),
            hyperparameters_of(self.config, self.setup.masking),
        )

    def put(self, batch: Batch) -> Batch:
        """Returns this process's rows as global arrays, with the first dimension split over the batch axes."""
        sharding = batch_sharding(self.mesh)
        return jax.tree.map(
            lambda part: _put(sharding, part, self._batches_per_local_rows * part.shape[0]), batch
        )

    @cached_property
    def _batches_per_local_rows(self) -> int:
        """Ratio of the rows of a batch to the rows of this process."""
        ways = batch_ways(self.mesh)
        return ways // len(local_rows(self.mesh, ways))

    def stop_votes(self, stop: bool) -> jax.Array:
        """Returns a bool [devices] array over all devices, with this process's vote on its own devices."""
        return self._both_votes[stop]

    @cached_property
    def _both_votes(self) -> tuple[jax.Array, jax.Array]:
        """Both possible votes, created once, so that a step transfers only its rows from the host."""
        sharding = device_sharding(self.mesh)
        local, size = len(sharding.addressable_devices), self.mesh.size
        return _put(sharding, np.full(local, False), size), _put(sharding, np.full(local, True), size)

    def _abstract_batch(self, rows: int, masking: MaskingConfig) -> Batch:
        sharding = batch_sharding(self.mesh)
        length = self.config.data.sequence_length
        words = jax.ShapeDtypeStruct((rows, length), jnp.bool_, sharding=sharding)
        return Batch(
            token_ids=jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding),
            example_ids=jax.ShapeDtypeStruct((rows,), jnp.uint32, sharding=sharding),
            epochs=jax.ShapeDtypeStruct((rows,), jnp.uint32, sharding=sharding),
            continues_word=words if masking.words_from_data else None,
        )

    def memory_report(self) -> str:
        """Returns the memory per device that XLA planned, as text."""
        plan = self.compiled_train.memory_analysis()
        if plan is None:
            return "not reported by this backend"
        parts = {
            "parameters": device_bytes(self.abstract_state.params),
            "optimizer": device_bytes(self.abstract_state.opt_state),
            "temporary": plan.temp_size_in_bytes,
            "total": peak_bytes(plan),
        }
        return ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in parts.items())


def build_program(
    config: TrainConfig,
    masking: MaskingConfig,
    mesh: Mesh,
    sep_token_id: int | None = None,
    eval_masking: MaskingConfig | None = None,
) -> Program:
    """Returns the program of `config` on `mesh`, without compiling anything or allocating parameters.

    The devices of the mesh need not be attached. `sep_token_id` is required if rows attend within documents.
    `eval_masking` defaults to `masking`.

    Raises:
        InputError: the mesh does not divide the rows of a microbatch, the rows of the smallest batch, or a dimension
            that it splits; or its devices do not support the config's attention.
    """
    microbatch = config.batch_size // config.accumulation_steps
    ways = batch_ways(mesh)
    if microbatch % ways:
        raise InputError(
            f"batch_size / accumulation_steps = {microbatch}: must be a multiple of mesh.data × mesh.fsdp = {ways}"
        )
    initial = config.initial_batch_size
    if initial is not None and initial % ways:
        raise InputError(
            f"initial_batch_size = {initial}: must be a multiple of mesh.data × mesh.fsdp = {ways}"
        )
    length, device = config.data.sequence_length, mesh.devices.flat[0]
    compute = choose_compute(config.compute, config.model, length, device)
    setup = make_setup(replace(config, compute=compute.config), masking, sep_token_id, eval_masking)
    # The attention stays automatic, because another device may need another implementation.
    config = replace(config, compute=replace(compute.config, attention=config.compute.attention))
    return Program(config, mesh, setup, abstract_state(config, setup, mesh), compute)


def abstract_state(config: TrainConfig, setup: StepSetup, mesh: Mesh) -> TrainState:
    """Returns shape, dtype and sharding of every array of the state; moments are sharded like their parameters."""
    shapes = jax.eval_shape(partial(initial_state, config, setup), np.uint32(config.seed))
    params = parameter_shardings(mesh, abstract_masked_lm(config.model))
    shardings = TrainState(
        step=replicated(mesh),
        params=params,
        opt_state=optimizer_shardings(mesh, setup.optimizer(0.0), shapes.opt_state, shapes.params, params),
        nonfinite_steps=replicated(mesh),
    )
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _put(sharding: NamedSharding, local: np.ndarray, *rows: int) -> jax.Array:
    """Creates a global array of `rows` rows from this process's rows, or a replicated array without `rows`."""
    # The transfer is intended, but jax considers it implicit if other processes hold a part.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(sharding, local, (*rows, *local.shape[len(rows) :]))


def peak_bytes(plan: Any) -> int:
    """Returns the peak bytes per device, from `jax.stages.Compiled.memory_analysis()`."""
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return held + plan.temp_size_in_bytes + plan.generated_code_size_in_bytes


def device_bytes(abstract: Any) -> int:
    """Returns the number of bytes per device of a tree of abstract, sharded arrays."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )
