"""Every architecture trains the same on any mesh, and survives saving and loading."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.config import BertConfig, DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import random_model, write_model_folder
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.run import trainer
from mlm_jax.run.trainer import train
from mlm_jax.store.checkpoint import Checkpointer
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.format_registry import FORMATS
from mlm_jax.use.labeled_batches import labeled_rows
from mlm_jax.use.masked_batches import masked_batches
from mlm_jax.use.masked_lm import MaskedLM
from mlm_jax.use.text_classifier import TextClassifier
from tests.model.reference import EVERYTHING, OF_FAMILIES, covering_set, name_of
from tests.run_small import MODEL as TINY
from tests.run_small import config_of, tokenizer
from tests.small import MODEL, losses_of, program_of

COVERING = [*covering_set(), *OF_FAMILIES.values()]
WITHIN = DataConfig(sequence_length=24, attend_within_documents=True)
# Compilation takes most of the time: by default, only everything at once is tested. The architectures of families are
# slow tests, and every pair of settings is tested before a release.
FEW = [(EVERYTHING, (2, 2, 2))]


def both_losses(changes: dict[str, Any], mesh: tuple[int, int, int]) -> tuple[list[float], list[float]]:
    """Returns the losses on one device and on a mesh, with dropout."""
    model = replace(MODEL, **changes)
    one, many = (losses_of(program_of(on, model=model, data=WITHIN), 3) for on in ((1, 1, 1), mesh))
    return one, many


def _tier(row: tuple[dict[str, Any], tuple[int, int, int]]) -> Any:
    if row in FEW:
        return ()
    return pytest.mark.slow if row in OF_FAMILIES.values() else pytest.mark.release


ON_MESHES = pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        pytest.param(*row, id=f"{name_of(row[0])}-{row[1]}", marks=_tier(row))
        for row in (*FEW, *(row for row in COVERING if row not in FEW))
    ],
)


@ON_MESHES
@pytest.mark.slow
def test_a_mesh_trains_like_one_device(changes: dict[str, Any], mesh: tuple[int, int, int]) -> None:
    one, many = both_losses(changes, mesh)
    assert abs(one[0] - np.log(MODEL.vocabulary_size)) < 0.2
    assert one[2] != one[0]
    np.testing.assert_allclose(many, one, rtol=1e-5)


def test_gated_layers_are_sharded_by_the_rules() -> None:
    params = program_of((2, 2, 2), model=replace(MODEL, **EVERYTHING), data=WITHIN).abstract_state.params
    feed_forward = params["encoder"]["layers"]["feed_forward"]
    for name in ("gate", "up"):
        kernel = feed_forward[name]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (2, 64 // 2, 128 // 2)


@ON_MESHES
def test_a_checkpoint_of_a_mesh_is_restored_on_one_device(
    changes: dict[str, Any], mesh: tuple[int, int, int], tmp_path: Path
) -> None:
    model = replace(MODEL, **changes)
    many, one = (program_of(on, model=model, data=WITHIN) for on in (mesh, (1, 1, 1)))
    # Makes the moments differ.
    state = jax.tree.map(
        lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), many.initial_state()
    )
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(7, state, {"model": "any"})
        checkpointer.wait()
        found = checkpointer.restore(one.abstract_state, {"model": "any"})
    assert found is not None
    assert found[0] == 7
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found[1]), jax.device_get(state))


LATER = replace(TINY, num_layers=2, vocabulary_multiple=64, **EVERYTHING)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with all variants at once."""
    folder = tmp_path_factory.mktemp("later") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
        assert train(of_run(folder)).finished
    return folder


def of_run(folder: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"eval_every": 3, "log_every": 1, "model": LATER, "num_steps": 3}
    settings["compilation_cache_dir"] = None
    return config_of(folder, **settings | {"optimizer": OptimizerConfig(learning_rate=1e-3)} | changes)


@pytest.mark.slow
def test_the_model_of_a_run_survives_saving_and_conversion(run: Path, tmp_path: Path) -> None:
    text = "The Statue of Liberty is in New York."
    from_run = MaskedLM.from_preset(run)
    from_run.save(tmp_path / "saved")
    convert(run, tmp_path / "converted", "mlm_jax")
    expected = from_run.features([text])[0]
    assert from_run.config == replace(LATER, vocabulary_multiple=1)
    for folder in ("saved", "converted"):
        again = MaskedLM.from_preset(tmp_path / folder)
        assert again.config == from_run.config
        np.testing.assert_array_equal(again.features([text])[0], expected)
    stored = json.loads((tmp_path / "saved" / "config.json").read_text())["model"]
    assert {name: stored[name] for name in EVERYTHING} == EVERYTHING


