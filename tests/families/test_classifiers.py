"""Classifiers of families whose pooler is not BERT's, without transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlm_jax.errors import InputError
from mlm_jax.families.registry import FAMILIES
from mlm_jax.files.checksums import write_checksums
from mlm_jax.formats import hugging_face
from mlm_jax.formats.model_folder import StoredModel, flatten_params, write_model_folder
from mlm_jax.store import conversion
from mlm_jax.store.conversion import Request, convert
from mlm_jax.store.reference_outputs import Reference
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.text_classifier import TextClassifier
from tests.families.test_families import config_like, model_of

BY_TYPE = {family.model_type: family for family in FAMILIES}


@pytest.fixture(autouse=True)
def _libraries_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "ask_library", lambda name, *_: Reference(name, None, "not asked"))


@pytest.fixture
def tokenizer(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "weights/sapiens-vh-roberta")


def like(model_type: str, tokenizer: Tokenizer, *heads: str, **changes: Any) -> StoredModel:
    config = replace(config_like(BY_TYPE[model_type]), pooler="classifier" in heads, **changes)
    return model_of(config, tokenizer, *heads)


def written(model: StoredModel, folder: Path, **settings: object) -> Path:
    """Writes a folder of transformers whose config.json has these settings, or lacks those that are None."""
    folder.mkdir()
    hugging_face.write(model, folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("model_type", ["distilbert", "electra", "modernbert", "eurobert"])
def test_without_its_classifier_a_model_has_no_pooler(
    model_type: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source = written(like(model_type, tokenizer, "classifier"), tmp_path / "source")
    certificate = convert(source, tmp_path / "out", "hugging_face", Request(backbone_only=True))
    assert certificate["changes"] == [
        "left out: classifier (--backbone-only)",
        "left out: pooler (hugging_face has one in a classifier only)",
    ]
    encoder = hugging_face.read(tmp_path / "out").model
    assert set(encoder.params) == {"encoder"}
    assert not encoder.config.pooler
    # Our own format keeps it.
    assert convert(source, tmp_path / "ours", "mlm_jax")["changes"] == []


def test_the_class_may_be_missing_and_another_dropout_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = like("distilbert", tokenizer, "classifier")
    assert set(load_file(written(model, tmp_path / "stated") / "model.safetensors")) >= {
        *("pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias")
    }
    reading = hugging_face.read(
        written(model, tmp_path / "unstated", architectures=None, seq_classif_dropout=0.2)
    )
    assert reading.model.labels == model.labels
    assert any("read as that of DistilBertForSequenceClassification" in note for note in reading.notes)
    assert any("left out: seq_classif_dropout 0.2" in note for note in reading.notes)


def test_another_pooler_than_the_familys_is_not_written_unasked(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    write_model_folder(
        tmp_path / "own", like("distilbert", tokenizer, "classifier", pooler_kind="tanh", pooling="mean")
    )
    with pytest.raises(
        InputError, match=r"pooler_kind 'tanh' becomes 'relu', pooling 'mean' becomes 'cls'; --change-conv"
    ):
        convert(tmp_path / "own", tmp_path / "out", "hugging_face")
    certificate = convert(
        tmp_path / "own", tmp_path / "out", "hugging_face", Request(change_conventions=True)
    )
    assert certificate["comparisons"]["change"]["max_difference"] > 0.01
    # A model without a pooler has the setting, and no use for it.
    (tmp_path / "masked_lm").mkdir()
    write_model_folder(tmp_path / "masked_lm", like("distilbert", tokenizer, "head", pooler_kind="tanh"))
    assert convert(tmp_path / "masked_lm", tmp_path / "back", "hugging_face")["changes"] == []


def test_a_new_classifier_of_a_modernbert_begins_with_the_head(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = like("modernbert", tokenizer, "head", pooling="mean")
    classifier = TextClassifier.from_preset(written(model, tmp_path / "source"), labels=["a", "b"])
    assert "the classifier has random weights" in capsys.readouterr().err
    assert (classifier.config.pooler_kind, classifier.config.pooling) == ("head", "mean")
    found, head = flatten_params(classifier.params["encoder"]["pooler"]), model.params["head"]
    np.testing.assert_array_equal(found["kernel"], head["dense"]["kernel"])
    np.testing.assert_array_equal(found["norm/scale"], head["norm"]["scale"])
    # The mean is over the tokens, whatever the row is padded with.
    alone, beside = (
        classifier.predict_probabilities(["QVQL"]),
        classifier.predict_probabilities(["QVQL", "Q" * 15]),
    )
    np.testing.assert_allclose(beside[0], alone[0], atol=1e-6)
    classifier.save(tmp_path / "own")
    convert(tmp_path / "own", tmp_path / "back", "hugging_face")
    again = TextClassifier.from_preset(tmp_path / "back")
    np.testing.assert_array_equal(again.predict_probabilities(["QVQL"]), alone)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["distilbert", "electra", "modernbert", "eurobert"])
def test_every_kind_of_pooler_learns(model_type: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = written(like(model_type, tokenizer, "head"), tmp_path / "source")
    classifier = TextClassifier.from_preset(folder, labels=["a", "b"], dropout_rate=0.0)
    before = flatten_params(jax.tree.map(np.array, classifier.params["encoder"]["pooler"]))
    texts, labels = ["QVQL", "QVQV", "WMG", "WMGG"] * 4, ["a", "a", "b", "b"] * 4
    first = classifier.evaluate(texts, labels).loss
    classifier.fit(texts, labels, batch_size=8, num_epochs=10, learning_rate=1e-3)
    assert classifier.evaluate(texts, labels).loss < first
    for path, weight in flatten_params(classifier.params["encoder"]["pooler"]).items():
        assert (np.asarray(weight) != before[path]).any(), path


def test_an_unused_position_table_is_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """TensorFlow's ESM has one with rotary positions, too."""
    folder = written(like("esm", tokenizer, "head"), tmp_path / "source")
    name, tensors = "esm.embeddings.position_embeddings.weight", load_file(folder / "model.safetensors")
    save_file(tensors | {name: np.ones((20, 16), np.float32)}, folder / "model.safetensors")
    write_checksums(folder)
    reading = hugging_face.read(folder)
    assert reading.dropped[name] == "not read by a model with rotary positions"
