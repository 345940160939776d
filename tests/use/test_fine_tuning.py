"""Fits in memory: strings and masked batches, freezing, and errors."""

import math
from itertools import islice
from typing import Any

import jax
import numpy as np
import pytest

from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
from mlm_jax.data.sources import resolve_masking
from mlm_jax.errors import InputError, RunError
from mlm_jax.masking.masking import example_keys, mask_tokens
from mlm_jax.use.fine_tuning import FitResult, Tuner
from mlm_jax.use.masked_batches import endless_masked_batches
from mlm_jax.use.masked_lm import MaskedLM
from tests.tiny import FRUIT, tiny_masked_lm

TEXTS = FRUIT * 4


@pytest.fixture
def model() -> MaskedLM:
    return tiny_masked_lm(pooler=True)


def batch_of(model: MaskedLM, texts: list[str] = TEXTS, length: int = 12) -> dict[str, np.ndarray]:
    """Returns the texts masked once, in the format of other preprocessors."""
    tokenizer = model.tokenizer
    token_ids = np.zeros((len(texts), length), np.int32)
    for row, text in zip(token_ids, texts, strict=True):
        body = tokenizer.encode(text)
        row[: len(body) + 2] = [tokenizer.cls_token_id, *body, tokenizer.sep_token_id]
    masking = resolve_masking(MaskingRecipe(mask_selection_rate=0.3), tokenizer, length)
    masked = mask_tokens(example_keys(0, 0, np.arange(len(texts))), token_ids, masking)
    return {
        "token_ids": np.asarray(masked.token_ids),
        "padding_mask": token_ids != 0,
        "segment_ids": np.zeros_like(token_ids),
        "mask_positions": np.asarray(masked.mask_positions),
        "labels": np.asarray(masked.mask_ids),
        "mask_weights": np.asarray(masked.mask_weights),
    }


def test_fit_learns_from_strings(model: MaskedLM) -> None:
    before = model.evaluate(TEXTS)
    result = model.fit(TEXTS, num_steps=150, batch_size=8, learning_rate=1e-2)
    after = model.evaluate(TEXTS)
    assert len(result.losses) == len(result.accuracies) == 150
    assert np.mean(result.losses[-20:]) < 0.6 * np.mean(result.losses[:20])
    assert after.mlm_loss < 0.6 * before.mlm_loss
    assert after.masked_tokens == before.masked_tokens > 0
    assert model.fill_mask("the [MASK] is blue")[0]["token_str"] == "sea"
    assert isinstance(model.params["head"]["bias"], jax.Array)
    assert model.params["head"]["bias"].devices() == {jax.devices()[0]}


@pytest.mark.slow
def test_lower_layers_learn_more_slowly_with_layer_rate_decay(model: MaskedLM) -> None:
    before, moved = jax.tree.map(np.asarray, model.params), {}
    for decay in (1.0, 0.25):
        fitted = MaskedLM(model.config, before, model.tokenizer)
        fitted.fit(batch_of(model), num_steps=1, batch_size=16, learning_rate=1e-2, layer_rate_decay=decay)
        moved[decay] = jax.tree.map(
            lambda after, before: np.abs(np.asarray(after) - before).mean(), fitted.params, before
        )
    ratio = jax.tree.map(lambda slow, full: slow / full if full else np.nan, moved[0.25], moved[1.0])
    assert ratio["head"]["dense"]["kernel"] == pytest.approx(1, rel=1e-3)
    assert ratio["encoder"]["layers"]["attention"]["value"]["kernel"] == pytest.approx(0.25, rel=1e-3)
    assert ratio["encoder"]["embeddings"]["position"] == pytest.approx(0.25**2, rel=1e-3)


def test_two_strings_are_enough(model: MaskedLM) -> None:
    result = model.fit(["The quick brown fox jumped.", "I forgot my homework."], batch_size=2, num_steps=2)
    assert np.isfinite(result.losses).all()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_parameters_regardless_of_earlier_calls(model: MaskedLM) -> None:
    start = model.params
    ends = []
    for seed in (0, 0, 1):
        model.params = start
        model.fit(TEXTS, num_steps=3, batch_size=8, seed=seed, learning_rate=1e-3)
        ends.append(np.asarray(model.params["head"]["dense"]["kernel"]))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert (ends[0] != ends[2]).any()