@pytest.mark.slow
def test_a_run_starts_only_from_the_same_architecture(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    start = {"init_from": str(run)}
    # Dropout may change.
    assert train(of_run(tmp_path / "next", model=replace(LATER, embedding_dropout=True), **start)).finished
    for setting, other in (
        ("local_attention_window", 8),
        ("norm", "layer_norm"),
        ("activation", "geglu"),
        ("num_heads", 1),
    ):
        model = replace(LATER, **{setting: other})
        with pytest.raises(InputError, match=f"has model.{setting} = .*: must be {other!r}"):
            train(of_run(tmp_path / "other", model=model, **start))


BERT = replace(TINY, num_layers=2)
FOREIGN = {
    "norm_placement": ("pre", {}),
    "norm": ("rms_norm", {}),
    "biases": (False, {}),
    "embedding_norm": (False, {}),
    "positions": ("rotary", {}),
    "num_segments": (0, {}),
    "activation": ("swiglu", {}),
    "local_attention_window": (6, {"global_attention_every": 2}),
}


@pytest.mark.parametrize("target", ["hugging_face", "google_tf", "keras_hub"])
@pytest.mark.parametrize("setting", FOREIGN)
def test_settings_that_a_format_cannot_express_are_named(setting: str, target: str) -> None:
    value, needed = FOREIGN[setting]
    # Without segments, it is DistilBERT.
    if (setting, target) == ("num_segments", "hugging_face"):
        setting, value, needed = "norm", "rms_norm", {"num_segments": 0}
    # Rotary positions after BERT's norms are those of Jina Embeddings 3.
    if (setting, target) == ("positions", "hugging_face"):
        value = "none"
    with pytest.raises(
        InputError, match=rf"^{target} cannot express model\.{setting} = {value!r}: must be"
    ) as refused:
        FORMATS[target].expressible(replace(BERT, **{setting: value} | needed))
    assert "\n" not in str(refused.value)
    assert FORMATS["mlm_jax"].expressible(LATER) == LATER


@pytest.mark.parametrize("target", ["hugging_face", "google_tf", "keras_hub"])
def test_inexpressible_architectures_are_never_written(run: Path, target: str, tmp_path: Path) -> None:
    """Not even with changed conventions, because the result would be a different model."""
    for request in (None, Request(change_conventions=True, allow_random_pooler=True)):
        with pytest.raises(
            InputError, match=rf"^{target} cannot express model\.(positions = 'rotary'|local)"
        ):
            convert(run, tmp_path / "out", target, request)
    assert list(tmp_path.iterdir()) == []


def test_missing_embedding_dropout_is_a_change_of_conventions(tmp_path: Path) -> None:
    config = replace(BERT, embedding_dropout=False)
    (tmp_path / "ours").mkdir()
    write_model_folder(tmp_path / "ours", random_model(config, tokenizer(), 0))
    with pytest.raises(InputError, match="embedding_dropout False becomes True; --change-conventions"):
        convert(tmp_path / "ours", tmp_path / "out", "hugging_face")


def test_segments_are_rejected_by_a_model_without_segments() -> None:
    ids, positions = np.full((2, 8), 5), np.full((2, 1), 3)
    data = {"token_ids": ids, "mask_positions": positions, "labels": np.full((2, 1), 7)}
    config = BertConfig(num_segments=0)
    (batch,) = masked_batches(data, config, 2)
    assert batch.segment_ids is None
    with pytest.raises(InputError, match=r"segment_ids: must be omitted, .* model\.num_segments = 0"):
        next(masked_batches(data | {"segment_ids": np.zeros_like(ids)}, config, 2))


def test_a_model_without_segments_fits_arrays(run: Path) -> None:
    rows = np.random.RandomState(0).randint(5, 300, (4, 12))
    positions = np.tile([3, 7], (4, 1))
    data = {"token_ids": rows, "mask_positions": positions, "labels": rows[:, [3, 7]]}
    model = MaskedLM.from_preset(run)
    result = model.fit(data, num_steps=2, batch_size=4, learning_rate=1e-3)
    assert len(result.losses) == 2
    assert np.isfinite(result.losses).all()


def test_a_model_without_segments_tells_pairs_apart_by_the_separator(run: Path) -> None:
    classifier = TextClassifier.from_preset(run, num_classes=2)
    pair, tokenizer = ("a statue", "a river"), classifier.tokenizer
    assert classifier.predict_probabilities([pair]).shape == (1, 2)
    ((token_ids, _),) = labeled_rows([pair], classifier.config, tokenizer, None)
    assert token_ids.tolist() == [
        tokenizer.cls_token_id,
        *tokenizer.encode(pair[0]),
        tokenizer.sep_token_id,
        *tokenizer.encode(pair[1]),
        tokenizer.sep_token_id,
    ]
    one_segment = replace(classifier.config, num_segments=1)
    with pytest.raises(InputError, match="pairs of texts: must have a model with two segments"):
        labeled_rows([pair], one_segment, tokenizer, None)
