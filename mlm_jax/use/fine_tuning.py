"""Training a model that is in memory, without a run folder: few steps, on data that are in memory too.

The batch is split over as many local devices as divide it; parameters are on all of them. For runs that are resumed,
sharded or logged there is `mlm_jax.train`.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from mlm_jax.config import BertConfig, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.batches import Batch, Rows, TrainingBatches
from mlm_jax.data.shards import TokenStore
from mlm_jax.data.sources import resolve_masking
from mlm_jax.errors import InputError, RunError
from mlm_jax.masking.masking import MaskedTokens, example_keys, mask_tokens
from mlm_jax.model.loss import LossSums
from mlm_jax.parallel.sharding import batch_sharding, make_mesh, replicated
from mlm_jax.step.evaluation import Evaluation, evaluate_rows, evaluation_of
from mlm_jax.step.program import build_program
from mlm_jax.step.train_step import StepSetup, make_setup, masked_loss
from mlm_jax.step.update import SummedLoss, TrainState, UpdateRule, hyperparameters_of, state_of, update
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.inference import LENGTH_BUCKET

_BACKBONE = "encoder/*"


class MaskedBatch(NamedTuple):
    """Rows that were masked before: what `fit` takes beside strings.

    token_ids, segment_ids: int32 [B, L]; padding_mask: bool [B, L], True at real tokens; mask_positions and labels
    (the ids that stood there): int32 [B, K]; mask_weights: float32 [B, K]. A model without segments has None for them.
    """

    token_ids: Any
    padding_mask: Any
    segment_ids: Any
    mask_positions: Any
    labels: Any
    mask_weights: Any


@dataclass(frozen=True)
class FitResult:
    """What every step of a fit was: its loss (nats a token, or an example) and the share it got right."""

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]


def fit_settings(
    config: BertConfig,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    warmup_steps: int,
    layer_rate_decay: float,
    freeze_backbone: bool,
    seed: int,
) -> TrainConfig:
    """The settings of a fit: AdamW with linear warm-up and decay, as BERT is fine-tuned."""
    optimizer = OptimizerConfig(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        layer_rate_decay=layer_rate_decay,
        freeze=(_BACKBONE,) if freeze_backbone else (),
    )
    return settings_of(config, optimizer=optimizer, num_steps=num_steps, batch_size=batch_size, seed=seed)


def settings_of(config: BertConfig, **changes: Any) -> TrainConfig:
    """The default settings for a model, on rows of 128 tokens or as many as it takes."""
    data = DataConfig(sequence_length=min(DataConfig().sequence_length, config.max_sequence_length))
    return TrainConfig(model=config, data=data, **changes)


@dataclass(frozen=True)
class Tuner:
    """A compiled update for batches of `batch_size` rows, split over the local devices that divide it."""

    rule: UpdateRule
    summed_loss: SummedLoss
    settings: TrainConfig
    batch_size: int

    def train(
        self, state: TrainState, batches: Iterable[Any], num_steps: int
    ) -> tuple[TrainState, FitResult]:
        """Train for `num_steps` steps; returns the state after them, on the first device, and what the steps were.

        `batches` yields pytrees of arrays whose first axis is the batch. `state` stays as it is.

        Raises:
            InputError: `batches` ends before the last step.
            RunError: the loss was not finite for `settings.max_nonfinite_steps` steps in a row.
        """
        split = batch_sharding(self._mesh)
        # A copy: the step takes over the buffers it is given, and the caller's state is to outlive a failure.
        state = jax.device_put(jax.tree.map(jnp.copy, state), replicated(self._mesh))
        steps: list[Any] = []
        limit = self.settings.max_nonfinite_steps
        batch_iterator = iter(batches)
        with jax.set_mesh(self._mesh):
            for number in tqdm(range(num_steps), unit="step", disable=not sys.stderr.isatty(), leave=False):
                inputs = next(batch_iterator, None)
                if inputs is None:
                    raise InputError(f"the data ended after {number} batches: must have {num_steps}")
                state, taken = self._step(state, jax.device_put(inputs, split))
                steps.append(taken)
                # Of the step before, so that the device is never waited for with nothing to do.
                if number and float(steps[number - 1][2]) >= limit:
                    raise RunError(
                        f"step {number}: the loss was not finite for {limit} steps in a row; "
                        "the model is as it was"
                    )
        losses, accuracies, _ = zip(*jax.device_get(steps), strict=True)
        result = FitResult(tuple(map(float, losses)), tuple(map(float, accuracies)))
        return jax.device_put(state, jax.devices()[0]), result

    @cached_property
    def _mesh(self) -> Mesh:
        devices = jax.local_devices()
        ways = next(n for n in range(len(devices), 0, -1) if self.batch_size % n == 0)
        return make_mesh(MeshConfig(data=ways), devices[:ways])

    @cached_property
    def _step(self) -> Any:
        def step(state: TrainState, inputs: Any) -> tuple[TrainState, tuple[Array, Array, Array]]:
            hyperparameters = hyperparameters_of(self.settings)
            state, sums, _ = update(self.rule, hyperparameters, state, inputs, self.summed_loss)
            weight = jnp.maximum(sums.weight, 1.0)
            return state, (sums.loss / weight, sums.correct / weight, state.nonfinite_steps)

        return jax.jit(step, out_shardings=replicated(self._mesh), donate_argnums=0)


def text_rows(texts: Sequence[str], tokenizer: Tokenizer, sequence_length: int | None, longest: int) -> Rows:
    """Strings as rows, a document a row; the rows are as long as the longest text wants, or as they are told."""
    store = TokenStore.from_documents(texts, tokenizer)
    if sequence_length is None:
        wanted = (
            max(int(np.diff(shard.document_offsets.astype(np.int64)).max()) for shard in store.shards) + 1
        )
        sequence_length = min(longest, -(-wanted // LENGTH_BUCKET) * LENGTH_BUCKET)
    if not 3 <= sequence_length <= longest:
        raise InputError(f"sequence_length = {sequence_length}: must be in [3, {longest}]")
    return Rows(store, tokenizer, DataConfig(sequence_length=sequence_length, packing="document"))


def fit_texts(
    settings: TrainConfig, params: Any, rows: Rows, recipe: MaskingRecipe, tokenizer: Tokenizer
) -> tuple[Any, FitResult]:
    """A fit on rows of text, masked anew in every epoch."""
    if recipe.rate_schedule != "constant":
        raise InputError(f"masking.rate_schedule = {recipe.rate_schedule!r}: must be 'constant' in a fit")
    setup = make_setup(settings, resolve_masking(recipe, tokenizer, rows.sequence_length))

    def summed_loss(params: Any, batch: Batch, dropout_key: Array) -> LossSums:
        keys = example_keys(settings.seed, batch.epochs, batch.example_ids)
        return masked_loss(setup, params, mask_tokens(keys, batch.token_ids, setup.masking), dropout_key)

    batches = TrainingBatches(rows, settings.batch_sizes(), settings.seed)
    tuner = Tuner(setup, summed_loss, settings, settings.batch_size)
    state, result = tuner.train(
        state_of(setup, params), map(batches.batch, range(settings.num_steps)), settings.num_steps
    )
    return state.params, result


def fit_batches(settings: TrainConfig, params: Any, data: Any, tokenizer: Tokenizer) -> tuple[Any, FitResult]:
    """A fit on batches that are masked already: see `masked_batches`."""
    setup = _setup(settings, tokenizer)
    batches = masked_batches(data, settings.model, settings.batch_size, keep_rest=False)
    first = next(batches, None)
    if first is None:
        raise InputError("data: no batch: must be at least one")
    tuner = Tuner(setup, partial(_masked_batch_loss, setup), settings, len(first.token_ids))
    state, result = tuner.train(state_of(setup, params), _cycled(first, batches), settings.num_steps)
    return state.params, result


def evaluate_texts(
    settings: TrainConfig, params: Any, rows: Rows, recipe: MaskingRecipe, tokenizer: Tokenizer
) -> Evaluation:
    """Loss and accuracy on rows of text, with the same masks every time."""
    masking = resolve_masking(recipe, tokenizer, rows.sequence_length)
    one = MeshConfig(data=1)
    data = DataConfig(sequence_length=rows.sequence_length, packing="document")
    program = build_program(
        replace(settings, data=data, mesh=one), masking, make_mesh(one, jax.devices()[:1])
    )
    return evaluate_rows(program, params, rows)


def evaluate_batches(settings: TrainConfig, params: Any, data: Any, tokenizer: Tokenizer) -> Evaluation:
    """Loss and accuracy on batches that are masked already, each once."""
    setup = _setup(settings, tokenizer)
    sums = jax.jit(lambda params, batch: _masked_batch_loss(setup, params, batch, None))
    batches = masked_batches(data, settings.model, settings.batch_size, keep_rest=True)
    return evaluation_of([sums(params, batch) for batch in batches])


def _setup(settings: TrainConfig, tokenizer: Tokenizer) -> StepSetup:
    # Only the padding id is read of it: the rows are masked.
    return make_setup(
        settings, resolve_masking(MaskingRecipe(), tokenizer, settings.model.max_sequence_length)
    )


def _masked_batch_loss(
    setup: StepSetup, params: Any, batch: MaskedBatch, dropout_key: Array | None
) -> LossSums:
    masked = MaskedTokens(batch.token_ids, batch.mask_positions, batch.labels, batch.mask_weights)
    return masked_loss(setup, params, masked, dropout_key, batch.segment_ids, batch.padding_mask)


def masked_batches(
    data: Any, config: BertConfig, batch_size: int, *, keep_rest: bool
) -> Iterator[MaskedBatch]:
    """Batches of a mapping of arrays [N, …], cut into `batch_size` rows, or of an iterable of such mappings.

    Rows at the end that fill no batch are left out unless `keep_rest`: steps have one shape. The fields are those of
    `MaskedBatch`. `padding_mask`, `segment_ids` and `mask_weights` may be left out: no
    padding, one segment, and a weight of 1 wherever the position is not 0, which is [CLS] and stands for no selection.

    Raises:
        InputError: a field is missing, unknown, of a wrong shape, or holds what the model does not have.
    """
    if isinstance(data, Mapping):
        whole = _checked(data, config, "batch")
        size = min(batch_size, len(whole.token_ids))
        rows = len(whole.token_ids)
        for first in range(0, rows if keep_rest else rows - size + 1, max(1, size)):
            yield jax.tree.map(lambda array, first=first: array[first : first + size], whole)
        return
    for number, part in enumerate(data):
        if not isinstance(part, Mapping):
            raise InputError(f"batch {number}: found {type(part).__name__}: must be a mapping of arrays")
        yield _checked(part, config, f"batch {number}")


def _checked(data: Mapping[str, Any], config: BertConfig, where: str) -> MaskedBatch:
    unknown = set(data) - set(MaskedBatch._fields)
    if unknown:
        raise InputError(f"{where}: no field {min(unknown)!r}: must be of {', '.join(MaskedBatch._fields)}")
    if "segment_ids" in data and not config.num_segments:
        raise InputError(
            f"{where}: segment_ids: must be left out, because the model has model.num_segments = 0"
        )
    for name in ("token_ids", "mask_positions", "labels"):
        if name not in data:
            raise InputError(f"{where}: {name} is missing")
    token_ids = np.asarray(data["token_ids"])
    positions = np.asarray(data["mask_positions"])
    if token_ids.ndim != 2 or positions.ndim != 2:
        raise InputError(
            f"{where}: token_ids {token_ids.shape}, mask_positions {positions.shape}: must be [B, L] and [B, K]"
        )
    defaults = {
        "padding_mask": np.ones(token_ids.shape, bool),
        "segment_ids": np.zeros(token_ids.shape, np.int32),
        "mask_weights": positions > 0,
    }
    names = [name for name in MaskedBatch._fields if name != "segment_ids" or config.num_segments]
    arrays = {name: np.asarray(data.get(name, defaults.get(name))) for name in names}
    rows, length = token_ids.shape
    if length > config.max_sequence_length:
        raise InputError(
            f"{where}: token_ids {token_ids.shape}: must have at most {config.max_sequence_length} columns"
        )
    limits = {
        "token_ids": config.vocabulary_size,
        "segment_ids": config.num_segments,
        "mask_positions": length,
        "labels": config.vocabulary_size,
    }
    for name, array in arrays.items():
        shape = (
            (rows, length)
            if name in ("token_ids", "padding_mask", "segment_ids")
            else (rows, positions.shape[1])
        )
        if array.shape != shape:
            raise InputError(f"{where}: {name} has shape {array.shape}: must be {shape}")
        limit = limits.get(name)
        if limit and (
            array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < limit)
        ):
            raise InputError(f"{where}: {name}: must hold integers in [0, {limit})")
    types: dict[str, Any] = {"padding_mask": bool, "mask_weights": np.float32}
    typed = {name: array.astype(types.get(name, np.int32)) for name, array in arrays.items()}
    return MaskedBatch(**{"segment_ids": None} | typed)


def _cycled(first: MaskedBatch, rest: Iterator[MaskedBatch]) -> Iterator[MaskedBatch]:
    """Every batch, and again from the first when they end."""
    kept = [first]
    yield first
    for batch in rest:
        if jax.tree.map(np.shape, batch) != jax.tree.map(np.shape, first):
            raise InputError(
                f"batch {len(kept)}: token_ids {batch.token_ids.shape}, labels {batch.labels.shape}: must be "
                f"{first.token_ids.shape} and {first.labels.shape} as in the first batch"
            )
        kept.append(batch)
        yield batch
    while True:
        yield from kept