def test_a_frozen_backbone_does_not_change(model: MaskedLM) -> None:
    before = jax.tree.map(np.asarray, model.params)
    model.fit(TEXTS, num_steps=5, batch_size=8, learning_rate=1e-2, freeze_backbone=True)
    after = jax.tree.map(np.asarray, model.params)
    jax.tree.map(np.testing.assert_array_equal, after["encoder"], before["encoder"])
    assert (after["head"]["dense"]["kernel"] != before["head"]["dense"]["kernel"]).any()


def test_the_pooler_is_not_shrunk(model: MaskedLM) -> None:
    before = np.asarray(model.params["encoder"]["pooler"]["kernel"])
    model.fit(TEXTS, num_steps=5, batch_size=8, learning_rate=1e-2)
    np.testing.assert_array_equal(model.params["encoder"]["pooler"]["kernel"], before)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("one mapping", marks=pytest.mark.slow),
        pytest.param("iterable", marks=pytest.mark.slow),
        pytest.param("fields left out", marks=pytest.mark.slow),
    ],
)
def test_fit_learns_from_masked_batches(model: MaskedLM, form: str) -> None:
    batch = batch_of(model)
    data: Any = batch
    if form == "iterable":
        halves = [slice(0, 8), slice(8, 16)]
        data = [{name: array[half] for name, array in batch.items()} for half in halves]
    elif form == "fields left out":
        data = {name: batch[name] for name in ("token_ids", "padding_mask", "mask_positions", "labels")}
    before = model.evaluate(batch)
    result = model.fit(data, num_steps=100, batch_size=8, learning_rate=1e-2)
    assert model.evaluate(batch).mlm_loss < 0.3 * before.mlm_loss
    assert len(result.losses) == 100


def test_a_masked_batch_uses_its_weights_padding_and_segments(model: MaskedLM) -> None:
    batch = batch_of(model)
    whole = model.evaluate(batch)
    assert whole.masked_tokens == int(batch["mask_weights"].sum())
    # Position 0 means no selection.
    defaulted = {name: array for name, array in batch.items() if name != "mask_weights"}
    assert model.evaluate(defaulted) == whole
    first_only = batch["mask_weights"] * (np.arange(batch["labels"].shape[1]) == 0)
    assert model.evaluate(batch | {"mask_weights": first_only}).masked_tokens == int(first_only.sum())
    other = model.evaluate(batch | {"segment_ids": np.ones_like(batch["token_ids"])})
    assert abs(other.mlm_loss - whole.mlm_loss) > 1e-4
    padded = batch | {"padding_mask": np.ones_like(batch["padding_mask"])}
    assert abs(model.evaluate(padded).mlm_loss - whole.mlm_loss) > 1e-5
    in_pieces = model.evaluate(batch, batch_size=5)
    assert in_pieces.masked_tokens == whole.masked_tokens
    assert in_pieces.mlm_loss == pytest.approx(whole.mlm_loss, rel=1e-5)


