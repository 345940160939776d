"""Loss and accuracy of a masked LM, on prepared data, texts or masked batches."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mlm_jax.config import DataConfig, MeshConfig, TrainConfig
from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
from mlm_jax.data.batches import Rows
from mlm_jax.data.sources import open_run_data, resolve_masking
from mlm_jax.data.verification import Verification
from mlm_jax.errors import InputError
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.step.evaluation import Evaluation, evaluate_rows, evaluation_of
from mlm_jax.step.program import build_program
from mlm_jax.store.loading import load_masked_lm
from mlm_jax.store.run_folder import is_run_folder, read_config
from mlm_jax.text.progress import progress_bar
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.fine_tuning import settings_of
from mlm_jax.use.masked_batches import masked_batch_loss, masked_batches, setup_for_masked_batches
from mlm_jax.use.progress import counted


def evaluate_texts(
    settings: TrainConfig, params: Any, rows: Rows, recipe: MaskingRecipe, tokenizer: Tokenizer
) -> Evaluation:
    """Returns loss and accuracy on rows of text, with the same masks on every call."""
    data = DataConfig(sequence_length=rows.sequence_length, packing="document")
    masking = resolve_masking(recipe, tokenizer, rows.sequence_length)
    return _evaluate(replace(settings, data=data), params, rows, masking, tokenizer)


def evaluate_batches(settings: TrainConfig, params: Any, data: Any, tokenizer: Tokenizer) -> Evaluation:
    """Returns loss and accuracy on batches that are already masked."""
    setup = setup_for_masked_batches(settings, tokenizer)
    sums = jax.jit(lambda params, batch: masked_batch_loss(setup, params, batch, None))
    batches = masked_batches(data, settings.model, settings.batch_size, keep_rest=True)
    return evaluation_of([sums(params, batch) for batch in batches])


def evaluate_model(name: str | Path, data_path: str | Path, *, progress: bool = False) -> Evaluation:
    """Returns loss and accuracy of a model on prepared data.

    For a run folder, rows are prepared and masked as in the run's own evaluations, so the results match eval.jsonl,
    except that all rows count, regardless of `eval_batches`. Other models are evaluated with the default masking, on
    rows of 128 tokens or the model's maximum. With `progress`, shows a progress bar on stderr if it is a terminal.

    Raises:
        InputError: there is no such model, or the data are unusable or have a different tokenizer.
        RunError: a file of the data is damaged.
    """
    model = load_masked_lm(name)
    settings = read_config(Path(name)) if is_run_folder(Path(name)) else settings_of(model.config)
    data = replace(settings.data, path=str(data_path), eval_path=None)
    sources = open_run_data(data)
    if sources.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise InputError(
            f"{data_path}: prepared with tokenizer {sources.tokenizer.fingerprint[:12]}: the model has "
            f"{model.tokenizer.fingerprint[:12]}"
        )
    # The run's attention kernel may not exist on this machine.
    compute = replace(settings.compute, attention="auto")
    settings = replace(settings, model=model.config, data=data, compute=compute)
    masking = resolve_masking(settings.eval_masking, model.tokenizer, data.sequence_length)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), model.params)
    with Verification(sources.stores) as verification:
        found = _evaluate(settings, params, sources.train, masking, model.tokenizer, progress)
        verification.wait()
    return found


def _evaluate(
    settings: TrainConfig,
    params: Any,
    rows: Rows,
    masking: MaskingConfig,
    tokenizer: Tokenizer,
    progress: bool = False,
) -> Evaluation:
    """Evaluates on one device."""
    mesh_config = MeshConfig(data=1)
    mesh = make_mesh(mesh_config, jax.devices()[:1])
    program = build_program(replace(settings, mesh=mesh_config), masking, mesh, tokenizer.sep_token_id)
    with progress_bar(rows.num_rows, "row", shown=progress) as bar:
        count = partial(counted, bar=bar, rows=program.evaluation_batch_size)
        return evaluate_rows(program, params, rows, watch=count)
