"""Training and evaluation steps of masked language modeling: pure functions over plain pytrees.

Rows are masked inside the step, as a function of (seed, epoch, example id).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.data.batches import Batch
from mlm_jax.keys import Purpose, purpose_key
from mlm_jax.masking.masking import MaskedTokens, example_keys
from mlm_jax.masking.rates import stage_at
from mlm_jax.masking.selection import selectable_positions
from mlm_jax.model.bert import BertMaskedLM, abstract_masked_lm
from mlm_jax.model.layers import split_model
from mlm_jax.model.loss import LossSums, masked_lm_sums
from mlm_jax.parallel.weights import declared_weights
from mlm_jax.step.sharded_masking import mask_rows
from mlm_jax.step.update import Hyperparameters, TrainState, UpdateRule, make_update_rule, state_of, update

# Evaluation masks do not depend on the run's seed, so that runs can be compared.
_EVALUATION_SEED = 0
_EVALUATION_EPOCH = 2**32 - 1


class StepMetrics(NamedTuple):
    """Float32 scalars of one step, still on the device."""

    loss: Array
    mlm_accuracy: Array
    masked_tokens: Array
    real_tokens: Array
    selectable_tokens: Array
    clipped_rows: Array
    """Number of rows in which the selection rule requested more positions than mask_selection_length."""
    grad_norm: Array
    learning_rate: Array
    nonfinite_steps: Array
    stop_votes: Array
    """Number of devices whose process wants the run to stop."""


@dataclass(frozen=True)
class StepSetup(UpdateRule):
    """Static part of a masked-LM step: everything that does not change during a run."""

    graph: nnx.GraphDef
    masking: MaskingConfig
    num_steps: int
    """Number of steps over which a scheduled masking rate changes from its first to its last value."""
    eval_masking: MaskingConfig
    document_end_id: int | None
    """Id of the token that ends a document, if rows attend within documents."""


def make_setup(
    config: TrainConfig,
    masking: MaskingConfig,
    sep_token_id: int | None = None,
    eval_masking: MaskingConfig | None = None,
) -> StepSetup:
    """Returns the setup of a run without allocating parameters; `eval_masking` defaults to `masking`.

    Raises:
        ValueError: `data.attend_within_documents` is set and `sep_token_id` is None.
    """
    within_documents = config.data.attend_within_documents
    if within_documents and sep_token_id is None:
        raise ValueError("sep_token_id: must be given with data.attend_within_documents")
    model = abstract_masked_lm(config.model)
    return StepSetup(
        **vars(make_update_rule(config, declared_weights(model))),
        graph=split_model(model)[0],
        masking=masking,
        num_steps=config.num_steps,
        eval_masking=masking if eval_masking is None else eval_masking,
        document_end_id=sep_token_id if within_documents else None,
    )


def initial_state(config: TrainConfig, setup: StepSetup, seed: Array) -> TrainState:
    """Returns a state with new random parameters, zero moments and step 0. Pure: jit it with the state's shardings."""
    key = purpose_key(seed, Purpose.PARAMETERS)
    return state_of(setup, split_model(BertMaskedLM(config.model, key=key))[1])


def train_step(
    setup: StepSetup, hyperparameters: Hyperparameters, state: TrainState, batch: Batch, stop_votes: Array
) -> tuple[TrainState, StepMetrics]:
    """Masks a batch and updates the parameters.

    The step only counts `stop_votes`, bool [devices], so that all processes learn at the same step that one of them has
    received a signal, without extra communication.
    """
    keys = example_keys(hyperparameters.seed, batch.epochs, batch.example_ids)
    table = hyperparameters.table
    stage = stage_at(state.step, setup.num_steps, table)
    masked, wanted = mask_rows(keys, batch, setup.masking, table, stage)
    inputs = (masked, _document_ids(setup, batch.token_ids))
    new_state, sums, grad_norm = update(setup, hyperparameters, state, inputs, partial(_loss_of_rows, setup))
    weight = jnp.maximum(sums.weight, 1.0)
    metrics = StepMetrics(
        loss=sums.loss / weight,
        mlm_accuracy=sums.correct / weight,
        masked_tokens=sums.weight,
        real_tokens=jnp.sum(batch.token_ids != setup.masking.padding_token_id),
        selectable_tokens=jnp.sum(selectable_positions(batch.token_ids, setup.masking)),
        clipped_rows=jnp.sum(wanted > masked.mask_positions.shape[1]),
        grad_norm=grad_norm,
        learning_rate=setup.schedule(hyperparameters.learning_rate)(state.step),
        nonfinite_steps=new_state.nonfinite_steps,
        stop_votes=jnp.sum(stop_votes),
    )
    return new_state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)


def eval_step(setup: StepSetup, params: Any, batch: Batch) -> LossSums:
    """Returns the loss sums of a batch, without dropout and with masks that are the same in every run."""
    epochs = jnp.full_like(batch.epochs, _EVALUATION_EPOCH)
    keys = example_keys(_EVALUATION_SEED, epochs, batch.example_ids)
    masked, _ = mask_rows(keys, batch, setup.eval_masking)
    return _loss_of_rows(setup, params, (masked, _document_ids(setup, batch.token_ids)), None)


def masked_loss(
    setup: StepSetup,
    params: Any,
    masked: MaskedTokens,
    dropout_key: Array | None,
    segment_ids: Array | None = None,
    padding_mask: Array | None = None,
    document_ids: Array | None = None,
) -> LossSums:
    """Returns the loss sums of rows that are already masked. Without a `dropout_key` there is no dropout.

    `padding_mask`, True at real tokens, defaults to the tokens that are not padding. With `document_ids`, int [B, L],
    tokens attend only within their document.
    """
    model = nnx.merge(setup.graph, params)
    if padding_mask is None:
        # Masking never changes which tokens are padding, because padding is neither selected nor drawn.
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


def _loss_of_rows(
    setup: StepSetup, params: Any, inputs: tuple[MaskedTokens, Array | None], dropout_key: Array | None
) -> LossSums:
    masked, document_ids = inputs
    return masked_loss(setup, params, masked, dropout_key, document_ids=document_ids)


def _document_ids(setup: StepSetup, token_ids: Array) -> Array | None:
    """Returns each token's document, counted from 0 in each row: int32 [B, L]; None if attention crosses documents.

    Computed from the unmasked rows, because a random replacement may be the token that ends a document.
    """
    if setup.document_end_id is None:
        return None
    ends = (token_ids == setup.document_end_id).astype(jnp.int32)
    # The end token belongs to the document that it ends.
    return jnp.cumsum(ends, axis=1) - ends