def test_a_model_that_computes_no_numbers_has_no_loss(model: MaskedLM) -> None:
    broken = MaskedLM(model.config, jax.tree.map(lambda leaf: leaf * np.nan, model.params), model.tokenizer)
    for data in (TEXTS, batch_of(model)):
        with pytest.raises(RunError, match="the model computes NaN or infinity"):
            broken.evaluate(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "batch: labels is missing"),
        ({"mask_ids": np.zeros((16, 3), int)}, "batch: no field 'mask_ids'"),
        ({"segment_ids": np.zeros((16, 11), int)}, r"segment_ids has shape \(16, 11\): must be \(16, 12\)"),
        ({"labels": np.zeros((16, 9), int)}, r"labels has shape \(16, 9\)"),
        ({"token_ids": np.full((16, 12), 1000)}, "token_ids: must contain integers in"),
        ({"token_ids": np.ones((16, 12))}, "token_ids: must contain integers in"),
        ({"mask_positions": np.full((16, 3), 12)}, r"mask_positions: must contain integers in \[0, 12\)"),
        ({"segment_ids": np.full((16, 12), 2)}, r"segment_ids: must contain integers in \[0, 2\)"),
        ({"token_ids": np.zeros(12, int)}, r"must be \[B, L\] and \[B, K\]"),
        ({"token_ids": np.zeros((16, 41), int)}, "must have at most 40 columns"),
        ({"token_ids": np.zeros((16, 0), int)}, r"token_ids \(16, 0\), .*: must be .* L and K at least 1"),
        ({"mask_positions": np.zeros((16, 0), int)}, r"mask_positions \(16, 0\): must be .* at least 1"),
        ({"token_ids": [[1, 2], [3]]}, "batch: token_ids: has rows of different lengths: must be an array"),
        ({"mask_weights": np.full((16, 3), -1.0)}, "mask_weights: must contain finite numbers, at least 0"),
        (
            {"mask_weights": np.zeros((16, 3))},
            "data: no masked position has a weight: must have at least one",
        ),
        ({"mask_weights": np.full((16, 3), np.nan)}, "mask_weights: must contain finite"),
        ({"mask_weights": np.full((16, 3), "1")}, "mask_weights: must contain finite"),
        ({"padding_mask": np.full((16, 12), 0.5)}, "padding_mask: must contain only True and False"),
        ({"padding_mask": np.full((16, 12), "0")}, "padding_mask: must contain only"),
        (
            {"padding_mask": np.zeros((16, 12)), "mask_positions": np.full((16, 3), 5)},
            r"batch: mask_positions\[0, 0\] = 5: is padding, so its mask_weights must be 0",
        ),
    ],
)
def test_errors_name_the_field_of_a_batch(model: MaskedLM, change: dict[str, Any], message: str) -> None:
    batch = batch_of(model)
    batch["mask_positions"], batch["labels"], batch["mask_weights"] = (
        batch[name][:, :3] for name in ("mask_positions", "labels", "mask_weights")
    )
    batch = {name: array for name, array in (batch | change).items() if array is not None}
    with pytest.raises(InputError, match=message):
        model.fit(batch, num_steps=1)


def test_errors_name_arguments_of_another_kind(model: MaskedLM) -> None:
    config = MaskingConfig(vocabulary_size=model.config.vocabulary_size, mask_token_id=4)
    for call in (model.fit, model.evaluate):
        with pytest.raises(InputError, match=r"^masking: found MaskingConfig .*: must be a MaskingRecipe"):
            call(TEXTS, masking=config)
        for texts in (set(TEXTS), iter(TEXTS)):
            with pytest.raises(InputError, match=r"batch 0: found str: .*; texts must be given as a list"):
                call(texts)


@pytest.mark.slow
def test_errors_name_other_unusable_data(model: MaskedLM) -> None:
    batch = batch_of(model)
    with pytest.raises(InputError, match="found one string"):
        model.fit("apples", num_steps=1)
    with pytest.raises(InputError, match=r"batch 1: token_ids .* as in the first batch"):
        model.fit([batch, {name: array[:8] for name, array in batch.items()}], num_steps=2)
    with pytest.raises(InputError, match="no batch: must have at least one"):
        model.fit([], num_steps=1)
    with pytest.raises(InputError, match=r"sequence_length = 50: must be in \[3, 40\]"):
        model.fit(TEXTS, num_steps=1, sequence_length=50)


def test_a_non_finite_loss_raises_and_leaves_the_model_unchanged(model: MaskedLM) -> None:
    batch = batch_of(model)
    # Their sum is infinite in float32.
    batch["mask_weights"] = np.full_like(batch["mask_weights"], 3e38)
    before = jax.tree.map(np.asarray, model.params)
    with pytest.raises(RunError, match="the loss was non-finite in 20 consecutive steps"):
        model.fit(batch, num_steps=40, batch_size=16)
    jax.tree.map(np.testing.assert_array_equal, model.params, before)


def test_longer_texts_continue_in_further_rows(model: MaskedLM) -> None:
    long = " ".join(TEXTS)
    assert model.evaluate([long], sequence_length=16).masked_tokens > 8
    assert len(model.tokenizer.encode(long)) > 40
    assert np.isfinite(model.fit([long], num_steps=2, batch_size=2).losses).all()


