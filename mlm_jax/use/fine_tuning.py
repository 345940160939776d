"""Fine-tunes a model in memory, without a run folder, on data in memory.

A batch is split over the largest number of local devices that divides it, and every device has all parameters. Use
`mlm_jax.train` for runs that are resumed, sharded or logged.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from mlm_jax.config import BertConfig, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
from mlm_jax.data.batches import Batch, Rows, TrainingBatches
from mlm_jax.data.shards import TokenStore
from mlm_jax.data.sources import resolve_masking
from mlm_jax.errors import InputError, RunError
from mlm_jax.masking.masking import example_keys, mask_tokens
from mlm_jax.model.loss import LossSums
from mlm_jax.parallel.sharding import batch_sharding, make_mesh, replicated
from mlm_jax.step.maskable import check_maskable
from mlm_jax.step.train_step import make_setup, masked_loss
from mlm_jax.step.update import SummedLoss, TrainState, UpdateRule, hyperparameters_of, state_of, update
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.labels import check_count, check_switch, kind_of, listed
from mlm_jax.use.masked_batches import (
    endless_masked_batches,
    masked_batch_loss,
    setup_for_masked_batches,
)

_BACKBONE = "encoder/*"
# Rows of text have a multiple of this number of tokens, unless their length is given.
_LENGTH_MULTIPLE = 32


@dataclass(frozen=True)
class FitResult:
    """Per-step loss, in nats per token or example, and accuracy."""

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]


def fit_settings(
    config: BertConfig,
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    freeze_backbone: bool,
    **optimizer_settings: float,
) -> TrainConfig:
    """Returns the settings of a fit: AdamW with linear warm-up and decay, as in BERT's fine-tuning."""
    check_switch("freeze_backbone", freeze_backbone)
    freeze = (_BACKBONE,) if freeze_backbone else ()
    optimizer = OptimizerConfig(freeze=freeze, **optimizer_settings)  # type: ignore[arg-type]
    return settings_of(config, optimizer=optimizer, num_steps=num_steps, batch_size=batch_size, seed=seed)


def settings_of(config: BertConfig, **changes: Any) -> TrainConfig:
    """Returns the default settings for a model, with rows of 128 tokens or the model's maximum."""
    data = DataConfig(sequence_length=min(DataConfig().sequence_length, config.max_sequence_length))
    return TrainConfig(model=config, data=data, **changes)


@dataclass(frozen=True)
class Tuner:
    """Compiled update for batches of `batch_size` rows, split over local devices."""

    rule: UpdateRule
    summed_loss: SummedLoss
    settings: TrainConfig
    batch_size: int

    def train(
        self, state: TrainState, batches: Iterable[Any], num_steps: int
    ) -> tuple[TrainState, FitResult]:
        """Trains for `num_steps` steps; returns the new state, on the first device, and the metrics of the steps.

        `batches` yields pytrees of arrays whose first axis is the batch. `state` itself does not change.

        Raises:
            InputError: `batches` ends before the last step.
            RunError: the loss was non-finite in `settings.max_nonfinite_steps` consecutive steps or in the last ones.
        """
        split = batch_sharding(self._mesh)
        # A copy, because the step donates its buffers and the caller's state must survive a failure.
        state = jax.device_put(jax.tree.map(jnp.copy, state), replicated(self._mesh))
        steps: list[Any] = []
        limit = self.settings.max_nonfinite_steps
        batch_iterator = iter(batches)
        with jax.set_mesh(self._mesh):
            for number in tqdm(range(num_steps), unit="step", delay=2, disable=None, leave=False):
                inputs = next(batch_iterator, None)
                if inputs is None:
                    raise InputError(f"data: ended after {number} batches: must have {num_steps}")
                state, taken = self._step(state, jax.device_put(inputs, split))
                steps.append(taken)
                # Checks the previous step, so that the device always has work while the host waits.
                if number and float(steps[number - 1][2]) >= limit:
                    raise RunError(
                        f"step {number}: the loss was non-finite in {limit} consecutive steps; "
                        "the model is unchanged"
                    )
        losses, accuracies, skipped = zip(*jax.device_get(steps), strict=True)
        if skipped[-1] > 1 or skipped[-1] == num_steps:
            raise RunError(
                f"step {num_steps}: the last {skipped[-1]} steps were skipped, because their loss, gradient or update "
                "was not finite; the model is unchanged"
            )
        if np.isnan(losses).all():
            raise RunError("no step had a masked token, so nothing was learned; the model is unchanged")
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
            loss, accuracy = (
                jnp.where(sums.weight > 0, total / sums.weight, jnp.nan)
                for total in (sums.loss, sums.correct)
            )
            return state, (loss, accuracy, state.nonfinite_steps)

        return jax.jit(step, out_shardings=replicated(self._mesh), donate_argnums=0)


