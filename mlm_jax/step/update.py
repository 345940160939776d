"""Parameter update for any loss: gradients over microbatches, optimizer, and the new state. Pure functions.

The loss is the sum of weighted losses over the sum of weights, both over the whole global batch: sums are added over
devices and microbatches and divided once. Dropout depends on (seed, step, microbatch).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mlm_jax.config import ComputeConfig, TrainConfig
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.keys import Purpose, purpose_key
from mlm_jax.masking.rates import selection_table
from mlm_jax.model.loss import LossSums
from mlm_jax.optim.optimizer import frozen_mask, learning_rate_schedule, make_optimizer
from mlm_jax.parallel.weights import Weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that changes during training and is saved in a checkpoint.

    The leaves are arrays, or placeholders such as shapes or shardings.
    """

    step: Any
    """Number of completed steps: int32 []."""
    params: Any
    """Nested dict of float32 arrays."""
    opt_state: Any
    nonfinite_steps: Any
    """Number of consecutive steps skipped so far because they were non-finite, see `update`: int32 []."""


class Hyperparameters(NamedTuple):
    """Numbers of a run that do not affect array shapes.

    They are inputs of a step, so that runs that differ only in these numbers share one compiled program.
    """

    seed: Any
    """uint32 []"""
    learning_rate: Any
    """Peak of the schedule: float32 []"""
    table: Any
    """`SelectionTable` of the run's masking; None if the rows are masked before the step."""


@dataclass(frozen=True)
class UpdateRule:
    """Static part of a parameter update, for any loss."""

    optimizer: Callable[..., optax.GradientTransformation]
    """Maps the learning rate of a step, and its peak, to the optimizer; its state does not depend on them."""
    schedule: Callable[[Any], optax.Schedule]
    """Maps the peak learning rate to the schedule."""
    frozen: Any
    """True for every frozen parameter, in the structure of the parameters."""
    compute: ComputeConfig
    accumulation_steps: int


# Maps (parameters, a pytree of arrays with a leading batch axis, dropout key) to the sums over that batch.
SummedLoss = Callable[[Any, Any, Array], LossSums]


def hyperparameters_of(config: TrainConfig, masking: MaskingConfig | None = None) -> Hyperparameters:
    """Returns the hyperparameters of a config, on the host; `masking` is required if the step masks rows."""
    return Hyperparameters(
        seed=np.array(config.seed, np.uint32),
        learning_rate=np.array(config.optimizer.learning_rate, np.float32),
        table=None if masking is None else selection_table(masking, config.data.sequence_length),
    )


def make_update_rule(config: TrainConfig, weights: Weights) -> UpdateRule:
    """Returns the update rule for a config and the declared weights of a model."""
    return UpdateRule(
        optimizer=partial(make_optimizer, config.optimizer, weights),
        schedule=partial(learning_rate_schedule, config.optimizer, config.num_steps),
        frozen=frozen_mask(config.optimizer, weights),
        compute=config.compute,
        accumulation_steps=config.accumulation_steps,
    )


def state_of(rule: UpdateRule, params: Any) -> TrainState:
    """Returns the initial training state for these parameters: zero moments, step 0."""
    zero = jnp.zeros((), jnp.int32)
    # The state does not depend on the learning rate.
    opt_state = rule.optimizer(0.0).init(params)
    return TrainState(step=zero, params=params, opt_state=opt_state, nonfinite_steps=zero)


def update(
    rule: UpdateRule,
    hyperparameters: Hyperparameters,
    state: TrainState,
    inputs: Any,
    summed_loss: SummedLoss,
) -> tuple[TrainState, LossSums, Array]:
    """Updates the parameters on one batch. Returns the new state, the batch's sums and the norm of the gradient.

    A step in which the loss, the norm of the gradient or the norm of the update is not finite leaves the parameters as
    they are. It counts in `nonfinite_steps` and in `step`, which determines the learning rate. The moments change only
    if the gradient is finite, and only to finite values.
    """
    sums, grads = _accumulate(rule, hyperparameters.seed, state, inputs, summed_loss)
    weight = jnp.maximum(sums.weight, 1.0)
    grads = jax.tree.map(lambda g: g / weight, grads)
    loss, grad_norm = sums.loss / weight, optax.tree.norm(grads)

    peak = hyperparameters.learning_rate
    optimizer = rule.optimizer(rule.schedule(peak)(state.step), peak)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    # If the moments also waited for the norm of the update, XLA would compute them twice or store them twice.
    opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite & jnp.isfinite(new), new, old), opt_state, state.opt_state
    )
    # Finite norms add up to finite parameters: a norm overflows at 1.8e19, and there are fewer than 2**31 steps.
    finite &= jnp.isfinite(optax.tree.norm(updates))
    params = jax.tree.map(
        partial(jnp.where, finite), optax.apply_updates(state.params, updates), state.params
    )
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        nonfinite_steps=jnp.where(finite, 0, state.nonfinite_steps + 1),
    )
    return new_state, sums, grad_norm


def _accumulate(
    rule: UpdateRule, seed: Any, state: TrainState, inputs: Any, summed_loss: SummedLoss
) -> tuple[LossSums, Any]:
    """Returns the sums over the global batch, and the gradient of the summed loss."""
    step_key = jax.random.fold_in(
        purpose_key(seed, Purpose.DROPOUT, rule.compute.dropout_generator), state.step
    )

    def loss(params: Any, inputs: Any, microbatch: Array) -> tuple[Array, LossSums]:
        # Otherwise, gradients of frozen weights would be computed and would count in the norm.
        params = jax.tree.map(
            lambda p, frozen: jax.lax.stop_gradient(p) if frozen else p, params, rule.frozen
        )
        sums = summed_loss(params, inputs, jax.random.fold_in(step_key, microbatch))
        return sums.loss, sums

    def sums_and_grads(inputs: Any, microbatch: Array) -> tuple[LossSums, Any]:
        grads, sums = jax.grad(loss, has_aux=True)(state.params, inputs, microbatch)
        return sums, grads

    if rule.accumulation_steps == 1:
        return sums_and_grads(inputs, jnp.zeros((), jnp.int32))

    def split(x: Array) -> Array:
        """Reshapes [B, …] to [steps, B / steps, …]; each microbatch has equally many rows of every device."""
        return jnp.moveaxis(x.reshape(-1, rule.accumulation_steps, *x.shape[1:]), 1, 0)

    def add(total: Any, inputs: tuple[Any, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, sums_and_grads(*inputs)), None

    microbatches = (jax.tree.map(split, inputs), jnp.arange(rule.accumulation_steps))
    shapes = jax.eval_shape(sums_and_grads, *jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, microbatches)[0]
