"""One training step and one evaluation step: pure functions over plain pytrees.

The loss is the sum of weighted cross-entropies over the sum of weights, both over the whole global batch: devices
and microbatches add sums, and the division happens once. Masks come from (seed, epoch, example id), dropout from
(seed, step, microbatch).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from mlm_jax.config import ComputeConfig, TrainConfig
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.data.batches import Batch
from mlm_jax.keys import Purpose, purpose_key
from mlm_jax.masking.masking import MaskedTokens, example_keys
from mlm_jax.masking.rates import selection_table, stage_at
from mlm_jax.masking.selection import selectable_positions
from mlm_jax.model.bert import BertMaskedLM, abstract_masked_lm
from mlm_jax.model.loss import LossSums, masked_lm_sums
from mlm_jax.optim.optimizer import frozen_mask, learning_rate_schedule, make_optimizer
from mlm_jax.step.sharded_masking import mask_rows

# Evaluation masks are the same in every run, whatever its seed, so that runs can be compared.
_EVALUATION_SEED = 0
_EVALUATION_EPOCH = 2**32 - 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that changes during training, and so all that a checkpoint holds.

    The leaves are arrays, or what stands for them: shapes, shardings.
    """

    step: Any
    """Steps taken: int32 []."""
    params: Any
    """Nested dict of float32 arrays."""
    opt_state: Any
    nonfinite_steps: Any
    """How many of the last steps in a row were skipped for a non-finite loss or gradient: int32 []."""


class Hyperparameters(NamedTuple):
    """The numbers of a run that no shape depends on.

    They are inputs of a step: runs that differ in nothing else share one compiled program.
    """

    seed: Any
    """uint32 []"""
    learning_rate: Any
    """At its peak: float32 []"""
    table: Any
    """`SelectionTable` of the run's masking; None if the rows are masked before the step."""


class StepMetrics(NamedTuple):
    """Float32 scalars of one step, still on the device."""

    loss: Array
    mlm_accuracy: Array
    masked_tokens: Array
    real_tokens: Array
    selectable_tokens: Array
    clipped_rows: Array
    """Rows in which the selection law asked for more positions than mask_selection_length."""
    grad_norm: Array
    learning_rate: Array
    nonfinite_steps: Array
    stop_votes: Array
    """Devices whose process wants the run to stop."""


@dataclass(frozen=True)
class UpdateRule:
    """The static half of a parameter update, whatever the loss is."""

    optimizer: Callable[[Any], optax.GradientTransformation]
    """Of the learning rate at its peak, which its state does not depend on."""
    schedule: Callable[[Any], optax.Schedule]
    """Of the learning rate at its peak."""
    frozen: Any
    """True at every parameter that keeps its value, in the structure of the parameters."""
    compute: ComputeConfig
    accumulation_steps: int


@dataclass(frozen=True)
class StepSetup(UpdateRule):
    """The static half of a masked-LM step: everything that does not change while a run trains."""

    graph: nnx.GraphDef
    masking: MaskingConfig
    num_steps: int
    """Over which a scheduled masking rate goes from its first value to its last."""
    eval_masking: MaskingConfig
    document_end_id: int | None
    """The id of the token that ends a document, where rows attend within documents."""


# (parameters, a pytree of arrays with a leading batch axis, dropout key) to sums over that batch.
SummedLoss = Callable[[Any, Any, Array], LossSums]


def hyperparameters_of(config: TrainConfig, masking: MaskingConfig | None = None) -> Hyperparameters:
    """Those of a config, on the host; with the masking where the step masks."""
    return Hyperparameters(
        seed=np.array(config.seed, np.uint32),
        learning_rate=np.array(config.optimizer.learning_rate, np.float32),
        table=None if masking is None else selection_table(masking, config.data.sequence_length),
    )


def make_update_rule(config: TrainConfig, params: Any) -> UpdateRule:
    """The rule of a run's optimizer and compute; of `params` only the structure is read."""
    return UpdateRule(
        optimizer=partial(make_optimizer, config.optimizer, config.num_steps, params),
        schedule=partial(learning_rate_schedule, config.optimizer, config.num_steps),
        frozen=frozen_mask(config.optimizer, params),
        compute=config.compute,
        accumulation_steps=config.accumulation_steps,
    )


