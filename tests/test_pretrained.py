"""What a user holds: masks filled from a run folder, and the same figures as the run's own evaluation."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mlm_jax.config import BertConfig, DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.data.tokenizer import Tokenizer
from mlm_jax.errors import InputError
from mlm_jax.metrics import EVALUATIONS_FILE, read_records
from mlm_jax.pretrained import MaskedLM
from mlm_jax.trainer import train

TEXTS = ["red apples are sweet", "green apples are sour", "blue berries are small", "the sea is blue"] * 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train(TEXTS, 120)
    config = TrainConfig(
        output_dir=str(tmp_path_factory.mktemp("runs") / "fruit"),
        model=BertConfig(
            vocabulary_size=tokenizer.vocabulary_size,
            num_layers=1,
            hidden_dim=32,
            num_heads=2,
            intermediate_dim=64,
            max_sequence_length=24,
            dropout_rate=0.0,
            pooler=False,
        ),
        data=DataConfig(sequence_length=10, packing="document"),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        num_steps=150,
        batch_size=8,
        eval_every=150,
        compilation_cache_dir=None,
    )
    train(config, documents=TEXTS, eval_documents=TEXTS[:4], tokenizer=tokenizer)
    return Path(config.output_dir)


@pytest.fixture(scope="module")
def model(run: Path) -> MaskedLM:
    return MaskedLM.from_run(run)


def test_it_fills_what_it_has_read(model: MaskedLM) -> None:
    (candidates,) = model.fill_mask("the [MASK] is blue", top_k=3)
    assert candidates[0]["token_str"] == "sea"
    assert candidates[0]["sequence"] == "the sea is blue"
    assert candidates[0]["score"] > 0.5
    assert candidates[0]["token"] == model.tokenizer.token_to_id("sea")
    scores = [candidate["score"] for candidate in candidates]
    assert scores == sorted(scores, reverse=True)


def test_scores_of_the_whole_vocabulary_sum_to_one_and_special_tokens_have_none(model: MaskedLM) -> None:
    ordinary = set(range(model.tokenizer.vocabulary_size)) - set(model.tokenizer.special_token_ids)
    (candidates,) = model.fill_mask("the [MASK] is blue", top_k=len(ordinary))
    np.testing.assert_allclose(sum(c["score"] for c in candidates), 1.0, rtol=1e-5)
    assert {c["token"] for c in candidates} == ordinary


def test_several_masks_are_answered_left_to_right(model: MaskedLM) -> None:
    first, second = model.fill_mask("[MASK] apples are [MASK]", top_k=1)
    assert first[0]["sequence"] == f"{first[0]['token_str']} apples are [MASK]"
    assert second[0]["sequence"] == f"[MASK] apples are {second[0]['token_str']}"


def test_padding_to_a_bucket_changes_no_score(model: MaskedLM) -> None:
    # At the end of the position table there is no room for padding.
    long = "sea " * 21 + "[MASK]"
    assert len(model.tokenizer.encode(long, parse_special_tokens=True)) + 2 == 24
    assert len(model.fill_mask(long)[0]) == 5
    ids = np.array([2, *model.tokenizer.encode("the [MASK] is blue", parse_special_tokens=True), 3])
    position = np.flatnonzero(ids == model.tokenizer.mask_token_id)
    padded = model._probabilities(ids, position)
    logits = model._logits(model.params, ids[None], np.ones((1, len(ids)), bool), position[None])
    alone = np.array(logits[0])[:, : model.tokenizer.vocabulary_size]
    alone[:, list(model.tokenizer.special_token_ids)] = -np.inf
    np.testing.assert_allclose(padded, jax.nn.softmax(alone), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "top_k", "message"),
    [
        ("no mask here", 5, r"no \[MASK\] in 'no mask here'"),
        ("sea " * 23 + "[MASK]", 5, "the text has 26 tokens: the model takes at most 24"),
        ("[MASK]", 0, "top_k = 0: must be in"),
        ("[MASK]", 10_000, "top_k = 10000: must be in"),
    ],
)
def test_what_cannot_be_filled_is_told(model: MaskedLM, text: str, top_k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.fill_mask(text, top_k=top_k)


def test_the_parameters_are_those_of_the_newest_checkpoint(run: Path, model: MaskedLM) -> None:
    record = read_records(run / EVALUATIONS_FILE)[-1]
    assert record["step"] == 150
    assert record["mlm_accuracy"] > 0.5
    assert isinstance(model.params["encoder"]["embeddings"]["token"], jax.Array)
    assert model.config == replace(model.config)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run folder: no config\.json"):
        MaskedLM.from_run(tmp_path)
