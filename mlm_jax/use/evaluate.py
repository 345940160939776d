"""Loss and accuracy of a masked LM, on prepared data, texts or masked batches."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mlm_jax.config import ComputeConfig, DataConfig, MeshConfig, Packing, TrainConfig
from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
from mlm_jax.config.training_record import record_of
from mlm_jax.corpus.progress import progress_bar
from mlm_jax.data.batches import Rows
from mlm_jax.data.sources import open_run_data, resolve_masking
from mlm_jax.data.verification import Verification
from mlm_jax.errors import InputError
from mlm_jax.model.loss import LossSums
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.step.evaluation import Evaluation, evaluate_rows, evaluation_of
from mlm_jax.step.maskable import check_maskable
from mlm_jax.step.program import build_program
from mlm_jax.store.loading import load_masked_lm
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.descriptions import TrainedLength
from mlm_jax.use.fine_tuning import settings_of
from mlm_jax.use.inference import finite
from mlm_jax.use.masked_batches import masked_batch_loss, masked_batches, setup_for_masked_batches


@dataclass(frozen=True)
class ModelEvaluation(Evaluation):
    """Metrics of a model on prepared data, with everything that they depend on besides the model and the data."""

    sequence_length: int
    packing: Packing
    attend_within_documents: bool
    masking: dict[str, Any]
    """Settings of the `MaskingRecipe`, with the `mask_selection_length` that was used."""


def evaluate_texts(
    settings: TrainConfig, params: Any, rows: Rows, recipe: MaskingRecipe, tokenizer: Tokenizer
) -> Evaluation:
    """Returns loss and accuracy on rows of text, with the same masks on every call.

    Raises InputError if no token can be masked, or none is.
    """
    data = DataConfig(sequence_length=rows.sequence_length, packing="document")
    masking = resolve_masking(recipe, tokenizer, rows.sequence_length)
    return _evaluate(replace(settings, data=data), params, rows, masking, tokenizer, "texts")


def evaluate_batches(settings: TrainConfig, params: Any, data: Any, tokenizer: Tokenizer) -> Evaluation:
    """Returns loss and accuracy on batches that are already masked.

    Raises InputError if there is none, or no masked position has a weight.
    """
    setup = setup_for_masked_batches(settings, tokenizer)
    sums = jax.jit(lambda params, batch: masked_batch_loss(setup, params, batch, None))
    batches = masked_batches(data, settings.model, settings.batch_size)
    results = [sums(params, batch) for batch in batches]
    if not results:
        raise InputError("data: no batch: must have at least one")
    return _of_numbers(evaluation_of(results), "data")


def evaluate_model(
    name: str | Path,
    data_path: str | Path,
    *,
    sequence_length: int | None = None,
    packing: Packing | None = None,
    attend_within_documents: bool | None = None,
    masking: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> ModelEvaluation:
    """Returns loss and accuracy of a model on prepared data, with the settings they depend on.

    A run, and a model saved or converted from one, is evaluated like the run's own evaluations: the results match
    eval.jsonl, except that all rows count, regardless of `eval_batches`. Other models are evaluated on packed rows of
    128 tokens or the model's maximum, with the default masking. `sequence_length`, `packing`,
    `attend_within_documents` and `masking`, which maps settings of the `MaskingRecipe` to values, replace these
    settings, so that different models can be compared. Rows longer than those of the model's training are reported on
    stderr. With `progress`, shows a progress bar on stderr if it is a terminal.

    Raises:
        InputError: there is no such model, a setting is invalid, or the data are unusable, have a different tokenizer
            or no token to mask.
        RunError: a file of the data is damaged, or the model computes NaN or infinity.
    """
    model = load_masked_lm(name)
    settings = settings_of(model.config)
    record = model.training or record_of(settings, None)
    if sequence_length is not None and sequence_length > model.config.max_sequence_length:
        raise InputError(
            f"sequence_length = {sequence_length}: must be at most the model's {model.config.max_sequence_length}"
        )
    packing = packing or record.packing
    if attend_within_documents is None:
        attend_within_documents = record.attend_within_documents and packing == "packed"
    data = DataConfig(
        path=str(data_path),
        sequence_length=record.sequence_length if sequence_length is None else sequence_length,
        packing=packing,
        attend_within_documents=attend_within_documents,
    )
    recipe = replace(record.masking, **masking or {})
    # TrainConfig checks that the masks are constant.
    settings = replace(settings, data=data, eval_masking=recipe, compute=ComputeConfig(dtype=record.dtype))
    sources = open_run_data(data)
    if sources.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise InputError(
            f"{data_path}: prepared with tokenizer {sources.tokenizer.fingerprint[:12]}: the model has "
            f"{model.tokenizer.fingerprint[:12]}"
        )
    TrainedLength(record).check_length(data.sequence_length)
    resolved = resolve_masking(recipe, model.tokenizer, data.sequence_length)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), model.params)
    with Verification(sources.stores) as verification:
        found = _evaluate(
            settings, params, sources.train, resolved, model.tokenizer, str(data_path), progress
        )
        verification.wait()
    shown = asdict(recipe) | {"mask_selection_length": resolved.mask_selection_length}
    return ModelEvaluation(
        **asdict(found),
        sequence_length=data.sequence_length,
        packing=data.packing,
        attend_within_documents=data.attend_within_documents,
        masking=shown,
    )


def _evaluate(
    settings: TrainConfig,
    params: Any,
    rows: Rows,
    masking: MaskingConfig,
    tokenizer: Tokenizer,
    where: str,
    progress: bool = False,
) -> Evaluation:
    """Evaluates on one device. `where` names the data in errors."""
    check_maskable(rows, masking, where)
    mesh_config = MeshConfig(data=1)
    mesh = make_mesh(mesh_config, jax.devices()[:1])
    program = build_program(replace(settings, mesh=mesh_config), masking, mesh, tokenizer.sep_token_id)
    with progress_bar(rows.num_rows, "row", shown=progress) as bar:
        count = partial(_counted, bar=bar, rows=program.evaluation_batch_size)
        return _of_numbers(evaluate_rows(program, params, rows, watch=count), where)


def _of_numbers(found: Evaluation, where: str) -> Evaluation:
    """Returns the metrics unchanged.

    Raises:
        InputError: no token is masked.
        RunError: the model computes NaN, so that its accuracy says nothing.
    """
    if not found.masked_tokens:
        raise InputError(
            f"{where}: no token is masked, so there is no loss: must have more tokens, or a higher mask_selection_rate"
        )
    finite(np.array(found.mlm_loss))
    return found


def _counted(results: Iterable[LossSums], bar: tqdm, rows: int) -> Iterator[LossSums]:
    """Yields results computed by a device, and adds `rows` to the bar for each finished result.

    Waits only for the result before the latest, so that the device always has work.
    """
    previous = None
    for latest in results:
        if previous is not None:
            jax.block_until_ready(previous)
            bar.update(rows)
        previous = latest
        yield latest