def make_setup(
    config: TrainConfig,
    masking: MaskingConfig,
    sep_token_id: int | None = None,
    eval_masking: MaskingConfig | None = None,
) -> StepSetup:
    """The setup of a run, without allocating a parameter. Without `eval_masking` evaluations mask as training does.

    Raises:
        ValueError: `data.attend_within_documents` without the id of [SEP].
    """
    within_documents = config.data.attend_within_documents
    if within_documents and sep_token_id is None:
        raise ValueError("sep_token_id: must be given with data.attend_within_documents")
    graph, params = split_model(abstract_masked_lm(config.model))
    return StepSetup(
        **vars(make_update_rule(config, params)),
        graph=graph,
        masking=masking,
        num_steps=config.num_steps,
        eval_masking=masking if eval_masking is None else eval_masking,
        document_end_id=sep_token_id if within_documents else None,
    )


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Any]:
    """A model as its static graph and its parameters, a plain nested dict."""
    graph, state = nnx.split(model, nnx.Param)
    return graph, nnx.to_pure_dict(state)


def initial_state(config: TrainConfig, setup: StepSetup, seed: Array) -> TrainState:
    """Freshly drawn parameters, zero moments, step 0. Pure: jit it with the shardings the state is to have."""
    key = purpose_key(seed, Purpose.PARAMETERS)
    return state_of(setup, split_model(BertMaskedLM(config.model, key=key))[1])


def state_of(rule: UpdateRule, params: Any) -> TrainState:
    """The state in which training begins from those parameters."""
    zero = jnp.zeros((), jnp.int32)
    # Of no peak, because the state is the same at any.
    opt_state = rule.optimizer(0.0).init(params)
    return TrainState(step=zero, params=params, opt_state=opt_state, nonfinite_steps=zero)


def update(
    rule: UpdateRule,
    hyperparameters: Hyperparameters,
    state: TrainState,
    inputs: Any,
    summed_loss: SummedLoss,
) -> tuple[TrainState, LossSums, Array]:
    """Forward, backward, update on one batch: the new state, the batch's sums, and the gradient's norm.

    The loss is the sum of losses over the sum of weights. A step whose loss or gradient is not finite changes
    neither parameters nor moments; it counts in `nonfinite_steps`, and the step number goes on.
    """
    sums, grads = _accumulate(rule, hyperparameters.seed, state, inputs, summed_loss)
    weight = jnp.maximum(sums.weight, 1.0)
    grads = jax.tree.map(lambda g: g / weight, grads)
    loss, grad_norm = sums.loss / weight, optax.tree.norm(grads)

    optimizer = rule.optimizer(hyperparameters.learning_rate)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    params, opt_state = jax.tree.map(
        partial(jnp.where, finite), (params, opt_state), (state.params, state.opt_state)
    )
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        nonfinite_steps=jnp.where(finite, 0, state.nonfinite_steps + 1),
    )
    return new_state, sums, grad_norm


def train_step(
    setup: StepSetup, hyperparameters: Hyperparameters, state: TrainState, batch: Batch, stop_votes: Array
) -> tuple[TrainState, StepMetrics]:
    """Mask, and `update` on what was masked.

    `stop_votes`, bool [devices], go through the step only to be counted: so all processes learn of a signal to one of
    them at the same step, and no process has to be asked.
    """
    keys = example_keys(hyperparameters.seed, batch.epochs, batch.example_ids)
    table = hyperparameters.table
    stage = stage_at(state.step, setup.num_steps, table)
    masked, wanted = mask_rows(keys, batch.token_ids, setup.masking, table, stage)
    inputs = (masked, _document_ids(setup, batch.token_ids))
    new_state, sums, grad_norm = update(setup, hyperparameters, state, inputs, partial(_loss_of_rows, setup))
    weight = jnp.maximum(sums.weight, 1.0)
    metrics = StepMetrics(
        loss=sums.loss / weight,
        mlm_accuracy=sums.correct / weight,
        masked_tokens=sums.weight,
        real_tokens=jnp.sum(batch.token_ids != setup.masking.padding_token_id),
        selectable_tokens=jnp.sum(selectable_positions(batch.token_ids, setup.masking)),
        clipped_rows=jnp.sum(wanted > setup.masking.mask_selection_length),
        grad_norm=grad_norm,
        learning_rate=setup.schedule(hyperparameters.learning_rate)(state.step),
        nonfinite_steps=new_state.nonfinite_steps,
        stop_votes=jnp.sum(stop_votes),
    )
    return new_state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)