def texts_in(data: Any) -> list[str] | None:
    """Returns the texts in the data of a fit, or None if the data are batches that are already masked.

    Raises:
        InputError: the data are a single string or have no items, or one of the texts is not a string.
    """
    if isinstance(data, str | bytes):
        raise InputError("data: found one string: must be a list of strings or batches")
    if not hasattr(data, "__iter__"):
        raise InputError(f"data: found {kind_of(data)}: must be a list of strings or batches")
    if (
        isinstance(data, Mapping)
        or not (isinstance(data, Sequence) or hasattr(data, "tolist"))
        or not len(data)
    ):
        return None
    texts = listed(data, "data")
    if isinstance(texts[0], Mapping):
        return None
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {index}: found {kind_of(text)}: must be a string")
    return texts


def text_rows(
    texts: Sequence[str], tokenizer: Tokenizer, sequence_length: int | None, longest: int
) -> tuple[Rows, int]:
    """Returns texts as rows, one document per row, and the tokens of the longest row.

    Without `sequence_length`, rows are as long as the longest text.
    """
    if sequence_length is not None:
        check_count("sequence_length", sequence_length)
    store = TokenStore.from_documents(texts, tokenizer)
    tokens = max(int(np.diff(shard.document_offsets.astype(np.int64)).max()) for shard in store.shards) + 1
    if sequence_length is None:
        sequence_length = min(longest, -(-tokens // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE)
    if not 3 <= sequence_length <= longest:
        raise InputError(f"sequence_length = {sequence_length}: must be in [3, {longest}]")
    rows = Rows(store, tokenizer, DataConfig(sequence_length=sequence_length, packing="document"))
    return rows, min(tokens, sequence_length)


def counted_batches(data: Any, batch_size: int, *, counts: bool) -> tuple[Any, float | None]:
    """Returns masked batches and their number in a pass over the data, which may have a fraction.

    Unless `counts` is true, an iterable is not read, and its number is None.
    """
    if isinstance(data, Mapping):
        rows = len(data.get("token_ids", ()))
        return data, rows / max(1, min(batch_size, rows))
    if not counts:
        return data, None
    batches = list(data)
    return batches, len(batches)


def steps_of(num_steps: int | None, num_epochs: int | None, steps_per_epoch: float | None) -> int:
    """Returns the number of steps of a fit: `num_steps`, or those of `num_epochs` passes, by default one.

    Raises:
        InputError: both are given, or `num_epochs` is not a whole number or below 1.
    """
    if num_steps is not None and num_epochs is not None:
        raise InputError("num_steps and num_epochs: must not be given together")
    if num_epochs is not None:
        check_count("num_epochs", num_epochs)
    if num_steps is not None or steps_per_epoch is None:
        assert num_steps is not None
        return num_steps
    return max(1, math.ceil((num_epochs or 1) * steps_per_epoch))


def check_text_settings(texts: Sequence[str] | None, recipe: Any, sequence_length: int | None) -> None:
    """Checks the settings that only texts have, and not batches that are already masked (None).

    Raises:
        InputError: the masking is not a recipe, or a setting would have no effect.
    """
    # The other settings of a MaskingConfig, a subclass, come from the tokenizer.
    if not isinstance(recipe, MaskingRecipe) or isinstance(recipe, MaskingConfig):
        raise InputError(f"masking: found {kind_of(recipe)}: must be a MaskingRecipe")
    if texts is None and (recipe != MaskingRecipe() or sequence_length is not None):
        raise InputError(
            "masking and sequence_length: must not be given with batches that are already masked"
        )


def fit_texts(
    settings: TrainConfig, params: Any, rows: Rows, recipe: MaskingRecipe, tokenizer: Tokenizer
) -> tuple[Any, FitResult]:
    """Fits on rows of text, with new masks in every epoch."""
    if recipe.rate_schedule != "constant":
        raise InputError(f"masking.rate_schedule = {recipe.rate_schedule!r}: must be 'constant' in a fit")
    recipe.require_something_to_learn()
    masking = resolve_masking(recipe, tokenizer, rows.sequence_length)
    check_maskable(rows, masking, "texts")
    setup = make_setup(settings, masking)

    def summed_loss(params: Any, batch: Batch, dropout_key: Array) -> LossSums:
        keys = example_keys(settings.seed, batch.epochs, batch.example_ids)
        masked = mask_tokens(keys, batch.token_ids, setup.masking, continues_word=batch.continues_word)
        return masked_loss(setup, params, masked, dropout_key)

    batches = TrainingBatches(rows, settings.batch_sizes(), settings.seed, with_words=masking.words_from_data)
    tuner = Tuner(setup, summed_loss, settings, settings.batch_size)
    state, result = tuner.train(
        state_of(setup, params), map(batches.batch, range(settings.num_steps)), settings.num_steps
    )
    return state.params, result


def fit_batches(settings: TrainConfig, params: Any, data: Any, tokenizer: Tokenizer) -> tuple[Any, FitResult]:
    """Fits on batches that are already masked; see `endless_masked_batches`."""
    setup = setup_for_masked_batches(settings, tokenizer)
    batches = endless_masked_batches(data, settings.model, settings.batch_size)
    first = next(batches)
    tuner = Tuner(setup, partial(masked_batch_loss, setup), settings, len(first.token_ids))
    state, result = tuner.train(state_of(setup, params), chain([first], batches), settings.num_steps)
    return state.params, result