def test_an_epoch_is_the_default_and_epochs_can_be_given(
    model: MaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def train(tuner: Tuner, state: Any, batches: Any, num_steps: int) -> Any:
        taken.append(num_steps)
        assert tuner.settings.num_steps == num_steps
        return state, FitResult((), ())

    monkeypatch.setattr(Tuner, "train", train)
    batch = batch_of(model)
    halves = [{name: array[half] for name, array in batch.items()} for half in (slice(0, 8), slice(8, 16))]
    for data, settings, steps in (
        (TEXTS, {"batch_size": 8}, 2),
        (TEXTS, {}, 1),
        (TEXTS, {"batch_size": 6}, 3),
        (TEXTS, {"batch_size": 6, "num_epochs": 3}, 8),
        # Not one step with all passes in it.
        (TEXTS, {"batch_size": 64, "num_epochs": 2}, 2),
        (np.array(TEXTS), {"batch_size": 8, "num_steps": 5}, 5),
        # A long text has several rows.
        ([" ".join(TEXTS)], {"batch_size": 1, "sequence_length": 16, "num_epochs": 2}, 10),
        (batch, {"batch_size": 8}, 2),
        (batch, {"batch_size": 5, "num_epochs": 2}, 7),
        (iter(halves), {"num_epochs": 3}, 6),
        (halves, {"num_steps": 7}, 7),
    ):
        model.fit(data, **settings)
        assert taken.pop() == steps, settings
    for settings, message in (
        ({"num_steps": 1, "num_epochs": 1}, "num_steps and num_epochs: must not be given together"),
        ({"num_epochs": 0}, "num_epochs = 0: must be a whole number, at least 1"),
        ({"num_epochs": 1.5}, "num_epochs = 1.5: must be a whole number"),
        ({"num_epochs": float("nan")}, "num_epochs = nan: must be a whole number"),
        ({"num_epochs": "2"}, "num_epochs = '2': must be a whole number"),
        ({"masking": None}, "masking: found None: must be a MaskingRecipe"),
        ({"masking": {"mask_selection_rate": 0.3}}, "masking: found dict .*: must be a MaskingRecipe"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
    ):
        with pytest.raises(InputError, match=message):
            model.fit(TEXTS, **settings)
    for settings in ({"masking": MaskingRecipe(mask_selection_rate=0.3)}, {"sequence_length": 16}):
        for call in (model.fit, model.evaluate):
            with pytest.raises(InputError, match="must not be given with batches that are already masked"):
                call(batch, **settings)
    for data in ([], iter([])):
        with pytest.raises(InputError, match="data: no batch: must have at least one"):
            model.evaluate(data)
    with pytest.raises(InputError, match="data: found None: must be a list of strings or batches"):
        model.fit(None)


def test_batches_without_a_masked_token_teach_nothing(model: MaskedLM) -> None:
    batch, before = batch_of(model), model.params
    with pytest.raises(InputError, match="no masked position has a weight: must have at least one"):
        model.fit(batch | {"mask_weights": np.zeros_like(batch["mask_weights"])}, num_steps=2)
    assert model.params is before
    for weight in (math.nan, -1.0, "a"):
        with pytest.raises(InputError, match="mask_weights: must contain finite numbers, at least 0"):
            model.evaluate(batch | {"mask_weights": np.full(batch["mask_weights"].shape, weight)})
    with pytest.raises(InputError, match="no batch: must have at least one"):
        model.evaluate([])


def test_data_without_a_masked_token_have_no_loss(model: MaskedLM) -> None:
    batch = batch_of(model)
    unmasked = batch | {"mask_weights": np.zeros_like(batch["mask_weights"])}
    with pytest.raises(InputError, match=r"^data: no token is masked, so there is no loss"):
        model.evaluate(unmasked)
    with pytest.raises(InputError, match=r"^texts: no token is masked, so there is no loss"):
        model.evaluate(TEXTS, masking=MaskingRecipe(mask_selection_rate=0.0))
    with (
        pytest.warns(UserWarning, match="of the tokens are unknown"),
        pytest.raises(InputError, match=r"^texts: no token can be masked"),
    ):
        model.evaluate(["東京", "京都"])


def test_every_row_of_a_mapping_is_trained_on(model: MaskedLM) -> None:
    rows = {name: array[:5] for name, array in batch_of(model).items()}
    batches = islice(endless_masked_batches(rows, model.config, 2), 5)
    taken = np.concatenate([batch.token_ids for batch in batches])
    np.testing.assert_array_equal(taken, np.concatenate([rows["token_ids"]] * 2))
    whole = next(endless_masked_batches(rows, model.config, 100))
    np.testing.assert_array_equal(whole.labels, rows["labels"])
    empty = {name: array[:0] for name, array in rows.items()}
    with pytest.raises(InputError, match="no batch: must have at least one"):
        model.fit(empty, num_steps=1)
    with pytest.raises(InputError, match=r"batch 0: token_ids \(0, 12\): must have a row"):
        model.fit([empty], num_steps=1)