def eval_step(setup: StepSetup, params: Any, batch: Batch) -> LossSums:
    """Sums of loss, correct predictions and weights over a batch, without dropout and with fixed masks."""
    epochs = jnp.full_like(batch.epochs, _EVALUATION_EPOCH)
    keys = example_keys(_EVALUATION_SEED, epochs, batch.example_ids)
    masked, _ = mask_rows(keys, batch.token_ids, setup.eval_masking)
    return _loss_of_rows(setup, params, (masked, _document_ids(setup, batch.token_ids)), None)


def _document_ids(setup: StepSetup, token_ids: Array) -> Array | None:
    """int32 [B, L], counted from 0 in each row, or None where rows are not divided.

    Of the rows as they were read: a random replacement may be any token, the one that ends a document too.
    """
    if setup.document_end_id is None:
        return None
    ends = (token_ids == setup.document_end_id).astype(jnp.int32)
    # What ends a document is the last of its tokens.
    return jnp.cumsum(ends, axis=1) - ends


def _loss_of_rows(
    setup: StepSetup, params: Any, inputs: tuple[MaskedTokens, Array | None], dropout_key: Array | None
) -> LossSums:
    masked, document_ids = inputs
    return masked_loss(setup, params, masked, dropout_key, document_ids=document_ids)


def _accumulate(
    rule: UpdateRule, seed: Any, state: TrainState, inputs: Any, summed_loss: SummedLoss
) -> tuple[LossSums, Any]:
    """Sums over the global batch, and the gradient of the summed loss."""
    step_key = jax.random.fold_in(
        purpose_key(seed, Purpose.DROPOUT, rule.compute.dropout_generator), state.step
    )

    def loss(params: Any, inputs: Any, microbatch: Array) -> tuple[Array, LossSums]:
        # Without this the frozen weights' gradients would be computed, and count in the norm.
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
        """[B, …] to [steps, B / steps, …], every device giving each microbatch an equal share of its own rows."""
        return jnp.moveaxis(x.reshape(-1, rule.accumulation_steps, *x.shape[1:]), 1, 0)

    def add(total: Any, inputs: tuple[Any, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, sums_and_grads(*inputs)), None

    microbatches = (jax.tree.map(split, inputs), jnp.arange(rule.accumulation_steps))
    shapes = jax.eval_shape(sums_and_grads, *jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, microbatches)[0]


def masked_loss(
    setup: StepSetup,
    params: Any,
    masked: MaskedTokens,
    dropout_key: Array | None,
    segment_ids: Array | None = None,
    padding_mask: Array | None = None,
    document_ids: Array | None = None,
) -> LossSums:
    """Sums of the masked-LM loss over rows that are masked already; without a key nothing is dropped.

    Without a `padding_mask` it is the tokens that are not padding. With `document_ids`, int [B, L], a token attends
    to those of its own document alone.
    """
    model = nnx.merge(setup.graph, params)
    if padding_mask is None:
        # Replacement never turns a token into padding or padding into a token: padding cannot be selected.
        padding_mask = masked.token_ids != setup.masking.padding_token_id
    predictions = model.predictions(
        masked.token_ids,
        padding_mask,
        masked.mask_positions,
        segment_ids,
        document_ids=document_ids,
        dropout_key=dropout_key,
        compute=setup.compute,
    )
    table, bias = model.output_embedding()
    return masked_lm_sums(
        predictions,
        table,
        bias,
        masked.mask_ids,
        masked.mask_weights,
        vocabulary_size=model.vocabulary_size,
        chunks=setup.compute.loss_chunks,
    )
