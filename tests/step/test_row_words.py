"""Words that come with the rows, on a mesh: training and evaluation mask the words that each device has."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mlm_jax.config import DataConfig, MeshConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.batches import Batch, Rows, TrainingBatches
from mlm_jax.data.sources import resolve_masking
from mlm_jax.masking.masking import example_keys, mask_tokens
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.shards.token_store import TokenStore
from mlm_jax.step.evaluation import evaluate_rows
from mlm_jax.step.program import build_program
from mlm_jax.step.sharded_masking import mask_rows
from tests.small import CONFIG
from tests.text.small_tokenizers import TEXTS, byte_level


def rows_of(folder: Path, length: int) -> Rows:
    tokenizer = byte_level(folder)
    store = TokenStore.from_documents(TEXTS * 20, tokenizer)
    return Rows(store, tokenizer, DataConfig(sequence_length=length))


@pytest.mark.slow
def test_every_device_masks_its_own_words(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 32)
    masking = resolve_masking(MaskingRecipe(unit="whole_word", mask_selection_rate=0.3), rows.tokenizer, 32)
    numbers = np.arange(8)
    batch = Batch(rows.read(numbers), numbers.astype(np.uint32), numbers * 0, rows.read_words(numbers))
    keys = example_keys(0, 0, numbers)
    whole = mask_tokens(keys, batch.token_ids, masking, continues_word=batch.continues_word)
    with jax.set_mesh(make_mesh(MeshConfig(data=8))):
        masked, _ = jax.jit(mask_rows, static_argnums=2)(keys, batch, masking)
    for own, expected in zip(masked, whole, strict=True):
        np.testing.assert_array_equal(own, expected)


@pytest.mark.slow
def test_a_program_trains_and_evaluates_on_words(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, CONFIG.data.sequence_length)
    model = replace(CONFIG.model, vocabulary_size=rows.tokenizer.vocabulary_size)
    config = replace(CONFIG, model=model, mesh=MeshConfig(data=2))
    recipes = (MaskingRecipe(unit="span"), MaskingRecipe())
    masking, eval_masking = (
        resolve_masking(recipe, rows.tokenizer, rows.sequence_length) for recipe in recipes
    )
    assert (masking.words_from_data, eval_masking.words_from_data) == (True, False)
    program = build_program(config, masking, make_mesh(config.mesh, jax.devices()[:2]), None, eval_masking)
    batches = TrainingBatches(rows, BatchSizes(config.batch_size), 0, with_words=True)
    state, metrics = program.train(
        program.initial_state(), program.put(batches.batch(0)), program.stop_votes(False)
    )
    assert metrics.masked_tokens > 0
    assert evaluate_rows(program, state.params, rows).masked_tokens > 0
